"""The Compare page: one prompt on two models, or two prompts on one; what differs in prediction, flow, effects, streams, answers and weights."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app import navigation, session
from app.markup import escaped
from app.panels import answers, both, changes, compare_sidebar, difference, tuning, waiting
from app.panels.compare_sidebar import Choices
from app.session import Service
from llm_tt.analysis.comparison import Comparison
from llm_tt.engine.messages import CompareTraces, TraceKey

_STYLE = """<style>
.st-key-compare_strongest button { min-height: 1.8rem; text-align: left; }
.st-key-compare_pruning { gap: 0.5rem 1.25rem; }
.st-key-compare_pruning .st-key-compare_threshold { min-width: 7rem; flex: 1 1 7rem; }
@media (max-width: 1200px) {
  .st-key-compare_mode button { padding-inline: 0.4rem; }
  .st-key-compare_pruning { gap: 0.4rem 0.6rem; }
  .st-key-compare_pruning button { padding-inline: 0.5rem; }
}
</style>"""
_TABS = ("Along the text", "Heads and blocks", "Residual stream", "Edges", "Answers", "Tuning")


def show(service: Service) -> None:
    st.html(_STYLE)
    wanted = navigation.sides_wanted()
    if wanted is not None:
        choose(service, *wanted)
    conversation = session.comparison()
    choices = compare_sidebar.show(service, conversation.answer)
    _notes(choices)
    first, second = choices.sides
    if first is None or second is None:
        st.info(_missing(choices), icon=":material/arrow_back:")
        return
    if st.session_state.get("compare_shown") != (first, second):
        st.session_state.compare_shown = (first, second)
        difference.forget()
    question = choices.question(difference.targets())
    assert question is not None
    # Always there, though mostly empty: what follows keeps its place on the page, or the browser makes the graph anew.
    with st.container():
        compared = waiting.answer(service, conversation, question, meanwhile=True)
    if conversation.phase == "failed" and st.button(
        "Run again", icon=":material/refresh:", key="compare_again", help="Ask the same question once more."
    ):
        conversation.again()
        st.rerun()
    if compared is None:
        return
    _page(service, choices, question, compared)


def choose(service: Service, first: TraceKey, second: TraceKey) -> None:
    """Put two sides onto the page, before it is drawn."""
    st.session_state.compare_notes = (tuple(compare_sidebar.choose(service, first, second)), None)


def _notes(choices: Choices) -> None:
    """What of the two sides that another page gave has no place here, until there are others."""
    notes, of = st.session_state.get("compare_notes", ((), None))
    if not notes or of not in (None, choices.sides):
        st.session_state.pop("compare_notes", None)
        return
    st.session_state.compare_notes = (notes, choices.sides)
    st.warning(escaped(" ".join(notes)), icon=":material/link_off:")


def _missing(choices: Choices) -> str:
    mode = st.session_state.get("compare_mode")
    if mode != compare_sidebar.PROMPTS and not st.session_state.get("compare_model_second"):
        return "Choose two models in the sidebar to compare them, or compare two prompts on one."
    if not st.session_state.get("compare_model_first"):
        return "Choose a model in the sidebar to begin."
    return "A prompt is empty. Type some text in the sidebar, or choose an example."


def _page(service: Service, choices: Choices, question: CompareTraces, compared: Comparison) -> None:
    names = choices.names
    st.session_state.compare_n_heads = compared.head_flow[0].shape[1]
    st.session_state.compare_target_column = compared.column(0, compared.targets[0])
    with st.container(key="page"):
        left, right = st.columns([2, 1], gap="medium")
    with right:
        side = st.container(key="side")
    with left:
        st.markdown(f"**{escaped(names[0])} \u2192 {escaped(names[1])}** :small[:gray[{escaped(alignment(compared))}]]")
        for note in compared.notes:
            st.caption(escaped(note))
        compare_sidebar.pruning()
        if compared.has_like_parts:
            difference.show(question, compared, names)
            if not len(compared.edges):
                st.info("Neither graph has an edge at this threshold. Lower it in the sidebar.", icon=":material/info:")
        else:
            st.info(
                "A difference graph needs models with the same layers and heads. Compared is what they predict and generate.",
                icon=":material/info:",
            )
        _tabs(service, choices, question, compared)
    with side:
        changes.predictions(compared, names)
        if compared.has_like_parts:
            both.show(service, question, compared, names)


def _tabs(service: Service, choices: Choices, question: CompareTraces, compared: Comparison) -> None:
    """What is looked at one after the other, beside the inspector: only the open tab is made and drawn."""
    names = choices.names
    draw: dict[str, Callable[[], None]] = {
        "Along the text": lambda: changes.along(compared, names),
        "Heads and blocks": lambda: changes.parts(compared, names),
        "Residual stream": lambda: changes.drift(compared),
        "Edges": lambda: difference.table(compared, names),
        "Answers": lambda: answers.show(service, (question.first, question.second), names, compared.aligned_by == "token"),
        "Tuning": lambda: _tuning(service, question),
    }
    tuned = [key.model for key in question.trace if service.engine.is_tuned(key.model)]
    left_out = set() if tuned else {"Tuning"}
    if not compared.has_like_parts:
        left_out |= {"Heads and blocks", "Residual stream", "Edges"}
    shown = [name for name in _TABS if name not in left_out]
    for name, tab in zip(shown, st.tabs(shown, key="compare_tab", on_change="rerun"), strict=True):
        if tab.open:
            with tab:
                draw[name]()


def _tuning(service: Service, question: CompareTraces) -> None:
    """Where the tuning sits in the weights, of each side that is tuned."""
    tuned = {key.model.name: key.model for key in question.trace if service.engine.is_tuned(key.model)}
    name = next(iter(tuned))
    if len(tuned) > 1:
        chosen = st.segmented_control(
            "Of",
            list(tuned),
            key="compare_tuned",
            default=name,
            required=True,
            help="Both sides are tuned: whose weights to compare with its base.",
        )
        name = chosen or name
    tuning.show(service, tuned[name])


def alignment(compared: Comparison) -> str:
    """How the tokens of the two were laid beside each other, as a sentence."""
    n_first, n_second = (len(texts) for texts in compared.token_texts)
    if compared.token_texts[0] == compared.token_texts[1]:
        return f"{n_first} tokens, the same in both"
    how = "the characters they hold" if compared.aligned_by == "character" else "token"
    others = sum(
        compared.token_texts[0][first].strip() != compared.token_texts[1][second].strip() for first, second in compared.pairs.tolist()
    )
    sentence = f"{n_first} and {n_second} tokens, aligned by {how}: {len(compared.pairs)} pairs"
    if others:
        sentence += f", {others} of different tokens"
    left = compared.n_unpaired
    return sentence + (f"; {left[0]} (\u00b9) and {left[1]} (\u00b2) without a partner, whose edges have no change" if any(left) else "")
