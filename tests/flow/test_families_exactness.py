"""Of every kind of block: contributions, routes and logits equal the brute force on the plain Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import reference
import torch
from families import CHECKPOINTS, token_ids
from own_activations import in_float64
from plain_runs import NAMES
from reference import Contributions, Run
from test_routes import as_reference, assert_same
from torch import Tensor

import llm_tt

KINDS: dict[str, tuple[str, ...]] = {
    "parallel": ("gpt_neox", "gptj", "codegen", "falcon", "falcon_new_decoder", "phi", "cohere", "stablelm_parallel"),
    "sequential though the family is parallel": ("gpt_neox_sequential", "falcon_sequential"),
    "a norm after attention and FFN": ("gemma2", "gemma3_text", "olmo2", "glm4"),
    "multiplied": ("granite", "granitemoe"),
    "attention sinks": ("gpt_oss",),
    "latent attention": ("deepseek_v2", "deepseek_v3"),
    "mixture of experts": ("mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe"),
    "ALiBi": ("bloom", "mpt", "falcon_alibi"),
    "one projection to queries, keys and values": ("phi3", "gpt_bigcode", "gpt_bigcode_multi_head"),
    "clipped values": ("mpt_clipped", "olmo_clipped"),
    "gated attention": ("afmoe",),
}
CHECKED = [name for names in KINDS.values() for name in names]
LENGTHS = (1, 2, 7, 20)
every_kind = pytest.mark.parametrize("name", CHECKED)
every_length = pytest.mark.parametrize("n_tokens", LENGTHS)
pytestmark = pytest.mark.slow


def off(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.double() - expected).abs().max())


@every_kind
@every_length
def test_contributions_equal_brute_force(name: str, n_tokens: int, trace: Callable, plain_contributions: Callable) -> None:
    made: llm_tt.Trace = trace(name, n_tokens)
    expected: Contributions = plain_contributions(name, n_tokens)
    for layer in range(len(expected.edges)):
        attention, ffn = llm_tt.attention_contributions(made, layer), llm_tt.ffn_contributions(made, layer)
        assert off(attention.edges, expected.edges[layer]) <= 1e-5
        assert off(attention.residual, expected.attention_residual[layer]) <= 1e-5
        assert off(ffn.ffn, expected.ffn[layer]) <= 1e-5
        assert off(ffn.residual, expected.ffn_residual[layer]) <= 1e-5


@every_kind
@every_length
def test_neuron_contributions_equal_brute_force(name: str, n_tokens: int, trace: Callable, plain_run: Callable) -> None:
    run: Run = plain_run(name, n_tokens)
    for layer, activations in enumerate(run.layers):
        expected = reference.neurons(activations)
        assert trace(name, n_tokens).model.info.ffn[layer].n_neurons == expected.shape[1]
        for position in range(n_tokens):
            actual = llm_tt.neuron_contributions(trace(name, n_tokens), layer, position)
            assert off(actual, expected[position]) <= 1e-5
            assert ((actual == 0) | (activations.neurons[position] != 0)).all(), "a neuron of an expert that the token was not sent to"


@every_kind
@every_length
@pytest.mark.parametrize("renormalize", [True, False])
def test_routes_equal_those_cut_from_the_full_brute_force_graph(
    name: str, n_tokens: int, renormalize: bool, trace: Callable, plain_contributions: Callable
) -> None:
    expected: Contributions = plain_contributions(name, n_tokens)
    for wanted in (0.01, 0.04):
        threshold = expected.clear_threshold(wanted, 1e-5)
        graph = llm_tt.extract_routes(trace(name, n_tokens), -1, threshold, renormalize)
        assert_same(as_reference(graph), reference.routes(expected, n_tokens - 1, threshold, renormalize))


@every_kind
@every_length
def test_logits_and_activations_equal_those_of_plain_transformers(name: str, n_tokens: int, trace: Callable, plain_run: Callable) -> None:
    run: Run = plain_run(name, n_tokens)
    made: llm_tt.Trace = trace(name, n_tokens)
    for position in range(n_tokens):
        assert off(made.logits(position), run.logits[position]) <= 1e-4
    for layer, expected in enumerate(run.layers):
        block = made.blocks[layer]
        for actual, wanted in (
            (made.resid_pre(layer), expected.pre),
            (block.resid_mid, expected.mid),
            (block.resid_post, expected.post),
            (block.attn_out, expected.attn_out),
            (block.ffn_out, expected.ffn_out),
            (block.pattern.rows(range(n_tokens)), expected.alpha),
        ):
            assert off(actual, wanted) <= 2e-5


@every_kind
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_activations_are_summed_in_float32(name: str, dtype: str, model: Callable) -> None:
    made: llm_tt.Trace = model(name, dtype).trace(token_ids(20))
    assert made.blocks[0].resid_mid.dtype == getattr(torch, dtype)
    layers = tuple(in_float64(made))
    expected = Contributions.of(layers)
    for layer, activations in enumerate(layers):
        attention, ffn = llm_tt.attention_contributions(made, layer), llm_tt.ffn_contributions(made, layer)
        assert off(attention.edges, expected.edges[layer]) <= 1e-5
        assert off(attention.residual, expected.attention_residual[layer]) <= 1e-5
        assert off(ffn.ffn, expected.ffn[layer]) <= 1e-5
        assert off(llm_tt.neuron_contributions(made, layer, -1), reference.neurons(activations)[-1]) <= 1e-5
    threshold = expected.clear_threshold(0.04, 1e-5)
    assert_same(as_reference(llm_tt.extract_routes(made, -1, threshold)), reference.routes(expected, 19, threshold, True))


def test_every_kind_of_block_that_the_brute_force_knows_is_tried() -> None:
    assert {CHECKPOINTS[name]().model_type for name in CHECKED} <= set(NAMES)
    assert len({CHECKPOINTS[name]().model_type for name in CHECKED}) >= 20
