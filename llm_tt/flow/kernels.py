"""The innermost sums of contributions in one pass on a GPU, without anything of the parts' size; and the proof that they are right there.

A kernel is used on a device only once it has been compared there with the sum written out in float64 (`why_not`). Everywhere else, and where it
fails, `llm_tt.flow.contributions` adds up in plain PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from typing import Any

import torch
from torch import Tensor

DEVICES: tuple[str, ...] = ("cuda",)
"""Types of devices that Triton compiles for; ROCm's devices are called cuda, too"""
TOLERANCE = 1e-5
"""Of the largest proximity that a kernel is proven with"""

_BLOCK = 1024
_WIDTHS = (333, 64, 1040)
"""Of the proof: neither even nor a multiple of 16, which Triton compiles apart; one block and more"""
_lock = threading.Lock()


def supported(device: torch.device) -> bool:
    """Whether the kernel is used there. The first question about a device compiles and proves it, which takes seconds."""
    return device.type in DEVICES and why_not(device) is None


def why_not(device: torch.device) -> str | None:
    """Why contributions on a device are added up in plain PyTorch, as a clause; None where the kernel is used. Found out once a process."""
    with _lock:
        return _why_not(device)


@functools.cache
def _why_not(device: torch.device) -> str | None:
    if device.type not in DEVICES:
        return f"{device} runs no Triton kernels"
    try:
        _compiled()
    except ImportError as error:
        return f"triton cannot be imported ({_first_line(error)})"
    try:
        off = max(_error(device, width, has_factors) for width in _WIDTHS for has_factors in (False, True))
    except torch.OutOfMemoryError:
        # Says nothing about the kernel: to be asked again.
        raise
    except Exception as error:
        # Compilers and drivers raise whatever they stumble over.
        return f"the kernel does not run there ({_first_line(error)})"
    return None if off <= TOLERANCE else f"the kernel is off by {off:.1e} there, more than {TOLERANCE:.0e}"


def scaled_proximity(units: Tensor, scales: Tensor, wholes: Tensor, unit: Tensor, whole: Tensor, factors: Tensor | None = None) -> Tensor:
    """As `llm_tt.flow.contributions.scaled_proximity`, added up in float32 whatever the tensors' dtypes; all of them are on one device."""
    result = torch.empty_like(scales, memory_format=torch.contiguous_format)
    if not len(scales):
        return result
    units, wholes = _rows_in_place(units), _rows_in_place(wholes)
    # What is not read needs an address all the same.
    multipliers = wholes if factors is None else _rows_in_place(factors)
    width = units.shape[-1]
    with torch.cuda.device(units.device) if units.device.type == "cuda" else contextlib.nullcontext():
        _compiled().scaled_proximity[(len(scales),)](
            units,
            scales.contiguous(),
            wholes,
            multipliers,
            unit.contiguous(),
            whole.contiguous(),
            result,
            units.stride(0),
            wholes.stride(0),
            multipliers.stride(0),
            width,
            HAS_FACTORS=factors is not None,
            BLOCK=min(_BLOCK, 1 << max(width - 1, 0).bit_length()),
        )
    return result


def _compiled() -> Any:
    """The module of the kernels, as Triton has them."""
    return importlib.import_module("llm_tt.flow.triton_kernels")


def _rows_in_place(rows: Tensor) -> Tensor:
    """The same, each row in one piece: columns that lie apart would be read one memory transaction each."""
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _error(device: torch.device, width: int, has_factors: bool) -> float:
    """How far the kernel is from the sum in float64, as a share of the largest proximity of a small random case."""
    made = torch.Generator().manual_seed(width)
    units, wholes, factors = (torch.randn(rows, width, generator=made) for rows in (7, 5, 5))
    scales = torch.rand(24, generator=made)
    unit, whole = torch.arange(24) % 7, torch.arange(24) % 5
    # Most parts point the way of their whole, so that there is something to be off from; some entries are zeros of either sign.
    units[:5] += 2 * wholes
    factors = 1 + factors / 2
    wholes[:, ::5], wholes[0, ::10] = 0.0, -0.0
    parts, x = (scales[:, None] * units[unit]).double(), wholes[whole].double()
    if has_factors:
        parts = parts * factors[whole]
    aligned = parts * torch.where(x < 0, -1.0, 1.0)
    expected = torch.minimum(aligned, 2 * x.abs() - aligned).sum(-1).clamp(min=0)
    units, scales, wholes, unit, whole, factors = (tensor.to(device) for tensor in (units, scales, wholes, unit, whole, factors))
    found = scaled_proximity(units, scales, wholes, unit, whole, factors if has_factors else None).cpu().double()
    error = (found - expected).abs().max() / expected.max()
    return float(error.nan_to_num(nan=torch.inf))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
