"""Single heads of a trace: where they look, what they contribute from every token to every other, and the vectors that they write.

Maps have a row for each target token and a column for each source token. A map of a long prompt is a window of it: what a map costs grows with
the square of its side, and nobody reads eight thousand rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llm_tt.errors import RequestError
from llm_tt.flow.contributions import attention_contributions, table_of
from llm_tt.flow.shares import HeadShare
from llm_tt.models.transparent_llm import Trace
from llm_tt.progress import Progress, silent

MAX_SIDE = 512
"""Rows and columns of the map of a long prompt, at most"""
_MAX_CELLS = 2048**2
_PIECE_BYTES = 16 * 2**20
"""Rows of all heads are made for as many tokens at a time as fit into this"""
_KEPT_BYTES = 64 * 2**20
"""Contributions of a map that take more are not kept with the trace"""
_MAX_PARTS, _MIN_ROWS = 2**21, 16
"""Parts (target, source, head) that the map to show may have to compute, about a second's work; and the rows that it has whatever they cost"""


def attention_map(
    trace: Trace,
    layer: int,
    head: int | None = None,
    rows: range | None = None,
    columns: range | None = None,
    progress: Progress = silent,
) -> Tensor:
    """[R, C] float32 on the CPU: how much a head attends from each target token (rows) to each source token (columns); None: the mean of all
    heads. `rows` and `columns` are windows of positions, None for all. `progress` is called now and then; it may raise to cancel.

    Raises:
        RequestError: no such layer, head or position, or a map of too many cells.
    """
    layer, rows, columns = _asked(trace, layer, head, rows, columns)
    pattern = trace.blocks[layer].pattern_at_hand()
    pieces = [torch.zeros(0, len(columns))]
    with torch.inference_mode():
        for piece in _pieces(rows, n_heads(trace, layer) * trace.n_tokens):
            weights = pattern.rows(piece)[:, :, columns.start : columns.stop]
            pieces.append((weights.mean(0) if head is None else weights[head]).float().cpu())
            progress("Reading attention", (piece[-1] + 1 - rows.start) / len(rows))
    return torch.cat(pieces)


def contribution_map(
    trace: Trace,
    layer: int,
    head: int | None = None,
    rows: range | None = None,
    columns: range | None = None,
    progress: Progress = silent,
) -> Tensor:
    """[R, C] float32 on the CPU: the contribution of a head from each source token (columns) to the residual stream after attention at each
    target token (rows), among all heads, sources and the residual stream; None: the sum of all heads. Windows as in `attention_map`.

    Raises:
        RequestError: no such layer, head or position, or a map of too many cells.
    """
    layer, rows, columns = _asked(trace, layer, head, rows, columns)
    heads, table = n_heads(trace, layer), table_of(trace)
    result = torch.zeros(len(rows), len(columns))
    keep = len(rows) * trace.n_tokens * heads * 4 <= _KEPT_BYTES
    index = 0
    for piece in _pieces(rows, heads * trace.n_tokens):
        for row in table.attention(trace, layer, piece, keep=keep):
            shares = row.edges[columns.start : columns.stop]
            result[index, : len(shares)] = shares.sum(-1) if head is None else shares[:, head]
            index += 1
        progress("Computing contributions", index / len(rows))
    return result


def head_outputs(trace: Trace, layer: int, position: int, source: int | None = None) -> Tensor:
    """[H, d] float32: what each head adds to the residual stream at a token, from one source token or from all of them; with the output bias
    they sum to what attention adds there. Gates, norms and factors of the family are in it.

    Raises:
        RequestError: no such layer or position.
    """
    layer, position = trace.layer(layer), trace.position(position)
    source = None if source is None else trace.position(source)
    block = trace.blocks[layer]
    with torch.inference_mode():
        weight, _ = trace.model.attention_output(layer)
        alpha, values = block.pattern.rows([position])[:, 0].to(weight.device), block.values
        sources = slice(0, position + 1) if source is None else slice(source, source + 1)
        grouped = alpha[:, sources].reshape(len(values), -1, len(range(trace.n_tokens)[sources]))
        mixed = (grouped @ values[:, sources].to(weight.device).float()).reshape(len(weight), -1)
        if block.gate is not None:
            mixed = mixed * block.gate[position].to(mixed.device).float()
        made = torch.einsum("he,hed->hd", mixed, weight)
        return made if block.attn_norm is None else made * block.attn_norm.rows([position]).to(made.device)


def head_shares(trace: Trace, layer: int, position: int) -> list[HeadShare]:
    """What each head contributes to the residual stream after attention at a token, the largest first.

    Raises:
        RequestError: no such layer or position.
    """
    layer, position = trace.layer(layer), trace.position(position)
    edges = attention_contributions(trace, layer, [position]).edges[0, : position + 1, : n_heads(trace, layer)]
    totals = edges.sum(0)
    result: list[HeadShare] = []
    for head in totals.argsort(descending=True, stable=True).tolist():
        share, source = edges[:, head].max(0)
        result.append(HeadShare(layer, head, float(totals[head]), int(source) if share > 0 else position, float(share)))
    return result


def n_heads(trace: Trace, layer: int) -> int:
    """Of one layer: some models have fewer in some layers."""
    return len(trace.model.attention_output(trace.layer(layer))[0])


def map_window(trace: Trace, layer: int, position: int, source: int | None = None, side: int = MAX_SIDE) -> tuple[range, range]:
    """Rows and columns of the map to show for a target token: all of a short prompt, else windows around the target and, if given, the source.

    Raises:
        RequestError: no such layer or position.
    """
    layer, position = trace.layer(layer), trace.position(position)
    n_rows = min(side, max(_MIN_ROWS, _MAX_PARTS // (trace.n_tokens * n_heads(trace, layer))))
    rows = _around(position, n_rows, trace.n_tokens)
    middle = position if source is None else trace.position(source)
    # Sources lie before their target, so the window ends with the rows where it can.
    columns = range(max(0, rows.stop - side), max(min(side, trace.n_tokens), rows.stop))
    return rows, columns if middle in columns else _around(middle, side, trace.n_tokens)


def _around(position: int, size: int, n_tokens: int) -> range:
    start = max(0, min(position - size // 2, n_tokens - size))
    return range(start, min(start + size, n_tokens))


def _asked(trace: Trace, layer: int, head: int | None, rows: range | None, columns: range | None) -> tuple[int, range, range]:
    layer, every = trace.layer(layer), range(trace.n_tokens)
    rows, columns = (every if window is None else window for window in (rows, columns))
    for window in (rows, columns):
        if window.step != 1 or (window and not (window[0] in every and window[-1] in every)):
            raise RequestError(
                f"{window} is no window of the prompt, which has positions 0 to {trace.n_tokens - 1}. Give a range of neighbouring positions."
            )
    if head is not None and not 0 <= head < n_heads(trace, layer):
        raise RequestError(
            f"Head {head} does not exist: layer {layer} has {n_heads(trace, layer)} heads, 0 to {n_heads(trace, layer) - 1}."
        )
    if len(rows) * len(columns) > _MAX_CELLS:
        raise RequestError(
            f"A map of {len(rows)} x {len(columns)} tokens has {len(rows) * len(columns):,} cells, more than {_MAX_CELLS:,}. "
            "Choose a window: rows=range(start, stop), columns=range(start, stop)."
        )
    return layer, rows, columns


def _pieces(rows: range, numbers_per_row: int) -> Iterator[list[int]]:
    size = max(1, _PIECE_BYTES // (4 * numbers_per_row))
    for start in range(rows.start, rows.stop, size):
        yield list(range(start, min(start + size, rows.stop)))
