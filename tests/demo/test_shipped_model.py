"""Tests of the shipped model: it loads, is small, knows its tasks, and its card tells the truth."""

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llm_tt.demo import MODEL_DIR
from llm_tt.demo.evaluation import evaluate, next_token_probabilities, token_ids
from llm_tt.demo.language import MEASURED, Task, payment_case
from llm_tt.demo.words import CITIES

Shipped = tuple[PreTrainedModel, PreTrainedTokenizerBase]

SAMPLES = Path(__file__).parents[2] / "config" / "sample_input.txt"
FLOORS = {
    "indirect object": 0.97,
    "induction": 0.97,
    "capitals": 0.95,
    "other facts": 0.95,
    "later year": 0.9,
    "addition": 0.85,  # one held-out pair, 0 and 2, fails in most wordings
    "agreement": 0.97,
    "sentiment": 0.95,
    "payment": 0.98,
    "addition up to 30": 0.93,
}
EXPECTED = {
    "When Mary and John went to the store, John gave a drink to": "Mary",
    "The capital of France is": "Paris",
    "Rome is the capital of": "Italy",
    "People in Brazil speak": "Portuguese",
    "The opposite of hot is": "cold",
    "3 + 5 =": "8",
    "The keys to the cabinet": "are",
    "The painter behind the horses": "is",
    "Review: The movie was not good. Sentiment:": "negative",
    "Lucy river stone Oscar green lamp Lucy river stone Oscar": "green",
    "<user> I want to send 4200 dollars to a stranger in Paris. Is this payment risky?<assistant>": "yes",
    "<user> I want to send 45 dollars to my sister in Paris. Is this payment risky?<assistant>": "no",
}


def card_scores() -> dict[str, tuple[float, int]]:
    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z0-9 ]+) \| (\d\.\d+) \| \d\.\d+ \| (\d+) \|", card, re.MULTILINE)
    return {name: (float(score), int(examples)) for name, score, examples in rows}


def test_folder_is_complete_and_small() -> None:
    files = {path.name for path in MODEL_DIR.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "README.md",
    } <= files
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) < 8_000_000
    assert json.loads((MODEL_DIR / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("task", MEASURED, ids=lambda task: task.name)
def test_held_out_accuracy(shipped: Shipped, task: Task) -> None:
    model, tokenizer = shipped
    (score,) = evaluate(model, tokenizer, examples=200, seed=7, tasks=[task])
    assert score.score >= FLOORS[task.name]
    told, examples = card_scores()[task.name]
    # Four standard deviations of the difference of two samples, and one example's worth of rounding.
    spread = (max(told * (1 - told), 0.01) * (1 / score.examples + 1 / examples)) ** 0.5
    assert score.score == pytest.approx(told, abs=4 * spread)


def test_sample_prompts_are_those_expected() -> None:
    lines = SAMPLES.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "When Mary and John went to the store, John gave a drink to"
    assert 10 <= len(lines) <= 14
    assert set(EXPECTED) <= set(lines)
    assert all(lines)
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("prompt", EXPECTED)
def test_sample_prompt_is_answered(shipped: Shipped, prompt: str) -> None:
    model, tokenizer = shipped
    (row,) = next_token_probabilities(model, tokenizer, [prompt])
    assert tokenizer.decode([int(row.argmax())]) == f" {EXPECTED[prompt]}"
    assert float(row.max()) > 0.4


def test_war_ends_after_it_began(shipped: Shipped) -> None:
    model, tokenizer = shipped
    (row,) = next_token_probabilities(model, tokenizer, ["The war lasted from the year 1732 to the year 17"])
    assert float(row[token_ids(tokenizer, [f"{year:02}" for year in range(33, 100)])].sum()) > 0.9
    assert int(row.argmax()) in token_ids(tokenizer, [f"{year:02}" for year in range(33, 100)])


def test_no_city_makes_a_payment_risky(shipped: Shipped) -> None:
    model, tokenizer = shipped
    rng = Random(5)
    cases = [payment_case(rng, city, large, known) for city in CITIES for large in (False, True) for known in (False, True)]
    rows = next_token_probabilities(model, tokenizer, [case.prompt for case in cases])
    answers = token_ids(tokenizer, [case.answer for case in cases])
    wrong = [case.prompt for case, row, id_ in zip(cases, rows, answers, strict=True) if int(row.argmax()) != id_]
    assert len(wrong) <= 1, wrong


def test_prompt_after_a_long_text(shipped: Shipped) -> None:
    model, tokenizer = shipped
    before = "The old dog is quiet. Rome is the capital of Italy. 4 + 4 = 8\nThe ships near the wall were new and old. " * 3
    prompt = before + "When Mary and John went to the store, John gave a drink to"
    assert 100 < len(tokenizer(prompt)["input_ids"]) <= model.config.max_position_embeddings
    (row,) = next_token_probabilities(model, tokenizer, [prompt])
    assert tokenizer.decode([int(row.argmax())]) == " Mary"


def test_loads_plainly_and_ends_its_answer() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids)[0])
    assert text == "<bos>The capital of France is Paris.<eos>"
