"""What the model predicts at the target: what the graph explains."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import streamlit as st

from app.markup import probability
from app.panels import csv_file
from llm_tt.export import files
from llm_tt.flow.graph import FlowGraph, named_targets
from llm_tt.lens.token_table import TokenTable
from llm_tt.text import visible


def show(
    graph: FlowGraph, predictions: TokenTable, following: TokenTable | None = None, explain: Callable[[int], None] | None = None
) -> None:
    """Where the graph has several targets, that these are the predictions of the last.

    Args:
        following: the token that comes next in the text, where there is one.
        explain: makes one of several targets the only one, in a callback.
    """
    if graph.targets:
        _several(graph, explain)
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", gap="small", key="predictions_head"):
        after = f":blue-background[`{_code(graph.token_texts[graph.target])}`]"
        st.markdown(f"**After** {after} (token {graph.target}) **the model predicts**")
        what = "The model's first choices: tokens exactly as they are, their ids, numbers in full."
        csv_file.button(lambda: files.tokens_csv(predictions), "llm-tt-predictions.csv", "predictions_csv", what)
    assert predictions.probabilities is not None
    table = pd.DataFrame({"token": [visible(text) for text in predictions.texts], "probability": predictions.probabilities})
    if following is not None:
        table["follows"] = ["\u25c0" if _is_same(following, token_id) else "" for token_id in predictions.token_ids]
    st.dataframe(
        table,
        hide_index=True,
        height=178,
        column_config={
            "token": st.column_config.TextColumn("next token", help="A dot is a space, as in ·Mary."),
            "probability": st.column_config.ProgressColumn(
                "probability", min_value=0, max_value=1, format="%.3f", help="After the final norm and a softmax over the whole vocabulary."
            ),
            "follows": st.column_config.TextColumn("", width=30, help="\u25c0 marks the token that really follows in the text."),
        },
    )
    if following is not None:
        st.markdown(follows(following), help="The next token of the prompt or of its continuation, as the model predicted it here.")


def _several(graph: FlowGraph, explain: Callable[[int], None] | None) -> None:
    text, button = st.columns([5, 3], gap="small", vertical_alignment="center") if explain is not None else (st.container(), None)
    text.markdown(
        f":small[The graph explains **what follows {named_targets(graph)}**, all at once. Below: the last of them.]",
        help="It is the union of the routes to each of them, and the flow their mean. Predictions, question, direct effects and other "
        "methods are about one prediction, that after the last.",
    )
    if button is not None:
        button.button(
            "Last only",
            icon=":material/filter_1:",
            key="explain_last",
            type="tertiary",
            width="stretch",
            on_click=explain,
            args=(graph.target,),
            help="Let the graph explain the last of them only.",
        )


def follows(following: TokenTable) -> str:
    """Which token follows in the text, and how well it was predicted."""
    assert following.probabilities is not None
    assert following.ranks is not None
    return (
        f"In the text follows :blue-background[`{_code(following.texts[0])}`]: rank **{following.ranks[0]:,}**, "
        f"probability **{probability(float(following.probabilities[0]))}**"
    )


def _is_same(following: TokenTable, token_id: int) -> bool:
    return int(following.token_ids[0]) == int(token_id)


def _code(text: str) -> str:
    """Token text for a Markdown code span, which ends at a backtick."""
    return visible(text).replace("`", "\u02cb")
