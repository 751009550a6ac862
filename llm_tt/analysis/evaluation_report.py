"""What an evaluation found, as values: `EvaluationReport` and `EvaluationComparison`, and the tables that screen, CSV and HTML show alike. No
torch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from llm_tt.analysis.charts import Chart, charts_of
from llm_tt.analysis.charts import to_html as chart_html
from llm_tt.analysis.metrics import McNemar, Metrics, Slice, WordSlice, measure
from llm_tt.analysis.rows import MAX_NAMED, Problem
from llm_tt.analysis.scoring import Result, Scoring

N_EXAMPLES = 50
"""Wrong or differing rows that a page shows"""


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns, as every output shows them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Forced:
    """Over all tokens of all responses, teacher-forced."""

    n_tokens: int
    n_right: int
    log_likelihood: float

    @property
    def accuracy(self) -> float:
        return self.n_right / self.n_tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood of a token; infinite where that is too large"""
        mean = -self.log_likelihood / self.n_tokens
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class EvaluationReport:
    """One model on one data set."""

    model: str
    fingerprint: str
    """of the model's weights"""
    data: str
    template: str
    scoring: Scoring
    results: tuple[Result, ...]
    """by row number"""
    texts: tuple[str, ...]
    """of each result's row, by the template"""
    problems: tuple[Problem, ...]
    """rows that were left out"""
    metrics: Metrics | None
    """None where any response was scored, without labels"""
    forced: Forced | None
    """None unless responses were teacher-forced"""
    mean_mass: float | None
    """what all labels together had of the probability, on average; None unless scored by labels"""
    slices: tuple[Slice, ...]
    telling_words: tuple[WordSlice, ...]
    """words whose rows are wrong unusually often"""
    words: tuple[WordSlice, ...]
    """those that were asked for"""
    notes: tuple[str, ...]
    examples: tuple[tuple[str, str], ...] = ()
    """few-shot: prompts and answers that went before every row's"""

    @property
    def right(self) -> tuple[bool, ...]:
        return tuple(result.is_right for result in self.results)

    @property
    def n_right(self) -> int:
        return sum(self.right)

    @property
    def no_curves(self) -> str | None:
        """Why there are neither curves nor calibration; None where there are."""
        if self.scoring.kind == "generate":
            return "No curves and no calibration: a generated answer has no probability for each label. Score by labels to have them."
        if self.scoring.kind == "forced":
            return "No curves and no calibration: only the row's own response was scored, not each label. Score by labels to have them."
        return None

    def charts(self) -> tuple[Chart, ...]:
        """ROC, precision-recall and reliability curves, to be drawn; none where `no_curves` says why, or where only one label occurs."""
        return () if self.metrics is None else charts_of(self.metrics)

    def cell(self, truth: str, predicted: str | None) -> tuple[int, ...]:
        """The numbers of the rows in one cell of the confusion matrix."""
        return tuple(result.number for result in self.results if (result.truth, result.predicted) == (truth, predicted))

    def tables(self) -> tuple[Table, ...]:
        figures = [name_and_value for name_and_value in self.figures() if name_and_value[1] != "-"]
        return (
            Table(f"{self.model} on {self.data}", ("metric", "value [95 % interval]"), tuple(figures)),
            *tables_of(self),
        )

    def figures(self) -> list[tuple[str, str]]:
        """Every number of the first table, by its name."""
        n = len(self.results)
        made: list[tuple[str, str]] = [("rows", str(n)), ("right", str(self.n_right)), ("left out", str(len(self.problems)))]
        if self.metrics is not None:
            m = self.metrics
            made += [
                ("accuracy", str(m.accuracy)),
                ("balanced accuracy", str(m.balanced_accuracy)),
                ("macro F1", str(m.macro_f1)),
                ("ROC AUC", str(m.roc_auc)),
                ("PR AUC", str(m.pr_auc)),
                ("calibration error (ECE)", str(m.ece)),
                ("log loss", str(m.log_loss)),
                ("Brier score", str(m.brier)),
                ("no label found", str(m.n_no_label)),
            ]
        else:
            from llm_tt.analysis.metrics import Figure, wilson

            made.append(("whole responses right", str(Figure(self.n_right / n, *wilson(self.n_right, n)))))
        if self.mean_mass is not None:
            made.append(("probability of all labels", f"{self.mean_mass:.3f}"))
        if self.forced is not None:
            made += [
                ("response tokens", str(self.forced.n_tokens)),
                ("token accuracy", f"{self.forced.accuracy:.3f}"),
                ("perplexity", f"{self.forced.perplexity:.3f}"),
            ]
        return made

    def to_text(self, more: Sequence[Table] = ()) -> str:
        """more: tables to put below."""
        return as_text((*self.tables(), *more), self.all_notes())

    def to_html(self, more: Sequence[Table] = ()) -> str:
        """more: as in `to_text`."""
        wrong = [(result, text) for result, text in zip(self.results, self.texts, strict=True) if not result.is_right]
        title = f"Wrong rows ({len(wrong)})" + (f", the first {N_EXAMPLES}" if len(wrong) > N_EXAMPLES else "")
        rows = tuple((str(r.number), text, r.truth, said(r)) for r, text in wrong[:N_EXAMPLES])
        examples = (Table(title, ("row", "text", "label", "predicted"), rows),) if rows else ()
        return as_html(f"{self.model} on {self.data}", (*self.tables(), *more, *examples), self.all_notes(), self.charts())

    def to_csv(self) -> str:
        """One line a row of the data set that was scored."""
        out = io.StringIO()
        labels = self.scoring.values if self.scoring.kind == "labels" else ()
        columns = ["row", "text", "label", "predicted", "right", *(f"p({label})" for label in labels), "mass", "response tokens"]
        columns += ["right tokens", "log likelihood", "answer", "failure"]
        writer = csv.writer(out)
        writer.writerow(columns)
        for r, text in zip(self.results, self.texts, strict=True):
            cells = [r.number, text, r.truth, r.predicted, int(r.is_right), *(r.probabilities or ("",) * len(labels)), r.mass]
            writer.writerow(["" if c is None else c for c in [*cells, r.n_tokens, r.n_right_tokens, r.log_likelihood, r.text, r.failure]])
        return out.getvalue()

    def curves_csv(self) -> str:
        """One line for each point of every curve, and for each bin of calibration: x its mean probability, y the share of rows with the label."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["label", "curve", "x", "y", "threshold", "rows"])
        for curves in () if self.metrics is None else self.metrics.curves:
            for name, points in (("roc", curves.roc), ("precision-recall", curves.pr)):
                writer.writerows([curves.label, name, p.x, p.y, "" if p.threshold is None else p.threshold, ""] for p in points)
            writer.writerows([curves.label, "calibration", b.confidence, b.accuracy, "", b.n] for b in curves.bins)
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "data": self.data,
            "template": self.template,
            "examples": [list(example) for example in self.examples],
            "scoring": self.scoring.to_dict(),
            "figures": dict(self.figures()),
            "metrics": None if self.metrics is None else self.metrics.to_dict(),
            "no_curves": self.no_curves,
            "left_out": [{"row": problem.number, "why": problem.sentence} for problem in self.problems],
            "notes": list(self.notes),
            "results": [result.to_dict() for result in self.results],
        }

    def all_notes(self) -> tuple[str, ...]:
        left_out = [problem.sentence for problem in self.problems[:MAX_NAMED]]
        more = len(self.problems) - MAX_NAMED
        if more > 0:
            left_out.append(f"{more} more rows are left out.")
        no_curves = () if self.no_curves is None or self.metrics is None else (self.no_curves,)
        return (*self.notes, *no_curves, *left_out)


@dataclass(frozen=True)
class EvaluationComparison:
    """Two models, or two ways to ask, on the same rows."""

    first: EvaluationReport
    second: EvaluationReport
    names: tuple[str, str]
    test: McNemar
    differing: tuple[int, ...]
    """rows on which the predictions differ"""
    notes: tuple[str, ...] = ()

    def tables(self) -> tuple[Table, ...]:
        first, second = dict(self.first.figures()), dict(self.second.figures())
        names = [name for name in dict.fromkeys([*first, *second]) if (first.get(name, "-"), second.get(name, "-")) != ("-", "-")]
        rows = tuple((name, first.get(name, "-"), second.get(name, "-")) for name in names)
        t = self.test
        pairs = (
            ("both right", str(t.both_right)),
            (f"only {self.names[0]} right", str(t.only_first)),
            (f"only {self.names[1]} right", str(t.only_second)),
            ("both wrong", str(t.both_wrong)),
            ("rows answered differently", str(len(self.differing))),
            ("McNemar's exact test, p", f"{t.p_value:.3g}"),
        )
        parts: list[Table] = [Table(f"{self.names[0]} against {self.names[1]} on {self.first.data}", ("metric", *self.names), rows)]
        parts.append(Table("The same rows", ("", "rows"), pairs))
        for name, report in zip(self.names, (self.first, self.second), strict=True):
            parts += [Table(f"{name}: {table.title}", table.header, table.rows) for table in tables_of(report)]
        return tuple(parts)

    def charts(self) -> tuple[Chart, ...]:
        """The curves of both, in the same charts."""
        reports = zip(self.names, (self.first, self.second), strict=True)
        return charts_of({name: report.metrics for name, report in reports if report.metrics is not None})

    def all_notes(self) -> tuple[str, ...]:
        own = [f"{name}: {note}" for name, report in zip(self.names, (self.first, self.second), strict=True) for note in report.all_notes()]
        return (*self.notes, *own)

    def to_text(self, more: Sequence[Table] = ()) -> str:
        """more: tables to put below."""
        return as_text((*self.tables(), *more), self.all_notes())

    def to_html(self, more: Sequence[Table] = ()) -> str:
        """more: as in `to_text`."""
        seconds = {result.number: result for result in self.second.results}
        chosen = set(self.differing)
        rows = [
            (str(r.number), text, r.truth, said(r), said(seconds[r.number]))
            for r, text in zip(self.first.results, self.first.texts, strict=True)
            if r.number in chosen
        ]
        title = f"Rows answered differently ({len(rows)})" + (f", the first {N_EXAMPLES}" if len(rows) > N_EXAMPLES else "")
        examples = (Table(title, ("row", "text", "label", *self.names), tuple(rows[:N_EXAMPLES])),) if rows else ()
        tables = (*self.tables(), *more, *examples)
        return as_html(f"{self.names[0]} against {self.names[1]}", tables, self.all_notes(), self.charts())

    def to_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "mcnemar": vars(self.test),
            "differing": list(self.differing),
            "notes": list(self.notes),
            "reports": [self.first.to_dict(), self.second.to_dict()],
        }


def measured(results: Sequence[Result], scoring: Scoring, seed: int) -> tuple[Metrics | None, Forced | None, float | None]:
    """What a report says of its results: metrics, the tokens of teacher-forced responses, the mean probability of all labels."""
    metrics = forced = mass = None
    if scoring.labels:
        probabilities = None if scoring.kind != "labels" else [result.probabilities or () for result in results]
        truth, predicted = [result.truth for result in results], [result.predicted for result in results]
        metrics = measure(truth, predicted, scoring.values, probabilities, seed)
    if scoring.kind == "labels":
        mass = sum(result.mass or 0.0 for result in results) / len(results)
    if scoring.kind == "forced":
        forced = Forced(
            sum(result.n_tokens or 0 for result in results),
            sum(result.n_right_tokens or 0 for result in results),
            sum(result.log_likelihood or 0.0 for result in results),
        )
    return metrics, forced, mass


def said(result: Result) -> str:
    """The label that a row was given, or that there is none and what was written instead."""
    return result.predicted if result.predicted is not None else f"(no label) {result.text or ''}".strip()


def tables_of(report: EvaluationReport) -> list[Table]:
    """What stands below the first table: labels, confusion, slices, words."""
    made: list[Table] = []
    if report.examples:
        made.append(Table("Examples in every prompt", ("prompt", "answer"), tuple((a.strip(), b.strip()) for a, b in report.examples)))
    if report.metrics is not None:
        m = report.metrics
        rows = tuple(
            (c.label, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", str(c.support), str(c.predicted)) for c in m.per_class
        )
        made.append(Table("Labels", ("label", "precision", "recall", "F1", "rows", "predicted"), rows))
        cells = tuple((label, *map(str, row)) for label, row in zip(m.labels, m.confusion, strict=True))
        made.append(Table("Confusion (rows: label; columns: predicted)", ("", *m.predicted_names), cells))
        if len(m.curves) > 1:
            rows = tuple((c.label, str(c.n), str(c.auc), str(c.average_precision), str(c.ece), str(c.brier)) for c in m.curves)
            made.append(
                Table(
                    "Each label against the rest",
                    ("label against the rest", "rows", "ROC AUC", "average precision", "ECE", "Brier score"),
                    rows,
                )
            )
        if m.bins:
            bins = tuple((f"{b.low:.1f} to {b.high:.1f}", str(b.n), f"{b.confidence:.3f}", f"{b.accuracy:.3f}") for b in m.bins)
            made.append(Table("Calibration", ("confidence", "rows", "mean confidence", "accuracy"), bins))
    if report.slices:
        rows = tuple((s.name, str(s.n), str(s.n_right), str(s.accuracy)) for s in report.slices)
        made.append(Table("Slices", ("rows with", "rows", "right", "accuracy [95 % interval]"), rows))
    if report.words:
        made.append(Table("Words asked for", _WORD_HEADER, tuple(map(_word_cells, report.words))))
    if report.telling_words:
        made.append(Table("Words whose rows are wrong unusually often", _WORD_HEADER, tuple(map(_word_cells, report.telling_words))))
    return made


_WORD_HEADER = ("word", "rows", "accuracy with it", "accuracy without", "p (Fisher)")


def _word_cells(word: WordSlice) -> tuple[str, ...]:
    return (word.word, str(word.n), str(word.accuracy), str(word.accuracy_without), f"{word.p_value:.3g}")


def as_text(tables: Sequence[Table], notes: Sequence[str]) -> str:
    parts: list[str] = []
    for table in tables:
        lines = [table.header, *table.rows]
        widths = [max(len(row[column]) for row in lines) for column in range(len(table.header))]
        shown = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines]
        parts.append("\n".join([table.title, *("  " + line for line in shown)]))
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .25rem .75rem; border-bottom: 1px solid #8884; vertical-align: top; white-space: pre-wrap; }
td { font-variant-numeric: tabular-nums; }
h2 { font-size: 1.1rem; margin: 1.5rem 0 0; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; margin: 1rem 0; }
.wide { overflow-x: auto; }
figure { margin: 0; max-width: 19.5rem; }
figcaption { font-weight: 600; }
svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
figure ul { list-style: none; padding: 0; margin: .25rem 0 0; font-size: .85rem; font-variant-numeric: tabular-nums; }
"""


def as_html(title: str, tables: Sequence[Table], notes: Sequence[str], charts: Sequence[Chart] = ()) -> str:
    """A page that needs no other file and no network; its numbers are the texts of the tables, its curves SVG below the first of them."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
    ]
    drawn = '<div class="charts">' + "\n".join(map(chart_html, charts)) + "</div>" if charts else ""
    for place, table in enumerate(tables):
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
        body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
        parts.append(
            f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        )
        if place == 0 and drawn:
            parts.append(f"<h2>Curves</h2>\n{drawn}")
    if notes:
        parts.append("<h2>Notes</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    return "\n".join([*parts, "</body></html>", ""])


def dumps(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False)
