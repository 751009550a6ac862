"""The confusion matrix, whose cells are buttons; the rows of a cell, or those on which two models differ; the ways from a row to other pages."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from app import kept, navigation
from app.link import Prompt, View
from app.markup import cut, escaped, probability
from app.session import Service
from llm_tt.analysis.evaluation_report import EvaluationReport
from llm_tt.analysis.metrics import NO_LABEL
from llm_tt.analysis.rows import Row
from llm_tt.analysis.scoring import Result
from llm_tt.engine.messages import DataSource, Evaluation, PreviewPrompt, ReadRow, Side, TraceKey
from llm_tt.errors import LlmTtError
from llm_tt.text import visible

_MOST_BUTTONS = 8
"""Labels up to which each cell is a button; more are a table"""
_SHOWN = 500
"""Rows of a cell that are listed"""
_CELL = "evaluate_cell"
_SIDE = "evaluate_shown_side"
_MOST_TABS = 3
_OF_WHICH = "Of what the confusion matrix, the rows and everything below are."
_MOST_TEXT = 300
"""Characters of a row's text in the table; the row that is chosen is shown in full"""
_TALL = 600
"""Characters of a text that is shown in a box of its own"""
_DIFFERING = "evaluate_differing"
_ROW = "evaluate_row"
"""The number of the row that is shown in full"""


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix. `predicted` None: no label."""

    truth: str
    predicted: str | None

    @property
    def is_right(self) -> bool:
        return self.truth == self.predicted

    @property
    def name(self) -> str:
        return f"{self.truth} predicted as {self.predicted or NO_LABEL}"


def begin(evaluation: Evaluation) -> None:
    """A new evaluation: nothing of the last one is chosen."""
    st.session_state.evaluate_of = evaluation
    for key in (_CELL, _SIDE, _DIFFERING, _ROW):
        kept.forget(key)


def _worst(evaluation: Evaluation) -> int:
    """The side with the most errors."""
    return min(range(len(evaluation.sides)), key=lambda place: evaluation.reports[place].n_right)


def choose_side(evaluation: Evaluation) -> int:
    """Let the user choose of which side the details are."""
    if len(evaluation.sides) == 1:
        return 0
    places = list(range(len(evaluation.sides)))
    kept.hold(_SIDE, _worst(evaluation), places)
    if len(places) <= _MOST_TABS:
        st.segmented_control(
            "Details of",
            places,
            required=True,
            key=_SIDE,
            format_func=lambda place: escaped(evaluation.names[place]),
            label_visibility="collapsed",
            on_change=_forget_cell,
            help=_OF_WHICH,
        )
    else:
        st.selectbox(
            "Details of", places, key=_SIDE, format_func=lambda place: evaluation.names[place], on_change=_forget_cell, help=_OF_WHICH
        )
    return kept.held(_SIDE)


def _forget_cell() -> None:
    for key in (_CELL, _ROW):
        st.session_state.pop(key, None)


def chosen(report: EvaluationReport) -> Cell | None:
    """The cell that was clicked; else the one with most errors, else the first one with a row."""
    cell: Cell | None = st.session_state.get(_CELL)
    if cell is not None or report.metrics is None:
        return cell
    cells = [(Cell(truth, said), n) for truth, said, n in _counts(report) if n]
    wrong = [pair for pair in cells if not pair[0].is_right]
    return max(wrong or cells, key=lambda pair: pair[1])[0]


def _counts(report: EvaluationReport) -> list[tuple[str, str | None, int]]:
    m = report.metrics
    assert m is not None
    return [
        (truth, None if said == NO_LABEL else said, n)
        for truth, row in zip(m.labels, m.confusion, strict=True)
        for said, n in zip(m.predicted_names, row, strict=True)
    ]


# --- the matrix


def matrix(report: EvaluationReport, cell: Cell | None) -> None:
    """Rows are labels, columns predictions; a click lists the rows of a cell."""
    m = report.metrics
    assert m is not None
    st.caption("Rows: the label. Columns: the prediction. Click a cell for its rows.")
    if len(m.labels) > _MOST_BUTTONS:
        _as_table(report)
        return
    st.html(_tints(report, cell))
    widths = [2, *[3] * len(m.predicted_names)]
    with st.container(key="evaluate_matrix", gap="small"):
        for column, name in zip(st.columns(widths), ("", *m.predicted_names), strict=True):
            column.markdown(f":small[**{escaped(name)}**]" if name else "", text_alignment="center")
        for place, (truth, counts) in enumerate(zip(m.labels, m.confusion, strict=True)):
            head, *cells = st.columns(widths, vertical_alignment="center")
            head.markdown(f":small[**{escaped(truth)}**]", text_alignment="right")
            for other, (said, n, column) in enumerate(zip(m.predicted_names, counts, cells, strict=True)):
                this = Cell(truth, None if said == NO_LABEL else said)
                column.button(
                    f"{n}",
                    key=f"evaluate_cell_{place}_{other}",
                    width="stretch",
                    disabled=n == 0,
                    on_click=_choose,
                    args=(this,),
                    help=f"{n} rows of {escaped(this.name)}.",
                )


def _choose(cell: Cell) -> None:
    st.session_state[_CELL] = cell
    for key in (_DIFFERING, _ROW):
        kept.forget(key)


def _tints(report: EvaluationReport, cell: Cell | None) -> str:
    """CSS: right cells blue, wrong ones orange, the stronger the larger their part of the label's rows; the chosen one framed."""
    m = report.metrics
    assert m is not None
    rules = ["[class*='st-key-evaluate_cell_'] button { min-height: 3rem; font-variant-numeric: tabular-nums; }"]
    for place, (truth, counts) in enumerate(zip(m.labels, m.confusion, strict=True)):
        for other, (said, n) in enumerate(zip(m.predicted_names, counts, strict=True)):
            colour = "0,114,178" if truth == said else "213,94,0"
            # Also of a cell that is pointed at, or was just clicked.
            style = f"background: rgba({colour},{0.6 * n / max(sum(counts), 1):.3f}) !important;"
            if cell == Cell(truth, None if said == NO_LABEL else said):
                style += " box-shadow: 0 0 0 3px #E69F00 !important;"
            rules.append(f".st-key-evaluate_cell_{place}_{other} button {{ {style} }}")
    return "<style>" + "\n".join(rules) + "</style>"


def _as_table(report: EvaluationReport) -> None:
    m = report.metrics
    assert m is not None
    table = pd.DataFrame(m.confusion, columns=list(m.predicted_names))
    table.insert(0, "label", list(m.labels))
    st.dataframe(
        table,
        hide_index=True,
        key="evaluate_matrix_table",
        on_select=lambda: _take_cell(report),
        selection_mode="single-cell",
        height=400,
    )


def _take_cell(report: EvaluationReport) -> None:
    m = report.metrics
    assert m is not None
    for row, name in st.session_state.evaluate_matrix_table.selection.cells:
        if name in m.predicted_names:
            _choose(Cell(m.labels[row], None if name == NO_LABEL else name))


# --- the rows


def numbers(evaluation: Evaluation, report: EvaluationReport, cell: Cell | None) -> tuple[str, tuple[int, ...]]:
    """Which rows are listed: a title and their numbers."""
    if evaluation.comparison is not None and kept.held(_DIFFERING, False):
        found = evaluation.comparison.differing
        return f"{len(found)} rows answered differently", found
    if cell is None:
        wrong = tuple(result.number for result in report.results if not result.is_right)
        return f"{len(wrong)} rows that are wrong", wrong
    found = report.cell(cell.truth, cell.predicted)
    return f"{len(found)} rows of {cell.name}", found


def rows(service: Service, evaluation: Evaluation, place: int, cell: Cell | None) -> None:
    """The rows of the cell as a table, and the chosen one beside it."""
    report = evaluation.reports[place]
    with st.container(horizontal=True, vertical_alignment="center"):
        heading = st.empty()
        if evaluation.comparison is not None:
            kept.hold(_DIFFERING, False)
            st.toggle(
                f"Rows answered differently ({len(evaluation.comparison.differing)})",
                key=_DIFFERING,
                help="List the rows on which any two differ, in place of those of the cell.",
            )
    title, found = numbers(evaluation, report, cell)
    heading.markdown(f"**{escaped(title)}**" + (f" · the first {_SHOWN} are listed" if len(found) > _SHOWN else ""))
    if not found:
        st.caption("There is none. Click another cell." if cell is not None else "There is none.")
        return
    left, right = st.columns([3, 2], gap="medium")
    with left, st.container(key="evaluate_rows"):
        listed = found[:_SHOWN]
        selection = st.dataframe(
            table_of(evaluation, listed),
            hide_index=True,
            # One for each list: the browser keeps which line is chosen, whatever stands in it.
            key=f"evaluate_rows_{zlib.crc32(repr(listed).encode())}",
            on_select="rerun",
            selection_mode="single-row",
            height=min(38 + 35 * len(listed), 320),
            column_config={
                "row": st.column_config.NumberColumn(width=60),
                **{
                    f"p, {name}": st.column_config.NumberColumn("p", format="%.3f", width=65, help="How probable what it says is.")
                    for name in _names(evaluation)
                },
            },
        )
        picked = selection["selection"]["rows"]
        if picked and picked[0] < len(listed):
            st.session_state[_ROW] = listed[picked[0]]
        # The one that was looked at last, also after a visit to another page.
        number = st.session_state.get(_ROW)
        number = number if number in listed else listed[0]
    with right:
        _row(service, evaluation, place, number)


def table_of(evaluation: Evaluation, listed: Sequence[int]) -> pd.DataFrame:
    """Number and label of rows, what each model said, with the probability of that, and the text."""
    first = evaluation.reports[0]
    texts = dict(zip((result.number for result in first.results), first.texts, strict=True))
    names = _names(evaluation)
    by_model = [{result.number: result for result in report.results} for report in evaluation.reports]
    lines = []
    for number in listed:
        found = [results.get(number) for results in by_model]
        some = next(result for result in found if result is not None)
        line: dict[str, object] = {"row": number, "label": some.truth}
        for name, result in zip(names, found, strict=True):
            line[name] = _said(result)
            line[f"p, {name}"] = None if result is None or result.probabilities is None else max(result.probabilities)
        lines.append({**line, "text": cut(texts.get(number, ""), _MOST_TEXT)})
    table = pd.DataFrame(lines)
    empty = [f"p, {name}" for name in names if all(line[f"p, {name}"] is None for line in lines)]
    return table.drop(columns=empty)


def _names(evaluation: Evaluation) -> tuple[str, ...]:
    return ("predicted",) if evaluation.comparison is None else evaluation.names


def _said(result: Result | None) -> str:
    if result is None:
        return "(left out)"
    return result.predicted if result.predicted is not None else NO_LABEL


def _row(service: Service, evaluation: Evaluation, place: int, number: int) -> None:
    """One row in full, and its ways to the other pages."""
    source, report = evaluation.question.source, evaluation.reports[place]
    try:
        rows = [service.engine.answer(ReadRow(source, side.template, number)) for side in evaluation.sides]
    except LlmTtError as error:
        st.error(escaped(str(error)), icon=":material/error:")
        return
    results = [next((r for r in one.results if r.number == number), None) for one in evaluation.reports]
    texts = dict(zip((r.number for r in report.results), report.texts, strict=True))
    text, side = texts.get(number), evaluation.sides[place]
    with st.container(border=True, gap="small"):
        st.markdown(f"**Row {number}**")
        if text is not None and text != side.template.fill(Row(number, dict(rows[place].values))):
            st.warning("The data set has changed since: this row is another one now. Run again.", icon=":material/warning:")
            return
        with st.container(height=_TALL // 3 if len(text or "") > _TALL else "content", border=False):
            st.text(text or "")
        for one, result in zip(evaluation.sides, results, strict=True):
            if result is not None:
                st.markdown(answer_line(one.name, result, one.scoring.values))
        used = (*evaluation.question.template.columns, side.scoring.column)
        others = [(name, value) for name, value in rows[place].values if name not in used]
        if others:
            st.caption(" · ".join(f"{escaped(name)}: {escaped(cut(value, 80))}" for name, value in others[:8]))
        with st.container(horizontal=True, gap="small"):
            for index, (one, result) in enumerate(zip(evaluation.sides, results, strict=True)):
                if (
                    st.button(
                        f"Explore {escaped(one.name)}" if len(evaluation.sides) > 1 else "Explore",
                        icon=":material/account_tree:",
                        key=f"evaluate_explore_{index}",
                        disabled=result is None,
                        help=f"The routes to the answer of {escaped(one.name)}, for this very prompt.",
                    )
                    and result is not None
                ):
                    navigation.open_explore(view(service, source, one, result, rows[index].prompt))
            if len(evaluation.sides) > 1:
                first, second = compared(place, len(evaluation.sides))
                one, other = evaluation.sides[first], evaluation.sides[second]
                if st.button(
                    "Compare",
                    icon=":material/compare:",
                    key="evaluate_compare",
                    help=f"{escaped(one.name)} and {escaped(other.name)} on this very row, side by side.",
                ):
                    navigation.open_compare(TraceKey(one.model, rows[first].prompt), TraceKey(other.model, rows[second].prompt))


def compared(place: int, n_sides: int) -> tuple[int, int]:
    """Which two sides go into Compare: the first one against the one whose details are shown, or against the second."""
    return (0, place) if 0 < place < n_sides else (0, 1)


def answer_line(name: str, result: Result, labels: Sequence[str]) -> str:
    """Markdown: what a side answered to a row, and how sure it was."""
    mark = ":material/check_circle:" if result.is_right else ":material/cancel:"
    said = NO_LABEL if result.predicted is None else result.predicted
    line = f"{mark} **{escaped(name)}** says **{escaped(said)}**, the label is {escaped(result.truth)}"
    if result.probabilities is not None:
        line += " · " + ", ".join(f"{escaped(label)} {probability(p)}" for label, p in zip(labels, result.probabilities, strict=True))
    if result.n_tokens is not None:
        line += f" · {result.n_right_tokens} of {result.n_tokens} tokens right"
    if result.text is not None:
        line += f" · text: {escaped(visible(result.text[:200]))}"
    if result.failure is not None:
        line += f" · {escaped(result.failure)}"
    return line


def view(service: Service, source: DataSource, side: Side, result: Result, prompt: Prompt) -> View:
    """A row as Explore shows it: its prompt, and why the predicted label's first token and not the right one's."""
    token, contrast = tokens(service, source, side, result)
    return View(model=side.model.name, device=side.model.device, dtype=side.model.dtype, prompt=prompt, token=token, contrast=contrast)


def tokens(service: Service, source: DataSource, side: Side, result: Result) -> tuple[str | None, str | None]:
    """The first tokens of the predicted label and of the right one (of a right row: of the runner-up), as the boxes of Explore hold them.

    None where the label does not follow the prompt: after reasoning, or somewhere in a text."""
    scoring = side.scoring
    if scoring.kind != "labels" or scoring.reasoning is not None or result.predicted is None or result.probabilities is None:
        return None, None
    against = result.truth
    if result.is_right:
        ranked = sorted(zip(result.probabilities, scoring.values, strict=True), reverse=True)
        against = next(label for _, label in ranked if label != result.predicted)
    words = {label.value: label.word for label in scoring.labels}
    if not service.engine.is_loaded(side.model):
        # To tell the tokens it would be loaded while this page stands still; Explore finds the token of a plain word.
        return words[result.predicted], words[against]
    preview = service.engine.answer(PreviewPrompt(side.model, source, side.template, scoring, result.number))
    # Of a label's spellings the one of fewest tokens: the one that the tokenizer knows as a word.
    first = {word: min(spelled, key=len)[0] for word, spelled in preview.responses}
    return visible(first[words[result.predicted]]), visible(first[words[against]])
