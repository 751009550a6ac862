"""Engines over the tiny checkpoints, and counters of what they load and run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import llm_tt
import llm_tt.models
from llm_tt.config import AppConfig, ModelSpec, load_config
from llm_tt.engine.local import LocalEngine
from llm_tt.models import load_model
from llm_tt.models.bridge import BridgeLlm
from llm_tt.progress import Progress, silent

NAMES = ("gpt2", "llama", "gemma")


@pytest.fixture(scope="session")
def config(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AppConfig:
    """A configuration file whose models are tiny checkpoints, read as a server reads it."""
    file = tmp_path_factory.mktemp("config") / "config.json"
    file.write_text(json.dumps({"models": {name: str(checkpoint(name)) for name in NAMES}}))
    return load_config(file)


@pytest.fixture
def make_engine(config: AppConfig) -> Iterator[Callable[..., LocalEngine]]:
    """make_engine(config=..., trace_budget=..., max_models=..., n_workers=...); closed after the test."""
    engines: list[LocalEngine] = []

    def make(config: AppConfig = config, **options: Any) -> LocalEngine:
        engines.append(LocalEngine(config, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def tiny(config: AppConfig) -> Callable[[str], llm_tt.TransparentLlm]:
    """The configured model of that name, loaded once a session and shared: nothing of a run stays in it."""
    return cache(lambda name: load_model(config.models[name]))


@pytest.fixture
def loads(tiny: Callable[[str], llm_tt.TransparentLlm], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that are loaded from now on; the configured ones are those of `tiny`, so that it takes no time."""
    for name in NAMES:
        tiny(name)
    load = llm_tt.models.load_unchecked
    seen: list[str] = []

    def load_unchecked(spec: ModelSpec, progress: Progress = silent, before_weights: Callable[[], None] = lambda: None) -> Any:
        seen.append(spec.name)
        if spec.name not in NAMES:
            return load(spec, progress=progress, before_weights=before_weights)
        before_weights()
        progress(f"Loading the weights of {spec.name}", 0.1)
        progress(f"Preparing {spec.name}", 0.85)
        return tiny(spec.name)

    monkeypatch.setattr(llm_tt.models, "load_unchecked", load_unchecked)
    return seen


@pytest.fixture
def engine(make_engine: Callable[..., LocalEngine], loads: list[str]) -> LocalEngine:
    """An engine of its own for the test, whose models need no time to load."""
    return make_engine()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The token ids of the forward passes from now on, those of the check at load left out."""
    seen: list[tuple[int, ...]] = []
    run = BridgeLlm.run

    def spy(self: BridgeLlm, token_ids: Any, progress: Progress = silent) -> Any:
        checks = [(7 + 101 * index) % self.info.d_vocab for index in range(12)]
        if list(token_ids) != checks:
            seen.append(tuple(token_ids))
        return run(self, token_ids, progress)

    monkeypatch.setattr(BridgeLlm, "run", spy)
    return seen
