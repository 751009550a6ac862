"""`llm-tt check` beyond its first lines: what it prints of every fact, of a tuning, and of a model that cannot be used."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import llm_tt
from llm_tt import cli
from llm_tt.analysis.tuning import tuning_of_adapter
from llm_tt.analysis.tuning_report import TuningReport
from llm_tt.check import CheckReport, Identities, LayerErrors, check
from llm_tt.flow import kernels
from llm_tt.models import identities
from llm_tt.models.info import FfnShape, ModelInfo, TokenizerInfo
from llm_tt.models.memory import trace_bytes
from llm_tt.models.sizes import show_bytes, show_seconds

INFO = ModelInfo("mine", "llama", 2, 4, 2, 32, 8, 64, 400, 2048, 5000, "bfloat16", "cpu", "rms", 1e-5)
TOKENIZER = TokenizerInfo(390, ("<s>",), (), ("<pad>", "<s>", "</s>"), "checkpoint")


def report(info: ModelInfo = INFO, n_layers: int = 2, failure: str | None = None, tuning: TuningReport | None = None) -> CheckReport:
    rows = tuple(LayerErrors(layer, {"attention": (layer + 1) * 1e-7, "neurons": 1e-7 / (layer + 1)}) for layer in range(n_layers))
    return CheckReport("mine", None, failure, True, info, identities=Identities(12, 1e-4, rows, 2e-7), tuning=tuning)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


# --- facts


def test_the_tokenizers_rules() -> None:
    text = report(replace(INFO, tokenizer=TOKENIZER)).to_text()
    assert "tokenizer   390 tokens (10 rows of the embedding unused), puts <s> in front of a text\n" in text
    assert "special tokens: <pad> <s> </s>" in lines(text)
    assert "chat template: from the checkpoint" in lines(text)


@pytest.mark.parametrize(
    ("prefix", "suffix", "rule"),
    [
        ((), (), "adds nothing to a text"),
        ((), ("</s>",), "puts </s> after a text"),
        (("<s>", "<go>"), ("</s>",), "puts <s> <go> in front of and </s> after a text"),
    ],
)
def test_what_a_tokenizer_adds(prefix: tuple[str, ...], suffix: tuple[str, ...], rule: str) -> None:
    tokenizer = replace(TOKENIZER, n_tokens=400, prefix=prefix, suffix=suffix, chat_template=None, special_tokens=())
    text = report(replace(INFO, tokenizer=tokenizer)).to_text()
    assert f"tokenizer   400 tokens, {rule}\n" in text
    assert "special tokens: none" in lines(text)
    assert "chat template: none: the model takes text, no conversations" in lines(text)


def test_many_special_tokens_are_counted() -> None:
    tokenizer = replace(TOKENIZER, special_tokens=tuple(f"<{index}>" for index in range(100)), chat_template="config")
    text = report(replace(INFO, tokenizer=tokenizer)).to_text()
    assert "special tokens: <0> <1> <2> <3> <4> <5> <6> <7> <8> <9> <10> <11> and 88 more" in lines(text)
    assert "chat template: from the configuration" in lines(text)


def test_experts_are_told_apart() -> None:
    dense, mixture, without = FfnShape(64), FfnShape(16, 8, 32), FfnShape(0)
    assert ", 64 neurons, vocabulary" in report(replace(INFO, ffn=(dense, dense))).to_text()
    assert ", 16 neurons in each of 8 experts and 32 shared, vocabulary" in report(replace(INFO, ffn=(mixture, mixture))).to_text()
    mixed = report(replace(INFO, ffn=(dense, mixture, mixture, without))).to_text()
    assert (
        "64 neurons (in 1 layer) or 16 neurons in each of 8 experts and 32 shared (in 2 layers) or no neurons that could be shown" in mixed
    )


def test_logits_and_what_is_not_shown() -> None:
    text = report(replace(INFO, logits_error=3.21e-7, not_shown=("The neurons of layer 1.", "The gates."))).to_text()
    assert "logits      relative error 3.2e-07 against the checkpoint in plain transformers\n" in text
    assert "not shown   The neurons of layer 1.\nnot shown   The gates.\n" in text
    assert "plain transformers" not in report().to_text()


def test_each_kinds_worst_layer_and_the_table_where_it_is_short_or_something_fails() -> None:
    short, long, failed = report(), report(n_layers=40), report(n_layers=40, failure="layer 3: it is off.")
    for shown in (short, long, failed):
        n_layers = len(shown.identities.layers) if shown.identities else 0
        assert f"worst: attention {n_layers * 1e-7:.1e} in layer {n_layers - 1}, neurons 1.0e-07 in layer 0" in lines(shown.to_text())
    assert [sum(line.strip()[:2].strip().isdecimal() for line in shown.to_text().splitlines()) for shown in (short, long, failed)] == [
        2,
        0,
        40,
    ]
    assert failed.to_text().endswith("\nFAILED      layer 3: it is off.")
    assert long.to_text().endswith("\nok          every part adds up")


def test_an_error_that_is_no_number_is_the_worst() -> None:
    rows = tuple(LayerErrors(layer, {"attention": error}) for layer, error in enumerate((1e-7, math.nan, 1e-3)))
    found = replace(report(), identities=Identities(12, 1e-4, rows, math.nan))
    assert found.identities is not None
    assert found.identities.worst()["attention"].layer == 1
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [row["attention"] for row in content["identities"]["layers"]] == [1e-7, None, 1e-3]


# --- a real model


@pytest.mark.parametrize("reason", [None, "triton cannot be imported (No module named 'triton')"])
def test_on_a_gpu_it_says_whether_the_kernel_is_used(reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("demo").kernel is None
    monkeypatch.setattr(kernels, "DEVICES", ("cpu",))
    monkeypatch.setattr(kernels, "why_not", lambda device: reason)
    found = check("demo")
    slower = f"contributions are added up in plain PyTorch, which is slower: {reason}"
    assert found.kernel == (slower if reason else "contributions are added up in one Triton kernel, which was proven here")
    assert f"kernel      {found.kernel}" in lines(found.to_text())
    assert found.to_dict()["kernel"] == found.kernel


def test_numbers_are_those_of_the_model(checkpoint: Callable[[str], Path], model: Callable[..., llm_tt.TransparentLlm]) -> None:
    found = check(str(checkpoint("llama")))
    llm = model("llama")
    weights = AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    assert found.ok
    assert found.tuning is None
    assert found.weight_bytes == sum(parameter.numel() * 4 for parameter in weights.parameters())
    assert [(entry.n_tokens, entry.n_bytes) for entry in found.memory] == [
        (128, trace_bytes(llm.info, 128)),
        (1024, None),
        (4096, None),
        (256, trace_bytes(llm.info, 256)),
    ]
    assert [entry.seconds is None for entry in found.memory] == [False, True, True, False]
    text = found.to_text()
    fast = next(entry for entry in found.memory if entry.n_tokens == 128)
    assert fast.n_bytes is not None
    assert fast.seconds is not None
    assert f"memory      about {show_bytes(fast.n_bytes)} and {show_seconds(fast.seconds)} for a trace of 128 tokens" in text
    assert "a prompt of 4096 tokens is longer than the 256 that the model reads" in lines(text)
    assert f"memory      {show_bytes(found.weight_bytes)} for the weights\n" in text
    expected = identities.check(llm)
    assert found.identities is not None
    for row, layer in zip(found.identities.layers, expected.layers, strict=True):
        assert row.layer == layer.layer
        assert row.errors == pytest.approx({name: value for name, value in vars(layer).items() if name != "layer"}, abs=1e-6)


@pytest.fixture(scope="module")
def base(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llama")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, "".join(line for line in captured.err.splitlines(True) if line.startswith("llm-tt"))


def test_an_adapters_strength_for_each_layer_and_module(adapter: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "check", adapter)
    expected = tuning_of_adapter(adapter)
    assert (status, err) == (0, "")
    assert f"tuning      against {base}\n            {expected.verdict}\n" in out
    heading = next(line.split() for line in out.splitlines() if "q_proj" in line and "layer" in line and "all" in line)
    assert heading == ["layer", "all", "down_proj", "q_proj", "v_proj"]
    rows = [line.split() for line in out.splitlines() if "#" in line]
    for row, layer in zip(rows, expected.per_layer(), strict=True):
        assert int(row[0]) == layer.layer
        assert [float(cell) / 100 for cell in row[2:]] == pytest.approx([layer.relative_change, *layer.by_module.values()], rel=6e-3)
    assert max(len(row[1]) for row in rows) == 10


def test_everything_as_json(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "check", adapter, "--json")
    content = json.loads(out)
    assert (status, content["ok"], content["failure"], content["loaded"]) == (0, True, None, True)
    assert content["info"]["n_layers"] == 3
    assert content["tuning"] == tuning_of_adapter(adapter).to_dict()
    assert [entry["n_tokens"] for entry in content["memory"]] == [128, 1024, 4096, 256]
    assert len(content["identities"]["layers"]) == 3


def test_a_tuned_checkpoint_against_its_base(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1.25
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    status, out, _ = run(capsys, "check", folder, "--base", base)
    assert status == 0
    assert "The tuning changes 1 of 51 tensors" in out
    assert "    1  ##########       25       25" in out
    status, out, _ = run(capsys, "check", base, "--base", base)
    assert status == 1
    assert out.splitlines()[-1].startswith("FAILED      The tuning has no effect: all 51 tensors equal the base's.")
    assert "identities  relative errors" in out


def test_an_adapter_without_effect_fails_and_all_else_is_still_printed(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "zero"
    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor * ("lora_A" in name) for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    status, out, _ = run(capsys, "check", folder)
    assert status == 1
    assert "parameters  " in out
    assert "            logits " in out
    assert out.splitlines()[-1].startswith("FAILED      The adapter has no effect: lora_B is zero")
    assert "every part adds up" not in out


def test_an_adapter_of_another_model_says_what_does_not_fit(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = families.FAMILIES["llama"]()
    config.intermediate_size = 48
    other = families.save_checkpoint(tmp_path, config, families.byte_level_tokenizer())
    status, out, err = run(capsys, "check", other, "--adapter", adapter)
    assert (status, err) == (1, "")
    assert "family      llama\n" in out
    assert f'The adapter does not fit "{other}": model.layers.0.mlp.down_proj.weight changes a weight of 32 x 64' in out
    assert out.splitlines()[-1].startswith("FAILED      ")


def test_a_base_that_is_not_there_fails_with_the_rest_printed(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "check", base, "--base", "/nowhere")
    assert status == 1
    assert "identities  relative errors" in out
    assert (
        out.splitlines()[-1] == 'FAILED      What the tuning changed is not known: Model folder "/nowhere" does not exist. Check the path.'
    )


def test_the_report_needs_no_torch() -> None:
    code = "import sys, llm_tt.check, llm_tt.analysis.tuning_report; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    assert shown == "False\n"


def test_what_was_done_to_the_checkpoint_is_said() -> None:
    note = "The checkpoint stores bfloat16 and float32; all of it was loaded as float32."
    assert note in report(replace(INFO, notes=(note,))).to_text()
    assert note not in report(INFO).to_text()
