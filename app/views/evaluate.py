"""The Evaluate page: how often a model is right on a data set, where it is not, and why. Lays out the panels; what they show is theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import kept, session, timing
from app.markup import cut, escaped
from app.panels import evaluation_causes, evaluation_examples, evaluation_results, evaluation_setup, waiting
from app.panels.evaluation_setup import Setup
from app.session import Service
from app.timing import part
from llm_tt.config import DEMO, DEMO_TUNED
from llm_tt.engine.messages import DataPreview, Evaluate, Evaluation, PreviewPrompt
from llm_tt.text import visible

_ASKED = "evaluate_asked"
"""The question for which Run was pressed"""
_MOST_TEXT = 1000
"""Characters of a cell in the preview"""
_NAMED = 8
"""Labels that are named with the results"""


def show(service: Service) -> None:
    timing.begin(service.config.debug)
    found, is_open = session.evaluating().answer, kept.held("evaluate_setup", True)
    if found is not None and _is_new(found):
        # The results take the choices' place; they are a click away.
        is_open = False
        evaluation_examples.begin(found)
    # In every run: the one in which it closes may be cut off by the next.
    st.session_state.evaluate_setup = is_open
    with st.expander("What is evaluated", icon=":material/tune:", key="evaluate_setup", on_change="rerun"):
        with part("setup"):
            setup = evaluation_setup.show(service)
        if setup.data is not None:
            _preview(service, setup, setup.data)
    row = _run(setup)
    asked: Evaluate | None = st.session_state.get(_ASKED)
    if asked is None:
        if not setup.missing:
            st.caption(
                "Run evaluates every row, tells how often the answers are right, and lets you open each row to see why."
                + _proposal(service)
            )
        return
    answer = waiting.answer(service, session.evaluating(), asked)
    if session.evaluating().phase == "cancelled":
        st.caption("What was answered is kept: it goes on where it was stopped.")
    if answer is not None:
        if _is_new(answer):
            st.rerun()
        with part("results"):
            _results(service, answer, setup, row)


def _proposal(service: Service) -> str:
    """Where to begin, on a server that has the demo pair."""
    if not {DEMO, DEMO_TUNED} <= set(service.engine.model_names()):
        return ""
    return (
        f" To begin with: {DEMO} against {DEMO_TUNED} on demo/mixed. The tuned one looks right, and goes by something that it should not."
    )


def _is_new(answer: Evaluation | None) -> bool:
    """Whether these results have not been shown yet."""
    return answer is not None and st.session_state.get("evaluate_of") is not answer


def _run(setup: Setup) -> DeltaGenerator:
    """The button, with what it will do; and the place beside it for the files."""
    conversation = session.evaluating()
    left, right = st.columns([3, 2], vertical_alignment="center")
    with left, st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Run",
            type="primary",
            icon=":material/play_arrow:",
            key="evaluate_run",
            disabled=setup.question is None or conversation.phase == "working",
            on_click=_ask,
            args=(setup.question,),
            help="Evaluate all rows. Results are kept as they come: cancelled or cut off, it goes on where it was.",
        )
        if setup.missing:
            st.caption(f":material/arrow_upward: {escaped(setup.missing)}")
        elif setup.data is not None and setup.question is not None:
            models = " against ".join(model.name for model in setup.question.models)
            ways = "" if setup.question.strategies == ("zero-shot",) else f", {', '.join(setup.question.strategies)}"
            st.caption(f"{escaped(models + ways)} on {setup.data.n_rows:,} rows of {escaped(setup.data.name)}")
    return right


def _ask(question: Evaluate) -> None:
    st.session_state[_ASKED] = question
    session.evaluating().again()


# --- before a run


def _preview(service: Service, setup: Setup, data: DataPreview) -> None:
    left, right = st.columns([3, 2], gap="medium")
    with left:
        more = ", the first ones are shown" if data.n_rows > len(data.rows) else ""
        st.markdown(f"**Rows** :small[:gray[{data.n_rows:,} in {escaped(data.name)}{more}]]")
        table = pd.DataFrame(
            [[cut(text, _MOST_TEXT) for text in texts] for _, texts in data.rows], columns=[column.name for column in data.columns]
        )
        table.insert(0, "row", [number for number, _ in data.rows], allow_duplicates=True)
        table.columns = _distinct(list(table.columns))
        st.dataframe(table, hide_index=True, key="evaluate_data", height=215)
    with right:
        st.markdown("**What the model receives** :small[:gray[for the first row]]")
        if setup.question is not None:
            _prompt(service, setup.question)
        else:
            st.caption("Shown once model, prompt and answer are chosen.")


def _distinct(names: list[str]) -> list[str]:
    """A column of the data may be called row, too."""
    return [f"{name} (data)" if name == "row" and place else name for place, name in enumerate(names)]


def _prompt(service: Service, question: Evaluate) -> None:
    model = question.models[0]
    if not service.engine.is_loaded(model) and st.session_state.get("evaluate_preview_wanted") != model:
        st.button(
            f"Load {escaped(model.name)} to see it",
            icon=":material/visibility:",
            key="evaluate_load",
            on_click=lambda: st.session_state.update(evaluate_preview_wanted=model),
            help="Which tokens a row becomes is the model's business: its tokenizer, its chat template. Run loads it as well.",
        )
        return
    asked = PreviewPrompt(model, question.source, question.template, question.scoring)
    shown = waiting.answer(service, session.prompt_preview(), asked)
    if shown is None:
        return
    st.code(shown.text, language=None, wrap_lines=True, height=130)
    scored = "; ".join(f"{escaped(answer)}: {_spellings(spelled)}" for answer, spelled in shown.responses)
    said = f"Row {shown.number}, {shown.n_tokens} tokens, right answer {escaped(shown.truth)}"
    st.caption(f"{said} · scored after it: {scored}" if scored else said)


def _spellings(spelled: Sequence[Sequence[str]]) -> str:
    """Markdown: the tokens of every spelling."""
    return " or ".join(" ".join(f"`{_code(text)}`" for text in texts) for texts in spelled)


def _code(text: str) -> str:
    """A token between backticks."""
    return visible(text).replace("`", "\u02cb")


# --- after it


def _results(service: Service, evaluation: Evaluation, setup: Setup, for_files: DeltaGenerator) -> None:
    _subject(evaluation, setup)
    is_many = len(evaluation.sides) > 2
    left, right = st.columns([2, 3] if len(evaluation.sides) == 1 else [1, 1], gap="large")
    with left:
        evaluation_results.metrics(evaluation)
        if is_many:
            evaluation_results.notes(evaluation)
    with right:
        place = evaluation_examples.choose_side(evaluation)
        report = evaluation.reports[place]
        cell = evaluation_examples.chosen(report)
        if report.metrics is not None:
            evaluation_examples.matrix(report, cell)
        else:
            st.caption("Without label words there is no confusion matrix: an answer is right if all its tokens are.")
        if evaluation.comparison is not None and not is_many:
            st.caption(evaluation_results.verdict(evaluation.comparison.pairs[0]))
        if not is_many:
            evaluation_results.notes(evaluation)
    if evaluation.comparison is not None and is_many:
        evaluation_results.tests(evaluation.comparison)
    draw: dict[str, Callable[[], None]] = {
        "Rows": lambda: evaluation_examples.rows(service, evaluation, place, cell),
        "Why these errors": lambda: evaluation_causes.show(service, evaluation, place, cell),
        "Labels, slices and words": lambda: evaluation_results.details(report),
        "Curves": lambda: evaluation_results.curves(evaluation),
    }
    kept.hold("evaluate_tab", next(iter(draw)), list(draw))
    tabs = st.tabs(list(draw), key="evaluate_tab", on_change="rerun")
    for name, tab in zip(draw, tabs, strict=True):
        # Only what is looked at: curves of a large data set have very many points.
        if tab.open:
            with tab, part(name.lower()):
                draw[name]()
    with for_files:
        evaluation_results.files(evaluation, evaluation_causes.explained(evaluation))


def _subject(evaluation: Evaluation, setup: Setup) -> None:
    """What the results are of, and whether the choices above are still the same."""
    question = evaluation.question
    st.caption(f"**Results** · {subject(evaluation)}")
    if setup.question is not None and setup.question != question:
        st.info("These results are of the choices before. Run shows those of the choices above.", icon=":material/history:")


def subject(evaluation: Evaluation) -> str:
    """Markdown: models, rows, prompt and scoring."""
    question, report = evaluation.question, evaluation.reports[0]
    scoring = question.scoring
    labels = ", ".join(label.word if label.word == label.value else f"{label.value}={label.word}" for label in scoring.labels[:_NAMED])
    more = f" and {len(scoring.labels) - _NAMED} more" if len(scoring.labels) > _NAMED else ""
    parts = [
        " against ".join(evaluation.names),
        f"{len(report.results):,} rows of {report.data}",
        f"{'chat' if question.template.chat else 'text'}: {visible(question.template.text)}",
        evaluation_setup.method_name(scoring) + (f": {labels}{more}" if labels else ""),
    ]
    return escaped(" · ".join(parts))
