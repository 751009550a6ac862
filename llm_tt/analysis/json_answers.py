"""JSON in what a model wrote: found, parsed strictly, and checked against a JSON schema (draft 2020-12). Nothing is guessed. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from llm_tt.errors import RequestError

_MOST = 200
"""Letters of a validator's message that are kept"""


def schema_for(field: str, words: Sequence[str]) -> str:
    """A JSON schema of an object whose one field is one of the words."""
    properties = {field: {"enum": list(words)}}
    return json.dumps({"type": "object", "properties": properties, "required": [field], "additionalProperties": False}, ensure_ascii=False)


def require_schema(schema: str, field: str) -> None:
    """
    Raises:
        RequestError: the text is no JSON schema, it names a schema elsewhere, or an object that fits it has no such field.
    """
    _validator(schema)
    content = json.loads(schema)
    properties = content.get("properties") if isinstance(content, dict) else None
    if isinstance(properties, dict) and field not in properties:
        raise RequestError(
            f'The JSON schema has no property "{field}", which is to hold the label. Its properties: {", ".join(properties)}.'
        )


@lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry

    try:
        content = json.loads(schema)
    except json.JSONDecodeError as error:
        raise RequestError(f"The JSON schema is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    for reference in _references(content):
        if not reference.startswith("#"):
            raise RequestError(f'The JSON schema refers to "{reference}", which is not in it. Put what it refers to into "$defs".')
    try:
        Draft202012Validator.check_schema(content)
    except SchemaError as error:
        raise RequestError(f"The JSON schema is not valid: {_short(error.message)}.") from error
    # A registry of its own: the default one would ask the network for what it does not know.
    return Draft202012Validator(content, registry=Registry())


def _references(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            if name in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            yield from _references(value)
    elif isinstance(content, list):
        for value in content:
            yield from _references(value)


def json_answer(text: str, schema: str | None = None) -> tuple[dict[str, Any] | None, str | None]:
    """The JSON object that a text holds, words around it allowed, or why there is none: it is broken, a second one follows, it does not fit."""
    start = text.find("{")
    if start < 0:
        return None, "The text holds no JSON object."
    try:
        content, length = _DECODER.raw_decode(text[start:])
    except json.JSONDecodeError as error:
        return None, f"The JSON object is not valid: {error.msg}."
    except _NotStrictError as error:
        return None, f"The JSON object is not valid: {error}."
    except RecursionError:
        return None, "The JSON object is nested too deeply."
    if _holds_object(text[start + length :]):
        return None, "The text holds several JSON objects."
    if schema is not None:
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        try:
            error = best_match(_validator(schema).iter_errors(content))
        except (Unresolvable, RecursionError) as failure:
            raise RequestError(f"The JSON schema cannot be followed: {_short(str(failure))}. Check what its $ref refer to.") from failure
        if error is not None:
            return None, f"The JSON object does not fit the schema: {_short(error.message)}."
    return content, None


def _holds_object(text: str) -> bool:
    start = text.find("{")
    while start >= 0:
        try:
            _DECODER.raw_decode(text[start:])
            return True
        except (json.JSONDecodeError, _NotStrictError, RecursionError):
            start = text.find("{", start + 1)
    return False


class _NotStrictError(ValueError):
    """Python's parser would take it, JSON's grammar or common sense would not."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise _NotStrictError(f'"{name}" is there twice')
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise _NotStrictError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _short(message: str) -> str:
    line = " ".join(message.split()).rstrip(".")
    return line if len(line) <= _MOST else line[: _MOST - 1] + "…"
