"""What fine-tuning scripts and converters leave behind: loaded as it should be, or refused with the reason; never with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import byte_level_tokenizer, metaspace_tokenizer, save_checkpoint, token_ids
from reference import load_plain
from refusing import refusal
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, LlamaConfig, T5Config, T5ForConditionalGeneration

import llm_tt
from llm_tt.errors import OutOfMemoryError
from llm_tt.models import checkpoints, weights

IDS = token_ids(7)


@pytest.fixture
def folder(checkpoint: Callable, tmp_path: Path) -> Path:
    """A copy of a sound checkpoint, to be changed."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "a model"))


@pytest.fixture
def tied(checkpoint: Callable, tmp_path: Path) -> Path:
    """The same with tied embeddings."""
    return Path(shutil.copytree(checkpoint("llama_plain"), tmp_path / "a tied model"))


def logits(model: Any, ids: list[int] = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].float()


def require_same(folder: Path, expected: torch.Tensor, ids: list[int] = IDS) -> Any:
    llm = llm_tt.load_model(str(folder))
    assert float((llm.trace(ids).logits(-1) - expected).abs().max()) <= 1e-4
    return llm


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of the config; None removes one."""
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- shards


@pytest.fixture
def sharded(folder: Path) -> Path:
    model = load_plain(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) >= 4
    return folder


def test_a_sharded_folder_loads(sharded: Path, plain: Callable) -> None:
    require_same(sharded, logits(plain("llama")))


def test_a_shard_that_is_missing_is_named(sharded: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[1].unlink()
    text = refusal(str(sharded))
    assert f'"{sharded}" lacks {shards[1].name} of its {len(shards)} weight files' in text
    assert "model.safetensors.index.json" in text
    for shard in shards[2:]:
        shard.unlink()
    assert "and " in refusal(str(sharded))


def test_a_damaged_index(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text("{")
    assert "model.safetensors.index.json is damaged" in refusal(str(sharded))
    index.write_text("{}")
    assert 'model.safetensors.index.json has no "weight_map"' in refusal(str(sharded))


def test_a_damaged_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-100])
    text = refusal(str(sharded))
    assert shard.name in text
    assert "cut off" in text


def test_the_memory_of_shards_is_counted_before_they_are_read(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_params = sum(parameter.numel() for parameter in load_plain(sharded).parameters())
    assert weights.loaded_bytes(sharded, torch.float32) == 4 * n_params
    assert weights.loaded_bytes(sharded, torch.bfloat16) == 2 * n_params
    monkeypatch.setattr(checkpoints, "available_bytes", lambda device: 4 * n_params - 1)
    with pytest.raises(OutOfMemoryError, match=r"needs about .* in float32, but cpu has"):
        llm_tt.load_model(str(sharded))
    monkeypatch.setattr(checkpoints, "available_bytes", lambda device: 4 * n_params)
    checkpoints.load_checkpoint(llm_tt.ModelSpec(name=str(sharded)))


# --- what fine-tuning leaves behind


def test_an_extended_tokenizer_with_resized_embeddings(folder: Path) -> None:
    tokenizer = metaspace_tokenizer()
    tokenizer.add_tokens([f"<tool {index}>" for index in range(200)], special_tokens=True)
    model = load_plain(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ids = tokenizer("the store <tool 199>").input_ids
    assert max(ids) >= 400
    llm = require_same(folder, logits(model, ids), ids)
    assert llm.info.d_vocab == len(tokenizer)
    assert llm.encode("the store <tool 199>") == ids


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_config_without_architectures(family: str, checkpoint: Callable, plain: Callable, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint(family), tmp_path / "model"))
    change_config(folder, architectures=None)
    require_same(folder, logits(plain(family)))


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": -3, "do_sample": "perhaps"}', ""])
def test_a_broken_generation_config_is_no_obstacle(content: str, folder: Path, plain: Callable) -> None:
    (folder / "generation_config.json").write_text(content)
    llm = require_same(folder, logits(plain("llama")))
    # The third is wrong only in what is not read.
    assert [note.split("(")[0] + "(" for note in llm.info.notes] == ["Its generation_config.json cannot be used ("] * (
        not content.startswith('{"')
    )
    assert llm.end_ids == {2}


def test_mixed_dtypes_become_one_and_that_is_said(folder: Path) -> None:
    def half(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "self_attn" in name:
                tensors[name] = tensors[name].bfloat16()

    change_weights(folder, half)
    expected = logits(load_plain(folder))
    llm = require_same(folder, expected)
    assert llm.info.notes == ("The checkpoint stores float32 and bfloat16; all of it was loaded as float32.",)
    loaded = checkpoints.load_checkpoint(llm_tt.ModelSpec(name="half", path=str(folder), dtype="bfloat16"))
    assert {parameter.dtype for parameter in loaded.hf_model.parameters()} == {torch.bfloat16}


def test_one_dtype_needs_no_note(folder: Path) -> None:
    assert llm_tt.load_model(str(folder)).info.notes == ()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
def test_the_stored_dtype_is_read_from_either_key_or_from_the_weights(
    key: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where "auto" is the checkpoint's own."""
    load_plain(folder, torch.bfloat16).save_pretrained(folder)
    change_config(folder, dtype=None)
    if key:
        change_config(folder, **{key: "bfloat16"})
    original = checkpoints.resolve_dtype
    monkeypatch.setattr(checkpoints, "resolve_dtype", lambda dtype, device, stored: original(dtype, "cuda:0", stored))
    assert llm_tt.load_model(str(folder)).info.dtype == "bfloat16"


def test_a_config_whose_vocabulary_is_not_that_of_the_weights(folder: Path) -> None:
    change_config(folder, vocab_size=380)
    text = refusal(str(folder))
    assert (
        f'"{folder}" has tensors of other shapes than its config.json says: model.embed_tokens.weight is [400, 32], not [380, 32]' in text
    )
    assert "lm_head.weight is [400, 32], not [380, 32]" in text
    assert "vocab_size" in text


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_weights_that_are_missing_are_refused_by_name(lost: str, folder: Path) -> None:
    """transformers only warns, and fills in random numbers."""
    change_weights(folder, lambda tensors: tensors.pop(lost))
    text = refusal(str(folder))
    assert f'"{folder}" lacks 1 of its weights: {lost}' in text
    assert "random" in text


def test_a_config_with_more_layers_than_weights(folder: Path) -> None:
    change_config(folder, num_hidden_layers=5)
    text = refusal(str(folder))
    assert "lacks 32 of its weights: model.layers.3." in text
    assert "and 29 more" in text


def test_a_config_with_fewer_layers_than_weights(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2)
    text = refusal(str(folder))
    assert f'"{folder}" has weights of more blocks than its config.json says, which would be left out: model.layers.2.' in text
    assert "Correct num_hidden_layers" in text


def test_tied_embeddings_are_stored_once_or_twice(tied: Path, plain: Callable) -> None:
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    require_same(tied, logits(plain("llama_plain")))
    change_weights(tied, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    require_same(tied, logits(plain("llama_plain")))


def test_only_the_head_of_tied_embeddings_is_stored(tied: Path, plain: Callable) -> None:
    change_weights(tied, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    require_same(tied, logits(plain("llama_plain")))


def test_a_head_of_its_own_where_the_config_says_tied(tied: Path) -> None:
    """The weights are believed, as transformers does."""
    head = torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
    change_weights(tied, lambda tensors: tensors.update({"lm_head.weight": head}))
    model = load_plain(tied)
    assert torch.equal(model.lm_head.weight, head)
    require_same(tied, logits(model))


def test_a_base_model_without_its_head_is_refused_unless_the_head_is_tied(folder: Path, tied: Path, plain: Callable) -> None:
    """Saved by AutoModel: the names lack their prefix."""
    for path in (folder, tied):
        load_plain(path).model.save_pretrained(path)
    assert "lacks 1 of its weights: lm_head.weight" in refusal(str(folder))
    require_same(tied, logits(plain("llama_plain")))


@pytest.mark.parametrize("config", [{"target_modules": ["q_proj"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}])
def test_a_model_saved_unmerged_is_refused(config: dict, folder: Path) -> None:
    """The wrapped model's own save: names as `q_proj.base_layer.weight`, which transformers would take for unknown."""
    tuned = peft.get_peft_model(load_plain(folder), peft.LoraConfig(r=2, **config))
    state = {name: tensor.contiguous() for name, tensor in tuned.base_model.model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text = refusal(str(folder))
    assert f'"{folder}" was saved unmerged' in text
    assert "merge_and_unload" in text


def test_unknown_tensors_beside_a_whole_model_are_left_out_and_that_is_said(folder: Path, plain: Callable) -> None:
    change_weights(folder, lambda tensors: tensors.update({"value_head.weight": torch.ones(1, 32)}))
    for _ in range(2):
        llm = require_same(folder, logits(plain("llama")))
        assert llm.info.notes == ("Not part of the language model and left out: value_head.weight.",)


def test_leftovers_of_training_are_not_taken_for_weights(folder: Path, plain: Callable) -> None:
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (folder / name).write_bytes(b"\x80")
    require_same(folder, logits(plain("llama")))
    (folder / "model.safetensors").unlink()
    assert f'"{folder}" has no weights' in refusal(str(folder))


# --- what is no causal language model


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    metaspace_tokenizer().save_pretrained(tmp_path)
    text = refusal(str(tmp_path))
    assert f'"{tmp_path}" (LlamaForSequenceClassification) classifies whole texts and predicts no next token' in text
    assert "tuned from" in text


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    T5ForConditionalGeneration(T5Config(vocab_size=400, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    assert f'"{tmp_path}" is an encoder-decoder model (T5ForConditionalGeneration)' in refusal(str(tmp_path))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    assert f'"{tmp_path}" (BertForMaskedLM) fills in masked tokens' in refusal(str(tmp_path))


def test_a_multimodal_model_whose_language_model_cannot_stand_alone_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = {"model_type": "qwen2_5_vl_text", **{key: value for key, value in config.items() if key not in ("model_type", "architectures")}}
    changed = {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "text_config": text,
        "vision_config": {},
    }
    (folder / "config.json").write_text(json.dumps(changed))
    text = refusal(str(folder))
    assert f'"{folder}" is a multimodal model (Qwen2_5_VLForConditionalGeneration) whose language model transformers cannot load' in text
    assert "Save its language model with its tokenizer" in text


_TEXT: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_MULTIMODAL: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        {},
        {"mm_tokens_per_image": 4, "image_token_index": 399, "boi_token_index": 398, "eoi_token_index": 397},
    ),
    "mistral3": ({"model_type": "mistral"}, {"model_type": "pixtral"}, {"image_token_index": 399}),
    "llava": ({"model_type": "llama"}, {"model_type": "clip_vision_model"}, {"image_token_index": 399}),
    "llama4": (
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "moe_layers": [1],
            "attention_chunk_size": 8,
            "pad_token_id": 0,
        },
        {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
        {},
    ),
}


@pytest.mark.parametrize("kind", _MULTIMODAL)
def test_of_a_multimodal_model_the_language_model_is_shown(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    text, vision, whole = _MULTIMODAL[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, text_config=_TEXT | text, vision_config=_VISION | vision, **whole)
    plain = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain.save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    ids = token_ids(20)
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor([ids])).logits[0, -1]
    llm = llm_tt.load_model(str(tmp_path))
    assert float((llm.trace(ids).logits(-1) - expected).abs().max()) <= 1e-4
    assert any(note.startswith("Not part of the language model and left out: ") for note in llm.info.notes)


# --- other formats


def test_gguf_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")
    for _ in range(2):
        text = refusal(str(folder))
        assert "GGUF (model-q4.gguf)" in text
        assert "convert it" in text
        (folder / "config.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_a_file_is_not_a_folder(name: str, folder: Path) -> None:
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert f'"{folder / name}" is a file. Name the folder that holds it' in refusal(str(folder / name))


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "hqq"])
def test_quantised_formats_are_refused(method: str, folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    text = refusal(str(folder))
    assert f'"{folder}" has its weights quantised with {method.upper()}' in text
    assert "Use the model it was made from" in text


def test_mlx_is_refused(folder: Path) -> None:
    change_config(folder, quantization={"group_size": 64, "bits": 4})
    assert "quantised with MLX" in refusal(str(folder))


def test_a_first_generation_qwen_needs_code_of_its_own(folder: Path) -> None:
    auto_map = {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}
    change_config(folder, model_type="qwen", architectures=["QWenLMHeadModel"], auto_map=auto_map)
    text = refusal(str(folder))
    assert f'"{folder}" is a Qwen of the first generation, which runs code of its own' in text
    assert "Qwen1.5 or later" in text
    assert '"trust_remote_code": true' in text


def test_checkpoints_of_another_seed_differ(tmp_path: Path) -> None:
    """The comparisons above would notice random weights."""
    config = LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    one, two = (save_checkpoint(tmp_path / str(seed), config, metaspace_tokenizer(), seed) for seed in (0, 1))
    assert float((logits(load_plain(one)) - logits(load_plain(two))).abs().max()) > 1
