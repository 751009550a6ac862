"""How fast a model traces on its machine, measured on short prompts; and so what a longer one will cost. Results: `llm_tt.models.estimates`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llm_tt.models.estimates import Pace, TraceEstimate
from llm_tt.models.memory import budget_bytes, fits_offloaded, host_budget_bytes, kept_bytes, longest_prompt, trace_bytes
from llm_tt.models.transparent_llm import ModelInfo, PromptLike, TransparentLlm
from llm_tt.progress import Progress, silent

_LENGTHS = (16, 64, 256, 512)
_ENOUGH = 0.15
"""Seconds of a run after which no longer one is needed to tell what a token costs"""
_REPEATS = 2
_ATTENTION_LENGTH = 1024
_PATIENCE = 4.0
"""Seconds that a run over so many tokens may take"""


def estimate_trace(llm: TransparentLlm, prompt: PromptLike | int, pace: Pace | None = None) -> TraceEstimate:
    """What tracing a prompt, or so many tokens, will cost in memory and time on the model's device; nothing of it is run.

    Args:
        pace: of `measured_pace`, so that it is not measured again, which takes about a second, and some where attention is eager.

    Raises:
        PromptError: the prompt cannot be traced, as `llm.trace` would say.
    """
    n_tokens = prompt if isinstance(prompt, int) else llm.prompt(prompt).n_tokens
    pace = measured_pace(llm) if pace is None else pace
    info = llm.info
    need, free, host_free = trace_bytes(info, n_tokens), budget_bytes(info.device), host_budget_bytes(info.device)
    is_offloaded = need > free and fits_offloaded(info, n_tokens, free, host_free)
    return TraceEstimate(
        n_tokens,
        need,
        pace.seconds(n_tokens),
        free,
        longest_prompt(info, free, host_free),
        kept_bytes(info, n_tokens) if is_offloaded else 0,
    )


def measured_pace(llm: TransparentLlm, progress: Progress = silent, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """Trace a few short prompts and take the time.

    Args:
        progress: called before each run; may raise to cancel.
        clock: seconds; of the wall, where nothing else is given.
    """
    runs: dict[int, float] = {}

    def run(length: int, repeats: int = _REPEATS) -> float:
        progress(f"Measuring how fast {llm.info.name} is", len(runs) / (len(_LENGTHS) + 1))
        ids = [(7 + 101 * index) % llm.info.d_vocab for index in range(length)]
        seconds = min(_seconds(llm.info.device, clock, lambda: llm.trace(ids)) for _ in range(repeats))
        runs[length] = min(seconds, runs.get(length, seconds))
        return seconds

    for length in _LENGTHS:
        if length > llm.info.n_ctx or run(length) > _ENOUGH:
            break
    if not runs:
        run(llm.info.n_ctx)
    # Once more after a while: what disturbs a machine for a moment disturbs runs that follow each other alike.
    for length in list(runs):
        run(length, repeats=1)
    pace = Pace.fitted(list(runs.items()), _attention_seconds(llm.info, clock))
    if llm.info.attention == "eager" and _may_run(llm.info, pace):
        # Memory decides what eager attention takes, and how a process gets its memory changes while it lives: only a run itself tells.
        run(_ATTENTION_LENGTH)
        for length, seconds in list(runs.items())[-2:]:
            pace = pace.after(length, seconds)
    return pace


def _may_run(info: ModelInfo, pace: Pace) -> bool:
    """Whether the long run fits into memory and patience."""
    budget, host_budget = budget_bytes(info.device), host_budget_bytes(info.device)
    return longest_prompt(info, budget, host_budget) >= _ATTENTION_LENGTH and pace.seconds(_ATTENTION_LENGTH) < _PATIENCE


def _attention_seconds(info: ModelInfo, clock: Callable[[], float]) -> float:
    """Of attention in all layers, for each pair of tokens; at the lengths above it hides behind everything else, or fits into a cache."""
    length = min(_ATTENTION_LENGTH, info.n_ctx)
    made: dict[str, Any] = {"dtype": info.torch_dtype, "device": info.device}
    vectors = [torch.randn(1, info.n_heads, length, info.d_head, **made) for _ in range(3)]
    attend = partial(scaled_dot_product_attention, *vectors, is_causal=True) if info.attention == "fused" else partial(_eager, *vectors)
    with torch.inference_mode():
        attend()
        return info.n_layers * min(_seconds(info.device, clock, attend) for _ in range(3)) / length**2


def _eager(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As TransformerLens computes it, step by step."""
    scores = queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype) @ values


def _seconds(device: str, clock: Callable[[], float], work: Callable[[], object]) -> float:
    started = clock()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return clock() - started
