"""Head roles equal a literal loop over plain attention in float64; labels say what the numbers say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from handmade import handmade_trace

import llm_tt
from llm_tt.flow.head_roles import LABEL_ABOVE, ROLES, HeadRoles
from llm_tt.models.transparent_llm import Trace
from llm_tt.text import Prompt

NAMES = ("gpt2", "llama", "gemma2", "gpt_neox", "mixtral")
REPEATED = [4, 4, 5, 9, 5, 5, 7, 9, 5, 3, 7, 7, 11, 5, 9, 2]
"""Repeats with and without a token in between, and tokens that occur once"""


def by_loop(alpha: torch.Tensor, ids: list[int]) -> list[list[float]]:
    """[role][head], from attention probabilities [H, T, T], literally."""
    result: list[list[float]] = [[] for _ in ROLES]
    for head in alpha.double().tolist():
        scores: list[list[float]] = [[] for _ in ROLES]
        for i in range(1, len(ids)):
            scores[0].append(head[i][i - 1])
            scores[1].append(head[i][0])
            same = [j for j in range(i) if ids[j] == ids[i]]
            if same:
                scores[2].append(sum(head[i][j] for j in same))
            after = [j + 1 for j in same if j + 1 < i]
            if after:
                scores[3].append(sum(head[i][j] for j in after))
        for role, values in zip(result, scores, strict=True):
            role.append(sum(values) / len(values) if values else math.nan)
    return result


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_a_loop_over_plain_attention(name: str, model: Callable, plain: Callable) -> None:
    import reference

    run = reference.run_plain(plain(name), REPEATED)
    roles = llm_tt.head_roles(model(name).trace(REPEATED))
    for layer, activations in enumerate(run.layers):
        expected = by_loop(activations.alpha, REPEATED)
        for role, values in zip(ROLES, expected, strict=True):
            assert roles.score(role)[layer] == pytest.approx(values, abs=1e-5), (role, layer)
    assert (roles.n_repeats, roles.n_followed) == (9, 8)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rows_in_small_pieces_give_the_same(name: str, model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = model(name).trace(REPEATED)
    whole = llm_tt.head_roles(trace)
    monkeypatch.setattr("llm_tt.flow.head_roles._MOST_ROWS", 3)
    pieces = llm_tt.head_roles(trace)
    for role in ROLES:
        assert pieces.score(role) == pytest.approx(whole.score(role), abs=1e-6)


def test_a_prompt_without_repeats_has_no_score_for_what_needs_them(model: Callable) -> None:
    roles = llm_tt.head_roles(model("gpt2").trace([3, 4, 5]))
    assert (roles.n_repeats, roles.n_followed) == (0, 0)
    assert np.isnan(roles.same_token).all()
    assert np.isnan(roles.induction).all()
    assert np.isfinite(roles.previous_token).all()
    # A repeat with nothing in between is no induction.
    repeated = llm_tt.head_roles(model("gpt2").trace([3, 3]))
    assert (repeated.n_repeats, repeated.n_followed) == (1, 0)
    assert np.isnan(repeated.induction).all()


def test_one_token_shows_no_role_at_all(model: Callable) -> None:
    roles = llm_tt.head_roles(model("gpt2").trace([3]))
    assert all(np.isnan(roles.score(role)).all() for role in ROLES)
    assert not list(roles.labelled())


def attending(ids: list[int], *targets: Callable[[int], int]) -> Trace:
    """A trace whose head h gives all attention of token i to token targets[h](i)."""
    n, n_heads = len(ids), len(targets)
    alpha = torch.zeros(n_heads, n, n)
    for head, target in enumerate(targets):
        for i in range(n):
            alpha[head, i, target(i)] = 1.0
    made = handmade_trace(
        pre=torch.ones(n, 2), mid=torch.ones(n, 2), alpha=alpha, values=torch.ones(n_heads, n, 2), w_o=torch.ones(n_heads, 2, 2)
    )
    return dataclasses.replace(made, prompt=Prompt.bare(None, tuple(ids), tuple(map(str, ids))))


def test_heads_that_do_one_thing_get_its_name_with_the_number() -> None:
    ids = [1, 2, 3, 4, 1, 2, 3, 4]
    roles = llm_tt.head_roles(
        attending(
            ids,
            lambda i: max(i - 1, 0),
            lambda i: 0,
            lambda i: i - 4 if i >= 4 else i,
            lambda i: i - 3 if i >= 4 else i,
            lambda i: i,
        )
    )
    assert {head: label for _, head, *label in roles.labelled()} == {
        0: ["previous token", 1.0],
        1: ["first token", 1.0],
        2: ["same token", 1.0],
        3: ["induction", 1.0],
    }
    assert roles.label(0, 4) is None


def test_a_label_needs_more_than_the_bound_and_the_largest_score() -> None:
    def label(*scores: float) -> object:
        return HeadRoles(*(np.array([[score]]) for score in scores), n_repeats=1, n_followed=1).label(0, 0)

    assert label(LABEL_ABOVE, 0.1, 0.1, 0.1) is None
    assert label(0.41, 0.1, 0.1, 0.1) == ("previous token", 0.41)
    assert label(0.41, 0.5, math.nan, math.nan) == ("first token", 0.5)
    assert label(0.41, 0.41, 0.2, 0.3) == ("previous token", 0.41)
    assert label(math.nan, math.nan, math.nan, math.nan) is None
