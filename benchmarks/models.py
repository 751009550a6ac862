"""Random models of real shapes whose attention is as peaked as a trained model's. What is measured with them is in the other files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

#: GPT-2 small (124 M parameters, biases), and a Llama of 88 M with grouped-query attention
SHAPES = ("gpt2-small", "llama-88m")

SEED = 1

_PEAKEDNESS = 30.0
"""Factor on queries and keys: with it a head gives most of its attention to one token (figures in RESULTS.md)"""
_HEAD_SPREAD = 1.5
"""Standard deviation of the logarithm of each head's factor: as in trained models, a few heads of a layer do most of the work"""
_HEAD_GAIN = 8.0
"""Median of that factor; with it routes spread over tens of positions"""


def build(shape: str, attention: str, seed: int = SEED) -> Any:
    """A random model of one of `SHAPES`; `attention` is "sdpa" or "eager"."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    torch.manual_seed(seed)
    if shape == "gpt2-small":
        model = AutoModelForCausalLM.from_config(GPT2Config(n_positions=2048), attn_implementation=attention)
    else:
        config = LlamaConfig(
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=4,
            vocab_size=16384,
            max_position_embeddings=8192,
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.eval().requires_grad_(False)
    if shape == "gpt2-small":
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :1536] *= _PEAKEDNESS**0.5
            _spread_heads(block.attn.c_proj.weight, block.attn.num_heads)
            block.attn.c_attn.bias[1536:].normal_(std=0.1)
            block.attn.c_proj.bias.normal_(std=0.02)
            block.mlp.c_proj.bias.normal_(std=0.02)
    else:
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight *= _PEAKEDNESS**0.5
            _spread_heads(layer.self_attn.o_proj.weight.T, 12)
    return model


def _spread_heads(output: torch.Tensor, n_heads: int) -> None:
    """Scale each head's rows of W_O [H * E, d]."""
    gains = _HEAD_GAIN * torch.exp(_HEAD_SPREAD * torch.randn(n_heads))
    output *= gains.repeat_interleave(output.shape[0] // n_heads)[:, None]


def tokenizer(vocabulary_size: int) -> Any:
    """A tokenizer with that many words, `w2` with id 2 and so on, loaded from a folder as TransformerLens wants it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = {"<unk>": 0, "<eos>": 1} | {f"w{index}": index for index in range(2, vocabulary_size)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<eos>")
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(Path(folder))
        return AutoTokenizer.from_pretrained(folder)


def prompt(n_tokens: int, vocabulary_size: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary_size, (n_tokens,), generator=generator).tolist()
