"""What a trace will cost can be asked before it is made, and is known to those who wait for it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
from asking import PROMPT, key

from llm_tt.engine import local
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import EstimateTrace, ExplainPrediction
from llm_tt.errors import OutOfMemoryError, PromptError
from llm_tt.models import memory, pace
from llm_tt.models.estimates import Pace

LONG = PROMPT * 8


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models whose pace was measured; it is 1 ms a token."""
    seen: list[str] = []

    def measure(llm: object, *args: object) -> Pace:
        seen.append(llm.info.name)  # type: ignore[attr-defined]
        return Pace(0.0, 1e-3, 0.0)

    monkeypatch.setattr(pace, "measured_pace", measure)
    return seen


def test_an_estimate_is_the_librarys_and_traces_nothing(
    engine: LocalEngine, tiny: Callable, measured: list[str], runs: list[tuple[int, ...]]
) -> None:
    found = engine.answer(EstimateTrace(key()))
    llm = tiny("gpt2")
    n_tokens = llm.prompt(PROMPT).n_tokens
    assert (found.n_tokens, found.seconds) == (n_tokens, pytest.approx(n_tokens / 1000))
    assert found.n_bytes == memory.trace_bytes(llm.info, n_tokens)
    assert found.longest == llm.info.n_ctx
    assert found.fits
    assert pickle.loads(pickle.dumps(found)) == found
    assert runs == []


def test_how_fast_a_model_is_is_measured_once(engine: LocalEngine, measured: list[str]) -> None:
    engine.answer(EstimateTrace(key()))
    engine.answer(EstimateTrace(key(LONG)))
    assert measured == ["gpt2"]
    engine.answer(EstimateTrace(key(model="llama")))
    assert measured == ["gpt2", "llama"]


def test_what_a_long_prompt_takes_is_known_before_it_is_traced_and_better_afterwards(
    engine: LocalEngine, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answer(ExplainPrediction(key()))
    assert measured == [], "a short prompt does not wait for it"
    monkeypatch.setattr(local, "LONG_PROMPT", 30)
    taken = engine.answer(ExplainPrediction(key(LONG))).trace_seconds
    assert measured == ["gpt2"]
    assert engine.answer(EstimateTrace(key(LONG))).seconds == pytest.approx(taken)


def test_the_pace_is_really_measured(engine: LocalEngine) -> None:
    estimated = engine.answer(EstimateTrace(key(LONG))).seconds
    taken = engine.answer(ExplainPrediction(key(LONG))).trace_seconds
    assert taken / 20 < estimated < 20 * taken


def test_what_cannot_be_traced_is_refused_as_by_a_trace(engine: LocalEngine, measured: list[str]) -> None:
    with pytest.raises(PromptError) as of_estimate:
        engine.answer(EstimateTrace(key(PROMPT * 40)))
    with pytest.raises(PromptError) as of_trace:
        engine.answer(ExplainPrediction(key(PROMPT * 40)))
    assert str(of_estimate.value) == str(of_trace.value)


def test_what_does_not_fit_is_refused_with_numbers_and_the_longest_that_fits_is_traced(
    engine: LocalEngine, measured: list[str], tiny: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, n_tokens = tiny("gpt2").info, tiny("gpt2").prompt(LONG).n_tokens
    monkeypatch.setattr(memory, "available_bytes", lambda device: memory.trace_bytes(info, n_tokens // 2) / 0.9 + 1)
    found = engine.answer(EstimateTrace(key(LONG)))
    assert not found.fits
    assert found.longest == n_tokens // 2
    with pytest.raises(OutOfMemoryError, match=f"shorten the prompt to at most {n_tokens // 2} tokens"):
        engine.answer(ExplainPrediction(key(LONG)))
    assert engine.answer(ExplainPrediction(key())).graph.n_edges, "the session goes on"


def test_a_job_that_runs_out_of_memory_fails_with_a_sentence_and_the_next_one_is_answered(
    engine: LocalEngine, tiny: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def exhausted(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    question = ExplainPrediction(key())
    with monkeypatch.context() as patch:
        # One of them, as the model is shared and another test may have switched fused attention off.
        patch.setattr(tiny("gpt2"), "captured_block", exhausted)
        patch.setattr(tiny("gpt2"), "eager_block", exhausted)
        job = engine.submit(question)
        status = engine.wait(job, 60)
        assert status.state == "failed"
        assert "cpu ran out of memory while tracing" in status.message
        assert "Shorten the prompt" in status.message
    again = engine.submit(replace(question, threshold=0.05))
    assert engine.wait(again, 60).state == "done"
