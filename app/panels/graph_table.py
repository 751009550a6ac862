"""The same graph as a table: every edge a row, the strongest first. What is selected here is selected in the graph, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from app.panels import graph as drawn
from llm_tt.flow.graph import EdgeKey, EdgeKind, FlowGraph
from llm_tt.text import visible

_HEIGHT = 360
_HEADS_NAMED = 4
Edge = tuple[str, str, EdgeKey]


def show(
    graph: FlowGraph,
    selection: Mapping[str, Any] | None,
    effects: npt.NDArray[np.floating[Any]] | None = None,
    of: str | None = None,
    key: str = drawn.KEY,
) -> None:
    """Every edge; `effects` [E] are their direct effects on `of`. `key` is of the component that draws the same graph."""
    if not graph.n_edges:
        st.caption("The graph has no edges: none passes the threshold.")
        return
    table, edges = _rows_kept(graph, key)
    if effects is not None:
        table = table.assign(effect=effects[np.argsort(-graph.weight, kind="stable")].astype(np.float64))
    widget = f"{key}_table"
    wanted = _row(edges, selection)
    if (st.session_state.get(widget) or {}).get("selection", {}).get("rows", []) != wanted:
        # Something was selected elsewhere, or the rows are others now.
        st.session_state[widget] = {"selection": {"rows": wanted, "columns": [], "cells": []}}
    st.dataframe(
        table,
        hide_index=True,
        height=min(_HEIGHT, 38 + 35 * len(table)),
        placeholder="",
        key=widget,
        on_select=lambda: _take(widget, edges, key),
        selection_mode="single-row",
        column_config={
            "from": st.column_config.TextColumn(
                "from", width=60, help="X: token embedding, A: after attention, M: FFN block, I: after the FFN; layer, then token."
            ),
            "to": st.column_config.TextColumn("to", width=60),
            "kind": st.column_config.TextColumn(
                "kind", width=76, help="ffn leads into an FFN block or out of it, residual past it or past the attention."
            ),
            "layer": st.column_config.NumberColumn("layer", width=48),
            "tokens": st.column_config.TextColumn("tokens", width=112, help="From which token to which. A dot is a space, as in ·Mary."),
            "weight": st.column_config.ProgressColumn(
                "weight", width=96, min_value=0, max_value=1, format="%.3f", help="Contribution to the node it leads to, as drawn."
            ),
            "heads": st.column_config.TextColumn("heads", width=110, help="Head and contribution, the largest first."),
            "effect": st.column_config.NumberColumn(
                "effect", width=62, format="%+.3f", help=f"Direct effect on {of}, in logits; empty where there is none."
            ),
        },
    )
    n, chosen = f"{graph.n_edges:,} edges", "" if not wanted else f" · row {wanted[0] + 1} is selected"
    st.caption(
        f"{n}, the strongest first{chosen}. A row is selected by the box at its left, or with the keyboard: arrows, then Shift+Space."
    )


def _rows_kept(graph: FlowGraph, key: str) -> tuple[pd.DataFrame, list[Edge]]:
    """`rows`, made once for a graph: of thousands of edges they take a moment, and selecting one runs the page again."""
    name = f"{key}_table_rows"
    kept = st.session_state.get(name)
    if kept is None or kept[0] is not graph:
        kept = st.session_state[name] = (graph, *rows(graph))
    return kept[1], kept[2]


def rows(graph: FlowGraph) -> tuple[pd.DataFrame, list[Edge]]:
    """The table, by falling weight, and the names of its edges."""
    order = np.argsort(-graph.weight, kind="stable")
    kinds = [EdgeKind(kind) for kind in graph.kind[order].tolist()]
    layers, sources, destinations = (column[order].tolist() for column in (graph.layer, graph.source, graph.destination))
    edges = [_names(*edge) for edge in zip(kinds, layers, sources, destinations, strict=True)]
    texts = [visible(text) for text in graph.token_texts]
    table: dict[str, Any] = {
        "from": [source for source, _, _ in edges],
        "to": [destination for _, destination, _ in edges],
        "kind": [kind.key for kind in kinds],
        "layer": layers,
        "tokens": [
            texts[source] if source == destination else f"{texts[source]} → {texts[destination]}"
            for source, destination in zip(sources, destinations, strict=True)
        ],
        "weight": graph.weight[order].astype(np.float64),
        "heads": [_heads(graph, index) for index in order.tolist()],
    }
    return pd.DataFrame(table), edges


def _names(kind: EdgeKind, layer: int, source: int, destination: int) -> Edge:
    """As `llm_tt.flow.graph.Edge.ends`, for thousands of edges."""
    before = f"X0_{source}" if layer == 0 else f"I{layer - 1}_{source}"
    mid, ffn, post = (f"{name}{layer}_{destination}" for name in "AMI")
    match kind:
        case EdgeKind.INTO_FFN:
            return mid, ffn, "ffn"
        case EdgeKind.OUT_OF_FFN:
            return ffn, post, "ffn"
        case EdgeKind.RESIDUAL_TO_POST:
            return mid, post, "residual"
        case _:
            return before, mid, kind.key


def _heads(graph: FlowGraph, edge: int) -> str:
    carried = slice(graph.heads_start[edge], graph.heads_start[edge + 1])
    heads, weights = graph.head[carried].tolist(), graph.head_weight[carried].tolist()
    named = ", ".join(f"{head}: {weight:.3f}" for head, weight in list(zip(heads, weights, strict=True))[:_HEADS_NAMED])
    return named + (f", {len(heads) - _HEADS_NAMED} more" if len(heads) > _HEADS_NAMED else "")


def _row(edges: list[Edge], selection: Mapping[str, Any] | None) -> list[int]:
    """The selected edge's row, if the table has it."""
    if not selection or selection.get("type") != "edge":
        return []
    edge = (selection["from"], selection["to"], selection["key"])
    return [edges.index(edge)] if edge in edges else []


def _take(widget: str, edges: list[Edge], key: str) -> None:
    selected = (st.session_state.get(widget) or {}).get("selection", {}).get("rows", [])
    if not selected or selected[0] >= len(edges):
        drawn.choose(None, key)
        return
    source, destination, kind = edges[selected[0]]
    drawn.choose({"type": "edge", "key": kind, "from": source, "to": destination}, key)
