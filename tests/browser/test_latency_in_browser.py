"""How long a click takes, in a real browser: from the key or the button that goes down to the new picture.

The aims are 150 ms for a moved threshold and 300 ms for a head or a neuron; what was measured is in benchmarks/RESULTS.md. Of the latter
Streamlit's tables take 150 ms by waiting whether another row is clicked. A server and a browser without a GPU share two cores here, so that
the tests allow half as much again: they see what becomes slow, not what is a little late.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from explore_page import ExplorePage
from families import byte_level_tokenizer
from playwright.sync_api import Browser
from random_weights import random_model
from running_app import App, start_app, stop_app
from transformers import LlamaConfig

N_TOKENS, N_LAYERS = 256, 32
_ROUNDS, _CLICKS = 4, 5
_THRESHOLD_MS, _CLICK_MS = 150, 300
_ALLOWANCE = 1.5

# Starts at the next key or button that goes down, ends when the frame is drawn in which the condition holds.
_STOPWATCH = """([element, condition, argument]) => {
  const holds = new Function("element", "argument", `return ${condition}`);
  let started = null;
  window.elapsed = null;
  for (const kind of ["keydown", "pointerdown"])
    document.addEventListener(kind, () => { started ??= performance.now(); }, { once: true, capture: true });
  const look = () => {
    if (started !== null && holds(element, argument)) requestAnimationFrame(() => { window.elapsed = performance.now() - started; });
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""


def milliseconds(page: ExplorePage, act: Callable[[], None], condition: str, argument: str) -> float:
    page.page.evaluate(_STOPWATCH, [page.graph.element_handle(), condition, argument])
    act()
    page.page.wait_for_function("() => window.elapsed !== null")
    elapsed = page.page.evaluate("() => window.elapsed")
    # Until the rest of the page has followed, too: what is measured is a click on a page that stands still.
    page.page.wait_for_timeout(400)
    page.settle()
    page.page.wait_for_timeout(100)
    return elapsed


def best_median(measure: Callable[[int], float], enough: float) -> float:
    """Of several rounds the smallest median: another process on the machine may disturb some, not all of them."""
    medians: list[float] = []
    for round_ in range(_ROUNDS):
        medians.append(statistics.median(measure(round_ * _CLICKS + click) for click in range(_CLICKS)))
        if medians[-1] <= enough:
            break
    print("medians in ms:", [round(median) for median in medians])
    return min(medians)


@pytest.fixture
def deep_app(tmp_path: Path) -> Iterator[App]:
    """The app on a model of 32 layers whose graph of 256 tokens has thousands of edges."""
    tokenizer = byte_level_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    model = random_model(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 2
            layer.self_attn.k_proj.weight *= 2
            layer.self_attn.o_proj.weight *= 8
            layer.mlp.down_proj.weight *= 0.5
    model.save_pretrained(tmp_path / "deep")
    tokenizer.save_pretrained(tmp_path / "deep")
    letters = random.Random(0)
    prompt = "".join(letters.choice("abcdefghijklmnopqrstuvwxyz      ") for _ in range(2 * N_TOKENS)).strip()
    while len(tokenizer(prompt)["input_ids"]) > N_TOKENS:
        prompt = prompt[:-1]
    (tmp_path / "prompts.txt").write_text(prompt)
    (tmp_path / "config.json").write_text(
        json.dumps({"models": {"deep": "deep"}, "default_model": "deep", "preloaded_dataset_filename": "prompts.txt"})
    )
    process, running = start_app(tmp_path / "config.json")
    yield running
    stop_app(process)


def test_a_moved_threshold_is_drawn_soon_with_256_tokens_and_32_layers(browser: Browser, deep_app: App) -> None:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    page = ExplorePage(tab).open(deep_app.url)
    assert page.data("n-edges") > 2000
    tab.get_by_role("slider", name="Threshold").focus()

    def press(click: int) -> float:
        before = str(page.data("n-edges"))
        key = "ArrowRight" if click % 2 == 0 else "ArrowLeft"
        return milliseconds(page, lambda: tab.keyboard.press(key), "element.dataset.nEdges !== argument", before)

    press(0)
    press(1)  # Both thresholds were computed once; what is measured is a move.
    assert best_median(press, _THRESHOLD_MS) <= _ALLOWANCE * _THRESHOLD_MS
    assert page.data("mounts") == 1
    tab.close()


@pytest.mark.parametrize(("node", "tab_name", "words"), [("A2_14", "Heads", " · contribution"), ("M1_14", "Neurons", " · activation")])
def test_a_head_or_a_neuron_is_shown_soon_after_the_click(browser: Browser, app: App, node: str, tab_name: str, words: str) -> None:
    tab = browser.new_page(viewport={"width": 1440, "height": 1300})
    page = ExplorePage(tab).open(app.url)
    page.click({"type": "node", "node": node})
    tab.get_by_test_id("stButtonGroup").get_by_role("radio", name=tab_name).click()
    page.settle()
    names = page.cells(1, 0)
    frame = tab.get_by_test_id("stDataFrame").filter(visible=True).nth(1)
    frame.scroll_into_view_if_needed()

    def click(n: int) -> float:
        row = 1 + n % 3
        return milliseconds(
            page,
            lambda: frame.click(position={"x": 18, "y": 35 + 35 * row + 17}),
            "document.querySelector('[data-testid=stMainBlockContainer]').innerText.includes(argument)",
            names[row] + words,
        )

    click(0)
    assert best_median(click, _CLICK_MS) <= _ALLOWANCE * _CLICK_MS
    tab.close()
