"""The colours of speakers, the same as in the graph (frontend/src/theme.ts), for panels that are HTML."""

from __future__ import annotations

ROLES_ON_LIGHT = {"system": "#7a1fe0", "user": "#b08a00", "assistant": "#4c3245", "tool": "#8a2a10", "continuation": "#d615b0"}
ROLES_ON_DARK = {"system": "#8a5cff", "user": "#f2df80", "assistant": "#b0605c", "tool": "#ff4d1a", "continuation": "#ff59d4"}
_OTHER = "#8a8d93"
"""Of what a template or a tokenizer wrote: the graph frames it instead"""


def role(name: str | None) -> str:
    """A speaker's colour as CSS, which follows the page's theme."""
    if name not in ROLES_ON_LIGHT:
        return _OTHER
    return f"light-dark({ROLES_ON_LIGHT[name]},{ROLES_ON_DARK[name]})"
