"""Who waits for a long prompt is told what it costs; who waits for a short one is not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app.panels import estimate
from llm_tt.models import pace
from llm_tt.models.bridge import BridgeLlm
from llm_tt.models.estimates import Pace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def may_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set no prompt but that of the check at load is traced to its end."""
    event, run = threading.Event(), BridgeLlm.run

    def waiting(self: BridgeLlm, token_ids: list[int], *rest: object) -> object:
        if len(token_ids) != 12:
            event.wait(60)
        return run(self, token_ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(BridgeLlm, "run", waiting)
    monkeypatch.setattr(pace, "measured_pace", lambda llm, *rest: Pace(0.0, 0.02, 0.0))
    yield event
    event.set()
    st.cache_resource.clear()


def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str) -> AppTest:
    (tmp_path / "config.json").write_text(json.dumps({"models": {"demo": None}, "default_model": "demo"}))
    monkeypatch.setattr("sys.argv", ["app/main.py", str(tmp_path / "config.json")])
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
    at.session_state["prompt"] = prompt
    return at


def costs(at: AppTest) -> list[str]:
    return [caption.value for caption in at.main.caption if " of memory" in caption.value]


def run_until(at: AppTest, phase: str) -> None:
    for _ in range(300):
        at.run()
        assert not at.exception, at.exception[0].value
        if at.session_state["conversation"].phase == phase or (phase == "costs" and costs(at)):
            return
        time.sleep(0.1)
    raise AssertionError(f"never {phase}")


def test_a_long_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_end: threading.Event) -> None:
    monkeypatch.setattr(estimate, "_LONG", 60)
    at = page(tmp_path, monkeypatch, "When Mary and John went to the store, John gave a drink to Mary.")
    run_until(at, "costs")
    asked = at.session_state["trace_estimate"].answer
    assert costs(at) == [f"{asked.sentence()}."]
    assert asked.seconds == pytest.approx(0.02 * asked.n_tokens)
    may_end.set()
    run_until(at, "answered")
    assert costs(at) == []


def test_a_short_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_end: threading.Event) -> None:
    at = page(tmp_path, monkeypatch, "The capital of France is")
    run_until(at, "working")
    assert "trace_estimate" not in at.session_state
    may_end.set()
    run_until(at, "answered")
    assert costs(at) == []
