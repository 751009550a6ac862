"""Tokens that stand for each other, found by ids and by characters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llm_tt.analysis.alignment import ABSENT, columns, differing, paired, paired_by_characters, with_pair
from llm_tt.text import Prompt, Span


def prompt(text: str, tokens: list[str], prefix: str | None = None) -> Prompt:
    """The text cut into these tokens, which are all of it; `prefix` is a token that the tokenizer put in front."""
    assert "".join(tokens) == text
    spans: list[Span | None] = []
    place = 0
    for token in tokens:
        spans.append((place, place + len(token)))
        place += len(token)
    if prefix is not None:
        tokens, spans = [prefix, *tokens], [None, *spans]
    bare = Prompt.bare(text, list(range(len(tokens))), tokens)
    return replace(bare, offsets=tuple(spans))


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ([1, 2, 3], [1, 2, 3], [[0, 0], [1, 1], [2, 2]]),
        ([1, 2, 3], [1, 9, 3], [[0, 0], [1, 1], [2, 2]]),
        ([1, 2, 3], [1, 3], [[0, 0], [2, 1]]),
        ([1, 3], [1, 8, 9, 3], [[0, 0], [1, 3]]),
        ([1, 2], [3], []),
    ],
)
def test_tokens_of_one_tokenizer_are_paired_by_id(first: list[int], second: list[int], pairs: list[list[int]]) -> None:
    assert paired(first, second).tolist() == pairs


def test_tokens_of_two_tokenizers_are_paired_by_their_letters() -> None:
    text = "The unhappy cat sat."
    one = prompt(text, ["The", " un", "happy", " cat", " sat", "."], "<s>")
    other = prompt(text, ["The ", "unhappy", " ", "c", "at ", "sat", "."], "<bos>")
    # "unhappy" is two tokens here and one there, "cat" the other way round; spaces are on other sides of the words.
    pairs = paired_by_characters(one, other)
    assert pairs is not None
    assert [(one.token_texts[first].strip(), other.token_texts[second].strip()) for first, second in pairs.tolist()] == [
        ("<s>", "<bos>"),
        ("The", "The"),
        ("sat", "sat"),
        (".", "."),
    ]
    assert pairs.tolist() == [[0, 0], [1, 1], [5, 6], [6, 7]]


def test_texts_of_two_templates_are_laid_over_each_other_word_by_word() -> None:
    one = prompt("<user> pay Lima now<assistant>", ["<user>", " pay", " Lima", " now", "<assistant>"])
    other = prompt("[INST]pay Lima now[/INST]", ["[INST]", "pay", " Lima", " now", "[/INST]"])
    pairs = paired_by_characters(one, other)
    assert pairs is not None
    assert pairs.tolist() == [[1, 1], [2, 2], [3, 3]]
    # A token that runs over the end of what both have is nobody's partner.
    wider = prompt("[INST]pay Lima now[/INST]", ["[INST]pay", " Lima now[", "/INST]"])
    found = paired_by_characters(one, wider)
    assert found is not None
    assert found.tolist() == []


def test_a_word_of_the_same_length_in_between_is_another_word() -> None:
    pairs = paired_by_characters(prompt("a cat ran", ["a cat ran"]), prompt("a dog ran", ["a dog ran"]))
    assert pairs is not None
    assert pairs.tolist() == []


def test_pieces_of_one_character_are_nobodys_partners() -> None:
    whole, pieces = prompt("aé", ["a", "é"]), prompt("aé", ["a", "é"])
    pieces = replace(
        pieces, token_ids=(1, 2, 3), token_texts=("a", "<0xC3>", "<0xA9>"), offsets=((0, 1), (1, 2), (1, 2)), roles=(None,) * 3
    )
    for pairs in (paired_by_characters(whole, pieces), paired_by_characters(pieces, whole)):
        assert pairs is not None
        assert pairs.tolist() == [[0, 0]]


def test_tokens_whose_place_is_not_known_cannot_be_paired() -> None:
    known = prompt("a b", ["a", " b"])
    assert paired_by_characters(known, Prompt.bare(None, [1, 2], ["a", " b"])) is None
    assert paired_by_characters(Prompt.bare("a b", [1, 2], ["a", " b"]), known) is None


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((2, 2), [[0, 0], [1, 1], [2, 2]]),
        ((2, 1), [[0, 0], [2, 1]]),
        ((0, 2), [[0, 2]]),
        ((3, 3), [[0, 0], [1, 1], [2, 2], [3, 3]]),
    ],
)
def test_a_pair_takes_the_place_of_those_that_cross_it(pair: tuple[int, int], expected: list[list[int]]) -> None:
    assert with_pair(np.array([[0, 0], [1, 1], [2, 2]]), *pair).tolist() == expected


def test_columns_have_every_token_once_and_in_order() -> None:
    assert columns(np.array([[0, 0], [2, 1], [3, 4]]), 5, 6).tolist() == [
        [0, 0],
        [1, ABSENT],
        [2, 1],
        [ABSENT, 2],
        [ABSENT, 3],
        [3, 4],
        [4, ABSENT],
        [ABSENT, 5],
    ]
    assert columns(np.zeros((0, 2), np.int64), 1, 1).tolist() == [[0, ABSENT], [ABSENT, 0]]


def test_tokens_that_the_other_lacks_are_marked() -> None:
    assert differing(["a", "b", "c"], ["a", "x", "y", "c"]) == ([False, True, False], [False, True, True, False])
    assert differing(["a"], ["a"]) == ([False], [False])
    assert differing([], ["a"]) == ([], [True])
