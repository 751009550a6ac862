"""Errors, explained: on which words the flow of a cell's rows rests, and which heads and FFN blocks differ from rows that are right."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app import session
from app.markup import escaped
from app.panels import sources, waiting
from app.panels.evaluation_examples import Cell
from app.session import Service
from llm_tt.analysis.errors import CellExplanation, WordFlow
from llm_tt.analysis.evaluation_report import EvaluationReport
from llm_tt.engine.messages import Evaluation, ExplainErrors

_ASKED = "evaluate_why"
_LEAST_SHARE = 0.002
"""Words with less of the flow, in wrong rows and right ones, are not in the strips"""
_MOST_WORDS = 60
_PARTS = 12
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def show(service: Service, evaluation: Evaluation, place: int, cell: Cell | None) -> None:
    """Offer to explain the errors of a cell, or show why they are there."""
    report = evaluation.reports[place]
    why_not = impossible(report, cell)
    if why_not or cell is None or cell.predicted is None:
        st.caption(why_not)
        return
    question = ExplainErrors(evaluation.question, place, cell.truth, cell.predicted)
    if st.session_state.get(_ASKED) != question:
        n_wrong, n_right = (min(len(report.cell(cell.truth, said)), question.most) for said in (cell.predicted, cell.truth))
        st.button(
            "Explain these errors",
            icon=":material/troubleshoot:",
            key="evaluate_explain",
            on_click=_ask,
            args=(question,),
            help=f"Traces {n_wrong} of the rows of {escaped(cell.name)}, and {n_right} of the same label that are right: which words their routes "
            "rest on, and which heads and FFN blocks push to the wrong label.",
        )
        return
    found = waiting.answer(service, session.explaining_errors(), question)
    if found is not None:
        draw(found, report)


def explained(evaluation: Evaluation) -> list[tuple[str, CellExplanation]]:
    """The errors of this evaluation that were explained last, with the name of their side."""
    asked: ExplainErrors | None = st.session_state.get(_ASKED)
    conversation = session.explaining_errors()
    if asked is None or asked.evaluate != evaluation.question or conversation.question != asked or conversation.answer is None:
        return []
    return [(evaluation.names[asked.side], conversation.answer)]


def impossible(report: EvaluationReport, cell: Cell | None) -> str:
    """Why the errors of a cell cannot be explained; empty where they can."""
    if report.scoring.kind != "labels":
        return "Errors are explained of an evaluation by label words. Choose that under Scored by, and run again."
    if report.scoring.reasoning is not None:
        return "Errors are explained of answers that follow the prompt itself, not the model's reasoning. Ask zero-shot or few-shot."
    if cell is None or cell.is_right or cell.predicted is None:
        return "Click a cell of errors in the confusion matrix: its rows are compared with those of the same label that are right."
    if not report.cell(cell.truth, cell.predicted):
        return f"No row of {escaped(cell.name)}. Click another cell."
    if not report.cell(cell.truth, cell.truth):
        return f"No row of {escaped(cell.truth)} is right, so that there is nothing to compare with. Evaluate on more rows."
    return ""


def _ask(question: ExplainErrors) -> None:
    st.session_state[_ASKED] = question
    session.explaining_errors().again()


def draw(found: CellExplanation, report: EvaluationReport) -> None:
    st.markdown(f"**{escaped(found.tables()[0].title)}**")
    st.html(strips(found, report))
    st.caption(sentence(found))
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.markdown("**Words that the wrong rows rest on more than the right ones**")
        st.dataframe(words_frame(found), hide_index=True, key="evaluate_why_words", height=320, column_config=_word_columns())
    with right:
        st.markdown(f"**Heads and FFN blocks: what they add to the lead of {escaped(found.predicted)} over {escaped(found.truth)}**")
        columns = {name: st.column_config.NumberColumn(format="%+.3f") for name in ("wrong", "right", "difference")}
        st.dataframe(parts_frame(found), hide_index=True, key="evaluate_why_parts", height=320, column_config=columns)
    st.caption(
        "A difference need not be a cause: a word that many wrong rows share for another reason is listed as well. Open a row in Explore, change "
        "the word, and see whether the answer changes."
    )


def sentence(found: CellExplanation) -> str:
    """Markdown: the word and the part that differ most."""
    said = ""
    if found.words and found.words[0].difference > 0:
        word = found.words[0]
        said = (
            f"The wrong rows rest on **{escaped(word.word)}** more than the right ones: {word.wrong:.1%} of the flow against {word.right:.1%}; it "
            f"brings {_signed(word.effect_wrong)} logits to the lead of {escaped(found.predicted)} over {escaped(found.truth)}. "
        )
    if found.parts:
        part = found.parts[0]
        said += f"The part that differs most is **{part.name}**: {_signed(part.wrong)} in wrong rows, {_signed(part.right)} in right ones."
    return said


def strips(found: CellExplanation, report: EvaluationReport) -> str:
    """HTML without scripts: the mean share of the flow that ends in each word, in wrong rows and in right ones, in the order of the texts."""
    words = in_order(found, report)
    most = max((share for word in words for share in (word.wrong, word.right)), default=0.0) or 1.0
    lines = []
    for name, shares in (("wrong rows", [word.wrong for word in words]), ("right rows", [word.right for word in words])):
        spans = "".join(
            sources.tinted(
                f"{word.word}: {share:.1%} of the flow in {name}, on average", word.word, None, sources.BLUE, sources.MOST * share / most
            )
            for word, share in zip(words, shares, strict=True)
        )
        style = "line-height:1.75;font-family:monospace;font-size:0.85rem;overflow-wrap:anywhere;max-height:7em;overflow-y:auto"
        label = f'<div style="line-height:1.75;white-space:nowrap;font-size:0.85rem">{html.escape(name)}</div>'
        lines.append(f'{label}<div role="list" aria-label="Flow in {name}" style="{style}">{spans}</div>')
    grid = "display:grid;grid-template-columns:auto 1fr;gap:0.35em 0.8em"
    return f'<div data-testid="why-strips" style="{grid}">{"".join(lines)}</div>'


def in_order(found: CellExplanation, report: EvaluationReport) -> list[WordFlow]:
    """The words with a share of the flow, ordered by where they mostly stand in the texts."""
    chosen = {*found.wrong, *found.right}
    places: dict[str, list[float]] = {}
    for result, text in zip(report.results, report.texts, strict=True):
        if result.number in chosen:
            for match in _WORD.finditer(text):
                places.setdefault(match[0].casefold(), []).append(match.start() / max(len(text), 1))
    shown = [word for word in found.words if max(word.wrong, word.right) >= _LEAST_SHARE]
    shown = sorted(shown, key=lambda word: -max(word.wrong, word.right))[:_MOST_WORDS]
    return sorted(shown, key=lambda word: _mean(places.get(word.word, ())))


def _mean(values: Sequence[float]) -> float:
    """Words of the chat template are in no text; they mostly stand at the end."""
    return sum(values) / len(values) if values else 2.0


def words_frame(found: CellExplanation) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "word": [word.word for word in found.words],
            "wrong": [word.wrong for word in found.words],
            "right": [word.right for word in found.words],
            "effect_wrong": [word.effect_wrong for word in found.words],
            "effect_right": [word.effect_right for word in found.words],
            "n_wrong": [word.n_wrong for word in found.words],
            "n_right": [word.n_right for word in found.words],
        }
    )


def _word_columns() -> dict[str, Any]:
    number = st.column_config.NumberColumn
    effect = "What all heads bring from the word to the answer, in logits of the predicted label's first token over the right one's."
    return {
        "wrong": number("flow, wrong", format="%.3f", help="Share of the routes' flow that ends in the word; 0 in a row without it."),
        "right": number("flow, right", format="%.3f", help="The same over the rows that are right."),
        "effect_wrong": number("effect, wrong", format="%+.3f", help=effect),
        "effect_right": number("effect, right", format="%+.3f", help=effect),
        "n_wrong": number("wrong rows", help="Wrong rows that have the word."),
        "n_right": number("right rows", help="Right rows that have the word."),
    }


def parts_frame(found: CellExplanation) -> pd.DataFrame:
    shown = found.parts[:_PARTS]
    return pd.DataFrame(
        {
            "part": [part.name for part in shown],
            "wrong": [part.wrong for part in shown],
            "right": [part.right for part in shown],
            "difference": [part.difference for part in shown],
        }
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\u2212")
