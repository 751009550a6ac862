"""The span: whether the graph explains all tokens from one to the target at once. It lasts while its last token is the target."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

_KEY = "span"


@dataclass(frozen=True)
class _Span:
    first: int
    last: int
    before: int | None
    """the target when it was chosen, to go back to"""


def _current() -> _Span | None:
    span: _Span | None = st.session_state.get(_KEY)
    if span is not None and st.session_state.get("target") != span.last:
        # Another target was chosen, by whatever on the page can do that.
        del st.session_state[_KEY]
        return None
    return span


def first() -> int | None:
    """Where the span begins; None while one target is explained."""
    span = _current()
    return None if span is None else span.first


def is_on(first: int, last: int) -> bool:
    """Whether just these tokens are the span."""
    span = _current()
    return span is not None and (span.first, span.last) == (first, last)


def choose(first: int, last: int) -> None:
    """Explain all of these tokens, or the one if it is one. In a callback, or before the graph is drawn."""
    span = _current()
    before = st.session_state.get("target") if span is None else span.before
    st.session_state.target = last
    st.session_state.pop(_KEY, None)
    if first < last:
        st.session_state[_KEY] = _Span(first, last, before)


def explain(target: int) -> None:
    """Explain one target, though it be the last of a span."""
    st.session_state.pop(_KEY, None)
    st.session_state.target = target


def end() -> None:
    """Back to the target of before; where a link brought the span, to its last token."""
    span = _current()
    if span is not None:
        explain(span.last if span.before is None else span.before)


def forget() -> None:
    """As for a new prompt."""
    st.session_state.pop(_KEY, None)
