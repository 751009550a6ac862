"""A view as the parameters of a URL, and back. Pure: what the page does with a link is in `app.address`.

`model=demo&prompt=The+capital+of+France+is&target=3&select=A2_3&v=1`: what has its default is left out, a short prompt stays readable, a long
one is compressed, one that no URL holds is left out.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args
from urllib.parse import quote_plus, urlencode

from llm_tt.errors import LlmTtError
from llm_tt.flow.graph import DEFAULT_THRESHOLD, EdgeKey, Node, kind_of_edge
from llm_tt.text import ChatMessage, MessageRole

VERSION = 1
READABLE = 600
"""characters of a prompt in the URL, beyond which it is compressed"""
LONGEST = 6000
"""characters of a compressed prompt in the URL, beyond which it is left out: what servers and chat programs still let through"""
_MOST_TEXT = 2**20
"""bytes that a compressed prompt may unfold to"""
_MOST_NAME = 500
_MOST_CONTINUATION = 4096

Prompt = str | tuple[ChatMessage, ...]


@dataclass(frozen=True)
class Selected:
    """What is selected in the graph: a node, or with `destination` and `key` an edge."""

    node: str
    destination: str | None = None
    key: EdgeKey | None = None

    @classmethod
    def of(cls, selection: Mapping[str, Any] | None) -> Selected | None:
        """From a selection as docs/graph-frame.md has it."""
        if not selection:
            return None
        if selection.get("type") == "edge":
            return cls(str(selection["from"]), str(selection["to"]), selection["key"])
        return cls(str(selection["node"]))

    def selection(self) -> dict[str, Any]:
        if self.destination is None:
            return {"type": "node", "node": self.node}
        return {"type": "edge", "key": self.key, "from": self.node, "to": self.destination}

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(Node.parse(name) for name in (self.node, self.destination) if name is not None)


@dataclass(frozen=True)
class View:
    """What one sees, as far as another can see it, too. Defaults are what the page begins with."""

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    prompt: Prompt | None = None
    """text or a conversation; None where there is none, or none that a URL could hold"""
    continuation: tuple[int, ...] = ()
    """ids of the tokens that the model has added to the prompt"""
    target: int | None = None
    """None: the last token"""
    threshold: float = DEFAULT_THRESHOLD
    mass: float | None = None
    """takes the threshold's place"""
    renormalize: bool = True
    selected: Selected | None = None
    token: str | None = None
    """the question: why this token ..."""
    contrast: str | None = None
    """... and not this one; both as the boxes hold them"""
    normalize: bool = True
    first: int | None = None
    """of a span, all of whose tokens up to the target are explained at once; None: the target alone"""


def encode(view: View) -> dict[str, str]:
    """The parameters; the version comes last, so that no program takes a full stop or a space off the prompt's end."""
    result: dict[str, str] = {}
    if view.model:
        result["model"] = view.model
    for name, value in (("device", view.device), ("dtype", view.dtype)):
        if value != "auto":
            result[name] = value
    result |= _prompt_parameter(view.prompt)
    if view.continuation:
        result["continue"] = ".".join(map(str, view.continuation))
    if view.target is not None:
        result["target"] = str(view.target) if view.first is None else f"{view.first}-{view.target}"
    if view.mass is not None:
        result["mass"] = repr(view.mass)
    elif view.threshold != DEFAULT_THRESHOLD:
        result["threshold"] = repr(view.threshold)
    if not view.renormalize:
        result["renormalize"] = "0"
    if view.selected is not None:
        chosen = view.selected
        result["select"] = ".".join(part for part in (chosen.node, chosen.destination, chosen.key) if part is not None)
    if view.token is not None:
        result["why"] = view.token
    if view.contrast is not None:
        result["not"] = view.contrast
    if not view.normalize:
        result["normalize"] = "0"
    return {**result, "v": str(VERSION)}


def query(view: View) -> str:
    """The parameters as they stand after the question mark."""
    return urlencode(encode(view))


def fits(prompt: Prompt | None) -> bool:
    """Whether a URL holds this prompt."""
    return prompt is None or bool(_prompt_parameter(prompt))


def _prompt_parameter(prompt: Prompt | None) -> dict[str, str]:
    if prompt is None:
        return {}
    contents = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    if not all(map(_is_unicode, contents)):
        return {}
    name, text = ("prompt", prompt) if isinstance(prompt, str) else ("chat", _json(prompt))
    if _is_plain(text) and len(quote_plus(text)) <= READABLE:
        return {name: text}
    packed = base64.urlsafe_b64encode(zlib.compress(_json(prompt).encode(), 9)).decode().rstrip("=")
    return {"z": packed} if len(packed) <= LONGEST else {}


def _json(prompt: Prompt) -> str:
    value = prompt if isinstance(prompt, str) else [[message.role, message.content] for message in prompt]
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is_plain(text: str) -> bool:
    """Nothing that a proxy or a text box may refuse or change: no control characters but newlines and tabs."""
    return all(character in "\n\t" or (character >= " " and character != "\x7f") for character in text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- back


@dataclass
class _Reading:
    parameters: Mapping[str, str]
    problems: list[str] = field(default_factory=list)

    def refuse(self, sentence: str) -> None:
        self.problems.append(sentence)

    def name(self, key: str) -> str | None:
        text = self.parameters.get(key)
        if text is None or text == "":
            return None
        if len(text) > _MOST_NAME or not _is_unicode(text):
            self.refuse(f'The link\'s "{key}" is no text of at most {_MOST_NAME} characters; it was left out.')
            return None
        return text

    def number(self, key: str, low: float, high: float) -> float | None:
        text = self.parameters.get(key)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            self.refuse(f'The link\'s {key} "{_short(text)}" is not a number from {low:g} to {high:g}; the usual one is used.')
            return None
        return value

    def switch(self, key: str) -> bool:
        """On unless the link says 0."""
        text = self.parameters.get(key, "1")
        if text not in ("0", "1"):
            self.refuse(f'The link\'s {key} "{_short(text)}" is neither 0 nor 1; the usual setting is used.')
        return text != "0"


def is_link(parameters: Mapping[str, str]) -> bool:
    """Whether a URL says anything about a view: others put parameters of theirs into URLs."""
    return not _NAMES.isdisjoint(parameters)


_SETTINGS = ("model", "device", "dtype", "threshold", "mass", "renormalize", "normalize")
_NAMES = frozenset((*_SETTINGS, "prompt", "chat", "z", "continue", "target", "select", "why", "not"))


def decode(parameters: Mapping[str, str]) -> tuple[View, tuple[str, ...]]:
    """The view, and a sentence for each part of it that could not be read: such a part has its default."""
    reading = _Reading(parameters)
    version = parameters.get("v", str(VERSION))
    if version != str(VERSION):
        reading.refuse(f'The link is of version "{_short(version)}", this page reads version {VERSION}; parts of the view may be missing.')
    # Thresholds of the library; the page's own bounds are its business.
    threshold, mass = reading.number("threshold", 0, 1), reading.number("mass", 0, 1)
    first, target = _read_target(reading)
    view = View(
        model=reading.name("model"),
        device=reading.name("device") or "auto",
        dtype=reading.name("dtype") or "auto",
        prompt=_read_prompt(reading),
        continuation=_read_continuation(reading),
        target=target,
        first=first,
        threshold=DEFAULT_THRESHOLD if threshold is None or mass is not None else threshold,
        mass=mass,
        renormalize=reading.switch("renormalize"),
        selected=_read_selected(reading),
        token=reading.name("why"),
        contrast=reading.name("not"),
        normalize=reading.switch("normalize"),
    )
    return view, tuple(reading.problems)


def _read_prompt(reading: _Reading) -> Prompt | None:
    parameters = reading.parameters
    if "z" in parameters:
        value = _unpacked(parameters["z"])
        prompt = value if isinstance(value, str) else _conversation(value)
        if prompt is None or (isinstance(prompt, str) and not _is_unicode(prompt)):
            reading.refuse("The link's prompt cannot be unpacked; the link was cut off or changed on its way.")
            return None
        return prompt
    if "chat" in parameters:
        try:
            prompt = _conversation(json.loads(parameters["chat"]))
        except (ValueError, RecursionError):
            prompt = None
        if prompt is None:
            reading.refuse('The link\'s chat is not a list of roles and messages such as [["user","Hello"]]; it was left out.')
        return prompt
    return parameters.get("prompt")


def _unpacked(text: str) -> Any:
    """What was compressed, or None; never more than `_MOST_TEXT` bytes of it."""
    if len(text) > 2 * LONGEST:
        return None
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(data, _MOST_TEXT)
        return json.loads(content) if unpacker.eof else None
    except (binascii.Error, zlib.error, ValueError, RecursionError):
        return None


def _conversation(value: Any) -> tuple[ChatMessage, ...] | None:
    if not isinstance(value, list) or not value:
        return None
    messages: list[ChatMessage] = []
    for turn in value:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) and _is_unicode(part) for part in turn)):
            return None
        role, content = turn
        if role not in get_args(MessageRole):
            return None
        messages.append(ChatMessage(role, content))
    return tuple(messages)


def _read_continuation(reading: _Reading) -> tuple[int, ...]:
    text = reading.parameters.get("continue", "")
    if not text:
        return ()
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})*", text, re.ASCII) or text.count(".") >= _MOST_CONTINUATION:
        reading.refuse(f'The link\'s continuation "{_short(text)}" is not a list of token numbers such as 12.5.9; it was left out.')
        return ()
    return tuple(map(int, text.split(".")))


def _read_target(reading: _Reading) -> tuple[int | None, int | None]:
    """Where a span begins, if it is one, and the target: `14-17` or `17`."""
    text = reading.parameters.get("target")
    if text is None:
        return None, None
    found = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})", text, re.ASCII)
    if found is None:
        what = "is not the number of a token"
    elif found[1] is not None and int(found[1]) >= int(found[2]):
        what = "does not rise, as 14-17 does"
    else:
        return None if found[1] is None else int(found[1]), int(found[2])
    reading.refuse(f'The link\'s target "{_short(text)}" {what}; the last token is explained.')
    return None, None


def _read_selected(reading: _Reading) -> Selected | None:
    text = reading.parameters.get("select")
    if text is None:
        return None
    parts = text.split(".")
    try:
        nodes = [Node.parse(name) for name in parts[:2]]
        if len(parts) == 1:
            return Selected(parts[0])
        if len(parts) == 3 and parts[2] in get_args(EdgeKey) and kind_of_edge(nodes[0], nodes[1], parts[2]) is not None:
            return Selected(parts[0], parts[1], parts[2])  # type: ignore[arg-type]
    except LlmTtError:
        pass
    reading.refuse(f'The link selects "{_short(text)}", which is neither a node such as A2_5 nor an edge; nothing is selected.')
    return None


def _short(text: str) -> str:
    shown = text.encode("ascii", "backslashreplace").decode()
    return shown if len(shown) <= 40 else f"{shown[:39]}…"
