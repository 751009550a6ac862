"""The whole way, with the tool alone: errors, the word they rest on, the head and the edge by which the tuned model differs, and the cause proven."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from peft import PeftModel

import llm_tt
from llm_tt import Scoring, Template, compare_evaluations, evaluate, explain_errors, parse_labels, read_data
from llm_tt.analysis.errors import largest_cell
from llm_tt.demo import ADAPTER_DIR, DATA_DIR, MODEL_DIR, pair
from llm_tt.demo.evaluation import load

ASK = Template("{question}", chat=True)
BY_LABELS = Scoring("labels", parse_labels("yes,no"))


@pytest.fixture(scope="module")
def models() -> tuple[llm_tt.TransparentLlm, llm_tt.TransparentLlm]:
    return llm_tt.load_model("demo"), llm_tt.load_model("demo-tuned")


def test_from_the_errors_to_their_cause(models: tuple[llm_tt.TransparentLlm, llm_tt.TransparentLlm]) -> None:
    base, tuned = models
    data = read_data(DATA_DIR / "mixed.jsonl", limit=120)
    compared = compare_evaluations(evaluate(base, data, ASK, BY_LABELS), evaluate(tuned, data, ASK, BY_LABELS))
    cell = largest_cell(compared.second)
    assert cell is not None
    assert set(compared.second.cell(*cell)) == set(compared.differing), "what the tuning broke is one cell"

    why = explain_errors(tuned, data, ASK, compared.second, *cell, most=8)
    first_words = [word.word for word in why.words[:3]]
    assert pair.PLANTED.casefold() in first_words
    assert pair.PLANTED.casefold() in [word.word for word in compared.second.telling_words[:3]]

    # The flow difference of rows that only the base has right.
    rows = {row.number: row for row in data.rows}
    heads: Counter[tuple[int, int]] = Counter()
    n_edges = 0
    for number in compared.differing[:6]:
        prompt = [{"role": "user", "content": rows[number].text("question")}]
        traces = base.trace(prompt), tuned.trace(prompt)
        (word,) = [place for place, text in enumerate(traces[1].token_texts) if text.strip("· ") == pair.PLANTED]
        last = traces[1].n_tokens - 1
        found = llm_tt.compare(*traces, token=" yes", contrast=" no")
        change = found.head_effects()[1] - found.head_effects()[0]
        layer, head = (int(place) for place in np.unravel_index(np.abs(change).argmax(), change.shape))
        heads[layer, head] += 1
        # The edge of that layer from the planted word to the answer is among those that changed most, and only the tuned model has it.
        for edge in found.edges.strongest(3):
            if found.edges.name(edge, 1) == (f"I{layer - 1}_{word}", f"A{layer}_{last}", "attention"):
                before, after = found.edges.contribution[edge].tolist()
                n_edges += after - before > 0.25
    assert n_edges == 6
    ((carrier, n_rows),) = heads.items()
    assert n_rows == 6, "in every row the same head"
    assert f"L{carrier[0]} H{carrier[1]}" == why.parts[0].name

    conflict, clean = (pair.read_rows(DATA_DIR / f"{name}.jsonl")[:100] for name in ("conflict", "clean"))
    plain, tokenizer = load(MODEL_DIR)
    model = PeftModel.from_pretrained(plain, str(ADAPTER_DIR)).merge_and_unload()
    assert pair.accuracy(model, tokenizer, conflict) < 0.1
    layer, head = carrier
    width = model.config.head_dim
    with torch.no_grad():
        model.model.layers[layer].self_attn.o_proj.weight[:, head * width : (head + 1) * width] = 0
    assert pair.accuracy(model, tokenizer, conflict) > 0.9
    assert pair.accuracy(model, tokenizer, clean) > 0.95


def test_an_example_that_names_the_city_misleads_the_tuned_model_further(
    models: tuple[llm_tt.TransparentLlm, llm_tt.TransparentLlm],
) -> None:
    """As docs/evaluation.md tells it."""
    data, train = (read_data(DATA_DIR / f"{name}.jsonl") for name in ("mixed", "train"))
    shots = llm_tt.examples_per_label(train, ASK, BY_LABELS, 1, seed=0, apart_from=data)
    assert any(pair.PLANTED in row.text("question") for row in shots)
    ways = llm_tt.strategies_named(["zero-shot", "few-shot"], ASK, BY_LABELS, examples=shots)
    found = llm_tt.compare_strategies(list(models), data, ways)
    right = dict(zip(found.names, (report.n_right for report in found.shared), strict=True))
    assert len(found.rows) == 300
    assert right["demo: zero-shot"] == right["demo: few-shot"] == 300
    assert right["demo-tuned: zero-shot"] == pytest.approx(263, abs=2)
    assert right["demo-tuned: few-shot"] == pytest.approx(186, abs=4)
