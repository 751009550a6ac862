"""The heads of a node or an edge, by contribution; of one head, or of all together: attention map, contribution map, and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import session
from app.panels import csv_file, token_tables, waiting
from app.session import Service
from llm_tt.engine.messages import Explanation, HeadReport, InspectHead, InspectHeads
from llm_tt.export.files import csv_text
from llm_tt.text import visible

# Dark to light through blue and yellow, told apart with every kind of colour vision and on both themes.
_COLORS = "Cividis"
_MARK = "#E69F00"
_LABEL_LENGTH = 16
_LABEL_PIXELS = 18
_CHARACTER_PIXELS = 6
_TABLE_HEIGHT = 248
_CHART = {"displayModeBar": False}


@dataclass(frozen=True)
class Heads:
    """What the panel is about: a layer's attention at a token, or the part of it that comes from one source token."""

    layer: int
    position: int
    source: int | None
    shares: Sequence[tuple[int, float]]
    """(head, contribution) by falling contribution"""
    drawn: Mapping[int, float] | None = None
    """for an edge: weights in the graph"""
    mostly_from: Sequence[int] | None = None
    """for a node: the source token from which most comes, as `shares`"""
    effects: Sequence[float] | None = None
    """for an edge into the target's column: direct effects on what is in question, as `shares`"""


def of_node(service: Service, explanation: Explanation, layer: int, position: int) -> Heads:
    """All heads of a layer at a token, whatever token they bring."""
    report = service.engine.answer(InspectHeads(explanation.trace, layer, position))
    shares = [(share.head, share.contribution) for share in report.heads]
    return Heads(layer, position, None, shares, mostly_from=[share.source for share in report.heads])


def show(service: Service, explanation: Explanation, heads: Heads, normalize: bool) -> None:
    """The table; below it the selected head."""
    chosen = _table(explanation, heads)
    question = InspectHead(explanation.trace, heads.layer, chosen, heads.position, heads.source, normalize=normalize)
    report = waiting.answer(service, session.head_report(), question)
    if report is None:
        return
    texts = explanation.graph.token_texts
    _title(report, texts)
    if session.dialog() == "maps":
        _maps_dialog(report, texts)
    kinds = ("Attention", "Contribution", "Promoted and suppressed")
    # Only the open one is made and drawn.
    attention, contribution, words = st.tabs(kinds, key="head_tab", on_change="rerun")
    if attention.open:
        attention.plotly_chart(heatmap(report, texts, "attention"), width="stretch", key="attention_map", config=_CHART)
    if contribution.open:
        contribution.plotly_chart(heatmap(report, texts, "contribution"), width="stretch", key="contribution_map", config=_CHART)
    if words.open:
        with words:
            st.caption(_written(report, texts, normalize))
            token_tables.promoted_and_suppressed(report.promoted, report.suppressed, csv_key="head_words_csv")
    with st.container(horizontal=True):
        st.button(
            "Full width",
            icon=":material/open_in_full:",
            key="open_maps",
            help="Open both maps side by side, large enough to read every token.",
            on_click=session.open_dialog,
            args=("maps",),
        )
        name = f"L{report.layer}" if report.head is None else f"L{report.layer}-H{report.head}"
        what = "Both maps, one line a pair of tokens: from, to, attention, contribution."
        csv_file.button(lambda: map_csv(report, texts), f"llm-tt-maps-{name}.csv", "maps_csv", what)


def _table(explanation: Explanation, heads: Heads) -> int | None:
    """Draw the heads; the selected one, None for all of them together."""
    total = sum(share for _, share in heads.shares)
    columns: dict[str, list[object]] = {
        "head": ["all heads", *(f"L{heads.layer} H{head}" for head, _ in heads.shares)],
        "contribution": [total, *(share for _, share in heads.shares)],
    }
    if heads.drawn is not None:
        columns["drawn"] = [sum(heads.drawn.values()) or None, *(heads.drawn.get(head) for head, _ in heads.shares)]
    if heads.mostly_from is not None:
        texts = explanation.graph.token_texts
        columns["from"] = [None, *(f"{visible(texts[source])} ({source})" for source in heads.mostly_from)]
    if heads.effects is not None:
        columns["effect"] = [sum(heads.effects), *heads.effects]
    state = st.dataframe(
        pd.DataFrame(columns),
        hide_index=True,
        height="auto" if len(heads.shares) <= 6 else _TABLE_HEIGHT,
        placeholder="",
        key=f"heads_{heads.layer}_{heads.position}_{heads.source}",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "head": st.column_config.TextColumn("head", help="Layer and head. Select a row, by the box at its left, to look into a head."),
            "contribution": st.column_config.ProgressColumn(
                "contribution",
                min_value=0,
                max_value=1,
                format="%.3f",
                color="blue",
                help="Share of the node after attention, before the threshold.",
            ),
            "drawn": st.column_config.NumberColumn(
                "drawn", format="%.3f", help="Weight in the graph, renormalised if that is on; empty when at or below the threshold."
            ),
            "effect": st.column_config.NumberColumn(
                "effect", format="%+.3f", help="Direct effect on what is in question, in logits: below 0 the head works against it."
            ),
            "from": st.column_config.TextColumn("mostly from", help="The token (and its position) from which the head brings most."),
        },
    )
    selected = state.selection.rows if state is not None else []  # type: ignore[union-attr]
    if not selected or not 0 < selected[0] <= len(heads.shares):
        st.caption("Select a row to look into one head; below are all heads together.")
        return None
    return heads.shares[selected[0] - 1][0]


def _title(report: HeadReport, texts: Sequence[str]) -> None:
    name = "All heads" if report.head is None else f"L{report.layer} H{report.head}"
    source = "" if report.source is None else f" from `{token_tables.code(texts[report.source])}`"
    st.markdown(f"**{name}**{source} · contribution **{report.contribution:.3f}**")


def _written(report: HeadReport, texts: Sequence[str], normalize: bool) -> str:
    who = "the heads of this layer write together" if report.head is None else f"head {report.head} writes"
    where = "" if report.source is None else f" when it reads `{token_tables.code(texts[report.source])}`"
    held = ", with the norm's scale held fixed" if normalize else ""
    return f"What {who} at `{token_tables.code(texts[report.position])}`{where}, as change of each token's score{held}."


@st.dialog("Where heads look, and what they contribute", width="large", icon=":material/grid_on:", on_dismiss=session.close_dialog)
def _maps_dialog(report: HeadReport, texts: Sequence[str]) -> None:
    _title(report, texts)
    for column, kind in zip(st.columns(2), ("attention", "contribution"), strict=True):
        with column:
            st.markdown(f"**{kind.capitalize()}**")
            st.plotly_chart(heatmap(report, texts, kind, 640), width="stretch", key=f"wide_{kind}_map", config=_CHART)


def heatmap(report: HeadReport, texts: Sequence[str], kind: str, height: int = 380) -> go.Figure:
    """Targets downwards, sources to the right; what would be the future is left empty; the target's row is framed."""
    shown, other, other_name = (
        (report.attention, report.contributions, "contribution")
        if kind == "attention"
        else (report.contributions, report.attention, "attention")
    )
    rows, columns = range(*report.rows), range(*report.columns)
    future = np.array(columns)[None] > np.array(rows)[:, None]
    values = np.where(future, np.nan, shown).astype(np.float32)
    top = float(np.nanmax(values)) if (~future).any() else 0.0
    shapes: list[dict[str, Any]] = []
    if report.position in rows:
        row = rows.index(report.position)
        line = {"color": _MARK, "width": 2}
        shapes = [{"type": "rect", "x0": -0.5, "x1": len(columns) - 0.5, "y0": row - 0.5, "y1": row + 0.5, "line": line, "name": "target"}]
    cells = go.Heatmap(
        x=[label(texts[position], position) for position in columns],
        y=[label(texts[position], position) for position in rows],
        z=values,
        customdata=other,
        zmin=0,
        # Plotly takes the lower end of a scale only together with the upper one.
        zmax=top or 1.0,
        colorscale=_COLORS,
        colorbar={"thickness": 10, "len": 0.9},
        hovertemplate="from %{x} to %{y}: %{z:.3f}<br>" + other_name + " %{customdata:.3f}<extra></extra>",
        hoverongaps=False,
    )
    # Found by plotly itself, margins would have it draw each map twice: too late for a click.
    label_width = _CHARACTER_PIXELS * max(len(_shown(texts[position])) + len(str(position)) for position in {*rows, *columns})
    # All at once: changing the layout of a figure costs plotly more than making it.
    layout = {
        "height": height,
        "margin": {"l": 28 + label_width, "r": 56, "t": 8, "b": 32 + label_width, "autoexpand": False},
        "xaxis": {**_axis("from", columns, texts, height), "tickangle": -60},
        "yaxis": {**_axis("to", rows, texts, height), "autorange": "reversed"},
        "plot_bgcolor": "rgba(0,0,0,0)",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "shapes": shapes,
    }
    return go.Figure(cells, layout)


def map_csv(report: HeadReport, texts: Sequence[str]) -> str:
    """Both maps in full, without the future."""
    rows = [
        [source, texts[source], target, texts[target], report.attention[row, column], report.contributions[row, column]]
        for row, target in enumerate(range(*report.rows))
        for column, source in enumerate(range(*report.columns))
        if source <= target
    ]
    return csv_text(["from", "from_token", "to", "to_token", "attention", "contribution"], rows)


def label(text: str, position: int) -> str:
    """A token on an axis, one label a position. Plotly reads some HTML in labels, and Unicode's marks of direction would turn the line around."""
    return f"{escape(_shown(text), quote=False)}<sub>{position}</sub>"


def _shown(text: str) -> str:
    shown = "".join(character if character.isprintable() else "\ufffd" for character in visible(text))
    return shown if len(shown) <= _LABEL_LENGTH else shown[: _LABEL_LENGTH - 1] + "…"


def _axis(name: str, window: range, texts: Sequence[str], height: int) -> dict[str, Any]:
    title = name if len(window) == len(texts) else f"{name} (tokens {window.start} to {window.stop - 1} of {len(texts)})"
    axis: dict[str, Any] = {"type": "category", "showgrid": False, "automargin": False, "title": {"text": title}, "tickfont": {"size": 10}}
    # Every token has its label where they do not overlap; else plotly leaves some out.
    return axis | ({"dtick": 1} if len(window) * _LABEL_PIXELS <= height else {})
