"""Against the algorithm that materialises all T * T * H * d parts, as LM-TT does: one target, and all targets at once.

    python -m benchmarks.materialising [--tokens 128 256]

The materialising algorithm is written here from docs/method.md: for every layer the parts of all pairs of tokens and all heads, their L1 distance
from the whole, and from these the contributions to every node. It works on the same trace; only what follows the forward pass is timed. Run in
float64 on the last eight tokens it is also the reference that both are compared with.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import models
from llm_tt.flow.contributions import attention_contributions
from llm_tt.flow.routes import extract_routes
from llm_tt.models.bridge import BridgeLlm
from llm_tt.models.transparent_llm import Trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256])
    options = parser.parse_args()
    model = models.build("gpt2-small", "eager")
    size = model.config.vocab_size
    llm = BridgeLlm("gpt2-small", model, models.tokenizer(size))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, gpt2-small")
    for n_tokens in options.tokens:
        _report(llm, n_tokens)


def _report(llm: BridgeLlm, n_tokens: int) -> None:
    ids = models.prompt(n_tokens, llm.info.d_vocab)
    some, everything = range(n_tokens - 8, n_tokens), range(n_tokens)
    with torch.inference_mode():
        trace = llm.trace(ids)
        materialising, full = _timed(lambda: [_materialised(trace, layer, everything) for layer in range(trace.n_layers)])
        # Fresh traces, since contributions are kept with a trace.
        one = min(_timed(partial(extract_routes, llm.trace(ids)))[0] for _ in range(3))
        all_targets, ours = _timed(lambda: [attention_contributions(trace, layer).edges for layer in range(trace.n_layers)])
        exact = [_materialised(trace, layer, some, torch.float64) for layer in range(trace.n_layers)]
    print(f"\nT = {n_tokens}: full graph by materialising {materialising:.2f} s")
    print(f"one target        {one * 1000:8.1f} ms   {materialising / one:6.0f} times faster")
    print(f"all targets       {all_targets * 1000:8.1f} ms   {materialising / all_targets:6.1f} times faster")
    for name, edges in (("materialising", full), ("ours", ours)):
        worst = max(float((rows[some.start :] - reference).abs().max()) for rows, reference in zip(edges, exact, strict=True))
        print(f"largest error of a contribution, {name}: {worst:.0e}")


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _materialised(trace: Trace, layer: int, positions: range, dtype: torch.dtype = torch.float32) -> Tensor:
    """Contributions of the attention edges [P, T, H] to the nodes after attention at some positions."""
    block = trace.blocks[layer]
    alpha = block.pattern.rows(positions).to(dtype)
    values = block.values.to(dtype).repeat_interleave(len(alpha) // len(block.values), dim=0)
    parts = torch.einsum("hij,hje,hed->ijhd", alpha, values, trace.model.attention_output(layer)[0].to(dtype))
    whole, before = (stream[list(positions)].to(dtype) for stream in (block.resid_mid, trace.resid_pre(layer)))
    size = whole.abs().sum(-1)
    edges = (size[:, None, None] - (whole[:, None, None] - parts).abs().sum(-1)).clamp_min(0)
    residual = (size - (whole - before).abs().sum(-1)).clamp_min(0)
    return edges / (edges.sum((1, 2)) + residual)[:, None, None]


if __name__ == "__main__":
    main()
