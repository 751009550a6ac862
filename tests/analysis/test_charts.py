"""Curves that are drawn have the points that were measured, in SVG that needs nothing else, and every name in them is text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from llm_tt.analysis.charts import COLOURS, Chart, Line, charts_of, to_html, to_svg
from llm_tt.analysis.metrics import Metrics, measure


def measured(labels: list[str], seed: int = 0) -> Metrics:
    random = np.random.default_rng(seed)
    truth = [labels[k] for k in random.integers(0, len(labels), 80)]
    scores = random.dirichlet(np.ones(len(labels)), 80)
    return measure(truth, [labels[int(k)] for k in scores.argmax(1)], labels, scores.tolist(), n_bootstrap=20)


def test_two_labels_have_one_line_and_more_have_one_each() -> None:
    one = measured(["yes", "no"])
    roc, pr, reliability = charts_of(one)
    assert [chart.title for chart in (roc, pr, reliability)] == [
        'ROC curve of "yes"',
        'Precision-recall curve of "yes"',
        'Calibration of "yes"',
    ]
    (curves,) = one.curves
    assert roc.lines[0].points == tuple((p.x, p.y) for p in curves.roc)
    assert pr.lines[0].points == tuple((p.x, p.y) for p in curves.pr)
    assert reliability.lines[0].points == tuple((b.confidence, b.accuracy) for b in curves.bins)
    assert reliability.lines[0].intervals == tuple(b.interval for b in curves.bins)
    assert roc.lines[0].summary == f"AUC {curves.auc}"
    assert len(roc.lines[0].hints) == len(roc.lines[0].points)
    assert roc.lines[0].hints[0] == "0.000 false positives, 0.000 true positives, no row taken"
    assert [line.name for line in charts_of(measured(["a", "b", "c"]))[0].lines] == ["a", "b", "c"]


def test_several_evaluations_are_drawn_together_by_name() -> None:
    both = {"base": measured(["yes", "no"]), "tuned": measured(["yes", "no"], seed=1)}
    roc = charts_of(both)[0]
    assert [line.name for line in roc.lines] == ["base", "tuned"]
    assert roc.title == 'ROC curve of "yes"'
    three = charts_of({"base": measured(["a", "b", "c"])})[0]
    assert (three.title, [line.name for line in three.lines]) == ("ROC curve", ["base: a", "base: b", "base: c"])


def test_without_probabilities_nothing_is_drawn_and_of_one_label_only_calibration() -> None:
    assert charts_of(measure(["a", "b"], ["a", "b"], ["a", "b"])) == ()
    (only,) = charts_of(measure(["a"] * 3, ["a", "b", "a"], ["a", "b"], [[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]))
    assert (only.kind, only.title, only.lines[0].name) == ("reliability", "Calibration", "prediction")
    assert only.lines[0].hints[0] == "1 row of mean probability 0.600: 0.000 are right"


def unit(chart: Chart) -> list[tuple[float, float]]:
    """The points of the first line's path, as the picture has them, back in the unit square."""
    root = ET.fromstring(to_svg(chart))
    frame = root.find("rect")
    assert frame is not None
    left, top, size = (float(frame.attrib[name]) for name in ("x", "y", "width"))
    (path,) = (element.attrib["d"] for element in root.iter("path") if element.attrib.get("stroke") == COLOURS[0])
    x = y = 0.0
    places: list[tuple[float, float]] = []
    for letter, numbers in re.findall(r"([MLVH])([^MLVH]+)", path):
        values = [float(number) for number in numbers.split()]
        if letter in "ML":
            x, y = values
        elif letter == "V":
            (y,) = values
        else:
            (x,) = values
        places.append(((x - left) / size, 1 - (y - top) / size))
    return places


def test_the_picture_has_the_points_and_joins_them_as_they_are_meant() -> None:
    points = ((0.0, 1.0), (0.4, 0.8), (1.0, 0.5))
    line = Line("a", "AUC 1", points, ("", "", ""))
    straight = unit(Chart("roc", "t", "x", "y", (line,)))
    assert [pytest.approx(place, abs=1e-4) for place in straight] == list(points)
    steps = unit(Chart("pr", "t", "x", "y", (line,), steps=True))
    corners = [(0.0, 1.0), (0.0, 0.8), (0.4, 0.8), (0.4, 0.5), (1.0, 0.5)]
    assert [pytest.approx(place, abs=1e-4) for place in steps] == corners


def test_reliability_shows_bins_with_their_intervals() -> None:
    chart = charts_of(measured(["yes", "no"]))[2]
    root = ET.fromstring(to_svg(chart))
    assert len(list(root.iter("circle"))) == len(chart.lines[0].points)
    titles = [element.text for element in root.iter("title")]
    assert titles == [f"yes: {hint}" for hint in chart.lines[0].hints]
    bars = [e for e in root.iter("path") if e.attrib.get("stroke") == COLOURS[0] and "fill" not in e.attrib]
    assert len(bars) == len(chart.lines[0].points)


def test_what_users_wrote_is_text_in_the_picture() -> None:
    evil = measured(['<script>"&', "no"])
    for chart in charts_of({'"><img onerror=x>': evil}):
        page = to_html(chart)
        assert "<script>" not in page
        assert "<img" not in page
        ET.fromstring(page.replace("&#9632;", ""))
        assert chart.lines[0].summary in page
