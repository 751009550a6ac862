"""A conversation as the prompt: sent as messages, shown as the model received it."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_explore import DEMO, Start, answered, errors, frame, start  # noqa: F401

import llm_tt
from app.colours import ROLES_ON_DARK, ROLES_ON_LIGHT
from llm_tt.text import ChatMessage

QUESTION = "Is this payment risky? 900 dollars to Oslo"


@pytest.fixture(scope="module")
def demo() -> llm_tt.TransparentLlm:
    return llm_tt.load_model("demo")


def as_chat(at: AppTest) -> AppTest:
    at.button_group(key="prompt_form").set_value("Chat")
    return answered(at)


def received(at: AppTest) -> str:
    return next(part.proto.body for part in at.get("html") if 'data-testid="received"' in part.proto.body)


def test_a_model_with_a_template_takes_a_text_or_a_conversation_and_keeps_what_was_typed(start: Start, demo: Any) -> None:  # noqa: F811
    at = start(DEMO, QUESTION)
    plain = demo.trace(QUESTION)
    assert frame(at)[0]["tokens"] == list(plain.token_texts)
    assert frame(at)[0]["roles"] == ["special", *[None] * (plain.n_tokens - 1)]
    at = as_chat(at)
    expected = demo.trace([ChatMessage("user", QUESTION)])
    header, arrays = frame(at)
    assert header["tokens"] == list(expected.token_texts)
    assert header["roles"] == list(expected.prompt.roles)
    assert {*header["roles"]} == {"special", "user"}
    assert arrays["weight"] == pytest.approx(llm_tt.extract_routes(expected).weight, abs=1e-6)
    assert at.text_area(key="prompt").label == "User"
    at.button_group(key="prompt_form").set_value("Text")
    at = answered(at)
    assert at.text_area(key="prompt").value == QUESTION
    assert frame(at)[0]["tokens"] == list(demo.trace(QUESTION).token_texts)


def test_earlier_turns_are_sent_in_order(start: Start, demo: Any) -> None:  # noqa: F811
    at = as_chat(start(DEMO, QUESTION))
    at.button(key="add_turn").click()
    at = answered(at)
    assert len(at.session_state["conversation"].question.trace.prompt) == 1, "nothing is written into the new turns yet"
    at.text_area(key="turn_0").set_value("no")
    at.text_area(key="turn_1").set_value("And 5 dollars to Rome?")
    at = answered(at)
    conversation = [ChatMessage("user", QUESTION), ChatMessage("assistant", "no"), ChatMessage("user", "And 5 dollars to Rome?")]
    assert not errors(at)
    assert at.session_state["conversation"].question.trace.prompt == tuple(conversation)
    assert frame(at)[0]["tokens"] == list(demo.trace(conversation).token_texts)
    at.button(key="remove_turn").click()
    at = answered(at)
    assert at.session_state["conversation"].question.trace.prompt == (conversation[0],)


def test_a_template_that_refuses_says_why_and_nothing_is_lost(start: Start) -> None:  # noqa: F811
    at = as_chat(start(DEMO, QUESTION))
    at.text_area(key="system_turn").set_value("Be brief.")
    at = answered(at)
    prompt = at.session_state["conversation"].question.trace.prompt
    assert prompt[0] == ChatMessage("system", "Be brief.")
    assert at.text_area(key="system_turn").value == "Be brief."
    assert at.text_area(key="prompt").value == QUESTION


def test_an_empty_conversation_says_what_to_do(start: Start) -> None:  # noqa: F811
    at = as_chat(start(DEMO, QUESTION))
    at.text_area(key="prompt").set_value("  ")
    assert "The prompt is empty" in answered(at).info[0].value


def test_what_the_model_received_is_shown_by_role(start: Start, demo: Any) -> None:  # noqa: F811
    at = start(DEMO, QUESTION)
    assert all("What the model received" not in expander.label for expander in at.expander)
    at = as_chat(at)
    assert any("What the model received" in expander.label for expander in at.expander)
    roles = set(demo.prompt([ChatMessage("user", QUESTION)]).roles)
    assert roles == {"user", "special"}
    shown = received(at)
    spoken = re.findall(r'<span data-role="(\w+)" style="([^"]*)">([^<]*)</span>', shown)
    assert spoken[0][0] == "special"
    assert spoken[0][2].startswith("&lt;bos&gt;")
    (style, text), *others = [(style, text) for role, style, text in spoken if role == "user"]
    assert not others
    assert ROLES_ON_LIGHT["user"] in style
    assert ROLES_ON_DARK["user"] in style
    assert html.unescape(text).replace("\u00b7", " ").strip() == QUESTION


def test_a_prompt_without_roles_is_shown_with_the_reason() -> None:
    class Told:
        trace = type("Trace", (), {"prompt": (ChatMessage("user", "x"),)})
        prompt = llm_tt.text.Prompt("[x]", (1, 2), ("[x", "]"), (None, None), (None, None), "The template changes the message.")

    def script() -> None:
        import streamlit as st

        from app.panels import chat

        chat.show_received(st.session_state["explanation"])

    at = AppTest.from_function(script)
    at.session_state["explanation"] = Told()
    at.run()
    assert not at.exception
    assert at.caption[0].value == "The template changes the message."
    assert at.code[0].value == "[x]"


def test_a_model_without_a_template_takes_text_only(start: Start, checkpoint: Any) -> None:  # noqa: F811
    at = start({"models": {"tiny": str(checkpoint("gpt2"))}, "default_model": "tiny"}, "Mary")
    assert at.text_area(key="prompt").label == "Prompt"
    assert not any(group.key == "prompt_form" for group in at.button_group)
