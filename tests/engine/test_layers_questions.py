"""`LensGridOf` and `TrajectoriesOf`: the library's answers, as jobs, kept while their model is."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from asking import content, key

import llm_tt
from llm_tt.engine import local
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import LensGridOf, TrajectoriesOf
from llm_tt.errors import LlmTtError, PromptError
from llm_tt.lens import grid as grid_module

TOKEN = 17


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what the library was asked for from now on."""
    seen: list[str] = []
    for name in ("lens_grid", "token_trajectories"):
        made = getattr(grid_module, name)

        def watched(*args: Any, name: str = name, made: Callable = made) -> Any:
            seen.append(name)
            return made(*args)

        monkeypatch.setattr(grid_module, name, watched)
    return seen


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("points", ["post", "both"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_answers_are_the_librarys(name: str, points: Any, normalize: bool, engine: LocalEngine, tiny: Callable) -> None:
    asked = key(model=name)
    trace = tiny(name).trace(asked.prompt)
    grid = engine.answer(LensGridOf(asked, points, TOKEN, normalize))
    expected = llm_tt.lens_grid(trace, points, TOKEN, normalize)
    assert grid.points == expected.points
    assert grid.top_ids.tolist() == expected.top_ids.tolist()
    assert grid.texts == expected.texts
    np.testing.assert_allclose(grid.entropies, expected.entropies, atol=1e-5)
    np.testing.assert_allclose(grid.probabilities, expected.probabilities, atol=1e-6)  # type: ignore[arg-type]
    lines = engine.answer(TrajectoriesOf(asked, 2, (TOKEN,), 3, points, normalize))
    best = trace.logits(2).topk(3).indices.tolist()
    expected_lines = llm_tt.token_trajectories(trace, 2, [*best, TOKEN], points, normalize)
    assert lines.token_ids == expected_lines.token_ids
    np.testing.assert_allclose(lines.logits, expected_lines.logits, rtol=1e-5, atol=1e-5)
    for answer in (grid, lines):
        assert content(pickle.loads(pickle.dumps(answer))) == content(answer)


def test_answers_are_made_once(engine: LocalEngine, readings: list[str], runs: list) -> None:
    for question in (LensGridOf(key()), TrajectoriesOf(key())):
        first = engine.answer(question)
        assert engine.collect(engine.submit(question)) is first
    assert readings == ["lens_grid", "token_trajectories"]
    assert len(runs) == 1
    engine.answer(LensGridOf(key(), token=3))
    engine.answer(LensGridOf(key("Mary the store one")))
    assert len(readings) == 4


def test_what_exceeds_the_budget_is_made_again(
    make_engine: Callable, loads: list, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_LENS_BUDGET", 1)
    engine = make_engine()
    for token in (1, 2, 2, 1):
        engine.answer(LensGridOf(key(), token=token))
    assert len(readings) == 3


def test_what_a_dropped_model_said_is_dropped(engine: LocalEngine, readings: list[str], loads: list) -> None:
    question = LensGridOf(key())
    engine.answer(question)
    engine.unload(question.trace.model)
    engine.answer(question)
    assert readings == ["lens_grid"] * 2


def test_a_grid_is_a_job_with_progress_that_can_be_cancelled(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.answer(LensGridOf(key()))
    job: list[str] = []
    logits = grid_module.logits

    def stopped(*args: Any) -> Any:
        engine.cancel(job[0])
        return logits(*args)

    monkeypatch.setattr(grid_module, "logits", stopped)
    # The job starts before its id is known; it reads the list only when it has a trace.
    seen = engine._jobs.submit(lambda progress: (wait(job), engine.answer(LensGridOf(key(), token=4), progress)))
    job.append(seen)
    status = engine.wait(seen, 30)
    assert status.state == "cancelled"
    assert status.stage == "Reading X0"


def wait(job: list[str]) -> None:
    while not job:
        pass


def test_what_is_no_token_fails_with_the_sentence(engine: LocalEngine) -> None:
    for question in (LensGridOf(key(), token="no such token"), TrajectoriesOf(key(), tokens=("no such token",))):
        with pytest.raises(LlmTtError, match=r'^"no such token" is \d+ tokens: '):
            engine.answer(question)


def test_prompts_that_a_server_does_not_allow_are_refused_here_too(make_engine: Callable, config: Any, loads: list) -> None:
    engine = make_engine(config.model_copy(update={"max_user_string_length": 5}))
    with pytest.raises(PromptError, match="this server allows 5"):
        engine.answer(LensGridOf(key()))
