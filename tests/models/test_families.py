"""Every family that can be made tiny: decomposed exactly, or refused with the reason; and the page that says so is not stale."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from families import CHECKPOINTS, FAMILIES, HYBRIDS, NORMALISED_STREAMS, UNSETTLED, VARIANTS, token_ids
from plain_runs import load_plain
from sweep import PAGE, SWEPT, Measured, measure, title
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from unsupported import ALIASES, NOT_BUILT, NOT_TEXT_DECODERS

import llm_tt
from llm_tt.models import identities

WITH_SINKS = {"gpt_oss"}
WITHOUT_A_GUILTY_LAYER = {"openai-gpt", "hrm_text"}
"""Refused for how their layers are put together"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(checkpoint: Callable[[str], Path]) -> Callable[[str], Measured]:
    return cache(lambda name: measure(name, checkpoint(name)))


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_a_family_is_decomposed_exactly(name: str, measured: Callable[[str], Measured]) -> None:
    assert_exact(measured(name))


def assert_exact(made: Measured) -> None:
    assert made.works, made.reason
    assert 0 < made.identities <= 1e-5
    assert made.sums <= 1e-5
    assert made.logits <= 1e-4
    assert made.future == 0
    smallest, largest = made.row_sums
    assert largest <= 1 + 1e-5
    assert 0 < smallest < 0.98 if made.model_type in WITH_SINKS else smallest >= 1 - 1e-5
    assert made.shares <= 1e-5
    assert made.dtypes == {torch.float32}


@pytest.mark.parametrize("name", [*HYBRIDS, *NORMALISED_STREAMS])
def test_what_cannot_be_decomposed_is_refused_with_the_reason(name: str, measured: Callable[[str], Measured]) -> None:
    assert_refused(measured(name))
    if name in HYBRIDS and name not in WITHOUT_A_GUILTY_LAYER:
        assert re.search(r"layer \d", measured(name).reason)


@pytest.mark.parametrize("name", UNSETTLED)
def test_what_is_unsettled_is_refused_or_got_right(name: str, measured: Callable[[str], Measured]) -> None:
    (assert_exact if measured(name).works else assert_refused)(measured(name))


def assert_refused(made: Measured) -> None:
    assert not made.works
    assert repr(made.model_type) in made.reason
    assert "this model" in made.reason.lower(), "the message names the model"
    assert "\n" not in made.reason
    assert made.reason.endswith(".")
    assert len(made.reason) < 500
    assert "Traceback" not in made.reason


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_loads_in_half_precision_too(name: str, checkpoint: Callable[[str], Path]) -> None:
    llm = llm_tt.load_model(str(checkpoint(name)), dtype="bfloat16")
    plain = load_plain(checkpoint(name), torch.bfloat16)
    ids = token_ids(20)
    with torch.inference_mode():
        expected = plain(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
    off = float((llm.trace(ids).logits(-1) - expected).norm() / expected.norm())
    assert off <= 0.06
    assert identities.check(llm).worst <= 0.01


def test_at_least_forty_model_types_are_decomposed_exactly(measured: Callable[[str], Measured]) -> None:
    assert len({CHECKPOINTS[name]().model_type for name in FAMILIES if measured(name).works}) >= 40


def test_every_architecture_of_transformerlens_is_tried_or_its_absence_explained() -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    tried = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[make().model_type] for make in CHECKPOINTS.values()}
    left = set(SUPPORTED_ARCHITECTURES) - tried - set(NOT_BUILT) - set(ALIASES)
    assert {name for name in left if not name.endswith(NOT_TEXT_DECODERS)} == set()
    assert set(ALIASES.values()) <= set(CHECKPOINTS)


def _rows() -> dict[str, list[str]]:
    """First cell -> all cells, of every table of the page."""
    cells = (
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    )
    return {row[0]: row for row in cells}


@pytest.mark.parametrize("name", SWEPT)
def test_the_page_says_of_every_checkpoint_what_is_measured(name: str, measured: Callable[[str], Measured]) -> None:
    """Run `make families` when this fails."""
    made = measured(name)
    row = _rows()[title(made)]
    if not made.works:
        assert row[1] == "refused"
        assert _without_numbers(row[2]) == _without_numbers(made.reason.replace("|", "\\|"))
        return
    _, verdict, errors, logits, *facts = row
    assert (verdict, facts) == ("works", [made.attention, made.neurons, " ".join(made.not_shown).replace("|", "\\|")])
    assert float(errors) <= 1e-5
    assert float(logits) <= 1e-4


def _without_numbers(text: str) -> str:
    """Without those that may differ in their last digit on another machine."""
    return re.sub(r"\d\.\de[-+]\d\d", "", text)


def test_the_page_has_no_row_of_a_checkpoint_that_is_not_tried() -> None:
    names = [(name, CHECKPOINTS[name]().model_type) for name in SWEPT]
    titles = {title(Measured(name, model_type, works=False)) for name, model_type in names}
    assert set(_rows()) - titles - set(NOT_BUILT) == {"Model type", "Setting", "Model", "Architecture"}
    assert titles | set(NOT_BUILT) <= set(_rows())
