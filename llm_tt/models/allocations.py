"""How many bytes of tensors exist while a model reads so many tokens, told apart by how they grow with that number. What a run needs is
`llm_tt.models.memory`."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

Growth = Literal["constant", "token", "pair"]
_INDIVISIBLE: set[OpOverload] = set()
"""Operations that were found to consist of no others"""


class Allocations(TorchDispatchMode):
    """Counts the storages that operations of this thread make inside `with`, on any device; views, and what existed before, count nothing.

    What an operation takes and gives back by itself is not seen. Costs some ten microseconds an operation: for short runs.

    Args:
        n_tokens: how long the prompt is: a prime that is no size of the model, so that sizes tell what grows with the number of tokens and what
            with its square.
    """

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self._n_tokens = n_tokens
        self._now: Counter[Growth] = Counter()
        self._known: set[int] = set()
        self.peak = 0
        """bytes, at the moment when there were most"""
        self.at_most_per_token = self.at_most_per_pair = (0, 0)
        """bytes of what grows with the number of tokens, and of what grows with its square, when there were most of the one, and of the other"""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if isinstance(func, OpOverload) and func not in _INDIVISIBLE:
            with self:
                # What consists of other operations, so that these are seen.
                made = func.decompose(*args, **(kwargs or {}))
            if made is not NotImplemented:
                return made
            _INDIVISIBLE.add(func)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            if tensor.untyped_storage()._cdata not in given:
                self._count(tensor)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        growth = self._growth(tensor)
        self._known.add(key)
        self._now[growth] += n_bytes
        self.peak = max(self.peak, self._now.total())
        now = self._now["token"], self._now["pair"]
        self.at_most_per_token = max(self.at_most_per_token, now)
        self.at_most_per_pair = max(self.at_most_per_pair, now, key=lambda bytes_then: bytes_then[::-1])

        def gone() -> None:
            self._known.discard(key)
            self._now[growth] -= n_bytes

        weakref.finalize(storage, gone)

    def _growth(self, tensor: Tensor) -> Growth:
        if sum(size == self._n_tokens for size in tensor.shape) > 1:
            return "pair"
        return "constant" if tensor.numel() % self._n_tokens else "token"


def _tensors(values: Any) -> list[Tensor]:
    # What operations take and give is flat but for lists of tensors; torch's own walk over trees takes longer than the operation.
    if isinstance(values, Tensor):
        return [values]
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, tuple | list) else ()
    return [tensor for value in inner if isinstance(value, Tensor | tuple | list | dict) for tensor in _tensors(value)]
