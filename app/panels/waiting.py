"""A question of a panel that may take long: the page stays usable, says how far the answer is, and can give it up."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.markup import escaped
from app.session import Conversation, Service
from llm_tt.engine.messages import (
    CheckTrace,
    CompareTraces,
    Evaluate,
    ExplainErrors,
    InspectHead,
    LensGridOf,
    PreviewData,
    PreviewPrompt,
    ReadHeads,
    SaliencyOf,
    TrajectoriesOf,
)

_POLL_SECONDS = 0.4

PanelQuestion = (
    LensGridOf
    | TrajectoriesOf
    | InspectHead
    | ReadHeads
    | CheckTrace
    | SaliencyOf
    | PreviewData
    | PreviewPrompt
    | Evaluate
    | ExplainErrors
    | CompareTraces
)


def answer(service: Service, conversation: Conversation[Any, Any], question: PanelQuestion, meanwhile: bool = False) -> Any:
    """The answer; while it is worked on, or cannot be had, None, or with `meanwhile` the last one about the same trace."""
    last = conversation.question
    if last is not None and last != question and not (meanwhile and getattr(last, "trace", None) == getattr(question, "trace", None)):
        conversation.answer = None
    conversation.ask(service.engine, question)
    name = type(question).__name__
    if conversation.phase == "working":
        _watch(service, conversation, name)
    elif conversation.phase == "failed":
        st.error(escaped(conversation.message), icon=":material/error:")
    elif conversation.phase == "cancelled":
        st.info(escaped(conversation.message), icon=":material/block:")
        if st.button("Run again", icon=":material/refresh:", key=f"again_{name}", help="Ask the same question once more."):
            conversation.again()
            st.rerun()
    return conversation.answer


@st.fragment(run_every=_POLL_SECONDS)
def _watch(service: Service, conversation: Conversation[Any, Any], name: str) -> None:
    conversation.look(service.engine)
    if conversation.phase != "working" or conversation.job is None:
        st.rerun()
    status = service.engine.status(conversation.job)
    waiting = f" · {status.position} before you" if status.position else ""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(status.fraction, text=escaped(f"{status.stage}{waiting} · {status.seconds:.0f} s"))
        if st.button("Cancel", icon=":material/close:", help="Stop after the current step.", key=f"cancel_{name}", width="content"):
            service.engine.cancel(conversation.job)
