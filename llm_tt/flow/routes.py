"""Contributions become the routes to one target, or to several (Ferrando & Voita 2024, section 2.3).

Start at the last node of the target position. At every node reached keep the incoming edges whose contribution exceeds a limit; an edge
kept reaches its source. Only nodes that are reached are computed. Attention edges pass or fail head by head; what two tokens exchange through
several heads is one edge with the sum of the heads that passed. The limit is the same at every node (`extract_routes`), or falls with the flow
that reaches the node (`extract_routes_by_mass`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_tt.errors import RequestError
from llm_tt.flow.contributions import AttentionRow, ContributionTable, table_of
from llm_tt.flow.graph import DEFAULT_THRESHOLD, EdgeKind, FlowGraph
from llm_tt.models.transparent_llm import Trace
from llm_tt.progress import Progress, silent

_STEPS_PER_OCTAVE = 64
"""Flow thresholds that `extract_routes_by_mass` chooses from are 2 ** (-n / 64): neighbours are 1.1 % apart"""
_OCTAVES = 48
"""Below 2 ** -48 of the flow everything is kept"""

_KEPT_BYTES = 2**30
"""Contributions of the targets' own columns that are kept for another threshold; of a longer span they are computed anew"""
_PIECE_BYTES = 2**28
"""Those of a layer that are there at a time where they are not kept"""

_Numbers = npt.NDArray[np.float64]

Limit = Callable[[_Numbers], _Numbers]
"""The flow that reaches each node -> the contribution that an edge into it must exceed"""


def extract_routes(
    trace: Trace,
    target: int = -1,
    threshold: float = DEFAULT_THRESHOLD,
    renormalize: bool = True,
    progress: Progress = silent,
) -> FlowGraph:
    """The information-flow graph of the prediction made at `target`.

    Args:
        threshold: an edge is kept when its contribution is larger.
        renormalize: divide the kept contributions of each node by their sum. Which edges are kept does not depend on it.
        progress: called once a layer; may raise to cancel.

    Raises:
        RequestError: no such target, or the threshold is not in [0, 1).
    """
    target = trace.position(target)
    if not 0 <= threshold < 1:
        raise RequestError(f"Threshold {threshold} is not in [0, 1). Useful values are 0.01 to 0.1.")
    columns = _Columns(renormalize)
    carried = _follow(trace, [target], lambda flow: np.full(len(flow), threshold), columns, progress)
    return columns.graph(trace, [target], threshold, None, carried)


def extract_routes_to_span(
    trace: Trace,
    targets: Sequence[int],
    threshold: float = DEFAULT_THRESHOLD,
    renormalize: bool = True,
    progress: Progress = silent,
) -> FlowGraph:
    """The union of the routes to several targets, such as all tokens of an answer, in one walk: each node is computed once.

    An edge is in it if it is in the graph of one of the targets, with the same weight there: neither what is kept of a node nor how it is
    renormalised depends on the target. Each target starts with an equal share of the flow, so that the flow is the mean over the targets.

    Args:
        targets: as `target` of `extract_routes`; the order and repetitions make no difference.

    Raises:
        RequestError: no targets, no such target, or the threshold is not in [0, 1).
    """
    roots = _roots(trace, targets)
    if not 0 <= threshold < 1:
        raise RequestError(f"Threshold {threshold} is not in [0, 1). Useful values are 0.01 to 0.1.")
    columns = _Columns(renormalize)
    carried = _follow(trace, roots, lambda flow: np.full(len(flow), threshold), columns, progress)
    return columns.graph(trace, roots, threshold, None, carried)


def span(trace: Trace, first: int, last: int = -1) -> range:
    """The positions from `first` to `last`, both included, for `extract_routes_to_span`; negative ones as in Python.

    Raises:
        RequestError: one of them does not exist, or the first comes after the last.
    """
    start, end = trace.position(first), trace.position(last)
    if start > end:
        raise RequestError(
            f"The span would begin at token {start}, after its last token, {end}. Begin it at one of the tokens 0 to {end}, or end it later."
        )
    return range(start, end + 1)


def _roots(trace: Trace, targets: Sequence[int]) -> list[int]:
    """Positions in their order, each once."""
    if not len(targets):
        raise RequestError("The span has no targets. Name at least one position.")
    return sorted({trace.position(target) for target in targets})


def extract_routes_by_mass(
    trace: Trace,
    target: int | Sequence[int] = -1,
    mass: float = 0.9,
    renormalize: bool = True,
    progress: Progress = silent,
) -> FlowGraph:
    """The smallest graph by flow that carries `mass`: an edge is kept when its *flow* exceeds one threshold t for the whole graph.

    Flow 1 starts at the target's last node; an edge has the flow of the node it leads to times its contribution, and a node that of the kept
    edges out of it; what is dropped is gone. t is the largest of the numbers 2 ** (-n / 64) with which at least `mass` reaches the token
    embeddings; `graph.threshold` holds it and `graph.carried` what arrives. Edges from which no kept edge leads on to an embedding carry
    nothing there and are removed. So

    - in no layer could fewer edges, counted head by head, pass on as much of what reaches it: those that pass have the largest flows;
    - a smaller mass keeps a subgraph: a lower t raises the flow of every node, and with it of every edge;
    - edges of equal flow are kept or dropped together, so nothing depends on an order.

    Where whole nodes have no contribution at all their flow ends; if less than `mass` can arrive, t is 0 and every edge passes.

    Several targets start with equal shares of flow 1, so that `mass` is of their mean. The graph is then not the union of those of each: what a
    single target leaves out may carry enough for all of them together, and the other way round.

    Args:
        target: a position, or several as the `targets` of `extract_routes_to_span`.
        mass: share of the flow, between 0 and 1.
        renormalize: divide the kept contributions of each node by their sum. Which edges are kept does not depend on it.
        progress: called once a layer of every attempt; may raise to cancel.

    Raises:
        RequestError: no such target, or the mass is not between 0 and 1.
    """
    roots = _roots(trace, target if isinstance(target, Sequence) else [target])
    if not 0 < mass < 1:
        raise RequestError(f"Mass {mass} is not between 0 and 1. Useful values are 0.8 to 0.95.")
    n_attempts = 0

    def attempt(threshold: float, columns: _Columns | None = None) -> float:
        nonlocal n_attempts
        n_attempts += 1
        # How many attempts it takes is not known before.
        done = 1 - 1 / n_attempts
        return _follow(trace, roots, _flow_limit(threshold), columns, lambda stage, fraction: progress(stage, done))

    octave = 1
    while octave <= _OCTAVES and attempt(2.0**-octave) < mass:
        octave += 1
    threshold = 0.0
    if octave <= _OCTAVES:
        too_few, enough = (octave - 1) * _STEPS_PER_OCTAVE, octave * _STEPS_PER_OCTAVE
        while enough - too_few > 1:
            step = (too_few + enough) // 2
            if attempt(2.0 ** (-step / _STEPS_PER_OCTAVE)) < mass:
                too_few = step
            else:
                enough = step
        threshold = 2.0 ** (-enough / _STEPS_PER_OCTAVE)
    columns = _Columns(renormalize=False)
    carried = attempt(threshold, columns)
    progress("Routes found", 1.0)
    graph = _without_dead_ends(columns.graph(trace, roots, threshold, mass, carried))
    return _renormalized(graph) if renormalize else graph


def _without_dead_ends(graph: FlowGraph) -> FlowGraph:
    """The edges from which a path leads to a token embedding."""
    alive = np.zeros(graph.n_edges, bool)
    source, destination = graph.source.astype(np.int64), graph.destination.astype(np.int64)
    is_into_mid = graph.kind <= EdgeKind.RESIDUAL_TO_MID
    below = np.ones(graph.n_tokens, bool)
    layers = np.searchsorted(-graph.layer.astype(np.int64), np.arange(-graph.n_layers + 1, 2))
    for start, end in zip(layers[-2::-1], layers[:0:-1], strict=True):
        here = np.arange(start, end)
        into_mid = here[is_into_mid[here]]
        alive[into_mid] = below[source[into_mid]]
        mid = np.zeros(graph.n_tokens, bool)
        mid[destination[into_mid[alive[into_mid]]]] = True
        out = here[~is_into_mid[here]]
        alive[out] = mid[destination[out]]
        below = np.zeros(graph.n_tokens, bool)
        below[destination[out[alive[out]]]] = True
    per_edge = np.diff(graph.heads_start)
    with_head = np.repeat(alive, per_edge)
    return replace(
        graph,
        **{name: getattr(graph, name)[alive] for name in ("kind", "layer", "source", "destination", "weight")},
        heads_start=np.concatenate([[0], np.cumsum(per_edge[alive])]).astype(np.uint32),
        head=graph.head[with_head],
        head_weight=graph.head_weight[with_head],
    )


def _renormalized(graph: FlowGraph) -> FlowGraph:
    """The contributions of each node divided by their sum."""
    is_into_mid = graph.kind <= EdgeKind.RESIDUAL_TO_MID
    node = (graph.layer.astype(np.int64) * 2 + is_into_mid) * graph.n_tokens + graph.destination
    weight = graph.weight.astype(np.float64)
    # An FFN block's two edges are one contribution.
    total = np.bincount(node, np.where(graph.kind == EdgeKind.INTO_FFN, 0.0, weight), minlength=1)
    scale = 1 / total[node]
    return replace(
        graph,
        renormalized=True,
        weight=(weight * scale).astype(np.float32),
        head_weight=(graph.head_weight * np.repeat(scale, np.diff(graph.heads_start))).astype(np.float32),
    )


def _flow_limit(threshold: float) -> Limit:
    """flow * contribution > threshold; no contribution is above 1."""

    def limit(flow: _Numbers) -> _Numbers:
        return np.minimum(threshold / np.where(flow > 0, flow, np.inf), 1.0) + (flow <= 0)

    return limit


def _follow(trace: Trace, targets: list[int], limit: Limit, columns: _Columns | None, progress: Progress) -> float:
    """Walk down from the targets, which share flow 1, along the edges that pass; add them to `columns`, if any. Returns the flow that arrives.

    Flow is passed on in shares as they are, never renormalised.
    """
    table, keep = table_of(trace), len(targets) * trace.n_layers * _row_bytes(trace) <= _KEPT_BYTES
    flow, is_reached = np.zeros(trace.n_tokens), np.zeros(trace.n_tokens, bool)
    flow[targets], is_reached[targets] = 1 / len(targets), True
    for layer in reversed(range(trace.n_layers)):
        reached = np.flatnonzero(is_reached)
        shares = np.array(table.ffn(trace, layer, reached.tolist())).reshape(-1, 2)
        shares[shares <= limit(flow[reached])[:, None]] = 0.0
        has_kept = shares.any(axis=1)
        mid, shares = reached[has_kept], shares[has_kept]
        if columns is not None:
            columns.add_ffn_nodes(layer, mid, shares)
        flow_mid = flow[mid] * shares.sum(1)
        passed = _passed_into(table, trace, layer, mid, limit(flow_mid), keep)
        if columns is not None:
            columns.add_attention_nodes(layer, mid, passed)
        is_reached = np.zeros(trace.n_tokens, bool)
        is_reached[passed.source] = True
        is_reached[mid[passed.residual > 0]] = True
        flow = _sums(passed.source, flow_mid[passed.node] * passed.weight, trace.n_tokens)
        flow[mid] += flow_mid * passed.residual
        progress(f"Following routes through layer {layer}", (trace.n_layers - layer) / trace.n_layers)
        if not is_reached.any():
            break
    return float(flow.sum())


@dataclass(frozen=True, eq=False)
class _Passed:
    """What passed into the attention nodes of one layer, head by head; ordered by node, then source, then head."""

    node: npt.NDArray[np.intp]
    """[K]: index of the receiving node among the nodes"""
    source: npt.NDArray[np.intp]
    head: npt.NDArray[np.intp]
    weight: _Numbers
    residual: _Numbers
    """[nodes]: 0 where it did not pass"""


def _row_bytes(trace: Trace) -> int:
    """Of the contributions to one attention node, at most."""
    return 4 * trace.n_tokens * trace.model.info.n_heads


def _passed_into(
    table: ContributionTable, trace: Trace, layer: int, positions: npt.NDArray[np.intp], least: _Numbers, keep: bool
) -> _Passed:
    """`_passed` at these positions, in pieces where nothing is kept: all rows of a long span would fill the memory."""
    size = len(positions) if keep else max(1, _PIECE_BYTES // _row_bytes(trace))
    pieces = [
        (start, _passed(table.attention(trace, layer, positions[start : start + size].tolist(), keep), least[start : start + size]))
        for start in range(0, len(positions), max(1, size))
    ]
    if len(pieces) <= 1:
        return pieces[0][1] if pieces else _passed([], least)
    columns = {name: np.concatenate([getattr(piece, name) for _, piece in pieces]) for name in ("source", "head", "weight", "residual")}
    return _Passed(node=np.concatenate([start + piece.node for start, piece in pieces]), **columns)


def _passed(rows: list[AttentionRow], least: _Numbers) -> _Passed:
    above = [row.above(limit) for row, limit in zip(rows, least.tolist(), strict=True)]
    n_heads = rows[0].edges.shape[1] if rows else 1
    where = np.concatenate([where for where, _ in above]) if rows else np.zeros(0, np.intp)
    weight = np.concatenate([weight for _, weight in above]) if rows else np.zeros(0)
    residual = np.array([row.residual for row in rows])
    return _Passed(
        node=np.repeat(np.arange(len(rows)), [len(where) for where, _ in above]),
        source=where // n_heads,
        head=where % n_heads,
        weight=weight.astype(np.float64),
        residual=np.where(residual > least, residual, 0.0),
    )


def _sums(index: npt.NDArray[np.intp], values: _Numbers, n: int) -> _Numbers:
    """values summed by index; of nothing numpy makes integers."""
    return np.bincount(index, values, n).astype(np.float64, copy=False)


@dataclass
class _Columns:
    """A `FlowGraph` while it grows, a layer's nodes at a time."""

    renormalize: bool
    edges: list[tuple[npt.NDArray[Any], ...]] = field(default_factory=list)
    """(kind, layer, source, destination, weight, number of heads)"""
    heads: list[tuple[npt.NDArray[np.intp], _Numbers]] = field(default_factory=list)
    """(head, weight)"""

    def add_ffn_nodes(self, layer: int, positions: npt.NDArray[np.intp], shares: _Numbers) -> None:
        """Add what reaches I{layer}_{position}: shares [nodes, 2] of FFN and residual, 0 for an edge that did not pass."""
        ffn, residual = (shares * self._scale(shares.sum(1))[:, None]).T
        kind = np.tile([EdgeKind.OUT_OF_FFN, EdgeKind.INTO_FFN, EdgeKind.RESIDUAL_TO_POST], len(positions))
        weight = np.stack([ffn, ffn, residual], axis=1).ravel()
        passed, position = weight > 0, np.repeat(positions, 3)
        self._add(layer, kind[passed], position[passed], position[passed], weight[passed], np.zeros(passed.sum(), np.intp))

    def add_attention_nodes(self, layer: int, positions: npt.NDArray[np.intp], passed: _Passed) -> None:
        """Add what reaches A{layer}_{position}."""
        scale = self._scale(_sums(passed.node, passed.weight, len(positions)) + passed.residual)
        order = np.lexsort((-passed.weight, passed.source, passed.node))
        node, source, weight = passed.node[order], passed.source[order], (passed.weight * scale[passed.node])[order]
        self.heads.append((passed.head[order], weight))
        is_first = np.ones(len(order), bool)
        is_first[1:] = (np.diff(node) > 0) | (np.diff(source) > 0)
        first = np.flatnonzero(is_first)
        residual = np.flatnonzero(passed.residual > 0)
        kind = np.repeat([EdgeKind.ATTENTION, EdgeKind.RESIDUAL_TO_MID], [len(first), len(residual)])
        node = np.concatenate([node[first], residual])
        source = np.concatenate([source[first], positions[residual]])
        into = np.add.reduceat(weight, first) if len(first) else weight
        weight = np.concatenate([into, (passed.residual * scale)[residual]])
        n_heads = np.concatenate([np.diff(first, append=len(order)), np.zeros(len(residual), np.intp)])
        # A node's residual edge comes after its attention edges.
        edge = np.lexsort((kind, node))
        self._add(layer, kind[edge], source[edge], positions[node[edge]], weight[edge], n_heads[edge])

    def _scale(self, kept: _Numbers) -> _Numbers:
        return 1 / np.where(kept > 0, kept, 1.0) if self.renormalize else np.ones(len(kept))

    def _add(self, layer: int, kind: Any, source: Any, destination: Any, weight: _Numbers, n_heads: Any) -> None:
        self.edges.append((kind, np.full(len(kind), layer), source, destination, weight, n_heads))

    def graph(self, trace: Trace, targets: list[int], threshold: float, mass: float | None, carried: float) -> FlowGraph:
        kind, layer, source, destination, weight, n_heads = (np.concatenate(column) for column in zip(*self.edges, strict=True))
        head, head_weight = (np.concatenate(column) for column in zip(*self.heads, strict=True))
        return FlowGraph(
            token_ids=trace.token_ids,
            token_texts=trace.token_texts,
            n_layers=trace.n_layers,
            target=targets[-1],
            threshold=threshold,
            renormalized=self.renormalize,
            kind=kind.astype(np.uint8),
            layer=layer.astype(np.uint16),
            source=source.astype(np.uint32),
            destination=destination.astype(np.uint32),
            weight=weight.astype(np.float32),
            heads_start=np.concatenate([[0], np.cumsum(n_heads)]).astype(np.uint32),
            head=head.astype(np.uint16),
            head_weight=head_weight.astype(np.float32),
            mass=mass,
            carried=carried,
            targets=tuple(targets) if len(targets) > 1 else (),
        )
