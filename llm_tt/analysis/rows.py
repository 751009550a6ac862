"""Rows of a data set: read from files of several formats, turned into prompts by a template. Every row that cannot be used keeps its number and
a sentence; the others are used. Free of torch."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llm_tt.errors import RequestError
from llm_tt.text import ChatMessage

MAX_NAMED = 5
"""Problems that a summary spells out"""


@dataclass(frozen=True)
class Row:
    """One row of a data set."""

    number: int
    """as a person counts it: the line of a JSONL file; else the row, the header left out; both from 1"""
    values: Mapping[str, Any]

    def text(self, column: str) -> str:
        """A column's value as text; an empty text where the row lacks it."""
        value = self.values.get(column)
        return "" if value is None else value if isinstance(value, str) else _plain(value)


@dataclass(frozen=True)
class Problem:
    """Why a row is left out, as a sentence that names its number."""

    number: int
    sentence: str


@dataclass(frozen=True)
class DataSet:
    """Rows in order, and what could not be read."""

    name: str
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All that any row has, in order of appearance."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row.values))

    @cached_property
    def digest(self) -> str:
        """Changes with any value of any row."""
        made = hashlib.sha256()
        for row in self.rows:
            made.update(json.dumps([row.number, dict(row.values)], sort_keys=True, default=str).encode())
        return made.hexdigest()[:16]


def read_data(path: str | Path, limit: int | None = None) -> DataSet:
    """Read a data set: a file that ends in .jsonl, .json, .csv, .tsv or .parquet, or a folder that the library `datasets` saved.

    Rows in the instruction formats of Alpaca and ShareGPT get the columns `prompt` and `response`, and ShareGPT's also `messages`, beside their own.

    Args:
        limit: read no more rows than this.

    Raises:
        RequestError: there is no such file, it is of another kind, or no row of it can be read.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        found = _folder(file)
    elif not file.exists():
        raise RequestError(f'The data set "{path}" does not exist. Check the path.')
    else:
        readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
        reader = readers.get(file.suffix.lower())
        if reader is None:
            raise RequestError(
                f'"{path}" ends in "{file.suffix}". A data set is a .jsonl, .json, .csv, .tsv or .parquet file, or a folder saved by `datasets`.'
            )
        found = reader(file)
    rows: list[Row] = []
    problems: list[Problem] = []
    try:
        for item in found:
            if limit is not None and len(rows) == limit:
                break
            if isinstance(item, Problem):
                problems.append(item)
            else:
                rows.append(Row(item.number, MappingProxyType(_instructions(item.values))))
    except OSError as error:
        raise RequestError(f'The data set "{path}" cannot be read: {error.strerror or error}.') from error
    except UnicodeDecodeError as error:
        raise RequestError(f'The data set "{path}" is not UTF-8 text (byte {error.start}). Save it as UTF-8.') from error
    if not rows:
        first = f" {problems[0].sentence}" if problems else ""
        raise RequestError(f'The data set "{path}" is empty: it has no row that can be read.{first}')
    return DataSet(file.name, tuple(rows), tuple(problems))


def _jsonl(file: Path) -> Iterator[Row | Problem]:
    # Not splitlines(), which also cuts at characters that a text may hold.
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            yield Problem(number, f"Row {number} is not valid JSON (column {error.colno}: {error.msg}).")
            continue
        except RecursionError:
            yield Problem(number, f"Row {number} is not read: its JSON is nested too deeply.")
            continue
        yield _object(number, value)


def _object(number: int, value: Any) -> Row | Problem:
    if isinstance(value, dict):
        return Row(number, value)
    return Problem(number, f'Row {number} is not a JSON object: it begins {json.dumps(value)[:40]!r}. Expected {{"column": value, ...}}.')


def _json(file: Path) -> Iterator[Row | Problem]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise RequestError(f'"{file}" is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.') from error
    if not isinstance(content, list):
        raise RequestError(f'"{file}" holds no list. Expected a list of objects, one a row; or save one object a line as .jsonl.')
    for number, value in enumerate(content, start=1):
        yield _object(number, value)


def _csv(file: Path) -> Iterator[Row | Problem]:
    csv.field_size_limit(2**31 - 1)
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.DictReader(opened, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        names = reader.fieldnames or []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RequestError(f'The header of "{file}" names the column "{twice[0]}" twice. Rename one of them.')
        number = 0
        while True:
            number += 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Problem(number, f"Row {number} is not valid CSV ({error}).")
                continue
            if None in values or None in values.values():
                filled = sum(value is not None for name, value in values.items() if name is not None) + len(values.get(None) or ())  # type: ignore[call-overload]
                yield Problem(number, f"Row {number} has {filled} fields; the header has {len(names)}.")
                continue
            yield Row(number, values)


def _parquet(file: Path) -> Iterator[Row | Problem]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise RequestError(f'"{file}" is not a Parquet file: {str(error).splitlines()[0]}') from error
    number = 0
    for batch in opened.iter_batches(batch_size=1024):
        for values in batch.to_pylist():
            number += 1
            yield Row(number, values)


def _folder(folder: Path) -> Iterator[Row | Problem]:
    try:
        import datasets
    except ImportError as error:
        raise RequestError(
            f'"{folder}" is a folder, which takes the library `datasets` to read. Install it: pip install datasets.'
        ) from error
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise RequestError(f'"{folder}" is no folder that `datasets` saved (save_to_disk). Name a file, or such a folder.') from error
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) > 1:
            raise RequestError(f'"{folder}" holds several splits: {", ".join(map(str, loaded))}. Name one of these folders inside it.')
        loaded = next(iter(loaded.values()))
    for number, values in enumerate(loaded, start=1):
        yield Row(number, dict(values))  # type: ignore[call-overload]


# --- instruction formats

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "system": "system"}


def _instructions(values: Mapping[str, Any]) -> dict[str, Any]:
    """The columns `prompt` and `response` beside a row's own where it is in a format of instructions."""
    made: dict[str, Any] = dict(values)
    if isinstance(values.get("instruction"), str) and isinstance(values.get("output"), str):
        more = values.get("input")
        prompt = values["instruction"] + (f"\n\n{more}" if isinstance(more, str) and more.strip() else "")
        return {"prompt": prompt, "response": values["output"]} | made
    turns = values.get("conversations") or values.get("messages")
    messages = _messages(turns) if isinstance(turns, list) else None
    if messages and messages[-1].role == "assistant" and len(messages) > 1:
        before = messages[:-1]
        users = [message.content for message in before if message.role == "user"]
        return made | {"messages": before, "response": messages[-1].content, "prompt": users[-1] if users else before[-1].content}
    return made


def _messages(turns: Sequence[Any]) -> list[ChatMessage] | None:
    messages: list[ChatMessage] = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            return None
        role = _SPEAKERS.get(str(turn.get("from", turn.get("role"))))
        content = turn.get("value", turn.get("content"))
        if role is None or not isinstance(content, str):
            return None
        messages.append(ChatMessage(role, content))  # type: ignore[arg-type]
    return messages


# --- templates


@dataclass(frozen=True)
class Template:
    """Turns a row into a prompt.

    `text` holds columns in braces: "Review: {text}\\nSentiment:"; braces that are meant are doubled. With `chat` it is the user's turn, written by
    the model's chat template, after the system prompt of `system` if there is one. "{messages}" with `chat` is a whole conversation (ShareGPT).

    Raises:
        RequestError: the braces do not match, or there is no column in the text.
    """

    text: str
    chat: bool = False
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    """few-shot: prompts as rendered and their answers, which go before each row's; with `chat` as turns of the conversation"""

    def __post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise RequestError("A system prompt is a part of a conversation. Use the chat template too, or put the text into the template.")
        if not self.columns:
            raise RequestError(
                f'The template {self.text!r} names no column, so that every prompt would be the same. Write a column as "{{text}}".'
            )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]
        except ValueError as error:
            raise RequestError(f'The template {self.text!r} is not valid: {error}. Braces that are meant are doubled: "{{{{".') from error
        return tuple(dict.fromkeys(fields))

    @property
    def is_conversation(self) -> bool:
        return self.chat and self.text.strip() == "{messages}"

    def require_columns(self, data: DataSet) -> None:
        """
        Raises:
            RequestError: no row has a column that the template names.
        """
        for column in self.columns:
            require_column(data, column)

    def render(self, row: Row) -> str | list[ChatMessage]:
        """The row's prompt: text, or a conversation.

        Raises:
            RequestError: the row lacks a column that the template names.
        """
        for column in self.columns:
            if row.values.get(column) is None:
                raise RequestError(f'Row {row.number} has no column "{column}".')
        system = [] if self.system is None else [ChatMessage("system", self.system)]
        if self.is_conversation:
            messages = row.values["messages"]
            if not isinstance(messages, list) or not all(isinstance(message, ChatMessage) for message in messages):
                raise RequestError(f'Row {row.number} has no conversation in "messages" that ends with the assistant\'s turn.')
            return [*system, *messages]
        text = self.fill(row)
        if not self.chat:
            return "\n\n".join([*(prompt + answer for prompt, answer in self.examples), text])
        turns = [
            ChatMessage(role, content) for example in self.examples for role, content in zip(("user", "assistant"), example, strict=True)
        ]
        return [*system, *turns, ChatMessage("user", text)]

    def fill(self, row: Row) -> str:
        """The text with the row's values in place of its columns."""
        parts = []
        for literal, name, _, _ in string.Formatter().parse(self.text):
            parts.append(literal)
            if name is not None:
                parts.append(row.text(name))
        return "".join(parts)

    def content_free(self, stand_in: str = "N/A") -> str | list[ChatMessage]:
        """The prompt of a row that says nothing, for calibration."""
        if self.is_conversation:
            system = [] if self.system is None else [ChatMessage("system", self.system)]
            return [*system, ChatMessage("user", stand_in)]
        return self.render(Row(0, dict.fromkeys(self.columns, stand_in)))

    def to_dict(self) -> dict[str, Any]:
        return {"text": self.text, "chat": self.chat, "system": self.system, "examples": [list(example) for example in self.examples]}


def few_shot(template: Template, rows: Sequence[Row], response: str, spelling: str = "{}") -> Template:
    """The template with some rows before every prompt, each with what its column `response` says, written as in `spelling`."""
    examples = tuple((template.fill(row), spelling.format(row.text(response))) for row in rows)
    return Template(template.text, template.chat, template.system, examples)


def require_column(data: DataSet, column: str) -> None:
    """
    Raises:
        RequestError: no row has it.
    """
    if column not in data.columns:
        raise RequestError(f'No row of {data.name} has a column "{column}". Its columns: {", ".join(data.columns)}.')


def summary(problems: Sequence[Problem]) -> str:
    """The first problems, and how many more there are."""
    named = " ".join(problem.sentence for problem in problems[:MAX_NAMED])
    more = len(problems) - MAX_NAMED
    return named if more <= 0 else f"{named} And {more} more."


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        # A column of whole numbers with a gap comes as decimal numbers from tables.
        return str(int(value))
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
