"""Of long prompts no queries are kept: they are asked for, and nothing that is shown differs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import CORE, FAMILIES, token_ids
from reference import Contributions

import llm_tt
from llm_tt.flow.graph import EdgeKind
from llm_tt.models import bridge, memory
from llm_tt.models.patterns import QueriesOnDemand, RecomputedPattern

N_TOKENS = 24
NOT_FUSED = {"gpt_neo", "xglm", "bloom", "mpt", "gptj", "codegen", "falcon"}
EVERY = [name for name in FAMILIES if name not in NOT_FUSED]


@pytest.fixture
def short_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "LONG", 2)


def patterns(trace: llm_tt.Trace) -> list[RecomputedPattern]:
    found = [block.pattern for block in trace.blocks]
    assert all(isinstance(pattern, RecomputedPattern) for pattern in found)
    return found  # type: ignore[return-value]


def test_which_families_can_do_without(model: Callable[..., Any]) -> None:
    assert [name for name in EVERY if not model(name).info.recomputed_queries] == ["llama4_text"]
    assert model("llama").info.recomputed_queries == 4 * 8
    assert model("llama", "bfloat16").info.recomputed_queries == 0, "products of fewer rows are rounded otherwise"


@pytest.mark.parametrize("name", [name for name in EVERY if name != "llama4_text"])
def test_rows_of_attention_are_those_of_kept_queries(name: str, model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    llm, ids = model(name), token_ids(N_TOKENS)
    kept = llm.trace(ids)
    monkeypatch.setattr(bridge, "LONG", 2)
    asked = llm.trace(ids)
    for with_queries, without in zip(patterns(kept), patterns(asked), strict=True):
        assert isinstance(without.queries, QueriesOnDemand)
        assert without.nbytes < with_queries.nbytes
        for rows in ([0], [N_TOKENS - 1, 3], list(range(N_TOKENS))):
            assert (without.rows(rows) - with_queries.rows(rows)).abs().max() <= 2e-6


@pytest.mark.parametrize("name", CORE)
def test_contributions_are_the_brute_forces(
    name: str, model: Callable[..., Any], plain_contributions: Callable[[str, int], Contributions], short_is_long: None
) -> None:
    expected, trace = plain_contributions(name, N_TOKENS), model(name).trace(token_ids(N_TOKENS))
    for layer in range(trace.n_layers):
        found = llm_tt.attention_contributions(trace, layer)
        assert torch.allclose(found.edges, expected.edges[layer].float(), rtol=1e-5, atol=1e-6)


def test_routes_are_the_same(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    llm, ids = model("llama"), token_ids(N_TOKENS)
    expected = llm_tt.extract_routes(llm.trace(ids), threshold=0.02)
    monkeypatch.setattr(bridge, "LONG", 2)
    found = llm_tt.extract_routes(llm.trace(ids), threshold=0.02)
    assert (found.kind == EdgeKind.ATTENTION).sum() > 10
    for name in ("kind", "layer", "source", "destination", "head"):
        assert (getattr(found, name) == getattr(expected, name)).all()
    assert found.weight == pytest.approx(expected.weight, rel=1e-5)


def test_a_short_prompt_keeps_its_queries(model: Callable[..., Any]) -> None:
    assert all(isinstance(pattern.queries, torch.Tensor) for pattern in patterns(model("llama").trace(token_ids(N_TOKENS))))


def test_the_model_may_be_busy_with_another_prompt(model: Callable[..., Any], short_is_long: None) -> None:
    """Rows that are asked for while it traces are the prompt's own, and the trace is what it would be."""
    llm, ids = model("llama"), token_ids(N_TOKENS)
    trace = llm.trace(ids)
    alone = [pattern.rows([5, 11]) for pattern in patterns(trace)]
    others = [token_ids(60, seed) for seed in range(4)]
    expected = [llm.trace(other).blocks[-1].resid_post for other in others]
    wrong: list[str] = []

    def trace_others() -> None:
        for other, stream in zip(others * 5, expected * 5, strict=True):
            if not torch.equal(llm.trace(other).blocks[-1].resid_post, stream):
                wrong.append("trace")

    thread = threading.Thread(target=trace_others)
    thread.start()
    while thread.is_alive():
        for pattern, rows in zip(patterns(trace), alone, strict=True):
            if not torch.equal(pattern.rows([5, 11]), rows):
                wrong.append("rows")
    thread.join()
    assert wrong == []


def test_a_trace_outlives_the_switch_to_eager_attention(checkpoint: Callable[..., Any], short_is_long: None) -> None:
    llm: Any = llm_tt.load_model(str(checkpoint("llama")))
    trace = llm.trace(token_ids(N_TOKENS))
    expected = [pattern.rows([7]) for pattern in patterns(trace)]
    llm.use_eager_attention()
    assert all(torch.equal(pattern.rows([7]), rows) for pattern, rows in zip(patterns(trace), expected, strict=True))
    assert llm.trace(token_ids(5)).n_tokens == 5


def test_the_estimate_knows(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model("llama")
    whole = memory.trace_bytes(llm.info, 200)
    monkeypatch.setattr(memory, "LONG", 150)
    assert memory.trace_bytes(llm.info, 200) == whole - llm.info.n_layers * 200 * 32 * 4
    assert memory.longest_prompt(llm.info, memory.trace_bytes(llm.info, 160)) == 160
    between = memory.trace_bytes(llm.info, 150) - 1
    assert memory.trace_bytes(llm.info, memory.longest_prompt(llm.info, between)) <= between
