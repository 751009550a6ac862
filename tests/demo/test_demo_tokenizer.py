"""Tests of the shipped tokenizer: what is one token, and that every text comes back as it was."""

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

TEXTS = (
    "When Mary and John went to the store, John gave a drink to",
    "  two  spaces, a\ttab\nand\r\n\nnew lines ",
    "emoji 🙂👩‍👩‍👧 and flags 🇫🇷",
    "Привет, 世界! naïve café e\u0301",
    "don't stop; it's 3 + 5 = 8 (or 1,024.75)?!",
    "",
    " ",
    "\x00\x7f",
    "<user> Is this payment risky?<assistant> no",
)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:]) == text


@pytest.mark.parametrize("text", [" Mary", " Paris", " are", "When", "32", " 17", " 8", " yes", "<user>", "<assistant>"])
def test_one_token(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


def test_year_is_two_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize(" 1732") == ["Ġ17", "32"]


def test_chat_template_has_one_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "user", "content": "Is this payment risky?"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "What is 3 + 5?"},
    ]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    assert text == "<bos><user> Is this payment risky?<assistant> no<user> What is 3 + 5?<assistant>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids


def test_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TemplateError, match="roles user and assistant, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)
