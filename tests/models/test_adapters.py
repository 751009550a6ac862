"""Adapters of every kind that is part of the weights are merged exactly, with the logits of PEFT's own unmerged model; others are refused."""

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
from peft import LoraConfig
from reference import load_plain
from refusing import refusal
from transformers import LlamaConfig, MixtralConfig

import llm_tt
from llm_tt.models.weights import fingerprint

IDS = token_ids(9)
LLAMA = ["q_proj", "v_proj", "o_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]


def randomize(model: Any, seed: int = 0) -> None:
    """Give every trainable parameter of a PEFT model values of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def logits(model: Any, ids: list[int] = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].float()


def save_tuned(base: Any, config: Any, folder: Path, **options: Any) -> torch.Tensor:
    """Put an adapter with random values on a base, save it, and return the unmerged model's logits."""
    tuned = peft.get_peft_model(base, config).eval()
    randomize(tuned)
    tuned.save_pretrained(folder, **options)
    return logits(tuned)


def shown(model: str | llm_tt.ModelSpec, ids: list[int] = IDS, **options: Any) -> torch.Tensor:
    """The logits of the model as llm-tt loads it."""
    return llm_tt.load_model(model, **options).trace(ids).logits(-1)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


CONFIGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "lora": ("llama", lambda: LoraConfig(r=4, lora_alpha=8, target_modules=LLAMA)),
    "lora on gpt2": ("gpt2", lambda: LoraConfig(r=4, lora_alpha=8, target_modules=GPT2, fan_in_fan_out=True)),
    "rank-stabilised": ("llama", lambda: LoraConfig(r=4, lora_alpha=8, target_modules=LLAMA, use_rslora=True)),
    "dora": ("llama", lambda: LoraConfig(r=4, lora_alpha=8, target_modules=LLAMA, use_dora=True)),
    "dora on gpt2": ("gpt2", lambda: LoraConfig(r=4, target_modules=GPT2, use_dora=True, fan_in_fan_out=True)),
    "biases of all": ("llama", lambda: LoraConfig(r=4, target_modules=["q_proj"], bias="all")),
    "biases of all, gpt2": ("gpt2", lambda: LoraConfig(r=4, target_modules=GPT2, bias="all", fan_in_fan_out=True)),
    "biases of the tuned": ("llama", lambda: LoraConfig(r=4, target_modules=["q_proj", "o_proj"], bias="lora_only")),
    "patterns": (
        "llama",
        lambda: LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=LLAMA,
            rank_pattern={"layers.1.self_attn.q_proj": 2, "down_proj": 6},
            alpha_pattern={"v_proj": 32},
        ),
    ),
    "some layers": ("llama", lambda: LoraConfig(r=4, target_modules=LLAMA, layers_to_transform=[2], layers_pattern="layers")),
    "head saved": ("llama", lambda: LoraConfig(r=4, target_modules=LLAMA, modules_to_save=["lm_head"])),
    "embeddings saved": ("llama", lambda: LoraConfig(r=4, target_modules=LLAMA, modules_to_save=["embed_tokens", "lm_head"])),
    "norms saved": ("llama", lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["input_layernorm", "norm"])),
    "tied embeddings saved": ("llama_plain", lambda: LoraConfig(r=4, target_modules=LLAMA, modules_to_save=["embed_tokens"])),
    "tied head saved": ("llama_plain", lambda: LoraConfig(r=4, target_modules=LLAMA, modules_to_save=["lm_head"])),
    "tied embeddings saved as one": (
        "llama_plain",
        lambda: LoraConfig(r=4, target_modules=LLAMA, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    "tied head saved, gpt2": ("gpt2", lambda: LoraConfig(r=4, target_modules=GPT2, modules_to_save=["lm_head"], fan_in_fan_out=True)),
    "lora on embeddings": ("llama", lambda: LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])),
    "lora on the head": ("llama", lambda: LoraConfig(r=4, target_modules=["lm_head", "q_proj"])),
    "lora on tied embeddings": ("llama_plain", lambda: LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])),
    "lora on both tied": ("llama_plain", lambda: LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"])),
    "lora on tied embeddings, gpt2": ("gpt2", lambda: LoraConfig(r=4, target_modules=["wte", "c_attn"])),
    "new tokens": ("llama", lambda: LoraConfig(r=4, target_modules=LLAMA, trainable_token_indices=[5, IDS[3]])),
    "new tied tokens": (
        "llama_plain",
        lambda: LoraConfig(r=4, target_modules=LLAMA, trainable_token_indices={"embed_tokens": [5, IDS[3]]}),
    ),
    "new tokens only": ("llama", lambda: peft.TrainableTokensConfig(token_indices=[5, IDS[3]], target_modules=["embed_tokens"])),
    "pissa": ("llama", lambda: LoraConfig(r=4, target_modules=LLAMA, init_lora_weights="pissa")),
    "adalora": ("llama", lambda: peft.AdaLoraConfig(total_step=1, target_modules=["q_proj"])),
    "loha": ("llama", lambda: peft.LoHaConfig(r=2, target_modules=["q_proj", "down_proj"])),
    "lokr": ("llama", lambda: peft.LoKrConfig(r=2, target_modules=["q_proj", "down_proj"])),
    "ia3": ("llama", lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "oft": ("llama", lambda: peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj"])),
    "boft": ("llama", lambda: peft.BOFTConfig(boft_block_size=8, target_modules=["q_proj"])),
    "vera": ("llama", lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"])),
    "norms tuned": ("llama", lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"])),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_is_merged_exactly_and_leaves_its_base_as_it_was(kind: str, checkpoint: Callable, tmp_path: Path) -> None:
    family, config = CONFIGS[kind]
    folder = checkpoint(family)
    plain = logits(load_plain(folder))
    expected = save_tuned(load_plain(folder), config(), tmp_path)
    base = llm_tt.load_model(str(folder))
    assert difference(shown(str(folder), adapter=str(tmp_path)), expected) <= 1e-4
    assert difference(plain, expected) > 0.01, "the adapter changes something"
    assert difference(base.trace(IDS).logits(-1), plain) <= 1e-4, "the base, which shares tensors, is unchanged"


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
        ("llama_plain", {}),
        ("llama_plain", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama_plain", {"target_modules": ["embed_tokens", "q_proj"]}),
    ],
)
@pytest.mark.parametrize("n_rows", [416, 390])
def test_an_adapter_with_other_embedding_rows_resizes_its_base(
    n_rows: int, config: dict, family: str, checkpoint: Callable, tmp_path: Path
) -> None:
    base = load_plain(checkpoint(family))
    torch.manual_seed(1)
    base.resize_token_embeddings(n_rows, mean_resizing=False)
    ids = [n_rows - 1, *token_ids(5, seed=3)[:4], n_rows - 2] if n_rows > 400 else [id_ % n_rows for id_ in IDS]
    with torch.no_grad():
        base.get_input_embeddings().weight[-20:].normal_()
        base.get_output_embeddings().weight[-20:].normal_()
    tuned = peft.get_peft_model(base, LoraConfig(r=4, **{"target_modules": ["q_proj"], **config})).eval()
    randomize(tuned)
    tuned.save_pretrained(tmp_path, save_embedding_layers=True)
    plain = logits(load_plain(checkpoint(family)))
    llm = llm_tt.load_model(str(checkpoint(family)), adapter=str(tmp_path))
    assert llm.info.d_vocab == n_rows
    assert difference(llm.trace(ids).logits(-1), logits(tuned, ids)) <= 1e-4
    assert difference(shown(str(checkpoint(family))), plain) <= 1e-4


def test_an_adapter_that_lost_the_new_rows_of_the_head_is_refused(checkpoint: Callable, tmp_path: Path) -> None:
    """PEFT saves those of the embeddings that it tunes, not those of an untied head beside them."""
    base = load_plain(checkpoint("llama"))
    base.resize_token_embeddings(416, mean_resizing=False)
    peft.get_peft_model(base, LoraConfig(r=4, target_modules=["embed_tokens"])).save_pretrained(tmp_path)
    text = refusal(str(tmp_path))
    assert f'"{tmp_path}" extends the vocabulary to 416 tokens, but does not hold the new rows of "lm_head"' in text
    assert "modules_to_save" in text


def test_a_tokenizer_extended_with_the_adapter_reaches_the_new_rows(checkpoint: Callable, tmp_path: Path) -> None:
    base = load_plain(checkpoint("llama"))
    tokenizer = metaspace_tokenizer()
    tokenizer.add_tokens([f"<tool {index}>" for index in range(200)], special_tokens=True)
    assert len(tokenizer) > 400
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    expected_ids = tokenizer("the store <tool 199>").input_ids
    tuned = peft.get_peft_model(base, LoraConfig(r=4, target_modules=LLAMA)).eval()
    randomize(tuned)
    tuned.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    llm = llm_tt.load_model(str(tmp_path))
    trace = llm.trace("the store <tool 199>")
    assert list(trace.token_ids) == expected_ids
    assert difference(trace.logits(-1), logits(tuned, expected_ids)) <= 1e-4


@pytest.mark.parametrize("parameters", [["gate_up_proj", "down_proj"], ["mlp.experts.down_proj"]])
def test_an_adapter_on_the_experts_of_a_mixture_is_merged_exactly(parameters: list[str], tmp_path: Path) -> None:
    """Through the loader alone: whether the mixture can be shown is another matter."""
    from llm_tt.models.checkpoints import load_checkpoint

    config = MixtralConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    folder = save_checkpoint(tmp_path / "base", config, byte_level_tokenizer())
    plain = logits(load_plain(folder))
    expected = save_tuned(
        load_plain(folder), LoraConfig(r=4, target_modules=["q_proj"], target_parameters=parameters, lora_dropout=0.0), tmp_path / "adapter"
    )
    base = load_checkpoint(llm_tt.ModelSpec(name="base", path=str(folder)))
    tuned = load_checkpoint(llm_tt.ModelSpec(name="tuned", path=str(folder), adapter=str(tmp_path / "adapter")))
    assert difference(logits(tuned.hf_model), expected) <= 1e-4
    assert difference(expected, plain) > 0.01
    assert difference(logits(base.hf_model), plain) <= 1e-5


@pytest.mark.parametrize("adapter_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("base_dtype", [torch.bfloat16, torch.float32])
def test_an_adapter_may_have_another_dtype_than_its_base(
    adapter_dtype: torch.dtype, base_dtype: torch.dtype, checkpoint: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(checkpoint("llama"), folder)
    load_plain(folder, base_dtype).save_pretrained(folder)
    tuned = peft.get_peft_model(load_plain(folder), LoraConfig(r=4, target_modules=LLAMA)).eval()
    randomize(tuned)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter_dtype)
    tuned.save_pretrained(tmp_path / "adapter")
    expected = logits(peft.PeftModel.from_pretrained(load_plain(folder), tmp_path / "adapter"))
    assert difference(shown(str(folder), adapter=str(tmp_path / "adapter")), expected) <= 1e-4


def test_an_adapter_without_effect_is_shown(checkpoint: Callable, tmp_path: Path) -> None:
    peft.get_peft_model(load_plain(checkpoint("llama")), LoraConfig(r=4, target_modules=LLAMA)).save_pretrained(tmp_path)
    assert difference(shown(str(tmp_path)), logits(load_plain(checkpoint("llama")))) <= 1e-4


# --- refused


@pytest.fixture
def lora(checkpoint: Callable, tmp_path: Path) -> Path:
    """A sound adapter of the llama checkpoint, to be damaged."""
    folder = tmp_path / "adapter"
    peft.get_peft_model(load_plain(checkpoint("llama")), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


def change(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "prepends trained vectors"),
        (peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "prepends trained vectors"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "adds trained keys and values"),
        (peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2), "adds trained keys and values"),
    ],
    ids=["prompt tuning", "p-tuning", "prefix tuning", "llama-adapter"],
)
def test_adapters_that_are_not_part_of_the_weights_are_refused(config: Any, reason: str, checkpoint: Callable, tmp_path: Path) -> None:
    peft.get_peft_model(load_plain(checkpoint("llama")), config).save_pretrained(tmp_path)
    text = refusal(str(checkpoint("llama")), adapter=str(tmp_path))
    kind = json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"]
    assert f'"{tmp_path}" is of the kind {kind}, which cannot be merged into the weights' in text
    assert reason in text


def test_activated_lora_is_refused(checkpoint: Callable, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[3, 4])
    peft.get_peft_model(load_plain(checkpoint("llama")), config).save_pretrained(tmp_path)
    text = refusal(str(checkpoint("llama")), adapter=str(tmp_path))
    assert f'"{tmp_path}" of the kind LORA cannot be merged into the weights: aLoRA does not support' in text


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM"])
def test_adapters_of_other_tasks_are_refused(task: str, lora: Path) -> None:
    change(lora, task_type=task)
    text = refusal(str(lora))
    assert f'"{lora}" was trained for the task {task}' in text
    assert "CAUSAL_LM" in text


def test_an_adapter_of_a_model_with_other_names(checkpoint: Callable, lora: Path) -> None:
    text = refusal(str(checkpoint("gpt2")), adapter=str(lora))
    assert f'"{lora}" is damaged or does not fit the base model' in text
    assert "q_proj" in text
    assert 'Set "base"' in text


def test_an_adapter_of_a_deeper_model_is_refused_with_the_first_module_that_the_base_lacks(lora: Path, tmp_path: Path) -> None:
    shallow = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    folder = save_checkpoint(tmp_path / "shallow", shallow, metaspace_tokenizer())
    assert 'the base has no "model.layers.2.self_attn.q_proj"' in refusal(str(folder), adapter=str(lora))


def test_an_adapter_of_a_shallower_model_is_refused_with_the_first_module_that_it_lacks(lora: Path, tmp_path: Path) -> None:
    """PEFT only warns, and leaves random numbers in the upper layers."""
    deep = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    folder = save_checkpoint(tmp_path / "deep", deep, metaspace_tokenizer())
    assert 'it has no weights for "model.layers.3.self_attn.q_proj"' in refusal(str(folder), adapter=str(lora))


def test_an_adapter_of_a_wider_model_is_refused_with_the_shapes(lora: Path, tmp_path: Path) -> None:
    wide = LlamaConfig(vocab_size=400, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
    folder = save_checkpoint(tmp_path / "wide", wide, metaspace_tokenizer())
    text = refusal(str(folder), adapter=str(lora))
    assert "size mismatch" in text
    assert "layers.0.self_attn.q_proj" in text


def test_an_adapter_of_which_a_tensor_is_lost_is_refused(checkpoint: Callable, lora: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(lora / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, lora / "adapter_model.safetensors")
    assert 'it has no weights for "model.layers.1.self_attn.q_proj"' in refusal(str(lora))


def test_an_adapter_folder_that_is_not_there(checkpoint: Callable, tmp_path: Path) -> None:
    text = refusal(str(checkpoint("llama")), adapter=str(tmp_path / "nowhere"))
    assert f'Adapter folder "{tmp_path / "nowhere"}" does not exist' in text


# --- the base


def test_a_base_that_cannot_be_found_is_explained_with_the_way_out(lora: Path) -> None:
    for base in ("/no/longer/there", "somebody/no-such-model"):
        change(lora, base_model_name_or_path=base)
        text = refusal(str(lora))
        assert f'Adapter "{lora}" belongs to a model that cannot be found' in text
        assert f'"{base}"' in text
        assert 'set "base"' in text


def test_a_base_beside_the_adapter_is_found(checkpoint: Callable, lora: Path) -> None:
    shutil.copytree(checkpoint("llama"), lora.parent / "base")
    change(lora, base_model_name_or_path="../base")
    assert difference(shown(str(lora)), logits(load_plain(checkpoint("llama")))) <= 1e-4


def test_a_folder_with_adapter_and_config_but_without_a_model_is_an_adapter(checkpoint: Callable, lora: Path) -> None:
    """Trainers save the model's config beside the adapter."""
    shutil.copy(checkpoint("llama") / "config.json", lora)
    assert llm_tt.load_model(str(lora)).info.adapter == str(lora)


def test_a_folder_with_a_merged_model_beside_its_adapter_is_the_model(checkpoint: Callable, lora: Path) -> None:
    shutil.copytree(checkpoint("llama"), lora, dirs_exist_ok=True)
    assert llm_tt.load_model(str(lora)).info.adapter is None


def test_loading_changes_no_file(checkpoint: Callable, lora: Path) -> None:
    before = fingerprint(checkpoint("llama")), sorted((file.name, file.read_bytes()) for file in lora.iterdir())
    llm_tt.load_model(str(lora))
    assert before == (fingerprint(checkpoint("llama")), sorted((file.name, file.read_bytes()) for file in lora.iterdir()))
