"""A graph from a file: shown as it was saved, without the model. What needs the model says so, with a button that runs the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from app.link import View
from app.markup import escaped
from app.panels import graph, graph_table, predictions, sources, token_tables
from app.session import Service
from llm_tt.components.graph import flow_graph
from llm_tt.export.saved import GraphFileError, SavedGraph, from_json
from llm_tt.flow.graph import FlowGraph, Node
from llm_tt.flow.propagation import Flow, propagate
from llm_tt.text import Prompt

KEY = "saved_graph"
_FACTS = {
    "family": "family",
    "n_params": "parameters",
    "n_heads": "heads",
    "n_kv_heads": "key-value heads",
    "d_model": "width",
    "d_vocab": "vocabulary",
    "dtype": "ran in",
    "device": "on",
    "adapter": "adapter",
}


@dataclass(frozen=True, eq=False)
class Opened:
    """A file's graph with what follows from it, for the panels that need no model."""

    file_name: str
    saved: SavedGraph
    flow: Flow
    trace: str
    """names model and prompt for the component, as `graph.trace_id` does"""

    @classmethod
    def of(cls, file_name: str, saved: SavedGraph) -> Opened:
        tokens = repr((saved.model, saved.graph.token_ids, saved.graph.token_texts))
        return cls(file_name, saved, propagate(saved.graph), hashlib.sha256(tokens.encode()).hexdigest()[:16])

    @property
    def graph(self) -> FlowGraph:
        return self.saved.graph

    @property
    def prompt(self) -> Prompt:
        return self.saved.prompt

    @property
    def sources(self) -> npt.NDArray[np.float64]:
        return self.flow.sources

    @property
    def dropped(self) -> float | None:
        """None where the file does not tell."""
        return None if self.graph.carried is None else max(0.0, 1 - self.graph.carried)


def choose() -> None:
    """Let the user open a file; belongs under Files in the sidebar."""
    key = f"graph_file_{st.session_state.get('graph_files', 0)}"
    st.file_uploader(
        "A graph, saved as JSON",
        type=["json"],
        key=key,
        on_change=_take_file,
        args=(key,),
        help="A graph that was saved here or by llm-tt routes --json. It is shown as it was saved; its model need not be here.",
    )
    if "saved_graph_error" in st.session_state:
        st.error(escaped(st.session_state.saved_graph_error), icon=":material/error:")


def opened() -> Opened | None:
    """The file that is shown now."""
    return st.session_state.get("saved_graph_opened")


def close() -> None:
    """Back to the page's own prompt; in a callback."""
    for name in ("saved_graph_opened", "saved_graph_error", KEY, f"{KEY}_selection", f"{KEY}_table", f"{KEY}_table_rows"):
        st.session_state.pop(name, None)
    # A file uploader keeps its file; another one has none.
    st.session_state.graph_files = st.session_state.get("graph_files", 0) + 1


def _take_file(key: str) -> None:
    file = st.session_state.get(key)
    st.session_state.pop("saved_graph_error", None)
    if file is None:
        return
    try:
        st.session_state.saved_graph_opened = Opened.of(file.name, from_json(file.getvalue()))
    except GraphFileError as error:
        st.session_state.saved_graph_error = f"{file.name}: {error}"
        return
    for name in (KEY, f"{KEY}_selection", f"{KEY}_table"):
        st.session_state.pop(name, None)


def show(service: Service, shown: Opened, run: Callable[[Service, View], None]) -> None:
    """The whole page of a saved graph; `run` makes the page show a view of its own."""
    saved = shown.saved
    _head(service, shown, run)
    with st.container(key="page"):
        left, right = st.columns([2, 1], gap="medium")
    with right:
        side = st.container(key="side")
    selection: Mapping[str, Any] | None = st.session_state.get(f"{KEY}_selection")
    with left:
        st.html(sources.strip(shown))
        st.caption(sources.summary(shown))
        flow_graph(
            graph.frame(shown.graph, shown.trace, saved.predictions, saved.prompt.roles, selection),
            key=KEY,
            on_selection_change=_take_selection,
            on_target_change=_refuse_target,
        )
        kept = f"threshold {shown.graph.threshold:g}" if shown.graph.mass is None else f"{shown.graph.mass:.0%} of the flow"
        weights = "renormalised" if shown.graph.renormalized else "not renormalised"
        st.caption(f"{shown.graph.n_tokens} tokens · {shown.graph.n_edges} edges · {kept} · {weights}")
        edges = st.expander("Table of edges", icon=":material/table_rows:", key="saved_edges", on_change="rerun")
        if edges.open:
            with edges:
                graph_table.show(shown.graph, selection, key=KEY)
    with side:
        if saved.predictions is None:
            st.caption("The file does not hold what the model predicted.")
        else:
            predictions.show(shown.graph, saved.predictions)
        _selected(shown, selection)
        st.caption(
            "Words at nodes, attention maps, neurons, layers and direct effects are computed by the model, which a saved graph does not hold."
        )
        if saved.facts:
            facts = {label: str(saved.facts[name]) for name, label in _FACTS.items() if name in saved.facts}
            st.table({label: escaped(value) for label, value in facts.items()}, border="horizontal", hide_header=True)


def _head(service: Service, shown: Opened, run: Callable[[Service, View], None]) -> None:
    saved = shown.saved
    with st.container(horizontal=True, vertical_alignment="center"):
        st.info(
            f"**A saved graph**: {escaped(shown.file_name)}, of {escaped(saved.model)}. The sidebar counts again when it is closed.",
            icon=":material/account_tree:",
        )
        if saved.question is None:
            st.caption("The file does not say from which text its tokens came, so that the prompt cannot be run from here.")
        elif saved.model not in service.engine.model_names():
            st.caption(f"{escaped(saved.model)} is not on the menu, so that the prompt cannot be run from here.")
        else:
            view = View(
                model=saved.model,
                prompt=saved.question,
                target=shown.graph.target,
                first=shown.graph.targets[0] if _is_span(shown.graph) else None,
                threshold=View().threshold if shown.graph.mass is not None else shown.graph.threshold,
                mass=shown.graph.mass,
                renormalize=shown.graph.renormalized,
            )
            st.button(
                f"Run this prompt on {escaped(saved.model)}",
                icon=":material/play_arrow:",
                key="run_saved",
                type="primary",
                on_click=_run,
                args=(service, view, run),
                help="Leave the file and explain its prompt anew, with its target and threshold."
                + (
                    ""
                    if _is_span(shown.graph) or not shown.graph.targets
                    else " Of its targets, which do not follow one another, the last."
                ),
            )
        st.button("Close", icon=":material/close:", key="close_saved", on_click=close, help="Back to the prompt in the sidebar.")


def _is_span(graph: FlowGraph) -> bool:
    """Whether there are several targets, and they follow one another."""
    targets = graph.targets
    return bool(targets) and len(targets) == targets[-1] - targets[0] + 1


def _run(service: Service, view: View, run: Callable[[Service, View], None]) -> None:
    close()
    run(service, view)


def _take_selection() -> None:
    st.session_state[f"{KEY}_selection"] = (st.session_state.get(KEY) or {}).get("selection")


def _refuse_target() -> None:
    if (st.session_state.get(KEY) or {}).get("target") is not None:
        st.toast("Another target needs the model: a saved graph holds the routes that were saved.", icon=":material/info:")


def _selected(shown: Opened, selection: Mapping[str, Any] | None) -> None:
    """What the file itself tells of a node or an edge."""
    if not selection:
        st.caption("Click a node or an edge to see what the file tells of it.")
        return
    if selection.get("type") == "node":
        node = Node.parse(str(selection["node"]))
        _title(shown, node)
        st.markdown(f"**{shown.flow.node(node.name):.1%}** of the flow of these routes passes here.")
        return
    ends = (selection["from"], selection["to"])
    for index, edge in enumerate(shown.graph.edges()):
        source, destination = edge.ends
        if (source.name, destination.name) == ends and edge.kind.key == selection["key"]:
            _title(shown, source)
            st.markdown(":material/arrow_downward:")
            _title(shown, destination)
            st.markdown(f"**{edge.kind.key} edge** · weight **{edge.weight:.3f}** · {shown.flow.edges[index]:.1%} of the flow")
            if edge.heads:
                st.dataframe(
                    pd.DataFrame({"head": [f"L{edge.layer} H{head}" for head in edge.heads], "weight": list(edge.heads.values())}),
                    hide_index=True,
                    key="saved_heads",
                    column_config={
                        "head": st.column_config.TextColumn("head", help="Layer and head."),
                        "weight": st.column_config.ProgressColumn("weight", min_value=0, max_value=1, format="%.3f", color="blue"),
                    },
                )
            return


def _title(shown: Opened, node: Node) -> None:
    st.markdown(f"#### `{token_tables.code(shown.graph.token_texts[node.position])}` :small[:gray[token {node.position} · {node.name}]]")
