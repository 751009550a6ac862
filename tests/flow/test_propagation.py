"""Flow equals a sum over every path of the graph, and powers of the matrix of its edges; nothing of it is lost or made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
import torch
from handmade import handmade_trace

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.flow.graph import EdgeKind
from llm_tt.flow.routes import extract_routes

NAMES = ("gpt2", "llama", "gpt_neox", "mixtral", "gemma2")
every_family = pytest.mark.parametrize("name", NAMES)
both_modes = pytest.mark.parametrize("renormalize", [True, False])
THRESHOLDS = (0.0, 0.01, 0.04, 0.2)


def shares(graph: llm_tt.FlowGraph) -> nx.MultiDiGraph:
    """The graph with each edge's share of the flow of the node it leads to: of all of it where that is renormalised; 1 into an FFN block."""
    network = graph.to_networkx()
    for node in network:
        into = list(network.in_edges(node, keys=True, data=True))
        total = sum(data["weight"] for *_, data in into)
        for *_, data in into:
            data["share"] = data["weight"] / total if graph.renormalized or node.startswith("M") else data["weight"]
    return network


def over_all_paths(network: nx.MultiDiGraph, root: str) -> dict[str, float]:
    """The flow that reaches each node: over all paths from the root, the sum of the products of their shares."""
    flow: dict[str, float] = {root: 1.0}

    def walk(node: str, share: float) -> None:
        for below, _, data in network.in_edges(node, data=True):
            flow[below] = flow.get(below, 0.0) + share * data["share"]
            walk(below, share * data["share"])

    walk(root, 1.0)
    return flow


def by_matrix_powers(network: nx.MultiDiGraph, root: str) -> dict[str, float]:
    """The same by (I + M + M^2 + ...) on the root, M[b, a] the shares of the edges from b to a."""
    nodes = list(network)
    index = {node: number for number, node in enumerate(nodes)}
    matrix = np.zeros((len(nodes), len(nodes)))
    for below, above, data in network.edges(data=True):
        matrix[index[below], index[above]] += data["share"]
    reached = np.zeros(len(nodes))
    step = np.eye(len(nodes))[index[root]]
    while step.any():
        reached += step
        step = matrix @ step
    return dict(zip(nodes, reached.tolist(), strict=True))


@every_family
@both_modes
def test_flow_is_the_sum_over_all_paths(name: str, renormalize: bool, trace: Callable) -> None:
    graph = llm_tt.extract_routes(trace(name, 5), -1, 0.05, renormalize)
    expected = over_all_paths(shares(graph), graph.root.name)
    flow = llm_tt.propagate(graph)
    assert len(expected) > 10
    for node, value in expected.items():
        assert flow.node(node) == pytest.approx(value, abs=1e-6), node
    assert flow.sources == pytest.approx([expected.get(f"X0_{t}", 0.0) for t in range(5)], abs=1e-6)


@every_family
@both_modes
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_flow_is_what_powers_of_the_matrix_of_edges_say(name: str, renormalize: bool, threshold: float, trace: Callable) -> None:
    for target in (0, 11, -1):
        graph = llm_tt.extract_routes(trace(name, 20), target, threshold, renormalize)
        network = shares(graph)
        expected = by_matrix_powers(network, graph.root.name)
        flow = llm_tt.propagate(graph)
        for node, value in expected.items():
            assert flow.node(node) == pytest.approx(value, abs=1e-6), node
        for edge, value in zip(graph.edges(), flow.edges, strict=True):
            source, destination = (node.name for node in edge.ends)
            share = network.edges[source, destination, edge.kind.key]["share"]
            assert value == pytest.approx(expected[destination] * share, abs=1e-6)
        n_layers, n_tokens = graph.n_layers, graph.n_tokens
        everywhere = [f"{kind}{layer}_{t}" for kind in "AMI" for layer in range(n_layers) for t in range(n_tokens)]
        assert not any(flow.node(node) for node in everywhere if node not in expected)


@every_family
def test_renormalised_flow_sums_to_one_and_else_to_one_less_what_is_dropped(name: str, trace: Callable) -> None:
    for threshold, target in itertools.product(THRESHOLDS, (0, 7, -1)):
        whole = llm_tt.propagate(llm_tt.extract_routes(trace(name, 20), target, threshold, renormalize=True))
        graph = llm_tt.extract_routes(trace(name, 20), target, threshold, renormalize=False)
        part = llm_tt.propagate(graph)
        assert whole.sources.sum() + whole.dropped == pytest.approx(1, abs=1e-9)
        assert part.sources.sum() + part.dropped == pytest.approx(1, abs=1e-6)
        if not whole.dropped:
            assert whole.sources.sum() == pytest.approx(1, abs=1e-9)
        assert part.sources.sum() <= whole.sources.sum() + 1e-9
        assert (llm_tt.flow_over_sources(graph) == part.sources).all()
        assert (part.sources[graph.target + 1 :] == 0).all()


@every_family
@both_modes
def test_the_graph_knows_how_much_it_carries_before_renormalising(name: str, renormalize: bool, trace: Callable) -> None:
    for threshold in THRESHOLDS:
        graph = llm_tt.extract_routes(trace(name, 20), -1, threshold, renormalize)
        bare = llm_tt.extract_routes(trace(name, 20), -1, threshold, renormalize=False)
        assert graph.carried == pytest.approx(by_sources(bare), abs=1e-6)


def by_sources(graph: llm_tt.FlowGraph) -> float:
    reached = by_matrix_powers(shares(graph), graph.root.name)
    return sum(value for node, value in reached.items() if node.startswith("X"))


@every_family
def test_what_is_dropped_is_what_no_kept_edge_carries_on(name: str, trace: Callable) -> None:
    graph = llm_tt.extract_routes(trace(name, 20), -1, 0.04, renormalize=False)
    flow, network = llm_tt.propagate(graph), graph.to_networkx()
    seen = 0
    for node, data in network.nodes(data=True):
        if data["kind"] in "AI":
            kept = sum(weight for *_, weight in network.in_edges(node, data="weight"))
            dropped = (flow.dropped_mid if data["kind"] == "A" else flow.dropped_post)[data["layer"], data["position"]]
            assert dropped == pytest.approx(flow.node(node) * (1 - kept), abs=1e-6)
            seen += dropped > 1e-3
    assert seen


@every_family
@both_modes
def test_a_head_has_its_share_of_every_edge_that_it_passes(name: str, renormalize: bool, trace: Callable, model: Callable) -> None:
    graph = llm_tt.extract_routes(trace(name, 20), -1, 0.01, renormalize)
    flow, n_heads = llm_tt.propagate(graph), model(name).info.n_heads
    expected = np.zeros((graph.n_layers, n_heads))
    per_layer = np.zeros(graph.n_layers)
    for edge, value in zip(graph.edges(), flow.edges, strict=True):
        for head, weight in edge.heads.items():
            expected[edge.layer, head] += value * weight / edge.weight
        per_layer[edge.layer] += value if edge.kind is EdgeKind.ATTENTION else 0.0
    found = flow.by_head(n_heads)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found.sum(1) == pytest.approx(per_layer, abs=1e-6)
    assert found.max() > 0.01
    assert found.sum(1).max() <= 1 + 1e-9


def test_a_graph_without_edges_drops_all_of_it(trace: Callable) -> None:
    graph = llm_tt.extract_routes(trace("gpt2", 20), -1, 0.999)
    assert graph.n_edges == 0
    flow = llm_tt.propagate(graph)
    assert flow.sources.tolist() == [0.0] * 20
    assert (flow.dropped, flow.dropped_post[-1, -1], graph.carried) == (1.0, 1.0, 0.0)
    assert flow.by_head(4).tolist() == [[0.0] * 4] * graph.n_layers


def test_flow_ends_at_a_node_whose_parts_all_point_away() -> None:
    """Attention node of token 1: its whole is the opposite of every part. Its FFN node still hands the flow to it."""
    one = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    alpha = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    trace = handmade_trace(pre=one, mid=-one, alpha=alpha, values=torch.ones(1, 2, 2), w_o=torch.eye(2)[None], post=-one)
    flow = llm_tt.propagate(extract_routes(trace, 1, 0.01, renormalize=True))
    assert flow.node("I0_1") == flow.node("A0_1") == flow.dropped_mid[0, 1] == flow.dropped == 1.0
    assert flow.sources.sum() == 0
    assert math.isfinite(flow.edges.sum())


def test_a_name_that_is_no_nodes_is_refused(trace: Callable) -> None:
    flow = llm_tt.propagate(llm_tt.extract_routes(trace("gpt2", 5)))
    with pytest.raises(RequestError, match='"B0_1" is not a node'):
        flow.node("B0_1")
