"""The Compare page in a real browser: the planted shortcut's edge, both sides of it, a head of the map, answers, and the way to Explore and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, expect
from running_app import App

EDGE = {"type": "edge", "key": "attention", "from": "I2_13", "to": "A3_20"}


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    yield ExplorePage(tab).open(f"{app.url}/compare")
    tab.close()


def test_the_pair_from_difference_to_explore(page: ExplorePage) -> None:
    tab, side = page.page, page.page.locator(".st-key-side")
    # Coloured by change from the start, with a legend that says so.
    assert page.graph.get_attribute("data-coloring") == "effect"
    expect(tab.get_by_test_id("graph-effect-scale")).to_contain_text("+0.332 change")
    assert page.data("n-edges") == 94
    page.shoot("compare-difference")

    at = page.locate(EDGE)
    tab.mouse.move(at["x"], at["y"])
    tooltip = tab.get_by_test_id("graph-tooltip")
    expect(tooltip).to_contain_text("0.003 \u2192 0.335")
    expect(tooltip.get_by_test_id("graph-tooltip-only")).to_have_text("drawn in demo-tuned only")
    expect(tooltip).to_contain_text("0.003 \u2192 0.334")

    page.click(EDGE)
    expect(side).to_contain_text("attention edge")
    expect(side).to_contain_text("0.003 \u2192 0.335")
    expect(tab.get_by_test_id("graph-status")).to_contain_text("in demo-tuned only")
    page.shoot("compare-edge")

    tab.get_by_role("tab", name="Heads and blocks").click()
    page.settle()
    chart = tab.get_by_role("figure", name="Heat map of the change")
    cell = chart.locator(".heatmaplayer")
    cell.wait_for()
    chart.evaluate("element => element.scrollIntoView({block: 'center'})")
    tab.wait_for_timeout(300)
    box = cell.bounding_box()
    assert box is not None
    # The upper left cell: layer 3, head 0.
    tab.mouse.click(box["x"] + box["width"] / 10, box["y"] + box["height"] / 8)
    expect(side).to_contain_text("L3 H0")
    expect(side).to_contain_text("+1.436 \u2192 +8.979")
    page.settle()
    assert page.data("n-highlighted") >= 1
    page.shoot("compare-head")

    tab.get_by_role("tab", name="Answers").click()
    tab.get_by_role("button", name="Generate on both").click()
    for index, answer in enumerate(("\u00b7no", "\u00b7yes")):
        differing = tab.get_by_test_id(f"compared-answer-{index}").locator("[data-differs=true]")
        expect(differing).to_have_text([answer], timeout=30_000)
    page.shoot("compare-answers")

    tab.get_by_role("button", name="Explore demo-tuned").click()
    expect(tab.locator(".st-key-predictions_head")).to_be_visible(timeout=60_000)
    page.wait_for_graph()
    # The side, its node and the question went along.
    expect(tab.get_by_role("combobox", name="Model")).to_have_value("demo-tuned")
    expect(tab.get_by_test_id("graph-status")).to_contain_text("layer 3")
    expect(side).to_contain_text("\u00b7yes \u2212 \u00b7no")
    page.shoot("compare-explore")

    tab.get_by_role("link", name="Compare").click()
    expect(tab.get_by_test_id("graph-effect-scale")).to_contain_text("change", timeout=60_000)
    page.settle()
    expect(tab.get_by_role("combobox", name="Second model")).to_have_value("demo-tuned")
