"""Makers of tiny configurations: the shapes that families share, and settings small enough to matter on a short prompt."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

N_VOCAB = 400
"""More rows than either tokenizer has ids: checkpoints pad their embeddings"""
N_CTX = 256
WINDOW = 8
"""Of the families with sliding or local attention"""
LENGTHS = (1, 2, 7, 20, 60)

ConfigMaker = Callable[[], PretrainedConfig]

IDS: dict[str, Any] = {"vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROTARY: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": N_CTX,
    **{f"{what}_dropout": 0.0 for what in ("attention", "residual", "embedding", "hidden")},
}
GPT2: dict[str, Any] = {
    **IDS,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": N_CTX,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
BIASES = {"attention_bias": True, "mlp_bias": True}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
SOFT_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 20}
MULTIPLIERS = {"embedding_multiplier": 1.5, "logits_scaling": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.5}
MLA = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
GROUPED = {"n_routed_experts": 6, "n_group": 2, "topk_group": 1, "n_shared_experts": 2, "routed_scaling_factor": 1.7, **ROUTED}
SHARED = {"num_experts": 6, "shared_expert_intermediate_size": 24, **ROUTED}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LINEAR_LAYERS = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}


def made(model_type: str, shape: dict[str, Any], changes: dict[str, Any]) -> ConfigMaker:
    def make() -> PretrainedConfig:
        kind = CONFIG_MAPPING[model_type]
        # A configuration keeps any key it is given, but a published one has only its family's.
        known = {field.name for field in fields(kind)} | set(kind.attribute_map)
        # Copied, since configurations keep and change the lists they are given.
        return kind(**deepcopy({key: value for key, value in shape.items() if key in known} | changes))

    return make


def rotary(model_type: str, **changes: Any) -> ConfigMaker:
    """A family whose configuration speaks as Llama's."""
    return made(model_type, ROTARY, changes)


def absolute(model_type: str, **changes: Any) -> ConfigMaker:
    """A family whose configuration speaks as GPT-2's."""
    return made(model_type, GPT2, changes)


def opt_config(**changes: Any) -> PretrainedConfig:
    shape = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return made("opt", {**IDS, **shape, "max_position_embeddings": N_CTX, "dropout": 0.0}, changes)()


def gpt_neo() -> PretrainedConfig:
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": N_CTX, "intermediate_size": 64}
    return made("gpt_neo", {**IDS, **shape}, {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW})()


def falcon(**changes: Any) -> ConfigMaker:
    return rotary("falcon", ffn_hidden_size=64, bias=True, **changes)


def bloom(**changes: Any) -> ConfigMaker:
    shape = {"hidden_size": 32, "n_layer": 3, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0, "seq_length": N_CTX}
    return made("bloom", {**IDS, **shape}, changes)


def mpt(**changes: Any) -> ConfigMaker:
    shape = {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": N_CTX}
    return made("mpt", {**IDS, **shape}, changes)
