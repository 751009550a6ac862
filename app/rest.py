"""Waits in the browser until what moves has come to rest: a part of the page is drawn at once, the whole of it afterwards."""

from __future__ import annotations

from functools import cache
from typing import Any

import streamlit as st

# A browser that was sent the whole page at once would draw the part no sooner.
_WATCH = """
let timer;
export default function ({ data, setTriggerValue }) {
  clearTimeout(timer);
  if (data) timer = setTimeout(() => setTriggerValue("reached", data), 150);
}
"""
_KEY = "rest"


def watch(moved_to: str | None) -> None:
    """Run the fragment that this is called in once more when what it has drawn, `moved_to`, has stayed for a moment; None: it has not moved."""
    _component()(key=_KEY, data=moved_to, on_reached_change=_reach, width="content", height=0)


def reached() -> bool:
    """Whether this run is that one."""
    return st.session_state.pop("rest_reached", False)


def _reach() -> None:
    st.session_state.rest_reached = True


@cache
def _component() -> Any:
    from streamlit.components.v2 import component

    return component("llm_tt_rest", js=_WATCH)
