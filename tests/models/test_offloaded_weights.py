"""Models whose weights accelerate keeps off the device are taken apart as others are, number for number, or refused with a sentence.

On a machine without a GPU weights can be kept on disk only; they come and go by the same hooks as those that are kept in main memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from everything import assert_equal, everything
from families import token_ids

import llm_tt
from llm_tt.demo import ADAPTER_DIR, MODEL_DIR
from llm_tt.errors import ModelError, OutOfMemoryError
from llm_tt.models import capture, checkpoints, memory
from llm_tt.models.checkpoints import _OFFLOADED
from llm_tt.models.offloading import home_of, is_offloaded, stored, weights_of
from llm_tt.models.scores import Ask, NextTokens

#: Separate and joint projections, tied embeddings, norms behind the blocks, a gate, experts of every kind, eager attention
NAMES = ("llama", "gpt2", "gemma2", "afmoe", "mixtral", "gpt_oss", "qwen2_moe", "llama4_text", "gpt_neo", "opt")


def device_map(folder: Path) -> dict[str, str]:
    """All but the embeddings and the first block on disk."""
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    tied = model.config.tie_word_embeddings
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            found |= {f"{name}.{index}": "disk" if index else "cpu" for index in range(len(module))}
    for name, module in model.named_modules():
        is_leaf = name and not list(module.children())
        if is_leaf and not any(f"{name}.".startswith(f"{block}.") for block in found):
            stays = (
                isinstance(module, torch.nn.Embedding)
                or (tied and module is model.get_output_embeddings())
                or not list(module.parameters())
            )
            found[name] = "cpu" if stays else "disk"
    return found


@pytest.fixture
def offloaded(checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], llm_tt.TransparentLlm]:
    """The checkpoint of that name, loaded with most of its weights on disk."""

    def load(name: str) -> llm_tt.TransparentLlm:
        folder = checkpoint(name)
        where = {"device_map": device_map(folder), "offload_folder": str(tmp_path)}
        with monkeypatch.context() as changed:
            changed.setattr(checkpoints, "resolve_device", lambda device: device)
            changed.setattr(checkpoints, "placement", lambda device: where)
            changed.setattr(torch.cuda, "device_count", lambda: 0)
            # Of float32, as on the CPU.
            return llm_tt.load_model(llm_tt.ModelSpec(name=str(folder), device="offload", dtype="float32"))

    return load


@pytest.mark.parametrize("name", NAMES)
def test_a_model_whose_weights_are_elsewhere_says_what_it_says_otherwise(name: str, offloaded: Callable, model: Callable) -> None:
    llm, here = offloaded(name), model(name)
    hf_model = llm._bridge.original_model
    assert is_offloaded(hf_model)
    assert not is_offloaded(here._bridge.original_model)
    away = {name for name, parameter in hf_model.named_parameters() if parameter.is_meta}
    assert len(away) > 10
    assert llm.info.device == "cpu"
    assert _OFFLOADED in llm.info.notes
    assert llm.info.attention == here.info.attention
    ids = token_ids(20)
    found = everything(llm.trace(ids))
    assert_equal(found, everything(here.trace(ids)), name)
    # What comes for a call goes with it.
    assert away <= {name for name, parameter in hf_model.named_parameters() if parameter.is_meta}
    assert torch.equal(llm.last_logits(ids), here.last_logits(ids))
    assert torch.equal(llm.unembedding([5, 9]), here.unembedding([5, 9]))
    if not capture.is_joint(here._bridge.blocks[0]):
        # Of a joint projection TransformerLens has views, and none of one that is elsewhere.
        assert llm.fingerprint() == here.fingerprint()
    assert llm.weight_bytes() == here.weight_bytes()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_it_continues_texts_reads_many_and_has_gradients(name: str, offloaded: Callable, model: Callable) -> None:
    ids = token_ids(12)
    answers = [
        {
            "continuation": [token.token_id for token in llm_tt.generate(llm, ids, 5)],
            "batch": [[token.token_id for token in tokens] for tokens in llm_tt.generate_batch(llm, [ids, ids[:7]], 4)],
            "scores": llm.score(
                [Ask(tuple(ids), (NextTokens(4, (5, 9)), NextTokens(11, (3,)))), Ask(tuple(ids[:6]), (NextTokens(5, (7,)),))]
            ),
            "next": llm.next_logits([ids, ids[::-1]]),
            "gradients": llm_tt.saliency(llm.trace(ids), -1, 5, methods=["gradient", "leave_one_out"]).methods,
        }
        for llm in (offloaded(name), model(name))
    ]
    assert_equal(answers[0], answers[1], name)


def test_where_weights_are(offloaded: Callable, model: Callable) -> None:
    ours, here = offloaded("llama")._bridge.original_model, model("llama")._bridge.original_model
    layer, same = ours.model.layers[1].self_attn.o_proj, here.model.layers[1].self_attn.o_proj
    assert layer.weight.is_meta
    weight = stored(layer, "weight")
    assert weight is not None
    assert torch.equal(weight, same.weight)
    assert stored(layer, "no such thing") is None
    assert home_of(layer) == home_of(ours) == torch.device("cpu")
    assert home_of(torch.nn.ReLU()) is None
    assert sum(weight.numel() for weight in weights_of(ours)) == sum(parameter.numel() for parameter in here.parameters())


def test_a_family_that_needs_copies_of_its_weights_is_refused(offloaded: Callable) -> None:
    with pytest.raises(
        ModelError, match=r"bloom.* cannot be shown with weights that are kept off the device: its attention has to be computed"
    ):
        offloaded("bloom")


# --- the device "offload"


def spec(folder: Path, **more: Any) -> llm_tt.ModelSpec:
    return llm_tt.ModelSpec(name="large", path=str(folder), device="offload", **more)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A pretended CUDA device, and what is free there and in main memory."""
    free = {"cuda:0": 1000, "cpu": 2**30}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(checkpoints, "available_bytes", lambda device: free[device])
    return free


def test_it_needs_a_gpu(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sentence = 'Device "offload" keeps in main memory what CUDA devices have no room for, but this machine has none. Use "auto" or "cpu".'
    with pytest.raises(ModelError) as caught:
        checkpoints.load_checkpoint(spec(checkpoint("llama")))
    assert str(caught.value) == sentence


def test_weights_leave_room_for_traces(one_gpu: dict[str, int]) -> None:
    assert checkpoints.resolve_device("offload") == "offload"
    assert checkpoints.placement("offload") == {"device_map": "auto", "max_memory": {0: 700, "cpu": 2**30}}


def test_weights_that_fit_nowhere_are_refused_before_they_are_read(checkpoint: Callable[[str], Path], one_gpu: dict[str, int]) -> None:
    one_gpu["cpu"] = 500
    with pytest.raises(OutOfMemoryError, match=r"large needs about [\d.]+ .B in float32, but this machine has 1\.5 KB free\."):
        checkpoints.load_checkpoint(spec(checkpoint("llama")))


def test_what_has_to_change_weights_is_refused(
    checkpoint: Callable[[str], Path], one_gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints.quantized, "require_bitsandbytes", lambda who: None)
    with pytest.raises(
        ModelError, match=r'^"quantization" of large cannot be had of weights that are kept in main memory \("device": "offload"\)'
    ):
        checkpoints.load_checkpoint(spec(checkpoint("llama"), quantization="8bit"))
    with pytest.raises(ModelError, match=r'^Adapter ".*" cannot be merged into weights that are kept in main memory'):
        checkpoints.load_checkpoint(llm_tt.ModelSpec(name="tuned", path=str(ADAPTER_DIR), base=str(MODEL_DIR), device="offload"))


def test_the_estimate_of_a_trace_is_that_of_the_same_model_elsewhere(offloaded: Callable, model: Callable) -> None:
    ours, here = offloaded("llama").info, model("llama").info
    assert memory.trace_bytes(ours, 200) == memory.trace_bytes(here, 200)
