"""How fast a model is, measured on short prompts, tells what long ones will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from families import token_ids
from process_growth import bridge

import llm_tt
from llm_tt.errors import PromptError
from llm_tt.models import memory, pace
from llm_tt.models.estimates import Pace, TraceEstimate
from llm_tt.models.sizes import show_bytes, show_seconds


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several would wait for each other, and so take time of the processor, whenever another process holds one up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mode", ["fused", "eager", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_time_of_a_trace_is_within_a_quarter_of_the_estimate(name: str, mode: str) -> None:
    """In seconds of the processor, so that what else the machine does matters little."""
    llm = bridge(name, "bfloat16" if mode == "bfloat16" else "float32")
    if mode == "eager":
        llm.use_eager_attention()
    found = pace.measured_pace(llm, clock=time.process_time)
    taken: dict[int, list[float]] = {n_tokens: [] for n_tokens in (100, 400, 1024, 1500)}
    # In turns, so that a moment's disturbance is not in all runs of one length.
    for _ in range(3):
        for n_tokens, seconds in taken.items():
            ids = token_ids(n_tokens)
            seconds.append(_processor_seconds(lambda ids=ids: llm.trace(ids)))
    for n_tokens, seconds in taken.items():
        assert found.seconds(n_tokens) == pytest.approx(min(seconds), rel=0.25), n_tokens


def _processor_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def test_a_pace_is_fitted_to_runs_that_follow_it_exactly() -> None:
    made = Pace(0.02, 3e-4, 2e-8)
    found = Pace.fitted([(length, made.seconds(length)) for length in (16, 64, 256)], 2e-8)
    assert found.seconds(4000) == pytest.approx(0.02 + 4000 * 3e-4 + 4000**2 * 2e-8)


def test_a_single_run_tells_what_a_token_costs() -> None:
    assert Pace.fitted([(10, 2.0)], 0.0).seconds(30) == pytest.approx(6.0)


def test_noise_makes_no_cost_negative() -> None:
    found = Pace.fitted([(16, 0.1), (64, 0.05)], 0.0)
    assert min(found.start, found.per_token) >= 0


def test_traces_that_were_made_correct_the_pace() -> None:
    known = Pace(0.0, 1e-3, 0.0).after(100, 0.1).after(1000, 2.0)
    assert known.seconds(2000) == pytest.approx(4.0)
    assert known.seconds(90) == pytest.approx(0.09)
    assert known.after(1000, 3.0).seconds(2000) == pytest.approx(6.0), "the latest of a length counts"
    for seconds in np.linspace(1, 2, 20):
        known = known.after(500, float(seconds))
    assert len(known.runs) == 8


def test_the_pace_is_measured_by_traces_of_the_model_itself(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only traces move: 1 second each, and 10 ms a token."""
    llm, now, lengths = model("llama"), [0.0], []

    def trace(ids: list[int]) -> None:
        lengths.append(len(ids))
        now[0] += 1 + len(ids) / 100

    monkeypatch.setattr(pace, "_ENOUGH", 3.0)
    monkeypatch.setattr(llm, "trace", trace)
    found = pace.measured_pace(llm, clock=lambda: now[0])
    assert lengths == [16, 16, 64, 64, 256, 256, 16, 64, 256]
    assert found.seconds(200) == pytest.approx(3.0)
    lengths.clear()
    monkeypatch.setattr(pace, "_ENOUGH", 1.5)
    pace.measured_pace(llm, clock=lambda: now[0])
    assert lengths == [16, 16, 64, 64, 16, 64], "a run that is long enough is the last"


@pytest.mark.parametrize(("eager", "fits", "patience"), [(True, True, 20.0), (False, True, 20.0), (True, False, 20.0), (True, True, 0.0)])
def test_eager_attention_is_told_by_a_long_run_where_it_may(
    eager: bool, fits: bool, patience: float, model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that only traces move, by the square of their length."""
    llm, now, lengths = model("llama", eager=eager), [0.0], []

    def trace(ids: list[int]) -> None:
        lengths.append(len(ids))
        now[0] += 1 + (len(ids) / 50) ** 2

    monkeypatch.setattr(pace, "_LENGTHS", (16, 64))
    monkeypatch.setattr(pace, "_ENOUGH", 100.0)
    monkeypatch.setattr(pace, "_ATTENTION_LENGTH", 200)
    monkeypatch.setattr(pace, "_PATIENCE", patience)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**9 if fits else 10_000)
    monkeypatch.setattr(llm, "trace", trace)
    found = pace.measured_pace(llm, clock=lambda: now[0])
    if eager and fits and patience:
        assert lengths == [16, 16, 64, 64, 16, 64, 200, 200]
        assert found.seconds(200) == pytest.approx(17.0)
        assert found.seconds(64) == pytest.approx(1 + 1.28**2)
    else:
        assert lengths == [16, 16, 64, 64, 16, 64]


def test_an_estimate_puts_together_what_is_known(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    llm, available = model("llama"), 200_000
    monkeypatch.setattr(memory, "available_bytes", lambda device: available)
    found = llm_tt.estimate_trace(llm, token_ids(200), Pace(0.5, 0.01, 0.0))
    longest = memory.longest_prompt(llm.info, 180_000)
    assert found == TraceEstimate(200, memory.trace_bytes(llm.info, 200), 2.5, 180_000, longest)
    assert 1 < longest < 200
    assert not found.fits
    assert found.sentence() == (
        f"200 tokens: about 2.5 s and {show_bytes(found.n_bytes)} of memory, but there are {show_bytes(180_000)} to give. "
        f"What fits: at most {longest} tokens"
    )
    assert llm_tt.estimate_trace(llm, longest, Pace(0.5, 0.01, 0.0)).fits


def test_an_estimate_of_what_fits_is_a_short_sentence(model: Callable[..., Any]) -> None:
    found = llm_tt.estimate_trace(model("llama"), "Mary gave the store", Pace(1.0, 0.0, 0.0))
    assert found.sentence() == f"{found.n_tokens} tokens: about 1.0 s and {show_bytes(found.n_bytes)} of memory"


def test_nothing_is_estimated_of_what_cannot_be_traced(model: Callable[..., Any]) -> None:
    with pytest.raises(PromptError, match="300 tokens"):
        llm_tt.estimate_trace(model("llama"), [5] * 300, Pace(1.0, 0.0, 0.0))


def test_without_a_pace_it_is_measured(model: Callable[..., Any]) -> None:
    found = llm_tt.estimate_trace(model("llama"), 100)
    taken = _processor_seconds(lambda: model("llama").trace(token_ids(100)))
    assert 0 < found.seconds < 100 * max(taken, 0.01)


@pytest.mark.parametrize(("seconds", "text"), [(0.01, "0.1 s"), (2.34, "2.3 s"), (9.96, "10 s"), (75, "75 s"), (150, "2.5 min")])
def test_seconds_are_shown_as_people_say_them(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_dtype_and_device_are_the_models_own(model: Callable[..., Any]) -> None:
    assert pace._attention_seconds(model("llama", "bfloat16").info, time.process_time) > 0
    assert model("llama", "bfloat16").info.torch_dtype == torch.bfloat16
