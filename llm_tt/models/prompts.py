"""What a tokenizer makes of a text or a conversation: `Prompt`. Its rules are read from what it does, not from its settings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llm_tt import chat
from llm_tt.errors import ModelError, PromptError
from llm_tt.models.info import ChatTemplateSource, TokenizerInfo
from llm_tt.text import ChatMessage, Prompt, Role, Span, TokenTexts, align

_SAMPLES = ("a", "the", "0", ".")
_NO_OFFSETS = "This model's tokenizer does not tell which characters its tokens hold, so that they cannot be given to messages."


class PromptMaker:
    """Text and conversations -> `Prompt`, by one tokenizer.

    Args:
        name: of the model, for messages.
        tokenizer: of transformers; only read.
        chat_template: the template of the configuration, which goes before the tokenizer's own.

    Raises:
        ModelError: the tokenizer's special tokens cannot be told from the text's.
    """

    def __init__(self, name: str, tokenizer: Any, chat_template: str | None = None) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self._template = chat_template
        self._texts = TokenTexts(tokenizer)
        # A tokenizer written in Rust refuses a second thread while its settings are written, which some calls do.
        self._lock = threading.Lock()
        self._prefix, self._suffix = self._added()

    def info(self) -> TokenizerInfo:
        source: ChatTemplateSource | None = None
        if self._template is not None:
            source = "config"
        elif getattr(self._tokenizer, "chat_template", None):
            source = "checkpoint"
        return TokenizerInfo(
            n_tokens=len(self._tokenizer),
            prefix=tuple(self._texts(self._prefix)),
            suffix=tuple(self._texts(self._suffix)),
            special_tokens=tuple(self._tokenizer.all_special_tokens),
            chat_template=source,
        )

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return self._texts(token_ids)

    def data(self, token_ids: Sequence[int]) -> list[bytes | None]:
        """The bytes that each token stands for; None for an id that the tokenizer lacks."""
        return self._texts.data(token_ids)

    def encode(self, text: str) -> list[int]:
        """Ids with the special tokens that the tokenizer puts in front, unless the text spells them out itself.

        Those that it puts behind are left out: after an end-of-text token nothing of the text would be predicted.
        """
        prefix, token_ids = self._split(text)
        return [*prefix, *token_ids]

    def of_text(self, text: str) -> Prompt:
        """As `encode`, with offsets."""
        prefix, token_ids = self._split(text)
        prompt = self._prompt(text, token_ids)
        special: list[Role | None] = ["special"] * len(prefix)
        return Prompt(
            text=text,
            token_ids=(*prefix, *prompt.token_ids),
            token_texts=(*self._texts(prefix), *prompt.token_texts),
            offsets=((None,) * len(prefix)) + prompt.offsets,
            roles=(*special, *prompt.roles),
        )

    def of_chat(self, messages: Sequence[ChatMessage]) -> Prompt:
        """The ids of `apply_chat_template`: the template writes what special tokens there are, none is added.

        Raises:
            PromptError: there is no template, or it refuses the conversation.
        """
        if self._template is None and not getattr(self._tokenizer, "chat_template", None):
            raise chat.no_template(self._name)
        for index, message in enumerate(messages):
            _require_unicode(message.content, f"Message {index} of the conversation")
        rendered = chat.render(self._tokenizer, messages, self._template)
        prompt = self._prompt(rendered.text, self._plain(rendered.text))
        if rendered.messages is None:
            return replace(prompt, no_roles=rendered.reason)
        if None in prompt.offsets:
            return replace(prompt, no_roles=_NO_OFFSETS)
        owners: list[Role | None] = [None if index is None else messages[index].role for index in rendered.messages]
        return replace(prompt, roles=tuple(_role(span, rendered.text, owners) for span in prompt.offsets if span is not None))

    # --- the tokenizer

    def _prompt(self, text: str, token_ids: Sequence[int]) -> Prompt:
        prompt = Prompt.bare(text, token_ids, self._texts(token_ids))
        spans = align(text, self._texts.data(token_ids)) or self._mapped(text, token_ids)
        return prompt if spans is None else replace(prompt, offsets=tuple(spans))

    def _plain(self, text: str) -> list[int]:
        _require_unicode(text, "The prompt")
        return self._call(text, add_special_tokens=False).input_ids

    def _call(self, text: str, **options: Any) -> Any:
        with self._lock:
            return self._tokenizer(text, truncation=False, padding=False, verbose=False, **options)

    def _mapped(self, text: str, token_ids: Sequence[int]) -> list[Span] | None:
        """Offsets as the tokenizer tells them, for one that normalises what it reads."""
        if not getattr(self._tokenizer, "is_fast", False):
            return None
        encoding = self._call(text, add_special_tokens=False, return_offsets_mapping=True)
        if list(encoding.input_ids) != list(token_ids):
            return None
        spans: list[Span] = []
        end = 0
        for start, stop in encoding.offset_mapping:
            # Some tokenizers leave the space out that begins a word.
            start = end if start > end and text[end:start].isspace() else start
            spans.append((start, stop))
            end = max(end, stop)
        return spans

    def _split(self, text: str) -> tuple[tuple[int, ...], list[int]]:
        """The special tokens to put in front, and the text's own ids."""
        token_ids = self._plain(text)
        is_spelled_out = tuple(token_ids[: len(self._prefix)]) == self._prefix
        return () if is_spelled_out else self._prefix, token_ids

    def _added(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens that the tokenizer puts in front of a text and behind it."""
        for text in _SAMPLES:
            plain = tuple(self._call(text, add_special_tokens=False).input_ids)
            full = tuple(self._call(text, add_special_tokens=True).input_ids)
            for start in range(len(full) - len(plain) + 1):
                if plain and full[start : start + len(plain)] == plain:
                    return full[:start], full[start + len(plain) :]
        raise ModelError(
            f"The tokenizer of {self._name} makes other tokens of a text when it adds its special tokens, so that they cannot be told apart. "
            "Use the tokenizer that the model was trained with."
        )


def _require_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{what} is not UTF-8 text (character {error.start}). Convert it to UTF-8.") from error


def _role(span: Span, text: str, owners: Sequence[Role | None]) -> Role | None:
    """The role of a token: of the message that its letters came from, white space counting where there is nothing else.

    None for a token with letters of two roles.
    """
    places = [place for place in range(*span) if not text[place].isspace()] or list(range(*span))
    roles: set[Role] = {role for place in places if (role := owners[place]) is not None}
    if len(roles) > 1:
        return None
    return roles.pop() if roles else "special"
