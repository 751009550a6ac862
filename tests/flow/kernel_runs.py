"""What the kernel gives in Triton's interpreter: a program of its own, since Triton decides whether it interprets when it is first imported.

    TRITON_INTERPRET=1 python kernel_runs.py REQUESTS ANSWERS

REQUESTS is a file of torch.save: {"sums": {name: arguments of `scaled_proximity`}, "checkpoints": [folder, ...], "n_tokens": T}; ANSWERS becomes
one with the proximities of each of the sums, and the routes and neurons of each checkpoint, with the kernel and without it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import llm_tt
from llm_tt.flow import kernels

CPU = torch.device("cpu")


def main(requests: str, answers: str) -> None:
    torch.set_num_threads(1)
    asked = torch.load(requests)
    kernels.DEVICES = ("cpu",)
    torch.save(
        {
            "why_not": kernels.why_not(CPU),
            "sums": {name: kernels.scaled_proximity(*arguments) for name, arguments in asked["sums"].items()},
            "checkpoints": [answers_of(folder, asked["n_tokens"]) for folder in asked["checkpoints"]],
        },
        answers,
    )


def answers_of(folder: str, n_tokens: int) -> dict[str, Any]:
    llm = llm_tt.load_model(folder)
    ids = [(11 * index + 5) % llm.info.d_vocab for index in range(n_tokens)]
    summed = 0
    original = kernels.scaled_proximity

    def counted(units: torch.Tensor, scales: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal summed
        summed += len(scales)
        return original(units, scales, *rest)

    kernels.scaled_proximity = counted
    with_kernel = found_in(llm, ids)
    kernels.scaled_proximity = original
    kernels.DEVICES = ("cuda",)
    without = found_in(llm, ids)
    kernels.DEVICES = ("cpu",)
    return {"summed": summed, "with": with_kernel, "without": without}


def found_in(llm: llm_tt.TransparentLlm, ids: list[int]) -> dict[str, Any]:
    """Of a trace of its own: contributions are kept with their trace."""
    trace = llm.trace(ids)
    graph = llm_tt.extract_routes(trace, threshold=0.01, renormalize=False).to_networkx()
    edges = {(a, b, key): {"weight": data["weight"]} | data.get("heads", {}) for a, b, key, data in graph.edges(keys=True, data=True)}
    return {"edges": edges, "neurons": llm_tt.neuron_contributions(trace, 0, -1)}


if __name__ == "__main__":
    main(*sys.argv[1:])
