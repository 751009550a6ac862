"""What a trace will need and what the device has. Estimates from shapes alone; nothing is run here."""

from __future__ import annotations

from dataclasses import replace

import psutil
import torch

from llm_tt.errors import OutOfMemoryError
from llm_tt.models.sizes import show_bytes
from llm_tt.models.transparent_llm import ModelInfo

_RESERVE = 0.9
"""The share of free memory a run may take; the rest is for everyone else on the machine"""


def trace_bytes(info: ModelInfo, n_tokens: int) -> int:
    """Peak bytes of tracing `n_tokens` tokens: what the trace keeps, and the pattern and scores of the one layer that is running."""
    size = info.torch_dtype.itemsize
    streams = int((4 * info.d_model if info.stream_width is None else info.stream_width) * n_tokens)
    values = info.n_kv_heads * n_tokens * info.d_head
    queries_and_keys = (info.n_heads + info.n_kv_heads) * n_tokens * info.d_head
    pattern = info.n_heads * n_tokens * n_tokens
    n_neurons = max((shape.n_per_token for shape in info.ffn), default=info.n_neurons)
    ffn = 3 * n_tokens * n_neurons * size
    if info.attention == "fused":
        attention = values + queries_and_keys if info.attention_width is None else int(info.attention_width * n_tokens)
        return info.n_layers * (streams + attention) * size + ffn
    # As the backend does: in half precision the pattern itself is kept.
    attention = pattern if info.keeps_pattern or size < 4 else min(pattern, queries_and_keys)
    # Scores, their float32 softmax and its copy in the model's dtype exist side by side.
    running = pattern * (2 * size + 4) + ffn
    return info.n_layers * (streams + values + attention) * size + running


def longest_prompt(info: ModelInfo, budget: int) -> int:
    """The most tokens, up to the model's context, whose trace fits into `budget` bytes."""
    low, high = 0, info.n_ctx
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


def require_memory(info: ModelInfo, n_tokens: int, available: int | None = None) -> None:
    """Refuse a trace that would not fit.

    Raises:
        OutOfMemoryError: with the need, what there is, and the longest prompt that fits.
    """
    budget = int(_RESERVE * (available_bytes(info.device) if available is None else available))
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
