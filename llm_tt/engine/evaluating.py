"""Questions about many prompts at a time: data sets read, models evaluated on them, errors explained. What was answered is kept on disk.

Importing this module is cheap; the model libraries are imported when a model is loaded.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_tt.analysis.errors import CellExplanation
from llm_tt.analysis.evaluation_report import EvaluationReport
from llm_tt.analysis.rows import DataSet, Problem, Row, Template, read_data
from llm_tt.analysis.scoring import Scoring
from llm_tt.config import AppConfig
from llm_tt.demo import DATA_DIR
from llm_tt.engine.cache import Cache
from llm_tt.engine.keeper import Loaded, ModelKeeper
from llm_tt.engine.messages import (
    Column,
    DataPreview,
    DataSource,
    Evaluate,
    Evaluation,
    ExplainErrors,
    PreviewData,
    PreviewPrompt,
    PromptPreview,
    ReadRow,
    RowPrompt,
    Side,
)
from llm_tt.errors import RequestError
from llm_tt.progress import Progress, silent, within

SHIPPED = ("mixed", "clean", "conflict", "train")
"""Data sets that come with the demo pair, on the menu as demo/mixed and so on"""
MOST_VALUES = 20
"""A column with more different values is not told value by value"""
MOST_SIDES = 8
"""Models times ways to ask, of one evaluation"""
MOST_TOKENS = 1024
"""Tokens that are generated for one row, at most"""
_MOST_WORD = 40
"""Characters of a label word in demo mode"""
_DATA_BUDGET = 256 * 2**20
_REPORTS_BUDGET = 64 * 2**20
"""Bytes of data sets, and of reports, to keep"""
_MAX_EXPLAINED = 64
"""Explained cells to keep: small, but each is dozens of traces"""
_LOADING = 0.1
"""Fraction of an evaluation's progress that loading its model takes"""
_YIELD = 0.005
"""Seconds between two batches in which whoever waits for the model gets it: a lock goes to the thread that asks first, which would be this one"""


@dataclass(frozen=True, eq=False)
class _Data:
    rows: DataSet
    nbytes: int


class Evaluations:
    """Answers questions about data sets."""

    def __init__(self, config: AppConfig, models: ModelKeeper) -> None:
        self._config = config
        self._models = models
        self._data: Cache[tuple[DataSource, Any], _Data] = Cache(_DATA_BUDGET, lambda data: data.nbytes)
        self._reports: Cache[tuple[Any, ...], EvaluationReport] = Cache(_REPORTS_BUDGET, _report_bytes)
        self._explained: Cache[tuple[Any, ...], CellExplanation] = Cache(_MAX_EXPLAINED, lambda explained: 1)
        self._texts: tuple[Any, frozenset[str]] | None = None
        self._files = {f"demo/{name}": DATA_DIR / f"{name}.jsonl" for name in SHIPPED} | {
            name: Path(path) for name, path in config.data_sets.items()
        }

    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def texts(self) -> frozenset[str]:
        """What stands in the server's own data sets, column by column. A set that cannot be read has none, which it says when it is chosen."""
        stamps = tuple((name, _stamp(file)) for name, file in self._files.items())
        if self._texts is None or self._texts[0] != stamps:
            found: set[str] = set()
            for name in self._files:
                try:
                    data = self._read(DataSource("set", name), silent)
                except RequestError:
                    continue
                found.update(value for row in data.rows for value in row.values.values() if isinstance(value, str))
            self._texts = stamps, frozenset(found)
        return self._texts[1]

    def caches(self) -> dict[str, Cache[Any, Any]]:
        return {"data sets": self._data, "evaluations": self._reports, "explained errors": self._explained}

    # --- data

    def preview(self, question: PreviewData, progress: Progress) -> DataPreview:
        data = self._read(question.source, progress)
        shown = tuple((row.number, tuple(row.text(column) for column in data.columns)) for row in data.rows[: question.n_rows])
        return DataPreview(data.name, len(data.rows), tuple(_column(data, name) for name in data.columns), shown, data.problems)

    def read_row(self, question: ReadRow, progress: Progress) -> RowPrompt:
        self._require_template(question.template)
        data = self._read(question.source, progress)
        row = _row(data, question.number)
        prompt = question.template.render(row)
        values = tuple((column, row.text(column)) for column in data.columns)
        return RowPrompt(row.number, values, prompt if isinstance(prompt, str) else tuple(prompt))

    def preview_prompt(self, question: PreviewPrompt, progress: Progress) -> PromptPreview:
        self._require_allowed(question.template, question.scoring)
        data = self._usable(question.source, question.template, progress)
        with self._models.using(self._models.spec(question.model)):
            model = self._models.load(question.model, progress).model

            from llm_tt.analysis.scoring import prepare

            chosen = data.rows if question.number is None else (_row(data, question.number),)
            if not chosen:
                raise RequestError(f"No row of {data.name} can be used. {data.problems[0].sentence}")
            # All of a large data set would take long: the first rows are as good.
            some = replace(data, rows=tuple(chosen[:MOST_VALUES]), problems=())
            examples, problems = prepare(model, some, question.template, question.scoring)
            if not examples:
                raise RequestError(problems[0].sentence)
            example = examples[0]
            answers = [label.word for label in question.scoring.labels]
            if question.scoring.kind == "forced":
                answers = [next((label.word for label in question.scoring.labels if label.value == example.truth), example.truth)]
            told = tuple(
                (answer, tuple(tuple(model.texts(ids)) for ids in spelled))
                for answer, spelled in zip(answers, example.responses, strict=False)
            )
            return PromptPreview(example.number, example.prompt, len(example.prompt_ids), example.truth, told)

    def _read(self, source: DataSource, progress: Progress) -> DataSet:
        """
        Raises:
            RequestError: this server does not let its users read it, or it cannot be read.
        """
        file: Path | None = None
        if source.kind == "set":
            file = self._files.get(source.name)
            if file is None:
                raise RequestError(f'There is no data set "{source.name}" here. Choose one of: {", ".join(self._files)}.')
        elif source.kind == "path":
            if not self._config.data_may_be_named:
                raise RequestError("Files of this server cannot be named here. Choose a data set of the menu" + self._or_upload())
            file = Path(source.name.strip()).expanduser()
        elif not self._config.data_may_be_uploaded:
            raise RequestError("Data sets cannot be uploaded to this server. Choose one of the menu.")
        if source.limit is not None and source.limit < 1:
            raise RequestError(f"{source.limit} rows are to be read. Ask for 1 or more.")

        def read(progress: Progress) -> _Data:
            progress(f"Reading {source.name}", 0.0)
            data = _uploaded(source) if file is None else read_data(file, source.limit)
            # An upload is kept with its rows.
            size = len(source.content) + sum(200 + sum(len(str(value)) for value in row.values.values()) for row in data.rows)
            return _Data(data, size)

        return self._data.get((source, None if file is None else _stamp(file)), read, progress).rows

    def _or_upload(self) -> str:
        return ", or upload a file." if self._config.data_may_be_uploaded else "."

    def _usable(self, source: DataSource, template: Template, progress: Progress) -> DataSet:
        """The rows; those that users brought as far as their prompts are as long as this server allows."""
        data, limit = self._read(source, progress), self._config.max_user_string_length
        template.require_columns(data)
        if limit is None or source.kind == "set":
            return data
        rows: list[Row] = []
        problems = list(data.problems)
        for row in data.rows:
            length = len(template.fill(row))
            if length <= limit:
                rows.append(row)
            else:
                problems.append(Problem(row.number, f"Row {row.number} has {length} characters, but this server allows {limit}."))
        return DataSet(data.name, tuple(rows), tuple(sorted(problems, key=lambda problem: problem.number)))

    # --- what this server lets its users ask

    def _require_allowed(self, template: Template, scoring: Scoring) -> None:
        self._require_template(template)
        if scoring.n_generated > MOST_TOKENS:
            raise RequestError(f"{scoring.n_generated} tokens are to be generated for each row. Ask for {MOST_TOKENS} or fewer.")
        longest = max((label.word for label in scoring.labels), key=len, default="")
        if self._config.demo_mode and (scoring.n_generated or len(longest) > _MOST_WORD):
            raise RequestError("This server generates no text for data sets and takes short label words only. Score by label words.")
        limit = self._config.max_user_string_length
        if limit is not None and len(longest) > limit:
            raise RequestError(
                f'The label word "{longest[:40]}..." has {len(longest)} characters, but this server allows {limit}. Shorten it.'
            )
        if limit is not None and scoring.schema is not None and len(scoring.schema) > limit:
            raise RequestError(f"The JSON schema has {len(scoring.schema)} characters, but this server allows {limit}. Shorten it.")

    def _require_template(self, template: Template) -> None:
        """What the configuration says about prompts holds for templates, which are parts of them."""
        if self._config.demo_mode and (template.text != f"{{{template.columns[0]}}}" or template.system is not None or template.examples):
            raise RequestError("This server shows prepared prompts only. Take one column as the prompt.")
        limit, length = self._config.max_user_string_length, len(template.text) + len(template.system or "")
        if limit is not None and length > limit:
            raise RequestError(f"The template has {length} characters, but this server allows {limit}. Shorten it.")

    # --- evaluation

    def evaluate(self, question: Evaluate, progress: Progress) -> Evaluation:
        data, sides = self._sides(question, progress)
        reports = tuple(
            self._report(question, side, data, within(progress, place / len(sides), (place + 1) / len(sides)))
            for place, side in enumerate(sides)
        )
        comparison = None
        if len(reports) > 1:
            from llm_tt.analysis.strategy_report import compare_reports

            comparison = compare_reports(reports, [side.name for side in sides], question.seed)
        return Evaluation(question, sides, reports, comparison)

    def _sides(self, question: Evaluate, progress: Progress) -> tuple[DataSet, tuple[Side, ...]]:
        """The rows, and each model asked in each way. What is wrong with either is known before any model is loaded."""
        from llm_tt.analysis.strategies import examples_per_label, name_of, rows_numbered, strategies_named

        models, ways = question.models, question.strategies
        if not models or len(models) * len(ways) > MOST_SIDES:
            raise RequestError(f"{len(models)} models in {len(ways)} ways are to be evaluated. Choose from 1 to {MOST_SIDES} in all.")
        twice = next((model.name for place, model in enumerate(models) if model in models[:place]), None)
        if twice is not None:
            raise RequestError(f'"{twice}" is to be compared with itself. Choose another model, or none.')
        if self._config.demo_mode and ways != ("zero-shot",):
            raise RequestError("This server shows prepared prompts only, and other ways to ask add text to them. Ask zero-shot.")
        self._require_allowed(question.template, question.scoring)
        data = self._usable(question.source, question.template, progress)
        if "few-shot" not in ways:
            examples = ()
        elif question.shot_rows:
            examples = rows_numbered(data, question.shot_rows)
        else:
            examples = examples_per_label(data, question.template, question.scoring, question.shots, seed=question.seed)
        made = strategies_named(ways, question.template, question.scoring, examples=examples)
        sides = tuple(
            Side(
                model.name if len(made) == 1 else name_of(model.name, way, len(models) > 1, True),
                model,
                way.template,
                way.scoring,
            )
            for model in models
            for way in made
        )
        return data, sides

    def explain(self, question: ExplainErrors, progress: Progress) -> CellExplanation:
        data, sides = self._sides(question.evaluate, progress)
        if not 0 <= question.side < len(sides):
            raise RequestError(f"The evaluation has no side {question.side}: it has {len(sides)}.")
        side = sides[question.side]
        spec = self._models.spec(side.model)

        def trace(progress: Progress) -> CellExplanation:
            report = self._report(question.evaluate, side, data, within(progress, 0.0, 0.1))
            loaded = self._models.load(side.model, within(progress, 0.1, 0.2))

            from llm_tt.analysis.errors import explain_errors

            return explain_errors(
                loaded.model,
                data,
                side.template,
                report,
                question.truth,
                question.predicted,
                most=question.most,
                progress=_yielding(within(progress, 0.2, 1.0)),
            )

        key = spec, data.name, data.digest, side.template, side.scoring, question.truth, question.predicted, question.most
        with self._models.using(spec):
            return self._explained.get(key, trace, progress)

    def _report(self, question: Evaluate, side: Side, data: DataSet, progress: Progress) -> EvaluationReport:
        spec = self._models.spec(side.model)

        def evaluate_it(progress: Progress) -> EvaluationReport:
            from llm_tt.analysis.evaluation import evaluate

            loaded: Loaded = self._models.load(side.model, within(progress, 0.0, _LOADING))
            following = _yielding(within(progress, _LOADING, 1.0))
            return evaluate(
                loaded.model,
                data,
                side.template,
                side.scoring,
                slices=question.slices,
                words=question.words,
                folder=self._results_folder(),
                seed=question.seed,
                progress=lambda stage, fraction: following(f"{side.name}: {stage[:1].lower()}{stage[1:]}", fraction),
            )

        asked = data.name, data.digest, data.problems, side.template, side.scoring, question.slices, question.words, question.seed
        with self._models.using(spec):
            return self._reports.get((spec, *asked), evaluate_it, progress)

    def _results_folder(self) -> Path:
        folder = results_folder(self._config)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f'Results cannot be kept in "{folder}": {error.strerror}. Name a folder as "results_folder" in the configuration.'
            ) from error
        return folder


def results_folder(config: AppConfig) -> Path:
    """Where evaluations keep their results: as configured, else in the user's cache."""
    if config.results_folder is not None:
        return Path(config.results_folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llm-tt" / "evaluations"


def _yielding(progress: Progress) -> Progress:
    """Reports progress, and lets others have the model for a moment."""

    def report(stage: str, fraction: float) -> None:
        progress(stage, fraction)
        time.sleep(_YIELD)

    return report


def _uploaded(source: DataSource) -> DataSet:
    name = Path(source.name).name or "data"
    with tempfile.TemporaryDirectory(prefix="llm-tt-") as folder:
        file = Path(folder) / name
        file.write_bytes(source.content)
        try:
            return read_data(file, source.limit)
        except RequestError as error:
            # Of the user's file only its name is known to the user.
            raise RequestError(str(error).replace(f"{folder}{os.sep}", "")) from error


def _stamp(file: Path) -> tuple[int, int] | None:
    """Changes when the file does; None where there is none, which reading it says."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _row(data: DataSet, number: int) -> Row:
    row = next((row for row in data.rows if row.number == number), None)
    if row is None:
        why = next((problem.sentence for problem in data.problems if problem.number == number), f"{data.name} has no row {number}.")
        raise RequestError(why)
    return row


def _column(data: DataSet, name: str) -> Column:
    counts: Counter[str] = Counter()
    n_filled = 0
    for row in data.rows:
        if row.values.get(name) is not None:
            n_filled += 1
            if len(counts) <= MOST_VALUES:
                counts[row.text(name)] += 1
    values: Sequence[str] = () if len(counts) > MOST_VALUES else [value for value, _ in counts.most_common()]
    return Column(name, n_filled, tuple(values))


def _report_bytes(report: EvaluationReport) -> int:
    return sum(500 + len(text) for text in report.texts)
