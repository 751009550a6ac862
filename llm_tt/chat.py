"""A conversation -> the text that a chat template makes of it, and whose message each of its characters is.

Templates differ in all but this: the characters of a message pass through them. So the template is rendered once more for each message, with every
character of that message replaced by a private one that no text uses. Put back, they must give the rendered text exactly; then it is proven which
of its characters came from the message, whatever the template strips, moves, drops or repeats. A template that reads the message (as one that cuts
out `</think>`) sees the strings it looks for left as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, get_args

from llm_tt.errors import PromptError
from llm_tt.text import ChatMessage, MessageRole

_PRIVATE = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
# Stripped like a space, used by no template.
_STRANGE_SPACES = "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u205f\u3000\u1680\u202f\u00a0"
_ROLES: tuple[str, ...] = get_args(MessageRole)


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as a template writes it."""

    text: str
    messages: tuple[int | None, ...] | None
    """for each character of the text, the index of the message it came from; None for what the template wrote. None if it could not be found"""
    reason: str | None = None
    """a sentence: why it could not be found"""


def messages_of(conversation: Sequence[ChatMessage | Mapping[str, Any]]) -> tuple[ChatMessage, ...]:
    """A conversation as given by a user, checked.

    Raises:
        PromptError: there is no message, or one has no known role, no text, or something that is not looked at here.
    """
    if not conversation:
        raise PromptError('The conversation is empty. Give at least one message: {"role": "user", "content": "Hello"}.')
    return tuple(_message(index, message) for index, message in enumerate(conversation))


def _message(index: int, message: ChatMessage | Mapping[str, Any]) -> ChatMessage:
    if isinstance(message, ChatMessage):
        message = {"role": message.role, "content": message.content}
    if not isinstance(message, Mapping):
        raise PromptError(f'Message {index} of the conversation is {message!r}. Expected {{"role": "user", "content": "Hello"}}.')
    if unknown := [key for key in message if key not in ("role", "content")]:
        raise PromptError(f'Message {index} of the conversation has "{unknown[0]}". A message here has only "role" and "content".')
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise PromptError(f"Message {index} of the conversation has the role {role!r}. Expected one of: {', '.join(_ROLES)}.")
    if not isinstance(content, str):
        raise PromptError(f"Message {index} of the conversation has a content of type {type(content).__name__}. Expected text.")
    return ChatMessage(role, content)


def render(tokenizer: Any, messages: Sequence[ChatMessage], template: str | None = None) -> RenderedChat:
    """Write a conversation with a template (None: the tokenizer's own), ready for the model's turn.

    After a last message of the assistant the model continues it; else the template opens a turn for it.

    Raises:
        PromptError: the template refuses the conversation or fails on it.
    """

    def written(contents: Sequence[str]) -> str:
        return _apply(tokenizer, [(message.role, content) for message, content in zip(messages, contents, strict=True)], template)

    contents = [message.content for message in messages]
    text = written(contents)
    used = set(text).union(*contents)
    literals = _literals(tokenizer.get_chat_template(template))
    owners: list[int | None] = [None] * len(text)
    for index, content in enumerate(contents):
        if not content:
            continue

        def variant(replacement: str, index: int = index) -> str | None:
            try:
                return written([*contents[:index], replacement, *contents[index + 1 :]])
            except PromptError:
                return None

        mine = _characters_of(content, text, variant, used, literals)
        if mine is None:
            who = f"message {index} ({messages[index].role})"
            return RenderedChat(text, None, f"The chat template changes {who} so that its place in the text cannot be told for certain.")
        for place in mine:
            if owners[place] is not None:
                return RenderedChat(
                    text, None, f"Messages {owners[place]} and {index} cannot be told apart in the text of the chat template."
                )
            owners[place] = index
    return RenderedChat(text, tuple(owners))


def no_template(name: str) -> PromptError:
    return PromptError(
        f'{name} has no chat template. Type plain text, or set "chat_template" for it in the configuration to a file with the template '
        "that it was trained with."
    )


def check_template(tokenizer: Any, template: str) -> str | None:
    """What is wrong with the syntax of a template, as the end of a sentence; None if nothing is."""
    import jinja2

    try:
        _rendered(tokenizer, [("user", "a")], template)
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except Exception:
        # It may rightly refuse this conversation.
        return None
    return None


# --- rendering


def _rendered(tokenizer: Any, messages: Sequence[tuple[str, str]], template: str | None) -> str:
    continued = messages[-1][0] == "assistant"
    return tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=not continued,
        continue_final_message=continued,
    )


def _apply(tokenizer: Any, messages: Sequence[tuple[str, str]], template: str | None) -> str:
    import jinja2

    try:
        return _rendered(tokenizer, messages, template)
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(
            f"The chat template of this model is not valid Jinja: line {error.lineno}: {error.message}. "
            'Set "chat_template" for it in the configuration to a file with a valid one.'
        ) from error
    except jinja2.TemplateError as error:
        roles = ", ".join(role for role, _ in messages)
        raise PromptError(f"The chat template refuses a conversation of {roles}: {_sentence(error)} Change its messages.") from error
    except ValueError as error:
        if "final message does not appear" in str(error):
            raise PromptError(
                "The chat template leaves out a part of the last message, so that the model cannot continue it. "
                "Let the conversation end with a user's message, or shorten the assistant's."
            ) from error
        raise PromptError(f"The chat template cannot be applied: {_sentence(error)} Change its messages.") from error
    except Exception as error:
        # A template is a program, and may fail in any way.
        raise PromptError(
            f"The chat template fails on this conversation: {type(error).__name__}: {_sentence(error)} Change its messages."
        ) from error


def _sentence(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first if first.endswith((".", "!", "?")) else first + "."


@lru_cache(maxsize=16)
def _literals(template: str) -> tuple[str, ...]:
    """The strings that a template may look for in a message, the longest first."""
    from jinja2 import Environment, nodes

    # transformers adds these tags to Jinja's own.
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _generation_tag()])
    found = {node.value for node in environment.parse(template).find_all(nodes.Const) if isinstance(node.value, str) and node.value}
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def _generation_tag() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    return Generation


# --- the characters of one message

Variant = Callable[[str], str | None]
"""The text with another content in the place of the message's; None if the template refuses it"""


def _characters_of(content: str, text: str, variant: Variant, used: set[str], literals: Sequence[str]) -> list[int] | None:
    """The places in `text` that hold the message's characters, or None if they cannot be told for certain."""
    for kept in _ways_to_keep(content, literals):
        origins = _origins(content, text, variant, used, kept)
        if origins is not None:
            mine = _completed(content, text, variant, kept, origins) if any(kept) else origins
            return None if mine is None else sorted(mine)
    return _replaced(content, text, variant, used)


def _ways_to_keep(content: str, literals: Sequence[str]) -> Iterator[list[bool]]:
    """Which characters of the content stay as they are: none, then more and more of those that a template could look for."""
    nothing = [False] * len(content)
    yield nothing
    looked_for = list(nothing)
    for literal in literals:
        start = content.find(literal)
        while start >= 0:
            looked_for[start : start + len(literal)] = [True] * len(literal)
            start = content.find(literal, start + len(literal))
    and_space = [keep or character.isspace() for keep, character in zip(looked_for, content, strict=True)]
    all_but_words = [keep or not character.isalnum() for keep, character in zip(looked_for, content, strict=True)]
    previous = nothing
    for kept in (looked_for, and_space, all_but_words):
        if kept != previous and not all(kept):
            yield kept
            previous = kept


def _origins(content: str, text: str, variant: Variant, used: set[str], kept: Sequence[bool]) -> dict[int, int | None] | None:
    """Place in the text -> index in the content, for the characters that are not kept; None for white space, which has no index of its own.

    None as a whole if the template makes something else of the marked content.
    """
    private = [chr(code) for code in _PRIVATE if chr(code) not in used]
    spaces = [character for character in _STRANGE_SPACES if character not in used]
    kinds = sorted({character for character, keep in zip(content, kept, strict=True) if character.isspace() and not keep})
    if len(kinds) > len(spaces):
        return None
    space_of = dict(zip(kinds, spaces, strict=False))
    result: dict[int, int | None] = {}
    # A very long message is marked in parts, since there are only so many private characters.
    for start in range(0, len(content), len(private)):
        marks: dict[str, tuple[str, int | None]] = {}
        marked = list(content)
        for index in range(start, min(start + len(private), len(content))):
            character = content[index]
            if kept[index]:
                continue
            mark = space_of[character] if character.isspace() else private[index - start]
            marks[mark] = character, None if character.isspace() else index
            marked[index] = mark
        rendered = variant("".join(marked))
        if rendered is None or len(rendered) != len(text):
            return None
        for place, character in enumerate(rendered):
            original, index = marks.get(character, (character, None))
            if original != text[place]:
                return None
            if character in marks:
                result[place] = index
    return result


def _completed(content: str, text: str, variant: Variant, kept: Sequence[bool], origins: Mapping[int, int | None]) -> set[int] | None:
    """The places of marked characters, with those between and beside them that hold kept characters of the content."""
    mine = set(origins)
    known = [(place, index) for place, index in sorted(origins.items()) if index is not None]
    if not known or any(last <= first for (_, first), (_, last) in pairwise(known)):
        # Of a message that is written twice, the ends in between have no test below.
        return None
    for (before, first), (after, last) in pairwise(known):
        gap = text[before + 1 : after]
        if gap and _is_same(gap, content[first + 1 : last]):
            mine.update(range(before + 1, after))
    (first_place, first), (last_place, last) = known[0], known[-1]
    if any(kept[:first]):
        start = _end_of(content[:first], text[:first_place], text, variant(content[first:]), at_start=True)
        if start is None:
            return None
        mine.update(range(first_place - start, first_place))
    if any(kept[last + 1 :]):
        end = _end_of(content[last + 1 :], text[last_place + 1 :], text, variant(content[: last + 1]), at_start=False)
        if end is None:
            return None
        mine.update(range(last_place + 1, last_place + 1 + end))
    return mine


def _is_same(written: str, original: str) -> bool:
    """The very text, or the same as in a JSON string."""
    return written in (original, json.dumps(original)[1:-1], json.dumps(original, ensure_ascii=False)[1:-1])


def _end_of(end: str, beside: str, text: str, without: str | None, *, at_start: bool) -> int | None:
    """How many characters `beside` the marked part of a message are its own `end`, judged by the text that the template makes without it."""
    if without is None:
        return None
    length = len(text) - len(without)
    if not 0 <= length <= len(end):
        return None
    if at_start:
        cut = len(beside) - length
        is_own = beside[cut:] == end[len(end) - length :] and without == text[:cut] + text[len(beside) :]
    else:
        cut = len(text) - len(beside)
        is_own = beside[:length] == end[:length] and without == text[:cut] + text[cut + length :]
    return length if is_own else None


def _replaced(content: str, text: str, variant: Variant, used: set[str]) -> list[int] | None:
    """The place of a content that the template rewrites, as by `upper`: what lies between the texts before and after a marked content.

    Believed only where it has the letters and digits of the content in their order.
    """
    free = [chr(code) for code in _PRIVATE if chr(code) not in used]
    if len(content) > len(free):
        return None
    marks = set(free[: len(content)])
    rendered = variant("".join(free[: len(content)]))
    if rendered is None:
        return None
    places = [place for place, character in enumerate(rendered) if character in marks]
    if not places or rendered[places[0] : places[-1] + 1].count(free[0]) != 1:
        return None
    before, after = rendered[: places[0]], rendered[places[-1] + 1 :]
    middle = text[len(before) : len(text) - len(after)]
    if not text.startswith(before) or not text.endswith(after) or len(before) + len(after) > len(text):
        return None
    if _words(middle) != _words(content) or not _words(content):
        return None
    return list(range(len(before), len(before) + len(middle)))


def _words(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
