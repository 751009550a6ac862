"""Metrics equal scikit-learn called directly, intervals what they are by definition, and McNemar's test a sum of binomial terms."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from sklearn import metrics as sk

from llm_tt.analysis.metrics import (
    NO_LABEL,
    Figure,
    holm,
    mcnemar,
    measure,
    slices_by,
    slices_by_length,
    telling_words,
    weighted_auc,
    weighted_average_precision,
    wilson,
    word_slice,
    words_of,
)
from llm_tt.errors import RequestError


def made(labels: list[str], n: int = 160, seed: int = 3, none: float = 0.0) -> tuple[list[str], list[str | None], np.ndarray]:
    random = np.random.default_rng(seed)
    truth = [labels[k] for k in random.integers(0, len(labels), n)]
    scores = random.dirichlet(np.ones(len(labels)), n)
    for row, label in enumerate(truth):
        scores[row, labels.index(label)] += random.random()
    scores /= scores.sum(1, keepdims=True)
    predicted: list[str | None] = [labels[int(k)] for k in scores.argmax(1)]
    return truth, [None if random.random() < none else label for label in predicted], scores


@pytest.mark.parametrize("labels", [["yes", "no"], ["a", "b", "c"]])
def test_every_number_is_that_of_scikit_learn(labels: list[str]) -> None:
    truth, predicted, scores = made(labels)
    m = measure(truth, predicted, labels, scores.tolist())
    assert m.accuracy.value == sk.accuracy_score(truth, predicted)
    assert m.balanced_accuracy.value == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert m.macro_f1.value == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, predicted, labels=labels)
    for k, one in enumerate(m.per_class):
        assert (one.precision, one.recall, one.f1, one.support) == (precision[k], recall[k], f1[k], support[k])  # type: ignore[index]
    assert np.array(m.confusion).tolist() == sk.confusion_matrix(truth, predicted, labels=labels).tolist()
    places = [labels.index(label) for label in truth]
    if len(labels) == 2:
        positive = [label == labels[0] for label in truth]
        assert m.roc_auc.value == pytest.approx(sk.roc_auc_score(positive, scores[:, 0]))
        assert m.pr_auc.value == pytest.approx(sk.average_precision_score(positive, scores[:, 0]))
        falses, trues, _ = sk.roc_curve(positive, scores[:, 0])
        assert m.roc_curve == tuple(zip(falses, trues, strict=True))
    else:
        assert m.roc_auc.value == pytest.approx(sk.roc_auc_score(places, scores, multi_class="ovr"))
    assert m.log_loss.value == pytest.approx(sk.log_loss(places, scores))
    assert m.notes == ()


def test_calibration_error_by_its_definition() -> None:
    truth, predicted, scores = made(["yes", "no"], n=400)
    total = 0.0
    for low in np.arange(10) / 10:
        inside = [row for row in range(400) if low < scores[row].max() <= low + 0.1 + 1e-12]
        if inside:
            confidence = np.mean([scores[row].max() for row in inside])
            total += len(inside) / 400 * abs(np.mean([truth[row] == predicted[row] for row in inside]) - confidence)
    m = measure(truth, predicted, ["yes", "no"], scores.tolist())
    assert m.ece.value == pytest.approx(total)
    assert sum(b.n for b in m.bins) == 400


@pytest.mark.parametrize("labels", [["yes", "no"], ["a", "b", "c"]])
def test_curves_are_those_of_scikit_learn(labels: list[str]) -> None:
    truth, predicted, scores = made(labels)
    m = measure(truth, predicted, labels, scores.tolist())
    assert [curves.label for curves in m.curves] == (labels[:1] if len(labels) == 2 else labels)
    for k, curves in enumerate(m.curves):
        positive = np.array([label == labels[k] for label in truth])
        falses, trues, thresholds = sk.roc_curve(positive, scores[:, k])
        assert [(p.x, p.y) for p in curves.roc] == list(zip(falses, trues, strict=True))
        assert curves.roc[0].threshold is None
        assert [p.threshold for p in curves.roc[1:]] == thresholds[1:].tolist()
        for p in curves.roc[1:]:
            taken = scores[:, k] >= p.threshold
            assert (p.x, p.y) == (pytest.approx(taken[~positive].mean()), pytest.approx(taken[positive].mean()))
        precisions, recalls, _ = sk.precision_recall_curve(positive, scores[:, k])
        assert {(p.x, p.y) for p in curves.pr} <= set(zip(recalls, precisions, strict=True))
        assert [p.x for p in curves.pr] == sorted(p.x for p in curves.pr)
        # What was left out does not change the area of the steps.
        steps = sum((b.x - a.x) * b.y for a, b in zip(curves.pr, curves.pr[1:], strict=False))
        assert steps == pytest.approx(sk.average_precision_score(positive, scores[:, k]), abs=0.01)
        assert curves.auc.value == pytest.approx(sk.roc_auc_score(positive, scores[:, k]))
        assert curves.average_precision.value == pytest.approx(sk.average_precision_score(positive, scores[:, k]))
        assert curves.brier.value == pytest.approx(sk.brier_score_loss(positive, scores[:, k]))
        assert (curves.n, curves.n_others) == (positive.sum(), (~positive).sum())
        total = 0.0
        for b in curves.bins:
            inside = (scores[:, k] > b.low) & (scores[:, k] <= b.high)
            assert (b.n, b.confidence) == (inside.sum(), pytest.approx(scores[inside, k].mean()))
            assert b.accuracy == pytest.approx(positive[inside].mean())
            assert b.interval == wilson(int(positive[inside].sum()), int(inside.sum()))
            total += inside.mean() * abs(positive[inside].mean() - scores[inside, k].mean())
        assert sum(b.n for b in curves.bins) == len(truth)
        assert curves.ece.value == pytest.approx(total)
    assert m.brier.value == pytest.approx(sk.brier_score_loss(truth, scores[:, np.argsort(labels)], labels=sorted(labels)))
    assert m.roc_auc.value == pytest.approx(np.mean([curves.auc.value for curves in m.curves]))
    assert m.pr_auc.value == pytest.approx(np.mean([curves.average_precision.value for curves in m.curves]))


def test_a_label_that_no_row_has_has_no_curve_and_the_others_do() -> None:
    truth, predicted, scores = made(["a", "b", "c"])
    rows = [row for row, label in enumerate(truth) if label != "c"]
    m = measure([truth[r] for r in rows], [predicted[r] for r in rows], ["a", "b", "c"], scores[rows].tolist())
    assert [curves.label for curves in m.curves] == ["a", "b"]
    assert (m.roc_auc, m.pr_auc) == (Figure(None), Figure(None)), "a mean over labels some of which are not there"
    assert m.brier.value is not None
    assert measure(["a"] * 3, ["a", "b", "a"], ["a", "b"], [[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]).curves == ()
    assert measure(truth, predicted, ["a", "b", "c"]).curves == ()


def test_an_answer_without_a_label_is_an_error_everywhere() -> None:
    labels = ["yes", "no"]
    truth, predicted, _ = made(labels, none=0.2)
    given = [NO_LABEL if label is None else label for label in predicted]
    m = measure(truth, predicted, labels)
    assert m.n_no_label == given.count(NO_LABEL) > 10
    assert m.accuracy.value == np.mean([a == b for a, b in zip(truth, given, strict=True)])
    assert m.balanced_accuracy.value == pytest.approx(sk.recall_score(truth, given, labels=labels, average="macro"))
    assert m.macro_f1.value == pytest.approx(sk.f1_score(truth, given, labels=labels, average="macro"))
    assert m.predicted_names == ("yes", "no", NO_LABEL)
    assert sum(map(sum, m.confusion)) == len(truth)
    assert m.notes[0] == f"{m.n_no_label} of 160 answers name no label; they count as errors."
    assert m.roc_auc == m.ece == Figure(None)


def test_one_class_only_says_what_is_not_determined() -> None:
    m = measure(["no"] * 4, ["no", "yes", "no", "no"], ["yes", "no"], [[0.1, 0.9], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    assert (m.accuracy.value, m.balanced_accuracy.value) == (0.75, 0.75)
    assert (m.roc_auc.value, m.pr_auc.value, m.roc_curve) == (None, None, ())
    assert m.notes == ('All rows have the label "no": what sets labels apart (areas under curves) is not determined by them.',)
    assert str(m.roc_auc) == "-"
    assert 'The label "yes" was never predicted.' in measure(["no", "yes"], ["no", "no"], ["yes", "no"]).notes


def test_no_row_is_a_sentence() -> None:
    with pytest.raises(RequestError, match="There is no row to measure"):
        measure([], [], ["yes", "no"])


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (9, 10), (81, 263)])
def test_wilson_solves_its_equation(right: int, n: int) -> None:
    for bound in wilson(right, n):
        if 1e-12 < bound < 1 - 1e-12:
            assert (right / n - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / n, rel=1e-5)
    assert wilson(9, 10) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))


def test_bootstrap_intervals_are_those_of_drawn_rows_and_repeat_with_their_seed() -> None:
    labels = ["yes", "no"]
    truth, predicted, scores = made(labels, n=120, none=0.05)
    m = measure(truth, predicted, labels, scores.tolist(), n_bootstrap=2000)
    random = np.random.default_rng(99)
    given = [NO_LABEL if label is None else label for label in predicted]
    drawn: dict[str, list[float]] = {"balanced": [], "f1": [], "auc": [], "ap": [], "brier": [], "loss": [], "ece": []}
    for _ in range(600):
        rows = random.integers(0, 120, 120)
        t, g = [truth[r] for r in rows], [given[r] for r in rows]
        drawn["balanced"].append(float(sk.recall_score(t, g, labels=labels, average="macro", zero_division=0)))
        drawn["f1"].append(float(sk.f1_score(t, g, labels=labels, average="macro", zero_division=0)))
        positive = [x == "yes" for x in t]
        drawn["auc"].append(float(sk.roc_auc_score(positive, scores[rows, 0])))
        drawn["ap"].append(float(sk.average_precision_score(positive, scores[rows, 0])))
        drawn["brier"].append(float(sk.brier_score_loss(positive, scores[rows, 0])))
        drawn["loss"].append(float(sk.log_loss(positive, scores[rows, 0])))
        sure, right = scores[rows].max(1), np.array([a == b for a, b in zip(t, g, strict=True)])
        bins = [(sure > low) & (sure <= low + 0.1 + 1e-12) for low in np.arange(10) / 10]
        drawn["ece"].append(sum(abs((right[b] - sure[b]).sum()) for b in bins) / 120)
    (curves,) = m.curves
    pairs = [(m.balanced_accuracy, "balanced"), (m.macro_f1, "f1"), (m.roc_auc, "auc"), (m.pr_auc, "ap"), (m.brier, "brier")]
    pairs += [(m.log_loss, "loss"), (m.ece, "ece"), (curves.auc, "auc"), (curves.average_precision, "ap"), (curves.brier, "brier")]
    for figure, name in pairs:
        assert (figure.low, figure.high) == pytest.approx(np.percentile(drawn[name], [2.5, 97.5]).tolist(), abs=0.02)
    again = measure(truth, predicted, labels, scores.tolist(), n_bootstrap=2000)
    assert again == m != measure(truth, predicted, labels, scores.tolist(), seed=1, n_bootstrap=2000)


def test_weighted_area_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    positive, scores, weights = random.random(50) < 0.4, random.integers(0, 9, 50) / 9, random.integers(0, 4, 50).astype(float)
    assert weighted_auc(positive, scores, weights) == pytest.approx(sk.roc_auc_score(positive, scores, sample_weight=weights))
    assert math.isnan(weighted_auc(positive, scores, weights * positive))
    theirs = sk.average_precision_score(positive, scores, sample_weight=weights)
    assert weighted_average_precision(positive, scores, weights) == pytest.approx(theirs)
    assert math.isnan(weighted_average_precision(positive, scores, weights * ~positive))


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([0.02]) == (0.02,)
    assert holm([]) == ()


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 9), (37, 0), (20, 20)])
def test_mcnemar_is_a_sum_of_binomial_terms(b: int, c: int) -> None:
    first = [True] * b + [False] * c + [True] * 5 + [False] * 3
    second = [False] * b + [True] * c + [True] * 5 + [False] * 3
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second, test.both_right, test.both_wrong) == (b, c, 5, 3)
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert test.p_value == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_wants_the_same_rows() -> None:
    with pytest.raises(RequestError, match="2 rows cannot be compared with 1"):
        mcnemar([True, False], [True])


def test_slices_by_column_and_length() -> None:
    right = [True, False, False, True, True]
    by_city = slices_by("city", ["a", "b", "b", "a", "b"], right)
    assert [(s.name, s.n, s.n_right) for s in by_city] == [("city = b", 3, 1), ("city = a", 2, 2)]
    buckets = slices_by_length([1, 2, 3, 4, 4], right, n_buckets=2)
    assert [(s.name, s.n, s.n_right) for s in buckets] == [("1 to 3 tokens", 3, 1), ("4 to 4 tokens", 2, 2)]
    assert sum(s.n for s in slices_by_length([5] * 9, [True] * 9)) == 9


def test_words_whose_rows_are_wrong() -> None:
    texts = ["Pay Lima now", "pay the bank", "lima, please", "Pay in Rome", "LIMA!", "limanade"]
    right = [False, True, False, True, False, True]
    assert words_of("It's Lima's x-ray, 2 times") == {"it's", "lima's", "x-ray", "2", "times"}
    first = telling_words(texts, right, least=2)[0]
    assert (first.word, first.n, first.n_right, first.n_without, first.n_right_without) == ("lima", 3, 0, 3, 3)
    # Of the 20 ways to choose which three of six are right, the two most extreme ones.
    ways = [chosen for chosen in product([0, 1], repeat=6) if sum(chosen) == 3]
    assert first.p_value == pytest.approx(sum(sum(chosen[:3]) in (0, 3) for chosen in ways) / len(ways))
    assert word_slice("Lima", texts, right) is not None
    assert word_slice("zebra", texts, right) is None
