"""The Explore page: one prompt, one prediction, its routes. Lays out the panels; what they show is theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from app import address, rest, session, span, timing
from app.panels import (
    adding,
    chat,
    debugging,
    estimate,
    files,
    graph,
    graph_table,
    heads_map,
    honesty,
    inspector,
    layers,
    memory,
    predictions,
    pruning,
    saliency,
    saved_graph,
    sidebar,
    sources,
    tour,
    tuning,
)
from app.panels import question as asking
from app.session import Conversation, Service
from app.timing import part
from llm_tt.engine.messages import ExplainPrediction, Explanation, TraceKey

_POLL_SECONDS = 0.4

ExplainConversation = Conversation[ExplainPrediction, Explanation]


def show(service: Service) -> None:
    address.open_link(service)
    timing.begin(service.config.debug)
    with part("sidebar"):
        choices = sidebar.show(service)
    address.keep(address.view(choices))
    if session.dialog() == "adding":
        adding.show(service)
    elif session.dialog() == "memory":
        memory.show(service)
    elif session.dialog() == "tuning" and choices.model is not None:
        tuning.show_dialog(service, choices.model)
    opened = saved_graph.opened()
    if opened is not None:
        saved_graph.show(service, opened, address.apply)
        return
    # Always there, though mostly empty: what follows must keep its place on the page, or the browser makes the graph anew.
    notes = st.container()
    if choices.model is None or not choices.has_prompt:
        with notes:
            address.show_notes()
        what = "Choose a model in the sidebar to begin."
        if choices.model is not None:
            what = "The prompt is empty. Type some text in the sidebar, or choose an example."
        st.info(what, icon=":material/arrow_back:")
        return
    trace = TraceKey(choices.model, choices.prompt, choices.continuation)
    last: TraceKey | None = st.session_state.get("trace")
    st.session_state.trace = trace
    if last is None or replace(last, continuation=trace.continuation) != trace:
        graph.forget_position()
        if address.take_position(trace) and trace.continuation:
            # The continuation was drawn before it could know which of its tokens are explained.
            st.rerun()
    conversation = session.conversation()
    was_chat = session.has_chat_template(service, choices.model)
    conversation.ask(service.engine, _question(trace))
    if session.has_chat_template(service, choices.model) != was_chat:
        # The model came while the page was drawn: the sidebar can offer a chat now.
        st.rerun()
    address.check_position(conversation, trace)
    with notes:
        address.show_notes()
    with st.container():
        _progress(service, conversation)
    explanation = conversation.answer
    if explanation is None or (explanation.trace != trace and conversation.phase != "working"):
        # While the new question is worked on, the old graph stays; an error must not stand over the graph of something else.
        return
    tour.prepare(service, explanation)
    st.session_state.drawn = _state(conversation)
    with st.container(key="page"):
        left, right = st.columns([2, 1], gap="medium")
    with right:
        side = st.container(key="side")
    with left:
        with part("source strip"):
            sources.show(service, explanation)
        _routes(service, trace)
        effects = asking.effects(service, explanation)
        with part("share and save"):
            files.show(explanation, address.view(choices), effects)
        honesty.button()
        edges = st.expander("Table of edges", icon=":material/table_rows:", key="edges", on_change="rerun")
        if edges.open:
            with edges:
                of_edges = None if effects is None else effects.of_edges(explanation.graph)
                of = None if effects is None else effects.of
                graph_table.show(explanation.graph, st.session_state.get("selection"), of_edges, of)
        heads = st.expander("Heads at a glance", icon=":material/grid_on:", key="heads", on_change="rerun")
        if heads.open:
            with heads, part("heads at a glance"):
                heads_map.show(service, explanation)
        others = st.expander("Other methods", icon=":material/balance:", key="other_methods", on_change="rerun")
        if others.open:
            with others, part("other methods"):
                saliency.show(service, explanation)
    with side:
        tour.show(service, explanation)
        with part("predictions and question"):
            predictions.show(explanation.graph, explanation.predictions, explanation.following, span.explain)
            asking.show(service, explanation)
        with part("inspector"):
            _inspector(service, explanation)
    if session.dialog() == "honesty":
        honesty.show_dialog(service, explanation)
    below = st.expander("Layers at a glance", icon=":material/layers:", key="layers_open", on_change="rerun")
    if below.open:
        with below, part("layers at a glance"):
            layers.show(service, explanation)
    chat.show_received(explanation)
    sidebar.show_facts(service, explanation.trace.model, explanation.facts)
    debugging.show(service, explanation)


def _question(trace: TraceKey) -> ExplainPrediction:
    extent = pruning.EXPLORE.chosen()
    first, target = span.first(), st.session_state.get("target", -1)
    return ExplainPrediction(trace, target, extent.threshold, extent.renormalize, mass=extent.mass, first=first)


def _state(conversation: ExplainConversation) -> tuple[Any, ...]:
    """What the page is drawn for: while it stays the same there is nothing to draw."""
    return conversation.question, conversation.phase, st.session_state.get("selection"), heads_map.highlight()


@st.fragment
def _routes(service: Service, trace: TraceKey) -> None:
    """The graph and how much of it is drawn. A fragment: it follows a move of the threshold at once, the whole page when the move is over."""
    pruning.EXPLORE.show()
    conversation, drawn = session.conversation(), st.session_state.drawn
    conversation.ask(service.engine, _question(trace))
    explanation, state = conversation.answer, _state(conversation)
    is_new = conversation.question != drawn[0]
    if explanation is None or (state != drawn and (conversation.phase != "answered" or not is_new)) or rest.reached():
        st.rerun()
    with part("direct effects"):
        effects = asking.effects(service, explanation)
    with part("graph"):
        graph.show(explanation, effects)
    rest.watch(repr(conversation.question) if is_new else None)


@st.fragment
def _inspector(service: Service, explanation: Explanation) -> None:
    """A fragment: a row, a tab or a toggle of the inspector runs nothing else of the page."""
    inspector.show(service, explanation, st.session_state.get("selection"))


def _progress(service: Service, conversation: ExplainConversation) -> None:
    """Where the current question is, if it has no answer yet."""
    if conversation.phase == "working":
        _watch(service, conversation)
    elif conversation.phase in ("failed", "cancelled"):
        show_message = st.error if conversation.phase == "failed" else st.info
        show_message(conversation.message, icon=":material/error:" if conversation.phase == "failed" else ":material/block:")
        if st.button("Run again", icon=":material/refresh:", help="Ask the same question once more."):
            conversation.again()
            st.rerun()


@st.fragment(run_every=_POLL_SECONDS)
def _watch(service: Service, conversation: ExplainConversation) -> None:
    conversation.look(service.engine)
    if conversation.phase != "working" or conversation.job is None:
        st.rerun()
    status = service.engine.status(conversation.job)
    waiting = f" · {status.position} before you" if status.position else ""
    bar, button = st.columns([6, 1], vertical_alignment="center")
    bar.progress(status.fraction, text=f"{status.stage}{waiting} · {status.seconds:.0f} s")
    if button.button("Cancel", icon=":material/close:", help="Stop after the current layer.", key="cancel"):
        service.engine.cancel(conversation.job)
    if conversation.question is not None:
        estimate.show(service, conversation.question.trace)
