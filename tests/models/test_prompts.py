"""From a prompt to token ids: what is refused, and that nothing is added to what the user gave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_templates import CHATML
from families import N_CTX, N_VOCAB, token_ids

import llm_tt
from llm_tt.config import ModelSpec, load_config
from llm_tt.errors import ModelError, PromptError


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


# --- conversations


@pytest.fixture(scope="module")
def with_template(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> llm_tt.TransparentLlm:
    """A checkpoint without a chat template, given one by a configuration file."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "chat.jinja").write_text(CHATML.jinja, encoding="utf-8")
    config = {"models": {"mine": {"path": str(checkpoint("gpt2")), "chat_template": "chat.jinja"}}}
    (folder / "config.json").write_text(json.dumps(config))
    return llm_tt.load_model(load_config(folder / "config.json").models["mine"])


MESSAGES = [{"role": "user", "content": "the store"}]
RENDERED = "<|im_start|>user\nthe store<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_of_the_configuration_is_used(with_template: llm_tt.TransparentLlm) -> None:
    assert with_template.info.tokenizer is not None
    assert with_template.info.tokenizer.chat_template == "config"
    trace = with_template.trace(MESSAGES)
    assert trace.prompt.text == RENDERED
    assert list(trace.token_ids) == with_template.encode(RENDERED) == with_template.token_ids(MESSAGES)
    assert trace.prompt == with_template.prompt([llm_tt.ChatMessage("user", "the store")])
    assert "".join(text for text, role in zip(trace.token_texts, trace.prompt.roles, strict=True) if role == "user") == "the store"
    assert trace.logits(-1) == pytest.approx(with_template.trace(RENDERED).logits(-1), abs=1e-6)


def test_a_model_without_a_template_refuses_a_conversation(model: Callable) -> None:
    assert model("gpt2").info.tokenizer.chat_template is None
    with pytest.raises(PromptError, match="has no chat template"):
        model("gpt2").trace(MESSAGES)


def test_a_conversation_longer_than_the_context_is_refused_with_both_numbers(with_template: llm_tt.TransparentLlm) -> None:
    with pytest.raises(PromptError, match=rf"has {N_CTX + 5 + len(RENDERED) - len('the store')} tokens, but mine reads at most {N_CTX}\."):
        with_template.trace([{"role": "user", "content": "x" * (N_CTX + 5)}])


@pytest.mark.parametrize("message", [MESSAGES[0], llm_tt.ChatMessage("user", "the store")])
def test_a_message_alone_is_no_conversation(message: object, with_template: llm_tt.TransparentLlm) -> None:
    with pytest.raises(PromptError, match=r"A conversation is a list of messages\. Put the message into a list\."):
        with_template.trace(message)  # type: ignore[arg-type]


def test_ids_were_never_a_text(model: Callable) -> None:
    prompt = model("llama").prompt([5, 9])
    assert prompt.text is None
    assert prompt.offsets == prompt.roles == (None, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r'does not exist\. Check "chat_template" in the configuration\.'),
        (b"\xff{{ 1 }}", r"is not UTF-8 text \(byte 0\)\. Save it as UTF-8\."),
        (b" \n", r'is empty\. Put a Jinja template into it, or remove "chat_template" from the configuration\.'),
        (b"{{ 1 }}\n{% if %}", r"is not valid Jinja: line 2: Expected an expression, got 'end of statement block'\. Mend it there\."),
    ],
)
def test_a_template_file_that_cannot_be_used_is_refused_when_the_model_is_loaded(
    content: bytes | None, reason: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "chat.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=rf'Chat template "{file}" of "mine" {reason}'):
        llm_tt.load_model(ModelSpec(name="mine", path=str(checkpoint("gpt2")), chat_template=str(file)))


def test_a_folder_is_no_template(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be read: Is a directory\."):
        llm_tt.load_model(ModelSpec(name="mine", path=str(checkpoint("gpt2")), chat_template=str(tmp_path)))
