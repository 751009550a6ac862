"""`MeasureTuning`: the library's report, measured once, whatever the model's device; no model is loaded for it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import llm_tt
from llm_tt.analysis import tuning
from llm_tt.config import load_config
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import MeasureTuning, ModelKey


@pytest.fixture
def tuned_engine(checkpoint: Callable[[str], Path], tmp_path: Path, make_engine: Callable[..., LocalEngine]) -> LocalEngine:
    base = checkpoint("llama")
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    models = {"base": str(base), "tuned": {"path": str(base), "adapter": str(tmp_path / "adapter")}, "adapter": str(tmp_path / "adapter")}
    (tmp_path / "config.json").write_text(json.dumps({"models": models}))
    return make_engine(load_config(tmp_path / "config.json"))


@pytest.mark.parametrize("name", ["tuned", "adapter"])
def test_the_answer_is_the_librarys(name: str, tuned_engine: LocalEngine, tmp_path: Path) -> None:
    report = tuned_engine.answer(MeasureTuning(ModelKey(name)))
    assert report.to_dict() == tuning.tuning_of_adapter(tmp_path / "adapter").to_dict()
    assert pickle.loads(pickle.dumps(report)).to_dict() == report.to_dict()
    assert not tuned_engine.is_loaded(ModelKey(name))


def test_it_is_measured_once_for_all_devices_and_precisions(tuned_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    measure = tuning.tuning_of_adapter
    monkeypatch.setattr(tuning, "tuning_of_adapter", lambda *args, **options: calls.append("") or measure(*args, **options))
    first = tuned_engine.answer(MeasureTuning(ModelKey("tuned")))
    assert tuned_engine.collect(tuned_engine.submit(MeasureTuning(ModelKey("tuned", "cpu", "bfloat16")))) is first
    assert len(calls) == 1


def test_a_model_without_a_base_gets_the_sentence(tuned_engine: LocalEngine) -> None:
    with pytest.raises(llm_tt.LlmTtError, match=r'tuned from\. Name it as "base" in the configuration'):
        tuned_engine.answer(MeasureTuning(ModelKey("base")))
