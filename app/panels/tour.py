"""The first visit: how to read the graph, then a lesson for each behaviour of the demo model. A card that can be put away, and had again.

Belongs on top of the right column, so that the graph stays where it is when the card comes and goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from app import lessons, session
from app.lessons import LESSONS, Lesson
from app.panels import graph
from app.panels import question as asking
from app.session import Service
from llm_tt.demo import MODEL_DIR
from llm_tt.engine.messages import Explanation, ReadHeads, TraceKey
from llm_tt.errors import LlmTtError
from llm_tt.text import visible


@dataclass
class _Tour:
    """Where one user's tour is."""

    step: int | None
    """None: put away; 0: how to read the graph; n: the n-th lesson"""
    last: int = 0
    """the step that was put away"""
    later: TraceKey | None = None
    """the tour comes back when something else than this is explained"""
    selected: bool = False
    """whether what the lesson is about has been selected: once, so that the user may select something else"""


def button(service: Service) -> None:
    """Where the lessons are had again; belongs into the sidebar."""
    st.button(
        "Lessons",
        icon=":material/school:",
        key="lessons",
        type="tertiary",
        help="How to read the graph, and a lesson for each behaviour of the demo model.",
        on_click=_open,
        args=(service,),
    )


def prepare(service: Service, explanation: Explanation) -> None:
    """Select what the lesson is about, before the graph is drawn."""
    tour = _tour(service)
    if tour.later is not None and tour.later != explanation.trace:
        tour.step, tour.later = tour.last, None
    lesson = _lesson(service, tour)
    if lesson is None or tour.selected or explanation.trace.prompt != lesson.prompt:
        return
    effects = asking.effects(service, explanation)
    if effects is not None:
        st.session_state.selection = lessons.read(lesson, explanation, effects).selection
        tour.selected = True


def show(service: Service, explanation: Explanation) -> None:
    """The card, if it is not put away."""
    tour = _tour(service)
    if tour.step is None:
        return
    offered = _offered(service)
    lesson = _lesson(service, tour)
    with st.container(border=True, key="tour", gap="xsmall"):
        st.markdown(f"**{'Reading the graph' if lesson is None else lesson.title}** :small[:gray[{tour.step} of {len(offered)}]]")
        st.markdown(f":small[{_words(service, explanation, lesson)}]")
        with st.container(horizontal=True, gap="small"):
            if tour.step < len(offered):
                following = offered[tour.step]
                st.button(
                    "Next",
                    icon=":material/arrow_forward:",
                    key="tour_next",
                    type="primary",
                    help=f"The next lesson: {following.title}",
                    on_click=_go,
                    args=(service, tour.step + 1),
                )
            st.button("Skip", key="tour_skip", help="Put the lessons away. They are under Lessons in the sidebar.", on_click=_close)
            if tour.step < len(offered):
                st.button(
                    "Show me later",
                    key="tour_later",
                    type="tertiary",
                    help="Come back with the next prompt.",
                    on_click=_close,
                    args=(explanation.trace,),
                )


def _words(service: Service, explanation: Explanation, lesson: Lesson | None) -> str:
    if lesson is None:
        words = " ".join(lessons.overview(explanation))
        return words if _demo(service) else f"{words} The lessons are about the demo model, which this server does not have."
    if explanation.trace.prompt != lesson.prompt:
        return "This lesson is about another prompt. Go on, or put the lessons away."
    try:
        effects = asking.effects(service, explanation)
        if effects is None:
            return "The model is no longer in memory. Load it again below."
        return " ".join(lessons.read(lesson, explanation, effects, service.engine.answer(ReadHeads(explanation.trace))).sentences)
    except LlmTtError as error:
        return str(error)


def _tour(service: Service) -> _Tour:
    if "tour" not in st.session_state:
        # Who follows a link came to see something; who brought a model of their own is not taught another's behaviours unasked.
        first_visit = not st.query_params and service.config.default_model == _demo(service) != ""
        st.session_state.tour = _Tour(0 if first_visit else None)
    return st.session_state.tour


def _demo(service: Service) -> str:
    """The name of the demo model on the menu, as it was shipped; empty where there is none."""
    for name, spec in service.config.models.items():
        if spec.path == str(MODEL_DIR) and spec.adapter is None:
            return name
    return ""


def _offered(service: Service) -> list[Lesson]:
    """All lessons, but for those whose prompt a server in demo mode does not show."""
    if not _demo(service):
        return []
    prompts = set(service.config.prompts()) if service.config.demo_mode else None
    limit = service.config.max_user_string_length
    return [
        lesson
        for lesson in LESSONS
        if (prompts is None or lesson.prompt in prompts) and (prompts is not None or limit is None or len(lesson.prompt) <= limit)
    ]


def _lesson(service: Service, tour: _Tour) -> Lesson | None:
    offered = _offered(service)
    return offered[tour.step - 1] if tour.step is not None and 0 < tour.step <= len(offered) else None


def _open(service: Service) -> None:
    tour = _tour(service)
    tour.step, tour.later, tour.selected = tour.last, None, True


def _close(later: TraceKey | None = None) -> None:
    tour: _Tour = st.session_state.tour
    tour.step, tour.last, tour.later = None, tour.step or 0, later


def _go(service: Service, step: int) -> None:
    """Ask what a lesson asks: its prompt and its contrast, of the demo model, at the last token."""
    tour: _Tour = st.session_state.tour
    tour.step, tour.selected = step, False
    lesson = _offered(service)[step - 1]
    session.choose_model(_demo(service))
    state = st.session_state
    state.prompt, state.prompt_form = lesson.prompt, "Text"
    graph.forget_position()
    asking.choose(None, visible(lesson.contrast))
