"""What a trace will need and what the device has. Estimates from shapes alone; nothing is run here."""

from __future__ import annotations

from dataclasses import replace

import psutil
import torch

from llm_tt.errors import OutOfMemoryError
from llm_tt.models.info import ModelInfo, Running
from llm_tt.models.sizes import show_bytes

LONG = 1536
"""Tokens from which on a trace keeps no queries that can be had again: there memory counts, and few of the rows are asked for"""
_RESERVE = 0.9
"""The share of free memory a run may take; the rest is for everyone else on the machine"""
_HELD_BACK = 64 * 2**20
"""Of what comes and goes an allocator holds back about half as much again (measured: none to one and a half times), but not more than this:
larger pieces go back to the system"""
_FFN_ROWS, _FFN_NUMBERS = 256, 2**20
"""On a CPU a dense FFN reads so many tokens at a time that its inner vectors have about so many numbers, but not fewer tokens than that; a GPU
would be kept waiting by such small pieces"""
_FFN_COPIES = 4
"""Inner vectors of an FFN that exist side by side: before and after the activation, its gate, the product"""


def trace_bytes(info: ModelInfo, n_tokens: int) -> int:
    """Peak bytes of tracing `n_tokens` tokens: what the trace keeps, and what comes and goes while the model runs."""
    coming_and_going = _running_bytes(info, n_tokens)
    return tensor_bytes(info, n_tokens) + min(coming_and_going // 2, _HELD_BACK)


def tensor_bytes(info: ModelInfo, n_tokens: int) -> int:
    """As `trace_bytes`, but only what tensors have: an allocator takes more from the system."""
    return int(_kept_numbers(info, n_tokens) * info.torch_dtype.itemsize) + _running_bytes(info, n_tokens)


def _kept_numbers(info: ModelInfo, n_tokens: int) -> float:
    streams = 4 * info.d_model if info.stream_width is None else info.stream_width
    values = info.n_kv_heads * info.d_head
    queries_and_keys = (info.n_heads + info.n_kv_heads) * info.d_head
    if info.attention == "fused":
        attention = values + queries_and_keys if info.attention_width is None else info.attention_width
        if n_tokens >= LONG:
            attention -= info.recomputed_queries
        return info.n_layers * n_tokens * (streams + attention)
    # As the backend does: in half precision the pattern itself is kept.
    pattern = info.n_heads * n_tokens * n_tokens
    attention = pattern if info.keeps_pattern or info.torch_dtype.itemsize < 4 else min(pattern, n_tokens * queries_and_keys)
    return info.n_layers * (n_tokens * (streams + values) + attention)


def _running_bytes(info: ModelInfo, n_tokens: int) -> int:
    running = info.running or _plain(info)
    n_neurons = max((shape.n_per_token for shape in info.ffn), default=info.n_neurons)
    ffn = _FFN_COPIES * min(n_tokens, ffn_rows(n_neurons)) * n_neurons if running.in_pieces else 0
    blocks = max(n_tokens * (per_token + n_tokens * per_pair) for per_token, per_pair in running.moments)
    return int(max(blocks + ffn, 0) * info.torch_dtype.itemsize)


def _plain(info: ModelInfo) -> Running:
    """Of a model that nobody measured: streams, what is normalised of them, queries, keys and values; scores, their float32 softmax and its copy
    in the model's dtype where attention is eager; and the neurons."""
    width = max(info.d_model, info.n_heads * info.d_head)
    n_neurons = max((shape.n_per_token for shape in info.ffn), default=info.n_neurons)
    pairs = 0.0 if info.attention == "fused" else info.n_heads * (2 + 4 / info.torch_dtype.itemsize)
    return Running(((8 * width + _FFN_COPIES * n_neurons, pairs),), in_pieces=False)


def ffn_rows(n_neurons: int) -> int:
    """How many tokens an FFN reads at a time on a CPU."""
    return max(_FFN_ROWS, _FFN_NUMBERS // max(n_neurons, 1))


def longest_prompt(info: ModelInfo, budget: int) -> int:
    """The most tokens, up to the model's context, whose trace fits into `budget` bytes."""
    # Between is a step down.
    low, high = (LONG, info.n_ctx) if info.n_ctx >= LONG and trace_bytes(info, LONG) <= budget else (0, min(info.n_ctx, LONG - 1))
    while low < high:
        middle = (low + high + 1) // 2
        if trace_bytes(info, middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def available_bytes(device: str) -> int:
    """Free memory of a device; for the CPU, what the operating system can give without swapping."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return psutil.virtual_memory().available


def budget_bytes(device: str) -> int:
    """What a run may take of a device's free memory."""
    return int(_RESERVE * available_bytes(device))


def require_memory(info: ModelInfo, n_tokens: int, available: int | None = None) -> None:
    """Refuse a trace that would not fit.

    Raises:
        OutOfMemoryError: with the need, what there is, and the longest prompt that fits.
    """
    budget = budget_bytes(info.device) if available is None else int(_RESERVE * available)
    need = trace_bytes(info, n_tokens)
    if need > budget:
        longest = longest_prompt(info, budget)
        ways = [f"shorten the prompt to at most {longest} tokens"] if longest else []
        half = trace_bytes(replace(info, dtype="bfloat16"), n_tokens)
        if half < need and half <= budget:
            ways.append("load the model in half precision")
        ways.append("unload other models or use a machine with more memory")
        raise OutOfMemoryError(
            f"A trace of {n_tokens} tokens of {info.name} needs about {show_bytes(need)}, but {info.device} has {show_bytes(budget)} to give. "
            f"What helps: {'; '.join(ways)}."
        )
