"""Evaluates a model on a data set, row by row, so that a run that was stopped goes on where it was; compares two evaluations."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_tt.analysis.evaluation_report import EvaluationComparison, EvaluationReport, dumps, measured
from llm_tt.analysis.metrics import mcnemar, slices_by, slices_by_length, telling_words, word_slice
from llm_tt.analysis.rows import DataSet, Template, read_data, require_column
from llm_tt.analysis.scoring import Example, Result, Scoring, prepare, score
from llm_tt.errors import RequestError
from llm_tt.progress import Progress, silent

if TYPE_CHECKING:
    from llm_tt.models.transparent_llm import TransparentLlm


def evaluate(
    llm: TransparentLlm,
    data: DataSet | str | Path,
    template: Template | str,
    scoring: Scoring,
    *,
    slices: Sequence[str] = (),
    words: Sequence[str] = (),
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> EvaluationReport:
    """How good a model is on the rows of a data set.

    Args:
        template: as in `Template`; a text is a template without chat.
        slices: columns by whose values the rows are told apart, beside the length of the prompt.
        words: words whose rows are told apart.
        folder: results are written there as they come, and those of an earlier run of the same model, data, template and scoring are taken
            from there.
        seed: of the intervals.
        progress: called after every batch; may raise `Cancelled`, after which `folder` has what was done.

    Raises:
        RequestError: the data cannot be read, lacks a column, or no row is left.
    """
    if not isinstance(data, DataSet):
        data = read_data(data)
    if isinstance(template, str):
        template = Template(template)
    for column in slices:
        require_column(data, column)
    examples, problems = prepare(llm, data, template, scoring)
    if not examples:
        first = f" {problems[0].sentence}" if problems else ""
        raise RequestError(f"No row of {data.name} can be evaluated.{first}")
    fingerprint = llm.fingerprint()
    stored = Results(None if folder is None else Path(folder), run_key(fingerprint, examples, template, scoring))
    missing = [example for example in examples if example.number not in stored.found]
    started, n_before = time.monotonic(), len(stored.found)
    progress(f"Row {n_before} of {len(examples)}", n_before / len(examples))
    stage = f"Row {n_before} of {len(examples)}"

    def within_batch(part: str, fraction: float) -> None:
        # Nothing of a batch is done before all of it is; but whoever no longer wants it is asked after every token.
        progress(f"{stage}: {part[0].lower()}{part[1:]}", len(stored.found) / len(examples))

    for batch in score(llm, missing, template, scoring, within_batch) if missing else ():
        stored.add(batch)
        done = len(stored.found)
        left = (time.monotonic() - started) / (done - n_before) * (len(examples) - done)
        stage = f"Row {done} of {len(examples)}, {remaining(left)} left"
        progress(stage, done / len(examples))
    rows = {row.number: row for row in data.rows}
    results = tuple(stored.found[example.number] for example in examples)
    texts = tuple(template.fill(rows[example.number]) for example in examples)
    right = [result.is_right for result in results]
    made_slices = [s for column in slices for s in slices_by(column, [rows[e.number].text(column) for e in examples], right)]
    made_slices += slices_by_length([len(example.prompt_ids) for example in examples], right)
    asked = [made for word in words if (made := word_slice(word, texts, right)) is not None]
    notes = [f'All rows or none have the word "{word}".' for word in words if word_slice(word, texts, right) is None]
    n_apart = sum(example.apart for example in examples)
    if n_apart:
        notes.append(
            f"In {n_apart} rows the tokenizer joins the prompt's end and the response's beginning; there the response was tokenised by itself. "
            "Likely cause: the template ends with a space. Take it off."
        )
    metrics, forced, mean_mass = measured(results, scoring, seed)
    if metrics is not None:
        notes += metrics.notes
    if mean_mass is not None and mean_mass < 0.5:
        notes.append(
            f"All labels together have {mean_mass:.1%} of the probability, on average: the model mostly wants to say something else. "
            "Check template and label words."
        )
    return EvaluationReport(
        model=llm.info.name,
        fingerprint=fingerprint,
        data=data.name,
        template=template.text,
        scoring=scoring,
        results=results,
        texts=texts,
        problems=tuple(problems),
        metrics=metrics,
        forced=forced,
        mean_mass=mean_mass,
        slices=tuple(made_slices),
        telling_words=telling_words(texts, right),
        words=tuple(asked),
        notes=tuple(notes),
        examples=template.examples,
    )


def compare_evaluations(first: EvaluationReport, second: EvaluationReport, names: tuple[str, str] | None = None) -> EvaluationComparison:
    """Two models, or two ways to ask one, on the rows that both could answer.

    Raises:
        RequestError: there is no such row, or the label of one differs.
    """
    firsts = {result.number: result for result in first.results}
    seconds = {result.number: result for result in second.results}
    both = sorted(firsts.keys() & seconds.keys())
    if not both:
        raise RequestError("The two evaluations have no row in common. Evaluate both on the same data.")
    for number in both:
        if firsts[number].truth != seconds[number].truth:
            raise RequestError(f"Row {number} has another label in the second evaluation. Evaluate both on the same data.")
    n_other = len(firsts.keys() ^ seconds.keys())
    notes = (f"{n_other} rows were answered in one of the two only; the tests leave them out.",) if n_other else ()
    if names is None:
        names = (first.model, second.model) if first.model != second.model else (f"{first.model} (1)", f"{second.model} (2)")
    test = mcnemar([firsts[n].is_right for n in both], [seconds[n].is_right for n in both])
    differing = tuple(n for n in both if firsts[n].predicted != seconds[n].predicted)
    return EvaluationComparison(first, second, names, test, differing, notes)


def remaining(seconds: float) -> str:
    if seconds < 60:
        return f"about {max(round(seconds), 1)} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def run_key(fingerprint: str, examples: Sequence[Example], template: Template, scoring: Scoring) -> str:
    """A digest of all that results depend on: weights, adapters merged into them; rows as token ids, with their labels; template; scoring."""
    made = hashlib.sha256(dumps([fingerprint, template.to_dict(), scoring.to_dict()]).encode())
    for example in examples:
        made.update(dumps([example.number, example.prompt_ids, example.truth, example.responses]).encode())
    return made.hexdigest()[:16]


class Results:
    """The results of one run, kept in a file as they come: its first line says what they are of, each other line is one row's.

    A line that a crash cut short is taken off.

    Raises:
        RequestError: the file cannot be read or written, or is of something else.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.found: dict[int, Result] = {}
        self.file = None if folder is None else folder / f"results-{key}.jsonl"
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self.file.exists():
                self._read(self.file, key)
            if not self.file.exists() or not self.file.stat().st_size:
                self.file.write_text(dumps({"key": key, "version": 1}) + "\n", encoding="utf-8")
        except OSError as error:
            raise RequestError(f'"{self.file}" cannot be written: {error.strerror}. Name another folder for the results.') from error

    def _read(self, file: Path, key: str) -> None:
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with file.open("r+b") as opened:
                opened.truncate(len(whole))
        lines = whole.decode("utf-8").split("\n")[:-1]
        if not lines:
            return
        try:
            if json.loads(lines[0])["key"] != key:
                raise ValueError
            for line in lines[1:]:
                result = Result.from_dict(json.loads(line))
                self.found[result.number] = result
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f'"{file}" holds no results of this evaluation. Remove it, or name another folder.') from error

    def add(self, results: Sequence[Result]) -> None:
        if self.file is not None:
            try:
                with self.file.open("a", encoding="utf-8") as opened:
                    opened.writelines(dumps(result.to_dict()) + "\n" for result in results)
            except OSError as error:
                raise RequestError(f'"{self.file}" cannot be written: {error.strerror}.') from error
        self.found |= {result.number: result for result in results}
