"""What gradients need of a model: its token embeddings, and its logits as a function of them. For a Hugging Face model under a lock.

Nothing is kept in the model: its own embedding module runs, and what it puts out is replaced for one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_tt.errors import OutOfMemoryError


class Differentiable(Protocol):
    """A model as a function of its token embeddings, through which gradients flow. No parameter requires one."""

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """[T, d] float32, on the model's device: what the embedding module puts out, positions left out where they are added later."""
        ...

    def logits(self, token_ids: Sequence[int], embeddings: Tensor) -> Tensor:
        """[B, V] float32: for the token after the last, with `embeddings` [B, T, d] in the place of those of the T tokens.

        In the model's own dtype but for the first and the last step; the result has a graph where `embeddings` require a gradient.
        """
        ...


class HuggingFaceGradients:
    """
    Args:
        hf_model: called as transformers calls it.
        device: where its token ids go.
        turn: gives the model to this thread alone, for one call.
    """

    def __init__(self, hf_model: Any, device: str, turn: Callable[[], AbstractContextManager[Any]]) -> None:
        self._hf_model = hf_model
        self._device = device
        self._turn = turn

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        with self._turn(), torch.no_grad():
            return self._hf_model.get_input_embeddings()(self._ids(token_ids, 1))[0].detach().float()

    def logits(self, token_ids: Sequence[int], embeddings: Tensor) -> Tensor:
        def replace(module: Any, inputs: Any, output: Tensor) -> Tensor:
            return embeddings.to(device=output.device, dtype=output.dtype)

        ids = self._ids(token_ids, len(embeddings))
        try:
            with self._turn(), torch.enable_grad():
                handle = self._hf_model.get_input_embeddings().register_forward_hook(replace)
                try:
                    return self._hf_model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
                finally:
                    handle.remove()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(
                f"{self._device} ran out of memory while computing gradients of {len(token_ids)} tokens. Shorten the prompt, or leave the "
                "gradient methods out."
            ) from error

    def _ids(self, token_ids: Sequence[int], times: int) -> Tensor:
        return torch.tensor([list(token_ids)] * times, device=self._device)
