"""Debug mode: parts of the page are timed by a clock of the test, memory and caches are those of the engine, and nothing is done without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from streamlit.testing.v1 import AppTest
from test_explore import DEMO, PROMPT, answered, start  # noqa: F401

from app.panels import debugging
from app.timing import Profile
from llm_tt.config import AppConfig
from llm_tt.engine import keeper
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import (
    CacheUse,
    DeviceMemory,
    ExplainPrediction,
    Explanation,
    LensGridOf,
    ListLoaded,
    LoadedModel,
    MemoryReport,
    ModelKey,
    ReadHeads,
    TraceKey,
)
from llm_tt.models.sizes import show_bytes

Start = Callable[..., AppTest]
TRACE = TraceKey(ModelKey("demo"), PROMPT)


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(AppConfig())
    yield engine
    engine.close()


def ticking(*times: float) -> Callable[[], float]:
    following = iter(times)
    return lambda: next(following)


def test_parts_take_what_the_clock_says() -> None:
    profile = Profile(ticking(10.0, 11.0, 11.25, 14.0))
    with profile.part("all"), profile.part("graph"):
        pass
    assert profile.seconds == {"graph": 0.25, "all": 4.0}


def test_a_part_that_ends_by_an_exception_is_measured_too() -> None:
    profile = Profile(ticking(1.0, 3.0))
    with pytest.raises(KeyError), profile.part("graph"):
        raise KeyError
    assert profile.seconds == {"graph": 2.0}


def explanation(engine: LocalEngine) -> Explanation:
    return engine.answer(ExplainPrediction(TRACE))


def test_what_the_engine_measures_fits_into_what_the_question_took(engine: LocalEngine) -> None:
    started = time.monotonic()
    answer = explanation(engine)
    took = time.monotonic() - started
    parts = [
        answer.facts.load_seconds,
        answer.trace_seconds,
        answer.routes_seconds,
        answer.propagation_seconds,
        answer.predictions_seconds,
    ]
    assert min(parts) > 0
    assert sum(parts) <= took
    table = debugging.times(answer, {"graph": 0.25})
    assert table["what"].tolist() == ["load the model", "forward pass", "routes", "propagation of the flow", "predictions", "draw graph"]
    assert table["ms"].tolist() == pytest.approx([1000 * part for part in [*parts, 0.25]])


def test_each_step_is_measured_apart(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    explanation(engine)
    from llm_tt.flow import propagation
    from llm_tt.lens import vocabulary

    for module, name, pause in ((propagation, "propagate", 0.2), (vocabulary, "predictions", 0.4)):
        slow = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, slow=slow, pause=pause: (time.sleep(pause), slow(*given))[1])
    answer = explanation(engine)
    assert 0.2 <= answer.propagation_seconds < 0.4 <= answer.predictions_seconds
    assert answer.routes_seconds < 0.2


def test_caches_count_what_they_save(engine: LocalEngine) -> None:
    for _ in range(3):
        explanation(engine)
    for _ in range(2):
        engine.answer(ReadHeads(TRACE))
    engine.answer(LensGridOf(TRACE))
    uses = {use.name: (use.n_kept, use.n_found, use.n_made) for use in engine.answer(ListLoaded()).caches}
    # Head roles and the grid looked for the trace when they were made.
    assert uses["traces"] == (1, 4, 1)
    assert uses["head roles"] == (1, 1, 1)
    assert uses["grids and trajectories"] == (1, 0, 1)
    assert uses["tuning reports"] == uses["checks of traces"] == (0, 0, 0)


def test_the_process_is_as_large_as_the_system_says(engine: LocalEngine) -> None:
    told = engine.answer(ListLoaded()).process_bytes
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    assert told == pytest.approx(pages * 4096, rel=0.05)
    assert keeper.process_bytes() < psutil.virtual_memory().total


def test_memory_is_told_of_models_process_host_and_every_gpu(engine: LocalEngine) -> None:
    answer = explanation(engine)
    loaded = LoadedModel(ModelKey("demo"), answer.facts, 4 * 2**20, 3, 2**30, 0)
    devices = (DeviceMemory("cpu", "this machine", 24 * 2**30, 6 * 2**30), DeviceMemory("cuda:0", "H100", 80 * 2**30, 20 * 2**30))
    report = MemoryReport((loaded,), 2, devices, 3 * 2**30, (CacheUse("traces", 1, 2, 3),))
    sizes = dict(debugging.memory(report, answer).itertuples(index=False))
    assert {name: sizes[name] for name in sizes if name != "this prompt's trace"} == {
        "weights of demo": show_bytes(4 * 2**20),
        "traces of demo (3)": show_bytes(2**30),
        "this process": show_bytes(3 * 2**30),
        "host, in use": show_bytes(18 * 2**30),
        f"host, free of {show_bytes(24 * 2**30)}": show_bytes(6 * 2**30),
        "H100 (cuda:0), in use": show_bytes(60 * 2**30),
        f"H100 (cuda:0), free of {show_bytes(80 * 2**30)}": show_bytes(20 * 2**30),
    }
    assert debugging.caches(report).to_dict("records") == [{"kept": "traces", "now": 1, "found": 2, "made": 3}]


def test_the_page_shows_it_in_debug_mode(start: Start) -> None:  # noqa: F811
    at = start({**DEMO, "debug": True})
    at.session_state["debug_open"] = True
    at = answered(at)
    tables = [frame.value for frame in at.dataframe]
    times = next(table for table in tables if list(table.columns) == ["what", "ms"])
    assert times["what"].tolist()[5:] == [
        "draw sidebar",
        "draw source strip",
        "draw direct effects",
        "draw graph",
        "draw share and save",
        "draw predictions and question",
        "draw inspector",
    ]
    assert (times["ms"] > 0).all()
    assert any(list(table.columns) == ["memory", "size"] for table in tables)
    assert any(list(table.columns) == ["kept", "now", "found", "made"] for table in tables)


def test_nothing_is_measured_or_asked_without_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(Profile, "part", lambda *given: pytest.fail("measured"))
    at = start(DEMO)
    assert not [box for box in at.expander if "Time and memory" in box.label]
    assert "profile" not in at.session_state


def test_while_it_is_closed_the_engine_is_not_asked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    at = start({**DEMO, "debug": True})
    monkeypatch.setattr(debugging, "ListLoaded", lambda: pytest.fail("asked"))
    assert [box for box in answered(at).expander if "Time and memory" in box.label]
