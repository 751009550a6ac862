"""What the model predicts at the target: what the graph explains."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from llm_tt.flow.graph import FlowGraph
from llm_tt.lens.token_table import TokenTable
from llm_tt.text import visible


def show(graph: FlowGraph, predictions: TokenTable) -> None:
    st.markdown(f"**After** :blue-background[`{_code(graph.token_texts[graph.target])}`] (token {graph.target}) **the model predicts**")
    assert predictions.probabilities is not None
    table = pd.DataFrame({"token": [visible(text) for text in predictions.texts], "probability": predictions.probabilities})
    st.dataframe(
        table,
        hide_index=True,
        height=213,
        column_config={
            "token": st.column_config.TextColumn("next token", help="A dot is a space, as in ·Mary."),
            "probability": st.column_config.ProgressColumn(
                "probability", min_value=0, max_value=1, format="%.3f", help="After the final norm and a softmax over the whole vocabulary."
            ),
        },
    )


def _code(text: str) -> str:
    """Token text for a Markdown code span, which ends at a backtick."""
    return visible(text).replace("`", "\u02cb")
