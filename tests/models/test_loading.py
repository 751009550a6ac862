"""Progress while weights are read: it moves, it can cancel, and it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers.utils import logging

from llm_tt.config import ModelSpec
from llm_tt.models.checkpoints import load_checkpoint
from llm_tt.models.loading import weights_reported
from llm_tt.progress import Cancelled

pytestmark = pytest.mark.usefixtures("nothing_shared")


def test_every_tensor_is_reported(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("llama")
    with safe_open(folder / "model.safetensors", "pt") as file:
        n_tensors = len(list(file.keys()))
    seen: list[tuple[str, float]] = []
    load_checkpoint(ModelSpec(name="mine", path=str(folder)), lambda stage, fraction: seen.append((stage, fraction)))
    stages = [stage for stage, _ in seen if stage.startswith("Loading the weights of mine:")]
    assert len(stages) == len(set(stages)) >= n_tensors // 2
    assert stages[0].startswith("Loading the weights of mine: 1 of ")
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) > len(stages) // 2


def test_a_load_is_cancelled_between_two_tensors(checkpoint: Callable[[str], Path]) -> None:
    reached: list[str] = []

    def cancel(stage: str, fraction: float) -> None:
        reached.append(stage)
        if stage.startswith("Loading the weights of mine: 3 "):
            raise Cancelled

    spec = ModelSpec(name="mine", path=str(checkpoint("llama")))
    with pytest.raises(Cancelled):
        load_checkpoint(spec, cancel)
    assert reached[-1].startswith("Loading the weights of mine: 3 ")
    assert load_checkpoint(spec).hf_model.config.model_type == "llama"


def test_transformers_gets_its_own_progress_bars_back() -> None:
    before = logging.set_tqdm_hook(None)
    logging.set_tqdm_hook(before)
    with pytest.raises(Cancelled), weights_reported("mine", lambda stage, fraction: None, 0, 1):
        raise Cancelled
    assert logging.set_tqdm_hook(before) is before


def test_room_is_made_after_everything_else_was_read(checkpoint: Callable[[str], Path]) -> None:
    seen: list[str] = []
    load_checkpoint(ModelSpec(name="mine", path=str(checkpoint("llama"))), lambda stage, _: seen.append(stage), lambda: seen.append("room"))
    index = seen.index("room")
    assert any(stage.startswith("Reading the tokenizer") for stage in seen[:index])
    assert any(stage.startswith("Loading the weights") for stage in seen[index:])
    assert not any(stage.startswith("Loading the weights") for stage in seen[:index])
