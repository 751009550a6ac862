"""What a model answers to the rows of a data set, in three ways. Only the response is scored, never the prompt.

The tokens of a response are those that follow the prompt's when both are tokenised as one text. Where the tokenizer joins the prompt's end and
the response's beginning into one token, the response is tokenised by itself, and the row says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from llm_tt.analysis.json_answers import json_answer, require_schema
from llm_tt.analysis.rows import DataSet, Problem, Row, Template, require_column
from llm_tt.errors import LlmTtError, OutOfMemoryError, PromptError, RequestError
from llm_tt.models.scores import BATCH_TOKENS, SCORES_BYTES, Ask, NextTokens, Scored
from llm_tt.progress import Progress, silent
from llm_tt.text import decoded

if TYPE_CHECKING:
    from llm_tt.models.transparent_llm import PromptLike, TransparentLlm

BATCH_ROWS = 64
"""Results that come, and are stored, together"""

Kind = Literal["labels", "forced", "generate"]
"""By the probability of each label; teacher-forced on the row's own response; by what the model generates"""


@dataclass(frozen=True)
class Label:
    """A value of the label column, and the word that the model says for it."""

    value: str
    word: str


def parse_labels(text: str) -> tuple[Label, ...]:
    """ "yes,no", or "1=yes,0=no" where the data says 1 and 0.

    Raises:
        RequestError: there are fewer than two, one is empty, or one is there twice.
    """
    parts = [part.strip() for part in text.split(",")]
    made = tuple(Label(*(part.split("=", 1) if "=" in part else (part, part))) for part in parts)
    _require_labels(made)
    return made


def _require_labels(labels: Sequence[Label]) -> None:
    if len(labels) < 2:
        raise RequestError(f"{len(labels)} labels are given. Give two or more, as yes,no.")
    for label in labels:
        if not label.value or not label.word.strip():
            raise RequestError("A label is empty. Give labels as yes,no, or as 1=yes,0=no where the data says 1 and 0.")
    for field in ("value", "word"):
        seen = [getattr(label, field) for label in labels]
        for one in seen:
            if seen.count(one) > 1:
                raise RequestError(f'The label "{one}" is there twice. Remove one of them.')


@dataclass(frozen=True)
class Reasoning:
    """The model writes something, greedily, before it is asked for a label.

    Raises:
        RequestError: a value is out of its range.
    """

    n_tokens: int = 64
    """at most so many"""
    ask: str = "\nTherefore, the answer is"
    """follows what the model wrote, and the label follows it"""

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise RequestError(f"The model is to reason in {self.n_tokens} tokens. Allow 1 or more.")
        if not self.ask.strip():
            raise RequestError('What asks for the label after the reasoning is empty. Write for example "Therefore, the answer is".')


@dataclass(frozen=True)
class Scoring:
    """How the model is asked.

    Raises:
        RequestError: a value is out of its range.
    """

    kind: Kind = "labels"
    labels: tuple[Label, ...] = ()
    """may be empty for "forced", which then scores any response"""
    column: str = "label"
    """what holds the right answer: a label's value, or with "forced" and no labels the response itself"""
    spellings: tuple[str, ...] = ("{}", " {}")
    """how a response may be written after the prompt: "labels" adds up their probabilities, "forced" takes the more probable"""
    calibrated: bool = False
    """ "labels": probabilities divided by those after a prompt that says nothing, as Zhao and others (2021) do"""
    n_tokens: int = 16
    """ "generate": at most so many"""
    pattern: str | None = None
    """ "generate": a regular expression whose first group, or all of it, is the label; without it the label's word anywhere in the text"""
    json_field: str | None = None
    """ "generate": the text must hold a JSON object whose field of this name is a label"""
    schema: str | None = None
    """ "generate", with `json_field`: a JSON schema, as text, which the object must fit"""
    reasoning: Reasoning | None = None
    """ "labels": the model writes before the labels' probabilities are asked for"""

    def __post_init__(self) -> None:
        if self.kind != "forced" or self.labels:
            _require_labels(self.labels)
        if not self.spellings or any("{}" not in spelling for spelling in self.spellings):
            raise RequestError('A spelling needs "{}" where the response goes, as " {}".')
        if self.kind != "generate" and (self.pattern is not None or self.json_field is not None):
            raise RequestError("A pattern or JSON field reads what a model generates. Score by generation, or leave it out.")
        if self.pattern is not None and self.json_field is not None:
            raise RequestError("Both a pattern and a JSON field are given. Give one of them.")
        if self.schema is not None:
            if self.json_field is None:
                raise RequestError("A JSON schema is given, but not which field holds the label. Name it as the JSON field.")
            require_schema(self.schema, self.json_field)
        if self.reasoning is not None and self.kind != "labels":
            raise RequestError("After a reasoning the labels are asked for. Score by labels, or let the model reason in what it generates.")
        if self.reasoning is not None and self.calibrated:
            raise RequestError("What a model reasons differs from row to row, so that no prompt says nothing. Calibrate, or let it reason.")
        if self.calibrated and self.kind != "labels":
            raise RequestError("Calibration is for scoring by labels. Score by labels, or leave it out.")
        if self.n_tokens < 1:
            raise RequestError(f"{self.n_tokens} tokens are to be generated. Ask for 1 or more.")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise RequestError(f"The pattern {self.pattern!r} is no regular expression: {error}.") from error

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(label.value for label in self.labels)

    @property
    def n_generated(self) -> int:
        """Tokens that the model writes for one row, at most."""
        if self.reasoning is not None:
            return self.reasoning.n_tokens
        return self.n_tokens if self.kind == "generate" else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "labels": [[label.value, label.word] for label in self.labels],
            "column": self.column,
            "spellings": list(self.spellings),
            "calibrated": self.calibrated,
            "n_tokens": self.n_tokens,
            "pattern": self.pattern,
            "json_field": self.json_field,
            "schema": self.schema,
            "reasoning": None if self.reasoning is None else asdict(self.reasoning),
        }


@dataclass(frozen=True)
class Example:
    """A row that can be scored."""

    number: int
    prompt: str
    """as the model receives it, special tokens spelled out where a template writes them"""
    prompt_ids: tuple[int, ...]
    truth: str
    responses: tuple[tuple[tuple[int, ...], ...], ...]
    """[answer, spelling]: token ids; of every label in order, or of the row's own response alone"""
    apart: bool
    """whether a response was tokenised by itself"""

    @property
    def longest(self) -> int:
        return len(self.prompt_ids) + max((len(ids) for spelled in self.responses for ids in spelled), default=0)


@dataclass(frozen=True)
class Result:
    """What the model answered to one row."""

    number: int
    truth: str
    predicted: str | None
    """a label's value; None where the answer names no label. Without labels (any response): the truth if every token is right"""
    probabilities: tuple[float, ...] | None = None
    """of every label, made to sum to 1; "labels" only"""
    mass: float | None = None
    """what all labels together had of the probability, before that"""
    n_tokens: int | None = None
    """of the response; "forced" only"""
    n_right_tokens: int | None = None
    log_likelihood: float | None = None
    """of the response, in natural logarithms; "forced" only"""
    text: str | None = None
    """what was generated, reasoning included, or with "forced" the model's first choices along the response"""
    failure: str | None = None
    """why no label was found in it"""

    @property
    def is_right(self) -> bool:
        return self.predicted == self.truth

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None or name == "predicted"}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Result:
        values = dict(content)
        if values.get("probabilities") is not None:
            values["probabilities"] = tuple(values["probabilities"])
        return cls(**values)


# --- rows -> examples


def prepare(llm: TransparentLlm, data: DataSet, template: Template, scoring: Scoring) -> tuple[list[Example], list[Problem]]:
    """The rows as the model will receive them, and those that are left out, each with a sentence.

    Raises:
        RequestError: the data lacks a column that template or scoring name, or two labels cannot be told apart by their tokens.
    """
    template.require_columns(data)
    require_column(data, scoring.column)
    examples: list[Example] = []
    problems: list[Problem] = list(data.problems)
    tail = None if scoring.reasoning is None else _tail(llm, scoring, scoring.reasoning)
    shown = {prompt for prompt, _ in template.examples}
    for row in data.rows:
        try:
            example = _example(llm, row, template, scoring, tail)
            if shown and not template.is_conversation and template.fill(row) in shown:
                raise RequestError(f"Row {row.number} is one of the examples in the prompt. It is left out.")
        except LlmTtError as error:
            sentence = str(error) if isinstance(error, RequestError) else f"Row {row.number} is left out: {error}"
            problems.append(Problem(row.number, sentence))
            continue
        room = llm.info.n_ctx
        needed = example.longest + scoring.n_generated + (0 if tail is None else len(tail.ask))
        if needed > room:
            problems.append(
                Problem(
                    row.number,
                    f"Row {row.number} takes {needed} tokens with its response, but {llm.info.name} reads at most {room}. It is left out.",
                )
            )
            continue
        examples.append(example)
    return examples, sorted(problems, key=lambda problem: problem.number)


@dataclass(frozen=True)
class _Tail:
    """What follows a reasoning: the same tokens in every row, as they follow a letter."""

    ask: tuple[int, ...]
    responses: tuple[tuple[tuple[int, ...], ...], ...]


def _tail(llm: TransparentLlm, scoring: Scoring, reasoning: Reasoning) -> _Tail:
    before = "a"
    ask, _ = response_ids(llm, before, llm.encode(before), reasoning.ask)
    example = _tokenised(llm, 0, before + reasoning.ask, "", [label.word for label in scoring.labels], scoring.spellings)
    return _Tail(ask, example.responses)


def _example(llm: TransparentLlm, row: Row, template: Template, scoring: Scoring, tail: _Tail | None) -> Example:
    truth = row.text(scoring.column)
    if row.values.get(scoring.column) is None or not truth:
        raise RequestError(f'Row {row.number} has no "{scoring.column}".')
    if scoring.labels:
        truth = truth.strip()
    if scoring.labels and truth not in scoring.values:
        raise RequestError(f'Row {row.number} has the label "{truth}", which is none of {", ".join(scoring.values)}.')
    words = {label.value: label.word for label in scoring.labels}
    answers: list[str]
    if scoring.kind == "generate":
        answers = []
    elif scoring.kind == "forced":
        answers = [words.get(truth, truth)]
    else:
        answers = [label.word for label in scoring.labels]
    prompt = template.render(row)
    if tail is not None:
        received = llm.prompt(prompt)
        return Example(row.number, received.text or "", received.token_ids, truth, tail.responses, False)
    return _tokenised(llm, row.number, prompt, truth, answers, scoring.spellings)


def _tokenised(
    llm: TransparentLlm, number: int, prompt: PromptLike, truth: str, answers: Sequence[str], spellings: Sequence[str]
) -> Example:
    received = llm.prompt(prompt)
    text = received.text or ""
    alone = llm.encode(text)
    apart = False
    responses: list[tuple[tuple[int, ...], ...]] = []
    for answer in answers:
        spelled: list[tuple[int, ...]] = []
        for spelling in spellings:
            ids, is_apart = response_ids(llm, text, alone, spelling.replace("{}", answer))
            apart = apart or is_apart
            if ids not in spelled:
                spelled.append(ids)
        responses.append(tuple(spelled))
    _require_distinct(answers, responses)
    return Example(number, text, received.token_ids, truth, tuple(responses), apart)


def response_ids(llm: TransparentLlm, prompt: str, prompt_ids: Sequence[int], response: str) -> tuple[tuple[int, ...], bool]:
    """The tokens of a response after a prompt, by the rule on top of this module; whether it was tokenised by itself."""
    joint = llm.encode(prompt + response)
    if len(joint) > len(prompt_ids) and joint[: len(prompt_ids)] == list(prompt_ids):
        return tuple(joint[len(prompt_ids) :]), False
    # What goes in front of every text is the same before this one as before another.
    own, other = llm.encode(response), llm.encode("")
    return tuple(own[len(other) :] if own[: len(other)] == other else own), True


def _require_distinct(answers: Sequence[str], responses: Sequence[Sequence[tuple[int, ...]]]) -> None:
    for first, firsts in enumerate(responses):
        for second, seconds in enumerate(responses):
            if first != second and any(b[: len(a)] == a for a in firsts for b in seconds):
                raise RequestError(
                    f'The label word "{answers[second]}" begins with the tokens of "{answers[first]}", so that one would count for the other. '
                    "Choose other words, or score by generation."
                )


# --- examples -> results


def score(
    llm: TransparentLlm, examples: Sequence[Example], template: Template, scoring: Scoring, progress: Progress = silent
) -> Iterator[list[Result]]:
    """Results as they come, some rows at a time, the short prompts first.

    progress: called while a batch is generated, with the share of it that is done; may raise `Cancelled`.
    """
    order = sorted(examples, key=lambda example: example.longest)
    if scoring.kind == "generate":
        for chosen, texts in _continued(llm, order, scoring.n_tokens, progress):
            yield [_parsed(example, text_of(llm, ids), scoring) for example, ids in zip(chosen, texts, strict=True)]
        return
    if scoring.reasoning is not None:
        tail = _tail(llm, scoring, scoring.reasoning)
        for chosen, texts in _continued(llm, order, scoring.reasoning.n_tokens, progress):
            asked = [
                replace(example, prompt_ids=(*example.prompt_ids, *ids, *tail.ask)) for example, ids in zip(chosen, texts, strict=True)
            ]
            results = _by_labels(llm, asked, scoring, None)
            yield [replace(result, text=text_of(llm, ids)) for result, ids in zip(results, texts, strict=True)]
        return
    neutral = content_free_probabilities(llm, template, scoring) if scoring.calibrated else None
    for start in range(0, len(order), BATCH_ROWS):
        chosen = order[start : start + BATCH_ROWS]
        yield _by_labels(llm, chosen, scoring, neutral) if scoring.kind == "labels" else _forced(llm, chosen, scoring)


def _continued(
    llm: TransparentLlm, examples: Sequence[Example], n_tokens: int, progress: Progress
) -> Iterator[tuple[Sequence[Example], list[list[int]]]]:
    """Some examples at a time, with the tokens that the model says after each; the end of the sequence is not said."""
    from llm_tt.models.generation import continuations

    start, most = 0, BATCH_ROWS
    while start < len(examples):
        size = 1
        while size < min(most, len(examples) - start) and _fit(llm, size + 1, len(examples[start + size].prompt_ids), n_tokens):
            size += 1
        chosen = examples[start : start + size]
        try:
            texts = continuations(llm, [example.prompt_ids for example in chosen], n_tokens, progress)
        except OutOfMemoryError:
            if size == 1:
                raise
            most = size // 2
            continue
        yield chosen, [ids[:-1] if ids and ids[-1] in llm.end_ids else ids for ids in texts]
        start += size


def _fit(llm: TransparentLlm, n: int, length: int, n_tokens: int) -> bool:
    """Whether so many prompts are continued in one pass; all are at most so long."""
    return n * (length + n_tokens) <= BATCH_TOKENS and n * llm.info.n_heads * length**2 * 4 <= SCORES_BYTES


def asks_of(example: Example) -> list[Ask]:
    """What to ask so that the probability of every response is known: one text for each response of several tokens, the first of which answers for
    the first tokens of all; where there is none, the prompt itself."""
    prompt, n = example.prompt_ids, len(example.prompt_ids)
    responses = [ids for spelled in example.responses for ids in spelled]
    firsts = NextTokens(n - 1, tuple(ids[0] for ids in responses))
    asks = [Ask((*prompt, *ids[:-1]), tuple(NextTokens(n - 1 + k, (ids[k],)) for k in range(1, len(ids)))) for ids in _longer(responses)]
    return [Ask(asks[0].token_ids, (firsts, *asks[0].asked)), *asks[1:]] if asks else [Ask(prompt, (firsts,))]


def _longer(responses: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [ids for ids in responses if len(ids) > 1]


def response_log_probabilities(example: Example, answers: Sequence[Sequence[Scored]]) -> list[float]:
    """[answer * spelling] log-probability of every response, from the answers to `asks_of`."""
    responses = [ids for spelled in example.responses for ids in spelled]
    firsts, later = answers[0][0], iter([answers[0][1:], *answers[1:]])
    return [
        first + (sum(scored.log_probabilities[0] for scored in next(later)) if len(ids) > 1 else 0.0)
        for first, ids in zip(firsts.log_probabilities, responses, strict=True)
    ]


def label_log_probabilities(llm: TransparentLlm, examples: Sequence[Example]) -> list[list[float]]:
    """[example][label]: log-probability that the response begins with the label, in any of its spellings."""
    asks = [asks_of(example) for example in examples]
    answers = iter(llm.score([ask for some in asks for ask in some]))
    made: list[list[float]] = []
    for example, some in zip(examples, asks, strict=True):
        flat = iter(response_log_probabilities(example, [next(answers) for _ in some]))
        made.append([_log_sum([next(flat) for _ in spelled]) for spelled in example.responses])
    return made


def content_free_probabilities(llm: TransparentLlm, template: Template, scoring: Scoring) -> list[float]:
    """[label] log-probabilities after a prompt that says nothing."""
    answers = [label.word for label in scoring.labels]
    example = _tokenised(llm, 0, template.content_free(), "", answers, scoring.spellings)
    if example.longest > llm.info.n_ctx:
        raise PromptError(f"The prompt for calibration takes {example.longest} tokens, but {llm.info.name} reads at most {llm.info.n_ctx}.")
    return label_log_probabilities(llm, [example])[0]


def _by_labels(llm: TransparentLlm, examples: Sequence[Example], scoring: Scoring, neutral: Sequence[float] | None) -> list[Result]:
    made: list[Result] = []
    for example, logs in zip(examples, label_log_probabilities(llm, examples), strict=True):
        adjusted = logs if neutral is None else [log - free for log, free in zip(logs, neutral, strict=True)]
        total = _log_sum(adjusted)
        probabilities = tuple(math.exp(log - total) for log in adjusted)
        best = max(range(len(adjusted)), key=adjusted.__getitem__)
        made.append(Result(example.number, example.truth, scoring.values[best], probabilities=probabilities, mass=math.exp(_log_sum(logs))))
    return made


def forced_ask(prompt_ids: Sequence[int], response: Sequence[int]) -> Ask:
    """The logits at position p predict the token at p + 1: the first token of the response is asked for at the prompt's last position."""
    n = len(prompt_ids)
    asked = tuple(NextTokens(n - 1 + k, (token_id,)) for k, token_id in enumerate(response))
    return Ask((*prompt_ids, *response[:-1]), asked)


def _forced(llm: TransparentLlm, examples: Sequence[Example], scoring: Scoring) -> list[Result]:
    spelled = [(example, ids) for example in examples for ids in example.responses[0]]
    answers = llm.score([forced_ask(example.prompt_ids, ids) for example, ids in spelled])
    best: dict[int, tuple[float, tuple[int, ...], list[Scored]]] = {}
    for (example, ids), answer in zip(spelled, answers, strict=True):
        likelihood = sum(scored.log_probabilities[0] for scored in answer)
        if example.number not in best or likelihood > best[example.number][0]:
            best[example.number] = (likelihood, ids, answer)
    made: list[Result] = []
    for example in examples:
        likelihood, ids, answer = best[example.number]
        chosen = [scored.best for scored in answer]
        n_right = sum(a == b for a, b in zip(chosen, ids, strict=True))
        text = text_of(llm, chosen)
        said = example.truth if n_right == len(ids) else None
        if said is None and scoring.labels:
            said = next((label.value for label in scoring.labels if label.word == text.strip()), None)
        made.append(
            Result(
                example.number,
                example.truth,
                said,
                n_tokens=len(ids),
                n_right_tokens=n_right,
                log_likelihood=likelihood,
                text=text,
                failure=None if said is not None or not scoring.labels else f"The first choices {text!r} are no label.",
            )
        )
    return made


def text_of(llm: TransparentLlm, token_ids: Sequence[int]) -> str:
    return decoded([data or b"" for data in llm.token_data(token_ids)])[0]


def _parsed(example: Example, text: str, scoring: Scoring) -> Result:
    predicted, failure = parse_label(text, scoring)
    return Result(example.number, example.truth, predicted, text=text, failure=failure)


def parse_label(text: str, scoring: Scoring) -> tuple[str | None, str | None]:
    """The label that a text names, or why none was found. Case does not count; a text that names two is not guessed at."""
    words = {label.word.strip().casefold(): label.value for label in scoring.labels}
    if scoring.json_field is not None:
        return _from_json(text, scoring.json_field, scoring.schema, words)
    if scoring.pattern is not None:
        match = re.search(scoring.pattern, text)
        if match is None:
            return None, "The pattern does not match."
        said = (match[1] if match.re.groups else match[0]) or ""
        value = words.get(said.strip().casefold())
        return (value, None) if value is not None else (None, f"The pattern finds {said!r}, which is no label.")
    ways = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    named = {words[found.casefold()] for found in re.findall(rf"(?<!\w)(?:{ways})(?!\w)", text, re.IGNORECASE)}
    if len(named) == 1:
        return named.pop(), None
    return None, "The text names no label." if not named else f"The text names several labels: {', '.join(sorted(named))}."


def _from_json(text: str, field: str, schema: str | None, words: Mapping[str, str]) -> tuple[str | None, str | None]:
    content, failure = json_answer(text, schema)
    if content is None:
        return None, failure
    if field not in content:
        return None, f'The JSON object has no "{field}".'
    said = content[field]
    value = words.get((said if isinstance(said, str) else json.dumps(said)).strip().casefold())
    return (value, None) if value is not None else (None, f'"{field}" is {json.dumps(said)}, which is no label.')


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    return top if top == -math.inf else top + math.log(sum(math.exp(log - top) for log in logs))
