"""`llm-tt saliency`: what it prints is what the library computes."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

import llm_tt
import llm_tt.models
from llm_tt import cli
from llm_tt.analysis.saliency_report import METHODS

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def demo() -> llm_tt.TransparentLlm:
    return llm_tt.load_model("demo")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, demo: llm_tt.TransparentLlm) -> Callable[..., Any]:
    """run(*arguments) -> status, stdout, stderr of `llm-tt saliency demo PROMPT ...`, the model loaded once."""
    monkeypatch.setattr(llm_tt.models, "load_model", lambda *arguments, **options: demo)

    def run(*arguments: Any) -> tuple[int, str, str]:
        status = cli.main(["saliency", "demo", PROMPT, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_scores_test_and_correlations_are_printed(run: Callable, demo: llm_tt.TransparentLlm) -> None:
    options = ["--contrast", " John", "--methods", "flow", "kernel_shap", "leave_one_out", "--samples", 40, "--removed", 3, "--seed", 5]
    status, out, err = run(*options)
    methods: Any = ["flow", "kernel_shap", "leave_one_out"]
    found = llm_tt.saliency(demo.trace(PROMPT), -1, None, " John", methods, n_samples=40, n_removed=3, seed=5)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        f"Why ' Mary' and not ' John' after ' to' (token 14) in demo: probability {found.probability:.3f}, lead in log probability {found.lead:.3f}"
    )
    assert lines[2].split() == ["token", "flow", "kernel_shap", "leave_one_out"]
    for feature, line in zip(found.features, lines[3:], strict=False):
        scores = [f"{found.scores(method)[feature.start]:.3f}" for method in methods]
        stays = " (stays)" * feature.is_kept
        expected = [str(feature.start), *repr(feature.text).split(), *stays.split(), *(score for score in scores if score != "nan")]
        assert line.split() == expected
    assert "Mean fall of the probability with the first 1 to 3 tokens taken out:" in lines
    for method in found.methods:
        assert f"  {method.drop:+.3f}  {method.name} ({method.n_runs} run{'' if method.n_runs == 1 else 's'})" in lines
    assert f"  {found.random_drop:+.3f}  random order, the mean of 8" in lines
    (row,) = re.findall(r"^leave_one_out +(\S+) +(\S+) +(\S+)$", out, re.MULTILINE)
    assert list(row) == [f"{value:+.2f}" for value in found.correlations[2]]
    assert f"Kernel SHAP: {found.of_method('kernel_shap').note}" in lines


def test_all_of_it_as_json_and_csv(run: Callable, demo: llm_tt.TransparentLlm) -> None:
    options = ["--unit", "word", "--samples", 30, "--steps", 8, "--token", " John", "--target", 9, "--threshold", 0.02]
    found = llm_tt.saliency(demo.trace(PROMPT), 9, " John", unit="word", n_samples=30, n_steps=8, threshold=0.02)
    told = json.loads(run(*options, "--json")[1])
    assert told == {"model": "demo", **json.loads(json.dumps(found.to_dict()))}
    assert list(told["methods"]) == list(METHODS)
    rows = csv.reader(io.StringIO(run(*options, "--csv")[1], newline=""))
    assert list(rows) == list(csv.reader(io.StringIO(found.to_csv(), newline="")))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--methods", "saliency"], '"saliency" is not a method. Name one or more of: flow, gradient,'),
        (["--samples", "2"], "n_samples is 2."),
        (["--token", "Johnny Mary"], "Name a single one"),
        (["--target", "0"], "Nothing can be taken out of the prompt up to token 0"),
    ],
)
def test_what_is_refused(options: list[str], reason: str, run: Callable) -> None:
    status, out, err = run(*options)
    assert (status, out) == (1, "")
    assert err.startswith("llm-tt: ")
    assert reason in err
