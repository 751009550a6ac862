"""What differs between two traces, as a value: `Comparison`. Free of torch, so that those who only show it need not import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm_tt.analysis.alignment import ABSENT, Positions
from llm_tt.flow.graph import EdgeKind, FlowGraph
from llm_tt.lens.direct_effects import DirectEffects
from llm_tt.text import Prompt

__all__ = ["ABSENT", "Choices", "Comparison", "EdgeChanges"]

Floats = npt.NDArray[np.float64]
Alignment = Literal["token", "character"]


@dataclass(frozen=True, eq=False)
class EdgeChanges:
    """The edges of two graphs, each once: E of them, from the last layer down."""

    kind: npt.NDArray[np.uint8]
    layer: npt.NDArray[np.uint16]
    source: Positions
    """[E, 2]: the token position in each of the traces; `ABSENT` where it has no such token"""
    destination: Positions
    """[E, 2]"""
    contribution: Floats
    """[E, 2]: of the whole edge to its node, in each of the traces, whether it is drawn there or not; NaN where it has no such token"""
    is_drawn: npt.NDArray[np.bool_]
    """[E, 2]: whether it is in the graph of each"""
    heads: npt.NDArray[np.float32]
    """[E, 2, H]: what each head has of the contribution of an attention edge; 0 of other edges, NaN as in `contribution`"""

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

    def side(self, edge: int) -> int:
        """The first of the two that has the edge's tokens: its positions are the ones to name the edge by."""
        return 0 if self.source[edge, 0] != ABSENT and self.destination[edge, 0] != ABSENT else 1

    def heads_by_change(self, edge: int) -> list[tuple[int, float, float]]:
        """(head, contribution in the first, in the second) of an attention edge, the largest change first; heads without any left out."""
        values = np.nan_to_num(self.heads[edge].astype(np.float64))
        order = np.argsort(-np.abs(values[1] - values[0]), kind="stable").tolist()
        return [(head, float(values[0, head]), float(values[1, head])) for head in order if values[:, head].any()]

    def strongest_heads(self, most: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
        """Of every edge at once the heads that changed most: [E + 1] where each edge's begin, [K] heads, [K, 2] their contributions."""
        values = np.nan_to_num(self.heads.astype(np.float64))
        order = np.argsort(-np.abs(values[:, 1] - values[:, 0]), axis=1, kind="stable")[:, :most]
        found = np.take_along_axis(values, order[:, None], axis=2)
        is_there = found.any(axis=1)
        starts = np.concatenate([[0], np.cumsum(is_there.sum(axis=1))])
        return starts, order[is_there], found.transpose(0, 2, 1)[is_there]

    def name(self, edge: int, side: int = 0) -> tuple[str, str, str]:
        """(from, to, key) of an edge as `FlowGraph.to_networkx` names it, by the positions of one of the traces."""
        return edge_name(EdgeKind(self.kind[edge]), int(self.layer[edge]), int(self.source[edge, side]), int(self.destination[edge, side]))


def edge_name(kind: EdgeKind, layer: int, source: int, destination: int) -> tuple[str, str, str]:
    """(from, to, key) as `FlowGraph.to_networkx` has them."""
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
class Choices:
    """The first choices of both after the target, K tokens in all, by falling probability, the larger of the two."""

    texts: tuple[str, ...]
    token_ids: Positions
    """[K, 2]: `ABSENT` where a vocabulary has no such token"""
    probabilities: Floats
    """[K, 2]: NaN where a vocabulary has no such token"""
    ranks: npt.NDArray[np.int64]
    """[K, 2]: from 1; 0 where a vocabulary has no such token"""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two traces side by side: the same text in two models, or two texts in one. The first is what the second is compared with."""

    names: tuple[str, str]
    prompts: tuple[Prompt, Prompt]
    aligned_by: Alignment
    """tokens stand for each other by their ids; or, of two tokenizers, by the characters that they hold"""
    columns: Positions
    """[C, 2]: every token of both texts once, in order: its positions, `ABSENT` where a text has none"""
    notes: tuple[str, ...]
    """sentences: what could not be compared, and what was taken in the place of something else"""
    divergence: Floats
    """[P]: Kullback-Leibler divergence of what is predicted there, first from second, in nats; NaN where the vocabularies differ"""
    following: Floats
    """[P, 2]: probability of the token that really follows; NaN where none does, or another in the other text"""
    ranks: npt.NDArray[np.int64]
    """[P, 2]: its rank, from 1; 0 where there is none"""
    choices: Choices
    graphs: tuple[FlowGraph, FlowGraph]
    has_like_parts: bool
    """whether layers and heads of the two stand for each other; else there are no edges and no points of the streams to compare"""
    edges: EdgeChanges
    head_flow: tuple[Floats, Floats]
    """[L, H] each: the flow of each graph through each head"""
    ffn_flow: tuple[Floats, Floats]
    """[L] each: and through each FFN block, all tokens together"""
    head_contribution: tuple[Floats, Floats]
    """[L, H] each: of each head to the residual stream after attention at the target, all the tokens it reads together"""
    ffn_contribution: tuple[Floats, Floats]
    """[L] each: of each FFN block to the residual stream after it at the target"""
    effects: tuple[DirectEffects, DirectEffects]
    """of the same token in both; by default on how far the second's first choice is above the first's"""
    cosine: Floats
    """[2 L + 1, P]: of the residual streams: token embeddings, then after attention and after the FFN of every layer; NaN where widths differ"""
    norm_ratio: Floats
    """[2 L + 1, P]: length of the second's stream by that of the first's"""

    @property
    def token_texts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.prompts[0].token_texts, self.prompts[1].token_texts

    @property
    def paired_columns(self) -> npt.NDArray[np.int64]:
        """[P]: the columns that both texts have."""
        return np.flatnonzero((self.columns != ABSENT).all(axis=1))

    @property
    def pairs(self) -> Positions:
        """[P, 2]: positions of tokens that stand for each other, ascending"""
        return self.columns[self.paired_columns]

    @property
    def n_unpaired(self) -> tuple[int, int]:
        """Tokens of each text that have no partner."""
        first, second = (self.columns == ABSENT).sum(axis=0).tolist()
        return second, first

    @property
    def targets(self) -> tuple[int, int]:
        return self.graphs[0].target, self.graphs[1].target

    def column(self, side: int, position: int) -> int:
        """The column of a token of one of the texts."""
        return int(np.flatnonzero(self.columns[:, side] == position)[0])

    def edge_columns(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """[E] each: the columns of the edges' sources and destinations."""
        of: list[npt.NDArray[np.int64]] = []
        for side in range(2):
            own = self.columns[:, side]
            column = np.zeros(int(own.max(initial=0)) + 1, np.int64)
            column[own[own != ABSENT]] = np.flatnonzero(own != ABSENT)
            of.append(column)

        def columns(positions: Positions) -> npt.NDArray[np.int64]:
            return np.where(positions[:, 0] != ABSENT, of[0][positions[:, 0]], of[1][positions[:, 1]])

        return columns(self.edges.source), columns(self.edges.destination)

    def head_effects(self) -> tuple[Floats, Floats]:
        """[L, H] each: direct effect of each head, all the tokens it reads together."""
        first, second = (effects.heads.sum(-1, dtype=np.float64) for effects in self.effects)
        return first, second

    def ffn_effects(self) -> tuple[Floats, Floats]:
        """[L] each"""
        first, second = (effects.ffn.astype(np.float64) for effects in self.effects)
        return first, second

    @property
    def nbytes(self) -> int:
        edges = self.edges
        arrays = [self.cosine, self.norm_ratio, *self.head_flow, *self.head_contribution, edges.contribution, edges.heads, edges.source]
        graphs = sum(graph.weight.nbytes + graph.head_weight.nbytes + graph.source.nbytes for graph in self.graphs)
        return 2 * graphs + sum(array.nbytes for array in arrays) + sum(effects.nbytes for effects in self.effects)

    def to_dict(self, n_edges: int | None = None) -> dict[str, Any]:
        """Plain values, fit for JSON; the edges that changed most, all of them unless told how many."""
        order = self.edges.strongest(len(self.edges) if n_edges is None else n_edges)
        choices = self.choices
        return {
            "models": list(self.names),
            "tokens": [list(texts) for texts in self.token_texts],
            "targets": list(self.targets),
            "aligned_by": self.aligned_by,
            "pairs": self.pairs.tolist(),
            "unpaired": list(self.n_unpaired),
            "notes": list(self.notes),
            "predictions": [
                {"text": text, "id": _known(ids), "probability": _plain(probabilities), "rank": [rank or None for rank in ranks]}
                for text, ids, probabilities, ranks in zip(
                    choices.texts, choices.token_ids.tolist(), choices.probabilities, choices.ranks.tolist(), strict=True
                )
            ],
            "divergence": _plain(self.divergence),
            "following": {"probability": _plain(self.following), "rank": self.ranks.tolist()},
            "logits": [effects.logit for effects in self.effects],
            "explained": self.effects[0].question_to_dict(),
            "heads": {
                "flow": _lists(self.head_flow),
                "contribution": _lists(self.head_contribution),
                "effect": _lists(self.head_effects()),
            },
            "ffn": {"flow": _lists(self.ffn_flow), "contribution": _lists(self.ffn_contribution), "effect": _lists(self.ffn_effects())},
            "residual_stream": {"cosine": _plain(self.cosine), "norm_ratio": _plain(self.norm_ratio)},
            "edges": [self._edge(edge) for edge in order],
        }

    def _edge(self, edge: int) -> dict[str, Any]:
        side = self.edges.side(edge)
        source, destination, key = self.edges.name(edge, side)
        return {
            "from": source,
            "to": destination,
            "key": key,
            "positions_of": side,
            "contribution": _plain(self.edges.contribution[edge]),
            "drawn": self.edges.is_drawn[edge].tolist(),
            "heads": [{"head": head, "contribution": [before, after]} for head, before, after in self.edges.heads_by_change(edge)],
        }


def _known(ids: list[int]) -> list[int | None]:
    return [None if token_id == ABSENT else token_id for token_id in ids]


def _lists(sides: tuple[Floats, Floats]) -> list[Any]:
    return [side.tolist() for side in sides]


def _plain(values: Floats) -> Any:
    """Lists, with None for what is not a number."""
    result = values.astype(object)
    result[np.isnan(values)] = None
    return result.tolist()
