"""A `TransparentLlm` that is only its head: a final norm and an unembedding whose weights the test writes down, biases included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_tt.models.info import ModelInfo, NormKind
from llm_tt.models.transparent_llm import BlockActivations, Neurons, TransparentLlm
from llm_tt.progress import Progress, silent


class AffineLlm(TransparentLlm):
    """final_norm(x) = standardised(x) * weight + bias; unembed(x) = x @ unembedding.T + unembedding_bias."""

    def __init__(
        self,
        unembedding: Tensor,
        unembedding_bias: Tensor | None = None,
        norm: NormKind = "layer",
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> None:
        n_vocab, d_model = unembedding.shape
        self._unembedding = unembedding
        self._unembedding_bias = torch.zeros(n_vocab) if unembedding_bias is None else unembedding_bias
        self._weight = torch.ones(d_model) if weight is None else weight
        self._bias = torch.zeros(d_model) if bias is None else bias
        self.info = ModelInfo("affine", "affine", 1, 1, 1, d_model, d_model, 1, n_vocab, 10, 0, "float32", "cpu", norm, eps)

    def final_norm(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True) if self.info.norm == "layer" else x
        return centred / (centred.square().mean(-1, keepdim=True) + self.info.norm_eps).sqrt() * self._weight + self._bias

    def unembed(self, x: Tensor) -> Tensor:
        return x @ self._unembedding.T + self._unembedding_bias

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return [f"t{token_id}" for token_id in token_ids]

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def run(self, token_ids: Sequence[int], progress: Progress = silent) -> tuple[Tensor, tuple[BlockActivations, ...]]:
        raise NotImplementedError

    def last_logits(self, token_ids: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def attention_output(self, layer: int) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def neurons(self, layer: int, ffn_input: Tensor) -> Neurons:
        raise NotImplementedError

    def neuron_output(self, layer: int, neurons: Tensor | None = None) -> Tensor:
        raise NotImplementedError
