"""Chat templates: the text that they make, and whose message each character of it is, against pieces written down by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from chat_templates import (
    CHATML,
    CONTENTS,
    GEMMA,
    LLAMA2,
    PHI,
    TEMPLATES,
    THINKING,
    Template,
)
from families import byte_level_tokenizer

from llm_tt import chat
from llm_tt.chat import RenderedChat
from llm_tt.errors import PromptError
from llm_tt.models.prompts import PromptMaker
from llm_tt.text import ChatMessage

SHAPES = {
    "question": ("user",),
    "system": ("system", "user"),
    "second turn": ("user", "assistant", "user"),
    "system and second turn": ("system", "user", "assistant", "user"),
    "continued": ("user", "assistant"),
    "system, continued": ("system", "user", "assistant"),
    "tool": ("user", "assistant", "tool"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level_tokenizer()


def conversation(shape: str, content: str) -> list[ChatMessage]:
    """The content in the last message; others differ, but for the first and third, which are the same."""
    others = {0: "Mary the store", 1: "Yes.\n", 2: "Mary the store", 3: "and?"}
    roles = SHAPES[shape]
    return [ChatMessage(role, others[index] if index < len(roles) - 1 else content) for index, role in enumerate(roles)]  # type: ignore[arg-type]


def conversations(content: str) -> list[list[ChatMessage]]:
    """The content as each message of each shape, and as all of them."""
    result = []
    for shape, roles in SHAPES.items():
        plain = conversation(shape, "Mary.")
        for index in range(len(roles)):
            result.append([ChatMessage(m.role, content) if place == index else m for place, m in enumerate(plain)])
        result.append([ChatMessage(message.role, content) for message in plain])
    return result


def is_taken(template: Template, messages: Sequence[ChatMessage]) -> bool:
    roles = {message.role for message in messages}
    return (template.takes_system or "system" not in roles) and (template.takes_tool or "tool" not in roles)


def split(pieces: list[tuple[int | None, str]]) -> tuple[str, tuple[int | None, ...]]:
    return "".join(text for _, text in pieces), tuple(index for index, text in pieces for _ in text)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_character_is_given_to_its_message(name: str, content: str, tokenizer: Any) -> None:
    template = TEMPLATES[name]
    tried = 0
    for messages in conversations(content):
        if not is_taken(template, messages):
            continue
        if name == "repeating" and messages[-1].role == "assistant":
            continue
        tried += 1
        text, owners = split(template.expected(messages))
        rendered = chat.render(tokenizer, messages, template.jinja)
        assert rendered.text == text, messages
        assert rendered.reason is None, messages
        assert rendered.messages == owners, (messages, text)
    assert tried >= 5


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_and_its_ids_are_those_of_apply_chat_template(name: str, tokenizer: Any) -> None:
    template = TEMPLATES[name]
    maker = PromptMaker("m", tokenizer, template.jinja)
    for shape, roles in SHAPES.items():
        messages = conversation(shape, "the store é")
        if not is_taken(template, messages):
            continue
        options = {"add_generation_prompt": roles[-1] != "assistant", "continue_final_message": roles[-1] == "assistant"}
        given = [{"role": message.role, "content": message.content} for message in messages]
        prompt = maker.of_chat(messages)
        assert prompt.text == tokenizer.apply_chat_template(given, chat_template=template.jinja, tokenize=False, **options)
        assert list(prompt.token_ids) == tokenizer.apply_chat_template(given, chat_template=template.jinja, **options)["input_ids"]


def rendered(template: str, *messages: tuple[str, str]) -> RenderedChat:
    return chat.render(byte_level_tokenizer(), [ChatMessage(role, content) for role, content in messages], template)  # type: ignore[arg-type]


def owned(found: RenderedChat) -> list[tuple[int | None, str]]:
    """Runs of characters of one message."""
    assert found.messages is not None, found.reason
    runs: list[tuple[int | None, str]] = []
    for character, owner in zip(found.text, found.messages, strict=True):
        if runs and runs[-1][0] == owner:
            runs[-1] = owner, runs[-1][1] + character
        else:
            runs.append((owner, character))
    return runs


EACH = "{% for m in messages %}"


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        pytest.param(EACH + "{{ m.content }}{% endfor %}", [("user", "ab"), ("user", "ab")], [(0, "ab"), (1, "ab")], id="no separators"),
        pytest.param(
            EACH + "a{{ m.content }}a{% endfor %}", [("user", "aa")], [(None, "a"), (0, "aa"), (None, "a")], id="look-alike header"
        ),
        pytest.param(
            EACH + ":\n{{ m.content | trim }}\n{% endfor %}", [("user", "\nx\n")], [(None, ":\n"), (0, "x"), (None, "\n")], id="trim"
        ),
        pytest.param(
            EACH + ":\n{{ m.content.strip('\\n') }}\n{% endfor %}",
            [("user", "\n x \n")],
            [(None, ":\n"), (0, " x "), (None, "\n")],
            id="strips only newlines",
        ),
        pytest.param(EACH + "{{ m.content | upper }}!{% endfor %}", [("user", "héy!")], [(0, "HÉY!"), (None, "!")], id="upper"),
        pytest.param(
            EACH + "{{ m.content | replace('a', 'a') }}.{% endfor %}",
            [("user", "banana")],
            [(0, "banana"), (None, ".")],
            id="reads letters",
        ),
        pytest.param(EACH + "{{ m.content[:3] }}|{% endfor %}", [("user", "abcdef")], [(0, "abc"), (None, "|")], id="cut off"),
        pytest.param(
            EACH + "{{ m.content | length }} {{ m.content }}{% endfor %}", [("user", "abc")], [(None, "3 "), (0, "abc")], id="length"
        ),
        pytest.param(
            EACH + "{% if 'x' in m.content %}with x: {% endif %}{{ m.content }}{% endfor %}",
            [("user", "a x b")],
            [(None, "with x: "), (0, "a x b")],
            id="a branch by content",
        ),
        pytest.param(
            EACH + "{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
            [("system", "s"), ("user", "u")],
            [(1, "u")],
            id="dropped",
        ),
        pytest.param("{{ messages[0].content }}{{ messages[-1].content }}", [("user", "u")], [(0, "uu")], id="twice"),
        pytest.param("{{ messages | length }}", [("user", "1")], [(None, "1")], id="not used"),
        pytest.param(
            EACH
            + "{% if '</think>' in m.content %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') }}\n</think>\n\n"
            "{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
            [("user", "<think>plan</think>answer"), ("user", "x")],
            [(None, "<think>\n"), (0, "plan"), (None, "\n</think>\n\n"), (0, "answer"), (1, "x")],
            id="thought written anew",
        ),
        pytest.param(
            EACH + "{{ m.content.split('</think>')[-1] }}{% endfor %}",
            [("user", "<think>\n</think>\n\na"), ("user", "b")],
            [(0, "\n\na"), (1, "b")],
            id="rest of a thought",
        ),
    ],
)
def test_a_template_may_do_what_it_likes_with_a_message(template: str, messages: list, expected: list) -> None:
    assert owned(rendered(template, *messages)) == expected


@pytest.mark.parametrize(
    ("template", "content"),
    [
        pytest.param("{{ messages[0].content | upper }} {{ messages[0].content | upper }}", "ab", id="rewritten and repeated"),
        pytest.param("{{ messages[0].content | replace('a', 'xyz') }}", "banana", id="letters replaced"),
        pytest.param("{{ messages[0].content | replace('a', 'xyz') | upper }}", "banana", id="letters replaced and rewritten"),
        pytest.param("{{ messages[0].content.split('|') | reverse | join('|') }}", "a|b", id="reordered"),
        pytest.param("{{ messages[0].content | int + 1 }}", "41", id="computed"),
        pytest.param("{{ messages[0].content | wordcount }}", "one two", id="counted"),
        pytest.param("{% if messages[0].content == 'yes' %}It is yes.{% else %}no{% endif %}", "yes", id="branch that quotes"),
    ],
)
def test_a_message_that_cannot_be_found_is_not_guessed(template: str, content: str) -> None:
    found = rendered(template, ("user", content))
    assert found.text
    if found.messages is not None:
        # What is certain may be told: letters that went through unchanged, nothing else.
        assert all(found.text[place] in content for place, owner in enumerate(found.messages) if owner is not None)
        assert owned(found) != [(0, found.text)]
        return
    assert found.reason == "The chat template changes message 0 (user) so that its place in the text cannot be told for certain."


@pytest.mark.parametrize(
    ("template", "content"),
    [
        pytest.param(
            "{% if '#' in messages[0].content %}{{ messages[0].content }}{{ messages[0].content }}{% endif %}", "a#", id="repeated ends"
        ),
        pytest.param(
            "{% if messages[0].content[0] == '#' %}x{% endif %}#{{ messages[0].content.lstrip('#') }}",
            "#a",
            id="sign of the template's own",
        ),
    ],
)
def test_ends_that_could_be_the_templates_are_not_guessed(template: str, content: str) -> None:
    found = rendered(template, ("user", content))
    assert found.messages is None
    assert found.reason == "The chat template changes message 0 (user) so that its place in the text cannot be told for certain."


def test_a_very_long_message_is_found(tokenizer: Any) -> None:
    """Longer than there are private characters."""
    content = "".join(chr(0x4E00 + index % 20000) for index in range(200_000))
    found = chat.render(tokenizer, [ChatMessage("user", content)], CHATML.jinja)
    assert owned(found) == [(None, "<|im_start|>user\n"), (0, content), (None, "<|im_end|>\n<|im_start|>assistant\n")]


def test_generation_markers_say_the_same(tokenizer: Any) -> None:
    messages = conversation("second turn", "and the store?")
    given = [{"role": message.role, "content": message.content} for message in messages]
    own = byte_level_tokenizer()
    own.add_tokens(list(PHI.special), special_tokens=True)
    marked = own.apply_chat_template(given, chat_template=PHI.jinja, return_assistant_tokens_mask=True, add_generation_prompt=True)
    prompt = PromptMaker("m", own, PHI.jinja).of_chat(messages)
    assert list(prompt.token_ids) == marked["input_ids"]
    by_marker = [text for text, mark in zip(prompt.token_texts, marked["assistant_masks"], strict=True) if mark]
    by_role = [text for text, role in zip(prompt.token_texts, prompt.roles, strict=True) if role == "assistant"]
    assert "".join(by_marker) == "Yes.\n<|end|>\n", "its markers hold the end of the turn too"
    assert "".join(by_role) == "Yes.\n"


# --- what is refused


@pytest.mark.parametrize(
    ("conversation", "sentence"),
    [
        ([], 'The conversation is empty. Give at least one message: {"role": "user", "content": "Hello"}.'),
        (
            [{"role": "model", "content": "x"}],
            "Message 0 of the conversation has the role 'model'. Expected one of: system, user, assistant, tool.",
        ),
        ([{"content": "x"}], "Message 0 of the conversation has the role None. Expected one of: system, user, assistant, tool."),
        ([{"role": "user", "content": None}], "Message 0 of the conversation has a content of type NoneType. Expected text."),
        ([ChatMessage("user", "x"), {"role": "user"}], "Message 1 of the conversation has a content of type NoneType. Expected text."),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "Message 0 of the conversation has a content of type list. Expected text.",
        ),
        (
            [{"role": "assistant", "content": "x", "tool_calls": []}],
            'Message 0 of the conversation has "tool_calls". A message here has only "role" and "content".',
        ),
        ([{"role": "user", "content": "x"}, 5], 'Message 1 of the conversation is 5. Expected {"role": "user", "content": "Hello"}.'),
    ],
)
def test_what_is_no_conversation_is_refused(conversation: list, sentence: str) -> None:
    with pytest.raises(PromptError) as caught:
        chat.messages_of(conversation)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("template", "messages", "sentence"),
    [
        (
            GEMMA.jinja,
            [("system", "s"), ("user", "u")],
            "The chat template refuses a conversation of system, user: System role not supported. Change its messages.",
        ),
        (
            LLAMA2.jinja,
            [("user", "u"), ("user", "u")],
            "The chat template refuses a conversation of user, user: Conversation roles must alternate user/assistant/user/assistant/... "
            "Change its messages.",
        ),
        (
            "{{ nothing.here }}",
            [("user", "u")],
            "The chat template fails on this conversation: 'nothing' is undefined. Change its messages.",
        ),
        (
            "{{ 1 / 0 }}",
            [("user", "u")],
            "The chat template fails on this conversation: ZeroDivisionError: division by zero. Change its messages.",
        ),
        (
            "{% for m in messages %}",
            [("user", "u")],
            "The chat template of this model is not valid Jinja: line 1: Unexpected end of template. Jinja was looking for the following tags: "
            "'endfor' or 'else'. The innermost block that needs to be closed is 'for'. Set \"chat_template\" for it in the configuration to a "
            "file with a valid one.",
        ),
        (
            "{{ messages[0].content }}",
            [("user", "u"), ("assistant", "Yes")],
            "The chat template leaves out a part of the last message, so that the model cannot continue it. "
            "Let the conversation end with a user's message, or shorten the assistant's.",
        ),
    ],
)
def test_what_a_template_refuses_is_a_sentence(template: str, messages: list, sentence: str) -> None:
    with pytest.raises(PromptError) as caught:
        rendered(template, *messages)
    assert str(caught.value) == sentence


def test_the_dropped_thought_of_an_earlier_turn_is_not_in_the_text(tokenizer: Any) -> None:
    messages = [ChatMessage("user", "q"), ChatMessage("assistant", "<think>secret</think>\n\nYes"), ChatMessage("user", "q")]
    found = chat.render(tokenizer, messages, THINKING.jinja)
    assert "secret" not in found.text
    assert (1, "Yes") in owned(found)
