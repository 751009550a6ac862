"""Attention through SDPA, its queries, keys and values captured on the way: what a trace needs, and no T x T pattern is ever formed.

TransformerLens computes attention anew, eagerly. Here its attention modules hand over to the Hugging Face module they wrap, which calls the
function registered below. Whether that is right for a model is proven by the backend, at load and for every trace.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Transformers treats every name that contains "sdpa" as its own function.
_NAME = "llm_tt_captured"


@dataclass(frozen=True, eq=False)
class Captured:
    """What one attention module was called with: queries [H, T, E], keys and values [K, T, E], and the factor on q k^T."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float


_captures: ContextVar[dict[int, Captured] | None] = ContextVar("captures", default=None)


@contextmanager
def capturing() -> Iterator[dict[int, Captured]]:
    """Collect, in this thread, what the attention modules are called with: layer -> `Captured`."""
    captures: dict[int, Captured] = {}
    token = _captures.set(captures)
    try:
        yield captures
    finally:
        _captures.reset(token)


def enable(bridge: Any, hf_config: Any) -> None:
    """Let a bridge's attention modules call the Hugging Face modules they wrap, and those the function that captures."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    hf_config._attn_implementation = _NAME
    for block in bridge.blocks:
        # Set past the module's own __setattr__, which forwards to the wrapped module.
        object.__setattr__(block.attn, "forward", types.MethodType(AttentionBridge.forward, block.attn))


def disable(bridge: Any, hf_config: Any) -> None:
    """Back to TransformerLens' own attention."""
    hf_config._attn_implementation = "eager"
    for block in bridge.blocks:
        vars(block.attn).pop("forward", None)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    captures = _captures.get()
    if captures is not None:
        captures[module.layer_idx] = Captured(query[0], key[0], value[0], scaling or query.shape[-1] ** -0.5)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
