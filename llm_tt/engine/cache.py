"""Values by key, each made once though several threads want it; the least recently used go when a budget is exceeded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from llm_tt.progress import Progress

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_PATIENCE = 0.2
"""Seconds after which a thread that waits for another looks whether it is still wanted"""


class Turn:
    """A lock whose waiters see how far its holder is, and stop waiting when they are cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = ("Waiting", 0.0)

    @contextmanager
    def taken(self, progress: Progress, waiting: Callable[[str, float], tuple[str, float]]) -> Iterator[Progress]:
        """Wait for the lock, reporting `waiting(stage, fraction)` of its holder; gives the progress callback to work with."""
        while not self._lock.acquire(timeout=_PATIENCE):
            progress(*waiting(*self._now))
        try:

            def told(stage: str, fraction: float) -> None:
                self._now = (stage, fraction)
                progress(stage, fraction)

            yield told
        finally:
            self._now = ("Waiting", 0.0)
            self._lock.release()


class Cache(Generic[_Key, _Value]):
    """Values within a budget of costs; the newest is kept even if it exceeds the budget alone."""

    def __init__(self, budget: int, cost: Callable[[_Value], int]) -> None:
        self._budget = budget
        self._cost = cost
        self._lock = threading.Lock()
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        self._making: dict[_Key, tuple[Turn, int]] = {}
        """A turn for each key that is being made, and how many threads want it"""
        self._hits = self._misses = 0

    def get(self, key: _Key, make: Callable[[Progress], _Value], progress: Progress) -> _Value:
        """The value, made if it is not there. A thread that waits for another's making reports what the other does."""
        with self._lock:
            turn, wanted = self._making.get(key, (Turn(), 0))
            self._making[key] = turn, wanted + 1
        try:
            with turn.taken(progress, lambda stage, fraction: (stage, fraction)) as told:
                with self._lock:
                    if key in self._values:
                        self._values.move_to_end(key)
                        self._hits += 1
                        return self._values[key]
                    self._misses += 1
                value = make(told)
                with self._lock:
                    self._values[key] = value
                    while len(self._values) > 1 and sum(map(self._cost, self._values.values())) > self._budget:
                        self._values.popitem(last=False)
                return value
        finally:
            with self._lock:
                turn, wanted = self._making.pop(key)
                if wanted > 1:
                    self._making[key] = turn, wanted - 1

    def discard(self, unwanted: Callable[[_Key, _Value], bool]) -> None:
        with self._lock:
            for key in [key for key, value in self._values.items() if unwanted(key, value)]:
                del self._values[key]

    def counts(self) -> tuple[int, int, int]:
        """How many values are kept, how often one was found, and how often one had to be made."""
        with self._lock:
            return len(self._values), self._hits, self._misses

    def items(self) -> list[tuple[_Key, _Value]]:
        with self._lock:
            return list(self._values.items())
