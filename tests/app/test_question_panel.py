"""The question: what is chosen, what the table says, and what graph and inspector then show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from test_explore import DEMO, PROMPT, Start, answered, errors, frame, start  # noqa: F401

import llm_tt

COLUMNS = ["part", "effect", "lowers", "raises"]


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


def parts(at: AppTest) -> Any:
    return next(table.value for table in at.dataframe if list(table.value.columns) == COLUMNS)


def result(at: AppTest) -> str:
    return next(markdown.value for markdown in at.markdown if "sum of the parts" in markdown.value)


def ask(at: AppTest, token: str | None = None, contrast: str | None = None) -> AppTest:
    for key, typed in (("why_token", token), ("why_contrast", contrast)):
        box = at.selectbox(key=key)
        if typed is not None and typed not in box.options:
            # As the browser does; AppTest itself knows no typing.
            box.options.append(typed)
        box.set_value(typed)
    return answered(at)


def expect(at: AppTest, effects: llm_tt.DirectEffects) -> None:
    """The panel's table, and what the graph was sent."""
    table = parts(at)
    raising, lowering = effects.strongest(8)
    assert table["part"].tolist() == [part.name for part in raising + lowering[::-1]]
    assert table["effect"].tolist() == pytest.approx([part.effect for part in raising + lowering[::-1]], abs=1e-4)
    for effect, lowers, raises in zip(table["effect"], table["lowers"], table["raises"], strict=True):
        assert (raises, math.isnan(lowers)) == (effect, True) if effect > 0 else (math.isnan(raises), lowers) == (True, -effect)
    header, arrays = frame(at)
    assert header["effect_of"] == effects.of
    graph = llm_tt.extract_routes(llm_tt.load_model("demo").trace(PROMPT), header["target"], header["threshold"])
    np.testing.assert_allclose(arrays["effect"], effects.of_edges(graph), atol=1e-4)


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\u2212")


def test_without_a_choice_the_prediction_is_explained(start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    at = start(DEMO)
    effects = llm_tt.direct_effects(trace)
    expect(at, effects)
    assert result(at) == f"Logit of `·Mary`: **{signed(effects.logit)}** · sum of the parts **{signed(effects.total)}**"
    assert at.selectbox(key="why_token").placeholder == "·Mary (predicted)"


def test_a_contrast_of_two_predictions(start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    at = start(DEMO)
    assert "·Grace" in at.selectbox(key="why_contrast").options
    at.selectbox(key="why_contrast").set_value("·Grace")
    effects = llm_tt.direct_effects(trace, contrast=" Grace")
    expect(answered(at), effects)
    assert result(at).startswith(f"Difference of logits `·Mary − ·Grace`: **{signed(effects.logit)}**")


@pytest.mark.parametrize(("typed", "token"), [("·Paris", " Paris"), (" Paris", " Paris"), ("id:17", 17), ("Paris", "Paris")])
def test_a_typed_token(typed: str, token: str | int, start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    at = ask(start(DEMO), typed, "·John")
    effects = llm_tt.direct_effects(trace, token=token, contrast=" John")
    expect(at, effects)
    assert [caption.value for caption in at.caption if "was taken" in caption.value] == list(effects.notes)


def test_a_text_that_is_no_token_is_said_and_kept_and_the_graph_stays(start: Start) -> None:  # noqa: F811
    at = ask(start(DEMO), "Mary John")
    (message,) = errors(at)
    assert '"Mary John" is 2 tokens' in message
    assert at.selectbox(key="why_token").value == "Mary John"
    header, arrays = frame(at)
    assert (header["effect_of"], "effect" in arrays) == (None, False)


def test_threshold_and_target_keep_the_question(start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    at = ask(start(DEMO), "·Paris", "·John")
    at.slider(key="threshold").set_value(0.02)
    expect(answered(at), llm_tt.direct_effects(trace, token=" Paris", contrast=" John"))
    at.session_state["target"] = 6
    expect(answered(at), llm_tt.direct_effects(trace, 6, " Paris", " John"))


def test_what_was_typed_survives_an_empty_prompt(start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    at = ask(start(DEMO), "·Paris", "·John")
    at.text_area(key="prompt").set_value(" ")
    answered(at)
    assert not at.dataframe
    at.text_area(key="prompt").set_value(PROMPT)
    expect(answered(at), llm_tt.direct_effects(trace, token=" Paris", contrast=" John"))


def test_the_inspector_tells_the_effects_of_heads(start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    at = ask(start(DEMO), "·Mary", "·John")
    effects = llm_tt.direct_effects(trace, token=" Mary", contrast=" John")
    last, layer, source = trace.n_tokens - 1, 3, 4
    at.session_state["selection"] = {"type": "edge", "key": "attention", "from": f"I{layer - 1}_{source}", "to": f"A{layer}_{last}"}
    table = next(table.value for table in answered(at).dataframe if "contribution" in table.value.columns)
    shown = dict(zip(table["head"], table["effect"], strict=True))
    expected = {f"L{layer} H{head}": float(effects.heads[layer, head, source]) for head in range(4)}
    assert shown == pytest.approx(expected | {"all heads": sum(expected.values())}, abs=1e-4)
    said = f"direct effect **{signed(float(effects.heads[layer, :, source].sum()))}** on `·Mary − ·John`"
    assert said in [markdown.value for markdown in at.markdown]


def test_an_edge_elsewhere_has_no_effect_and_a_node_that_of_its_block(start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    at = start(DEMO)
    at.session_state["selection"] = {"type": "edge", "key": "attention", "from": "X0_1", "to": "A0_4"}
    table = next(table.value for table in answered(at).dataframe if "contribution" in table.value.columns)
    assert "effect" not in table.columns
    assert "no direct effect on `·Mary`" in [markdown.value for markdown in at.markdown]
    at.session_state["selection"] = {"type": "node", "node": f"M3_{trace.n_tokens - 1}"}
    said = f"What the FFN block wrote here: direct effect **{signed(float(llm_tt.direct_effects(trace).ffn[3]))}** on `·Mary`"
    assert said in [markdown.value for markdown in answered(at).markdown]


def test_a_model_that_was_unloaded_is_not_loaded_for_its_effects(start: Start) -> None:  # noqa: F811
    at = start(DEMO)
    service = _service(at)
    service.unload(at.session_state["conversation"].answer.trace.model)
    at = answered(at)
    assert frame(at)[0]["effect_of"] is None
    assert any("no longer in memory" in caption.value for caption in at.caption)


def _service(at: AppTest) -> Any:
    import sys
    from pathlib import Path

    from app import session

    return session.service(Path(sys.argv[1])).engine
