"""The estimate of a trace's memory is near the truth, and a refusal says what would work."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from families import CORE, token_ids

from llm_tt.errors import OutOfMemoryError
from llm_tt.models import memory

every_family = pytest.mark.parametrize("name", CORE)


@every_family
def test_the_estimate_grows_with_the_prompt(name: str, model: Callable) -> None:
    info = model(name).info
    estimates = [memory.trace_bytes(info, n_tokens) for n_tokens in range(info.n_ctx + 1)]
    assert estimates[0] == 0
    assert all(shorter < longer for shorter, longer in itertools.pairwise(estimates))


@every_family
@pytest.mark.parametrize("eager", [False, True], ids=["fused", "eager"])
@pytest.mark.parametrize("n_tokens", [60, 200])
def test_the_estimate_is_within_a_factor_of_two_of_what_is_held_while_running(
    name: str, n_tokens: int, eager: bool, model: Callable
) -> None:
    """What is held: the trace, and of the running layer, where attention is eager, the scores, their float32 softmax and its copy."""
    llm = model(name, eager=eager)
    trace = llm.trace(token_ids(n_tokens))
    running = 3 * llm.info.n_heads * n_tokens * n_tokens * 4 if llm.info.attention == "eager" else 0
    assert 0.5 <= memory.trace_bytes(llm.info, n_tokens) / (trace.nbytes + running) <= 2
    assert memory.trace_bytes(llm.info, n_tokens) >= trace.nbytes


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
