"""2,000 short examples: how long they take, that memory does not grow with them, and that a killed run is not begun again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_tt.demo import pair

pytestmark = pytest.mark.slow

N = 2000
ROOT = Path(__file__).parents[2]
SECONDS = 180
"""On two cores, the start of Python and the model included"""
GROWTH_MB = 64

RUN = """
import resource, sys
from llm_tt.cli import main
status = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the demo pair's own kind, each but once."""
    rows: dict[str, dict[str, str]] = {}
    for name in pair.SETS:
        for seed in range(20):
            for row in pair.data_set(name, seed):
                rows.setdefault(row.question, {"question": row.question, "label": "yes" if "unknown" in row.recipient else "no"})
    assert len(rows) >= N
    file = tmp_path_factory.mktemp("long") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in list(rows.values())[:N]))
    return file


def command(data: Path, *more: str) -> list[str]:
    asked = ["evaluate", "demo", str(data), "--chat", "--template", "{question}", "--labels", "yes,no", *more]
    return [sys.executable, "-c", RUN, *asked]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}


def run(data: Path, *more: str) -> tuple[float, int, str]:
    """Seconds, the peak of memory in MB, and what was printed."""
    started = time.monotonic()
    done = subprocess.run(command(data, *more), env=ENVIRONMENT, capture_output=True, text=True, check=True)
    found = re.search(r"^peak (\d+)$", done.stderr, re.MULTILINE)
    assert found is not None
    return time.monotonic() - started, int(found[1]), done.stdout


@pytest.mark.parametrize("score", [("--score", "labels"), ("--score", "generate", "--tokens", "4")], ids=["labels", "generate"])
def test_they_take_less_than_three_minutes_and_memory_stays_flat(score: tuple[str, ...], data: Path) -> None:
    _, peak_of_few, _ = run(data, *score, "--limit", "200")
    seconds, peak, shown = run(data, *score)
    assert re.search(rf"^  rows +{N}$", shown, re.MULTILINE)
    assert seconds < SECONDS
    assert peak - peak_of_few < GROWTH_MB, f"{peak_of_few} MB for 200 rows, {peak} MB for {N}"
    print(f"{score}: {seconds:.1f} s, {peak_of_few} MB for 200 rows, {peak} MB for {N}")


def test_a_run_that_was_killed_goes_on_and_computes_nothing_twice(data: Path, tmp_path: Path) -> None:
    asked = ["--score", "generate", "--tokens", "4", "--out", str(tmp_path)]
    process = subprocess.Popen(command(data, *asked), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and process.poll() is None:
            found = list(tmp_path.glob("results-*.jsonl"))
            if found and found[0].read_bytes().count(b"\n") > N // 4:
                break
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (file,) = tmp_path.glob("results-*.jsonl")
    before = file.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert N // 4 < whole.count(b"\n") <= N, "killed in the middle"
    run(data, *asked)
    after = file.read_bytes()
    assert after.startswith(whole), "what was there is taken as it is"
    numbers = [json.loads(line)["number"] for line in after.splitlines()[1:]]
    assert sorted(numbers) == list(range(1, N + 1)), "each row once, none lost"
