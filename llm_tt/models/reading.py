"""A model that reads token after token: `Reading`, with what was computed for earlier tokens kept, or by whole forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from llm_tt.errors import OutOfMemoryError

if TYPE_CHECKING:
    from llm_tt.models.transparent_llm import TransparentLlm


class Reading(Protocol):
    """One text that a model reads piece by piece. All that is kept of it is here, and nothing in the model."""

    def read(self, token_ids: Sequence[int]) -> Tensor:
        """[V] float32 on the CPU: logits for the token after these, which follow all those read before."""
        ...


class WholeReading:
    """Every token by a forward pass over the whole text."""

    def __init__(self, model: TransparentLlm) -> None:
        self._model = model
        self._token_ids: list[int] = []

    def read(self, token_ids: Sequence[int]) -> Tensor:
        self._token_ids += token_ids
        return self._model.last_logits(self._token_ids)


class CachedReading:
    """Keys and values of earlier tokens are kept, as in transformers' `generate`.

    Args:
        hf_model: called as transformers calls it.
        device: where its token ids go.
        turn: gives the model to this thread alone, for one call.
        until: beyond this many tokens all keys are other ones, once: everything is read again.
    """

    def __init__(self, hf_model: Any, device: str, turn: Callable[[], AbstractContextManager[Any]], until: int | None = None) -> None:
        self._hf_model = hf_model
        self._device = device
        self._turn = turn
        self._until = until
        self._cache: Any = None
        self._token_ids: list[int] = []

    def read(self, token_ids: Sequence[int]) -> Tensor:
        n_before = len(self._token_ids)
        self._token_ids += token_ids
        if self._until is not None and n_before <= self._until < len(self._token_ids):
            self._cache, token_ids = None, self._token_ids
        ids = torch.tensor([list(token_ids)], device=self._device)
        try:
            with self._turn(), torch.inference_mode():
                output = self._hf_model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
                self._cache = output.past_key_values
                logits = output.logits[0, -1].float().cpu()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(
                f"{self._device} ran out of memory while reading token {len(self._token_ids)}. Shorten the prompt, or ask for fewer tokens."
            ) from error
        return logits
