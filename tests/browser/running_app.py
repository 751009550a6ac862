"""Starting and stopping the real app, and where Chromium is."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = Path(__file__).parent / "screenshots"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Headless, in a container, and silent towards the network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class App:
    """A running app."""

    url: str
    started: float
    """time.monotonic() when the process was started"""


def start_app(config: Path, port: int = 0, **environment: str) -> tuple[subprocess.Popen[bytes], App]:
    """`streamlit run app/main.py -- config` on a free port (0), offline; returns when it answers."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port), "--", str(config)]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    while time.monotonic() - started < 60:
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=1).close()
            return process, App(url, started)
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, f"the app ended at once: {' '.join(command)}"
            time.sleep(0.05)
    raise AssertionError("the app did not answer within a minute")


def stop_app(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
