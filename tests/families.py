"""Tiny random checkpoints of every supported family, saved as a user would have them: a folder with config, safetensors and tokenizer.

Every bias is non-zero and every norm weight differs from one, grouped-query attention where the family has it, attention peaked and blocks that
change the stream, windows, soft caps, sinks and multipliers that matter, experts that share the tokens, so that a decomposition that forgets a
term is far off. Nothing here knows llm_tt.
"""

from __future__ import annotations

from pathlib import Path

import torch
from configurations import (
    BIASES,
    GROUPED,
    IDS,
    LENGTHS,
    LINEAR,
    LINEAR_LAYERS,
    MAMBA,
    MLA,
    MULTIPLIERS,
    N_CTX,
    N_VOCAB,
    ROUTED,
    SHARED,
    SLIDING,
    SOFT_CAPS,
    WINDOW,
    ConfigMaker,
    absolute,
    bloom,
    falcon,
    gpt_neo,
    made,
    mpt,
    opt_config,
    rotary,
)
from made_tokenizers import byte_level_tokenizer, metaspace_tokenizer
from random_weights import random_model
from transformers import PretrainedConfig, PreTrainedTokenizerFast

__all__ = ["LENGTHS", "WINDOW", "byte_level_tokenizer", "metaspace_tokenizer", "opt_config", "random_model"]

#: Families whose blocks are sums of heads and neurons, as far as they have neurons.
FAMILIES: dict[str, ConfigMaker] = {
    "gpt2": absolute("gpt2"),
    "gpt_neo": gpt_neo,
    "opt": opt_config,
    "llama": rotary("llama", **BIASES),
    "llama_plain": rotary("llama", tie_word_embeddings=True),
    "mistral": rotary("mistral", sliding_window=WINDOW),
    "qwen2": rotary("qwen2"),
    "qwen3": rotary("qwen3", head_dim=16, attention_bias=True),
    "gemma": rotary("gemma", num_key_value_heads=1, head_dim=16, attention_bias=True),
    # one norm, one attention, one FFN after the other
    "ministral3": rotary(
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
    "smollm3": rotary("smollm3", **BIASES, no_rope_layers=[1, 0, 1]),
    "seed_oss": rotary("seed_oss", head_dim=16, attention_out_bias=True, mlp_bias=True),
    "nemotron": rotary("nemotron", **BIASES),
    "internlm3": rotary("internlm3", **BIASES, head_dim=16),
    "iquestcoder": rotary("iquestcoder", **BIASES, head_dim=16),
    "arcee": rotary("arcee", **BIASES),
    "apertus": rotary("apertus", attention_bias=True),
    "ernie4_5": rotary("ernie4_5", head_dim=16, use_bias=True),
    "hunyuan_v1_dense": rotary("hunyuan_v1_dense", attention_bias=True, head_dim=16),
    "jais2": rotary("jais2", **BIASES),
    "olmo": rotary("olmo", attention_bias=True),
    "starcoder2": rotary("starcoder2", use_bias=True, sliding_window=WINDOW),
    "stablelm": rotary("stablelm", use_qkv_bias=True),
    "glm": rotary("glm", head_dim=16, attention_bias=True),
    "phi3": rotary("phi3", sliding_window=WINDOW),
    "gpt_bigcode": absolute("gpt_bigcode", multi_query=True),
    "nanochat": rotary("nanochat", attention_bias=True, final_logit_softcapping=5.0),
    "vaultgemma": rotary("vaultgemma", head_dim=16, attention_bias=True, **SLIDING, **SOFT_CAPS),
    "bitnet": rotary("bitnet", attention_bias=True),
    "xglm": made(
        "xglm",
        {**IDS, "d_model": 32, "ffn_dim": 64, "num_layers": 3, "attention_heads": 4, "max_position_embeddings": N_CTX},
        {"dropout": 0.0, "attention_dropout": 0.0},
    ),
    # ALiBi
    "bloom": bloom(),
    "mpt": mpt(),
    # attention and FFN in parallel
    "gpt_neox": rotary("gpt_neox"),
    "gptj": absolute("gptj", rotary_dim=4),
    "codegen": absolute("codegen", rotary_dim=4, n_ctx=N_CTX),
    "phi": rotary("phi"),
    "falcon": falcon(multi_query=True, alibi=False),
    "cohere": rotary("cohere", attention_bias=True, logit_scale=0.3),
    "cohere2": rotary("cohere2", attention_bias=True, logit_scale=0.3, **SLIDING),
    # norms after attention and FFN
    "gemma2": rotary("gemma2", head_dim=16, attention_bias=True, **SLIDING, **SOFT_CAPS),
    "gemma3_text": rotary("gemma3_text", head_dim=16, attention_bias=True, query_pre_attn_scalar=20, **SLIDING),
    "olmo2": rotary("olmo2", attention_bias=True),
    "olmo3": rotary("olmo3", attention_bias=True, **SLIDING),
    "glm4": rotary("glm4", head_dim=16, attention_bias=True),
    "exaone4": rotary("exaone4", **SLIDING),
    # multipliers
    "granite": rotary("granite", **BIASES, **MULTIPLIERS),
    # multi-head latent attention
    "deepseek_v2": rotary(
        "deepseek_v2", first_k_dense_replace=1, attention_bias=True, topk_method="group_limited_greedy", **MLA, **GROUPED
    ),
    "deepseek_v3": rotary("deepseek_v3", first_k_dense_replace=1, attention_bias=True, **MLA, **GROUPED),
    "glm4_moe_lite": rotary("glm4_moe_lite", attention_bias=True, mlp_layer_types=["dense", "sparse", "sparse"], **MLA, **GROUPED),
    "youtu": rotary("youtu", attention_bias=True, **MLA),
    # mixtures of experts
    "mixtral": rotary("mixtral", num_local_experts=5, num_experts_per_tok=2, sliding_window=WINDOW),
    "qwen2_moe": rotary("qwen2_moe", qkv_bias=True, mlp_only_layers=[0], **SHARED),
    "qwen3_moe": rotary("qwen3_moe", num_experts=6, attention_bias=True, norm_topk_prob=True, mlp_only_layers=[1], **ROUTED),
    "olmoe": rotary("olmoe", num_experts=6, num_experts_per_tok=2, attention_bias=True),
    "flex_olmo": rotary("flex_olmo", num_experts=6, num_experts_per_tok=2, attention_bias=True),
    "granitemoe": rotary("granitemoe", num_local_experts=5, num_experts_per_tok=2, attention_bias=True, **MULTIPLIERS),
    "phimoe": rotary("phimoe", num_local_experts=5, num_experts_per_tok=2, attention_bias=True, lm_head_bias=True),
    "ernie4_5_moe": rotary(
        "ernie4_5_moe",
        use_bias=True,
        moe_num_experts=6,
        moe_k=2,
        moe_intermediate_size=16,
        moe_num_shared_experts=2,
        moe_layer_start_index=1,
    ),
    "glm4_moe": rotary("glm4_moe", attention_bias=True, use_qk_norm=True, head_dim=16, first_k_dense_replace=1, **GROUPED),
    "gpt_oss": rotary("gpt_oss", num_local_experts=5, num_experts_per_tok=2, head_dim=16, attention_bias=True, **SLIDING),
    "afmoe": rotary(
        "afmoe",
        head_dim=16,
        attention_bias=True,
        num_dense_layers=1,
        num_experts=6,
        num_shared_experts=2,
        route_scale=1.7,
        mup_enabled=True,
        **ROUTED,
        **SLIDING,
    ),
    "minimax_m2": rotary("minimax_m2", head_dim=16, num_local_experts=6, num_experts_per_tok=2),
    "laguna": rotary(
        "laguna",
        head_dim=16,
        attention_bias=True,
        num_attention_heads_per_layer=[4, 8, 4],
        moe_routed_scaling_factor=1.7,
        **SHARED,
        **SLIDING,
    ),
    "llama4_text": rotary(
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
    "gpt2_inverse_layer": absolute("gpt2", scale_attn_by_inverse_layer_idx=True),
    "mistral_full": rotary("mistral", sliding_window=None),
    "qwen2_sliding": rotary("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen2_window_off": rotary("qwen2", use_sliding_window=False, sliding_window=WINDOW),
}

#: Settings of a family that change how its blocks are taken apart.
VARIANTS: dict[str, ConfigMaker] = ATTENTION_VARIANTS | {
    "llama_wide_heads": rotary("llama", **BIASES, head_dim=24),
    "llama_scaled_positions": rotary(
        "llama",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen2_yarn": rotary(
        "qwen2", rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}
    ),
    "phi3_long_positions": rotary(
        "phi3",
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.5],
            "long_factor": [2.0, 4.0],
            "original_max_position_embeddings": 16,
        },
    ),
    "gpt_neox_sequential": rotary("gpt_neox", use_parallel_residual=False),
    "falcon_multi_head": falcon(multi_query=False, alibi=False),
    "falcon_alibi": falcon(multi_query=False, alibi=True, parallel_attn=False),
    "falcon_sequential": falcon(multi_query=False, alibi=False, parallel_attn=False),
    "stablelm_parallel": rotary("stablelm", use_qkv_bias=True, use_parallel_residual=True),
    "stablelm_qk_norm": rotary("stablelm", use_qkv_bias=True, qk_layernorm=True),
    "cohere_qk_norm": rotary("cohere", attention_bias=True, logit_scale=0.3, use_qk_norm=True),
    "bloom_six_heads": bloom(hidden_size=48, n_head=6),
    "mpt_six_heads": mpt(d_model=48, n_heads=6),
    "mpt_clipped": mpt(attn_config={"clip_qkv": 0.8, "softmax_scale": 0.7}),
    "olmo_clipped": rotary("olmo", attention_bias=True, clip_qkv=0.8),
    "gemma2_uncapped": rotary(
        "gemma2", head_dim=16, **SLIDING, attn_logit_softcapping=None, final_logit_softcapping=None, query_pre_attn_scalar=20
    ),
    "glm4_moe_plain": rotary("glm4_moe", head_dim=16, first_k_dense_replace=1, **GROUPED),
    "deepseek_v3_full_rank_queries": rotary("deepseek_v3", first_k_dense_replace=1, **{**MLA, "q_lora_rank": None}, **GROUPED),
    "deepseek_v2_lite": rotary("deepseek_v2", first_k_dense_replace=1, topk_method="greedy", **{**MLA, "q_lora_rank": None}, **GROUPED),
    "mixtral_top_1": rotary("mixtral", num_local_experts=4, num_experts_per_tok=1),
    "laguna_ungated": rotary("laguna", head_dim=16, gating=False, **SHARED, **SLIDING),
    "laguna_gated_per_head": rotary("laguna", head_dim=16, gating="per-head", **SHARED, **SLIDING),
}

#: Models that are no sum of heads and neurons on one residual stream: state spaces, linear attention, convolutions, several or looped streams, a
#: stream that is itself normalised.
HYBRIDS: dict[str, ConfigMaker] = {
    "qwen3_next": rotary("qwen3_next", head_dim=16, attention_bias=True, **SHARED, **LINEAR, **LINEAR_LAYERS),
    "qwen3_5_text": rotary("qwen3_5_text", head_dim=16, attention_bias=True, **LINEAR, **LINEAR_LAYERS),
    "qwen3_5_moe_text": rotary("qwen3_5_moe_text", head_dim=16, attention_bias=True, **SHARED, **LINEAR, **LINEAR_LAYERS),
    "olmo_hybrid": rotary("olmo_hybrid", attention_bias=True, **LINEAR, **LINEAR_LAYERS),
    "lfm2": rotary("lfm2", block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention", "conv"]),
    "lfm2_moe": rotary("lfm2_moe", num_dense_layers=1, num_experts=5, layer_types=["conv", "full_attention", "conv"], **ROUTED),
    "bamba": rotary("bamba", attn_layer_indices=[1], **MAMBA),
    "jamba": rotary("jamba", attn_layer_period=2, attn_layer_offset=1, num_experts=4, use_mamba_kernels=False, mamba_d_state=8),
    "granitemoehybrid": rotary(
        "granitemoehybrid",
        layer_types=["mamba", "attention", "mamba"],
        position_embedding_type="rope",
        num_local_experts=5,
        num_experts_per_tok=2,
        shared_intermediate_size=24,
        **MULTIPLIERS,
        **MAMBA,
    ),
    "falcon_h1": rotary("falcon_h1", mamba_d_ssm=64, **MAMBA),
    "nemotron_h": rotary(
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
    "recurrent_gemma": rotary("recurrent_gemma", num_key_value_heads=1, lru_width=32, attention_window_size=WINDOW),
    "zamba2": rotary(
        "zamba2",
        num_key_value_heads=4,
        layers_block_type=["mamba", "hybrid", "mamba"],
        mamba_d_state=8,
        n_mamba_heads=8,
        chunk_size=16,
        adapter_rank=4,
        use_mamba_kernels=False,
    ),
    "mamba": made("mamba", {**IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "time_step_rank": 2}, {}),
    "falcon_mamba": made("falcon_mamba", {**IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "time_step_rank": 2}, {}),
    "mamba2": made(
        "mamba2",
        {
            **IDS,
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
    "rwkv": made("rwkv", {**IDS, "hidden_size": 32, "num_hidden_layers": 3, "context_length": N_CTX, "intermediate_size": 64}, {}),
    "deepseek_v4": rotary(
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
        **ROUTED,
    ),
    "openai-gpt": absolute("openai-gpt"),
    "hrm_text": rotary("hrm_text", head_dim=8, num_hidden_layers=2, prefix_lm=False),
}

#: Settings of a family under which the residual stream is itself normalised.
NORMALISED_STREAMS: dict[str, ConfigMaker] = {
    "opt_norm_after": lambda: opt_config(do_layer_norm_before=False),
    "bloom_norm_before_residual": bloom(apply_residual_connection_post_layernorm=True),
}

#: Models with softmax attention that TransformerLens 4.3 cannot load or runs to other logits, or whose blocks have no recipe yet. To be refused,
#: or got right.
UNSETTLED: dict[str, ConfigMaker] = {
    "modernbert-decoder": rotary(
        "modernbert-decoder",
        **BIASES,
        norm_bias=True,
        local_attention=2 * WINDOW,
        layer_types=SLIDING["layer_types"],
        cls_token_id=1,
        sep_token_id=2,
    ),
    "gemma4_text": rotary(
        "gemma4_text",
        head_dim=16,
        global_head_dim=24,
        final_logit_softcapping=5.0,
        vocab_size_per_layer_input=N_VOCAB,
        hidden_size_per_layer_input=0,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    ),
    "gemma4_per_layer_input": rotary(
        "gemma4_text",
        head_dim=16,
        global_head_dim=24,
        vocab_size_per_layer_input=N_VOCAB,
        hidden_size_per_layer_input=8,
        **{**SLIDING, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "gemma4_experts": rotary(
        "gemma4_text",
        head_dim=16,
        global_head_dim=24,
        vocab_size_per_layer_input=N_VOCAB,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=5,
        top_k_experts=2,
        moe_intermediate_size=16,
        **{**SLIDING, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "glm_moe_dsa": rotary(
        "glm_moe_dsa", attention_bias=True, first_k_dense_replace=1, index_topk=6, index_head_dim=8, index_n_heads=2, **MLA, **GROUPED
    ),
    "jetmoe": rotary("jetmoe", kv_channels=16, num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2),
    "granitemoehybrid_attention_only": rotary(
        "granitemoehybrid",
        layer_types=["attention"] * 3,
        position_embedding_type="rope",
        num_local_experts=5,
        num_experts_per_tok=2,
        shared_intermediate_size=24,
        **MULTIPLIERS,
        **MAMBA,
    ),
    "falcon_new_decoder": falcon(new_decoder_architecture=True, num_kv_heads=2, alibi=False),
    "phi_qk_norm": rotary("phi", qk_layernorm=True),
    "gpt_bigcode_multi_head": absolute("gpt_bigcode", multi_query=False),
}

#: A setting that TransformerLens 4.3 ignores: its logits are not the model's. To be refused, or got right.
MISREAD: dict[str, ConfigMaker] = {"gpt2_unscaled": absolute("gpt2", scale_attn_weights=False)}

CHECKPOINTS: dict[str, ConfigMaker] = FAMILIES | VARIANTS | HYBRIDS | NORMALISED_STREAMS | UNSETTLED | MISREAD

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
