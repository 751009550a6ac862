"""Other methods in a real browser: nothing is asked while closed, the quick ones when opened, the slow ones by their button."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, Locator, expect
from running_app import App

import llm_tt
from llm_tt.analysis.saliency_report import METHODS, NAMES, QUICK
from llm_tt.text import visible

PROMPT = "When Mary and John went to the store, John gave a drink to"
HOSTILE = "<b>Mary</b> <script>x</script> &lt;i&gt; went"


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    yield ExplorePage(tab).open(app.url)
    tab.close()


def opened(page: ExplorePage) -> ExplorePage:
    page.page.get_by_text("Other methods").click()
    page.page.get_by_test_id("saliency").wait_for()
    page.settle()
    return page


def strip(page: ExplorePage, method: str) -> Locator:
    return page.page.locator(f"[data-testid=saliency] [data-method={method}]")


def test_strips_curves_and_file(page: ExplorePage, tmp_path: Path) -> None:
    assert page.page.get_by_test_id("saliency").count() == 0
    opened(page)
    rows = page.page.locator("[data-testid=saliency] [role=list]")
    expect(rows).to_have_count(len(QUICK))
    trace = llm_tt.load_model("demo").trace(PROMPT)
    expected = llm_tt.saliency(trace)
    for method in QUICK:
        shown = strip(page, method).locator("[role=listitem]")
        assert shown.all_text_contents() == [visible(text) for text in trace.token_texts]
    names = [NAMES[method] for method in QUICK]
    chart = page.page.get_by_test_id("stPlotlyChart").first
    assert chart.locator(".legendtext").all_text_contents() == ["8 random orders, mean", *names]
    page.page.get_by_test_id("saliency").evaluate("element => element.scrollIntoView({block: 'start'})")
    page.shoot("saliency-quick")
    page.page.get_by_role("button", name="Run the slow ones").click()
    expect(rows).to_have_count(len(METHODS), timeout=60_000)
    page.settle()
    expect(chart.locator(".legendtext")).to_have_count(1 + len(METHODS))
    chart.evaluate("element => element.scrollIntoView({block: 'center'})")
    page.shoot("saliency-curves")
    page.page.get_by_test_id("saliency").evaluate("element => element.scrollIntoView({block: 'start'})")
    page.shoot("saliency-strips")
    for method in METHODS:
        titles = strip(page, method).locator("[role=listitem]").evaluate_all("spans => spans.map(span => span.title)")
        for title, score in zip(titles, expected.scores(method).tolist(), strict=True):
            number = re.search(r": (\S+)", title)
            assert number is not None
            if method == "flow":
                assert float(number[1].rstrip("%")) == pytest.approx(100 * score, abs=0.06)
            elif score == score:
                assert float(number[1].replace("\u2212", "-")) == pytest.approx(score, rel=0.01, abs=0.01)
            else:
                assert title.endswith("no score · never taken out")
    with page.page.expect_download() as download:
        page.page.locator(".st-key-saliency_csv button").first.click()
    download.value.save_as(tmp_path / "saliency.csv")
    saved = list(csv.DictReader(io.StringIO((tmp_path / "saliency.csv").read_bytes().decode(), newline="")))
    other = list(csv.DictReader(io.StringIO(expected.to_csv(), newline="")))
    assert [(line["table"], line["method"], line["text"]) for line in saved] == [
        (line["table"], line["method"], line["text"]) for line in other
    ]


def test_words_and_token_text_that_is_markup(page: ExplorePage) -> None:
    opened(page)
    page.type_prompt(HOSTILE)
    page.wait_for_graph()
    texts = [visible(text) for text in llm_tt.load_model("demo").trace(HOSTILE).token_texts]
    expect(strip(page, "gradient").locator("[role=listitem]")).to_have_text(texts)
    page.page.get_by_test_id("stExpander").filter(has_text="Other methods").get_by_role("radio", name="Words").click()
    expect(strip(page, "gradient").get_by_text("·<script>x</script>")).to_be_visible()
    assert page.page.locator("[data-testid=saliency] script, [data-testid=saliency] b, [data-testid=saliency] i").count() == 0
    page.shoot("saliency-words")
