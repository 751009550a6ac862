"""Direct effects by brute force: every part of a plain model's float64 run written out as a vector, normalised and unembedded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import reference
import torch
from reference import Run
from torch import Tensor, nn

_FINAL_NORMS = ("transformer.ln_f", "model.norm", "gpt_neox.final_layer_norm", "model.decoder.final_layer_norm")


@dataclass(frozen=True, eq=False)
class Head:
    """A plain model's final norm and unembedding, float64."""

    norm: nn.Module
    unembedding: Tensor
    unembedding_bias: Tensor
    scale: float
    cap: float | None

    @classmethod
    def of(cls, model: Any) -> Head:
        (norm,) = (module for name, module in model.named_modules() if name in _FINAL_NORMS)
        head = model.get_output_embeddings()
        config = model.config
        scale = getattr(config, "logit_scale", None) or 1.0
        bias = torch.zeros(len(head.weight), dtype=torch.float64) if head.bias is None else head.bias.detach().double()
        scale = scale / (getattr(config, "logits_scaling", None) or 1.0)
        return cls(norm, head.weight.detach().double(), bias, scale, getattr(config, "final_logit_softcapping", None))

    def _weight(self) -> Tensor:
        weight = self.norm.weight.detach().double()  # type: ignore[union-attr, operator]
        return 1 + weight if type(self.norm).__name__.startswith("Gemma") else weight

    def effects(self, parts: Tensor, whole: Tensor, direction: Tensor) -> Tensor:
        """[..., d] -> [...]: each part under the norm of the whole, on the part of the vocabulary that `direction` [V] picks."""
        if "LayerNorm" in type(self.norm).__name__:
            parts, whole = parts - parts.mean(-1, keepdim=True), whole - whole.mean()
        eps = next(getattr(self.norm, name) for name in ("eps", "variance_epsilon") if hasattr(self.norm, name))
        return self.scale * (parts / (whole.square().mean() + eps).sqrt() * self._weight()) @ (self.unembedding.T @ direction)

    def biases(self, direction: Tensor) -> float:
        bias = getattr(self.norm, "bias", None)
        own = torch.zeros(self.unembedding.shape[1], dtype=torch.float64) if bias is None else bias.detach().double()
        return float(self.scale * (self.unembedding @ own + self.unembedding_bias) @ direction)

    def uncapped(self, logits: Tensor) -> Tensor:
        return logits if self.cap is None else self.cap * torch.atanh(logits / self.cap)


@dataclass(frozen=True, eq=False)
class Expected:
    heads: Tensor
    attention_bias: Tensor
    ffn: Tensor
    neurons: tuple[Tensor, ...]
    ffn_bias: Tensor
    embedding: float
    biases: float
    logit: float
    pre: tuple[float, ...]
    """of the residual stream before each layer, and after the last"""
    mid: tuple[float, ...]


def direction(n_vocab: int, token: int, contrast: int | None) -> Tensor:
    result = torch.zeros(n_vocab, dtype=torch.float64)
    result[token] = 1
    if contrast is not None:
        result[contrast] = -1
    return result


def brute_force(head: Head, run: Run, target: int, token: int, contrast: int | None) -> Expected:
    wanted = direction(run.logits.shape[1], token, contrast)
    whole = run.layers[-1].post[target]

    def effects(parts: Tensor) -> Tensor:
        return head.effects(parts, whole, wanted)

    return Expected(
        heads=torch.stack([effects(reference.attention_parts(layer)[target]).T for layer in run.layers]),
        attention_bias=torch.stack([effects(reference.attention_bias(layer)[target]) for layer in run.layers]),
        ffn=torch.stack([effects(layer.ffn_out[target]) for layer in run.layers]),
        neurons=tuple(effects(reference.neuron_parts(layer)[target]) for layer in run.layers),
        ffn_bias=torch.stack([effects(reference.ffn_bias(layer)[target]) for layer in run.layers]),
        embedding=float(effects(run.layers[0].pre[target])),
        biases=head.biases(wanted),
        logit=float(head.uncapped(run.logits[target]) @ wanted),
        pre=tuple(float(effects(layer.pre[target])) for layer in run.layers),
        mid=tuple(float(effects(layer.mid[target])) for layer in run.layers),
    )
