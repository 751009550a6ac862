"""The table of the speakers' colours against the one of the graph."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app import colours

THEME = Path(__file__).parents[2] / "frontend/src/theme.ts"


@pytest.mark.parametrize("name", ["ROLES_ON_LIGHT", "ROLES_ON_DARK"])
def test_speakers_have_the_graphs_colours(name: str) -> None:
    written = re.search(rf"export const {name}: Record<Speaker, string> = {{(.*?)}};", THEME.read_text(), re.DOTALL)
    assert written is not None
    in_graph = dict(re.findall(r'(\w+): "(#[0-9a-f]{6})"', written[1]))
    assert len(in_graph) == 5
    assert getattr(colours, name) == in_graph


def test_a_speakers_colour_follows_the_theme_and_special_tokens_have_a_neutral_one() -> None:
    assert colours.role("user") == "light-dark(#b08a00,#f2df80)"
    assert colours.role("special") == colours.role(None)
    assert colours.role("special") not in {*colours.ROLES_ON_LIGHT.values(), *colours.ROLES_ON_DARK.values()}
