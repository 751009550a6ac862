"""Trace and routes of one target against the plain forward pass: time in one process, peak memory in two.

    python -m benchmarks.extraction [--shape gpt2-small llama-88m] [--tokens 512 1024] [--repeats 7] [--span 20]

The plain forward pass is Hugging Face's own, with SDPA attention and logits of the last token only, which is the least it can cost.
Peak memory is Linux's figure (VmHWM) for a fresh process with model and libraries loaded, during one run. What was estimated before the run
stands beside what was measured. Ratios are of medians; the least ratio of a round, in which all take turns, is the nearest to what a machine
without other work shows.
A length whose trace does not fit into memory, or that the model does not read, is said to be so.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from llm_tt.errors import LlmTtError
from llm_tt.flow.routes import extract_routes, extract_routes_to_span
from llm_tt.models.bridge import BridgeLlm
from llm_tt.models.pace import estimate_trace
from llm_tt.models.transparent_llm import Trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=models.SHAPES, nargs="+", default=["gpt2-small"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=models.SEED, help="of the random weights; decides how far routes spread")
    parser.add_argument("--span", type=int, help="also the routes to so many of the last tokens at once, against those to the last alone")
    parser.add_argument("--peak", choices=["plain", "routes"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(_peak_megabytes(options.peak, options.shape[0], options.tokens[0], options.seed))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for shape in options.shape:
        for n_tokens in options.tokens:
            _report(shape, n_tokens, options.repeats, options.seed)
            if options.span and options.span > 1:
                _report_span(shape, n_tokens, options.repeats, options.seed, options.span)


def _report_span(shape: str, n_tokens: int, repeats: int, seed: int, n_targets: int) -> None:
    """One extraction for several targets against one of the last of them, each of a trace of its own; medians of rounds in which both take turns."""
    llm = _bridge(shape, seed)
    ids = models.prompt(n_tokens, llm.info.d_vocab)
    seconds: dict[int, list[float]] = {1: [], n_targets: []}
    for _ in range(repeats + 1):
        for n in seconds:
            trace = llm.trace(ids)
            started = time.perf_counter()
            extract_routes_to_span(trace, range(n_tokens - n, n_tokens))
            seconds[n].append(time.perf_counter() - started)
    alone, together = (1000 * statistics.median(taken[1:]) for taken in seconds.values())
    print(f"last {n_targets} targets    {together:9.1f} ms   {together / alone:.2f} of the last alone, {alone:.1f} ms")


def _report(shape: str, n_tokens: int, repeats: int, seed: int) -> None:
    print(f"\n{shape}, T = {n_tokens}")
    try:
        times = _times(shape, n_tokens, repeats, seed)
    except LlmTtError as error:
        print(error)
        return
    for name, label in (("plain", "plain forward"), ("trace", "trace"), ("routes", "extraction"), ("threshold", "other threshold")):
        print(f"{label:<18}{times[name] * 1000:9.1f} ms   {times[name] / times['plain']:.3f} of the plain forward")
    print(
        f"trace + routes                     {(times['trace'] + times['routes']) / times['plain']:.3f} of the plain forward, "
        f"at least {times['least']:.3f}"
    )
    print(f"trace as estimated{times['estimated'] * 1000:9.1f} ms   {times['estimated'] / times['trace']:.2f} of the trace")
    print(f"positions reached in a layer: median {times['reached']:.0f}, most {times['most']:.0f}; {times['edges']:.0f} edges")
    peak = {what: _in_fresh_process(what, shape, n_tokens, seed) for what in ("plain", "routes")}
    print(f"peak memory       plain {peak['plain']:.0f} MB, trace and routes {peak['routes']:.0f} MB: {peak['routes'] / peak['plain']:.2f}")


def _times(shape: str, n_tokens: int, repeats: int, seed: int) -> dict[str, float]:
    """Medians over `repeats` rounds in which plain forward, trace and extraction take turns."""
    plain, llm = models.build(shape, "sdpa", seed), _bridge(shape, seed)
    ids = models.prompt(n_tokens, llm.info.d_vocab)
    llm.prompt(ids)
    estimated = estimate_trace(llm, n_tokens)
    batch = torch.tensor([ids])
    rounds: dict[str, list[float]] = {"plain": [], "trace": [], "routes": [], "threshold": []}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        rounds[name].append(time.perf_counter() - started)
        return result

    graph = None
    for _ in range(repeats + 1):
        with torch.inference_mode():
            timed("plain", lambda: plain(batch, use_cache=False, logits_to_keep=1))
        trace: Trace = timed("trace", lambda: llm.trace(ids))
        graph = timed("routes", lambda trace=trace: extract_routes(trace))
        timed("threshold", lambda trace=trace: extract_routes(trace, threshold=0.05))
    assert graph is not None
    reached = [len({int(at) for at in graph.destination[graph.layer == layer]}) for layer in range(graph.n_layers)]
    # The first round warms up and does not count.
    least = min(
        (trace + routes) / forward
        for forward, trace, routes in zip(*(rounds[name][1:] for name in ("plain", "trace", "routes")), strict=True)
    )
    return {name: statistics.median(values[1:]) for name, values in rounds.items()} | {
        "least": least,
        "estimated": estimated.seconds,
        "reached": statistics.median(reached),
        "most": max(reached),
        "edges": graph.n_edges,
    }


def _bridge(shape: str, seed: int) -> BridgeLlm:
    model = models.build(shape, "eager", seed)
    size = model.config.vocab_size
    return BridgeLlm(shape, model, models.tokenizer(size))


def _peak_megabytes(what: str, shape: str, n_tokens: int, seed: int) -> float:
    """The process's peak during one run; what building the random model took before it does not count."""
    if what == "routes":
        llm = _bridge(shape, seed)
        ids = models.prompt(n_tokens, llm.info.d_vocab)
        _forget_peak()
        extract_routes(llm.trace(ids))
    else:
        plain = models.build(shape, "sdpa", seed)
        # The same tokenizers in memory as above, so that the difference is the run.
        kept = [models.tokenizer(plain.config.vocab_size) for _ in range(2)]
        batch = torch.tensor([models.prompt(n_tokens, len(kept[0]))])
        _forget_peak()
        with torch.inference_mode():
            plain(batch, use_cache=False, logits_to_keep=1)
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def _forget_peak() -> None:
    gc.collect()
    # Linux only: 5 sets the peak resident size back to the current one (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")


def _in_fresh_process(what: str, shape: str, n_tokens: int, seed: int) -> float:
    arguments = ["--shape", shape, "--tokens", str(n_tokens), "--seed", str(seed), "--peak", what]
    command = [sys.executable, "-m", "benchmarks.extraction", *arguments]
    return float(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
