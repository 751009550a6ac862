"""What differs between two traces, as a value: `Comparison`. Free of torch, so that those who only show it need not import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_tt.flow.graph import EdgeKind, FlowGraph
from llm_tt.lens.direct_effects import DirectEffects

Floats = npt.NDArray[np.float64]

ABSENT = -1
"""In place of the position of a token that the other prompt lacks"""


@dataclass(frozen=True, eq=False)
class EdgeChanges:
    """The edges of two graphs, each once: E of them, from the last layer down."""

    kind: npt.NDArray[np.uint8]
    layer: npt.NDArray[np.uint16]
    source: npt.NDArray[np.int64]
    """[E, 2]: the token position in each of the traces; `ABSENT` where it has no such token"""
    destination: npt.NDArray[np.int64]
    """[E, 2]"""
    contribution: Floats
    """[E, 2]: of the whole edge to its node, in each of the traces, whether it is drawn there or not; NaN where it has no such token"""
    is_drawn: npt.NDArray[np.bool_]
    """[E, 2]: whether it is in the graph of each"""

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def change(self) -> Floats:
        """[E]: second less first; NaN where one of them has no such token"""
        return self.contribution[:, 1] - self.contribution[:, 0]

    def strongest(self, n: int = 20) -> list[int]:
        """The n edges that changed most, the largest first. Of an FFN block's two edges, one contribution, the one out of it stands for both."""
        order = np.argsort(-np.abs(np.nan_to_num(self.change)), kind="stable")
        return order[self.kind[order] != EdgeKind.INTO_FFN][:n].tolist()

    def name(self, edge: int, side: int = 0) -> tuple[str, str, str]:
        """(from, to, key) of an edge as `FlowGraph.to_networkx` names it, by the positions of one of the traces."""
        kind, layer = EdgeKind(self.kind[edge]), int(self.layer[edge])
        source, destination = int(self.source[edge, side]), int(self.destination[edge, side])
        below = f"I{layer - 1}_{source}" if layer else f"X0_{source}"
        ends = {
            EdgeKind.ATTENTION: (below, f"A{layer}_{destination}"),
            EdgeKind.RESIDUAL_TO_MID: (below, f"A{layer}_{destination}"),
            EdgeKind.INTO_FFN: (f"A{layer}_{source}", f"M{layer}_{destination}"),
            EdgeKind.OUT_OF_FFN: (f"M{layer}_{source}", f"I{layer}_{destination}"),
            EdgeKind.RESIDUAL_TO_POST: (f"A{layer}_{source}", f"I{layer}_{destination}"),
        }
        return *ends[kind], kind.key


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two traces side by side: the same text in two models, or two texts in one. The first is what the second is compared with."""

    names: tuple[str, str]
    pairs: npt.NDArray[np.int64]
    """[P, 2]: positions of tokens that stand for each other, ascending"""
    token_texts: tuple[tuple[str, ...], tuple[str, ...]]
    divergence: Floats
    """[P]: Kullback-Leibler divergence of what is predicted there, first from second, in nats; NaN where the vocabularies differ in size"""
    following: Floats
    """[P, 2]: probability of the token that really follows; NaN where none does, or another in the other text"""
    ranks: npt.NDArray[np.int64]
    """[P, 2]: its rank, from 1; 0 where there is none"""
    graphs: tuple[FlowGraph, FlowGraph]
    edges: EdgeChanges
    head_flow: Floats
    """[2, L, H]: the flow of each graph through each head"""
    ffn_flow: Floats
    """[2, L]: and through each FFN block, all tokens together"""
    effects: tuple[DirectEffects, DirectEffects]
    """of the same token, by default the first choice of the first trace"""
    cosine: Floats
    """[2 L + 1, P]: of the residual streams: token embeddings, then after attention and after the FFN of every layer; NaN where widths differ"""
    norm_ratio: Floats
    """[2 L + 1, P]: length of the second's stream by that of the first's"""

    def head_effects(self) -> Floats:
        """[2, L, H]: direct effect of each head, all the tokens it reads together."""
        return np.stack([effects.heads.sum(-1, dtype=np.float64) for effects in self.effects])

    def ffn_effects(self) -> Floats:
        """[2, L]"""
        return np.stack([effects.ffn.astype(np.float64) for effects in self.effects])

    def to_dict(self, n_edges: int | None = None) -> dict[str, Any]:
        """Plain values, fit for JSON; the edges that changed most, all of them unless told how many."""
        order = self.edges.strongest(len(self.edges) if n_edges is None else n_edges)
        return {
            "models": list(self.names),
            "tokens": [list(texts) for texts in self.token_texts],
            "targets": [graph.target for graph in self.graphs],
            "pairs": self.pairs.tolist(),
            "divergence": _plain(self.divergence),
            "following": {"probability": _plain(self.following), "rank": self.ranks.tolist()},
            "logits": [effects.logit for effects in self.effects],
            "explained": self.effects[0].question_to_dict(),
            "heads": {"flow": self.head_flow.tolist(), "effect": self.head_effects().tolist()},
            "ffn": {"flow": self.ffn_flow.tolist(), "effect": self.ffn_effects().tolist()},
            "residual_stream": {"cosine": _plain(self.cosine), "norm_ratio": _plain(self.norm_ratio)},
            "edges": [self._edge(edge) for edge in order],
        }

    def _edge(self, edge: int) -> dict[str, Any]:
        side = 0 if (self.edges.source[edge, 0] != ABSENT and self.edges.destination[edge, 0] != ABSENT) else 1
        source, destination, key = self.edges.name(edge, side)
        return {
            "from": source,
            "to": destination,
            "key": key,
            "positions_of": side,
            "contribution": _plain(self.edges.contribution[edge]),
            "drawn": self.edges.is_drawn[edge].tolist(),
        }


def _plain(values: Floats) -> Any:
    """Lists, with None for what is not a number."""
    result = values.astype(object)
    result[np.isnan(values)] = None
    return result.tolist()
