"""`Pace` and `TraceEstimate`: how long a model takes for a prompt, and what a trace will cost. Free of torch; measuring is `llm_tt.models.pace`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_tt.models.sizes import show_bytes, show_seconds

_KEPT_RUNS = 8


@dataclass(frozen=True)
class Pace:
    """Seconds that a model takes on its machine to trace so many tokens."""

    start: float
    """whatever the prompt"""
    per_token: float
    per_pair: float
    """for each pair of tokens: attention"""
    runs: tuple[tuple[int, float], ...] = ()
    """(tokens, seconds) of traces that were made since, the latest last"""

    def seconds(self, n_tokens: int) -> float:
        if not self.runs:
            return self._measured(n_tokens)
        # How far off it was for the most similar length it will be again.
        length, taken = min(reversed(self.runs), key=lambda run: abs(math.log(run[0] / max(n_tokens, 1))))
        return self._measured(n_tokens) * taken / self._measured(length)

    def after(self, n_tokens: int, seconds: float) -> Pace:
        """What is known once a trace was made."""
        return replace(self, runs=(*self.runs, (n_tokens, seconds))[-_KEPT_RUNS:])

    def _measured(self, n_tokens: int) -> float:
        return self.start + n_tokens * (self.per_token + n_tokens * self.per_pair)

    @classmethod
    def fitted(cls, runs: Sequence[tuple[int, float]], per_pair: float) -> Pace:
        """To (tokens, seconds) of some short runs, each as important as its share of itself."""
        from scipy.optimize import nnls

        lengths, seconds = (np.array(column, np.float64) for column in zip(*runs, strict=True))
        rest = np.maximum(seconds - per_pair * lengths**2, 0.0)
        start = np.ones(len(runs)) if len(runs) > 1 else np.zeros(1)
        (at_start, per_token), _ = nnls(np.stack([start, lengths], 1) / seconds[:, None], rest / seconds)
        return cls(float(at_start), float(per_token), per_pair)


@dataclass(frozen=True)
class TraceEstimate:
    """What tracing a prompt will cost; finding routes in it comes on top and depends on how far they spread."""

    n_tokens: int
    n_bytes: int
    """of memory, at the most"""
    seconds: float
    free_bytes: int
    """what the model's device has to give"""
    longest: int
    """the longest prompt that fits into it, with the host's help where it is a GPU's, up to the model's context"""
    host_bytes: int = 0
    """of `n_bytes` what the host would keep, since the device has no room for all"""

    @property
    def fits(self) -> bool:
        return self.n_tokens <= self.longest

    def sentence(self) -> str:
        """For people, without the last full stop."""
        cost = f"{self.n_tokens:,} tokens: about {show_seconds(self.seconds)} and {show_bytes(self.n_bytes)} of memory"
        if self.host_bytes:
            cost = f"{cost}, {show_bytes(self.host_bytes)} of it the host's, since the GPU is short; that takes longer"
        if self.fits:
            return cost
        return f"{cost}, but there are {show_bytes(self.free_bytes)} to give. What fits: at most {self.longest:,} tokens"
