"""What a tokenizer adds to a text, how its tokens lie in it, and whose they are in a conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chat_templates import CONTENTS, TEMPLATES, Template
from families import byte_level_tokenizer, metaspace_tokenizer
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer

from llm_tt.errors import ModelError, PromptError
from llm_tt.models.info import TokenizerInfo
from llm_tt.models.prompts import PromptMaker
from llm_tt.text import ChatMessage, Role

BOS, EOS = 1, 2


def rule(single: str) -> Any:
    """A byte-level tokenizer with a rule such as `<s> $A </s>`."""
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return tokenizer


@pytest.mark.parametrize(
    ("single", "prefix", "suffix"),
    [
        ("$A", (), ()),
        ("<s> $A", ("<s>",), ()),
        ("$A </s>", (), ("</s>",)),
        ("<s> $A </s>", ("<s>",), ("</s>",)),
        ("</s> <s> $A", ("</s>", "<s>"), ()),
    ],
)
def test_what_a_tokenizer_adds_is_told_and_put_in_front_only(single: str, prefix: tuple, suffix: tuple) -> None:
    tokenizer = rule(single)
    maker = PromptMaker("m", tokenizer)
    info = maker.info()
    assert (info.prefix, info.suffix) == (prefix, suffix)
    ids = tokenizer("a the\n").input_ids
    assert maker.encode("a the\n") == ids[: len(ids) - len(suffix)]
    assert list(maker.of_text("a the\n").token_ids) == maker.encode("a the\n")


def test_the_facts_of_a_tokenizer() -> None:
    tokenizer = byte_level_tokenizer()
    assert PromptMaker("m", tokenizer).info() == TokenizerInfo(len(tokenizer), (), (), ("<s>", "</s>", "<pad>"), None)
    assert PromptMaker("m", tokenizer, "{{ 1 }}").info().chat_template == "config"
    tokenizer.chat_template = "{{ 1 }}"
    assert PromptMaker("m", tokenizer).info().chat_template == "checkpoint"
    assert PromptMaker("m", tokenizer, "{{ 2 }}").info().chat_template == "config"


@pytest.mark.parametrize(
    ("text", "n_bos"),
    [("the", 1), ("<s>the", 1), ("<s> the", 1), ("<s>", 1), ("<s><s>the", 2), ("the<s>", 2), ("\n<s>the", 2), ("< s>the", 1)],
)
@pytest.mark.parametrize(
    "make", [lambda: rule("<s> $A"), lambda: rule("<s> $A </s>"), metaspace_tokenizer], ids=["bos", "both", "metaspace"]
)
def test_bos_comes_once_unless_the_text_has_more(make: Callable, text: str, n_bos: int) -> None:
    token_ids = PromptMaker("m", make()).encode(text)
    assert token_ids[0] == BOS
    assert token_ids.count(BOS) == n_bos
    assert EOS not in token_ids


def test_a_bos_token_that_takes_the_space_beside_it_is_not_doubled() -> None:
    tokenizer = rule("<s> $A")
    tokenizer.add_tokens([AddedToken("<s>", lstrip=True, rstrip=True, special=True, normalized=False)], special_tokens=True)
    assert PromptMaker("m", tokenizer).encode("  <s> a").count(BOS) == 1


def test_a_tokenizer_that_has_a_bos_token_but_does_not_use_it_adds_none() -> None:
    tokenizer = byte_level_tokenizer()
    assert tokenizer.bos_token == "<s>"
    assert BOS not in PromptMaker("m", tokenizer).encode("the")


def test_nothing_is_cut_off_or_padded_by_what_the_tokenizer_was_saved_with() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    tokenizer.model_max_length = 4
    assert len(PromptMaker("m", tokenizer).encode("abcdefgh")) == 8


def test_a_tokenizer_whose_special_tokens_cannot_be_told_apart_is_refused() -> None:
    class Strange:
        all_special_tokens = ()

        def get_added_vocab(self) -> dict[str, int]:
            return {}

        def __call__(self, text: str, add_special_tokens: bool, **options: Any) -> Any:
            return type("Encoding", (), {"input_ids": [7, 8] if add_special_tokens else [9]})

    with pytest.raises(
        ModelError, match=r"The tokenizer of m makes other tokens of a text .* Use the tokenizer that the model was trained"
    ):
        PromptMaker("m", Strange())


# --- offsets


def test_a_tokenizer_in_python_has_offsets_too_and_loses_its_eos() -> None:
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    maker = PromptMaker("m", tokenizer)
    assert (maker.info().prefix, maker.info().suffix) == ((), ("</s>",))
    prompt = maker.of_text("the cat")
    assert prompt.token_texts == tuple("the cat")
    assert prompt.offsets == tuple((place, place + 1) for place in range(7))


def test_where_a_tokenizer_does_not_tell_there_are_no_offsets_and_no_roles() -> None:
    """ByT5's pieces beyond ASCII are not the bytes of their text."""
    tokenizer = ByT5Tokenizer()
    maker = PromptMaker("m", tokenizer, TEMPLATES["chatml"].jinja)
    assert set(maker.of_text("é").offsets) == {None}
    prompt = maker.of_chat([ChatMessage("user", "é")])
    assert set(prompt.roles) == set(prompt.offsets) == {None}
    assert (
        prompt.no_roles
        == "This model's tokenizer does not tell which characters its tokens hold, so that they cannot be given to messages."
    )


def test_a_tokenizer_that_normalises_has_the_offsets_it_tells() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    prompt = PromptMaker("m", tokenizer).of_text("ae\u0301b")
    assert prompt.token_texts == ("a", "<0xC3>", "<0xA9>", "b")
    # Of characters that it joins, tokenizers tells the first.
    assert prompt.offsets == ((0, 1), (1, 2), (1, 2), (3, 4))


def test_a_word_has_its_space_where_the_tokenizer_leaves_it_out() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert tokenizer("A THE", return_offsets_mapping=True).offset_mapping == [(0, 1), (2, 5)]
    assert PromptMaker("m", tokenizer).of_text("A THE").offsets == ((0, 1), (1, 5))


# --- roles


def expected_roles(template: Template, messages: list[ChatMessage], offsets: list[tuple[int, int]]) -> list[Role]:
    """By hand: the template's pieces laid out, and each token the role of its last character that is not white space, if it has one."""
    pieces = template.expected(messages)
    text = "".join(piece for _, piece in pieces)
    owners = [index for index, piece in pieces for _ in piece]
    result: list[Role] = []
    for start, end in offsets:
        solid = [place for place in range(start, end) if not text[place].isspace()] or [*range(start, end)]
        given = [owners[place] for place in solid if owners[place] is not None]
        result.append("special" if not given else messages[given[-1]].role)
    return result


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_token_has_the_role_of_its_message(name: str, content: str) -> None:
    template = TEMPLATES[name]
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(list(template.special), special_tokens=True)
    maker = PromptMaker("m", tokenizer, template.jinja)
    first = [ChatMessage("system", content)] if template.takes_system else []
    messages = [*first, ChatMessage("user", content), ChatMessage("assistant", "Yes."), ChatMessage("user", content + "Mary")]
    prompt = maker.of_chat(messages)
    assert prompt.text is not None
    offsets = tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert list(prompt.offsets) == offsets
    assert prompt.no_roles is None
    assert list(prompt.roles) == expected_roles(template, messages, offsets)


def test_a_conversation_token_by_token() -> None:
    template = TEMPLATES["chatml"]
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(list(template.special), special_tokens=True)
    prompt = PromptMaker("m", tokenizer, template.jinja).of_chat([ChatMessage("system", "a"), ChatMessage("user", "the<|im_end|>")])
    turn = [("<|im_start|>", "special")]
    assert list(zip(prompt.token_texts, prompt.roles, strict=True)) == [
        *turn, *((letter, "special") for letter in "system\n"), ("a", "system"), ("<|im_end|>", "special"), ("\n", "special"),
        *turn, *((letter, "special") for letter in "user\n"), ("the", "user"), ("<|im_end|>", "user"), ("<|im_end|>", "special"), ("\n", "special"),
        *turn, *((letter, "special") for letter in "assistant\n"),
    ]  # fmt: skip


def test_a_special_token_that_takes_the_space_of_a_message_stays_special() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken("<U>", rstrip=True, special=True, normalized=False)], special_tokens=True)
    prompt = PromptMaker("m", tokenizer, "{{ '<U>' + messages[0].content }}").of_chat([ChatMessage("user", "  the")])
    assert list(zip(prompt.token_texts, prompt.roles, strict=True)) == [("<U>", "special"), ("the", "user")]


def test_so_does_one_whose_offsets_hold_that_space() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken("<U>", rstrip=True, special=True, normalized=False)], special_tokens=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    prompt = PromptMaker("m", tokenizer, "{{ '<U>' + messages[0].content }}").of_chat([ChatMessage("user", "  e\u0301")])
    assert prompt.offsets[0] == (0, 5)
    assert list(zip(prompt.token_texts, prompt.roles, strict=True)) == [("<U>", "special"), ("<0xC3>", "user"), ("<0xA9>", "user")]


def test_a_space_of_the_template_goes_with_the_word() -> None:
    prompt = PromptMaker("m", byte_level_tokenizer(), "{{ 'x ' + messages[0].content }}").of_chat([ChatMessage("user", "Mary")])
    assert list(zip(prompt.token_texts, prompt.roles, strict=True)) == [("x", "special"), (" Mary", "user")]


def test_a_token_of_two_messages_has_no_role() -> None:
    template = "{{ messages[0].content + messages[1].content }}"
    maker = PromptMaker("m", byte_level_tokenizer(), template)
    prompt = maker.of_chat([ChatMessage("system", "t"), ChatMessage("user", "hex")])
    assert list(zip(prompt.token_texts, prompt.roles, strict=True)) == [("the", None), ("x", "user")]


def test_a_prefix_that_the_tokenizer_added_is_special_in_plain_text() -> None:
    prompt = PromptMaker("m", metaspace_tokenizer()).of_text("the")
    assert (prompt.offsets, prompt.roles) == ((None, (0, 3)), ("special", None))
    spelled_out = PromptMaker("m", metaspace_tokenizer()).of_text("<s>the")
    assert (spelled_out.offsets, spelled_out.roles) == (((0, 3), (3, 6)), (None, None))


def test_a_template_without_bos_gets_none() -> None:
    maker = PromptMaker("m", metaspace_tokenizer(), TEMPLATES["chatml"].jinja)
    assert maker.info().prefix == ("<s>",)
    assert BOS not in maker.of_chat([ChatMessage("user", "the")]).token_ids


@pytest.mark.parametrize("name", ["llama2", "llama3", "gemma", "mistral"])
def test_a_template_with_bos_has_it_once(name: str) -> None:
    token_ids = PromptMaker("m", metaspace_tokenizer(), TEMPLATES[name].jinja).of_chat([ChatMessage("user", "the")]).token_ids
    assert token_ids.count(BOS) == 1
    assert token_ids[0] == BOS


def test_a_conversation_without_a_template_is_refused_with_what_to_do() -> None:
    with pytest.raises(PromptError) as caught:
        PromptMaker("gpt2", byte_level_tokenizer()).of_chat([ChatMessage("user", "the")])
    assert str(caught.value) == (
        'gpt2 has no chat template. Type plain text, or set "chat_template" for it in the configuration to a file with the template that it was '
        "trained with."
    )


def test_what_is_not_unicode_is_refused() -> None:
    maker = PromptMaker("m", byte_level_tokenizer(), TEMPLATES["chatml"].jinja)
    with pytest.raises(PromptError, match=r"The prompt is not UTF-8 text \(character 1\)\. Convert it to UTF-8\."):
        maker.of_text("a\ud800")
    with pytest.raises(PromptError, match=r"Message 0 of the conversation is not UTF-8 text \(character 1\)\. Convert it to UTF-8\."):
        maker.of_chat([ChatMessage("user", "a\ud800")])
