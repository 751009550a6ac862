"""The bytes that carry one graph to the browser. Layout only: what the numbers mean is said in `llm_tt.engine.answers`.

A frame is one `bytes` object (a Streamlit component receives top-level bytes unchanged, see docs/graph-frame.md):

    offset  size      content
    0       4         magic b"LTT1"
    4       4         little-endian uint32 N, the length of the header in bytes
    8       N         header: UTF-8 JSON, padded with spaces so that 8 + N is a multiple of 8
    8 + N   ...       the arrays, little-endian, each starting at a multiple of 8 from here

The header's `arrays` maps a name to `{"dtype": "u1" | "u2" | "u4" | "f4", "offset": bytes from 8 + N, "length": elements}`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC = b"LTT1"
_ALIGNMENT = 8
_DTYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "f4": np.float32}


def _padding(length: int) -> int:
    return -length % _ALIGNMENT


def pack(header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Header and one-dimensional arrays -> frame.

    Raises:
        ValueError: the header holds NaN or infinity (browsers cannot parse them), or an array has another dtype or rank.
    """
    names = {np.dtype(numpy_type): name for name, numpy_type in _DTYPES.items()}
    table: dict[str, dict[str, Any]] = {}
    body: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype not in names:
            raise ValueError(f"array {name!r} is {array.dtype} of rank {array.ndim}; a frame carries vectors of {sorted(_DTYPES)}")
        data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
        table[name] = {"dtype": names[array.dtype], "offset": offset, "length": int(array.size)}
        data += b"\0" * _padding(len(data))
        body.append(data)
        offset += len(data)
    text = json.dumps({**header, "arrays": table}, ensure_ascii=False, allow_nan=False).encode()
    text += b" " * _padding(8 + len(text))
    return MAGIC + struct.pack("<I", len(text)) + text + b"".join(body)


def unpack(frame: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The inverse of `pack`; the browser's decoder is `frontend/src/frame.ts`.

    Raises:
        ValueError: the bytes are not a frame.
    """
    if frame[:4] != MAGIC:
        raise ValueError(f"not a graph frame: it starts with {frame[:4]!r}, not {MAGIC!r}")
    (length,) = struct.unpack_from("<I", frame, 4)
    header = json.loads(frame[8 : 8 + length])
    start = 8 + length
    arrays = {
        name: np.frombuffer(frame, np.dtype(_DTYPES[spec["dtype"]]).newbyteorder("<"), spec["length"], start + spec["offset"])
        for name, spec in header.pop("arrays").items()
    }
    return header, arrays
