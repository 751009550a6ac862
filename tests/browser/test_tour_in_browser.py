"""The first visit in a real browser: the card comes and goes beside the graph, which stays where it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from explore_page import ExplorePage
from playwright.sync_api import Browser, expect
from running_app import SCREENSHOTS, App

from app.lessons import LESSONS


@pytest.fixture(params=[(1024, 768, "dark"), (1440, 900, "light"), (1920, 1080, "dark")], ids=lambda size: f"{size[0]}-{size[2]}")
def page(request: pytest.FixtureRequest, browser: Browser, app: App) -> Iterator[ExplorePage]:
    width, height, scheme = request.param
    tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = ExplorePage(tab).open(app.url)
    page.size = request.param  # type: ignore[attr-defined]
    yield page
    tab.close()


def shoot(page: ExplorePage, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.page.wait_for_timeout(600)
    width, _, scheme = page.size  # type: ignore[attr-defined]
    page.page.screenshot(path=SCREENSHOTS / f"tour-{name}-{width}-{scheme}.png")


def press(page: ExplorePage, name: str) -> None:
    page.page.get_by_role("button", name=name).click()
    page.page.wait_for_timeout(500)
    page.settle()


def test_the_card_teaches_and_goes_and_the_graph_stays(page: ExplorePage) -> None:
    card = page.page.locator(".st-key-tour")
    expect(card).to_contain_text("Reading the graph")
    shoot(page, "first")
    press(page, "Next")
    expect(card).to_contain_text(LESSONS[0].teaches)
    page.settle()
    assert page.data("mounts") == 1
    shoot(page, "lesson")
    at = page.graph.bounding_box()
    press(page, "Skip")
    expect(card).to_have_count(0)
    assert page.graph.bounding_box() == at
    assert page.data("mounts") == 1
    press(page, "Lessons")
    expect(card).to_contain_text(LESSONS[0].title)
    assert page.graph.bounding_box() == at
