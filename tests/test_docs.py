"""The documentation keeps up with the code: its Python runs, its tables name every key, its commands exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_tt import cli
from llm_tt.config import AppConfig, ModelSpec, load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fences(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if fences(page, "python")], ids=lambda page: page.name)
def test_python_examples_run(page: Path) -> None:
    names: dict[str, object] = {}
    for code in fences(page, "python"):
        exec(compile(code, str(page), "exec"), names)


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    for code in fences(ROOT / "docs" / "configuration.md", "json"):
        content = json.loads(code)
        content["preloaded_dataset_filename"] = None
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert set(load_config(tmp_path / "config.json").models) == set(content["models"])


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.json")), ids=lambda file: file.name)
def test_the_shipped_configurations_are_valid_and_have_prompts(file: Path) -> None:
    assert load_config(file).prompts()


def test_every_key_of_the_configuration_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert documented == set(AppConfig.model_fields) | set(ModelSpec.model_fields) - {"name"}


def test_every_option_of_the_command_line_is_documented() -> None:
    text = (ROOT / "docs" / "library.md").read_text()
    commands = cli._parser()._subparsers
    assert commands is not None
    for name, parser in commands._group_actions[0].choices.items():  # type: ignore[union-attr]
        assert f"llm-tt {name}" in text
        for action in parser._actions:
            for option in action.option_strings:
                assert option in text or option in ("-h", "--help"), f"{name} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_picture_of_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for module in sorted((ROOT / "llm_tt").rglob("*.py")):
        if module.name != "__init__.py" and module.parent.name not in ("demo", "graph"):
            assert module.name in text, module


def test_make_help_names_every_documented_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    documented = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "docs" / "developing.md").read_text()))
    assert documented <= set(re.findall(r"make ([a-z-]+)", shown))


def test_what_the_page_imports_at_start_is_light() -> None:
    code = (
        "import sys; from app.views import explore; "
        "print([name for name in ('torch', 'transformers', 'transformer_lens') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
