"""Attention patterns of one layer, kept whole or recomputed row by row from queries and keys. Which of the two is the backend's decision.

A pattern is H*T*T numbers, queries and keys (H+K)*T*E: from about 2*E tokens on the latter is smaller, and rows cost one small product each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class AttentionPattern(Protocol):
    """The attention probabilities of one layer; rows come in float32, whatever the model's dtype."""

    def rows(self, positions: Sequence[int]) -> Tensor:
        """[H, P, T]: how much each head at each of the P positions attends to each source token; 0 for j > i."""
        ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, eq=False)
class StoredPattern:
    """The pattern itself, [H, T, T]."""

    probabilities: Tensor
    home: torch.device | None = None
    """where rows are given out; None: where the pattern is"""

    def rows(self, positions: Sequence[int]) -> Tensor:
        return self.rows_until(positions, self.probabilities.shape[-1])

    def rows_until(self, positions: Sequence[int], n_sources: int) -> Tensor:
        return self.probabilities[:, list(positions), :n_sources].to(self.home or self.probabilities.device).float()

    @property
    def nbytes(self) -> int:
        return self.probabilities.nbytes


@dataclass(frozen=True, eq=False)
class Visible:
    """Which tokens a token sees: itself and what came before it, at most `window` tokens in all, or what a mask says.

    mask: [T, T], True where query i sees key j; for what no window describes (chunked attention). Layers of one kind share it.
    """

    window: int | None = None
    mask: Tensor | None = None

    def hidden(self, positions: Tensor, n_tokens: int) -> Tensor:
        """[P, n_tokens]: True where a token does not see one of the first tokens."""
        if self.mask is not None:
            return ~self.mask[positions, :n_tokens]
        every = torch.arange(n_tokens, device=positions.device)
        future = every > positions[:, None]
        return future if self.window is None else future | (every <= positions[:, None] - self.window)

    @classmethod
    def of(cls, mask: Tensor | None) -> Visible:
        """From the mask [T, T] that attention was called with; None for a causal one."""
        if mask is None:
            return cls()
        n_tokens = len(mask)
        window = int(mask[-1].sum())
        # The narrowest window that the last row allows; if it explains every row it is the mask.
        described = cls(None if window == n_tokens else window)
        every = torch.arange(n_tokens, device=mask.device)
        same = all(torch.equal(described.hidden(rows, n_tokens), ~mask[rows]) for rows in every.split(1024))
        return described if same else cls(mask=mask)


@dataclass(frozen=True, eq=False)
class QueriesOnDemand:
    """Queries that are not kept: the model is asked for those of the positions wanted, [H, P, E]."""

    of: Callable[[Sequence[int]], Tensor]

    @property
    def nbytes(self) -> int:
        return 0


@dataclass(frozen=True, eq=False)
class RecomputedPattern:
    """softmax(cap(scale * q k^T) + mask), computed for the rows that are asked for.

    queries: [H, T, E] and keys: [K, T, E], as they enter the product (after rotary embedding and query or key norms).
    cap: scores become cap * tanh(score / cap).
    home: where rows are computed; None: where the keys are.
    sinks: [H] scores of a place that belongs to no token; its share is left out, so that rows sum to less than 1.
    """

    queries: Tensor | QueriesOnDemand
    keys: Tensor
    scale: float
    visible: Visible = Visible()
    cap: float | None = None
    sinks: Tensor | None = None
    home: torch.device | None = None

    def rows(self, positions: Sequence[int]) -> Tensor:
        return self.rows_until(positions, self.keys.shape[1])

    def rows_until(self, positions: Sequence[int], n_sources: int) -> Tensor:
        device = self.home or self.keys.device
        chosen = torch.as_tensor(list(positions), dtype=torch.long)
        asked = self.queries[:, chosen] if isinstance(self.queries, Tensor) else self.queries.of(positions)
        index = chosen.to(device)
        n_heads, _, d_head = asked.shape
        keys = self.keys[:, :n_sources].to(device).float()
        queries = (asked.to(device).float() * self.scale).reshape(len(keys), -1, d_head)
        scores = torch.matmul(queries, keys.transpose(1, 2)).view(n_heads, len(index), n_sources)
        if self.cap is not None:
            scores = scores.div_(self.cap).tanh_().mul_(self.cap)
        scores = scores.masked_fill_(self.visible.hidden(index, n_sources), -math.inf)
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.float()[:, None, None].expand(-1, len(index), 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]

    def at_hand(self) -> RecomputedPattern:
        """The same with its keys where rows are computed, for reading many rows."""
        return self if self.home is None else replace(self, keys=self.keys.to(self.home))

    @property
    def nbytes(self) -> int:
        return self.queries.nbytes + self.keys.nbytes


def rows_until(pattern: AttentionPattern, positions: Sequence[int], n_sources: int) -> Tensor:
    """[H, P, n_sources] in one piece: what `pattern.rows` has for the first tokens; none of the positions lies behind them."""
    if isinstance(pattern, StoredPattern | RecomputedPattern):
        return pattern.rows_until(positions, n_sources).contiguous()
    return pattern.rows(positions)[..., :n_sources].contiguous()
