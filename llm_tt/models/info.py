"""`ModelInfo`, the facts of a loaded model. Apart from the model itself, so that those who only show them need not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

AttentionMode = Literal["eager", "fused"]
NormKind = Literal["layer", "rms"]


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

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype)
