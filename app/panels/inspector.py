"""The inspector: which panel shows the selected node or edge. Words are here and in `token_tables`, heads and neurons in panels of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import session
from app.markup import signed
from app.panels import heads, neurons, normalize, token_tables
from app.panels import question as asking
from app.session import Service
from llm_tt.engine.messages import EdgeReport, Explanation, InspectEdge, InspectNode, NodeReport
from llm_tt.errors import LlmTtError, RequestError
from llm_tt.flow.graph import Edge, FlowGraph, Node, named_targets
from llm_tt.lens.direct_effects import DirectEffects

_TABS = {"X": ("Tokens",), "A": ("Tokens", "Heads"), "M": ("Tokens", "Neurons"), "I": ("Tokens", "Neurons")}
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
    effects = asking.effects(service, explanation)
    logit = None if effects is None else asking.logit(effects)
    try:
        if selection.get("type") == "edge":
            question = InspectEdge(explanation.trace, str(selection["from"]), str(selection["to"]), selection["key"], logit)
            _edge(service, explanation, service.engine.answer(question), effects)
        else:
            _node(service, explanation, Node.parse(str(selection["node"])), effects)
    except LlmTtError as error:
        st.error(str(error), icon=":material/error:")
        st.caption("Click a node or an edge of the graph to select something else.")


def _how_to_read(explanation: Explanation) -> None:
    graph, best = explanation.graph, token_tables.code(explanation.predictions.texts[0])
    leads = f"the prediction `{best}` to the tokens it was"
    if graph.targets:
        leads = f"all predictions after {named_targets(graph)} to the tokens they were"
    st.markdown(
        "**How to read the graph**\n\n"
        "- Columns are tokens, rows are layers, from the embeddings at the bottom to the prediction at the top.\n"
        f"- The routes lead down from {leads} made from.\n"
        "- **Blue** curves carry what attention heads brought from other tokens, **grey** lines what a token kept, "
        "**green** squares are FFN blocks that wrote something. Wider is more.\n"
        "- **Click a node** to see what it says in words, **an edge** to see its heads, **a triangle** above a column to explain "
        "that token's prediction instead."
    )
    if graph.n_edges == 0 and graph.mass is None:
        st.info("No edge passes this threshold. Lower it above the graph.", icon=":material/info:")


def _node(service: Service, explanation: Explanation, node: Node, effects: DirectEffects | None) -> None:
    graph = explanation.graph
    if node.position >= graph.n_tokens or node.layer >= graph.n_layers:
        raise RequestError(f"This graph has no node {node.name}: it has {graph.n_tokens} tokens and {graph.n_layers} layers.")
    _title(graph.token_texts[node.position], node.position, _KINDS[node.kind].format(layer=node.layer))
    tab = _tab(_TABS[node.kind])
    through_norm = normalize.toggle(normalize.INSPECTOR)
    if tab == "Heads":
        at = heads.of_node(service, explanation, node.layer, node.position)
        heads.show(service, explanation, at, through_norm)
    elif tab == "Neurons":
        neurons.show(service, explanation, node.layer, node.position, through_norm, effects)
    else:
        logit = None if effects is None else asking.logit(effects)
        report = service.engine.answer(InspectNode(explanation.trace, node.name, normalize=through_norm, logit=logit))
        _words(report, node, through_norm, effects)


def _words(report: NodeReport, node: Node, through_norm: bool, effects: DirectEffects | None) -> None:
    if effects is not None:
        what = "token embedding" if report.block is None else f"{report.block} block"
        st.markdown(f"What the {what} wrote here: {_effect(report.effect, effects)}", help=_EFFECT_HELP)
    top_tab, effect_tab = "Top tokens", "Promoted and suppressed"
    names = [name for name, present in ((top_tab, report.top), (effect_tab, report.promoted)) if present is not None]
    tabs = dict(zip(names, st.tabs(names), strict=True))
    if report.top is not None:
        with tabs[top_tab]:
            token_tables.top_tokens(report.top, report.block, "top_csv")
    if report.promoted is not None and report.suppressed is not None:
        with tabs[effect_tab]:
            st.caption(
                f"What the {report.block} block of layer {node.layer} added here, as change of each token's score"
                + (" with the norm's scale held fixed." if through_norm else ".")
            )
            token_tables.promoted_and_suppressed(report.promoted, report.suppressed, csv_key="effects_csv")


def _tab(possible: Sequence[str]) -> str:
    """The tab that is open. It stays when something else is selected, where that has such a tab."""
    if len(possible) == 1:
        return possible[0]
    wanted = st.session_state.get("inspector_wanted")
    key = "inspector_" + "_".join(possible)
    if wanted in possible:
        st.session_state[key] = wanted
    elif key not in st.session_state:
        st.session_state[key] = possible[0]
    open_tab = st.segmented_control(
        "Look at",
        possible,
        key=key,
        required=True,
        label_visibility="collapsed",
        help="Tokens: what is said here. Heads and neurons: which of them wrote it.",
        on_change=_want,
        args=(key,),
    )
    return open_tab or possible[0]


def _want(key: str) -> None:
    st.session_state.inspector_wanted = st.session_state[key]


_EFFECT_HELP = (
    "In logits. Only what is written to the target's own column has a direct effect on its logits; "
    "the rest reaches them through later attention."
)


def _effect(effect: float | None, effects: DirectEffects) -> str:
    of = effects.of.replace("`", "\u02cb")
    if effect is None:
        return f"no direct effect on `{of}`"
    return f"direct effect **{signed(effect)}** on `{of}`"


def _edge(service: Service, explanation: Explanation, report: EdgeReport, effects: DirectEffects | None) -> None:
    graph = explanation.graph
    source, destination = Node.parse(report.source), Node.parse(report.destination)
    _title(graph.token_texts[source.position], source.position, _KINDS[source.kind].format(layer=source.layer))
    st.markdown(":material/arrow_downward:")
    _title(graph.token_texts[destination.position], destination.position, _KINDS[destination.kind].format(layer=destination.layer))
    edge = next(
        (edge for edge in graph.edges() if edge.kind.key == report.key and _names(edge) == (report.source, report.destination)), None
    )
    st.markdown(f"**{report.key} edge** · contribution **{report.contribution:.3f}** · {_how_drawn(graph, edge, report)}")
    if effects is not None:
        st.markdown(_effect(report.effect, effects), help=_EFFECT_HELP)
    if report.key == "attention":
        drawn = edge.heads if edge is not None else {}
        at = heads.Heads(destination.layer, destination.position, source.position, report.heads, drawn=drawn, effects=report.head_effects)
        heads.show(service, explanation, at, normalize.toggle(normalize.INSPECTOR))
    elif report.key == "ffn":
        neurons.show(service, explanation, destination.layer, destination.position, normalize.toggle(normalize.INSPECTOR), effects)
    else:
        st.caption("What the token kept of itself: no head and no neuron is on this edge. Click one of its ends to read it in words.")


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
    st.markdown(f"#### `{token_tables.code(text)}` :small[:gray[token {position} · {place}]]")
