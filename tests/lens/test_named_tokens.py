"""The token that a person means: one rule for the library, the command line and the app; what is no token is explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from affine import AffineLlm
from families import N_VOCAB

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.lens.named_tokens import find_token
from llm_tt.models.transparent_llm import TransparentLlm

N_TOKENS = 9


class Spelled(AffineLlm):
    """A vocabulary that is written down; encodes by the longest piece, with a start token in front."""

    vocabulary = ("<s>", " Mary", "Ma", "ry", " ", "x", "x", "\n", " to", "to")

    def __init__(self) -> None:
        super().__init__(torch.eye(len(self.vocabulary)))

    def texts(self, token_ids: Any) -> list[str]:
        return [self.vocabulary[token_id] for token_id in token_ids]

    def encode(self, text: str) -> list[int]:
        ids = [0]
        while text:
            # Of two that look alike the tokenizer uses the later one.
            piece = max(
                range(len(self.vocabulary)),
                key=lambda index: (text.startswith(self.vocabulary[index]) * len(self.vocabulary[index]), index),
            )
            ids.append(piece)
            text = text[len(self.vocabulary[piece]) :]
        return ids


@pytest.mark.parametrize(
    ("token", "found"),
    [
        (" Mary", 1),
        ("Ma", 2),
        ("\n", 7),
        (" ", 4),
        ("<s>", 0),
        ("x", 6),
        (0, 0),
        (7, 7),
        (np.int64(3), 3),
        ("·Mary", 1),
        ("⏎", 7),
        ("id:3", 3),
        (" to", 8),
    ],
)
def test_a_token_is_found_by_its_exact_text_or_number(token: Any, found: int) -> None:
    assert find_token(Spelled(), token) == (found, None)


@pytest.mark.parametrize(
    ("token", "found", "note"),
    [
        ("Mary", 1, '" Mary", with a space in front, was taken: "Mary" alone is not a token.'),
        (" Ma", 2, '"Ma", without the spaces around it, was taken: " Ma" is not a token.'),
        ("·Ma", 2, '"Ma", without the spaces around it, was taken: " Ma" is not a token.'),
        ("to", 9, '"to" was taken as it stands; " to", with a space in front, is another token.'),
    ],
)
def test_what_was_not_plain_is_told(token: str, found: int, note: str) -> None:
    assert find_token(Spelled(), token) == (found, note)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("Maryx", '"Maryx" is 3 tokens: "Ma", "ry", "x". Name a single one, by its text or, as in id:42, by its number.'),
        ("·Mary·Mary", '" Mary Mary" is 2 tokens: " Mary", " Mary". Name a single one, by its text or, as in id:42, by its number.'),
        ("", 'The text of a token is empty. Write its text, as in " Mary", or its number, as in id:42.'),
        (10, "Token id 10 does not exist: the vocabulary of affine has ids 0 to 9."),
        ("id:10", "Token id 10 does not exist: the vocabulary of affine has ids 0 to 9."),
        (-1, "Token id -1 does not exist: the vocabulary of affine has ids 0 to 9."),
        ("\ud800", "The token that was typed is not UTF-8 text. Type it again."),
    ],
)
def test_what_is_no_token_gets_a_sentence_with_its_pieces(token: int | str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        find_token(Spelled(), token)
    assert str(error.value) == message


def test_a_text_that_the_tokenizer_reads_as_another_token() -> None:
    class Lowered(Spelled):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.replace("X", "x"))[1:]

    with pytest.raises(RequestError) as error:
        find_token(Lowered(), "X")
    assert str(error.value) == '"X" is not a token of affine, which reads it as "x". Name that, or a token\'s number, as in id:42.'


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "mistral", "phi3"])
def test_every_token_of_a_prompt_is_found_by_its_text(name: str, model: Callable) -> None:
    """Whatever the tokenizer does with spaces in front of words."""
    llm: TransparentLlm = model(name)
    token_ids = llm.encode("the store Mary")
    for token_id, text in zip(token_ids[1:], llm.texts(token_ids)[1:], strict=True):
        assert find_token(llm, text)[0] == token_id


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_every_token_of_a_real_tokenizer_is_found_by_its_text(name: str, model: Callable) -> None:
    llm = model(name)
    texts = llm.texts(range(N_VOCAB))
    for token_id, text in enumerate(texts):
        found, _ = find_token(llm, text)
        assert texts[found] == text
        assert found == token_id or texts.count(text) > 1


def test_the_demo_models_tokens_with_and_without_a_space() -> None:
    llm = llm_tt.load_model("demo")
    (spaced,), (bare,) = llm.encode(" Mary")[1:], llm.encode("Mary")[1:]
    assert find_token(llm, " Mary") == (spaced, None)
    assert find_token(llm, "Mary") == (bare, '"Mary" was taken as it stands; " Mary", with a space in front, is another token.')
    assert find_token(llm, "<bos>")[0] == llm.encode("<bos>")[0]


def test_all_that_take_tokens_read_them_alike_and_tell_the_same(trace: Callable) -> None:
    traced: llm_tt.Trace = trace("gpt2", N_TOKENS)
    (spaced,) = traced.model.encode(" Mary")
    note = '" Mary", with a space in front, was taken: "Mary" alone is not a token.'
    assert find_token(traced.model, "Mary") == (spaced, note)
    effects = llm_tt.direct_effects(traced, token="Mary")
    assert (effects.token_id, effects.notes) == (spaced, (note,))
    grid = llm_tt.lens_grid(traced, token="Mary")
    assert (grid.chosen, grid.note) == (spaced, note)
    lines = llm_tt.token_trajectories(traced, tokens=["Mary", f"id:{spaced}", "·Mary"])
    assert (lines.token_ids, lines.notes) == ((spaced,), (note,))
    assert lines.to_dict()["notes"] == [note]
    assert llm_tt.lens_grid(traced, token=f"id:{spaced}").note is None
