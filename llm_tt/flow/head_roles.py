"""What attention heads do on one prompt: how far each behaves as a previous-token, first-token, same-token or induction head.

Scores are means of attention, nothing else: they say where a head looks, neither why nor whether it matters. Torch is imported by the
computation alone, so that those who only show scores need not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from llm_tt.progress import Progress, silent

if TYPE_CHECKING:
    from llm_tt.models.transparent_llm import Trace

Role = Literal["previous token", "first token", "same token", "induction"]
ROLES: tuple[Role, ...] = get_args(Role)
LABEL_ABOVE = 0.4
"""A head is labelled with the role of its largest score if that is larger"""
_CHUNK_BYTES = 64 * 2**20
"""Rows of attention that are in memory at a time"""
_MOST_ROWS = 256


@dataclass(frozen=True, eq=False)
class HeadRoles:
    """Scores [L, H] from 0 to 1, float64; NaN for what this prompt does not show, and for heads that a layer lacks."""

    previous_token: npt.NDArray[np.float64]
    """mean attention to the token before, over all tokens but the first"""
    first_token: npt.NDArray[np.float64]
    """mean attention to the first token, over all tokens but the first"""
    same_token: npt.NDArray[np.float64]
    """mean attention to earlier tokens of the same id, over all tokens that have one"""
    induction: npt.NDArray[np.float64]
    """mean attention to the tokens that followed earlier tokens of the same id, themselves before the current token"""
    n_repeats: int
    """tokens that occurred before: over these `same_token` is the mean"""
    n_followed: int
    """tokens that occurred before and were followed by another than this one: over these `induction` is the mean"""

    def score(self, role: Role) -> npt.NDArray[np.float64]:
        return getattr(self, role.replace(" ", "_"))

    def label(self, layer: int, head: int) -> tuple[Role, float] | None:
        """The role with the largest score and that score, if it is above `LABEL_ABOVE`. Of equal scores the first of `ROLES` counts."""
        scores = {role: float(self.score(role)[layer, head]) for role in ROLES}
        role = max(ROLES, key=lambda role: -1.0 if np.isnan(scores[role]) else scores[role])
        return (role, scores[role]) if scores[role] > LABEL_ABOVE else None

    def labelled(self) -> Iterator[tuple[int, int, Role, float]]:
        """(layer, head, role, score) of every head with a label."""
        for layer, head in np.ndindex(self.previous_token.shape):
            if (label := self.label(layer, head)) is not None:
                yield layer, head, *label


def head_roles(trace: Trace, progress: Progress = silent) -> HeadRoles:
    """Score every head of every layer on the prompt of a trace, some rows of attention at a time.

    Args:
        progress: called once a layer; may raise to cancel.
    """
    import torch

    n_tokens, n_heads = trace.n_tokens, trace.model.info.n_heads
    ids = np.array(trace.token_ids)
    sums = np.zeros((len(ROLES), trace.n_layers, n_heads))
    for layer, block in enumerate(trace.blocks):
        n_rows = max(1, min(_MOST_ROWS, _CHUNK_BYTES // (4 * n_heads * n_tokens)))
        own_heads, pattern = n_heads, block.pattern_at_hand()
        for start in range(1, n_tokens, n_rows):
            positions = np.arange(start, min(start + n_rows, n_tokens))
            with torch.inference_mode():
                rows = pattern.rows(positions.tolist())
                looks = torch.from_numpy(np.stack(_looks(ids, positions))).to(rows.device, rows.dtype)
                found = torch.stack([torch.einsum("hpt,pt->h", rows, look) for look in looks]).double().cpu().numpy()
            own_heads = found.shape[1]
            sums[:, layer, :own_heads] += found
        # Some models have fewer heads in some layers.
        sums[:, layer, own_heads:] = np.nan
        progress(f"Reading the attention of layer {layer}", (layer + 1) / trace.n_layers)
    n_repeats, n_followed = _counts(ids)
    previous, first, same, induction = (
        total / count if count else np.full_like(total, np.nan)
        for total, count in zip(sums, (n_tokens - 1, n_tokens - 1, n_repeats, n_followed), strict=True)
    )
    return HeadRoles(previous, first, same, induction, n_repeats, n_followed)


def _looks(ids: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> list[npt.NDArray[np.bool_]]:
    """For each role [P, T]: the tokens that the role means, seen from each position; nothing after or at the position itself."""
    every = np.arange(len(ids))
    earlier = every < positions[:, None]
    same = (ids == ids[positions, None]) & earlier
    after_same = np.zeros_like(same)
    after_same[:, 1:] = same[:, :-1]
    return [every == positions[:, None] - 1, np.broadcast_to(every == 0, same.shape), same, after_same & earlier]


def _counts(ids: npt.NDArray[np.int64]) -> tuple[int, int]:
    """How many tokens occurred before, and how many of them with a token in between that followed."""
    first_at: dict[int, int] = {}
    n_repeats = n_followed = 0
    for position, token_id in enumerate(ids.tolist()):
        first = first_at.setdefault(token_id, position)
        n_repeats += first < position
        n_followed += first + 1 < position
    return n_repeats, n_followed
