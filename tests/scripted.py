"""A model that says what a script has it say: its tokens are bytes, what it knows are answers to prompts. For tests of how answers are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

import llm_tt
from llm_tt import TransparentLlm

END = 256
LOUD = 20.0
"""The logit of what comes next; all others are 0"""


@cache
def _info() -> llm_tt.ModelInfo:
    return replace(llm_tt.load_model("demo").info, name="scripted", n_ctx=2000, d_vocab=257, tokenizer=None)


class ScriptedLlm(TransparentLlm):
    """
    Args:
        answers: what follows each prompt. Of several that a text begins with, the longest counts; what is not known is answered by nothing.
    """

    def __init__(self, answers: Mapping[str, str], n_ctx: int = 2000) -> None:
        self.info = replace(_info(), n_ctx=n_ctx)
        self.answers = dict(answers)
        self.n_read = 0

    @property
    def end_ids(self) -> frozenset[int]:
        return frozenset({END})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return ["<end>" if token_id == END else bytes([token_id]).decode("latin-1") for token_id in token_ids]

    def last_logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        self.n_read += 1
        text = bytes(token_ids).decode()
        known = [prompt for prompt in self.answers if text.startswith(prompt) and self.answers[prompt].startswith(text[len(prompt) :])]
        logits = torch.zeros(257)
        following = END
        if known:
            prompt = max(known, key=len)
            rest = self.answers[prompt][len(text) - len(prompt) :]
            following = rest.encode()[0] if rest else END
        logits[following] = LOUD
        return logits

    def fingerprint(self) -> str:
        return repr(sorted(self.answers.items()))

    def _nothing_inside(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("An evaluation looks at answers only.")

    run = attention_output = neurons = neuron_output = final_norm = unembed = _nothing_inside
