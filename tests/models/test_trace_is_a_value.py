"""A trace is a value: the model keeps nothing of a run, runs do not touch each other, a cancelled one leaves no mark."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import CORE, token_ids
from torch import Tensor

import llm_tt
from llm_tt.models.transparent_llm import BlockActivations
from llm_tt.progress import Cancelled

every_family = pytest.mark.parametrize("name", CORE)


def tensors_of(trace: llm_tt.Trace) -> list[Tensor]:
    blocks = (
        [block.resid_mid, block.resid_post, block.attn_out, block.ffn_out, block.values, block.pattern.rows(range(trace.n_tokens))]
        for block in trace.blocks
    )
    return [trace.embedding, *(tensor for block in blocks for tensor in block), trace.logits(-1)]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def hooks_of(llm: Any) -> dict[str, int]:
    """How many hooks each point has; TransformerLens puts some of its own on OPT's."""
    kinds = ("fwd_hooks", "bwd_hooks", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {name: sum(len(getattr(point, kind)) for kind in kinds) for name, point in llm._bridge.hook_dict.items()}


@every_family
def test_two_traces_of_a_prompt_are_equal(name: str, model: Callable) -> None:
    for n_tokens in (7, 60):
        first, second = (tensors_of(model(name).trace(token_ids(n_tokens))) for _ in range(2))
        assert_equal(first, second)


@every_family
def test_a_later_trace_changes_nothing_of_an_earlier_one(name: str, model: Callable) -> None:
    trace = model(name).trace(token_ids(20))
    copies = [tensor.clone() for tensor in tensors_of(trace)]
    for seed in (1, 2):
        other = model(name).trace(token_ids(20, seed))
        assert not torch.equal(other.embedding, trace.embedding)
        model(name).neurons(0, other.blocks[0].resid_mid)
        model(name).last_logits(token_ids(20, seed))
    assert_equal(tensors_of(trace), copies)


@every_family
def test_tensors_of_a_trace_share_no_memory_with_another(name: str, model: Callable) -> None:
    first, second = (tensors_of(model(name).trace(token_ids(20))) for _ in range(2))
    of_first, of_second = ({tensor.untyped_storage().data_ptr() for tensor in tensors} for tensors in (first, second))
    assert not of_first & of_second


@every_family
def test_no_tensor_of_a_prompt_outlives_its_trace(name: str, model: Callable) -> None:
    n_tokens = 37  # a size that nothing else in the model has
    llm = model(name)
    gc.collect()
    before = len(_tensors_with(n_tokens))
    trace = llm.trace(token_ids(n_tokens))
    llm_tt.extract_routes(trace, threshold=0.01)
    llm_tt.neuron_contributions(trace, 0, -1)
    llm.neurons(0, trace.blocks[0].resid_mid)
    llm.last_logits(token_ids(n_tokens))
    assert len(_tensors_with(n_tokens)) > before + 10, "the search must find what is there"
    del trace
    gc.collect()
    assert len(_tensors_with(n_tokens)) == before


def _tensors_with(size: int) -> list[tuple[int, ...]]:
    return [tuple(o.shape) for o in gc.get_objects() if issubclass(type(o), Tensor) and size in o.shape]


@every_family
def test_no_hook_and_no_pattern_stays_in_the_model(name: str, model: Callable) -> None:
    llm = model(name)
    before = hooks_of(llm)
    trace = llm.trace(token_ids(20))
    llm.neurons(1, trace.blocks[1].resid_mid[:2])
    llm.last_logits(token_ids(20))
    assert hooks_of(llm) == before
    assert name == "opt" or set(before.values()) == {0}
    assert [getattr(block.attn, "_pattern", None) for block in llm._bridge.blocks] == [None] * llm.info.n_layers


def test_the_search_for_hooks_finds_hooks(model: Callable) -> None:
    bridge = model("gpt2")._bridge
    with bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_mid", lambda tensor, hook: None)]):
        assert hooks_of(model("gpt2"))["blocks.1.hook_resid_mid"] > 0


@every_family
@pytest.mark.parametrize("eager", [False, True], ids=["fused", "eager"])
def test_a_trace_keeps_no_memory_alive_but_its_own(name: str, eager: bool, model: Callable) -> None:
    """A slice of a joint projection would keep three times its own size alive, unless the trace holds the other slices as well."""
    for n_tokens in (7, 60):
        trace = model(name, eager=eager).trace(token_ids(n_tokens))
        tensors = [trace.embedding]
        parts: list[Tensor] = []
        for block in trace.blocks:
            for stream in (block.mid_stream, block.post_stream):
                if isinstance(stream, Tensor):
                    tensors.append(stream)
                else:
                    parts += [stream.start, *(part for group in stream.added for part in group)]
            tensors += [block.attn_out, block.ffn_out, block.values]
            tensors += [value for value in vars(block.pattern).values() if isinstance(value, Tensor)]
        assert not any(tensor.requires_grad for tensor in tensors)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        assert trace.nbytes == sum(tensor.nbytes for tensor in tensors) == sum(storages.values())
        assert storages.keys() >= {part.untyped_storage().data_ptr() for part in parts}


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "gemma"])
def test_two_threads_get_exactly_what_each_gets_alone(name: str, model: Callable) -> None:
    llm = model(name)
    prompts = [token_ids(11, 1), token_ids(23, 2)]

    def work(ids: list[int]) -> list[Tensor]:
        trace = llm.trace(ids)
        routes = llm_tt.extract_routes(trace, threshold=0.01)
        neurons = llm_tt.neuron_contributions(trace, 1, -1)
        return [*tensors_of(trace), neurons, torch.from_numpy(routes.weight.copy())]

    alone = [work(ids) for ids in prompts]
    together: list[list[list[Tensor]]] = [[], []]
    problems: list[BaseException] = []
    start = threading.Barrier(2)

    def rounds(which: int) -> None:
        try:
            for _ in range(6):
                start.wait(30)
                together[which].append(work(prompts[which]))
        except BaseException as error:
            problems.append(error)
            start.abort()

    threads = [threading.Thread(target=rounds, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    for which in range(2):
        assert len(together[which]) == 6
        for result in together[which]:
            assert_equal(result, alone[which])


def test_traces_need_no_gradient_switch_of_the_caller(model: Callable) -> None:
    with torch.enable_grad():
        trace = model("gpt2").trace(token_ids(7))
        assert not llm_tt.attention_contributions(trace, 0).edges.requires_grad
        assert not trace.logits(-1).requires_grad


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_progress_is_called_once_a_layer(name: str, model: Callable) -> None:
    calls: list[tuple[str, float]] = []
    model(name).trace(token_ids(7), lambda stage, fraction: calls.append((stage, fraction)))
    assert [stage for stage, _ in calls] == [f"Tracing layer {layer} of 3" for layer in (1, 2, 3)]
    assert [fraction for _, fraction in calls] == pytest.approx([1 / 3, 2 / 3, 1])


@every_family
def test_a_run_cancelled_at_layer_one_stops_and_leaves_the_model_usable(name: str, model: Callable) -> None:
    llm = model(name)
    before, hooks_before = tensors_of(llm.trace(token_ids(20))), hooks_of(llm)
    stages: list[str] = []

    def cancel(stage: str, fraction: float) -> None:
        stages.append(stage)
        if len(stages) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        llm.trace(token_ids(20, 1), cancel)
    assert len(stages) == 2
    assert hooks_of(llm) == hooks_before
    assert [getattr(block.attn, "_pattern", None) for block in llm._bridge.blocks] == [None] * llm.info.n_layers
    assert_equal(tensors_of(llm.trace(token_ids(20))), before)


def test_a_cancelled_run_releases_the_model_for_other_threads(model: Callable) -> None:
    llm = model("gpt2")

    def cancel(stage: str, fraction: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        llm.trace(token_ids(7), cancel)
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(llm.trace(token_ids(7)).n_tokens))
    thread.start()
    thread.join(20)
    assert done == [7]


@pytest.mark.parametrize(
    "get", [lambda trace: trace, lambda trace: trace.model.info, lambda trace: trace.blocks[0], lambda trace: trace.blocks[0].pattern]
)
def test_traces_and_facts_are_frozen(get: Callable, trace: Callable) -> None:
    value = get(trace("gpt2", 7))
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


def test_collections_of_a_trace_cannot_be_changed(trace: Callable) -> None:
    made: llm_tt.Trace = trace("gpt2", 7)
    assert isinstance(made.token_ids, tuple)
    assert isinstance(made.token_texts, tuple)
    assert isinstance(made.blocks, tuple)
    assert all(isinstance(block, BlockActivations) for block in made.blocks)


def test_contributions_go_when_their_trace_goes(model: Callable) -> None:
    from llm_tt.flow import contributions

    gc.collect()
    before = len(contributions._tables)
    trace = model("gpt2").trace(token_ids(7))
    llm_tt.extract_routes(trace)
    assert len(contributions._tables) == before + 1
    del trace
    gc.collect()
    assert len(contributions._tables) == before


def test_what_a_caller_changes_in_an_answer_does_not_come_back(model: Callable) -> None:
    """Rows are kept with the trace; an answer must be a copy of them."""
    trace = model("gpt2").trace(token_ids(7))
    first = llm_tt.attention_contributions(trace, 0)
    kept = first.edges.clone()
    first.edges.zero_()
    assert torch.equal(llm_tt.attention_contributions(trace, 0).edges, kept)
