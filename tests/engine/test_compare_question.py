"""`CompareTraces`: the library's answer, as a job, kept as long as both models are, cancelled and refused like any other."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from asking import content, key, values

import llm_tt
from llm_tt.analysis import comparing
from llm_tt.analysis.comparison import Comparison
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import CompareTraces, ListLoaded
from llm_tt.errors import PromptError, RequestError

PAIR = CompareTraces(key("Mary the store."), key("Mary the stone."), token=17, contrast=30, threshold=0.02)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The models that the library was asked to compare from now on."""
    seen: list[tuple[str, str]] = []
    compare = comparing.compare

    def watched(first: llm_tt.Trace, second: llm_tt.Trace, *arguments: Any, **options: Any) -> Any:
        seen.append((first.model.info.name, second.model.info.name))
        return compare(first, second, *arguments, **options)

    monkeypatch.setattr(comparing, "compare", watched)
    return seen


def assert_same(one: Comparison, other: Comparison) -> None:
    np.testing.assert_allclose(one.edges.contribution, other.edges.contribution, atol=1e-6)
    for name in ("columns", "ranks"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("divergence", "following", "cosine", "head_flow", "ffn_flow", "head_contribution"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.effects[1].heads, other.effects[1].heads, rtol=1e-3, atol=1e-5)
    assert one.targets == other.targets
    assert one.notes == other.notes


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_two_prompts_on_one_model(name: str, engine: LocalEngine, tiny: Callable) -> None:
    question = replace(PAIR, first=key("Mary the store.", name), second=key("the store Mary the.", name), target=3, other_target=2)
    found = engine.answer(question)
    first, second = (tiny(name).trace(asked.prompt) for asked in question.trace)
    assert_same(found, llm_tt.compare(first, second, 3, 2, 17, 30, 0.02))
    by_mass = engine.answer(replace(question, mass=0.8, renormalize=True, n_predictions=3))
    assert_same(by_mass, llm_tt.compare(first, second, 3, 2, 17, 30, mass=0.8, renormalize=True))
    assert len(by_mass.choices) <= 6


def test_two_models_with_tokenizers_of_their_own(engine: LocalEngine, tiny: Callable, loads: list[str]) -> None:
    question = CompareTraces(key("Mary sold the store."), key("Mary sold the store.", "llama"), token="a")
    found = engine.answer(question)
    assert_same(found, llm_tt.compare(*(tiny(name).trace("Mary sold the store.") for name in ("gpt2", "llama")), token="a"))
    assert sorted(loads) == ["gpt2", "llama"]


def test_the_answer_crosses_a_network(engine: LocalEngine) -> None:
    found = engine.answer(PAIR)
    assert not [value for value in values(found) if type(value).__module__.startswith("torch")]
    # As text: what is not a number equals nothing.
    assert repr(content(pickle.loads(pickle.dumps(found)))) == repr(content(found))


def test_it_is_made_once_and_goes_with_its_models(engine: LocalEngine, compared: list, loads: list[str]) -> None:
    question = CompareTraces(key("Mary sold."), key("Mary sold.", "llama"), token="a")
    first = engine.answer(question)
    assert engine.collect(engine.submit(question)) is first
    assert len(compared) == 1
    uses = {use.name: (use.n_kept, use.n_found, use.n_made) for use in engine.answer(ListLoaded()).caches}
    assert uses["comparisons"] == (1, 1, 1)
    engine.unload(question.second.model)
    assert engine.answer(question) is not first
    assert len(compared) == 2
    assert loads == ["gpt2", "llama", "llama"]


def test_neither_model_makes_room_for_the_other(make_engine: Callable, loads: list[str]) -> None:
    engine = make_engine(max_models=2)
    engine.answer(CompareTraces(key("Mary", "gemma"), key("Mary", "gemma")))
    engine.answer(CompareTraces(key("Mary sold."), key("Mary sold.", "llama"), token="a"))
    assert loads == ["gemma", "gpt2", "llama"]
    assert engine.is_loaded(key().model)
    assert engine.is_loaded(key(model="llama").model)


def test_it_is_a_job_with_progress_that_can_be_cancelled(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    job, submitted = "", threading.Event()

    def watch(stage: str, fraction: float) -> None:
        seen.append((stage, fraction))

    engine.answer(PAIR, watch)
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert any(stage.startswith("Comparing the edges of layer") for stage, _ in seen)

    compare = comparing._edges

    def slow(*arguments: Any) -> Any:
        submitted.wait(10)
        engine.cancel(job)
        return compare(*arguments)

    monkeypatch.setattr(comparing, "_edges", slow)
    started = replace(PAIR, threshold=0.03)
    job = engine.submit(started)
    submitted.set()
    assert engine.wait(job, 30).state == "cancelled"


def test_refusals(engine: LocalEngine, make_engine: Callable, config: Any) -> None:
    with pytest.raises(RequestError, match="Position 99 does not exist"):
        engine.answer(replace(PAIR, target=99))
    status = engine.wait(engine.submit(replace(PAIR, token="Mary the")), 30)
    assert status.state == "failed"
    assert "Name a single one" in status.message
    closed = make_engine(config.model_copy(update={"max_user_string_length": 15}))
    closed.answer(PAIR)
    with pytest.raises(PromptError, match="but this server allows 15"):
        closed.answer(replace(PAIR, second=key("Mary the other store.")))
