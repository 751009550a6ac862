"""The question in a real browser: asked by typing, shown as colours, figures and a table."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, expect
from running_app import App

import llm_tt

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    page = ExplorePage(tab).open(app.url)
    yield page
    tab.close()


def choose(page: ExplorePage, label: str, typed: str) -> None:
    box = page.page.get_by_role("combobox", name=label, exact=True)
    box.click()
    box.fill(typed)
    box.press("Enter")
    page.page.wait_for_timeout(300)
    page.settle()


def figure(text: str) -> float:
    return float(text.replace("\u2212", "-"))


def test_a_contrast_colours_the_graph_and_stays_when_the_threshold_moves(page: ExplorePage, trace: llm_tt.Trace) -> None:
    effects = llm_tt.direct_effects(trace, token=" Mary", contrast=" John")
    choose(page, "and not", "·John")
    expect(page.page.get_by_text("Difference of logits")).to_be_visible()
    shown = re.search(r"Difference of logits ·Mary − ·John: (\S+)", page.text())
    assert shown is not None
    assert figure(shown[1]) == pytest.approx(effects.logit, abs=2e-3)
    page.page.get_by_test_id("graph-coloring").select_option("effect")
    expect(page.graph).to_have_attribute("data-coloring", "effect")
    expect(page.page.get_by_test_id("graph-effect-scale")).to_contain_text("logits")
    page.shoot("question-colours")

    source, last = 3, trace.n_tokens - 1
    edge = max(
        (edge for edge in llm_tt.extract_routes(trace).edges() if edge.kind.key == "attention" and edge.destination == last != edge.source),
        key=lambda edge: (edge.layer, edge.weight),
    )
    source, destination = edge.ends
    at = page.locate({"type": "edge", "key": "attention", "from": source.name, "to": destination.name})
    page.page.mouse.move(at["x"], at["y"])
    told = page.page.get_by_test_id("graph-tooltip-effect")
    expect(told).to_contain_text("direct effect on ·Mary − ·John")
    number = re.search(r"[+\u2212][\d.]+", told.inner_text())
    assert number is not None
    assert figure(number[0]) == pytest.approx(float(effects.heads[edge.layer, :, edge.source].sum()), abs=6e-3)
    page.shoot("question-hover")

    page.press_slider("Threshold", "ArrowRight")
    expect(page.graph).to_have_attribute("data-n-edges", str(llm_tt.extract_routes(trace, threshold=0.045).n_edges))
    page.settle()
    expect(page.graph).to_have_attribute("data-coloring", "effect")
    expect(page.page.get_by_test_id("graph-coloring")).to_have_value("effect")
    assert page.data("mounts") == 1

    page.click({"type": "edge", "key": "attention", "from": source.name, "to": destination.name})
    expect(page.page.get_by_text("direct effect").first).to_be_visible()
    page.shoot("question-edge")


def test_the_parts_are_a_table(page: ExplorePage, trace: llm_tt.Trace) -> None:
    raising, lowering = llm_tt.direct_effects(trace).strongest(8)
    page.page.get_by_text("Parts for and against").click()
    page.page.wait_for_timeout(400)
    page.expect_cells(1, 0, [part.name for part in (raising + lowering[::-1])[:6]])
    page.shoot("question-parts")
    choose(page, "Why", "no such token")
    expect(page.page.get_by_text("Name a single one")).to_be_visible()
    expect(page.page.get_by_test_id("graph-coloring")).to_have_count(0)
    page.shoot("question-refused")
