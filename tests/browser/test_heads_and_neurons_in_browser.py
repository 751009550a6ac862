"""Heads and neurons in a real browser: a row opens the maps, hovering reads them, they open full width, in light and dark."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, Page, expect
from running_app import App

import llm_tt
from llm_tt.text import visible

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    tab = browser.new_page(viewport={"width": 1440, "height": 1300})
    yield ExplorePage(tab).open(app.url)
    tab.close()


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


def open_tab(page: ExplorePage, name: str) -> None:
    page.page.get_by_test_id("stButtonGroup").get_by_role("radio", name=name).click()
    page.page.wait_for_timeout(200)
    page.settle()


def select_row(page: ExplorePage, table: int, row: int) -> None:
    """Rows are drawn on a canvas; the box that selects one is at its left."""
    frame = page.page.get_by_test_id("stDataFrame").filter(visible=True).nth(table)
    frame.scroll_into_view_if_needed()
    frame.click(position={"x": 18, "y": 35 + 35 * row + 17})
    page.page.wait_for_timeout(300)
    page.settle()


def hover_texts(page: Page, chart: int, column: float, row: float, n: int) -> str:
    """What plotly says over a cell of a map of n tokens."""
    cells = page.locator(".js-plotly-plot").nth(chart).locator(".nsewdrag").first
    cells.scroll_into_view_if_needed()
    area = cells.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] * (column + 0.5) / n, area["y"] + area["height"] * (row + 0.5) / n)
    hover = page.locator(".hoverlayer .hovertext").first
    hover.wait_for(timeout=5000)
    return (hover.text_content() or "").replace("\u200b", "")  # Plotly puts it around subscripts.


def test_a_heads_row_opens_its_maps_which_can_be_read_and_opened_wide(page: ExplorePage, trace: llm_tt.Trace) -> None:
    page.click({"type": "node", "node": "A2_14"})
    open_tab(page, "Heads")
    expect(page.page.get_by_text("All heads · contribution")).to_be_visible()
    page.shoot("heads-all")
    head = int(page.cells(1, 0)[1].split("H")[1])
    started = time.monotonic()
    select_row(page, 1, 1)
    expect(page.page.get_by_text(f"L2 H{head} · contribution")).to_be_visible()
    print(f"from click to the head: {time.monotonic() - started:.2f} s, of which 0.3 s are a pause")
    attention = llm_tt.attention_map(trace, 2, head)
    source = int(attention[14].argmax())
    said = hover_texts(page.page, 0, source, 14, trace.n_tokens)
    assert said.startswith(f"from {visible(trace.token_texts[source])}{source} to ·to14: {float(attention[14, source]):.3f}")
    page.shoot("head")
    page.page.get_by_role("tab", name="Promoted and suppressed").click()
    page.shoot("head-words")
    page.page.get_by_role("button", name="Full width").click()
    dialog = page.page.get_by_role("dialog")
    expect(dialog.locator(".js-plotly-plot")).to_have_count(2)
    expect(dialog.locator(".js-plotly-plot .xtick text").first).to_be_visible()
    page.shoot("maps-wide")
    page.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.settle()
    page.press_slider("Threshold", "ArrowRight")
    page.settle()
    expect(page.page.get_by_role("dialog")).to_be_hidden()


def test_a_neurons_row_opens_its_words(page: ExplorePage, trace: llm_tt.Trace) -> None:
    page.click({"type": "node", "node": "M2_14"})
    open_tab(page, "Neurons")
    row = llm_tt.neurons_at(trace, 2, 14)
    best = row.contributions.argsort(descending=True)[:5].tolist()
    page.expect_cells(1, 0, [f"neuron {neuron}" for neuron in best])
    page.shoot("neurons")
    select_row(page, 1, 0)
    expect(page.page.get_by_text(f"neuron {best[0]} · activation")).to_be_visible()
    page.shoot("neuron")


def test_hostile_tokens_in_maps_are_text(page: ExplorePage) -> None:
    page.type_prompt("<b>Mary</b> & <a href='javascript:document.title=1'>John</a> gave a drink to")
    page.wait_for_graph()
    page.click({"type": "node", "node": "A2_2"})
    open_tab(page, "Heads")
    labels = page.page.locator(".js-plotly-plot").first.locator(".ytick text")
    labels.first.wait_for()
    said = "".join(labels.all_text_contents())
    assert "<" in said
    assert "&lt;" not in said
    assert page.page.locator(".js-plotly-plot a").count() == 0
    assert page.page.title() == "llm-tt"
    page.shoot("heads-hostile")
