"""The question: why this token and not that one; what speaks for it and what against. Graph and inspector show the same effects."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import kept
from app.markup import escaped, signed
from app.session import Service
from llm_tt.engine.messages import ExplainLogit, Explanation
from llm_tt.errors import LlmTtError
from llm_tt.lens.direct_effects import DirectEffects, LogitQuestion, Part, Token
from llm_tt.text import visible

TOKEN, CONTRAST = "why_token", "why_contrast"
_STRONGEST = 8
_HELP = (
    "Direct effect: what a part writes to the target's own position, read by the final norm (its scale held fixed) and the unembedding. "
    "Parts elsewhere reach the logit only through later attention and have none. "
)
_CAPPED = "This model caps its logits: effects are those before the cap. "


def show(service: Service, explanation: Explanation) -> None:
    """Choose what is explained, and see what raises and what lowers it. Stands beside the predictions."""
    left, right = st.columns(2)
    with left:
        _box(explanation, TOKEN, "Why", f"{visible(explanation.predictions.texts[0])} (predicted)")
    with right:
        _box(explanation, CONTRAST, "and not", "nothing")
    try:
        effects = _ask(service, explanation)
    except LlmTtError as error:
        st.error(escaped(str(error)), icon=":material/error:")
        return
    if effects is None:
        st.caption("The model is no longer in memory, so that effects cannot be told. Load it again below.")
        return
    for note in effects.notes:
        st.caption(escaped(note))
    st.markdown(_result(effects), help=_HELP + ("" if effects.capped_logit is None else _CAPPED))
    with st.expander("Parts for and against", key="question_parts"):
        _parts(effects)


def effects(service: Service, explanation: Explanation) -> DirectEffects | None:
    """The effects that are in question at the explained target; None when the question has none, or the model is not in memory.

    The engine keeps them with their trace: another threshold computes nothing.
    """
    try:
        return _ask(service, explanation)
    except LlmTtError:
        # Said by `show`.
        return None


def logit(effects: DirectEffects) -> LogitQuestion:
    """The question that effects answer, with all its tokens known."""
    return LogitQuestion(effects.target, effects.token_id, effects.contrast_id)


def _ask(service: Service, explanation: Explanation) -> DirectEffects | None:
    if not service.engine.is_loaded(explanation.trace.model):
        # Answering would load it while the page stands still.
        return None
    token, contrast = tokens(explanation)
    return service.engine.answer(ExplainLogit(explanation.trace, explanation.graph.target, token, contrast))


def tokens(explanation: Explanation) -> tuple[Token | None, Token | None]:
    """What is explained, and against what, as the boxes have it."""
    return _token(explanation, chosen(TOKEN)), _token(explanation, chosen(CONTRAST))


def chosen(key: str) -> str | None:
    """What a box holds: TOKEN or CONTRAST."""
    return kept.held(key)


def choose(token: str | None, contrast: str | None) -> None:
    """Put a question into the boxes, in a callback: what would be typed, None for an empty one."""
    for key, typed in ((TOKEN, token), (CONTRAST, contrast)):
        kept.put(key, typed)


def _token(explanation: Explanation, chosen: str | None) -> Token | None:
    """What a box holds: a prediction as its options show it, or what was typed."""
    if chosen is None:
        return None
    predictions, follows = explanation.predictions, explanation.following
    if follows is not None and chosen == _following(explanation):
        return int(follows.token_ids[0])
    for token_id, text in zip(predictions.token_ids, predictions.texts, strict=True):
        if visible(text) == chosen:
            return int(token_id)
    return chosen


def _following(explanation: Explanation) -> str | None:
    """The option of the token that follows in the text; by its number where a prediction looks the same."""
    follows = explanation.following
    if follows is None:
        return None
    shown, token_id = visible(follows.texts[0]), int(follows.token_ids[0])
    alike = {
        int(other)
        for other, text in zip(explanation.predictions.token_ids, explanation.predictions.texts, strict=True)
        if visible(text) == shown
    }
    return shown if alike <= {token_id} else f"id:{token_id}"


def _box(explanation: Explanation, key: str, label: str, placeholder: str) -> None:
    kept.hold(key, None)
    options = list(dict.fromkeys(visible(text) for text in explanation.predictions.texts))
    follows = _following(explanation)
    if key == TOKEN and follows is not None and follows not in options:
        options.append(follows)
    chosen = st.session_state[key]
    st.selectbox(
        label,
        options if chosen is None or chosen in options else [*options, chosen],
        index=None,
        placeholder=placeholder,
        key=key,
        accept_new_options=True,
        help="One of the model's first choices, the token that follows in the text, or any other: type its text, with the space that begins "
        "it, or its number, as in id:42.",
    )


def _result(effects: DirectEffects) -> str:
    what = "Logit of" if effects.contrast_id is None else "Difference of logits"
    of = effects.of.replace("`", "\u02cb")
    # In half precision the model rounds between its blocks.
    return f"{what} `{of}`: **{signed(effects.logit)}** · sum of the parts **{signed(effects.total)}**"


def _parts(effects: DirectEffects) -> None:
    raising, lowering = effects.strongest(_STRONGEST)
    shown = raising + lowering[::-1]
    most = max((abs(part.effect) for part in shown), default=0.0) or 1.0
    rest = effects.total - sum(part.effect for part in shown)
    st.dataframe(
        pd.DataFrame([_row(part) for part in shown], columns=["part", "effect", "lowers", "raises"]),
        hide_index=True,
        height=min(35 * len(shown) + 38, 340),
        placeholder="",
        column_config={
            "part": st.column_config.TextColumn("part", width=84, help="L2 H1: layer 2, head 1, summed over the tokens it reads."),
            "effect": st.column_config.NumberColumn("effect", width=62, format="%+.3f", help="In logits."),
            "lowers": st.column_config.ProgressColumn(
                "against", width=70, min_value=0, max_value=most, format=" ", color="orange", help="How much it lowers what is explained."
            ),
            "raises": st.column_config.ProgressColumn(
                "for", width=70, min_value=0, max_value=most, format=" ", color="blue", help="How much it raises what is explained."
            ),
        },
    )
    n_others = len(effects.parts()) - len(shown)
    if n_others:
        st.caption(f"{n_others} other {'part' if n_others == 1 else 'parts'}: {signed(rest)}. All parts: {signed(effects.total)}.")


def _row(part: Part) -> dict[str, Any]:
    return {
        "part": part.name,
        "effect": part.effect,
        "lowers": -part.effect if part.effect < 0 else None,
        "raises": part.effect if part.effect > 0 else None,
    }
