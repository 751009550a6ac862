"""Tables of tokens with scores, as every panel shows them: sortable, to be copied, with bars in cells and visible spaces."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app.panels import csv_file
from llm_tt.export import files
from llm_tt.lens.token_table import TokenTable
from llm_tt.text import visible

_HEIGHT = 340
DOT = "A dot is a space, as in ·Mary."


def top_tokens(top: TokenTable, block: str | None, csv_key: str | None = None) -> None:
    """What a representation says, with the ranks that tokens gained by the block before it. `csv_key`: offer it as a file as well."""
    columns: dict[str, Any] = {
        "rank": top.ranks,
        "token": [visible(text) for text in top.texts],
        "score": top.scores,
        "probability": top.probabilities,
    }
    if top.rank_changes is not None:
        columns["moved"] = top.rank_changes
    st.dataframe(
        pd.DataFrame(columns),
        hide_index=True,
        height=_HEIGHT,
        column_config={
            "rank": st.column_config.NumberColumn("#", width=40, help="Rank; 1 is the highest score of the vocabulary."),
            "token": st.column_config.TextColumn("token", width=52, help=DOT),
            "score": st.column_config.NumberColumn("score", width=58, format="%.2f", help="Logit, if this were the last layer."),
            "probability": st.column_config.ProgressColumn(
                "p", width=84, min_value=0, max_value=1, format="%.3f", help="Softmax of the scores."
            ),
            "moved": st.column_config.NumberColumn(
                "moved", width=58, format="%+d", help=f"Ranks gained (+) or lost (-) against the representation before the {block} block."
            ),
        },
    )
    _csv(csv_key, top)


def _csv(key: str | None, *tables: TokenTable) -> None:
    # A table's own download has its cells as they are shown, spaces as dots.
    if key is not None:
        what = "Tokens exactly as they are, their ids, numbers in full."
        csv_file.button(lambda: files.tokens_csv(*tables), "llm-tt-tokens.csv", key, what)


def promoted_and_suppressed(promoted: TokenTable, suppressed: TokenTable, height: int = _HEIGHT, csv_key: str | None = None) -> None:
    """Side by side, on one scale. `csv_key`: offer them as a file as well."""
    largest = max((abs(float(score)) for table in (promoted, suppressed) for score in table.scores), default=0.0) or 1.0
    left, right = st.columns(2)
    with left:
        _effects("promoted", "raises by", promoted.texts, promoted.scores, largest, height)
    with right:
        _effects("suppressed", "lowers by", suppressed.texts, -suppressed.scores, largest, height)
    _csv(csv_key, promoted, suppressed)


def _effects(name: str, column: str, texts: tuple[str, ...], sizes: Any, largest: float, height: int) -> None:
    st.dataframe(
        pd.DataFrame({"token": [visible(text) for text in texts], "size": sizes}),
        hide_index=True,
        height=height,
        column_config={
            "token": st.column_config.TextColumn(name, width=76, help=DOT),
            "size": st.column_config.ProgressColumn(
                column, width=86, min_value=0, max_value=largest, format="%.3f", help=f"How much it {column.split()[0]} the token's logit."
            ),
        },
    )


def code(text: str) -> str:
    """Token text for a Markdown code span, which ends at a backtick."""
    return visible(text).replace("`", "\u02cb")
