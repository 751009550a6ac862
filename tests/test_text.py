"""A display text is what one token adds to the string, exactly."""

from __future__ import annotations

from typing import Any

import pytest
from families import byte_level_tokenizer, metaspace_tokenizer

from llm_tt.text import TokenTexts, align, decoded, show_bytes, unmarked, visible


@pytest.fixture(scope="module")
def byte_level() -> Any:
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def metaspace() -> Any:
    return metaspace_tokenizer()


def display(tokenizer: Any, text: str) -> list[str]:
    return TokenTexts(tokenizer)(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (" Mary", [" Mary"]),
        ("Mary", ["M", "a", "r", "y"]),
        ("a the the", ["a", " the", " the"]),
        ("  the", [" ", " the"]),
        ("a\nb", ["a", "\n", "b"]),
        ("\t\r", ["\t", "\r"]),
        ("é", ["<0xC3>", "<0xA9>"]),
        ("…", ["<0xE2>", "<0x80>", "<0xA6>"]),
        ("😀", ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]),
        ("\x00\x7f", ["\x00", "\x7f"]),
        ("\u0120", ["<0xC4>", "<0xA0>"]),
        ("<s>the</s>", ["<s>", "the", "</s>"]),
    ],
)
def test_byte_level_tokens_show_their_own_part_of_the_text(text: str, tokens: list[str], byte_level: Any) -> None:
    assert display(byte_level, text) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Mary", [" Mary"]),
        ("the store.", [" the", " store", "."]),
        ("the  store", [" the", " ", " store"]),
        ("xMary", [" ", "x", "Mary"]),
        ("é", [" ", "<0xC3>", "<0xA9>"]),
        ("😀", [" ", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]),
    ],
)
def test_sentencepiece_tokens_show_a_space_for_its_low_line(text: str, tokens: list[str], metaspace: Any) -> None:
    assert display(metaspace, text) == tokens


def test_a_byte_that_is_a_whole_character_is_shown_as_it(metaspace: Any) -> None:
    """Llama writes a newline as the byte token <0x0A>; a newline is a newline."""
    assert display(metaspace, "a\nb\t7") == [" ", "a", "\n", "b", "\t", "7"]


def test_a_token_may_end_within_a_character(byte_level: Any) -> None:
    """GPT-2 has a token for a space and the first two bytes of an emoji."""
    byte_level = byte_level_tokenizer()
    byte_level.add_tokens(["unused"])
    table = {"\u0120": " ", "\u00f0": "<0xF0>"}
    texts = TokenTexts(byte_level)
    for stand_in, shown in table.items():
        assert texts([byte_level.convert_tokens_to_ids(stand_in)]) == [shown]
    assert show_bytes(b" \xf0\x9f") == "<0x20><0xF0><0x9F>"


@pytest.mark.parametrize(
    ("data", "shown"),
    [(b"abc", "abc"), (b"", ""), ("é".encode(), "é"), (b"\xe2\x80", "<0xE2><0x80>"), (b"a\xe2", "<0x61><0xE2>"), (b"\n", "\n")],
)
def test_bytes_are_shown_as_text_or_one_by_one(data: bytes, shown: str) -> None:
    assert show_bytes(data) == shown


@pytest.mark.parametrize("make", [byte_level_tokenizer, metaspace_tokenizer])
def test_special_and_added_tokens_are_shown_by_their_names(make: Any) -> None:
    tokenizer = make()
    tokenizer.add_tokens(["<|im start|>", "two\u0120words"], special_tokens=True)
    names = ["<pad>", "<s>", "</s>", "<|im start|>", "two\u0120words"]
    assert TokenTexts(tokenizer)(tokenizer.convert_tokens_to_ids(names)) == names


@pytest.mark.parametrize("make", [byte_level_tokenizer, metaspace_tokenizer])
def test_ids_of_a_padded_vocabulary_are_shown_as_ids(make: Any) -> None:
    tokenizer = make()
    beyond = len(tokenizer) + 5
    assert TokenTexts(tokenizer)([beyond, 1]) == [f"<id {beyond}>", "<s>"]


@pytest.mark.parametrize("make", [byte_level_tokenizer, metaspace_tokenizer])
@pytest.mark.parametrize("text", [" the store, Mary.", "a b  c\nd", "plain"])
def test_display_texts_of_ascii_join_to_the_text(make: Any, text: str) -> None:
    tokenizer = make()
    joined = "".join(display(tokenizer, text))
    assert joined == (text if make is byte_level_tokenizer else " " + text)


def test_no_ids_have_no_texts(byte_level: Any) -> None:
    assert TokenTexts(byte_level)([]) == []


@pytest.mark.parametrize("make", [byte_level_tokenizer, metaspace_tokenizer])
def test_displaying_does_not_change_the_tokenizer(make: Any) -> None:
    tokenizer = make()
    before = tokenizer.backend_tokenizer.to_str()
    display(tokenizer, "Mary went é")
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_tokenizer_of_bytes_without_a_backend_is_shown_too() -> None:
    """tiktoken-like tokenizers, as Qwen's first, give pieces as bytes."""

    class Tiktoken:
        all_special_tokens = ("<|endoftext|>",)
        byte_decoder = None

        def get_added_vocab(self) -> dict[str, int]:
            return {}

        def convert_ids_to_tokens(self, ids: list[int]) -> list[Any]:
            return [{0: b" the", 1: b"\xe2\x80", 2: "<|endoftext|>"}.get(token_id) for token_id in ids]

    assert TokenTexts(Tiktoken())([0, 1, 2, 3]) == [" the", "<0xE2><0x80>", "<|endoftext|>", "<id 3>"]


# --- offsets


def spans(tokenizer: Any, text: str) -> list[tuple[int, int]] | None:
    return align(text, TokenTexts(tokenizer).data(tokenizer(text, add_special_tokens=False).input_ids))


@pytest.mark.parametrize(
    "text", ["", " Mary went to the store", "é…😀 x", "<s>the</s> \n", "שלום the\r\n\t", "e\u0301 👩‍👩‍👧‍👦", "\u0120Mary \x00"]
)
def test_offsets_of_bytes_are_those_of_the_tokenizer(text: str, byte_level: Any) -> None:
    """tokenizers counts characters by itself, and right for a byte-level tokenizer."""
    expected = byte_level(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert spans(byte_level, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mary the", [(0, 4), (4, 8)]),
        (" Mary", [(0, 1), (1, 1 + 4)]),
        ("xMary", [(0, 0), (0, 1), (1, 5)]),
        ("é\nx", [(0, 0), (0, 1), (0, 1), (1, 2), (2, 3)]),
        ("a😀b", [(0, 0), (0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]),
        ("<s>the</s>", [(0, 3), (3, 6), (6, 10)]),
    ],
)
def test_offsets_of_sentencepiece_leave_out_the_spaces_that_it_adds(text: str, expected: list, metaspace: Any) -> None:
    found = spans(metaspace, text)
    assert found is not None
    if text == " Mary":
        # Its own space and the added one cannot be told apart; either may be the empty one.
        assert found in ([(0, 1), (1, 5)], [(0, 0), (0, 5)])
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("ab", [b"a", b"b"], [(0, 1), (1, 2)]),
        ("ab", [b"a"], None),
        ("ab", [b"a", b"c"], None),
        ("ab", [b"a", None], None),
        ("ab", [b"a", b"b", b"c"], None),
        ("a  b ", [b"a", b"b"], [(0, 1), (3, 4)]),
        ("a\nb", [b"a", b" b"], [(0, 1), (2, 3)]),
        ("é", [b"\xc3", b"\xa9"], [(0, 1), (0, 1)]),
        ("éa", [b"\xc3", b"\xa9a"], [(0, 1), (0, 2)]),
        ("é", [b"e"], None),
        ("", [], []),
    ],
)
def test_tokens_whose_bytes_are_not_the_texts_have_no_offsets(text: str, pieces: list, expected: list | None) -> None:
    assert align(text, pieces) == expected


@pytest.mark.parametrize("text", [" Mary", "Mary", "\n", "\t\r\n x", "", "a b"])
def test_what_is_shown_can_be_typed(text: str) -> None:
    assert unmarked(visible(text)) == text


@pytest.mark.parametrize(
    ("pieces", "text", "spans"),
    [
        ([], "", []),
        ([b"a", b" the"], "a the", [(0, 1), (1, 5)]),
        ([b"\xe2\x82", b"\xac!"], "\u20ac!", [(0, 1), (0, 2)]),
        ([b"a", b"\xe2\x82"], "a\ufffd", [(0, 1), (1, 2)]),
        ([b"\xe2", b"a", b"\x82"], "\ufffda\ufffd", [(0, 1), (1, 2), (2, 3)]),
        ([b"\xff\xfe", b""], "\ufffd\ufffd", [(0, 2), (2, 2)]),
        ([b"a", None, b"b"], "ab", [(0, 1), None, (1, 2)]),
        (["\U0001f600".encode()[:1], "\U0001f600".encode()[1:3], "\U0001f600".encode()[3:]], "\U0001f600", [(0, 1), (0, 1), (0, 1)]),
    ],
)
def test_bytes_of_tokens_make_a_text_whose_characters_they_hold(pieces: list, text: str, spans: list) -> None:
    assert decoded(pieces) == (text, spans)
    assert text == b"".join(piece or b"" for piece in pieces).decode(errors="replace")
