"""The graph component alone on a page, without Streamlit: any frame, any size, light or dark, and what it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from playwright.sync_api import Locator, Page, Route

from llm_tt.components.graph.frame import pack

_BUILD = Path(__file__).resolve().parents[2] / "llm_tt/components/graph/build"
_URL = "http://graph.test"
_TIMEOUT = 30_000
_COLORS = {
    "light": {"text": "#31333f", "background": "#ffffff", "secondary-background": "#f0f2f6", "border": "#d5d6da"},
    "dark": {"text": "#fafafa", "background": "#0e1117", "secondary-background": "#262730", "border": "#3d3f4a"},
}
_HTML = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="style.css">
<style>html, body {{ margin: 0; background: {background}; }}
#place {{ height: {height}px; --flow-graph-height: {height}px; padding: 8px; --st-text-color: {text}; --st-background-color: {background};
  --st-secondary-background-color: {secondary}; --st-border-color: {border}; --st-font: sans-serif; --st-code-font: monospace; }}</style>
<div id="place"></div>
<script type="module">
import render from "./script.js";
const parentElement = document.getElementById("place");
window.said = [];
window.show = async (name) => {{
  const data = new Uint8Array(await (await fetch(name)).arrayBuffer());
  render({{ data, key: "graph", parentElement,
    setStateValue: (name, value) => window.said.push([name, value]),
    setTriggerValue: (name, value) => window.said.push([name, value]) }});
}};
window.isReady = true;
</script>"""


class GraphPage:
    """A page with nothing but the component on it."""

    def __init__(self, page: Page, frame: bytes, *, theme: str = "light", height: int = 640) -> None:
        self.page = page
        self.graph: Locator = page.get_by_test_id("flow-graph")
        self.canvas: Locator = page.get_by_test_id("graph-canvas")
        self._frames: list[bytes] = []
        colors = _COLORS[theme]
        html = _HTML.format(
            height=height, secondary=colors["secondary-background"], **{k: colors[k] for k in ("text", "background", "border")}
        )
        page.route(f"{_URL}/**", lambda route: self._answer(route, html))
        page.goto(f"{_URL}/")
        page.wait_for_function("window.isReady", timeout=_TIMEOUT)
        self.show(frame)

    def show(self, frame: bytes) -> GraphPage:
        """Send a frame, as Streamlit does after every run of the script, and wait until it is drawn."""
        self._frames.append(frame)
        before = int(self.graph.get_attribute("data-frames") or 0) if self.graph.count() else 0
        self.page.evaluate("name => window.show(name)", f"frame/{len(self._frames) - 1}")
        self.page.wait_for_function(
            "before => Number(document.querySelector('[data-testid=flow-graph]')?.dataset.frames) > before", arg=before, timeout=_TIMEOUT
        )
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until nothing has been drawn for two hundred milliseconds."""
        self.page.evaluate(
            """async () => {
                const drawn = () => document.querySelector("[data-testid=flow-graph]").dataset.frames;
                for (let before = null; before !== drawn(); ) {
                    before = drawn();
                    await new Promise((resolve) => setTimeout(resolve, 200));
                }
            }"""
        )

    def data(self, name: str) -> Any:
        return json.loads(self.graph.get_attribute(f"data-{name}") or "null")

    def locate(self, thing: dict[str, Any]) -> dict[str, float] | None:
        return self.graph.evaluate("(element, thing) => element.llmtt.locate(thing)", thing)

    def said(self) -> list[list[Any]]:
        """What the component told Python so far: names and values."""
        return self.page.evaluate("window.said")

    def _answer(self, route: Route, html: str) -> None:
        name = route.request.url.removeprefix(f"{_URL}/")
        if name == "":
            route.fulfill(body=html, content_type="text/html")
        elif name.startswith("frame/"):
            route.fulfill(body=self._frames[int(name.removeprefix("frame/"))], content_type="application/octet-stream")
        elif name in ("script.js", "style.css"):
            (file,) = _BUILD.glob("index-*" + Path(name).suffix)
            route.fulfill(body=file.read_bytes(), content_type="text/javascript" if name == "script.js" else "text/css")
        else:
            route.fulfill(status=404)


def synthetic_frame(n_layers: int, n_tokens: int, *, density: float = 1.0, threshold: float = 0.0, seed: int = 0, **header: Any) -> bytes:
    """A graph with every residual and FFN edge of every column and, per node, `density` attention edges to random columns before it."""
    random = np.random.default_rng(seed)
    layers, positions = (axis.ravel() for axis in np.meshgrid(np.arange(n_layers), np.arange(n_tokens), indexing="ij"))
    n_attention = random.poisson(density, layers.size)
    layer = np.concatenate([np.tile(layers, 4), np.repeat(layers, n_attention)])
    destination = np.concatenate([np.tile(positions, 4), np.repeat(positions, n_attention)])
    kind = np.concatenate([np.repeat([1, 2, 3, 4], layers.size), np.zeros(int(n_attention.sum()), int)])
    reach = np.where(
        random.random(destination.size) < 0.8, random.exponential(8, destination.size), destination * random.random(destination.size)
    )
    source = np.where(kind == 0, np.maximum(0, destination - reach.astype(int)), destination)
    weight = np.where(kind == 0, random.beta(0.5, 4, kind.size), random.beta(2, 2, kind.size))
    kept = weight > threshold
    arrays: dict[str, npt.NDArray[Any]] = {
        "kind": kind[kept].astype(np.uint8),
        "layer": layer[kept].astype(np.uint16),
        "source": source[kept].astype(np.uint32),
        "destination": destination[kept].astype(np.uint32),
        "weight": weight[kept].astype(np.float32),
    }
    attention = arrays["kind"] == 0
    arrays["heads_start"] = np.concatenate([[0], np.cumsum(attention)]).astype(np.uint32)
    arrays["head"] = random.integers(0, 16, int(attention.sum())).astype(np.uint16)
    arrays["head_weight"] = arrays["weight"][attention]
    if header.get("effect_of"):
        arrays["effect"] = random.normal(0, 1, arrays["kind"].size).astype(np.float32)
    words = [" the", " Mary", ",", " store", " went", "\n", " 👩‍👩‍👧", " שלום", "ing", "<0xE2>"]
    return pack(
        {
            "version": 1,
            "trace": f"synthetic {n_layers} {n_tokens} {seed}",
            "n_layers": n_layers,
            "tokens": ["<bos>", *(words[position % len(words)] for position in range(1, n_tokens))],
            "target": n_tokens - 1,
            "threshold": threshold,
            "renormalized": False,
            "prediction": " gave",
            "probability": 0.75,
            "selection": None,
            **header,
        },
        arrays,
    )
