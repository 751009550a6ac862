"""The token that a user means: an id, or a text that must be one token of the vocabulary exactly."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from llm_tt.errors import RequestError
from llm_tt.models.transparent_llm import TransparentLlm
from llm_tt.text import unmarked

_lock = threading.Lock()
_ids_by_text: WeakKeyDictionary[TransparentLlm, dict[str, int]] = WeakKeyDictionary()


def find_token(model: TransparentLlm, token: int | str) -> int:
    """The id of a token.

    Args:
        token: an id, or a display text, exactly: " Mary" and "Mary" differ. It may be typed as views show it, "·Mary".

    Raises:
        RequestError: no such id, or the text is no token; the sentence names the tokens that it consists of.
    """
    info = model.info
    if not isinstance(token, str):
        if not 0 <= token < info.d_vocab:
            raise RequestError(f"There is no token {token}: the vocabulary of {info.name} has ids 0 to {info.d_vocab - 1}.")
        return int(token)
    if not token:
        raise RequestError('No token is named. Type its text, with the space in front if it has one, for example " the".')
    try:
        token.encode()
    except UnicodeEncodeError as error:
        raise RequestError("The token that was typed is not UTF-8 text. Type it again.") from error
    ids = _vocabulary(model)
    if token not in ids and unmarked(token) in ids:
        token = unmarked(token)
    if token not in ids:
        raise RequestError(_not_one(model, token, ids))
    # A few vocabularies show two tokens alike; the one that the tokenizer would use is meant.
    return next((token_id for token_id in model.encode(token) if model.texts([token_id]) == [token]), ids[token])


def _vocabulary(model: TransparentLlm) -> dict[str, int]:
    with _lock:
        if model not in _ids_by_text:
            texts = model.texts(range(model.info.d_vocab))
            _ids_by_text[model] = {text: token_id for token_id, text in reversed(list(enumerate(texts)))}
        return _ids_by_text[model]


def _not_one(model: TransparentLlm, text: str, ids: dict[str, int]) -> str:
    near = next((other for other in (f" {text}", text.strip()) if other in ids), None)
    if near is not None:
        return f'"{text}" is not a token of {model.info.name}, but "{near}" is: spaces belong to tokens. Type that.'
    pieces = _without_added(model.texts(model.encode(text)), text)
    shown = ", ".join(f'"{piece}"' for piece in pieces)
    if len(pieces) == 1:
        return f'"{text}" is not a token of {model.info.name}, which reads it as {shown}. Type that.'
    return f'"{text}" is not one token of {model.info.name} but {len(pieces)}: {shown}. Type one of them.'


def _without_added(pieces: list[str], text: str) -> list[str]:
    """The tokens that hold the text, without what the tokenizer puts around it; all of them where that cannot be told."""
    for start in range(len(pieces)):
        for end in range(len(pieces), start, -1):
            if "".join(pieces[start:end]).strip() == text.strip():
                return pieces[start:end]
    return pieces
