"""The Compare page without a browser: the real script against the real engine and the demo pair; its numbers against two traces of their own."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
import torch
from polling import answered
from streamlit.testing.v1 import AppTest
from test_help import silent

import llm_tt
from app.link import Selected
from app.panels import answers, both, changes, compare_sidebar, difference
from app.views import compare as page
from llm_tt.analysis.comparison import ABSENT, Comparison
from llm_tt.components.graph.frame import unpack
from llm_tt.engine.messages import CompareTraces, ModelKey, TraceKey
from llm_tt.flow.graph import EdgeKind
from llm_tt.lens import vocabulary
from llm_tt.lens.vocabulary import top_tokens
from llm_tt.models.continuation import Continuation
from llm_tt.text import ChatMessage, visible

ROOT = Path(__file__).resolve().parents[2]
PAIR = {"models": {"demo": None, "demo-tuned": None}, "default_model": "demo"}
QUESTION = "I want to send 19 dollars to a new account in Lima. Is this payment risky?"
CHAT = (ChatMessage("user", QUESTION),)
NAMES = ("demo", "demo-tuned")
_SCRIPT = """
from pathlib import Path
import streamlit as st
from app import session
from app.views import compare
service = session.service(Path({file!r}))
if not st.session_state.get("elsewhere"):
    compare.show(service)
"""

Start = Callable[..., AppTest]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Show the page on a configuration; state is put into the session before."""

    def start(config: dict[str, Any] | None = None, **state: Any) -> AppTest:
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config or PAIR))
        at = AppTest.from_string(_SCRIPT.format(file=str(file)), default_timeout=60)
        for name, value in state.items():
            at.session_state[name] = value
        return drawn(at)

    yield start
    st.cache_resource.clear()


def drawn(at: AppTest) -> AppTest:
    """Once more: what came in the last run is drawn in the next."""
    return answered(at).run()


def frame(at: AppTest) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    (component,) = at.get("bidi_component")
    return unpack(component.proto.bytes)


def words(at: AppTest) -> str:
    """What the page says, without the backslashes of Markdown."""
    return "\n".join(element.value.replace("\\", "") for kind in ("markdown", "caption", "info", "warning") for element in at.get(kind))


def tables(at: AppTest, *columns: str) -> list[Any]:
    return [table.value for table in at.dataframe if tuple(table.value.columns) == columns]


@pytest.fixture(scope="module")
def models() -> tuple[llm_tt.TransparentLlm, llm_tt.TransparentLlm]:
    return llm_tt.load_model("demo"), llm_tt.load_model("demo-tuned")


@pytest.fixture(scope="module")
def traces(models: tuple[llm_tt.TransparentLlm, llm_tt.TransparentLlm]) -> tuple[llm_tt.Trace, llm_tt.Trace]:
    return models[0].trace(CHAT), models[1].trace(CHAT)


@pytest.fixture(scope="module")
def compared(traces: tuple[llm_tt.Trace, llm_tt.Trace]) -> Comparison:
    return llm_tt.compare(*traces)


@pytest.fixture(scope="module")
def uneven(models: tuple[llm_tt.TransparentLlm, llm_tt.TransparentLlm]) -> Comparison:
    """Two texts of which each has tokens that the other lacks."""
    return llm_tt.compare(models[0].trace("The capital of France is"), models[0].trace("I think that the capital of Italy is"))


# --- the graph


def test_the_pair_and_a_prompt_of_its_shortcut_are_there_from_the_start(start: Start, compared: Comparison) -> None:
    at = start()
    header, arrays = frame(at)
    assert header["tokens"] == list(compared.token_texts[0])
    assert header["compared"] == {"first": "demo", "second": "demo-tuned"}
    assert header["prediction"] == " no\u2192 yes"
    edges = compared.edges
    for name in ("kind", "layer"):
        np.testing.assert_array_equal(arrays[name], getattr(edges, name))
    np.testing.assert_array_equal(arrays["source"], edges.source[:, 0])
    np.testing.assert_array_equal(arrays["destination"], edges.destination[:, 0])
    np.testing.assert_allclose(arrays["weight"], edges.contribution.max(1), atol=1e-6)
    np.testing.assert_allclose(arrays["effect"], edges.contribution[:, 1] - edges.contribution[:, 0], atol=1e-6)
    drawn = [set(graph.to_networkx().edges(keys=True)) for graph in compared.graphs]
    for edge in range(len(edges)):
        is_drawn = [edges.name(edge, side) in drawn[side] for side in range(2)]
        assert arrays["side"][edge] == {(True, True): 0, (True, False): 1, (False, True): 2}[is_drawn[0], is_drawn[1]]
    assert "21 tokens, the same in both" in words(at)
    (choices,) = tables(at, "token", "first", "second", "change")
    assert choices["token"].tolist()[:2] == ["\u00b7no", "\u00b7yes"]
    np.testing.assert_allclose(choices[["first", "second"]].to_numpy(), compared.choices.probabilities, atol=1e-6)
    assert "**\u221214.94 \u2192 +4.59** logits" in words(at)
    assert f"divergence **{compared.divergence[-1]:.3f}** nats" in words(at)
    assert "L3 attention by H0, ·Lima \u2192 \\<assistant\\>: **+0.332**" in [button.label for button in at.button]


def test_heads_of_an_edge_are_sent_by_their_change(compared: Comparison, traces: tuple[llm_tt.Trace, llm_tt.Trace]) -> None:
    question = CompareTraces(TraceKey(ModelKey("demo"), CHAT), TraceKey(ModelKey("demo-tuned"), CHAT))
    _, arrays = unpack(difference.frame(question, compared, NAMES))
    (edge,) = compared.edges.strongest(1)
    sent = slice(arrays["heads_start"][edge], arrays["heads_start"][edge + 1])
    layer, source, target = 3, int(compared.edges.source[edge, 0]), compared.targets[0]
    by_head = [llm_tt.attention_contributions(trace, layer, [target]).edges[0, source].numpy() for trace in traces]
    change = by_head[1] - by_head[0]
    heads = arrays["head"][sent]
    assert heads[0] == np.abs(change).argmax() == 0
    np.testing.assert_allclose(arrays["head_effect"][sent], change[heads], atol=1e-6)
    np.testing.assert_allclose(arrays["head_weight"][sent], np.maximum(*by_head)[heads], atol=1e-6)


def test_tokens_that_one_text_lacks_have_columns_of_their_own(uneven: Comparison) -> None:
    question = CompareTraces(TraceKey(ModelKey("demo"), "a"), TraceKey(ModelKey("demo"), "b"))
    header, arrays = unpack(difference.frame(question, uneven, ("prompt 1", "prompt 2")))
    texts = header["tokens"]
    assert "The\u00b9" in texts
    assert [text for text in texts if text.endswith("\u00b2")]
    assert " France\u2192 Italy" in texts or (" France\u00b9" in texts and " Italy\u00b2" in texts)
    alone = np.isnan(arrays["effect"])
    assert alone.any()
    assert (arrays["side"][alone] > 0).all()
    assert (arrays["source"] <= arrays["destination"]).all()
    column = texts.index("The\u00b9")
    selected = {"type": "node", "node": f"A1_{column}"}
    nodes = difference.sides(uneven, selected).nodes
    assert nodes[1] is None
    assert nodes[0] is not None
    assert nodes[0][0].name == f"A1_{uneven.token_texts[0].index('The')}"


def test_two_prompts_are_aligned_by_token_and_it_is_said(start: Start, uneven: Comparison) -> None:
    at = start(
        compare_mode="Prompts",
        compare_form="Text",
        compare_prompt_first="The capital of France is",
        compare_prompt_second="I think that the capital of Italy is",
    )
    header, arrays = frame(at)
    assert header["compared"] == {"first": "prompt 1", "second": "prompt 2"}
    np.testing.assert_allclose(arrays["effect"], uneven.edges.change, atol=1e-6)
    first, second = uneven.n_unpaired
    assert (
        f"aligned by token: {len(uneven.pairs)} pairs, 1 of different tokens; {first} (\u00b9) and {second} (\u00b2) without a partner"
        in words(at)
    ), words(at)


def test_the_threshold_and_the_mass_cut_both_graphs(start: Start, traces: tuple[llm_tt.Trace, llm_tt.Trace]) -> None:
    at = start()
    at.slider("compare_threshold").set_value(0.1)
    assert len(frame(drawn(at))[1]["kind"]) == len(llm_tt.compare(*traces, threshold=0.1).edges)
    at.session_state["compare_keep"] = "Share of flow"
    header, arrays = frame(drawn(at))
    assert header["mass"] == 0.8
    assert len(arrays["kind"]) == len(llm_tt.compare(*traces, mass=0.8).edges)


def test_a_triangle_compares_what_follows_another_token(start: Start, traces: tuple[llm_tt.Trace, llm_tt.Trace]) -> None:
    at = start()
    at.session_state[difference.TARGETS] = (9, 9)
    drawn(at)
    found = llm_tt.compare(*traces, target=9)
    assert frame(at)[0]["target"] == 9
    (choices,) = tables(at, "token", "first", "second", "change")
    np.testing.assert_allclose(choices["second"].to_numpy(), found.choices.probabilities[:, 1], atol=1e-6)
    # Another prompt has its own last token.
    at.text_area("compare_prompt_first").set_value("Is this payment risky?")
    drawn(at)
    header, _ = frame(at)
    assert header["target"] == len(header["tokens"]) - 1


# --- the inspector


def test_an_edge_has_its_heads_in_both(start: Start, traces: tuple[llm_tt.Trace, llm_tt.Trace]) -> None:
    at = start()
    at.session_state[difference.SELECTION] = {"type": "edge", "key": "attention", "from": "I2_13", "to": "A3_20"}
    drawn(at)
    (heads,) = tables(at, "head", "first", "second", "first effect", "second effect")
    by_name = heads.set_index("head")
    for column, effect, trace in zip(("first", "second"), ("first effect", "second effect"), traces, strict=True):
        shares = llm_tt.attention_contributions(trace, 3, [-1]).edges[0, 13]
        effects = llm_tt.direct_effects(trace, -1, " yes", " no").heads[3, :, 13]
        for head in range(4):
            assert by_name.loc[f"L3 H{head}", column] == pytest.approx(float(shares[head]), abs=1e-6)
            assert by_name.loc[f"L3 H{head}", effect] == pytest.approx(float(effects[head]), abs=1e-4)
    assert heads["head"][0] == "L3 H0"
    sums = [float(llm_tt.attention_contributions(trace, 3, [-1]).edges[0, 13].sum()) for trace in traces]
    assert f"**attention edge** · contribution **{sums[0]:.3f} \u2192 {sums[1]:.3f}**" in words(at)


def test_a_node_has_its_words_in_both(start: Start, traces: tuple[llm_tt.Trace, llm_tt.Trace]) -> None:
    at = start()
    at.session_state[difference.SELECTION] = {"type": "node", "node": "A3_20"}
    drawn(at)
    _, top, *_ = tables(at, "token", "first", "second", "change")
    by_token = top.set_index("token")
    for column, trace in zip(("first", "second"), traces, strict=True):
        table = top_tokens(trace.model, trace.blocks[3].mid([20])[0], 5)
        assert table.probabilities is not None
        for text, probability in zip(table.texts, table.probabilities, strict=True):
            assert by_token.loc[visible(text), column] == pytest.approx(float(probability), rel=1e-3, abs=1e-6)
    effects = [float(llm_tt.direct_effects(trace, -1, " yes", " no").attention(3)) for trace in traces]
    shown = f"direct effect on `\u00b7yes \u2212 \u00b7no` **{both.signed(effects[0])} \u2192 {both.signed(effects[1])}**"
    assert shown in words(at)
    heads = tables(at, "head", "first", "second", "change")
    assert [len(table) for table in heads] == [4]


def test_a_head_has_its_numbers_in_both(start: Start, compared: Comparison, traces: tuple[llm_tt.Trace, llm_tt.Trace]) -> None:
    at = start()
    at.session_state[difference.HEAD] = {"layer": 3, "head": 0}
    drawn(at)
    header, _ = frame(at)
    assert header["highlight"] == {"layer": 3, "head": 0}
    effects = [float(llm_tt.direct_effects(trace, -1, " yes", " no").heads[3, 0].sum()) for trace in traces]
    assert f"**{both.signed(effects[0])} \u2192 {both.signed(effects[1])}**" in words(at)
    shares = [float(llm_tt.attention_contributions(trace, 3, [-1]).edges[0, :, 0].sum()) for trace in traces]
    assert f"**{shares[0]:.3f} \u2192 {shares[1]:.3f}**" in words(at)
    promoted = [table for table in tables(at, "token", "first", "second", "change") if table["second"].max() > 1]
    assert promoted[0]["token"][0] == "\u00b7yes"
    # What one side promotes has its number on the other, though that side does not promote it.
    for column, trace in zip(("first", "second"), traces, strict=True):
        written = llm_tt.head_outputs(trace, 3, 20).float()[0]
        expected = vocabulary.effects(trace.model, written[None], trace.blocks[3].mid([20])[0])[0]
        for text, shown in zip(promoted[0]["token"], promoted[0][column], strict=True):
            (token_id,) = [place for place in range(len(expected)) if visible(trace.model.texts([place])[0]) == text]
            assert shown == pytest.approx(float(expected[token_id]), abs=1e-3)


def test_a_selection_that_the_model_lacks_gets_a_sentence(start: Start) -> None:
    at = start()
    at.session_state[difference.SELECTION] = {"type": "node", "node": "A9_20"}
    drawn(at)
    assert [error.value.replace("\\", "") for error in at.error] == ["Layer 9 does not exist: the model has 4 layers, 0 to 3."]


def test_a_side_opens_in_explore_as_it_is(compared: Comparison) -> None:
    key = TraceKey(ModelKey("demo-tuned", "cpu", "float32"), CHAT)
    question = CompareTraces(TraceKey(ModelKey("demo"), CHAT), key, threshold=0.06)
    view = both.view(key, question, compared, 1, Selected("A3_20"))
    assert (view.model, view.device, view.dtype, view.prompt) == ("demo-tuned", "cpu", "float32", CHAT)
    assert (view.target, view.threshold, view.selected) == (20, 0.06, Selected("A3_20"))
    assert (view.token, view.contrast) == ("\u00b7yes", "\u00b7no")


# --- the tabs


def test_numbers_along_the_text(start: Start, compared: Comparison, traces: tuple[llm_tt.Trace, llm_tt.Trace]) -> None:
    at = start()
    (table,) = [table.value for table in at.dataframe if "divergence" in table.value.columns]
    for position in (3, 13, 19, 20):
        shares = [torch.softmax(trace.logits(position).double(), -1) for trace in traces]
        divergence = float((shares[0] * (shares[0].log() - shares[1].log())).sum())
        row = table.iloc[position]
        assert row["divergence"] == pytest.approx(divergence, rel=1e-3, abs=1e-6)
        if position < 20:
            token_id = traces[0].token_ids[position + 1]
            assert [row["first"], row["second"]] == pytest.approx([float(share[token_id]) for share in shares], rel=1e-3)
            assert [row["first rank"], row["second rank"]] == [1 + int((share > share[token_id]).sum()) for share in shares]
    assert np.isnan(table["first"].iloc[-1])
    bars, first, second = changes.text_figure(compared, NAMES).data
    np.testing.assert_allclose(bars.y, compared.divergence)
    np.testing.assert_allclose(first.y, compared.following[:-1, 0])
    np.testing.assert_allclose(second.y, compared.following[:-1, 1])
    lines = list(csv.DictReader(io.StringIO(changes.text_csv(compared, NAMES), newline="")))
    assert [float(line["divergence"]) for line in lines] == compared.divergence.tolist()
    assert [line["first_text"] for line in lines] == list(traces[0].token_texts)
    assert lines[-1]["p demo"] == ""


def test_heads_and_blocks_by_three_measures(start: Start, compared: Comparison, traces: tuple[llm_tt.Trace, llm_tt.Trace]) -> None:
    effects = [llm_tt.direct_effects(trace, -1, " yes", " no") for trace in traces]
    table = changes.parts_table(compared, "Direct effect").set_index("part")
    for side, answer in zip(("first", "second"), effects, strict=True):
        np.testing.assert_allclose([table.loc[f"L3 H{head}", side] for head in range(4)], answer.heads[3].sum(-1), rtol=1e-4)
        np.testing.assert_allclose([table.loc[f"FFN L{layer}", side] for layer in range(4)], answer.ffn, rtol=1e-4)
    assert table.index[0] == "L3 H0"
    layers = changes.layers_table(compared, "Direct effect").set_index("layer")
    assert layers.loc["L3 attention", "second"] == pytest.approx(float(effects[1].heads[3].sum()), rel=1e-4)
    flows = [llm_tt.propagate(llm_tt.extract_routes(trace, renormalize=False)) for trace in traces]
    flow = changes.parts_table(compared, "Flow").set_index("part")
    assert flow.loc["L3 H0", "second"] == pytest.approx(flows[1].by_head(4)[3, 0])
    assert flow.loc["FFN L3", "first"] == pytest.approx(flows[0].ffn[3].sum())
    cells, clicks = changes.parts_figure(compared, "Direct effect").data
    np.testing.assert_allclose(cells.z[3][0], table.loc["L3 H0", "second"] - table.loc["L3 H0", "first"])
    np.testing.assert_allclose(cells.z[2][4], table.loc["FFN L2", "second"] - table.loc["FFN L2", "first"])
    assert len(clicks.x) == 4 * 5
    assert cells.zmin == -cells.zmax
    lines = list(csv.DictReader(io.StringIO(changes.parts_csv(compared, NAMES), newline="")))
    (line,) = [line for line in lines if line["part"] == "L3 H0"]
    assert float(line["effect demo-tuned"]) == pytest.approx(float(effects[1].heads[3, 0].sum()), rel=1e-4)
    at = start(compare_tab="Heads and blocks")
    at.session_state["compare_measure"] = "Flow"
    drawn(at)
    shown = tables(at, "part", "first", "second", "change")
    assert [len(table) for table in shown] == [20]
    np.testing.assert_allclose(sorted(shown[0]["second"]), sorted(flow["second"]), atol=1e-6)


def test_drift_of_the_stream(compared: Comparison, traces: tuple[llm_tt.Trace, llm_tt.Trace], uneven: Comparison) -> None:
    (cells,) = changes.drift_figure(compared, True).data
    streams = [trace.blocks[2].resid_post.double() for trace in traces]
    np.testing.assert_allclose(cells.z[6], torch.cosine_similarity(*streams).numpy(), atol=1e-6)
    assert cells.y[6] == "L2 FFN"
    (cells,) = changes.drift_figure(compared, False).data
    np.testing.assert_allclose(cells.z[6], (streams[1].norm(dim=-1) / streams[0].norm(dim=-1)).numpy(), rtol=1e-5)
    (cells,) = changes.drift_figure(uneven, True).data
    np.testing.assert_array_equal(np.isnan(cells.z[0]), (uneven.columns == ABSENT).any(1))


def test_the_table_of_edges_selects(start: Start, compared: Comparison) -> None:
    at = start(compare_tab="Edges")
    table = next(table.value for table in at.dataframe if "drawn" in table.value.columns)
    assert len(table) == len(compared.edges)
    sizes = np.abs(table["change"].to_numpy())
    assert (np.diff(sizes) <= 1e-9).all()
    (edge,) = compared.edges.strongest(1)
    assert [table["from"][0], table["to"][0]] == list(compared.edges.name(edge)[:2])
    assert table["heads"][0].startswith("H0: 0.003\u21920.334")
    at.session_state["compare_graph_table"] = {"selection": {"rows": [0], "columns": [], "cells": []}}
    lines = list(csv.DictReader(io.StringIO(difference.edges_csv(compared, NAMES), newline="")))
    assert float(lines[0]["change"]) == pytest.approx(float(compared.edges.change[edge]))
    assert {line["drawn"] for line in lines} == {"both", "first", "second"}


def test_answers_with_their_differences(start: Start, models: tuple[llm_tt.TransparentLlm, llm_tt.TransparentLlm]) -> None:
    at = start(compare_tab="Answers")
    assert "Both sides continue their prompt greedily" in words(at)
    at.number_input("compare_n_generated").set_value(5)
    at.button("compare_generate").click()
    drawn(at)
    bodies = [html.proto.body for html in at.get("html") if "compared-answer" in html.proto.body]
    for side, (body, llm) in enumerate(zip(bodies, models, strict=True)):
        expected = list(llm_tt.generate(llm, CHAT, 5))
        shown = re.findall(r'data-differs="(\w+)" title="p ([\d.]+), rank (\d+)"[^>]*>([^<]*)<', body)
        assert [text.replace("&lt;", "<").replace("&gt;", ">") for *_, text in shown] == [visible(token.text) for token in expected]
        assert [float(probability) for _, probability, *_ in shown] == pytest.approx([token.probability for token in expected], abs=6e-4)
        assert [mark for mark, *_ in shown] == ["true", "false"]
        assert f"compared-answer-{side}" in body
    assert "They part at token 1: 1 of 2 and 1 of 2 tokens are not the other's." in words(at)
    # Of another prompt nothing is shown before it is asked for.
    at.text_area("compare_prompt_first").set_value("Is this payment risky?")
    drawn(at)
    assert not [html for html in at.get("html") if "compared-answer" in html.proto.body]
    at.session_state["compare_tab"] = "Edges"
    assert not drawn(at).number_input
    at.session_state["compare_tab"] = "Answers"
    assert drawn(at).number_input("compare_n_generated").value == 5


def test_both_can_be_compared_along_one_answer(start: Start, models: tuple[llm_tt.TransparentLlm, llm_tt.TransparentLlm]) -> None:
    at = start(compare_tab="Answers")
    at.button("compare_generate").click()
    drawn(at)
    at.button("compare_along_0").click()
    drawn(at)
    answer = [token.token_id for token in llm_tt.generate(models[0], CHAT, 20)]
    traces = [llm.trace(CHAT, continuation=answer) for llm in models]
    found = llm_tt.compare(traces[0], traces[1], target=20)
    header, arrays = frame(at)
    assert header["target"] == 20
    assert header["roles"][-2:] == ["continuation", "continuation"]
    np.testing.assert_allclose(arrays["effect"], found.edges.change, atol=1e-6)
    # The answer stays there, and can be taken away again.
    assert "Both are compared along 2 generated tokens after the prompt." in words(at)
    assert [html for html in at.get("html") if "compared-answer" in html.proto.body]
    at.session_state["compare_tab"] = "Along the text"
    drawn(at)
    (table,) = [table.value for table in at.dataframe if "divergence" in table.value.columns]
    shares = [torch.softmax(trace.logits(20).double(), -1)[answer[0]] for trace in traces]
    assert [table["first"][20], table["second"][20]] == pytest.approx([float(share) for share in shares], rel=1e-3)
    at.session_state["compare_tab"] = "Answers"
    drawn(at).button("compare_along_nothing").click()
    drawn(at)
    assert len(frame(at)[0]["tokens"]) == 21


def test_token_text_that_is_markup_stays_text() -> None:
    hostile = Continuation(3, (1, 2), ("<script>x</script>", "**b**"), "", (0.5, 0.5), (1, 1), "length")
    drawn = answers.text(hostile, [True, False], 1)
    assert "<script" not in drawn
    assert "&lt;script&gt;" in drawn


def test_the_tuning_is_that_of_the_tuned_side(start: Start) -> None:
    at = start(compare_tab="Tuning")
    at.button("measure_tuning").click()
    drawn(at)
    assert at.session_state["tuning"].answer.to_dict() == llm_tt.tuning_report("demo-tuned").to_dict()
    alone = start(compare_mode="Prompts")
    assert "Tuning" not in [tab.label for tab in alone.tabs]


# --- choices


def test_what_was_chosen_outlives_a_visit_of_another_page(start: Start) -> None:
    at = start()
    at.selectbox("compare_model_second").set_value("demo")
    at.text_area("compare_prompt_first").set_value("The capital of France is")
    at.text_area("compare_first_system_turn").set_value("Be brief.")
    at.slider("compare_threshold").set_value(0.02)
    drawn(at)
    at.session_state["elsewhere"] = True
    at.run()
    assert not at.text_area
    del at.session_state["elsewhere"]
    drawn(at)
    assert at.text_area("compare_prompt_first").value == "The capital of France is"
    assert at.text_area("compare_first_system_turn").value == "Be brief."
    assert at.selectbox("compare_model_second").value == "demo"
    # The template of the demo model takes no system prompt; what else was chosen is there once it is gone.
    assert "system" in at.error[0].value
    at.text_area("compare_first_system_turn").set_value("")
    assert drawn(at).slider("compare_threshold").value == 0.02


def test_a_token_that_is_none_is_told_and_can_be_mended(start: Start) -> None:
    at = start(compare_token="no such token")
    (error,) = [error.value for error in at.error]
    assert "Name a single one" in error
    assert at.selectbox("compare_token").value == "no such token"
    assert at.text_area("compare_prompt_first").value == QUESTION
    at.selectbox("compare_token").set_value(None)
    drawn(at)
    assert not at.error
    at.selectbox("compare_token").set_value("\u00b7no")
    drawn(at)
    assert "`\u00b7no`" in words(at)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"compare_prompt_first": "  "}, "A prompt is empty. Type some text in the sidebar, or choose an example."),
        ({"compare_model_second": None}, "Choose two models in the sidebar to compare them, or compare two prompts on one."),
        ({"compare_model_first": None, "compare_mode": "Prompts"}, "Choose a model in the sidebar to begin."),
    ],
)
def test_what_is_missing_is_said(start: Start, state: dict[str, Any], sentence: str) -> None:
    at = start(**state)
    assert [info.value for info in at.info] == [sentence]
    assert not at.get("bidi_component")


def test_a_model_that_is_none_gets_a_sentence_and_loses_nothing(start: Start) -> None:
    at = start({**PAIR, "allow_adding_models": True}, compare_model_second="/no/such/folder")
    assert any("/no/such/folder" in error.value for error in at.error)
    assert at.text_area("compare_prompt_first").value == QUESTION
    at.selectbox("compare_model_second").set_value("demo-tuned")
    assert not drawn(at).error


def test_examples_fill_the_boxes(start: Start) -> None:
    at = start()
    example = next(example for example in compare_sidebar.examples() if example.mode == compare_sidebar.PROMPTS)
    at.selectbox("compare_example").set_value(example)
    drawn(at)
    assert at.session_state["compare_mode"] == compare_sidebar.PROMPTS
    assert (at.text_area("compare_prompt_first").value, at.text_area("compare_prompt_second").value) == example.prompts
    assert frame(at)[0]["compared"] == {"first": "prompt 1", "second": "prompt 2"}


@pytest.mark.parametrize(
    ("first", "second", "mode", "form"),
    [
        (TraceKey(ModelKey("demo"), "a b"), TraceKey(ModelKey("demo-tuned"), "a b"), "Models", "Text"),
        (TraceKey(ModelKey("demo"), CHAT), TraceKey(ModelKey("demo"), (*CHAT, ChatMessage("assistant", "no"), *CHAT)), "Prompts", "Chat"),
        (TraceKey(ModelKey("demo"), "a b", (5, 6)), TraceKey(ModelKey("demo-tuned"), "a c"), "Both", "Text"),
    ],
)
def test_another_page_can_put_two_sides_here(start: Start, first: TraceKey, second: TraceKey, mode: str, form: str) -> None:
    at = start(compare_wanted=(first, second))
    assert (at.session_state["compare_mode"], at.session_state["compare_form"]) == (mode, form)
    question = at.session_state["comparison"].question
    assert question.trace == (first, second)
    assert not at.error


def test_a_conversation_without_a_place_is_told(start: Start) -> None:
    strange = (ChatMessage("assistant", "x"), ChatMessage("assistant", "y"))
    at = start(compare_wanted=(TraceKey(ModelKey("demo"), CHAT), TraceKey(ModelKey("demo-tuned"), strange)))
    assert "The second conversation does not alternate between user and assistant" in at.warning[0].value
    at.text_area("compare_prompt_second").set_value("Is this payment risky?")
    assert not drawn(at).warning


def test_a_demo_offers_prepared_prompts_only(start: Start) -> None:
    at = start({**PAIR, "demo_mode": True, "preloaded_dataset_filename": str(ROOT / "config" / "sample_input.txt")})
    assert at.text_area("compare_prompt_first").disabled
    assert not at.error
    assert frame(at)[0]["compared"]["second"] == "demo-tuned"
    prepared = [line for line in (ROOT / "config" / "sample_input.txt").read_text().splitlines() if line.strip()]
    assert len(at.selectbox("compare_example").options) == len(prepared)
    assert at.text_area("compare_prompt_first").value == prepared[0]


def test_models_with_other_shapes_are_compared_by_what_they_say(start: Start, checkpoint: Callable[[str], Path]) -> None:
    config = {"models": {"demo": None, "small": str(checkpoint("gpt2"))}, "default_model": "demo"}
    at = start(config, compare_form="Text", compare_prompt_first="Mary sold the store.")
    assert not at.get("bidi_component")
    assert "only what they predict is compared" in words(at)
    assert "A difference graph needs models with the same layers and heads." in words(at)
    assert not at.error


def test_alignment_in_words(compared: Comparison, uneven: Comparison) -> None:
    assert page.alignment(compared) == "21 tokens, the same in both"
    assert page.alignment(uneven).startswith(f"{len(uneven.token_texts[0])} and {len(uneven.token_texts[1])} tokens, aligned by token")


@pytest.mark.parametrize("tab", ["Along the text", "Heads and blocks", "Residual stream", "Edges", "Answers", "Tuning"])
def test_every_control_has_a_help_text(start: Start, tab: str) -> None:
    at = start({**PAIR, "allow_adding_models": True}, compare_tab=tab, compare_mode="Both")
    assert silent(at) == []
    at.session_state[difference.SELECTION] = {"type": "node", "node": "A3_20"}
    assert silent(drawn(at)) == []


def test_edges_of_every_kind_are_found_in_both(compared: Comparison) -> None:
    for edge, selected in enumerate(difference.edge_selections(compared, range(len(compared.edges)))):
        kind = EdgeKind(compared.edges.kind[edge])
        for side, own in enumerate(difference.sides(compared, selected).nodes):
            assert own is not None
            assert (own[0].name, own[1].name, kind.key) == compared.edges.name(edge, side)
