"""The Evaluate page without a browser: the whole way from data to explained errors, on the demo pair, against the library's own answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[2]
PAIR = {"models": {"demo": None, "demo-tuned": None}, "default_model": ""}
CONVERSATIONS = ("data_preview", "prompt_preview", "evaluating", "explaining_errors")

Start = Callable[..., AppTest]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """start(config): the page as a browser opens it; results are kept in the test's own folder."""

    def start(config: dict[str, Any] | None = None) -> AppTest:
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"results_folder": str(tmp_path / "results"), **PAIR, **(config or {})}))
        monkeypatch.setattr("sys.argv", ["app/main.py", str(file)])
        at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
        at.run()
        return settled(go(at, "evaluate"))

    yield start
    st.cache_resource.clear()


def go(at: AppTest, page: str) -> AppTest:
    """Switch to a page of the navigation by its address."""
    at._page_hash = next(hash for hash, info in at._registered_pages.items() if info.get("url_pathname") == page)
    return at


def settled(at: AppTest) -> AppTest:
    """Run until nothing is worked on, as the page's polling does."""
    for _ in range(600):
        at.run()
        assert not at.exception, at.exception[0].value
        if all(at.session_state[name].phase != "working" for name in CONVERSATIONS if name in at.session_state):
            return at
        time.sleep(0.1)
    raise AssertionError("the page was never done")
