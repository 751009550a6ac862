"""A prompt as a conversation: its turns in the sidebar, and what the chat template made of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import get_args

import streamlit as st

from app.markup import escaped
from app.session import Service
from llm_tt.engine.messages import Explanation
from llm_tt.text import ChatMessage, MessageRole, visible

_COLOURS = {"system": "violet", "user": "blue", "assistant": "green", "tool": "orange", "special": "gray", "continuation": "red"}
_HEIGHT = 80


def turns(service: Service, first: Callable[[str, str], str]) -> tuple[ChatMessage, ...]:
    """Let the user write a conversation. `first` draws the box of the first user message, by label and note."""
    demo_mode = service.config.demo_mode
    messages: list[ChatMessage] = []
    if not demo_mode:
        system = _box("System", "system_turn", "What the model is told before the conversation; left out if empty.")
        if system.strip():
            messages.append(ChatMessage("system", system))
    messages.append(ChatMessage("user", first("User", "The model answers this message.")))
    n_more = 0 if demo_mode else st.session_state.setdefault("n_turns", 0)
    for index in range(n_more):
        role: MessageRole = "user" if index % 2 else "assistant"
        messages.append(
            ChatMessage(role, _box(role.capitalize(), f"turn_{index}", "An earlier answer." if index % 2 == 0 else "The next message."))
        )
    # A pair that was added and not yet written into is none of the conversation.
    while len(messages) > 2 and n_more and not (messages[-1].content.strip() or messages[-2].content.strip()):
        messages, n_more = messages[:-2], n_more - 2
    if not demo_mode:
        with st.container(horizontal=True, gap="small"):
            st.button(
                "Turn",
                icon=":material/add:",
                key="add_turn",
                width="stretch",
                on_click=_change,
                args=(2,),
                help="Add an answer and the next message.",
            )
            if st.session_state.n_turns:
                st.button(
                    "Turn",
                    icon=":material/remove:",
                    key="remove_turn",
                    width="stretch",
                    on_click=_change,
                    args=(-2,),
                    help="Remove the last two.",
                )
    return tuple(messages)


def restore(service: Service, messages: tuple[ChatMessage, ...]) -> bool:
    """Put a conversation into the boxes, before they are drawn or in a callback; False if they have no place for it."""
    system, rest = ("", messages)
    if messages and messages[0].role == "system":
        system, rest = messages[0].content, messages[1:]
    alternating = [message.role for message in rest] == ["user" if index % 2 == 0 else "assistant" for index in range(len(rest))]
    if not alternating or len(rest) % 2 == 0 or (service.config.demo_mode and len(messages) > 1):
        return False
    boxes = {"system_turn": system, **{f"turn_{index}": message.content for index, message in enumerate(rest[1:])}}
    for key, content in boxes.items():
        st.session_state[key] = st.session_state[f"{key}_kept"] = content
    st.session_state.prompt = rest[0].content
    st.session_state.n_turns = len(rest) - 1
    st.session_state.prompt_form = "Chat"
    return True


def _box(label: str, key: str, note: str) -> str:
    # Kept under another name: a box that is not drawn for a while, as in a text prompt, loses what was written into it.
    st.session_state.setdefault(key, st.session_state.get(f"{key}_kept", ""))
    text = st.text_area(label, key=key, height=_HEIGHT, help=note)
    st.session_state[f"{key}_kept"] = text
    return text


def _change(by: int) -> None:
    st.session_state.n_turns = max(0, st.session_state.get("n_turns", 0) + by)


def show_received(explanation: Explanation) -> None:
    """The text that the model really received, by whose message each token belongs to; nothing for a plain text."""
    prompt = explanation.prompt
    if isinstance(explanation.trace.prompt, str):
        return
    with st.expander("What the model received", icon=":material/chat:", expanded=False):
        if prompt.no_roles:
            st.caption(escaped(prompt.no_roles))
            st.code(prompt.text or "", language=None, wrap_lines=True)
            return
        parts: list[str] = []
        roles: set[str] = set()
        for role, pairs in groupby(zip(prompt.roles, prompt.token_texts, strict=True), key=lambda pair: pair[0]):
            text = escaped(visible("".join(text for _, text in pairs)))
            roles.add(role or "special")
            parts.append(f":{_COLOURS[role or 'special']}-background[{text}]")
        st.markdown(" ".join(parts))
        shown = [role for role in (*get_args(MessageRole), "special", "continuation") if role in roles]
        names = {"special": "written by the template", "continuation": "generated by the model"}
        st.caption(" · ".join(f":{_COLOURS[role]}[{names.get(role, role)}]" for role in shown) + f" · {len(prompt.token_ids)} tokens")
