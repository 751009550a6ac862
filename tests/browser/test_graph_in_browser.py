"""The graph component by itself, in a real browser: what is drawn, saved, hidden and kept, and how fast it moves."""

from __future__ import annotations

import statistics
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_page import GraphPage, synthetic_frame
from playwright.sync_api import Browser, Page, expect
from running_app import SCREENSHOTS

from llm_tt.components.graph.frame import pack, unpack

SVG = "{http://www.w3.org/2000/svg}"
N_TOKENS = 40
ROLES = [
    *["special"] * 3,
    *["system"] * 8,
    *["special"] * 2,
    *["user"] * 12,
    *["special"] * 3,
    *["assistant"] * 5,
    *["tool"] * 3,
    *["continuation"] * 4,
]
FRAME_MS = 16.0
"""Of our own work in a frame, at the median"""
SLOW_FRAME_MS = 33.0
"""the same at the 95th percentile: at worst every twentieth frame is late by one"""

Opener = Callable[..., GraphPage]


@pytest.fixture
def open_graph(browser: Browser) -> Iterator[Opener]:
    tabs: list[Page] = []

    def opened(frame: bytes, width: int = 1440, **options: Any) -> GraphPage:
        tab = browser.new_page(viewport={"width": width, "height": 700})
        tabs.append(tab)
        return GraphPage(tab, frame, **options)

    yield opened
    for tab in tabs:
        tab.close()


def screenshot(graph: GraphPage, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    graph.page.screenshot(path=SCREENSHOTS / f"graph-{name}.png")


def with_tokens(frame: bytes, tokens: list[str]) -> bytes:
    header, arrays = unpack(frame)
    return pack({**header, "tokens": [*tokens, *header["tokens"][len(tokens) :]]}, arrays)


def pixels(graph: GraphPage, x: float, y: float, width: float, height: float) -> np.ndarray:
    """The colours in a box of the graph's lower canvas, at page coordinates."""
    values = graph.page.evaluate(
        """([x, y, width, height]) => {
            const canvas = document.querySelector(".canvases > canvas");
            const box = canvas.getBoundingClientRect();
            const size = [width, height].map((value) => Math.max(1, Math.round(value)));
            return [...canvas.getContext("2d").getImageData(Math.round(x - box.left), Math.round(y - box.top), ...size).data];
        }""",
        [x, y, width, height],
    )
    return np.array(values, np.uint8).reshape(max(1, round(height)), max(1, round(width)), 4)


def save(graph: GraphPage, scope: str, form: str, folder: Path) -> Path:
    graph.page.get_by_test_id("graph-save").click()
    with graph.page.expect_download() as download:
        graph.page.get_by_test_id(f"graph-save-{scope}-{form}").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


# --- speakers


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024])
def test_speakers_have_bands_in_the_colours_of_the_legend(open_graph: Opener, theme: str, width: int) -> None:
    graph = open_graph(synthetic_frame(4, N_TOKENS, threshold=0.3, roles=ROLES), width, theme=theme)
    colours = {"user": "#b08a00", "system": "#7a1fe0"} if theme == "light" else {"user": "#f2df80", "system": "#8a5cff"}
    for role, colour in colours.items():
        at = graph.locate({"type": "node", "node": f"X0_{ROLES.index(role) + 1}"})
        assert at is not None
        found = pixels(graph, at["x"], at["y"], 1, 60).reshape(-1, 4)[:, :3]
        wanted = np.array(struct.unpack("3B", bytes.fromhex(colour[1:])))
        assert (np.abs(found.astype(int) - wanted).max(axis=1) <= 3).any(), f"no band of {role} below its token"
    legend = graph.graph.locator(".legend").inner_text()
    assert all(role in legend for role in {*ROLES})
    screenshot(graph, f"chat-{theme}-{width}")


def test_plain_text_has_no_bands_and_its_special_token_is_outlined(open_graph: Opener) -> None:
    plain = [None] * N_TOKENS
    drawn = []
    for roles in (plain, ["special", *plain[1:]]):
        graph = open_graph(synthetic_frame(4, N_TOKENS, threshold=0.3, roles=roles))
        assert "user" not in graph.graph.locator(".legend").inner_text()
        at = graph.locate({"type": "node", "node": "X0_0"})
        assert at is not None
        drawn.append(int((pixels(graph, at["x"] - 30, at["y"] + 20, 45, 70)[..., 3] > 100).sum()))
    assert drawn[1] > drawn[0] + 20, "the label of a special token looks like any other"


# --- the first token


def test_the_first_token_can_be_hidden_and_stays_hidden(open_graph: Opener) -> None:
    frame = synthetic_frame(6, N_TOKENS, threshold=0.2, density=2)
    _, arrays = unpack(frame)
    touching = int(((arrays["source"] == 0) | (arrays["destination"] == 0)).sum())
    edge = next(i for i in range(len(arrays["kind"])) if arrays["kind"][i] == 4 and arrays["destination"][i] == 0)
    name = {"type": "edge", "key": "residual", "from": f"A{arrays['layer'][edge]}_0", "to": f"I{arrays['layer'][edge]}_0"}
    graph = open_graph(frame)
    at = graph.locate(name)
    assert at is not None
    graph.page.mouse.click(at["x"], at["y"])
    assert graph.said()[-1] == ["selection", name]
    graph.page.keyboard.press("Escape")

    graph.page.get_by_test_id("graph-hide-first").click()
    graph.settle()
    assert graph.data("n-hidden") == touching
    expect(graph.page.get_by_test_id("graph-count")).to_contain_text(f"edges of the first token hidden: {touching}")
    n_edges = graph.data("n-edges")
    graph.page.mouse.click(at["x"], at["y"])
    assert graph.said()[-1] == ["selection", None], "a hidden edge was hit"
    screenshot(graph, "without-first")
    # Another threshold, another target, another prompt: the choice is the reader's.
    for other in (
        synthetic_frame(6, N_TOKENS, threshold=0.4, density=2),
        synthetic_frame(6, N_TOKENS, threshold=0.4, density=2, target=20),
        synthetic_frame(6, N_TOKENS, threshold=0.2, density=2, seed=1),
    ):
        graph.show(other)
        assert graph.data("n-hidden") > 0
    graph.show(frame)
    assert graph.data("n-hidden") == touching
    assert graph.data("n-edges") == n_edges == len(arrays["kind"])
    graph.page.get_by_test_id("graph-hide-first").click()
    expect(graph.graph).not_to_have_attribute("data-n-hidden", str(touching))


# --- the overview


def test_the_minimap_shows_and_moves_what_is_in_view(open_graph: Opener) -> None:
    graph = open_graph(synthetic_frame(20, 120, threshold=0.3))
    minimap = graph.page.get_by_test_id("graph-minimap")
    expect(minimap).to_be_hidden()
    for _ in range(5):
        graph.page.get_by_test_id("graph-zoom-in").click()
    graph.settle()
    expect(minimap).to_be_visible()
    screenshot(graph, "minimap")
    box, before = minimap.bounding_box(), graph.data("view")
    assert box is not None
    graph.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    graph.page.mouse.down()
    graph.page.mouse.move(box["x"] + 2, box["y"] + box["height"] - 2)
    graph.page.mouse.up()
    graph.settle()
    after = graph.data("view")
    assert (after["kx"], after["ky"]) == (before["kx"], before["ky"])
    assert graph.locate({"type": "node", "node": "X0_2"}) is not None, "the first tokens did not come into view"
    assert graph.said() == [], "moving the view selected something"
    graph.page.get_by_test_id("graph-fit").click()
    graph.settle()
    expect(minimap).to_be_hidden()


def test_the_keyboard_pans_zooms_and_fits_too(open_graph: Opener) -> None:
    graph = open_graph(synthetic_frame(20, 120, threshold=0.3))
    fitted = graph.data("view")
    graph.canvas.focus()
    graph.page.keyboard.press("+")
    graph.settle()
    zoomed = graph.data("view")
    assert zoomed["kx"] == pytest.approx(1.4 * fitted["kx"])
    graph.page.keyboard.press("Shift+ArrowRight")
    graph.settle()
    assert graph.data("view")["x"] == pytest.approx(zoomed["x"] - 60)
    graph.page.keyboard.press("0")
    graph.settle()
    assert graph.data("view") == fitted
    graph.page.keyboard.press("?")
    expect(graph.page.get_by_test_id("graph-help")).to_be_visible()
    screenshot(graph, "help")
    graph.page.keyboard.press("Escape")
    expect(graph.page.get_by_test_id("graph-help")).to_be_hidden()
    graph.page.keyboard.press("/")
    expect(graph.page.get_by_test_id("graph-find")).to_be_focused()


def test_the_focused_node_is_spoken_with_its_weights_and_ringed(open_graph: Opener) -> None:
    frame = synthetic_frame(3, 12, threshold=0.1)
    _, arrays = unpack(frame)
    graph = open_graph(frame)
    graph.page.keyboard.press("Tab")
    while graph.page.evaluate("document.activeElement.dataset.testid") != "graph-canvas":
        graph.page.keyboard.press("Tab")
    unfocused = overlay_ink(graph)
    graph.page.keyboard.press("ArrowDown")
    spoken = graph.page.get_by_test_id("graph-focus")
    into = (arrays["kind"] == 2) & (arrays["layer"] == 2) & (arrays["destination"] == 11)
    weight = float(arrays["weight"][into].max(initial=0))
    assert weight > 0.1
    expect(spoken).to_have_text(f"layer 2, “·Mary” (11), FFN block; residual {weight:.3f}")
    graph.settle()
    assert overlay_ink(graph) > unfocused, "no ring around the focused node"
    graph.page.keyboard.press("Enter")
    assert graph.said() == [["selection", {"type": "node", "node": "M2_11"}]]
    graph.page.keyboard.press("Escape")
    assert graph.said()[-1] == ["selection", None]
    graph.page.keyboard.press("ArrowDown")
    graph.page.keyboard.press("e")
    expect(graph.page.get_by_test_id("graph-status")).to_contain_text("contribution 0.")


def overlay_ink(graph: GraphPage) -> int:
    return graph.page.evaluate(
        """() => {
            const canvas = document.querySelector("[data-testid=graph-canvas]");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return data.filter((value, index) => index % 4 === 3 && value > 60).length;
        }"""
    )


# --- pictures

NASTY = ["<script>document.title='owned'</script>", "a&b", "\x07\x1b", " שלום", "👩‍👩‍👧", "]]>", "\n", "<0xE2>", '"', "\ufffe"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("scope", ["whole", "view"])
def test_an_svg_is_well_formed_and_shows_what_the_page_shows(open_graph: Opener, tmp_path: Path, scope: str, theme: str) -> None:
    frame = with_tokens(synthetic_frame(4, N_TOKENS, threshold=0.2, roles=ROLES), NASTY)
    graph = open_graph(frame, theme=theme)
    if scope == "view":
        for _ in range(2):
            graph.page.get_by_test_id("graph-zoom-in").click()
        graph.settle()
    path = save(graph, scope, "svg", tmp_path)
    assert path.name.startswith("llm-tt-script-document-title-owned-script-a-b")
    assert path.name.endswith(f"-{N_TOKENS - 1}.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    assert {element.tag for element in root.iter()} == {
        f"{SVG}{name}" for name in ("svg", "title", "rect", "path", "text", "g", "clipPath", "pattern")
    }
    texts = [element.text for element in root.iter(f"{SVG}text")]
    for shown in ("attention", "user", "special"):
        assert shown in texts
    if scope == "whole":
        assert {"L0", "0.750", "a&b", "\\x07\\x1B", "·שלום", "👩‍👩‍👧", "]]>", "⏎", "<0xE2>", '"', "\ufffd"} <= {*texts}
    colour = {"light": "#ffffff", "dark": "#0e1117"}[theme]
    assert next(root.iter(f"{SVG}rect")).get("fill") == colour
    # A browser shows it without running anything, and at the size that it says.
    assert graph.page.context.browser is not None
    viewer = graph.page.context.browser.new_page()
    viewer.goto(path.as_uri())
    assert viewer.title() != "owned"
    viewer.set_viewport_size({"width": round(float(root.get("width", 0))), "height": round(float(root.get("height", 0)))})
    SCREENSHOTS.mkdir(exist_ok=True)
    viewer.screenshot(path=SCREENSHOTS / f"graph-svg-{scope}-{theme}.png")
    viewer.close()


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_a_png_has_twice_the_pixels_of_the_page_and_its_background(open_graph: Opener, tmp_path: Path) -> None:
    graph = open_graph(synthetic_frame(4, N_TOKENS, threshold=0.2, roles=ROLES), theme="dark")
    path = save(graph, "view", "png", tmp_path)
    width, height = png_size(path)
    size = graph.canvas.evaluate("element => [element.clientWidth, element.clientHeight]")
    assert width == 2 * size[0]
    assert 2 * size[1] + 40 <= height <= 2 * size[1] + 200, "there is no room for the legend"
    corner = graph.page.evaluate(
        """async (bytes) => {
            const bitmap = await createImageBitmap(new Blob([new Uint8Array(bytes)]));
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            context.drawImage(bitmap, 0, 0);
            return [...context.getImageData(0, 0, 1, 1).data];
        }""",
        list(path.read_bytes()),
    )
    assert corner == [0x0E, 0x11, 0x17, 255]
    SCREENSHOTS.mkdir(exist_ok=True)
    (SCREENSHOTS / "graph-png.png").write_bytes(path.read_bytes())


def test_a_picture_of_a_very_large_graph_is_made_smaller_and_says_so(open_graph: Opener, tmp_path: Path) -> None:
    graph = open_graph(synthetic_frame(24, 700, threshold=0.6))
    path = save(graph, "whole", "png", tmp_path)
    width, height = png_size(path)
    assert max(width, height) <= 16_384
    expect(graph.page.get_by_test_id("graph-status")).to_contain_text("the most that a PNG of this graph can have here")
    root = ElementTree.parse(save(graph, "whole", "svg", tmp_path)).getroot()
    assert float(root.get("width", 0)) > 12_000
    assert len([text for text in root.iter(f"{SVG}text") if text.text == "·Mary"]) == 70


# --- what changes, and what stays


def test_another_threshold_neither_remounts_nor_moves_nor_repaints_more_than_needed(open_graph: Opener) -> None:
    frames = [synthetic_frame(12, 60, threshold=threshold) for threshold in (0.2, 0.25, 0.3, 0.35, 0.4)]
    graph = open_graph(frames[0])
    at = graph.locate({"type": "node", "node": "I5_30"})
    assert at is not None
    graph.page.mouse.click(at["x"], at["y"])
    for _ in range(3):
        graph.page.get_by_test_id("graph-zoom-in").click()
    graph.settle()
    view, status = graph.data("view"), graph.page.get_by_test_id("graph-status").inner_text()
    graph.page.evaluate("window.elements = [...document.querySelectorAll('canvas, [data-testid=flow-graph]')]")
    selected = {"type": "node", "node": "I5_30"}
    edges = [graph.data("n-edges")]
    for frame in frames[1:]:
        header, arrays = unpack(frame)
        drawn = graph.data("frames")
        graph.show(pack({**header, "selection": selected}, arrays))
        edges.append(graph.data("n-edges"))
        assert 1 <= graph.data("frames") - drawn <= 2
        assert graph.data("mounts") == 1
        assert graph.data("view") == view
        assert graph.page.get_by_test_id("graph-status").inner_text() == status
        assert graph.page.evaluate(
            "[...document.querySelectorAll('canvas, [data-testid=flow-graph]')].every((element, i) => element === window.elements[i])"
        )
    assert edges == sorted(edges, reverse=True)
    assert len({*edges}) == len(edges)
    assert graph.said() == [["selection", selected]]


def test_a_frame_that_changes_nothing_paints_nothing(open_graph: Opener) -> None:
    graph = open_graph(synthetic_frame(12, 60, threshold=0.2))
    drawn = graph.data("frames")
    graph.page.evaluate("window.show('frame/0')")
    graph.settle()
    assert graph.data("frames") == drawn


# --- speed

GESTURE = """
async ([kind, frames]) => {
    const canvas = document.querySelector("[data-testid=graph-canvas]");
    const root = document.querySelector("[data-testid=flow-graph]");
    const box = canvas.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    canvas.setPointerCapture = () => {};
    const send = (type, x, y, buttons) =>
        canvas.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, buttons, button: 0, pointerId: 1, bubbles: true }));
    const turn = (deltaY) =>
        canvas.dispatchEvent(new WheelEvent("wheel", { clientX: x, clientY: y, deltaY, bubbles: true, cancelable: true }));
    const [intervals, draws] = [[], []];
    let last = null;
    if (kind === "pan") send("pointerdown", x, y, 1);
    for (let i = 0; i < frames; i++) {
        if (kind === "pan") send("pointermove", x + 220 * Math.sin(i / 15), y + 110 * Math.sin(i / 20), 1);
        else turn(i % 60 < 30 ? -40 : 40);
        const drawn = root.dataset.frames;
        const now = await new Promise(requestAnimationFrame);
        if (last !== null) intervals.push(now - last);
        last = now;
        if (root.dataset.frames !== drawn) draws.push(Number(root.dataset.drawMs));
    }
    if (kind === "pan") send("pointerup", x, y, 0);
    return [intervals, draws];
}
"""


def test_80_layers_of_500_tokens_pan_and_zoom_smoothly(open_graph: Opener) -> None:
    """What we do in a frame is timed, not when the browser shows it; and each frame up to thrice, since other processes can only make it slower."""
    graph = open_graph(synthetic_frame(80, 500, density=1))
    assert graph.data("n-edges") > 190_000
    screenshot(graph, "80-layers")
    for level in range(0, 8, 2):
        for kind in ("pan", "zoom"):
            repeats, rates = [], []
            for _ in range(3):
                graph.page.get_by_test_id("graph-fit").click()
                for _ in range(level):
                    graph.page.get_by_test_id("graph-zoom-in").click()
                graph.settle()
                columns = graph.data("view")["kx"]
                intervals, draws = graph.page.evaluate(GESTURE, [kind, 120])
                assert len(draws) == 120, "frames were left out"
                repeats.append(draws)
                rates.append(1000 / statistics.median(intervals))
                fastest = np.min(repeats, axis=0)
                median, slow = float(np.median(fastest)), float(np.quantile(fastest, 0.95))
                if median <= FRAME_MS and slow <= SLOW_FRAME_MS:
                    break
            print(f"columns of {columns:.0f} px, {kind}: {median:.1f} ms a frame, 95 % below {slow:.1f} ms; {max(rates):.0f} fps")
            assert median <= FRAME_MS
            assert slow <= SLOW_FRAME_MS
        if level == 4:
            graph.settle()
            screenshot(graph, "80-layers-zoomed")


def test_a_page_that_moved_is_painted_in_full_when_it_rests(open_graph: Opener) -> None:
    graph = open_graph(synthetic_frame(80, 500, density=1))
    for _ in range(6):
        graph.page.get_by_test_id("graph-zoom-in").click()
    graph.settle()
    graph.page.evaluate(GESTURE, ["pan", 40])
    graph.settle()
    at_rest = graph.page.evaluate("document.querySelector('.canvases > canvas').toDataURL()")
    full = graph.data("full-frames")
    # The same view, painted from nothing.
    graph.page.get_by_test_id("graph-hide-first").click()
    graph.page.get_by_test_id("graph-hide-first").click()
    graph.settle()
    assert graph.data("full-frames") > full
    assert graph.page.evaluate("document.querySelector('.canvases > canvas').toDataURL()") == at_rest
