"""A prompt as a conversation: its turns in the sidebar, and what the chat template made of them."""

from __future__ import annotations

import html
from collections.abc import Callable
from itertools import groupby
from typing import get_args

import streamlit as st

from app import colours, kept
from app.markup import escaped
from app.session import Service
from llm_tt.engine.messages import Explanation
from llm_tt.text import ChatMessage, MessageRole, visible

_HEIGHT = 80


def turns(service: Service, first: Callable[[str, str], str], prefix: str = "") -> tuple[ChatMessage, ...]:
    """Let the user write a conversation. `first` draws the box of the first user message, by label and note; `prefix` begins the keys of all
    other widgets."""
    demo_mode = service.config.demo_mode
    messages: list[ChatMessage] = []
    if not demo_mode:
        system = _box("System", f"{prefix}system_turn", "What the model is told before the conversation; left out if empty.")
        if system.strip():
            messages.append(ChatMessage("system", system))
    messages.append(ChatMessage("user", first("User", "The model answers this message.")))
    n_more = 0 if demo_mode else st.session_state.setdefault(f"{prefix}n_turns", 0)
    for index in range(n_more):
        role: MessageRole = "user" if index % 2 else "assistant"
        note = "An earlier answer." if index % 2 == 0 else "The next message."
        messages.append(ChatMessage(role, _box(role.capitalize(), f"{prefix}turn_{index}", note)))
    # A pair that was added and not yet written into is none of the conversation.
    while len(messages) > 2 and n_more and not (messages[-1].content.strip() or messages[-2].content.strip()):
        messages, n_more = messages[:-2], n_more - 2
    if not demo_mode:
        with st.container(horizontal=True, gap="small"):
            st.button(
                "Turn",
                icon=":material/add:",
                key=f"{prefix}add_turn",
                width="stretch",
                on_click=_change,
                args=(2, prefix),
                help="Add an answer and the next message.",
            )
            if st.session_state[f"{prefix}n_turns"]:
                st.button(
                    "Turn",
                    icon=":material/remove:",
                    key=f"{prefix}remove_turn",
                    width="stretch",
                    on_click=_change,
                    args=(-2, prefix),
                    help="Remove the last two.",
                )
    return tuple(messages)


def restore(service: Service, messages: tuple[ChatMessage, ...]) -> bool:
    """Put a conversation into the boxes, before they are drawn or in a callback; False if they have no place for it."""
    first = restore_turns(service, messages)
    if first is None:
        return False
    st.session_state.prompt = first
    st.session_state.prompt_form = "Chat"
    return True


def restore_turns(service: Service, messages: tuple[ChatMessage, ...], prefix: str = "") -> str | None:
    """Put all but the first user message into the boxes that `turns` draws, and return that one; None if they have no place for them."""
    system, rest = ("", messages)
    if messages and messages[0].role == "system":
        system, rest = messages[0].content, messages[1:]
    alternating = [message.role for message in rest] == ["user" if index % 2 == 0 else "assistant" for index in range(len(rest))]
    if not alternating or len(rest) % 2 == 0 or (service.config.demo_mode and len(messages) > 1):
        return None
    boxes = {f"{prefix}system_turn": system, **{f"{prefix}turn_{index}": message.content for index, message in enumerate(rest[1:])}}
    for key, content in boxes.items():
        kept.put(key, content)
    st.session_state[f"{prefix}n_turns"] = len(rest) - 1
    return rest[0].content


def _box(label: str, key: str, note: str) -> str:
    kept.hold(key, "")
    return st.text_area(label, key=key, height=_HEIGHT, help=note)


def _change(by: int, prefix: str) -> None:
    st.session_state[f"{prefix}n_turns"] = max(0, st.session_state.get(f"{prefix}n_turns", 0) + by)


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
            roles.add(role or "special")
            parts.append(_marked(role, visible("".join(text for _, text in pairs))))
        st.html(f'<div data-testid="received" style="line-height:1.9;overflow-wrap:anywhere">{" ".join(parts)}</div>')
        shown = [role for role in (*get_args(MessageRole), "special", "continuation") if role in roles]
        names = {"special": "written by the template", "continuation": "generated by the model"}
        legend = [_marked(role, names.get(role, role)) for role in shown]
        st.html(f'<div style="font-size:0.875rem">{" ".join(legend)} · {len(prompt.token_ids)} tokens</div>')


def _marked(role: str | None, text: str) -> str:
    """HTML: text over a tint of its speaker's colour, underlined with it. The text is text."""
    colour = colours.role(role)
    tint = f"background:color-mix(in srgb,{colour} 14%,transparent);border-bottom:2px solid {colour}"
    return f'<span data-role="{role or "special"}" style="{tint};padding:1px 3px;border-radius:3px 3px 0 0">{html.escape(text)}</span>'
