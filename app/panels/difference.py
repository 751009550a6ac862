"""The difference graph: two graphs in one frame for the React component, whose columns are the tokens of both texts; and its edges as a table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app.panels import csv_file, graph
from llm_tt.analysis.comparison import ABSENT, Comparison, edge_name
from llm_tt.components.graph import flow_graph
from llm_tt.components.graph.frame import pack
from llm_tt.engine.messages import CompareTraces
from llm_tt.export.files import csv_text
from llm_tt.flow.graph import EdgeKind, Node
from llm_tt.text import visible

KEY = "compare_graph"
SELECTION = f"{KEY}_selection"
HEAD, TARGETS, _WANTED = "compare_head", "compare_targets", "compare_targets_wanted"
_VERSION = 1
_HEADS = 8
"""Heads of an edge that are sent, those that changed most"""
_TABLE_HEIGHT = 360


@dataclass(frozen=True)
class Sides:
    """A node's or an edge's names in each of the two traces; None in one that lacks a token of it."""

    nodes: tuple[tuple[Node, ...] | None, tuple[Node, ...] | None]


def show(question: CompareTraces, compared: Comparison, names: tuple[str, str]) -> None:
    flow_graph(
        frame(question, compared, names, selection(), st.session_state.get(HEAD)),
        key=KEY,
        on_selection_change=_take_selection,
        on_target_change=lambda: _take_target(compared, names),
    )


def selection() -> Mapping[str, Any] | None:
    """What is selected, by columns of the graph."""
    return st.session_state.get(SELECTION)


def choose(wanted: Mapping[str, Any] | None) -> None:
    """Select a node or an edge, in a callback or before the graph is drawn."""
    st.session_state.pop(HEAD, None)
    graph.choose(wanted, KEY)


def choose_head(layer: int, head: int) -> None:
    """Let a head's edges stand out, and the inspector show it."""
    graph.choose(None, KEY)
    st.session_state[HEAD] = {"layer": layer, "head": head}


def forget() -> None:
    """No selection, and both targets at the end or where they were wanted, as for other texts."""
    for name in (SELECTION, HEAD, TARGETS, KEY):
        st.session_state.pop(name, None)
    wanted = st.session_state.pop(_WANTED, None)
    if wanted is not None:
        st.session_state[TARGETS] = wanted


def want_targets(targets: tuple[int, int]) -> None:
    """Explain these positions once other texts are compared, in a callback."""
    st.session_state[_WANTED] = targets


def targets() -> tuple[int, int] | None:
    """The positions that were chosen to be explained; None for the last ones."""
    return st.session_state.get(TARGETS)


def sides(compared: Comparison, selected: Mapping[str, Any]) -> Sides:
    """The nodes of a selection in each of the traces."""
    names = [selected["from"], selected["to"]] if selected.get("type") == "edge" else [selected["node"]]
    nodes = [Node.parse(str(name)) for name in names]
    found: list[tuple[Node, ...] | None] = []
    for side in range(2):
        own = [
            Node(node.kind, node.layer, int(compared.columns[node.position, side])) if node.position < len(compared.columns) else None
            for node in nodes
        ]
        known = tuple(node for node in own if node is not None and node.position != ABSENT)
        found.append(known if len(known) == len(nodes) else None)
    return Sides((found[0], found[1]))


def token_texts(compared: Comparison) -> list[str]:
    """One for each column: the token; both where they differ; and a raised 1 or 2 behind one that only this text has."""
    texts: list[str] = []
    for first, second in compared.columns.tolist():
        if first == ABSENT:
            texts.append(f"{compared.token_texts[1][second]}\u00b2")
        elif second == ABSENT:
            texts.append(f"{compared.token_texts[0][first]}\u00b9")
        else:
            one, other = compared.token_texts[0][first], compared.token_texts[1][second]
            texts.append(one if one.strip() == other.strip() else f"{one}\u2192{other}")
    return texts


def frame(
    question: CompareTraces,
    compared: Comparison,
    names: tuple[str, str],
    selected: Mapping[str, Any] | None = None,
    highlight: Mapping[str, int] | None = None,
) -> bytes:
    """What the component is sent (docs/graph-frame.md)."""
    edges = compared.edges
    source, destination = compared.edge_columns()
    change = edges.change.astype(np.float32)
    weight = np.nanmax(edges.contribution, axis=1) if len(edges) else np.zeros(0)
    side = np.where(edges.is_drawn.all(axis=1), 0, np.where(edges.is_drawn[:, 0], 1, 2))
    starts, heads, by_head = edges.strongest_heads(_HEADS)
    first, second = compared.graphs
    roles: list[str | None] = [
        compared.prompts[0 if one != ABSENT else 1].roles[one if one != ABSENT else other] for one, other in compared.columns.tolist()
    ]
    best = [effects_text(compared, side) for side in range(2)]
    header = {
        "version": _VERSION,
        "trace": hashlib.sha256(repr(question.trace).encode()).hexdigest()[:16],
        "n_layers": first.n_layers,
        "tokens": token_texts(compared),
        "target": compared.column(0, first.target),
        "threshold": max(first.threshold, second.threshold),
        "renormalized": False,
        "prediction": best[0] if best[0] == best[1] else f"{best[0]}\u2192{best[1]}",
        "probability": None,
        "selection": dict(selected) if selected else None,
        "mass": first.mass,
        "highlight": highlight,
        "effect_of": f"{names[0]} \u2192 {names[1]}",
        "compared": {"first": names[0], "second": names[1]},
        "roles": roles,
    }
    arrays = {
        "kind": edges.kind,
        "layer": edges.layer,
        "source": source.astype(np.uint32),
        "destination": destination.astype(np.uint32),
        "weight": weight.astype(np.float32),
        "heads_start": starts.astype(np.uint32),
        "head": heads.astype(np.uint16),
        "head_weight": by_head.max(axis=1, initial=0.0).astype(np.float32),
        "effect": change,
        "side": side.astype(np.uint8),
        "head_effect": (by_head[:, 1] - by_head[:, 0]).astype(np.float32),
    }
    return pack(header, arrays)


def effects_text(compared: Comparison, side: int) -> str:
    """The first choice of one side."""
    ranks = compared.choices.ranks[:, side]
    return compared.choices.texts[int(np.flatnonzero(ranks == 1)[0])]


def edge_selections(compared: Comparison, edges: Sequence[int]) -> list[dict[str, Any]]:
    """Edges of the comparison as the graph selects them, by columns."""
    source, destination = (columns.tolist() for columns in compared.edge_columns())
    found: list[dict[str, Any]] = []
    for edge in edges:
        kind, layer = EdgeKind(compared.edges.kind[edge]), int(compared.edges.layer[edge])
        start, end, key = edge_name(kind, layer, source[edge], destination[edge])
        found.append({"type": "edge", "key": key, "from": start, "to": end})
    return found


def edge_words(compared: Comparison, edges: Sequence[int]) -> list[str]:
    """Which tokens edges join, as text."""
    texts = [visible(text) for text in token_texts(compared)]
    source, destination = (columns.tolist() for columns in compared.edge_columns())
    return [
        texts[source[edge]] if source[edge] == destination[edge] else f"{texts[source[edge]]} \u2192 {texts[destination[edge]]}"
        for edge in edges
    ]


# --- as a table


def table(compared: Comparison, names: tuple[str, str]) -> None:
    """Every edge, the largest change first; a selected row is selected in the graph."""
    edges = compared.edges
    if not len(edges):
        st.caption("Neither graph has an edge: none passes the threshold. Lower it in the sidebar.")
        return
    content, named = _kept_rows(compared)
    selected = selection()
    wanted = [named.index(dict(selected))] if selected and dict(selected) in named else []
    widget = f"{KEY}_table"
    if (st.session_state.get(widget) or {}).get("selection", {}).get("rows", []) != wanted:
        st.session_state[widget] = {"selection": {"rows": wanted, "columns": [], "cells": []}}

    def take() -> None:
        rows = (st.session_state.get(widget) or {}).get("selection", {}).get("rows", [])
        choose(named[rows[0]] if rows and rows[0] < len(named) else None)

    st.dataframe(
        content,
        hide_index=True,
        height=min(_TABLE_HEIGHT, 38 + 35 * len(named)),
        placeholder="",
        key=widget,
        on_select=take,
        selection_mode="single-row",
        column_config={
            "from": st.column_config.TextColumn(
                "from", width=60, help="X: token embedding, A: after attention, M: FFN block, I: after the FFN; layer, then column."
            ),
            "to": st.column_config.TextColumn("to", width=60),
            "kind": st.column_config.TextColumn("kind", width=76),
            "layer": st.column_config.NumberColumn("layer", width=48),
            "tokens": st.column_config.TextColumn("tokens", width=140, help="From which token to which. A dot is a space, as in ·Mary."),
            "first": st.column_config.NumberColumn(names[0], format="%.3f", help="Contribution to the node it leads to, drawn or not."),
            "second": st.column_config.NumberColumn(names[1], format="%.3f", help="Contribution to the node it leads to, drawn or not."),
            "change": st.column_config.NumberColumn("change", format="%+.3f", help="Second less first; empty where one lacks the tokens."),
            "drawn": st.column_config.TextColumn("drawn in", width=80, help="Which of the two graphs has the edge."),
            "heads": st.column_config.TextColumn("heads", width=170, help="Heads that changed most: contribution before and after."),
        },
    )
    st.caption(f"{len(edges):,} edges, the largest change first. A row is selected by the box at its left.")
    csv_file.button(
        lambda: edges_csv(compared, names),
        "llm-tt-difference.csv",
        "compare_edges_csv",
        "Every edge in full: nodes by column, contribution in each, change, in which graph it is, heads.",
    )


def _kept_rows(compared: Comparison) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The table's content and the selection of each row, made once for a comparison: selecting one runs the page again."""
    name = f"{KEY}_table_rows"
    kept = st.session_state.get(name)
    if kept is None or kept[0] is not compared:
        order = by_change(compared)
        kept = st.session_state[name] = (compared, rows(compared, order), edge_selections(compared, order))
    return kept[1], kept[2]


def by_change(compared: Comparison) -> list[int]:
    """All edges, the largest change first."""
    return np.argsort(-np.nan_to_num(np.abs(compared.edges.change)), kind="stable").tolist()


def rows(compared: Comparison, order: Sequence[int]) -> pd.DataFrame:
    """The table's content."""
    edges, order = compared.edges, list(order)
    named = edge_selections(compared, order)
    drawn = {(True, True): "both", (True, False): "first", (False, True): "second"}
    return pd.DataFrame(
        {
            "layer": edges.layer[order].astype(int),
            "kind": [edge["key"] for edge in named],
            "tokens": edge_words(compared, order),
            "first": edges.contribution[order, 0],
            "second": edges.contribution[order, 1],
            "change": edges.change[order],
            "drawn": [drawn[first, second] for first, second in edges.is_drawn[order].tolist()],
            "heads": [
                ", ".join(f"H{head}: {before:.3f}\u2192{after:.3f}" for head, before, after in edges.heads_by_change(edge)[:2])
                for edge in order
            ],
            "from": [edge["from"] for edge in named],
            "to": [edge["to"] for edge in named],
        }
    )


def edges_csv(compared: Comparison, names: tuple[str, str]) -> str:
    """The table in full."""
    content = rows(compared, by_change(compared))
    columns = ["layer", "kind", "tokens", names[0], names[1], "change", "drawn", "heads", "from", "to"]
    lines = [["" if isinstance(value, float) and np.isnan(value) else value for value in row] for row in content.itertuples(index=False)]
    return csv_text(columns, lines)


def _take_selection() -> None:
    st.session_state[SELECTION] = (st.session_state.get(KEY) or {}).get("selection")
    st.session_state.pop(HEAD, None)


def _take_target(compared: Comparison, names: tuple[str, str]) -> None:
    column = (st.session_state.get(KEY) or {}).get("target")
    if column is None:
        return
    first, second = compared.columns[int(column)].tolist()
    if ABSENT in (first, second):
        lacking = names[0] if first == ABSENT else names[1]
        st.toast(f"What follows this token cannot be compared: {lacking} has no such token.", icon=":material/info:")
        return
    st.session_state[TARGETS] = (first, second)
