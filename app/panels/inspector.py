"""The inspector: what the selected node says, or which heads the selected edge carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import session
from app.session import Service
from llm_tt.engine.messages import EdgeReport, Explanation, InspectEdge, InspectNode, NodeReport
from llm_tt.errors import LlmTtError
from llm_tt.flow.graph import Edge, FlowGraph, Node
from llm_tt.lens.token_table import TokenTable
from llm_tt.text import visible

_KINDS = {
    "X": "token embedding",
    "A": "layer {layer}, after attention",
    "M": "layer {layer}, FFN block",
    "I": "layer {layer}, after the FFN",
}


def show(service: Service, explanation: Explanation, selection: Mapping[str, Any] | None) -> None:
    if not selection:
        _how_to_read(explanation)
        return
    if not service.engine.is_loaded(explanation.trace.model):
        # Answering would load it while the page stands still; as a question it has a progress bar.
        st.info(
            "This model is no longer in memory. The graph is still right; to look into it, load the model again.", icon=":material/memory:"
        )
        if st.button("Load it again", icon=":material/refresh:", key="load_again", help="Load the model and run the prompt once more."):
            session.conversation().again()
            st.rerun()
        return
    try:
        if selection.get("type") == "edge":
            question = InspectEdge(explanation.trace, str(selection["from"]), str(selection["to"]), selection["key"])
            _edge(explanation.graph, service.engine.answer(question))
        else:
            normalize = st.session_state.get("normalize", True)
            _node(explanation.graph, service.engine.answer(InspectNode(explanation.trace, str(selection["node"]), normalize=normalize)))
    except LlmTtError as error:
        st.error(str(error), icon=":material/error:")
        st.caption("Click a node or an edge of the graph to select something else.")


def _how_to_read(explanation: Explanation) -> None:
    graph, best = explanation.graph, visible(explanation.predictions.texts[0]).replace("`", "\u02cb")
    st.markdown(
        "**How to read the graph**\n\n"
        "- Columns are tokens, rows are layers, from the embeddings at the bottom to the prediction at the top.\n"
        f"- The routes lead down from the prediction `{best}` to the tokens it was made from.\n"
        "- **Blue** curves carry what attention heads brought from other tokens, **grey** lines what a token kept, "
        "**green** squares are FFN blocks that wrote something. Wider is more.\n"
        "- **Click a node** to see what it says in words, **an edge** to see its heads, **a triangle** above a column to explain "
        "that token's prediction instead."
    )
    if graph.n_edges == 0 and graph.mass is None:
        st.info("No edge passes this threshold. Lower it in the sidebar.", icon=":material/info:")


def _node(graph: FlowGraph, report: NodeReport) -> None:
    node = Node.parse(report.node)
    place = _KINDS[node.kind].format(layer=node.layer)
    _title(report.token_text, node.position, place)
    st.toggle(
        "Normalise before unembedding",
        value=True,
        key="normalize",
        help="Read the vector through the model's final norm, as the last layer's is. Off: multiply it with the unembedding as it is.",
    )
    top_tab, effect_tab = "Top tokens", "Promoted and suppressed"
    names = [name for name, present in ((top_tab, report.top), (effect_tab, report.promoted)) if present is not None]
    tabs = dict(zip(names, st.tabs(names), strict=True))
    if report.top is not None:
        with tabs[top_tab]:
            _top_tokens(report.top, report.block)
    if report.promoted is not None and report.suppressed is not None:
        with tabs[effect_tab]:
            st.caption(
                f"What the {report.block} block of layer {node.layer} added here, as change of each token's score"
                + (" with the norm's scale held fixed." if st.session_state.get("normalize", True) else ".")
            )
            left, right = st.columns(2)
            with left:
                _effects("promoted", report.promoted)
            with right:
                _effects("suppressed", report.suppressed)


def _top_tokens(top: TokenTable, block: str | None) -> None:
    columns: dict[str, Any] = {
        "rank": top.ranks,
        "token": [visible(text) for text in top.texts],
        "score": top.scores,
        "probability": top.probabilities,
    }
    if top.rank_changes is not None:
        columns["moved"] = top.rank_changes
    st.dataframe(
        pd.DataFrame(columns),
        hide_index=True,
        height=340,
        column_config={
            "rank": st.column_config.NumberColumn("#", width=40, help="Rank; 1 is the highest score of the vocabulary."),
            "token": st.column_config.TextColumn("token", help="A dot is a space, as in ·Mary."),
            "score": st.column_config.NumberColumn("score", width=58, format="%.2f", help="Logit, if this were the last layer."),
            "probability": st.column_config.ProgressColumn(
                "p", width=84, min_value=0, max_value=1, format="%.3f", help="Softmax of the scores."
            ),
            "moved": st.column_config.NumberColumn(
                "moved", width=58, format="%+d", help=f"Ranks gained (+) or lost (-) against the representation before the {block} block."
            ),
        },
    )


def _effects(name: str, table: TokenTable) -> None:
    st.dataframe(
        pd.DataFrame({"token": [visible(text) for text in table.texts], "score": table.scores}),
        hide_index=True,
        height=340,
        column_config={
            "token": st.column_config.TextColumn(name, help="A dot is a space, as in ·Mary."),
            "score": st.column_config.NumberColumn("by", format="%+.3f", help="Change of the token's logit."),
        },
    )


def _edge(graph: FlowGraph, report: EdgeReport) -> None:
    source, destination = Node.parse(report.source), Node.parse(report.destination)
    _title(graph.token_texts[source.position], source.position, _KINDS[source.kind].format(layer=source.layer))
    st.markdown(":material/arrow_downward:")
    _title(graph.token_texts[destination.position], destination.position, _KINDS[destination.kind].format(layer=destination.layer))
    edge = next(
        (edge for edge in graph.edges() if edge.kind.key == report.key and _names(edge) == (report.source, report.destination)), None
    )
    st.markdown(f"**{report.key} edge** · contribution **{report.contribution:.3f}** · {_how_drawn(graph, edge, report)}")
    if not report.heads:
        return
    table = pd.DataFrame(
        {
            "head": [f"L{destination.layer} H{head}" for head, _ in report.heads],
            "contribution": [contribution for _, contribution in report.heads],
            "drawn": [edge.heads.get(head) if edge else None for head, _ in report.heads],
        }
    )
    st.dataframe(
        table,
        hide_index=True,
        height="auto",
        placeholder="",
        column_config={
            "head": st.column_config.TextColumn("head", help="Layer and head."),
            "contribution": st.column_config.ProgressColumn(
                "contribution", min_value=0, max_value=1, format="%.4f", help="Share of the node after attention, before the threshold."
            ),
            "drawn": st.column_config.NumberColumn(
                "drawn", format="%.4f", help="Weight in the graph, renormalised if that is on; empty when at or below the threshold."
            ),
        },
    )


def _names(edge: Edge) -> tuple[str, str]:
    source, destination = edge.ends
    return source.name, destination.name


def _how_drawn(graph: FlowGraph, edge: Edge | None, report: EdgeReport) -> str:
    if edge is not None:
        return f"drawn as **{edge.weight:.3f}**"
    if graph.mass is not None:
        return f"not drawn: not among the edges that carry {graph.mass:.0%} of the flow"
    strongest = max((contribution for _, contribution in report.heads), default=report.contribution)
    return "not drawn: below the threshold" if strongest <= graph.threshold else "not drawn: not on the routes to this target"


def _title(text: str, position: int, place: str) -> None:
    code = visible(text).replace("`", "\u02cb")
    st.markdown(f"#### `{code}` :small[:gray[token {position} · {place}]]")
