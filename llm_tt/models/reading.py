"""A model that reads token after token: `Reading`, with what was computed for earlier tokens kept, or by whole forward passes; `BatchReading`, many
texts at a time."""

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


class BatchReading(Protocol):
    """Several texts that a model reads piece by piece, each as if it were alone."""

    def read(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        """[B, V] float32 on the CPU: logits for the token after each of these, which follow all those of their text read before. The first pieces
        may differ in length; later ones are as long as each other."""
        ...

    def keep(self, places: Sequence[int]) -> None:
        """Only these of the texts are read on, in this order."""
        ...


class SeparateReadings:
    """One text after the other."""

    def __init__(self, model: TransparentLlm) -> None:
        self._model = model
        self._readings: list[Reading] | None = None

    def read(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        if self._readings is None:
            self._readings = [self._model.reading() for _ in pieces]
        return torch.stack([reading.read(piece) for reading, piece in zip(self._readings, pieces, strict=True)])

    def keep(self, places: Sequence[int]) -> None:
        assert self._readings is not None
        self._readings = [self._readings[place] for place in places]


class CachedBatch:
    """All texts in one forward pass, keys and values kept.

    Texts are padded on the left, so that all of them end, and go on, at the same place. The padding is masked, and positions count from each
    text's first token.

    Args:
        hf_model, device, turn: as of `CachedReading`.
        tells_positions: whether the model takes `position_ids`; one that has none, as with ALiBi, may refuse them.
    """

    def __init__(self, hf_model: Any, device: str, turn: Callable[[], AbstractContextManager[Any]], tells_positions: bool = True) -> None:
        self._hf_model = hf_model
        self._device = device
        self._turn = turn
        self._tells_positions = tells_positions
        self._cache: Any = None
        self._mask: Tensor | None = None

    def read(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, pieces))
        ids, mask = torch.zeros(2, len(pieces), width, dtype=torch.long)
        for row, piece in enumerate(pieces):
            ids[row, width - len(piece) :] = torch.tensor(piece)
            mask[row, width - len(piece) :] = 1
        whole = mask if self._mask is None else torch.cat([self._mask, mask], 1)
        options: dict[str, Tensor] = {"attention_mask": whole.to(self._device)}
        if self._tells_positions:
            options["position_ids"] = (whole.cumsum(-1) - 1).clamp(min=0)[:, -width:].to(self._device)
        try:
            with self._turn(), torch.inference_mode():
                output = self._hf_model(ids.to(self._device), **options, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
                logits = output.logits[:, -1].float().cpu()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(
                f"{self._device} ran out of memory while reading {len(pieces)} texts of up to {whole.shape[1]} tokens. Shorten the texts."
            ) from error
        self._cache, self._mask = output.past_key_values, whole
        return logits

    def keep(self, places: Sequence[int]) -> None:
        assert self._mask is not None
        if list(places) != list(range(len(self._mask))):
            self._mask = self._mask[list(places)]
            self._cache.batch_select_indices(torch.tensor(list(places), device=self._device))
