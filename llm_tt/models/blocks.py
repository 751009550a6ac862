"""How each family's blocks write to the residual stream: one table. What a row means for a running model is `llm_tt.models.bridge`'s business.

TransformerLens says where norms, attention and FFN stand in a block and whether they run in parallel; a row says what it does not. A family that
is not listed is `PLAIN`: `mid = pre + attn(norm(pre))`, `post = mid + ffn(norm(mid))`, a head adds `alpha * v @ W_O`, a neuron `act * W_out`. It
stands or falls with the identities checked at load, as every other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gate:
    """What multiplies a head's mix of values before the output projection: `function` of what `module` of the attention puts out."""

    module: str
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockRecipe:
    """What the backend must know about a family's blocks beyond what TransformerLens says."""

    ffn_is_module: bool = True
    """False where the model has no FFN module of its own, only its two linear layers inside the block (OPT)"""
    ffn_adds_residual: bool = False
    """the FFN module is given the residual stream as well and adds it by itself (Bloom, MPT)"""
    scales_scores: bool = True
    """False where q k^T is not divided by sqrt(d_head) (GPT-Neo)"""
    gate: Gate | None = None
    sub_norm: str | None = None
    """norm of the attention module between the heads' mixes and the output projection (BitNet)"""
    heads_per_layer: str | None = None
    """key of the configuration that lists the number of heads of each layer, where they differ"""
    routed_scale: str | None = None
    """key of the configuration with the factor on the sum of the routed experts, where the FFN applies it after them"""
    scales_expert_inputs: bool = False
    """the routing weight multiplies what an expert reads (Llama 4)"""
    refused: str | None = None
    """why nothing of this family can be shown exactly; a clause that follows "it" """


PLAIN = BlockRecipe()

#: Hugging Face `model_type` -> recipe, where it is not `PLAIN`.
RECIPES: dict[str, BlockRecipe] = {
    "afmoe": BlockRecipe(gate=Gate("gate_proj", torch.sigmoid)),
    "bitnet": BlockRecipe(sub_norm="attn_sub_norm"),
    "bloom": BlockRecipe(ffn_adds_residual=True),
    "glm_moe_dsa": BlockRecipe(refused="lets an indexer of its own pick the tokens that attention sees, for which there is no recipe yet"),
    "gpt_neo": BlockRecipe(scales_scores=False),
    "laguna": BlockRecipe(
        gate=Gate("g_proj", torch.nn.functional.softplus),
        heads_per_layer="num_attention_heads_per_layer",
        routed_scale="moe_routed_scaling_factor",
    ),
    "llama4_text": BlockRecipe(scales_expert_inputs=True),
    "modernbert-decoder": BlockRecipe(
        refused="passes its last representation through a dense layer with an activation before the unembedding, so that logits are no sum of parts"
    ),
    "mpt": BlockRecipe(ffn_adds_residual=True),
    "openai-gpt": BlockRecipe(refused="normalises the residual stream after every block, so that no later layer reads a sum of parts"),
    "jetmoe": BlockRecipe(refused="routes its attention heads through experts, for which there is no recipe yet"),
    "opt": BlockRecipe(ffn_is_module=False),
    "xglm": BlockRecipe(ffn_is_module=False),
}

#: Names under which TransformerLens knows an architecture that Hugging Face calls otherwise.
ARCHITECTURE_NAMES = {"PhimoeForCausalLM": "PhiMoEForCausalLM"}


def recipe(family: str) -> BlockRecipe:
    return RECIPES.get(family, PLAIN)


def softmax_scale(hf_config: Any, layer: int, d_head: int) -> float:
    """The factor on q k^T before the softmax, by the family and its configuration; for attention that is not captured."""
    scaled = recipe(hf_config.model_type).scales_scores and getattr(hf_config, "scale_attn_weights", True)
    scale = d_head**-0.5 if scaled else 1.0
    if getattr(hf_config, "scale_attn_by_inverse_layer_idx", False):
        scale /= layer + 1
    return scale


def attention_windows(hf_config: Any, n_layers: int) -> list[int | None]:
    """For each layer, how many tokens back (itself included) a token can see; None where it sees all. For attention that is not captured."""
    window = getattr(hf_config, "sliding_window", None) or getattr(hf_config, "window_size", None)
    kinds = getattr(hf_config, "layer_types", None) or getattr(hf_config, "attention_layers", None)
    if window is None or getattr(hf_config, "use_sliding_window", True) is False:
        return [None] * n_layers
    if kinds is None:
        return [window] * n_layers
    return [window if kind in ("sliding_attention", "local") else None for kind in kinds]


def experts_per_token(hf_config: Any) -> int:
    """To how many experts a router sends a token."""
    return next((int(count) for key in ("num_experts_per_tok", "moe_k") if (count := getattr(hf_config, key, None))), 1)


def value_limit(hf_config: Any) -> float | None:
    """Values are clipped to this on both sides (MPT); for attention that is not captured."""
    return getattr(getattr(hf_config, "attn_config", None), "clip_qkv", None)


def logit_scale(hf_config: Any) -> float:
    """The constant that the unembedding's result is multiplied with (Cohere), or divided by (Granite)."""
    scale = getattr(hf_config, "logit_scale", None)
    divisor = getattr(hf_config, "logits_scaling", None)
    return (scale if isinstance(scale, int | float) else 1.0) / (divisor or 1.0)


def logit_cap(hf_config: Any) -> float | None:
    """c of the soft cap c * tanh(logits / c) that ends the model (Gemma 2)."""
    return getattr(hf_config, "final_logit_softcapping", None)


@dataclass(frozen=True)
class CachedPositions:
    """Until when keys that were rotated once stay right as a text grows longer."""

    keeps: bool
    """False: each further token may rotate all of them anew"""
    until: int | None = None
    """beyond this many tokens all are rotated otherwise, once"""


def cached_positions(config: Any) -> CachedPositions:
    """By the kinds of rotary embeddings: most rotate a position always alike."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = list(parameters.values()) if all(isinstance(value, dict) for value in parameters.values()) else [parameters]
    if any(kind.get("rope_type") == "dynamic" for kind in kinds):
        return CachedPositions(False)
    until = {int(kind["original_max_position_embeddings"]) for kind in kinds if kind.get("rope_type") == "longrope"}
    return CachedPositions(len(until) < 2, min(until, default=None))
