"""The kernels themselves, in Triton. Imported where a device runs them (`llm_tt.flow.kernels`): not every build of torch brings triton."""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def scaled_proximity(
    units,
    scales,
    wholes,
    factors,
    unit,
    whole,
    result,
    unit_stride,
    whole_stride,
    factor_stride,
    width,
    HAS_FACTORS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """One part: sum over its entries of min(q, 2|x| - q), not below 0, in float32. Entries beyond the width are 0 and add nothing."""
    part = tl.program_id(0)
    # Rows times strides may be beyond 32 bits.
    unit_row = units + tl.load(unit + part).to(tl.int64) * unit_stride
    at = tl.load(whole + part).to(tl.int64)
    whole_row = wholes + at * whole_stride
    factor_row = factors + at * factor_stride
    scale = tl.load(scales + part).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        x = tl.load(whole_row + column, mask=inside, other=0.0).to(tl.float32)
        q = tl.load(unit_row + column, mask=inside, other=0.0).to(tl.float32) * scale
        if HAS_FACTORS:
            q *= tl.load(factor_row + column, mask=inside, other=0.0).to(tl.float32)
        # Where x is 0 either sign gives -|q|.
        q = tl.where(x < 0, -q, q)
        total += tl.minimum(q, 2 * tl.abs(x) - q, propagate_nan=tl.PropagateNan.ALL)
    tl.store(result + part, tl.maximum(tl.sum(total), 0.0, propagate_nan=tl.PropagateNan.ALL))
