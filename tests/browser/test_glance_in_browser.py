"""Sources, heads map and honesty in a real browser, light and dark: what is shown is what the library computes, and a click reaches the graph."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, expect
from running_app import App

import llm_tt

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    tab = browser.new_page(viewport={"width": 1440, "height": 1300})
    yield ExplorePage(tab).open(app.url)
    tab.close()


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG contrast of two colours, 0 to 255 each."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_strip_has_every_token_with_its_share_and_is_readable(page: ExplorePage, trace: llm_tt.Trace) -> None:
    tokens = page.page.get_by_test_id("sources").locator("span[role=listitem]")
    shares = llm_tt.flow_over_sources(llm_tt.extract_routes(trace))
    assert tokens.count() == trace.n_tokens
    for position, share in enumerate(shares):
        assert tokens.nth(position).get_attribute("title").split(" · ")[0] == f"token {position}: {share:.1%} of the flow"  # type: ignore[union-attr]
    for scheme in ("light", "dark"):
        page.page.emulate_media(color_scheme=scheme)
        page.page.wait_for_timeout(300)
        colours = tokens.nth(int(shares.argmax())).evaluate(
            """element => {
                const read = text => { const c = document.createElement("canvas").getContext("2d"); c.fillStyle = text; c.fillRect(0, 0, 1, 1);
                                       return [...c.getImageData(0, 0, 1, 1).data]; };
                let ground = element.parentElement;
                while (ground && getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
                const style = getComputedStyle(element);
                const canvas = document.createElement("canvas").getContext("2d");
                for (const layer of [getComputedStyle(ground).backgroundColor, style.backgroundColor]) {
                  canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1);
                }
                return { text: read(style.color), ground: [...canvas.getImageData(0, 0, 1, 1).data] };
            }"""
        )
        assert contrast(tuple(colours["text"][:3]), tuple(colours["ground"][:3])) > 4.5
    page.shoot("sources")


def test_a_cell_that_is_clicked_shows_the_edges_of_its_head(page: ExplorePage, trace: llm_tt.Trace) -> None:
    graph = llm_tt.extract_routes(trace)
    started = time.monotonic()
    page.page.get_by_text("Heads at a glance").click()
    chart = page.page.get_by_test_id("stPlotlyChart")
    plot = chart.locator(".nsewdrag").first
    plot.wait_for(state="attached", timeout=30_000)
    print(f"from the click to the map: {time.monotonic() - started:.2f} s")
    page.settle()
    page.page.wait_for_timeout(500)
    plot.scroll_into_view_if_needed()
    for layer, head in ((1, 1), (0, 3)):
        box = plot.bounding_box()
        assert box is not None
        # Off the middle of the cell: all of it can be clicked.
        at = box["x"] + box["width"] * (head + 0.2) / 4, box["y"] + box["height"] * (3 - layer + 0.5) / 4
        page.page.mouse.move(*at)
        page.page.wait_for_timeout(200)
        page.page.mouse.click(*at)
        expected = [edge for edge in graph.edges() if edge.layer == layer and head in edge.heads]
        expect(page.graph).to_have_attribute("data-n-highlighted", str(len(expected)))
        page.settle()
        flow = llm_tt.propagate(graph).by_head(4)[layer, head]
        expect(page.page.get_by_text(f"L{layer} H{head} carries {flow:.1%} of the flow")).to_be_visible()
    page.shoot("heads-map")
    mounts = page.data("mounts")
    page.page.get_by_role("button", name="Show all edges alike").click()
    expect(page.graph).not_to_have_attribute("data-n-highlighted", re.compile(r"\d"))
    page.settle()
    assert page.data("mounts") == mounts


def test_a_share_of_the_flow_takes_the_place_of_the_threshold(page: ExplorePage, trace: llm_tt.Trace) -> None:
    page.page.get_by_role("radio", name="Share of flow").click()
    expected = llm_tt.extract_routes_by_mass(trace, mass=0.8)
    expect(page.graph).to_have_attribute("data-n-edges", str(expected.n_edges))
    expect(page.page.get_by_test_id("graph-count")).to_contain_text(f"{expected.n_edges} edges carry 80 % of the flow")
    page.page.get_by_role("radio", name="95 %").click()
    expect(page.graph).to_have_attribute("data-n-edges", str(llm_tt.extract_routes_by_mass(trace, mass=0.95).n_edges))
    page.settle()
    page.shoot("by-mass")


def test_the_dialog_says_what_is_not_shown_and_how_well_this_trace_adds_up(page: ExplorePage) -> None:
    page.page.get_by_role("button", name="What this shows and what it does not").click()
    dialog = page.page.get_by_role("dialog")
    expect(dialog.get_by_text("Routes are hypotheses, not causes.")).to_be_visible()
    expect(dialog.get_by_text("The parts of every layer add up to what the model computed, at all 15 tokens")).to_be_visible()
    page.settle()
    page.page.wait_for_timeout(300)
    page.shoot("honesty")
    page.page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
