"""Two traces compared: the same text in two models, such as a base and its tuned sibling, or two texts in one (minimal pairs)."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import numpy.typing as npt
import torch

from llm_tt.analysis.comparison import ABSENT, Comparison, EdgeChanges, Floats
from llm_tt.errors import RequestError
from llm_tt.flow.contributions import table_of
from llm_tt.flow.graph import DEFAULT_THRESHOLD, EdgeKind, FlowGraph
from llm_tt.flow.propagation import propagate
from llm_tt.flow.routes import extract_routes
from llm_tt.lens.direct_effects import Token
from llm_tt.lens.effects import direct_effects
from llm_tt.lens.vocabulary import logits
from llm_tt.models.transparent_llm import Trace
from llm_tt.progress import Progress, silent, within

_LOGIT_BYTES = 64 * 2**20
_FOLLOWED, _CONTRIBUTED = 0.4, 0.8


def compare(
    first: Trace,
    second: Trace,
    target: int = -1,
    other_target: int | None = None,
    token: Token | None = None,
    contrast: Token | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    progress: Progress = silent,
) -> Comparison:
    """What differs from the first trace to the second: predictions, routes, contributions, direct effects, residual streams.

    Tokens are paired where both texts have the same ones, or a run of other tokens of the same length (Ratcliff & Obershelp, by token ids).

    Args:
        target: position in the first text; `other_target` that in the second, by default its partner.
        token, contrast: what the direct effects are on, as in `direct_effects`; by default the first choice of the first trace.
        threshold: of both graphs. Contributions are compared whether they are above it or not.

    Raises:
        RequestError: the models differ in layers, heads or tokenizer, or the target has no partner.
    """
    _require_alike(first, second)
    pairs = paired(first.token_ids, second.token_ids)
    targets = _targets(first, second, pairs, target, other_target)
    traces = first, second
    graphs: list[FlowGraph] = []
    for side, (trace, position) in enumerate(zip(traces, targets, strict=True)):
        part = within(progress, side * _FOLLOWED / 2, (side + 1) * _FOLLOWED / 2)
        graphs.append(extract_routes(trace, position, threshold, renormalize=False, progress=part))
    edges = _edges(traces, (graphs[0], graphs[1]), pairs, within(progress, _FOLLOWED, _CONTRIBUTED))
    flows = [propagate(graph) for graph in graphs]
    n_heads = first.model.info.n_heads
    effects = direct_effects(first, targets[0], token, contrast)
    progress("Comparing predictions", _CONTRIBUTED)
    divergence, following, ranks = _predictions(traces, pairs)
    cosine, norm_ratio = _streams(traces, pairs)
    progress("Compared", 1.0)
    return Comparison(
        names=(first.model.info.name, second.model.info.name),
        pairs=pairs,
        token_texts=(first.token_texts, second.token_texts),
        divergence=divergence,
        following=following,
        ranks=ranks,
        graphs=(graphs[0], graphs[1]),
        edges=edges,
        head_flow=np.stack([flow.by_head(n_heads) for flow in flows]),
        ffn_flow=np.stack([flow.ffn.sum(1) for flow in flows]),
        effects=(effects, direct_effects(second, targets[1], effects.token_id, effects.contrast_id)),
        cosine=cosine,
        norm_ratio=norm_ratio,
    )


def paired(first: Sequence[int], second: Sequence[int]) -> npt.NDArray[np.int64]:
    """[P, 2]: positions of two token sequences that stand for each other."""
    pairs: list[tuple[int, int]] = []
    for kind, start, stop, other_start, other_stop in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if kind == "equal" or stop - start == other_stop - other_start:
            pairs += zip(range(start, stop), range(other_start, other_stop), strict=True)
    return np.array(pairs, np.int64).reshape(-1, 2)


def _require_alike(first: Trace, second: Trace) -> None:
    one, other = first.model.info, second.model.info
    for what, values in (("layers", (one.n_layers, other.n_layers)), ("heads", (one.n_heads, other.n_heads))):
        if values[0] != values[1]:
            raise RequestError(
                f"{one.name} has {values[0]} {what} and {other.name} {values[1]}: their parts do not stand for each other. "
                "Compare models of one shape, such as a base and what was tuned from it."
            )
    token_ids = sorted(set(first.token_ids) & set(second.token_ids))
    if first.model is not second.model and (not token_ids or first.model.texts(token_ids) != second.model.texts(token_ids)):
        raise RequestError(f"{one.name} and {other.name} have different tokenizers, so that their tokens cannot be paired by id.")


def _targets(first: Trace, second: Trace, pairs: npt.NDArray[np.int64], target: int, other_target: int | None) -> tuple[int, int]:
    position = first.position(target)
    if other_target is not None:
        return position, second.position(other_target)
    # Both at their ends, whatever these are.
    if target == -1:
        return position, second.position(-1)
    partner = pairs[pairs[:, 0] == position, 1]
    if not len(partner):
        raise RequestError(f"Token {position} of the first text has no partner in the second. Name the second text's target, too.")
    return position, int(partner[0])


def _edges(
    traces: tuple[Trace, Trace], graphs: tuple[FlowGraph, FlowGraph], pairs: npt.NDArray[np.int64], progress: Progress
) -> EdgeChanges:
    partner = np.full((2, max(trace.n_tokens for trace in traces)), ABSENT)
    partner[0, pairs[:, 0]], partner[1, pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    drawn: dict[tuple[int, int, int, int, int, int], list[bool]] = {}
    for side, graph in enumerate(graphs):
        own = np.stack([graph.source, graph.destination]).astype(np.int64)
        other = partner[side][own]
        ends = np.concatenate([own, other] if side == 0 else [other, own]).T.tolist()
        for kind, layer, position in zip(graph.kind.tolist(), graph.layer.tolist(), ends, strict=True):
            drawn.setdefault((kind, layer, *position), [False, False])[side] = True
    # As in a graph: from the last layer down, what leads to the FFN's node first.
    order = sorted(drawn, key=lambda edge: (-edge[1], edge[0] <= EdgeKind.RESIDUAL_TO_MID, max(edge[3], edge[5]), *edge))
    table = np.array(order, np.int64).reshape(-1, 6)
    kind, layer = table[:, 0], table[:, 1]
    source, destination = table[:, [2, 4]], table[:, [3, 5]]
    contribution = np.full((len(table), 2), np.nan)
    for side, trace in enumerate(traces):
        for at in range(trace.n_layers):
            _contribute(trace, at, kind, source[:, side], destination[:, side], layer == at, contribution[:, side])
            progress(f"Comparing the edges of layer {at}", (side * trace.n_layers + at + 1) / (2 * trace.n_layers))
    is_drawn = np.array([drawn[edge] for edge in order], bool).reshape(-1, 2)
    return EdgeChanges(kind.astype(np.uint8), layer.astype(np.uint16), source, destination, contribution, is_drawn)


def _contribute(
    trace: Trace,
    layer: int,
    kind: npt.NDArray[np.int64],
    source: npt.NDArray[np.int64],
    destination: npt.NDArray[np.int64],
    is_here: npt.NDArray[np.bool_],
    result: Floats,
) -> None:
    """Write the contributions of the edges of one layer that have both their tokens in a trace."""
    table = table_of(trace)
    is_here = is_here & (source != ABSENT) & (destination != ABSENT)
    into_mid = kind <= EdgeKind.RESIDUAL_TO_MID
    positions = np.unique(destination[is_here & into_mid]).tolist()
    for position, row in zip(positions, table.attention(trace, layer, positions), strict=True):
        for edge in np.flatnonzero(is_here & into_mid & (destination == position)):
            # A pair may cross the order of the texts: nothing flows backwards.
            at = int(source[edge])
            whole = row.residual if kind[edge] == EdgeKind.RESIDUAL_TO_MID else float(row.edges[at].sum()) if at <= position else 0.0
            result[edge] = whole
    positions = np.unique(destination[is_here & ~into_mid]).tolist()
    for position, (ffn, residual) in zip(positions, table.ffn(trace, layer, positions), strict=True):
        own = is_here & ~into_mid & (destination == position)
        result[own] = np.where(kind[own] == EdgeKind.RESIDUAL_TO_POST, residual, ffn)


def _predictions(traces: tuple[Trace, Trace], pairs: npt.NDArray[np.int64]) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    divergence, following = np.full(len(pairs), np.nan), np.full((len(pairs), 2), np.nan)
    ranks = np.zeros((len(pairs), 2), np.int64)
    sizes = [trace.model.info.d_vocab for trace in traces]
    size = max(1, _LOGIT_BYTES // (4 * max(sizes)))
    for start in range(0, len(pairs), size):
        piece = range(start, min(start + size, len(pairs)))
        with torch.inference_mode():
            scores = [
                logits(trace.model, trace.blocks[-1].post(pairs[piece, side].tolist())).float().cpu() for side, trace in enumerate(traces)
            ]
            logs = [score.log_softmax(-1) for score in scores]
            if sizes[0] == sizes[1]:
                divergence[piece] = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).double().numpy()
        for row, pair in enumerate(piece):
            after = [
                trace.token_ids[position + 1] if position + 1 < trace.n_tokens else None
                for trace, position in zip(traces, pairs[pair].tolist(), strict=True)
            ]
            if after[0] is None or after[0] != after[1]:
                continue
            for side in range(2):
                following[pair, side] = float(logs[side][row, after[0]].exp())
                ranks[pair, side] = 1 + int((scores[side][row] > scores[side][row, after[0]]).sum())
    return divergence, following, ranks


def _streams(traces: tuple[Trace, Trace], pairs: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    n_points = 2 * traces[0].n_layers + 1
    cosine, ratio = np.full((n_points, len(pairs)), np.nan), np.full((n_points, len(pairs)), np.nan)
    if traces[0].model.info.d_model != traces[1].model.info.d_model:
        return cosine, ratio
    with torch.inference_mode():
        for point in range(n_points):
            streams = [_stream(trace, point, pairs[:, side].tolist()).double().cpu() for side, trace in enumerate(traces)]
            lengths = [stream.norm(dim=-1) for stream in streams]
            cosine[point] = ((streams[0] * streams[1]).sum(-1) / (lengths[0] * lengths[1])).numpy()
            ratio[point] = (lengths[1] / lengths[0]).numpy()
    return cosine, ratio


def _stream(trace: Trace, point: int, positions: list[int]) -> torch.Tensor:
    if point == 0:
        return trace.pre(0, positions)
    block = trace.blocks[(point - 1) // 2]
    return block.mid(positions) if point % 2 else block.post(positions)
