"""Every family that can be made tiny: decomposed exactly, or refused with the reason; and the page that says so is not stale."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from families import CHECKPOINTS, FAMILIES, HYBRIDS, NORMALISED_STREAMS, VARIANTS
from sweep import PAGE, SWEPT, Measured, measure
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from unsupported import ALIASES, NOT_BUILT, NOT_TEXT_DECODERS

WITH_SINKS = {"gpt_oss"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(checkpoint: Callable[[str], Path]) -> Callable[[str], Measured]:
    return cache(lambda name: measure(name, checkpoint(name)))


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_a_family_is_decomposed_exactly(name: str, measured: Callable[[str], Measured]) -> None:
    made = measured(name)
    assert made.works, made.reason
    assert 0 < made.identities <= 1e-5
    assert made.logits <= 1e-4
    assert made.future == 0
    smallest, largest = made.row_sums
    assert largest == pytest.approx(1, abs=1e-5) if made.model_type not in WITH_SINKS else largest < 1
    assert smallest == pytest.approx(1, abs=1e-5) if made.model_type not in WITH_SINKS else 0 < smallest < 0.98
    assert made.shares <= 1e-5
    assert made.dtypes == {torch.float32}


@pytest.mark.parametrize("name", [*HYBRIDS, *NORMALISED_STREAMS])
def test_what_cannot_be_decomposed_is_refused_with_the_reason(name: str, measured: Callable[[str], Measured]) -> None:
    made = measured(name)
    assert not made.works
    assert repr(made.model_type) in made.reason
    assert "This model" in made.reason, "the message names the model"
    assert "\n" not in made.reason
    assert made.reason.endswith(".")
    assert len(made.reason) < 500
    assert "Traceback" not in made.reason
    if name in HYBRIDS and name != "openai-gpt":
        assert re.search(r"layer \d", made.reason), made.reason


def test_at_least_forty_model_types_are_decomposed_exactly(measured: Callable[[str], Measured]) -> None:
    assert len({CHECKPOINTS[name]().model_type for name in FAMILIES if measured(name).works}) >= 40


def test_every_architecture_of_transformerlens_is_tried_or_its_absence_explained() -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    tried = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[make().model_type] for make in CHECKPOINTS.values()}
    left = set(SUPPORTED_ARCHITECTURES) - tried - set(NOT_BUILT) - set(ALIASES)
    assert {name for name in left if not name.endswith(NOT_TEXT_DECODERS)} == set()
    assert set(ALIASES.values()) <= set(FAMILIES)


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
    made, rows = measured(name), _rows()
    if not made.works:
        assert rows[name] == [name, made.model_type, made.reason.replace("|", "\\|")]
        return
    title = f"{name} ({made.model_type})" if name in VARIANTS else "llama, no biases" if name == "llama_plain" else made.model_type
    _, verdict, errors, logits, *facts = rows[title]
    assert (verdict, facts) == ("works", [made.attention, made.neurons, " ".join(made.not_shown).replace("|", "\\|")])
    assert float(errors) <= 1e-5
    assert float(logits) <= 1e-4


def test_the_page_has_no_row_of_a_checkpoint_that_is_not_tried() -> None:
    titles = {f"{name} ({CHECKPOINTS[name]().model_type})" for name in VARIANTS} | {CHECKPOINTS[name]().model_type for name in FAMILIES}
    heads = {"Model type", "Setting", "Checkpoint", "Architecture", "llama, no biases"}
    assert set(_rows()) <= titles | set(SWEPT) | set(NOT_BUILT) | heads
    assert set(NOT_BUILT) <= set(_rows())
