"""`LensGrid` and `Trajectories`: what every point of the residual stream says. Apart from the lens itself, so that showing them needs no torch."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Points = Literal["post", "both"]
"""The token embedding, and the residual stream after every FFN ("post"), or after every attention and every FFN ("both")"""


@dataclass(frozen=True, eq=False)
class LensGrid:
    """R points of the residual stream x T tokens, each read as if it were the last layer's output. Rows go from the embedding up."""

    points: tuple[str, ...]
    """"X0", "A0", "I0", "A1", ...: the name of a node without its position"""
    token_texts: tuple[str, ...]
    """of the prompt: the columns"""
    normalized: bool
    top_ids: npt.NDArray[np.int64]
    """[R, T]: the token with the highest score"""
    top_probabilities: npt.NDArray[np.float32]
    entropies: npt.NDArray[np.float32]
    """[R, T]: of the distribution over the whole vocabulary, in bits"""
    texts: dict[int, str]
    """of every token that occurs in `top_ids`"""
    chosen: int | None = None
    chosen_text: str | None = None
    probabilities: npt.NDArray[np.float32] | None = None
    """[R, T]: of the chosen token"""
    ranks: npt.NDArray[np.int64] | None = None
    """[R, T]: of the chosen token; 1 is the highest score of the whole vocabulary"""
    note: str | None = None
    """a sentence: how the text of the chosen token was read, where that is not plain"""

    @property
    def n_rows(self) -> int:
        return len(self.points)

    @property
    def n_tokens(self) -> int:
        return len(self.token_texts)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, and a good guess at those of the texts."""
        arrays = (self.top_ids, self.top_probabilities, self.entropies, self.probabilities, self.ranks)
        return sum(array.nbytes for array in arrays if array is not None) + 100 * (len(self.texts) + self.n_tokens)

    def node(self, row: int, position: int) -> str:
        """The node of a cell, as "I2_5"."""
        return f"{self.points[row]}_{position}"

    def top_text(self, row: int, position: int) -> str:
        return self.texts[int(self.top_ids[row, position])]

    def to_csv(self) -> str:
        """One line a cell, from the embedding up."""
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        names = ["node", "position", "token", "top_token", "top_token_id", "top_probability", "entropy_bits"]
        writer.writerow(names + ["chosen_token", "chosen_token_id", "chosen_probability", "chosen_rank"] * (self.chosen is not None))
        for row in range(self.n_rows):
            for position, text in enumerate(self.token_texts):
                cells: list[Any] = [self.node(row, position), position, text, self.top_text(row, position), self.top_ids[row, position]]
                cells += [self.top_probabilities[row, position], self.entropies[row, position]]
                if self.probabilities is not None and self.ranks is not None:
                    cells += [self.chosen_text, self.chosen, self.probabilities[row, position], self.ranks[row, position]]
                writer.writerow(cells)
        return file.getvalue()


@dataclass(frozen=True, eq=False)
class Trajectories:
    """K tokens at R points of the residual stream of one position, from the embedding up."""

    position: int
    points: tuple[str, ...]
    normalized: bool
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    logits: npt.NDArray[np.float32]
    """[R, K]"""
    probabilities: npt.NDArray[np.float32]
    ranks: npt.NDArray[np.int64]
    """[R, K]: 1 is the highest score of the whole vocabulary"""
    notes: tuple[str, ...] = ()
    """sentences: how texts were read as tokens, where that is not plain"""

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"{point}_{self.position}" for point in self.points)

    @property
    def nbytes(self) -> int:
        return self.logits.nbytes + self.probabilities.nbytes + self.ranks.nbytes + 100 * (len(self.points) + len(self.texts))

    def to_csv(self) -> str:
        """One line for each token at each point, from the embedding up."""
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow(["node", "token", "token_id", "logit", "probability", "rank"])
        for row, node in enumerate(self.nodes):
            for index, (token_id, text) in enumerate(zip(self.token_ids, self.texts, strict=True)):
                numbers = (self.logits[row, index], self.probabilities[row, index], self.ranks[row, index])
                writer.writerow([node, text, token_id, *numbers])
        return file.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "position": self.position,
            "normalized": self.normalized,
            "nodes": list(self.nodes),
            "notes": list(self.notes),
            "tokens": [
                {
                    "id": token_id,
                    "text": text,
                    "logits": self.logits[:, index].tolist(),
                    "probabilities": self.probabilities[:, index].tolist(),
                    "ranks": self.ranks[:, index].tolist(),
                }
                for index, (token_id, text) in enumerate(zip(self.token_ids, self.texts, strict=True))
            ],
        }
