"""Two traces compared: the same text in two models, such as a base and its tuned sibling, or two texts in one (minimal pairs)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt
import torch

from llm_tt.analysis.alignment import ABSENT, Positions, columns, paired, paired_by_characters, with_pair
from llm_tt.analysis.comparison import Alignment, Choices, Comparison, EdgeChanges, Floats
from llm_tt.errors import RequestError
from llm_tt.flow.contributions import table_of
from llm_tt.flow.graph import DEFAULT_THRESHOLD, EdgeKind, FlowGraph
from llm_tt.flow.propagation import propagate
from llm_tt.flow.routes import extract_routes, extract_routes_by_mass
from llm_tt.lens.direct_effects import DirectEffects, Token
from llm_tt.lens.effects import direct_effects
from llm_tt.lens.named_tokens import find_token
from llm_tt.lens.vocabulary import logits
from llm_tt.models.transparent_llm import Trace, TransparentLlm
from llm_tt.progress import Progress, silent, within
from llm_tt.text import quoted

_LOGIT_BYTES = 64 * 2**20
_FOLLOWED, _CONTRIBUTED, _PREDICTED = 0.4, 0.8, 0.95
_CANDIDATES = 50
"""First choices of the first model among which one is looked for that the second has a token for"""

_Traces = tuple[Trace, Trace]


def compare(
    first: Trace,
    second: Trace,
    target: int = -1,
    other_target: int | None = None,
    token: Token | None = None,
    contrast: Token | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    mass: float | None = None,
    renormalize: bool = False,
    n_predictions: int = 10,
    progress: Progress = silent,
) -> Comparison:
    """What differs from the first trace to the second: predictions, routes, contributions, direct effects, residual streams.

    Tokens are paired where both texts have the same ones, or a run of other tokens of the same length (Ratcliff & Obershelp, by token ids). Those of
    two tokenizers are paired where they hold the same characters. The two targets are a pair in any case. Of models that differ in layers or heads
    only what is predicted is compared.

    Args:
        target: position in the first text; `other_target` that in the second, by default its partner.
        token, contrast: what the direct effects are on, as in `direct_effects`; by default how far the second's first choice is above the first's,
            or of an equal one the logit.
        threshold, mass, renormalize: of both graphs, and of the flow through them. Contributions are compared whether they are in the graph or not,
            and as they are.
        n_predictions: how many first choices of each to list.

    Raises:
        RequestError: the tokens cannot be paired, the target has no partner, or the second model lacks the token.
    """
    traces = first, second
    aligned_by, pairs, notes = _paired(traces)
    targets = _targets(first, second, pairs, target, other_target)
    pairs = with_pair(pairs, *targets)
    has_like_parts = _has_like_parts(traces, notes)
    graphs: list[FlowGraph] = []
    for side, (trace, position) in enumerate(zip(traces, targets, strict=True)):
        part = within(progress, side * _FOLLOWED / 2, (side + 1) * _FOLLOWED / 2)
        if mass is None:
            graphs.append(extract_routes(trace, position, threshold, renormalize, part))
        else:
            graphs.append(extract_routes_by_mass(trace, position, mass, renormalize, part))
    both = graphs[0], graphs[1]
    edges = _edges(traces, both, pairs, within(progress, _FOLLOWED, _CONTRIBUTED)) if has_like_parts else _no_edges()
    flows = [propagate(graph) for graph in both]
    heads, blocks = zip(*(_at_target(trace, position) for trace, position in zip(traces, targets, strict=True)), strict=True)
    effects = _effects(traces, targets, aligned_by, token, contrast, notes)
    progress("Comparing predictions", _CONTRIBUTED)
    divergence, following, ranks, cosine, norm_ratio = _along(
        traces, pairs, aligned_by, has_like_parts, within(progress, _CONTRIBUTED, _PREDICTED)
    )
    choices = _choices(traces, targets, aligned_by, n_predictions)
    progress("Compared", 1.0)
    return Comparison(
        names=(first.model.info.name, second.model.info.name),
        prompts=(first.prompt, second.prompt),
        aligned_by=aligned_by,
        columns=columns(pairs, first.n_tokens, second.n_tokens),
        notes=tuple(notes),
        divergence=divergence,
        following=following,
        ranks=ranks,
        choices=choices,
        graphs=both,
        has_like_parts=has_like_parts,
        edges=edges,
        head_flow=(flows[0].by_head(first.model.info.n_heads), flows[1].by_head(second.model.info.n_heads)),
        ffn_flow=(flows[0].ffn.sum(1), flows[1].ffn.sum(1)),
        head_contribution=(heads[0], heads[1]),
        ffn_contribution=(blocks[0], blocks[1]),
        effects=effects,
        cosine=cosine,
        norm_ratio=norm_ratio,
    )


# --- what stands for what


def _paired(traces: _Traces) -> tuple[Alignment, Positions, list[str]]:
    first, second = traces
    if _is_one_tokenizer(traces):
        notes: list[str] = []
        if first.model.info.d_vocab != second.model.info.d_vocab:
            notes.append(
                f"The vocabularies have {first.model.info.d_vocab:,} and {second.model.info.d_vocab:,} entries, so that predictions have no "
                "divergence."
            )
        return "token", paired(first.token_ids, second.token_ids), notes
    names = first.model.info.name, second.model.info.name
    pairs = paired_by_characters(first.prompt, second.prompt)
    if pairs is None:
        raise RequestError(
            f"{names[0]} and {names[1]} have different tokenizers, and it is not known which characters their tokens hold, so that these cannot "
            "be paired. Give both the same text, not token ids."
        )
    left = [trace.n_tokens - len(pairs) for trace in traces]
    return (
        "character",
        pairs,
        [
            f"{names[0]} and {names[1]} have different tokenizers: tokens are paired where they hold the same characters, {len(pairs)} of "
            f"{first.n_tokens} and {second.n_tokens}. The other {left[0]} and {left[1]} are left out of the difference, and predictions over "
            "different vocabularies have no divergence."
        ],
    )


def _is_one_tokenizer(traces: _Traces) -> bool:
    first, second = (trace.model for trace in traces)
    token_ids = sorted({*traces[0].token_ids, *traces[1].token_ids})
    return first is second or first.texts(token_ids) == second.texts(token_ids)


def _has_like_parts(traces: _Traces, notes: list[str]) -> bool:
    one, other = (trace.model.info for trace in traces)
    for what, values in (("layers", (one.n_layers, other.n_layers)), ("heads", (one.n_heads, other.n_heads))):
        if values[0] != values[1]:
            notes.append(
                f"{one.name} has {values[0]} {what} and {other.name} {values[1]}: their parts do not stand for each other, and only what they "
                "predict is compared."
            )
            return False
    return True


def _targets(first: Trace, second: Trace, pairs: Positions, target: int, other_target: int | None) -> tuple[int, int]:
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


def _effects(
    traces: _Traces, targets: tuple[int, int], aligned_by: Alignment, token: Token | None, contrast: Token | None, notes: list[str]
) -> tuple[DirectEffects, DirectEffects]:
    first, second = traces
    if token is None and contrast is None:
        token, contrast = _changed_choice(traces, targets, aligned_by)
    if token is None and aligned_by == "character":
        token = _shared_choice(traces, targets[0], notes)
    effects = direct_effects(first, targets[0], token, contrast)
    asked = [effects.token_id, effects.contrast_id]
    texts = [effects.token_text, effects.contrast_text]
    if aligned_by == "character":
        asked = [None if text is None else _same_text(second.model, text) for text in texts]
    for asked_id, text in zip(asked, texts, strict=True):
        if text is not None and asked_id is None:
            raise RequestError(
                f"{quoted(text)} is no token of {second.model.info.name}, so that effects on it cannot be compared. Name a token that both have."
            )
    return effects, direct_effects(second, targets[1], asked[0], asked[1])


def _changed_choice(traces: _Traces, targets: tuple[int, int], aligned_by: Alignment) -> tuple[int | None, int | None]:
    """The second's first choice, and the first's where it is another, as ids of the first; nothing where a vocabulary lacks one of them."""
    first, second = (trace.model for trace in traces)
    before, after = (int(trace.logits(position).argmax()) for trace, position in zip(traces, targets, strict=True))
    if aligned_by == "character":
        (text,), (other_text,) = first.texts([before]), second.texts([after])
        own = _same_text(first, other_text)
        if own is None or _same_text(second, text) is None:
            return None, None
        after = own
    elif max(before, after) >= min(first.info.d_vocab, second.info.d_vocab):
        return None, None
    return (before, None) if before == after else (after, before)


def _shared_choice(traces: _Traces, target: int, notes: list[str]) -> int:
    """The first of the first model's choices that is a token of the second."""
    first, second = (trace.model for trace in traces)
    order = traces[0].logits(target).argsort(descending=True)[:_CANDIDATES].tolist()
    for token_id, text in zip(order, first.texts(order), strict=True):
        if _same_text(second, text) is not None:
            if token_id != order[0]:
                (best,) = first.texts(order[:1])
                notes.append(
                    f"Effects are on {quoted(text)}: {quoted(best)}, the first choice of {first.info.name}, is no token of {second.info.name}."
                )
            return token_id
    raise RequestError(
        f"None of the {_CANDIDATES} first choices of {first.info.name} is a token of {second.info.name}. Name a token that both have."
    )


def _same_text(model: TransparentLlm, text: str) -> int | None:
    """The token of a model that reads exactly so."""
    try:
        token_id, _ = find_token(model, text)
    except RequestError:
        return None
    return token_id if model.texts([token_id]) == [text] else None


# --- edges


def _no_edges() -> EdgeChanges:
    nowhere = np.zeros((0, 2), np.int64)
    return EdgeChanges(
        np.zeros(0, np.uint8),
        np.zeros(0, np.uint16),
        nowhere,
        nowhere,
        np.zeros((0, 2)),
        np.zeros((0, 2), bool),
        np.zeros((0, 2, 0), np.float32),
    )


def _edges(traces: _Traces, graphs: tuple[FlowGraph, FlowGraph], pairs: Positions, progress: Progress) -> EdgeChanges:
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
    found = _Contributions(table[:, 0], table[:, 1], table[:, [2, 4]], table[:, [3, 5]], traces[0].model.info.n_heads)
    for side, trace in enumerate(traces):
        for layer in range(trace.n_layers):
            found.add(trace, side, layer)
            progress(f"Comparing the edges of layer {layer}", (side * trace.n_layers + layer + 1) / (2 * trace.n_layers))
    return EdgeChanges(
        found.kind.astype(np.uint8),
        found.layer.astype(np.uint16),
        found.source,
        found.destination,
        found.contribution,
        np.array([drawn[edge] for edge in order], bool).reshape(-1, 2),
        found.heads,
    )


@dataclass(eq=False)
class _Contributions:
    """Those of the edges of both graphs, while they are collected."""

    kind: npt.NDArray[np.int64]
    layer: npt.NDArray[np.int64]
    source: Positions
    destination: Positions
    n_heads: int

    def __post_init__(self) -> None:
        # An edge has contributions in each trace that has both its tokens.
        exists = (self.source != ABSENT) & (self.destination != ABSENT)
        self.contribution: Floats = np.where(exists, 0.0, np.nan)
        self.heads = np.where(exists[:, :, None], np.zeros(self.n_heads, np.float32), np.float32(np.nan))

    def add(self, trace: Trace, side: int, layer: int) -> None:
        """Write those of one layer's edges in one of the traces."""
        table, source, destination = table_of(trace), self.source[:, side], self.destination[:, side]
        is_here = (self.layer == layer) & (source != ABSENT) & (destination != ABSENT)
        into_mid = np.flatnonzero(is_here & (self.kind <= EdgeKind.RESIDUAL_TO_MID))
        positions = np.unique(destination[into_mid]).tolist()
        for position, row in zip(positions, table.attention(trace, layer, positions), strict=True):
            for edge in into_mid[destination[into_mid] == position].tolist():
                if self.kind[edge] == EdgeKind.RESIDUAL_TO_MID:
                    self.contribution[edge, side] = row.residual
                    continue
                by_head = row.edges[int(source[edge])].numpy()
                self.contribution[edge, side] = float(by_head.sum())
                # Some models have fewer heads in some layers.
                self.heads[edge, side, : len(by_head)] = by_head
        out = np.flatnonzero(is_here & (self.kind > EdgeKind.RESIDUAL_TO_MID))
        positions = np.unique(destination[out]).tolist()
        for position, (ffn, residual) in zip(positions, table.ffn(trace, layer, positions), strict=True):
            own = out[destination[out] == position]
            self.contribution[own, side] = np.where(self.kind[own] == EdgeKind.RESIDUAL_TO_POST, residual, ffn)


def _at_target(trace: Trace, target: int) -> tuple[Floats, Floats]:
    """[L, H] and [L]: contributions of heads and FFN blocks to the target's own column."""
    table, info = table_of(trace), trace.model.info
    heads, ffn = np.zeros((trace.n_layers, info.n_heads)), np.zeros(trace.n_layers)
    for layer in range(trace.n_layers):
        (row,) = table.attention(trace, layer, [target])
        by_head = row.edges.double().sum(0).numpy()
        heads[layer, : len(by_head)] = by_head
        ffn[layer] = table.ffn(trace, layer, [target])[0][0]
    return heads, ffn


# --- predictions and streams, which depend on neither threshold nor question

_Along = tuple[Floats, Floats, npt.NDArray[np.int64], Floats, Floats]


@dataclass(frozen=True, eq=False)
class _Kept:
    second: ReferenceType[Trace]
    pairs: bytes
    along: _Along


_kept: WeakKeyDictionary[Trace, _Kept] = WeakKeyDictionary()
_lock = threading.Lock()


def _along(traces: _Traces, pairs: Positions, aligned_by: Alignment, has_like_parts: bool, progress: Progress) -> _Along:
    """Divergence, probability and rank of what follows, cosine and ratio of lengths; kept with the first trace for the last one it met."""
    with _lock:
        kept = _kept.get(traces[0])
    if kept is not None and kept.second() is traces[1] and kept.pairs == pairs.tobytes():
        return kept.along
    divergence, following, ranks = _predictions(traces, pairs, aligned_by, progress)
    nothing = np.zeros((0, len(pairs)))
    cosine, norm_ratio = _streams(traces, pairs) if has_like_parts else (nothing, nothing)
    along = divergence, following, ranks, cosine, norm_ratio
    with _lock:
        _kept[traces[0]] = _Kept(ref(traces[1]), pairs.tobytes(), along)
    return along


def _predictions(
    traces: _Traces, pairs: Positions, aligned_by: Alignment, progress: Progress
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    divergence, following = np.full(len(pairs), np.nan), np.full((len(pairs), 2), np.nan)
    ranks = np.zeros((len(pairs), 2), np.int64)
    sizes = [trace.model.info.d_vocab for trace in traces]
    size = max(1, _LOGIT_BYTES // (4 * max(sizes)))
    known = {tuple(pair) for pair in pairs.tolist()}
    for start in range(0, len(pairs), size):
        piece = range(start, min(start + size, len(pairs)))
        with torch.inference_mode():
            scores = [
                logits(trace.model, trace.blocks[-1].post(pairs[piece, side].tolist())).float().cpu() for side, trace in enumerate(traces)
            ]
            logs = [score.log_softmax(-1) for score in scores]
            if aligned_by == "token" and sizes[0] == sizes[1]:
                divergence[piece] = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).double().numpy()
        for row, pair in enumerate(piece):
            after = [position + 1 for position in pairs[pair].tolist()]
            if any(position >= trace.n_tokens for position, trace in zip(after, traces, strict=True)):
                continue
            token_ids = [trace.token_ids[position] for position, trace in zip(after, traces, strict=True)]
            # By token the ids decide: tokens that only stand in each other's place are others.
            if token_ids[0] != token_ids[1] if aligned_by == "token" else tuple(after) not in known:
                continue
            for side, token_id in enumerate(token_ids):
                following[pair, side] = float(logs[side][row, token_id].exp())
                ranks[pair, side] = 1 + int((scores[side][row] > scores[side][row, token_id]).sum())
        progress("Comparing predictions", piece.stop / len(pairs))
    return divergence, following, ranks


def _choices(traces: _Traces, targets: tuple[int, int], aligned_by: Alignment, k: int) -> Choices:
    models = [trace.model for trace in traces]
    scores = [trace.logits(position) for trace, position in zip(traces, targets, strict=True)]
    probabilities = [score.double().softmax(-1) for score in scores]
    found: dict[tuple[int | None, int | None], str] = {}
    for side, score in enumerate(scores):
        best = score.topk(min(k, len(score))).indices.tolist()
        for token_id, text in zip(best, models[side].texts(best), strict=True):
            other = _same_text(models[1 - side], text) if aligned_by == "character" else token_id
            if other is not None and other >= len(scores[1 - side]):
                other = None
            found.setdefault((token_id, other) if side == 0 else (other, token_id), text)
    rows: list[tuple[str, list[int], list[float], list[int]]] = []
    for ids, text in found.items():
        row: tuple[str, list[int], list[float], list[int]] = (text, [], [], [])
        for side, token_id in enumerate(ids):
            score = scores[side]
            row[1].append(ABSENT if token_id is None else token_id)
            row[2].append(np.nan if token_id is None else float(probabilities[side][token_id]))
            row[3].append(0 if token_id is None else 1 + int((score > score[token_id]).sum()))
        rows.append(row)
    rows.sort(key=lambda row: -np.nanmax(row[2]))
    texts, ids, shares, ranks = zip(*rows, strict=True)
    return Choices(tuple(texts), np.array(ids, np.int64), np.array(shares), np.array(ranks, np.int64))


# --- residual streams


def _streams(traces: _Traces, pairs: Positions) -> tuple[Floats, Floats]:
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
