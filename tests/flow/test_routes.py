"""Routes equal the graph that a brute force cuts out of all contributions, and are what they are said to be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
import reference
import torch
from families import CORE, LENGTHS, token_ids
from reference import Contributions, EdgeName, ReferenceEdge

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.flow.graph import EdgeKind, Node
from llm_tt.progress import Cancelled

THRESHOLDS = (0.005, 0.01, 0.04, 0.1, 0.3)
every_family = pytest.mark.parametrize("name", CORE)
every_length = pytest.mark.parametrize("n_tokens", LENGTHS)
both_modes = pytest.mark.parametrize("renormalize", [True, False])


def as_reference(graph: llm_tt.FlowGraph) -> dict[EdgeName, ReferenceEdge]:
    found = graph.to_networkx()
    edges = {(a, b, key): ReferenceEdge(data["weight"], data.get("heads", {})) for a, b, key, data in found.edges(keys=True, data=True)}
    assert len(edges) == graph.n_edges, "two edges of a graph have the same name"
    return edges


def assert_same(actual: dict[EdgeName, ReferenceEdge], expected: dict[EdgeName, ReferenceEdge]) -> None:
    assert actual.keys() == expected.keys()
    for name, edge in expected.items():
        assert actual[name].weight == pytest.approx(edge.weight, abs=1e-5), name
        assert actual[name].heads.keys() == edge.heads.keys(), name
        for head, value in edge.heads.items():
            assert actual[name].heads[head] == pytest.approx(value, abs=1e-5), (name, head)


@every_family
@every_length
@both_modes
def test_routes_equal_those_cut_from_the_full_brute_force_graph(
    name: str, n_tokens: int, renormalize: bool, trace: Callable, plain_contributions: Callable
) -> None:
    expected: Contributions = plain_contributions(name, n_tokens)
    for wanted in THRESHOLDS:
        threshold = expected.clear_threshold(wanted)
        full = reference.full_graph(expected, threshold, renormalize)
        for target in {0, n_tokens // 2, n_tokens - 1}:
            graph = llm_tt.extract_routes(trace(name, n_tokens), target, threshold, renormalize)
            assert_same(as_reference(graph), reference.cut(full, f"I{len(expected.ffn) - 1}_{target}"))
            assert (graph.target, graph.threshold, graph.renormalized) == (target, threshold, renormalize)


@every_family
def test_the_brute_force_graphs_have_something_to_compare(name: str, plain_contributions: Callable) -> None:
    """A comparison of empty graphs would prove nothing."""
    edges = reference.routes(plain_contributions(name, 60), 59, 0.005, True)
    assert len(edges) > 30
    kinds = {kind for _, _, kind in edges}
    assert kinds == {"attention", "residual", "ffn"}
    assert any(len(edge.heads) > 1 for edge in edges.values()), "no edge carries two heads"


@every_family
@every_length
def test_lazy_routes_equal_those_cut_from_contributions_of_all_positions(
    name: str, n_tokens: int, model: Callable, trace: Callable
) -> None:
    complete = trace(name, n_tokens)
    attention = [llm_tt.attention_contributions(complete, layer) for layer in range(complete.n_layers)]
    ffn = [llm_tt.ffn_contributions(complete, layer) for layer in range(complete.n_layers)]
    everything = Contributions(
        *(tuple(tensor.double() for tensor in tensors) for tensors in zip(*((a.edges, a.residual) for a in attention), strict=True)),
        *(tuple(tensor.double() for tensor in tensors) for tensors in zip(*((f.ffn, f.residual) for f in ffn), strict=True)),
    )
    for wanted, renormalize in itertools.product((0.01, 0.04), (True, False)):
        threshold = everything.clear_threshold(wanted)
        fresh = model(name).trace(token_ids(n_tokens))
        lazy = as_reference(llm_tt.extract_routes(fresh, -1, threshold, renormalize))
        assert_same(lazy, reference.routes(everything, n_tokens - 1, threshold, renormalize))


@every_family
@every_length
def test_routes_at_a_higher_threshold_are_a_subgraph_of_those_at_a_lower(name: str, n_tokens: int, trace: Callable) -> None:
    graphs = [as_reference(llm_tt.extract_routes(trace(name, n_tokens), -1, threshold, renormalize=False)) for threshold in THRESHOLDS]
    for lower, higher in itertools.pairwise(graphs):
        for edge, kept in higher.items():
            assert edge in lower
            assert set(kept.heads) <= set(lower[edge].heads)
            assert all(lower[edge].heads[head] == value for head, value in kept.heads.items())
            assert kept.weight <= lower[edge].weight


@every_family
@every_length
def test_renormalising_changes_weights_and_no_edge(name: str, n_tokens: int, trace: Callable) -> None:
    for threshold in THRESHOLDS:
        on = as_reference(llm_tt.extract_routes(trace(name, n_tokens), -1, threshold, renormalize=True))
        off = as_reference(llm_tt.extract_routes(trace(name, n_tokens), -1, threshold, renormalize=False))
        assert on.keys() == off.keys()
        assert all(set(on[edge].heads) == set(off[edge].heads) for edge in on)
        assert all(on[edge].weight >= off[edge].weight - 1e-6 for edge in on)


@every_family
@every_length
def test_edges_into_each_node_sum_to_one_after_renormalising_and_to_no_more_before(name: str, n_tokens: int, trace: Callable) -> None:
    for threshold, renormalize in itertools.product(THRESHOLDS, (True, False)):
        graph = llm_tt.extract_routes(trace(name, n_tokens), -1, threshold, renormalize).to_networkx()
        for node, data in graph.nodes(data=True):
            incoming = [weight for _, _, weight in graph.in_edges(node, data="weight")]
            assert all(math.isfinite(weight) and weight > 0 for weight in incoming)
            if data["kind"] in "AI" and incoming:
                assert sum(incoming) <= 1 + 1e-5
                assert not renormalize or sum(incoming) == pytest.approx(1, abs=1e-5)


@every_family
def test_edges_lead_to_the_target_and_none_comes_from_a_future_token(name: str, trace: Callable) -> None:
    for target in (0, 7, -1):
        graph = llm_tt.extract_routes(trace(name, 20), target, 0.01)
        found = graph.to_networkx()
        assert graph.target == target % 20
        assert nx.ancestors(found, graph.root.name) | {graph.root.name} == set(found.nodes)
        assert (graph.source <= graph.destination).all()
        assert (graph.destination <= graph.target).all()
        assert nx.is_directed_acyclic_graph(found)


@every_family
def test_without_threshold_every_route_of_positive_weight_is_kept(name: str, trace: Callable) -> None:
    graph = llm_tt.extract_routes(trace(name, 7), -1, 0.0, renormalize=False)
    last = llm_tt.attention_contributions(trace(name, 7), -1, [-1])
    into_last = {(edge.source, head) for edge in graph.edges() if edge.layer == graph.n_layers - 1 for head in edge.heads}
    assert into_last == {(j, head) for _, j, head in last.edges.nonzero().tolist()}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_edge_carries_its_heads_by_falling_contribution_and_weighs_their_sum(name: str, trace: Callable) -> None:
    graph = llm_tt.extract_routes(trace(name, 60), -1, 0.01)
    many = 0
    for edge in graph.edges():
        values = list(edge.heads.values())
        assert values == sorted(values, reverse=True)
        if edge.kind is EdgeKind.ATTENTION:
            assert edge.weight == pytest.approx(sum(values), abs=1e-6)
        else:
            assert not values
        many += len(values) > 1
    assert many


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma"])
def test_columns_equal_the_edges_and_the_networkx_graph(name: str, trace: Callable) -> None:
    graph = llm_tt.extract_routes(trace(name, 20), -1, 0.01)
    columns = (graph.kind, graph.layer, graph.source, graph.destination, graph.weight)
    assert {len(column) for column in columns} == {graph.n_edges}
    assert len(graph.heads_start) == graph.n_edges + 1
    assert graph.heads_start[-1] == len(graph.head) == len(graph.head_weight)
    assert (np.diff(graph.layer.astype(int)) <= 0).all(), "from the last layer down"
    found = graph.to_networkx()
    assert found.number_of_edges() == graph.n_edges
    assert found.graph["target"] == 19
    for node, data in found.nodes(data=True):
        assert Node.parse(node) == Node(data["kind"], data["layer"], data["position"])
        assert data["text"] == graph.token_texts[data["position"]]
    for edge in graph.edges():
        source, destination = edge.ends
        data = found.edges[source.name, destination.name, edge.kind.key]
        assert data["weight"] == edge.weight
        assert ("heads" in data) == (edge.kind is EdgeKind.ATTENTION)


def test_node_names_follow_lmtt(trace: Callable) -> None:
    graph = llm_tt.extract_routes(trace("gpt2", 60), -1, 0.01)
    for edge in graph.edges():
        below = f"X0_{edge.source}" if edge.layer == 0 else f"I{edge.layer - 1}_{edge.source}"
        layer, here = edge.layer, edge.destination
        names = {
            EdgeKind.ATTENTION: (below, f"A{layer}_{here}"),
            EdgeKind.RESIDUAL_TO_MID: (below, f"A{layer}_{here}"),
            EdgeKind.INTO_FFN: (f"A{layer}_{here}", f"M{layer}_{here}"),
            EdgeKind.OUT_OF_FFN: (f"M{layer}_{here}", f"I{layer}_{here}"),
            EdgeKind.RESIDUAL_TO_POST: (f"A{layer}_{here}", f"I{layer}_{here}"),
        }
        assert tuple(end.name for end in edge.ends) == names[edge.kind]
    assert {edge.kind for edge in graph.edges()} == set(EdgeKind)


@pytest.mark.parametrize("text", ["", "A3", "B1_2", "A3_-1", "X1_2", "I1_2 ", "a1_2"])
def test_what_is_no_node_is_refused_with_examples(text: str) -> None:
    with pytest.raises(RequestError) as refusal:
        Node.parse(text)
    assert f'"{text}"' in str(refusal.value)
    assert "X0_5, A3_5, M3_5 or I3_5" in str(refusal.value)


@pytest.mark.parametrize("threshold", [-0.01, 1, 1.5, math.nan, math.inf])
def test_a_threshold_outside_its_range_is_refused_with_useful_values(threshold: float, trace: Callable) -> None:
    with pytest.raises(RequestError, match=r"Threshold .* is not in \[0, 1\).* 0\.01 to 0\.1") as refusal:
        llm_tt.extract_routes(trace("gpt2", 7), threshold=threshold)
    assert str(threshold) in str(refusal.value)


@pytest.mark.parametrize("target", [7, -8])
def test_a_target_that_does_not_exist_is_refused(target: int, trace: Callable) -> None:
    with pytest.raises(RequestError, match=rf"Position {target} does not exist: the prompt has 7 tokens"):
        llm_tt.extract_routes(trace("gpt2", 7), target)


def test_progress_is_called_once_a_layer_and_may_cancel(model: Callable) -> None:
    trace = model("gpt2").trace(token_ids(20))
    seen: list[tuple[str, float]] = []
    before = as_reference(llm_tt.extract_routes(trace, threshold=0.01, progress=lambda stage, fraction: seen.append((stage, fraction))))
    assert [fraction for _, fraction in seen] == pytest.approx([1 / 3, 2 / 3, 1])

    def cancel(stage: str, fraction: float) -> None:
        if fraction > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        llm_tt.extract_routes(trace, threshold=0.002, progress=cancel)
    assert as_reference(llm_tt.extract_routes(trace, threshold=0.01)) == before


def test_routes_do_not_change_the_trace(model: Callable) -> None:
    trace = model("gpt2").trace(token_ids(20))
    tensors = [t for block in trace.blocks for t in (block.resid_mid, block.resid_post, block.attn_out, block.ffn_out, block.values)]
    copies = [tensor.clone() for tensor in tensors]
    llm_tt.extract_routes(trace, threshold=0.001)
    llm_tt.neuron_contributions(trace, 0, -1)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))
