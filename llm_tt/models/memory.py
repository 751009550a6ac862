"""What a trace will need and what the device has. Estimates from shapes alone; nothing is run here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import psutil
import torch
from torch import Tensor

from llm_tt.errors import OutOfMemoryError
from llm_tt.models.info import ModelInfo, Running
from llm_tt.models.sizes import show_bytes

LONG = 1536
"""Tokens from which on a trace keeps no queries that can be had again: there memory counts, and few of the rows are asked for"""
OFFLOADED_FROM = ("cuda",)
"""Types of devices whose traces go to the host's memory where the device is short; the memory of others is the host's"""
_HOST = "cpu"
_LAYERS_PASSING = 2
"""So many layers' tensors are still on the device while those of the layers before are kept by the host"""
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


@dataclass(frozen=True)
class Host:
    """The host's memory, where a trace is kept that the device of its model has no room for."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    pinned: bool = False
    """locked, so that a GPU copies at full speed, where the system grants it; PyTorch takes up to twice the memory for that"""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.pinned:
            try:
                return torch.empty(shape, dtype=dtype, device=self.device, pin_memory=True)
            except RuntimeError:
                # No GPU, or a limit on locked memory: plain memory is as good, only slower.
                pass
        return torch.empty(shape, dtype=dtype, device=self.device)


def trace_bytes(info: ModelInfo, n_tokens: int) -> int:
    """Peak bytes of tracing `n_tokens` tokens: what the trace keeps, and what comes and goes while the model runs."""
    coming_and_going = _running_bytes(info, n_tokens)
    return tensor_bytes(info, n_tokens) + min(coming_and_going // 2, _HELD_BACK)


def kept_bytes(info: ModelInfo, n_tokens: int) -> int:
    """Of `trace_bytes` what the trace keeps."""
    return int(_kept_numbers(info, n_tokens) * info.torch_dtype.itemsize)


def offloaded_bytes(info: ModelInfo, n_tokens: int) -> int:
    """Peak bytes on the device while what the trace keeps goes to the host's memory, layer by layer."""
    passing = min(_LAYERS_PASSING, info.n_layers) * kept_bytes(info, n_tokens) // info.n_layers
    return trace_bytes(info, n_tokens) - kept_bytes(info, n_tokens) + passing


def tensor_bytes(info: ModelInfo, n_tokens: int) -> int:
    """As `trace_bytes`, but only what tensors have: an allocator takes more from the system."""
    return kept_bytes(info, n_tokens) + _running_bytes(info, n_tokens)


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


def longest_prompt(info: ModelInfo, budget: int, host_budget: int = 0) -> int:
    """The most tokens, up to the model's context, whose trace fits into `budget` bytes, or would if the host had `host_budget` bytes for what it
    keeps."""

    def fits(n_tokens: int) -> bool:
        return trace_bytes(info, n_tokens) <= budget or fits_offloaded(info, n_tokens, budget, host_budget)

    # Between is a step down.
    low, high = (LONG, info.n_ctx) if info.n_ctx >= LONG and fits(LONG) else (0, min(info.n_ctx, LONG - 1))
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def fits_offloaded(info: ModelInfo, n_tokens: int, budget: int, host_budget: int) -> bool:
    """Whether a trace fits if the host keeps what it keeps."""
    return offloaded_bytes(info, n_tokens) <= budget and kept_bytes(info, n_tokens) <= host_budget


def available_bytes(device: str) -> int:
    """Free memory of a device; for the CPU, what the operating system can give without swapping."""
    if device.startswith("cuda"):
        at = torch.device(device)
        # What PyTorch holds and nothing uses is free, too.
        return torch.cuda.mem_get_info(at)[0] + torch.cuda.memory_reserved(at) - torch.cuda.memory_allocated(at)
    return psutil.virtual_memory().available


def budget_bytes(device: str) -> int:
    """What a run may take of a device's free memory."""
    return int(_RESERVE * available_bytes(device))


def host_budget_bytes(device: str) -> int:
    """What the host has to give for traces of a model on a device: nothing where its memory is the device's own."""
    return budget_bytes(_HOST) if device.partition(":")[0] in OFFLOADED_FROM else 0


def require_memory(info: ModelInfo, n_tokens: int, available: int | None = None) -> Host | None:
    """Where what a trace keeps must go: None, if it can stay on the device.

    Raises:
        OutOfMemoryError: it would not fit; with the need, what there is, and the longest prompt that fits.
    """
    budget = budget_bytes(info.device) if available is None else int(_RESERVE * available)
    need = trace_bytes(info, n_tokens)
    if need > budget:
        host_budget = host_budget_bytes(info.device)
        if fits_offloaded(info, n_tokens, budget, host_budget):
            return Host(torch.device(_HOST), pinned=2 * kept_bytes(info, n_tokens) <= host_budget)
        longest = longest_prompt(info, budget, host_budget)
        ways = [f"shorten the prompt to at most {longest} tokens"] if longest else []
        half = replace(info, dtype="bfloat16")
        half_fits = trace_bytes(half, n_tokens) <= budget or fits_offloaded(half, n_tokens, budget, host_budget)
        if trace_bytes(half, n_tokens) < need and half_fits:
            ways.append("load the model in half precision")
        ways.append("unload other models or use a machine with more memory")
        given = f"{show_bytes(budget)} to give{f' and the host {show_bytes(host_budget)} beside it' if host_budget else ''}"
        raise OutOfMemoryError(
            f"A trace of {n_tokens} tokens of {info.name} needs about {show_bytes(need)}, but {info.device} has {given}. "
            f"What helps: {'; '.join(ways)}."
        )
    return None
