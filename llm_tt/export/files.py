"""`FlowGraph` -> text of a file in JSON, GraphML or HTML. Reads the graph alone; no model, no tensors.

The JSON is documented in docs/graph-json.md.
"""

from __future__ import annotations

import html
import json
import math
import re
from typing import Any

import networkx as nx

from llm_tt.flow.graph import Edge, EdgeKind, FlowGraph, Node
from llm_tt.text import Prompt, visible

JSON_FORMAT = "llm-tt-graph"
JSON_VERSION = 1

_COLOURS = {"attention": "#0072B2", "ffn": "#009E73", "residual": "#7f7f7f"}
_SPACING = 110
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_EXTERNAL = re.compile(r'<(?:link|script)\b[^>]*(?:href|src)="https?://[^"]*"[^>]*?(?:/>|>(?:\s*</script>)?)', re.IGNORECASE)


def to_json(graph: FlowGraph, model: str, prompt: Prompt | None = None) -> str:
    """The graph with everything needed to draw it again; with the prompt of its trace, also the text it came from, offsets and roles."""
    return json.dumps(to_dict(graph, model, prompt), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def to_dict(graph: FlowGraph, model: str, prompt: Prompt | None = None) -> dict[str, Any]:
    """The content of `to_json` as plain Python values."""
    tokens: list[dict[str, Any]] = [
        {"position": position, "id": token_id, "text": text}
        for position, (token_id, text) in enumerate(zip(graph.token_ids, graph.token_texts, strict=True))
    ]
    if prompt is not None:
        for token, offset, role in zip(tokens, prompt.offsets, prompt.roles, strict=True):
            token |= {"offset": None if offset is None else list(offset), "role": role}
    return {
        "format": JSON_FORMAT,
        "version": JSON_VERSION,
        "model": model,
        **({} if prompt is None else {"text": prompt.text}),
        "tokens": tokens,
        "n_layers": graph.n_layers,
        "target": graph.target,
        "threshold": graph.threshold,
        "renormalized": graph.renormalized,
        **({} if graph.mass is None else {"mass": graph.mass}),
        **({} if graph.carried is None else {"carried": graph.carried}),
        "edges": [_edge(edge) for edge in graph.edges()],
    }


def _edge(edge: Edge) -> dict[str, Any]:
    source, destination = edge.ends
    result: dict[str, Any] = {"from": source.name, "to": destination.name, "key": edge.kind.key, "weight": edge.weight}
    if edge.kind is EdgeKind.ATTENTION:
        result["heads"] = [{"head": head, "weight": weight} for head, weight in edge.heads.items()]
    return result


def to_graphml(graph: FlowGraph, model: str) -> str:
    """GraphML, whose attributes are numbers and text: an edge's heads are JSON text."""
    source = graph.to_networkx()
    result = nx.MultiDiGraph(
        model=_xml_text(model),
        target=graph.target,
        threshold=graph.threshold,
        renormalized=graph.renormalized,
        n_layers=graph.n_layers,
    )
    if graph.mass is not None:
        result.graph["mass"] = graph.mass
    for name, attributes in source.nodes(data=True):
        result.add_node(name, **{**attributes, "text": _xml_text(attributes["text"])})
    for tail, head, key, attributes in source.edges(keys=True, data=True):
        heads = {"heads": json.dumps(attributes["heads"])} if "heads" in attributes else {}
        # The key becomes the edge's id, which GraphML wants unique in the file.
        result.add_edge(tail, head, key=f"{tail}-{head}-{key}", kind=key, weight=attributes["weight"], **heads)
    return "\n".join(nx.generate_graphml(result)) + "\n"


def _xml_text(text: str) -> str:
    """What XML cannot hold, and the carriage return that its readers turn into a newline, as `\\x00`."""
    return _NOT_XML.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def to_html(graph: FlowGraph, model: str) -> str:
    """A page of its own that draws the graph with pyvis; works offline; token text is never markup."""
    from pyvis.network import Network

    network = Network(height="96vh", width="100%", directed=True, cdn_resources="in_line")
    network.toggle_physics(False)
    for name, attributes in graph.to_networkx().nodes(data=True):
        node = Node.parse(name)
        # Not escaped: it is drawn on a canvas, and pyvis keeps `<` out of the page's script.
        text = visible(attributes["text"])
        # pyvis puts the name where the label is empty.
        label = text if node.kind == "X" or node == graph.root else " "
        network.add_node(
            name,
            label=label,
            title=f"{name}: {text}",
            # Beside the line that passes it by.
            x=(node.position + (0.3 if node.kind == "M" else 0)) * _SPACING,
            y=-_height(node) * _SPACING,
            shape="square" if node.kind == "M" else "dot",
            size=6,
            color=_COLOURS["ffn"] if node.kind == "M" else _COLOURS["residual"],
        )
    for edge in graph.edges():
        source, destination = edge.ends
        heads = ", ".join(f"head {head}: {weight:.3f}" for head, weight in edge.heads.items())
        title = f"{source.name} to {destination.name}: {edge.weight:.3f}" + (f" ({heads})" if heads else "")
        to_itself = edge.kind is EdgeKind.ATTENTION and edge.source == edge.destination
        network.add_edge(
            source.name,
            destination.name,
            width=0.5 + 5 * math.sqrt(edge.weight),
            title=title,
            color=_COLOURS[edge.kind.key],
            arrows={"to": {"enabled": True, "scaleFactor": 0.35}},
            smooth={"enabled": to_itself, "type": "curvedCCW", "roundness": 0.4},
        )
    # pyvis links a style sheet and its scripts from elsewhere even when told to be self-contained.
    page = _EXTERNAL.sub("", network.generate_html())
    kept = f"at threshold {graph.threshold}" if graph.mass is None else f"that carry {graph.mass:.0%} of the flow"
    caption = f"{model}: routes to token {graph.target} {kept}"
    return page.replace("<body>", f"<body><p style='font-family:sans-serif'>{html.escape(caption)}</p>", 1)


def _height(node: Node) -> float:
    """Rows from the bottom: token embeddings, then two residual points and the FFN between them for every layer."""
    if node.kind == "X":
        return 0
    return 2 * node.layer + {"A": 1, "M": 1.5, "I": 2}[node.kind]
