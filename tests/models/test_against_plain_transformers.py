"""A trace holds what the plain Hugging Face model computes, and its parts add up to it (identities 1, 2 and 4 of docs/method.md)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import ATTENTION_VARIANTS, CORE, LENGTHS, token_ids
from reference import Run
from torch import Tensor

import llm_tt
from llm_tt.models import identities
from llm_tt.models.bridge import BridgeLlm

every_family = pytest.mark.parametrize("name", CORE)
every_length = pytest.mark.parametrize("n_tokens", LENGTHS)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", [*CORE, *ATTENTION_VARIANTS])
@every_length
def test_logits_equal_those_of_plain_transformers(name: str, n_tokens: int, trace: Callable, plain_run: Callable) -> None:
    expected: Tensor = plain_run(name, n_tokens).logits
    made: llm_tt.Trace = trace(name, n_tokens)
    for position in range(n_tokens):
        logits = made.logits(position)
        assert logits.dtype == torch.float32
        assert logits.shape == (made.model.info.d_vocab,)
        assert float((logits - expected[position]).abs().max()) <= 1e-4
    assert float((made.model.last_logits(made.token_ids) - expected[-1]).abs().max()) <= 1e-4


@every_family
@every_length
def test_unembedding_the_last_residual_gives_the_logits(name: str, n_tokens: int, trace: Callable, plain_run: Callable) -> None:
    made: llm_tt.Trace = trace(name, n_tokens)
    llm = made.model
    logits = llm.unembed(llm.final_norm(made.blocks[-1].resid_post))
    assert relative(logits, plain_run(name, n_tokens).logits) <= 1e-5
    assert relative(logits[-1], llm.last_logits(made.token_ids)) <= 1e-5
    assert torch.allclose(made.logits(-1), logits[-1], atol=1e-5)


@every_family
@every_length
def test_activations_equal_those_of_plain_transformers(name: str, n_tokens: int, trace: Callable, plain_run: Callable) -> None:
    run: Run = plain_run(name, n_tokens)
    made: llm_tt.Trace = trace(name, n_tokens)
    assert made.n_layers == len(run.layers)
    for layer, expected in enumerate(run.layers):
        block = made.blocks[layer]
        n_heads = len(expected.values)
        assert relative(made.resid_pre(layer), expected.pre) <= 1e-5
        assert relative(block.resid_mid, expected.mid) <= 1e-5
        assert relative(block.resid_post, expected.post) <= 1e-5
        assert relative(block.attn_out, expected.attn_out) <= 1e-5
        assert relative(block.ffn_out, expected.ffn_out) <= 1e-5
        assert relative(block.values.repeat_interleave(n_heads // len(block.values), 0), expected.values) <= 1e-5
        assert float((block.pattern.rows(range(n_tokens)) - expected.alpha).abs().max()) <= 1e-5


@every_family
def test_weights_equal_those_of_plain_transformers(name: str, model: Callable, plain_run: Callable) -> None:
    for layer, expected in enumerate(plain_run(name, 2).layers):
        for (weight, bias), expected_weight, expected_bias in (
            (model(name).attention_output(layer), expected.w_o, expected.b_o),
            ((model(name).neuron_output(layer), model(name).neurons(layer, torch.zeros(1, 32)).bias), expected.w_out, expected.b_out),
        ):
            assert weight.dtype == torch.float32
            assert torch.equal(weight.double(), expected_weight)
            assert torch.equal(
                torch.zeros(()) if bias is None else bias.double(), expected_bias if bias is not None else expected_bias.sum()
            )


@every_family
@every_length
def test_attention_parts_and_their_bias_are_what_attention_adds(name: str, n_tokens: int, trace: Callable, plain_run: Callable) -> None:
    made: llm_tt.Trace = trace(name, n_tokens)
    for layer, expected in enumerate(plain_run(name, n_tokens).layers):
        weight, bias = made.model.attention_output(layer)
        values = made.blocks[layer].values.repeat_interleave(made.model.info.n_heads // made.model.info.n_kv_heads, 0)
        parts = torch.einsum("hij,hje,hed->id", made.blocks[layer].pattern.rows(range(n_tokens)), values, weight)
        whole = parts if bias is None else parts + bias
        assert relative(whole, expected.attn_out) <= 1e-5
        assert relative(whole, expected.mid - expected.pre) <= 1e-5


@every_family
@every_length
def test_neuron_parts_and_their_bias_are_what_the_ffn_adds(name: str, n_tokens: int, trace: Callable, plain_run: Callable) -> None:
    made: llm_tt.Trace = trace(name, n_tokens)
    for layer, expected in enumerate(plain_run(name, n_tokens).layers):
        neurons = made.model.neurons(layer, made.ffn_input(layer))
        whole = neurons.activations @ made.model.neuron_output(layer) + (0 if neurons.bias is None else neurons.bias)
        assert relative(whole, expected.ffn_out) <= 1e-5
        assert relative(whole, expected.post - expected.mid) <= 1e-5


@every_family
def test_neurons_are_taken_after_activation_and_gate(name: str, trace: Callable, plain_run: Callable) -> None:
    """LM-TT's neurons are the ones before the activation."""
    made: llm_tt.Trace = trace(name, 20)
    for layer, expected in enumerate(plain_run(name, 20).layers):
        some = made.model.neurons(layer, made.ffn_input(layer)[[19, 4]]).activations
        assert some.dtype == torch.float32
        assert relative(some, expected.neurons[[19, 4]]) <= 1e-5
        if made.model.info.family == "opt":
            assert float(some.min()) == 0, "OPT's neurons are behind a ReLU"


@pytest.mark.parametrize("name", CORE)
def test_parts_that_forget_a_bias_would_be_noticed(name: str, model: Callable) -> None:
    """The checkpoints are such that the identities mean something."""
    for layer in range(model(name).info.n_layers):
        trace = model(name).trace(token_ids(7))
        for out, bias in (
            (trace.blocks[layer].attn_out, model(name).attention_output(layer)[1]),
            (trace.blocks[layer].ffn_out, model(name).neurons(layer, trace.ffn_input(layer)).bias),
        ):
            if bias is not None:
                assert relative(out - bias, out) > 0.05


@every_family
def test_the_check_at_load_measures_the_identities_far_below_its_tolerance(name: str, model: Callable) -> None:
    report = identities.check(model(name))
    assert report.failure() is None
    assert 0 < report.worst <= 1e-5
    assert len(report.layers) == model(name).info.n_layers
    assert report.n_tokens == 12


@pytest.mark.parametrize("name", CORE)
def test_model_info_tells_the_facts_of_the_checkpoint(name: str, model: Callable, plain: Callable) -> None:
    info, hf_model = model(name).info, plain(name)
    config = hf_model.config
    assert info.family == config.model_type
    assert info.n_layers == config.num_hidden_layers
    assert info.n_heads == config.num_attention_heads
    assert info.n_kv_heads == getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert info.d_model == config.hidden_size
    assert info.d_head == (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    assert info.d_vocab == config.vocab_size
    assert info.n_ctx == config.max_position_embeddings
    assert info.n_neurons == {"gpt2": 128}.get(name, 64)
    assert info.n_params == hf_model.num_parameters()
    assert info.dtype == "float32"
    assert info.device == "cpu"
    assert info.norm == ("layer" if name in ("gpt2", "gpt_neo", "opt") else "rms")
    eps = next((getattr(config, key) for key in ("rms_norm_eps", "layer_norm_epsilon") if hasattr(config, key)), 1e-5)
    assert info.norm_eps == pytest.approx(eps)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
@every_family
def test_half_precision_models_load_and_predict_about_the_same(
    name: str, dtype: str, tolerance: float, model: Callable, trace: Callable
) -> None:
    half = model(name, dtype).trace(token_ids(20))
    assert half.blocks[1].attn_out.dtype == getattr(torch, dtype)
    assert half.blocks[1].pattern.rows([19]).dtype == torch.float32
    assert half.logits(-1).dtype == torch.float32
    assert relative(half.logits(-1), trace(name, 20).logits(-1)) < tolerance


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "llama"])
def test_the_weights_are_held_once(name: str, checkpoint: Callable, plain: Callable) -> None:
    """TransformerLens copies queries, keys and values out of joint projections."""
    llm = llm_tt.load_model(str(checkpoint(name)))
    assert isinstance(llm, BridgeLlm)
    plain_bytes = sum(tensor.nbytes for tensor in [*plain(name).parameters(), *plain(name).buffers()])
    zero_bias = 4 * llm.info.d_vocab
    assert llm.weight_bytes() <= plain_bytes + zero_bias
    fused = llm.trace(token_ids(20))
    llm.use_eager_attention()
    eager = llm.trace(token_ids(20))
    assert llm.info.attention == "eager"
    assert relative(eager.blocks[-1].resid_post, fused.blocks[-1].resid_post) <= 1e-5
    assert float((eager.blocks[1].pattern.rows(range(20)) - fused.blocks[1].pattern.rows(range(20))).abs().max()) <= 1e-5
