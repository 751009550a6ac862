"""Random models of real shapes whose attention is as peaked as a trained model's. What is measured with them is in the other files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

_PEAKEDNESS = 30.0
"""Factor on queries and keys: with it a head gives about two thirds of its attention to one token"""
_HEAD_SPREAD = 1.5
"""Standard deviation of the logarithm of each head's factor: as in trained models, a few heads of a layer do most of the work"""
_HEAD_GAIN = 8.0
"""Median of that factor; with it routes spread over tens of positions"""


def gpt2_small(attention: str, seed: int = 0) -> Any:
    """GPT-2 small's shape (124 M parameters), random weights, non-zero biases; `attention` is "sdpa" or "eager"."""
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(GPT2Config(), attn_implementation=attention).eval().requires_grad_(False)
    for block in model.transformer.h:
        d = block.attn.c_attn.weight.shape[0]
        block.attn.c_attn.weight[:, : 2 * d] *= _PEAKEDNESS**0.5
        block.attn.c_attn.bias[2 * d :].normal_(std=0.1)
        gains = _HEAD_GAIN * torch.exp(_HEAD_SPREAD * torch.randn(block.attn.num_heads))
        block.attn.c_proj.weight *= gains.repeat_interleave(block.attn.head_dim)[:, None]
        block.attn.c_proj.bias.normal_(std=0.02)
        block.mlp.c_proj.bias.normal_(std=0.02)
    return model


def tokenizer(vocabulary_size: int) -> Any:
    """A tokenizer with that many words, loaded from a folder as TransformerLens wants it."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(vocabulary_size)}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), unk_token="w0", eos_token="w1")
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(Path(folder))
        return AutoTokenizer.from_pretrained(folder)


def prompt(n_tokens: int, vocabulary_size: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary_size, (n_tokens,), generator=generator).tolist()
