"""What an evaluation found: one table of metrics, labels, slices, words, curves, and the files. Every number is the report's own text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.markup import escaped
from llm_tt.analysis.errors import CellExplanation
from llm_tt.analysis.evaluation_report import EvaluationReport, Table
from llm_tt.engine.messages import Evaluation

_WHOLE = re.compile(r"-?\d+")
# Okabe-Ito blue and vermilion, told apart with every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00")
_ROW_HEIGHT = 29
_MOST_MARKERS = 12


def metrics(evaluation: Evaluation) -> None:
    """The first table, of one model or of two beside each other."""
    show_table((evaluation.comparison or evaluation.reports[0]).tables()[0], "evaluate_metrics", height="content")


def verdict(evaluation: Evaluation) -> str:
    """McNemar's test in words, as Markdown."""
    assert evaluation.comparison is not None
    test, (first, second) = evaluation.comparison.test, map(escaped, evaluation.comparison.names)
    n = test.only_first + test.only_second
    if n == 0:
        return "Both are right and wrong on the same rows."
    pairs = f"On {n} rows only one is right: on {test.only_first} **{first}**, on {test.only_second} **{second}**."
    chance = "more than chance" if test.p_value < 0.05 else "no more than chance can do"
    return f"{pairs} McNemar's exact test: p = {test.p_value:.3g}, {chance}. Both right: {test.both_right}; both wrong: {test.both_wrong}."


def details(report: EvaluationReport) -> None:
    """Labels, slices and words of one model; the confusion matrix is a panel of its own."""
    sides = st.columns([3, 4], gap="large")
    for place, table in enumerate(detail_tables(report)):
        with sides["words" in table.title.lower()]:
            st.markdown(f"**{escaped(table.title)}**")
            show_table(table, f"evaluate_detail_{place}", height="content" if len(table.rows) <= 12 else 360)
    if not report.telling_words and report.n_right < len(report.results):
        st.caption("No word stands in at least five rows that are wrong more often than the others.")


def detail_tables(report: EvaluationReport) -> tuple[Table, ...]:
    return tuple(table for table in report.tables()[1:] if not table.title.startswith("Confusion"))


def show_table(table: Table, key: str, height: int | str = "auto") -> None:
    st.dataframe(frame(table), hide_index=True, key=key, height=height, row_height=_ROW_HEIGHT)  # type: ignore[arg-type]


def frame(table: Table) -> pd.DataFrame:
    """The texts of a table; columns of whole numbers as numbers, so that they can be sorted."""
    columns = {}
    for place, name in enumerate(table.header):
        cells = [row[place] for row in table.rows]
        columns[name or " "] = [int(cell) for cell in cells] if cells and all(map(_WHOLE.fullmatch, cells)) else cells
    return pd.DataFrame(columns)


# --- curves


def curves(evaluation: Evaluation) -> None:
    """ROC, precision and recall, calibration; those that the scoring allows."""
    found = [(report.model, report.metrics) for report in evaluation.reports if report.metrics is not None]
    names = evaluation.comparison.names if evaluation.comparison is not None else tuple(name for name, _ in found)
    charts = [
        ("ROC", "false positives", "true positives", [m.roc_curve for _, m in found], True),
        ("Precision and recall", "recall", "precision", [m.pr_curve for _, m in found], False),
        ("Calibration", "confidence", "accuracy", [tuple((b.confidence, b.accuracy) for b in m.bins) for _, m in found], True),
    ]
    drawn = [chart for chart in charts if any(chart[3])]
    if not drawn:
        st.caption("Curves need the labels' probabilities: score by label words, on rows of at least two labels.")
        return
    for column, (title, x, y, lines, diagonal) in zip(st.columns(len(drawn)), drawn, strict=True):
        with column:
            st.markdown(f"**{title}**")
            st.plotly_chart(
                _curve(names, lines, x, y, diagonal),
                width="stretch",
                key=f"evaluate_curve_{title}",
                config={"displayModeBar": False},
                alt=f"{title}: {y} against {x}, a line for each model.",
            )
    if len(drawn) == 3:
        st.caption("Of two labels, ROC and precision are of the first. Calibration: each point is a bin of rows of like confidence.")


def _curve(names: Sequence[str], lines: Sequence[Sequence[tuple[float, float]]], x: str, y: str, diagonal: bool) -> go.Figure:
    figure = go.Figure()
    if diagonal:
        figure.add_scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"color": "#8C8C8C", "dash": "dot", "width": 1}, showlegend=False, hoverinfo="skip"
        )
    for name, points, colour, dash, symbol in zip(names, lines, _COLOURS, ("solid", "dash"), ("circle", "square"), strict=False):
        figure.add_scatter(
            x=[a for a, _ in points],
            y=[b for _, b in points],
            # Curves have a point for every row.
            mode="lines+markers" if len(points) <= _MOST_MARKERS else "lines",
            name=name.replace("<", "&lt;"),
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 6},
            hovertemplate=f"{x} %{{x:.3f}}<br>{y} %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(
        height=280,
        margin={"l": 10, "r": 10, "t": 36, "b": 10},
        dragmode=False,
        showlegend=len(names) > 1,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": {"text": x}, "range": [-0.03, 1.03], "zeroline": False},
        yaxis={"title": {"text": y}, "range": [-0.03, 1.03], "zeroline": False},
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    return figure


# --- notes and files


def notes(evaluation: Evaluation) -> None:
    """What to know before the numbers are believed, and which rows were left out."""
    for report in evaluation.reports:
        who = f"**{escaped(report.model)}:** " if len(evaluation.reports) > 1 else ""
        for note in report.notes:
            st.caption(f":material/info: {who}{escaped(note)}")
    left_out = {(problem.number, problem.sentence) for report in evaluation.reports for problem in report.problems}
    if evaluation.comparison is not None:
        for note in evaluation.comparison.notes:
            st.caption(f":material/info: {escaped(note)}")
    if left_out:
        n = len({number for number, _ in left_out})
        title = f"{n} row{'s' if n != 1 else ''} left out; the rest was evaluated"
        with st.expander(title, icon=":material/warning:", key="evaluate_left_out"):
            table = pd.DataFrame(sorted(left_out), columns=["row", "why"])
            st.dataframe(
                table, hide_index=True, key="evaluate_left_out_rows", column_config={"row": st.column_config.NumberColumn(width=70)}
            )


def files(evaluation: Evaluation, why: Sequence[tuple[str, CellExplanation]]) -> None:
    """Downloads: a line a row of each model, and the report. `why`: explanations that are on the page, with the names of their models."""
    with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="small"):
        for place, report in enumerate(evaluation.reports):
            st.download_button(
                f"CSV of {escaped(report.model)}" if len(evaluation.reports) > 1 else "CSV",
                report.to_csv,
                file_name=f"{_stem(report.model)}.csv",
                mime="text/csv",
                icon=":material/download:",
                on_click="ignore",
                key=f"evaluate_csv_{place}",
                type="tertiary",
                help="One line a row: text, label, prediction, and the probability of every label.",
            )
        st.download_button(
            "Report",
            lambda: report_html(evaluation, why),
            file_name="-against-".join(_stem(report.model) for report in evaluation.reports) + ".html",
            mime="text/html",
            icon=":material/download:",
            on_click="ignore",
            key="evaluate_report",
            type="tertiary",
            help="A page with all tables, the wrong or differing rows, and the explained errors that were asked for; needs no other file.",
        )


def report_html(evaluation: Evaluation, why: Sequence[tuple[str, CellExplanation]]) -> str:
    more = [Table(f"{model}: {table.title}", table.header, table.rows) for model, explanation in why for table in explanation.tables()]
    return (evaluation.comparison or evaluation.reports[0]).to_html(more)


def _stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:] or "model"
