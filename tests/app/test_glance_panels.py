"""Sources, heads map, honesty and keeping by flow without a browser: what the panels say is what the library computes."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from polling import answered
from streamlit.testing.v1 import AppTest

import llm_tt
from app.panels import heads_map, honesty, sources
from llm_tt.components.graph.frame import unpack
from llm_tt.config import load_config
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import ExplainPrediction, Explanation, ModelKey, TraceCheck, TraceKey
from llm_tt.models.info import LayerErrors

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "When Mary and John went to the store, John gave a drink to"
DEMO: dict[str, Any] = {"models": {"demo": None}, "default_model": "demo"}


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    (tmp_path / "config.json").write_text(json.dumps(DEMO))
    monkeypatch.setattr("sys.argv", ["app/main.py", str(tmp_path / "config.json")])
    page = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
    page.session_state["prompt"] = PROMPT
    yield answered(page)
    st.cache_resource.clear()


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


@pytest.fixture(scope="module")
def explain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Explanation]]:
    file = tmp_path_factory.mktemp("config") / "config.json"
    file.write_text(json.dumps(DEMO))
    engine = LocalEngine(load_config(file))
    yield lambda **choices: engine.answer(ExplainPrediction(TraceKey(ModelKey("demo"), PROMPT), **choices))
    engine.close()


def header(at: AppTest) -> dict[str, Any]:
    (component,) = (sent for sent in at.get("bidi_component") if sent.proto.bytes)
    return unpack(component.proto.bytes)[0]


def captions(at: AppTest) -> str:
    return "\n".join(caption.value for caption in at.caption)


# --- sources


def spans(strip: str) -> list[tuple[str, str, str]]:
    """(title, style, text) of each token."""
    found = re.findall(r'<span role="listitem" title="([^"]*)" style="([^"]*)">(.*?)</span>', strip, re.DOTALL)
    return [(html.unescape(title), style, html.unescape(text)) for title, style, text in found]


@pytest.mark.parametrize("renormalize", [True, False])
def test_each_token_has_its_share_and_a_tint_that_grows_with_it(renormalize: bool, explain: Callable, trace: llm_tt.Trace) -> None:
    shown = spans(sources.strip(explain(renormalize=renormalize)))
    shares = llm_tt.flow_over_sources(llm_tt.extract_routes(trace, renormalize=renormalize))
    assert [text for *_, text in shown] == [text.replace(" ", "\u00b7") for text in trace.token_texts]
    assert [title.split(" · ")[0] for title, *_ in shown] == [
        f"token {position}: {share:.1%} of the flow" for position, share in enumerate(shares)
    ]
    tints = [float(re.findall(r"([\d.]+)\)", style)[0]) for _, style, _ in shown]
    assert tints == pytest.approx((0.55 * shares / shares.max()).tolist(), abs=6e-4)


def test_what_was_dropped_is_told(explain: Callable, trace: llm_tt.Trace) -> None:
    bare = llm_tt.extract_routes(trace, renormalize=False)
    dropped = f"**{1 - llm_tt.flow_over_sources(bare).sum():.0%}** of the flow was dropped below the threshold"
    assert sources.summary(explain(renormalize=False)).endswith(f"{dropped}.")
    assert sources.summary(explain()).endswith(f"{dropped}, before renormalising.")
    assert "was dropped with the weakest edges" in sources.summary(explain(mass=0.9))


def test_a_token_that_is_a_script_is_text(explain: Callable) -> None:
    explanation = explain()
    texts = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', *explanation.graph.token_texts[2:])
    strange = dataclasses.replace(explanation, graph=dataclasses.replace(explanation.graph, token_texts=texts))
    strip = sources.strip(strange)
    assert "<script" not in strip
    assert "<img" not in strip
    assert [text for *_, text in spans(strip)][:2] == [text.replace(" ", "\u00b7") for text in texts[:2]]
    assert "<script>" not in sources.summary(strange).replace("\\<script\\>", "")


def test_roles_of_a_chat_are_underlined(explain: Callable) -> None:
    explanation = explain()
    roles = ("special", "system", "user", "assistant", *[None] * (explanation.graph.n_tokens - 4))
    chat = dataclasses.replace(explanation, prompt=dataclasses.replace(explanation.prompt, roles=roles))
    shown = spans(sources.strip(chat))
    lines = [re.findall(r"border-bottom:2px solid (\S+)", style) for _, style, _ in shown]
    assert all(lines[:4])
    assert len({line[0] for line in lines[:4]}) == 4
    assert not any(lines[4:])
    assert shown[2][0].endswith(" · user")


def test_a_graph_in_which_nothing_reaches_a_token(explain: Callable) -> None:
    explanation = explain(threshold=0.999)
    assert len(spans(sources.strip(explanation))) == explanation.graph.n_tokens
    assert sources.summary(explanation).startswith("No flow reaches a token · **100%**")


def test_the_page_shows_the_strip(at: AppTest, explain: Callable) -> None:
    assert at.get("html")[0].proto.body == sources.strip(explain())
    assert sources.summary(explain()) in captions(at)


# --- keeping by flow


def test_a_share_of_the_flow_takes_the_place_of_the_threshold(at: AppTest, trace: llm_tt.Trace) -> None:
    assert header(at)["mass"] is None
    at.slider(key="threshold").set_value(0.06)
    answered(at)
    at.segmented_control(key="keep").set_value("Share of flow")
    answered(at)
    (component,) = (sent for sent in at.get("bidi_component") if sent.proto.bytes)
    for mass in (0.8, 0.95):
        at.segmented_control(key="mass").set_value(mass)
        answered(at)
        (component,) = (sent for sent in at.get("bidi_component") if sent.proto.bytes)
        sent, arrays = unpack(component.proto.bytes)
        expected = llm_tt.extract_routes_by_mass(trace, mass=mass)
        assert sent["mass"] == mass
        assert arrays["weight"] == pytest.approx(expected.weight, abs=1e-5)
    at.segmented_control(key="keep").set_value("Threshold")
    answered(at)
    assert at.slider(key="threshold").value == 0.06
    assert header(at)["mass"] is None
    assert header(at)["threshold"] == 0.06


# --- heads


def test_the_map_has_the_flow_of_every_head_and_the_labels_their_numbers(explain: Callable, trace: llm_tt.Trace) -> None:
    explanation, roles = explain(), llm_tt.head_roles(trace)
    flow = llm_tt.propagate(llm_tt.extract_routes(trace)).by_head(4)
    cells, clicks = heads_map.heatmap(explanation.head_flow, roles).data
    assert np.array(cells.z) == pytest.approx(100 * flow, abs=1e-4)
    letters = {(layer, head): role[0].upper() for layer, head, role, _ in roles.labelled()}
    assert letters
    for (layer, head), text in np.ndenumerate(np.array(cells.text)):
        assert text == letters.get((layer, head), "")
    assert len(clicks.x) == flow.size
    for x, y, hover in zip(clicks.x, clicks.y, clicks.customdata, strict=True):
        assert hover.startswith(f"<b>L{y} H{x}</b>: {flow[y, x]:.2%} of the flow")
        assert f"first token: {roles.first_token[y, x]:.2f}" in hover


def test_the_table_has_the_labelled_heads_by_falling_flow(at: AppTest, explain: Callable, trace: llm_tt.Trace) -> None:
    at.session_state["heads"] = True
    answered(at)
    roles, flow = llm_tt.head_roles(trace), explain().head_flow
    expected = sorted(roles.labelled(), key=lambda label: -flow[label[0], label[1]])
    table = next(frame.value for frame in at.dataframe if "role" in frame.value)
    assert table["head"].tolist() == [f"L{layer} H{head}" for layer, head, *_ in expected]
    assert table["role"].tolist() == [role for _, _, role, _ in expected]
    assert table["score"].tolist() == pytest.approx([score for *_, score in expected], abs=1e-5)
    assert table["flow"].tolist() == pytest.approx([100 * flow[layer, head] for layer, head, *_ in expected], abs=1e-4)
    assert table["induction score"].tolist() == pytest.approx([roles.induction[layer, head] for layer, head, *_ in expected], abs=1e-5)


def test_a_chosen_head_is_told_to_the_graph_and_forgotten_with_the_prompt(at: AppTest, explain: Callable) -> None:
    assert header(at)["highlight"] is None
    at.session_state["highlight"] = {"layer": 1, "head": 1}
    at.session_state["heads"] = True
    answered(at)
    assert header(at)["highlight"] == {"layer": 1, "head": 1}
    assert f"**L1 H1** carries **{explain().head_flow[1, 1]:.1%}** of the flow" in captions(at)
    at.button(key="forget_head").click()
    answered(at)
    assert header(at)["highlight"] is None
    at.session_state["highlight"] = {"layer": 1, "head": 1}
    at.text_area(key="prompt").set_value("The capital of France is")
    answered(at)
    assert header(at)["highlight"] is None
    assert "No token of this prompt occurs twice" in captions(at)


def test_heads_are_read_only_when_the_map_is_open(at: AppTest) -> None:
    assert not any("role" in frame.value for frame in at.dataframe)


# --- honesty


def test_the_dialog_has_limits_what_was_dropped_and_this_traces_errors(at: AppTest, explain: Callable) -> None:
    at.button(key="honesty_dialog").click()
    answered(at)
    explanation = explain()
    said = "\n".join(element.value for element in at.markdown)
    assert all(limit in said for limit in honesty.LIMITS)
    assert honesty.left_out(explanation) in said
    assert f"carry {1 - explanation.dropped:.1%} of the flow" in said
    table = next(frame.value for frame in at.dataframe if "attention" in frame.value)
    assert table["layer"].tolist() == [0, 1, 2, 3]
    assert 0 < table["attention"].max() < 1e-5
    assert "The parts of every layer add up to what the model computed, at all 15 tokens" in said


def test_a_trace_that_does_not_add_up_is_called_so() -> None:
    good, bad = LayerErrors(0, 1e-7, 0.0, 0.0, 0.0), LayerErrors(1, 1e-7, 3e-2, 0.0, 0.0)
    said = honesty.verdict(TraceCheck((good, bad), 64, 500, 1e-4))
    assert said.startswith("The parts do **not** add up everywhere, at 64 of 500 tokens: the largest relative error is 3.0e-02")
    assert honesty.verdict(TraceCheck((good,), 64, 500, 1e-4)).startswith("The parts of every layer add up")
