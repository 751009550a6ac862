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
    """how many of them are right; of one label against the rest: how many rows have it"""

    @property
    def interval(self) -> tuple[float, float]:
        """of `accuracy`, by Wilson"""
        return wilson(round(self.accuracy * self.n), self.n)


@dataclass(frozen=True)
class CurvePoint:
    """What is found when every row whose probability of a label is at least `threshold` is taken to have it."""

    x: float
    """false positive rate on a ROC curve, recall on a precision-recall curve"""
    y: float
    """true positive rate on a ROC curve, precision on a precision-recall curve"""
    threshold: float | None
    """None where no row is taken to have it"""


@dataclass(frozen=True)
class LabelCurves:
    """How well the probability of one label tells its rows from all others, and whether it is as often right as it says."""

    label: str
    n: int
    """rows that have the label"""
    n_others: int
    roc: tuple[CurvePoint, ...]
    """corners only: a point between two others on a line is left out"""
    pr: tuple[CurvePoint, ...]
    """the same, by growing recall"""
    auc: Figure
    average_precision: Figure
    brier: Figure
    """mean of (probability - 1)^2 where a row has the label, of probability^2 where not"""
    ece: Figure
    """as in `Metrics`, over the bins below"""
    bins: tuple[Bin, ...]
    """rows by the probability of this label"""


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
    brier: Figure = Figure(None)
    """mean over rows of the squared distance between the probabilities and 1 for the right label, 0 for the others; of two labels half of it"""
    curves: tuple[LabelCurves, ...] = ()
    """of two labels: of the first; of more: of each against the rest. A label that no row or every row has, has none"""

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
    scored = _Scored() if scores is None else _scored(truth, given, names, scores, seed, n_bootstrap)
    return Metrics(
        labels=tuple(names),
        n=n,
        n_right=n_right,
        n_no_label=n_none,
        accuracy=Figure(n_right / n, low, high),
        balanced_accuracy=Figure(balanced, *_interval(_recalls(drawn))),
        macro_f1=Figure(macro, *_interval(_f1s(drawn))),
        roc_auc=scored.roc,
        pr_auc=scored.pr,
        ece=scored.ece,
        log_loss=scored.loss,
        per_class=tuple(
            ClassMetrics(name, float(precision[k]), float(recall[k]), float(f1[k]), int(support[k]), given.count(name))
            for k, name in enumerate(names)
        ),
        confusion=tuple(tuple(int(cell) for cell in row) for row in matrix),
        predicted_names=tuple(columns),
        bins=scored.bins,
        roc_curve=scored.roc_curve,
        pr_curve=scored.pr_curve,
        notes=tuple(notes),
        brier=scored.brier,
        curves=scored.curves,
    )


@dataclass(frozen=True)
class _Scored:
    """What takes the probabilities of labels."""

    roc: Figure = Figure(None)
    pr: Figure = Figure(None)
    ece: Figure = Figure(None)
    loss: Figure = Figure(None)
    brier: Figure = Figure(None)
    bins: tuple[Bin, ...] = ()
    roc_curve: tuple[tuple[float, float], ...] = ()
    pr_curve: tuple[tuple[float, float], ...] = ()
    curves: tuple[LabelCurves, ...] = ()


def _scored(truth: Sequence[str], given: Sequence[str], names: Sequence[str], scores: np.ndarray, seed: int, n_bootstrap: int) -> _Scored:
    from sklearn import metrics as sk

    n = len(truth)
    places = np.array([names.index(label) for label in truth])
    is_label = places[:, None] == np.arange(len(names))
    right = np.array([a == b for a, b in zip(truth, given, strict=True)])
    bins = calibration(truth, given, scores)
    losses = -np.log(np.maximum(scores[np.arange(n), places], np.finfo(np.float64).tiny))
    distances = ((scores - is_label) ** 2).sum(1) / (2 if len(names) == 2 else 1)
    which = [0] if len(names) == 2 else list(range(len(names)))
    told_apart = [k for k in which if 0 < is_label[:, k].sum() < n]
    tops = _Calibrated(scores.max(1), right)
    ranked = [_Ranked(is_label[:, k], scores[:, k]) for k in told_apart]
    calibrated = [_Calibrated(scores[:, k], is_label[:, k]) for k in told_apart]

    drawn = np.empty((n_bootstrap, 3 + 4 * len(told_apart)))
    random = np.random.default_rng(seed)
    for one in drawn:
        weights = np.bincount(random.integers(0, n, n), minlength=n).astype(np.float64)
        one[:3] = tops.error(weights), weights @ losses / n, weights @ distances / n
        for place, k in enumerate(told_apart):
            squares = (scores[:, k] - is_label[:, k]) ** 2
            one[3 + 4 * place :][:4] = (*ranked[place].areas(weights), calibrated[place].error(weights), weights @ squares / n)

    def figure(value: float, *columns: int) -> Figure:
        return Figure(float(value), *_interval(drawn[:, columns].mean(1)))

    curves: list[LabelCurves] = []
    for place, k in enumerate(told_apart):
        own = 3 + 4 * place
        label_bins = _bins(scores[:, k], is_label[:, k])
        curves.append(
            LabelCurves(
                names[k],
                int(is_label[:, k].sum()),
                int(n - is_label[:, k].sum()),
                _roc_points(is_label[:, k], scores[:, k]),
                _pr_points(is_label[:, k], scores[:, k]),
                figure(float(sk.roc_auc_score(is_label[:, k], scores[:, k])), own),
                figure(float(sk.average_precision_score(is_label[:, k], scores[:, k])), own + 1),
                figure(float(sk.brier_score_loss(is_label[:, k], _shares(scores[:, k]))), own + 3),
                figure(_calibration_error(label_bins, n), own + 2),
                label_bins,
            )
        )
    roc = pr = Figure(None)
    roc_curve: tuple[tuple[float, float], ...] = ()
    pr_curve: tuple[tuple[float, float], ...] = ()
    if len(names) > 1 and is_label.any(0).all():
        columns = range(3, drawn.shape[1], 4)
        roc = figure(float(np.mean([one.auc.value for one in curves if one.auc.value is not None])), *columns)
        pr = figure(
            float(np.mean([one.average_precision.value for one in curves if one.average_precision.value is not None])),
            *(column + 1 for column in columns),
        )
        if len(names) == 2:
            falses, trues, _ = sk.roc_curve(is_label[:, 0], scores[:, 0])
            roc_curve = tuple(zip(falses.tolist(), trues.tolist(), strict=True))
            precisions, recalls, _ = sk.precision_recall_curve(is_label[:, 0], scores[:, 0])
            pr_curve = tuple(zip(recalls.tolist(), precisions.tolist(), strict=True))
    return _Scored(
        roc,
        pr,
        figure(_calibration_error(bins, n), 0),
        figure(float(losses.mean()), 1),
        figure(float(distances.mean()), 2),
        bins,
        roc_curve,
        pr_curve,
        tuple(curves),
    )


def _shares(scores: np.ndarray) -> np.ndarray:
    """Probabilities whose sum was made 1 may be above it by a rounding, which scikit-learn refuses."""
    return np.clip(scores, 0.0, 1.0)


def _roc_points(is_label: np.ndarray, scores: np.ndarray) -> tuple[CurvePoint, ...]:
    from sklearn import metrics as sk

    columns = (values.tolist() for values in sk.roc_curve(is_label, scores))
    return tuple(CurvePoint(x, y, t if math.isfinite(t) else None) for x, y, t in zip(*columns, strict=True))


def _pr_points(is_label: np.ndarray, scores: np.ndarray) -> tuple[CurvePoint, ...]:
    from sklearn import metrics as sk

    precisions, recalls, thresholds = sk.precision_recall_curve(is_label, scores, drop_intermediate=True)
    columns = recalls.tolist(), precisions.tolist(), [*thresholds.tolist(), None]
    return tuple(CurvePoint(x, y, t) for x, y, t in zip(*columns, strict=True))[::-1]


def _calibration_error(bins: Sequence[Bin], n: int) -> float:
    return sum(b.n / n * abs(b.accuracy - b.confidence) for b in bins)


def calibration(truth: Sequence[str], predicted: Sequence[str], scores: np.ndarray) -> tuple[Bin, ...]:
    """Predictions by the probability of the most probable label, in bins (0, 0.1], ... (0.9, 1]; empty bins left out."""
    return _bins(scores.max(-1), np.array([a == b for a, b in zip(truth, predicted, strict=True)]))


def _bins(confidence: np.ndarray, right: np.ndarray) -> tuple[Bin, ...]:
    places = _bin_of(confidence)
    made: list[Bin] = []
    for k in range(N_BINS):
        chosen = places == k
        if chosen.any():
            made.append(Bin(k / N_BINS, (k + 1) / N_BINS, int(chosen.sum()), float(confidence[chosen].mean()), float(right[chosen].mean())))
    return tuple(made)


def _bin_of(confidence: np.ndarray) -> np.ndarray:
    return np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)


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


class _Calibrated:
    """The expected calibration error of rows with weights."""

    def __init__(self, confidence: np.ndarray, right: np.ndarray) -> None:
        self._places, self._gaps = _bin_of(confidence), right - confidence

    def error(self, weights: np.ndarray) -> float:
        # Of a bin: its share of rows times the distance of the two means, which is the distance of the two sums.
        return float(np.abs(np.bincount(self._places, weights * self._gaps, minlength=N_BINS)).sum() / weights.sum())


class _Ranked:
    """The areas under both curves of rows with weights; the rows are put in order once."""

    def __init__(self, positive: np.ndarray, scores: np.ndarray) -> None:
        values, self._places = np.unique(scores, return_inverse=True)
        self._n, self._positive = len(values), positive

    def areas(self, weights: np.ndarray) -> tuple[float, float]:
        """Under the ROC curve: how often a positive row is above a negative one, ties half. Average precision: the mean, over the positive
        rows, of the share of positive ones among all that are no lower. NaN where all rows are of one kind."""
        up = np.bincount(self._places, weights * self._positive, minlength=self._n)
        down = np.bincount(self._places, weights * ~self._positive, minlength=self._n)
        n_up, n_down = up.sum(), down.sum()
        if n_up == 0 or n_down == 0:
            return math.nan, math.nan
        area = (up * (np.cumsum(down) - down / 2)).sum() / (n_up * n_down)
        ups, all_of_them = np.cumsum(up[::-1]), np.cumsum((up + down)[::-1])
        precision = ups / np.maximum(all_of_them, 1e-300)
        return float(area), float((up[::-1] * precision).sum() / n_up)


def weighted_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """The area under the ROC curve of weighted rows; NaN where all are of one kind."""
    return _Ranked(positive, scores).areas(weights)[0]


def weighted_average_precision(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """The area under the precision-recall curve of weighted rows, as scikit-learn sums it; NaN where all are of one kind."""
    return _Ranked(positive, scores).areas(weights)[1]


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


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values of several tests, corrected so that the chance of any false finding among them stays what it says (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    made, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        made[index] = largest
    return tuple(made)
