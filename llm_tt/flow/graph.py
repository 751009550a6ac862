"""The information-flow graph of one target or of several, as columns of edges; and as a networkx graph. How edges are chosen is `llm_tt.flow.routes`.

Node names follow LM-TT (Tufanov et al. 2024): `X0_t` token embedding, `A{l}_{t}` residual stream after attention of layer l, `M{l}_{t}` FFN block,
`I{l}_{t}` residual stream after the FFN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from llm_tt.errors import RequestError

if TYPE_CHECKING:
    import networkx as nx

DEFAULT_THRESHOLD = 0.04

EdgeKey = Literal["attention", "residual", "ffn"]
NodeKind = Literal["X", "A", "M", "I"]

_NODE = re.compile(r"X0_(?P<token>\d{1,9})|(?P<kind>[AMI])(?P<layer>\d{1,9})_(?P<position>\d{1,9})", re.ASCII)


class EdgeKind(IntEnum):
    """What an edge of layer l leads from and to."""

    ATTENTION = 0
    """I{l-1} of the source token (X0 for l = 0) -> A{l}"""
    RESIDUAL_TO_MID = 1
    """I{l-1} of the same token (X0 for l = 0) -> A{l}"""
    INTO_FFN = 2
    """A{l} -> M{l}"""
    OUT_OF_FFN = 3
    """M{l} -> I{l}"""
    RESIDUAL_TO_POST = 4
    """A{l} -> I{l}"""

    @property
    def key(self) -> EdgeKey:
        if self is EdgeKind.ATTENTION:
            return "attention"
        return "ffn" if self in (EdgeKind.INTO_FFN, EdgeKind.OUT_OF_FFN) else "residual"


@dataclass(frozen=True)
class Node:
    """A point of the residual stream, an FFN block, or a token embedding (kind "X", layer 0)."""

    kind: NodeKind
    layer: int
    position: int

    @property
    def name(self) -> str:
        return f"{self.kind}{self.layer}_{self.position}"

    @classmethod
    def parse(cls, name: str) -> Node:
        """'A3_5' -> Node("A", 3, 5).

        Raises:
            RequestError: not a node's name.
        """
        match = _NODE.fullmatch(name)
        if match is None:
            raise RequestError(f'"{name}" is not a node. Nodes are called X0_5, A3_5, M3_5 or I3_5: kind, layer, position.')
        if match["token"] is not None:
            return cls("X", 0, int(match["token"]))
        return cls(cast(NodeKind, match["kind"]), int(match["layer"]), int(match["position"]))


def entering(layer: int, position: int) -> Node:
    """The residual stream before layer `layer`."""
    return Node("X", 0, position) if layer == 0 else Node("I", layer - 1, position)


@dataclass(frozen=True, eq=False)
class Edge:
    """One edge of a graph, read out of its columns."""

    kind: EdgeKind
    layer: int
    source: int
    destination: int
    weight: float
    heads: Mapping[int, float]

    @property
    def ends(self) -> tuple[Node, Node]:
        mid, post = Node("A", self.layer, self.destination), Node("I", self.layer, self.destination)
        ffn = Node("M", self.layer, self.destination)
        return {
            EdgeKind.ATTENTION: (entering(self.layer, self.source), mid),
            EdgeKind.RESIDUAL_TO_MID: (entering(self.layer, self.source), mid),
            EdgeKind.INTO_FFN: (mid, ffn),
            EdgeKind.OUT_OF_FFN: (ffn, post),
            EdgeKind.RESIDUAL_TO_POST: (mid, post),
        }[self.kind]


def kind_of_edge(source: Node, destination: Node, key: str) -> EdgeKind | None:
    """What the edge of that key between two nodes is; None where a transformer has none."""
    if source.position > destination.position:
        return None
    for kind in EdgeKind:
        # The token stays the same but for attention, whose edges have ends of their own.
        if kind.key == key and (kind is EdgeKind.ATTENTION or source.position == destination.position):
            edge = Edge(kind, destination.layer, source.position, destination.position, 0.0, {})
            if edge.ends == (source, destination):
                return kind
    return None


@dataclass(frozen=True, eq=False)
class FlowGraph:
    """Routes to one target, or to several. One element a column for each of E edges, from the last layer down; weights are contributions, 0 to 1."""

    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    n_layers: int
    target: int
    threshold: float
    renormalized: bool
    kind: npt.NDArray[np.uint8]
    layer: npt.NDArray[np.uint16]
    source: npt.NDArray[np.uint32]
    destination: npt.NDArray[np.uint32]
    weight: npt.NDArray[np.float32]
    heads_start: npt.NDArray[np.uint32]
    """[E + 1]: edge e carries `head[heads_start[e] : heads_start[e + 1]]`, by falling contribution; attention edges only"""
    head: npt.NDArray[np.uint16]
    head_weight: npt.NDArray[np.float32]
    mass: float | None = None
    """the share of the flow that the graph was to carry; `threshold` is then one of the flow of edges. None: of their contributions"""
    carried: float | None = None
    """the share of the flow that reaches the token embeddings when nothing is renormalised; None where that is not known"""
    targets: tuple[int, ...] = ()
    """of the union of the routes to several targets, `target` being the last of them; empty for a single one"""

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_edges(self) -> int:
        return len(self.weight)

    @property
    def all_targets(self) -> tuple[int, ...]:
        """`targets`, or the single one."""
        return self.targets or (self.target,)

    @property
    def root(self) -> Node:
        """The node that routes lead to: the residual stream after the last layer, at the target."""
        return Node("I", self.n_layers - 1, self.target)

    @property
    def roots(self) -> tuple[Node, ...]:
        """The same at each of several targets."""
        return tuple(Node("I", self.n_layers - 1, target) for target in self.all_targets)

    def edges(self) -> Iterator[Edge]:
        for index in range(self.n_edges):
            heads = slice(self.heads_start[index], self.heads_start[index + 1])
            yield Edge(
                EdgeKind(self.kind[index]),
                int(self.layer[index]),
                int(self.source[index]),
                int(self.destination[index]),
                float(self.weight[index]),
                dict(zip(self.head[heads].tolist(), self.head_weight[heads].tolist(), strict=True)),
            )

    def to_networkx(self) -> nx.MultiDiGraph:
        """Edges carry `weight`, and attention edges `heads` {head: contribution}; their key is "attention", "residual" or "ffn".

        Nodes carry `kind`, `layer`, `position` and the token's `text`; the graph target, threshold, renormalized
        and, if it has them, mass and targets.
        """
        # Slow to import, and a page that shows a graph needs none of it.
        import networkx as nx

        graph = nx.MultiDiGraph(
            target=self.target,
            threshold=self.threshold,
            renormalized=self.renormalized,
            n_layers=self.n_layers,
            tokens=list(self.token_texts),
        )
        if self.mass is not None:
            graph.graph["mass"] = self.mass
        if self.targets:
            graph.graph["targets"] = list(self.targets)

        def add(node: Node) -> str:
            attributes: dict[str, Any] = {"kind": node.kind, "layer": node.layer, "position": node.position}
            graph.add_node(node.name, **attributes, text=self.token_texts[node.position])
            return node.name

        for root in self.roots:
            add(root)
        for edge in self.edges():
            source, destination = edge.ends
            heads = {"heads": dict(edge.heads)} if edge.kind is EdgeKind.ATTENTION else {}
            graph.add_edge(add(source), add(destination), key=edge.kind.key, weight=edge.weight, **heads)
        return graph


def named_targets(graph: FlowGraph) -> str:
    """What the routes lead to, in words: "token 9", "tokens 4 to 9", or "5 tokens from 2 to 9" where some between are none."""
    targets = graph.all_targets
    if len(targets) == 1:
        return f"token {graph.target}"
    if targets == tuple(range(targets[0], targets[-1] + 1)):
        return f"tokens {targets[0]} to {targets[-1]}"
    return f"{len(targets)} tokens from {targets[0]} to {targets[-1]}"
