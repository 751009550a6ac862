"""How good a classifier is on rows with known labels: scikit-learn's metrics with confidence intervals, per slice, and two compared. No torch.

A row whose answer named no label has the prediction None. It is an error in every metric, never left out, and has a column of its own in the
confusion matrix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from llm_tt.errors import RequestError

NO_LABEL = "(no label)"
N_BINS = 10
N_BOOTSTRAP = 1000
_Z = 1.959963984540054
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval; None where the rows do not determine it."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.3f}" + ("" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]")


@dataclass(frozen=True)
class ClassMetrics:
    label: str
    precision: float
    """0 where the label was never predicted"""
    recall: float
    f1: float
    support: int
    """rows that have this label"""
    predicted: int
    """rows that were given it"""


@dataclass(frozen=True)
class Bin:
    """Predictions of like confidence, for calibration."""

    low: float
    high: float
    n: int
    confidence: float
    """mean"""
    accuracy: float


@dataclass(frozen=True)
class Metrics:
    """Everything about one set of predictions."""

    labels: tuple[str, ...]
    n: int
    n_right: int
    n_no_label: int
    accuracy: Figure
    """interval by Wilson"""
    balanced_accuracy: Figure
    """mean recall of the labels that occur; its interval, as those below, by bootstrap"""
    macro_f1: Figure
    roc_auc: Figure
    """of two labels: for the first; of more: the mean over one against the rest"""
    pr_auc: Figure
    """average precision; as `roc_auc`"""
    ece: Figure
    """expected calibration error: sum over ten bins of equal width of share x |accuracy - mean confidence|"""
    log_loss: Figure
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """[label, predicted]; a last column for no label where there is such a row"""
    predicted_names: tuple[str, ...]
    """of the columns of `confusion`"""
    bins: tuple[Bin, ...]
    roc_curve: tuple[tuple[float, float], ...]
    """(false positive rate, true positive rate) of two labels, for the first"""
    pr_curve: tuple[tuple[float, float], ...]
    """(recall, precision), the same"""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = n_right / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def measure(
    truth: Sequence[str],
    predicted: Sequence[str | None],
    labels: Sequence[str],
    probabilities: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> Metrics:
    """All metrics of one set of predictions.

    Args:
        labels: all there are; of two, the first is the positive one.
        probabilities: [row, label], each row summing to 1; without them there are no curves and no calibration.

    Raises:
        RequestError: there is no row.
    """
    from sklearn import metrics as sk

    if not truth:
        raise RequestError("There is no row to measure: all were left out.")
    names = list(labels)
    given = [NO_LABEL if label is None else label for label in predicted]
    n, n_right = len(truth), sum(a == b for a, b in zip(truth, given, strict=True))
    occurring = [name for name in names if name in set(truth)]
    notes: list[str] = []
    n_none = given.count(NO_LABEL)
    if n_none:
        notes.append(f"{n_none} of {n} answers name no label; they count as errors.")
    if len(occurring) == 1:
        notes.append(f'All rows have the label "{occurring[0]}": what sets labels apart (areas under curves) is not determined by them.')
    for name in names:
        if name not in given:
            notes.append(f'The label "{name}" was never predicted.')
    columns = [*names, NO_LABEL] if n_none else names
    matrix = sk.confusion_matrix(truth, given, labels=columns)[: len(names)]
    found = sk.precision_recall_fscore_support(truth, given, labels=names, zero_division=0)  # type: ignore[arg-type]
    precision, recall, f1, support = cast("tuple[np.ndarray, ...]", found)
    drawn = _resampled(matrix, seed, n_bootstrap)
    present = [names.index(name) for name in occurring]
    balanced = float(np.mean(recall[present]))
    macro = float(np.mean(f1[present]))
    low, high = wilson(n_right, n)
    scores = None if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    roc = pr = ece = loss = Figure(None)
    bins: tuple[Bin, ...] = ()
    roc_curve: tuple[tuple[float, float], ...] = ()
    pr_curve: tuple[tuple[float, float], ...] = ()
    if scores is not None:
        bins = calibration(truth, given, scores)
        ece = Figure(sum(b.n / n * abs(b.accuracy - b.confidence) for b in bins))
        chosen = scores[np.arange(n), [names.index(label) for label in truth]]
        loss = Figure(float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean()))
        if len(occurring) == len(names) and len(names) > 1:
            is_label = np.array([[label == name for name in names] for label in truth])
            which = [0] if len(names) == 2 else list(range(len(names)))
            roc = Figure(float(np.mean([sk.roc_auc_score(is_label[:, k], scores[:, k]) for k in which])))
            pr = Figure(float(np.mean([sk.average_precision_score(is_label[:, k], scores[:, k]) for k in which])))
            roc = Figure(roc.value, *_interval(_resampled_auc(is_label[:, which], scores[:, which], seed, n_bootstrap)))
            if len(names) == 2:
                falses, trues, _ = sk.roc_curve(is_label[:, 0], scores[:, 0])
                roc_curve = tuple(zip(falses.tolist(), trues.tolist(), strict=True))
                precisions, recalls, _ = sk.precision_recall_curve(is_label[:, 0], scores[:, 0])
                pr_curve = tuple(zip(recalls.tolist(), precisions.tolist(), strict=True))
    return Metrics(
        labels=tuple(names),
        n=n,
        n_right=n_right,
        n_no_label=n_none,
        accuracy=Figure(n_right / n, low, high),
        balanced_accuracy=Figure(balanced, *_interval(_recalls(drawn))),
        macro_f1=Figure(macro, *_interval(_f1s(drawn))),
        roc_auc=roc,
        pr_auc=pr,
        ece=ece,
        log_loss=loss,
        per_class=tuple(
            ClassMetrics(name, float(precision[k]), float(recall[k]), float(f1[k]), int(support[k]), given.count(name))
            for k, name in enumerate(names)
        ),
        confusion=tuple(tuple(int(cell) for cell in row) for row in matrix),
        predicted_names=tuple(columns),
        bins=bins,
        roc_curve=roc_curve,
        pr_curve=pr_curve,
        notes=tuple(notes),
    )


def calibration(truth: Sequence[str], predicted: Sequence[str], scores: np.ndarray) -> tuple[Bin, ...]:
    """Predictions by the probability of the most probable label, in bins (0, 0.1], ... (0.9, 1]; empty bins left out."""
    confidence = scores.max(-1)
    right = np.array([a == b for a, b in zip(truth, predicted, strict=True)])
    places = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    made: list[Bin] = []
    for k in range(N_BINS):
        chosen = places == k
        if chosen.any():
            made.append(Bin(k / N_BINS, (k + 1) / N_BINS, int(chosen.sum()), float(confidence[chosen].mean()), float(right[chosen].mean())))
    return tuple(made)


# --- intervals


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _resampled(matrix: np.ndarray, seed: int, n_bootstrap: int) -> np.ndarray:
    """[B, label, predicted]: confusion matrices of rows drawn with replacement, which is a multinomial draw of its cells."""
    counts = matrix.ravel()
    drawn = np.random.default_rng(seed).multinomial(int(counts.sum()), counts / counts.sum(), size=n_bootstrap)
    return drawn.reshape(n_bootstrap, *matrix.shape)


def _recalls(drawn: np.ndarray) -> np.ndarray:
    """[B]: balanced accuracy of each, over the labels that it has."""
    size = drawn.shape[1]
    support = drawn.sum(2)
    right = drawn[:, range(size), range(size)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nanmean(np.where(support > 0, right / support, np.nan), axis=1)


def _f1s(drawn: np.ndarray) -> np.ndarray:
    """[B]: mean F1 of the labels that it has."""
    size = drawn.shape[1]
    support, given = drawn.sum(2), drawn.sum(1)[:, :size]
    right = drawn[:, range(size), range(size)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nanmean(np.where(support > 0, 2 * right / (support + given), np.nan), axis=1)


def _resampled_auc(is_label: np.ndarray, scores: np.ndarray, seed: int, n_bootstrap: int) -> np.ndarray:
    """[B]: the mean area under the ROC curves of rows drawn with replacement; NaN where a label was not drawn."""
    random = np.random.default_rng(seed)
    n = len(scores)
    areas = np.empty(n_bootstrap)
    for index in range(n_bootstrap):
        weights = np.bincount(random.integers(0, n, n), minlength=n).astype(np.float64)
        areas[index] = np.mean([weighted_auc(is_label[:, k], scores[:, k], weights) for k in range(scores.shape[1])])
    return areas


def weighted_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """The area under the ROC curve of weighted rows: how often a positive one is above a negative one, ties half."""
    values, places = np.unique(scores, return_inverse=True)
    up = np.bincount(places, weights * positive, minlength=len(values))
    down = np.bincount(places, weights * ~positive, minlength=len(values))
    if up.sum() == 0 or down.sum() == 0:
        return math.nan
    return float((up * (np.cumsum(down) - down / 2)).sum() / (up.sum() * down.sum()))


# --- slices


@dataclass(frozen=True)
class Slice:
    """Some of the rows, and how many of them are right."""

    name: str
    n: int
    n_right: int

    @property
    def accuracy(self) -> Figure:
        return Figure(self.n_right / self.n, *wilson(self.n_right, self.n))


@dataclass(frozen=True)
class WordSlice:
    """The rows whose prompt has a word, against those without it."""

    word: str
    n: int
    n_right: int
    n_without: int
    n_right_without: int
    p_value: float
    """Fisher's exact test, not corrected for the number of words"""

    @property
    def accuracy(self) -> Figure:
        return Figure(self.n_right / self.n, *wilson(self.n_right, self.n))

    @property
    def accuracy_without(self) -> Figure:
        return Figure(self.n_right_without / self.n_without, *wilson(self.n_right_without, self.n_without))


def slices_by(name: str, values: Sequence[str], right: Sequence[bool]) -> tuple[Slice, ...]:
    """One slice for each value, the most wrong first."""
    found: dict[str, list[bool]] = {}
    for value, is_right in zip(values, right, strict=True):
        found.setdefault(value, []).append(is_right)
    made = [Slice(f"{name} = {value}", len(rights), sum(rights)) for value, rights in found.items()]
    return tuple(sorted(made, key=lambda s: (s.n_right / s.n, -s.n, s.name)))


def slices_by_length(lengths: Sequence[int], right: Sequence[bool], n_buckets: int = 4) -> tuple[Slice, ...]:
    """Rows by the length of their prompt, in buckets of about equal size."""
    edges = sorted({int(edge) for edge in np.quantile(lengths, np.linspace(0, 1, n_buckets + 1)[1:], method="higher")})
    made: list[Slice] = []
    low = min(lengths)
    for high in edges:
        chosen = [is_right for length, is_right in zip(lengths, right, strict=True) if low <= length <= high]
        if chosen:
            made.append(Slice(f"{low} to {high} tokens", len(chosen), sum(chosen)))
        low = high + 1
    return tuple(made)


def words_of(text: str) -> frozenset[str]:
    """The words of a text, in small letters."""
    return frozenset(word.casefold() for word in _WORD.findall(text))


def word_slice(word: str, texts: Sequence[str], right: Sequence[bool]) -> WordSlice | None:
    """One word; None where all rows or none have it."""
    has = [word.casefold() in words_of(text) for text in texts]
    return _word_slice(word, np.array(has), np.array(right, dtype=bool))


def telling_words(texts: Sequence[str], right: Sequence[bool], least: int = 5, most: int = 10) -> tuple[WordSlice, ...]:
    """The words whose rows are wrong unusually often, the most telling first.

    least: rows that must have a word, and rows that must lack it.
    """
    rights = np.array(right, dtype=bool)
    found: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        for word in words_of(text):
            found.setdefault(word, []).append(index)
    made: list[WordSlice] = []
    for word, places in found.items():
        if least <= len(places) <= len(texts) - least:
            has = np.zeros(len(texts), dtype=bool)
            has[places] = True
            made_slice = _word_slice(word, has, rights)
            if made_slice is not None and made_slice.n_right * made_slice.n_without < made_slice.n_right_without * made_slice.n:
                made.append(made_slice)
    return tuple(sorted(made, key=lambda s: (s.p_value, s.word))[:most])


def _word_slice(word: str, has: np.ndarray, right: np.ndarray) -> WordSlice | None:
    from scipy.stats import fisher_exact

    n, n_without = int(has.sum()), int((~has).sum())
    if not n or not n_without:
        return None
    a, b = int(right[has].sum()), int(right[~has].sum())
    p_value = float(fisher_exact([[a, n - a], [b, n_without - b]])[1])  # type: ignore[arg-type, index]
    return WordSlice(word, n, a, n_without, b, p_value)


# --- two compared


@dataclass(frozen=True)
class McNemar:
    """Two sets of predictions for the same rows: on how many only one is right, and how likely a difference like that is by chance."""

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    p_value: float
    """the exact test, two-sided: of the rows on which one is right, each has it with probability 1/2"""


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """
    Raises:
        RequestError: the two are not of the same rows.
    """
    from scipy.stats import binomtest

    if len(first) != len(second):
        raise RequestError(f"{len(first)} rows cannot be compared with {len(second)}: McNemar's test needs the same rows.")
    counts: Callable[[bool, bool], int] = lambda a, b: sum(x == a and y == b for x, y in zip(first, second, strict=True))  # noqa: E731
    only_first, only_second = counts(True, False), counts(False, True)
    n = only_first + only_second
    p_value = 1.0 if n == 0 else float(binomtest(only_first, n, 0.5).pvalue)
    return McNemar(counts(True, True), only_first, only_second, counts(False, False), p_value)
