"""Several evaluations of the same rows against each other: `StrategyComparison`, its tables and its CSV. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from llm_tt.analysis.charts import Chart, charts_of
from llm_tt.analysis.evaluation_report import N_EXAMPLES, EvaluationReport, Table, as_html, as_text, measured, said, tables_of
from llm_tt.analysis.metrics import McNemar, holm, mcnemar
from llm_tt.errors import RequestError

_N_SHOWN, _N_LETTERS = 10, 60
"""Rows, and letters of each, on a screen of text"""


@dataclass(frozen=True)
class PairTest:
    """Two of several evaluations."""

    names: tuple[str, str]
    test: McNemar
    p_corrected: float
    """McNemar's, by Holm's method for the number of pairs"""
    differing: tuple[int, ...]
    """rows on which the predictions differ"""


@dataclass(frozen=True)
class StrategyComparison:
    """Several ways to ask, models, or both, on the rows that all of them answered."""

    names: tuple[str, ...]
    reports: tuple[EvaluationReport, ...]
    """each of all rows that it answered"""
    rows: tuple[int, ...]
    """numbers of those that all answered"""
    shared: tuple[EvaluationReport, ...]
    """the same reports of these rows only, without slices and words: what the tables compare"""
    pairs: tuple[PairTest, ...]
    """every two of them, in order"""
    differing: tuple[int, ...]
    """rows on which any two predict differently"""
    notes: tuple[str, ...] = ()

    def metrics_table(self) -> Table:
        """One line a number, one column a strategy."""
        figures = [dict(report.figures()) for report in self.shared]
        names = [name for name in dict.fromkeys(name for one in figures for name in one) if name != "left out"]
        rows = tuple((name, *(one.get(name, "-") for one in figures)) for name in names)
        kept = tuple(row for row in rows if set(row[1:]) != {"-"})
        title = f"{len(self.names)} ways to ask on {self.reports[0].data}, the {len(self.rows)} row{'s' * (len(self.rows) != 1)} that all answered"
        return Table(title, ("metric", *self.names), kept)

    def pairs_table(self) -> Table:
        header = ("first", "second", "both right", "only first right", "only second right", "both wrong", "answered differently")
        rows = tuple(
            (
                *pair.names,
                str(pair.test.both_right),
                str(pair.test.only_first),
                str(pair.test.only_second),
                str(pair.test.both_wrong),
                str(len(pair.differing)),
                f"{pair.test.p_value:.3g}",
                f"{pair.p_corrected:.3g}",
            )
            for pair in self.pairs
        )
        return Table("Every two of them (McNemar's exact test)", (*header, "p", f"p, Holm for {len(self.pairs)}"), rows)

    def differing_table(self, most: int | None = N_EXAMPLES) -> Table:
        """The rows on which any two predict differently, with what each said."""
        shown = self.differing if most is None else self.differing[:most]
        answers = [{result.number: result for result in report.results} for report in self.reports]
        texts = dict(zip((result.number for result in self.reports[0].results), self.reports[0].texts, strict=True))
        rows = tuple((str(n), texts[n], answers[0][n].truth, *(said(one[n]) for one in answers)) for n in shown)
        cut = f", the first {len(shown)}" if len(shown) < len(self.differing) else ""
        return Table(f"Rows answered differently ({len(self.differing)}){cut}", ("row", "text", "label", *self.names), rows)

    def tables(self) -> tuple[Table, ...]:
        parts = [self.metrics_table(), self.pairs_table()]
        for name, report in zip(self.names, self.reports, strict=True):
            parts += [replace(table, title=f"{name}: {table.title}") for table in tables_of(report)]
        return tuple(parts)

    def charts(self) -> tuple[Chart, ...]:
        """The curves of those that have probabilities of labels, in the same charts."""
        return charts_of({name: r.metrics for name, r in zip(self.names, self.shared, strict=True) if r.metrics is not None})

    def all_notes(self) -> tuple[str, ...]:
        own = [f"{name}: {note}" for name, report in zip(self.names, self.reports, strict=True) for note in report.all_notes()]
        return (*self.notes, *own)

    def to_text(self, more: Sequence[Table] = ()) -> str:
        """more: tables to put below. Of the rows answered differently there are the first, with the beginning of their texts."""
        differing = self.differing_table(_N_SHOWN)
        cut = tuple(
            (number, text if len(text) <= _N_LETTERS else text[: _N_LETTERS - 1] + "…", *rest) for number, text, *rest in differing.rows
        )
        examples = (replace(differing, rows=cut),) if cut else ()
        return as_text((*self.tables(), *more, *examples), self.all_notes())

    def to_html(self, more: Sequence[Table] = ()) -> str:
        """more: as in `to_text`."""
        examples = (self.differing_table(),) if self.differing else ()
        return as_html(
            f"{len(self.names)} ways to ask on {self.reports[0].data}", (*self.tables(), *more, *examples), self.all_notes(), self.charts()
        )

    def to_csv(self) -> str:
        """One line a row that all answered: what each predicted, and whether it is right."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["row", "text", "label", "differ", *(f"{name}: {what}" for name in self.names for what in ("predicted", "right"))])
        answers = [{result.number: result for result in report.results} for report in self.shared]
        differing = set(self.differing)
        for number, text in zip(self.rows, self.shared[0].texts, strict=True):
            results = [one[number] for one in answers]
            cells = [cell for result in results for cell in ("" if result.predicted is None else result.predicted, int(result.is_right))]
            writer.writerow([number, text, results[0].truth, int(number in differing), *cells])
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "rows": list(self.rows),
            "figures": {name: dict(report.figures()) for name, report in zip(self.names, self.shared, strict=True)},
            "pairs": [
                {"names": list(p.names), "mcnemar": vars(p.test), "p_corrected": p.p_corrected, "differing": list(p.differing)}
                for p in self.pairs
            ],
            "differing": list(self.differing),
            "notes": list(self.notes),
            "reports": [report.to_dict() for report in self.reports],
        }


def compare_reports(reports: Sequence[EvaluationReport], names: Sequence[str], seed: int = 0) -> StrategyComparison:
    """Evaluations of one data set against each other, on the rows that all of them answered.

    Args:
        names: one for each.
        seed: of the intervals.

    Raises:
        RequestError: there are fewer than two, a name is there twice, no row was answered by all, or a row's label is not the same in all.
    """
    if len(reports) < 2:
        raise RequestError(f"{len(reports)} evaluations cannot be compared. Give two or more.")
    for name in names:
        if list(names).count(name) > 1:
            raise RequestError(f'Two evaluations are called "{name}". Give each a name of its own.')
    answers = [{result.number: result for result in report.results} for report in reports]
    rows = tuple(sorted(set.intersection(*(set(one) for one in answers))))
    if not rows:
        raise RequestError("The evaluations have no row in common. Evaluate all on the same data.")
    for name, one in zip(names, answers, strict=True):
        for number in rows:
            if one[number].truth != answers[0][number].truth:
                raise RequestError(
                    f'Row {number} has the label "{answers[0][number].truth}" in "{names[0]}" and "{one[number].truth}" in "{name}". '
                    "Evaluate all on the same data."
                )
    n_all = len(set.union(*(set(one) for one in answers)))
    notes: list[str] = []
    if n_all > len(rows):
        notes.append(
            f"{n_all - len(rows)} rows were not answered by all; the comparison leaves them out. "
            "What stands below a single name is of all rows that it answered."
        )
    tested = [
        (a, b, mcnemar([answers[a][n].is_right for n in rows], [answers[b][n].is_right for n in rows]))
        for a, b in combinations(range(len(reports)), 2)
    ]
    corrected = holm([test.p_value for _, _, test in tested])
    pairs = tuple(
        PairTest((names[a], names[b]), test, p, tuple(n for n in rows if answers[a][n].predicted != answers[b][n].predicted))
        for (a, b, test), p in zip(tested, corrected, strict=True)
    )
    return StrategyComparison(
        names=tuple(names),
        reports=tuple(reports),
        rows=rows,
        shared=tuple(_of_rows(report, rows, seed) for report in reports),
        pairs=pairs,
        differing=tuple(n for n in rows if len({one[n].predicted for one in answers}) > 1),
        notes=tuple(notes),
    )


def _of_rows(report: EvaluationReport, rows: Sequence[int], seed: int) -> EvaluationReport:
    """A report of some of its rows."""
    if tuple(result.number for result in report.results) == tuple(rows):
        return replace(report, slices=(), telling_words=(), words=())
    chosen = set(rows)
    kept = [(result, text) for result, text in zip(report.results, report.texts, strict=True) if result.number in chosen]
    results = tuple(result for result, _ in kept)
    metrics, forced, mass = measured(results, report.scoring, seed)
    return replace(
        report,
        results=results,
        texts=tuple(text for _, text in kept),
        metrics=metrics,
        forced=forced,
        mean_mass=mass,
        slices=(),
        telling_words=(),
        words=(),
    )
