"""The brute force proves itself: its parts and biases add up to what the modules of a plain Hugging Face model added to the stream."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import reference
import torch
from families import CHECKPOINTS, FAMILIES, HYBRIDS, MISREAD, NORMALISED_STREAMS, VARIANTS, token_ids
from plain_runs import NAMES, Run, run_plain
from torch import Tensor, nn

#: Names of checkpoints that the brute force knows.
KNOWN = [name for name in FAMILIES | VARIANTS if CHECKPOINTS[name]().model_type in NAMES]
every_checkpoint = pytest.mark.parametrize("name", KNOWN)
both_lengths = pytest.mark.parametrize("n_tokens", [1, 20])


def off(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@every_checkpoint
@both_lengths
def test_attention_parts_and_bias_are_what_attention_adds(name: str, n_tokens: int, plain_run: Callable) -> None:
    run: Run = plain_run(name, n_tokens)
    for layer in run.layers:
        parts = reference.attention_parts(layer)
        whole = parts.sum((1, 2)) + reference.attention_bias(layer)
        assert off(whole, layer.attn_out) <= 1e-6
        assert off(layer.pre + whole, layer.mid) <= 1e-6
        assert float(layer.alpha.triu(1).abs().max()) == 0


@every_checkpoint
@both_lengths
def test_neuron_parts_and_bias_are_what_the_ffn_adds(name: str, n_tokens: int, plain_run: Callable) -> None:
    for layer in plain_run(name, n_tokens).layers:
        whole = reference.neuron_parts(layer).sum(1) + reference.ffn_bias(layer)
        assert off(whole, layer.ffn_out) <= 1e-6
        assert off(layer.mid + whole, layer.post) <= 1e-6


@every_checkpoint
def test_each_block_reads_what_the_one_before_it_wrote(name: str, plain_run: Callable) -> None:
    layers = plain_run(name, 20).layers
    for before, after in itertools.pairwise(layers):
        assert torch.equal(before.post, after.pre)


@every_checkpoint
def test_every_term_matters(name: str, plain_run: Callable) -> None:
    """A decomposition that forgets one is far off: the checkpoints are such that the identities mean something."""
    for layer in plain_run(name, 20).layers:
        for parts, out, factor in (
            (reference.attention_parts(layer).sum((1, 2)), layer.attn_out, layer.attn_factor),
            (reference.neuron_parts(layer).sum(1), layer.ffn_out, layer.ffn_factor),
        ):
            assert off(parts / factor, out) > 0.05 or bool((factor == 1).all())
        for bias, out in ((reference.attention_bias(layer), layer.attn_out), (reference.ffn_bias(layer), layer.ffn_out)):
            assert float(bias.norm()) == 0 or off(out - bias, out) > 0.02
        uniform = 1 / torch.arange(1, 21, dtype=torch.float64)[:, None]
        assert float((layer.alpha - uniform.expand(20, 20).tril()).abs().max()) > 0.2, "attention is peaked"
        if NAMES[CHECKPOINTS[name]().model_type].experts and bool((layer.neurons == 0).any()):
            spread = (layer.neurons.view(20, -1, 8).abs().sum(-1) > 0).double().mean(0)
            assert float(spread.amin()) < 1, "not every token goes to every expert"
            assert float((spread > 0).double().mean()) > 0.6, "most experts get a token"


def test_sinks_take_a_share_of_attention(plain_run: Callable) -> None:
    for layer in plain_run("gpt_oss", 20).layers:
        assert 0.02 < float(1 - layer.alpha.sum(-1).mean()) < 0.9


def test_windows_and_soft_caps_change_what_is_predicted(plain: Callable) -> None:
    for name, change in (
        ("mistral", {"sliding_window": None}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("granite", {"residual_multiplier": 1.0}),
        ("cohere", {"logit_scale": 1.0}),
    ):
        made = run_plain(plain(name), token_ids(20)).logits
        config = CHECKPOINTS[name]()
        config.update(change)
        other: nn.Module = type(plain(name))(config).eval()
        other.load_state_dict(plain(name).state_dict())
        with torch.no_grad():
            changed = other(torch.tensor([token_ids(20)])).logits[0]
        assert float((changed - made).abs().max()) > 0.05, (name, change)


def test_the_tables_name_each_checkpoint_once() -> None:
    groups = (FAMILIES, VARIANTS, HYBRIDS, NORMALISED_STREAMS, MISREAD)
    assert sum(map(len, groups)) == len(CHECKPOINTS)
    assert len({make().model_type for make in FAMILIES.values()}) >= 55
