"""What the engine keeps and what it does only once: models, traces, contributions; shared by threads."""

from __future__ import annotations

import dataclasses
import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import PROMPT, PROMPTS, assert_close, content, in_threads, key, questions

import llm_tt
import llm_tt.models
from llm_tt.config import AppConfig
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import (
    ExplainPrediction,
    Explanation,
    InspectEdge,
    InspectNode,
    LoadModel,
    ModelFacts,
    ModelKey,
)
from llm_tt.errors import LlmTtError, ModelError
from llm_tt.flow import contributions
from llm_tt.models.bridge import BridgeLlm
from llm_tt.progress import Progress, silent

# --- models


def test_a_model_is_loaded_once_though_several_threads_ask_at_the_same_time(
    make_engine: Callable, config: AppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    load = llm_tt.models.load_unchecked

    def spy(spec: Any, progress: Progress = silent, **options: Any) -> llm_tt.TransparentLlm:
        seen.append(spec.path)
        time.sleep(0.05)  # lets the others arrive
        return load(spec, progress=progress, **options)

    monkeypatch.setattr(llm_tt.models, "load_unchecked", spy)
    engine = make_engine()
    assert not engine.is_loaded(ModelKey("gpt2"))
    answers = in_threads(*[lambda: engine.answer(LoadModel(ModelKey("gpt2")))] * 4)
    assert seen == [config.models["gpt2"].path]
    assert isinstance(answers[0], ModelFacts)
    assert all(answer is answers[0] for answer in answers)
    assert engine.is_loaded(ModelKey("gpt2"))


def test_the_least_recently_used_model_is_dropped_for_another(make_engine: Callable, loads: list[str]) -> None:
    engine = make_engine(max_models=2)

    def loaded() -> list[str]:
        return [name for name in ("gpt2", "llama", "gemma") if engine.is_loaded(ModelKey(name))]

    for name in ("gpt2", "llama", "gpt2"):
        engine.answer(LoadModel(ModelKey(name)))
    assert loaded() == ["gpt2", "llama"]
    engine.answer(LoadModel(ModelKey("gemma")))
    assert loaded() == ["gpt2", "gemma"]
    assert loads == ["gpt2", "llama", "gemma"]
    engine.answer(LoadModel(ModelKey("llama")))
    assert loaded() == ["llama", "gemma"]
    assert loads == ["gpt2", "llama", "gemma", "llama"]


def test_traces_of_a_dropped_model_are_dropped_and_the_others_kept(make_engine: Callable, loads: list[str], runs: list) -> None:
    engine = make_engine(max_models=2)
    for name in ("gpt2", "llama", "gemma"):
        engine.answer(ExplainPrediction(key(model=name)))
    assert len(runs) == 3
    engine.answer(ExplainPrediction(key(model="llama")))
    assert len(runs) == 3
    engine.answer(ExplainPrediction(key(model="gpt2")))
    assert len(runs) == 4


@pytest.mark.slow
def test_nothing_keeps_a_dropped_model_in_memory(make_engine: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[llm_tt.TransparentLlm]] = []
    load = llm_tt.models.load_unchecked

    def spy(spec: Any, progress: Progress = silent, **options: Any) -> llm_tt.TransparentLlm:
        result = load(spec, progress=progress, **options)
        loaded.append(weakref.ref(result))
        return result

    monkeypatch.setattr(llm_tt.models, "load_unchecked", spy)
    engine = make_engine(max_models=1)
    answers = [engine.answer(question) for question in questions(key())]
    assert len(loaded) == 1
    assert loaded[0]() is not None
    engine.answer(LoadModel(ModelKey("llama")))
    gc.collect()
    assert loaded[0]() is None, "an answer, a trace or the engine holds on to it"
    assert loaded[1]() is not None
    assert len(answers) == len(questions(key()))


def test_a_folder_that_the_user_types_is_loaded(make_engine: Callable, checkpoint: Callable[[str], Path], tiny: Callable) -> None:
    folder = str(checkpoint("gpt2"))
    facts = make_engine().answer(LoadModel(ModelKey(folder)))
    assert facts.info.name == folder
    assert facts.info.n_params == tiny("gpt2").info.n_params


@pytest.mark.parametrize(
    "name",
    ["no-such-model", "nobody/no-such-model", "/no/such/folder", "./nowhere", "", "   ", "x" * 300, "a\0b"],
    ids=lambda name: repr(name)[:24],
)
def test_a_model_name_that_leads_nowhere_gets_a_sentence(name: str, make_engine: Callable) -> None:
    engine = make_engine()
    with pytest.raises(ModelError) as caught:
        engine.answer(LoadModel(ModelKey(name)))
    assert str(caught.value).endswith(".")
    if name.strip():
        assert name in str(caught.value)
    else:
        assert "No model is named" in str(caught.value)
    assert not engine.is_loaded(ModelKey(name))


def test_a_typed_name_of_a_device_that_is_none_gets_a_sentence(make_engine: Callable) -> None:
    with pytest.raises(ModelError, match="banana"):
        make_engine().answer(LoadModel(ModelKey("gpt2", device="banana")))


@pytest.mark.slow
def test_device_and_dtype_of_the_question_override_the_configuration(make_engine: Callable) -> None:
    engine = make_engine()
    facts = engine.answer(LoadModel(ModelKey("gpt2", device="cpu", dtype="bfloat16")))
    assert (facts.info.device, facts.info.dtype) == ("cpu", "bfloat16")
    assert not engine.is_loaded(ModelKey("gpt2"))


def test_a_model_whose_parts_do_not_add_up_is_refused_and_not_kept(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    attention_output = BridgeLlm.attention_output
    with monkeypatch.context() as broken:
        broken.setattr(BridgeLlm, "attention_output", lambda self, layer: (1.1 * attention_output(self, layer)[0], None))
        with pytest.raises(ModelError, match="layer 0: attention parts are off by"):
            engine.answer(ExplainPrediction(key()))
        assert not engine.is_loaded(ModelKey("gpt2"))
    assert engine.answer(ExplainPrediction(key())).graph.n_edges > 0


# --- traces


def test_a_prompt_is_traced_once_for_all_questions_about_it(engine: LocalEngine, runs: list) -> None:
    for question in (*questions(key()), *questions(key())):
        engine.answer(question)  # type: ignore[call-overload]
    assert len(runs) == 1
    engine.answer(ExplainPrediction(key("the store")))
    assert len(runs) == 2
    engine.answer(ExplainPrediction(key(model="llama")))
    assert len(runs) == 3


def test_a_prompt_is_traced_once_though_several_threads_ask_at_the_same_time(engine: LocalEngine, runs: list) -> None:
    answers = in_threads(*[lambda: engine.answer(ExplainPrediction(key()))] * 4)
    assert len(runs) == 1
    assert all(content(answer) == content(answers[0]) for answer in answers)
    assert isinstance(answers[0], Explanation)


"""Of equal length, so that their traces have one size"""


@pytest.fixture
def sizes(tiny: Callable) -> tuple[int, int]:
    """Bytes of the trace of one of `PROMPTS`, and of all of its contributions."""
    traces = [tiny("gpt2").trace(prompt) for prompt in PROMPTS]
    assert len({trace.nbytes for trace in traces}) == 1
    llm_tt.attention_contributions(traces[0], 0)
    return traces[0].nbytes, 3 * contributions.table_of(traces[0]).nbytes


def test_the_least_recently_used_trace_goes_when_the_budget_is_exceeded(
    make_engine: Callable, loads: list[str], sizes: tuple[int, int], runs: list
) -> None:
    engine = make_engine(trace_budget=2 * sizes[0] + sizes[0] // 2)
    one, two, three = (ExplainPrediction(key(prompt), threshold=0.9) for prompt in PROMPTS)
    first = {prompt.trace: content(engine.answer(prompt)) for prompt in (one, two)}
    engine.answer(one)
    engine.answer(three)
    assert len(runs) == 3
    assert_close(content(engine.answer(one)), first[one.trace])
    assert len(runs) == 3, "one was used after two, so two had to go"
    assert_close(content(engine.answer(two)), first[two.trace])
    assert len(runs) == 4, "what was dropped is answered by tracing it again"


@pytest.mark.parametrize(("threshold", "n_runs"), [(0.9, 2), (0.0, 3)])
def test_contributions_kept_with_a_trace_count_towards_the_budget(
    threshold: float, n_runs: int, make_engine: Callable, loads: list[str], sizes: tuple[int, int], runs: list
) -> None:
    trace, table = sizes
    engine = make_engine(trace_budget=2 * trace + table // 2)
    for prompt in (PROMPTS[0], PROMPTS[1], PROMPTS[0]):
        engine.answer(ExplainPrediction(key(prompt), threshold=threshold))
    assert len(runs) == n_runs


def test_a_trace_larger_than_the_whole_budget_is_answered_and_kept_until_the_next(
    make_engine: Callable, loads: list[str], runs: list
) -> None:
    engine = make_engine(trace_budget=0)
    for question in questions(key()):
        engine.answer(question)
    assert len(runs) == 1
    engine.answer(ExplainPrediction(key(PROMPTS[0])))
    engine.answer(ExplainPrediction(key()))
    assert len(runs) == 3


@pytest.mark.parametrize(
    "question", [ExplainPrediction(key("x" * 300)), ExplainPrediction(key("  ")), LoadModel(ModelKey("nowhere/at/all"))]
)
def test_a_question_that_failed_is_forgotten(question: Any, engine: LocalEngine) -> None:
    asked = type(question)(dataclasses.replace(question.trace if isinstance(question, ExplainPrediction) else question.model))
    memory = weakref.ref(asked.trace if isinstance(asked, ExplainPrediction) else asked.model)
    try:
        engine.answer(asked)
    except LlmTtError:
        pass
    else:
        pytest.fail("it should have failed")
    del asked
    gc.collect()
    assert memory() is None, "every failed prompt would stay in memory"


def test_a_trace_that_was_dropped_is_forgotten_with_its_prompt(make_engine: Callable, loads: list[str]) -> None:
    engine = make_engine(trace_budget=0)
    asked = key("Mary a store")
    memory = weakref.ref(asked)
    for _ in range(2):
        engine.answer(InspectNode(asked, "X0_0"))
    engine.answer(InspectNode(key(), "X0_0"))
    del asked
    gc.collect()
    assert memory() is None, "every prompt ever asked about twice would stay in memory"


# --- contributions


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(kind, layer, position) of the contributions computed from now on."""
    seen: list[tuple[str, int, int]] = []
    for kind in ("_attention_rows", "_ffn_rows"):
        original = getattr(contributions, kind)

        def spy(trace: Any, layer: int, positions: list[int], kind: str = kind, original: Callable = original) -> Any:
            seen.extend((kind, layer, position) for position in positions)
            return original(trace, layer, positions)

        monkeypatch.setattr(contributions, kind, spy)
    return seen


def test_a_higher_threshold_another_renormalisation_and_inspection_compute_nothing(engine: LocalEngine, computed: list) -> None:
    graph = engine.answer(ExplainPrediction(key(), threshold=0.01)).graph
    assert computed
    computed.clear()
    for threshold in (0.01, 0.04, 0.1, 0.5):
        for renormalize in (True, False):
            engine.answer(ExplainPrediction(key(), threshold=threshold, renormalize=renormalize))
    for edge in graph.edges():
        source, destination = edge.ends
        engine.answer(InspectEdge(key(), source.name, destination.name, edge.kind.key))
    assert computed == []


def test_a_lower_threshold_computes_only_what_it_newly_reaches(engine: LocalEngine, computed: list) -> None:
    for threshold in (0.3, 0.1, 0.04, 0.01, 0.0):
        engine.answer(ExplainPrediction(key(), threshold=threshold))
    assert len(set(computed)) == len(computed) > 10


def test_a_span_computes_each_node_once_and_its_targets_then_nothing(engine: LocalEngine, computed: list) -> None:
    engine.answer(ExplainPrediction(key(), first=1))
    assert len(set(computed)) == len(computed) > 10
    computed.clear()
    for target in range(1, engine.answer(ExplainPrediction(key())).graph.n_tokens):
        engine.answer(ExplainPrediction(key(), target))
    assert computed == []


def test_moving_the_threshold_changes_the_graph(engine: LocalEngine, tiny: Callable) -> None:
    trace = tiny("gpt2").trace(PROMPT)
    sizes = []
    for threshold in (0.01, 0.04, 0.3):
        graph = engine.answer(ExplainPrediction(key(), threshold=threshold)).graph
        assert_close(content(graph), content(llm_tt.extract_routes(trace, -1, threshold)))
        sizes.append(graph.n_edges)
    assert sizes[0] > sizes[1] > sizes[2] > 0


# --- threads


def test_two_engines_and_two_threads_give_equal_answers(make_engine: Callable, loads: list[str]) -> None:
    one, other = make_engine(), make_engine()
    asked = [question for name in ("gpt2", "llama") for prompt in (PROMPT, *PROMPTS) for question in questions(key(prompt, name))]
    expected = [content(one.answer(question)) for question in asked]
    forwards, backwards = in_threads(
        lambda: [content(other.answer(question)) for question in asked],
        lambda: [content(other.answer(question)) for question in reversed(asked)],
    )
    assert_close(forwards, expected)
    assert_close(backwards, expected[::-1])
