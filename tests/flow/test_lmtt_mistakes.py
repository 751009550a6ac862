"""What LM-TT gets wrong, one by one. Each mistake is computed too, to show that the test would see it."""

from __future__ import annotations

from collections.abc import Callable

import plain_runs
import pytest
import torch
from families import token_ids

import llm_tt
from llm_tt.flow.graph import EdgeKind


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "qwen2", "qwen3", "gemma"])
def test_value_biases_count_once(name: str, trace: Callable, plain_run: Callable, plain: Callable) -> None:
    """LM-TT issue 35."""
    made = trace(name, 20)
    for layer, activations in enumerate(plain_run(name, 20).layers):
        added = activations.mid - activations.pre
        block = made.blocks[layer]
        weight, bias = made.model.attention_output(layer)
        values = block.values.repeat_interleave(weight.shape[0] // len(block.values), 0)
        alpha = block.pattern.rows(range(20))

        def parts(
            values: torch.Tensor, alpha: torch.Tensor = alpha, weight: torch.Tensor = weight, bias: torch.Tensor = bias
        ) -> torch.Tensor:
            return torch.einsum("hij,hje,hed->id", alpha, values, weight).double() + (0 if bias is None else bias)

        assert float((parts(values) - added).norm() / added.norm()) <= 1e-5
        module = plain(name).get_submodule(f"{plain_runs.NAMES[plain(name).config.model_type].layers}.{layer}")
        value_bias = module.get_submodule(plain_runs.NAMES[plain(name).config.model_type].value).bias.detach()
        value_bias = value_bias[-values.shape[0] * values.shape[2] :] if name == "gpt2" else value_bias
        per_head = value_bias.view(-1, 1, values.shape[2])
        twice = values + per_head.repeat_interleave(len(values) // len(per_head), 0)
        assert float((parts(twice) - added).norm() / added.norm()) > 0.01


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama"])
def test_ffn_edges_are_renormalised_by_their_own_node(name: str, trace: Callable) -> None:
    """LM-TT pull request 33."""
    graph = llm_tt.extract_routes(trace(name, 60), -1, 0.01)
    sums: dict[tuple[int, int], float] = {}
    for edge in graph.edges():
        if edge.kind in (EdgeKind.OUT_OF_FFN, EdgeKind.RESIDUAL_TO_POST):
            sums[edge.layer, edge.destination] = sums.get((edge.layer, edge.destination), 0.0) + edge.weight
    layers = [layer for layer, _ in sums]
    assert max(layers.count(layer) for layer in layers) > 2, "no layer with several nodes: a sum over all tokens would be the node's own"
    assert all(total == pytest.approx(1, abs=1e-5) for total in sums.values())


def test_future_tokens_get_exactly_nothing_however_many_there_are(model: Callable) -> None:
    """LM-TT clips proximities at 1e-5, so that masked tokens get mass that grows with the prompt."""
    ids = token_ids(200)
    rows = [llm_tt.attention_contributions(model("gpt2").trace(ids[:length]), 1, [4]) for length in (5, 50, 200)]
    for row in rows:
        assert float(row.edges[0, 5:].sum()) == 0
        assert float(row.edges.sum() + row.residual.sum()) == pytest.approx(1, abs=1e-6)
        assert float(row.residual) == pytest.approx(float(rows[0].residual), abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma"])
def test_attention_to_itself_and_the_residual_edge_are_two_edges(name: str, trace: Callable) -> None:
    graph = llm_tt.extract_routes(trace(name, 20), -1, 0.001, renormalize=False)
    found = graph.to_networkx()
    both = [(a, b) for a, b, key in found.edges(keys=True) if key == "residual" and found.has_edge(a, b, "attention") and b.startswith("A")]
    assert both
    for a, b in both:
        layer, position = found.nodes[b]["layer"], found.nodes[b]["position"]
        node = llm_tt.attention_contributions(trace(name, 20), layer, [position])
        assert found.edges[a, b, "residual"]["weight"] == pytest.approx(float(node.residual), abs=1e-6)
        itself = node.edges[0, position]
        assert found.edges[a, b, "attention"]["weight"] == pytest.approx(float(itself[itself > 0.001].sum()), abs=1e-6)


def test_a_prompt_of_one_token_attends_to_itself_beside_its_residual_edge(trace: Callable, plain_contributions: Callable) -> None:
    node = llm_tt.attention_contributions(trace("llama", 1), 0)
    expected = plain_contributions("llama", 1)
    assert float(node.edges.sum()) == pytest.approx(float(expected.edges[0].sum()), abs=1e-5)
    assert 0.01 < float(node.residual) < 0.99
