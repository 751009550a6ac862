"""Text from models and users, made safe for Streamlit's Markdown and for plotly."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_\[\]<>~$|#:])")


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", text)


def plotly_text(text: str) -> str:
    """Text that plotly shows as it is in labels, legends and hover boxes, where it would read some HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
