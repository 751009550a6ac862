"""The numbers behind a picture or a table as a CSV file: in full, with token texts as they are. Made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st


def button(make: Callable[[], str], file_name: str, key: str, what: str) -> None:
    """A small button that downloads what `make` returns; `what` says which columns a line has."""
    st.download_button(
        "CSV",
        make,
        file_name=file_name,
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
        key=key,
        type="tertiary",
        help=what,
    )
