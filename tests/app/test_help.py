"""Every control says what it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_explore import DEMO, Start, answered, start  # noqa: F401

CONTROLS = (
    "button",
    "download_button",
    "selectbox",
    "toggle",
    "slider",
    "text_area",
    "text_input",
    "number_input",
    "button_group",
    "popover",
)


def controls(at: AppTest) -> Iterator[tuple[str, str, str]]:
    """(kind, label, help) of all that can be pressed, moved, chosen or filled."""
    for kind in CONTROLS:
        for element in at.get(kind):
            proto: Any = element.proto
            proto = getattr(proto, "popover", proto) if kind == "popover" else proto
            yield kind, proto.label or getattr(element, "key", "") or "", proto.help


def silent(at: AppTest) -> list[tuple[str, str]]:
    """Those without a text, be it on hovering or small beside their name."""
    return [(kind, label) for kind, label, words in controls(at) if not words and ":small[:gray[" not in label]


@pytest.mark.parametrize("form", ["Text", "Chat"])
@pytest.mark.parametrize(
    "selection",
    [
        None,
        {"type": "node", "node": "A2_13"},
        {"type": "node", "node": "M2_13"},
        {"type": "edge", "key": "residual", "from": "I1_3", "to": "A2_3"},
    ],
    ids=["nothing", "attention", "ffn", "edge"],
)
def test_every_control_of_the_page_has_a_help_text(start: Start, selection: dict[str, str] | None, form: str) -> None:  # noqa: F811
    at = start({**DEMO, "allow_adding_models": True, "allow_loading_dataset_files": True, "debug": True})
    at.session_state["prompt_form"] = form
    at.session_state["inspector_wanted"] = "Heads" if selection != {"type": "node", "node": "M2_13"} else "Neurons"
    for panel in ("heads", "layers_open", "edges"):
        at.session_state[panel] = True
    at = answered(at)
    at.session_state["selection"] = selection
    at = answered(at)
    found = list(controls(at))
    assert len(found) > 20
    assert {"button", "selectbox", "toggle", "slider", "text_area", "number_input", "button_group"} <= {kind for kind, _, _ in found}
    assert silent(at) == []


@pytest.mark.parametrize("dialog", ["adding", "memory", "honesty"])
def test_every_control_of_a_dialog_has_a_help_text(start: Start, dialog: str) -> None:  # noqa: F811
    at = start({**DEMO, "allow_adding_models": True})
    at.session_state["dialog"] = dialog
    assert silent(answered(at)) == []
