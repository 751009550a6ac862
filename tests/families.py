"""Tiny random checkpoints of every supported family, saved as a user would have them: a folder with config, safetensors and tokenizer.

Every bias is non-zero and every norm weight differs from one, grouped-query attention where the family has it, attention peaked and blocks that
change the stream, so that a decomposition that forgets a term is far off. Nothing here knows llm_tt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

N_VOCAB = 400
"""More rows than either tokenizer has ids: checkpoints pad their embeddings"""
N_CTX = 256
WINDOW = 8
"""Of the families with sliding or local attention"""
LENGTHS = (1, 2, 7, 20, 60)

_ROTARY: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": N_CTX,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ABSOLUTE: dict[str, Any] = {"vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _gpt2(**changes: Any) -> GPT2Config:
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": N_CTX, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(**{**_ABSOLUTE, **shape, **changes})


def _gpt_neo() -> GPTNeoConfig:
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": N_CTX, "intermediate_size": 64}
    return GPTNeoConfig(**_ABSOLUTE, **shape, attention_types=[[["global", "local"], 1]], window_size=WINDOW)


def opt_config(**changes: Any) -> OPTConfig:
    shape = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return OPTConfig(**{**_ABSOLUTE, **shape, "max_position_embeddings": N_CTX, "dropout": 0.0, **changes})


#: What the issue list of a decomposition is tried on: the eight families, with and without the biases that Llama can have.
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "opt": opt_config,
    "llama": lambda: LlamaConfig(**_ROTARY, attention_bias=True, mlp_bias=True),
    "llama_plain": lambda: LlamaConfig(**_ROTARY, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_ROTARY, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(**_ROTARY),
    "qwen3": lambda: Qwen3Config(**_ROTARY, head_dim=16, attention_bias=True),
    "gemma": lambda: GemmaConfig(**{**_ROTARY, "num_key_value_heads": 1}, head_dim=16, attention_bias=True),
}

#: Settings of a family that change its attention pattern.
ATTENTION_VARIANTS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2_inverse_layer": lambda: _gpt2(scale_attn_by_inverse_layer_idx=True),
    "mistral_full": lambda: MistralConfig(**_ROTARY, sliding_window=None),
    "qwen2_sliding": lambda: Qwen2Config(**_ROTARY, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen2_window_off": lambda: Qwen2Config(**_ROTARY, use_sliding_window=False, sliding_window=WINDOW),
}

#: A setting that TransformerLens 4.3 ignores: its logits are not the model's. To be refused, or got right.
MISREAD: dict[str, Callable[[], PretrainedConfig]] = {"gpt2_unscaled": lambda: _gpt2(scale_attn_weights=False)}

_METASPACE = ("llama", "llama_plain", "mistral", "mistral_full", "gemma")


def random_model(config: PretrainedConfig, seed: int = 0) -> Any:
    """A Hugging Face model with random weights of which none is trivially zero or one."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif parameter.ndim == 1:
                # Norm weights. Gemma's are zero-centred; half a unit around them is a large change there too.
                parameter.add_(0.3 * noise)
            elif any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
                parameter.copy_(noise * 32**-0.5 if config.model_type == "gemma" else noise)
            elif any(part in name for part in ("q_proj", "k_proj", "c_attn")):
                # GPT-Neo does not divide its scores by the root of the head width.
                sharpness = 0.7 if config.model_type == "gpt_neo" else 1.5
                parameter.copy_(sharpness * noise * _fan_in(parameter, name) ** -0.5)
            else:
                parameter.copy_(noise * _fan_in(parameter, name) ** -0.5)
    model.tie_weights()
    return model.eval()


def _fan_in(parameter: torch.Tensor, name: str) -> int:
    """GPT-2's Conv1D keeps its weight as [in, out], a Linear as [out, in]."""
    conv1d = any(part in name for part in ("c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")) and ".attention." not in name
    return parameter.shape[0 if conv1d else 1]


def save_checkpoint(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Path:
    random_model(config, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_family(name: str, folder: Path) -> Path:
    """The checkpoint of a name of `FAMILIES`, `ATTENTION_VARIANTS` or `MISREAD`."""
    config = (FAMILIES | ATTENTION_VARIANTS | MISREAD)[name]()
    return save_checkpoint(folder, config, metaspace_tokenizer() if name in _METASPACE else byte_level_tokenizer())


def token_ids(n_tokens: int, seed: int = 0) -> list[int]:
    """Random ids of the vocabulary, none of them special."""
    generator = torch.Generator().manual_seed(1000 * seed + n_tokens)
    return torch.randint(3, N_VOCAB, (n_tokens,), generator=generator).tolist()


# --- tokenizers

_SPECIALS = ("<pad>", "<s>", "</s>")


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """As GPT-2's: every byte is a token, a space is written as the letter G with a dot; a few merges; no BOS in front."""
    vocabulary = {token: index for index, token in enumerate([*_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = [("\u0120", "M"), ("\u0120M", "a"), ("\u0120Ma", "r"), ("\u0120Mar", "y"), ("t", "h"), ("th", "e"), ("\u0120", "the")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama's sentencepiece: a space is written as a low line, unknown characters fall to `<0xE2>` byte tokens; BOS in front."""
    words = ["\u2581", "\u2581Mary", "\u2581the", "\u2581store", "Mary", "the", "store", ".", ",", *"abcdefghijklmnopqrstuvwxyzM"]
    pieces = [*_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    scores = [0.0] * len(_SPECIALS) + [-20.0] * 256 + [-1.0 if len(word) > 1 else -8.0 for word in words]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )
