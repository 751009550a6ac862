"""Curves of an evaluation as values that any page can draw, and as SVG for a page that must need nothing else. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Literal

from llm_tt.analysis.metrics import Bin, CurvePoint, LabelCurves, Metrics

Kind = Literal["roc", "pr", "reliability"]

COLOURS = ("#2f6fde", "#d9662b", "#2a9d5c", "#9b51c8", "#b8860b", "#c2325b", "#0f8b9d", "#7a7a7a")
"""Of lines, in order; told apart on white and on black"""


@dataclass(frozen=True)
class Line:
    """One curve: points of a unit square in the order in which they are joined."""

    name: str
    summary: str
    """its one number, as "AUC 0.981 [0.964, 0.993]" """
    points: tuple[tuple[float, float], ...]
    hints: tuple[str, ...]
    """what to say of each point"""
    intervals: tuple[tuple[float, float], ...] = ()
    """of the y of each point, where there are such"""


@dataclass(frozen=True)
class Chart:
    """Curves over the same two axes, both from 0 to 1."""

    kind: Kind
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    steps: bool = False
    """whether y stays what it is until the next point, rather than being joined by a straight line"""
    diagonal: str = ""
    """what the line from corner to corner means; empty where there is none"""


def charts_of(metrics: Metrics | Mapping[str, Metrics]) -> tuple[Chart, ...]:
    """ROC, precision-recall and reliability curves; none where no probability of labels was measured.

    metrics: one evaluation, or several by name, whose curves are then drawn into the same charts.
    """
    named = {"": metrics} if isinstance(metrics, Metrics) else metrics
    roc: list[Line] = []
    pr: list[Line] = []
    reliability: list[Line] = []
    for name, one in named.items():
        for curves in one.curves:
            called = curves.label if not name else name if len(one.labels) == 2 else f"{name}: {curves.label}"
            roc.append(_curve(called, f"AUC {curves.auc}", curves.roc, "{x:.3f} false positives, {y:.3f} true positives"))
            pr.append(_curve(called, f"average precision {curves.average_precision}", curves.pr, "recall {x:.3f}, precision {y:.3f}"))
            reliability.append(_reliability(called, curves))
        if not one.curves and one.bins:
            # One label only: how often the prediction is right can still be told.
            called = name or "prediction"
            reliability.append(_bins(called, f"ECE {one.ece}", one.bins, "right"))
    labels = {curves.label for one in named.values() for curves in one.curves}
    of = f' of "{labels.pop()}"' if len(labels) == 1 else ""
    charts = (
        Chart("roc", f"ROC curve{of}", "false positive rate", "true positive rate", tuple(roc), diagonal="a guess"),
        Chart("pr", f"Precision-recall curve{of}", "recall", "precision", tuple(pr), steps=True),
        Chart("reliability", f"Calibration{of}", "probability", "share of rows", tuple(reliability), diagonal="as often as it says"),
    )
    return tuple(chart for chart in charts if chart.lines)


def _curve(name: str, summary: str, points: tuple[CurvePoint, ...], hint: str) -> Line:
    hints = tuple(
        hint.format(x=p.x, y=p.y) + (", no row taken" if p.threshold is None else f", from a probability of {p.threshold:.3g}")
        for p in points
    )
    return Line(name, summary, tuple((p.x, p.y) for p in points), hints)


def _reliability(name: str, curves: LabelCurves) -> Line:
    return _bins(name, f"ECE {curves.ece}, Brier {curves.brier}", curves.bins, f'"{curves.label}"')


def _bins(name: str, summary: str, bins: tuple[Bin, ...], what: str) -> Line:
    points = tuple((b.confidence, b.accuracy) for b in bins)
    hints = tuple(f"{b.n} row{'s' * (b.n != 1)} of mean probability {b.confidence:.3f}: {b.accuracy:.3f} are {what}" for b in bins)
    return Line(name, summary, points, hints, tuple(b.interval for b in bins))


# --- SVG

_SIZE = 300
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 12, 12, 44


def to_svg(chart: Chart) -> str:
    """The chart as one SVG element; its text takes the colour of the page around it."""
    width, height = _LEFT + _SIZE + _RIGHT, _TOP + _SIZE + _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(_spoken(chart))}">',
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="currentColor" stroke-opacity=".35"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place((tick, tick))
        parts.append(f'<text x="{x}" y="{_TOP + _SIZE + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(y) + 4:g}" text-anchor="end">{tick:g}</text>')
        if 0 < tick < 1:
            parts.append(f'<path d="M{x} {_TOP}V{_TOP + _SIZE}M{_LEFT} {y}H{_LEFT + _SIZE}" stroke="currentColor" stroke-opacity=".12"/>')
    middle = _TOP + _SIZE / 2
    parts.append(f'<text x="{_LEFT + _SIZE / 2:g}" y="{height - 8}" text-anchor="middle">{escape(chart.x)}</text>')
    parts.append(f'<text transform="translate(12 {middle:g}) rotate(-90)" text-anchor="middle">{escape(chart.y)}</text>')
    if chart.diagonal:
        path = f"M{_LEFT} {_TOP + _SIZE}L{_LEFT + _SIZE} {_TOP}"
        parts.append(f'<path d="{path}" stroke="currentColor" stroke-opacity=".5" stroke-dasharray="4 4"/>')
    for index, line in enumerate(chart.lines):
        # The first ones wider, so that lines in one place are all seen.
        parts += _drawn(chart, line, COLOURS[index % len(COLOURS)], width=min(1 + len(chart.lines) - index, 5))
    return "\n".join([*parts, "</svg>"])


def _drawn(chart: Chart, line: Line, colour: str, width: int) -> list[str]:
    parts = [f'<path d="{_path(line, chart.steps)}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>']
    for (low, high), (x, _) in zip(line.intervals, line.points, strict=False):
        place, bottom, top = _place((x, 0))[0], _place((0, low))[1], _place((0, high))[1]
        parts.append(f'<path d="M{place} {bottom}V{top}" stroke="{colour}" stroke-opacity=".5"/>')
    if chart.kind == "reliability":
        for point, hint in zip(line.points, line.hints, strict=True):
            x, y = _place(point)
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"><title>{escape(f"{line.name}: {hint}")}</title></circle>')
    return parts


def _path(line: Line, steps: bool) -> str:
    places = [_place(point) for point in line.points]
    joined = f"M{places[0][0]} {places[0][1]}"
    for x, y in places[1:]:
        # Average precision is a sum of rectangles: precision belongs to the step of recall that leads to it.
        joined += f"V{y}H{x}" if steps else f"L{x} {y}"
    return joined


def _place(point: tuple[float, float]) -> tuple[str, str]:
    return f"{_LEFT + _SIZE * point[0]:.6g}", f"{_TOP + _SIZE * (1 - point[1]):.6g}"


def _spoken(chart: Chart) -> str:
    """What the picture says, for who does not see it."""
    return f"{chart.title}: " + "; ".join(f"{line.name}, {line.summary}" for line in chart.lines)


def to_html(chart: Chart) -> str:
    """The chart with its title and a legend that has every curve's number."""
    rows = "".join(
        f'<li><span style="color:{COLOURS[index % len(COLOURS)]}">&#9632;</span> {escape(line.name)}: {escape(line.summary)}</li>'
        for index, line in enumerate(chart.lines)
    )
    diagonal = f"<li>dashed: {escape(chart.diagonal)}</li>" if chart.diagonal else ""
    return f"<figure><figcaption>{escape(chart.title)}</figcaption>\n{to_svg(chart)}\n<ul>{rows}{diagonal}</ul></figure>"
