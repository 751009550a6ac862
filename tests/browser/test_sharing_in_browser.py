"""Links, files and the table in a real browser: what one user sees, another gets to see."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, Page, expect
from running_app import SCREENSHOTS, App

import llm_tt
from app.link import decode
from llm_tt.export.saved import SavedGraph, from_json

PROMPT = "When Mary and John went to the store, John gave a drink to"
OTHER = "The capital of France is"
EDGE = {"type": "edge", "key": "attention", "from": "I2_2", "to": "A3_14"}
# The browser's own dialog for saving files, which no test can answer.
NO_DIALOG = "window.showSaveFilePicker = undefined"


def new_tab(browser: Browser) -> Page:
    """In a context of its own: another user, as far as the app can tell."""
    tab = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    tab.add_init_script(NO_DIALOG)
    return tab


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[ExplorePage]:
    tab = new_tab(browser)
    yield ExplorePage(tab).open(app.url)
    tab.context.close()


def save(page: ExplorePage, label: str) -> tuple[str, bytes]:
    """A file of the Save popover: its name and what is in it."""
    button = page.page.get_by_role("button", name=re.compile(rf"^{label} "))
    if not button.is_visible():
        page.page.get_by_role("button", name="Save", exact=True).click()
    with page.page.expect_download() as download:
        button.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def saved(page: ExplorePage) -> SavedGraph:
    graph = from_json(save(page, "JSON")[1])
    page.page.keyboard.press("Escape")
    return graph


def selection(page: ExplorePage) -> Any:
    """What is selected, as the URL has it; the component draws it but does not tell."""
    (view, _) = decode(dict(parse_qsl(urlsplit(page.page.url).query)))
    return None if view.selected is None else view.selected.selection()


def same(one: SavedGraph, other: SavedGraph) -> bool:
    columns = ("kind", "layer", "source", "destination", "weight", "heads_start", "head", "head_weight")
    return all(getattr(one.graph, name).tobytes() == getattr(other.graph, name).tobytes() for name in columns) and (
        one.graph.token_texts,
        one.graph.target,
    ) == (other.graph.token_texts, other.graph.target)


def test_a_link_opened_by_another_shows_the_same_graph_and_selection(page: ExplorePage, browser: Browser) -> None:
    tab = page.page
    entries, mounts = tab.evaluate("history.length"), page.data("mounts")
    page.click({"type": "target", "position": 13})
    expect(page.graph).to_have_attribute("data-target", "13")
    page.press_slider("Threshold", "ArrowLeft")
    expect(page.graph).to_have_attribute("data-n-edges", str(llm_tt.extract_routes(_trace(), 13, 0.035).n_edges))
    page.settle()
    edge = next(edge for edge in llm_tt.extract_routes(_trace(), 13, 0.035).edges() if edge.kind.key == "attention" and edge.layer == 3)
    chosen = {"type": "edge", "key": "attention", "from": edge.ends[0].name, "to": edge.ends[1].name}
    page.click(chosen)
    expect(tab).to_have_url(re.compile("select="))
    assert selection(page) == chosen
    assert tab.evaluate("history.length") == entries, "moving about the page is no way back"
    assert page.data("mounts") == mounts

    tab.get_by_role("button", name="Share").click()
    link = tab.get_by_test_id("stCode").inner_text().replace("\n", "")
    assert link == tab.url
    page.shoot("sharing-link")
    tab.keyboard.press("Escape")
    mine = saved(page)

    other = new_tab(browser)
    theirs = ExplorePage(other).open(link)
    expect(theirs.graph).to_have_attribute("data-target", "13")
    assert selection(theirs) == chosen
    expect(other.get_by_text("attention edge")).to_be_visible()
    assert same(saved(theirs), mine)
    assert other.url == link
    assert theirs.data("mounts") == 1
    theirs.shoot("sharing-opened-link")
    other.context.close()


def _trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


def test_a_link_with_odd_text_and_one_that_is_broken(browser: Browser, app: App) -> None:
    tab = new_tab(browser)
    page = ExplorePage(tab).open(app.url)
    odd = "<script>document.title='owned'</script> & 50% \U0001f600 \u0645\u0631\u062d\u0628\u0627\n#went + to"
    page.type_prompt(odd)
    page.wait_for_graph()
    expect(tab).to_have_url(re.compile("script"))
    other = new_tab(browser)
    theirs = ExplorePage(other).open(tab.url)
    assert other.get_by_role("textbox", name="Prompt").input_value() == odd
    assert other.title() == "llm-tt"
    assert same(saved(theirs), saved(page))
    other.goto(f"{app.url}/?model=none&prompt=The+capital+of+France+is&target=77&select=A9_9&threshold=7&v=1")
    theirs.wait_for_graph()
    for said in ("not on the menu", "token 77", "A9_9"):
        expect(other.get_by_text(said)).to_be_visible()
    assert theirs.data("target") == 5
    theirs.shoot("sharing-broken-link")
    other.get_by_role("button", name="Close").click()
    expect(other.get_by_text("not on the menu")).to_have_count(0)
    other.goto(f"{app.url}/?embed=true&utm_source=mail&prompt=The+capital+of+France+is")
    theirs.wait_for_graph()
    expect(other).to_have_url(f"{app.url}/?model=demo&prompt=The+capital+of+France+is&v=1&embed=true")
    for one in (tab, other):
        one.context.close()


def test_a_saved_graph_opened_again_is_identical(page: ExplorePage, tmp_path: Path) -> None:
    tab = page.page
    name, content = save(page, "JSON")
    assert name == "demo_When-Mary-and-John-went-to-the_token14.json"
    page.shoot("sharing-save")
    tab.keyboard.press("Escape")
    (tmp_path / name).write_bytes(content)
    mine, edges = from_json(content), page.data("n-edges")
    page.type_prompt(OTHER)
    expect(page.graph).to_have_attribute("data-target", "5")

    tab.get_by_role("button", name="Files", exact=True).click()
    tab.locator("input[type=file][accept*=json]").set_input_files(tmp_path / name)
    expect(tab.get_by_text("A saved graph", exact=True)).to_be_visible()
    tab.keyboard.press("Escape")
    expect(page.graph).to_have_attribute("data-target", "14")
    page.wait_for_graph()
    assert page.data("n-edges") == edges == mine.graph.n_edges
    page.expect_cells(0, 0, ["\u00b7Mary"])
    page.click(EDGE)
    expect(tab.get_by_text("attention edge")).to_be_visible()
    weight = next(edge.weight for edge in mine.graph.edges() if [node.name for node in edge.ends] == [EDGE["from"], EDGE["to"]])
    expect(tab.get_by_text(f"weight {weight:.3f}")).to_be_visible()
    page.shoot("sharing-opened-graph")

    tab.get_by_role("button", name="Run this prompt on demo").click()
    expect(tab.get_by_text("A saved graph", exact=True)).to_have_count(0)
    expect(page.graph).to_have_attribute("data-target", "14")
    page.wait_for_graph()
    assert tab.get_by_role("textbox", name="Prompt").input_value() == PROMPT
    assert same(saved(page), mine)


def test_the_saved_page_works_without_a_network(page: ExplorePage, browser: Browser, tmp_path: Path) -> None:
    name, content = save(page, "Page")
    (tmp_path / name).write_bytes(content)
    context = browser.new_context(offline=True)
    tab = context.new_page()
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: problems.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else None)
    tab.goto((tmp_path / name).as_uri())
    expect(tab.locator("canvas")).to_be_visible()
    assert tab.evaluate("[nodes.length, edges.length]") == [
        _network().number_of_nodes(),
        _network().number_of_edges(),
    ]
    tab.wait_for_timeout(500)
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_timeout(300)
        tab.screenshot(path=SCREENSHOTS / f"sharing-page-{scheme}.png")
    context.close()
    assert problems == []


def _network() -> Any:
    return llm_tt.extract_routes(_trace()).to_networkx()


def test_every_other_file_is_what_it_says(page: ExplorePage) -> None:
    import networkx as nx

    network = _network()
    edges = {(source, target, key) for source, target, key in network.edges(keys=True)}
    read = nx.node_link_graph(json.loads(save(page, "Node-link")[1]))
    assert {(source, target, key) for source, target, key in read.edges(keys=True)} == edges
    graphml = nx.parse_graphml(save(page, "GraphML")[1], force_multigraph=True)
    assert {(source, target, data["kind"]) for source, target, data in graphml.edges(data=True)} == edges
    rows = list(csv.DictReader(io.StringIO(save(page, "Edges")[1].decode(), newline="")))
    assert {(row["from"], row["to"], row["key"]) for row in rows} == edges
    effects = llm_tt.direct_effects(_trace()).of_edges(llm_tt.extract_routes(_trace()))
    assert [float(row["effect"] or "nan") for row in rows] == pytest.approx(effects.tolist(), abs=1e-4, nan_ok=True)
    rows = list(csv.DictReader(io.StringIO(save(page, "Nodes")[1].decode(), newline="")))
    assert {row["node"] for row in rows} == set(network.nodes)
    assert {row["token"] for row in rows} >= {" Mary", "<bos>"}, "spaces are spaces"


def test_the_table_and_the_graph_select_the_same_edge(page: ExplorePage) -> None:
    tab = page.page
    graph = llm_tt.extract_routes(_trace())
    strongest = sorted(graph.edges(), key=lambda edge: -edge.weight)
    tab.get_by_text("Table of edges").click()
    table = tab.get_by_test_id("stDataFrame").filter(visible=True).first
    table.wait_for()
    tab.wait_for_timeout(500)
    page.settle()
    assert page.cells(0, 0)[:3] == [edge.ends[0].name for edge in strongest[:3]]
    # It lies below the window's edge, where no mouse can click.
    table.evaluate("element => element.scrollIntoView({block: 'end'})")
    tab.wait_for_timeout(700)
    box = table.bounding_box()
    assert box is not None
    tab.mouse.click(box["x"] + 120, box["y"] + 55)
    for row in (1, 2):
        # A table that is being drawn anew takes no keys.
        tab.wait_for_timeout(500)
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("Shift+Space")
        source, destination = strongest[row].ends
        expected = {"type": "edge", "key": strongest[row].kind.key, "from": source.name, "to": destination.name}
        expect(tab).to_have_url(re.compile(re.escape(f"select={source.name}.{destination.name}.")))
        page.settle()
        assert selection(page) == expected
        expect(tab.get_by_text(f"row {row + 1} is selected")).to_be_visible()
    page.shoot("sharing-table")
    tab.get_by_test_id("stMain").evaluate("element => { element.scrollTop = 0; }")
    page.click(EDGE)
    number = 1 + next(index for index, edge in enumerate(strongest) if [node.name for node in edge.ends] == ["I2_2", "A3_14"])
    expect(tab.get_by_text(f"row {number} is selected")).to_be_visible()
    assert page.data("mounts") == 1
    page.click({"type": "node", "node": "I2_2"})
    expect(tab.get_by_text(re.compile(r"row \d+ is selected"))).to_have_count(0)


def test_every_table_downloads_its_numbers_in_full(page: ExplorePage) -> None:
    tab = page.page
    table = tab.get_by_test_id("stDataFrame").filter(visible=True).first
    table.hover()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download as CSV").first.click()
    (first, *_) = csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8-sig"), newline=""))
    best = _trace().logits(-1).softmax(-1).max()
    assert first["token"] == "\u00b7Mary"
    assert float(first["probability"]) == pytest.approx(float(best), abs=1e-6)
    assert len(first["probability"]) > 8, "not rounded as it is shown"

    page.click({"type": "node", "node": "I2_2"})
    with tab.expect_download() as download:
        tab.locator(".st-key-top_csv").get_by_role("button").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"), newline="")))
    trace = _trace()
    expected = llm_tt.lens_grid(trace)
    assert rows[0]["token"] == expected.top_text(expected.points.index("I2"), 2)
    assert len(rows) == 30
