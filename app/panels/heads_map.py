"""Heads at a glance: layers x heads by the flow of the current routes through each, and which of them behave in a way that has a name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import session
from app.panels import csv_file, waiting
from app.session import Service
from llm_tt.engine.messages import Explanation, ReadHeads
from llm_tt.export.files import csv_text
from llm_tt.flow.head_roles import LABEL_ABOVE, ROLES, HeadRoles, Role

_COLORS = "Cividis"
_MARK = "#d55e00"
"""The frame of the chosen head: stands out from every colour of the scale"""
_KEY = "heads_map"
_ROLE_HELP = {
    "previous token": "Mean attention to the token before.",
    "first token": "Mean attention to the first token of the prompt.",
    "same token": "Mean attention to earlier tokens of the same id, over tokens that have one.",
    "induction": "Mean attention to the token that followed an earlier token of the same id, over tokens that have one.",
}
_SHORT: dict[Role, str] = {"previous token": "P", "first token": "F", "same token": "S", "induction": "I"}
_LETTERED_CELLS = 600
"""Up to so many cells the map has the letters of the roles written in"""


def show(service: Service, explanation: Explanation) -> None:
    """The map, whose cells can be clicked, and the table of the heads that have a label."""
    if not service.engine.is_loaded(explanation.trace.model):
        st.info("This model is no longer in memory. Run the prompt again to read its heads.", icon=":material/memory:")
        return
    roles = waiting.answer(service, session.head_roles(), ReadHeads(explanation.trace))
    if roles is None:
        return
    n_layers, n_heads = explanation.head_flow.shape
    st.plotly_chart(
        heatmap(explanation.head_flow, roles, highlight()),
        width="stretch",
        key=_key(),
        on_select=_take_head,
        selection_mode="points",
        config={"displayModeBar": False},
        alt=f"Heat map of the flow through {n_heads} heads in {n_layers} layers; the table below has the labelled ones.",
    )
    head = highlight()
    with st.container(horizontal=True, vertical_alignment="center"):
        if head is None:
            st.caption(
                "Brighter is more of the flow. Letters name heads that behave as **P**revious-token, **F**irst-token, **S**ame-token or "
                "**I**nduction heads here. Click a cell to see the edges of that head in the graph."
            )
        else:
            layer, number = head["layer"], head["head"]
            flow = explanation.head_flow[layer, number] if layer < n_layers and number < n_heads else 0.0
            st.caption(f"**L{layer} H{number}** carries **{flow:.1%}** of the flow; its edges stand out in the graph.")
            st.button("Show all edges alike", icon=":material/close:", key="forget_head", on_click=forget, type="tertiary")
    csv_file.button(
        lambda: map_csv(explanation.head_flow, roles),
        "llm-tt-heads.csv",
        "heads_csv",
        "Every head as a line: layer, head, share of the flow, its four scores; empty where a prompt cannot tell.",
    )
    _table(explanation, roles)


def map_csv(flow: np.ndarray, roles: HeadRoles) -> str:
    """Every head in full."""
    scores = [roles.score(role) for role in ROLES]
    rows = [
        [layer, head, float(flow[layer, head]), *("" if np.isnan(score[layer, head]) else float(score[layer, head]) for score in scores)]
        for layer in range(flow.shape[0])
        for head in range(flow.shape[1])
    ]
    return csv_text(["layer", "head", "flow", *(role.replace(" ", "_") for role in ROLES)], rows)


def highlight() -> dict[str, int] | None:
    """The head that was clicked, for the graph's header (docs/graph-frame.md)."""
    return st.session_state.get("highlight")


def forget() -> None:
    """No head stands out any more."""
    if st.session_state.pop("highlight", None) is not None:
        # The chart remembers what was clicked; another chart does not.
        st.session_state[_KEY] = st.session_state.get(_KEY, 0) + 1


def _key() -> str:
    return f"{_KEY}_{st.session_state.get(_KEY, 0)}"


def heatmap(flow: np.ndarray, roles: HeadRoles, highlighted: dict[str, int] | None = None) -> go.Figure:
    """Layers upwards, as in the graph; percent of the flow. An invisible marker over each cell can be clicked, which a cell cannot."""
    n_layers, n_heads = flow.shape
    layers, heads = np.divmod(np.arange(n_layers * n_heads), n_heads)
    labels = [roles.label(int(layer), int(head)) for layer, head in zip(layers, heads, strict=True)]
    letters = np.array([_SHORT[label[0]] if label else "" for label in labels]).reshape(flow.shape)
    most = float(flow.max()) * 100 or 1.0
    height = min(140 + 24 * n_layers, 620)
    figure = go.Figure(
        go.Heatmap(
            x=list(range(n_heads)),
            y=list(range(n_layers)),
            z=flow * 100,
            zmin=0,
            zmax=most,
            colorscale=_COLORS,
            colorbar={"title": {"text": "% of flow"}, "thickness": 12},
            text=letters,
            texttemplate="%{text}" if flow.size <= _LETTERED_CELLS else None,
            hoverinfo="skip",
            xgap=1,
            ygap=1,
        )
    )
    figure.add_scatter(
        x=heads,
        y=layers,
        mode="markers",
        marker={"symbol": "square", "size": 20, "opacity": 0.01, "color": "#888888"},
        selected={"marker": {"opacity": 0.01}},
        unselected={"marker": {"opacity": 0.01}},
        customdata=[_hover(roles, int(layer), int(head), float(flow[layer, head])) for layer, head in zip(layers, heads, strict=True)],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    if highlighted is not None:
        x, y = highlighted["head"], highlighted["layer"]
        figure.add_shape(type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, line={"color": _MARK, "width": 3})
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": {"text": "head"}, "showgrid": False, "zeroline": False, "range": [-0.5, n_heads - 0.5], **_ticks(n_heads)},
        yaxis={"title": {"text": "layer"}, "showgrid": False, "zeroline": False, "range": [-0.5, n_layers - 0.5], **_ticks(n_layers)},
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
        clickmode="event+select",
        dragmode=False,
        hovermode="closest",
        # The nearest marker is the one of the cell, however wide cells are.
        hoverdistance=-1,
    )
    return figure


def _ticks(number: int) -> dict[str, Any]:
    return {"tickmode": "linear", "tick0": 0, "dtick": max(1, number // 16)}


def _hover(roles: HeadRoles, layer: int, head: int, flow: float) -> str:
    label = roles.label(layer, head)
    lines = [f"<b>L{layer} H{head}</b>: {flow:.2%} of the flow"]
    lines += [f"{role}: {roles.score(role)[layer, head]:.2f}" for role in ROLES if not np.isnan(roles.score(role)[layer, head])]
    return "<br>".join([*lines, f"labelled {label[0]}" if label else f"no label (none above {LABEL_ABOVE})"])


def _table(explanation: Explanation, roles: HeadRoles) -> None:
    rows = [
        {
            "head": f"L{layer} H{head}",
            "role": role,
            "score": score,
            "flow": 100 * float(explanation.head_flow[layer, head]),
            **{f"{other} score": float(roles.score(other)[layer, head]) for other in ROLES},
        }
        for layer, head, role, score in roles.labelled()
    ]
    if not rows:
        st.caption(f"On this prompt no head has a score above {LABEL_ABOVE} as a {', '.join(ROLES[:-1])} or {ROLES[-1]} head.")
    else:
        rows.sort(key=lambda row: -row["flow"])
        st.dataframe(
            pd.DataFrame(rows),
            hide_index=True,
            key="heads_table",
            height=min(38 + 35 * len(rows), 290),
            placeholder="",
            column_config={
                "head": st.column_config.TextColumn("head", help="Layer and head."),
                "role": st.column_config.TextColumn("behaves as", help=f"The role with the largest score, if that is above {LABEL_ABOVE}."),
                "score": st.column_config.NumberColumn("score", format="%.2f", help="The score behind the label, 0 to 1."),
                "flow": st.column_config.NumberColumn("% of flow", format="%.2f", help="Of the current routes, through this head."),
                **{
                    f"{role} score": st.column_config.NumberColumn(f"{role} ({_SHORT[role]})", format="%.2f", help=_ROLE_HELP[role])
                    for role in ROLES
                },
            },
        )
    if not roles.n_repeats:
        st.caption("No token of this prompt occurs twice: same-token and induction heads cannot show themselves.")
    elif not roles.n_followed:
        st.caption("No token of this prompt occurs again after another: induction heads cannot show themselves.")


def _take_head() -> None:
    selected = (st.session_state.get(_key()) or {}).get("selection") or {}
    points = [point for point in selected.get("points", []) if {"x", "y"} <= set(point)]
    if points:
        st.session_state.highlight = {"layer": int(points[0]["y"]), "head": int(points[0]["x"])}
    else:
        forget()
