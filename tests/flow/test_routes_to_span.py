"""The routes to several targets in one walk are the union of the routes to each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from families import token_ids

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.flow import contributions, routes
from llm_tt.flow.graph import EdgeKind, FlowGraph
from llm_tt.flow.routes import span

SPAN = (11, 17, 18, 23)


def edges(graph: FlowGraph) -> dict[tuple[object, ...], tuple[float, dict[int, float]]]:
    return {(edge.kind, edge.layer, edge.source, edge.destination): (edge.weight, dict(edge.heads)) for edge in graph.edges()}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_it_is_the_union_edge_by_edge_and_its_flow_the_mean(name: str, renormalize: bool, model: Callable) -> None:
    trace = model(name).trace(token_ids(24))
    single = [llm_tt.extract_routes(trace, target, 0.03, renormalize) for target in SPAN]
    union = llm_tt.extract_routes_to_span(trace, [-1, *SPAN[::-1]], 0.03, renormalize)
    expected: dict[tuple[object, ...], tuple[float, dict[int, float]]] = {}
    for graph in single:
        expected |= edges(graph)
    assert edges(union) == expected
    assert len(expected) == union.n_edges > max(graph.n_edges for graph in single)
    assert union.targets == SPAN
    flows = np.mean([llm_tt.flow_over_sources(graph) for graph in single], axis=0)
    np.testing.assert_allclose(llm_tt.flow_over_sources(union), flows, atol=1e-6)
    assert union.carried == pytest.approx(np.mean([graph.carried for graph in single]), abs=1e-6)
    if renormalize:
        flow = llm_tt.propagate(union)
        assert flow.sources.sum() + flow.dropped == pytest.approx(1, abs=1e-6)


def test_nodes_that_targets_share_are_computed_once(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[int, int]] = []
    original = contributions._attention_rows

    def observed(trace: llm_tt.Trace, layer: int, positions: list[int]) -> list[contributions.AttentionRow]:
        computed.extend((layer, position) for position in positions)
        return original(trace, layer, positions)

    monkeypatch.setattr(contributions, "_attention_rows", observed)
    llm_tt.extract_routes_to_span(model("llama").trace(token_ids(24)), range(12, 24))
    assert len(computed) == len(set(computed)) > 12


@pytest.mark.parametrize("by_mass", [False, True])
def test_of_a_long_span_nothing_is_kept_and_all_is_the_same(by_mass: bool, model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, ids = model("llama"), token_ids(24)

    def extract(trace: llm_tt.Trace) -> FlowGraph:
        if by_mass:
            return llm_tt.extract_routes_by_mass(trace, range(8, 24), 0.8)
        return llm_tt.extract_routes_to_span(trace, range(8, 24), 0.02)

    kept = llm.trace(ids)
    expected = extract(kept)
    assert contributions.table_of(kept).nbytes > 0
    row = 4 * 24 * llm.info.n_heads
    monkeypatch.setattr(routes, "_KEPT_BYTES", 15 * llm.info.n_layers * row)
    monkeypatch.setattr(routes, "_PIECE_BYTES", 5 * row)
    most: list[int] = []
    original = contributions._attention_rows

    def observed(trace: llm_tt.Trace, layer: int, positions: list[int]) -> list[contributions.AttentionRow]:
        most.append(len(positions))
        return original(trace, layer, positions)

    monkeypatch.setattr(contributions, "_attention_rows", observed)
    trace = llm.trace(ids)
    found = extract(trace)
    assert contributions.table_of(trace).nbytes == 0
    assert max(most) == 5, "so many rows are there at a time"
    assert list(edges(found)) == list(edges(expected)), "in the same order"
    for edge, (weight, heads) in edges(found).items():
        assert (weight, heads) == (pytest.approx(edges(expected)[edge][0], abs=1e-6), pytest.approx(edges(expected)[edge][1], abs=1e-6))
    # Of one target fewer they are kept.
    llm_tt.extract_routes_to_span(trace, range(9, 24), 0.02)
    assert contributions.table_of(trace).nbytes > 0


def test_a_span_of_one_is_the_graph_of_that_target(model: Callable) -> None:
    trace = model("gpt2").trace(token_ids(24))
    one, other = llm_tt.extract_routes_to_span(trace, [7, 7]), llm_tt.extract_routes(trace, 7)
    assert edges(one) == edges(other)
    assert (one.target, one.targets, one.carried) == (7, (), other.carried)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("extract", ["threshold", "mass"])
def test_its_flow_is_that_of_single_walkers_from_all_targets(extract: str, renormalize: bool, model: Callable) -> None:
    """Beside `propagate` a matrix product: one step of all nodes at once, with heads counted as they are passed."""
    trace = model("llama").trace(token_ids(24))
    if extract == "threshold":
        graph = llm_tt.extract_routes_to_span(trace, SPAN, 0.03, renormalize)
    else:
        graph = llm_tt.extract_routes_by_mass(trace, SPAN, 0.9, renormalize)
    names = sorted({end.name for edge in graph.edges() for end in edge.ends} | {root.name for root in graph.roots})
    index = {name: number for number, name in enumerate(names)}
    step = np.zeros((len(names), len(names)))
    for edge in graph.edges():
        source, destination = edge.ends
        # What leaves an FFN block is all that entered it.
        step[index[destination.name], index[source.name]] += 1.0 if edge.kind is EdgeKind.INTO_FFN else edge.weight
    start = np.zeros(len(names))
    start[[index[f"I{graph.n_layers - 1}_{target}"] for target in SPAN]] = 1 / len(SPAN)
    # All that ever passes each node: the sum over paths of every length.
    passing = np.linalg.solve((np.eye(len(names)) - step).T, start)
    flow = llm_tt.propagate(graph)
    np.testing.assert_allclose([flow.node(name) for name in names], passing, atol=1e-6)
    by_head = np.zeros((graph.n_layers, trace.model.info.n_heads))
    for edge in graph.edges():
        for head, weight in edge.heads.items():
            by_head[edge.layer, head] += passing[index[f"A{edge.layer}_{edge.destination}"]] * weight
    np.testing.assert_allclose(flow.by_head(trace.model.info.n_heads), by_head, atol=1e-6)
    assert by_head.sum() > 0.1


def test_positions_from_first_to_last(model: Callable) -> None:
    trace = model("gpt2").trace(token_ids(9))
    assert (span(trace, 2, 5), span(trace, -3), span(trace, 4, 4)) == (range(2, 6), range(6, 9), range(4, 5))
    with pytest.raises(RequestError, match=r"would begin at token 7, after its last token, 3\. Begin it at one of the tokens 0 to 3"):
        span(trace, -2, 3)
    with pytest.raises(RequestError, match="Position 9 does not exist: the prompt has 9 tokens"):
        span(trace, 9)


def test_networkx_knows_all_targets(model: Callable) -> None:
    trace = model("llama").trace(token_ids(24))
    network = llm_tt.extract_routes_to_span(trace, SPAN, 0.9).to_networkx()
    assert network.graph["targets"] == list(SPAN)
    last = trace.n_layers - 1
    assert {f"I{last}_{target}" for target in SPAN} <= set(network), "though no edge leads to them"
    assert "targets" not in llm_tt.extract_routes(trace).to_networkx().graph


def test_what_is_no_span_is_refused(model: Callable) -> None:
    trace = model("gpt2").trace(token_ids(5))
    with pytest.raises(RequestError, match="no targets"):
        llm_tt.extract_routes_to_span(trace, [])
    with pytest.raises(RequestError, match="no targets"):
        llm_tt.extract_routes_by_mass(trace, [])
    with pytest.raises(RequestError, match="Position 5 does not exist"):
        llm_tt.extract_routes_by_mass(trace, (2, 5))
    with pytest.raises(RequestError, match="Position 5 does not exist"):
        llm_tt.extract_routes_to_span(trace, [2, 5])
    with pytest.raises(RequestError, match=r"Threshold 1\.5 is not in"):
        llm_tt.extract_routes_to_span(trace, [2, 3], 1.5)
