"""Where the time of drawing the page goes: named parts of a run, measured when the configuration has `debug`, and free when it has not.

Not called `profile`: Streamlit puts this folder on the path, before the standard library, which has a module of that name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import streamlit as st


@dataclass
class Profile:
    """Seconds that parts of the page took when they were last drawn."""

    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self.clock()
        try:
            yield
        finally:
            # Also of a run that Streamlit stops in the middle, by an exception.
            self.seconds[name] = self.clock() - started


def begin(debug: bool) -> None:
    """A new run of the whole page: what is not drawn in it is not in its profile."""
    if debug:
        st.session_state.profile = Profile()


@contextmanager
def part(name: str) -> Iterator[None]:
    """Measure a part of the page, if this session has a profile."""
    profile: Profile | None = st.session_state.get("profile")
    if profile is None:
        yield
        return
    with profile.part(name):
        yield


def seconds() -> dict[str, float]:
    """What has been measured so far in this run, and in those of fragments since."""
    profile: Profile | None = st.session_state.get("profile")
    return {} if profile is None else dict(profile.seconds)
