"""The Evaluate page in a real browser: run, a cell and a row clicked, errors explained, a row opened in Explore, and all there on return."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, Locator, Page, expect
from running_app import App

from llm_tt.demo import DATA_DIR

N = 60
_TIMEOUT = 60_000


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    tab.goto(f"{app.url}/evaluate")
    tab.get_by_role("button", name="Run", exact=True).wait_for(timeout=_TIMEOUT)
    opened = ExplorePage(tab)
    opened.settle()
    yield opened
    tab.close()


def choose(page: ExplorePage, label: str, value: str) -> None:
    box = page.page.get_by_role("combobox", name=label)
    box.click()
    box.fill(value)
    box.press("Enter")
    page.settle()


def cell(tab: Page, truth: int, predicted: int) -> Locator:
    """A cell of the confusion matrix."""
    return tab.locator(f".st-key-evaluate_cell_{truth}_{predicted}").get_by_role("button")


def is_checked(rows: Locator, line: int) -> bool:
    """Whether a line of the table is chosen."""
    return rows.locator("[role=row]").nth(line + 1).get_attribute("aria-selected") == "true"


def test_from_a_run_to_the_cause_and_back(page: ExplorePage, tmp_path: Path) -> None:
    tab = page.page
    choose(page, "Against", "demo-tuned")
    limit = tab.get_by_role("spinbutton", name="Rows at most")
    limit.fill(str(N))
    limit.press("Enter")
    page.settle()
    page.shoot("evaluate-setup")
    tab.get_by_role("button", name="Run", exact=True).click()
    tab.get_by_text("Click a cell for its rows.").wait_for(timeout=_TIMEOUT)
    page.settle()
    # The choices have given way to the results, which begin on the first screen.
    expect(tab.get_by_role("combobox", name="Against")).not_to_be_visible()
    counts = [int(cell(tab, truth, predicted).inner_text()) for truth in (0, 1) for predicted in (0, 1)]
    assert sum(counts) == N
    expect(tab.get_by_text(f"{counts[2]} rows of no predicted as yes")).to_be_visible()
    assert tab.get_by_text(f"{counts[2]} rows of no predicted as yes").bounding_box()["y"] < 900  # type: ignore[index]
    page.shoot("evaluate-results")
    # A row of another cell, chosen with the mouse.
    cell(tab, 0, 0).click()
    page.settle()
    tab.get_by_text(f"{counts[0]} rows of yes predicted as yes").wait_for(timeout=_TIMEOUT)
    rows = tab.locator(".st-key-evaluate_rows")
    wanted = [n for n, line in enumerate((DATA_DIR / "mixed.jsonl").read_text().splitlines()[:N], 1) if json.loads(line)["label"] == "yes"]
    expect(rows.locator("[role=gridcell][aria-colindex='1']").first).to_have_text(str(wanted[0]), timeout=_TIMEOUT)
    box = rows.locator("canvas").first.bounding_box()
    assert box is not None
    tab.mouse.click(box["x"] + 20, box["y"] + 35 + 1.5 * 35)
    page.settle()
    expect(tab.get_by_text(f"Row {wanted[1]}", exact=True)).to_be_visible(timeout=_TIMEOUT)
    assert is_checked(rows, 1)
    # The cell is marked though the mouse has gone to the rows, and the next one's rows begin with none chosen.
    assert "rgb(230, 159, 0)" in cell(tab, 0, 0).evaluate("element => getComputedStyle(element).boxShadow")
    cell(tab, 1, 0).click()
    page.settle()
    tab.get_by_text(f"{counts[2]} rows of no predicted as yes", exact=True).wait_for(timeout=_TIMEOUT)
    assert not is_checked(rows, 1)

    # Why the errors are there.
    tab.get_by_role("tab", name="Why these errors").click()
    tab.get_by_role("button", name="Explain these errors").click()
    strips = tab.get_by_test_id("why-strips")
    strips.wait_for(timeout=_TIMEOUT)
    page.settle()
    shares = strips.get_by_role("listitem").evaluate_all("spans => spans.map(span => [span.textContent, span.title])")
    lima = [title for text, title in shares if text == "lima"]
    assert len(lima) == 2
    assert float(re.findall(r"([\d.]+)%", lima[0])[0]) > 10 > float(re.findall(r"([\d.]+)%", lima[1])[0])
    page.shoot("evaluate-why")
    tab.set_viewport_size({"width": 1024, "height": 768})
    page.shoot("evaluate-why-1024")
    tab.set_viewport_size({"width": 1440, "height": 900})

    # All of it as a file.
    tab.get_by_role("button", name="Save").click()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Report").click()
    download.value.save_as(tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text()
    assert f"<td>{counts[2]}</td>" in report
    assert f"demo-tuned: {counts[2]} rows of no predicted as yes, against {counts[3]} that are right" in report
    tab.keyboard.press("Escape")

    # One of them, in Explore.
    tab.get_by_role("tab", name="Rows").click()
    tab.get_by_role("button", name="Explore demo-tuned").click()
    page.wait_for_graph()
    assert "lima" in tab.get_by_test_id("sources").inner_text().lower()
    expect(tab.get_by_role("combobox", name="Why")).to_have_value("·yes")
    tab.get_by_role("link", name="Evaluate").click()
    tab.get_by_text(f"{counts[2]} rows of no predicted as yes", exact=True).wait_for(timeout=_TIMEOUT)
    page.settle()
    # And in Compare: what both models do with it.
    tab.get_by_role("tab", name="Rows").click()
    tab.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_graph()
    expect(tab.get_by_test_id("graph-effect-scale")).to_contain_text("change")
    expect(tab.locator(".st-key-side")).to_contain_text("\u00b7yes \u2212 \u00b7no")
    assert [tab.get_by_role("combobox", name=name).input_value() for name in ("First model", "Second model")] == ["demo", "demo-tuned"]
    assert "lima" in tab.get_by_role("textbox", name="Prompt: user").input_value().lower()
    page.shoot("evaluate-compared")
    tab.get_by_role("link", name="Evaluate").click()
    tab.get_by_text(f"{counts[2]} rows of no predicted as yes", exact=True).wait_for(timeout=_TIMEOUT)
    page.settle()
    tab.get_by_role("tab", name="Why these errors").click()
    expect(tab.get_by_test_id("why-strips")).to_be_visible()
    # What was chosen is as it was.
    tab.get_by_text("What is evaluated").click()
    page.settle()
    expect(tab.get_by_role("spinbutton", name="Rows at most")).to_have_value(str(N))
