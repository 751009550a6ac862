"""The layers' panel without a browser: the figures hold the library's numbers, the controls ask for what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from polling import answered
from streamlit.testing.v1 import AppTest

import llm_tt
from app.markup import plotly_text, probability
from app.panels import layers
from llm_tt.lens.layer_tables import LensGrid
from llm_tt.text import visible

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


@pytest.fixture(scope="module")
def best(trace: llm_tt.Trace) -> list[int]:
    return trace.logits(-1).topk(5).indices.tolist()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], AppTest]]:
    """Start the app on the demo model with the panel open."""

    def start() -> AppTest:
        (tmp_path / "config.json").write_text(json.dumps({"models": {"demo": None}, "default_model": "demo"}))
        monkeypatch.setattr("sys.argv", ["app/main.py", str(tmp_path / "config.json")])
        at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
        at.session_state["prompt"] = PROMPT
        at.session_state["layers_open"] = True
        return answered(at)

    yield start
    st.cache_resource.clear()


def charts(at: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in at.get("plotly_chart")]


def numbers(values: Any) -> np.ndarray:
    """Numbers of a figure as plotly serialises them."""
    if isinstance(values, dict):
        import base64

        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).reshape(
            [int(size) for size in str(values.get("shape", "-1")).split(",")]
        )
    return np.array(values)


def test_the_grid_shows_the_librarys_numbers_upwards(start: Callable, trace: llm_tt.Trace, best: list[int]) -> None:
    heat, squares = charts(start())[0]["data"]
    grid = llm_tt.lens_grid(trace, "post", best[0])
    np.testing.assert_allclose(numbers(heat["z"]), grid.top_probabilities, atol=1e-5)
    assert numbers(heat["y"]).tolist() == [0, 1, 2, 3, 4]
    assert [[text.rstrip("…") for text in row] for row in heat["text"]] == [
        [plotly_text(visible(grid.top_text(row, column)))[: len(heat["text"][row][column].rstrip("…"))] for column in range(grid.n_tokens)]
        for row in range(grid.n_rows)
    ]
    nodes = [grid.node(row, column) for row in range(grid.n_rows) for column in range(grid.n_tokens)]
    assert squares["customdata"] == nodes
    assert grid.probabilities is not None
    assert grid.ranks is not None
    told = squares["text"][nodes.index("I2_6")]
    assert f"p = {grid.top_probabilities[3, 6]:.3f}" in told
    assert f"entropy {grid.entropies[3, 6]:.2f} bits" in told
    assert f"p = {plotly_text(probability(float(grid.probabilities[3, 6])))}, rank {grid.ranks[3, 6]:,}" in told


@pytest.mark.parametrize("measure", ["entropy", "probability", "rank"])
def test_colours_are_what_the_selectbox_says(measure: str, start: Callable, trace: llm_tt.Trace, best: list[int]) -> None:
    at = start()
    at.selectbox(key="layers_measure").set_value(measure)
    at.selectbox(key="layers_token").set_value(" table")
    at.toggle(key="layers_both").set_value(True)
    at.toggle(key="layers_normalize").set_value(False)
    heat = charts(answered(at))[0]["data"][0]
    grid = llm_tt.lens_grid(trace, "both", " table", normalize=False)
    expected = {"entropy": grid.entropies, "probability": grid.probabilities, "rank": np.log10(grid.ranks)}[measure]  # type: ignore[arg-type]
    np.testing.assert_allclose(numbers(heat["z"]), expected, atol=1e-4)
    title = heat["colorbar"]["title"]["text"]
    assert title == {"entropy": "entropy, bits", "probability": "p of ·table", "rank": "rank of ·table"}[measure]
    assert heat.get("reversescale", False) == (measure == "rank")


@pytest.mark.parametrize("scale", ["probability", "rank"])
def test_trajectories_are_the_librarys(scale: str, start: Callable, trace: llm_tt.Trace, best: list[int]) -> None:
    at = start()
    at.session_state["layers_scale"] = scale
    at.toggle(key="layers_both").set_value(True)
    figure = charts(answered(at))[1]
    lines = llm_tt.token_trajectories(trace, -1, best)
    assert [line["name"] for line in figure["data"]] == [visible(text) for text in lines.texts]
    for index, line in enumerate(figure["data"]):
        np.testing.assert_allclose(
            numbers(line["y"]), getattr(lines, {"probability": "probabilities", "rank": "ranks"}[scale])[:, index], atol=1e-5
        )
    assert len({line["line"]["color"] for line in figure["data"]}) == len(lines.texts)


def test_another_target_is_followed(start: Callable, trace: llm_tt.Trace) -> None:
    at = start()
    at.session_state["target"] = 4
    figure = charts(answered(at))[1]
    assert [line["name"] for line in figure["data"]] == [visible(text) for text in llm_tt.token_trajectories(trace, 4).texts]


def test_nothing_is_asked_while_the_panel_is_closed(start: Callable) -> None:
    at = start()
    at.session_state["layers_open"] = False
    at.session_state["target"] = 3
    assert at.session_state["trajectories"].question.position == 14
    at = answered(at)
    assert at.session_state["trajectories"].question.position == 14
    assert charts(at) == []


def test_a_model_that_was_dropped_is_not_loaded_for_the_panel(start: Callable) -> None:
    at = start()
    from llm_tt.engine.messages import ModelKey

    service = at.session_state["conversation"].answer
    assert service is not None
    from app import session

    engine = session._last_engine().engine
    assert engine is not None
    engine.unload(ModelKey("demo"))
    at.run()
    assert any("no longer in memory" in info.value for info in at.info)
    assert not engine.is_loaded(ModelKey("demo"))
    at.button(key="layers_load").click()
    assert len(charts(answered(at))) == 2


def made_grid(n_rows: int, texts: tuple[str, ...]) -> LensGrid:
    shape = n_rows, len(texts)
    ids = np.arange(shape[0] * shape[1]).reshape(shape) % len(texts)
    halves = np.full(shape, 0.5, np.float32)
    points = ("X0", *(f"I{layer}" for layer in range(n_rows - 1)))
    return LensGrid(points, texts, True, ids, halves, halves, dict(enumerate(texts)), 0, texts[0], halves, ids + 1)


@pytest.mark.parametrize(
    ("n_rows", "n_tokens", "target", "expected"),
    [
        (13, 120, 119, range(120)),
        (13, 121, 120, range(61, 121)),
        (13, 1000, 500, range(455, 515)),
        (13, 1000, 3, range(60)),
        (81, 100, 99, range(51, 100)),
        (401, 30, 0, range(10)),
        (401, 8, 0, range(8)),
    ],
)
def test_long_prompts_are_shown_through_a_window_with_the_target_in_it(n_rows: int, n_tokens: int, target: int, expected: range) -> None:
    grid = made_grid(n_rows, tuple(f"t{index}" for index in range(n_tokens)))
    columns = layers.window(grid, target)
    assert columns == expected
    assert target in columns
    squares: Any = layers.grid_figure(grid, "top", columns, target, 50).data[1]
    assert len(squares.customdata) == n_rows * len(columns)


def test_the_selected_node_is_framed() -> None:
    grid = made_grid(3, ("a", "b", "c", "d"))
    figure: Any = layers.grid_figure(grid, "top", range(4), 3, 50, {"type": "node", "node": "I1_2"})
    squares = figure.data[1]
    (place,) = squares.selectedpoints
    assert (squares.x[place], squares.y[place], squares.customdata[place]) == (2, 2, "I1_2")
    for other in ({"type": "node", "node": "M1_2"}, {"type": "edge", "from": "X0_0", "to": "A0_1", "key": "attention"}, None):
        assert not layers.grid_figure(grid, "top", range(4), 3, 50, other).data[1].selectedpoints  # type: ignore[attr-defined]
    assert not layers.grid_figure(grid, "top", range(2), 1, 50, {"type": "node", "node": "I1_2"}).data[1].selectedpoints  # type: ignore[attr-defined]


@pytest.mark.parametrize(("value", "shown"), [(0, "0.000"), (4e-4, "<0.001"), (6e-4, "0.001"), (0.12345, "0.123"), (1, "1.000")])
def test_probabilities_have_three_decimals(value: float, shown: str) -> None:
    assert probability(value) == shown


def test_a_click_selects_and_leaves_the_chart_as_it_is(start: Callable) -> None:
    """Another figure would be another chart to Streamlit, and the page would jump."""
    at = start()
    before = at.get("plotly_chart")[0].proto
    at = click(at, "I1_4")
    after = at.get("plotly_chart")[0].proto
    assert at.session_state["selection"] == {"type": "node", "node": "I1_4"}
    assert (after.id, after.spec) == (before.id, before.spec)
    at.session_state["selection"] = {"type": "node", "node": "I2_5"}
    squares = charts(answered(at))[0]["data"][1]
    assert [squares["customdata"][place] for place in squares["selectedpoints"]] == ["I2_5"]
    marked = at.get("plotly_chart")[0].proto.id
    at = click(at, "X0_3")
    assert at.get("plotly_chart")[0].proto.id == marked
    at = click(at, None)
    assert at.session_state["selection"] is None


def click(at: AppTest, node: str | None) -> AppTest:
    """As the browser tells of a click; AppTest itself has no charts to click."""
    at.session_state[layers.KEY] = {"selection": {"points": [] if node is None else [{"customdata": node}]}}
    at.session_state["layers_clicked"] = {"type": "node", "node": node} if node else None
    at.session_state["selection"] = at.session_state["layers_clicked"]
    return answered(at)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "<b>", "&lt;", "a & b", '<a href="x">'])
def test_no_text_reaches_plotly_with_a_bracket(text: str) -> None:
    grid = made_grid(2, (text, "harmless"))
    figure: Any = layers.grid_figure(grid, "rank", range(2), 1, 50)
    heat, squares = figure.data
    shown = [*figure.layout.xaxis.ticktext[:1], heat.colorbar.title.text, *(text for row in heat.text for text in row)]
    told = [line.replace("<b>", "").replace("</b>", "").replace("<br>", "") for line in squares.text]
    for label in shown + told:
        assert "<" not in label
        assert ">" not in label
        assert "&" not in label.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "")
