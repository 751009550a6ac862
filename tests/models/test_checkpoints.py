"""Every way in which a checkpoint can be unusable ends in a sentence with the offending value and a way out; adapters merge exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import metaspace_tokenizer, token_ids
from reference import load_plain

import llm_tt
from llm_tt.errors import ModelError
from llm_tt.models import checkpoints


def refusal(model: str | llm_tt.ModelSpec, **options: Any) -> str:
    """The sentence with which a model is refused."""
    with pytest.raises(ModelError) as caught:
        llm_tt.load_model(model, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert text.endswith((".", "?"))
    return text


@pytest.fixture
def folder(checkpoint: Callable, tmp_path: Path) -> Path:
    """A copy of a sound checkpoint, to be damaged."""
    copied = tmp_path / "a model"
    shutil.copytree(checkpoint("llama"), copied)
    return copied


def test_a_folder_loads_by_its_path_and_is_called_by_it(folder: Path) -> None:
    llm = llm_tt.load_model(str(folder))
    assert llm.info.name == str(folder)
    assert llm.info.adapter is None


def test_a_configured_name_loads_the_folder_of_its_path(folder: Path, tmp_path: Path, trace: Callable) -> None:
    """LM-TT never reads the path (issues 4, 19, 22-25, 32)."""
    (tmp_path / "config.json").write_text(json.dumps({"models": {"my model": str(folder), "another": {"path": "a model"}}}))
    models = llm_tt.load_config(tmp_path / "config.json").models
    for name in ("my model", "another"):
        llm = llm_tt.load_model(models[name])
        assert llm.info.name == name
        assert torch.allclose(llm.trace(token_ids(7)).logits(-1), trace("llama", 7).logits(-1), atol=1e-5)


def test_a_missing_folder(tmp_path: Path) -> None:
    text = refusal(str(tmp_path / "nowhere"))
    assert f'"{tmp_path / "nowhere"}" does not exist' in text
    assert "path" in text.split("does not exist")[1], "a way out"


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name_at_all(name: str) -> None:
    assert '"demo"' in refusal(name)


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    text = refusal(str(folder))
    assert f'"{folder}" has no config.json' in text
    assert "save_pretrained" in text


def test_a_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*tokenizer*"):
        file.unlink()
    text = refusal(str(folder))
    assert f'"{folder}" has no tokenizer' in text
    assert "Copy the tokenizer files of the base model" in text


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    text = refusal(str(folder))
    assert f'"{folder}" has no weights' in text
    assert "save_pretrained" in text


def _as_pickle(folder: Path) -> None:
    torch.save(load_plain(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_weights_that_are_pickles_only_are_refused(folder: Path) -> None:
    _as_pickle(folder)
    text = refusal(str(folder))
    assert f'"{folder}" has its weights only as pickles' in text
    assert '"allow_pickle": true' in text


def test_pickles_open_where_the_configuration_opts_in(folder: Path, trace: Callable) -> None:
    _as_pickle(folder)
    llm = llm_tt.load_model(llm_tt.ModelSpec(name="old", path=str(folder), allow_pickle=True))
    assert torch.allclose(llm.trace(token_ids(7)).logits(-1), trace("llama", 7).logits(-1), atol=1e-5)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_safetensors(damage: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes({"truncated": data[: len(data) // 2], "text": b"version https://git-lfs.github.com/spec/v1", "empty": b""}[damage])
    text = refusal(str(folder))
    assert f'"{folder}"' in text
    assert "cannot be loaded" in text
    assert "damaged" in text


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_config(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    text = refusal(str(folder))
    assert f'"{folder}" cannot be loaded' in text


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert f'"{folder}" cannot be loaded' in refusal(str(folder))


def test_an_unknown_architecture(folder: Path) -> None:
    _change_config(folder, model_type="made_up", architectures=["MadeUpForCausalLM"])
    text = refusal(str(folder))
    assert f'"{folder}" cannot be loaded' in text
    assert "made_up" in text


def test_a_model_that_brings_code_is_refused_with_the_option(folder: Path) -> None:
    _change_config(folder, model_type="made_up", auto_map={"AutoConfig": "code.MadeUp", "AutoModelForCausalLM": "code.MadeUp"})
    (folder / "code.py").write_text("raise SystemExit('code of a checkpoint was run')")
    text = refusal(str(folder))
    assert f'"{folder}" runs code of its own' in text
    assert '"trust_remote_code": true' in text


def _change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_a_name_that_is_not_in_the_cache_while_offline(name: str) -> None:
    """A name typed by the user raises KeyError in LM-TT."""
    text = refusal(name)
    assert f'"{name}" is neither a folder nor in the local cache' in text
    assert "HF_HUB_OFFLINE is set" in text
    assert "Give the folder of the model" in text


# --- device and dtype


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_on_a_machine_without(device: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = refusal(str(folder), device=device)
    assert f'Device "{device}" is not on this machine: it has no CUDA device' in text
    assert 'Use "auto" or "cpu"' in text


def test_a_cuda_device_beyond_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checkpoints.resolve_device("cuda:1") == "cuda:1"
    assert checkpoints.resolve_device("cuda") == "cuda:0"
    assert checkpoints.resolve_device("auto") == "cuda:0"
    with pytest.raises(ModelError, match=r'Device "cuda:2" is not on this machine: it has 2 CUDA devices'):
        checkpoints.resolve_device("cuda:2")


def test_mps_on_a_machine_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r'Device "mps" is not on this machine\. Use "auto" or "cpu"'):
        checkpoints.resolve_device("mps")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "tpu"])
def test_a_device_that_does_not_exist_is_refused_when_given_from_python(device: str, folder: Path) -> None:
    assert f'"{device}"' in refusal(str(folder), device=device)


@pytest.mark.parametrize("dtype", ["float64", "int8", "half"])
def test_a_dtype_that_is_not_offered_is_refused_when_given_from_python(dtype: str, folder: Path) -> None:
    text = refusal(str(folder), dtype=dtype)
    assert f'"{dtype}"' in text
    assert "bfloat16" in text


def test_automatic_dtype_is_float32_on_a_cpu_and_the_checkpoints_own_elsewhere() -> None:
    assert checkpoints.resolve_dtype("auto", "cpu", torch.bfloat16) is torch.float32
    assert checkpoints.resolve_dtype("auto", "cuda:0", torch.bfloat16) is torch.bfloat16
    assert checkpoints.resolve_dtype("auto", "cuda:0", None) is torch.float32
    assert checkpoints.resolve_dtype("float16", "cpu", torch.bfloat16) is torch.float16


# --- adapters


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def adapter(
    request: pytest.FixtureRequest, checkpoint: Callable, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, torch.Tensor]:
    """Family, folder of a LoRA adapter whose B is not zero, and the logits of PEFT's own model on `token_ids(7)`."""
    from peft import LoraConfig, get_peft_model

    targets = {"llama": ["q_proj", "v_proj", "o_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}[request.param]
    torch.manual_seed(0)
    base = load_plain(checkpoint(request.param))
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, fan_in_fan_out=request.param == "gpt2")
    tuned = get_peft_model(base, settings).eval()
    folder = tmp_path_factory.mktemp(f"{request.param}-adapter")
    tuned.save_pretrained(folder)
    with torch.no_grad():
        unmerged = tuned(torch.tensor([token_ids(7)])).logits[0, -1]
        merged = tuned.merge_and_unload()(torch.tensor([token_ids(7)])).logits[0, -1]
    assert torch.allclose(unmerged, merged, atol=1e-3)
    return request.param, folder, merged


def test_an_adapter_is_merged_exactly(adapter: tuple[str, Path, torch.Tensor], checkpoint: Callable, trace: Callable) -> None:
    name, folder, expected = adapter
    llm = llm_tt.load_model(str(checkpoint(name)), adapter=str(folder))
    made = llm.trace(token_ids(7))
    assert float((made.logits(-1) - expected).abs().max()) <= 1e-4
    assert float((made.logits(-1) - trace(name, 7).logits(-1)).abs().max()) > 0.1
    assert llm.info.adapter == str(folder)


def test_an_adapters_folder_may_be_given_as_the_model(adapter: tuple[str, Path, torch.Tensor], checkpoint: Callable) -> None:
    name, folder, expected = adapter
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(checkpoint(name))
    llm = llm_tt.load_model(str(folder))
    assert float((llm.trace(token_ids(7)).logits(-1) - expected).abs().max()) <= 1e-4
    assert llm.info.adapter == str(folder)


def test_the_base_of_the_configuration_wins_over_the_one_that_the_adapter_names(
    adapter: tuple[str, Path, torch.Tensor], checkpoint: Callable, tmp_path: Path
) -> None:
    name, folder, expected = adapter
    moved = tmp_path / "adapter"
    shutil.copytree(folder, moved)
    _change_adapter(moved, base_model_name_or_path="/no/longer/there")
    text = refusal(str(moved))
    assert '"/no/longer/there" does not exist' in text or '"/no/longer/there"' in text
    llm = llm_tt.load_model(llm_tt.ModelSpec(name="tuned", path=str(moved), base=str(checkpoint(name))))
    assert float((llm.trace(token_ids(7)).logits(-1) - expected).abs().max()) <= 1e-4


def test_an_adapters_own_tokenizer_is_used(adapter: tuple[str, Path, torch.Tensor], checkpoint: Callable, tmp_path: Path) -> None:
    name, folder, _ = adapter
    with_tokenizer = tmp_path / "adapter"
    shutil.copytree(folder, with_tokenizer)
    tokenizer = metaspace_tokenizer()
    tokenizer.add_tokens(["<tool>"], special_tokens=True)
    tokenizer.save_pretrained(with_tokenizer)
    llm = llm_tt.load_model(str(checkpoint(name)), adapter=str(with_tokenizer))
    assert "<tool>" in llm.texts(llm.encode("the <tool>"))


def _change_adapter(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**content, **changes}))


@pytest.fixture
def copied_adapter(checkpoint: Callable, tmp_path: Path) -> Path:
    """A LoRA adapter for the llama checkpoint, to be damaged."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "adapter"
    get_peft_model(load_plain(checkpoint("llama")), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


def test_an_adapter_folder_without_its_config(checkpoint: Callable, copied_adapter: Path) -> None:
    (copied_adapter / "adapter_config.json").unlink()
    text = refusal(str(checkpoint("llama")), adapter=str(copied_adapter))
    assert f'"{copied_adapter}" has no adapter_config.json' in text
    assert "PEFT" in text


def test_an_adapter_that_names_no_base(copied_adapter: Path) -> None:
    _change_adapter(copied_adapter, base_model_name_or_path=None)
    text = refusal(str(copied_adapter))
    assert f'"{copied_adapter}" does not say which model it belongs to' in text
    assert 'Set "base"' in text


def test_an_adapter_of_another_model(checkpoint: Callable, copied_adapter: Path) -> None:
    text = refusal(str(checkpoint("qwen3")), adapter=str(copied_adapter))
    assert f'"{copied_adapter}"' in text
    assert "does not fit the base model" in text
    assert 'Set "base"' in text


def test_an_adapter_with_damaged_weights(checkpoint: Callable, copied_adapter: Path) -> None:
    (copied_adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    assert f'"{copied_adapter}"' in refusal(str(checkpoint("llama")), adapter=str(copied_adapter))


def test_an_adapter_without_weights(checkpoint: Callable, copied_adapter: Path) -> None:
    (copied_adapter / "adapter_model.safetensors").unlink()
    assert f'"{copied_adapter}"' in refusal(str(checkpoint("llama")), adapter=str(copied_adapter))


def test_an_adapter_whose_config_is_no_json(copied_adapter: Path) -> None:
    (copied_adapter / "adapter_config.json").write_text("{")
    assert f'"{copied_adapter}"' in refusal(str(copied_adapter))


def test_pickled_adapter_weights_are_refused_without_the_option(checkpoint: Callable, copied_adapter: Path) -> None:
    """Design rule 8: weights are safetensors; pickles only where the configuration opts in."""
    from safetensors.torch import load_file

    torch.save(load_file(copied_adapter / "adapter_model.safetensors"), copied_adapter / "adapter_model.bin")
    (copied_adapter / "adapter_model.safetensors").unlink()
    text = refusal(str(checkpoint("llama")), adapter=str(copied_adapter))
    assert f'"{copied_adapter}"' in text
    assert "pickle" in text


# --- memory and tokenizers


def test_weights_that_would_not_fit_are_refused_before_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_tt.errors import OutOfMemoryError

    monkeypatch.setattr(checkpoints, "available_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemoryError) as caught:
        llm_tt.load_model(str(folder))
    text = str(caught.value)
    assert str(folder) in text
    assert "1000 B free" in text
    assert "bfloat16" in text


def test_loading_reports_its_stages(folder: Path) -> None:
    stages: list[tuple[str, float]] = []
    llm_tt.load_model(str(folder), progress=lambda stage, fraction: stages.append((stage, fraction)))
    fractions = [fraction for _, fraction in stages]
    assert len(stages) >= 5
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] <= 1


def test_the_users_tokenizer_stays_as_it_was(folder: Path) -> None:
    """TransformerLens forces a BOS and a padding side upon the tokenizer that it gets."""
    from transformers import AutoTokenizer

    untouched: Any = AutoTokenizer.from_pretrained(folder)
    used: Any = llm_tt.load_model(str(folder))
    for text in ("the store", "", "a\nb"):
        assert used.encode(text) == untouched(text).input_ids
    assert used._prompts._tokenizer.padding_side == untouched.padding_side
    assert used._prompts._tokenizer.all_special_tokens == untouched.all_special_tokens
