"""The bounds that let `flow.contributions` skip arithmetic skip nothing that can be seen: vectors chosen to be hard, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import reference
import torch
from handmade import handmade_trace
from torch import Tensor

import llm_tt
from llm_tt.flow import contributions


class Case(NamedTuple):
    alpha: Tensor
    """[H, P, J]: of the last P of J tokens"""
    values: Tensor
    """[K, J, E]"""
    weight: Tensor
    """[H, E, d]"""
    whole: Tensor
    """[P, d]"""
    residual: Tensor
    """[P, d]"""


def plain_case(generator: torch.Generator, n_sources: int = 30, d: int = 48, n_heads: int = 4, n_kv: int = 2) -> Case:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    future = torch.ones(6, n_sources).triu(n_sources - 5).bool()
    alpha = torch.softmax((2 * normal(n_heads, 6, n_sources)).masked_fill(future, -torch.inf), -1)
    return Case(alpha, normal(n_kv, n_sources, 8), normal(n_heads, 8, d) / 8**0.5, 3 * normal(6, d), 2 * normal(6, d))


def _magnitudes(generator: torch.Generator, shape: torch.Size, decades: float) -> Tensor:
    return 10 ** (-decades * torch.rand(shape, generator=generator))


def realistic(generator: torch.Generator) -> Case:
    case = plain_case(generator)
    return case._replace(whole=case.residual + _parts(case).sum((1, 2)).float())


def tiny_entries(generator: torch.Generator) -> Case:
    case = plain_case(generator)
    return case._replace(whole=case.whole * _magnitudes(generator, case.whole.shape, 8))


def parts_larger_than_the_whole(generator: torch.Generator) -> Case:
    case = plain_case(generator)
    return case._replace(values=1e3 * case.values)


def parts_of_every_size(generator: torch.Generator) -> Case:
    case = plain_case(generator)
    return case._replace(values=case.values * _magnitudes(generator, torch.Size([2, 30, 1]), 10))


def zero_parts(generator: torch.Generator) -> Case:
    case = plain_case(generator)
    values = case.values.clone()
    values[:, ::2] = 0
    weight = case.weight.clone()
    weight[1] = 0
    return case._replace(values=values, weight=weight)


def zero_whole(generator: torch.Generator) -> Case:
    case = plain_case(generator)
    return case._replace(whole=torch.zeros_like(case.whole))


def zeros_in_the_whole(generator: torch.Generator) -> Case:
    """Pruned models, compiled models and half precision have exact zeros."""
    case = plain_case(generator)
    return case._replace(whole=case.whole * (torch.rand(case.whole.shape, generator=generator) < 0.5))


def one_large_entry(generator: torch.Generator) -> Case:
    """Trained models have a few directions a thousand times the rest."""
    case = plain_case(generator)
    whole = case.whole.clone()
    whole[:, 5] *= 1000
    return case._replace(whole=whole)


def one_hot_attention(generator: torch.Generator) -> Case:
    case = plain_case(generator)
    index = torch.randint(25, (4, 6, 1), generator=generator)
    return case._replace(alpha=torch.zeros_like(case.alpha).scatter_(2, index, 1.0))


def uniform_attention(generator: torch.Generator) -> Case:
    case = plain_case(generator)
    return case._replace(alpha=(case.alpha > 0) / (case.alpha > 0).sum(-1, keepdim=True))


def flat_whole(generator: torch.Generator) -> Case:
    """All entries of the same size, and parts that just reach it: the two bounds part at every entry at once."""
    case = plain_case(generator)
    whole = case.whole.sign() * 0.5
    return case._replace(whole=whole, residual=whole * (1 + 0.01 * case.residual))


def parts_equal_to_the_whole(generator: torch.Generator) -> Case:
    case = plain_case(generator, n_kv=4)
    weight = torch.zeros_like(case.weight)
    weight[:, 0] = case.whole[0]
    values = torch.zeros_like(case.values)
    values[..., 0] = torch.linspace(-2, 3, 30)
    return case._replace(weight=weight, values=values, alpha=(case.alpha > 0).float())


def no_residual(generator: torch.Generator) -> Case:
    case = plain_case(generator)
    return case._replace(residual=-case.whole)


def more_sources_than_fit_one_piece(generator: torch.Generator) -> Case:
    return plain_case(generator, n_sources=300, d=64, n_heads=8, n_kv=1)


CASES: list[Callable[[torch.Generator], Case]] = [
    plain_case,
    realistic,
    tiny_entries,
    parts_larger_than_the_whole,
    parts_of_every_size,
    zero_parts,
    zero_whole,
    zeros_in_the_whole,
    one_large_entry,
    one_hot_attention,
    uniform_attention,
    flat_whole,
    parts_equal_to_the_whole,
    no_residual,
    more_sources_than_fit_one_piece,
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
every_seed = pytest.mark.parametrize("seed", range(3))


def _parts(case: Case) -> Tensor:
    """[P, J, H, d] float64."""
    values = case.values.double().repeat_interleave(len(case.alpha) // len(case.values), 0)
    return torch.einsum("hpj,hje,hed->pjhd", case.alpha.double(), values, case.weight.double())


def expected_contributions(case: Case) -> tuple[Tensor, Tensor]:
    edges = reference.proximity(_parts(case), case.whole.double()[:, None, None])
    residual = reference.proximity(case.residual.double(), case.whole.double())
    total = edges.sum((1, 2)) + residual
    total[total <= 0] = 1
    return edges / total[:, None, None], residual / total


def _ill_conditioning(case: Case) -> Tensor:
    """[P]: how much larger the largest part is than all that counts; its float32 rounding error grows by as much. About 1 in a real model."""
    parts, whole = _parts(case), case.whole.double()
    total = reference.proximity(parts, whole[:, None, None]).sum((1, 2)) + reference.proximity(case.residual.double(), whole)
    return torch.where(total > 0, parts.abs().sum(-1).amax((1, 2)) / total, 0)


def actual_contributions(case: Case) -> tuple[Tensor, Tensor]:
    n_heads, n_rows, n_tokens = case.alpha.shape
    before = n_tokens - n_rows
    alpha = torch.eye(n_tokens).repeat(n_heads, 1, 1)
    alpha[:, before:] = case.alpha
    pre, mid = (torch.cat([torch.ones(before, case.whole.shape[1]), rows]) for rows in (case.residual, case.whole))
    trace = handmade_trace(pre=pre, mid=mid, alpha=alpha, values=case.values, w_o=case.weight)
    result = llm_tt.attention_contributions(trace, 0, range(before, n_tokens))
    return result.edges, result.residual


@every_case
@every_seed
def test_skipping_by_bounds_changes_no_contribution(case: Callable, seed: int) -> None:
    made = case(torch.Generator().manual_seed(seed))
    edges, residual = actual_contributions(made)
    expected_edges, expected_residual = expected_contributions(made)
    allowed = 1e-6 + 6e-8 * _ill_conditioning(made)
    assert ((edges - expected_edges).abs().amax((1, 2)) <= allowed).all()
    assert ((residual - expected_residual).abs() <= allowed).all()


@every_case
@every_seed
def test_skipping_by_bounds_gives_what_summing_every_part_gives(case: Callable, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(torch.Generator().manual_seed(seed))
    skipped, _ = actual_contributions(made)
    monkeypatch.setattr(contributions, "_BOUND_AGREEMENT", -1.0)
    monkeypatch.setattr(contributions, "_NEGLIGIBLE_TOTAL", 0.0)
    # No bound on their entries, and no small entries looked for: every part that may have something to give is summed over all its entries.
    monkeypatch.setattr(contributions, "_SMALL_ENTRIES", 0)
    monkeypatch.setattr(contributions, "_largest_entries", lambda values, weight: torch.full((len(weight), values.shape[1]), torch.inf))
    summed, _ = actual_contributions(made)
    assert float((skipped - summed).abs().max()) <= 1e-6


def test_bounds_do_skip_most_parts_of_a_realistic_node(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[int] = []
    original = contributions.scaled_proximity

    def counted(units: Tensor, scales: Tensor, *rest: Tensor) -> Tensor:
        summed.append(len(scales))
        return original(units, scales, *rest)

    monkeypatch.setattr(contributions, "scaled_proximity", counted)
    made = realistic(torch.Generator().manual_seed(0))
    actual_contributions(made)
    assert 0 < sum(summed) < 0.6 * made.alpha.numel()


@every_case
def test_parts_summed_a_few_at_a_time_give_the_same(case: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(torch.Generator().manual_seed(0))
    whole, _ = actual_contributions(made)
    monkeypatch.setattr(contributions, "_ROWS", 3)
    pieces, _ = actual_contributions(made)
    assert torch.allclose(pieces, whole, atol=2e-7, rtol=0)


@every_case
@every_seed
@pytest.mark.parametrize("numbers", [1, 10**6])
def test_few_entries_and_few_positions_at_a_time_give_what_is_exact(
    case: Callable, seed: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for long prompts and wide models: parts are summed over the entries that matter, rows of attention read a few at a time."""
    made = case(torch.Generator().manual_seed(seed))
    monkeypatch.setattr(contributions, "_SMALL_ENTRIES", 16)
    monkeypatch.setattr(contributions, "_FEW_ENTRIES", 3)
    monkeypatch.setattr(contributions, "_NUMBERS", numbers)
    monkeypatch.setattr(contributions, "_CACHED_NUMBERS", 1)
    monkeypatch.setattr(contributions, "_UNIT_BYTES", 1)
    edges, residual = actual_contributions(made)
    expected_edges, expected_residual = expected_contributions(made)
    allowed = 1e-6 + 6e-8 * _ill_conditioning(made)
    assert ((edges - expected_edges).abs().amax((1, 2)) <= allowed).all()
    assert ((residual - expected_residual).abs() <= allowed).all()


@every_case
def test_proximity_without_cancellation_equals_its_definition(case: Callable) -> None:
    made = case(torch.Generator().manual_seed(3))
    parts, whole = _parts(made), made.whole[:, None, None]
    expected = reference.proximity(parts, whole.double())
    actual = contributions.proximity(parts.float(), whole)
    scale = (whole.double().abs().sum(-1) + parts.abs().sum(-1)).clamp_min(1e-30)
    assert float(((actual - expected) / scale).abs().max()) <= 1e-6


def test_proximity_of_a_part_that_points_nowhere_near_is_exactly_zero() -> None:
    """Clipping rounding noise at zero would give such parts mass."""
    generator = torch.Generator().manual_seed(0)
    whole = 100 * torch.randn(512, generator=generator)
    parts = torch.randn(1000, 512, generator=generator) * 1e-4
    parts[parts.sign() == whole.sign()] *= -1
    assert (contributions.proximity(parts, whole) == 0).all()


@every_case
@every_seed
def test_neurons_of_any_size_equal_brute_force(case: Callable, seed: int) -> None:
    """Handmade neurons are -1 and write one entry each: the whole is replaced, so that they matter."""
    made = case(torch.Generator().manual_seed(seed))
    n_tokens = len(made.whole)
    alpha, values = torch.eye(n_tokens).repeat(len(made.weight), 1, 1), torch.zeros(len(made.weight), n_tokens, made.weight.shape[1])
    trace = handmade_trace(pre=made.residual, mid=made.residual, post=made.whole, alpha=alpha, values=values, w_o=made.weight)
    neurons = -torch.eye(made.whole.shape[1], dtype=torch.float64)
    for position, (whole, residual) in enumerate(zip(made.whole.double(), made.residual.double(), strict=True)):
        parts = reference.proximity(neurons, whole)
        total = parts.sum() + reference.proximity(residual, whole)
        expected = parts / total if total > 0 else torch.zeros_like(parts)
        assert float((llm_tt.neuron_contributions(trace, 0, position) - expected).abs().max()) <= 1e-6
