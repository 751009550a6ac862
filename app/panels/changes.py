"""What changed between two traces, in numbers: first choices, predictions along the text, heads and blocks, the drift of the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import kept
from app.markup import plotly_text
from app.panels import csv_file, difference, token_tables
from llm_tt.analysis.comparison import Comparison, Floats
from llm_tt.export.files import csv_text
from llm_tt.text import visible

LESS, NEUTRAL, MORE = "#d55e00", "#b8bcc4", "#0072b2"
"""Orange and blue of the graph's scale, for charts, which have one scale on both themes"""
DIVERGING = [[0.0, LESS], [0.5, NEUTRAL], [1.0, MORE]]
FIRST, SECOND = "#8a8d93", "#0072b2"
_SEQUENTIAL = "Cividis"
_MARK = "#cc79a7"
_CHART = {"displayModeBar": False}
_MEASURES: dict[str, tuple[str, str]] = {
    "Flow": ("flow", "Share of the routes' flow through the part, over all tokens."),
    "Contribution": ("contribution", "To the residual stream at the target itself, whether it is above the threshold or not."),
    "Direct effect": ("effect", "On the logit in question, or how far it is above the other, in logits."),
}
_NUMBERED_CELLS = 256
_LABEL_LENGTH = 14
_ALIKE = 0.9
"""Cosine up to which the scale of directions reaches at least: streams that are nearly the same look so"""
_LABELLED = 64
"""Up to so many tokens a chart labels each"""


def predictions(compared: Comparison, names: tuple[str, str]) -> None:
    """The first choices of both after the target."""
    choices = compared.choices
    texts = [f"`{token_tables.code(compared.token_texts[side][position])}`" for side, position in enumerate(compared.targets)]
    where = texts[0] if texts[0] == texts[1] else " \u2192 ".join(texts)
    positions = compared.targets
    which = f"token {positions[0]}" if positions[0] == positions[1] else f"tokens {positions[0]} and {positions[1]}"
    st.markdown(f"**After** {where} ({which}) **comes**")
    st.dataframe(
        pd.DataFrame(
            {
                "token": [visible(text) for text in choices.texts],
                "first": choices.probabilities[:, 0],
                "second": choices.probabilities[:, 1],
                "change": choices.probabilities[:, 1] - choices.probabilities[:, 0],
            }
        ),
        hide_index=True,
        height=178,
        placeholder="",
        key="compare_predictions",
        column_config={
            "token": st.column_config.TextColumn("next token", width=70, help=token_tables.DOT),
            "first": st.column_config.ProgressColumn(names[0], width=80, min_value=0, max_value=1, format="%.3f", color="gray"),
            "second": st.column_config.ProgressColumn(names[1], width=80, min_value=0, max_value=1, format="%.3f", color="blue"),
            "change": st.column_config.NumberColumn("change", width=62, format="%+.3f", help="Second less first."),
        },
    )
    at = int(np.flatnonzero((compared.pairs == compared.targets).all(axis=1))[0])
    divergence = float(compared.divergence[at])
    effects = compared.effects
    of = effects[0].of.replace("`", "\u02cb")
    told = [f"`{of}`: **{_signed(effects[0].logit)} \u2192 {_signed(effects[1].logit)}** logits"]
    if not np.isnan(divergence):
        told.append(f"divergence **{divergence:.3f}** nats")
    st.markdown(
        " · ".join(told),
        help="The logit in question, or how far it is above the other, in each. Divergence: Kullback-Leibler, of the second's prediction from the "
        "first's, over the whole vocabulary; 0 for equal ones.",
    )


# --- along the text


def along(compared: Comparison, names: tuple[str, str]) -> None:
    """Predictions after every token that both have."""
    st.caption(
        "How far apart the predictions are after each token, and how probable the token is that really follows. "
        "A token without a partner in the other text has no bar; where other tokens follow there is no probability."
    )
    st.plotly_chart(text_figure(compared, names), width="stretch", key="compare_text_chart", config=_CHART)
    st.dataframe(
        text_table(compared),
        hide_index=True,
        height=min(330, 38 + 35 * len(compared.pairs)),
        placeholder="",
        key="compare_text_table",
        column_config={
            "positions": st.column_config.TextColumn("token", width=60, help="Its number in the first and in the second."),
            "token": st.column_config.TextColumn("text", width=110, help=token_tables.DOT),
            "next": st.column_config.TextColumn("next", width=90, help="The token that follows in both."),
            "divergence": st.column_config.NumberColumn("divergence", format="%.4f", help="Kullback-Leibler, in nats."),
            "first": st.column_config.NumberColumn(names[0], format="%.4f", help="Probability of the next token."),
            "second": st.column_config.NumberColumn(names[1], format="%.4f", help="Probability of the next token."),
            "change": st.column_config.NumberColumn("change", format="%+.4f", help="Second less first."),
            "first rank": st.column_config.NumberColumn(f"rank in {names[0]}", help="Of the next token; 1 is the first choice."),
            "second rank": st.column_config.NumberColumn(f"rank in {names[1]}", help="Of the next token; 1 is the first choice."),
        },
    )
    csv_file.button(
        lambda: text_csv(compared, names),
        "llm-tt-along-the-text.csv",
        "compare_text_csv",
        "A line a pair of tokens: positions, texts, divergence, probability and rank of the next token in each.",
    )


def text_table(compared: Comparison) -> pd.DataFrame:
    texts = difference.token_texts(compared)
    rows: list[dict[str, Any]] = []
    for pair, ((first, second), column) in enumerate(zip(compared.pairs.tolist(), compared.paired_columns.tolist(), strict=True)):
        before, after = compared.following[pair].tolist()
        ranks = compared.ranks[pair].tolist()
        rows.append(
            {
                "positions": str(first) if first == second else f"{first}, {second}",
                "token": visible(texts[column]),
                "next": None if not ranks[0] else visible(compared.token_texts[0][first + 1]),
                "divergence": float(compared.divergence[pair]),
                "first": before,
                "second": after,
                "change": after - before,
                "first rank": ranks[0] or None,
                "second rank": ranks[1] or None,
            }
        )
    return pd.DataFrame(rows)


def text_csv(compared: Comparison, names: tuple[str, str]) -> str:
    columns = [
        "first",
        "second",
        "first_text",
        "second_text",
        "divergence",
        *(f"p {name}" for name in names),
        *(f"rank {name}" for name in names),
    ]
    lines = [
        [
            first,
            second,
            compared.token_texts[0][first],
            compared.token_texts[1][second],
            *map(_cell, [compared.divergence[pair], *compared.following[pair]]),
            *(rank or "" for rank in compared.ranks[pair].tolist()),
        ]
        for pair, (first, second) in enumerate(compared.pairs.tolist())
    ]
    return csv_text(columns, lines)


def text_figure(compared: Comparison, names: tuple[str, str]) -> go.Figure:
    """Bars of divergence, and below both probabilities of what follows; the target is marked."""
    labels = [_label(text, column) for column, text in enumerate(difference.token_texts(compared))]
    paired = compared.paired_columns.tolist()
    figure = go.Figure()
    if not np.isnan(compared.divergence).all():
        figure.add_bar(
            x=paired,
            y=compared.divergence,
            name="divergence (nats)",
            marker={"color": _MARK},
            hovertemplate="%{customdata}: %{y:.4f} nats<extra></extra>",
            customdata=[labels[column] for column in paired],
            yaxis="y2",
        )
    # Probabilities stand where the token stands that they are of.
    for side, (name, color, symbol) in enumerate(zip(names, (FIRST, SECOND), ("circle-open", "diamond"), strict=True)):
        known = ~np.isnan(compared.following[:, side])
        figure.add_scatter(
            x=np.array(paired)[known],
            y=compared.following[known, side],
            name=f"p of what follows, {plotly_text(name)}",
            mode="lines+markers",
            line={"color": color, "width": 1.5},
            marker={"symbol": symbol, "size": 8, "color": color},
            customdata=[
                f"after {labels[column]}: rank {rank}"
                for column, rank, told in zip(paired, compared.ranks[:, side].tolist(), known.tolist(), strict=True)
                if told
            ],
            hovertemplate="%{customdata}, p %{y:.4f}<extra></extra>",
        )
    target = compared.column(0, compared.targets[0])
    figure.add_vrect(x0=target - 0.5, x1=target + 0.5, fillcolor=_MARK, opacity=0.12, line_width=0)
    figure.update_layout(
        height=330,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis=_token_axis(labels),
        yaxis={"title": {"text": "probability"}, "range": [-0.03, 1.05], "domain": [0, 0.58], "zeroline": False},
        yaxis2={"title": {"text": "nats"}, "domain": [0.66, 1], "rangemode": "tozero"},
        legend={"orientation": "h", "y": 1.16},
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    return figure


# --- heads and blocks


def parts(compared: Comparison, names: tuple[str, str]) -> None:
    """Layers x heads and FFN blocks by one measure, as a map to be clicked and as a table to be sorted."""
    kept.hold("compare_measure", "Direct effect")
    measure = st.segmented_control(
        "By",
        list(_MEASURES),
        key="compare_measure",
        required=True,
        help="Flow: what share of the routes passes through a head or a block. Contribution: how much of the stream at the target comes from "
        "it. Direct effect: how much it adds to the logit in question.",
    )
    measure = measure or "Direct effect"
    st.caption(
        f"{_MEASURES[measure][1]} Blue: more in {names[1]}, orange: less. Click a head to see it in both, and its edges in the graph."
    )
    st.plotly_chart(
        parts_figure(compared, measure, st.session_state.get(difference.HEAD)),
        width="stretch",
        key=_map_key(),
        on_select=_take_head,
        selection_mode="points",
        config=_CHART,
        alt=f"Heat map of the change of {measure.lower()} by layer and head; the tables below have the numbers.",
    )
    left, right = st.columns(2, gap="small")
    with left:
        _numbers(parts_table(compared, measure), names, measure, "part", "compare_parts")
    with right:
        _numbers(layers_table(compared, measure), names, measure, "layer", "compare_layers")
    csv_file.button(
        lambda: parts_csv(compared, names),
        "llm-tt-parts.csv",
        "compare_parts_csv",
        "Every head and FFN block as a line: flow, contribution and direct effect in each.",
    )


def _sides(compared: Comparison, measure: str) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """[L, H] of heads and [L] of FFN blocks, of both."""
    return {
        "Flow": (compared.head_flow, compared.ffn_flow),
        "Contribution": (compared.head_contribution, compared.ffn_contribution),
        "Direct effect": (compared.head_effects(), compared.ffn_effects()),
    }[measure]


def parts_table(compared: Comparison, measure: str) -> pd.DataFrame:
    """Heads and FFN blocks, the largest change first."""
    heads, ffn = _sides(compared, measure)
    n_layers, n_heads = heads[0].shape
    names = [f"L{layer} H{head}" for layer in range(n_layers) for head in range(n_heads)] + [f"FFN L{layer}" for layer in range(n_layers)]
    columns = {side: np.concatenate([head.ravel(), block]) for side, head, block in zip(("first", "second"), heads, ffn, strict=True)}
    table = pd.DataFrame({"part": names, **columns})
    return _by_change(table)


def layers_table(compared: Comparison, measure: str) -> pd.DataFrame:
    """Attention, all heads together, and FFN of each layer, the largest change first."""
    heads, ffn = _sides(compared, measure)
    n_layers = len(ffn[0])
    names = [f"L{layer} {what}" for what in ("attention", "FFN") for layer in range(n_layers)]
    columns = {side: np.concatenate([head.sum(1), block]) for side, head, block in zip(("first", "second"), heads, ffn, strict=True)}
    return _by_change(pd.DataFrame({"layer": names, **columns}))


def _by_change(table: pd.DataFrame) -> pd.DataFrame:
    table["change"] = table["second"] - table["first"]
    return table.iloc[np.argsort(-table["change"].abs(), kind="stable")].reset_index(drop=True)


def _numbers(table: pd.DataFrame, names: tuple[str, str], measure: str, what: str, key: str) -> None:
    number = "%+.3f" if measure == "Direct effect" else "%.3f"
    about = _MEASURES[measure][1]
    st.dataframe(
        table,
        hide_index=True,
        height=300,
        placeholder="",
        key=key,
        column_config={
            what: st.column_config.TextColumn(what, width=96),
            "first": st.column_config.NumberColumn(names[0], format=number, help=about),
            "second": st.column_config.NumberColumn(names[1], format=number, help=about),
            "change": st.column_config.NumberColumn("change", format="%+.3f", help="Second less first."),
        },
    )


def parts_csv(compared: Comparison, names: tuple[str, str]) -> str:
    tables = [parts_table(compared, measure).set_index("part") for measure in _MEASURES]
    columns = ["part", *(f"{short} {name}" for short, _ in _MEASURES.values() for name in names)]
    lines = [
        [part, *(float(table.loc[part, side]) for table in tables for side in ("first", "second"))] for part in tables[0].sort_index().index
    ]  # type: ignore[arg-type, misc]
    return csv_text(columns, lines)


def parts_figure(compared: Comparison, measure: str, highlighted: Any = None) -> go.Figure:
    """Layers upwards, as in the graph; FFN blocks in a column of their own. An invisible marker over each head can be clicked."""
    heads, ffn = _sides(compared, measure)
    change = np.concatenate([heads[1] - heads[0], (ffn[1] - ffn[0])[:, None]], axis=1)
    n_layers, n_columns = change.shape
    n_heads = n_columns - 1
    most = float(np.abs(change).max()) or 1.0
    figure = go.Figure(
        go.Heatmap(
            x=list(range(n_columns)),
            y=list(range(n_layers)),
            z=change,
            zmin=-most,
            zmax=most,
            colorscale=DIVERGING,
            colorbar={"title": {"text": "change"}, "thickness": 12},
            texttemplate="%{z:+.2f}" if change.size <= _NUMBERED_CELLS else None,
            hoverinfo="skip",
            xgap=1,
            ygap=1,
        )
    )
    layers, columns = np.divmod(np.arange(change.size), n_columns)
    both = [np.concatenate([side, block[:, None]], axis=1) for side, block in zip(heads, ffn, strict=True)]
    figure.add_scatter(
        x=columns,
        y=layers,
        mode="markers",
        marker={"symbol": "square", "size": 20, "opacity": 0.01, "color": "#888888"},
        selected={"marker": {"opacity": 0.01}},
        unselected={"marker": {"opacity": 0.01}},
        customdata=[
            f"<b>{'FFN ' if column == n_heads else ''}L{layer}{'' if column == n_heads else f' H{column}'}</b>: "
            f"{both[0][layer, column]:.3f} \u2192 {both[1][layer, column]:.3f} ({change[layer, column]:+.3f})"
            for layer, column in zip(layers.tolist(), columns.tolist(), strict=True)
        ],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    if highlighted is not None:
        x, y = highlighted["head"], highlighted["layer"]
        figure.add_shape(type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, line={"color": _MARK, "width": 3})
    step = max(1, n_heads // 16)
    ticks = [*range(0, n_heads, step), n_heads]
    figure.update_layout(
        height=min(140 + 30 * n_layers, 640),
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={
            "title": {"text": "head"},
            "showgrid": False,
            "zeroline": False,
            "range": [-0.5, n_columns - 0.5],
            "tickvals": ticks,
            "ticktext": [*map(str, range(0, n_heads, step)), "FFN"],
        },
        yaxis={
            "title": {"text": "layer"},
            "showgrid": False,
            "zeroline": False,
            "range": [-0.5, n_layers - 0.5],
            "tickmode": "linear",
            "dtick": max(1, n_layers // 16),
        },
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
        clickmode="event+select",
        dragmode=False,
        hovermode="closest",
        hoverdistance=-1,
    )
    return figure


def _map_key() -> str:
    # A chart remembers what was clicked; another chart does not.
    return f"compare_map_{st.session_state.get('compare_maps', 0)}"


def _take_head() -> None:
    selected = (st.session_state.get(_map_key()) or {}).get("selection") or {}
    points = [point for point in selected.get("points", []) if {"x", "y"} <= set(point)]
    if not points:
        return
    layer, column = int(points[0]["y"]), int(points[0]["x"])
    st.session_state.compare_maps = st.session_state.get("compare_maps", 0) + 1
    if column == st.session_state.get("compare_n_heads"):
        difference.choose({"type": "node", "node": f"M{layer}_{st.session_state.compare_target_column}"})
    else:
        difference.choose_head(layer, column)


# --- the residual stream


def drift(compared: Comparison) -> None:
    """How far the two residual streams are apart, at every point and token."""
    if np.isnan(compared.cosine).all():
        st.info("The two models' residual streams are of different widths: they cannot be compared.", icon=":material/info:")
        return
    kept.hold("compare_drift", "Direction")
    kind = st.segmented_control(
        "What",
        ["Direction", "Length"],
        key="compare_drift",
        required=True,
        help="Direction: cosine of the two streams, 1 where they point the same way. Length: that of the second's stream by that of the first's.",
    )
    st.plotly_chart(drift_figure(compared, kind != "Length"), width="stretch", key="compare_drift_chart", config=_CHART)
    csv_file.button(
        lambda: drift_csv(compared),
        "llm-tt-drift.csv",
        "compare_drift_csv",
        "A line a point of the stream and a pair of tokens: cosine, and the second's length by the first's.",
    )


def points(compared: Comparison) -> list[str]:
    """Names of the stream's points, from below."""
    n_layers = (len(compared.cosine) - 1) // 2
    return ["embedding", *(f"L{layer} {what}" for layer in range(n_layers) for what in ("attention", "FFN"))]


def drift_figure(compared: Comparison, by_direction: bool) -> go.Figure:
    """Points upwards, tokens to the right; what only one text has is left empty."""
    labels = [_label(text, column) for column, text in enumerate(difference.token_texts(compared))]
    values = compared.cosine if by_direction else compared.norm_ratio
    cells = np.full((len(values), len(labels)), np.nan)
    cells[:, compared.paired_columns] = values
    if by_direction:
        scale: dict[str, Any] = {"zmin": min(_ALIKE, float(np.nanmin(values))), "zmax": 1.0, "colorscale": _SEQUENTIAL}
    else:
        off = float(np.nanmax(np.abs(values - 1))) or 1.0
        scale = {"zmin": 1 - off, "zmax": 1 + off, "colorscale": DIVERGING}
    name = "cosine" if by_direction else "ratio"
    figure = go.Figure(
        go.Heatmap(
            x=list(range(len(labels))),
            y=points(compared),
            z=cells,
            customdata=np.broadcast_to(np.array(labels), cells.shape),
            hovertemplate="%{y}, %{customdata}: " + name + " %{z:.4f}<extra></extra>",
            hoverongaps=False,
            colorbar={"title": {"text": name}, "thickness": 12},
            xgap=1,
            ygap=1,
            **scale,
        )
    )
    figure.update_layout(
        height=min(170 + 20 * len(cells), 760),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={**_token_axis(labels), "showgrid": False, "zeroline": False},
        yaxis={"type": "category", "showgrid": False},
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def drift_csv(compared: Comparison) -> str:
    lines = [
        [point, first, second, _cell(compared.cosine[row, pair]), _cell(compared.norm_ratio[row, pair])]
        for row, point in enumerate(points(compared))
        for pair, (first, second) in enumerate(compared.pairs.tolist())
    ]
    return csv_text(["point", "first", "second", "cosine", "norm_ratio"], lines)


# --- shared


def _cell(value: float) -> float | str:
    return "" if np.isnan(value) else float(value)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _label(text: str, column: int) -> str:
    shown = "".join(character if character.isprintable() else "\ufffd" for character in visible(text))
    shown = shown if len(shown) <= _LABEL_LENGTH else shown[: _LABEL_LENGTH - 1] + "…"
    return plotly_text(shown)


def _token_axis(labels: Sequence[str]) -> dict[str, Any]:
    step = max(1, -(-len(labels) // _LABELLED))
    shown = range(0, len(labels), step)
    return {
        "tickvals": list(shown),
        "ticktext": [labels[column] for column in shown],
        "tickangle": -60,
        "range": [-0.6, len(labels) - 0.4],
        "tickfont": {"size": 10},
    }
