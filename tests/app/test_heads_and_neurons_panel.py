"""Heads and neurons in the inspector: Streamlit's AppTest runs the real script on the demo model; figures are taken apart."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from streamlit.testing.v1 import AppTest
from test_explore import DEMO, answered, errors, start, trace  # noqa: F401

import llm_tt
from app.markup import signed
from app.panels import heads as panel
from llm_tt.engine import inspection
from llm_tt.engine.messages import HeadReport
from llm_tt.lens.token_table import TokenTable
from llm_tt.lens.vocabulary import promoted_and_suppressed
from llm_tt.models.info import FfnShape
from llm_tt.text import visible

Start = Callable[..., AppTest]


def select(at: AppTest, **selection: str) -> AppTest:
    at.session_state["selection"] = selection
    return answered(at)


def click_row(at: AppTest, key: str, row: int) -> AppTest:
    at.session_state[key] = {"selection": {"rows": [row], "columns": [], "cells": []}}
    return answered(at)


def tables(at: AppTest, *columns: str) -> list[Any]:
    """The data frames with these columns."""
    return [frame.value for frame in at.dataframe if set(columns) <= set(frame.value.columns)]


def numbers(spec: Any) -> np.ndarray:
    """An array as plotly writes it."""
    if isinstance(spec, list):
        return np.array([[np.nan if cell is None else cell for cell in row] for row in spec], float)
    array = np.frombuffer(base64.b64decode(spec["bdata"]), spec["dtype"])
    return array.reshape([int(side) for side in spec["shape"].split(",")])


def tab(at: AppTest, name: str) -> AppTest:
    at.session_state["head_tab"] = name
    return answered(at)


def head_map(at: AppTest, name: str) -> np.ndarray:
    (element,) = tab(at, name).get("plotly_chart")
    return numbers(json.loads(element.proto.spec)["data"][0]["z"])


def causal(values: Any) -> np.ndarray:
    """Without the future."""
    return np.where(np.triu(np.ones(values.shape), 1) > 0, np.nan, values)


def words(at: AppTest) -> list[list[tuple[str, float]]]:
    return [list(zip(table["token"], table["size"], strict=True)) for table in tables(at, "token", "size")]


def assert_words(at: AppTest, promoted: TokenTable, suppressed: TokenTable) -> None:
    for shown, expected, sign in zip(words(at), (promoted, suppressed), (1, -1), strict=True):
        assert [token for token, _ in shown] == [visible(text) for text in expected.texts]
        assert [size for _, size in shown] == pytest.approx((sign * expected.scores).tolist(), abs=1e-4)


def strongest(trace: llm_tt.Trace) -> Any:  # noqa: F811
    return max((edge for edge in llm_tt.extract_routes(trace).edges() if edge.kind.key == "attention"), key=lambda edge: edge.weight)


def test_an_edge_shows_all_heads_together_and_a_selected_one_alone(start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    edge = strongest(trace)
    source, destination = (node.name for node in edge.ends)
    at = select(start(DEMO), type="edge", key="attention", **{"from": source, "to": destination})
    assert not errors(at)
    layer, i, j = edge.layer, edge.destination, edge.source
    np.testing.assert_allclose(head_map(at, "Attention"), causal(llm_tt.attention_map(trace, layer)), atol=1e-5)
    np.testing.assert_allclose(head_map(at, "Contribution"), causal(llm_tt.contribution_map(trace, layer)), atol=1e-5)
    outputs, mid = llm_tt.head_outputs(trace, layer, i, j), trace.blocks[layer].resid_mid[i]
    assert_words(tab(at, "Promoted and suppressed"), *promoted_and_suppressed(trace.model, outputs.sum(0), mid, 15))

    table = tables(at, "head", "drawn")[0]
    head = int(table["head"][1].split("H")[1])
    at = click_row(at, f"heads_{layer}_{i}_{j}", 1)
    np.testing.assert_allclose(head_map(at, "Attention"), causal(llm_tt.attention_map(trace, layer, head)), atol=1e-5)
    np.testing.assert_allclose(head_map(at, "Contribution"), causal(llm_tt.contribution_map(trace, layer, head)), atol=1e-5)
    assert_words(tab(at, "Promoted and suppressed"), *promoted_and_suppressed(trace.model, outputs[head], mid, 15))
    at.toggle(key="normalize").set_value(False)
    assert_words(answered(at), *promoted_and_suppressed(trace.model, outputs[head], mid, 15, normalize=False))


def test_a_node_after_attention_shows_its_heads_and_where_they_look(start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    at = select(start(DEMO), type="node", node="A2_13")
    assert not tables(at, "head")
    at.segmented_control(key="inspector_Tokens_Heads").set_value("Heads")
    at = answered(at)
    table = tables(at, "head", "from")[0]
    edges = llm_tt.attention_contributions(trace, 2, [13]).edges[0]
    assert table["contribution"].tolist() == pytest.approx([float(edges.sum()), *sorted(edges.sum(0).tolist(), reverse=True)], abs=1e-6)
    for name, origin in zip(table["head"][1:], table["from"][1:], strict=True):
        source = int(edges[:, int(name.split("H")[1])].argmax())
        assert origin == f"{visible(trace.token_texts[source])} ({source})"
    outputs = llm_tt.head_outputs(trace, 2, 13)
    at = tab(at, "Promoted and suppressed")
    assert_words(at, *promoted_and_suppressed(trace.model, outputs.sum(0), trace.blocks[2].resid_mid[13], 15))


def test_the_tab_stays_where_the_selection_has_it(start: Start) -> None:  # noqa: F811
    at = select(start(DEMO), type="node", node="A2_13")
    at.segmented_control(key="inspector_Tokens_Heads").set_value("Heads")
    at = select(answered(at), type="node", node="A1_4")
    assert at.segmented_control(key="inspector_Tokens_Heads").value == "Heads"
    at = select(at, type="node", node="M1_4")
    assert at.segmented_control(key="inspector_Tokens_Neurons").value == "Tokens"
    at = select(at, type="node", node="X0_4")
    assert not [control.key for control in at.segmented_control if control.key.startswith("inspector")]
    at = select(at, type="node", node="A3_2")
    assert at.segmented_control(key="inspector_Tokens_Heads").value == "Heads"
    assert tables(at, "head", "from")


@pytest.mark.parametrize("selection", [{"type": "node", "node": "M2_13"}, {"type": "edge", "key": "ffn", "from": "M2_13", "to": "I2_13"}])
def test_an_ffn_block_shows_its_neurons_and_more_on_request(
    start: Start,  # noqa: F811
    selection: dict[str, str],
    trace: llm_tt.Trace,  # noqa: F811
) -> None:
    at = select(start(DEMO), **selection)
    if selection["type"] == "node":
        at.segmented_control(key="inspector_Tokens_Neurons").set_value("Neurons")
        at = answered(at)
    row = llm_tt.neurons_at(trace, 2, 13)
    for k in (20, 120):
        table = tables(at, "neuron")[0]
        best = row.contributions.argsort(descending=True, stable=True)[:k].tolist()
        assert table["neuron"].tolist() == [f"neuron {neuron}" for neuron in best]
        assert table["contribution"].tolist() == pytest.approx(row.contributions[best].tolist(), abs=1e-7)
        assert table["activation"].tolist() == pytest.approx(row.activations[best].tolist(), abs=1e-5)
        if k == 20:
            at.button(key="more_neurons").click()
            at = answered(at)
    assert any("Select a row" in caption.value for caption in at.caption)
    neuron = best[1]
    at = click_row(at, "neurons_2_13", 1)
    direction, post = llm_tt.neuron_direction(trace, 2, 13, neuron), trace.blocks[2].resid_post[13]
    assert_words(at, *promoted_and_suppressed(trace.model, row.activations[neuron] * direction, post, 15))
    at.segmented_control(key="neuron_words").set_value("its output direction")
    assert_words(answered(at), *promoted_and_suppressed(trace.model, direction, post, 15))


def test_neurons_of_the_target_show_their_effects_and_can_be_ordered_by_them(start: Start, trace: llm_tt.Trace) -> None:  # noqa: F811
    at = select(start(DEMO), type="node", node="M2_14")
    at.selectbox(key="why_contrast").set_value("·Grace")
    at.segmented_control(key="inspector_Tokens_Neurons").set_value("Neurons")
    at = answered(at)
    effects, row = llm_tt.neuron_effects(trace, 2, -1, " Mary", " Grace"), llm_tt.neurons_at(trace, 2, 14)
    table = tables(at, "neuron")[0]
    numbers = [int(name.split()[1]) for name in table["neuron"]]
    assert numbers == row.contributions.argsort(descending=True, stable=True)[:20].tolist()
    assert table["effect"].tolist() == pytest.approx(effects[numbers].tolist(), abs=1e-6)
    assert any(f"their direct effect {signed(float(effects.sum()))}." in caption.value for caption in at.caption)
    at.segmented_control(key="neuron_order").set_value("effect")
    at = answered(at)
    table = tables(at, "neuron")[0]
    best = np.argsort(-np.abs(effects), kind="stable")[:20].tolist()
    assert table["neuron"].tolist() == [f"neuron {neuron}" for neuron in best]
    assert table["effect"].tolist() == pytest.approx(effects[best].tolist(), abs=1e-6)
    at = click_row(at, f"neurons_2_14_effect_{trace.model.encode(' Mary')[1]}_{trace.model.encode(' Grace')[1]}", 2)
    assert any(f"direct effect **{signed(float(effects[best[2]]))}** on `·Mary − ·Grace`" in line.value for line in at.markdown)
    at = select(at, type="node", node="M2_13")
    assert "effect" not in tables(at, "neuron")[0]
    assert "neuron_order" not in {control.key for control in at.segmented_control}
    at = select(at, type="node", node="M2_14")
    assert at.segmented_control(key="neuron_order").value == "effect"


def test_a_layer_without_neurons_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    at = select(start(DEMO), type="node", node="M2_13")
    monkeypatch.setattr(FfnShape, "n_neurons", 0)
    at.segmented_control(key="inspector_Tokens_Neurons").set_value("Neurons")
    at = answered(at)
    assert any("The FFN of layer 2 is shown as one block" in info.value for info in at.info)
    assert not errors(at)


def test_a_residual_edge_says_that_it_has_neither(start: Start) -> None:  # noqa: F811
    at = select(start(DEMO), type="edge", key="residual", **{"from": "I1_3", "to": "A2_3"})
    assert any("no head and no neuron" in caption.value for caption in at.caption)
    assert not errors(at)


@pytest.mark.parametrize("node", ["A2_99", "M9_1", "I4_0"])
def test_a_node_that_the_graph_lacks_gets_a_sentence(start: Start, node: str) -> None:  # noqa: F811
    at = select(start(DEMO), type="node", node=node)
    assert errors(at) == [f"This graph has no node {node}: it has 15 tokens and 4 layers."]


# --- the maps


def report(n_rows: int = 3, rows: tuple[int, int] | None = None, position: int = 2, **changes: Any) -> HeadReport:
    nothing = TokenTable(np.zeros(0, np.int64), (), np.zeros(0, np.float32))
    attention = np.tril(np.full((n_rows, n_rows), 0.25, np.float32))
    window = rows or (0, n_rows)
    values: dict[str, Any] = {"attention": attention, "contributions": attention / 2, "promoted": nothing, "suppressed": nothing} | changes
    return HeadReport(layer=1, head=0, position=position, source=None, rows=window, columns=window, contribution=0.3, **values)


def test_a_map_starts_at_zero_leaves_the_future_empty_and_marks_the_target() -> None:
    figure = panel.heatmap(report(), ["a", "b", "c"], "attention")
    (trace_,) = figure.data
    assert isinstance(trace_, go.Heatmap)
    assert (trace_.zmin, trace_.zmax, trace_.name) == (0, 0.25, None)
    np.testing.assert_array_equal(np.isnan(np.array(trace_.z, float)), np.triu(np.ones((3, 3)), 1) > 0)
    assert list(trace_.x) == list(trace_.y) == ["a<sub>0</sub>", "b<sub>1</sub>", "c<sub>2</sub>"]
    (mark,) = figure.layout.shapes
    assert (mark.y0, mark.y1) == (1.5, 2.5)
    assert figure.layout.yaxis.autorange == "reversed"
    assert trace_.hovertemplate == "from %{x} to %{y}: %{z:.3f}<br>contribution %{customdata:.3f}<extra></extra>"
    np.testing.assert_allclose(trace_.customdata, report().contributions)
    other = panel.heatmap(report(), ["a", "b", "c"], "contribution").data[0]
    assert other.zmax == 0.125
    np.testing.assert_allclose(other.customdata, report().attention)


def test_a_map_of_nothing_but_zeros_has_a_scale() -> None:
    zeros = np.zeros((3, 3), np.float32)
    assert panel.heatmap(report(attention=zeros), ["a", "b", "c"], "attention").data[0].zmax == 1


def test_a_window_is_named() -> None:
    texts = [str(position) for position in range(900)]
    figure = panel.heatmap(report(rows=(600, 603), position=601), texts, "attention")
    assert figure.layout.yaxis.title.text == "to (tokens 600 to 602 of 900)"
    assert figure.layout.shapes[0].y0 == 0.5
    assert next(iter(figure.data[0].x)) == "600<sub>600</sub>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" Mary", "·Mary<sub>5</sub>"),
        ("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;<sub>5</sub>"),
        ("a&lt;", "a&amp;lt;<sub>5</sub>"),
        ("\n", "⏎<sub>5</sub>"),
        ("<a href='javascript:alert(1)'>", "&lt;a·href='javasc…<sub>5</sub>"),
        ("\u202eabc", "\ufffdabc<sub>5</sub>"),
        ("", "∅<sub>5</sub>"),
    ],
)
def test_labels_are_text_and_not_markup(text: str, shown: str) -> None:
    assert panel.label(text, 5) == shown


def test_maps_that_take_long_are_waited_for_and_can_be_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    at = start(DEMO)
    go_on, compute = threading.Event(), inspection.inspect_head

    def slow(question: Any, trace: Any, progress: Any) -> HeadReport:  # noqa: F811
        progress("Computing contributions", 0.5)
        assert go_on.wait(10)
        progress("Computing contributions", 0.6)
        return compute(question, trace, progress)

    monkeypatch.setattr(inspection, "inspect_head", slow)
    at.session_state["selection"] = {"type": "node", "node": "A2_13"}
    at.session_state["inspector_wanted"] = "Heads"
    at.run()
    assert not at.get("plotly_chart")
    assert tables(at, "head", "from")
    at.button(key="cancel_InspectHead").click()
    at.run()
    go_on.set()
    at = answered(at)
    assert not at.get("plotly_chart")
    at.button(key="again_InspectHead").click()
    assert answered(at).get("plotly_chart")
