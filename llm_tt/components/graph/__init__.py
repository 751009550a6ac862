"""`flow_graph`, the graph as a Streamlit component. The bytes it takes are made by `frame.pack`; its browser side is in `frontend/`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlit.components.v2.bidi_component import ComponentResult

_BUILD = Path(__file__).parent / "build"
_SCRIPT, _STYLE = "index-*.js", "index-*.css"
_NAME = "llm-tt.flow_graph"


def flow_graph(
    frame: bytes,
    *,
    key: str,
    on_selection_change: Callable[[], None] | None = None,
    on_target_change: Callable[[], None] | None = None,
) -> ComponentResult:
    """Show a graph frame; call it inside a Streamlit script. It is as high as the CSS variable `--flow-graph-height` of the page says.

    Args:
        frame: header and edges as docs/graph-frame.md has them.
        key: keeps zoom and selection from run to run. The result is also in `st.session_state[key]`.
        on_selection_change: called before the run that follows a click on a node, an edge or the background.
        on_target_change: called before the run that follows a click on a token's selector.

    Returns:
        A result with `selection` (a dict as in docs/graph-frame.md, or None) and `target` (a position for one run after
        a click, else None).

    Raises:
        RuntimeError: the browser side is not built.
    """
    return _component()(
        key=key,
        data=frame,
        on_selection_change=on_selection_change or _ignore,
        on_target_change=on_target_change or _ignore,
    )


@cache
def _component() -> Callable[..., Any]:
    """Registered on the first call: outside a running app Streamlit refuses to register components."""
    if not (any(_BUILD.glob(_SCRIPT)) and any(_BUILD.glob(_STYLE))):
        raise RuntimeError(
            f"The graph component is not built: run `make frontend` in the checkout, or install llm-tt again (looked in {_BUILD})."
        )
    from streamlit.components.v2 import component

    return component(_NAME, js=_SCRIPT, css=_STYLE)


def _ignore() -> None:
    """Streamlit includes a state in the result only if it has a callback."""
