"""The graph: an explanation becomes a frame for the React component, its clicks become the session's selection and target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import span
from app.panels import heads_map
from llm_tt.components.graph import flow_graph
from llm_tt.components.graph.frame import pack
from llm_tt.engine.messages import Explanation, TraceKey
from llm_tt.flow.graph import FlowGraph
from llm_tt.lens.direct_effects import DirectEffects
from llm_tt.lens.token_table import TokenTable

KEY = "graph"
_VERSION = 1


def show(explanation: Explanation, effects: DirectEffects | None = None) -> None:
    """Draw the graph, with direct effects if there are any."""
    flow_graph(
        frame(
            explanation.graph,
            trace_id(explanation.trace),
            explanation.predictions,
            explanation.prompt.roles,
            st.session_state.get("selection"),
            effects,
            heads_map.highlight(),
        ),
        key=KEY,
        on_selection_change=_take_selection,
        on_target_change=_take_target,
    )


def select(node: str | None) -> None:
    """Select a node, or nothing, from elsewhere on the page, in a callback of it."""
    choose(None if node is None else {"type": "node", "node": node})


def choose(selection: Mapping[str, Any] | None, key: str = KEY) -> None:
    """Select what docs/graph-frame.md calls a selection, before the graph is drawn. `key` is of the component that shows it."""
    st.session_state["selection" if key == KEY else f"{key}_selection"] = None if selection is None else dict(selection)
    if key in st.session_state:
        # A click on what the component holds for selected is no change, and nobody would be told of it.
        st.session_state[key] = {"selection": selection}


def forget_position() -> None:
    """Back to the last token and to no selection, as for a new prompt."""
    st.session_state.pop("target", None)
    span.forget()
    st.session_state.pop("selection", None)
    heads_map.forget()


def frame(
    graph: FlowGraph,
    trace: str,
    predictions: TokenTable | None,
    roles: Sequence[str | None],
    selection: Mapping[str, Any] | None = None,
    effects: DirectEffects | None = None,
    highlight: Mapping[str, int] | None = None,
) -> bytes:
    """What the component is sent (docs/graph-frame.md); `trace` names model and prompt."""
    known = predictions is not None and predictions.probabilities is not None
    header = {
        "version": _VERSION,
        "trace": trace,
        "n_layers": graph.n_layers,
        "tokens": list(graph.token_texts),
        "target": graph.target,
        "targets": list(graph.targets) or None,
        "threshold": graph.threshold,
        "renormalized": graph.renormalized,
        "prediction": None if predictions is None else predictions.texts[0],
        "probability": float(predictions.probabilities[0]) if known else None,  # type: ignore[index, union-attr]
        "selection": dict(selection) if selection else None,
        "mass": graph.mass,
        "highlight": highlight,
        "effect_of": None if effects is None else effects.of,
        "roles": list(roles),
    }
    names = ("kind", "layer", "source", "destination", "weight", "heads_start", "head", "head_weight")
    arrays = {name: getattr(graph, name) for name in names}
    if effects is not None:
        arrays["effect"] = effects.of_edges(graph)
    return pack(header, arrays)


def trace_id(key: TraceKey) -> str:
    """A short name for model and prompt, equal in every session."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def _take_selection() -> None:
    st.session_state.selection = _component_state().get("selection")


def _take_target() -> None:
    target = _component_state().get("target")
    if target is not None:
        span.explain(int(target))


def _component_state() -> Mapping[str, Any]:
    return st.session_state.get(KEY) or {}
