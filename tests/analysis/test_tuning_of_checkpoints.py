"""A tuned checkpoint against its base: numbers against brute force on whole tensors, verdicts, and files that name or split things otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import llm_tt
from llm_tt.analysis import spectrum
from llm_tt.analysis.tuning import tuning_of_checkpoint
from llm_tt.analysis.weight_files import WeightFiles, canonical, layer_and_module

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llama")


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """tuned(function of the weights by name, from_=base): a copy of the checkpoint with other weights."""

    def make(change: Callable[[Weights], Weights | None] = lambda weights: None, from_: Path = base) -> Path:
        folder = tmp_path / "tuned"
        shutil.copytree(from_, folder)
        weights = load_file(folder / "model.safetensors")
        weights = change(weights) or weights
        save_file(weights, folder / "model.safetensors")
        return folder

    return make


def in_layers(share: float = 0.03) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        generator = torch.Generator().manual_seed(2)
        for name, tensor in weights.items():
            if "self_attn" in name and name.endswith("weight"):
                tensor.add_(share * torch.randn(tensor.shape, generator=generator))

    return change


def test_changes_are_the_differences_of_the_files(base: Path, tuned: Callable[..., Path]) -> None:
    folder = tuned(in_layers())
    report = llm_tt.tuning_report(str(folder), str(base))
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert (report.kind, report.outcome, report.warnings) == ("checkpoint", "tuned", ())
    assert {module.name for module in report.modules} == {name for name in before if "self_attn" in name and name.endswith("weight")}
    assert set(report.untouched) == set(before) - {module.name for module in report.modules}
    assert f"The tuning changes 12 of {len(before)} tensors" in report.verdict
    for module in report.modules:
        change = (after[module.name] - before[module.name]).double()
        values = torch.linalg.svdvals(change)
        assert module.relative_change == pytest.approx(float(change.norm() / before[module.name].double().norm()), rel=1e-6)
        assert module.singular_values == pytest.approx(values[:16].numpy(), rel=1e-6)
        assert module.rank == min(change.shape)
        energy = values.square().cumsum(0) / values.square().sum()
        assert (module.n_90, module.n_99) == (int((energy < 0.9).sum()) + 1, int((energy < 0.99).sum()) + 1)


def test_shards_make_no_difference(base: Path, tuned: Callable[..., Path], tmp_path: Path) -> None:
    folder = tuned(in_layers())
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    one, other = tuning_of_checkpoint(folder, base), tuning_of_checkpoint(tmp_path / "sharded", base)
    assert {module.name: module.change_norm for module in one.modules} == {module.name: module.change_norm for module in other.modules}
    assert set(one.untouched) == set(other.untouched)
    next((tmp_path / "sharded").glob("model-00002*")).unlink()
    with pytest.raises(llm_tt.LlmTtError, match=r"lacks the file model-00002-of-\d+\.safetensors, which its index lists"):
        tuning_of_checkpoint(tmp_path / "sharded", base)


def test_a_merged_adapter_in_bfloat16_has_its_own_rank(tmp_path: Path, base: Path) -> None:
    """The rounding of the merged file would otherwise give every change full rank."""
    model = AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    peft: Any = get_peft_model(model, LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    peft.merge_and_unload().save_pretrained(tmp_path / "tuned")
    report = tuning_of_checkpoint(tmp_path / "tuned", tmp_path / "base")
    assert report.outcome == "tuned"
    assert [module.rank for module in report.modules] == [3] * 6
    for module in report.modules:
        assert torch.linalg.matrix_rank(_difference(tmp_path, module.name)) > 3


def _difference(folder: Path, name: str) -> torch.Tensor:
    before, after = (load_file(folder / part / "model.safetensors")[name].float() for part in ("base", "tuned"))
    return after - before


# --- verdicts


def test_equal_weights(base: Path, tuned: Callable[..., Path]) -> None:
    report = tuning_of_checkpoint(tuned(), base)
    assert report.outcome == "no_effect"
    assert report.verdict == (
        f"The tuning has no effect: all {len(report.untouched)} tensors equal the base's. Was the base saved instead of the tuned model, "
        "or an adapter trained and not merged?"
    )
    assert report.modules == ()
    assert report.per_layer() == ()


def test_an_adapter_beside_the_weights_of_the_base(base: Path, tuned: Callable[..., Path]) -> None:
    folder = tuned()
    peft: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    peft.peft_config["default"].base_model_name_or_path = str(base)
    peft.save_pretrained(folder)
    report = llm_tt.tuning_report(str(folder))
    assert report.outcome == "not_merged"
    assert report.verdict == (
        "The weights are those of the base; the weights of an adapter beside them are not merged and have no effect. "
        "Load the base with the adapter, or merge it with PEFT's merge_and_unload and save the result."
    )


def test_a_state_dict_with_the_adapter_still_in_it(base: Path, tuned: Callable[..., Path]) -> None:
    def wrapped(weights: Weights) -> Weights:
        peft: Any = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        )
        return {name: tensor.contiguous() for name, tensor in peft.state_dict().items()}

    report = tuning_of_checkpoint(tuned(wrapped), base)
    assert report.outcome == "not_merged"
    assert "lora_A and lora_B beside them are not merged" in report.verdict
    assert report.warnings == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_saved_in_another_precision(dtype: torch.dtype, base: Path, tuned: Callable[..., Path]) -> None:
    folder = tuned(lambda weights: {name: tensor.to(dtype) for name, tensor in weights.items()})
    report = tuning_of_checkpoint(folder, base)
    assert report.outcome == "rounding"
    assert report.verdict.startswith("The weights differ from the base's by rounding alone (0.")
    assert report.verdict.endswith("they were saved in another precision and not tuned.")
    # A unit in the last place over the root of twelve, averaged over a binade.
    assert report.median_change == pytest.approx(torch.finfo(dtype).eps / 12**0.5 / 1.5, rel=0.15)
    back = tuning_of_checkpoint(base, folder)
    assert back.outcome == "rounding"


def test_rounded_and_widened_again(base: Path, tuned: Callable[..., Path]) -> None:
    folder = tuned(lambda weights: {name: tensor.bfloat16().float() for name, tensor in weights.items()})
    assert tuning_of_checkpoint(folder, base).outcome == "rounding"


def test_a_small_tuning_is_no_rounding(base: Path, tuned: Callable[..., Path]) -> None:
    """A relative change at the level of bfloat16's rounding, made by training."""
    report = tuning_of_checkpoint(tuned(in_layers(3e-4)), base)
    assert report.median_change < 2**-9
    assert report.outcome == "tuned"


def test_only_embeddings_and_norms(base: Path, tuned: Callable[..., Path]) -> None:
    def change(weights: Weights) -> None:
        weights["model.norm.weight"] *= 1.1
        weights["model.embed_tokens.weight"][3] += 1
        weights["model.layers.1.mlp.up_proj.bias"] += 0.1

    report = tuning_of_checkpoint(tuned(change), base)
    assert report.outcome == "peripheral"
    assert "no weight matrix of any layer was tuned" in report.verdict
    assert {module.name for module in report.modules} == {
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.bias",
    }
    assert [module.layer for module in report.modules] == [1, None, None]


def test_a_model_of_another_shape_is_no_base(
    tuned: Callable[..., Path], base: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    report = tuning_of_checkpoint(checkpoint("gpt2"), base)
    assert (report.outcome, "tensors are in the tuned model" in report.verdict) == ("wrong_base", True)
    config = families.FAMILIES["llama"]()
    config.intermediate_size = 48
    other = families.save_checkpoint(tmp_path / "other", config, families.byte_level_tokenizer())
    report = tuning_of_checkpoint(other, base)
    assert report.outcome == "wrong_base"
    assert "model.layers.0.mlp.down_proj.weight is 32 x 64 in the base and 32 x 48 in the tuned model" in report.verdict


def test_a_model_trained_apart_is_no_base(base: Path, tmp_path: Path) -> None:
    other = families.save_checkpoint(tmp_path, families.FAMILIES["llama"](), families.byte_level_tokenizer(), seed=7)
    report = tuning_of_checkpoint(other, base)
    assert report.median_change == pytest.approx(2**0.5, rel=0.05)
    assert (report.outcome, "two models trained apart" in report.verdict) == ("wrong_base", True)


def test_values_that_are_not_finite(base: Path, tuned: Callable[..., Path]) -> None:
    def change(weights: Weights) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf

    report = tuning_of_checkpoint(tuned(change), base)
    assert (report.outcome, report.verdict.startswith("The tuned model is damaged: model.layers.1.mlp.up_proj.weight has")) == (
        "damaged",
        True,
    )


def test_the_base_must_be_named(base: Path) -> None:
    with pytest.raises(llm_tt.LlmTtError, match="does not say which model it was tuned from"):
        llm_tt.tuning_report(str(base))


# --- other names, other rows


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "language_model."])
def test_prefixes_of_wrappers(prefix: str, base: Path, tuned: Callable[..., Path]) -> None:
    change = in_layers()

    def renamed(weights: Weights) -> Weights:
        change(weights)
        return {prefix + name: tensor for name, tensor in weights.items()}

    report = tuning_of_checkpoint(tuned(renamed), base)
    assert (len(report.modules), report.warnings, report.outcome) == (12, (), "tuned")


def test_resized_embeddings_are_compared_on_their_common_rows(base: Path, tuned: Callable[..., Path]) -> None:
    def resize(weights: Weights) -> None:
        in_layers()(weights)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = torch.cat([weights[name], torch.ones(5, 32)])
        weights["lm_head.weight"][7] += 1

    folder = tuned(resize)
    report = tuning_of_checkpoint(folder, base)
    assert report.outcome == "tuned"
    assert set(report.warnings) == {
        f"{name} has 400 rows in the base and 405 in the tuned model: the common rows are compared."
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    assert "model.embed_tokens.weight" in report.untouched
    (head,) = [module for module in report.modules if module.name == "lm_head.weight"]
    assert (head.change_norm, head.rank, head.shape) == (pytest.approx(32**0.5), 1, (400, 32))


def test_a_head_that_was_untied(checkpoint: Callable[[str], Path], tuned: Callable[..., Path]) -> None:
    base = checkpoint("llama_plain")

    def untie(weights: Weights) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 1.5

    folder = tuned(untie, base)
    report = tuning_of_checkpoint(folder, base)
    assert report.warnings == ("lm_head.weight is compared with model.embed_tokens.weight, to which the base ties it.",)
    assert [module.relative_change for module in report.modules] == [pytest.approx(0.5)]
    back = tuning_of_checkpoint(base, folder)
    assert back.warnings == (
        "lm_head.weight of the base is compared with model.embed_tokens.weight, to which the tuned model ties its head.",
    )
    assert [module.name for module in back.modules] == ["lm_head.weight"]


def test_tensors_on_one_side_only_are_told(base: Path, tuned: Callable[..., Path]) -> None:
    def change(weights: Weights) -> None:
        in_layers()(weights)
        del weights["model.norm.weight"]
        weights["classifier.weight"] = torch.ones(2, 2)

    assert set(tuning_of_checkpoint(tuned(change), base).warnings) == {
        "The tuned model has no model.norm.weight: not compared.",
        "The base has no classifier.weight: not compared.",
    }


def test_quantised_weights_are_told(base: Path, tuned: Callable[..., Path], tmp_path: Path) -> None:
    def quantised(weights: Weights) -> Weights:
        return {name: tensor.to(torch.int8) if "up_proj.weight" in name else tensor for name, tensor in weights.items()}

    report = tuning_of_checkpoint(tuned(quantised), base)
    assert (report.outcome, len(report.warnings)) == ("not_measured", 1)
    assert report.warnings[0].startswith("Quantised weights differ, by how much cannot be measured: model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight", 3, "self_attn.q_proj"),
        ("h.11.attn.c_attn.bias", 11, "attn.c_attn.bias"),
        ("gpt_neox.layers.0.attention.dense.weight", 0, "attention.dense"),
        ("model.decoder.layers.5.fc1.weight", 5, "fc1"),
        ("model.layers.2.block_sparse_moe.experts.7.w2.weight", 2, "mlp.experts.7.down_proj"),
        ("model.language_model.layers.4.mlp.up_proj.weight", 4, "mlp.up_proj"),
        ("model.visual.layers.4.mlp.up_proj.weight", None, "visual.layers.4.mlp.up_proj"),
        ("transformer.wte.weight", None, "wte"),
    ],
)
def test_layers_and_modules_of_names(name: str, layer: int | None, module: str) -> None:
    assert layer_and_module(name) == (layer, module)


def test_experts_of_a_layer_are_taken_together(checkpoint: Callable[[str], Path], base: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    weights = {f"model.layers.0.mlp.experts.{expert}.up_proj.weight": torch.full((2, 2), 1.0 + expert) for expert in range(3)}
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, file)
    (layer,) = tuning_of_checkpoint(tmp_path, tmp_path / "base").per_layer()
    assert layer.by_module == {"mlp.experts.*.up_proj": pytest.approx((12 / (4 * (1 + 4 + 9))) ** 0.5)}


# --- files and spectra


def test_tensors_are_read_one_at_a_time(base: Path, monkeypatch: pytest.MonkeyPatch, tuned: Callable[..., Path]) -> None:
    """Of two checkpoints never more than one tensor of each is alive, but for the pair before."""
    import gc
    import weakref

    alive: list[weakref.ref] = []
    most = 0
    read = WeightFiles.__getitem__

    def counting(self: WeightFiles, name: str) -> torch.Tensor:
        nonlocal most
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        gc.collect()
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    monkeypatch.setattr(WeightFiles, "__getitem__", counting)
    tuning_of_checkpoint(tuned(in_layers()), base)
    assert len(alive) > 40
    assert most <= 2


def test_the_largest_values_of_a_large_matrix_by_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = 700, 1100
    u, v = (torch.linalg.qr(torch.randn(size, 600, generator=generator, dtype=torch.float64)).Q for size in (rows, columns))
    true = 0.98 ** torch.arange(600, dtype=torch.float64)
    found = spectrum.of_matrix(((u * true) @ v.T).float())
    assert not found.complete
    assert found.top == pytest.approx(true[:16].numpy(), rel=1e-3)
    energy = true.square().cumsum(0) / true.square().sum()
    assert found.n_for(0.9) == int((energy < 0.9).sum()) + 1
    assert found.n_above is None
    assert found.energy == pytest.approx(float(true.square().sum()), rel=1e-5)
    assert spectrum.of_matrix(((u * true) @ v.T).float().T).top == pytest.approx(found.top, rel=1e-3)


def test_a_flat_spectrum_has_more_directions_than_were_computed() -> None:
    matrix = torch.randn(600, 800, generator=torch.Generator().manual_seed(1))
    found = spectrum.of_matrix(matrix)
    assert (found.n_for(0.9), found.n_above) == (None, None)
    true = torch.linalg.svdvals(matrix.double())
    assert found.top == pytest.approx(true[:16].numpy(), rel=0.06)
    assert (found.top <= true[:16].numpy() * (1 + 1e-5)).all()


def test_a_low_rank_change_of_a_large_matrix_is_exact() -> None:
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(700, 5, generator=generator), torch.randn(5, 900, generator=generator)
    found, product = spectrum.of_matrix(left @ right), spectrum.of_product(left, right)
    true = torch.linalg.svdvals((left @ right).double())[:5].numpy()
    assert (found.n_above, product.n_above) == (5, 5)
    assert found.top[:5] == pytest.approx(true, rel=1e-5)
    assert product.values == pytest.approx(true, rel=1e-5)


def test_names_do_not_collide(base: Path) -> None:
    files = WeightFiles(base)
    assert len({canonical(name) for name in files}) == len(files)
    assert json.loads((base / "config.json").read_text())["model_type"] == files.config["model_type"]
