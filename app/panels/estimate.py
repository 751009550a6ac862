"""What tracing a long prompt will cost, said while one waits for it. Refusals of what does not fit are the engine's."""

from __future__ import annotations

import streamlit as st

from app import session
from app.session import Service
from llm_tt.engine.messages import EstimateTrace, TraceKey

_LONG = 1500
"""Characters from which on it is worth saying: a shorter prompt is there before one has read it"""


def show(service: Service, trace: TraceKey) -> None:
    """A caption; nothing for a short prompt, and as long as nothing is known."""
    contents = [trace.prompt] if isinstance(trace.prompt, str) else [message.content for message in trace.prompt]
    if sum(map(len, contents)) + len(trace.continuation) < _LONG:
        return
    question, asked = EstimateTrace(trace), session.trace_estimate()
    asked.ask(service.engine, question)
    asked.look(service.engine)
    if asked.answer is not None and asked.phase == "answered":
        st.caption(f"{asked.answer.sentence()}.")
