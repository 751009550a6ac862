"""The Explore page as a test sees it: where things are, what they say."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Locator, Page
from running_app import SCREENSHOTS

_TIMEOUT = 60_000


class ExplorePage:
    """Wraps a Playwright page on which the app is open."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.graph = page.get_by_test_id("flow-graph")

    def open(self, url: str) -> ExplorePage:
        self.page.goto(url)
        self.wait_for_graph()
        return self

    def wait_for_graph(self) -> None:
        self.graph.wait_for(state="visible", timeout=_TIMEOUT)
        self.page.wait_for_function(
            "element => Number(element.dataset.frames) > 0 && element.dataset.nEdges !== undefined",
            arg=self.graph.element_handle(),
            timeout=_TIMEOUT,
        )
        self.settle()

    def settle(self) -> None:
        """Wait until Streamlit has finished its run."""
        self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=_TIMEOUT)

    def shoot(self, name: str) -> None:
        """Pictures to be looked at, in both colour schemes: the page follows the browser's, and is loaded once for both."""
        SCREENSHOTS.mkdir(exist_ok=True)
        for scheme in ("dark", "light"):
            self.page.emulate_media(color_scheme=scheme)
            self.page.wait_for_timeout(350)
            self.page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png")

    def data(self, name: str) -> Any:
        return json.loads(self.graph.get_attribute(f"data-{name}") or "null")

    def click(self, thing: dict[str, Any]) -> None:
        """Click a node, an edge (a selection as in docs/graph-frame.md) or {"type": "target", "position": i}."""
        at = self.locate(thing)
        self.page.mouse.move(at["x"], at["y"])
        self.page.mouse.click(at["x"], at["y"])
        self.page.wait_for_timeout(150)
        self.settle()

    def locate(self, thing: dict[str, Any]) -> dict[str, float]:
        at = self.graph.evaluate("(element, thing) => element.llmtt.locate(thing)", thing)
        assert at is not None, f"{thing} is not drawn"
        return at

    def text(self) -> str:
        """What the main part of the page says."""
        return self.page.get_by_test_id("stMainBlockContainer").inner_text()

    def cells(self, table: int, column: int) -> list[str]:
        """The cells of one column of a visible Streamlit data frame, which draws on a canvas and keeps a table for screen readers."""
        frame: Locator = self.page.get_by_test_id("stDataFrame").filter(visible=True).nth(table)
        frame.wait_for(timeout=_TIMEOUT)
        cells = frame.locator(f"[role=gridcell][aria-colindex='{column + 1}']")
        cells.first.wait_for(state="attached", timeout=_TIMEOUT)
        return cells.all_text_contents()

    def expect_cells(self, table: int, column: int, first: list[str]) -> None:
        """Wait for a column that begins with these cells."""
        for _ in range(50):
            shown = self.cells(table, column)[: len(first)]
            if shown == first:
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"column {column} of table {table} begins with {shown}, not {first}")

    def press_slider(self, label: str, key: str) -> None:
        slider = self.page.get_by_role("slider", name=label)
        slider.focus()
        self.page.keyboard.press(key)

    def type_prompt(self, prompt: str) -> None:
        box = self.page.get_by_role("textbox", name="Prompt")
        box.fill(prompt)
        box.press("Control+Enter")
        self.page.wait_for_timeout(300)
        self.settle()

    def choose_model(self, name: str) -> None:
        box = self.page.get_by_role("combobox", name="Model")
        box.click()
        box.fill(name)
        box.press("Enter")
        self.page.wait_for_timeout(300)
        self.settle()
