"""The page's URL: read once, when a session begins, and from then on kept in step with what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import streamlit as st

from app import kept, link, span
from app.link import Selected, View
from app.markup import escaped
from app.panels import continuation, graph, normalize, pruning, question, sidebar
from app.panels.sidebar import Choices
from app.session import Conversation, Service
from llm_tt.engine.messages import ExplainPrediction, Explanation, TraceKey

# `st.query_params` makes an entry of the browser's history for every change: after ten moves of a slider one would go back ten times.
_FOLLOW = """
export default function ({ data }) {
  const here = new URLSearchParams(window.location.search);
  const embedding = new URLSearchParams([...here].filter(([name]) => name === "embed" || name === "embed_options")).toString();
  const query = embedding ? `${data}&${embedding}` : data;
  if (`?${query}` !== window.location.search) {
    window.history.replaceState(window.history.state, "", `${window.location.pathname}?${query}${window.location.hash}`);
  }
}
"""


@dataclass(frozen=True)
class _Waiting:
    """A position that holds once the model has run its prompt."""

    prompt: link.Prompt | None
    target: int | None
    selected: Selected | None
    first: int | None = None
    """of a span that ends with the target"""


def open_link(service: Service) -> None:
    """Put the view of the URL into the session that begins. Call it before anything else is drawn."""
    if "link_opened" in st.session_state:
        return
    st.session_state.link_opened = True
    parameters = st.query_params.to_dict()
    if not link.is_link(parameters):
        return
    view, problems = link.decode(parameters)
    apply(service, view, problems)


def apply(service: Service, view: View, problems: tuple[str, ...] = ()) -> None:
    """Make the page show a view, as far as this server can; what it cannot is said by `show_notes`. In a callback, or before all else."""
    notes = [*problems, *sidebar.restore(service, view), *pruning.EXPLORE.restore(view)]
    if view.continuation and isinstance(view.prompt, str | tuple):
        continuation.restore(view.prompt, view.continuation)
    question.choose(view.token, view.contrast)
    kept.put(normalize.INSPECTOR, view.normalize)
    if view.target is not None or view.selected is not None or isinstance(view.prompt, tuple):
        st.session_state.link_waiting = _Waiting(view.prompt, view.target, view.selected, view.first)
        # The same prompt may be there already, and then it is no new one.
        st.session_state.pop("trace", None)
    st.session_state.link_notes = tuple(notes)


def keep(shown: View) -> None:
    """Remember what the page shows, for when the user comes back to it: Streamlit forgets what is not drawn."""
    st.session_state.view_kept = shown


def come_back(service: Service) -> None:
    """Show again what was kept last, before anything is drawn."""
    last: View | None = st.session_state.get("view_kept")
    if last is not None:
        graph.forget_position()
        apply(service, last)


def take_position(trace: TraceKey) -> bool:
    """Target and selection of the link, when its prompt is the one to be run. Call it when a new prompt has made the page forget its own.

    Returns whether there was a link for this prompt."""
    waiting: _Waiting | None = st.session_state.get("link_waiting")
    if waiting is None or waiting.prompt not in (None, trace.prompt):
        return False
    del st.session_state.link_waiting
    if waiting.target is not None:
        span.choose(waiting.target if waiting.first is None else waiting.first, waiting.target)
    if waiting.selected is not None:
        graph.choose(waiting.selected.selection())
    st.session_state.link_unchecked = waiting
    return True


def check_position(conversation: Conversation[ExplainPrediction, Explanation], trace: TraceKey) -> None:
    """Once the prompt was run: is there such a token, such a node? What is not there is given up, with a sentence."""
    unchecked: _Waiting | None = st.session_state.get("link_unchecked")
    if unchecked is None:
        return
    if conversation.phase == "failed" and unchecked.target is not None and "target" in st.session_state:
        # It may be for the target: without it the prompt can be run, or fails again for a reason of its own.
        del st.session_state.target
        st.rerun()
    explanation = conversation.answer
    if conversation.phase != "answered" or explanation is None or explanation.trace != trace:
        return
    del st.session_state.link_unchecked
    if isinstance(unchecked.prompt, tuple) and isinstance(trace.prompt, str):
        _note(f"{trace.model.name} has no chat template; the first message is shown as a text.")
        return
    shown = explanation.graph
    if unchecked.target is not None and unchecked.target >= shown.n_tokens:
        _note(f"The link explains token {unchecked.target}, but the prompt has {shown.n_tokens}; the last one is explained.")
    nodes = () if unchecked.selected is None else unchecked.selected.nodes
    for node in nodes:
        if node.position >= shown.n_tokens or node.layer >= shown.n_layers:
            graph.choose(None)
            _note(f"The link selects {node.name}, but there are {shown.n_tokens} tokens and {shown.n_layers} layers; nothing is selected.")
            return


def _note(sentence: str) -> None:
    st.session_state.link_notes = (*st.session_state.get("link_notes", ()), sentence)


def show_notes() -> None:
    """What of the link this page does not show, until the user has read it."""
    notes: tuple[str, ...] = st.session_state.get("link_notes", ())
    if notes:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.warning(escaped(" ".join(notes)), icon=":material/link_off:")
            st.button(
                "Close", icon=":material/close:", key="close_link_notes", type="tertiary", on_click=_forget_notes, help="I have read this."
            )


def _forget_notes() -> None:
    st.session_state.pop("link_notes", None)


def view(choices: Choices) -> View:
    """What is shown now."""
    token, contrast = question.chosen(question.TOKEN), question.chosen(question.CONTRAST)
    extent = pruning.EXPLORE.chosen()
    return View(
        model=None if choices.model is None else choices.model.name,
        device="auto" if choices.model is None else choices.model.device,
        dtype="auto" if choices.model is None else choices.model.dtype,
        prompt=choices.prompt if choices.has_prompt else None,
        continuation=choices.continuation,
        target=st.session_state.get("target"),
        first=span.first(),
        threshold=extent.threshold,
        mass=extent.mass,
        renormalize=extent.renormalize,
        selected=Selected.of(st.session_state.get("selection")),
        token=token,
        contrast=contrast,
        normalize=kept.held(normalize.INSPECTOR, True),
    )


def follow(shown: View) -> None:
    """Write the view into the browser's address bar. Draws nothing; belongs where it is run with every change of the view."""
    if st.context.url is not None:
        _component()(key="address", data=link.query(shown), width="content", height=0)


def url(shown: View) -> str:
    """The view's whole URL, as others may open it."""
    place = (st.context.url or "").partition("?")[0]
    # Of a bare host the browser's own address ends in a slash.
    return f"{place}{'/' if place.count('/') == 2 else ''}?{link.query(shown)}"


@cache
def _component() -> Any:
    from streamlit.components.v2 import component

    return component("llm_tt_address", js=_FOLLOW)
