"""The flow of a graph by recursion over networkx, for comparison with what an explanation says."""

from __future__ import annotations

from functools import cache

import llm_tt


def node_flow(graph: llm_tt.FlowGraph):
    """node -> the flow that reaches it: from every edge out of it, the flow of that edge's end times its share."""
    network, renormalized = graph.to_networkx(), graph.renormalized
    roots = {f"I{graph.n_layers - 1}_{target}" for target in graph.targets or (graph.target,)}

    def share(node: str, weight: float) -> float:
        if node.startswith("M"):
            return 1.0
        return weight / sum(weight for *_, weight in network.in_edges(node, data="weight")) if renormalized else weight

    @cache
    def flow(node: str) -> float:
        if node in roots:
            return 1 / len(roots)
        if node not in network:
            return 0.0
        return sum(flow(above) * share(above, weight) for _, above, weight in network.out_edges(node, data="weight"))

    return flow, share


def sources(graph: llm_tt.FlowGraph) -> list[float]:
    flow, _ = node_flow(graph)
    return [flow(f"X0_{position}") for position in range(graph.n_tokens)]


def head_flow(graph: llm_tt.FlowGraph, n_heads: int) -> list[list[float]]:
    flow, share = node_flow(graph)
    result = [[0.0] * n_heads for _ in range(graph.n_layers)]
    for edge in graph.edges():
        for head, weight in edge.heads.items():
            into = edge.ends[1].name
            result[edge.layer][head] += flow(into) * share(into, weight)
    return result
