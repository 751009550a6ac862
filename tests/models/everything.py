"""What the library and the engine say about a trace, all of it, and whether two such answers are the very same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

import llm_tt
from llm_tt.engine.inspection import inspect_edge, inspect_head, inspect_neuron, inspect_neurons, inspect_node
from llm_tt.engine.messages import InspectEdge, InspectHead, InspectNeuron, InspectNeurons, InspectNode, ModelKey, TraceKey
from llm_tt.lens import vocabulary
from llm_tt.lens.direct_effects import LogitQuestion


def everything(trace: llm_tt.Trace) -> Any:
    """What the library and the engine say about a trace, as plain values."""
    last, layers = trace.n_tokens - 1, range(trace.n_layers)
    found: dict[str, Any] = {"logits": trace.logits(-1)}
    for layer in layers:
        found[f"streams {layer}"] = [
            trace.resid_pre(layer),
            trace.blocks[layer].resid_mid,
            trace.blocks[layer].resid_post,
            trace.ffn_input(layer),
        ]
        found[f"attention {layer}"] = llm_tt.attention_contributions(trace, layer)
        found[f"ffn {layer}"] = llm_tt.ffn_contributions(trace, layer)
        found[f"map {layer}"] = [llm_tt.attention_map(trace, layer), llm_tt.contribution_map(trace, layer, 0)]
        found[f"heads {layer}"] = [llm_tt.head_outputs(trace, layer, last), llm_tt.head_outputs(trace, layer, last, 2)]
        found[f"shares {layer}"] = llm_tt.head_shares(trace, layer, last)
    found["routes"] = _edges(llm_tt.extract_routes(trace, threshold=0.01))
    found["mass"] = _edges(llm_tt.extract_routes_by_mass(trace, mass=0.5))
    found["flow"] = llm_tt.flow_over_sources(llm_tt.extract_routes(trace))
    found["effects"] = llm_tt.direct_effects(trace, token=5, contrast=9)
    found["roles"] = llm_tt.head_roles(trace)
    found["lens"] = llm_tt.lens_grid(trace)
    found["trajectories"] = llm_tt.token_trajectories(trace, -1, [5, 9])
    found["errors"] = llm_tt.reconstruction_errors(trace, 5)
    found["following"] = vocabulary.following_token(trace, 3)
    found["predictions"] = vocabulary.predictions(trace, -1, 5)
    key, logit = TraceKey(ModelKey("any"), "any"), LogitQuestion(target=last, token=5)
    for node in ("X0_3", f"A1_{last}", f"M1_{last}", f"I0_{last}"):
        found[node] = inspect_node(InspectNode(key, node, logit=logit), trace)
    found["attention edge"] = inspect_edge(InspectEdge(key, f"I0_{last}", f"A1_{last}", "attention", logit=logit), trace)
    found["ffn edge"] = inspect_edge(InspectEdge(key, f"M1_{last}", f"I1_{last}", "ffn", logit=logit), trace)
    found["head"] = inspect_head(InspectHead(key, 1, 0, last, 2), trace)
    if not trace.model.info.ffn or trace.model.info.ffn[1].n_neurons:
        neuron = llm_tt.neuron_shares(trace, 1, last, 1)[0].neuron
        found["neurons"] = inspect_neurons(InspectNeurons(key, 1, last), trace)
        found["neuron"] = inspect_neuron(InspectNeuron(key, 1, last, neuron), trace)
        found["neuron effects"] = llm_tt.neuron_effects(trace, 1, token=5)
        found["direction"] = llm_tt.neuron_direction(trace, 1, last, neuron)
    return found


def _edges(graph: llm_tt.FlowGraph) -> dict[tuple[str, str, str], Any]:
    return {(source, destination, key): data for source, destination, key, data in graph.to_networkx().edges(keys=True, data=True)}


def assert_equal(actual: Any, expected: Any, where: str) -> None:
    """The very same numbers."""
    assert type(actual) is type(expected), where
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), where
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(actual, expected, equal_nan=expected.dtype.kind == "f"), where
    elif dataclasses.is_dataclass(expected):
        for entry in dataclasses.fields(expected):
            assert_equal(getattr(actual, entry.name), getattr(expected, entry.name), f"{where}.{entry.name}")
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_equal(actual[name], value, f"{where}[{name!r}]")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for index, value in enumerate(expected):
            assert_equal(actual[index], value, f"{where}[{index}]")
    else:
        assert actual == expected, where
