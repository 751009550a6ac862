"""Token ids to display text. Splitting text into ids belongs to the tokenizer; nothing here knows a model.

A display text is what one token adds to the string, exactly: " Mary" and "Mary" differ, a newline is a newline. A token that holds only
part of a UTF-8 character is shown by its bytes, as `<0xE2><0x80>`. Views pass it through `visible`, which draws spaces and newlines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_MARKS = {" ": "\u00b7", "\n": "\u23ce", "\r": "\u240d", "\t": "\u21e5"}
# A byte token of sentencepiece that is a character by itself.
_ASCII_BYTE = re.compile("<0x([0-7][0-9A-F])>")
_SENTENCEPIECE_SPACE = "\u2581"


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

    def _show(self, piece: str | None, token_id: int) -> str:
        if piece is None:
            return f"<id {token_id}>"
        if isinstance(piece, bytes):
            return show_bytes(piece)
        if piece in self._special:
            return piece
        if self._is_byte_level:
            table = _byte_of_character()
            if all(character in table for character in piece):
                return show_bytes(bytes(table[character] for character in piece))
        if byte := _ASCII_BYTE.fullmatch(piece):
            return chr(int(byte[1], 16))
        return piece.replace(_SENTENCEPIECE_SPACE, " ")


def _decodes_bytes(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    return "ByteLevel" in json.dumps(json.loads(backend.to_str()).get("decoder"))


def visible(text: str) -> str:
    """Token text for a table cell or a plot: spaces, newlines and tabs as marks, so that " Mary" and "Mary" differ."""
    return "".join(_MARKS.get(character, character) for character in text) or "\u2205"
