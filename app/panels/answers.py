"""What both sides of a comparison generate, side by side, with the tokens marked that the other does not have."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from app import session
from app.markup import escaped
from app.panels import compare_sidebar, continuation, difference
from app.session import ContinuingConversation, Service
from llm_tt.analysis.alignment import differing
from llm_tt.engine.messages import Continue, TraceKey
from llm_tt.models.continuation import Continuation
from llm_tt.text import visible

_POLL_SECONDS = 0.4
_MOST_TOKENS = 1000
_NUMBER = "compare_n_generated"
# The colours of the difference graph; the tint follows the page's theme.
_MARKS = ("light-dark(#d55e00,#ff9a4d)", "light-dark(#0072b2,#56b4e9)")


def show(service: Service, keys: tuple[TraceKey, TraceKey], names: tuple[str, str], has_one_tokenizer: bool) -> None:
    """Generate greedily on both sides; nothing is asked before the button is pressed. Both may then be compared along one of the answers."""
    sides = replace(keys[0], continuation=()), replace(keys[1], continuation=())
    session.hold(_NUMBER, 20)
    conversations = session.compared_answers()
    current = [_is_about(conversation, key) for conversation, key in zip(conversations, sides, strict=True)]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.number_input(
            "Tokens",
            min_value=1,
            max_value=_MOST_TOKENS,
            key=_NUMBER,
            width=140,
            help="How many tokens at most each side puts out, always its first choice; it may end before.",
        )
        st.button(
            "Generate on both",
            key="compare_generate",
            icon=":material/text_select_move_forward_character:",
            type="secondary" if any(current) else "primary",
            on_click=_generate,
            args=(service, sides),
            help="Let both sides answer, greedily, and mark where they differ.",
        )
    if keys != sides:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(f"Both are compared along {len(keys[0].continuation)} generated tokens after the prompt.")
            st.button(
                "Remove them",
                icon=":material/close:",
                key="compare_along_nothing",
                type="tertiary",
                on_click=compare_sidebar.go_along,
                args=(keys, ()),
                help="Compare the prompts alone again.",
            )
    if not any(current):
        st.caption("Both sides continue their prompt greedily; tokens that the other does not put out are marked.")
        return
    for conversation in conversations:
        conversation.look(service.engine)
    if any(conversation.phase == "working" for conversation in conversations):
        _watch(service)
    answers = [conversation.answer for conversation in conversations]
    texts = [() if answer is None else answer.token_texts for answer in answers]
    marks = differing(*texts) if None not in answers else ([False] * len(texts[0]), [False] * len(texts[1]))
    columns = st.columns(2, gap="medium")
    for side, (column, conversation, name) in enumerate(zip(columns, conversations, names, strict=True)):
        with column:
            st.markdown(f"**{escaped(name)}**")
            if conversation.phase == "failed":
                st.error(escaped(conversation.message), icon=":material/error:")
            answer = conversation.answer
            if answer is not None:
                st.html(text(answer, marks[side], side))
                st.caption(continuation.stopped(answer))
                if has_one_tokenizer and None not in answers and len(answer):
                    st.button(
                        "Compare along it",
                        icon=":material/start:",
                        key=f"compare_along_{side}",
                        on_click=_go_along,
                        args=(keys, answers, side, _parting(marks)),
                        help="Let both sides read this answer after their prompt: how probable its tokens are in both, and why they part where "
                        "they do.",
                    )
            elif conversation.phase == "cancelled":
                st.caption("Cancelled before the first token. Generate again to have an answer.")
    if None not in answers:
        st.caption(_said(marks))


def text(answer: Continuation, marks: Sequence[bool], side: int) -> str:
    """HTML: the tokens one after another, those that the other side lacks underlined and tinted. Text of tokens is text."""
    pieces: list[str] = []
    for token, probability, rank, is_own in zip(answer.token_texts, answer.probabilities, answer.ranks, marks, strict=True):
        colour = _MARKS[side]
        style = f"background:color-mix(in srgb,{colour} 18%,transparent);border-bottom:2px solid {colour};" if is_own else ""
        pieces.append(
            f'<span role="listitem" data-differs="{str(is_own).lower()}" title="p {probability:.3f}, rank {rank}" '
            f'style="{style}padding:1px 1px;border-radius:3px 3px 0 0">{html.escape(visible(token))}</span>'
        )
    return (
        f'<div role="list" data-testid="compared-answer-{side}" style="line-height:1.9;overflow-wrap:anywhere;'
        f'font-family:var(--st-code-font,monospace);font-size:0.9rem">{"".join(pieces)}</div>'
    )


def _go_along(keys: tuple[TraceKey, TraceKey], answers: Sequence[Continuation], side: int, parting: int) -> None:
    compare_sidebar.go_along(keys, answers[side].token_ids)
    # What is explained is the prediction of the first token that differs.
    first, second = (answer.start - 1 + min(parting, len(answers[side]) - 1) for answer in answers)
    difference.want_targets((first, second))


def _parting(marks: tuple[Sequence[bool], Sequence[bool]]) -> int:
    """The first token that differs; of equal answers the first one."""
    return min((list(side).index(True) for side in marks if any(side)), default=0)


def _said(marks: tuple[Sequence[bool], Sequence[bool]]) -> str:
    n_first, n_second = sum(marks[0]), sum(marks[1])
    if not n_first and not n_second:
        return "Both put out the same tokens."
    return f"They part at token {_parting(marks) + 1}: {n_first} of {len(marks[0])} and {n_second} of {len(marks[1])} tokens are not the other's."


def _is_about(conversation: ContinuingConversation, key: TraceKey) -> bool:
    return conversation.question is not None and conversation.question.trace == key


def _generate(service: Service, sides: tuple[TraceKey, TraceKey]) -> None:
    for conversation, key in zip(session.compared_answers(), sides, strict=True):
        conversation.answer = None
        conversation.again()
        conversation.ask(service.engine, Continue(key, int(st.session_state[_NUMBER])))


@st.fragment(run_every=_POLL_SECONDS)
def _watch(service: Service) -> None:
    conversations = session.compared_answers()
    for conversation in conversations:
        conversation.look(service.engine)
    working = [conversation.job for conversation in conversations if conversation.phase == "working" and conversation.job is not None]
    if not working:
        st.rerun()
    statuses = [service.engine.status(job) for job in working]
    done = len(conversations) - len(working)
    fraction = (done + sum(status.fraction for status in statuses)) / len(conversations)
    bar, button = st.columns([6, 1], vertical_alignment="center")
    bar.progress(fraction, text=escaped(statuses[0].stage))
    if button.button(
        "Cancel", icon=":material/close:", key="compare_cancel_answers", help="Stop after the current tokens, and keep what has come."
    ):
        for job in working:
            service.engine.cancel(job)
