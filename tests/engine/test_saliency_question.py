"""`SaliencyOf`: the library's answer, as a job, kept, cancelled and refused like any other."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from asking import content, key

import llm_tt
from llm_tt.analysis import saliency as saliency_module
from llm_tt.analysis.saliency_report import METHODS, QUICK
from llm_tt.engine import local
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import ListLoaded, SaliencyOf
from llm_tt.errors import PromptError, RequestError

SMALL: dict[str, Any] = {"n_samples": 20, "n_steps": 8, "n_removed": 2}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that the library was asked about from now on."""
    seen: list[str] = []
    saliency = saliency_module.saliency

    def watched(trace: llm_tt.Trace, *arguments: Any, **options: Any) -> Any:
        seen.append(trace.model.info.name)
        return saliency(trace, *arguments, **options)

    monkeypatch.setattr(saliency_module, "saliency", watched)
    return seen


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_the_answer_is_the_librarys(name: str, engine: LocalEngine, tiny: Callable) -> None:
    asked = key(model=name)
    question = SaliencyOf(asked, -1, 17, 30, METHODS, "word", seed=4, threshold=0.02, renormalize=False, **SMALL)
    found = engine.answer(question)
    expected = llm_tt.saliency(
        tiny(name).trace(asked.prompt), -1, 17, 30, METHODS, "word", seed=4, threshold=0.02, renormalize=False, **SMALL
    )
    assert found.features == expected.features
    for one, other in zip(found.methods, expected.methods, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.deletion, other.deletion, rtol=1e-3)
    assert content(pickle.loads(pickle.dumps(found.features))) == content(found.features)
    by_mass = engine.answer(SaliencyOf(asked, methods=("flow",), mass=0.8))
    trace = tiny(name).trace(asked.prompt)
    np.testing.assert_allclose(by_mass.scores("flow"), llm_tt.flow_over_sources(llm_tt.extract_routes_by_mass(trace, mass=0.8)), rtol=1e-5)


def test_it_is_made_once_and_told_in_the_memory_report(engine: LocalEngine, measured: list[str], runs: list) -> None:
    question = SaliencyOf(key(), methods=QUICK)
    first = engine.answer(question)
    assert engine.collect(engine.submit(question)) is first
    assert len(measured) == 1
    assert len(runs) == 1
    engine.answer(SaliencyOf(key(), methods=QUICK, seed=1))
    assert len(measured) == 2
    uses = {use.name: (use.n_kept, use.n_found, use.n_made) for use in engine.answer(ListLoaded()).caches}
    assert uses["saliency"] == (2, 1, 2)


def test_what_exceeds_the_budget_is_made_again(
    make_engine: Callable, loads: list, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_SALIENCY_BUDGET", 1)
    engine = make_engine()
    for seed in (1, 2, 2, 1):
        engine.answer(SaliencyOf(key(), methods=("flow",), seed=seed))
    assert len(measured) == 3


def test_it_is_a_job_with_progress_that_can_be_cancelled(engine: LocalEngine) -> None:
    job = engine.submit(SaliencyOf(key(), methods=("integrated_gradients",), n_steps=1000))
    seen = set()
    for _ in range(3000):
        status = engine.status(job)
        if status.stage == "Integrated gradients" and status.fraction > 0:
            seen.add(status.fraction)
            if len(seen) > 2:
                break
        time.sleep(0.01)
    assert len(seen) > 2
    assert not status.finished
    engine.cancel(job)
    assert engine.wait(job, 30).state == "cancelled"


def test_refusals(engine: LocalEngine, make_engine: Callable, config: Any, loads: list) -> None:
    with pytest.raises(RequestError, match="Position 99 does not exist"):
        engine.answer(SaliencyOf(key(), 99))
    status = engine.wait(engine.submit(SaliencyOf(key(), n_steps=0)), 30)
    assert (status.state, status.message) == ("failed", "n_steps is 0. Expected a whole number from 1 to 1000.")
    closed = make_engine(config.model_copy(update={"max_user_string_length": 3}))
    with pytest.raises(PromptError, match="but this server allows 3"):
        closed.answer(SaliencyOf(key()))
