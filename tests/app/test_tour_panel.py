"""The first visit: when the card comes by itself, what its buttons do, and that the lessons are had again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_explore import DEMO, answered, frame, start  # noqa: F401

from app.lessons import LESSONS

Start = Callable[..., AppTest]


def title(at: AppTest) -> str | None:
    """The card's first line."""
    lines = [line.value for line in at.markdown if " of " in line.value and line.value.startswith("**")]
    return lines[0].split("**")[1] if lines else None


def press(at: AppTest, key: str) -> AppTest:
    at.button(key=key).click()
    return answered(at)


def test_the_first_visit_begins_with_how_to_read_the_graph(start: Start) -> None:  # noqa: F811
    at = start(DEMO)
    assert title(at) == "Reading the graph"
    assert any("from the prediction `·Mary`" in line.value for line in at.markdown)
    assert frame(at)[0]["selection"] is None


def test_every_lesson_asks_and_selects_what_it_is_about(start: Start) -> None:  # noqa: F811
    at = start(DEMO)
    for number, lesson in enumerate(LESSONS):
        at = press(at, "tour_next")
        assert title(at) == lesson.title
        assert at.text_area(key="prompt").value == lesson.prompt
        header, _ = frame(at)
        assert header["effect_of"].endswith(lesson.contrast.replace(" ", "·"))
        assert header["selection"]["type"] == ("edge" if lesson.look == "edge" else "node")
        assert any(lesson.teaches in line.value for line in at.markdown)
        assert ("tour_next" in {button.key for button in at.button}) == (number + 1 < len(LESSONS))


def test_what_the_user_selects_meanwhile_stays(start: Start) -> None:  # noqa: F811
    at = press(start(DEMO), "tour_next")
    at.session_state["selection"] = {"type": "node", "node": "X0_1"}
    assert frame(answered(at))[0]["selection"] == {"type": "node", "node": "X0_1"}


def test_skipped_is_skipped_until_it_is_asked_for(start: Start) -> None:  # noqa: F811
    at = press(press(start(DEMO), "tour_next"), "tour_skip")
    assert title(at) is None
    at.text_area(key="prompt").set_value("The capital of France is")
    at = answered(at)
    assert title(at) is None
    at = press(at, "lessons")
    assert title(at) == LESSONS[0].title
    assert any("about another prompt" in line.value for line in at.markdown)
    at = press(at, "tour_next")
    assert title(at) == LESSONS[1].title
    assert at.text_area(key="prompt").value == LESSONS[1].prompt


def test_later_is_with_the_next_prompt(start: Start) -> None:  # noqa: F811
    at = press(start(DEMO), "tour_later")
    assert title(at) is None
    at.slider(key="threshold").set_value(0.05)
    assert title(answered(at)) is None
    at.text_area(key="prompt").set_value("The capital of France is")
    at = answered(at)
    assert title(at) == "Reading the graph"
    assert any("from the prediction `·Paris`" in line.value for line in at.markdown)


def test_who_follows_a_link_is_not_taught(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    class Parameters(dict[str, str]):
        to_dict = dict.copy

    monkeypatch.setattr("streamlit.query_params", Parameters(prompt="something"))
    at = start(DEMO)
    assert title(at) is None
    assert title(press(at, "lessons")) == "Reading the graph"


@pytest.mark.parametrize("models", [{"own": None}, {"own": None, "demo": None}], ids=["alone", "beside the demo"])
def test_another_default_model_is_not_taught_unasked(
    start: Start,  # noqa: F811
    models: dict[str, Any],
    checkpoint: Callable[[str], Path],
) -> None:
    at = start({"models": {**models, "own": str(checkpoint("gpt2"))}, "default_model": "own"}, "Mary the store.")
    assert title(at) is None
    at = press(at, "lessons")
    assert title(at) == "Reading the graph"
    alone = "demo" not in models
    assert any("which this server does not have" in line.value for line in at.markdown) == alone
    assert ("tour_next" in {button.key for button in at.button}) == (not alone)
    if not alone:
        at = press(at, "tour_next")
        assert at.selectbox(key="model").value == "demo"
        assert any(LESSONS[0].teaches in line.value for line in at.markdown)


def test_demo_mode_offers_the_lessons_of_its_prompts(start: Start, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "prompts.txt").write_text(f"{LESSONS[2].prompt}\n{LESSONS[5].prompt}\nSomething else\n")
    at = start({**DEMO, "demo_mode": True, "preloaded_dataset_filename": "prompts.txt"}, LESSONS[2].prompt)
    for lesson in (LESSONS[2], LESSONS[5]):
        at = press(at, "tour_next")
        assert title(at) == lesson.title
        assert any(lesson.teaches in line.value for line in at.markdown)
    assert "tour_next" not in {button.key for button in at.button}
