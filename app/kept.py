"""What a user chose or typed, kept under another name: Streamlit forgets the state of a widget that is not drawn, as on another page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st


def restore(key: str, default: Any, among: Sequence[Any] | None = None) -> None:
    """Give a widget, before it is drawn, the value that was kept, or its default; `among` are all that it can have."""
    value = st.session_state.get(key, value_of(key, default))
    if among is not None and value not in among:
        value = default
    st.session_state[key] = value


def keep(key: str) -> Any:
    """Remember the value of a widget that was drawn, and give it."""
    st.session_state[_name(key)] = st.session_state[key]
    return st.session_state[key]


def value_of(key: str, default: Any) -> Any:
    """What is remembered of a widget, drawn or not."""
    return st.session_state.get(_name(key), default)


def forget(key: str) -> None:
    for name in (key, _name(key)):
        st.session_state.pop(name, None)


def _name(key: str) -> str:
    return f"{key}_kept"
