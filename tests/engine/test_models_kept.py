"""Which models there are and which are in memory: added, listed, unloaded, dropped before another is loaded; waiting ends when it is cancelled."""

from __future__ import annotations

import gc
import importlib.machinery
import json
import shutil
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from asking import PATIENCE, PROMPT, content, in_threads, key, questions
from safetensors.torch import load_file

import llm_tt
import llm_tt.models
from llm_tt.config import AppConfig, ModelSpec, load_config
from llm_tt.engine import keeper
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import (
    AddedModel,
    AddModel,
    ExplainPrediction,
    ListLoaded,
    LoadModel,
    LookAt,
    ModelFacts,
    ModelKey,
)
from llm_tt.errors import ModelError
from llm_tt.flow.contributions import table_of
from llm_tt.progress import Cancelled, Progress, silent

# --- adding


def test_an_added_model_is_on_the_menu_and_its_lines_configure_it(
    make_engine: Callable, checkpoint: Callable[[str], Path], config: AppConfig, tmp_path: Path
) -> None:
    engine = make_engine()
    folder = checkpoint("mistral")
    added = engine.answer(AddModel(ModelSpec(name="", path=f' "{folder}/" ', dtype="bfloat16")))
    assert added.spec == ModelSpec(name=folder.name, path=str(folder), dtype="bfloat16")
    assert (added.facts.info.family, added.facts.info.dtype) == ("mistral", "bfloat16")
    assert engine.model_names() == (*config.models, folder.name)
    assert engine.added_models() == (added.spec,)
    assert engine.is_loaded(ModelKey(folder.name))
    assert engine.answer(ExplainPrediction(key(model=folder.name))).facts is added.facts
    file = tmp_path / "config.json"
    file.write_text('{"models": {\n' + added.config_lines + '\n"demo": null}}')
    assert load_config(file).models[folder.name] == added.spec


def test_a_name_that_is_taken_is_refused_and_a_made_one_evades(
    make_engine: Callable, checkpoint: Callable[[str], Path], loads: list
) -> None:
    engine = make_engine()
    folder = str(checkpoint("gpt2"))
    with pytest.raises(ModelError, match=r'The name "llama" is in the configuration already\. Choose another name\.'):
        engine.answer(AddModel(ModelSpec(name=" llama ", path=folder)))
    engine.answer(AddModel(ModelSpec(name="mine", path=folder)))
    with pytest.raises(ModelError, match='The name "mine" is taken by a model that was added before'):
        engine.answer(AddModel(ModelSpec(name="mine", path=str(checkpoint("gemma")))))
    again = engine.answer(AddModel(ModelSpec(name="mine", path=folder)))
    assert again.spec.name == "mine"
    made = [engine.answer(AddModel(ModelSpec(name="", path=folder, dtype=dtype))).spec.name for dtype in ("auto", "float32", "auto")]
    assert made == [Path(folder).name, f"{Path(folder).name} (2)", Path(folder).name]
    assert loads == ["mine", Path(folder).name, f"{Path(folder).name} (2)", Path(folder).name][: len(loads)]


@pytest.mark.parametrize(
    ("settings", "spec", "sentence"),
    [
        ({"demo_mode": True}, {"path": "demo"}, "cannot be added on this server"),
        ({"allow_adding_models": False}, {"path": "demo"}, "cannot be added on this server"),
        (
            {},
            {"path": "demo", "backend": "os:system"},
            '"backend" runs code from outside llm-tt, and can be set in the configuration file only',
        ),
        ({}, {"path": "demo", "trust_remote_code": True}, '"trust_remote_code" runs code from outside llm-tt, and can be set in the'),
        ({}, {"path": "demo", "allow_pickle": True}, '"allow_pickle" runs code'),
        ({}, {"path": " "}, "No model is named"),
        ({}, {"path": "/no/such/folder"}, 'Model folder "/no/such/folder" does not exist'),
        ({}, {"path": "nobody/no-such-model"}, "nobody/no-such-model"),
    ],
)
def test_what_may_not_or_cannot_be_added_is_refused(
    settings: dict, spec: dict, sentence: str, config: AppConfig, make_engine: Callable
) -> None:
    engine = make_engine(config.model_copy(update=settings))
    with pytest.raises(ModelError) as caught:
        engine.answer(AddModel(ModelSpec(name="", **spec)))
    assert sentence in str(caught.value)
    assert engine.model_names() == tuple(config.models)


def test_a_server_that_adds_no_models_neither_looks_nor_takes_typed_names(
    config: AppConfig, make_engine: Callable, checkpoint: Callable
) -> None:
    engine = make_engine(config.model_copy(update={"allow_adding_models": False}))
    with pytest.raises(ModelError, match="cannot be added"):
        engine.answer(LookAt("/etc"))
    with pytest.raises(ModelError, match=r"is not offered here\. Choose one of: gpt2, llama, gemma"):
        engine.answer(LoadModel(ModelKey(str(checkpoint("gpt2")))))
    assert make_engine().answer(LookAt("/etc")).kind == "nothing"


def test_a_model_whose_parts_do_not_add_up_is_not_added(engine: LocalEngine, checkpoint: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_tt.models.bridge import BridgeLlm

    weights = BridgeLlm.attention_output
    monkeypatch.setattr(BridgeLlm, "attention_output", lambda self, layer: (1.1 * weights(self, layer)[0], None))
    with pytest.raises(ModelError, match="layer 0: attention parts are off by"):
        engine.answer(AddModel(ModelSpec(name="broken", path=str(checkpoint("gpt2")))))
    assert engine.added_models() == ()
    assert not engine.is_loaded(ModelKey("broken"))


def test_a_cancelled_addition_leaves_nothing(engine: LocalEngine, checkpoint: Callable) -> None:
    def cancel(stage: str, fraction: float) -> None:
        if stage.startswith("Checking"):
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.answer(AddModel(ModelSpec(name="mine", path=str(checkpoint("gpt2")))), cancel)
    assert engine.added_models() == ()
    assert engine.answer(ListLoaded()).models == ()


def test_two_users_who_take_one_name_at_the_same_time(engine: LocalEngine, checkpoint: Callable) -> None:
    specs = [ModelSpec(name="mine", path=str(checkpoint(name))) for name in ("gpt2", "llama")]
    answers = in_threads(*[lambda spec=spec: engine.answer(AddModel(spec)) for spec in specs])
    added, refused = sorted(answers, key=lambda answer: isinstance(answer, ModelError))
    assert isinstance(added, AddedModel)
    assert isinstance(refused, ModelError)
    assert engine.added_models() == (added.spec,)


def test_a_forgotten_model_is_off_the_menu_and_out_of_memory_and_a_configured_one_stays(engine: LocalEngine, checkpoint: Callable) -> None:
    engine.answer(AddModel(ModelSpec(name="mine", path=str(checkpoint("gpt2")))))
    engine.answer(LoadModel(ModelKey("llama")))
    for name in ("mine", "llama", "no such"):
        engine.forget(name)
    assert engine.model_names() == ("gpt2", "llama", "gemma")
    assert [loaded.key.name for loaded in engine.answer(ListLoaded()).models] == ["llama"]


def test_an_engine_takes_over_what_was_added_to_the_one_before(config: AppConfig, make_engine: Callable, checkpoint: Callable) -> None:
    specs = (ModelSpec(name="mine", path=str(checkpoint("gpt2"))), ModelSpec(name="llama", path="/elsewhere"))
    engine = make_engine(added=specs)
    assert engine.added_models() == specs[:1], "the configuration has a llama of its own"
    assert engine.answer(LoadModel(ModelKey("mine"))).info.family == "gpt2"
    assert make_engine(config.model_copy(update={"demo_mode": True}), added=specs).added_models() == ()


def test_a_name_that_was_typed_before_it_was_added_means_the_added_model(make_engine: Callable, checkpoint: Callable, runs: list) -> None:
    engine = make_engine()
    name = str(checkpoint("gpt2"))
    assert engine.answer(ExplainPrediction(key(model=name))).facts.info.family == "gpt2"
    engine.answer(AddModel(ModelSpec(name=name, path=str(checkpoint("mistral")))))
    answer = engine.answer(ExplainPrediction(key(model=name)))
    assert answer.facts.info.family == "mistral"
    assert len(runs) == 2


# --- memory


def test_the_report_counts_the_bytes_of_weights_and_traces(
    make_engine: Callable, loads: list, tiny: Callable, checkpoint: Callable
) -> None:
    engine = make_engine()
    assert engine.answer(ListLoaded()).models == ()
    for prompt in (PROMPT, "the store"):
        engine.answer(ExplainPrediction(key(prompt)))
    engine.answer(LoadModel(ModelKey("llama", dtype="float32")))
    report = engine.answer(ListLoaded())
    llama, gpt2 = report.models
    assert (llama.key, gpt2.key) == (ModelKey("llama", dtype="float32"), ModelKey("gpt2"))
    traces = [tiny("gpt2").trace(prompt) for prompt in (PROMPT, "the store")]
    for trace in traces:
        llm_tt.extract_routes(trace)
    assert (gpt2.n_traces, llama.n_traces) == (2, 0)
    assert gpt2.trace_bytes == sum(trace.nbytes + table_of(trace).nbytes for trace in traces)
    for loaded, name in ((gpt2, "gpt2"), (llama, "llama")):
        stored = sum(tensor.nbytes for tensor in load_file(checkpoint(name) / "model.safetensors").values())
        # The file leaves out what can be made from the configuration: rotary frequencies, causal masks.
        assert stored <= loaded.weight_bytes < stored + 100_000
        assert loaded.facts.info.name == name
        assert loaded.n_questions == 0
    host = report.memory[0]
    assert (host.device, host.total_bytes) == ("cpu", psutil.virtual_memory().total)
    assert 0 < host.free_bytes < host.total_bytes
    assert report.max_models == 2


def test_half_precision_takes_half_the_memory(make_engine: Callable, checkpoint: Callable) -> None:
    engine = make_engine()
    for dtype in ("float32", "bfloat16"):
        engine.answer(LoadModel(ModelKey("llama", dtype=dtype)))
    half, whole = (loaded.weight_bytes for loaded in engine.answer(ListLoaded()).models)
    assert half == pytest.approx(whole / 2, rel=0.01)


def test_the_weights_of_tied_embeddings_count_once(make_engine: Callable, checkpoint: Callable) -> None:
    engine = make_engine()
    engine.answer(LoadModel(ModelKey(str(checkpoint("llama_plain")))))
    (loaded,) = engine.answer(ListLoaded()).models
    stored = sum(tensor.nbytes for tensor in load_file(checkpoint("llama_plain") / "model.safetensors").values())
    assert stored <= loaded.weight_bytes < stored + 5_000


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """References to the models that are really loaded from now on."""
    loaded: list[weakref.ref] = []
    load = llm_tt.models.load_unchecked

    def spy(spec: Any, progress: Progress = silent, **options: Any) -> Any:
        result = load(spec, progress=progress, **options)
        loaded.append(weakref.ref(result))
        return result

    monkeypatch.setattr(llm_tt.models, "load_unchecked", spy)
    return loaded


def test_unloading_frees_a_model_and_its_traces_and_it_is_loaded_again(make_engine: Callable, models: list) -> None:
    engine = make_engine()
    before = [content(engine.answer(question)) for question in questions(key())]
    engine.unload(ModelKey("gpt2"))
    assert models[0]() is None
    assert not engine.is_loaded(ModelKey("gpt2"))
    assert engine.answer(ListLoaded()).models == ()
    engine.unload(ModelKey("gpt2"))
    assert [content(engine.answer(question)) for question in questions(key())] == before
    assert len(models) == 2


def test_a_question_that_runs_while_its_model_is_unloaded_is_answered_and_the_memory_freed_after(
    make_engine: Callable, models: list
) -> None:
    engine = make_engine()
    expected = content(make_engine().answer(ExplainPrediction(key())).graph)
    models.clear()
    tracing, go_on = threading.Event(), threading.Event()

    def slowly(stage: str, fraction: float) -> None:
        if stage == "Tracing layer 2 of 3":
            tracing.set()
            assert go_on.wait(PATIENCE)

    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(engine.answer(ExplainPrediction(key()), slowly)))
    thread.start()
    assert tracing.wait(PATIENCE)
    assert engine.answer(ListLoaded()).models[0].n_questions == 1
    engine.unload(ModelKey("gpt2"))
    assert engine.answer(ListLoaded()).models == ()
    assert models[0]() is not None
    go_on.set()
    thread.join(PATIENCE)
    assert content(answers[0].graph) == expected
    assert models[0]() is None, "the trace that came after the unloading is not kept either"
    assert engine.answer(ListLoaded()).models == ()


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_job_that_ended_badly_holds_no_model(end: str, make_engine: Callable, models: list, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    engine.answer(LoadModel(ModelKey("gpt2")))
    import llm_tt.flow.routes

    def extract(*arguments: Any) -> None:
        raise Cancelled if end == "cancelled" else ZeroDivisionError("a bug")

    monkeypatch.setattr(llm_tt.flow.routes, "extract_routes_to_span", extract)
    job = engine.submit(ExplainPrediction(key()))
    assert engine.wait(job, PATIENCE).state == end
    engine.unload(ModelKey("gpt2"))
    gc.collect()
    assert models[0]() is None


# --- room


@pytest.fixture
def unfinished(checkpoint: Callable, tmp_path: Path) -> Path:
    folder = tmp_path / "unfinished"
    shutil.copytree(checkpoint("gpt2"), folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return folder


@pytest.mark.usefixtures("nothing_shared")
def test_the_oldest_model_goes_before_the_weights_of_another_are_read(make_engine: Callable, models: list) -> None:
    engine = make_engine(max_models=1)
    engine.answer(LoadModel(ModelKey("gpt2")))
    at: dict[str, bool] = {}

    def watch(stage: str, fraction: float) -> None:
        at[stage.split(":")[0]] = models[0]() is not None

    engine.answer(LoadModel(ModelKey("llama")), watch)
    assert at["Reading the tokenizer of llama"]
    assert not at["Loading the weights of llama"]
    assert not engine.is_loaded(ModelKey("gpt2"))


def test_a_model_that_is_refused_early_drops_nothing(make_engine: Callable, unfinished: Path) -> None:
    engine = make_engine(max_models=1)
    engine.answer(LoadModel(ModelKey("gpt2")))
    for name in (str(unfinished), "/no/such/folder", "nobody/no-such-model"):
        with pytest.raises(ModelError):
            engine.answer(LoadModel(ModelKey(name)))
        assert engine.is_loaded(ModelKey("gpt2"))


def test_an_idle_model_goes_rather_than_one_that_is_used(make_engine: Callable, loads: list) -> None:
    engine = make_engine(max_models=2)
    tracing, go_on = threading.Event(), threading.Event()

    def slowly(stage: str, fraction: float) -> None:
        if stage.startswith("Tracing layer 2"):
            tracing.set()
            assert go_on.wait(PATIENCE)

    thread = threading.Thread(target=engine.answer, args=(ExplainPrediction(key()), slowly))
    thread.start()
    assert tracing.wait(PATIENCE)
    engine.answer(LoadModel(ModelKey("llama")))
    engine.answer(LoadModel(ModelKey("gemma")))
    assert engine.is_loaded(ModelKey("gpt2"))
    assert not engine.is_loaded(ModelKey("llama"))
    go_on.set()
    thread.join(PATIENCE)


# --- waiting


class Held:
    """A load that stands still until it is let on."""

    def __init__(self, engine: LocalEngine, name: str) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=engine.answer, args=(LoadModel(ModelKey(name)), self._progress))
        self._thread.start()
        assert self.reached.wait(PATIENCE)

    def _progress(self, stage: str, fraction: float) -> None:
        if stage.startswith("Preparing"):
            self.reached.set()
            assert self.go_on.wait(PATIENCE)

    def end(self) -> None:
        self.go_on.set()
        self._thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("name", "stage"), [("gpt2", "Preparing gpt2"), ("llama", "Waiting for another model to be loaded")], ids=["the same", "another"]
)
def test_who_waits_for_a_load_sees_what_happens_and_can_leave_at_once(name: str, stage: str, engine: LocalEngine, loads: list) -> None:
    held = Held(engine, "gpt2")
    job = engine.submit(LoadModel(ModelKey(name)))
    try:
        deadline = time.monotonic() + PATIENCE
        while engine.status(job).stage != stage:
            assert time.monotonic() < deadline, engine.status(job)
            time.sleep(0.01)
        engine.cancel(job)
        cancelled = time.monotonic()
        assert engine.wait(job, PATIENCE).state == "cancelled"
        assert time.monotonic() - cancelled < 1
    finally:
        held.end()
    assert loads == ["gpt2"]
    assert isinstance(engine.answer(LoadModel(ModelKey(name))), ModelFacts)


def test_two_models_are_never_loaded_at_the_same_time(make_engine: Callable, loads: list) -> None:
    engine = make_engine(max_models=3)
    inside: list[str] = []
    most = 0

    def watch(stage: str, fraction: float, name: str) -> None:
        nonlocal most
        if stage.startswith("Loading the weights"):
            inside.append(name)
            most = max(most, len(inside))
            time.sleep(0.02)
        if stage.startswith("Checking"):
            inside.remove(name)

    def ask(name: str) -> Any:
        return engine.answer(LoadModel(ModelKey(name)), lambda stage, fraction: watch(stage, fraction, name))

    answers = in_threads(*[lambda name=name: ask(name) for name in ("gpt2", "llama", "gemma")])
    assert [answer.info.name for answer in answers] == ["gpt2", "llama", "gemma"]
    assert most == 1


def test_answers_and_questions_about_models_could_cross_a_network(engine: LocalEngine, checkpoint: Callable) -> None:
    import pickle

    question = AddModel(ModelSpec(name="mine", path=str(checkpoint("gpt2"))))
    assert pickle.loads(pickle.dumps(question)) == question
    for ask in (question, ListLoaded(), LookAt(str(checkpoint("gpt2")))):
        answer = engine.answer(ask)  # type: ignore[call-overload]
        assert content(pickle.loads(pickle.dumps(answer))) == content(answer)
    assert json.loads("{" + engine.answer(question).config_lines.rstrip(",") + "}") == {"mine": str(checkpoint("gpt2"))}


def test_devices_can_be_asked_for_while_another_thread_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    half = types.ModuleType("torch")
    half.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    half.__spec__._initializing = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", half)
    assert keeper.devices() == ["auto", "cpu"]
    assert [found.device for found in keeper.memory()] == ["cpu"]
