"""Which continuations an engine has generated itself: a server that restricts prompts takes no others."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)

_MOST = 4096
"""Continuations to remember; some kilobytes each at most"""


class Generated(Generic[_Key]):
    """Token ids by what they continue; the least recently used are forgotten first."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[_Key, tuple[int, ...]], None] = OrderedDict()

    def remember(self, key: _Key, token_ids: tuple[int, ...]) -> None:
        with self._lock:
            self._known[key, token_ids] = None
            self._known.move_to_end((key, token_ids))
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def knows(self, key: _Key, token_ids: tuple[int, ...]) -> bool:
        """Whether a continuation of this key began with these tokens."""
        with self._lock:
            for known in reversed(self._known):
                if known[1][: len(token_ids)] == token_ids and known[0] == key:
                    self._known.move_to_end(known)
                    return True
        return False
