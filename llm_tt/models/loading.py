"""How far transformers is with reading weights: its own progress bars, as reports of ours that may cancel the load."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llm_tt.progress import Progress


@contextmanager
def weights_reported(name: str, progress: Progress, low: float, high: float) -> Iterator[None]:
    """Inside, weights that this thread loads are reported as fractions from `low` to `high`, and `progress` may raise to stop it."""
    from transformers.utils import logging

    thread = threading.get_ident()

    def hook(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        items = args[0] if args else options.get("iterable")
        if threading.get_ident() != thread or items is None or not hasattr(items, "__len__"):
            return make(*args, **options)
        return _reported(items, len(items))

    def _reported(items: Any, n: int) -> Iterator[Any]:
        for index, item in enumerate(items):
            progress(f"Loading the weights of {name}: {index + 1} of {n}", low + (high - low) * index / n)
            yield item

    previous = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)
