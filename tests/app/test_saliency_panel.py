"""Other methods without a browser: asked when opened, the slow ones by their button, and what is drawn is what the library computes."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from polling import answered
from streamlit.testing.v1 import AppTest

import llm_tt
from app.panels import saliency, sources
from llm_tt.analysis.saliency_report import METHODS, NAMES, QUICK, Saliency

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    (tmp_path / "config.json").write_text(json.dumps({"models": {"demo": None}, "default_model": "demo"}))
    monkeypatch.setattr("sys.argv", ["app/main.py", str(tmp_path / "config.json")])
    page = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
    page.session_state["prompt"] = PROMPT
    yield answered(page)
    st.cache_resource.clear()


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


@pytest.fixture(scope="module")
def found(trace: llm_tt.Trace) -> Saliency:
    return llm_tt.saliency(trace, token=" Mary", contrast=" John", n_samples=40, n_steps=16)


def opened(at: AppTest) -> AppTest:
    at.session_state["other_methods"] = True
    return answered(at)


def captions(at: AppTest) -> str:
    return "\n".join(caption.value for caption in at.caption)


def rows(drawn: str) -> dict[str, list[tuple[str, str, str]]]:
    """(title, style, text) of each feature, by method."""
    result = {}
    for method, row in re.findall(r'data-method="(\w+)"[^>]*>(.*?)</div>', drawn, re.DOTALL):
        spans = re.findall(r'<span role="listitem" title="([^"]*)" style="([^"]*)">(.*?)</span>', row, re.DOTALL)
        result[method] = [(html.unescape(title), style, html.unescape(text)) for title, style, text in spans]
    return result


def test_nothing_is_asked_while_closed(at: AppTest) -> None:
    assert "saliency" not in at.session_state
    opened(at)
    asked = at.session_state["saliency"].question
    assert asked.methods == QUICK
    assert "captum" not in str(asked)


def test_the_button_runs_the_slow_ones_for_this_very_question(at: AppTest, trace: llm_tt.Trace) -> None:
    opened(at)
    at.number_input("saliency_samples").set_value(64)
    at.number_input("saliency_steps").set_value(16)
    answered(at)
    assert [method.method for method in at.session_state["saliency"].answer.methods] == list(QUICK)
    at.button("saliency_run").click()
    answered(at)
    answer = at.session_state["saliency"].answer
    expected = llm_tt.saliency(trace, n_samples=64, n_steps=16)
    for method in METHODS:
        np.testing.assert_allclose(answer.scores(method), expected.scores(method), rtol=1e-3, atol=1e-3)
    assert at.button("saliency_run").disabled
    # Another question is another one: the slow methods wait for their button again.
    at.selectbox("why_contrast").set_value("·table")
    answered(at)
    answer = at.session_state["saliency"].answer
    assert [method.method for method in answer.methods] == list(QUICK)
    assert answer.contrast_text == " table"
    assert "Explained: the lead in log probability of ·Mary \u2212 ·table" in captions(at)
    assert not at.button("saliency_run").disabled


def test_words_and_a_refusal(at: AppTest) -> None:
    opened(at)
    at.session_state["saliency_unit"] = "word"
    answered(at)
    assert " store," in [feature.text for feature in at.session_state["saliency"].answer.features]
    at.session_state["target"] = 0
    answered(at)
    assert any("Nothing can be taken out of the prompt up to token 0" in error.value for error in at.error)


def test_strips_have_every_score_with_its_sign_and_size(found: Saliency) -> None:
    drawn = rows(saliency.strips(found))
    assert list(drawn) == list(METHODS)
    for method in found.methods:
        most = np.nanmax(np.abs(method.scores))
        for feature, score, (title, style, text) in zip(found.features, method.scores, drawn[method.method], strict=True):
            assert text == feature.text.replace(" ", "\u00b7")
            colour, opacity = re.findall(r"rgba\((\d+, \d+, \d+),([\d.]+)\)", style)[0]
            assert float(opacity) == pytest.approx(0.0 if np.isnan(score) else sources.MOST * abs(score) / most, abs=6e-4)
            assert colour == ("213, 94, 0" if score < 0 else sources.BLUE)
            assert title.startswith(f"token {feature.start}: ")
            if feature.is_kept:
                assert title.endswith("never taken out")
            else:
                index = found.features.index(feature)
                assert title.endswith(f"{method.order.index(index) + 1} of {found.n_removable}")
    titles = [title for title, *_ in drawn["leave_one_out"]]
    assert titles[0] == "token 0: no score · never taken out"
    assert f": {found.scores('leave_one_out')[2]:+.3g} · " in titles[2]


def test_a_token_that_is_a_script_is_text(found: Saliency) -> None:
    strange = [dataclasses.replace(feature, text='<script>x</script>"><img src=x>') for feature in found.features]
    drawn = saliency.strips(dataclasses.replace(found, features=tuple(strange)))
    assert "<script" not in drawn
    assert "<img" not in drawn


def test_curves_and_words_are_the_numbers(found: Saliency) -> None:
    figure = saliency.curves(found)
    random, *lines = figure.data
    assert list(random.y) == found.random_deletion.tolist()
    assert [line.name for line in lines] == [NAMES[method] for method in METHODS]
    for line, method in zip(lines, found.methods, strict=True):
        assert list(line.y) == method.deletion.tolist()
        assert list(line.x) == list(range(11))
    assert len({line.line.color for line in lines}) == len({line.marker.symbol for line in lines}) == len(METHODS)
    most = max(method.drop for method in found.methods)
    said = saliency._verdict(found)
    named = {method.name for method in found.methods if method.name in said}
    assert named == {method.name for method in found.methods if method.drop > most - 0.005}
    assert f"by {most:.3f}, with" in said
    assert said.endswith(f"in random order it falls by {found.random_drop:.3f}.")


def test_the_tables_are_the_numbers(at: AppTest, trace: llm_tt.Trace) -> None:
    opened(at)
    expected: Any = llm_tt.saliency(trace, methods=QUICK)
    tables = [table.value for table in at.dataframe]
    (methods,) = [table for table in tables if list(table.columns) == ["method", "drop", "runs"]]
    assert methods["drop"].tolist() == pytest.approx([method.drop for method in expected.methods], abs=1e-5)
    assert methods["runs"].tolist() == [1, 1, 1, 14]
    (correlations,) = [table for table in tables if list(table.columns) == ["method", *(NAMES[method] for method in QUICK)]]
    np.testing.assert_allclose(correlations.iloc[:, 1:].to_numpy(), expected.correlations, atol=1e-6)
