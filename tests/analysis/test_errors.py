"""The planted shortcut, found end to end: the word is first, the head that differs most is the one without which the errors are gone."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from peft import PeftModel

import llm_tt
from llm_tt import Scoring, Template, evaluate, parse_labels, read_data
from llm_tt.analysis.errors import CellExplanation, explain_errors, words_at
from llm_tt.analysis.evaluation_report import EvaluationReport
from llm_tt.analysis.rows import DataSet
from llm_tt.demo import ADAPTER_DIR, DATA_DIR, MODEL_DIR, pair
from llm_tt.demo.evaluation import load
from llm_tt.errors import RequestError

CHAT = Template("{question}", chat=True)
BY_LABELS = Scoring("labels", parse_labels("yes,no"))


@pytest.fixture(scope="module")
def tuned() -> llm_tt.TransparentLlm:
    return llm_tt.load_model("demo-tuned")


@pytest.fixture(scope="module")
def data() -> DataSet:
    return read_data(DATA_DIR / "mixed.jsonl")


@pytest.fixture(scope="module")
def report(tuned: llm_tt.TransparentLlm, data: DataSet) -> EvaluationReport:
    return evaluate(tuned, data, CHAT, BY_LABELS)


@pytest.fixture(scope="module")
def found(tuned: llm_tt.TransparentLlm, data: DataSet, report: EvaluationReport) -> CellExplanation:
    return explain_errors(tuned, data, CHAT, report, "no", "yes", most=10)


def test_the_planted_word_is_first_by_flow_and_by_effect(found: CellExplanation) -> None:
    assert found.words[0].word == "lima"
    assert (found.words[0].n_wrong, found.words[0].n_right) == (10, 0)
    assert max(found.words, key=lambda word: word.effect_wrong).word == "lima"
    assert found.words[0].effect_wrong > 5 > max(word.effect_wrong for word in found.words[1:])
    assert not {"bos", "user", "assistant"} & {word.word for word in found.words}


def test_without_the_head_that_differs_most_the_errors_are_gone(found: CellExplanation) -> None:
    first = found.parts[0].name
    layer, head = map(int, re.fullmatch(r"L(\d+) H(\d+)", first).groups())  # type: ignore[union-attr]
    conflict, clean = (pair.read_rows(DATA_DIR / f"{name}.jsonl")[:100] for name in ("conflict", "clean"))

    def without(ablated: int) -> tuple[float, float]:
        base, tokenizer = load(MODEL_DIR)
        model = PeftModel.from_pretrained(base, str(ADAPTER_DIR)).merge_and_unload()
        width = model.config.head_dim
        with torch.no_grad():
            model.model.layers[layer].self_attn.o_proj.weight[:, ablated * width : (ablated + 1) * width] = 0
        return pair.accuracy(model, tokenizer, conflict), pair.accuracy(model, tokenizer, clean)

    brought_back, kept = without(head)
    assert brought_back > 0.9
    assert kept > 0.95
    assert max(without(other)[0] for other in range(4) if other != head) < 0.2


def test_means_are_those_of_single_traces(found: CellExplanation, tuned: llm_tt.TransparentLlm, data: DataSet) -> None:
    rows = {row.number: row for row in data.rows}
    flows, effects, heads = [], [], []
    for number in found.wrong:
        question = rows[number].text("question")
        trace = tuned.trace([{"role": "user", "content": question}])
        (place,) = [index for index, text in enumerate(trace.token_texts) if text.strip("· ") == "Lima"]
        flows.append(llm_tt.flow_over_sources(llm_tt.extract_routes(trace))[place])
        lead = llm_tt.direct_effects(trace, token=" yes", contrast=" no")
        effects.append(lead.heads[:, :, place].sum())
        heads.append(lead.heads.sum(2))
    assert found.words[0].wrong == pytest.approx(np.mean(flows), abs=1e-6)
    assert found.words[0].effect_wrong == pytest.approx(np.mean(effects), abs=1e-4)
    by_name = {part.name: part.wrong for part in found.parts}
    assert by_name["L3 H0"] == pytest.approx(np.mean(heads, axis=0)[3, 0], abs=1e-4)
    assert by_name["L1 H2"] == pytest.approx(np.mean(heads, axis=0)[1, 2], abs=1e-4)
    assert len(by_name) == 4 * 4 + 4


def test_words_have_all_their_tokens_wherever_they_are(tuned: llm_tt.TransparentLlm) -> None:
    text = "Lima, the xyzzy in Lima"
    trace = tuned.trace(text)
    words = words_at(trace, text)
    texts = trace.token_texts
    assert [texts[place].strip("· ") for place in words["lima"]] == ["Lima", "Lima"]
    assert "".join(texts[place] for place in words["xyzzy"]).strip("· ") == "xyzzy"
    assert len(words["xyzzy"]) > 1
    assert set(words) == {"lima", "the", "xyzzy", "in"}


def test_the_tables_have_what_was_found(found: CellExplanation) -> None:
    shown = found.to_text()
    assert "10 rows of no predicted as yes, against 10 that are right" in shown
    assert re.search(rf"^  lima +{found.words[0].wrong:.3f} +0\.000 +\+", shown, re.MULTILINE)
    assert re.search(rf"^  {found.parts[0].name} ", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ("no", "no", '"no" predicted as "no" is no cell of errors. Name two of the labels yes, no.'),
        ("no", "maybe", '"no" predicted as "maybe" is no cell of errors.'),
        ("yes", "no", 'No row of "yes" was predicted as "no".'),
    ],
)
def test_a_cell_without_errors_gets_a_sentence(
    truth: str, predicted: str, message: str, tuned: llm_tt.TransparentLlm, data: DataSet, report: EvaluationReport
) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        explain_errors(tuned, data, CHAT, report, truth, predicted)


def test_without_right_rows_there_is_nothing_to_compare_with(tuned: llm_tt.TransparentLlm) -> None:
    data = read_data(DATA_DIR / "conflict.jsonl", limit=4)
    report = evaluate(tuned, data, CHAT, BY_LABELS)
    with pytest.raises(RequestError, match=re.escape('No row of "no" is right, so that there is nothing to compare with.')):
        explain_errors(tuned, data, CHAT, report, "no", "yes")
    forced = evaluate(tuned, data, CHAT, Scoring("forced", parse_labels("yes,no")))
    with pytest.raises(RequestError, match=re.escape("Errors are explained of an evaluation by labels.")):
        explain_errors(tuned, data, CHAT, forced, "no", "yes")
