"""What a model is asked to generate, and what it did: `Sampling`, `GeneratedToken`, `Continuation`. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llm_tt.errors import RequestError
from llm_tt.text import decoded

StopReason = Literal["end", "length", "cancelled"]
"""The model put out an end-of-sequence token; as many tokens as were asked for have come; somebody stopped it"""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy: always the first choice, whatever the rest says.

    Raises:
        RequestError: a value is out of its range.
    """

    temperature: float = 0.0
    """logits are divided by it"""
    top_k: int | None = None
    """only the k first choices"""
    top_p: float | None = None
    """only the fewest first choices, of those that are left, which together have this probability"""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(f"The temperature is {self.temperature:g}. Expected 0, which is greedy, or a number above it, such as 0.8.")
        if self.top_k is not None and self.top_k < 1:
            raise RequestError(f"top_k is {self.top_k}. Expected 1 or more, or nothing for all tokens.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p:g}. Expected a share above 0 and up to 1, such as 0.9.")
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"The seed is {self.seed}. Expected a whole number from 0 to 2^63 - 1.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class GeneratedToken:
    """One token that a model put out."""

    token_id: int
    text: str
    """display text (`llm_tt.text`)"""
    data: bytes
    """what it adds to the text, in UTF-8; may be a part of a character"""
    probability: float
    """the model's own: a softmax of its logits, whatever the temperature"""
    rank: int
    """1 is the model's first choice"""
    stop: StopReason | None = None
    """why nothing follows; None when more comes"""


@dataclass(frozen=True)
class Continuation:
    """The tokens that a model put out after a prompt."""

    start: int
    """position of the first: how many tokens came before"""
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    text: str
    """all tokens together, special ones by their names; a character that is not finished is U+FFFD"""
    probabilities: tuple[float, ...]
    """each as in `GeneratedToken`"""
    ranks: tuple[int, ...]
    stop: StopReason | None
    """None while more is to come"""

    @classmethod
    def of(cls, start: int, tokens: Sequence[GeneratedToken], cancelled: bool = False) -> Continuation:
        """Tokens as they have come so far."""
        stop = tokens[-1].stop if tokens else None
        return cls(
            start,
            tuple(token.token_id for token in tokens),
            tuple(token.text for token in tokens),
            decoded([token.data for token in tokens])[0],
            tuple(token.probability for token in tokens),
            tuple(token.rank for token in tokens),
            "cancelled" if stop is None and cancelled else stop,
        )

    def __len__(self) -> int:
        return len(self.token_ids)
