"""The token that a person means: its number, or a text that is one token of the vocabulary, read by the same rules wherever it is typed."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from llm_tt.errors import RequestError
from llm_tt.lens.direct_effects import Token
from llm_tt.models.transparent_llm import TransparentLlm
from llm_tt.text import quoted, unmarked

_ID = "id:"
_lock = threading.Lock()
_ids_by_text: WeakKeyDictionary[TransparentLlm, dict[str, int]] = WeakKeyDictionary()


def find_token(model: TransparentLlm, token: Token) -> tuple[int, str | None]:
    """The id of a token, and a sentence on how its text was read where that is not plain.

    A text is looked for as it stands; as views show it ("·Mary" for " Mary"); with a space in front; and without the spaces around it. The last two
    are told, and so is that a text as it stands was taken where the same with a space in front is a token as well.

    Args:
        token: an id; "id:" and its number; or its text.

    Raises:
        RequestError: no such id, or the text is no single token; the sentence names the tokens that it consists of.
    """
    if not isinstance(token, str):
        return _existing(model, int(token)), None
    if not token:
        raise RequestError('The text of a token is empty. Write its text, as in " Mary", or its number, as in id:42.')
    number = token.removeprefix(_ID)
    if token.startswith(_ID) and number.isdecimal() and number.isascii():
        return _existing(model, int(number)), None
    try:
        token.encode()
    except UnicodeEncodeError as error:
        raise RequestError("The token that was typed is not UTF-8 text. Type it again.") from error
    ids = _vocabulary(model)
    text = token if token in ids else unmarked(token)
    spaced, bare = f" {text}", text.strip()
    if text in ids:
        if text.startswith(" ") or spaced not in ids:
            return _used(model, text, ids), None
        return _used(model, text, ids), f"{quoted(text)} was taken as it stands; {quoted(spaced)}, with a space in front, is another token."
    if spaced in ids:
        return _used(model, spaced, ids), f"{quoted(spaced)}, with a space in front, was taken: {quoted(text)} alone is not a token."
    if bare in ids:
        return _used(model, bare, ids), f"{quoted(bare)}, without the spaces around it, was taken: {quoted(text)} is not a token."
    raise RequestError(_not_one(model, text))


def _existing(model: TransparentLlm, token_id: int) -> int:
    if not 0 <= token_id < model.info.d_vocab:
        raise RequestError(
            f"Token id {token_id} does not exist: the vocabulary of {model.info.name} has ids 0 to {model.info.d_vocab - 1}."
        )
    return token_id


def _used(model: TransparentLlm, text: str, ids: dict[str, int]) -> int:
    """Some vocabularies show two tokens alike; the one that the tokenizer would use is meant."""
    # Tokenizers of the sentencepiece kind put the space in front themselves.
    for candidate in (text, text.removeprefix(" ")):
        for token_id in model.encode(candidate) if candidate else []:
            if model.texts([token_id]) == [text]:
                return token_id
    return ids[text]


def _vocabulary(model: TransparentLlm) -> dict[str, int]:
    with _lock:
        if model not in _ids_by_text:
            texts = model.texts(range(model.info.d_vocab))
            _ids_by_text[model] = {text: token_id for token_id, text in reversed(list(enumerate(texts)))}
        return _ids_by_text[model]


def _not_one(model: TransparentLlm, text: str) -> str:
    pieces = _without_added(model.texts(model.encode(text)), text)
    shown = ", ".join(map(quoted, pieces))
    if len(pieces) == 1:
        return (
            f"{quoted(text)} is not a token of {model.info.name}, which reads it as {shown}. Name that, or a token's number, as in id:42."
        )
    return f"{quoted(text)} is {len(pieces)} tokens: {shown}. Name a single one, by its text or, as in id:42, by its number."


def _without_added(pieces: list[str], text: str) -> list[str]:
    """The tokens that hold the text, without what the tokenizer puts around it; all of them where that cannot be told."""
    for start in range(len(pieces)):
        for end in range(len(pieces), start, -1):
            if "".join(pieces[start:end]).strip() == text.strip():
                return pieces[start:end]
    return pieces
