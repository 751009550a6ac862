"""A continuation in a real browser: generated, one of its tokens chosen, and what graph and predictions then show."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, expect
from running_app import App

import llm_tt
from llm_tt.text import visible

PROMPT = "When Mary and John went to the"


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    tab = browser.new_page(viewport={"width": 1440, "height": 1000})
    page = ExplorePage(tab).open(app.url)
    page.type_prompt(PROMPT)
    yield page
    tab.close()


def test_a_generated_token_becomes_the_target(page: ExplorePage) -> None:
    llm = llm_tt.load_model("demo")
    tokens = list(llm_tt.generate(llm, PROMPT, 8))
    start = llm.prompt(PROMPT).n_tokens
    trace = llm.trace(PROMPT, continuation=[token.token_id for token in tokens])

    page.page.get_by_text("Continuation", exact=True).click()
    box = page.page.get_by_role("spinbutton", name="Tokens")
    box.fill("8")
    box.press("Tab")
    page.page.get_by_role("button", name="Generate").click()
    expect(page.graph).to_have_attribute("data-target", str(start - 1), timeout=20_000)
    pills = page.page.locator(".st-key-continued_tokens").get_by_role("radio")
    expect(pills).to_have_count(len(tokens))
    expect(pills.nth(2)).to_contain_text(visible(tokens[2].text))
    expect(pills.nth(2)).to_contain_text(f"{tokens[2].probability:.3f}")
    pills.first.scroll_into_view_if_needed()
    page.shoot("continuation-generated")

    pills.nth(3).click()
    expect(page.graph).to_have_attribute("data-target", str(start + 2))
    page.settle()
    graph = llm_tt.extract_routes(trace, start + 2)
    expect(page.graph).to_have_attribute("data-n-edges", str(graph.n_edges))
    best = trace.logits(start + 2).topk(5).indices.tolist()
    page.expect_cells(0, 0, [visible(text) for text in llm.texts(best)])
    told = re.search(r"In the text follows\s+(\S+): rank (\d+), probability (\S+)", page.text())
    assert told is not None
    assert told[1] == visible(tokens[3].text)
    assert int(told[2]) == tokens[3].rank
    assert float(told[3]) == pytest.approx(tokens[3].probability, abs=1e-3)
    page.shoot("continuation-chosen")

    # The axis moves the choice.
    page.click({"type": "target", "position": start + 4})
    expect(pills.nth(5)).to_have_attribute("aria-checked", "true")
    page.page.get_by_role("button", name="Remove").first.click()
    expect(page.graph).to_have_attribute("data-target", str(start - 1))
    expect(pills.filter(has_text=visible(tokens[3].text))).to_have_count(0)


def test_the_whole_answer_at_once(page: ExplorePage) -> None:
    llm = llm_tt.load_model("demo")
    tokens = list(llm_tt.generate(llm, PROMPT, 8))
    first = llm.prompt(PROMPT).n_tokens - 1
    last = first + len(tokens) - 1
    trace = llm.trace(PROMPT, continuation=[token.token_id for token in tokens])
    graph = llm_tt.extract_routes_to_span(trace, range(first, last + 1))

    page.page.get_by_text("Continuation", exact=True).click()
    box = page.page.get_by_role("spinbutton", name="Tokens")
    box.fill("8")
    box.press("Tab")
    page.page.get_by_role("button", name="Generate").click()
    pills = page.page.locator(".st-key-continued_tokens").get_by_role("radio")
    expect(pills).to_have_count(len(tokens), timeout=20_000)
    whole = page.page.locator(".st-key-whole_answer")
    whole.get_by_text("Whole answer").click()
    expect(page.graph).to_have_attribute("data-targets", " ".join(map(str, range(first, last + 1))))
    expect(page.graph).to_have_attribute("data-n-edges", str(graph.n_edges))
    page.settle()
    expect(page.page.get_by_text(f"The graph explains what follows tokens {first} to {last}, all at once.")).to_be_visible()
    page.expect_cells(0, 0, [visible(text) for text in llm.texts(trace.logits(last).topk(3).indices.tolist())])
    at = page.locate({"type": "target", "position": first + 1})
    page.page.mouse.move(at["x"], at["y"])
    expect(page.page.get_by_test_id("graph-tooltip")).to_contain_text(f"one of {len(tokens)} targets; click to explain alone what follows")
    page.page.mouse.move(5, 5)
    page.shoot("whole-answer")
    assert f"target={first}-{last}" in page.page.url

    # Each of them can be had alone, the last too.
    page.click({"type": "target", "position": last})
    expect(page.graph).to_have_attribute("data-targets", str(last))
    expect(pills.last).to_have_attribute("aria-checked", "true")
    whole.get_by_text("Whole answer").click()
    expect(page.graph).to_have_attribute("data-n-edges", str(graph.n_edges))
    whole.get_by_text("Whole answer").click()
    expect(page.graph).to_have_attribute("data-targets", str(last))
