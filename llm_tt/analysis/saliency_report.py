"""`Saliency`, the answer of `llm_tt.analysis.saliency`: what several methods say about the same prediction, and how far each can be believed.

Free of torch.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm_tt.text import visible

Method = Literal["flow", "gradient", "gradient_x_input", "integrated_gradients", "lime", "kernel_shap", "leave_one_out"]
Unit = Literal["token", "word"]
Floats = npt.NDArray[np.float64]

METHODS: tuple[Method, ...] = ("flow", "gradient", "gradient_x_input", "integrated_gradients", "lime", "kernel_shap", "leave_one_out")
QUICK: tuple[Method, ...] = ("flow", "gradient", "gradient_x_input", "leave_one_out")
"""Those that need few runs of the model"""
NAMES: dict[Method, str] = {
    "flow": "Flow over sources",
    "gradient": "Gradient norm",
    "gradient_x_input": "Gradient x input",
    "integrated_gradients": "Integrated gradients",
    "lime": "LIME",
    "kernel_shap": "Kernel SHAP",
    "leave_one_out": "Leave-one-out",
}
UNSIGNED: frozenset[Method] = frozenset({"flow", "gradient"})
"""Methods whose scores have no sign: they say how much, and not in which direction"""


@dataclass(frozen=True)
class Feature:
    """A token or a word of the prompt."""

    start: int
    stop: int
    """tokens [start, stop)"""
    text: str
    is_kept: bool
    """never taken out: a special token, what a chat template wrote, or the token after which is predicted"""


@dataclass(frozen=True, eq=False)
class MethodScores:
    """What one method says of F features."""

    method: Method
    scores: Floats
    """[F]; NaN where the method gives none: for features that are never taken out, by methods that take features out"""
    order: tuple[int, ...]
    """the features that can be taken out, by falling score"""
    deletion: Floats
    """[K+1]: the token's probability with the first 0 .. K of `order` taken out"""
    lead: Floats
    """[K+1]: log p(token) - log p(contrast) there; log p(token) without a contrast"""
    n_runs: int
    """prompts that went through the model for the scores; one of a gradient goes back as well"""
    note: str | None = None
    """a sentence on how exact the scores are"""

    @property
    def name(self) -> str:
        return NAMES[self.method]

    @property
    def drop(self) -> float:
        """How far the token's probability fell, the mean over 1 .. K features taken out."""
        return float(self.deletion[0] - self.deletion[1:].mean())


@dataclass(frozen=True, eq=False)
class Saliency:
    """Why this token, and not that one, by several methods. Scores explain log p(token), or log p(token) - log p(contrast)."""

    target: int
    token_id: int
    token_text: str
    contrast_id: int | None
    contrast_text: str | None
    unit: Unit
    token_texts: tuple[str, ...]
    """of the tokens up to the target; later ones have no say"""
    features: tuple[Feature, ...]
    probability: float
    """of the token, of the whole prompt"""
    lead: float
    """what is explained: log p(token) - log p(contrast), or log p(token)"""
    probability_of_nothing: float
    """of the token, with all taken out that can be"""
    methods: tuple[MethodScores, ...]
    correlations: Floats
    """[M, M]: Spearman's rank correlation of the scores, over the features that can be taken out; NaN where one has a single value"""
    random_deletion: Floats
    """[K+1]: the mean probability when features are taken out in `n_random` random orders"""
    n_random: int
    seed: int
    unavailable: tuple[tuple[Method, str], ...] = ()
    """methods that were asked for and cannot be had, each with a sentence"""
    notes: tuple[str, ...] = ()
    """sentences: how a text was read as a token"""

    @property
    def of(self) -> str:
        """What is explained, to read: "·Mary" or "·Mary − ·John"."""
        token = visible(self.token_text)
        return token if self.contrast_text is None else f"{token} \u2212 {visible(self.contrast_text)}"

    @property
    def n_removable(self) -> int:
        return sum(not feature.is_kept for feature in self.features)

    @property
    def n_removed(self) -> int:
        """K, how many are taken out at most for the deletion curves."""
        return len(self.random_deletion) - 1

    @property
    def random_drop(self) -> float:
        return float(self.random_deletion[0] - self.random_deletion[1:].mean())

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, and a good guess at those of the texts."""
        numbers = sum(found.scores.nbytes + found.deletion.nbytes + found.lead.nbytes + 8 * len(found.order) for found in self.methods)
        return numbers + self.correlations.nbytes + self.random_deletion.nbytes + 200 * len(self.features)

    def scores(self, method: Method) -> Floats:
        """[F] of one method.

        Raises:
            KeyError: it is not among the methods.
        """
        return self.of_method(method).scores

    def of_method(self, method: Method) -> MethodScores:
        for found in self.methods:
            if found.method == method:
                return found
        raise KeyError(method)

    def to_csv(self) -> str:
        """Three tables in one, told apart by their first column: a score of a feature, a point of a deletion curve, a correlation."""
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow(["table", "method", "first_token", "n_tokens", "text", "taken_out", "value", "other_method"])
        for found in self.methods:
            for feature, score in zip(self.features, found.scores.tolist(), strict=True):
                row = ["score", found.method, feature.start, feature.stop - feature.start, feature.text, "", _cell(score), ""]
                writer.writerow(row)
        for name, curve in [(found.method, found.deletion) for found in self.methods] + [("random", self.random_deletion)]:
            for count, probability in enumerate(curve.tolist()):
                writer.writerow(["deletion", name, "", "", "", count, probability, ""])
        for row, one in enumerate(self.methods):
            for column, other in enumerate(self.methods):
                writer.writerow(["correlation", one.method, "", "", "", "", _cell(float(self.correlations[row, column])), other.method])
        return file.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: None for what is no number."""
        return {
            "target": self.target,
            "token": {"id": self.token_id, "text": self.token_text},
            "contrast": None if self.contrast_id is None else {"id": self.contrast_id, "text": self.contrast_text},
            "notes": list(self.notes),
            "unit": self.unit,
            "probability": self.probability,
            "lead": self.lead,
            "probability_of_nothing": self.probability_of_nothing,
            "features": [
                {"first_token": feature.start, "n_tokens": feature.stop - feature.start, "text": feature.text, "is_kept": feature.is_kept}
                for feature in self.features
            ],
            "methods": {
                found.method: {
                    "scores": list(map(_number, found.scores.tolist())),
                    "order": list(found.order),
                    "deletion": found.deletion.tolist(),
                    "lead": found.lead.tolist(),
                    "drop": found.drop,
                    "n_runs": found.n_runs,
                    "note": found.note,
                }
                for found in self.methods
            },
            "unavailable": dict(self.unavailable),
            "correlations": [list(map(_number, row)) for row in self.correlations.tolist()],
            "random_deletion": self.random_deletion.tolist(),
            "random_drop": self.random_drop,
            "n_random": self.n_random,
            "seed": self.seed,
        }


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's: the correlation of ranks, equal values sharing their mean rank. NaN where one of the two has a single value."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (one, other)]
    size = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / size if size else math.nan


def _ranks(values: Floats) -> Floats:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts + 1) / 2)[which]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else value
