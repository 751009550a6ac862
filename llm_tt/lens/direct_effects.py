"""`LogitQuestion`, which logit is to be explained, and `DirectEffects`, the answer of `llm_tt.lens.effects`. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_tt.flow.graph import EdgeKind, FlowGraph
from llm_tt.text import visible

Token = int | str
"""A token's id, or what a person writes for it, as `llm_tt.lens.named_tokens` reads it"""


@dataclass(frozen=True)
class LogitQuestion:
    """Why this token, and not that one, after the target. The target may be negative, as in Python."""

    target: int = -1
    token: Token | None = None
    """None for the model's first choice"""
    contrast: Token | None = None
    """None to explain the token's logit; else what is explained is how far it is above the logit of this one"""


@dataclass(frozen=True)
class Part:
    """One summand of a logit, or of a difference of two."""

    name: str
    """"embedding", "L2 H1", "L2 attention bias", "FFN L3" or "final biases" """
    effect: float


@dataclass(frozen=True, eq=False)
class DirectEffects:
    """What each part of the residual stream at the target adds to a logit, or to the difference of two, in logits (nats). T tokens, float32.

    The parts are those written to the target's own position; the final norm's scale is taken as given. Together they are the logit, before the
    soft cap where a model has one.
    """

    target: int
    token_id: int
    token_text: str
    contrast_id: int | None
    contrast_text: str | None
    notes: tuple[str, ...]
    """sentences: how a text was read as a token"""
    heads: npt.NDArray[np.float32]
    """[L, H, T]: of what each head brought from each token; 0 after the target, and for heads that a layer lacks"""
    attention_bias: npt.NDArray[np.float32]
    """[L]: of attention's output biases, which belong to no head"""
    ffn: npt.NDArray[np.float32]
    """[L]: of each FFN block, its output bias included"""
    embedding: float
    biases: float
    """of the biases of final norm and unembedding"""
    logit: float
    """what the model itself computes, before any cap; the difference where there is a contrast"""
    capped_logit: float | None
    """the same after the model's soft cap; None without a cap"""

    @property
    def total(self) -> float:
        """The sum of all parts; `logit` but for rounding, which in half precision is the model's."""
        rest = np.sum([self.heads.sum(dtype=np.float64), self.attention_bias.sum(dtype=np.float64), self.ffn.sum(dtype=np.float64)])
        return float(rest + self.embedding + self.biases)

    @property
    def of(self) -> str:
        """What is explained, to read: "·Mary" or "·Mary − ·John"."""
        token = visible(self.token_text)
        return token if self.contrast_text is None else f"{token} \u2212 {visible(self.contrast_text)}"

    @property
    def nbytes(self) -> int:
        return self.heads.nbytes + self.attention_bias.nbytes + self.ffn.nbytes

    def parts(self) -> list[Part]:
        """All parts, heads summed over the tokens they read, in the order of the model."""
        return list(self._parts())

    def _parts(self) -> Iterator[Part]:
        yield Part("embedding", self.embedding)
        by_head = self.heads.sum(-1)
        for layer in range(len(self.ffn)):
            for head, effect in enumerate(by_head[layer]):
                yield Part(f"L{layer} H{head}", float(effect))
            if self.attention_bias[layer]:
                yield Part(f"L{layer} attention bias", float(self.attention_bias[layer]))
            yield Part(f"FFN L{layer}", float(self.ffn[layer]))
        yield Part("final biases", self.biases)

    def strongest(self, n: int = 8) -> tuple[list[Part], list[Part]]:
        """The n parts that raise it most, and the n that lower it most, the strongest first."""
        parts = sorted(self._parts(), key=lambda part: -part.effect)
        return [part for part in parts[:n] if part.effect > 0], [part for part in parts[::-1][:n] if part.effect < 0]

    def stream_before(self, layer: int) -> float:
        """Of the residual stream before block `layer` (the number of layers gives the last): all that was written up to there."""
        return self.embedding + float(self.attention(slice(layer)).sum() + self.ffn[:layer].sum())

    def attention(self, layer: int | slice) -> npt.NDArray[np.float32]:
        """Of whole attention blocks: their heads and their bias."""
        return self.heads[layer].sum((-2, -1)) + self.attention_bias[layer]

    def of_edges(self, graph: FlowGraph) -> npt.NDArray[np.float32]:
        """[E]: of each edge of a graph; NaN where there is none, as for an edge into another position than the target.

        An attention edge has the effect of all heads between its tokens, those below the threshold included; an edge of the residual stream that
        of all it carries.
        """
        result = np.full(graph.n_edges, np.nan, np.float32)
        own = (graph.destination == self.target) & (graph.target == self.target)
        by_source = self.heads.sum(1)
        for index in np.flatnonzero(own):
            kind, layer = EdgeKind(graph.kind[index]), int(graph.layer[index])
            if kind is EdgeKind.ATTENTION:
                result[index] = by_source[layer, graph.source[index]]
            elif kind is EdgeKind.RESIDUAL_TO_MID:
                result[index] = self.stream_before(layer)
            elif kind is EdgeKind.RESIDUAL_TO_POST:
                result[index] = self.stream_before(layer) + float(self.attention(layer))
            else:
                result[index] = self.ffn[layer]
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "target": self.target,
            **self.question_to_dict(),
            "logit": self.logit,
            "capped_logit": self.capped_logit,
            "sum": self.total,
            "embedding": self.embedding,
            "biases": self.biases,
            "attention_bias": self.attention_bias.tolist(),
            "ffn": self.ffn.tolist(),
            "heads": self.heads.tolist(),
        }

    def question_to_dict(self) -> dict[str, Any]:
        """What is explained, as plain values."""
        return {
            "token": {"id": self.token_id, "text": self.token_text},
            "contrast": None if self.contrast_id is None else {"id": self.contrast_id, "text": self.contrast_text},
            "notes": list(self.notes),
        }
