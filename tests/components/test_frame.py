"""The frame's bytes: what is packed is unpacked, what a browser could not read is refused, and both languages read one golden file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llm_tt.components.graph.frame import MAGIC, pack, unpack

GOLDEN = Path(__file__).parents[2] / "frontend/tests/fixtures/example.frame"
"""Read by frontend/tests/frame.test.ts, too. Written anew by `LLM_TT_WRITE_GOLDEN=1 pytest tests/components/test_frame.py`."""

EXAMPLE_HEADER: dict[str, Any] = {
    "version": 1,
    "trace": "demo\n1 2 3",
    "n_layers": 2,
    "tokens": ["<bos>", " Mary", "Mary", "\n", "שלום", "👩‍👩‍👧", "<0xE2>", "<b>&amp;"],
    "target": 2,
    "threshold": 0.04,
    "renormalized": True,
    "prediction": " gave",
    "probability": 0.75,
    "selection": {"type": "edge", "key": "attention", "from": "I0_1", "to": "A1_2"},
    "effect_of": "·gave − ⏎",
    "roles": ["special", "system", "user", "user", "assistant", "tool", "continuation", None],
}

# kind, layer, source, destination, weight, {head: weight}: the routes to token 2, weights exact in float32.
EXAMPLE_EDGES: list[tuple[int, int, int, int, float, dict[int, float]]] = [
    (4, 1, 2, 2, 0.625, {}),
    (2, 1, 2, 2, 0.375, {}),
    (3, 1, 2, 2, 0.375, {}),
    (1, 1, 2, 2, 0.5, {}),
    (0, 1, 2, 2, 0.125, {3: 0.125}),
    (0, 1, 1, 2, 0.375, {0: 0.25, 5: 0.125}),
    (4, 0, 2, 2, 1.0, {}),
    (1, 0, 2, 2, 1.0, {}),
    (4, 0, 1, 1, 1.0, {}),
    (0, 0, 0, 1, 0.25, {7: 0.25}),
    (1, 0, 1, 1, 0.75, {}),
]


def example_arrays() -> dict[str, npt.NDArray[Any]]:
    kind, layer, source, destination, weight, heads = zip(*EXAMPLE_EDGES, strict=True)
    return {
        "kind": np.array(kind, np.uint8),
        "layer": np.array(layer, np.uint16),
        "source": np.array(source, np.uint32),
        "destination": np.array(destination, np.uint32),
        "weight": np.array(weight, np.float32),
        "heads_start": np.cumsum([0, *map(len, heads)]).astype(np.uint32),
        "head": np.array([head for edge in heads for head in edge], np.uint16),
        "head_weight": np.array([share for edge in heads for share in edge.values()], np.float32),
        "effect": np.array([3, 0.5, 0.5, 2, -0.25, 1.25, 1, 1, np.nan, np.nan, np.nan], np.float32),
    }


def test_unpack_returns_what_was_packed() -> None:
    arrays = example_arrays()
    header, unpacked = unpack(pack(EXAMPLE_HEADER, arrays))
    assert header == EXAMPLE_HEADER
    assert list(unpacked) == list(arrays)
    for name, array in arrays.items():
        assert unpacked[name].dtype == array.dtype
        np.testing.assert_array_equal(unpacked[name], array)


def test_arrays_start_at_multiples_of_eight() -> None:
    frame = pack(EXAMPLE_HEADER, example_arrays())
    assert int.from_bytes(frame[4:8], "little") % 8 == 0
    assert len(frame) % 8 == 0


def test_empty_arrays_and_slices_survive() -> None:
    every_second = np.arange(10, dtype=np.uint32)[::2]
    _, arrays = unpack(pack({}, {"none": np.zeros(0, np.float32), "some": every_second}))
    assert arrays["none"].size == 0
    np.testing.assert_array_equal(arrays["some"], [0, 2, 4, 6, 8])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_header_with_nan_or_infinity_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack({"probability": value}, {})


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.bool_])
def test_other_dtypes_are_refused_by_name(dtype: type) -> None:
    with pytest.raises(ValueError, match=rf"array 'weight' is {np.dtype(dtype)} of rank 1"):
        pack({}, {"weight": np.zeros(3, dtype)})


def test_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="of rank 2"):
        pack({}, {"weight": np.zeros((2, 2), np.float32)})


def test_other_bytes_are_not_a_frame() -> None:
    with pytest.raises(ValueError, match=f"not {MAGIC!r}"):
        unpack(b"PNG?" + bytes(12))


def test_the_golden_file_is_what_pack_writes() -> None:
    frame = pack(EXAMPLE_HEADER, example_arrays())
    if os.environ.get("LLM_TT_WRITE_GOLDEN"):
        GOLDEN.write_bytes(frame)
    assert GOLDEN.read_bytes() == frame, (
        "the encoding changed: if that is meant, write the golden file anew (see GOLDEN) and run `npm test`"
    )
