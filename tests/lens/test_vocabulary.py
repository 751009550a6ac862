"""The lens against plain Hugging Face modules in float64, and against a head whose weights are written down."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from affine import AffineLlm
from families import N_VOCAB, token_ids
from torch import Tensor, nn

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.lens import vocabulary

# gpt2 and opt: LayerNorm with bias; llama: RMS norm; gemma: RMS norm whose weight is stored as w - 1.
heads = pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "gemma"])
normalized = pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "raw"])

_NORMS = {"gpt2": "transformer.ln_f", "opt": "model.decoder.final_layer_norm", "llama": "model.norm", "gemma": "model.norm"}
D_MODEL = 32


def final_norm(hf_model: Any) -> nn.Module:
    return hf_model.get_submodule(_NORMS[hf_model.config.model_type])


def own_logits(hf_model: Any, vectors: Tensor, normalize: bool = True) -> Tensor:
    with torch.no_grad():
        return hf_model.lm_head(final_norm(hf_model)(vectors) if normalize else vectors)


def constant(hf_model: Any, normalize: bool) -> Tensor:
    """[V] float64: the logits that belong to no part of the residual stream."""
    result = torch.zeros(N_VOCAB, dtype=torch.float64)
    norm_bias = getattr(final_norm(hf_model), "bias", None)
    if normalize and norm_bias is not None:
        result += hf_model.lm_head.weight.double() @ norm_bias.double()
    if hf_model.lm_head.bias is not None:
        result += hf_model.lm_head.bias.double()
    return result.detach()


def own_effects(hf_model: Any, part: Tensor, whole: Tensor, normalize: bool = True) -> Tensor:
    """[V] float64: the part under the norm of the whole, written out, times the rows of the unembedding."""
    part, whole = part.double(), whole.double()
    if normalize:
        norm = final_norm(hf_model)
        weight = norm.weight.detach().double()
        if hf_model.config.model_type == "gemma":
            weight = 1 + weight
        if isinstance(norm, nn.LayerNorm):
            part = (part - part.mean()) / torch.sqrt(((whole - whole.mean()) ** 2).mean() + norm.eps)
        else:
            eps = getattr(norm, "variance_epsilon", None) or norm.eps
            part = part / torch.sqrt((whole**2).mean() + eps)
        part = part * weight
    return (hf_model.lm_head.weight.double() @ part).detach()


def ranks_by_sorting(scores: Tensor) -> Tensor:
    """[V]: the place of each token when all are sorted by falling score; scores without ties."""
    places = torch.empty(len(scores), dtype=torch.long)
    places[scores.argsort(descending=True)] = torch.arange(1, len(scores) + 1)
    return places


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, D_MODEL, generator=torch.Generator().manual_seed(seed))


# --- logits


@heads
@normalized
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)], ids=str)
def test_logits_are_what_the_models_own_norm_and_unembedding_give(
    name: str, normalize: bool, shape: tuple[int, ...], model: Callable, plain: Callable
) -> None:
    given = vectors(*shape)
    result = vocabulary.logits(model(name), given, normalize)
    assert result.shape == (*shape, N_VOCAB)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, own_logits(plain(name), given, normalize), rtol=1e-5, atol=1e-5)


# --- effects


@heads
@normalized
def test_effects_of_all_parts_and_the_biases_add_up_to_the_models_logits(
    name: str, normalize: bool, trace: Callable, plain: Callable, plain_run: Callable
) -> None:
    traced = trace(name, 20)
    for position in (0, 7, 19):
        parts = [traced.embedding[position]]
        for block in traced.blocks:
            parts += [block.attn_out[position], block.ffn_out[position]]
        whole = traced.blocks[-1].resid_post[position]
        effects = vocabulary.effects(traced.model, torch.stack(parts), whole, normalize)
        assert effects.shape == (1 + 2 * traced.n_layers, N_VOCAB)
        total = effects.double().sum(0) + constant(plain(name), normalize)
        own = plain_run(name, 20)
        expected = own.logits[position] if normalize else own_logits(plain(name), own.layers[-1].post[position].float(), False).double()
        assert (total - expected).abs().max() <= 1e-4


@heads
@normalized
def test_effects_are_those_of_the_frozen_norm_written_out(name: str, normalize: bool, model: Callable, plain: Callable) -> None:
    part, whole = vectors(seed=1), vectors(seed=2)
    result = vocabulary.effects(model(name), part, whole, normalize)
    torch.testing.assert_close(result.double(), own_effects(plain(name), part, whole, normalize), rtol=1e-4, atol=1e-4)


@heads
@normalized
def test_effects_are_linear_in_the_part(name: str, normalize: bool, model: Callable) -> None:
    one, other, whole = vectors(seed=1), vectors(seed=2), vectors(seed=3)

    def effects(part: Tensor) -> Tensor:
        return vocabulary.effects(model(name), part, whole, normalize)

    torch.testing.assert_close(effects(2 * one - 0.5 * other), 2 * effects(one) - 0.5 * effects(other), rtol=1e-4, atol=1e-4)
    assert effects(torch.zeros(D_MODEL)).abs().max() <= 1e-5


@heads
def test_effects_do_not_depend_on_how_parts_are_batched(name: str, model: Callable) -> None:
    parts, whole = vectors(2, 3), vectors(seed=4)
    batched = vocabulary.effects(model(name), parts, whole)
    assert batched.shape == (2, 3, N_VOCAB)
    for row in range(2):
        for column in range(3):
            single = vocabulary.effects(model(name), parts[row, column], whole)
            torch.testing.assert_close(batched[row, column], single, rtol=1e-5, atol=1e-5)


@heads
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 1e3])
def test_effect_of_a_whole_on_itself_is_its_logits_without_the_biases_whatever_its_size(
    name: str, size: float, model: Callable, plain: Callable
) -> None:
    whole = size * vectors()
    effects = vocabulary.effects(model(name), whole, whole).double()
    exact = copy.deepcopy(plain(name)).double()
    expected = own_logits(exact, whole.double()) - constant(exact, True)
    torch.testing.assert_close(effects, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("d_model", [8, 9], ids=["even", "odd"])
@normalized
def test_biases_of_norm_and_unembedding_belong_to_no_part(norm: Any, d_model: int, normalize: bool) -> None:
    generator = torch.Generator().manual_seed(d_model)
    weight = torch.randn(d_model, generator=generator)
    weight[0], weight[1] = 0.0, -2.0
    bias, unembedding = torch.randn(d_model, generator=generator), torch.randn(11, d_model, generator=generator)
    unembedding_bias = 5 * torch.randn(11, generator=generator)
    llm = AffineLlm(unembedding, unembedding_bias, norm, weight, bias, eps=1e-2)
    parts = torch.randn(4, d_model, generator=generator)
    whole = parts.sum(0)
    total = vocabulary.effects(llm, parts, whole, normalize).sum(0)
    left_out = unembedding_bias + (unembedding @ bias if normalize else 0)
    torch.testing.assert_close(total + left_out, vocabulary.logits(llm, whole, normalize), rtol=1e-5, atol=1e-5)


# --- tables


@heads
@pytest.mark.parametrize("position", [0, 11, 19])
def test_last_residual_reads_as_the_models_next_token_predictions(name: str, position: int, trace: Callable, plain_run: Callable) -> None:
    logits = plain_run(name, 20).logits[position]
    best = logits.argsort(descending=True)[:10]
    traced = trace(name, 20)
    for table in (
        vocabulary.top_tokens(traced.model, traced.blocks[-1].resid_post[position], 10),
        vocabulary.predictions(traced, position, 10),
        vocabulary.predictions(traced, position - 20, 10),
    ):
        assert table.token_ids.tolist() == best.tolist()
        assert table.texts == tuple(traced.model.texts(best.tolist()))
        np.testing.assert_allclose(table.scores, logits[best], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(table.probabilities, logits.softmax(-1)[best], rtol=1e-4, atol=1e-7)
        assert table.ranks is not None
        assert table.ranks.tolist() == list(range(1, 11))
        assert table.rank_changes is None
        assert len(table) == 10


@pytest.mark.parametrize("position", [20, -21])
def test_predictions_at_a_position_that_is_not_there_are_refused(position: int, trace: Callable) -> None:
    with pytest.raises(RequestError, match=f"Position {position} does not exist: the prompt has 20 tokens"):
        vocabulary.predictions(trace("gpt2", 20), position, 5)


@heads
@normalized
def test_promoted_and_suppressed_are_both_ends_of_all_effects_sorted(name: str, normalize: bool, model: Callable, plain: Callable) -> None:
    part, whole = vectors(seed=5), vectors(seed=6)
    scores = own_effects(plain(name), part, whole, normalize)
    ascending = scores.argsort()
    promoted, suppressed = vocabulary.promoted_and_suppressed(model(name), part, whole, 15, normalize)
    for table, expected in ((promoted, ascending.flip(0)[:15]), (suppressed, ascending[:15])):
        assert table.token_ids.tolist() == expected.tolist()
        assert table.texts == tuple(model(name).texts(expected.tolist()))
        np.testing.assert_allclose(table.scores, scores[expected], rtol=1e-4, atol=1e-4)
        assert table.probabilities is None
    assert (np.diff(promoted.scores) <= 0).all()
    assert (np.diff(suppressed.scores) >= 0).all()


@heads
@normalized
def test_rank_changes_are_places_before_minus_places_after(name: str, normalize: bool, model: Callable, plain: Callable) -> None:
    before, after = vectors(seed=7), vectors(seed=8)
    old, new = (ranks_by_sorting(own_logits(plain(name), vector, normalize)) for vector in (before, after))
    table = vocabulary.top_tokens(model(name), after, 40, before, normalize)
    assert table.ranks is not None
    assert table.rank_changes is not None
    assert table.ranks.tolist() == list(range(1, 41))
    assert table.ranks.tolist() == new[table.token_ids].tolist()
    assert table.rank_changes.tolist() == (old - new)[table.token_ids].tolist()
    assert (table.rank_changes > 0).any()
    assert (table.rank_changes < 0).any()


def test_tokens_of_equal_score_share_the_better_rank() -> None:
    llm = AffineLlm(torch.eye(6))
    after, before = torch.tensor([3.0, 1.0, 3.0, 2.0, 1.0, 0.0]), torch.tensor([0.0, 5.0, 5.0, 5.0, 1.0, 1.0])
    table = vocabulary.top_tokens(llm, after, 6, before, normalize=False)
    assert table.ranks is not None
    assert table.rank_changes is not None
    assert dict(zip(table.token_ids.tolist(), table.ranks.tolist(), strict=True)) == {0: 1, 2: 1, 3: 3, 1: 4, 4: 4, 5: 6}
    assert dict(zip(table.token_ids.tolist(), table.rank_changes.tolist(), strict=True)) == {0: 5, 2: 0, 3: -2, 1: -3, 4: 0, 5: -2}


@pytest.mark.parametrize("k", [N_VOCAB, N_VOCAB + 1, 10 * N_VOCAB])
def test_a_table_longer_than_the_vocabulary_is_the_vocabulary(k: int, model: Callable) -> None:
    llm = model("gpt2")
    top = vocabulary.top_tokens(llm, vectors(), k, vectors(seed=1))
    promoted, suppressed = vocabulary.promoted_and_suppressed(llm, vectors(), vectors(seed=1), k)
    for table in (top, promoted, suppressed):
        assert len(table) == N_VOCAB
        assert sorted(table.token_ids.tolist()) == list(range(N_VOCAB))
    assert top.probabilities is not None
    assert top.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert promoted.token_ids.tolist() == suppressed.token_ids[::-1].tolist()


def test_ids_without_a_token_are_shown_as_ids(model: Callable) -> None:
    table = vocabulary.top_tokens(model("gpt2"), vectors(), N_VOCAB)
    texts = dict(zip(table.token_ids.tolist(), table.texts, strict=True))
    assert texts[N_VOCAB - 1] == f"<id {N_VOCAB - 1}>"
    assert texts[1] == "<s>"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_half_precision_model_answers_in_float32(name: str, model: Callable, plain: Callable) -> None:
    llm: llm_tt.TransparentLlm = model(name, "bfloat16")
    traced = llm.trace(token_ids(7))
    block = traced.blocks[-1]
    part, whole = block.ffn_out[-1], block.resid_post[-1]
    assert whole.dtype == torch.bfloat16
    assert vocabulary.logits(llm, whole).dtype == torch.float32
    effects = vocabulary.effects(llm, part, whole)
    assert effects.dtype == torch.float32
    exact = own_effects(plain(name), part, whole)
    assert (effects.double() - exact).abs().max() <= 0.02 * exact.abs().max()
    top = vocabulary.top_tokens(llm, whole, 10, block.resid_mid[-1])
    for table in (top, *vocabulary.promoted_and_suppressed(llm, part, whole, 10)):
        assert table.scores.dtype == np.float32
        assert table.token_ids.dtype == np.int64
    for column, dtype in ((top.probabilities, np.float32), (top.ranks, np.int64), (top.rank_changes, np.int64)):
        assert column is not None
        assert column.dtype == dtype
