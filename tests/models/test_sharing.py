"""Models of one checkpoint hold its weights once, and each still computes what it should, in whatever order they come and go."""

from __future__ import annotations

import gc
import itertools
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import token_ids
from peft import LoraConfig
from reference import load_plain

import llm_tt
from llm_tt.models import checkpoints
from llm_tt.models.sharing import BASES

IDS = token_ids(9)
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"], "llama_plain": ["q_proj", "embed_tokens"]}


class Case:
    """A base folder of its own with two adapters, and the logits that plain Hugging Face models have."""

    def __init__(self, family: str, checkpoint: Callable, folder: Path) -> None:
        self.base = folder / "base"
        shutil.copytree(checkpoint(family), self.base)
        self.specs: dict[str, llm_tt.ModelSpec] = {"base": llm_tt.ModelSpec(name="base", path=str(self.base))}
        self.expected = {"base": _logits(load_plain(self.base))}
        for seed, name in enumerate(("one", "two")):
            torch.manual_seed(seed)
            config = LoraConfig(r=4, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2", init_lora_weights=False, bias="all")
            tuned = peft.get_peft_model(load_plain(self.base), config).eval()
            with torch.no_grad():
                for parameter_name, parameter in tuned.named_parameters():
                    if parameter_name.endswith(".bias"):
                        parameter.add_(0.1 * torch.randn_like(parameter))
            tuned.save_pretrained(folder / name)
            self.specs[name] = llm_tt.ModelSpec(name=name, path=str(self.base), adapter=str(folder / name))
            self.expected[name] = _logits(tuned)

    def load(self, name: str) -> Any:
        return llm_tt.load_model(self.specs[name])

    def require_right(self, name: str, llm: Any) -> None:
        assert float((llm.trace(IDS).logits(-1) - self.expected[name]).abs().max()) <= 1e-4, name


@pytest.fixture(params=TARGETS)
def case(request: pytest.FixtureRequest, checkpoint: Callable, tmp_path: Path) -> Case:
    return Case(request.param, checkpoint, tmp_path)


@pytest.fixture
def llama(checkpoint: Callable, tmp_path: Path) -> Case:
    return Case("llama", checkpoint, tmp_path)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0, -1]


def _pointers(model: Any) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in model.named_parameters(remove_duplicate=False)}


def _bytes(*models: Any) -> int:
    """Of all tensors of those models, each storage once."""
    storages = {}
    for model in models:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("order", itertools.permutations(("base", "one", "two")), ids="-".join)
def test_all_are_right_in_every_order_of_loading(order: tuple[str, ...], case: Case) -> None:
    models = {}
    for name in order:
        models[name] = case.load(name)
        for loaded, llm in models.items():
            case.require_right(loaded, llm)


def test_what_an_adapter_does_not_change_is_held_once(llama: Case) -> None:
    made = {name: checkpoints.load_checkpoint(spec).hf_model for name, spec in llama.specs.items()}
    pointers = {name: _pointers(model) for name, model in made.items()}
    changed = {name for name in pointers["base"] if name.endswith(".bias") or "q_proj" in name or "down_proj" in name}
    for name, pointer in pointers["base"].items():
        others = {pointers["one"][name], pointers["two"][name]}
        if name in changed:
            assert len(others | {pointer}) == 3, name
        else:
            assert others == {pointer}, name
    again = checkpoints.load_checkpoint(llama.specs["base"]).hf_model
    assert again is not made["base"]
    assert _pointers(again) == pointers["base"], "the base, loaded plainly a second time"


def test_running_models_share_as_well(llama: Case) -> None:
    base, one, two = (llama.load(name)._bridge for name in ("base", "one", "two"))
    alone = _bytes(base)
    assert _bytes(base, one, two) < 1.8 * alone, "two tuned weights of seven a layer, and the biases"
    assert _bytes(base, llama.load("base")._bridge) < 1.01 * alone


def test_memory_is_freed_when_the_last_model_is_dropped(llama: Case) -> None:
    before = len(BASES)
    models = {name: llama.load(name) for name in llama.specs}
    assert len(BASES) == before + 1
    tensor = weakref.ref(next(iter(checkpoints.load_checkpoint(llama.specs["base"]).hf_model.parameters())))
    for name in ("base", "one"):
        del models[name]
        gc.collect()
        assert tensor() is not None
        assert len(BASES) == before + 1
    llama.require_right("two", models["two"])
    models.clear()
    gc.collect()
    assert tensor() is None
    assert len(BASES) == before


def test_the_weights_are_read_once(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    reads = []
    original = AutoModelForCausalLM.from_pretrained

    def counted(where: str, **options: Any) -> Any:
        reads.append(where)
        time.sleep(0.2)
        return original(where, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    models: dict[str, Any] = {}
    failures: list[BaseException] = []

    def load(name: str, key: str) -> None:
        try:
            models[key] = llama.load(name)
            llama.require_right(name, models[key])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load, args=(name, f"{name} {index}")) for index in range(2) for name in llama.specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert reads == [str(llama.base)]
    for key, llm in models.items():
        llama.require_right(key.split()[0], llm)


def test_a_folder_that_was_written_anew_is_read_anew(llama: Case) -> None:
    old = llama.load("base")
    changed = load_plain(llama.base)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    changed.save_pretrained(llama.base)
    new = llama.load("base")
    assert float((new.trace(IDS).logits(-1) - _logits(changed)).abs().max()) <= 1e-4
    llama.require_right("base", old)


def test_another_dtype_is_another_base(llama: Case) -> None:
    full, half = llama.load("base"), llm_tt.load_model(llama.specs["base"], dtype="bfloat16")
    assert full.info.dtype == "float32"
    assert half.info.dtype == "bfloat16"
    llama.require_right("base", full)


def test_a_failed_load_can_be_repeated(llama: Case) -> None:
    weights = llama.base / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:1000])
    with pytest.raises(llm_tt.errors.ModelError):
        llama.load("base")
    weights.write_bytes(data)
    llama.require_right("base", llama.load("base"))
