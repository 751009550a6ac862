"""Text from models and users, made safe for Streamlit's Markdown and for plotly; numbers with their sign."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_\[\]<>~$|#:])")


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", text)


def plotly_text(text: str) -> str:
    """Text that plotly shows as it is in labels, legends and hover boxes, where it would read some HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def signed(value: float) -> str:
    """+1.234 or −1.234: a hyphen before a number would be read as a list or a dash."""
    return f"{value:+.3f}".replace("-", "\u2212")


def probability(value: float) -> str:
    """0.123, as tables have it; what would be 0.000 and is not is <0.001."""
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def cut(text: str, most: int) -> str:
    """A text as it is, or its beginning where it is longer than a table can take."""
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"
