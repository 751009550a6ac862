"""Ways to ask a model the same: zero-shot, few-shot, step by step, structured output; and an evaluation of several of them, or of several models,
on the same rows."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llm_tt.analysis.evaluation import evaluate
from llm_tt.analysis.evaluation_report import EvaluationReport
from llm_tt.analysis.json_answers import schema_for
from llm_tt.analysis.rows import DataSet, Row, Template, read_data, require_column
from llm_tt.analysis.scoring import Reasoning, Scoring, prepare
from llm_tt.analysis.strategy_report import StrategyComparison, compare_reports
from llm_tt.errors import RequestError
from llm_tt.progress import Progress, silent, within

if TYPE_CHECKING:
    from llm_tt.models.transparent_llm import TransparentLlm

NAMES = ("zero-shot", "few-shot", "step-by-step", "structured")

INSTRUCTION = "Let's think step by step."
"""What makes a model reason (Kojima et al. 2022)"""


@dataclass(frozen=True)
class Strategy:
    """One way to ask: how a row becomes a prompt, and how the answer is read."""

    name: str
    template: Template
    scoring: Scoring


# --- the four ways


def zero_shot(template: Template, scoring: Scoring) -> Strategy:
    """The template as it is."""
    return Strategy("zero-shot", template, scoring)


def with_examples(template: Template, scoring: Scoring, examples: Sequence[Row]) -> Strategy:
    """Few-shot: rows with their labels go before every prompt, with a chat template as turns of the conversation.

    Raises:
        RequestError: there are none, or one of them has no label of `scoring`.
    """
    if not examples:
        raise RequestError("Few-shot needs examples. Name rows, or say how many of each label.")
    return Strategy("few-shot", _shown(template, examples, [_word(row, scoring) for row in examples], scoring), scoring)


def step_by_step(
    template: Template, scoring: Scoring, reasoning: Reasoning | None = None, *, instruction: str = INSTRUCTION, parse: bool = False
) -> Strategy:
    """The model reasons first. Then the labels' probabilities are asked for after `reasoning.ask`; or, with `parse`, it is told to end with the
    label, and the last one that it names as its answer is read from the text.

    Raises:
        RequestError: the scoring names no labels.
    """
    _require_labels(scoring, "step-by-step")
    wanted = Reasoning() if reasoning is None else reasoning
    if not parse:
        asked = Scoring("labels", scoring.labels, scoring.column, scoring.spellings, reasoning=wanted)
        return Strategy("step-by-step", _told(template, instruction), asked)
    words = [label.word.strip() for label in scoring.labels]
    ending = f'{instruction} End with "Answer: {words[0]}"' + "".join(f' or "Answer: {word}"' for word in words[1:]) + "."
    ways = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    # From the last "answer" that a label follows, since reasoning may name others on the way.
    pattern = rf"(?is).*\banswer(?:\s+is)?\W{{1,5}}({ways})(?!\w)"
    read = Scoring("generate", scoring.labels, scoring.column, n_tokens=wanted.n_tokens, pattern=pattern)
    return Strategy("step-by-step", _told(template, ending), read)


def structured(
    template: Template,
    scoring: Scoring,
    *,
    field: str = "label",
    schema: str | None = None,
    n_tokens: int = 48,
    examples: Sequence[Row] = (),
) -> Strategy:
    """The model is told to answer with a JSON object, which is checked against a schema; what does not fit names no label.

    Args:
        field: what holds the label.
        schema: as JSON text, which the prompt then shows; without it an object with this field alone, whose values are the labels' words.
        examples: rows that go before every prompt, answered by such an object.

    Raises:
        RequestError: the scoring names no labels, the schema is none, or does not know the field.
    """
    _require_labels(scoring, "structured")
    words = [label.word.strip() for label in scoring.labels]
    used = schema_for(field, words) if schema is None else schema
    read = Scoring("generate", scoring.labels, scoring.column, n_tokens=n_tokens, json_field=field, schema=used)
    said = ", ".join(json.dumps(word, ensure_ascii=False) for word in words)
    # Short enough for small contexts, and plainer than the schema of one field.
    simple = f"Answer with a JSON object {{{json.dumps(field, ensure_ascii=False)}: X}} where X is one of {said}."
    told = _told(template, simple if schema is None else f"Answer with a JSON object that fits this schema: {schema}")
    if not examples:
        return Strategy("structured", told, read)
    answers = [json.dumps({field: _word(row, scoring)}, ensure_ascii=False) for row in examples]
    return Strategy("structured", _shown(told, examples, answers, scoring), read)


def strategies_named(
    names: Sequence[str],
    template: Template,
    scoring: Scoring,
    *,
    examples: Sequence[Row] = (),
    reasoning: Reasoning | None = None,
    instruction: str = INSTRUCTION,
    parse: bool = False,
    field: str = "label",
    schema: str | None = None,
    n_tokens: int = 48,
) -> tuple[Strategy, ...]:
    """Some of the four ways by name, each with the settings that concern it; `examples` are those of few-shot alone.

    Raises:
        RequestError: a name is none of `NAMES`, or is there twice; or a way cannot be made of these settings.
    """
    made: list[Strategy] = []
    for name in names:
        if name not in NAMES:
            raise RequestError(f'There is no strategy "{name}". There are {", ".join(NAMES)}.')
        if list(names).count(name) > 1:
            raise RequestError(f'The strategy "{name}" is there twice. Remove one of them.')
        if name == "zero-shot":
            made.append(zero_shot(template, scoring))
        elif name == "few-shot":
            made.append(with_examples(template, scoring, examples))
        elif name == "step-by-step":
            made.append(step_by_step(template, scoring, reasoning, instruction=instruction, parse=parse))
        else:
            made.append(structured(template, scoring, field=field, schema=schema, n_tokens=n_tokens))
    if not made:
        raise RequestError(f"No strategy is named. Name one or more of {', '.join(NAMES)}.")
    return tuple(made)


def _require_labels(scoring: Scoring, name: str) -> None:
    if not scoring.labels:
        raise RequestError(f"The strategy {name} needs labels. Give them as yes,no.")


def _word(row: Row, scoring: Scoring) -> str:
    value = row.text(scoring.column)
    if not scoring.labels:
        if not value:
            raise RequestError(f'Row {row.number} has no "{scoring.column}", so that it cannot be an example.')
        return value
    for label in scoring.labels:
        if label.value == value.strip():
            return label.word.strip()
    raise RequestError(
        f'Row {row.number} has the label "{value}", which is none of {", ".join(scoring.values)}, so that it cannot be an example.'
    )


def _shown(template: Template, rows: Sequence[Row], answers: Sequence[str], scoring: Scoring) -> Template:
    """The template with answered rows before every prompt."""
    if template.is_conversation:
        raise RequestError("Examples cannot go before a whole conversation. Use a template of one turn, as {question}.")
    # With a chat template the answer is a turn of its own.
    spelling = "{}" if template.chat or template.text[-1:].isspace() else scoring.spellings[-1]
    for row in rows:
        template.render(row)
    return replace(template, examples=tuple((template.fill(row), spelling.replace("{}", a)) for row, a in zip(rows, answers, strict=True)))


def _told(template: Template, instruction: str) -> Template:
    """The template with an instruction at the end of the question; before a whole conversation in its system prompt."""
    if template.is_conversation:
        return replace(template, system=instruction if template.system is None else f"{template.system}\n{instruction}")
    doubled = instruction.replace("{", "{{").replace("}", "}}")
    joined = "" if template.text[-1:].isspace() else "\n" if template.chat else " "
    return replace(template, text=template.text + joined + doubled)


# --- examples


def rows_numbered(data: DataSet, numbers: Sequence[int]) -> tuple[Row, ...]:
    """The rows with these numbers, in this order.

    Raises:
        RequestError: there is no such row, or it is named twice.
    """
    rows = {row.number: row for row in data.rows}
    for number in numbers:
        if number not in rows:
            raise RequestError(f"{data.name} has no row {number} that can be read. Its rows are {min(rows)} to {max(rows)}.")
        if list(numbers).count(number) > 1:
            raise RequestError(f"Row {number} is named twice as an example. Remove one.")
    return tuple(rows[number] for number in numbers)


def examples_per_label(
    data: DataSet, template: Template, scoring: Scoring, k: int, *, seed: int = 0, apart_from: DataSet | None = None
) -> tuple[Row, ...]:
    """So many rows of each label, drawn with a seed, the labels mixed.

    Args:
        apart_from: the rows that will be evaluated: none that reads the same by the template is drawn. Where the examples come from those rows
            themselves leave it out: an example is then not evaluated.

    Raises:
        RequestError: there are too few rows of a label.
    """
    _require_labels(scoring, "few-shot")
    if k < 1:
        raise RequestError(f"{k} examples of each label are asked for. Ask for 1 or more.")
    require_column(data, scoring.column)
    template.require_columns(data)
    taken = set() if apart_from is None else {template.fill(row) for row in apart_from.rows}
    drawing = random.Random(seed)
    chosen: list[Row] = []
    for label in scoring.labels:
        fitting: dict[str, Row] = {}
        for row in data.rows:
            text = template.fill(row)
            complete = all(row.values.get(column) is not None for column in template.columns)
            if row.text(scoring.column).strip() == label.value and complete and text not in taken:
                fitting.setdefault(text, row)
        if len(fitting) < k:
            without = "" if apart_from is None else " that are not evaluated"
            raise RequestError(f'{data.name} has {len(fitting)} rows with the label "{label.value}"{without}, but {k} are to be examples.')
        chosen += drawing.sample(list(fitting.values()), k)
    drawing.shuffle(chosen)
    return tuple(chosen)


# --- against each other


def compare_strategies(
    models: TransparentLlm | Sequence[TransparentLlm],
    data: DataSet | str | Path,
    strategies: Sequence[Strategy],
    *,
    slices: Sequence[str] = (),
    words: Sequence[str] = (),
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> StrategyComparison:
    """Several ways to ask one model, or several, on the same rows: one table of metrics, the rows answered differently, McNemar's test for every
    two of them. A row that is an example in one of the prompts is left out of the comparison.

    Args:
        slices, words, folder, seed, progress: as of `evaluate`.

    Raises:
        RequestError: there are fewer than two evaluations to compare; or as `evaluate` does, with the strategy's name.
    """
    several = [models] if not isinstance(models, Sequence) else list(models)
    if not isinstance(data, DataSet):
        data = read_data(data)
    if len(several) * len(strategies) < 2:
        raise RequestError("One way to ask one model is nothing to compare. Give two strategies, or two models.")
    reports: list[EvaluationReport] = []
    names: list[str] = []
    for place, llm in enumerate(several):
        part = within(progress, place / len(several), (place + 1) / len(several))
        reports += evaluate_strategies(llm, data, strategies, slices=slices, words=words, folder=folder, seed=seed, progress=part)
        names += [name_of(llm.info.name, strategy, len(several) > 1, len(strategies) > 1) for strategy in strategies]
    return compare_reports(reports, names, seed)


def name_of(model: str, strategy: Strategy, several_models: bool, several_strategies: bool) -> str:
    """What one of several evaluations is called."""
    if not several_models:
        return strategy.name
    return f"{model}: {strategy.name}" if several_strategies else model


def evaluate_strategies(
    llm: TransparentLlm,
    data: DataSet,
    strategies: Sequence[Strategy],
    *,
    slices: Sequence[str] = (),
    words: Sequence[str] = (),
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[EvaluationReport]:
    """One model asked in several ways. Whether each of them has rows to answer is found out before the first is evaluated.

    Raises:
        RequestError: as `evaluate` does, with the strategy's name.
    """
    for strategy in strategies:
        try:
            examples, problems = prepare(llm, data, strategy.template, strategy.scoring)
        except RequestError as error:
            raise RequestError(f"{strategy.name}: {error}") from error
        if not examples:
            first = f" {problems[0].sentence}" if problems else ""
            raise RequestError(f"{strategy.name}: no row of {data.name} can be evaluated.{first}")
    made: list[EvaluationReport] = []
    for place, strategy in enumerate(strategies):

        def named(stage: str, fraction: float, strategy: Strategy = strategy, place: int = place) -> None:
            progress(f"{strategy.name}: {stage[0].lower()}{stage[1:]}", (place + fraction) / len(strategies))

        made.append(
            evaluate(llm, data, strategy.template, strategy.scoring, slices=slices, words=words, folder=folder, seed=seed, progress=named)
        )
    return made
