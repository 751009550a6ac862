"""The page as a whole: what is in view at which size, that nothing jumps, and that the same address opens the same view again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, Locator, expect
from running_app import ROOT, SCREENSHOTS, App, start_app, stop_app

import llm_tt
from llm_tt.lens.vocabulary import top_tokens
from llm_tt.text import visible

PROMPT = "When Mary and John went to the store, John gave a drink to"
LONG = " ".join(["When Mary and John went to the store, John gave a drink to Mary. The capital of France is Paris."] * 5)
SIZES = [(1024, 768), (1440, 900), (1920, 1080), (2560, 1440)]


def open_at(browser: Browser, app: App, width: int, height: int, scheme: Any = "light") -> ExplorePage:
    page = ExplorePage(browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)).open(app.url)
    page.page.get_by_role("button", name="Skip").click()
    page.settle()
    return page


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    page = open_at(browser, app, 1440, 900)
    yield page
    page.page.close()


def shoot(page: ExplorePage, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.page.wait_for_timeout(500)
    page.page.screenshot(path=SCREENSHOTS / f"page-{name}.png")


def box(locator: Locator) -> dict[str, float]:
    found = locator.bounding_box()
    assert found is not None
    return {"top": found["y"], "bottom": found["y"] + found["height"], "left": found["x"], "right": found["x"] + found["width"]}


def scrolled(page: ExplorePage) -> float:
    return page.page.get_by_test_id("stMain").evaluate("element => element.scrollTop")


@pytest.mark.parametrize("what", ["short", "long", "chat"])
def test_strip_graph_legend_and_inspector_are_in_view(page: ExplorePage, what: str) -> None:
    """On every screen, from the smallest to the largest, in both schemes; one page that is resized, since a page takes seconds to load."""
    if what == "long":
        page.type_prompt(LONG)
        n_tokens = llm_tt.load_model("demo").prompt(LONG).n_tokens
        expect(page.graph).to_have_attribute("data-target", str(n_tokens - 1))
    elif what == "chat":
        page.page.get_by_role("radio", name="Chat").click()
        expect(page.graph.locator(".legend")).to_contain_text("user")
    page.settle()
    page.click({"type": "node", "node": "A2_2"})
    inspector = page.page.get_by_text("token 2 · layer 2, after attention")
    expect(inspector).to_be_visible()
    for width, height in SIZES:
        page.page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.page.emulate_media(color_scheme=scheme)
            page.page.wait_for_timeout(300)
            shoot(page, f"{what}-{width}-{scheme}")
            _everything_fits(page, inspector, width, height)
    page.page.emulate_media(color_scheme="light")


def _everything_fits(page: ExplorePage, inspector: Locator, width: int, height: int) -> None:
    assert scrolled(page) == 0
    strip, graph, legend = box(page.page.get_by_test_id("sources")), box(page.graph), box(page.graph.locator(".legend"))
    assert 0 < strip["top"] < strip["bottom"] < graph["top"]
    assert graph["top"] < legend["top"] < legend["bottom"] <= graph["bottom"] + 1
    assert legend["bottom"] < height
    side = box(page.page.locator(".st-key-side"))
    assert side["top"] < box(inspector)["top"] < side["bottom"] <= height
    assert graph["right"] < side["left"] < side["right"] <= width
    # Nothing is wider than the window or its column.
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.page.get_by_test_id("stMain").evaluate("element => element.scrollWidth - element.clientWidth") <= 0
    for table in page.page.get_by_test_id("stDataFrame").filter(visible=True).all():
        assert box(table)["right"] <= side["right"]
        assert table.locator(".dvn-scroller").evaluate("element => element.scrollWidth - element.clientWidth") <= 0
    if width == 2560:
        assert side["right"] - side["left"] < 640
        assert graph["bottom"] - graph["top"] > 1000


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 900)])
def test_prompt_continuation_and_threshold_are_in_view(browser: Browser, app: App, width: int, height: int) -> None:
    page = open_at(browser, app, width, height)
    sidebar = page.page.get_by_test_id("stSidebar")
    assert box(sidebar)["right"] == pytest.approx(240 if width == 1024 else 300, abs=2)
    for control in (page.page.get_by_role("textbox", name="Prompt"), page.page.get_by_text("Continuation", exact=True)):
        assert 0 < box(control)["top"] < box(control)["bottom"] < height
        assert box(control)["right"] <= box(sidebar)["right"]
    for control in (page.page.get_by_role("slider", name="Threshold"), page.page.get_by_text("Renormalise", exact=True)):
        assert box(sidebar)["right"] < box(control)["left"]
        assert box(page.page.get_by_test_id("sources"))["bottom"] < box(control)["top"] < box(control)["bottom"] < box(page.graph)["top"]
        assert box(control)["right"] <= box(page.graph)["right"]
    tools = [box(page.page.get_by_role("button", name=name, exact=True)) for name in ("Add", "Memory", "Device")]
    assert len({tool["top"] for tool in tools}) == 1, "the buttons of the model are not in one row"
    page.page.close()


def test_the_graph_follows_the_window_and_keeps_its_zoom(page: ExplorePage) -> None:
    height = box(page.graph)["bottom"] - box(page.graph)["top"]
    page.page.set_viewport_size({"width": 1440, "height": 1100})
    page.page.wait_for_timeout(300)
    taller = box(page.graph)["bottom"] - box(page.graph)["top"]
    assert taller == pytest.approx(height + 0.88 * 200, abs=2)
    page.page.get_by_test_id("graph-zoom-in").click()
    page.page.wait_for_timeout(500)
    view = page.data("view")
    page.page.evaluate("window.canvas = document.querySelector('.canvases canvas')")
    for size in ((1440, 800), (1300, 800), (1440, 900)):
        page.page.set_viewport_size({"width": size[0], "height": size[1]})
        page.page.wait_for_timeout(300)
        assert page.data("view")["kx"] == view["kx"]
        assert box(page.graph.locator(".legend"))["bottom"] < size[1]
    assert page.page.evaluate("document.querySelector('.canvases canvas') === window.canvas")
    assert page.data("mounts") == 1


def test_nothing_jumps(page: ExplorePage) -> None:
    """The page is where it was, and the canvas is the same, whatever is clicked."""
    page.page.evaluate("window.canvas = document.querySelector('.canvases canvas')")
    main = page.page.get_by_test_id("stMain")
    main.evaluate("element => { element.scrollTop = 60; }")
    at = page.locate({"type": "node", "node": "A2_2"})["y"]

    def stayed() -> None:
        page.settle()
        page.page.wait_for_timeout(300)
        assert scrolled(page) == 60
        assert page.locate({"type": "node", "node": "A2_2"})["y"] == pytest.approx(at, abs=0.5)
        assert page.page.evaluate("document.querySelector('.canvases canvas') === window.canvas")
        assert page.data("mounts") == 1

    stayed()
    page.click({"type": "node", "node": "A3_14"})
    expect(page.page.get_by_text("token 14 · layer 3, after attention")).to_be_visible()
    stayed()
    page.press_slider("Threshold", "ArrowRight")
    expect(page.graph).to_have_attribute("data-n-edges", str(_graph(threshold=0.045).n_edges))
    stayed()
    page.click({"type": "target", "position": 14})
    page.click({"type": "target", "position": 12})
    expect(page.graph).to_have_attribute("data-target", "12")
    stayed()
    # By keyboard: a click would scroll it into view itself.
    page.page.locator(".st-key-layers_open summary").evaluate("element => element.click()")
    expect(page.page.locator(".st-key-layers_open .js-plotly-plot").first).to_be_attached(timeout=20_000)
    stayed()


def _graph(**options: Any) -> llm_tt.FlowGraph:
    return llm_tt.extract_routes(llm_tt.load_model("demo").trace(PROMPT), **options)


@pytest.mark.parametrize(("width", "height"), SIZES[:2])
def test_the_inspector_stays_beside_what_is_scrolled_to(browser: Browser, app: App, width: int, height: int) -> None:
    page = open_at(browser, app, width, height)
    page.page.get_by_text("Table of edges").click()
    page.settle()
    side = page.page.locator(".st-key-side")
    page.page.get_by_text("Heads at a glance").click()
    page.settle()
    page.page.locator(".st-key-heads .js-plotly-plot").first.wait_for()
    page.page.get_by_test_id("stMain").evaluate("element => element.scrollTo(0, 400)")
    page.page.wait_for_timeout(300)
    assert scrolled(page) > 300
    where = box(side)
    assert 0 <= where["top"] < 60
    assert where["bottom"] <= height
    page.page.close()


def test_neurons_have_their_effects_and_can_be_ordered_by_them(page: ExplorePage) -> None:
    page.click({"type": "node", "node": "M2_14"})
    page.page.get_by_test_id("stButtonGroup").get_by_role("radio", name="Neurons").click()
    page.settle()
    page.page.get_by_role("radio", name="Largest effect").click()
    page.page.wait_for_timeout(300)
    page.settle()
    trace = llm_tt.load_model("demo").trace(PROMPT)
    best = int(trace.logits(-1).argmax())
    of_neurons = llm_tt.neuron_effects(trace, 2, token=best)
    order = abs(of_neurons).argsort()[::-1][:4].tolist()
    page.expect_cells(1, 0, [f"neuron {neuron}" for neuron in order])
    shown = [float(cell.replace("\u2212", "-")) for cell in page.cells(1, 1)[:4]]
    assert shown == pytest.approx([float(of_neurons[neuron]) for neuron in order], abs=1e-3)
    shoot(page, "neurons-by-effect")


def test_a_prompt_file_takes_the_place_of_the_examples(page: ExplorePage, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("The capital of Italy is\nThe capital of France is\n")
    page.page.get_by_role("button", name="Files", exact=True).click()
    page.page.locator("input[type=file][accept*=txt]").set_input_files(tmp_path / "mine.txt")
    page.settle()
    shoot(page, "open")
    page.page.keyboard.press("Escape")
    examples = page.page.get_by_role("combobox", name="Examples")
    examples.click()
    expect(page.page.get_by_role("option")).to_have_text(["The capital of Italy is", "The capital of France is"])
    page.page.get_by_role("option", name="The capital of France is").click()
    expect(page.graph).to_have_attribute("data-target", "5")
    page.expect_cells(0, 0, ["·Paris"])


def test_time_and_memory_with_debug(browser: Browser, tmp_path: Path) -> None:
    prompts = str(ROOT / "config" / "sample_input.txt")
    (tmp_path / "debug.json").write_text(
        json.dumps({"models": {"demo": None}, "default_model": "demo", "preloaded_dataset_filename": prompts, "debug": True})
    )
    process, running = start_app(tmp_path / "debug.json")
    try:
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        page = ExplorePage(tab).open(running.url)
        tab.get_by_text("Time and memory", exact=True).click()
        tables = tab.locator(".st-key-debug_open").get_by_test_id("stDataFrame")
        times = tables.nth(0).locator("[role=gridcell][aria-colindex='1']")
        expect(times.first).to_have_text("load the model")
        assert "draw graph" in times.all_text_contents()
        spent = tables.nth(0).locator("[role=gridcell][aria-colindex='2']").all_text_contents()
        assert len(spent) == times.count()
        assert all(float(cell.replace(",", "")) >= 0 for cell in spent)
        assert float(spent[0].replace(",", "")) > 1
        expect(tables.nth(2).locator("[role=gridcell][aria-colindex='1']").first).to_have_text("this prompt's trace")
        tables.nth(2).scroll_into_view_if_needed()
        shoot(page, "debug")
        tab.close()
    finally:
        stop_app(process)


def test_after_a_restart_the_address_opens_the_same_view(browser: Browser) -> None:
    process, running = start_app(ROOT / "config" / "local.json")
    try:
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        page = ExplorePage(tab).open(running.url)
        tab.get_by_role("button", name="Skip").click()
        page.settle()
        page.type_prompt("The capital of France is")
        expect(page.graph).to_have_attribute("data-target", "5")
        page.press_slider("Threshold", "ArrowRight")
        page.settle()
        page.click({"type": "target", "position": 4})
        expect(page.graph).to_have_attribute("data-target", "4")
        page.click({"type": "node", "node": "I2_2"})
        expect(tab.get_by_text("token 2 · layer 2, after the FFN")).to_be_visible()
        expected = llm_tt.extract_routes(llm_tt.load_model("demo").trace("The capital of France is"), 4, threshold=0.045)
        expect(page.graph).to_have_attribute("data-n-edges", str(expected.n_edges))
        tab.wait_for_function("() => window.location.search.includes('I2_2')")
    finally:
        stop_app(process)
    process, _ = start_app(ROOT / "config" / "local.json", port=urlsplit(running.url).port or 0)
    try:
        tab.reload()
        page.wait_for_graph()
        expect(page.graph).to_have_attribute("data-target", "4")
        expect(page.graph).to_have_attribute("data-n-edges", str(expected.n_edges))
        expect(tab.get_by_text("token 2 · layer 2, after the FFN")).to_be_visible()
        assert tab.get_by_role("textbox", name="Prompt").input_value() == "The capital of France is"
        assert tab.get_by_role("slider", name="Threshold").input_value() == "0.045"
        page.expect_cells(1, 1, [visible(text) for text in _words("The capital of France is", 2, 2)])
        tab.close()
    finally:
        stop_app(process)


def _words(prompt: str, layer: int, position: int) -> list[str]:
    trace = llm_tt.load_model("demo").trace(prompt)
    block = trace.blocks[layer]
    return list(top_tokens(trace.model, block.resid_post[position], 3, block.resid_mid[position]).texts)
