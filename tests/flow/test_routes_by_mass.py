"""Routes by mass carry what they promise, are nested, and no layer keeps the same flow with fewer edges."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from families import token_ids
from handmade import handmade_trace
from reference import Contributions

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.progress import Cancelled

NAMES = ("gpt2", "llama", "gpt_neox", "mixtral")
MASSES = (0.3, 0.8, 0.9, 0.95, 0.99)
every_family = pytest.mark.parametrize("name", NAMES)

Unit = tuple[str, int, int, int, int]
"""What is kept or dropped: kind, layer, source, destination, head (-1 without heads)"""


def by_hand(contributions: Contributions, target: int | tuple[int, ...], threshold: float) -> tuple[dict[Unit, float], float]:
    """Edges whose flow exceeds the threshold with their flow, and what reaches the embeddings; from all contributions, in float64."""
    n_layers, n_tokens = len(contributions.ffn), len(contributions.ffn[0])
    kept: dict[Unit, float] = {}
    targets = target if isinstance(target, tuple) else (target,)
    flow = dict.fromkeys(targets, 1 / len(targets))
    for layer in reversed(range(n_layers)):
        below: dict[int, float] = {}
        for i, arriving in flow.items():
            mid = 0.0
            for kind, share in (("ffn", contributions.ffn[layer][i]), ("past ffn", contributions.ffn_residual[layer][i])):
                if arriving * float(share) > threshold:
                    kept[kind, layer, i, i, -1] = arriving * float(share)
                    mid += arriving * float(share)
            edges = contributions.edges[layer][i]
            units = [(("attention", layer, j, i, h), float(edges[j, h])) for j in range(n_tokens) for h in range(edges.shape[1])]
            units.append((("residual", layer, i, i, -1), float(contributions.attention_residual[layer][i])))
            for unit, share in units:
                if mid * share > threshold:
                    kept[unit] = mid * share
                    below[unit[2]] = below.get(unit[2], 0.0) + mid * share
        flow = below
    is_alive = leads_on(kept)
    return {unit: value for unit, value in kept.items() if is_alive(unit)}, sum(flow.values())


def leads_on(kept: dict[Unit, float]) -> Callable[[Unit], bool]:
    """Whether a kept path leads from an edge down to an embedding."""
    into_mid: dict[tuple[int, int], list[Unit]] = {(layer, i): [] for _, layer, _, i, _ in kept}
    into_post: dict[tuple[int, int], list[Unit]] = {(layer, i): [] for _, layer, _, i, _ in kept}
    for unit in kept:
        (into_post if unit[0] in ("ffn", "past ffn") else into_mid)[unit[1], unit[3]].append(unit)

    @cache
    def alive(unit: Unit) -> bool:
        kind, layer, source, i, _ = unit
        if kind in ("ffn", "past ffn"):
            return any(map(alive, into_mid[layer, i]))
        return layer == 0 or any(map(alive, into_post.get((layer - 1, source), [])))

    return alive


def units(graph: llm_tt.FlowGraph) -> set[Unit]:
    names = {1: "residual", 3: "ffn", 4: "past ffn"}
    found: set[Unit] = set()
    for edge in graph.edges():
        if edge.kind == 0:
            found |= {("attention", edge.layer, edge.source, edge.destination, head) for head in edge.heads}
        elif edge.kind in names:
            found.add((names[edge.kind], edge.layer, edge.source, edge.destination, -1))
    return found


def same_but_for_rounding(found: set[Unit], expected: dict[Unit, float], threshold: float) -> bool:
    """No edge is in one and not in the other, unless its flow is the threshold but for rounding."""
    return all(abs(expected.get(unit, threshold) - threshold) < 1e-5 * threshold + 1e-7 for unit in found ^ set(expected))


@every_family
@pytest.mark.parametrize("mass", MASSES)
def test_the_graph_is_the_one_found_by_hand(name: str, mass: float, trace: Callable, plain_contributions: Callable) -> None:
    graph = llm_tt.extract_routes_by_mass(trace(name, 20), -1, mass)
    kept, carried = by_hand(plain_contributions(name, 20), 19, graph.threshold)
    assert len(kept) > 5
    assert same_but_for_rounding(units(graph), kept, graph.threshold)
    assert graph.carried == pytest.approx(carried, abs=1e-4)
    assert (graph.mass, graph.target, graph.renormalized) == (mass, 19, True)


@every_family
@pytest.mark.parametrize("mass", MASSES)
def test_of_several_targets_too_it_is_the_one_found_by_hand(name: str, mass: float, trace: Callable, plain_contributions: Callable) -> None:
    graph = llm_tt.extract_routes_by_mass(trace(name, 20), [-1, 11, 15, 11], mass, renormalize=False)
    kept, carried = by_hand(plain_contributions(name, 20), (11, 15, 19), graph.threshold)
    assert same_but_for_rounding(units(graph), kept, graph.threshold)
    assert graph.carried == pytest.approx(carried, abs=1e-4)
    assert graph.carried >= mass
    assert (graph.mass, graph.target, graph.targets) == (mass, 19, (11, 15, 19))
    # Edges that lead to no embedding are not in the graph, so that it passes on no more than what was carried.
    flow = llm_tt.flow_over_sources(graph)
    assert flow.sum() == pytest.approx(graph.carried, abs=1e-4)
    assert carried_above(plain_contributions(name, 20), graph.threshold) < mass + 1e-5


def carried_above(contributions: Contributions, threshold: float) -> float:
    """What arrives from these targets with the next threshold."""
    return by_hand(contributions, (11, 15, 19), threshold * 2 ** (1 / 64))[1]


@every_family
@pytest.mark.parametrize("mass", MASSES)
def test_it_carries_the_mass_and_with_the_next_threshold_would_not(name: str, mass: float, trace: Callable) -> None:
    graph = llm_tt.extract_routes_by_mass(trace(name, 20), -1, mass)
    assert graph.carried is not None
    assert graph.carried >= mass
    step = -64 * np.log2(graph.threshold)
    assert step == pytest.approx(round(step), abs=1e-9)
    everything = contributions_of(trace(name, 20))
    _, carried_here = by_hand(everything, 19, graph.threshold)
    _, carried_above = by_hand(everything, 19, 2.0 ** (-(round(step) - 1) / 64))
    assert carried_here >= mass - 1e-5
    assert carried_above < mass + 1e-5


def contributions_of(trace: llm_tt.Trace) -> Contributions:
    attention = [llm_tt.attention_contributions(trace, layer) for layer in range(trace.n_layers)]
    ffn = [llm_tt.ffn_contributions(trace, layer) for layer in range(trace.n_layers)]
    return Contributions(
        tuple(a.edges.double() for a in attention),
        tuple(a.residual.double() for a in attention),
        tuple(f.ffn.double() for f in ffn),
        tuple(f.residual.double() for f in ffn),
    )


@every_family
def test_a_smaller_mass_keeps_a_subgraph(name: str, trace: Callable) -> None:
    graphs = [llm_tt.extract_routes_by_mass(trace(name, 20), -1, mass) for mass in np.linspace(0.02, 0.98, 33)]
    for smaller, larger in itertools.pairwise(graphs):
        assert units(smaller) <= units(larger)
        assert smaller.threshold >= larger.threshold
        assert smaller.carried is not None
        assert larger.carried is not None
        assert smaller.carried <= larger.carried
    assert len({graph.n_edges for graph in graphs}) > 10, "the graphs are all the same: nothing was compared"


@pytest.mark.parametrize("seed", range(4))
def test_no_fewer_edges_carry_as_much(seed: int) -> None:
    """One layer, seven edges into one node: of all subsets none that is smaller carries as much."""
    torch.manual_seed(seed)
    n, n_heads, d = 3, 2, 6
    alpha = torch.tril(torch.rand(n_heads, n, n))
    values, w_o = torch.rand(n_heads, n, 4), torch.rand(n_heads, 4, d)
    pre = torch.rand(n, d)
    mid = pre + torch.einsum("hij,hje,hed->id", alpha, values, w_o)
    trace = handmade_trace(pre=pre, mid=mid, alpha=alpha, values=values, w_o=w_o)
    shares = llm_tt.attention_contributions(trace, 0, [-1])
    every = [*shares.edges.flatten().tolist(), float(shares.residual)]
    assert sum(share > 0 for share in every) == 7
    for mass in (0.2, 0.4, 0.6, 0.8, 0.9):
        graph = llm_tt.extract_routes_by_mass(trace, -1, mass)
        n_kept = len([unit for unit in units(graph) if unit[0] in ("attention", "residual")])
        assert graph.carried is not None
        for size in range(n_kept):
            assert max(map(sum, itertools.combinations(every, size))) < graph.carried - 1e-6


@every_family
def test_renormalising_changes_weights_and_no_edge(name: str, trace: Callable) -> None:
    on, off = (llm_tt.extract_routes_by_mass(trace(name, 20), -1, 0.9, renormalize) for renormalize in (True, False))
    assert units(on) == units(off)
    assert (on.threshold, on.carried) == (off.threshold, off.carried)
    assert llm_tt.flow_over_sources(on).sum() == pytest.approx(1, abs=1e-6)
    assert llm_tt.flow_over_sources(off).sum() == pytest.approx(off.carried, abs=1e-6)


def test_equal_edges_are_kept_together() -> None:
    """Four sources with the very same part: a mass that three of them could carry keeps all four."""
    n = 4
    alpha = torch.zeros(1, n, n)
    alpha[0] = torch.tril(torch.ones(n, n)) / n
    trace = handmade_trace(
        pre=torch.zeros(n, 2), mid=torch.ones(n, 2), alpha=alpha, values=torch.ones(1, n, 2), w_o=torch.eye(2)[None], post=torch.ones(n, 2)
    )
    graph = llm_tt.extract_routes_by_mass(trace, -1, 0.7)
    assert llm_tt.flow_over_sources(graph).tolist() == pytest.approx([0.25] * 4)
    assert {unit[2] for unit in units(graph) if unit[0] == "attention"} == {0, 1, 2, 3}


def test_where_all_flow_ends_early_the_graph_says_so() -> None:
    one = torch.ones(2, 2)
    alpha = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    trace = handmade_trace(pre=one, mid=-one, alpha=alpha, values=torch.ones(1, 2, 2), w_o=torch.eye(2)[None], post=-one)
    graph = llm_tt.extract_routes_by_mass(trace, -1, 0.9)
    assert (graph.threshold, graph.carried, graph.n_edges) == (0.0, 0.0, 0)


def test_only_nodes_that_routes_reach_are_computed(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_tt.flow import contributions

    rows: list[tuple[int, int]] = []
    compute = contributions._attention_rows
    monkeypatch.setattr(
        contributions, "_attention_rows", lambda trace, layer, at: rows.extend((layer, i) for i in at) or compute(trace, layer, at)
    )
    trace = model("llama").trace(token_ids(60))
    graph = llm_tt.extract_routes_by_mass(trace, 30, 0.5)
    reached = {(int(layer), int(i)) for layer, i in zip(graph.layer, graph.destination, strict=True)}
    assert reached <= set(rows)
    assert len(rows) == len(set(rows)), "a node was computed twice"
    assert len(rows) < trace.n_layers * 31
    assert llm_tt.extract_routes_by_mass(trace, 30, 0.4).n_edges <= graph.n_edges
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("mass", [0, 1, 1.5, -0.1])
def test_a_mass_outside_of_0_to_1_is_refused(mass: float, trace: Callable) -> None:
    with pytest.raises(RequestError, match=rf"Mass {mass} is not between 0 and 1\. Useful values are 0\.8 to 0\.95"):
        llm_tt.extract_routes_by_mass(trace("gpt2", 5), -1, mass)


def test_it_reports_and_can_be_cancelled(trace: Callable) -> None:
    seen: list[float] = []
    llm_tt.extract_routes_by_mass(trace("gpt2", 20), progress=lambda stage, fraction: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1

    def cancel(stage: str, fraction: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        llm_tt.extract_routes_by_mass(trace("gpt2", 20), progress=cancel)


@every_family
def test_renormalised_weights_are_the_shares_of_what_is_kept_at_each_node(name: str, trace: Callable) -> None:
    on, off = (llm_tt.extract_routes_by_mass(trace(name, 20), -1, 0.9, renormalize) for renormalize in (True, False))
    bare = off.to_networkx()
    for edge in on.edges():
        source, destination = (node.name for node in edge.ends)
        # An FFN block is entered by what leaves it.
        into = destination.replace("M", "I") if edge.kind.key == "ffn" else destination
        total = sum(weight for *_, weight in bare.in_edges(into, data="weight"))
        expected = bare.edges[source, destination, edge.kind.key]
        assert edge.weight == pytest.approx(expected["weight"] / total, abs=1e-6)
        assert edge.heads == pytest.approx({head: value / total for head, value in expected.get("heads", {}).items()}, abs=1e-6)
