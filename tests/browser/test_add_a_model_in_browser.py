"""The README's steps to one's own model, followed literally in the running app: by configuration, and by "Add"."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import families
import peft
import pytest
import torch
from explore_page import ExplorePage
from playwright.sync_api import Browser, Page, expect
from running_app import ROOT, SCREENSHOTS, start_app, stop_app
from transformers import AutoModelForCausalLM

import llm_tt

PROMPT = "Mary the store the Mary"
_LOADED = 120_000
"""Milliseconds: the first model also imports the libraries"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with what the README names: last night's checkpoint, a base, and a LoRA adapter on it."""
    home = tmp_path_factory.mktemp("home")
    families.save_checkpoint(home / "runs/last-night/checkpoint-1200", families.FAMILIES["llama"](), families.metaspace_tokenizer(), seed=1)
    families.save_checkpoint(home / "runs/last-night/checkpoint-600", families.FAMILIES["llama"](), families.metaspace_tokenizer(), seed=2)
    base = families.save_checkpoint(home / "models/base", families.FAMILIES["llama"](), families.metaspace_tokenizer(), seed=3)
    save_lora(base, home / "runs/lora")
    return home


def save_lora(base: Path, folder: Path) -> None:
    """An adapter as PEFT saves it after training, with weights that change much."""
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)


@contextmanager
def running(config: Path, home: Path, browser: Browser, **options: Any) -> Iterator[ExplorePage]:
    process, app = start_app(config, HOME=str(home))
    try:
        tab = browser.new_page(**({"viewport": {"width": 1440, "height": 900}} | options))
        tab.set_default_timeout(_LOADED)
        tab.goto(app.url)
        tab.get_by_role("textbox", name="Prompt").wait_for()
        page = ExplorePage(tab)
        page.settle()
        page.type_prompt(PROMPT)
        yield page
        tab.close()
    finally:
        stop_app(process)


def edges(model: str, threshold: float = 0.04, **options: Any) -> int:
    return llm_tt.extract_routes(llm_tt.load_model(model, **options).trace(PROMPT), threshold=threshold).n_edges


def expect_graph(page: ExplorePage, n_edges: int) -> None:
    expect(page.graph).to_have_attribute("data-n-edges", str(n_edges), timeout=_LOADED)
    page.settle()


def readme_models() -> str:
    """The example of the README: the lines of "models"."""
    fences = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return next(fence for fence in fences if fence.startswith('"models"'))


def test_a_folder_and_an_adapter_by_configuration(home: Path, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    check = re.search(r"^    llm-tt (check \S+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert check is not None
    arguments = [os.path.expanduser(argument) for argument in check[1].split()]
    shown = subprocess.run(
        [sys.executable, "-c", "import sys; from llm_tt.cli import main; sys.exit(main())", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "every part adds up" in shown.stdout

    config = tmp_path / "local.json"
    config.write_text("{" + readme_models() + "}")
    models = json.loads(config.read_text())["models"]
    assert models["last night"] == "~/runs/last-night/checkpoint-1200"
    assert models["my lora"] == {"path": "~/models/base", "adapter": "~/runs/lora", "dtype": "bfloat16"}
    tuned = edges(str(home / "runs/last-night/checkpoint-1200"))
    lora = edges(str(home / "models/base"), adapter=str(home / "runs/lora"), dtype="bfloat16")
    with running(config, home, browser) as page:
        page.choose_model("last night")
        expect_graph(page, tuned)
        page.choose_model("my lora")
        expect_graph(page, lora)
        expect(page.page.get_by_test_id("stSidebar").get_by_text("bfloat16 on cpu")).to_be_visible()
        expect(page.page.get_by_test_id("stSidebar").get_by_text("runs/lora")).to_be_visible()
        page.page.get_by_role("button", name="Did the tuning take?").click()
        dialog = page.page.get_by_role("dialog")
        dialog.get_by_role("button", name="Measure what the tuning changed").click()
        verdict = llm_tt.tuning_report(str(home / "runs/lora")).verdict
        expect(dialog.get_by_text(verdict)).to_be_visible(timeout=_LOADED)
        expect(dialog.get_by_test_id("stPlotlyChart")).to_be_visible()
        shoot(page.page, "tuning")
        dialog.get_by_role("button", name="Close").click()
        expect(dialog).to_be_hidden()
        expect_graph(page, lora)


class AddDialog:
    """The dialog "Add a model"."""

    def __init__(self, page: ExplorePage) -> None:
        self._page = page
        page.page.get_by_role("button", name="Add", exact=True).click()
        self.dialog = page.page.get_by_role("dialog")
        expect(self.dialog.get_by_role("button", name="Check and add")).to_be_visible()

    def type(self, field: str, text: str) -> None:
        box = self.dialog.get_by_role("textbox", name=field, exact=True)
        # While the dialog is drawn anew, there may be the field of before beside it.
        expect(box).to_have_count(1)
        box.fill(text)
        box.press("Enter")
        self._page.page.wait_for_timeout(400)
        self._page.settle()

    def check(self) -> None:
        self.dialog.get_by_role("button", name="Check and add").click()

    def lines(self) -> str:
        expect(self.dialog.get_by_text("is on the menu")).to_be_visible(timeout=_LOADED)
        return self.dialog.get_by_test_id("stCode").inner_text().strip()


def test_a_folder_by_the_form_and_then_by_the_lines_it_gives(home: Path, browser: Browser, tmp_path: Path) -> None:
    config = tmp_path / "local.json"
    config.write_text('{\n    "models": {\n        "demo": null\n    }\n}')
    run = home / "runs" / "last-night"
    with running(config, home, browser) as page:
        add = AddDialog(page)
        shoot(page.page, "add-empty")
        add.type("Model", '"~/runs/last-night"')
        add.dialog.get_by_text("checkpoint-1200", exact=True).click()
        expect(add.dialog.get_by_role("textbox", name="Model", exact=True)).to_have_value(str(run / "checkpoint-1200"))
        add.type("Name", "demo")
        add.check()
        expect(add.dialog.get_by_text('The name "demo" is in the configuration already. Choose another name.')).to_be_visible()
        expect(add.dialog.get_by_role("textbox", name="Model", exact=True)).to_have_value(str(run / "checkpoint-1200"))
        shoot(page.page, "add-refused")
        add.type("Name", "from last night")
        add.check()
        lines = add.lines()
        shoot(page.page, "add-done")
        assert lines == f'"from last night": "{run / "checkpoint-1200"}",'
        add.dialog.get_by_role("button", name="Done").click()
        expect(page.page.get_by_role("dialog")).to_be_hidden()
        n_edges = edges(str(run / "checkpoint-1200"))
        expect_graph(page, n_edges)
        unload(page)
        shoot(page.page, "add-unloaded")
        # Asking again loads it again.
        page.press_slider("Threshold", "ArrowRight")
        expect_graph(page, edges(str(run / "checkpoint-1200"), threshold=0.045))
    config.write_text(config.read_text().replace('"models": {\n', '"models": {\n' + lines + "\n"))
    with running(config, home, browser) as page:
        page.choose_model("from last night")
        expect_graph(page, n_edges)


def unload(page: ExplorePage) -> None:
    page.page.get_by_role("button", name="Memory").click()
    dialog = page.page.get_by_role("dialog")
    expect(dialog.get_by_text("from last night", exact=True)).to_be_visible()
    expect(dialog.get_by_text("Memory of this machine")).to_be_visible()
    shoot(page.page, "memory")
    dialog.get_by_role("button", name="Unload").click()
    expect(dialog.get_by_text("No model is loaded")).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    page.settle()


def test_what_is_typed_survives_a_failure_and_a_closed_dialog(home: Path, browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "no tokenizer"
    families.random_model(families.FAMILIES["llama"]()).save_pretrained(broken)
    config = tmp_path / "local.json"
    config.write_text('{"models": {"demo": null}}')
    with running(config, home, browser, viewport={"width": 1024, "height": 768}, color_scheme="dark") as page:
        add = AddDialog(page)
        add.type("Model", str(broken))
        add.type("Name", "mine")
        add.check()
        expect(add.dialog.get_by_text(f'Model folder "{broken}" has no tokenizer')).to_be_visible(timeout=_LOADED)
        shoot(page.page, "add-failed-dark-1024")
        add.dialog.get_by_role("button", name="Close").click()
        expect(page.page.get_by_role("dialog")).to_be_hidden()
        again = AddDialog(page)
        for field, value in (("Model", str(broken)), ("Name", "mine")):
            expect(again.dialog.get_by_role("textbox", name=field, exact=True)).to_have_value(value)


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.wait_for_timeout(700)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
