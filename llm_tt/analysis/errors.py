"""Why the rows in one cell of a confusion matrix are there: the words their routes rest on, and the heads and FFN blocks that differ from rows
that are right. `CellExplanation` is the answer.

Two things are averaged over rows: the flow over the prompt's words (`llm_tt.flow.propagation`), and the direct effects of every head and FFN block
on how far the predicted label's first token is above the right one's (`llm_tt.lens.effects`). Both over the wrong rows, and over rows of the same
label that are right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_tt.analysis.evaluation_report import EvaluationReport, Table, as_text
from llm_tt.analysis.rows import DataSet, Template
from llm_tt.analysis.scoring import Example, prepare
from llm_tt.errors import RequestError
from llm_tt.flow.graph import DEFAULT_THRESHOLD
from llm_tt.progress import Progress, silent

if TYPE_CHECKING:
    from llm_tt.models.transparent_llm import Trace, TransparentLlm

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class WordFlow:
    """How much of the flow ends in one word, on average over rows; 0 in a row without it."""

    word: str
    wrong: float
    right: float
    effect_wrong: float
    """what heads bring from it to the prediction's lead over the right label, in logits, on average over the wrong rows"""
    effect_right: float
    n_wrong: int
    """wrong rows that have it"""
    n_right: int

    @property
    def difference(self) -> float:
        return self.wrong - self.right


@dataclass(frozen=True)
class PartEffect:
    """What a head or an FFN block adds to the prediction's lead over the right label, in logits, on average over rows."""

    name: str
    """"L2 H1" or "FFN L3" """
    wrong: float
    right: float

    @property
    def difference(self) -> float:
        return self.wrong - self.right


@dataclass(frozen=True)
class CellExplanation:
    """One cell of the confusion matrix, against the rows of the same label that are right."""

    truth: str
    predicted: str
    wrong: tuple[int, ...]
    """numbers of the rows that were traced"""
    right: tuple[int, ...]
    words: tuple[WordFlow, ...]
    """those on which the wrong rows' flow rests more than the right rows' first"""
    parts: tuple[PartEffect, ...]
    """those that differ most first"""

    def tables(self, n: int = 10) -> tuple[Table, ...]:
        title = f"{len(self.wrong)} rows of {self.truth} predicted as {self.predicted}, against {len(self.right)} that are right"
        words = tuple(
            (w.word, f"{w.wrong:.3f}", f"{w.right:.3f}", f"{w.effect_wrong:+.3f}", f"{w.effect_right:+.3f}", str(w.n_wrong), str(w.n_right))
            for w in self.words[:n]
        )
        parts = tuple((p.name, f"{p.wrong:+.3f}", f"{p.right:+.3f}", f"{p.difference:+.3f}") for p in self.parts[:n])
        header = ("word", "flow, wrong", "flow, right", "effect, wrong", "effect, right", "wrong rows", "right rows")
        return Table(title, header, words), Table("Effects on the lead of the prediction", ("part", "wrong", "right", "difference"), parts)

    def to_text(self) -> str:
        return as_text(self.tables(), ())


@dataclass(frozen=True)
class _Seen:
    words: dict[str, tuple[float, float]]
    """word -> flow, effect"""
    parts: np.ndarray


def explain_errors(
    llm: TransparentLlm,
    data: DataSet,
    template: Template,
    report: EvaluationReport,
    truth: str,
    predicted: str,
    *,
    most: int = 32,
    threshold: float = DEFAULT_THRESHOLD,
    progress: Progress = silent,
) -> CellExplanation:
    """Trace rows of one cell, and rows of its label that are right, and average what is seen.

    Args:
        report: an evaluation of this model on these data with this template, by labels.
        most: rows of each kind that are traced, taken evenly from all.
        threshold: of the routes.

    Raises:
        RequestError: the cell is one of right answers, or one of the two kinds has no row.
    """
    words = {label.value: place for place, label in enumerate(report.scoring.labels)}
    if report.scoring.kind != "labels":
        raise RequestError("Errors are explained of an evaluation by labels. Evaluate with the kind labels.")
    if report.scoring.reasoning is not None:
        raise RequestError("Errors are explained of answers that follow the prompt itself. Evaluate without reasoning.")
    if truth == predicted or truth not in words or predicted not in words:
        raise RequestError(f'"{truth}" predicted as "{predicted}" is no cell of errors. Name two of the labels {", ".join(words)}.')
    wrong, right = (_evenly(report.cell(truth, said), most) for said in (predicted, truth))
    if not wrong:
        raise RequestError(f'No row of "{truth}" was predicted as "{predicted}".')
    if not right:
        raise RequestError(f'No row of "{truth}" is right, so that there is nothing to compare with. Evaluate on more rows.')
    chosen = {*wrong, *right}
    kept = DataSet(data.name, tuple(row for row in data.rows if row.number in chosen))
    examples = {example.number: example for example in prepare(llm, kept, template, report.scoring)[0]}
    seen: dict[int, _Seen] = {}
    for place, number in enumerate([*wrong, *right]):
        progress(f"Tracing row {place + 1} of {len(chosen)}", place / len(chosen))
        seen[number] = _look(llm, examples[number], words[truth], words[predicted], threshold)
    return CellExplanation(
        truth,
        predicted,
        wrong,
        right,
        _word_flows([seen[n] for n in wrong], [seen[n] for n in right]),
        _part_effects(llm, np.mean([seen[n].parts for n in wrong], 0), np.mean([seen[n].parts for n in right], 0)),
    )


def largest_cell(report: EvaluationReport) -> tuple[str, str] | None:
    """The label and the prediction of most errors, those without a label left out; None where there is no error."""
    cells: dict[tuple[str, str], int] = {}
    for result in report.results:
        if result.predicted is not None and not result.is_right:
            cell = result.truth, result.predicted
            cells[cell] = cells.get(cell, 0) + 1
    return max(cells, key=lambda cell: cells[cell]) if cells else None


def _evenly(numbers: Sequence[int], most: int) -> tuple[int, ...]:
    if len(numbers) <= most:
        return tuple(numbers)
    return tuple(numbers[place * len(numbers) // most] for place in range(most))


def _look(llm: TransparentLlm, example: Example, truth: int, predicted: int, threshold: float) -> _Seen:
    from llm_tt.flow.propagation import flow_over_sources
    from llm_tt.flow.routes import extract_routes
    from llm_tt.lens.effects import direct_effects

    trace = llm.trace(list(example.prompt_ids))
    logits = trace.logits(-1)
    # Of the spellings of a label, the one that the model would begin.
    token, contrast = (max((ids[0] for ids in example.responses[label]), key=lambda i: float(logits[i])) for label in (predicted, truth))
    effects = direct_effects(trace, -1, int(token), int(contrast))
    sources = flow_over_sources(extract_routes(trace, -1, threshold))
    brought = effects.heads.sum((0, 1), dtype=np.float64)
    found: dict[str, tuple[float, float]] = {}
    for word, positions in words_at(trace, example.prompt).items():
        found[word] = float(sources[positions].sum()), float(brought[positions].sum())
    return _Seen(found, np.concatenate([effects.heads.sum(2, dtype=np.float64).ravel(), effects.ffn.astype(np.float64)]))


def words_at(trace: Trace, text: str) -> dict[str, list[int]]:
    """The words of a prompt in small letters, each with the tokens that hold its letters, wherever it occurs. Special tokens are no words."""
    spans = _spans(trace, text)
    special = set(trace.model.info.tokenizer.special_tokens) if trace.model.info.tokenizer is not None else set()
    found: dict[str, list[int]] = {}
    for match in _WORD.finditer(text):
        for place, span in enumerate(spans):
            if span is None or span[0] >= match.end() or match.start() >= span[1] or text[slice(*span)].strip() in special:
                continue
            positions = found.setdefault(match[0].casefold(), [])
            if place not in positions:
                positions.append(place)
    return found


def _spans(trace: Trace, text: str) -> list[Any]:
    from llm_tt.text import align

    spans = align(text, trace.model.token_data(trace.token_ids))
    if spans is not None:
        return list(spans)
    # A special token in front that the text does not spell out.
    for start in range(1, trace.n_tokens):
        spans = align(text, trace.model.token_data(trace.token_ids[start:]))
        if spans is not None:
            return [*([None] * start), *spans]
    raise RequestError(f"The tokenizer of {trace.model.info.name} does not tell which characters its tokens hold: words cannot be found.")


def _word_flows(wrong: Sequence[_Seen], right: Sequence[_Seen]) -> tuple[WordFlow, ...]:
    def mean(rows: Sequence[_Seen], word: str, which: int) -> float:
        return sum(row.words[word][which] for row in rows if word in row.words) / len(rows)

    words = dict.fromkeys(word for row in (*wrong, *right) for word in row.words)
    made = [
        WordFlow(
            word,
            mean(wrong, word, 0),
            mean(right, word, 0),
            mean(wrong, word, 1),
            mean(right, word, 1),
            sum(word in row.words for row in wrong),
            sum(word in row.words for row in right),
        )
        for word in words
    ]
    return tuple(sorted(made, key=lambda word: -word.difference))


def _part_effects(llm: TransparentLlm, wrong: np.ndarray, right: np.ndarray) -> tuple[PartEffect, ...]:
    info = llm.info
    names = [f"L{layer} H{head}" for layer in range(info.n_layers) for head in range(info.n_heads)]
    names += [f"FFN L{layer}" for layer in range(info.n_layers)]
    made = [PartEffect(name, float(a), float(b)) for name, a, b in zip(names, wrong, right, strict=True)]
    return tuple(sorted(made, key=lambda part: -abs(part.difference)))
