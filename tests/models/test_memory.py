"""The estimate of a trace's memory is near the truth, and a refusal says what would work."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CORE, token_ids
from torch.profiler import ProfilerActivity, profile

from llm_tt.errors import OutOfMemoryError
from llm_tt.models import memory
from llm_tt.models.allocations import Allocations

every_family = pytest.mark.parametrize("name", [*CORE, "bloom", "gptj", "falcon", "gemma2", "deepseek_v3", "afmoe"])


@every_family
def test_the_estimate_grows_with_the_prompt(name: str, model: Callable) -> None:
    info = model(name).info
    estimates = [memory.trace_bytes(info, n_tokens) for n_tokens in range(info.n_ctx + 1)]
    assert estimates[0] == 0
    assert all(shorter < longer for shorter, longer in itertools.pairwise(estimates))


def most_tensor_bytes(run: Callable[[], object]) -> int:
    """The most bytes that tensors have while something runs, by PyTorch's own profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    del kept
    ordered: list[Any] = sorted(events, key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in ordered))


@pytest.mark.parametrize("name", [*CORE, "bloom", "gptj", "falcon", "gpt_neox", "gemma2", "deepseek_v3", "afmoe", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize("eager", [False, True], ids=["fused", "eager"])
@pytest.mark.parametrize("n_tokens", [60, 200])
def test_the_estimate_is_near_what_tensors_have_while_running(name: str, n_tokens: int, eager: bool, model: Callable) -> None:
    """At the upper end are models whose FFN, for their size, is wide: here it counts although attention is what needs most."""
    llm = model(name, eager=eager)
    llm.trace(token_ids(n_tokens))
    most = most_tensor_bytes(lambda: llm.trace(token_ids(n_tokens)))
    assert 0.85 <= memory.tensor_bytes(llm.info, n_tokens) / most <= 1.35
    assert memory.tensor_bytes(llm.info, n_tokens) < memory.trace_bytes(llm.info, n_tokens) <= 2 * memory.tensor_bytes(llm.info, n_tokens)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mixtral"])
def test_allocations_are_what_pytorchs_profiler_sees(name: str, model: Callable) -> None:
    llm = model(name)
    llm.trace(token_ids(37))
    with Allocations(37) as seen:
        llm.trace(token_ids(37))
    assert seen.peak == pytest.approx(most_tensor_bytes(lambda: llm.trace(token_ids(37))), rel=0.01)


def test_allocations_know_what_grows_with_the_prompt_and_what_with_its_square() -> None:
    with Allocations(37) as seen:
        per_token = torch.zeros(37, 5)
        again = per_token[:10]
        _ = torch.zeros(1, 2, 37, 37)
        _ = torch.zeros(3)
        del per_token, again
        _ = torch.zeros(37, 2, dtype=torch.float16)
    assert seen.at_most_per_token == (4 * 37 * 5, 4 * 2 * 37 * 37)
    assert seen.at_most_per_pair == (4 * 37 * 5, 4 * 2 * 37 * 37)
    assert seen.peak == 4 * (37 * 5 + 2 * 37 * 37 + 3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "n_tokens"), [("gpt2", 512), ("gpt2", 2048), ("llama", 512), ("llama", 2048)])
def test_the_estimate_is_within_a_quarter_of_what_a_process_grows_by(name: str, n_tokens: int, dtype: str) -> None:
    """A model of some size in a process of its own: what the system gave, not what tensors have."""
    script = Path(__file__).parent.parent / "process_growth.py"
    command = [sys.executable, str(script), name, str(n_tokens), dtype]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    assert found["estimate"] / found["measured"] == pytest.approx(1, abs=0.25)


@every_family
def test_of_many_layers_the_estimate_is_what_the_trace_keeps(name: str, model: Callable) -> None:
    """The running layer vanishes among a hundred."""
    llm = model(name)
    trace = llm.trace(token_ids(60))
    per_layer = sum(block.nbytes for block in trace.blocks) / trace.n_layers
    estimate = memory.trace_bytes(replace(llm.info, n_layers=1000), 60)
    assert estimate / (1000 * per_layer) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("n_tokens", [20, 60, 200])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neo"])
def test_in_half_precision_the_estimate_is_right_too(name: str, dtype: str, n_tokens: int, model: Callable) -> None:
    llm = model(name, dtype)
    trace = llm.trace(token_ids(n_tokens))
    per_layer = sum(block.nbytes for block in trace.blocks) / trace.n_layers
    assert memory.trace_bytes(replace(llm.info, n_layers=1000), n_tokens) / (1000 * per_layer) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_tokens", [20, 200])
def test_a_refusal_advises_half_precision_only_where_that_helps(dtype: str, n_tokens: int, model: Callable) -> None:
    info = replace(model("llama").info, dtype=dtype, n_layers=32)
    need = memory.trace_bytes(info, n_tokens)
    with pytest.raises(OutOfMemoryError) as caught:
        memory.require_memory(info, n_tokens, available=need // 2)
    if "half precision" in str(caught.value):
        assert memory.trace_bytes(replace(info, dtype="bfloat16"), n_tokens) < need


@pytest.mark.parametrize("budget", [10_000, 100_000, 1_000_000])
def test_the_longest_prompt_is_the_longest(budget: int, model: Callable) -> None:
    info = model("gpt2").info
    longest = memory.longest_prompt(info, budget)
    assert memory.trace_bytes(info, longest) <= budget
    assert longest == info.n_ctx or memory.trace_bytes(info, longest + 1) > budget


def test_the_longest_prompt_is_never_longer_than_the_context(model: Callable) -> None:
    assert memory.longest_prompt(model("gpt2").info, 10**15) == model("gpt2").info.n_ctx
    assert memory.longest_prompt(model("gpt2").info, 0) == 0


def test_a_refusal_says_need_supply_and_a_length_that_really_fits(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model("gpt2")
    available = 500_000
    monkeypatch.setattr(memory, "available_bytes", lambda device: available)
    with pytest.raises(OutOfMemoryError) as caught:
        llm.trace(token_ids(200))
    text = str(caught.value)
    assert llm.info.name in text
    assert "200 tokens" in text
    assert memory.show_bytes(memory.trace_bytes(llm.info, 200)) in text
    assert memory.show_bytes(0.9 * available) in text
    match = re.search(r"shorten the prompt to at most (\d+) tokens", text)
    assert match
    longest = int(match[1])
    assert 1 < longest < 200
    assert llm.trace(token_ids(longest)).n_tokens == longest
    with pytest.raises(OutOfMemoryError):
        llm.trace(token_ids(longest + 1))


def test_where_not_even_one_token_fits_the_refusal_does_not_ask_for_a_shorter_prompt(model: Callable) -> None:
    info = model("gpt2").info
    with pytest.raises(OutOfMemoryError) as caught:
        memory.require_memory(info, 5, available=100)
    assert "at most 0 tokens" not in str(caught.value)


def test_a_prompt_that_fits_is_not_refused(model: Callable) -> None:
    info = model("gpt2").info
    memory.require_memory(info, 200)
    memory.require_memory(info, 200, available=2 * memory.trace_bytes(info, 200))


def test_running_out_of_memory_anyway_is_a_sentence_and_leaves_the_model_usable(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model("llama")

    def exhausted(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(llm, "captured_block", exhausted)
        with pytest.raises(OutOfMemoryError, match=r"cpu ran out of memory while tracing 7 tokens\. Shorten the prompt"):
            llm.trace(token_ids(7))
    assert llm.trace(token_ids(7)).n_tokens == 7


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (2**20, "1.0 MB"), (3.25 * 2**30, "3.2 GB"), (2**41, "2.0 TB")]
)
def test_bytes_are_shown_in_powers_of_1024(n_bytes: float, text: str) -> None:
    assert memory.show_bytes(n_bytes) == text
