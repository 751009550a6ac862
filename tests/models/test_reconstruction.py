"""The errors of a trace's own parts: what a plain computation of them gives, and what is broken on purpose is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.models.identities import sampled

NAMES = ("gpt2", "llama", "gemma2", "gpt_neox", "mixtral")


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_real_trace_add_up_in_every_layer(name: str, trace: Callable) -> None:
    errors = llm_tt.reconstruction_errors(trace(name, 60))
    assert [error.layer for error in errors] == list(range(trace(name, 60).n_layers))
    for error in errors:
        assert 0 <= error.attention < 1e-5
        assert 0 <= error.neurons < 1e-5
        assert error.residual < 1e-6
        assert error.future == 0
    assert any(error.attention > 0 for error in errors), "nothing was computed"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("n_positions", [1, 7, 60])
def test_errors_are_those_of_the_sampled_positions(name: str, n_positions: int, trace: Callable) -> None:
    """Something is added to what attention put out at one token, and to what the FFN did at another."""
    whole: llm_tt.Trace = trace(name, 60)
    positions = sampled(60, n_positions)
    attention_off, ffn_off = torch.zeros(60, whole.embedding.shape[1]), torch.zeros(60, whole.embedding.shape[1])
    attention_off[positions[0]], ffn_off[positions[-1]] = 1.0, 2.0
    block = whole.blocks[1]
    broken = dataclasses.replace(block, attn_out=block.attn_out + attention_off, ffn_out=block.ffn_out + ffn_off)
    errors = llm_tt.reconstruction_errors(dataclasses.replace(whole, blocks=(whole.blocks[0], broken, *whole.blocks[2:])), n_positions)
    for error, off, out in ((errors[1].attention, attention_off, broken.attn_out), (errors[1].neurons, ffn_off, broken.ffn_out)):
        expected = off[positions].double().norm() / out[positions].double().norm()
        assert error == pytest.approx(float(expected), rel=1e-3)
    assert errors[1].residual > 1e-3
    assert errors[0].attention < 1e-5


def test_a_mistake_elsewhere_than_the_sample_is_not_seen_and_one_in_it_is(trace: Callable) -> None:
    whole: llm_tt.Trace = trace("gpt2", 60)
    for position, seen in ((59, True), (58, False)):
        block = whole.blocks[0]
        off = torch.zeros_like(block.attn_out)
        off[position] = 1.0
        blocks = (dataclasses.replace(block, attn_out=block.attn_out + off), *whole.blocks[1:])
        error = llm_tt.reconstruction_errors(dataclasses.replace(whole, blocks=blocks), 2)[0].attention
        assert (error > 1e-2) is seen


def test_samples_are_spread_from_the_first_token_to_the_last() -> None:
    assert sampled(5, 64) == [0, 1, 2, 3, 4]
    assert sampled(100, 1) == [99]
    assert sampled(101, 5) == [0, 25, 50, 75, 100]
    assert len(set(sampled(1000, 64))) == 64
    with pytest.raises(RequestError, match="0 positions are none"):
        sampled(10, 0)


def test_it_reports_every_layer(trace: Callable) -> None:
    seen: list[float] = []
    llm_tt.reconstruction_errors(trace("gpt2", 20), progress=lambda stage, fraction: seen.append(fraction))
    assert len(seen) == trace("gpt2", 20).n_layers
    assert seen[-1] == 1
