"""Where a GPU is short of memory, a trace is kept by the host, and everything read from it is what it is otherwise.

No GPU is needed: the model runs on the CPU, and what it keeps goes to a second device (`elsewhere`) that mixes with the CPU as little as a GPU would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, MixedDevicesError
from everything import assert_equal, everything
from families import N_VOCAB, byte_level_tokenizer, save_checkpoint, token_ids
from torch import Tensor
from transformers import LlamaConfig

import llm_tt
from llm_tt.errors import OutOfMemoryError
from llm_tt.models import memory, recording
from llm_tt.models.allocations import Allocations
from llm_tt.models.estimates import Pace
from llm_tt.models.memory import Host
from llm_tt.models.patterns import RecomputedPattern, StoredPattern
from llm_tt.models.sizes import show_bytes
from llm_tt.models.transparent_llm import SummedStream

N_TOKENS = 30
#: Queries, keys and values; parallel blocks; norms behind the blocks; a gate on the heads; a norm between heads and projection; experts;
#: layers of several shapes; soft caps; attention that is eager and recomputed, or kept (ALiBi)
NAMES = ("gpt2", "llama", "gpt_neox", "gemma2", "afmoe", "bitnet", "mixtral", "gpt_oss", "gpt_neo", "bloom", "laguna")


def short(monkeypatch: pytest.MonkeyPatch, info: llm_tt.ModelInfo, n_tokens: int, host_share: float = 1.0) -> None:
    """The model's device has room for a trace that the host keeps and no more; the host for a share of what there is to keep."""
    # These models have so few layers that two are all of them.
    monkeypatch.setattr(memory, "_LAYERS_PASSING", 1)
    device = memory.offloaded_bytes(info, n_tokens) / 0.9 + 2
    host = host_share * memory.kept_bytes(info, n_tokens) / 0.9 + 2
    monkeypatch.setattr(memory, "OFFLOADED_FROM", ("cpu",))
    monkeypatch.setattr(memory, "_HOST", "meta")
    monkeypatch.setattr(memory, "available_bytes", lambda asked: host if asked == "meta" else device)
    monkeypatch.setattr(Host, "empty", lambda self, shape, dtype: Elsewhere.empty(shape, dtype))


def kept_tensors(block: Any) -> Iterator[Tensor]:
    yield from (block.attn_out, block.ffn_out, block.values)
    for stream in (block.mid_stream, block.post_stream):
        yield from (part for group in stream.added for part in group) if isinstance(stream, SummedStream) else (stream,)
    if block.gate is not None:
        yield block.gate
    if isinstance(block.pattern, StoredPattern):
        yield block.pattern.probabilities
    else:
        assert isinstance(block.pattern, RecomputedPattern)
        yield block.pattern.keys
        if isinstance(block.pattern.queries, Tensor):
            yield block.pattern.queries


@pytest.mark.parametrize("name", NAMES)
def test_everything_read_from_an_offloaded_trace_is_what_it_is_otherwise(
    name: str, model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, ids = model(name), token_ids(N_TOKENS)
    plain = llm.trace(ids)
    assert plain.blocks[0].home is None
    expected = everything(plain)
    short(monkeypatch, llm.info, N_TOKENS)
    trace = llm.trace(ids)
    for block in trace.blocks:
        assert block.home == block.device == torch.device("cpu")
        assert all(isinstance(tensor, Elsewhere) for tensor in kept_tensors(block))
    assert trace.nbytes == plain.nbytes
    monkeypatch.undo()
    assert_equal(everything(trace), expected, name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_too(dtype: str, model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, ids = model("llama", dtype), token_ids(N_TOKENS)
    expected = everything(llm.trace(ids))
    short(monkeypatch, llm.info, N_TOKENS)
    trace = llm.trace(ids)
    monkeypatch.undo()
    assert isinstance(trace.blocks[0].values, Elsewhere)
    assert_equal(everything(trace), expected, dtype)


def test_queries_that_are_asked_for_are_made_of_an_offloaded_stream(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, ids = model("llama"), token_ids(N_TOKENS)
    expected = everything(llm.trace(ids))
    assert llm.info.recomputed_queries
    monkeypatch.setattr("llm_tt.models.bridge.LONG", 10)
    short(monkeypatch, llm.info, N_TOKENS)
    trace = llm.trace(ids)
    monkeypatch.undo()
    assert not isinstance(trace.blocks[0].pattern.queries, Tensor)
    found = everything(trace)
    assert found["routes"].keys() == expected["routes"].keys()
    assert torch.allclose(found["attention 1"].edges, expected["attention 1"].edges, atol=1e-6)


@pytest.mark.parametrize("answers", [[False], [False, True]], ids=["no stream is a sum", "the stream after attention is no sum"])
def test_streams_that_are_no_sums_go_to_the_host(answers: list[bool], model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, ids = model("llama"), token_ids(N_TOKENS)

    def traced() -> llm_tt.Trace:
        looks = itertools.cycle(answers)
        with monkeypatch.context() as changed:
            changed.setattr(recording, "_is_sum", lambda *_: next(looks))
            return llm.trace(ids)

    expected = everything(traced())
    short(monkeypatch, llm.info, N_TOKENS)
    trace = traced()
    monkeypatch.undo()
    for block in trace.blocks:
        assert isinstance(block.mid_stream, Elsewhere)
        assert all(isinstance(tensor, Elsewhere) for tensor in kept_tensors(block))
        assert not isinstance(block.post_stream, SummedStream) or isinstance(block.post_stream.start, Elsewhere)
    assert_equal(everything(trace), expected, "streams")


def test_two_traces_are_compared_wherever_they_are_kept(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model("llama")
    first, second = llm.trace(token_ids(N_TOKENS)), token_ids(N_TOKENS)[::-1]
    expected = llm_tt.compare(first, llm.trace(second))
    short(monkeypatch, llm.info, N_TOKENS)
    offloaded = llm.trace(second)
    monkeypatch.undo()
    assert_equal(llm_tt.compare(first, offloaded), expected, "comparison")


def test_the_stand_in_does_not_mix_with_the_cpu() -> None:
    """Else these tests would prove nothing."""
    there = Elsewhere.empty((2, 3), torch.float32)
    there.copy_(torch.ones(2, 3))
    here = torch.ones(2, 3)
    assert there.device == DEVICE
    for mixed in (
        lambda: there + here,
        lambda: here * there,
        lambda: there @ here.T,
        lambda: torch.cat([here, there]),
        lambda: torch.equal(here, there),
    ):
        with pytest.raises(MixedDevicesError):
            mixed()
    with pytest.raises(TypeError):
        there.numpy()
    assert isinstance(there[0] + there[torch.tensor(1)], Elsewhere)
    for moved in (there[:, [1, 2]].to("cpu"), there[0].to(here.device), there.float().cpu()):
        assert type(moved) is Tensor
        assert torch.equal(moved, torch.ones_like(moved))


# --- what decides


def test_the_host_keeps_a_trace_only_where_the_device_is_short(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    info = replace(model("llama").info, device="cuda:0", n_layers=40)
    whole, part, kept = memory.trace_bytes(info, 200), memory.offloaded_bytes(info, 200), memory.kept_bytes(info, 200)
    assert part < whole / 2 < kept < whole
    free = {"cuda:0": whole / 0.9 + 2, "cpu": 10 * kept}
    monkeypatch.setattr(memory, "available_bytes", lambda device: free[device])
    assert memory.require_memory(info, 200) is None
    free["cuda:0"] = part / 0.9 + 2
    assert memory.require_memory(info, 200) == Host(torch.device("cpu"), pinned=True)
    # Pinned memory may take twice as much.
    free["cpu"] = 1.5 * kept
    assert memory.require_memory(info, 200) == Host(torch.device("cpu"), pinned=False)
    for device, room in (("cpu", 0.5 * kept), ("cuda:0", 0.9 * part)):
        with monkeypatch.context() as shorter:
            shorter.setitem(free, device, room)
            with pytest.raises(OutOfMemoryError) as caught:
                memory.require_memory(info, 200)
        assert f"cuda:0 has {show_bytes(0.9 * (room if device == 'cuda:0' else free['cuda:0']))} to give and the host " in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_memory_that_is_the_hosts_own_is_not_relieved(device: str, model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    info = replace(model("llama").info, device=device, n_layers=40)
    monkeypatch.setattr(memory, "available_bytes", lambda asked: memory.trace_bytes(info, 200) - 1)
    assert memory.host_budget_bytes(device) == 0
    with pytest.raises(OutOfMemoryError, match=rf"{device} has [\d.]+ .?B to give\. What helps"):
        memory.require_memory(info, 200)


@pytest.mark.parametrize("host_share", [0.3, 1.0, 3.0])
def test_the_longest_prompt_counts_what_the_host_can_keep(host_share: float, model: Callable) -> None:
    info = replace(model("llama").info, device="cuda:0", n_layers=40, n_ctx=5000)
    budget = memory.trace_bytes(info, 300)
    host_budget = int(host_share * memory.kept_bytes(info, 1000))

    def fits(n_tokens: int) -> bool:
        return memory.trace_bytes(info, n_tokens) <= budget or memory.fits_offloaded(info, n_tokens, budget, host_budget)

    longest = memory.longest_prompt(info, budget, host_budget)
    assert fits(longest)
    assert not fits(longest + 1)
    assert longest >= memory.longest_prompt(info, budget) == 300
    assert (longest > 300) == (host_share >= 1)


def test_an_estimate_says_what_the_host_would_keep(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model("llama")
    llm_info = llm.info
    short(monkeypatch, llm_info, 200)
    found = llm_tt.estimate_trace(llm, token_ids(200), Pace(0.5, 0.01, 0.0))
    assert found.fits
    assert (found.n_bytes, found.host_bytes) == (memory.trace_bytes(llm_info, 200), memory.kept_bytes(llm_info, 200))
    assert found.n_bytes > found.free_bytes
    assert found.sentence() == (
        f"200 tokens: about 2.5 s and {show_bytes(found.n_bytes)} of memory, {show_bytes(found.host_bytes)} of it the host's, "
        "since the GPU is short; that takes longer"
    )
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**12)
    assert llm_tt.estimate_trace(llm, token_ids(200), Pace(0.5, 0.01, 0.0)).host_bytes == 0


def test_while_a_trace_is_offloaded_the_device_holds_what_was_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of all tensors that operations make, at the most, less the shelf, which is made whole before the first layer is through."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=24, num_attention_heads=4, vocab_size=N_VOCAB, max_position_embeddings=512
    )
    llm = llm_tt.load_model(str(save_checkpoint(tmp_path, config, byte_level_tokenizer())))
    n_tokens = 499
    peaks = []
    for offloads in (False, True):
        if offloads:
            short(monkeypatch, llm.info, n_tokens)
        with Allocations(n_tokens) as seen:
            trace = llm.trace(token_ids(n_tokens))
        assert isinstance(trace.blocks[0].values, Elsewhere) == offloads
        peaks.append(seen.peak)
    monkeypatch.undo()
    kept = memory.kept_bytes(llm.info, n_tokens)
    assert peaks[0] == pytest.approx(memory.tensor_bytes(llm.info, n_tokens), rel=0.1)
    on_the_device = peaks[1] - kept
    assert on_the_device <= memory.offloaded_bytes(llm.info, n_tokens) < kept / 2


def test_pinned_memory_is_plain_where_it_cannot_be_had() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    room = Host(pinned=True).empty((3, 4), torch.bfloat16)
    assert (room.shape, room.dtype, room.device.type) == ((3, 4), torch.bfloat16, "cpu")
    assert not room.is_pinned()


def test_memory_that_pytorch_holds_and_nothing_uses_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert memory.available_bytes("cuda:1") == 140
