"""The confusion matrix, whose cells are buttons; the rows of a cell, or those on which two models differ; the ways from a row to other pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from app import kept, navigation
from app.link import View
from app.markup import escaped, probability
from app.session import Service
from llm_tt.analysis.evaluation_report import EvaluationReport
from llm_tt.analysis.metrics import NO_LABEL
from llm_tt.analysis.scoring import Result
from llm_tt.engine.messages import Evaluation, ModelKey, PreviewPrompt, ReadRow, TraceKey
from llm_tt.errors import LlmTtError
from llm_tt.text import visible

_MOST_BUTTONS = 8
"""Labels up to which each cell is a button; more are a table"""
_SHOWN = 500
"""Rows of a cell that are listed"""
_CELL = "evaluate_cell"
_MODEL = "evaluate_shown_model"
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
    for key in (_CELL, _MODEL, _DIFFERING, "evaluate_rows", _ROW):
        kept.forget(key)


def _worst(evaluation: Evaluation) -> int:
    """The model with more errors."""
    return min((0, 1), key=lambda place: evaluation.reports[place].n_right)


def choose_model(evaluation: Evaluation) -> int:
    """Let the user choose of which model the details are."""
    if len(evaluation.reports) == 1:
        return 0
    assert evaluation.comparison is not None
    names = evaluation.comparison.names
    kept.restore(_MODEL, _worst(evaluation), (0, 1))
    st.segmented_control(
        "Details of",
        [0, 1],
        required=True,
        key=_MODEL,
        format_func=lambda place: names[place],
        label_visibility="collapsed",
        on_change=_forget_cell,
        help="Of which model the confusion matrix, the rows and everything below are.",
    )
    return kept.keep(_MODEL)


def _forget_cell() -> None:
    for key in (_CELL, "evaluate_rows", _ROW):
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
    for key in (_DIFFERING, "evaluate_rows", _ROW):
        kept.forget(key)


def _tints(report: EvaluationReport, cell: Cell | None) -> str:
    """CSS: right cells blue, wrong ones orange, the stronger the larger their part of the label's rows; the chosen one framed."""
    m = report.metrics
    assert m is not None
    rules = ["[class*='st-key-evaluate_cell_'] button { min-height: 3rem; font-variant-numeric: tabular-nums; }"]
    for place, (truth, counts) in enumerate(zip(m.labels, m.confusion, strict=True)):
        for other, (said, n) in enumerate(zip(m.predicted_names, counts, strict=True)):
            colour = "0,114,178" if truth == said else "213,94,0"
            style = f"background: rgba({colour},{0.6 * n / max(sum(counts), 1):.3f});"
            if cell == Cell(truth, None if said == NO_LABEL else said):
                style += " outline: 3px solid #E69F00; outline-offset: 1px;"
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
    if evaluation.comparison is not None and kept.value_of(_DIFFERING, False):
        found = evaluation.comparison.differing
        return f"{len(found)} rows that the two answer differently", found
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
            kept.restore(_DIFFERING, False)
            st.toggle(
                f"Rows answered differently ({len(evaluation.comparison.differing)})",
                key=_DIFFERING,
                help="List the rows on which the two models differ, in place of those of the cell.",
            )
            kept.keep(_DIFFERING)
    title, found = numbers(evaluation, report, cell)
    heading.markdown(f"**{escaped(title)}**" + (f" · the first {_SHOWN} are listed" if len(found) > _SHOWN else ""))
    if not found:
        st.caption("There is none. Click another cell." if cell is not None else "There is none.")
        return
    left, right = st.columns([3, 2], gap="medium")
    with left:
        listed = found[:_SHOWN]
        selection = st.dataframe(
            table_of(evaluation, listed),
            hide_index=True,
            key="evaluate_rows",
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
        lines.append({**line, "text": texts.get(number, "")})
    table = pd.DataFrame(lines)
    empty = [f"p, {name}" for name in names if all(line[f"p, {name}"] is None for line in lines)]
    return table.drop(columns=empty)


def _names(evaluation: Evaluation) -> tuple[str, ...]:
    if evaluation.comparison is not None:
        return evaluation.comparison.names
    return ("predicted",)


def _said(result: Result | None) -> str:
    if result is None:
        return "(left out)"
    return result.predicted if result.predicted is not None else NO_LABEL


def _row(service: Service, evaluation: Evaluation, place: int, number: int) -> None:
    """One row in full, and its ways to the other pages."""
    question = evaluation.question
    try:
        row = service.engine.answer(ReadRow(question.source, question.template, number))
    except LlmTtError as error:
        st.error(escaped(str(error)), icon=":material/error:")
        return
    results = [next((r for r in report.results if r.number == number), None) for report in evaluation.reports]
    with st.container(border=True, gap="small"):
        st.markdown(f"**Row {number}**")
        texts = dict(zip((r.number for r in evaluation.reports[place].results), evaluation.reports[place].texts, strict=True))
        st.text(texts.get(number, ""))
        for model, result in zip(question.models, results, strict=True):
            if result is not None:
                st.markdown(answer_line(model, result, evaluation.reports[0].scoring.values))
        others = [(name, value) for name, value in row.values if name not in (*question.template.columns, question.scoring.column)]
        if others:
            st.caption(" · ".join(f"{escaped(name)}: {escaped(value[:80])}" for name, value in others[:8]))
        prompt = row.prompt
        with st.container(horizontal=True, gap="small"):
            for index, (model, result) in enumerate(zip(question.models, results, strict=True)):
                if (
                    st.button(
                        f"Explore {escaped(model.name)}" if len(question.models) > 1 else "Explore",
                        icon=":material/account_tree:",
                        key=f"evaluate_explore_{index}",
                        disabled=result is None,
                        help=f"The routes of {escaped(model.name)} to its answer, for this very prompt.",
                    )
                    and result is not None
                ):
                    navigation.open_explore(view(service, evaluation, model, number, result, prompt))
            if len(question.models) == 2 and st.button(
                "Compare",
                icon=":material/compare:",
                key="evaluate_compare",
                help="Both models on this very prompt, side by side.",
            ):
                navigation.open_compare(TraceKey(question.models[0], prompt), TraceKey(question.models[1], prompt))


def answer_line(model: ModelKey, result: Result, labels: Sequence[str]) -> str:
    """Markdown: what a model answered to a row, and how sure it was."""
    mark = ":material/check_circle:" if result.is_right else ":material/cancel:"
    said = NO_LABEL if result.predicted is None else result.predicted
    line = f"{mark} **{escaped(model.name)}** says **{escaped(said)}**, the label is {escaped(result.truth)}"
    if result.probabilities is not None:
        line += " · " + ", ".join(f"{escaped(label)} {probability(p)}" for label, p in zip(labels, result.probabilities, strict=True))
    if result.n_tokens is not None:
        line += f" · {result.n_right_tokens} of {result.n_tokens} tokens right"
    if result.text is not None:
        line += f" · text: {escaped(visible(result.text[:200]))}"
    if result.failure is not None:
        line += f" · {escaped(result.failure)}"
    return line


def view(service: Service, evaluation: Evaluation, model: ModelKey, number: int, result: Result, prompt: object) -> View:
    """A row as Explore shows it: its prompt, and why the predicted label's first token and not the right one's."""
    token, contrast = tokens(service, evaluation, model, number, result)
    return View(model=model.name, device=model.device, dtype=model.dtype, prompt=prompt, token=token, contrast=contrast)  # type: ignore[arg-type]


def tokens(service: Service, evaluation: Evaluation, model: ModelKey, number: int, result: Result) -> tuple[str | None, str | None]:
    """The first tokens of the predicted label and of the right one (of a right row: of the runner-up), as the boxes of Explore hold them."""
    scoring, question = evaluation.question.scoring, evaluation.question
    if scoring.kind != "labels" or result.predicted is None or result.probabilities is None:
        return None, None
    against = result.truth
    if result.is_right:
        ranked = sorted(zip(result.probabilities, scoring.values, strict=True), reverse=True)
        against = next(label for _, label in ranked if label != result.predicted)
    words = {label.value: label.word for label in scoring.labels}
    if not service.engine.is_loaded(model):
        # To tell the tokens it would be loaded while this page stands still; Explore finds the token of a plain word.
        return words[result.predicted], words[against]
    preview = service.engine.answer(PreviewPrompt(model, question.source, question.template, scoring, number))
    # Of a label's spellings the one of fewest tokens: the one that the tokenizer knows as a word.
    first = {word: min(spelled, key=len)[0] for word, spelled in preview.responses}
    return visible(first[words[result.predicted]]), visible(first[words[against]])
