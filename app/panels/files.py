"""Share and save: the link to what is shown, and the graph as a file. Files are made when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Callable

import streamlit as st

from app import address, link
from app.link import View
from llm_tt.engine.messages import Explanation
from llm_tt.export import files
from llm_tt.flow.graph import FlowGraph
from llm_tt.lens.direct_effects import DirectEffects

_NAME_LENGTH = 32


def show(explanation: Explanation, view: View, effects: DirectEffects | None) -> None:
    """The row under the graph; it also keeps the browser's URL in step, so that it belongs where it runs with every change of the view."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{explanation.graph.n_tokens} tokens · {explanation.graph.n_edges} edges")
        st.space("stretch")
        address.follow(view)
        with st.popover("Share", icon=":material/link:", key="share", help="A link to exactly this view."):
            _share(view)
        with st.popover(
            "Save", icon=":material/download:", key="save", help="The graph as a file, for other programs or to open it again."
        ):
            _save(explanation, effects)


def _share(view: View) -> None:
    st.markdown("**Link to this view**: model, prompt and continuation, target or span, threshold, selection and question.")
    st.code(address.url(view), language=None, wrap_lines=True)
    if not link.fits(view.prompt):
        st.warning(
            f"The prompt is too long for a link (more than {link.LONGEST:,} characters when compressed), so that the link leaves it out. "
            "To share this view, save the graph as JSON: it can be opened under *Files*.",
            icon=":material/link_off:",
        )
    st.caption(
        "Whoever opens it needs the same model on the menu. The link holds the prompt itself: share it with those who may read that."
    )


def _save(explanation: Explanation, effects: DirectEffects | None) -> None:
    routes, name, trace = explanation.graph, explanation.facts.info.name, explanation.trace
    stem = file_stem(explanation)
    conversation = None if isinstance(trace.prompt, str) else trace.prompt

    def as_json() -> str:
        return files.to_json(
            routes,
            name,
            explanation.prompt,
            conversation=conversation,
            predictions=explanation.predictions,
            info=explanation.facts.info,
        )

    of_edges = None if effects is None else effects.of_edges(routes)
    with st.container(gap="small"):
        _file(
            "JSON", as_json, f"{stem}.json", "application/json", "All of the graph, documented (docs/graph-json.md); can be opened again."
        )
        _file("Page", lambda: files.to_html(routes, name), f"{stem}.html", "text/html", "A page that draws the graph; works offline.")
        _file("GraphML", lambda: files.to_graphml(routes, name), f"{stem}.graphml", "application/graphml+xml", "For Gephi, yEd, Cytoscape.")
        _file(
            "Node-link",
            lambda: files.to_node_link(routes, name),
            f"{stem}.node-link.json",
            "application/json",
            "JSON for networkx.node_link_graph.",
        )
        _file(
            "Edges",
            lambda: files.edges_csv(routes, of_edges),
            f"{stem}.edges.csv",
            "text/csv",
            "CSV, one line an edge: ends, tokens, weight, flow, heads" + (", direct effect." if effects is not None else "."),
        )
        _file("Nodes", lambda: files.nodes_csv(routes), f"{stem}.nodes.csv", "text/csv", "CSV, one line a node, with the flow through it.")
    st.caption("The graph as a picture, PNG or SVG: in its own toolbar.")


def _file(label: str, make: Callable[[], str], file_name: str, mime: str, what: str) -> None:
    st.download_button(
        f"**{label}** :small[:gray[{what}]]",
        make,
        file_name=file_name,
        mime=mime,
        on_click="ignore",
        key=f"save_{label}",
        type="tertiary",
        icon=":material/download:",
    )


def file_stem(explanation: Explanation) -> str:
    """Model, how the prompt begins, target: `demo_When-Mary-and-John_token14`, or `tokens14-20` for a span. Safe on every file system."""
    prompt = explanation.trace.prompt
    text = prompt if isinstance(prompt, str) else next((turn.content for turn in prompt if turn.role == "user"), "")
    model = re.split(r"[\\/]", explanation.facts.info.name.rstrip("\\/"))[-1]
    parts = [_safe(model), _safe(text), _targets(explanation.graph)]
    return "_".join(part for part in parts if part)


def _targets(graph: FlowGraph) -> str:
    return f"tokens{graph.targets[0]}-{graph.target}" if graph.targets else f"token{graph.target}"


def _safe(text: str) -> str:
    """Letters and digits of any script, the rest as hyphens; cut at a word where that is possible."""
    words = re.findall(r"[^\W_]+", text[: 4 * _NAME_LENGTH])
    result = ""
    for word in words:
        longer = f"{result}-{word}" if result else word[:_NAME_LENGTH]
        if len(longer) > _NAME_LENGTH:
            break
        result = longer
    return result
