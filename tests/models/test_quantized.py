"""Fewer bits a weight: asked for in the configuration, refused where the package is missing; any linear module as the matrix it stands for."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusing import refusal
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

import llm_tt
from llm_tt.errors import OutOfMemoryError
from llm_tt.models import checkpoints, quantized, weights
from llm_tt.models.quantized import dense_weight

without_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")


@without_bitsandbytes
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantization_without_its_package_is_refused(bits: str, checkpoint: Callable) -> None:
    text = refusal(llm_tt.ModelSpec(name="small", path=str(checkpoint("llama")), quantization=bits))  # type: ignore[arg-type]
    assert f'"quantization": "{bits}" of small needs the package bitsandbytes, which is not installed' in text
    assert "pip install bitsandbytes" in text


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """As if bitsandbytes were there: what `from_pretrained` is asked for, and a plain model in return."""
    from transformers import AutoModelForCausalLM

    asked: list[dict[str, Any]] = []
    original = AutoModelForCausalLM.from_pretrained

    def from_pretrained(where: str, **options: Any) -> Any:
        asked.append(options)
        return original(where, **{key: value for key, value in options.items() if key not in ("quantization_config", "device_map")})

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(quantized, "require_bitsandbytes", lambda who: None)
    return asked


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantization_is_asked_of_the_loader(bits: str, pretended: list[dict[str, Any]], checkpoint: Callable) -> None:
    spec = llm_tt.ModelSpec(name="small", path=str(checkpoint("llama")), quantization=bits, dtype="bfloat16")  # type: ignore[arg-type]
    checkpoints.load_checkpoint(spec)
    config = pretended[0]["quantization_config"]
    assert isinstance(config, BitsAndBytesConfig)
    assert (config.load_in_8bit, config.load_in_4bit) == (bits == "8bit", bits == "4bit")
    assert config.bnb_4bit_compute_dtype == (torch.bfloat16 if bits == "4bit" else torch.float32)
    assert pretended[0]["dtype"] == torch.bfloat16


def test_quantised_weights_are_not_shared_with_plain_ones(pretended: list[dict[str, Any]], checkpoint: Callable) -> None:
    plain = checkpoints.load_checkpoint(llm_tt.ModelSpec(name="plain", path=str(checkpoint("llama")))).hf_model
    spec = llm_tt.ModelSpec(name="small", path=str(checkpoint("llama")), quantization="8bit")
    small = checkpoints.load_checkpoint(spec).hf_model
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in small.parameters()}


@pytest.mark.usefixtures("nothing_shared")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_fewer_bits_are_counted_as_less_memory(
    bits: str, pretended: list[dict[str, Any]], checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = weights.loaded_bytes(checkpoint("llama"), torch.bfloat16)
    monkeypatch.setattr(checkpoints, "available_bytes", lambda device: int(0.6 * full))
    spec = llm_tt.ModelSpec(name="small", path=str(checkpoint("llama")), dtype="bfloat16")
    with pytest.raises(OutOfMemoryError):
        checkpoints.load_checkpoint(spec)
    checkpoints.load_checkpoint(spec.model_copy(update={"quantization": bits}))
    monkeypatch.setattr(checkpoints, "available_bytes", lambda device: int(0.2 * full))
    with pytest.raises(OutOfMemoryError):
        checkpoints.load_checkpoint(spec.model_copy(update={"quantization": bits}))


def test_an_adapter_on_quantised_weights_is_refused(pretended: list[dict[str, Any]], checkpoint: Callable, tmp_path: Path) -> None:
    import peft
    from reference import load_plain

    peft.get_peft_model(load_plain(checkpoint("llama")), peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    spec = llm_tt.ModelSpec(name="small", path=str(checkpoint("llama")), adapter=str(tmp_path), quantization="4bit")
    text = refusal(spec)
    assert f'Adapter "{tmp_path}" cannot be merged exactly into weights of 4 bits' in text
    assert 'Leave out "quantization"' in text


@without_bitsandbytes
def test_a_checkpoint_that_is_quantised_already_needs_the_package(checkpoint: Callable, tmp_path: Path) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    (folder / "config.json").write_text(json.dumps(content))
    text = refusal(str(folder))
    assert f'"{folder}", whose weights are quantised, needs the package bitsandbytes' in text


@pytest.mark.parametrize("method", weights.DEQUANTIZED)
def test_formats_that_can_be_dequantised_ask_for_it(method: str) -> None:
    assert quantized.dequantizing_config(method).dequantize is True


# --- the matrix of a module


def test_the_matrix_of_a_linear_and_of_a_conv1d() -> None:
    x = torch.randn(3, 5)
    linear, conv = nn.Linear(5, 7), Conv1D(7, 5)
    for module in (linear, conv, linear.bfloat16()):
        weight = dense_weight(module)
        assert weight.shape == (5, 7)
        assert weight.dtype == torch.float32
        assert not weight.requires_grad
        expected = module(x.to(module.weight.dtype)).float()
        assert torch.allclose(x @ weight + module.bias.float(), expected, atol=0.05 if module is linear else 1e-5)


class Int8Params(nn.Parameter):
    """As bitsandbytes': int8 rows, each with its largest absolute value."""

    CB: Any
    SCB: Any

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Int8Params:
        scale = matrix.abs().amax(1)
        values = (matrix / scale[:, None] * 127).round().to(torch.int8)
        made = torch.Tensor._make_subclass(cls, values, False)
        made.CB, made.SCB = values, scale
        return made


@pytest.mark.parametrize("moved", [False, True])
def test_the_matrix_of_an_8_bit_module(moved: bool) -> None:
    """Before the first forward pass the scales are the parameter's, afterwards the state's."""
    matrix = torch.randn(7, 5)
    module: Any = types.SimpleNamespace(weight=Int8Params.of(matrix), state=types.SimpleNamespace(CB=None, SCB=None))
    if moved:
        module.state.CB, module.state.SCB = module.weight.CB, module.weight.SCB
        module.weight.CB = module.weight.SCB = None
    weight = dense_weight(module)
    assert weight.shape == (5, 7)
    assert float((weight - matrix.T).abs().max()) <= float(matrix.abs().max()) / 127


def test_the_matrix_of_a_4_bit_module_is_that_of_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Params4bit(nn.Parameter):
        quant_state: Any

    matrix = torch.randn(7, 5, dtype=torch.bfloat16)
    packed = torch.Tensor._make_subclass(Params4bit, torch.zeros(18, 1, dtype=torch.uint8), False)
    packed.quant_state = "state"
    functional: Any = types.ModuleType("bitsandbytes.functional")
    functional.dequantize_4bit = lambda data, state: matrix if (data.shape, state) == ((18, 1), "state") else None
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    weight = dense_weight(types.SimpleNamespace(weight=packed))
    assert torch.equal(weight, matrix.float().T)
