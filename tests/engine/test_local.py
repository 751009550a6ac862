"""The engine in this process: what it loads, keeps, drops and answers, from one thread and from several."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llm_tt
import llm_tt.models
from llm_tt.config import AppConfig, load_config
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import (
    Answer,
    ExplainPrediction,
    Explanation,
    InspectEdge,
    InspectNode,
    LoadModel,
    ModelFacts,
    ModelKey,
    Question,
    TraceKey,
)
from llm_tt.errors import LlmTtError, ModelError, PromptError, RequestError
from llm_tt.flow import contributions
from llm_tt.lens import vocabulary
from llm_tt.models import identities
from llm_tt.models.bridge import BridgeLlm
from llm_tt.progress import Cancelled, Progress, silent

PATIENCE = 30.0
PROMPT = "Mary the store."


def key(prompt: str = PROMPT, model: str = "gpt2") -> TraceKey:
    return TraceKey(ModelKey(model), prompt)


def questions(trace: TraceKey) -> list[Question]:
    """One of every kind, and every kind of node."""
    return [
        LoadModel(trace.model),
        ExplainPrediction(trace),
        *(InspectNode(trace, node) for node in ("X0_1", "A1_2", "M2_3", "I0_0")),
        InspectEdge(trace, "X0_0", "A0_2", "attention"),
        InspectEdge(trace, "A1_2", "M1_2", "ffn"),
    ]


def values(thing: Any) -> Iterator[Any]:
    """Every leaf of an answer, and every container on the way to it."""
    yield thing
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        for field in dataclasses.fields(thing):
            yield from values(getattr(thing, field.name))
    elif isinstance(thing, dict):
        for item in thing.items():
            yield from values(item)
    elif isinstance(thing, (list, tuple, set, frozenset)):
        for item in thing:
            yield from values(item)


def content(thing: Any) -> Any:
    """An answer as nested plain values that `==` compares, the seconds that it took left out."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {field.name: content(getattr(thing, field.name)) for field in dataclasses.fields(thing)}
        return type(thing).__name__, {name: value for name, value in fields.items() if not name.endswith("seconds")}
    if isinstance(thing, np.ndarray):
        return str(thing.dtype), thing.tolist()
    if isinstance(thing, (list, tuple)):
        return [content(item) for item in thing]
    return thing


def assert_close(one: Any, other: Any) -> None:
    """Contents are equal; numbers but for rounding, which depends on what was computed together."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    else:
        assert one == other


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions at the same time; what each returned or raised."""
    results: list[Any] = [None] * len(functions)
    together = threading.Barrier(len(functions))

    def run(index: int) -> None:
        together.wait(PATIENCE)
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return results


# --- answers


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_explanations_are_the_librarys_own_routes_and_predictions(name: str, engine: LocalEngine, tiny: Callable) -> None:
    trace = tiny(name).trace(PROMPT)
    answer = engine.answer(ExplainPrediction(key(model=name), target=-2, threshold=0.02, renormalize=False, n_predictions=7))
    assert_close(content(answer.graph), content(llm_tt.extract_routes(trace, -2, 0.02, renormalize=False)))
    assert answer.graph.target == trace.n_tokens - 2
    assert_close(content(answer.predictions), content(vocabulary.predictions(trace, -2, 7)))
    assert answer.trace == key(model=name)
    assert answer.trace_bytes == trace.nbytes
    assert answer.trace_seconds > 0
    assert answer.routes_seconds > 0


def test_facts_are_those_of_the_model_and_of_its_check(engine: LocalEngine, tiny: Callable) -> None:
    facts = engine.answer(LoadModel(ModelKey("llama")))
    report = identities.check(tiny("llama"))
    assert facts.info == tiny("llama").info
    assert facts.worst_identity_error == pytest.approx(report.worst, rel=0.1)
    assert facts.tolerance == report.tolerance
    assert engine.answer(ExplainPrediction(key(model="llama"))).facts is facts


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_answers_are_plain_values_that_could_cross_a_network(name: str, engine: LocalEngine) -> None:
    for question in questions(key(model=name)):
        answer: Answer = engine.answer(question)  # type: ignore[call-overload]
        for value in values(answer):
            plain = value is None or isinstance(value, (str, int, float, bool, tuple, dict, np.ndarray))
            assert plain or dataclasses.is_dataclass(value), f"{question} answers with a {type(value)}"
            assert not isinstance(value, (torch.Tensor, llm_tt.TransparentLlm, llm_tt.Trace))
        sent = pickle.loads(pickle.dumps(answer))
        assert content(sent) == content(answer)
        assert pickle.loads(pickle.dumps(question)) == question


# --- models


def test_a_model_is_loaded_once_though_several_threads_ask_at_the_same_time(
    make_engine: Callable, config: AppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    load = llm_tt.models.load_unchecked

    def spy(spec: Any, progress: Progress = silent) -> llm_tt.TransparentLlm:
        seen.append(spec.path)
        time.sleep(0.05)  # lets the others arrive
        return load(spec, progress=progress)

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

    def spy(spec: Any, progress: Progress = silent) -> llm_tt.TransparentLlm:
        result = load(spec, progress=progress)
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


PROMPTS = ("Mary the store one", "Mary the store two", "Mary the store six")
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


# --- progress and cancelling


def test_progress_never_falls_and_ends_at_one_at_most(make_engine: Callable, config: AppConfig) -> None:
    engine = make_engine()
    seen: list[tuple[str, float]] = []
    cold, warm = ExplainPrediction(key()), ExplainPrediction(key(), threshold=0.01)
    other = ExplainPrediction(key(PROMPTS[0]))
    for question in (cold, warm, other):
        seen.clear()
        engine.answer(question, lambda stage, fraction: seen.append((stage, fraction)))
        stages, fractions = zip(*seen, strict=True)
        assert list(fractions) == sorted(fractions)
        assert fractions[0] >= 0
        assert fractions[-1] <= 1
        assert all(stages)
        assert any("Tracing layer 3 of 3" in stage for stage in stages) == (question is not warm)
        assert any("Loading the weights of gpt2" in stage for stage in stages) == (question is cold)
        assert any("Following routes" in stage for stage in stages)


STAGES = ["Importing", "Loading the weights", "Preparing", "Checking", "Tracing layer 2", "Following routes through layer 1"]


@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_is_usable_after_a_cancelled_question(stage: str, engine: LocalEngine, tiny: Callable) -> None:
    def cancel(now: str, fraction: float) -> None:
        if now.startswith(stage):
            raise Cancelled

    for _ in range(2):
        with pytest.raises(Cancelled):
            engine.answer(ExplainPrediction(key()), cancel)
    assert engine.is_loaded(ModelKey("gpt2")) == (STAGES.index(stage) >= STAGES.index("Tracing layer 2"))
    answer = engine.answer(ExplainPrediction(key()))
    assert_close(content(answer.graph), content(llm_tt.extract_routes(tiny("gpt2").trace(PROMPT))))


def test_a_real_load_that_is_cancelled_can_be_repeated(make_engine: Callable) -> None:
    def cancel(stage: str, fraction: float) -> None:
        if stage.startswith("Moving"):
            raise Cancelled

    engine = make_engine()
    with pytest.raises(Cancelled):
        engine.answer(LoadModel(ModelKey("gpt2")), cancel)
    assert not engine.is_loaded(ModelKey("gpt2"))
    assert engine.answer(LoadModel(ModelKey("gpt2"))).info.n_layers == 3


def test_a_user_who_cancels_does_not_cancel_another_who_waits_for_the_same(engine: LocalEngine) -> None:
    holding, waiting = threading.Event(), threading.Event()

    def impatient(stage: str, fraction: float) -> None:
        if stage.startswith("Loading the weights"):
            holding.set()
            assert waiting.wait(PATIENCE)
            time.sleep(0.02)  # lets the other reach the model
            raise Cancelled

    def patient() -> Explanation:
        assert holding.wait(PATIENCE)
        waiting.set()
        return engine.answer(ExplainPrediction(key()))

    first, second = in_threads(lambda: engine.answer(ExplainPrediction(key()), impatient), patient)
    assert isinstance(first, Cancelled)
    assert isinstance(second, Explanation)


# --- jobs


def test_a_submitted_question_is_answered_in_the_background(engine: LocalEngine) -> None:
    job = engine.submit(ExplainPrediction(key()))
    status = engine.wait(job, PATIENCE)
    assert (status.state, status.message) == ("done", "")
    assert 0 < status.fraction <= 1
    assert content(engine.collect(job)) == content(engine.answer(ExplainPrediction(key())))


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (ExplainPrediction(key("")), "The prompt is empty"),
        (ExplainPrediction(key("x" * 300)), "The prompt has 300 tokens, but gpt2 reads at most 256"),
        (ExplainPrediction(key(), target=99), "Position 99 does not exist"),
        (ExplainPrediction(key(), threshold=1.5), "Threshold 1.5"),
        (InspectNode(key(), "nonsense"), '"nonsense" is not a node'),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_a_question_that_cannot_be_answered_fails_with_its_sentence(question: Question, sentence: str, engine: LocalEngine) -> None:
    job = engine.submit(question)
    status = engine.wait(job, PATIENCE)
    assert status.state == "failed"
    assert sentence in status.message
    assert "Unexpected" not in status.message
    assert engine.wait(engine.submit(ExplainPrediction(key())), PATIENCE).state == "done"


def test_a_running_question_is_cancelled_between_two_layers(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.answer(LoadModel(ModelKey("gpt2")))
    started, go_on = threading.Event(), threading.Event()
    run = BridgeLlm.run

    def slow(self: BridgeLlm, token_ids: Any, progress: Progress = silent) -> Any:
        def watched(stage: str, fraction: float) -> None:
            if not started.is_set():
                progress(stage, fraction)
                started.set()
                assert go_on.wait(PATIENCE)
            else:
                progress(stage, fraction)

        return run(self, token_ids, watched)

    monkeypatch.setattr(BridgeLlm, "run", slow)
    job = engine.submit(ExplainPrediction(key()))
    assert started.wait(PATIENCE)
    status = engine.status(job)
    assert (status.state, status.stage) == ("running", "Tracing layer 1 of 3")
    engine.cancel(job)
    go_on.set()
    status = engine.wait(job, PATIENCE)
    assert (status.state, status.stage) == ("cancelled", "Tracing layer 1 of 3")
    assert engine.wait(engine.submit(ExplainPrediction(key())), PATIENCE).state == "done"


def test_an_error_of_the_library_itself_is_reported_as_unexpected(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(contributions, "_ffn_rows", broken)
    job = engine.submit(ExplainPrediction(key()))
    assert engine.wait(job, PATIENCE).message == "Unexpected error, please report it: ZeroDivisionError: a bug"
    with pytest.raises(ZeroDivisionError):
        engine.collect(job)


# --- what a server allows


@pytest.fixture
def served(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., AppConfig]:
    """served(**settings): a configuration with one model and two prepared prompts."""

    def make(**settings: Any) -> AppConfig:
        (tmp_path / "prompts.txt").write_text(f"{PROMPT}\nMary the store, a very long prompt\n")
        file = tmp_path / "served.json"
        models = {"gpt2": str(checkpoint("gpt2"))}
        file.write_text(json.dumps({"models": models, "preloaded_dataset_filename": "prompts.txt", **settings}))
        return load_config(file)

    return make


def about(trace: TraceKey) -> list[Question]:
    return [question for question in questions(trace) if not isinstance(question, LoadModel)]


def test_demo_mode_answers_prepared_prompts_only(served: Callable, make_engine: Callable, loads: list[str], runs: list) -> None:
    engine = make_engine(served(demo_mode=True))
    for question in about(key("the store")):
        with pytest.raises(PromptError, match="This server shows prepared prompts only"):
            engine.answer(question)
    assert runs == []
    for question in questions(key()):
        engine.answer(question)
    assert len(runs) == 1


def test_demo_mode_offers_configured_models_only(served: Callable, make_engine: Callable, checkpoint: Callable, runs: list) -> None:
    engine = make_engine(served(demo_mode=True))
    for name in (str(checkpoint("llama")), "demo", "no-such-model"):
        for question in questions(key(model=name)):
            with pytest.raises(ModelError, match=r"is not offered here\. Choose one of: gpt2"):
                engine.answer(question)
    assert runs == []


def test_prompts_longer_than_the_server_allows_are_refused_with_both_lengths(
    served: Callable, make_engine: Callable, loads: list[str], runs: list
) -> None:
    engine = make_engine(served(max_user_string_length=10))
    for question in about(key("Mary the st")):
        with pytest.raises(PromptError, match="The prompt has 11 characters, but this server allows 10"):
            engine.answer(question)
    assert runs == []
    for prompt in ("Mary the s", "Mary the store, a very long prompt"):
        assert engine.answer(ExplainPrediction(key(prompt))).graph.n_tokens > 0
    assert len(runs) == 2


# --- importing


def test_importing_the_engine_the_configuration_and_the_exports_does_not_import_the_model_libraries() -> None:
    modules = ["llm_tt", "llm_tt.config", "llm_tt.engine.local", "llm_tt.export.files", "llm_tt.components.graph.frame", "llm_tt.cli"]
    code = (
        "import importlib, json, sys\n"
        "found = {}\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    found[name] = [heavy for heavy in ('torch', 'transformers', 'transformer_lens', 'peft', 'streamlit') if heavy in sys.modules]\n"
        "from llm_tt.engine.local import LocalEngine\n"
        "found['devices'] = LocalEngine(sys.modules['llm_tt.config'].AppConfig()).devices()\n"
        "print(json.dumps(found))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(result.stdout) == {**{name: [] for name in modules}, "devices": ["auto", "cpu"]}


def test_devices_are_those_of_this_machine(engine: LocalEngine) -> None:
    devices = engine.devices()
    assert devices[:2] == ["auto", "cpu"]
    assert sum(device.startswith("cuda:") for device in devices) == torch.cuda.device_count()
    assert ("mps" in devices) == torch.backends.mps.is_available()


# --- closing


def test_closing_an_engine_cancels_what_it_runs_and_what_waits(
    make_engine: Callable, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(n_workers=1)
    started, go_on = threading.Event(), threading.Event()
    run = BridgeLlm.run

    def slow(self: BridgeLlm, *args: Any) -> Any:
        started.set()
        assert go_on.wait(PATIENCE)
        return run(self, *args)

    monkeypatch.setattr(BridgeLlm, "run", slow)
    running, queued = engine.submit(ExplainPrediction(key())), engine.submit(ExplainPrediction(key(PROMPTS[0])))
    assert started.wait(PATIENCE)
    engine.close()
    go_on.set()
    assert engine.wait(running, PATIENCE).state == "cancelled"
    assert engine.wait(queued, 2).state == "cancelled"


# --- requests that name nothing


@pytest.mark.parametrize(
    "node",
    ["", "X0", "X1_0", "B0_0", "A0_", "A_0", "a0_0", "A0_0 ", "A0_-1", "A3_0", "I0_99", "X0_99", "A0.0_0", f"I{'9' * 5000}_0"],
    ids=lambda n: n[:9],
)
def test_a_node_that_is_not_there_gets_a_sentence(node: str, engine: LocalEngine) -> None:
    for question in (InspectNode(key(), node), InspectEdge(key(), node, "A0_0", "residual"), InspectEdge(key(), "X0_0", node, "residual")):
        with pytest.raises(RequestError, match=r"is not a node\. Nodes are called|does not exist: the (model|prompt) has"):
            engine.answer(question)
