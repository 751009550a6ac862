"""The graph: an explanation becomes a frame for the React component, its clicks become the session's selection and target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import streamlit as st

from app.panels import heads_map
from llm_tt.components.graph import flow_graph
from llm_tt.components.graph.frame import pack
from llm_tt.engine.messages import Explanation, TraceKey
from llm_tt.export import files
from llm_tt.lens.direct_effects import DirectEffects

KEY = "graph"
HEIGHT = 640
_VERSION = 1


def show(explanation: Explanation, effects: DirectEffects | None = None) -> None:
    """Draw the graph, with direct effects if there are any, and offer it as a file."""
    flow_graph(
        _frame(explanation, st.session_state.get("selection"), effects),
        key=KEY,
        height=HEIGHT,
        on_selection_change=_take_selection,
        on_target_change=_take_target,
    )
    graph = explanation.graph
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{graph.n_tokens} tokens · {graph.n_edges} edges")
        st.space("stretch")
        st.download_button(
            "JSON",
            lambda: files.to_json(graph, explanation.facts.info.name, explanation.prompt),
            file_name="llm-tt-graph.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
            help="The graph as a file: tokens, edges, heads and their contributions (docs/graph-json.md).",
        )


def select(node: str | None) -> None:
    """Select a node, or nothing, from elsewhere on the page, in a callback of it."""
    st.session_state.selection = None if node is None else {"type": "node", "node": node}
    if KEY in st.session_state:
        # A click on what the component holds for selected is no change, and nobody would be told of it.
        st.session_state[KEY] = {"selection": st.session_state.selection}


def forget_position() -> None:
    """Back to the last token and to no selection, as for a new prompt."""
    st.session_state.pop("target", None)
    st.session_state.pop("selection", None)
    heads_map.forget()


def _frame(explanation: Explanation, selection: Mapping[str, Any] | None, effects: DirectEffects | None) -> bytes:
    graph, predictions = explanation.graph, explanation.predictions
    header = {
        "version": _VERSION,
        "trace": trace_id(explanation.trace),
        "n_layers": graph.n_layers,
        "tokens": list(graph.token_texts),
        "target": graph.target,
        "threshold": graph.threshold,
        "renormalized": graph.renormalized,
        "prediction": predictions.texts[0],
        "probability": float(predictions.probabilities[0]) if predictions.probabilities is not None else None,
        "selection": dict(selection) if selection else None,
        "mass": graph.mass,
        "highlight": heads_map.highlight(),
        "effect_of": None if effects is None else effects.of,
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
        st.session_state.target = int(target)


def _component_state() -> Mapping[str, Any]:
    return st.session_state.get(KEY) or {}
