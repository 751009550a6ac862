"""Which tokens of two prompts stand for each other: by their ids where one tokenizer made both, else by the characters they hold. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import numpy.typing as npt

from llm_tt.text import Prompt, Span

Positions = npt.NDArray[np.int64]

ABSENT = -1
"""In place of the position of a token that the other prompt lacks"""

_PIECES = re.compile(r"\w+|[^\w\s]")


def paired(first: Sequence[int], second: Sequence[int]) -> Positions:
    """[P, 2], ascending: positions of the same tokens, and of runs of other tokens of one length between them (Ratcliff & Obershelp)."""
    pairs: list[tuple[int, int]] = []
    for kind, start, stop, other_start, other_stop in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if kind == "equal" or stop - start == other_stop - other_start:
            pairs += zip(range(start, stop), range(other_start, other_stop), strict=True)
    return _array(pairs)


def paired_by_characters(first: Prompt, second: Prompt) -> Positions | None:
    """[P, 2], ascending: positions of tokens that hold the same characters of the text, white space around them left out.

    Texts that differ, as those of two chat templates, are laid over each other word by word. The first tokens, where tokenizers put them there by
    themselves, are a pair. None where a prompt does not tell which characters its tokens hold.
    """
    if first.text is None or second.text is None or not (any(first.offsets) and any(second.offsets)):
        return None
    place = _places(first.text, second.text)
    there = {span: position for position, span in enumerate(_letters(second)) if span is not None}
    pairs: list[tuple[int, int]] = []
    if first.offsets[0] is None and second.offsets[0] is None:
        pairs.append((0, 0))
    for position, span in enumerate(_letters(first)):
        if span is None:
            continue
        start, end = place[span[0]], place[span[1] - 1]
        if start is None or end is None or (start, end + 1) not in there:
            continue
        # Between the two ends another word may stand.
        if first.text[slice(*span)] == second.text[start : end + 1]:
            pairs.append((position, there[start, end + 1]))
    return _array(pairs)


def with_pair(pairs: Positions, first: int, second: int) -> Positions:
    """The pairs with this one, which takes the place of those that share a token with it or cross it."""
    before, after = pairs[:, 0] - first, pairs[:, 1] - second
    kept = pairs[(np.sign(before) == np.sign(after)) & (before != 0)]
    return _array(sorted([*map(tuple, kept.tolist()), (first, second)]))


def columns(pairs: Positions, n_first: int, n_second: int) -> Positions:
    """[C, 2]: every token of both prompts once, in an order that is that of both; `ABSENT` for the one that has no such token."""
    rows: list[tuple[int, int]] = []
    first = second = 0
    for one, other in [*map(tuple, pairs.tolist()), (n_first, n_second)]:
        rows += [(position, ABSENT) for position in range(first, one)]
        rows += [(ABSENT, position) for position in range(second, other)]
        rows.append((one, other))
        first, second = one + 1, other + 1
    return _array(rows[:-1])


def differing(first: Sequence[str], second: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Which texts of each are not, or not in this order, in the other."""
    marks = [True] * len(first), [True] * len(second)
    for block in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        marks[0][block.a : block.a + block.size] = [False] * block.size
        marks[1][block.b : block.b + block.size] = [False] * block.size
    return marks


def _places(first: str, second: str) -> list[int | None]:
    """Where each character of the first text is in the second; None for those that it lacks."""
    if first == second:
        return list(range(len(first)))
    found: list[int | None] = [None] * len(first)
    words, others = (list(_PIECES.finditer(text)) for text in (first, second))
    matcher = SequenceMatcher(None, [word[0] for word in words], [word[0] for word in others], autojunk=False)
    for block in matcher.get_matching_blocks():
        for word, other in zip(words[block.a : block.a + block.size], others[block.b : block.b + block.size], strict=True):
            found[word.start() : word.end()] = range(other.start(), other.end())
    return found


def _letters(prompt: Prompt) -> list[Span | None]:
    """The characters of each token without white space around them; None where nothing is left, or another token holds the same."""
    assert prompt.text is not None
    spans: list[Span | None] = []
    for span in prompt.offsets:
        held = "" if span is None else prompt.text[slice(*span)]
        start = (0 if span is None else span[0]) + len(held) - len(held.lstrip())
        spans.append((start, start + len(held.strip())) if held.strip() else None)
    # Pieces of one character each hold all of it: which of them stands for which nobody knows.
    often = {span for span, n in Counter(spans).items() if n > 1}
    return [None if span in often else span for span in spans]


def _array(pairs: Sequence[tuple[int, ...]]) -> Positions:
    return np.array(pairs, np.int64).reshape(-1, 2)
