"""From a prompt to token ids: what is refused, and that nothing is added to what the user gave."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from families import N_CTX, N_VOCAB, token_ids

from llm_tt.errors import PromptError


@pytest.mark.parametrize("prompt", ["", " ", "\n\t  \n"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_empty_prompt_is_refused_with_an_example(prompt: str, name: str, model: Callable) -> None:
    with pytest.raises(PromptError, match=r"The prompt is empty\. Type some text, for example: "):
        model(name).trace(prompt)


def test_no_ids_are_refused(model: Callable) -> None:
    with pytest.raises(PromptError, match="The prompt has no tokens"):
        model("gpt2").trace([])


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model: Callable) -> None:
    llm = model("gpt2")
    assert llm.trace(token_ids(N_CTX)).n_tokens == N_CTX
    with pytest.raises(PromptError) as caught:
        llm.trace("x" * (N_CTX + 3))
    assert f"has {N_CTX + 3} tokens" in str(caught.value)
    assert f"reads at most {N_CTX}" in str(caught.value)
    assert "Shorten it by at least 3 tokens" in str(caught.value)
    assert llm.info.name in str(caught.value)


@pytest.mark.parametrize("strange", [N_VOCAB, -1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused_with_the_range(strange: int, model: Callable) -> None:
    with pytest.raises(PromptError, match=rf"Token id {strange} is outside the vocabulary of .*, which has ids 0 to {N_VOCAB - 1}\."):
        model("gpt2").trace([5, strange, 6])


def test_an_id_that_only_the_embedding_knows_is_traced(model: Callable) -> None:
    """Padded vocabularies: the embedding has more rows than the tokenizer has tokens."""
    trace = model("gpt2").trace([5, N_VOCAB - 1])
    assert trace.token_texts[1] == f"<id {N_VOCAB - 1}>"


@pytest.mark.parametrize("ids", [[5, 9, 7], (5, 9, 7), np.array([5, 9, 7]), torch.tensor([5, 9, 7])])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_ids_are_used_exactly_as_given(ids: object, name: str, model: Callable) -> None:
    trace = model(name).trace(ids)
    assert trace.token_ids == (5, 9, 7)
    assert all(type(token_id) is int for token_id in trace.token_ids)


def test_a_tokenizer_that_puts_a_bos_in_front_does_so_once(model: Callable) -> None:
    llm = model("llama")
    plain = llm.trace("the store")
    spelled_out = llm.trace("<s>the store")
    assert plain.token_texts[0] == spelled_out.token_texts[0] == "<s>"
    assert plain.token_ids.count(1) == spelled_out.token_ids.count(1) == 1


def test_a_tokenizer_without_bos_gets_none(model: Callable) -> None:
    """TransformerLens would force one."""
    assert model("gpt2").trace("the store").token_texts == ("the", " ", "s", "t", "o", "r", "e")
    assert model("gpt2").trace("<s>the").token_texts == ("<s>", "the")


def test_the_texts_of_a_trace_belong_to_its_ids(model: Callable) -> None:
    for name in ("gpt2", "llama"):
        llm = model(name)
        trace = llm.trace("Mary went to the store")
        assert list(trace.token_ids) == llm.encode("Mary went to the store")
        assert list(trace.token_texts) == llm.texts(trace.token_ids)
        assert len(trace.token_texts) == trace.n_tokens
