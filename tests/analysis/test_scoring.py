"""The response is scored, and nothing else: against slow loops over plain transformers, and against the two mistakes that are easily made."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import llm_tt
from llm_tt import TransparentLlm
from llm_tt.analysis.rows import DataSet, Row, Template
from llm_tt.analysis.scoring import Example, Label, Result, Scoring, asks_of, parse_label, parse_labels, prepare, response_ids, score
from llm_tt.demo import MODEL_DIR
from llm_tt.demo.evaluation import load
from llm_tt.errors import RequestError

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2"]
YES_NO = parse_labels("yes,no")


@pytest.fixture(scope="module")
def demo() -> TransparentLlm:
    return llm_tt.load_model("demo")


@pytest.fixture(scope="module")
def plain_demo() -> tuple[Any, Any]:
    return load(MODEL_DIR)


def data_of(*rows: dict[str, Any]) -> DataSet:
    return DataSet("made", tuple(Row(number, values) for number, values in enumerate(rows, start=1)))


def scored(llm: TransparentLlm, data: DataSet, template: Template, scoring: Scoring) -> dict[int, Result]:
    examples, problems = prepare(llm, data, template, scoring)
    assert not problems
    return {result.number: result for batch in score(llm, examples, template, scoring) for result in batch}


# --- the slow, obviously right loops


def next_logits(plain: Any, ids: Sequence[int]) -> torch.Tensor:
    """One text alone, one token at a time: what comes after all of it."""
    with torch.no_grad():
        return plain(torch.tensor([list(ids)])).logits[0, -1].double()


def slow_forced(plain: Any, prompt: Sequence[int], response: Sequence[int]) -> tuple[list[bool], float]:
    right, total, text = [], 0.0, list(prompt)
    for token_id in response:
        logits = next_logits(plain, text)
        right.append(int(logits.argmax()) == token_id)
        total += float(torch.log_softmax(logits, -1)[token_id])
        text.append(token_id)
    return right, total


# --- teacher-forced

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "Peru": "Lima"}
WRONG = {"Italy": "Oslo", "Japan": "Cairo"}


def capital_rows() -> DataSet:
    """Responses of two tokens; those in WRONG have a wrong first and a right second one."""
    return data_of(*({"country": country, "response": f" {WRONG.get(country, capital)}."} for country, capital in CAPITALS.items()))


def test_teacher_forced_accuracy_is_the_one_known_beforehand(demo: TransparentLlm, plain_demo: tuple[Any, Any]) -> None:
    found = scored(demo, capital_rows(), Template("The capital of {country} is"), Scoring("forced", column="response", spellings=("{}",)))
    plain, tokenizer = plain_demo
    for row in capital_rows().rows:
        prompt = tokenizer(f"The capital of {row.values['country']} is")["input_ids"]
        response = tokenizer(row.values["response"], add_special_tokens=False)["input_ids"]
        right, total = slow_forced(plain, prompt, response)
        result = found[row.number]
        assert right == [row.values["country"] not in WRONG, True]
        assert (result.n_tokens, result.n_right_tokens) == (2, sum(right))
        assert result.is_right == all(right)
        assert result.log_likelihood == pytest.approx(total, abs=1e-3)
    assert sum(result.n_right_tokens or 0 for result in found.values()) == 10
    assert sum(result.is_right for result in found.values()) == 4


def test_the_off_by_one_and_the_prompt_included_give_other_numbers(plain_demo: tuple[Any, Any]) -> None:
    plain, tokenizer = plain_demo
    shifted = included = n_included = 0
    for row in capital_rows().rows:
        prompt = tokenizer(f"The capital of {row.values['country']} is")["input_ids"]
        response = tokenizer(row.values["response"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            chosen = plain(torch.tensor([prompt + response])).logits[0].argmax(-1).tolist()
        text, n = prompt + response, len(prompt)
        shifted += sum(chosen[place] == text[place] for place in range(n, len(text)))
        included += sum(chosen[place - 1] == text[place] for place in range(1, len(text)))
        n_included += len(text) - 1
    assert shifted == 0  # of 12, where 10 are right
    assert abs(included / n_included - 10 / 12) > 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_forced_equals_the_slow_loop_on_families(name: str, model: Callable[..., TransparentLlm], plain: Callable[[str], Any]) -> None:
    """Responses are the model's own, with every third token changed; lengths of prompts and responses differ, so that batches are padded."""
    examples = []
    for number, (n_prompt, n_response) in enumerate([(3, 5), (6, 2), (2, 1), (4, 7)], start=1):
        prompt, response = families.token_ids(n_prompt + number)[number:], []
        for place in range(n_response):
            best = int(next_logits(plain(name), [*prompt, *response]).argmax())
            response.append((best + 1) % 300 if place % 3 == 1 else best)
        examples.append(Example(number, "", tuple(prompt), "x", ((tuple(response),),), False))
    found = [result for batch in score(model(name), examples, Template("{a}"), Scoring("forced", column="a")) for result in batch]
    assert len({len(example.prompt_ids) for example in examples}) > 1
    n_right = 0
    for result in found:
        example = examples[result.number - 1]
        right, total = slow_forced(plain(name), example.prompt_ids, example.responses[0][0])
        assert (result.n_tokens, result.n_right_tokens) == (len(right), sum(right))
        assert result.log_likelihood == pytest.approx(total, abs=1e-4)
        n_right += sum(right)
    assert n_right == 3 + 1 + 1 + 5


def test_of_two_spellings_the_more_probable_counts(demo: TransparentLlm) -> None:
    data = data_of({"q": "The capital of France is", "label": "Paris"})
    both = scored(demo, data, Template("{q}"), Scoring("forced"))[1]
    spaced = scored(demo, data, Template("{q}"), Scoring("forced", spellings=(" {}",)))[1]
    bare = scored(demo, data, Template("{q}"), Scoring("forced", spellings=("{}",)))[1]
    assert (both.log_likelihood, both.predicted) == (pytest.approx(spaced.log_likelihood, abs=1e-6), "Paris")
    assert bare.log_likelihood is not None
    assert bare.log_likelihood < (spaced.log_likelihood or 0) - 5


# --- by the probabilities of labels


def slow_labels(plain: Any, prompt: Sequence[int], labels: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """[label] probability of all spellings together."""
    return np.array([sum(math.exp(slow_forced(plain, prompt, ids)[1]) for ids in spelled) for spelled in labels])


LABELS = (((11,), (12, 13)), ((14, 15, 16), (17,)), ((18, 19),))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_label_probabilities_are_those_of_whole_labels(
    name: str, calibrated: bool, model: Callable[..., TransparentLlm], plain: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [tuple(families.token_ids(n)) for n in (2, 7, 4)]
    examples = [Example(number, "", prompt, "a", LABELS, False) for number, prompt in enumerate(prompts)]
    neutral = slow_labels(plain(name), families.token_ids(5)[1:], LABELS)
    monkeypatch.setattr("llm_tt.analysis.scoring.content_free_probabilities", lambda *_: np.log(neutral).tolist())
    scoring = Scoring("labels", parse_labels("a,b,c"), calibrated=calibrated)
    found = [result for batch in score(model(name), examples, Template("{x}"), scoring) for result in batch]
    for result in found:
        expected = slow_labels(plain(name), prompts[result.number], LABELS)
        assert result.mass == pytest.approx(expected.sum(), rel=1e-3)
        weighted = expected / neutral if calibrated else expected
        np.testing.assert_allclose(result.probabilities or (), weighted / weighted.sum(), rtol=1e-3)
        assert result.predicted == "abc"[int(weighted.argmax())]


def test_calibration_divides_by_the_prompt_that_says_nothing(demo: TransparentLlm, plain_demo: tuple[Any, Any]) -> None:
    plain, tokenizer = plain_demo
    template = Template("Review: The {thing} was good. Sentiment:")
    data = data_of({"thing": "movie", "label": "positive"})
    result = scored(demo, data, template, Scoring("labels", parse_labels("positive,negative"), calibrated=True))[1]
    words = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in (w, f" {w}")] for w in ("positive", "negative")]
    said, nothing = (
        slow_labels(plain, tokenizer(f"Review: The {thing} was good. Sentiment:")["input_ids"], words) for thing in ("movie", "N/A")
    )
    np.testing.assert_allclose(result.probabilities or (), said / nothing / (said / nothing).sum(), rtol=1e-3, atol=1e-6)
    assert abs((result.probabilities or (0,))[0] - said[0] / said.sum()) > 1e-7


# --- tokens of prompt and response


@pytest.mark.parametrize("name", FAMILIES)
def test_a_response_has_the_tokens_it_has_after_its_prompt(name: str, model: Callable[..., TransparentLlm], checkpoint: Any) -> None:
    llm, tokenizer = model(name), AutoTokenizer.from_pretrained(checkpoint(name))
    for prompt, response in (("the cat", " sat"), ("the cat", "s"), ("Answer:", " yes and no")):
        alone, joint = llm.encode(prompt), llm.encode(prompt + response)
        ids, apart = response_ids(llm, prompt, alone, response)
        if not apart:
            assert [*alone, *ids] == joint
        else:
            assert list(ids) == tokenizer(response, add_special_tokens=False)["input_ids"]
            assert joint[: len(alone)] != alone


def test_where_the_boundary_is_one_token_the_response_is_apart_and_that_is_said(demo: TransparentLlm) -> None:
    from llm_tt.analysis.evaluation import evaluate

    data = data_of({"q": "The capital of France is ", "label": "Paris"}, {"q": "The capital of Italy is ", "label": "Rome"})
    scoring = Scoring("labels", parse_labels("Paris,Rome"))
    examples, _ = prepare(demo, data, Template("{q}"), scoring)
    assert [example.apart for example in examples] == [True, True]
    notes = " ".join(evaluate(demo, data, Template("{q}"), scoring).notes)
    assert "In 2 rows the tokenizer joins the prompt's end and the response's beginning" in notes
    assert "the template ends with a space. Take it off." in notes


def test_a_chat_prompt_is_what_the_model_receives(demo: TransparentLlm) -> None:
    data = data_of({"q": "Is this payment risky?", "label": "yes"})
    (example,), _ = prepare(demo, data, Template("{q}", chat=True), Scoring("labels", YES_NO))
    assert list(example.prompt_ids) == demo.token_ids([{"role": "user", "content": "Is this payment risky?"}])
    assert example.prompt_ids.count(demo.encode("")[0] if demo.encode("") else 1) == 1
    assert [demo.texts(ids) for spelled in example.responses for ids in spelled if len(ids) == 1] == [[" yes"], [" no"]]


def test_labels_that_begin_alike_are_refused(demo: TransparentLlm) -> None:
    data = data_of({"q": "a", "label": "good"})
    _, problems = prepare(
        demo, data, Template("{q}"), Scoring("labels", (Label("good", "good"), Label("x", "good day")), spellings=(" {}",))
    )
    assert "begins with the tokens of" in problems[0].sentence


# --- rows that are left out


def test_rows_that_cannot_be_scored_are_named_and_the_rest_is(demo: TransparentLlm) -> None:
    data = data_of(
        {"q": "Is this payment risky?", "label": "yes"},
        {"q": "Is this payment risky?", "label": "maybe"},
        {"q": "Is this payment risky?"},
        {"label": "no"},
        {"q": "payment " * 200, "label": "no"},
        {"q": "Is this payment risky?", "label": " no "},
        {"q": "\ud800", "label": "no"},
    )
    examples, problems = prepare(demo, data, Template("{q}", chat=True), Scoring("labels", YES_NO))
    assert [(example.number, example.truth) for example in examples] == [(1, "yes"), (6, "no")]
    assert [problem.number for problem in problems] == [2, 3, 4, 5, 7]
    assert problems[0].sentence == 'Row 2 has the label "maybe", which is none of yes, no.'
    assert problems[1].sentence == 'Row 3 has no "label".'
    assert problems[2].sentence == 'Row 4 has no column "q".'
    assert problems[3].sentence.startswith("Row 5 is left out: The prompt has 203 tokens, but demo reads at most 128.")
    assert problems[4].sentence.startswith("Row 7 is left out: ")


def test_a_row_whose_response_does_not_fit_is_named(demo: TransparentLlm) -> None:
    text = "Lima" + " Lima" * (127 - len(demo.encode("Lima")))
    data = data_of({"q": text, "label": "yes"}, {"q": text + " Lima", "label": "yes"})
    examples, problems = prepare(demo, data, Template("{q}"), Scoring("labels", YES_NO, spellings=(" {}",)))
    assert [len(example.prompt_ids) for example in examples] == [127]
    assert [problem.sentence for problem in problems] == [
        "Row 2 takes 129 tokens with its response, but demo reads at most 128. It is left out."
    ]
    _, problems = prepare(demo, data, Template("{q}"), Scoring("generate", YES_NO, n_tokens=2))
    assert problems[0].sentence.startswith("Row 1 takes 129 tokens")


# --- by generation


@pytest.mark.parametrize(
    ("text", "options", "predicted", "failure"),
    [
        (" yes", {}, "1", None),
        ("The answer is NO.", {}, "0", None),
        ("yesterday", {}, None, "The text names no label."),
        ("yes or no", {}, None, "The text names several labels: 0, 1."),
        ("I say: no, not yes", {"pattern": r"say: (\w+)"}, "0", None),
        ("yes", {"pattern": r"say: (\w+)"}, None, "The pattern does not match."),
        ("say: maybe", {"pattern": r"say: (\w+)"}, None, "The pattern finds 'maybe', which is no label."),
        ('ok {"label": "Yes", "why": {"a": 1}} yes', {"json_field": "label"}, "1", None),
        ("no", {"json_field": "label"}, None, "The text holds no JSON object."),
        ('{"label": "no"', {"json_field": "label"}, None, "The JSON object is not valid: Expecting ',' delimiter."),
        ('{"other": "no"}', {"json_field": "label"}, None, 'The JSON object has no "label".'),
        ('{"label": 3}', {"json_field": "label"}, None, '"label" is 3, which is no label.'),
    ],
)
def test_a_label_is_read_from_the_text_or_not_guessed(text: str, options: Any, predicted: str | None, failure: str | None) -> None:
    assert parse_label(text, Scoring("generate", parse_labels("1=yes,0=no"), **options)) == (predicted, failure)


def test_generation_says_what_the_model_says(demo: TransparentLlm, plain_demo: tuple[Any, Any]) -> None:
    data = data_of(*({"country": country, "label": capital} for country, capital in CAPITALS.items()))
    labels = tuple(Label(capital, capital) for capital in (*CAPITALS.values(), "Oslo"))
    found = scored(demo, data, Template("The capital of {country} is"), Scoring("generate", labels, n_tokens=4))
    plain, tokenizer = plain_demo
    for row in data.rows:
        ids = torch.tensor([tokenizer(f"The capital of {row.values['country']} is")["input_ids"]])
        made = plain.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        assert found[row.number].text == tokenizer.decode(made, skip_special_tokens=True)
        assert found[row.number].is_right


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_generating_together_is_generating_alone(name: str, model: Callable[..., TransparentLlm]) -> None:
    llm = model(name)
    examples = [Example(number, "", tuple(families.token_ids(3 + 2 * (number % 4), number)), "yes", (), False) for number in range(9)]
    found = [r for batch in score(llm, examples, Template("{q}"), Scoring("generate", YES_NO, n_tokens=7)) for r in batch]
    assert sorted(result.number for result in found) == list(range(9))
    for result in found:
        tokens = list(llm_tt.generate(llm, list(examples[result.number].prompt_ids), 7))
        said = b"".join(token.data for token in tokens if token.stop != "end").decode(errors="replace")
        assert result.text == said


def test_generation_can_be_stopped_within_a_batch_and_says_where_it_is(demo: TransparentLlm, tmp_path: Path) -> None:
    from llm_tt.analysis.evaluation import evaluate
    from llm_tt.progress import Cancelled

    data = data_of(*({"q": "The capital of France is", "label": "yes"} for _ in range(3)))
    stages: list[str] = []

    def stop(stage: str, _: float) -> None:
        stages.append(stage)
        if len(stages) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        evaluate(demo, data, Template("{q}"), Scoring("generate", YES_NO, n_tokens=9), folder=tmp_path, progress=stop)
    assert stages[1:] == ["Row 0 of 3: token 1 of 9 for 3 texts", "Row 0 of 3: token 2 of 9 for 3 texts"]
    (file,) = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 1, "a batch that was not finished is not stored"


def test_a_batch_that_does_not_fit_into_memory_is_halved(demo: TransparentLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_tt.errors import OutOfMemoryError
    from llm_tt.models import generation

    sizes: list[int] = []
    original = generation.continuations

    def small(llm: TransparentLlm, prompts: Sequence[Sequence[int]], *rest: Any) -> list[list[int]]:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise OutOfMemoryError("full")
        return original(llm, prompts, *rest)

    data = data_of(*({"q": "The capital of France is", "label": "yes"} for _ in range(5)))
    scoring = Scoring("generate", YES_NO, n_tokens=2)
    whole = scored(demo, data, Template("{q}"), scoring)
    monkeypatch.setattr(generation, "continuations", small)
    assert scored(demo, data, Template("{q}"), scoring) == whole
    assert sizes == [5, 2, 2, 1]
    monkeypatch.setattr(generation, "continuations", lambda *_: (_ for _ in ()).throw(OutOfMemoryError("full")))
    with pytest.raises(OutOfMemoryError, match="full"):
        scored(demo, data, Template("{q}"), scoring)


# --- options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_labels("yes"), "1 labels are given. Give two or more, as yes,no."),
        (lambda: parse_labels("yes,"), "A label is empty."),
        (lambda: parse_labels("yes,yes"), 'The label "yes" is there twice.'),
        (lambda: parse_labels("1=yes,0=yes"), 'The label "yes" is there twice.'),
        (lambda: Scoring("labels"), "0 labels are given."),
        (lambda: Scoring("labels", YES_NO, spellings=("x",)), 'A spelling needs "{}" where the response goes'),
        (lambda: Scoring("labels", YES_NO, pattern="x"), "A pattern or JSON field reads what a model generates."),
        (lambda: Scoring("generate", YES_NO, pattern="x", json_field="y"), "Both a pattern and a JSON field are given."),
        (lambda: Scoring("generate", YES_NO, pattern="("), r"The pattern '\(' is no regular expression"),
        (lambda: Scoring("forced", YES_NO, calibrated=True), "Calibration is for scoring by labels."),
        (lambda: Scoring("generate", YES_NO, n_tokens=0), "0 tokens are to be generated. Ask for 1 or more."),
    ],
)
def test_options_that_cannot_be_get_a_sentence(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()


def test_results_survive_being_written() -> None:
    for result in (Result(1, "a", "b", (0.2, 0.8), 0.5), Result(2, "a", None, n_tokens=3, n_right_tokens=1, log_likelihood=-2.5, text="x")):
        assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_the_demo_data_are_inside_the_package() -> None:
    from llm_tt.demo import DATA_DIR

    assert Path(llm_tt.__file__).parent in DATA_DIR.parents


def test_no_more_texts_are_read_than_there_are_responses_of_several_tokens() -> None:
    asks = asks_of(Example(1, "", (5, 6), "a", LABELS, False))
    assert [ask.token_ids for ask in asks] == [(5, 6, 12), (5, 6, 14, 15), (5, 6, 18)]
    assert [next_tokens.token_ids for next_tokens in asks[0].asked] == [(11, 12, 14, 17, 18), (13,)]
    (single,) = asks_of(Example(1, "", (5, 6), "a", (((11,),), ((12,),)), False))
    assert (single.token_ids, [n.position for n in single.asked]) == ((5, 6), [1])
