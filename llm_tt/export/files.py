"""`FlowGraph` -> text of a file: JSON, GraphML, node-link JSON, CSV or HTML. Reads the graph alone; no model, no tensors.

The files are documented in docs/graph-json.md; `llm_tt.export.saved` opens the JSON again.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_tt.flow.graph import Edge, EdgeKind, FlowGraph, Node, named_targets
from llm_tt.flow.propagation import propagate
from llm_tt.lens.token_table import TokenTable
from llm_tt.models.info import ModelInfo
from llm_tt.text import ChatMessage, Prompt, visible

JSON_FORMAT = "llm-tt-graph"
JSON_VERSION = 2
_VERSION_OF_ONE_TARGET = 1
"""Written where nothing of a later version is needed: an older llm-tt opens it"""

FACTS = ("family", "n_params", "n_heads", "n_kv_heads", "d_model", "d_vocab", "dtype", "device", "adapter")
"""Of a model's facts, those that a file keeps"""

_COLOURS = {"attention": "#0072B2", "ffn": "#009E73", "residual": "#7f7f7f"}
_SPACING = 110
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_EXTERNAL = re.compile(r'<(?:link|script)\b[^>]*(?:href|src)="https?://[^"]*"[^>]*?(?:/>|>(?:\s*</script>)?)', re.IGNORECASE)


def to_json(
    graph: FlowGraph,
    model: str,
    prompt: Prompt | None = None,
    *,
    conversation: Sequence[ChatMessage] | None = None,
    predictions: TokenTable | None = None,
    info: ModelInfo | None = None,
) -> str:
    """The graph with everything needed to draw it again, and what else is at hand.

    Args:
        graph: the routes.
        model: what the model is called.
        prompt: of the trace: adds the text that the tokens came from, their offsets and roles.
        conversation: the messages, where the prompt is a chat.
        predictions: after the target, with probabilities.
        info: adds facts of the model.
    """
    content = to_dict(graph, model, prompt, conversation=conversation, predictions=predictions, info=info)
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def to_dict(
    graph: FlowGraph,
    model: str,
    prompt: Prompt | None = None,
    *,
    conversation: Sequence[ChatMessage] | None = None,
    predictions: TokenTable | None = None,
    info: ModelInfo | None = None,
) -> dict[str, Any]:
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
        "version": JSON_VERSION if graph.targets else _VERSION_OF_ONE_TARGET,
        "model": model,
        **({} if prompt is None else {"text": prompt.text}),
        **({} if conversation is None else {"messages": [{"role": turn.role, "content": turn.content} for turn in conversation]}),
        "tokens": tokens,
        "n_layers": graph.n_layers,
        "target": graph.target,
        **({"targets": list(graph.targets)} if graph.targets else {}),
        "threshold": graph.threshold,
        "renormalized": graph.renormalized,
        **({} if graph.mass is None else {"mass": graph.mass}),
        **({} if graph.carried is None else {"carried": graph.carried}),
        **({} if predictions is None else {"predictions": _predictions(predictions)}),
        **({} if info is None else {"facts": {name: value for name in FACTS if (value := getattr(info, name)) is not None}}),
        "edges": [_edge(edge) for edge in graph.edges()],
    }


def _predictions(table: TokenTable) -> list[dict[str, Any]]:
    assert table.probabilities is not None
    columns = zip(table.token_ids.tolist(), table.texts, table.scores.tolist(), table.probabilities.tolist(), strict=True)
    return [{"id": token_id, "text": text, "score": score, "probability": probability} for token_id, text, score, probability in columns]


def _edge(edge: Edge) -> dict[str, Any]:
    source, destination = edge.ends
    result: dict[str, Any] = {"from": source.name, "to": destination.name, "key": edge.kind.key, "weight": edge.weight}
    if edge.kind is EdgeKind.ATTENTION:
        result["heads"] = [{"head": head, "weight": weight} for head, weight in edge.heads.items()]
    return result


def to_node_link(graph: FlowGraph, model: str) -> str:
    """networkx's node-link JSON, for `networkx.node_link_graph(json.load(file))`. In JSON the heads of an edge are named by text, as "2"."""
    import networkx as nx

    network = graph.to_networkx()
    network.graph["model"] = model
    return json.dumps(nx.node_link_data(network), ensure_ascii=False, allow_nan=False) + "\n"


EDGE_COLUMNS = ("from", "to", "key", "layer", "source", "destination", "source_token", "destination_token", "weight", "flow", "heads")
NODE_COLUMNS = ("node", "kind", "layer", "position", "token", "flow")


def edges_csv(graph: FlowGraph, effects: npt.NDArray[np.floating[Any]] | None = None) -> str:
    """One line an edge, in the order of the graph; `effects` [E] adds their direct effects, empty where there are none.

    Token texts are exact, numbers are in full. `heads` is written as `2:0.25 0:0.125`, the largest first.
    """
    flow = propagate(graph).edges
    rows = []
    for index, edge in enumerate(graph.edges()):
        source, destination = edge.ends
        heads = " ".join(f"{head}:{weight!r}" for head, weight in edge.heads.items())
        row: list[Any] = [source.name, destination.name, edge.kind.key, edge.layer, edge.source, edge.destination]
        row += [graph.token_texts[edge.source], graph.token_texts[edge.destination], edge.weight, float(flow[index]), heads]
        if effects is not None:
            row.append("" if np.isnan(effects[index]) else float(effects[index]))
        rows.append(row)
    return csv_text([*EDGE_COLUMNS, *(["effect"] if effects is not None else [])], rows)


def nodes_csv(graph: FlowGraph) -> str:
    """One line a node that a route passes, from the targets' last nodes down, with the flow that reaches it."""
    flow = propagate(graph)
    nodes = [*graph.roots[::-1], *(end for edge in graph.edges() for end in reversed(edge.ends))]
    rows = [
        [node.name, node.kind, node.layer, node.position, graph.token_texts[node.position], flow.node(node.name)]
        for node in dict.fromkeys(nodes)
    ]
    return csv_text(NODE_COLUMNS, rows)


def tokens_csv(*tables: TokenTable) -> str:
    """One line a token, of all the tables in turn; with the columns that they have."""
    optional = [name for name in ("probabilities", "ranks", "rank_changes") if all(getattr(table, name) is not None for table in tables)]
    names = {"probabilities": "probability", "ranks": "rank", "rank_changes": "rank_change"}
    rows = []
    for table in tables:
        more = [getattr(table, name).tolist() for name in optional]
        rows += zip(table.texts, table.token_ids.tolist(), table.scores.tolist(), *more, strict=True)
    return csv_text(["token", "token_id", "score", *(names[name] for name in optional)], rows)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """RFC 4180: text with commas, quotes or newlines is quoted; nothing is rounded or shortened."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def to_graphml(graph: FlowGraph, model: str) -> str:
    """GraphML, whose attributes are numbers and text: an edge's heads and several targets are JSON text."""
    import networkx as nx

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
    if graph.targets:
        result.graph["targets"] = json.dumps(graph.targets)
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
        label = text if node.kind == "X" or node in graph.roots else " "
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
    caption = f"{model}: routes to {named_targets(graph)} {kept}"
    return page.replace("<body>", f"<body><p style='font-family:sans-serif'>{html.escape(caption)}</p>", 1)


def _height(node: Node) -> float:
    """Rows from the bottom: token embeddings, then two residual points and the FFN between them for every layer."""
    if node.kind == "X":
        return 0
    return 2 * node.layer + {"A": 1, "M": 1.5, "I": 2}[node.kind]
