"""A `TransparentLlm` whose activations are written down by the test: for nodes that no random model reaches, such as degenerate ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_tt.models.patterns import StoredPattern
from llm_tt.models.transparent_llm import BlockActivations, ModelInfo, Trace, TransparentLlm
from llm_tt.progress import Progress, silent
from llm_tt.text import Prompt


class HandmadeLlm(TransparentLlm):
    """One layer with a given W_O [H, E, d]; its neurons are -1 and write one entry each."""

    def __init__(self, w_o: Tensor) -> None:
        n_heads, d_head, d = w_o.shape
        self._w_o = w_o
        self.info = ModelInfo("handmade", "handmade", 1, n_heads, n_heads, d, d_head, d, 1000, 1000, 0, "float32", "cpu", "layer", 1e-5)

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return [str(token_id) for token_id in token_ids]

    def run(self, token_ids: Sequence[int], progress: Progress = silent) -> tuple[Tensor, tuple[BlockActivations, ...]]:
        raise NotImplementedError

    def last_logits(self, token_ids: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def attention_output(self, layer: int) -> tuple[Tensor, Tensor | None]:
        return self._w_o, None

    def neuron_output(self, layer: int) -> tuple[Tensor, Tensor | None]:
        return torch.eye(self.info.d_model), None

    def neuron_activations(self, layer: int, resid_mid: Tensor) -> Tensor:
        return -torch.ones(len(resid_mid), self.info.d_model)

    def final_norm(self, x: Tensor) -> Tensor:
        return x

    def unembed(self, x: Tensor) -> Tensor:
        return x


def handmade_trace(
    *, pre: Tensor, mid: Tensor, alpha: Tensor, values: Tensor, w_o: Tensor, post: Tensor | None = None, ffn_out: Tensor | None = None
) -> Trace:
    """pre, mid, post, ffn_out: [T, d]; alpha: [H, T, T]; values: [K, T, E]; w_o: [H, E, d]."""
    post, ffn_out = (mid if post is None else post), (torch.zeros_like(mid) if ffn_out is None else ffn_out)
    block = BlockActivations(mid, post, mid - pre, ffn_out, values, StoredPattern(alpha))
    ids = tuple(range(len(pre)))
    return Trace(HandmadeLlm(w_o), Prompt.bare(None, ids, tuple(map(str, ids))), pre, (block,))
