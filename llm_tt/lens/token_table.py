"""`TokenTable`, the answer of a lens. Apart from the lens itself, so that those who only show it need not import torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Some tokens of the vocabulary with their scores, in the order of a ranking."""

    token_ids: npt.NDArray[np.int64]
    texts: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    """logits, or effects on logits"""
    probabilities: npt.NDArray[np.float32] | None = None
    ranks: npt.NDArray[np.int64] | None = None
    """1 is the highest score of the whole vocabulary"""
    rank_changes: npt.NDArray[np.int64] | None = None
    """how many ranks a token moved up against the representation before the block; negative when it fell"""

    def __len__(self) -> int:
        return len(self.texts)
