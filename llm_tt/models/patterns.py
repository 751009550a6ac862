"""Attention patterns of one layer, kept whole or recomputed row by row from queries and keys. Which of the two is the backend's decision.

A pattern is H*T*T numbers, queries and keys (H+K)*T*E: from about 2*E tokens on the latter is smaller, and rows cost one small product each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StoredPattern:
    """The pattern itself, [H, T, T]."""

    probabilities: Tensor

    def rows(self, positions: Sequence[int]) -> Tensor:
        return self.probabilities[:, list(positions)].float()

    @property
    def nbytes(self) -> int:
        return self.probabilities.nbytes


@dataclass(frozen=True, eq=False)
class RecomputedPattern:
    """softmax(scale * q k^T + mask), computed for the rows that are asked for.

    queries: [H, T, E] and keys: [K, T, E], as they enter the product (after rotary embedding and query or key norms).
    window: a token sees itself and the window - 1 tokens before it; None sees all.
    """

    queries: Tensor
    keys: Tensor
    scale: float
    window: int | None

    def rows(self, positions: Sequence[int]) -> Tensor:
        index = torch.as_tensor(list(positions), device=self.queries.device)
        n_heads, n_tokens, d_head = self.queries.shape
        n_kv_heads = self.keys.shape[0]
        queries = self.queries[:, index].float().reshape(n_kv_heads, -1, d_head)
        scores = torch.matmul(queries, self.keys.float().transpose(1, 2)).mul_(self.scale).view(n_heads, len(index), n_tokens)
        distance = index[:, None] - torch.arange(n_tokens, device=index.device)
        hidden = (distance < 0) | (distance >= (self.window or math.inf))
        return scores.masked_fill_(hidden, -math.inf).softmax(-1)

    @property
    def nbytes(self) -> int:
        return self.queries.nbytes + self.keys.nbytes
