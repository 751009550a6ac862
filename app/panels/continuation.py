"""The continuation: let the model go on after the prompt, watch it come, and choose one of its tokens to be explained."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import session, span
from app.link import Selected
from app.markup import escaped, probability
from app.session import Continuing, ContinuingConversation, Service
from llm_tt.engine.messages import Continue, ModelKey, ReadContinuation, TraceKey
from llm_tt.errors import LlmTtError
from llm_tt.models.continuation import Continuation
from llm_tt.text import ChatMessage, visible

TOKENS, WHOLE = "continued_tokens", "whole_answer"
_GREEDY, _SAMPLED = "Greedy", "Sampled"
_POLL_SECONDS = 0.25
_MOST_TOKENS = 1000
_HEIGHT = 260
"""Pixels for the tokens of a long continuation, which scroll"""
_MANY = 24


def show(service: Service, model: ModelKey | None, prompt: str | tuple[ChatMessage, ...], has_prompt: bool) -> tuple[int, ...]:
    """Draw the panel, below the prompt; the ids of what the model has put out after it."""
    key = TraceKey(model, prompt) if model is not None and has_prompt else None
    state = session.continuing()
    if state.key != key:
        # Another prompt or model: what was generated belongs to the one before.
        state.drop(service.engine)
        state.key = key
        _take_restored(service, state)
    conversation = state.conversation
    conversation.look(service.engine)
    _join(state)
    answer = conversation.answer
    if answer is not None and answer is not state.seen:
        _keep_target(answer, state.seen)
        state.seen = answer
    with st.expander("Continuation", icon=":material/text_select_move_forward_character:", key="continuation"):
        _controls(service, key)
        if conversation.phase == "working":
            _watch(service, conversation)
        elif conversation.phase == "cancelled":
            st.caption("Cancelled before the first token.")
        if answer is not None:
            _tokens(answer)
            with st.container(horizontal=True, gap="small"):
                st.button(
                    "More",
                    icon=":material/add:",
                    key="continue_more",
                    disabled=answer.stop == "end" or conversation.phase == "working",
                    on_click=_generate,
                    args=(service, key, answer),
                    help="Let the model go on after these tokens, by as many as are asked for above, with the same sampling. "
                    "Off when the model has ended the sequence.",
                )
                st.button(
                    "Remove",
                    icon=":material/close:",
                    key="remove_continuation",
                    on_click=_remove,
                    args=(service,),
                    help="Explain the prompt alone again.",
                )
    if conversation.phase == "failed":
        # Not in there, where it is not seen while the panel is folded.
        st.error(escaped(conversation.message), icon=":material/error:")
    question = conversation.question
    if answer is None and conversation.phase == "working" and isinstance(question, ReadContinuation):
        return question.trace.continuation
    return () if answer is None else answer.token_ids


def restore(prompt: str | tuple[ChatMessage, ...], token_ids: tuple[int, ...]) -> None:
    """Let the prompt go on with these tokens, once it is the one to be run. Before the panel is drawn, or in a callback."""
    st.session_state.continuation_restored = prompt, token_ids
    # The same prompt may be there already, and then it is no new one.
    session.continuing().key = None


def _take_restored(service: Service, state: Continuing) -> None:
    prompt, token_ids = st.session_state.get("continuation_restored", (None, ()))
    if state.key is not None and state.key.prompt == prompt:
        del st.session_state.continuation_restored
        state.conversation.ask(service.engine, ReadContinuation(replace(state.key, continuation=token_ids)))


def _controls(service: Service, key: TraceKey | None) -> None:
    mode = st.segmented_control(
        "Next token",
        [_GREEDY, _SAMPLED],
        default=_GREEDY,
        required=True,
        key="continue_by",
        label_visibility="collapsed",
        width="stretch",
        help="Greedy: always the model's first choice. Sampled: drawn from its probabilities, shaped by the numbers below.",
    )
    # Drawn though greedy does not need them: numbers of boxes that are not drawn would be lost.
    greedy = mode != _SAMPLED
    with st.popover("Sampling", icon=":material/casino:", width="stretch", help="Temperature, top-p, top-k and seed."):
        left, right = st.columns(2)
        left.number_input(
            "Temperature",
            min_value=0.05,
            max_value=5.0,
            value=1.0,
            step=0.1,
            key="temperature",
            disabled=greedy,
            help="Logits are divided by it: below 1 likely tokens become likelier, above 1 unlikely ones do. For sampling only.",
        )
        right.number_input(
            "Top-p",
            min_value=0.01,
            max_value=1.0,
            value=1.0,
            step=0.05,
            key="top_p",
            disabled=greedy,
            help="Draw only from the fewest first choices that have this probability together; 1 is all tokens. For sampling only.",
        )
        left.number_input(
            "Top-k",
            min_value=0,
            value=0,
            key="top_k",
            disabled=greedy,
            help="Draw only from this many first choices; 0 is all tokens. For sampling only.",
        )
        right.number_input(
            "Seed", min_value=0, value=0, key="seed", disabled=greedy, help="The same seed draws the same text again. For sampling only."
        )
    left, right = st.columns([4, 5], gap="small", vertical_alignment="bottom")
    left.number_input(
        "Tokens",
        min_value=1,
        max_value=_MOST_TOKENS,
        value=20,
        key="n_continued",
        help="How many tokens at most; the model may end before. They count for its context, as the prompt does.",
    )
    right.button(
        "Generate",
        key="generate",
        width="stretch",
        disabled=key is None,
        on_click=_generate,
        args=(service, key),
        help="Let the model continue the prompt. Its tokens join those of the prompt in the graph.",
    )


def joined(first: Continuation, then: Continuation) -> Continuation:
    """Tokens, and those that the model put out after them, as one continuation. A character divided between the two stays unfinished."""
    return Continuation(
        first.start,
        first.token_ids + then.token_ids,
        first.token_texts + then.token_texts,
        first.text + then.text,
        first.probabilities + then.probabilities,
        first.ranks + then.ranks,
        then.stop,
    )


def _join(state: Continuing) -> None:
    """Put what has come after a continuation to it; until then, or if nothing comes, the continuation stays as it is."""
    before, answer = state.before, state.conversation.answer
    if before is None or answer is None or answer.start != before.start + len(before):
        return
    if st.session_state.get("target") is None:
        # The last token was explained, which is the last no longer.
        st.session_state.target = answer.start - 1
    state.conversation.answer, state.before = joined(before, answer), None


def _generate(service: Service, key: TraceKey, before: Continuation | None = None) -> None:
    """Continue the prompt, or what it already goes on with."""
    chosen = st.session_state
    session.continuing().before = before
    if before is not None:
        key = replace(key, continuation=before.token_ids)
    question = Continue(key, int(chosen.n_continued))
    if chosen.continue_by == _SAMPLED:
        question = Continue(
            key,
            int(chosen.n_continued),
            temperature=float(chosen.temperature),
            top_k=int(chosen.top_k) or None,
            top_p=float(chosen.top_p) if chosen.top_p < 1 else None,
            seed=int(chosen.seed),
        )
    conversation = session.continuing().conversation
    if conversation.phase != "working":
        # Also the same question once more, as after a cancelled one.
        conversation.again()
    conversation.ask(service.engine, question)


@st.fragment(run_every=_POLL_SECONDS)
def _watch(service: Service, conversation: ContinuingConversation) -> None:
    """The text as it comes."""
    conversation.look(service.engine)
    if conversation.phase != "working" or conversation.job is None:
        st.rerun()
    try:
        status = service.engine.status(conversation.job)
    except LlmTtError:
        # Said by `look` in the next run.
        return
    waiting = f" · {status.position} before you" if status.position else ""
    st.progress(status.fraction, text=f"{status.stage}{waiting}")
    if status.so_far is not None:
        st.code(status.so_far.text, language=None, wrap_lines=True)
    if st.button(
        "Cancel", icon=":material/close:", key="cancel_continuation", help="Stop after the current token, and keep what has come."
    ):
        service.engine.cancel(conversation.job)


def _tokens(answer: Continuation) -> None:
    """What came, to choose from: the target is then the token before, which predicted it."""
    target = st.session_state.get("target")
    index = None if target is None or span.first() is not None else int(target) + 1 - answer.start
    st.session_state[TOKENS] = index if index is not None and 0 <= index < len(answer) else None

    def label(index: int) -> str:
        return f"{escaped(visible(answer.token_texts[index]))} :small[{probability(answer.probabilities[index])}]"

    if len(answer) > 1:
        st.session_state[WHOLE] = span.is_on(*_targets(answer))
        st.toggle(
            "Whole answer",
            key=WHOLE,
            on_change=_explain_whole,
            args=(answer,),
            help="Explain all tokens of the answer at once: the graph is then the union of the routes to each of them, and the flow their mean. "
            "Choose a token below, or in the graph, to explain it alone.",
        )
    with st.container(height=_HEIGHT if len(answer) > _MANY else "content", border=False):
        st.pills(
            "Why this token?",
            range(len(answer)),
            format_func=label,
            key=TOKENS,
            on_change=_explain,
            args=(answer,),
            help="Choose a token to see why it came: the graph then explains the prediction before it. Beside each its probability, by the "
            "model's own softmax.",
        )
    st.caption(stopped(answer))


def stopped(answer: Continuation) -> str:
    """Why nothing follows, in words."""
    tokens = f"{len(answer)} token{'' if len(answer) == 1 else 's'}"
    if answer.stop == "end":
        return f"{tokens}; the model ended the sequence."
    if answer.stop is None:
        return f"{tokens}, as the link has them."
    return f"{tokens}, then cancelled." if answer.stop == "cancelled" else f"{tokens}, as many as were asked for."


def _explain(answer: Continuation) -> None:
    index = st.session_state.get(TOKENS)
    if index is not None:
        span.explain(answer.start + int(index) - 1)


def _targets(answer: Continuation) -> tuple[int, int]:
    """The first and the last position that predicted a token of the answer."""
    return answer.start - 1, answer.start + len(answer) - 2


def _explain_whole(answer: Continuation) -> None:
    if st.session_state.get(WHOLE):
        span.choose(*_targets(answer))
        return
    span.end()
    if st.session_state.get("target", -1) >= answer.start + len(answer):
        # The answer was longer when that token was chosen.
        span.explain(answer.start - 1)


def _keep_target(answer: Continuation, last: Continuation | None) -> None:
    """What was explained stays explained, though the last token is another one now: of the whole answer all of what it is now."""
    if last is not None and span.is_on(*_targets(last)):
        span.choose(*_targets(answer))
        _keep_selection(answer.start + len(answer))
        return
    target = st.session_state.get("target")
    if answer.stop is not None and (target is None or target >= answer.start + len(answer)):
        st.session_state.target = answer.start - 1
        _keep_selection(answer.start + len(answer))


def _keep_selection(n_tokens: int) -> None:
    """What is selected stays so where that many tokens still have it."""
    selected = Selected.of(st.session_state.get("selection"))
    if selected is not None and any(node.position >= n_tokens for node in selected.nodes):
        st.session_state.pop("selection", None)


def _remove(service: Service) -> None:
    state = session.continuing()
    answer = state.conversation.answer
    state.drop(service.engine)
    if answer is None:
        return
    if st.session_state.get("target", -1) >= answer.start - 1:
        st.session_state.pop("target", None)
    _keep_selection(answer.start)
