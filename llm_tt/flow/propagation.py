"""Where the flow of a graph's routes goes: 1 starts at the target's last node, in equal shares at those of several. Reads the graph alone.

A node hands its flow down the kept edges into it in proportion to their contributions: all of it where the graph is renormalised, and else
the shares as they are, so that what the dropped edges would carry ends at the node. An FFN block hands on all that it gets. What reaches the
token embeddings is how much of the routes ends in each token of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_tt.flow.graph import EdgeKind, FlowGraph, Node

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Flow:
    """The flow through every part of a graph, float64."""

    sources: Floats
    """[T]: ends in each token embedding; with `dropped`, it sums to 1"""
    edges: Floats
    """[E]: through each edge of the graph, in its order"""
    heads: Floats
    """through each head of each attention edge, in the order of `FlowGraph.head`"""
    mid: Floats
    """[L, T]: reaches the residual stream after attention, A{l}_{t}"""
    post: Floats
    """[L, T]: reaches the residual stream after the FFN, I{l}_{t}"""
    dropped_mid: Floats
    """[L, T]: of `mid`, what no kept edge carries on"""
    dropped_post: Floats
    """[L, T]: of `post`, what no kept edge carries on"""
    head_layer: npt.NDArray[np.uint16]
    """the layer of each entry of `heads`"""
    head: npt.NDArray[np.uint16]
    """the head of each entry of `heads`"""
    ffn: Floats
    """[L, T]: through the FFN block M{l}_{t}"""

    @property
    def dropped(self) -> float:
        """What ends before it reaches a token embedding."""
        return float(self.dropped_mid.sum() + self.dropped_post.sum())

    def node(self, name: str) -> float:
        """The flow that reaches a node; 0 where no route passes.

        Raises:
            RequestError: not a node's name.
        """
        node = Node.parse(name)
        if node.kind == "X":
            return float(self.sources[node.position])
        return float({"A": self.mid, "I": self.post, "M": self.ffn}[node.kind][node.layer, node.position])

    def by_head(self, n_heads: int) -> Floats:
        """[L, H]: through each head, all edges together. A layer's heads have at most 1 in all; flow passes many layers."""
        n_layers = len(self.mid)
        which = self.head_layer.astype(np.int64) * n_heads + self.head
        return _sums(which, self.heads, n_layers * n_heads).reshape(n_layers, n_heads)


def flow_over_sources(graph: FlowGraph) -> Floats:
    """[T]: how much of the routes' flow ends in each token embedding.

    Sums to 1 where the graph is renormalised and every node that routes reach has a kept edge into it; a node with none keeps its flow. Where
    the graph is not renormalised it sums to 1 less all that dropped edges would carry. See `propagate(graph).dropped`.
    """
    return propagate(graph).sources


def propagate(graph: FlowGraph) -> Flow:
    """The flow through every node, edge and head of a graph; its cost is linear in edges. Several targets start with equal shares."""
    n_layers, n_tokens = graph.n_layers, graph.n_tokens
    weight, kind = graph.weight.astype(np.float64), graph.kind
    source, destination = graph.source.astype(np.int64), graph.destination.astype(np.int64)
    edges = np.zeros(graph.n_edges)
    per_head = np.diff(graph.heads_start.astype(np.int64))
    head_edge = np.repeat(np.arange(graph.n_edges), per_head)
    heads = graph.head_weight.astype(np.float64)
    mid, post, ffn = (np.zeros((n_layers, n_tokens)) for _ in range(3))
    dropped_mid, dropped_post = np.zeros_like(mid), np.zeros_like(post)
    arriving = np.zeros(n_tokens)
    roots = list(graph.all_targets)
    arriving[roots] = 1 / len(roots)
    # Edges come from the last layer down.
    bounds = np.searchsorted(-graph.layer.astype(np.int64), np.arange(-n_layers + 1, 2))
    for layer, start, end in zip(reversed(range(n_layers)), bounds[:-1], bounds[1:], strict=True):
        here = np.arange(start, end)
        kinds = kind[here]
        out = here[(kinds == EdgeKind.OUT_OF_FFN) | (kinds == EdgeKind.RESIDUAL_TO_POST)]
        into_mid = here[(kinds == EdgeKind.ATTENTION) | (kinds == EdgeKind.RESIDUAL_TO_MID)]
        into_ffn = here[kinds == EdgeKind.INTO_FFN]
        post[layer] = arriving
        share, kept = _shares(weight[out], destination[out], n_tokens, graph.renormalized)
        edges[out] = arriving[destination[out]] * share
        mid[layer] = _sums(destination[out], edges[out], n_tokens)
        dropped_post[layer] = arriving * np.maximum(0.0, 1 - kept)
        through = out[kind[out] == EdgeKind.OUT_OF_FFN]
        ffn[layer] = _sums(destination[through], edges[through], n_tokens)
        edges[into_ffn] = ffn[layer][destination[into_ffn]]
        share, kept = _shares(weight[into_mid], destination[into_mid], n_tokens, graph.renormalized)
        edges[into_mid] = mid[layer][destination[into_mid]] * share
        dropped_mid[layer] = mid[layer] * np.maximum(0.0, 1 - kept)
        arriving = _sums(source[into_mid], edges[into_mid], n_tokens)
    # A head has of its edge's flow what it has of its weight.
    heads *= (edges / np.where(weight > 0, weight, 1.0))[head_edge]
    return Flow(arriving, edges, heads, mid, post, dropped_mid, dropped_post, graph.layer[head_edge], graph.head, ffn)


def _shares(weight: Floats, destination: npt.NDArray[np.int64], n_tokens: int, all_of_it: bool) -> tuple[Floats, Floats]:
    """The share of its node's flow that each edge carries, and [T] the sum of these for each node."""
    total = _sums(destination, weight, n_tokens)
    if not all_of_it:
        # Rounding may lift a sum of contributions above 1: a node has no more than its flow to give.
        total = np.maximum(total, 1.0)
    total[total == 0] = 1.0
    share = weight / total[destination]
    kept = _sums(destination, share, n_tokens)
    return share, kept


def _sums(index: npt.NDArray[np.int64], values: Floats, size: int) -> Floats:
    """[size]: the sum of the values of each index, in their order."""
    return np.bincount(index, values, minlength=size).astype(np.float64)
