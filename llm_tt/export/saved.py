"""A graph's JSON (docs/graph-json.md) -> the very graph that was written. Whatever else a file may hold is refused with one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import numpy as np

from llm_tt.errors import LlmTtError, RequestError
from llm_tt.export.files import JSON_FORMAT, JSON_VERSION
from llm_tt.flow.graph import Edge, EdgeKind, FlowGraph, Node, kind_of_edge
from llm_tt.lens.token_table import TokenTable
from llm_tt.text import ChatMessage, MessageRole, Prompt, Role

MAX_CHARACTERS = 100_000_000
"""of a file; 20,000 edges take about 4 million"""
_MAX_LAYERS = 2**16
_MAX_HEAD = 2**16 - 1
_MAX_TOKEN_ID = 2**31 - 1
_TOLERANCE = 1e-3
"""Contributions that were rounded may add up to a little more than 1"""


class GraphFileError(LlmTtError):
    """A file does not hold a graph that can be opened."""


@dataclass(frozen=True, eq=False)
class SavedGraph:
    """What a file holds: the graph, and what it tells of where the graph came from."""

    graph: FlowGraph
    model: str
    prompt: Prompt
    """what the model received; without text, offsets and roles where the file has none"""
    conversation: tuple[ChatMessage, ...] | None = None
    """the messages that were put through the chat template; None for a plain text, and where the file does not tell"""
    predictions: TokenTable | None = None
    """what the model predicted after the target"""
    facts: Mapping[str, str | int] | None = None
    """of the model, by the names of `llm_tt.export.files.FACTS`"""

    @property
    def question(self) -> str | tuple[ChatMessage, ...] | None:
        """What to give to a model to see this graph again; None where the file does not tell."""
        if self.conversation is not None:
            return self.conversation
        # The text of a conversation is that after the template, which is no plain text to be run again.
        return self.prompt.text if all(role in (None, "special") for role in self.prompt.roles) else None


def from_json(text: str | bytes) -> SavedGraph:
    """The inverse of `llm_tt.export.files.to_json`: equal arrays, equal texts.

    Raises:
        GraphFileError: what is wrong, and where.
    """
    if len(text) > MAX_CHARACTERS:
        raise GraphFileError(f"The file has {len(text):,} characters; a graph of at most {MAX_CHARACTERS:,} can be opened.")
    try:
        content = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise GraphFileError(f"The file is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}).") from error
    except json.JSONDecodeError as error:
        raise GraphFileError(f"The file is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or lists in lists in lists.
        raise GraphFileError("The file is not JSON that can be read: it has a number that is too long, or is nested too deeply.") from error
    if not isinstance(content, dict) or content.get("format") != JSON_FORMAT:
        raise GraphFileError(f'The file is not a graph of llm-tt: it does not say "format": "{JSON_FORMAT}".')
    version: Any = content.get("version")
    if not _is_int(version) or version < 1:
        raise GraphFileError(f'"version" is {_shown(version)}. Expected 1 or {JSON_VERSION}.')
    if version > JSON_VERSION:
        raise GraphFileError(
            f"The file was written by a newer llm-tt (version {version} of the format; this one reads {JSON_VERSION}). Update llm-tt to open it."
        )
    return _saved(content)


def _no_constant(name: str) -> Any:
    raise GraphFileError(f"The file has the number {name}, which no graph has.")


def _saved(content: dict[str, Any]) -> SavedGraph:
    tokens = _list(content, "tokens")
    if not tokens:
        raise GraphFileError('"tokens" is empty. A graph has at least one token.')
    n_layers = _whole(content, "n_layers", 1, _MAX_LAYERS)
    ids, texts = [], []
    for index, token in enumerate(tokens):
        where = f"tokens[{index}]"
        if _whole(token, "position", 0, None, where) != index:
            raise GraphFileError(f'"{where}.position" is {token["position"]}. Expected {index}: tokens come in their order.')
        ids.append(_whole(token, "id", 0, _MAX_TOKEN_ID, where))
        texts.append(_text(token, "text", where))
    edges = [_edge(edge, f"edges[{index}]", n_layers, len(tokens)) for index, edge in enumerate(_list(content, "edges"))]
    seen: set[tuple[EdgeKind, int, int, int]] = set()
    for index, edge in enumerate(edges):
        name = (edge.kind, edge.layer, edge.source, edge.destination)
        if name in seen:
            raise GraphFileError(f'"edges[{index}]" is there twice: {_name(edge)}.')
        seen.add(name)
    graph = FlowGraph(
        token_ids=tuple(ids),
        token_texts=tuple(texts),
        n_layers=n_layers,
        target=_whole(content, "target", 0, len(tokens) - 1),
        threshold=_number(content, "threshold", 0, 1 + _TOLERANCE),
        renormalized=_truth(content, "renormalized"),
        kind=np.array([edge.kind for edge in edges], np.uint8),
        layer=np.array([edge.layer for edge in edges], np.uint16),
        source=np.array([edge.source for edge in edges], np.uint32),
        destination=np.array([edge.destination for edge in edges], np.uint32),
        weight=np.array([edge.weight for edge in edges], np.float32),
        heads_start=np.cumsum([0, *(len(edge.heads) for edge in edges)]).astype(np.uint32),
        head=np.array([head for edge in edges for head in edge.heads], np.uint16),
        head_weight=np.array([weight for edge in edges for weight in edge.heads.values()], np.float32),
        mass=_number(content, "mass", 0, 1) if content.get("mass") is not None else None,
        carried=_number(content, "carried", 0, 1 + _TOLERANCE) if content.get("carried") is not None else None,
        targets=_targets(content),
    )
    _check_flow(graph)
    return SavedGraph(
        graph=graph,
        model=_text(content, "model"),
        prompt=_prompt(content, graph),
        conversation=_conversation(content),
        predictions=_predictions(content),
        facts=_facts(content),
    )


def _targets(content: dict[str, Any]) -> tuple[int, ...]:
    if content.get("targets") is None:
        return ()
    targets, last = _list(content, "targets"), content["target"]
    if not (len(targets) > 1 and all(map(_is_int, targets)) and targets[0] >= 0 and targets[-1] == last):
        raise GraphFileError(f'"targets" is {_shown(targets)}. Expected two or more positions, the last of them the target, {last}.')
    if any(after <= before for before, after in pairwise(targets)):
        raise GraphFileError(f'"targets" is {_shown(targets)}. Expected rising positions.')
    return tuple(targets)


def _edge(edge: Any, where: str, n_layers: int, n_tokens: int) -> Edge:
    ends = []
    for end in ("from", "to"):
        name = _text(edge, end, where)
        try:
            node = Node.parse(name)
        except RequestError as error:
            raise GraphFileError(f'"{where}.{end}": {error}') from error
        if node.layer >= n_layers or node.position >= n_tokens:
            raise GraphFileError(f'"{where}.{end}" is {name}, but the graph has {n_layers} layers and {n_tokens} tokens.')
        ends.append(node)
    source, destination = ends
    key = _text(edge, "key", where)
    kind = kind_of_edge(source, destination, key)
    if kind is None:
        raise GraphFileError(f'"{where}": there is no {_shown(key)} edge from {source.name} to {destination.name} in a transformer.')
    heads: dict[int, float] = {}
    if kind is EdgeKind.ATTENTION:
        for index, item in enumerate(_list(edge, "heads", where)):
            place = f"{where}.heads[{index}]"
            head = _whole(item, "head", 0, _MAX_HEAD, place)
            if head in heads:
                raise GraphFileError(f'"{place}": head {head} is there twice.')
            heads[head] = _number(item, "weight", 0, 1 + _TOLERANCE, place)
    weight = _number(edge, "weight", 0, 1 + _TOLERANCE, where)
    return Edge(kind, destination.layer, source.position, destination.position, weight, heads)


def _check_flow(graph: FlowGraph) -> None:
    """Every edge leads to a target by others that come before it: flow is handed down in that order."""
    reached = set(graph.roots)
    roots = graph.root.name if len(reached) == 1 else f"one of {graph.roots[0].name} to {graph.root.name}"
    whose = "the target's node" if len(reached) == 1 else "the targets' nodes"
    for index, edge in enumerate(graph.edges()):
        source, destination = edge.ends
        if destination not in reached:
            raise GraphFileError(f'"edges[{index}]" leads to {destination.name}, from where no edge before it leads to {roots}, {whose}.')
        reached.add(source)
    layers = graph.layer.tolist()
    for index, (above, below) in enumerate(pairwise(layers), 1):
        if below > above:
            raise GraphFileError(f'"edges[{index}]" is of layer {below}, after one of layer {above}. Edges come from the last layer down.')


def _prompt(content: dict[str, Any], graph: FlowGraph) -> Prompt:
    text = _text(content, "text") if content.get("text") is not None else None
    offsets: list[tuple[int, int] | None] = []
    roles: list[Role | None] = []
    for index, token in enumerate(content["tokens"]):
        where = f"tokens[{index}]"
        offset, role = token.get("offset"), token.get("role")
        if offset is not None:
            length = 0 if text is None else len(text)
            if not (isinstance(offset, list) and len(offset) == 2 and all(map(_is_int, offset)) and 0 <= offset[0] <= offset[1] <= length):
                raise GraphFileError(f'"{where}.offset" is {_shown(offset)}. Expected two places in the text of {length} characters.')
            offset = (offset[0], offset[1])
        if role is not None and role not in get_args(Role):
            raise GraphFileError(f'"{where}.role" is {_shown(role)}. Expected one of {", ".join(get_args(Role))}, or null.')
        offsets.append(offset)
        roles.append(role)
    return Prompt(text, graph.token_ids, graph.token_texts, tuple(offsets), tuple(roles))


def _conversation(content: dict[str, Any]) -> tuple[ChatMessage, ...] | None:
    if content.get("messages") is None:
        return None
    messages = []
    for index, message in enumerate(_list(content, "messages")):
        where = f"messages[{index}]"
        role: Any = _text(message, "role", where)
        if role not in get_args(MessageRole):
            raise GraphFileError(f'"{where}.role" is {_shown(role)}. Expected one of {", ".join(get_args(MessageRole))}.')
        messages.append(ChatMessage(role, _text(message, "content", where)))
    return tuple(messages)


def _predictions(content: dict[str, Any]) -> TokenTable | None:
    if content.get("predictions") is None:
        return None
    rows = _list(content, "predictions")
    if not rows:
        return None
    ids, texts, scores, probabilities = [], [], [], []
    for index, row in enumerate(rows):
        where = f"predictions[{index}]"
        ids.append(_whole(row, "id", 0, _MAX_TOKEN_ID, where))
        texts.append(_text(row, "text", where))
        scores.append(_number(row, "score", -1e30, 1e30, where))
        probabilities.append(_number(row, "probability", 0, 1 + _TOLERANCE, where))
    return TokenTable(np.array(ids, np.int64), tuple(texts), np.array(scores, np.float32), np.array(probabilities, np.float32))


def _facts(content: dict[str, Any]) -> Mapping[str, str | int] | None:
    facts = content.get("facts")
    if facts is None:
        return None
    if not isinstance(facts, dict):
        raise GraphFileError(f'"facts" is {_shown(facts)}. Expected an object.')
    for name, value in facts.items():
        if not _is_int(value):
            _text(facts, name, "facts")
        elif abs(value) > 10**18:
            raise GraphFileError(f'"facts.{name}" is {_shown(value)}. Expected a smaller number.')
    return facts


# --- values, with their place in what is said about them


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=True)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


def _name(edge: Edge) -> str:
    source, destination = edge.ends
    return f"{edge.kind.key} from {source.name} to {destination.name}"


def _value(holder: Any, name: str, where: str, is_right: Callable[[Any], bool], expected: str) -> Any:
    place = f"{where}.{name}" if where else name
    if not isinstance(holder, dict):
        raise GraphFileError(f'"{where}" is {_shown(holder)}. Expected an object.')
    if name not in holder:
        raise GraphFileError(f'"{place}" is missing. Expected {expected}.')
    value = holder[name]
    if not is_right(value):
        raise GraphFileError(f'"{place}" is {_shown(value)}. Expected {expected}.')
    return value


def _list(holder: Any, name: str, where: str = "") -> list[Any]:
    return _value(holder, name, where, lambda value: isinstance(value, list), "a list")


def _truth(holder: Any, name: str, where: str = "") -> bool:
    return _value(holder, name, where, lambda value: isinstance(value, bool), "true or false")


def _text(holder: Any, name: str, where: str = "") -> str:
    return _value(holder, name, where, lambda value: isinstance(value, str) and _is_unicode(value), "text")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, which JSON can hold and a text cannot.
        return False
    return True


def _whole(holder: Any, name: str, low: int, high: int | None, where: str = "") -> int:
    upper = "up" if high is None else f"to {high}"
    return _value(
        holder,
        name,
        where,
        lambda value: _is_int(value) and low <= value and (high is None or value <= high),
        f"a number from {low} {upper}",
    )


def _number(holder: Any, name: str, low: float, high: float, where: str = "") -> float:
    def is_right(value: Any) -> bool:
        return (_is_int(value) or isinstance(value, float)) and low <= value <= high and math.isfinite(value)

    return float(_value(holder, name, where, is_right, f"a number from {low:g} to {round(high):g}"))
