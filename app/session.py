"""What lasts longer than one run of the script: the engine shared by all users, and one user's question and choices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import streamlit as st

from llm_tt.config import AppConfig, load_config
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import ExplainPrediction, Explanation
from llm_tt.errors import ConfigError

_PATIENCE = 0.5
"""Seconds that a run of the script waits for an answer before it shows progress instead"""


@dataclass(frozen=True, eq=False)
class Service:
    """A configuration and the engine that serves it."""

    config: AppConfig
    engine: LocalEngine


def service(file: Path) -> Service:
    """The service of a configuration file, shared by all users until the file changes.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    try:
        changed = file.stat().st_mtime_ns
    except FileNotFoundError as error:
        raise ConfigError(
            f'Configuration file "{file}" does not exist. Start with: streamlit run app/main.py -- config/local.json'
        ) from error
    return _service(str(file), changed)


@st.cache_resource(show_spinner=False, max_entries=1, on_release=lambda released: released.engine.close())
def _service(file: str, changed: int) -> Service:
    config = load_config(file)
    return Service(config, LocalEngine(config))


Phase = Literal["answered", "working", "failed", "cancelled"]


@dataclass
class Conversation:
    """One user's current question to the engine: at most one job at a time; a new question cancels the one before."""

    question: ExplainPrediction | None = None
    job: str | None = None
    phase: Phase = "answered"
    message: str = ""
    answer: Explanation | None = None

    def ask(self, engine: LocalEngine, question: ExplainPrediction) -> None:
        """Make this the current question; does nothing if it already is."""
        if question == self.question:
            return
        if self.job is not None:
            engine.cancel(self.job)
        self.question, self.phase, self.message = question, "working", ""
        self.job = engine.submit(question)
        engine.wait(self.job, _PATIENCE)
        self.look(engine)

    def look(self, engine: LocalEngine) -> None:
        """Take the answer if it has come."""
        if self.job is None or not engine.status(self.job).finished:
            return
        status = engine.status(self.job)
        if status.state == "done":
            self.answer, self.phase = engine.collect(self.job), "answered"
        else:
            self.phase, self.message = ("cancelled" if status.state == "cancelled" else "failed"), status.message
        self.job = None

    def again(self) -> None:
        """Forget the question, so that the next `ask` repeats it."""
        self.question = None


def conversation() -> Conversation:
    return _state("conversation", Conversation)


def _state(name: str, make: Any) -> Any:
    if name not in st.session_state:
        st.session_state[name] = make()
    return st.session_state[name]
