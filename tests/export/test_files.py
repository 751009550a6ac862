"""Exported files say what the graph says, whatever the tokens are, and can be read by others."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pytest

from llm_tt.export import files
from llm_tt.flow.graph import EdgeKind, FlowGraph
from llm_tt.text import Prompt, visible

Row = tuple[EdgeKind, int, int, int, float, dict[int, float]]

ROWS: list[Row] = [
    (EdgeKind.OUT_OF_FFN, 1, 2, 2, 0.25, {}),
    (EdgeKind.INTO_FFN, 1, 2, 2, 0.25, {}),
    (EdgeKind.RESIDUAL_TO_POST, 1, 2, 2, 0.75, {}),
    (EdgeKind.ATTENTION, 1, 0, 2, 0.5, {3: 0.375, 0: 0.125}),
    (EdgeKind.ATTENTION, 1, 2, 2, 0.125, {1: 0.125}),
    (EdgeKind.RESIDUAL_TO_MID, 1, 2, 2, 0.375, {}),
    (EdgeKind.RESIDUAL_TO_POST, 0, 0, 0, 1.0, {}),
    (EdgeKind.ATTENTION, 0, 0, 0, 0.0625, {2: 0.0625}),
    (EdgeKind.RESIDUAL_TO_MID, 0, 0, 0, 0.9375, {}),
    (EdgeKind.RESIDUAL_TO_POST, 0, 2, 2, 1.0, {}),
    (EdgeKind.ATTENTION, 0, 1, 2, 0.1, {0: 0.1}),  # not a binary fraction
]

EDGES = {
    ("M1_2", "I1_2", "ffn"): 0.25,
    ("A1_2", "M1_2", "ffn"): 0.25,
    ("A1_2", "I1_2", "residual"): 0.75,
    ("I0_0", "A1_2", "attention"): 0.5,
    ("I0_2", "A1_2", "attention"): 0.125,
    ("I0_2", "A1_2", "residual"): 0.375,
    ("A0_0", "I0_0", "residual"): 1.0,
    ("X0_0", "A0_0", "attention"): 0.0625,
    ("X0_0", "A0_0", "residual"): 0.9375,
    ("A0_2", "I0_2", "residual"): 1.0,
    ("X0_1", "A0_2", "attention"): 0.1,
}
HEADS = {
    ("I0_0", "A1_2"): {3: 0.375, 0: 0.125},
    ("I0_2", "A1_2"): {1: 0.125},
    ("X0_0", "A0_0"): {2: 0.0625},
    ("X0_1", "A0_2"): {0: 0.1},
}
"""What ROWS mean, written down once more by node names"""

STRANGE = [
    "<script>alert(1)</script>",
    "</script><script src='https://evil.example/x.js'></script>",
    "<img src=x onerror=alert(1)>",
    "-->",
    "]]>",
    "\"'&amp;&\\",
    "{{ 7 * 7 }}{% raw %}",
    " Mary",
    " ",
    "",
    "\n",
    "\t",
    "\r",
    "\r\n",
    "\x00\x01\x1b",
    "\x7f\x85\x9f",
    "\u2028\u2029",
    "\ufeff",
    "\ufffd",
    "\ufffe\uffff",
    "\U0001f600\u200d\U0001f680",
    "\u0645\u0631\u062d\u0628\u0627",
    "<0xE2><0x80>",
    "NaN",
]

strange = pytest.mark.parametrize("text", STRANGE)


def flow_graph(texts: Sequence[str] = ("The", " cat", " sat"), rows: Sequence[Row] = ROWS) -> FlowGraph:
    """Two layers and three tokens; the routes to the last."""
    kind, layer, source, destination, weight, heads = zip(*rows, strict=True) if rows else ((),) * 6
    return FlowGraph(
        token_ids=tuple(range(10, 10 + len(texts))),
        token_texts=tuple(texts),
        n_layers=2,
        target=2,
        threshold=0.04,
        renormalized=True,
        kind=np.array(kind, np.uint8),
        layer=np.array(layer, np.uint16),
        source=np.array(source, np.uint32),
        destination=np.array(destination, np.uint32),
        weight=np.array(weight, np.float32),
        heads_start=np.cumsum([0, *map(len, heads)]).astype(np.uint32),
        head=np.array([head for carried in heads for head in carried], np.uint16),
        head_weight=np.array([share for carried in heads for share in carried.values()], np.float32),
    )


def with_text(text: str) -> FlowGraph:
    """The text as the target's token, which every view names."""
    return flow_graph(("The", text, text))


# --- JSON


def test_json_has_every_edge_with_its_weight_and_heads() -> None:
    data = json.loads(files.to_json(flow_graph(), "a model"))
    assert {(edge["from"], edge["to"], edge["key"]): edge["weight"] for edge in data["edges"]} == pytest.approx(EDGES)
    assert len(data["edges"]) == len(EDGES)
    heads = {
        (edge["from"], edge["to"]): {item["head"]: item["weight"] for item in edge["heads"]} for edge in data["edges"] if "heads" in edge
    }
    assert heads.keys() == HEADS.keys()
    for ends, shares in HEADS.items():
        assert list(heads[ends]) == list(shares), "in the order of the graph"
        assert heads[ends] == pytest.approx(shares)
    assert all(("heads" in edge) == (edge["key"] == "attention") for edge in data["edges"])


def test_json_says_the_same_as_networkx() -> None:
    graph = flow_graph()
    data, expected = json.loads(files.to_json(graph, "m")), graph.to_networkx()
    found = [
        (edge["from"], edge["to"], edge["key"], edge["weight"], {item["head"]: item["weight"] for item in edge.get("heads", [])})
        for edge in data["edges"]
    ]
    assert sorted(found) == sorted((u, v, key, a["weight"], a.get("heads", {})) for u, v, key, a in expected.edges(keys=True, data=True))


def test_json_has_all_that_is_needed_to_draw_the_graph_again() -> None:
    data = json.loads(files.to_json(flow_graph(), "a model"))
    assert data.pop("edges")
    assert data == {
        "format": "llm-tt-graph",
        "version": 1,
        "model": "a model",
        "tokens": [
            {"position": 0, "id": 10, "text": "The"},
            {"position": 1, "id": 11, "text": " cat"},
            {"position": 2, "id": 12, "text": " sat"},
        ],
        "n_layers": 2,
        "target": 2,
        "threshold": 0.04,
        "renormalized": True,
    }
    assert files.to_dict(flow_graph(), "a model") == json.loads(files.to_json(flow_graph(), "a model"))


def test_json_has_what_the_prompt_of_a_trace_tells() -> None:
    graph = flow_graph()
    prompt = Prompt("The cat sat", graph.token_ids, graph.token_texts, (None, (3, 7), (7, 11)), ("special", "user", None))
    data = json.loads(files.to_json(graph, "m", prompt))
    assert data.pop("text") == "The cat sat"
    assert [(token.pop("offset"), token.pop("role")) for token in data["tokens"]] == [(None, "special"), ([3, 7], "user"), ([7, 11], None)]
    assert data == json.loads(files.to_json(graph, "m")), "nothing else changes"


@strange
def test_json_keeps_a_strange_token_exactly(text: str) -> None:
    written = files.to_json(with_text(text), text)
    data = json.loads(written.encode("utf-8"))
    assert [token["text"] for token in data["tokens"]] == ["The", text, text]
    assert data["model"] == text


def test_files_of_a_graph_by_mass_say_so() -> None:
    graph = dataclasses.replace(flow_graph(), mass=0.9, carried=0.91)
    data = json.loads(files.to_json(graph, "a model"))
    assert (data["mass"], data["carried"]) == (0.9, 0.91)
    assert nx.parse_graphml(files.to_graphml(graph, "a model"), node_type=str).graph["mass"] == 0.9
    assert graph.to_networkx().graph["mass"] == 0.9
    assert "routes to token 2 that carry 90% of the flow" in files.to_html(graph, "a model")
    assert "mass" not in flow_graph().to_networkx().graph
    assert not {"mass", "carried"} & json.loads(files.to_json(flow_graph(), "a model")).keys()


@pytest.mark.parametrize(("targets", "words"), [((1, 2), "tokens 1 to 2"), ((0, 2), "2 tokens from 0 to 2")])
def test_files_of_a_graph_with_several_targets_say_so(targets: tuple[int, ...], words: str) -> None:
    graph = dataclasses.replace(flow_graph(), targets=targets)
    data = json.loads(files.to_json(graph, "a model"))
    assert (data["targets"], data["target"], data["version"]) == (list(targets), 2, 2)
    assert json.loads(read_graphml(files.to_graphml(graph, "a model")).graph["targets"]) == list(targets)
    assert json.loads(files.to_node_link(graph, "a model"))["graph"]["targets"] == list(targets)
    assert f"routes to {words} at threshold 0.04" in files.to_html(graph, "a model")
    nodes = list(csv.DictReader(io.StringIO(files.nodes_csv(graph))))
    first = f"I1_{targets[0]}"
    assert [(node["node"], float(node["flow"])) for node in nodes[:2]] == [("I1_2", 0.5), (first, 0.5)], "though no edge leads to it"
    flows = [float(edge["flow"]) for edge in csv.DictReader(io.StringIO(files.edges_csv(graph)))]
    alone = [float(edge["flow"]) for edge in csv.DictReader(io.StringIO(files.edges_csv(flow_graph())))]
    assert flows == pytest.approx([flow / 2 for flow in alone])


def test_json_of_a_graph_without_edges() -> None:
    data = json.loads(files.to_json(flow_graph(rows=[]), "m"))
    assert data["edges"] == []
    assert len(data["tokens"]) == 3


# --- GraphML


def read_graphml(written: str) -> nx.MultiDiGraph:
    return nx.parse_graphml(written.encode("utf-8"), force_multigraph=True)


def kind_of(key: Any, attributes: dict[str, Any]) -> str:
    """An edge's kind, as its key or as data of its own."""
    return attributes.get("kind") or attributes.get("key") or key


def test_graphml_is_read_back_with_the_same_nodes_edges_and_weights() -> None:
    graph = flow_graph()
    read, expected = read_graphml(files.to_graphml(graph, "a model")), graph.to_networkx()
    assert read.is_directed()
    assert {name: dict(data) for name, data in read.nodes(data=True)} == {name: dict(data) for name, data in expected.nodes(data=True)}
    edges = {(u, v, kind_of(key, data)): data["weight"] for u, v, key, data in read.edges(keys=True, data=True)}
    assert edges == pytest.approx(EDGES)
    assert read.number_of_edges() == len(EDGES)
    settings = {name: read.graph[name] for name in ("model", "target", "threshold", "renormalized", "n_layers")}
    assert settings == {"model": "a model", "target": 2, "threshold": 0.04, "renormalized": True, "n_layers": 2}


def test_graphml_has_the_heads_of_an_edge_as_json() -> None:
    read = read_graphml(files.to_graphml(flow_graph(), "m"))
    heads = {(u, v): json.loads(data["heads"]) for u, v, data in read.edges(data=True) if "heads" in data}
    assert heads.keys() == HEADS.keys()
    for ends, shares in HEADS.items():
        assert {int(head): share for head, share in heads[ends].items()} == pytest.approx(shares)


def test_graphml_gives_no_two_edges_the_same_id() -> None:
    """An id names one edge; programs that go by ids would merge or refuse edges that share one."""
    tree = ElementTree.fromstring(files.to_graphml(flow_graph(), "m"))
    ids = [element.get("id") for element in tree.iter() if element.tag.endswith("}edge")]
    assert len(ids) == len(EDGES)
    assert len(set(ids)) == len(ids)


def escaped(text: str) -> str:
    """What XML cannot hold, and the carriage return that its readers turn into a newline, written as `\\x00`."""
    return re.sub("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", lambda match: f"\\x{ord(match[0]):02x}", text)


@strange
def test_graphml_with_a_strange_token_is_read_back(text: str) -> None:
    read = read_graphml(files.to_graphml(with_text(text), "m"))
    assert read.nodes["I1_2"]["text"] == escaped(text)
    assert read.nodes["X0_0"]["text"] == "The"
    assert read.number_of_edges() == len(EDGES)


@strange
def test_graphml_of_a_model_with_a_strange_name_is_read_back(text: str) -> None:
    assert read_graphml(files.to_graphml(flow_graph(), text)).graph["model"] == escaped(text)


def test_graphml_of_a_graph_without_edges_is_its_root() -> None:
    read = read_graphml(files.to_graphml(flow_graph(rows=[]), "m"))
    assert list(read.nodes) == ["I1_2"]
    assert read.number_of_edges() == 0


# --- node-link


def test_node_link_is_networkx_own_and_says_the_same() -> None:
    graph = flow_graph()
    read, expected = nx.node_link_graph(json.loads(files.to_node_link(graph, "a model"))), graph.to_networkx()
    assert isinstance(read, nx.MultiDiGraph)
    assert {name: dict(data) for name, data in read.nodes(data=True)} == {name: dict(data) for name, data in expected.nodes(data=True)}
    edges = {(u, v, key): data for u, v, key, data in read.edges(keys=True, data=True)}
    assert {name: data["weight"] for name, data in edges.items()} == pytest.approx(EDGES)
    assert {name[:2]: {int(head): share for head, share in data["heads"].items()} for name, data in edges.items() if "heads" in data} == {
        ends: pytest.approx(shares) for ends, shares in HEADS.items()
    }
    assert read.graph == {**expected.graph, "model": "a model"}


@strange
def test_node_link_keeps_a_strange_token_exactly(text: str) -> None:
    read = nx.node_link_graph(json.loads(files.to_node_link(with_text(text), text)))
    assert (read.nodes["I1_2"]["text"], read.graph["model"]) == (text, text)


# --- CSV


def read_csv(written: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(written, newline="")))


def test_csv_of_edges_has_all_of_them_in_full() -> None:
    graph = flow_graph()
    rows = read_csv(files.edges_csv(graph))
    assert [((row["from"], row["to"], row["key"]), np.float32(row["weight"])) for row in rows] == [
        (name, np.float32(weight)) for name, weight in EDGES.items()
    ]
    assert [float(row["weight"]) for row in rows] == graph.weight.tolist(), "nothing is rounded"
    heads = {
        (row["from"], row["to"]): {int(head): float(share) for head, share in (item.split(":") for item in row["heads"].split())}
        for row in rows
        if row["heads"]
    }
    assert heads == {ends: pytest.approx(shares) for ends, shares in HEADS.items()}
    assert [(row["layer"], row["source_token"], row["destination_token"]) for row in rows][3] == ("1", "The", " sat")


def test_csv_of_edges_has_the_flow_through_each() -> None:
    flow = {(row["from"], row["to"], row["key"]): float(row["flow"]) for row in read_csv(files.edges_csv(flow_graph()))}
    # By hand, on a renormalised graph: a node's flow goes down its edges as they are.
    assert flow["M1_2", "I1_2", "ffn"] == 0.25
    assert flow["A1_2", "I1_2", "residual"] == 0.75
    assert flow["I0_0", "A1_2", "attention"] == pytest.approx(0.5)
    assert flow["X0_0", "A0_0", "residual"] == pytest.approx(0.5 * 0.9375)


def test_csv_of_edges_has_effects_where_there_are_any() -> None:
    effects = np.full(len(ROWS), np.nan, np.float32)
    effects[3] = -1.25
    rows = read_csv(files.edges_csv(flow_graph(), effects))
    assert [row["effect"] for row in rows] == ["", "", "", "-1.25", *[""] * 7]
    assert "effect" not in read_csv(files.edges_csv(flow_graph()))[0]


def test_csv_of_nodes_has_each_once_from_the_target_down() -> None:
    rows = read_csv(files.nodes_csv(flow_graph()))
    assert {row["node"] for row in rows} == set(flow_graph().to_networkx().nodes)
    assert len(rows) == flow_graph().to_networkx().number_of_nodes()
    assert rows[0] == {"node": "I1_2", "kind": "I", "layer": "1", "position": "2", "token": " sat", "flow": "1.0"}
    flow = {row["node"]: float(row["flow"]) for row in rows}
    assert (flow["M1_2"], flow["A1_2"], flow["I0_0"], flow["X0_0"]) == (0.25, 1.0, 0.5, 0.5)


@strange
def test_csv_keeps_a_strange_token_exactly(text: str) -> None:
    graph = with_text(text)
    assert read_csv(files.edges_csv(graph))[0]["source_token"] == text
    assert {row["token"] for row in read_csv(files.nodes_csv(graph))} == {"The", text}


def test_csv_of_a_graph_without_edges() -> None:
    empty = flow_graph(rows=[])
    assert read_csv(files.edges_csv(empty)) == []
    assert [row["node"] for row in read_csv(files.nodes_csv(empty))] == ["I1_2"]


# --- HTML


class Page(HTMLParser):
    """The elements of a page as a browser finds them, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def data_set(self, name: str) -> list[dict[str, Any]]:
        """What the page's own script gives to vis-network."""
        script = next(script for script in self.scripts if f"{name} = new vis.DataSet(" in script)
        start = script.index(f"{name} = new vis.DataSet(") + len(f"{name} = new vis.DataSet(")
        return json.JSONDecoder().raw_decode(script[start:])[0]


def test_html_draws_every_node_and_edge() -> None:
    page = Page(files.to_html(flow_graph(), "a model"))
    nodes, edges = page.data_set("nodes"), page.data_set("edges")
    assert {node["id"] for node in nodes} == set(flow_graph().to_networkx().nodes)
    assert len(nodes) == len({(node["x"], node["y"]) for node in nodes}), "no node hides another"
    found = sorted((edge["from"], edge["to"], round(((edge["width"] - 0.5) / 5) ** 2, 6)) for edge in edges)
    assert found == sorted((source, destination, weight) for (source, destination, _), weight in EDGES.items())
    titles = [edge["title"] for edge in edges]
    assert "I0_0 to A1_2: 0.500 (head 3: 0.375, head 0: 0.125)" in titles
    assert "a model: routes to token 2 at threshold 0.04" in page.text


def test_html_puts_later_tokens_to_the_right_and_later_layers_higher() -> None:
    place = {node["id"]: (node["x"], node["y"]) for node in Page(files.to_html(flow_graph(), "m")).data_set("nodes")}
    heights = [place[name][1] for name in ("X0_1", "A0_2", "I0_2", "A1_2", "M1_2", "I1_2")]
    assert heights == sorted(heights, reverse=True), "y grows downwards"
    assert len(set(heights)) == len(heights)
    assert place["X0_0"][0] < place["X0_1"][0] < place["A0_2"][0] == place["I1_2"][0]


@pytest.mark.parametrize("rows", [ROWS, []], ids=["routes", "no edges"])
def test_html_loads_nothing_from_elsewhere(rows: list[Row]) -> None:
    written = files.to_html(flow_graph(rows=rows), "m")
    page = Page(written)
    assert [element for element in page.elements if element[0] == "script"], "the parser finds scripts"
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), attributes
        assert "src" not in attributes
        assert "href" not in attributes
    assert not re.search(r"""(@import|url\()\s*["']?(https?:)?//""", written)
    assert "vis.Network(" in "".join(page.scripts)
    assert max(map(len, page.scripts)) > 100_000, "vis-network itself is in the page"


@strange
def test_html_with_a_strange_token_has_the_elements_of_any_other(text: str) -> None:
    plain, crafted = Page(files.to_html(flow_graph(), "m")), Page(files.to_html(with_text(text), "m"))
    assert crafted.elements == plain.elements
    assert len(crafted.scripts) == len(plain.scripts)
    assert len(crafted.data_set("nodes")) == len(plain.data_set("nodes"))
    assert len(crafted.data_set("edges")) == len(EDGES)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>"])
def test_html_has_no_markup_of_a_token_or_a_name(text: str) -> None:
    assert text not in files.to_html(with_text(text), text)
    assert Page(files.to_html(flow_graph(), text)).elements == Page(files.to_html(flow_graph(), "m")).elements


@strange
def test_html_shows_a_strange_token_as_it_is(text: str) -> None:
    """vis-network draws labels on a canvas and fills its tooltips by innerText: both show a text literally, so that entities would be seen."""
    page = Page(files.to_html(with_text(text), "m"))
    assert any(re.search(r"instanceof Element\).{0,150}\}else this\.frame\.innerText=", script) for script in page.scripts)
    nodes = {node["id"]: node for node in page.data_set("nodes")}
    assert nodes["X0_1"]["label"] == visible(text)
    assert nodes["I1_2"]["label"] == visible(text)
    assert nodes["X0_1"]["title"] == f"X0_1: {visible(text)}"
    assert nodes["M1_2"]["label"].strip() == "", "inner nodes are named by their tooltip"
    assert nodes["M1_2"]["title"].startswith("M1_2: ")


def test_html_of_a_graph_without_edges_shows_its_root() -> None:
    page = Page(files.to_html(flow_graph(rows=[]), "m"))
    assert [node["id"] for node in page.data_set("nodes")] == ["I1_2"]
    assert page.data_set("edges") == []
