"""From `streamlit run` to a page that can be used, and to the first graph, in a browser.

    python -m benchmarks.startup [--rounds 3] [--config config/local.json]

server     the process answers
page       the sidebar stands in the browser: a model can be chosen, a prompt typed; no model library has been imported for it
graph      the default model is loaded and checked, its sample prompt traced, the graph drawn

Needs Chromium and Playwright, as the browser tests do. Processor seconds are the server's own. The bar: the page in 3 s.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "browser"))


def main() -> None:
    from running_app import CHROMIUM  # pyright: ignore[reportMissingImports]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", type=Path, default=ROOT / "config" / "local.json")
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("There is no Chromium on this machine: apt-get install chromium")
    print(f"{platform.machine()}, load of the last minute {psutil.getloadavg()[0]:.1f}")
    rounds = [_round(options.config) for _ in range(options.rounds)]
    print(f"{'':8}{'seconds':>12}{'least':>8}{'processor':>12}")
    for name in rounds[0]:
        seconds = [times[name][0] for times in rounds]
        processor = statistics.median(times[name][1] for times in rounds)
        print(f"{name:8}{statistics.median(seconds):>12.2f}{min(seconds):>8.2f}{processor:>12.2f}")


def _round(config: Path) -> dict[str, tuple[float, float]]:
    """Seconds since the start, and processor seconds of the server, at each stage."""
    from playwright.sync_api import sync_playwright
    from running_app import CHROMIUM, FLAGS, start_app, stop_app  # pyright: ignore[reportMissingImports]

    times: dict[str, tuple[float, float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        process, running = start_app(config)

        def passed(name: str) -> None:
            used = psutil.Process(process.pid).cpu_times()
            times[name] = time.monotonic() - running.started, used.user + used.system

        try:
            passed("server")
            tab.goto(running.url)
            tab.locator('[data-testid="stSidebar"] textarea').first.wait_for(timeout=60_000)
            passed("page")
            tab.locator("[data-n-edges]").first.wait_for(timeout=120_000)
            passed("graph")
        finally:
            stop_app(process)
            browser.close()
    return times


if __name__ == "__main__":
    main()
