"""`ModelInfo`, the facts of a loaded model, and `LayerErrors`, how well it adds up. Apart from the model itself, so that those who only show
them need not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

AttentionMode = Literal["eager", "fused"]
NormKind = Literal["layer", "rms"]


ChatTemplateSource = Literal["checkpoint", "config"]


@dataclass(frozen=True)
class FfnShape:
    """The neurons of one FFN block. In a mixture of experts those of expert e are numbered e * per_expert onwards, shared experts' come last."""

    per_expert: int
    """neurons of a dense FFN, or of each routed expert"""
    n_experts: int = 0
    """routed experts; 0 for a dense FFN"""
    n_shared: int = 0
    """neurons of all shared experts together"""
    experts_per_token: int = 0
    """routed experts that one token is sent to"""

    @property
    def n_neurons(self) -> int:
        return self.per_expert * max(self.n_experts, 1) + self.n_shared

    @property
    def n_per_token(self) -> int:
        """Neurons that take part for one token."""
        return self.per_expert * max(self.experts_per_token, 1) + self.n_shared

    def name(self, neuron: int) -> str:
        """5 -> "neuron 5", in a mixture of experts "expert 0, neuron 5" or "shared expert, neuron 5"."""
        if not self.n_experts:
            return f"neuron {neuron}"
        expert, index = divmod(neuron, self.per_expert)
        if expert < self.n_experts:
            return f"expert {expert}, neuron {index}"
        return f"shared expert, neuron {neuron - self.n_experts * self.per_expert}"


@dataclass(frozen=True)
class TokenizerInfo:
    """What a tokenizer does to a text by its own rules."""

    n_tokens: int
    """ids it can make, added tokens included; the model's embedding may have more rows"""
    prefix: tuple[str, ...]
    """special tokens it puts in front of every text, usually none or BOS"""
    suffix: tuple[str, ...]
    special_tokens: tuple[str, ...]
    chat_template: ChatTemplateSource | None
    """where the chat template comes from; None: the model has none"""


@dataclass(frozen=True)
class LayerErrors:
    """Relative errors of one layer: norm of the difference over norm of the whole (Frobenius)."""

    layer: int
    attention: float
    neurons: float
    """0 where the neurons are not shown"""
    residual: float
    future: float
    """the largest attention to a future token"""


@dataclass(frozen=True)
class Running:
    """What exists beside what a trace keeps while it is made, in numbers of the model's dtype, measured when the model was loaded.

    The inner vectors of FFNs that read a prompt in pieces are not in it."""

    moments: tuple[tuple[float, float], ...]
    """at the moments when there was most of it: numbers for each token, and for each pair of tokens (patterns, scores, masks). Less than nothing
    for each token: not all layers had been traced"""
    in_pieces: bool
    """FFNs read a prompt in pieces"""


@dataclass(frozen=True)
class ModelInfo:
    """The facts of a loaded model."""

    name: str
    family: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    n_neurons: int
    d_vocab: int
    n_ctx: int
    n_params: int
    dtype: str
    device: str
    norm: NormKind
    norm_eps: float
    adapter: str | None = None
    attention: AttentionMode = "eager"
    """ "fused": by SDPA, so that memory grows with the prompt's length and not with its square"""

    ffn: tuple[FfnShape, ...] = ()
    """for each layer; a layer whose FFN has no neurons that could be shown has `n_neurons` 0"""
    tokenizer: TokenizerInfo | None = None
    logits_error: float | None = None
    """relative error of the backend's logits against those of the untouched checkpoint, on the prompt of the check at load"""
    keeps_pattern: bool = False
    """attention is eager and its rows cannot be recomputed (ALiBi, for example), so that a trace keeps every layer's pattern"""
    attention_width: float | None = None
    """numbers that a trace keeps of one token's attention in a layer, on average: queries, keys, values, gates; None: as plain heads have them"""
    stream_width: float | None = None
    """numbers that a trace keeps of one token's residual stream in a layer, on average: what attention and FFN add, and streams that are no sum of
    what is kept; None: both of these and both streams"""
    recomputed_queries: float = 0.0
    """numbers of one token's queries in a layer, on average, where a trace of a long prompt keeps none of them; 0 where it does"""
    running: Running | None = None
    """None: as a plain block has it"""
    not_shown: tuple[str, ...] = ()
    """sentences on what this model has and the method cannot show, for example neurons that no expert recipe covers"""
    notes: tuple[str, ...] = ()
    """sentences on what was done to the checkpoint to load it, for example that several dtypes became one"""

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype)
