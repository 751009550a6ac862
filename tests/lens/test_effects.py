"""Direct effects against plain Hugging Face models in float64, every part written out as a vector, normalised and unembedded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from direct_effects_by_hand import Expected, Head, brute_force
from families import token_ids
from own_activations import in_float64
from torch import Tensor

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.flow.graph import EdgeKind
from llm_tt.lens.effects import strongest
from llm_tt.models.transparent_llm import TransparentLlm

NAMES = (
    "gpt2",
    "opt",
    "llama",
    "gemma",
    "gemma2",
    "gpt_neox",
    "granite",
    "mixtral",
    "glm4",
    "cohere",
    "falcon",
    "deepseek_v3",
    "gpt_oss",
    "afmoe",
    "bitnet",
)
every_name = pytest.mark.parametrize("name", NAMES)
N_TOKENS = 9
TARGETS = (0, 4, 8)
TOKEN, CONTRAST = 5, 23


@pytest.fixture(scope="module")
def expected(plain: Callable, plain_run: Callable) -> Callable[[str, int, int, int | None], Expected]:
    return lambda name, target, token, contrast: brute_force(Head.of(plain(name)), plain_run(name, N_TOKENS), target, token, contrast)


def assert_close(actual: Any, wanted: Any, scale: float = 1.0) -> None:
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=3e-5 * scale)


# --- the numbers


@every_name
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("contrast", [None, CONTRAST], ids=["logit", "difference"])
def test_every_part_has_the_effect_of_its_vector(name: str, target: int, contrast: int | None, trace: Callable, expected: Callable) -> None:
    made: llm_tt.Trace = trace(name, N_TOKENS)
    effects = llm_tt.direct_effects(made, target, TOKEN, contrast)
    exact: Expected = expected(name, target, TOKEN, contrast)
    scale = max(1.0, float(exact.heads.abs().max()))
    assert effects.heads.shape == (made.n_layers, made.model.info.n_heads, N_TOKENS)
    assert effects.heads.dtype == effects.ffn.dtype == effects.attention_bias.dtype == np.float32
    assert np.abs(effects.heads).max() > 1e-3
    assert_close(effects.heads, exact.heads, scale)
    assert_close(effects.attention_bias, exact.attention_bias, scale)
    assert_close(effects.ffn, exact.ffn, scale)
    assert_close(effects.embedding, exact.embedding, scale)
    assert_close(effects.biases, exact.biases, scale)
    assert_close(effects.logit, exact.logit, scale)
    for layer in range(made.n_layers):
        neurons = llm_tt.neuron_effects(made, layer, target, TOKEN, contrast)
        assert neurons.dtype == np.float32
        assert_close(neurons, exact.neurons[layer], scale)


@every_name
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("contrast", [None, CONTRAST], ids=["logit", "difference"])
def test_neurons_and_the_output_bias_have_the_effect_of_their_block(
    name: str, target: int, contrast: int | None, trace: Callable, expected: Callable
) -> None:
    made: llm_tt.Trace = trace(name, N_TOKENS)
    block, exact = llm_tt.direct_effects(made, target, TOKEN, contrast), expected(name, target, TOKEN, contrast)
    for layer in range(made.n_layers):
        neurons = llm_tt.neuron_effects(made, layer, target, TOKEN, contrast)
        scale = max(1.0, float(np.abs(neurons).max()))
        assert_close(neurons.sum(dtype=np.float64) + float(exact.ffn_bias[layer]), block.ffn[layer], scale)
    if name in ("gpt2", "llama", "gpt_oss"):
        assert float(exact.ffn_bias.abs().max()) > 1e-3


def test_the_strongest_neurons_are_those_of_the_largest_size() -> None:
    effects = np.array([0.1, -3.0, 2.0, 0.0, 3.0, -2.0], np.float32)
    assert strongest(effects, 4) == [1, 4, 2, 5]
    assert (strongest(effects, 0), strongest(effects, -1), len(strongest(effects, 99))) == ([], [], 6)


def test_effects_of_neurons_are_computed_once_and_are_the_callers_own(trace: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made: llm_tt.Trace = trace("llama", N_TOKENS)
    first = llm_tt.neuron_effects(made, 1, -1, 11, 12)
    monkeypatch.setattr(type(made.model), "neurons", lambda *arguments: pytest.fail("computed again"))
    changed = llm_tt.neuron_effects(made, 1, N_TOKENS - 1, "id:11", 12)
    changed[:] = 0
    assert llm_tt.neuron_effects(made, -2, -1, 11, 12).tolist() == first.tolist() != changed.tolist()


@every_name
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("contrast", [None, CONTRAST], ids=["logit", "difference"])
def test_the_parts_sum_to_the_plain_models_logit(name: str, target: int, contrast: int | None, trace: Callable, expected: Callable) -> None:
    effects = llm_tt.direct_effects(trace(name, N_TOKENS), target, TOKEN, contrast)
    summands = np.abs([part.effect for part in effects.parts()])
    exact: Expected = expected(name, target, TOKEN, contrast)
    # Relative to what is summed: a logit may be near 0.
    for value in (effects.total, effects.logit, sum(part.effect for part in effects.parts())):
        assert abs(value - exact.logit) <= 1e-4 * max(abs(exact.logit), summands.max())


def test_what_is_capped_is_told(trace: Callable, plain_run: Callable) -> None:
    logits = plain_run("gemma2", N_TOKENS).logits[-1]
    effects = llm_tt.direct_effects(trace("gemma2", N_TOKENS), -1, TOKEN, CONTRAST)
    assert effects.capped_logit == pytest.approx(float(logits[TOKEN] - logits[CONTRAST]), abs=1e-4)
    assert abs(effects.capped_logit - effects.logit) > 1e-3
    assert llm_tt.direct_effects(trace("llama", N_TOKENS)).capped_logit is None


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_parts_are_computed_in_float32(name: str, dtype: str, model: Callable) -> None:
    made: llm_tt.Trace = model(name, dtype).trace(token_ids(N_TOKENS))
    effects = llm_tt.direct_effects(made, -1, TOKEN, CONTRAST)
    llm = made.model
    row = llm.unembedding([TOKEN, CONTRAST]).double()
    whole = made.blocks[-1].resid_post[-1].double()
    centre = llm.info.norm == "layer"
    whole = whole - whole.mean() if centre else whole
    weight = llm.final_norm(torch.ones(1, llm.info.d_model) * torch.tensor([1.0, -1.0]).repeat(llm.info.d_model // 2)).double()
    weight = (weight - llm.final_norm(torch.zeros(1, llm.info.d_model)).double()) * torch.tensor([1.0, -1.0]).repeat(
        llm.info.d_model // 2
    ).double()

    def exact(parts: Tensor) -> Tensor:
        parts = parts - parts.mean(-1, keepdim=True) if centre else parts
        return (parts / (whole.square().mean() + llm.info.norm_eps).sqrt() * weight[0]) @ (row[0] - row[1])

    layers = tuple(in_float64(made))
    assert_close(effects.heads, torch.stack([exact(reference.attention_parts(layer)[-1]).T for layer in layers]), 10)
    assert_close(effects.ffn, torch.stack([exact(layer.ffn_out[-1]) for layer in layers]), 10)
    assert effects.total == pytest.approx(effects.logit, rel=0.05, abs=0.2)


@pytest.mark.parametrize("name", ["gpt2", "granite", "cohere", "gemma2", "gpt_neox"])
def test_rows_of_the_unembedding_are_what_it_answers_to_every_direction(name: str, model: Callable) -> None:
    llm: TransparentLlm = model(name)
    wanted = [3, 40, 7]
    torch.testing.assert_close(llm.unembedding(wanted), TransparentLlm.unembedding(llm, wanted), rtol=1e-5, atol=1e-6)


# --- edges


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral"])
def test_edges_of_the_targets_column_have_effects_and_no_others(name: str, trace: Callable, expected: Callable) -> None:
    made: llm_tt.Trace = trace(name, N_TOKENS)
    graph = llm_tt.extract_routes(made, -1, 0.005)
    exact: Expected = expected(name, N_TOKENS - 1, TOKEN, CONTRAST)
    column = llm_tt.direct_effects(made, -1, TOKEN, CONTRAST).of_edges(graph)
    assert column.dtype == np.float32
    seen = set()
    for edge, effect in zip(graph.edges(), column, strict=True):
        if edge.destination != graph.target:
            assert np.isnan(effect)
            continue
        seen.add(edge.kind)
        wanted = {
            EdgeKind.ATTENTION: float(exact.heads[edge.layer, :, edge.source].sum()),
            EdgeKind.RESIDUAL_TO_MID: exact.pre[edge.layer],
            EdgeKind.RESIDUAL_TO_POST: exact.mid[edge.layer],
            EdgeKind.INTO_FFN: float(exact.ffn[edge.layer]),
            EdgeKind.OUT_OF_FFN: float(exact.ffn[edge.layer]),
        }[edge.kind]
        assert_close(effect, wanted, 10)
    assert seen == set(EdgeKind)
    assert np.isnan(column).any()


def test_a_graph_of_another_target_has_no_effects(trace: Callable) -> None:
    made: llm_tt.Trace = trace("gpt2", N_TOKENS)
    assert np.isnan(llm_tt.direct_effects(made, 3).of_edges(llm_tt.extract_routes(made, 5))).all()


# --- what is asked, and what is told


def test_without_a_token_the_models_first_choice_is_explained(trace: Callable, plain_run: Callable) -> None:
    effects = llm_tt.direct_effects(trace("gpt2", N_TOKENS), -2)
    logits = plain_run("gpt2", N_TOKENS).logits[-2]
    assert (effects.target, effects.token_id, effects.contrast_id) == (N_TOKENS - 2, int(logits.argmax()), None)
    assert effects.logit == pytest.approx(float(logits.max()), abs=1e-4)


def test_nothing_is_written_from_the_future(trace: Callable) -> None:
    heads = llm_tt.direct_effects(trace("llama", N_TOKENS), 3, TOKEN).heads
    assert (heads[:, :, 4:] == 0).all()
    assert (heads[:, :, :4] != 0).any()


def test_an_answer_is_computed_once(trace: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made: llm_tt.Trace = trace("gpt2", N_TOKENS)
    first = llm_tt.direct_effects(made, -1, 11, 12)
    monkeypatch.setattr(type(made.model), "attention_output", lambda *arguments: pytest.fail("computed again"))
    assert llm_tt.direct_effects(made, N_TOKENS - 1, 11, 12) is first


@pytest.fixture(scope="module")
def demo() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace("When Mary and John went to the store, John gave a drink to")


def test_strongest_parts_are_the_ends_of_a_sorted_list(demo: llm_tt.Trace) -> None:
    effects = llm_tt.direct_effects(demo, token=" Mary", contrast=" John")
    assert effects.of == "·Mary − ·John"
    raising, lowering = effects.strongest(3)
    values = sorted(part.effect for part in effects.parts())
    assert [part.effect for part in raising] == values[::-1][:3]
    assert [part.effect for part in lowering] == values[:3]
    assert values[0] < 0 < values[-1]
    everything = effects.strongest(1000)
    assert len(everything[0]) + len(everything[1]) == sum(value != 0 for value in values)
    names = [part.name for part in effects.parts()]
    assert len(set(names)) == len(names)
    assert {"embedding", "L2 H1", "FFN L3", "final biases"} <= set(names)
    assert next(part.effect for part in effects.parts() if part.name == "L2 H1") == pytest.approx(float(effects.heads[2, 1].sum()))


def test_an_answer_is_plain_values_too(trace: Callable) -> None:
    effects = llm_tt.direct_effects(trace("gpt2", N_TOKENS), -1, TOKEN, CONTRAST)
    told = json.loads(json.dumps(effects.to_dict(), allow_nan=False))
    assert told["token"] == {"id": TOKEN, "text": effects.token_text}
    assert told["contrast"]["id"] == CONTRAST
    assert told["sum"] == effects.total
    summed = np.sum(told["heads"]) + np.sum(told["attention_bias"]) + np.sum(told["ffn"]) + told["embedding"] + told["biases"]
    assert summed == pytest.approx(told["logit"], abs=1e-3)


# --- what is refused


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            {"token": " Mary John"},
            '" Mary John" is 2 tokens: " Mary", " John". Name a single one, by its text or, as in id:42, by its number.',
        ),
        ({"token": ""}, 'The text of a token is empty. Write its text, as in " Mary", or its number, as in id:42.'),
        ({"token": 1523}, "Token id 1523 does not exist: the vocabulary of demo has ids 0 to 1522."),
        ({"token": -1}, "Token id -1 does not exist: the vocabulary of demo has ids 0 to 1522."),
        (
            {"token": " Mary", "contrast": " Mary"},
            'Token and contrast are both " Mary", so that their difference is 0. Choose another contrast.',
        ),
        ({"target": 15}, "Position 15 does not exist: the prompt has 15 tokens, positions 0 to 14."),
    ],
)
def test_what_cannot_be_explained_gets_a_sentence(question: dict[str, Any], message: str, demo: llm_tt.Trace) -> None:
    with pytest.raises(RequestError) as caught:
        llm_tt.direct_effects(demo, **question)
    assert str(caught.value) == message


def test_neurons_of_a_layer_that_is_not_there(demo: llm_tt.Trace) -> None:
    with pytest.raises(RequestError, match=r"Layer 4 does not exist: the model has 4 layers, 0 to 3\."):
        llm_tt.neuron_effects(demo, 4)
