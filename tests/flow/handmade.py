"""A `TransparentLlm` whose activations are written down by the test: for nodes that no random model reaches, such as degenerate ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_tt.models.patterns import StoredPattern
from llm_tt.models.transparent_llm import BlockActivations, ModelInfo, Neurons, Trace, TransparentLlm
from llm_tt.progress import Progress, silent


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

    def neurons(self, layer: int, ffn_input: Tensor) -> Neurons:
        return Neurons(-torch.ones(len(ffn_input), self.info.d_model), None)

    def neuron_output(self, layer: int, neurons: Tensor | None = None) -> Tensor:
        return torch.eye(self.info.d_model) if neurons is None else torch.eye(self.info.d_model)[neurons]

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
    return Trace(HandmadeLlm(w_o), ids, tuple(map(str, ids)), pre, (block,))
