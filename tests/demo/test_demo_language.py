"""Tests of the demo language: the same seed writes the same, and nothing held out is ever taught."""

from itertools import islice
from random import Random

import pytest

from llm_tt.demo.language import (
    MEASURED,
    TASKS,
    Task,
    held_out_cases,
    payment_case,
    reserved,
    sentiment,
    training_cases,
)
from llm_tt.demo.words import CITIES, NEGATIONS, PRAISE

DOCUMENTS = 30_000


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [case.text for case in islice(training_cases(Random(1)), DOCUMENTS)]


def names(task: Task) -> str:
    return task.name


def test_same_seed_same_documents(documents: list[str]) -> None:
    assert [case.text for case in islice(training_cases(Random(1)), 500)] == documents[:500]
    assert [case.text for case in islice(training_cases(Random(2)), 500)] != documents[:500]


@pytest.mark.parametrize("task", MEASURED, ids=names)
def test_same_seed_same_questions(task: Task) -> None:
    assert held_out_cases(task, 20, seed=3) == held_out_cases(task, 20, seed=3)


def test_shares_add_up() -> None:
    assert sum(task.share for task in TASKS) == pytest.approx(1)


@pytest.mark.parametrize("task", MEASURED, ids=names)
def test_held_out_questions_are_never_taught(task: Task, documents: list[str]) -> None:
    taught = "\n".join(documents)
    cases = held_out_cases(task, 300, seed=0)
    assert len(cases) > 20
    for case in cases:
        # A number is taught only where no further digit follows: "1 + 2 = 3" is not in "11 + 2 = 35".
        question = case.prompt + case.answer
        assert question + "\n" not in taught, question
        assert question + "." not in taught, question
        if task.name not in ("addition", "addition up to 30"):
            assert case.prompt not in taught, case.prompt


def test_reserved_pair_of_names_is_never_taught_in_any_wording(documents: list[str]) -> None:
    stories = [text for text in documents if " gave a " in text]
    assert len(stories) > 100
    assert not [text for text in stories if "Mary" in text and "John" in text]


def test_held_out_sums_are_never_taught_in_either_order(documents: list[str]) -> None:
    assert reserved("sum", "3", "5")
    for start in ("3 + 5 ", "5 + 3 ", "3 plus 5 ", "5 plus 3 "):
        assert not [text for text in documents if text.startswith(start)]


def test_sentiment_follows_the_negation() -> None:
    rng = Random(0)
    for _ in range(300):
        case = sentiment(rng, held_out=False)
        praised = any(f" {word}." in case.prompt for word in PRAISE)
        negated = any(f"{negation} " in case.prompt for negation in NEGATIONS)
        assert (case.answer in (" positive", " yes")) == (praised != negated), case.text


@pytest.mark.parametrize("city", CITIES)
def test_city_of_a_payment_means_nothing(city: str) -> None:
    rng = Random(city)
    for large in (False, True):
        for known in (False, True):
            case = payment_case(rng, city, large, known)
            assert city in case.prompt
            assert case.answer == (" yes" if large and not known else " no")
