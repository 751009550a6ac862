"""The question of a continuation: what comes, what is told on the way, what a cancelled one keeps, and whose tokens a server takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import PROMPT, key

import llm_tt
from llm_tt.config import AppConfig
from llm_tt.engine.generated import Generated
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import CheckTrace, Continue, ExplainPrediction, LensGridOf, ReadContinuation, ReadHeads
from llm_tt.errors import PromptError, RequestError
from llm_tt.models.continuation import Continuation
from llm_tt.progress import Cancelled


def test_the_answer_is_what_the_library_generates(engine: LocalEngine, tiny: Callable[[str], llm_tt.TransparentLlm]) -> None:
    for options in ({}, {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": 3}):
        told: list[Continuation] = []
        stages: list[tuple[str, float]] = []
        answer = engine.answer(Continue(key(), 6, **options), lambda *stage, stages=stages: stages.append(stage), told.append)
        tokens = list(llm_tt.generate(tiny("gpt2"), PROMPT, 6, **options))
        assert answer == Continuation.of(tiny("gpt2").prompt(PROMPT).n_tokens, tokens)
        assert [part.token_ids for part in told] == [answer.token_ids[:n] for n in range(1, 7)]
        assert stages[-1] == ("Token 6 of 6", 1.0)
    more = engine.answer(Continue(replace(key(), continuation=answer.token_ids), 3))
    assert more.start == answer.start + 6


def test_a_known_continuation_is_told_as_it_was_when_it_came(engine: LocalEngine) -> None:
    came = engine.answer(Continue(key(), 6, temperature=1.5, seed=3))
    read = engine.answer(ReadContinuation(replace(key(), continuation=came.token_ids)))
    assert read.probabilities == pytest.approx(came.probabilities, abs=1e-5)
    assert replace(read, probabilities=came.probabilities, stop=came.stop) == came


def test_a_continued_prompt_is_traced_by_its_ids(engine: LocalEngine, plain: Callable[[str], Any], runs: list[tuple[int, ...]]) -> None:
    answer = engine.answer(Continue(key(), 8, temperature=2.0, seed=1))
    trace = replace(key(), continuation=answer.token_ids)
    target = answer.start + 2
    explained = engine.answer(ExplainPrediction(trace, target))
    assert explained.graph.token_ids[answer.start :] == answer.token_ids
    assert explained.prompt.roles[answer.start :] == ("continuation",) * 8
    with torch.inference_mode():
        row = plain("gpt2")(torch.tensor([explained.graph.token_ids])).logits[0, target].double()
    follows = explained.following
    assert follows is not None
    assert follows.probabilities is not None
    assert follows.ranks is not None
    token_id = answer.token_ids[3]
    assert (follows.token_ids.tolist(), follows.texts) == ([token_id], (answer.token_texts[3],))
    assert float(follows.probabilities[0]) == pytest.approx(float(row.softmax(-1)[token_id]), abs=1e-5)
    assert answer.probabilities[3] == pytest.approx(float(follows.probabilities[0]), abs=1e-5)
    assert int(follows.ranks[0]) == answer.ranks[3] == 1 + int((row > row[token_id]).sum())
    assert engine.answer(ExplainPrediction(trace)).following is None

    # Whatever is kept is kept apart from what belongs to the prompt alone.
    for ask in (ReadHeads, CheckTrace, LensGridOf, ExplainPrediction):
        engine.answer(ask(trace))
        engine.answer(ask(key()))
    assert engine.answer(CheckTrace(trace)).n_tokens == engine.answer(CheckTrace(key())).n_tokens + 8
    assert [len(ids) for ids in runs] == [answer.start + 8, answer.start]


def test_cancelled_between_tokens_it_keeps_what_has_come(engine: LocalEngine) -> None:
    whole = engine.answer(Continue(key(), 6))

    def until_third(stage: str, fraction: float) -> None:
        if stage == "Token 3 of 6":
            raise Cancelled

    some = engine.answer(Continue(key(), 6), until_third)
    assert (some.token_ids, some.stop) == (whole.token_ids[:3], "cancelled")

    def at_once(stage: str, fraction: float) -> None:
        if stage.startswith("Reading"):
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.answer(Continue(key(), 6), at_once)


def test_a_job_shows_the_part_that_has_come_and_is_cancelled(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_tt.models.reading import CachedReading

    read = CachedReading.read

    def slow(self: CachedReading, token_ids: Any) -> Any:
        time.sleep(0.02)
        return read(self, token_ids)

    engine.answer(Continue(key(), 1))
    monkeypatch.setattr(CachedReading, "read", slow)
    job = engine.submit(Continue(key(), 100))
    shown: list[int] = []
    while len(shown) < 3:
        part = engine.status(job).so_far
        if part is not None and len(part) not in shown:
            shown.append(len(part))
            assert part.stop is None
    engine.cancel(job)
    status = engine.wait(job, 10)
    assert status.state == "done"
    assert status.so_far == replace(engine.collect(job), stop=None)
    assert max(shown) <= len(status.so_far) < 100


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"n_tokens": 10_000}, PromptError, r"with 10000 more it has 10\d\d\d, but gpt2 reads at most \d+\. Ask for at most \d+ tokens\."),
        ({"temperature": -1.0}, RequestError, "The temperature is -1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], reason: str, engine: LocalEngine) -> None:
    with pytest.raises(error, match=reason):
        engine.answer(Continue(key(), **options))


# --- servers that restrict prompts


@pytest.fixture
def restricted(config: AppConfig, make_engine: Callable[..., LocalEngine], loads: list[str], tmp_path: Path) -> Callable[..., LocalEngine]:
    def serve(**changes: Any) -> LocalEngine:
        (tmp_path / "prompts.txt").write_text(f"{PROMPT}\nMary the\n")
        return make_engine(config.model_copy(update={"preloaded_dataset_filename": str(tmp_path / "prompts.txt"), **changes}))

    return serve


@pytest.mark.parametrize("changes", [{"demo_mode": True}, {"max_user_string_length": 10}])
def test_a_restricted_server_takes_only_what_it_generated_itself(changes: dict[str, Any], restricted: Callable[..., LocalEngine]) -> None:
    engine = restricted(**changes)
    answer = engine.answer(Continue(key(), 5, temperature=3.0, seed=4))
    assert len(set(answer.token_ids)) > 2
    own = replace(key(), continuation=answer.token_ids)
    # However long it is: the limit is on what users write.
    assert engine.answer(ExplainPrediction(own)).prompt.n_generated == 5
    assert engine.answer(ExplainPrediction(replace(key(), continuation=answer.token_ids[:2]))).prompt.n_generated == 2
    more = engine.answer(Continue(own, 2))
    assert engine.answer(ExplainPrediction(replace(key(), continuation=answer.token_ids + more.token_ids))).prompt.n_generated == 7

    smuggled = (*answer.token_ids[:-1], (answer.token_ids[-1] + 1) % 300)
    refused = [
        replace(key(), continuation=smuggled),
        replace(key(), continuation=(*answer.token_ids, (more.token_ids[0] + 1) % 300)),
        replace(key(), continuation=answer.token_ids[1:]),
        replace(key("Mary the"), continuation=answer.token_ids),
        replace(key(model="llama"), continuation=answer.token_ids),
    ]
    for trace in refused:
        for ask in (ExplainPrediction, Continue, CheckTrace, ReadHeads, LensGridOf):
            with pytest.raises(PromptError, match="This server knows no continuation of this prompt that begins with these"):
                engine.answer(ask(trace))
    assert engine.answer(ExplainPrediction(key())).prompt.n_generated == 0


def test_a_restricted_server_continues_no_prompt_that_it_does_not_show(restricted: Callable[..., LocalEngine]) -> None:
    with pytest.raises(PromptError, match="prepared prompts only"):
        restricted(demo_mode=True).answer(Continue(key("Say no.")))


def test_an_open_server_takes_any_tokens(engine: LocalEngine) -> None:
    assert engine.answer(ExplainPrediction(replace(key(), continuation=(7, 8)))).graph.token_ids[-2:] == (7, 8)


def test_the_least_used_continuations_are_forgotten() -> None:
    known: Generated[str] = Generated(2)
    known.remember("a", (1, 2))
    known.remember("b", (3,))
    assert known.knows("a", (1,))
    known.remember("c", (4,))
    assert known.knows("a", (1, 2))
    assert not known.knows("b", (3,))
    assert not known.knows("c", (4, 4))
