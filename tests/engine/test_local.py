"""The engine's answers, its jobs, and what a server allows. What it keeps is in test_caching.py."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import PATIENCE, PROMPT, PROMPTS, assert_close, content, in_threads, key, questions, values

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
    ModelKey,
    Question,
    TraceKey,
)
from llm_tt.errors import ModelError, PromptError, RequestError
from llm_tt.flow import contributions
from llm_tt.lens import vocabulary
from llm_tt.models import identities
from llm_tt.models.bridge import BridgeLlm
from llm_tt.progress import Cancelled, Progress, silent

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


# --- progress and cancelling


@pytest.mark.usefixtures("nothing_shared")
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


@pytest.mark.usefixtures("nothing_shared")
def test_a_real_load_that_is_cancelled_can_be_repeated(make_engine: Callable) -> None:
    def cancel(stage: str, fraction: float) -> None:
        if stage.startswith("Loading the weights of gpt2: 9 "):
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
