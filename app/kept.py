"""What a user chose or typed, kept through runs that do not draw the widget, as while another page is shown: Streamlit forgets it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st


def hold(key: str, default: Any, among: Sequence[Any] | None = None) -> None:
    """Give a widget, right before it is drawn, what it held, or its default; it gets no value of its own.

    among: all that it can have.
    """
    value = held(key, default)
    if among is not None and value not in among:
        st.session_state[key] = default
    elif key not in st.session_state:
        # Only then: a value that is set in a run takes back what the user does to the widget meanwhile.
        st.session_state[key] = value


def held(key: str, default: Any = None) -> Any:
    """What a widget holds, drawn or not."""
    kept: dict[str, Any] = st.session_state.setdefault("kept", {})
    if key in st.session_state:
        kept[key] = st.session_state[key]
    return kept.get(key, default)


def put(key: str, value: Any) -> None:
    """Let a widget hold this when it is drawn next. In a callback, or before it is drawn."""
    st.session_state.setdefault("kept", {})[key] = value
    st.session_state.pop(key, None)


def forget(key: str) -> None:
    """Let a widget hold its default when it is drawn next."""
    st.session_state.setdefault("kept", {}).pop(key, None)
    st.session_state.pop(key, None)
