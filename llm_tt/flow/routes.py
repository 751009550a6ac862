"""Contributions become the routes to one target (Ferrando & Voita 2024, section 2.3).

Start at the last node of the target position. At every node reached keep the incoming edges whose contribution exceeds the threshold; an edge
kept reaches its source. Only nodes that are reached are computed. Attention edges pass or fail head by head; what two tokens exchange through
several heads is one edge with the sum of the heads that passed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llm_tt.errors import RequestError
from llm_tt.flow.contributions import AttentionRow, table_of
from llm_tt.flow.graph import DEFAULT_THRESHOLD, EdgeKind, FlowGraph
from llm_tt.models.transparent_llm import Trace
from llm_tt.progress import Progress, silent


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
    table = table_of(trace)
    columns = _Columns()
    reached = [target]
    for layer in reversed(range(trace.n_layers)):
        mid = []
        for position, (ffn, residual) in zip(reached, table.ffn(trace, layer, reached), strict=True):
            if _add_ffn_node(columns, layer, position, ffn, residual, threshold, renormalize):
                mid.append(position)
        below: set[int] = set()
        for position, row in zip(mid, table.attention(trace, layer, mid), strict=True):
            below |= _add_attention_node(columns, layer, position, row, threshold, renormalize)
        reached = sorted(below)
        progress(f"Following routes through layer {layer}", (trace.n_layers - layer) / trace.n_layers)
        if not reached:
            break
    return columns.graph(trace, target, threshold, renormalize)


@dataclass
class _Columns:
    """A `FlowGraph` while it grows."""

    rows: list[tuple[int, int, int, int, float]] = field(default_factory=list)
    heads_start: list[int] = field(default_factory=lambda: [0])
    head: list[int] = field(default_factory=list)
    head_weight: list[float] = field(default_factory=list)

    def add(self, kind: EdgeKind, layer: int, source: int, destination: int, weight: float) -> None:
        self.rows.append((kind, layer, source, destination, weight))
        self.heads_start.append(len(self.head))

    def graph(self, trace: Trace, target: int, threshold: float, renormalized: bool) -> FlowGraph:
        kind, layer, source, destination, weight = zip(*self.rows, strict=True) if self.rows else ((),) * 5
        return FlowGraph(
            token_ids=trace.token_ids,
            token_texts=trace.token_texts,
            n_layers=trace.n_layers,
            target=target,
            threshold=threshold,
            renormalized=renormalized,
            kind=np.array(kind, np.uint8),
            layer=np.array(layer, np.uint16),
            source=np.array(source, np.uint32),
            destination=np.array(destination, np.uint32),
            weight=np.array(weight, np.float32),
            heads_start=np.array(self.heads_start, np.uint32),
            head=np.array(self.head, np.uint16),
            head_weight=np.array(self.head_weight, np.float32),
        )


def _add_ffn_node(columns: _Columns, layer: int, position: int, ffn: float, residual: float, threshold: float, renormalize: bool) -> bool:
    """Add what reaches I{layer}_{position}; whether anything was kept."""
    kept = sum(share for share in (ffn, residual) if share > threshold)
    scale = 1 / kept if renormalize and kept else 1.0
    if ffn > threshold:
        columns.add(EdgeKind.OUT_OF_FFN, layer, position, position, ffn * scale)
        columns.add(EdgeKind.INTO_FFN, layer, position, position, ffn * scale)
    if residual > threshold:
        columns.add(EdgeKind.RESIDUAL_TO_POST, layer, position, position, residual * scale)
    return kept > 0


def _add_attention_node(columns: _Columns, layer: int, position: int, row: AttentionRow, threshold: float, renormalize: bool) -> set[int]:
    """Add what reaches A{layer}_{position}; the source positions kept."""
    edges = row.edges.numpy()
    passed = np.where(edges > threshold, edges, 0.0)
    residual = row.residual if row.residual > threshold else 0.0
    kept = float(passed.sum()) + residual
    scale = 1 / kept if renormalize and kept else 1.0
    sources: list[int] = np.flatnonzero(passed.any(1)).tolist()
    for source in sources:
        heads = np.flatnonzero(passed[source])
        heads = heads[np.argsort(-passed[source][heads], kind="stable")]
        weights = passed[source][heads] * scale
        columns.head.extend(heads.tolist())
        columns.head_weight.extend(weights.tolist())
        columns.add(EdgeKind.ATTENTION, layer, source, position, float(weights.sum()))
    if residual:
        columns.add(EdgeKind.RESIDUAL_TO_MID, layer, position, position, residual * scale)
        sources.append(position)
    return set(sources)
