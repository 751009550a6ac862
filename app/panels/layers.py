"""The layers at a glance: what every layer says at every token, and how tokens fare through the layers of one position.

Belongs under the graph, over the page's full width. A click on a cell becomes the session's selection, as a click on a node of the graph does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from app import session
from app.markup import escaped, plotly_text, probability
from app.panels import csv_file, graph, normalize, waiting
from app.session import Service
from llm_tt.engine.messages import Explanation, LensGridOf, TrajectoriesOf
from llm_tt.lens.layer_tables import LensGrid, Trajectories
from llm_tt.text import visible

KEY = "layers_grid"
_CLICKED, _MARKED = "layers_clicked", "layers_marked"
"""The selection that was made by a click on the grid, and the one that its figure shows"""
_POLL_SECONDS = 0.4
_MAX_COLUMNS, _MAX_CELLS = 120, 4000
"""More than so many tokens or cells are shown through a window"""
_WINDOW = 60
_LABELLED_COLUMNS, _LABELLED_ROWS = 60, 40
_WIDTH, _LETTER = 1000, 6.5
"""Pixels, as the chart is on a laptop; a letter in a cell"""
_FEWEST_LETTERS = 3
_COLORS = "Cividis"
# Okabe and Ito's, told apart with every kind of colour vision, on white and on black.
_LINES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C8C")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
_SELECTED = "#D55E00"

Measure = Literal["top", "entropy", "probability", "rank"]
_SCALES = ["probability", "rank"]
_MEASURES: dict[Measure, str] = {
    "top": "Probability of the top token",
    "entropy": "Entropy",
    "probability": "Probability of the chosen token",
    "rank": "Rank of the chosen token",
}


def show(service: Service, explanation: Explanation) -> None:
    """The grid with its controls, the trajectories at the target, the download."""
    if not service.engine.is_loaded(explanation.trace.model):
        st.info("This model is no longer in memory. To read its layers, load it again.", icon=":material/memory:")
        if st.button("Load it again", icon=":material/refresh:", key="layers_load", help="Load the model and run the prompt once more."):
            session.conversation().again()
            st.rerun()
        return
    predicted = explanation.predictions
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measure = st.selectbox(
            "Colour",
            list(_MEASURES),
            format_func=_MEASURES.__getitem__,
            key="layers_measure",
            width=260,
            help="What the colour of a cell tells; its word is always the first choice there.",
        )
        typed = st.selectbox(
            "Chosen token",
            ["", *filter(None, predicted.texts[1:])],
            # The same for every prompt: the browser keeps the label that was chosen.
            format_func=lambda text: visible(text) if text else "the predicted token",
            accept_new_options=True,
            key="layers_token",
            width=260,
            help="One of the model's first choices at the target, or any token: type its text, as in ·Mary, or its number, as in id:42.",
        )
        both = st.toggle(
            "After attention too", key="layers_both", help="A row after every attention block as well, not only after every FFN."
        )
        through_norm = normalize.toggle(normalize.LAYERS)
    chosen = typed or int(predicted.token_ids[0])
    points = "both" if both else "post"
    trace, target = explanation.trace, explanation.graph.target
    grid = waiting.answer(service, session.lens_grid(), LensGridOf(trace, points, chosen, through_norm), meanwhile=True)
    if grid is None:
        return
    if grid.note is not None:
        st.caption(escaped(grid.note))
    _draw_grid(grid, measure, target, explanation.facts.info.d_vocab)
    extra = () if grid.chosen is None else (grid.chosen,)
    lines = waiting.answer(service, session.trajectories(), TrajectoriesOf(trace, target, extra, 5, points, through_norm), meanwhile=True)
    if lines is not None:
        _draw_trajectories(lines)


# --- the grid


def _draw_grid(grid: LensGrid, measure: Measure, target: int, n_vocab: int) -> None:
    columns = window(grid, target)
    if len(columns) < grid.n_tokens:
        first = st.slider(
            "First token shown",
            0,
            grid.n_tokens - len(columns),
            value=columns.start,
            key=f"layers_first_{grid.n_tokens}_{len(columns)}_{target}",
            help=f"{len(columns)} of the {grid.n_tokens} tokens are shown at a time.",
        )
        columns = range(first, first + len(columns))
    st.plotly_chart(
        grid_figure(grid, measure, columns, target, n_vocab, _marked()),
        width="stretch",
        key=KEY,
        on_select=_take_cell,
        selection_mode="points",
        config={"displayModeBar": False},
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            "Every point of the residual stream, read as if it were the last. Each column says what the model would predict **after** its token. "
            "Click a cell to select its node."
        )
        st.space("stretch")
        csv_file.button(
            grid.to_csv,
            "llm-tt-layers.csv",
            "layers_csv",
            "Every cell as a line: node, token, top token, its probability, entropy in bits, the chosen token's probability and rank.",
        )


def window(grid: LensGrid, target: int) -> range:
    """The columns that are shown at first: all, or of a long prompt so many that they can be read, the target among them."""
    if grid.n_tokens <= _MAX_COLUMNS and grid.n_tokens * grid.n_rows <= _MAX_CELLS:
        return range(grid.n_tokens)
    n_columns = min(_WINDOW, max(10, _MAX_CELLS // grid.n_rows), grid.n_tokens)
    first = min(max(0, target - 3 * n_columns // 4), grid.n_tokens - n_columns)
    return range(first, first + n_columns)


def grid_figure(
    grid: LensGrid, measure: Measure, columns: range, target: int, n_vocab: int, selection: Mapping[str, Any] | None = None
) -> go.Figure:
    """A heat map, layers upwards, under invisible squares that take hover and clicks, which a heat map of plotly does not tell."""
    rows = range(grid.n_rows)
    height = max(7, min(26, 800 // grid.n_rows))
    letters = int(_WIDTH / len(columns) / _LETTER)
    values, bar = _colours(grid, measure, n_vocab)
    heat = go.Heatmap(
        x=list(columns),
        y=list(rows),
        z=values[:, columns.start : columns.stop],
        colorscale=_COLORS,
        hoverinfo="skip",
        xgap=1,
        ygap=1,
        **bar,
    )
    if letters >= _FEWEST_LETTERS and height >= 14:
        heat.text = [[plotly_text(_shortened(grid.top_text(row, column), letters)) for column in columns] for row in rows]
        heat.texttemplate = "%{text}"
        heat.textfont = {"size": 11}
    cells = [(row, column) for row in rows for column in columns]
    # Open squares: what plotly shows of a click by itself frames the cell.
    squares = go.Scatter(
        x=[column for _, column in cells],
        y=[row for row, _ in cells],
        mode="markers",
        marker={"symbol": "square-open", "size": height - 3, "opacity": 0, "color": _SELECTED, "line": {"width": 3}},
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 0}},
        customdata=[grid.node(row, column) for row, column in cells],
        text=[_told(grid, row, column) for row, column in cells],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    place = _place(grid, selection)
    if place in cells:
        squares.selectedpoints = [cells.index(place)]
    figure = go.Figure([heat, squares])
    every = math.ceil(len(columns) / _LABELLED_COLUMNS)
    texts = {column: _shortened(grid.token_texts[column], 14) for column in columns if column % every == 0 or column == target}
    labels = {column: plotly_text(text) for column, text in texts.items()}
    longest = _LETTER * (1 + max(map(len, texts.values())))
    upright = longest <= _WIDTH / len(columns)
    below = 35 if upright else 25 + int(1.2 * longest)
    row_step = math.ceil(grid.n_rows / _LABELLED_ROWS)
    shown = [row for row in rows if row % row_step == 0 or row == grid.n_rows - 1]
    figure.update_layout(
        height=height * grid.n_rows + below + 10,
        margin={"l": 10, "r": 10, "t": 10, "b": below},
        hovermode="closest",
        hoverdistance=-1,
        dragmode=False,
        xaxis={
            "tickmode": "array",
            "tickvals": list(labels),
            "ticktext": [f"<b>{label}</b>" if column == target else label for column, label in labels.items()],
            "tickangle": 0 if upright else -90,
            "range": [columns.start - 0.5, columns.stop - 0.5],
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={
            "tickmode": "array",
            "tickvals": shown,
            "ticktext": [_point_label(grid.points[row]) for row in shown],
            "range": [-0.5, grid.n_rows - 0.5],
            "title": {"text": "layer"},
            "showgrid": False,
            "zeroline": False,
        },
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def _colours(grid: LensGrid, measure: Measure, n_vocab: int) -> tuple[np.ndarray, dict[str, Any]]:
    """What the colours stand for: the numbers and the settings of the heat map."""
    chosen = plotly_text(_shortened(grid.chosen_text or "", 14))
    if measure == "rank" and grid.ranks is not None:
        powers = list(range(math.ceil(math.log10(max(n_vocab, 10))) + 1))
        bar = {
            "title": {"text": f"rank of {chosen}"},
            "thickness": 12,
            "tickvals": powers,
            "ticktext": [f"{10**power:,}" for power in powers],
        }
        return np.log10(grid.ranks), {"zmin": 0, "zmax": math.log10(max(n_vocab, 10)), "reversescale": True, "colorbar": bar}
    if measure == "entropy":
        return grid.entropies, {"zmin": 0, "zmax": math.log2(n_vocab), "colorbar": {"title": {"text": "entropy, bits"}, "thickness": 12}}
    values, title = grid.top_probabilities, "p of top token"
    if measure == "probability" and grid.probabilities is not None:
        values, title = grid.probabilities, f"p of {chosen}"
    return values, {"zmin": 0, "zmax": 1, "colorbar": {"title": {"text": title}, "thickness": 12}}


def _told(grid: LensGrid, row: int, column: int) -> str:
    """What a cell says when it is pointed at."""
    lines = [
        f"{_place_label(grid.points[row])}, token {column} {plotly_text(visible(grid.token_texts[column]))}",
        f"<b>{plotly_text(visible(grid.top_text(row, column)))}</b>  p = {_probability(grid.top_probabilities[row, column])}",
        f"entropy {grid.entropies[row, column]:.2f} bits",
    ]
    if grid.probabilities is not None and grid.ranks is not None:
        chosen = plotly_text(visible(grid.chosen_text or ""))
        lines.append(f"{chosen}  p = {_probability(grid.probabilities[row, column])}, rank {grid.ranks[row, column]:,}")
    return "<br>".join(lines)


def _place(grid: LensGrid, selection: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Row and column of the selected node, if the grid has it."""
    if not selection or selection.get("type") != "node":
        return None
    point, _, position = str(selection["node"]).partition("_")
    return (grid.points.index(point), int(position)) if point in grid.points and position.isdigit() else None


def _marked() -> Mapping[str, Any] | None:
    """The selection that the figure is to show: none that plotly shows by itself, since it was made by a click on this very chart.

    Streamlit makes another chart of another figure, and the page would jump with every click.
    """
    selection = st.session_state.get("selection")
    if selection is None or selection != st.session_state.get(_CLICKED):
        st.session_state[_CLICKED] = None
        st.session_state[_MARKED] = selection
    return st.session_state.get(_MARKED)


def _take_cell() -> None:
    """Select the node of the cell that was clicked; nothing, when it was selected before."""
    points = (st.session_state.get(KEY) or {}).get("selection", {}).get("points", [])
    nodes = [point["customdata"] for point in points if "customdata" in point]
    if nodes:
        node = nodes[-1][0] if isinstance(nodes[-1], list) else nodes[-1]
        graph.select(str(node))
    else:
        graph.select(None)
    st.session_state[_CLICKED] = st.session_state.selection


# --- trajectories


def _draw_trajectories(lines: Trajectories) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**Through the layers** at token {lines.position}")
        scale = st.segmented_control(
            "Scale",
            _SCALES,
            default="probability",
            key="layers_scale",
            label_visibility="collapsed",
            required=True,
            help="Probability after a softmax over the whole vocabulary, or rank: 1 is the first choice there, at the top of the axis.",
        )
        what = "Every point of a line as a line: node, token, logit, probability, rank."
        csv_file.button(lines.to_csv, "llm-tt-trajectories.csv", "trajectories_csv", what)
    st.plotly_chart(trajectory_figure(lines, scale), width="stretch", key="layers_trajectories", config={"displayModeBar": False})


def trajectory_figure(lines: Trajectories, scale: str) -> go.Figure:
    """One line a token, from the embedding to the last layer; ranks on a logarithmic axis, the best on top."""
    labels = [_point_label(point) for point in lines.points]
    figure = go.Figure()
    for index, text in enumerate(lines.texts):
        values = lines.probabilities[:, index] if scale == "probability" else lines.ranks[:, index]
        name = plotly_text(visible(text))
        figure.add_scatter(
            x=list(range(len(labels))),
            y=values,
            mode="lines+markers",
            name=name,
            line={"color": _LINES[index % len(_LINES)], "width": 2},
            marker={"symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 7},
            text=[
                f"<b>{name}</b><br>{_place_label(point)}<br>p = {_probability(lines.probabilities[row, index])}, rank {lines.ranks[row, index]:,}"
                for row, point in enumerate(lines.points)
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    step = math.ceil(len(labels) / _LABELLED_ROWS)
    highest = math.log10(max(10, int(lines.ranks.max())))
    figure.update_layout(
        height=300,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        hovermode="closest",
        dragmode=False,
        showlegend=True,
        xaxis={
            "tickmode": "array",
            "tickvals": list(range(0, len(labels), step)),
            "ticktext": labels[::step],
            "title": {"text": "layer"},
            "zeroline": False,
        },
        yaxis={"title": {"text": "probability"}, "range": [-0.02, 1.02], "zeroline": False}
        if scale == "probability"
        else {
            "title": {"text": "rank"},
            "type": "log",
            "range": [highest * 1.03, -0.03 * highest],
            "tickvals": [10**power for power in range(math.ceil(highest) + 1)],
            "ticktext": [f"{10**power:,}" for power in range(math.ceil(highest) + 1)],
            "zeroline": False,
        },
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    return figure


# --- words


def _point_label(point: str) -> str:
    kind, layer = point[0], point[1:]
    return "embedding" if kind == "X" else f"{layer} attention" if kind == "A" else layer


def _place_label(point: str) -> str:
    kind, layer = point[0], point[1:]
    return "embedding" if kind == "X" else f"layer {layer}, after {'attention' if kind == 'A' else 'the FFN'}"


def _shortened(text: str, letters: int) -> str:
    shown = visible(text)
    return shown if len(shown) <= letters else shown[: letters - 1] + "…"


def _probability(value: float) -> str:
    return plotly_text(probability(float(value)))
