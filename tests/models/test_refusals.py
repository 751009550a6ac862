"""A model that cannot be decomposed exactly is refused, in one clear sentence; nothing is shown that would be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import MISREAD, byte_level_tokenizer, opt_config, save_checkpoint, save_family, token_ids

import llm_tt
from llm_tt.errors import ModelError
from llm_tt.models import identities
from llm_tt.models.bridge import BridgeLlm
from llm_tt.models.patterns import RecomputedPattern, StoredPattern
from llm_tt.models.transparent_llm import Neurons


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        llm_tt.load_model(str(folder))
    text = str(caught.value)
    assert str(folder) in text, "the message names the model"
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("modernbert-decoder", "it passes its last representation through a dense layer with an activation before the unembedding"),
        ("openai-gpt", "it normalises the residual stream after every block"),
        ("jetmoe", "it routes its attention heads through experts"),
        ("glm_moe_dsa", "it lets an indexer of its own pick the tokens that attention sees"),
        ("gemma4_text", "a block that scales the stream, or adds something beside attention and FFN"),
        ("falcon_new_decoder", "TransformerLens cannot take"),
        ("phi_qk_norm", "TransformerLens cannot take"),
        ("gpt_bigcode_multi_head", "TransformerLens cannot take"),
        ("qwen3_next", "no softmax attention in layer 0"),
        ("hrm_text", "is not a stack of transformer blocks"),
    ],
)
def test_families_that_cannot_be_decomposed_are_refused_by_their_type(name: str, reason: str, tmp_path: Path) -> None:
    """LM-TT issue 24: KeyError hook_resid_mid."""
    folder = save_family(name, tmp_path)
    text = refusal(folder)
    assert reason in text
    assert f"model type {json.loads((folder / 'config.json').read_text())['model_type']!r}" in text


def test_opt_350m_is_refused(tmp_path: Path) -> None:
    text = refusal(save_checkpoint(tmp_path, opt_config(do_layer_norm_before=False), byte_level_tokenizer()))
    assert "(model type 'opt') normalises after its blocks" in text


def test_blocks_that_no_recipe_covers_are_refused(checkpoint: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BridgeLlm.attention_output
    monkeypatch.setattr(BridgeLlm, "attention_output", lambda self, layer: (original(self, layer)[0][:, :-1], None))
    assert "its blocks are built in a way that no recipe covers" in refusal(checkpoint("gpt_neo"))


def _drop_bias(weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, None]:
    return weight, None


def _scale(weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    return weight * 1.01, bias


def _drop_neuron_bias(made: Neurons) -> Neurons:
    return Neurons(made.activations, None)


def _scale_neurons(made: Neurons) -> Neurons:
    return Neurons(made.activations * 1.01, made.bias)


@pytest.mark.parametrize(
    ("method", "what", "spoil"),
    [
        ("attention_output", "attention parts", lambda made: _drop_bias(*made)),
        ("attention_output", "attention parts", lambda made: _scale(*made)),
        ("neurons", "neuron parts", _drop_neuron_bias),
        ("neurons", "neuron parts", _scale_neurons),
        ("neuron_output", "neuron parts", lambda made: made * 1.01),
    ],
)
def test_parts_that_do_not_add_up_are_refused_with_layer_error_and_cause(
    method: str, what: str, spoil: Callable, checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(BridgeLlm, method)

    def spoiled(self: BridgeLlm, layer: int, *rest: Any) -> Any:
        return spoil(original(self, layer, *rest)) if layer == 1 else original(self, layer, *rest)

    monkeypatch.setattr(BridgeLlm, method, spoiled)
    text = refusal(checkpoint("gpt2"))
    assert "'gpt2'" in text
    assert f"layer 1: {what} are off by " in text
    assert "(allowed 1e-04)" in text
    assert "Likely cause: an adapter that is not merged" in text


def test_neurons_before_their_activation_are_refused(checkpoint: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BridgeLlm.neurons

    def before(self: BridgeLlm, layer: int, ffn_input: torch.Tensor) -> Neurons:
        made = original(self, layer, ffn_input)
        return Neurons(made.activations + 0.1, made.bias)

    monkeypatch.setattr(BridgeLlm, "neurons", before)
    assert "layer 0: neuron parts are off by" in refusal(checkpoint("llama"))


def test_attention_to_future_tokens_is_refused(checkpoint: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (StoredPattern, RecomputedPattern):
        original = kind.rows

        def leaking(self: Any, positions: Any, original: Callable = original) -> torch.Tensor:
            rows = original(self, positions)
            return rows + 2e-4 * torch.ones_like(rows).triu(1) if rows.shape[1] == rows.shape[2] else rows

        monkeypatch.setattr(kind, "rows", leaking)
    text = refusal(checkpoint("gpt2"))
    assert "future tokens are off by" in text or "attention parts are off by" in text


def test_a_scale_before_the_logits_is_refused(checkpoint: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BridgeLlm.unembed
    monkeypatch.setattr(BridgeLlm, "unembed", lambda self, x: original(self, x) * 0.5)
    text = refusal(checkpoint("gemma"))
    assert "the logits are off by" in text
    assert "a soft cap or a scale" in text


def test_a_layer_that_yields_nan_is_refused(checkpoint: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BridgeLlm.attention_output
    monkeypatch.setattr(BridgeLlm, "attention_output", lambda self, layer: (original(self, layer)[0] * float("nan"), None))
    assert "attention parts are off by nan" in refusal(checkpoint("gpt2"))


@pytest.mark.parametrize("name", MISREAD)
def test_a_setting_that_transformerlens_ignores_is_refused_or_got_right(name: str, checkpoint: Callable, plain_run: Callable) -> None:
    """All identities hold among the wrong numbers; only the plain model tells."""
    try:
        llm = llm_tt.load_model(str(checkpoint(name)))
    except ModelError as error:
        text = str(error)
    else:
        made = llm.trace(token_ids(20)).logits(-1)
        text = "" if float((made - plain_run(name, 20).logits[-1]).abs().max()) <= 1e-4 else "other logits than the plain model's"
    assert text == "" or ("logits" in text and str(checkpoint(name)) in text)


def test_the_report_tells_which_identity_fails_first() -> None:
    def report(**errors: float) -> identities.IdentityReport:
        good = {"attention": 1e-7, "neurons": 1e-7, "residual": 1e-7, "future": 0.0}
        layers = (identities.LayerErrors(0, **good), identities.LayerErrors(1, **{**good, **errors}))
        return identities.IdentityReport(12, 1e-4, layers, logits=1e-7)

    assert report().failure() is None
    assert report().worst == 1e-7
    for what, words in (
        ("attention", "attention parts"),
        ("neurons", "neuron parts"),
        ("residual", "residual stream parts"),
        ("future", "future tokens"),
    ):
        failure = report(**{what: 0.02}).failure()
        assert failure is not None
        assert failure.startswith(f"layer 1: {words} are off by 2.0e-02 (allowed 1e-04). Likely cause: ")
        assert report(**{what: 0.02}).worst == 0.02
        assert report(**{what: float("nan")}).failure() is not None


def test_a_context_shorter_than_the_checks_prompt_is_no_obstacle(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, opt_config(max_position_embeddings=5), byte_level_tokenizer())
    assert identities.check(llm_tt.load_model(str(folder))).n_tokens == 5
