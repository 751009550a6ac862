"""Tiny random checkpoints of every supported family, saved as a user would have them: a folder with config, safetensors and tokenizer.

Every bias is non-zero and every norm weight differs from one, grouped-query attention where the family has it, attention peaked and blocks that
change the stream, windows, soft caps, sinks and multipliers that matter, experts that share the tokens, so that a decomposition that forgets a
term is far off. Nothing here knows llm_tt.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from made_tokenizers import byte_level_tokenizer, metaspace_tokenizer
from random_weights import random_model
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

__all__ = ["byte_level_tokenizer", "metaspace_tokenizer", "random_model"]

N_VOCAB = 400
"""More rows than either tokenizer has ids: checkpoints pad their embeddings"""
N_CTX = 256
WINDOW = 8
"""Of the families with sliding or local attention"""
LENGTHS = (1, 2, 7, 20, 60)

ConfigMaker = Callable[[], PretrainedConfig]

_IDS: dict[str, Any] = {"vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_ROTARY: dict[str, Any] = {
    **_IDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": N_CTX,
}
_GPT2: dict[str, Any] = {
    **_IDS,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": N_CTX,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_NO_DROPOUT = {"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0, "hidden_dropout": 0.0}
_BIASES = {"attention_bias": True, "mlp_bias": True}
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_SOFT_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 20}
_MULTIPLIERS = {"embedding_multiplier": 1.5, "logits_scaling": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.5}
_MLA = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GROUPED = {"n_routed_experts": 6, "n_group": 2, "topk_group": 1, "n_shared_experts": 2, "routed_scaling_factor": 1.7, **_ROUTED}
_SHARED = {"num_experts": 6, "shared_expert_intermediate_size": 24, **_ROUTED}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_LINEAR_LAYERS = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}


def _made(model_type: str, shape: dict[str, Any], changes: dict[str, Any]) -> ConfigMaker:
    # Copied, since configurations keep and change the lists they are given.
    return lambda: AutoConfig.for_model(model_type, **deepcopy({**shape, **changes}))


def _rotary(model_type: str, **changes: Any) -> ConfigMaker:
    """A family whose configuration speaks as Llama's."""
    return _made(model_type, _ROTARY, changes)


def _absolute(model_type: str, **changes: Any) -> ConfigMaker:
    """A family whose configuration speaks as GPT-2's."""
    return _made(model_type, _GPT2, changes)


def opt_config(**changes: Any) -> PretrainedConfig:
    shape = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return _made("opt", {**_IDS, **shape, "max_position_embeddings": N_CTX, "dropout": 0.0}, changes)()


def _gpt_neo() -> PretrainedConfig:
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": N_CTX, "intermediate_size": 64}
    return _made("gpt_neo", {**_IDS, **shape}, {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW})()


def _ungrouped(model_type: str, **changes: Any) -> ConfigMaker:
    """As `_rotary`, for a family whose configuration has no key-value heads of that name; TransformerLens would believe one left there."""
    return _made(model_type, {key: value for key, value in _ROTARY.items() if key != "num_key_value_heads"}, changes)


def _falcon(**changes: Any) -> ConfigMaker:
    return _ungrouped("falcon", ffn_hidden_size=64, hidden_dropout=0.0, bias=True, **changes)


def _bloom(**changes: Any) -> ConfigMaker:
    shape = {"hidden_size": 32, "n_layer": 3, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0, "seq_length": N_CTX}
    return _made("bloom", {**_IDS, **shape}, changes)


def _mpt(**changes: Any) -> ConfigMaker:
    shape = {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": N_CTX}
    return _made("mpt", {**_IDS, **shape}, changes)


#: Families whose blocks are sums of heads and neurons, as far as they have neurons.
FAMILIES: dict[str, ConfigMaker] = {
    "gpt2": _absolute("gpt2"),
    "gpt_neo": _gpt_neo,
    "opt": opt_config,
    "llama": _rotary("llama", **_BIASES),
    "llama_plain": _rotary("llama", tie_word_embeddings=True),
    "mistral": _rotary("mistral", sliding_window=WINDOW),
    "qwen2": _rotary("qwen2"),
    "qwen3": _rotary("qwen3", head_dim=16, attention_bias=True),
    "gemma": _rotary("gemma", num_key_value_heads=1, head_dim=16, attention_bias=True),
    # one norm, one attention, one FFN after the other
    "ministral3": _rotary(
        "ministral3",
        head_dim=16,
        sliding_window=WINDOW,
        rope_parameters={
            "type": "yarn",
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 4,
            "max_position_embeddings": 16,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.3,
        },
    ),
    "smollm3": _rotary("smollm3", **_BIASES, no_rope_layers=[1, 0, 1]),
    "seed_oss": _rotary("seed_oss", head_dim=16, attention_out_bias=True, mlp_bias=True, **_NO_DROPOUT),
    "nemotron": _rotary("nemotron", **_BIASES),
    "arcee": _rotary("arcee", **_BIASES),
    "apertus": _rotary("apertus", attention_bias=True),
    "ernie4_5": _rotary("ernie4_5", head_dim=16, use_bias=True),
    "hunyuan_v1_dense": _rotary("hunyuan_v1_dense", attention_bias=True, head_dim=16),
    "jais2": _rotary("jais2", **_BIASES),
    "olmo": _rotary("olmo", attention_bias=True),
    "starcoder2": _rotary("starcoder2", use_bias=True, sliding_window=WINDOW, **_NO_DROPOUT),
    "stablelm": _rotary("stablelm", use_qkv_bias=True, **_NO_DROPOUT),
    "glm": _rotary("glm", head_dim=16, attention_bias=True),
    "phi3": _rotary("phi3", sliding_window=WINDOW),
    "gpt_bigcode": _absolute("gpt_bigcode", multi_query=True),
    "nanochat": _rotary("nanochat", attention_bias=True, final_logit_softcapping=5.0),
    "modernbert-decoder": _rotary(
        "modernbert-decoder",
        **_BIASES,
        norm_bias=True,
        local_attention=2 * WINDOW,
        layer_types=_SLIDING["layer_types"],
        cls_token_id=1,
        sep_token_id=2,
    ),
    "vaultgemma": _rotary("vaultgemma", head_dim=16, attention_bias=True, **_SLIDING, **_SOFT_CAPS),
    "bitnet": _rotary("bitnet", attention_bias=True),
    "xglm": _made(
        "xglm",
        {**_IDS, "d_model": 32, "ffn_dim": 64, "num_layers": 3, "attention_heads": 4, "max_position_embeddings": N_CTX},
        {"dropout": 0.0, "attention_dropout": 0.0},
    ),
    # ALiBi
    "bloom": _bloom(),
    "mpt": _mpt(),
    # attention and FFN in parallel
    "gpt_neox": _ungrouped("gpt_neox", attention_dropout=0.0, hidden_dropout=0.0),
    "gptj": _absolute("gptj", rotary_dim=4),
    "codegen": _absolute("codegen", rotary_dim=4, n_ctx=N_CTX),
    "phi": _rotary("phi"),
    "falcon": _falcon(multi_query=True, alibi=False),
    "cohere": _rotary("cohere", attention_bias=True, logit_scale=0.3),
    "cohere2": _rotary("cohere2", attention_bias=True, logit_scale=0.3, **_SLIDING),
    # norms after attention and FFN
    "gemma2": _rotary("gemma2", head_dim=16, attention_bias=True, **_SLIDING, **_SOFT_CAPS),
    "gemma3_text": _rotary("gemma3_text", head_dim=16, attention_bias=True, query_pre_attn_scalar=20, **_SLIDING),
    "gemma4_text": _rotary(
        "gemma4_text",
        head_dim=16,
        global_head_dim=24,
        final_logit_softcapping=5.0,
        vocab_size_per_layer_input=N_VOCAB,
        hidden_size_per_layer_input=0,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    ),
    "olmo2": _rotary("olmo2", attention_bias=True),
    "olmo3": _rotary("olmo3", attention_bias=True, **_SLIDING),
    "glm4": _rotary("glm4", head_dim=16, attention_bias=True),
    "exaone4": _rotary("exaone4", **_SLIDING),
    # multipliers
    "granite": _rotary("granite", **_BIASES, **_MULTIPLIERS),
    # multi-head latent attention
    "deepseek_v2": _rotary(
        "deepseek_v2", first_k_dense_replace=1, attention_bias=True, topk_method="group_limited_greedy", **_MLA, **_GROUPED
    ),
    "deepseek_v3": _rotary("deepseek_v3", first_k_dense_replace=1, attention_bias=True, **_MLA, **_GROUPED),
    "glm4_moe_lite": _rotary("glm4_moe_lite", attention_bias=True, mlp_layer_types=["dense", "sparse", "sparse"], **_MLA, **_GROUPED),
    "glm_moe_dsa": _rotary(
        "glm_moe_dsa", attention_bias=True, first_k_dense_replace=1, index_topk=6, index_head_dim=8, index_n_heads=2, **_MLA, **_GROUPED
    ),
    "youtu": _rotary("youtu", attention_bias=True, **_MLA),
    # mixtures of experts
    "mixtral": _rotary("mixtral", num_local_experts=5, num_experts_per_tok=2, sliding_window=WINDOW),
    "qwen2_moe": _rotary("qwen2_moe", qkv_bias=True, mlp_only_layers=[0], **_SHARED),
    "qwen3_moe": _rotary("qwen3_moe", num_experts=6, attention_bias=True, norm_topk_prob=True, mlp_only_layers=[1], **_ROUTED),
    "olmoe": _rotary("olmoe", num_experts=6, num_experts_per_tok=2, attention_bias=True),
    "flex_olmo": _rotary("flex_olmo", num_experts=6, num_experts_per_tok=2, attention_bias=True),
    "granitemoe": _rotary("granitemoe", num_local_experts=5, num_experts_per_tok=2, attention_bias=True, **_MULTIPLIERS),
    "phimoe": _rotary("phimoe", num_local_experts=5, num_experts_per_tok=2, attention_bias=True, lm_head_bias=True),
    "ernie4_5_moe": _rotary(
        "ernie4_5_moe",
        use_bias=True,
        moe_num_experts=6,
        moe_k=2,
        moe_intermediate_size=16,
        moe_num_shared_experts=2,
        moe_layer_start_index=1,
    ),
    "glm4_moe": _rotary("glm4_moe", attention_bias=True, use_qk_norm=True, head_dim=16, first_k_dense_replace=1, **_GROUPED),
    "gpt_oss": _rotary("gpt_oss", num_local_experts=5, num_experts_per_tok=2, head_dim=16, attention_bias=True, **_SLIDING),
    "afmoe": _rotary(
        "afmoe",
        head_dim=16,
        attention_bias=True,
        num_dense_layers=1,
        num_experts=6,
        num_shared_experts=2,
        route_scale=1.7,
        mup_enabled=True,
        **_ROUTED,
        **_SLIDING,
    ),
    "minimax_m2": _rotary("minimax_m2", head_dim=16, num_local_experts=6, num_experts_per_tok=2),
    "laguna": _rotary(
        "laguna",
        head_dim=16,
        attention_bias=True,
        num_attention_heads_per_layer=[4, 8, 4],
        moe_routed_scaling_factor=1.7,
        **_SHARED,
        **_SLIDING,
    ),
    "jetmoe": _rotary("jetmoe", kv_channels=16, num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2),
    "llama4_text": _rotary(
        "llama4_text",
        head_dim=16,
        attention_bias=True,
        num_local_experts=5,
        num_experts_per_tok=2,
        intermediate_size_mlp=48,
        moe_layers=[1, 2],
        no_rope_layers=[1, 0, 1],
        attention_chunk_size=WINDOW,
        floor_scale=4,
    ),
}

#: The families that every expensive test is run on: one norm, one attention and one FFN after the other, no experts.
CORE = ("gpt2", "gpt_neo", "opt", "llama", "llama_plain", "mistral", "qwen2", "qwen3", "gemma")

#: Settings of a family that change its attention pattern.
ATTENTION_VARIANTS: dict[str, ConfigMaker] = {
    "gpt2_inverse_layer": _absolute("gpt2", scale_attn_by_inverse_layer_idx=True),
    "mistral_full": _rotary("mistral", sliding_window=None),
    "qwen2_sliding": _rotary("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen2_window_off": _rotary("qwen2", use_sliding_window=False, sliding_window=WINDOW),
}

#: Settings of a family that change how its blocks are taken apart.
VARIANTS: dict[str, ConfigMaker] = ATTENTION_VARIANTS | {
    "gpt_neox_sequential": _ungrouped("gpt_neox", use_parallel_residual=False, attention_dropout=0.0, hidden_dropout=0.0),
    "falcon_multi_head": _falcon(multi_query=False, alibi=False),
    "falcon_sequential": _falcon(multi_query=False, alibi=False, parallel_attn=False),
    "falcon_alibi": _falcon(multi_query=False, alibi=True, parallel_attn=False),
    "falcon_new_decoder": _falcon(new_decoder_architecture=True, num_kv_heads=2, alibi=False),
    "stablelm_parallel": _rotary("stablelm", use_qkv_bias=True, use_parallel_residual=True, **_NO_DROPOUT),
    "stablelm_qk_norm": _rotary("stablelm", use_qkv_bias=True, qk_layernorm=True, **_NO_DROPOUT),
    "phi_qk_norm": _rotary("phi", qk_layernorm=True),
    "cohere_qk_norm": _rotary("cohere", attention_bias=True, logit_scale=0.3, use_qk_norm=True),
    "gpt_bigcode_multi_head": _absolute("gpt_bigcode", multi_query=False),
    "mpt_clipped": _mpt(attn_config={"clip_qkv": 0.8, "softmax_scale": 0.7}),
    "olmo_clipped": _rotary("olmo", attention_bias=True, clip_qkv=0.8),
    "gemma2_uncapped": _rotary(
        "gemma2", head_dim=16, **_SLIDING, attn_logit_softcapping=None, final_logit_softcapping=None, query_pre_attn_scalar=20
    ),
    "gemma4_per_layer_input": _rotary(
        "gemma4_text",
        head_dim=16,
        global_head_dim=24,
        vocab_size_per_layer_input=N_VOCAB,
        hidden_size_per_layer_input=8,
        **{**_SLIDING, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "gemma4_experts": _rotary(
        "gemma4_text",
        head_dim=16,
        global_head_dim=24,
        vocab_size_per_layer_input=N_VOCAB,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=5,
        top_k_experts=2,
        moe_intermediate_size=16,
        **{**_SLIDING, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "glm4_moe_plain": _rotary("glm4_moe", head_dim=16, first_k_dense_replace=1, **_GROUPED),
    "deepseek_v3_full_rank_queries": _rotary("deepseek_v3", first_k_dense_replace=1, **{**_MLA, "q_lora_rank": None}, **_GROUPED),
    "mixtral_top_1": _rotary("mixtral", num_local_experts=4, num_experts_per_tok=1),
    "laguna_ungated": _rotary("laguna", head_dim=16, gating=False, **_SHARED, **_SLIDING),
    "laguna_gated_per_head": _rotary("laguna", head_dim=16, gating="per-head", **_SHARED, **_SLIDING),
    "granitemoehybrid_attention_only": _rotary(
        "granitemoehybrid",
        layer_types=["attention"] * 3,
        num_local_experts=5,
        num_experts_per_tok=2,
        shared_intermediate_size=24,
        **_MULTIPLIERS,
        **_MAMBA,
    ),
}

#: Models that are no sum of heads and neurons on one residual stream: state spaces, linear attention, convolutions, several or looped streams, a
#: stream that is itself normalised.
HYBRIDS: dict[str, ConfigMaker] = {
    "qwen3_next": _rotary("qwen3_next", head_dim=16, attention_bias=True, **_SHARED, **_LINEAR, **_LINEAR_LAYERS),
    "qwen3_5_text": _rotary("qwen3_5_text", head_dim=16, attention_bias=True, **_LINEAR, **_LINEAR_LAYERS),
    "qwen3_5_moe_text": _rotary("qwen3_5_moe_text", head_dim=16, attention_bias=True, **_SHARED, **_LINEAR, **_LINEAR_LAYERS),
    "olmo_hybrid": _rotary("olmo_hybrid", attention_bias=True, **_LINEAR, **_LINEAR_LAYERS),
    "lfm2": _rotary("lfm2", block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention", "conv"]),
    "lfm2_moe": _rotary("lfm2_moe", num_dense_layers=1, num_experts=5, layer_types=["conv", "full_attention", "conv"], **_ROUTED),
    "bamba": _rotary("bamba", attn_layer_indices=[1], **_MAMBA),
    "jamba": _rotary("jamba", attn_layer_period=2, attn_layer_offset=1, num_experts=4, use_mamba_kernels=False, mamba_d_state=8),
    "granitemoehybrid": _rotary(
        "granitemoehybrid",
        layer_types=["mamba", "attention", "mamba"],
        num_local_experts=5,
        num_experts_per_tok=2,
        shared_intermediate_size=24,
        **_MULTIPLIERS,
        **_MAMBA,
    ),
    "falcon_h1": _rotary("falcon_h1", mamba_d_ssm=64, **_MAMBA),
    "nemotron_h": _rotary(
        "nemotron_h",
        head_dim=16,
        layers_block_type=["mamba", "attention", "moe"],
        n_routed_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        chunk_size=16,
        use_mamba_kernels=False,
    ),
    "recurrent_gemma": _rotary("recurrent_gemma", num_key_value_heads=1, lru_width=32, attention_window_size=WINDOW),
    "zamba2": _rotary(
        "zamba2",
        num_key_value_heads=4,
        layers_block_type=["mamba", "hybrid", "mamba"],
        mamba_d_state=8,
        n_mamba_heads=8,
        chunk_size=16,
        adapter_rank=4,
        use_mamba_kernels=False,
    ),
    "mamba": _made("mamba", {**_IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "time_step_rank": 2}, {}),
    "falcon_mamba": _made("falcon_mamba", {**_IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "time_step_rank": 2}, {}),
    "mamba2": _made(
        "mamba2",
        {
            **_IDS,
            "hidden_size": 32,
            "state_size": 8,
            "num_hidden_layers": 3,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 16,
        },
        {},
    ),
    "rwkv": _made("rwkv", {**_IDS, "hidden_size": 32, "num_hidden_layers": 3, "context_length": N_CTX, "intermediate_size": 64}, {}),
    "deepseek_v4": _rotary(
        "deepseek_v4",
        num_key_value_heads=1,
        head_dim=16,
        q_lora_rank=12,
        qk_rope_head_dim=4,
        n_routed_experts=6,
        n_shared_experts=1,
        sliding_window=WINDOW,
        o_groups=2,
        o_lora_rank=8,
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
        num_hash_layers=1,
        **_ROUTED,
    ),
    "openai-gpt": _absolute("openai-gpt"),
    "hrm_text": _rotary("hrm_text", head_dim=8, num_hidden_layers=2, num_key_value_heads=4, prefix_lm=False),
}

#: Settings of a family under which the residual stream is itself normalised.
NORMALISED_STREAMS: dict[str, ConfigMaker] = {
    "opt_norm_after": lambda: opt_config(do_layer_norm_before=False),
    "bloom_norm_before_residual": _bloom(apply_residual_connection_post_layernorm=True),
}

#: A setting that TransformerLens 4.3 ignores: its logits are not the model's. To be refused, or got right.
MISREAD: dict[str, ConfigMaker] = {"gpt2_unscaled": _absolute("gpt2", scale_attn_weights=False)}

CHECKPOINTS: dict[str, ConfigMaker] = FAMILIES | VARIANTS | HYBRIDS | NORMALISED_STREAMS | MISREAD

_METASPACE = ("llama", "llama_plain", "mistral", "mistral_full", "gemma")


def save_checkpoint(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Path:
    random_model(config, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_family(name: str, folder: Path) -> Path:
    """The checkpoint of a name of `CHECKPOINTS`."""
    return save_checkpoint(folder, CHECKPOINTS[name](), metaspace_tokenizer() if name in _METASPACE else byte_level_tokenizer())


def token_ids(n_tokens: int, seed: int = 0) -> list[int]:
    """Random ids of the vocabulary, none of them special."""
    generator = torch.Generator().manual_seed(1000 * seed + n_tokens)
    return torch.randint(3, N_VOCAB, (n_tokens,), generator=generator).tolist()
