"""The pages, and the ways from one to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import streamlit as st

from app import address, session
from app.link import View
from app.session import Service
from llm_tt.engine.messages import TraceKey

PageName = Literal["Explore", "Compare", "Evaluate"]


@dataclass(frozen=True)
class Page:
    """A page of the menu; the first one is what a bare address shows."""

    name: PageName
    show: Callable[[Service], None]


def run(service: Service, pages: Sequence[Page]) -> None:
    """Show the page that the address or the menu names."""
    # Named here: Streamlit makes a page of every file in a folder called `pages`, which is why ours is `views`.
    made = [
        st.Page(_drawing(page, service), title=page.name, url_path=page.name.lower(), default=position == 0)
        for position, page in enumerate(pages)
    ]
    st.session_state.pages = {page.title: page for page in made}
    st.navigation(made, position="top" if len(made) > 1 else "hidden").run()


def _drawing(page: Page, service: Service) -> Callable[[], None]:
    def draw() -> None:
        came_from: PageName | None = st.session_state.get("page_shown")
        st.session_state.page_shown = page.name
        if came_from not in (None, page.name):
            session.close_dialog()
            if page.name == "Explore":
                address.come_back(service)
        page.show(service)

    return draw


def go(name: PageName) -> NoReturn:
    """Switch to a page, in the script's body."""
    st.switch_page(st.session_state.pages[name])


def open_explore(view: View) -> NoReturn:
    """Show a view in Explore, in the script's body."""
    address.keep(view)
    go("Explore")


def open_compare(first: TraceKey, second: TraceKey) -> NoReturn:
    """Put two sides into Compare and show it, in the script's body."""
    st.session_state.compare_wanted = (first, second)
    go("Compare")


def sides_wanted() -> tuple[TraceKey, TraceKey] | None:
    """What another page wants to be compared, once."""
    return st.session_state.pop("compare_wanted", None)
