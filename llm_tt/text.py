"""Tokens and their place in a text: display texts, character offsets, and `Prompt`, what a model receives. Nothing here knows a model.

A display text is what one token adds to the string, exactly: " Mary" and "Mary" differ, a newline is a newline. A token that holds only
part of a UTF-8 character is shown by its bytes, as `<0xE2><0x80>`. Views pass it through `visible`, which draws spaces and newlines.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

MessageRole = Literal["system", "user", "assistant", "tool"]
Role = Literal["system", "user", "assistant", "tool", "special", "continuation"]
Span = tuple[int, int]
"""Characters [start, end) of a text"""

_MARKS = {" ": "\u00b7", "\n": "\u23ce", "\r": "\u240d", "\t": "\u21e5"}
# A byte token of sentencepiece.
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_SENTENCEPIECE_SPACE = "\u2581"


@dataclass(frozen=True)
class ChatMessage:
    """One turn of a conversation."""

    role: MessageRole
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a model receives, and where each token comes from."""

    text: str | None
    """the string that was tokenised, a chat after its template, and what a continuation adds to it; None for token ids, which were never a text"""
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    offsets: tuple[Span | None, ...]
    """characters of `text` that each token holds. None for a token that the tokenizer added by itself, and where it does not tell. Tokens that
    share a character each have all of it; a space that the tokenizer put in has the empty span where it stands"""
    roles: tuple[Role | None, ...]
    """whose message each token belongs to; "special" for what the chat template or the tokenizer wrote, "continuation" for what the model itself
    put out after the prompt. None for plain text"""
    no_roles: str | None = None
    """a sentence: why a chat has no roles"""
    n_generated: int = 0
    """how many tokens at the end are the continuation"""

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @classmethod
    def bare(cls, text: str | None, token_ids: Sequence[int], token_texts: Sequence[str]) -> Prompt:
        """Tokens of which neither place nor role is known."""
        unknown = (None,) * len(token_ids)
        return cls(text, tuple(token_ids), tuple(token_texts), unknown, unknown)

    def continued(self, token_ids: Sequence[int], token_texts: Sequence[str], data: Sequence[bytes | None]) -> Prompt:
        """These tokens, and after them those that a model put out, used exactly as they are. `data`: the bytes that each adds to the text."""
        text, offsets = decoded(data)
        before = len(self.text or "")
        return replace(
            self,
            text=None if self.text is None else self.text + text,
            token_ids=(*self.token_ids, *token_ids),
            token_texts=(*self.token_texts, *token_texts),
            offsets=(
                *self.offsets,
                *(None if self.text is None or span is None else (before + span[0], before + span[1]) for span in offsets),
            ),
            roles=(*self.roles, *(("continuation",) * len(token_ids))),
            n_generated=self.n_generated + len(token_ids),
        )


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table read backwards: printable stand-in character -> byte (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), ord("\u00ff") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + offset): byte for offset, byte in enumerate(others)})
    return table


def show_bytes(data: bytes) -> str:
    """UTF-8 as text; what is not valid UTF-8 by itself as `<0xE2>` for each byte of the piece."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in data)


class TokenTexts:
    """Display texts of a tokenizer's vocabulary. Reads the tokenizer, never changes it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special: frozenset[str] = frozenset(tokenizer.all_special_tokens) | frozenset(tokenizer.get_added_vocab())
        self._is_byte_level = _decodes_bytes(tokenizer)

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """One display text for each id; an id that the tokenizer lacks (a padded vocabulary) is shown as `<id 50301>`."""
        pieces = self._tokenizer.convert_ids_to_tokens(list(token_ids))
        return [self._show(piece, token_id) for piece, token_id in zip(pieces, token_ids, strict=True)]

    def data(self, token_ids: Sequence[int]) -> list[bytes | None]:
        """The bytes that each token stands for; None for an id that the tokenizer lacks."""
        pieces = self._tokenizer.convert_ids_to_tokens(list(token_ids))
        return [None if piece is None else self._data(piece) for piece in pieces]

    def _show(self, piece: str | bytes | None, token_id: int) -> str:
        if piece is None:
            return f"<id {token_id}>"
        if piece in self._special:
            return str(piece)
        return show_bytes(self._data(piece))

    def _data(self, piece: str | bytes) -> bytes:
        if isinstance(piece, bytes):
            return piece
        if piece in self._special:
            return piece.encode()
        if self._is_byte_level:
            table = _byte_of_character()
            if all(character in table for character in piece):
                return bytes(table[character] for character in piece)
        if byte := _BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace(_SENTENCEPIECE_SPACE, " ").encode()


def _decodes_bytes(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    return "ByteLevel" in json.dumps(json.loads(backend.to_str()).get("decoder"))


def align(text: str, pieces: Sequence[bytes | None]) -> list[Span] | None:
    """Where in the text each token's bytes lie, or None if they are not the text's: a tokenizer may normalise what it reads.

    A tokenizer may put spaces in front of words and leave white space out; nothing else.
    """
    data = text.encode()
    ends = list(accumulate(len(character.encode()) for character in text))
    place, spans = 0, []
    for piece in pieces:
        if piece is None:
            return None
        found = _place(data, place, piece)
        if found is None:
            return None
        start, place = found
        first = bisect_right(ends, start)
        spans.append((first, bisect_right(ends, place - 1) + 1 if place > start else first))
    return None if data[place:].strip() else spans


def decoded(pieces: Sequence[bytes | None]) -> tuple[str, list[Span | None]]:
    """The text that the bytes of tokens make together, and where in it each token's lie; None for a token without bytes.

    Bytes that are no UTF-8, as those of an unfinished character, are U+FFFD each time; tokens that share a character each have all of it.
    """
    data = b"".join(piece or b"" for piece in pieces)
    characters: list[str] = []
    ends: list[int] = []
    start = 0
    while start < len(data):
        try:
            valid, wrong = data[start:].decode(), 0
        except UnicodeDecodeError as error:
            valid, wrong = data[start : start + error.start].decode(), error.end - error.start
        for character in valid:
            start += len(character.encode())
            characters.append(character)
            ends.append(start)
        if wrong:
            start += wrong
            characters.append("\ufffd")
            ends.append(start)
    spans: list[Span | None] = []
    place = 0
    for piece in pieces:
        if piece is None:
            spans.append(None)
            continue
        first, place = bisect_right(ends, place), place + len(piece)
        spans.append((first, bisect_right(ends, place - 1) + 1 if piece else first))
    return "".join(characters), spans


def _place(data: bytes, start: int, piece: bytes) -> Span | None:
    """The bytes of a token at or after `start`, but for a space that the tokenizer put in and white space that it left out."""
    for candidate in (piece, piece.removeprefix(b" ")):
        if data.startswith(candidate, start):
            return start, start + len(candidate)
    for candidate in (piece, piece.removeprefix(b" ")):
        skipped = start
        while candidate and data[skipped : skipped + 1].isspace():
            skipped += 1
            if data.startswith(candidate, skipped):
                return skipped, skipped + len(candidate)
    return None


def visible(text: str) -> str:
    """Token text for a table cell or a plot: spaces, newlines and tabs as marks, so that " Mary" and "Mary" differ."""
    return "".join(_MARKS.get(character, character) for character in text) or "\u2205"


def unmarked(text: str) -> str:
    """The inverse of `visible`, for text that a person copied or typed as it is shown."""
    if text == "\u2205":
        return ""
    for character, mark in _MARKS.items():
        text = text.replace(mark, character)
    return text


def quoted(text: str) -> str:
    """Token text in a sentence: in quotes, and on one line."""
    return json.dumps(text, ensure_ascii=False)
