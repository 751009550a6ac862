"""Checkpoints, models and runs that several tests read. Each is made once a session; none is changed by a test."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import families
import pytest
import reference
import torch

import llm_tt

# Models this small gain nothing from more threads, and lose much on a machine that is busy.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a name of `families.CHECKPOINTS`."""
    return cache(lambda name: families.save_family(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], Path]) -> Callable[..., llm_tt.TransparentLlm]:
    """model(name, dtype="auto", eager=False): the checkpoint of that name, loaded as a user loads it; eager: without fused attention."""

    @cache
    def load(name: str, dtype: str = "auto", eager: bool = False) -> llm_tt.TransparentLlm:
        llm = llm_tt.load_model(str(checkpoint(name)), dtype=dtype)
        if eager:
            llm.use_eager_attention()  # type: ignore[attr-defined]
        return llm

    return load


@pytest.fixture(scope="session")
def plain(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    """The same checkpoint as a plain Hugging Face model."""
    return cache(lambda name: reference.load_plain(checkpoint(name)))


@pytest.fixture(scope="session")
def plain_run(plain: Callable[[str], Any]) -> Callable[[str, int], reference.Run]:
    """plain_run(name, n_tokens): the plain model's activations on `families.token_ids(n_tokens)`."""
    return cache(lambda name, n_tokens: reference.run_plain(plain(name), families.token_ids(n_tokens)))


@pytest.fixture(scope="session")
def plain_contributions(plain_run: Callable[[str, int], reference.Run]) -> Callable[[str, int], reference.Contributions]:
    """The brute force on `plain_run`."""
    return cache(lambda name, n_tokens: reference.Contributions.of(plain_run(name, n_tokens).layers))


@pytest.fixture(scope="session")
def trace(model: Callable[..., llm_tt.TransparentLlm]) -> Callable[[str, int], llm_tt.Trace]:
    """trace(name, n_tokens): the library's trace of the same ids as `plain_run`. Shared: contributions kept with it persist between tests."""
    return cache(lambda name, n_tokens: model(name).trace(families.token_ids(n_tokens)))


@pytest.fixture
def nothing_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: no model in memory has weights that another could use."""
    from llm_tt.models import checkpoints
    from llm_tt.models.sharing import SharedBases

    monkeypatch.setattr(checkpoints, "BASES", SharedBases())
