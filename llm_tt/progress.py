"""How long work reports where it is and learns that nobody wants it any more. No threads and no display here."""

from __future__ import annotations

from collections.abc import Callable


class Cancelled(Exception):
    """Raised inside a computation by its progress callback when the result is no longer wanted."""


#: Called with a short description of the current stage and the fraction done, 0 to 1. May raise `Cancelled`.
Progress = Callable[[str, float], None]


def silent(stage: str, fraction: float) -> None:
    """The progress callback of someone who does not watch."""


def within(progress: Progress, low: float, high: float) -> Progress:
    """A progress callback for one part of a longer computation."""
    return lambda stage, fraction: progress(stage, low + (high - low) * fraction)
