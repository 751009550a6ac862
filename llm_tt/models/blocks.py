"""How each family's blocks write to the residual stream: one table. What the rows mean for a running model is `llm_tt.models.bridge`'s business.

All families here are sequential: `mid = pre + attn(norm(pre))`, `post = mid + ffn(norm(mid))`, a head adds `alpha * v @ W_O`, a neuron
`act * W_out`. A family that is not listed is treated as `SEQUENTIAL` and stands or falls with the identities checked at load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BlockRecipe:
    """What the backend must know about a family's blocks beyond what its hooks say."""

    ffn_is_module: bool = True
    """False where the model has no FFN module of its own, only its two linear layers inside the block (OPT)"""
    scales_scores: bool = True
    """False where q k^T is not divided by sqrt(d_head) (GPT-Neo)"""


SEQUENTIAL = BlockRecipe()

#: Hugging Face `model_type` -> recipe.
RECIPES: dict[str, BlockRecipe] = {
    "gpt2": SEQUENTIAL,
    "gpt_neo": BlockRecipe(scales_scores=False),
    "opt": BlockRecipe(ffn_is_module=False),
    "llama": SEQUENTIAL,
    "mistral": SEQUENTIAL,
    "qwen2": SEQUENTIAL,
    "qwen3": SEQUENTIAL,
    "gemma": SEQUENTIAL,
}


def recipe(family: str) -> BlockRecipe:
    return RECIPES.get(family, SEQUENTIAL)


def softmax_scale(hf_config: Any, layer: int, d_head: int) -> float:
    """The factor on q k^T before the softmax, by the family and its configuration."""
    scaled = recipe(hf_config.model_type).scales_scores and getattr(hf_config, "scale_attn_weights", True)
    scale = d_head**-0.5 if scaled else 1.0
    if getattr(hf_config, "scale_attn_by_inverse_layer_idx", False):
        scale /= layer + 1
    return scale


def attention_windows(hf_config: Any, n_layers: int) -> list[int | None]:
    """For each layer, how many tokens back (itself included) a token can see; None where it sees all."""
    window = getattr(hf_config, "sliding_window", None) or getattr(hf_config, "window_size", None)
    kinds = getattr(hf_config, "layer_types", None) or getattr(hf_config, "attention_layers", None)
    if window is None or getattr(hf_config, "use_sliding_window", True) is False:
        return [None] * n_layers
    if kinds is None:
        return [window] * n_layers
    return [window if kind in ("sliding_attention", "local") else None for kind in kinds]
