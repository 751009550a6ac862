"""What an evaluation found: one table of metrics, labels, slices, words, curves, and the files. Every number is the report's own text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.markup import escaped, plotly_text
from llm_tt.analysis.charts import COLOURS, Chart, charts_of
from llm_tt.analysis.errors import CellExplanation
from llm_tt.analysis.evaluation_report import EvaluationReport, Table
from llm_tt.analysis.strategy_report import PairTest, StrategyComparison
from llm_tt.engine.messages import Evaluation

_WHOLE = re.compile(r"-?\d+")
# Lines are told apart without their colours too.
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")
_ROW_HEIGHT = 29
_MOST_MARKERS = 12


def metrics(evaluation: Evaluation) -> None:
    """The first table, of one side or of several beside each other."""
    show_table(metrics_table(evaluation), "evaluate_metrics", height="content")


def metrics_table(evaluation: Evaluation) -> Table:
    return evaluation.reports[0].tables()[0] if evaluation.comparison is None else evaluation.comparison.metrics_table()


def tests(comparison: StrategyComparison) -> None:
    """Whether the differences of more than two are more than chance."""
    table = comparison.pairs_table()
    st.markdown(f"**{escaped(table.title)}**")
    show_table(table, "evaluate_pairs", height="content" if len(table.rows) <= 6 else 220)


def verdict(pair: PairTest) -> str:
    """McNemar's test in words, as Markdown."""
    test, (first, second) = pair.test, map(escaped, pair.names)
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
    charts = charts_of_all(evaluation)
    if not charts:
        st.caption("Curves need the labels' probabilities: score by label words.")
        return
    for column, chart in zip(st.columns(len(charts)), charts, strict=True):
        with column:
            st.markdown(f"**{escaped(chart.title)}**")
            st.plotly_chart(
                figure(chart),
                width="stretch",
                key=f"evaluate_curve_{chart.kind}",
                config={"displayModeBar": False},
                alt=f"{chart.title}: {chart.y} against {chart.x}, a line for each of {', '.join(line.name for line in chart.lines)}.",
            )
            for line in chart.lines:
                st.caption(f"{escaped(line.name)}: {escaped(line.summary)}")


def charts_of_all(evaluation: Evaluation) -> tuple[Chart, ...]:
    if evaluation.comparison is not None:
        return evaluation.comparison.charts()
    metrics = evaluation.reports[0].metrics
    return () if metrics is None else charts_of(metrics)


def figure(chart: Chart) -> go.Figure:
    """Curves over a unit square; those of calibration with the intervals of their points."""
    made = go.Figure()
    if chart.diagonal:
        grey = {"color": "#8C8C8C", "dash": "dot", "width": 1}
        made.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=grey, showlegend=False, hoverinfo="skip")
    for place, line in enumerate(chart.lines):
        x, y = [x for x, _ in line.points], [y for _, y in line.points]
        drawn = {"color": COLOURS[place % len(COLOURS)], "dash": _DASHES[place % len(_DASHES)]}
        errors = None
        if line.intervals:
            above = [high - value for value, (_, high) in zip(y, line.intervals, strict=True)]
            below = [value - low for value, (low, _) in zip(y, line.intervals, strict=True)]
            errors = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}
        made.add_scatter(
            x=x,
            y=y,
            error_y=errors,
            # Curves have a point for every row.
            mode="lines+markers" if len(x) <= _MOST_MARKERS else "lines",
            name=plotly_text(line.name),
            line={**drawn, "width": 2, "shape": "hv" if chart.steps else "linear"},
            marker={"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 7},
            text=[plotly_text(hint) for hint in line.hints],
            hovertemplate="%{text}<extra></extra>",
        )
    made.update_layout(
        height=300,
        margin={"l": 10, "r": 10, "t": 36, "b": 10},
        dragmode=False,
        showlegend=len(chart.lines) > 1,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": {"text": chart.x}, "range": [-0.03, 1.03], "zeroline": False},
        yaxis={"title": {"text": chart.y}, "range": [-0.03, 1.03], "zeroline": False},
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    return made


# --- notes and files


def notes(evaluation: Evaluation) -> None:
    """What to know before the numbers are believed, and which rows were left out."""
    for side, report in zip(evaluation.sides, evaluation.reports, strict=True):
        who = f"**{escaped(side.name)}:** " if len(evaluation.sides) > 1 else ""
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
    """Downloads: the report, and a line a row of each side. `why`: explanations that are on the page, with the names of their sides."""
    stem = "-against-".join(map(_stem, evaluation.names))[:120]
    with (
        st.container(horizontal=True, horizontal_alignment="right"),
        st.popover("Save", icon=":material/download:", key="evaluate_save", help="The report as a page, and every row as a table."),
        st.container(gap="small"),
    ):
        _file(
            "Report",
            lambda: report_html(evaluation, why),
            f"{stem}.html",
            "text/html",
            "evaluate_report",
            "A page with all tables, curves and errors; needs no other file.",
        )
        if evaluation.comparison is not None:
            what = "CSV, one line a row: what each predicted, and whether it is right."
            _file("All sides", evaluation.comparison.to_csv, f"{stem}.csv", "text/csv", "evaluate_csv", what)
        for place, (name, report) in enumerate(zip(evaluation.names, evaluation.reports, strict=True)):
            what = "CSV, one line a row: label, prediction, probabilities, text."
            _file(f"Rows of {name}", report.to_csv, f"{_stem(name)}.csv", "text/csv", f"evaluate_csv_{place}", what)


def _file(label: str, make: Callable[[], str], file_name: str, mime: str, key: str, what: str) -> None:
    st.download_button(
        f"**{escaped(label)}** :small[:gray[{what}]]",
        make,
        file_name=file_name,
        mime=mime,
        on_click="ignore",
        key=key,
        type="tertiary",
        icon=":material/download:",
    )


def report_html(evaluation: Evaluation, why: Sequence[tuple[str, CellExplanation]]) -> str:
    more = [replace(table, title=f"{name}: {table.title}") for name, explanation in why for table in explanation.tables()]
    return (evaluation.comparison or evaluation.reports[0]).to_html(more)


def _stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:] or "model"
