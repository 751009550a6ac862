"""The toggle that says how a vector is read as words: through the model's final norm, or as it is. Inspector and layers have one each."""

from __future__ import annotations

import streamlit as st

from app import kept

INSPECTOR, LAYERS = "normalize", "layers_normalize"


def toggle(key: str) -> bool:
    """Draw it; on until a user turns it off."""
    kept.hold(key, True)
    return st.toggle(
        "Normalise before unembedding",
        key=key,
        help="Read the vector through the model's final norm, as the last layer's is. Off: multiply it with the unembedding as it is.",
    )
