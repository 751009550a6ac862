"""Sources, flow of heads and what was dropped come with every explanation; head roles and a trace's check are questions of their own."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from asking import PROMPT, assert_close, content, key
from flow_by_hand import head_flow, sources

import llm_tt
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import CheckTrace, ExplainPrediction, ReadHeads
from llm_tt.errors import RequestError
from llm_tt.flow.head_roles import ROLES
from llm_tt.models import identities

NAMES = ("gpt2", "llama")
REPEATED = "Mary the store Mary the store."
every_model = pytest.mark.parametrize("name", NAMES)


@every_model
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("mass", [None, 0.9])
@pytest.mark.parametrize("first", [None, 1])
def test_an_explanation_has_its_graphs_sources_head_flow_and_what_was_dropped(
    name: str, renormalize: bool, mass: float | None, first: int | None, engine: LocalEngine, tiny: Callable
) -> None:
    answer = engine.answer(ExplainPrediction(key(model=name), -2, 0.03, renormalize, mass=mass, first=first))
    trace = tiny(name).trace(PROMPT)
    targets = [-2] if first is None else range(first, trace.n_tokens - 1)
    assert answer.graph.targets == (() if first is None else tuple(targets))
    assert answer.graph.target == trace.n_tokens - 2
    extract = (
        (lambda on: llm_tt.extract_routes_to_span(trace, targets, 0.03, on))
        if mass is None
        else (lambda on: llm_tt.extract_routes_by_mass(trace, targets, mass, on))
    )
    assert_close(content(answer.graph), content(extract(renormalize)))
    assert answer.sources == pytest.approx(sources(answer.graph), abs=1e-6)
    assert answer.head_flow == pytest.approx(np.array(head_flow(answer.graph, trace.model.info.n_heads)), abs=1e-6)
    assert answer.dropped == pytest.approx(1 - sum(sources(extract(False))), abs=1e-6)
    if mass is not None:
        assert 0 <= answer.dropped <= 1 - mass


@every_model
def test_head_roles_are_the_librarys_and_read_once(name: str, engine: LocalEngine, tiny: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_tt.flow import head_roles as heads

    question = ReadHeads(key(REPEATED, name))
    answer, expected = engine.answer(question), llm_tt.head_roles(tiny(name).trace(REPEATED))
    for role in ROLES:
        assert answer.score(role) == pytest.approx(expected.score(role), abs=1e-6, nan_ok=True)
    assert answer.n_repeats >= 3
    sent = pickle.loads(pickle.dumps(answer))
    assert all(np.array_equal(sent.score(role), answer.score(role), equal_nan=True) for role in ROLES)

    def again(*arguments: object) -> None:
        raise AssertionError("read twice")

    monkeypatch.setattr(heads, "head_roles", again)
    assert engine.answer(question) is answer


@every_model
def test_the_check_of_a_trace_is_the_librarys(name: str, engine: LocalEngine, tiny: Callable) -> None:
    answer = engine.answer(CheckTrace(key(model=name), n_positions=3))
    expected = llm_tt.reconstruction_errors(tiny(name).trace(PROMPT), 3)
    assert answer.n_positions == 3
    assert answer.n_tokens == tiny(name).trace(PROMPT).n_tokens
    assert answer.tolerance == identities.check(tiny(name)).tolerance
    for mine, theirs in zip(answer.layers, expected, strict=True):
        assert mine.layer == theirs.layer
        assert mine.attention == pytest.approx(theirs.attention, rel=0.5, abs=1e-7)
        assert mine.neurons == pytest.approx(theirs.neurons, rel=0.5, abs=1e-7)
    assert pickle.loads(pickle.dumps(answer)) == answer
    assert engine.answer(CheckTrace(key(model=name), n_positions=3)) is answer


def test_no_positions_and_a_mass_that_is_no_share_are_refused(engine: LocalEngine) -> None:
    with pytest.raises(RequestError, match="0 positions are none"):
        engine.answer(CheckTrace(key(), n_positions=0))
    with pytest.raises(RequestError, match=r"Mass 1\.2 is not between 0 and 1"):
        engine.answer(ExplainPrediction(key(), mass=1.2))


@every_model
def test_what_a_span_tells_beside_its_routes_is_of_its_last_target(name: str, engine: LocalEngine) -> None:
    span, alone = (engine.answer(ExplainPrediction(key(model=name), -2, first=first)) for first in (2, None))
    assert content(span.predictions) == content(alone.predictions)
    assert span.following is not None
    assert content(span.following) == content(alone.following)
    assert engine.answer(ExplainPrediction(key(model=name), -2, first=-2)).graph.targets == ()


@pytest.mark.parametrize(
    ("first", "target", "sentence"),
    [
        (4, 2, "would begin at token 4, after its last token, 2"),
        (-1, 0, "after its last token, 0"),
        (99, -1, "Position 99 does not exist"),
        (0, 99, "Position 99 does not exist"),
    ],
)
def test_a_span_that_does_not_exist_is_refused(first: int, target: int, sentence: str, engine: LocalEngine) -> None:
    with pytest.raises(RequestError, match=sentence):
        engine.answer(ExplainPrediction(key(), target, first=first))


def test_both_questions_report_and_can_be_jobs(engine: LocalEngine) -> None:
    for question in (ReadHeads(key()), CheckTrace(key())):
        seen: list[float] = []
        engine.answer(question, lambda stage, fraction, seen=seen: seen.append(fraction))
        assert seen == sorted(seen)
        assert seen[-1] == pytest.approx(1)
        job = engine.submit(question)
        assert engine.wait(job, 30).state == "done"
        assert engine.collect(job) is engine.answer(question)
