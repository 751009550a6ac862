"""The layers at a glance in a real browser: what is drawn, what a click selects, and that token texts are never markup."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, Locator, expect
from running_app import App

import llm_tt
from app.markup import probability
from app.panels import layers
from llm_tt.lens.layer_tables import LensGrid, Trajectories
from llm_tt.text import visible

PROMPT = "When Mary and John went to the store, John gave a drink to"
HOSTILE = "<b>Mary</b> <script>x</script> &lt;i&gt; went"


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    yield opened(ExplorePage(tab).open(app.url))
    tab.close()


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


def opened(page: ExplorePage) -> ExplorePage:
    page.page.get_by_text("Layers at a glance").click()
    chart(page).wait_for()
    page.settle()
    return page


def chart(page: ExplorePage, index: int = 0) -> Locator:
    return page.page.get_by_test_id("stPlotlyChart").nth(index)


def cell(page: ExplorePage, row: int, column: int, n_rows: int, n_columns: int) -> tuple[float, float]:
    """Where a cell is on the screen: the drag layer of plotly covers the plot's area exactly."""
    area = chart(page).locator(".nsewdrag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    return box["x"] + box["width"] * (column + 0.5) / n_columns, box["y"] + box["height"] * (n_rows - row - 0.5) / n_rows


def click(page: ExplorePage, row: int, column: int, n_rows: int, n_columns: int) -> None:
    x, y = cell(page, row, column, n_rows, n_columns)
    page.page.mouse.move(x, y)
    page.page.wait_for_timeout(150)
    page.page.mouse.click(x, y)
    page.page.wait_for_timeout(300)
    page.settle()


def framed(page: ExplorePage) -> Locator:
    """The squares of the grid that can be seen."""
    return chart(page).locator("g.points path:not([style*='opacity: 0'])")


def test_cells_say_the_top_tokens_and_a_click_selects_the_node(page: ExplorePage, trace: llm_tt.Trace) -> None:
    grid = llm_tt.lens_grid(trace)
    shape = grid.n_rows, grid.n_tokens
    drawn = chart(page).locator("g.heatmap-label text").all_text_contents()
    expected = [visible(grid.top_text(row, column)) for row in range(grid.n_rows) for column in range(grid.n_tokens)]
    assert sorted(drawn) == sorted(text if len(text) <= 9 else text[:9] + "…" for text in expected)
    for row, column, words in ((2, 5, "layer 1, after the FFN"), (2, 5, "layer 1, after the FFN"), (0, 3, "token embedding")):
        click(page, row, column, *shape)
        expect(page.page.get_by_text(f"token {column} · {words}")).to_be_visible()
        expect(framed(page)).to_have_count(1)
        page.expect_cells(1, 1, [visible(grid.top_text(row, column))])
        page.graph.evaluate("element => element.scrollIntoView({block: 'center'})")
        page.click({"type": "node", "node": "I0_1"})
        expect(page.page.get_by_text("token 1 · layer 0, after the FFN")).to_be_visible()
    click(page, 3, 14, *shape)
    page.shoot("layers-grid")


def test_pointing_at_a_cell_tells_its_numbers(page: ExplorePage, trace: llm_tt.Trace) -> None:
    grid = llm_tt.lens_grid(trace, token=int(trace.logits(-1).argmax()))
    assert grid.probabilities is not None
    assert grid.ranks is not None
    x, y = cell(page, 2, 7, grid.n_rows, grid.n_tokens)
    page.page.mouse.move(x, y)
    told = chart(page).locator("g.hovertext")
    expect(told).to_be_visible()
    text = told.text_content() or ""
    for part in (
        f"token 7 {visible(grid.token_texts[7])}",
        visible(grid.top_text(2, 7)),
        f"p = {grid.top_probabilities[2, 7]:.3f}",
        f"entropy {grid.entropies[2, 7]:.2f} bits",
        f"p = {probability(float(grid.probabilities[2, 7]))}, rank {grid.ranks[2, 7]:,}",
    ):
        assert part in text
    page.shoot("layers-hover")


def test_a_typed_token_is_followed_and_what_is_no_token_is_explained(page: ExplorePage, trace: llm_tt.Trace) -> None:
    box = page.page.get_by_role("combobox", name="Chosen token")
    for typed in ("Johnny Mary", "·John"):
        box.click()
        box.fill(typed)
        box.press("Enter")
        page.page.wait_for_timeout(400)
        page.settle()
        if typed == "Johnny Mary":
            expect(page.page.get_by_text('"Johnny Mary" is ')).to_have_count(1)
            expect(chart(page, 1)).to_be_visible()
    expect(page.page.get_by_text("Name a single one")).to_be_hidden()
    names = chart(page, 1).locator(".legendtext").all_text_contents()
    best = trace.model.texts(trace.logits(-1).topk(5).indices.tolist())
    assert names == list(dict.fromkeys([*map(visible, best), "·John"]))
    page.page.get_by_role("combobox", name="Colour", exact=True).click()
    page.page.get_by_role("option", name="Rank of the chosen token").click()
    page.settle()
    page.page.get_by_text("After attention too").click()
    page.settle()
    page.page.get_by_role("radio", name="rank").click()
    page.settle()
    expect(chart(page, 1).get_by_text("rank", exact=True)).to_be_visible()
    chart(page, 1).evaluate("element => element.scrollIntoView({block: 'end'})")
    page.shoot("layers-rank")


def test_the_csv_is_the_librarys(page: ExplorePage, trace: llm_tt.Trace, tmp_path: Path) -> None:
    with page.page.expect_download() as download:
        page.page.locator(".st-key-layers_csv").get_by_role("button").click()
    download.value.save_as(tmp_path / "layers.csv")
    saved = list(csv.DictReader(io.StringIO((tmp_path / "layers.csv").read_bytes().decode(), newline="")))
    expected = llm_tt.lens_grid(trace, token=int(trace.logits(-1).argmax())).to_csv()
    for row, other in zip(saved, csv.DictReader(io.StringIO(expected, newline="")), strict=True):
        assert row["node"] == other["node"]
        assert row["top_token"] == other["top_token"]
        assert float(row["entropy_bits"]) == pytest.approx(float(other["entropy_bits"]), abs=1e-4)
        assert float(row["chosen_probability"]) == pytest.approx(float(other["chosen_probability"]), abs=1e-5)


def test_token_text_of_a_prompt_is_never_markup(page: ExplorePage) -> None:
    page.type_prompt(HOSTILE)
    page.wait_for_graph()
    texts = [visible(text) for text in llm_tt.load_model("demo").trace(HOSTILE).token_texts]
    expect(chart(page).locator(".xtick text")).to_have_count(len(texts))
    assert chart(page).locator(".xtick text").all_text_contents() == texts
    assert "<bos>" in texts
    assert page.page.title() == "llm-tt"
    page.shoot("layers-markup")


EVIL = (
    "<b>bold</b>",
    "<script>document.title='owned'</script>",
    "&lt;i&gt;",
    '<a href="javascript:alert(1)">x</a>',
    "%{x}<br>",
    "$\\alpha$",
)


def test_no_label_of_plotly_is_markup(browser: Browser) -> None:
    """Whole tokens that are markup, in cells, axis, hover and legend, drawn by plotly itself."""
    n = len(EVIL)
    ids, numbers = np.tile(np.arange(n), (2, 1)), np.full((2, n), 0.5, np.float32)
    grid = LensGrid(("X0", "I0"), EVIL, True, ids, numbers, numbers, dict(enumerate(EVIL)), 1, EVIL[1], numbers, ids + 1)
    lines = Trajectories(0, ("X0", "I0"), True, tuple(range(n)), EVIL, numbers, numbers, ids + 1)
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    tab.set_content("<title>untouched</title>" + layers.trajectory_figure(lines, "rank").to_html(full_html=False, include_plotlyjs=True))
    assert tab.locator(".legendtext").all_text_contents() == [visible(text) for text in EVIL]
    assert tab.locator("svg.main-svg b, svg.main-svg a, svg.main-svg script, svg.main-svg tspan").count() == 0
    tab.set_content(
        "<title>untouched</title>" + layers.grid_figure(grid, "rank", range(n), 0, 50).to_html(full_html=False, include_plotlyjs=True)
    )
    labels = [text if len(text) <= 14 else text[:13] + "…" for text in map(visible, EVIL)]
    assert tab.locator(".xtick text").all_text_contents() == labels
    assert tab.locator("g.heatmap-label text").all_text_contents() == 2 * [
        text if len(text) <= 25 else text[:24] + "…" for text in map(visible, EVIL)
    ]
    expect(tab.locator(".infolayer")).to_contain_text("rank of <script>docum…")
    # The target's label is bold because we say so, and its letters are the token's own.
    assert tab.locator("svg.main-svg a, svg.main-svg script").count() == 0
    area = tab.locator(".nsewdrag").bounding_box()
    assert area is not None
    for column, text in enumerate(map(visible, EVIL)):
        tab.mouse.move(area["x"] + area["width"] * (column + 0.5) / n, area["y"] + area["height"] * 0.25)
        told = tab.locator("g.hovertext")
        expect(told).to_contain_text(f"token {column} {text}")
        expect(told).to_contain_text(f"{EVIL[1]}  p = 0.500, rank {column + 1}")
        assert told.locator("a, script").count() == 0
    assert tab.title() == "untouched"
    tab.close()


def test_a_long_prompt_is_shown_through_a_window(page: ExplorePage) -> None:
    page.type_prompt(" ".join(["the store"] * 61))
    expect(page.graph).to_have_attribute("data-target", "124")
    expect(chart(page).locator(".xtick text")).to_have_count(60)
    expect(page.page.get_by_role("slider", name="First token shown")).to_have_value("65")
    chart(page).evaluate("element => element.scrollIntoView({block: 'center'})")
    page.shoot("layers-long")
    page.press_slider("First token shown", "Home")
    page.page.wait_for_timeout(500)
    page.settle()
    click(page, 1, 3, 5, 60)
    expect(page.page.get_by_text(re.compile("token 3 · layer 0, after the FFN"))).to_be_visible()


def test_a_click_keeps_the_chart_and_the_page_where_they_are(page: ExplorePage, trace: llm_tt.Trace) -> None:
    grid = llm_tt.lens_grid(trace)
    shape = grid.n_rows, grid.n_tokens
    cell(page, 2, 5, *shape)
    plot = chart(page).locator(".js-plotly-plot").element_handle()
    scroller = page.page.get_by_test_id("stMain")
    scroller.evaluate("element => { element.moves = 0; element.addEventListener('scroll', () => element.moves++) }")
    page.page.wait_for_timeout(300)
    scroller.evaluate("element => { element.moves = 0 }")
    for row, column in ((2, 5), (1, 7), (3, 2)):
        click(page, row, column, *shape)
        expect(page.page.get_by_text(f"token {column} · layer {row - 1}, after the FFN")).to_be_visible()
        expect(framed(page)).to_have_count(1)
        assert plot.evaluate("element => element.isConnected"), "the chart was made anew"
    assert scroller.evaluate("element => element.moves") == 0
    click(page, 3, 2, *shape)
    expect(framed(page)).to_have_count(0)
    expect(page.page.get_by_text("How to read the graph")).to_be_visible()
