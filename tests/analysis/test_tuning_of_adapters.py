"""The report on an adapter against PEFT's own merge: state dicts before and after, their difference, `torch.linalg.svdvals`. And every verdict."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import reference
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import llm_tt
from llm_tt.analysis.tuning import tuning_of_adapter
from llm_tt.analysis.tuning_report import TuningReport
from llm_tt.analysis.weight_files import canonical

SHARE = 0.3
"""How large the changes are that `saved` makes, of a random number's size"""


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "up_proj"], **changes})


def saved(base: Path, config: PeftConfig, folder: Path, dtype: torch.dtype = torch.float32, names_base: bool = True) -> Path:
    """An adapter on a base with random values in everything that it trains, as PEFT saves it."""
    torch.manual_seed(0)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(SHARE * torch.randn(parameter.shape, generator=generator))
    if names_base:
        model.peft_config["default"].base_model_name_or_path = str(base)
    model.to(dtype).save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dicts before and after, by the names that the report gives."""
    before = {canonical(name): value for name, value in reference.load_plain(base).state_dict().items()}
    merged: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).merge_and_unload()
    return before, {canonical(name): value for name, value in merged.state_dict().items()}


def assert_measures(report: TuningReport, base: Path, adapter: Path) -> None:
    before, after = merged_by_peft(base, adapter)
    tied = reference.load_plain(base).config.tie_word_embeddings
    differing = {name for name in before if not torch.allclose(before[name], after[name], rtol=0, atol=1e-9)}
    differing -= {"lm_head.weight"} if tied else set()
    found = {canonical(module.name): module for module in report.modules}
    assert set(found) == differing
    assert {canonical(name) for name in report.untouched} == set(before) - differing - ({"lm_head.weight"} if tied else set())
    for name, module in found.items():
        change = (after[name].double() - before[name].double()).reshape(1 if before[name].ndim == 1 else len(before[name]), -1)
        if before[name].ndim == 3:
            values = torch.cat([torch.linalg.svdvals(expert) for expert in after[name].double() - before[name].double()]).sort(
                descending=True
            )[0]
        else:
            values = torch.linalg.svdvals(change)
        assert module.change_norm == pytest.approx(float(change.norm()), rel=2e-5), name
        assert module.weight_norm == pytest.approx(float(before[name].norm()), rel=1e-6)
        assert module.relative_change == pytest.approx(float(change.norm() / before[name].double().norm()), rel=2e-5)
        n = min(len(values), len(module.singular_values))
        assert module.singular_values[:n] == pytest.approx(values[:n].numpy(), rel=1e-4, abs=2e-6 * float(values[0]))
        assert module.effective_rank == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-4)
        energy = values.square().cumsum(0) / values.square().sum()
        assert module.n_90 == int((energy < 0.9).sum()) + 1
        assert module.n_99 == int((energy < 0.99).sum()) + 1


KINDS: dict[str, tuple[str, Callable[[], PeftConfig]]] = {
    "lora": ("llama", lora),
    "rslora": ("llama", lambda: lora(use_rslora=True)),
    "dora": ("llama", lambda: lora(use_dora=True)),
    "patterns": (
        "llama",
        lambda: lora(rank_pattern={"q_proj": 2, r"layers\.1\..*up_proj": 3}, alpha_pattern={"layers.0.self_attn.v_proj": 3}),
    ),
    "modules_to_save": ("llama", lambda: lora(modules_to_save=["lm_head", "norm"])),
    "bias_all": ("llama", lambda: lora(bias="all")),
    "bias_lora_only": ("llama", lambda: lora(bias="lora_only")),
    "lora_bias": ("llama", lambda: lora(lora_bias=True)),
    "embeddings": ("llama", lambda: lora(target_modules=["q_proj", "embed_tokens"])),
    "embeddings_tied": ("llama_plain", lambda: lora(target_modules=["q_proj", "embed_tokens"])),
    "embeddings_dora": ("llama", lambda: lora(target_modules=["q_proj", "embed_tokens"], use_dora=True)),
    "tokens": ("llama", lambda: lora(trainable_token_indices=[3, 7, 11])),
    "tokens_tied": ("llama_plain", lambda: lora(trainable_token_indices={"embed_tokens": [5, 2]})),
    "conv1d": ("gpt2", lambda: lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "conv1d_dora": ("gpt2", lambda: lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True)),
    "conv1d_not_said": ("gpt2", lambda: lora(target_modules=["attn.c_proj"], use_dora=True)),
    "adalora": ("llama", lambda: AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_r=6, target_r=3, total_step=10)),
    "loha": ("llama", lambda: LoHaConfig(task_type="CAUSAL_LM", r=3, alpha=12, target_modules=["q_proj", "down_proj"])),
    "lokr": ("llama", lambda: LoKrConfig(task_type="CAUSAL_LM", r=2, alpha=6, target_modules=["q_proj", "down_proj"])),
    "lokr_full": ("llama", lambda: LoKrConfig(task_type="CAUSAL_LM", r=64, alpha=6, target_modules=["q_proj", "down_proj"])),
    "ia3": ("llama", lambda: IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3_conv1d": (
        "gpt2",
        lambda: IA3Config(task_type="CAUSAL_LM", target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]),
    ),
    "trainable_tokens": ("llama", lambda: TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[9, 4])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_those_of_pefts_own_merge(kind: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    family, config = KINDS[kind]
    base = checkpoint(family)
    adapter = saved(base, config(), tmp_path)
    report = tuning_of_adapter(adapter)
    assert_measures(report, base, adapter)
    assert report.outcome == "tuned"
    assert report.warnings == ()


def test_experts_in_one_tensor_are_found_in_files_that_keep_them_apart(tmp_path: Path) -> None:
    base = families.save_family("mixtral", tmp_path / "base")
    wanted = lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    adapter = saved(base, wanted, tmp_path / "adapter")
    report = tuning_of_adapter(adapter)
    before, after = merged_by_peft(base, adapter)
    found = {canonical(module.name): module for module in report.modules}
    assert len(found) == 9
    for name, module in found.items():
        change = after[name].double() - before[name].double()
        assert module.relative_change == pytest.approx(float(change.norm() / before[name].double().norm()), rel=1e-5)
        if change.ndim == 3:
            values = torch.cat([torch.linalg.svdvals(expert) for expert in change]).sort(descending=True)[0]
            assert module.singular_values == pytest.approx(values[:16].numpy(), rel=1e-4)
            assert (module.rank, module.shape) == (4 * len(change), tuple(change.shape))
    assert not any("experts" in name for name in report.untouched)
    assert report.warnings == ()


@pytest.fixture(scope="module")
def base(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llama")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(base, lora(), tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def changed(adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    """changed(weights=function of a name and a tensor, **configuration): a copy of the adapter with something else in it."""

    def change(weights: Callable[[str, torch.Tensor], torch.Tensor | None] | None = None, **configuration: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(adapter, folder)
        if weights is not None:
            tensors = {name: weights(name, tensor) for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
            save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "adapter_model.safetensors")
        content = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(content | configuration))
        return folder

    return change


def test_the_report_as_a_value(base: Path, adapter: Path) -> None:
    report = llm_tt.tuning_report(str(adapter))
    assert (report.base, report.tuned, report.kind) == (str(base), str(adapter), "adapter")
    assert [(module.layer, module.module) for module in report.modules] == [
        (layer, module) for layer in range(3) for module in ("mlp.up_proj", "self_attn.q_proj", "self_attn.v_proj")
    ]
    assert {module.rank for module in report.modules} == {4}
    strongest = max(report.modules, key=lambda module: module.relative_change)
    median = float(np.median([module.relative_change for module in report.modules]))
    assert report.strongest() is strongest
    assert report.median_change == pytest.approx(median)
    assert report.verdict.startswith(
        f"The adapter changes 9 of {9 + len(report.untouched)} tensors, its weight matrices by {100 * median:.0f} % of their norm in the median, "
        f"most of all layer {strongest.layer}, {strongest.module} ({100 * strongest.relative_change:.0f} %)."
    )
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["outcome"] == "tuned"
    assert content["modules"][0]["relative_change"] == pytest.approx(report.modules[0].relative_change)
    assert len(content["modules"]) == 9


def test_a_layers_change_is_that_of_its_changed_modules_together(adapter: Path) -> None:
    report = tuning_of_adapter(adapter)
    layers = report.per_layer()
    assert [layer.layer for layer in layers] == [0, 1, 2]
    for layer in layers:
        modules = [module for module in report.modules if module.layer == layer.layer]
        change, weight = (sum(getattr(module, name) ** 2 for module in modules) for name in ("change_norm", "weight_norm"))
        assert layer.relative_change == pytest.approx(math.sqrt(change / weight))
        assert layer.by_module == pytest.approx({module.module: module.relative_change for module in modules})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_in_half_precision(dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    report = tuning_of_adapter(saved(base, lora(), tmp_path, dtype))
    factors = {name: tensor.double() for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    for module in report.modules:
        prefix = "base_model.model." + module.name.removesuffix(".weight")
        change = 4 * factors[f"{prefix}.lora_B.weight"] @ factors[f"{prefix}.lora_A.weight"]
        assert module.change_norm == pytest.approx(float(change.norm()), rel=1e-6)


# --- verdicts


def zero_b(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if "lora_B" in name else tensor


def test_zero_matrices(changed: Callable[..., Path]) -> None:
    report = tuning_of_adapter(changed(zero_b))
    assert report.outcome == "no_effect"
    assert report.verdict == (
        "The adapter has no effect: lora_B is zero in its 9 weights, as before the first step of a training. "
        "Was it saved before it was trained, or were its weights frozen?"
    )
    assert all(module.relative_change == 0 and module.rank == 0 and math.isnan(module.effective_rank) for module in report.modules)
    assert json.dumps(report.to_dict(), allow_nan=False)


def test_an_alpha_of_zero(changed: Callable[..., Path]) -> None:
    report = tuning_of_adapter(changed(lora_alpha=0))
    assert (report.outcome, "lora_alpha is 0" in report.verdict) == ("no_effect", True)


def test_some_matrices_are_zero(changed: Callable[..., Path]) -> None:
    report = tuning_of_adapter(changed(lambda name, tensor: zero_b(name, tensor) if "layers.1" in name else tensor))
    assert report.outcome == "tuned"
    assert "changes 6 of" in report.verdict
    assert report.verdict.endswith("Without effect: 3 of the adapter's 9 weights.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_before_its_first_step(dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(use_dora=True)).to(dtype).save_pretrained(tmp_path)
    report = tuning_of_adapter(tmp_path, base)
    assert report.outcome == "no_effect"
    assert "lora_B is zero" in report.verdict


def test_a_base_of_another_shape(adapter: Path, tmp_path: Path) -> None:
    config = families.FAMILIES["llama"]()
    config.intermediate_size = 48
    other = families.save_checkpoint(tmp_path / "other", config, families.byte_level_tokenizer())
    report = tuning_of_adapter(adapter, other)
    assert report.outcome == "wrong_base"
    assert report.verdict == (
        f'The adapter does not fit "{other}": model.layers.0.mlp.up_proj.weight changes a weight of 64 x 32, the base has 48 x 32, '
        "and 2 more do not fit. Name the model it was trained on."
    )
    assert any(str(other) in warning and "says that it was trained on" in warning for warning in report.warnings)


def test_a_base_without_the_adapters_modules(adapter: Path, checkpoint: Callable[[str], Path]) -> None:
    report = tuning_of_adapter(adapter, checkpoint("gpt2"))
    assert report.outcome == "wrong_base"
    assert "has none of the 9 weights that it changes (model.layers.0.mlp.up_proj.weight, " in report.verdict
    assert report.modules == ()


def test_a_base_with_fewer_layers(adapter: Path, tmp_path: Path) -> None:
    config = families.FAMILIES["llama"]()
    config.num_hidden_layers = 2
    report = tuning_of_adapter(adapter, families.save_checkpoint(tmp_path, config, families.byte_level_tokenizer()))
    assert report.outcome == "tuned"
    assert any(warning.startswith("The base has no model.layers.2.mlp.up_proj.weight") for warning in report.warnings)


def test_a_rank_other_than_the_configurations(changed: Callable[..., Path]) -> None:
    report = tuning_of_adapter(changed(r=8))
    assert (report.outcome, "has 4 directions, its configuration says 8" in report.verdict) == ("wrong_base", True)


def test_values_that_are_not_finite(changed: Callable[..., Path]) -> None:
    report = tuning_of_adapter(changed(lambda name, tensor: tensor * math.nan if "layers.2.mlp" in name else tensor))
    assert report.outcome == "damaged"
    assert "The adapter is damaged: base_model.model.model.layers.2.mlp.up_proj.lora_A.weight" in report.verdict


def test_a_change_larger_than_the_weights(changed: Callable[..., Path]) -> None:
    report = tuning_of_adapter(changed(lora_alpha=16000))
    assert (report.outcome, "was the learning rate too high?" in report.verdict) == ("tuned", True)


def test_prompt_tuning_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    report = tuning_of_adapter(saved(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), tmp_path))
    assert report.outcome == "not_measured"
    assert report.verdict.startswith("This is a PROMPT_TUNING adapter")
    assert "It cannot be merged" in report.verdict


@pytest.mark.parametrize(
    ("configuration", "name"), [({"use_qalora": True}, "QA-LoRA"), ({"layer_replication": [[0, 2], [1, 3]]}, "layer replication")]
)
def test_variants_that_are_not_measured_are_named(configuration: dict[str, Any], name: str, changed: Callable[..., Path]) -> None:
    report = tuning_of_adapter(changed(**configuration))
    assert (report.outcome, report.verdict.startswith(f"The adapter uses {name}, ")) == ("not_measured", True)


def test_other_kinds_are_named_with_the_way_out(base: Path, tmp_path: Path) -> None:
    report = tuning_of_adapter(saved(base, OFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], oft_block_size=4), tmp_path))
    assert (report.outcome, report.verdict) == (
        "not_measured",
        "The adapter uses OFT, whose change of weights is not computed here. Merge it with PEFT's merge_and_unload, save the result, "
        "and compare that folder with the base.",
    )


def test_an_initialisation_that_changes_the_base_is_told(changed: Callable[..., Path]) -> None:
    (warning,) = tuning_of_adapter(changed(init_lora_weights="pissa_niter_4")).warnings
    assert "pissa_niter_4, which also changes the base" in warning


def test_a_quantised_base(adapter: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "quantised")
    file = tmp_path / "quantised" / "model.safetensors"
    save_file({name: tensor.to(torch.int8) if "proj" in name else tensor for name, tensor in load_file(file).items()}, file)
    report = tuning_of_adapter(adapter, tmp_path / "quantised")
    assert (report.outcome, "full precision" in report.verdict) == ("not_measured", True)


# --- errors


def test_the_base_must_be_known(base: Path, changed: Callable[..., Path]) -> None:
    folder = changed(base_model_name_or_path=None)
    with pytest.raises(llm_tt.LlmTtError, match="does not say which model it belongs to"):
        llm_tt.tuning_report(str(folder))
    assert llm_tt.tuning_report(str(folder), str(base)).outcome == "tuned"


def test_a_base_that_cannot_be_reached(changed: Callable[..., Path]) -> None:
    with pytest.raises(llm_tt.LlmTtError, match='"nobody/nothing" is neither a folder nor in the local cache'):
        llm_tt.tuning_report(str(changed(base_model_name_or_path="nobody/nothing")))
    with pytest.raises(llm_tt.LlmTtError, match='Model folder "/nowhere/at/all" does not exist'):
        llm_tt.tuning_report("/nowhere/at/all")


def test_a_folder_without_an_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(llm_tt.LlmTtError, match=r"has no adapter_config\.json"):
        tuning_of_adapter(base, base)
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    with pytest.raises(llm_tt.LlmTtError, match=r"has no weights in safetensors \(adapter_model\.safetensors\)"):
        tuning_of_adapter(tmp_path, base)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(llm_tt.LlmTtError, match=r"adapter_model\.safetensors\" is damaged"):
        tuning_of_adapter(tmp_path, base)
