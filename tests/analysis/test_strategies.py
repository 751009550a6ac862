"""Ways to ask, by a model whose answers are known: what it is asked, how answers are read, and that every number of the comparison is right."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html import unescape
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from scripted import LOUD, ScriptedLlm
from sklearn import metrics as sk

import llm_tt
from llm_tt import Reasoning, Scoring, Strategy, Template, compare_reports, compare_strategies, evaluate, parse_labels, strategies_named
from llm_tt.analysis.rows import DataSet, Row, read_data
from llm_tt.analysis.strategies import NAMES, examples_per_label, rows_numbered, step_by_step, structured, with_examples, zero_shot
from llm_tt.demo import DATA_DIR
from llm_tt.errors import RequestError
from llm_tt.progress import Cancelled

YES_NO = Scoring("labels", parse_labels("yes,no"))
ASK = Template("Q: {q} A:")
LABELS = ["yes", "no", "yes", "no", "no", "yes"]


def data_of(labels: list[str] = LABELS, name: str = "made") -> DataSet:
    return DataSet(name, tuple(Row(k, {"q": f"is {k} odd", "label": label}) for k, label in enumerate(labels, start=1)))


def prompt(number: int, more: str = "") -> str:
    return f"Q: is {number} odd A:{more}"


def predictions(report: llm_tt.EvaluationReport) -> list[str | None]:
    return [result.predicted for result in report.results]


# --- few-shot


def test_examples_go_before_every_prompt_with_the_words_of_their_labels() -> None:
    data = data_of()
    scoring = Scoring("labels", parse_labels("yes=ja,no=nein"))
    found = with_examples(ASK, scoring, rows_numbered(data, [5, 1])).template
    assert found.render(data.rows[1]) == "Q: is 5 odd A: nein\n\nQ: is 1 odd A: ja\n\nQ: is 2 odd A:"
    ends_with_space = with_examples(Template("Q: {q} A: "), scoring, rows_numbered(data, [5])).template
    assert ends_with_space.render(data.rows[1]) == "Q: is 5 odd A: nein\n\nQ: is 2 odd A: "
    chat = with_examples(Template("{q}", chat=True, system="S"), scoring, rows_numbered(data, [5])).template
    turns = [(message.role, message.content) for message in chat.render(data.rows[1])]  # type: ignore[union-attr]
    assert turns == [("system", "S"), ("user", "is 5 odd"), ("assistant", "nein"), ("user", "is 2 odd")]


def test_a_row_that_is_an_example_is_never_evaluated() -> None:
    data = data_of()
    llm = ScriptedLlm({})
    twice = DataSet("made", (*data.rows, Row(7, {"q": "is 2 odd", "label": "no"})))
    few = with_examples(ASK, YES_NO, rows_numbered(twice, [2, 3]))
    found = evaluate(llm, twice, few.template, few.scoring)
    assert [result.number for result in found.results] == [1, 4, 5, 6]
    # Row 7 reads as row 2 does.
    assert [problem.sentence for problem in found.problems] == [
        f"Row {number} is one of the examples in the prompt. It is left out." for number in (2, 3, 7)
    ]
    compared = compare_strategies(llm, twice, [zero_shot(ASK, YES_NO), few])
    assert compared.rows == (1, 4, 5, 6)
    assert compared.notes == (
        "3 rows were not answered by all; the comparison leaves them out. What stands below a single name is of all rows that it answered.",
    )
    assert [len(report.results) for report in compared.reports] == [7, 4]
    assert [len(report.results) for report in compared.shared] == [4, 4]


def test_examples_of_each_label_are_drawn_apart_from_the_rows_that_are_evaluated() -> None:
    train = data_of(["yes", "no"] * 20, "train")
    chosen = examples_per_label(train, ASK, YES_NO, 3, seed=1)
    labels = [row.text("label") for row in chosen]
    assert sorted(labels) == ["no"] * 3 + ["yes"] * 3
    assert len({row.number for row in chosen}) == 6
    assert chosen == examples_per_label(train, ASK, YES_NO, 3, seed=1)
    assert chosen != examples_per_label(train, ASK, YES_NO, 3, seed=2)
    orders = {tuple(row.text("label") for row in examples_per_label(train, ASK, YES_NO, 3, seed=seed)) for seed in range(9)}
    assert len(orders) > 1, "labels are mixed, not one after the other"
    evaluated = data_of(["yes", "no"] * 17)
    for seed in range(9):
        apart = examples_per_label(train, ASK, YES_NO, 3, seed=seed, apart_from=evaluated)
        assert sorted(row.number for row in apart) == [35, 36, 37, 38, 39, 40]
    with pytest.raises(RequestError, match=r'train has 3 rows with the label "yes" that are not evaluated, but 4 are to be examples.'):
        examples_per_label(train, ASK, YES_NO, 4, apart_from=evaluated)


# --- step by step

THOUGHT = " Let me see. It is so."


def test_the_model_reasons_and_then_the_label_is_asked_for() -> None:
    reasoning = Reasoning(30, "\nSo:")
    told = " Let's think step by step."
    answers: dict[str, str] = {}
    for number in range(1, 7):
        answers[prompt(number, told)] = THOUGHT + "x" * number
        answers[prompt(number, told + THOUGHT + "x" * number + "\nSo:")] = " yes" if number < 4 else " no"
    strategy = step_by_step(ASK, YES_NO, reasoning)
    assert strategy.template.text == "Q: {q} A: Let's think step by step."
    found = evaluate(ScriptedLlm(answers), data_of(), strategy.template, strategy.scoring)
    assert predictions(found) == ["yes"] * 3 + ["no"] * 3
    assert [result.text for result in found.results] == [THOUGHT + "x" * number for number in range(1, 7)]
    # Of each letter of " yes" and " no" the model is as sure as its logit says: the right one LOUD, of 257.
    sure = math.exp(LOUD) / (math.exp(LOUD) + 256)
    right, wrong = sure**4 + (1 - sure) / 256 * (1 / 257) ** 2, sure * (1 - sure) / 256 / 257
    assert (found.results[0].probabilities or ())[0] == pytest.approx(right / (right + wrong), abs=1e-6)
    assert found.metrics is not None
    assert found.metrics.roc_auc.value is not None, "after a reasoning there are probabilities, and with them curves"


def test_reasoning_that_does_not_end_is_cut_and_the_label_still_asked_for() -> None:
    told = " Let's think step by step."
    answers = {prompt(1, told): "abcdefgh", prompt(1, told + "abcde" + "\nSo:"): " no"}
    strategy = step_by_step(ASK, YES_NO, Reasoning(5, "\nSo:"))
    found = evaluate(ScriptedLlm(answers), data_of(["yes"]), strategy.template, strategy.scoring)
    assert (predictions(found), found.results[0].text) == (["no"], "abcde")


def test_the_label_can_be_read_from_the_reasoning_itself() -> None:
    strategy = step_by_step(ASK, YES_NO, Reasoning(60), parse=True)
    told = ' Let\'s think step by step. End with "Answer: yes" or "Answer: no".'
    assert strategy.template.text == "Q: {q} A:" + told
    said = [
        " It is. Answer: yes",
        " The answer is yes? Wait. Answer: no.",
        " Yes, it is.",
        " Answer: **No**",
        " answer: nothing",
        " Answer is yes",
    ]
    found = evaluate(
        ScriptedLlm({prompt(k, told): text for k, text in enumerate(said, start=1)}), data_of(), strategy.template, strategy.scoring
    )
    assert predictions(found) == ["yes", "no", None, "no", None, "yes"]
    assert found.results[2].failure == "The pattern does not match."
    assert found.metrics is not None
    assert found.metrics.n_no_label == 2


def test_a_prompt_without_room_for_reasoning_question_and_label_is_left_out_by_its_number() -> None:
    strategy = step_by_step(ASK, YES_NO, Reasoning(10, "\nSo:"))
    told = prompt(1, " Let's think step by step.")
    needed = len(told) + 10 + len("\nSo:") + len(" yes")
    data = DataSet("made", (Row(1, {"q": "is 1 odd", "label": "yes"}), Row(2, {"q": "is 22 odd", "label": "yes"})))
    found = evaluate(ScriptedLlm({}, n_ctx=needed), data, strategy.template, strategy.scoring)
    assert [result.number for result in found.results] == [1]
    assert [problem.sentence for problem in found.problems] == [
        f"Row 2 takes {needed + 1} tokens with its response, but scripted reads at most {needed}. It is left out."
    ]


# --- structured


def test_a_structured_answer_is_parsed_and_validated_or_counted_as_none() -> None:
    strategy = structured(ASK, YES_NO)
    told = ' Answer with a JSON object {"label": X} where X is one of "yes", "no".'
    assert strategy.template.fill(data_of().rows[0]) == prompt(1, told)
    said = [
        ' {"label": "yes"}',
        ' Here it is: ```json\n{"label": "no"}\n```',
        ' {"label": "maybe"}',
        ' {"label": "no", "why": 1}',
        ' {"label": no}',
        " no",
    ]
    answers = {prompt(k, told): text for k, text in enumerate(said, start=1)}
    found = evaluate(ScriptedLlm(answers), data_of(), strategy.template, strategy.scoring)
    assert predictions(found) == ["yes", "no", None, None, None, None]
    assert [result.failure for result in found.results[2:]] == [
        "The JSON object does not fit the schema: 'maybe' is not one of ['yes', 'no'].",
        "The JSON object does not fit the schema: Additional properties are not allowed ('why' was unexpected).",
        "The JSON object is not valid: Expecting value.",
        "The text holds no JSON object.",
    ]
    assert found.metrics is not None
    assert found.metrics.n_no_label == 4
    assert dict(found.figures())["no label found"] == "4"


def test_a_schema_of_ones_own_is_shown_and_examples_are_answered_in_json() -> None:
    schema = '{"type": "object", "properties": {"risk": {"enum": ["yes", "no"]}, "why": {"type": "string"}}, "required": ["risk"]}'
    strategy = structured(ASK, YES_NO, field="risk", schema=schema, examples=data_of().rows[:1])
    told = f" Answer with a JSON object that fits this schema: {schema}"
    shown = prompt(1, told) + ' {"risk": "yes"}\n\n' + prompt(2, told)
    assert strategy.template.render(data_of().rows[1]) == shown
    answers = {shown: '{"why": "x", "risk": "no"}'}
    found = evaluate(ScriptedLlm(answers), DataSet("x", data_of().rows[:2]), strategy.template, strategy.scoring)
    assert [(result.number, result.predicted) for result in found.results] == [(2, "no")]


def test_an_instruction_before_a_whole_conversation_goes_into_its_system_prompt() -> None:
    template = Template("{messages}", chat=True, system="S")
    assert step_by_step(template, YES_NO).template.system == "S\nLet's think step by step."
    assert structured(Template("{messages}", chat=True), YES_NO).template.text == "{messages}"
    with pytest.raises(RequestError, match="Examples cannot go before a whole conversation"):
        with_examples(template, YES_NO, data_of().rows[:1])


# --- against each other


SAID = {
    "a": ["yes", "no", "yes", "no", "no", "no"],
    "b": ["no", "no", "no", "yes", "no", "no"],
    "c": ["yes", "no", None, "no", "no", "yes"],
}


def reports() -> list[llm_tt.EvaluationReport]:
    scoring = Scoring("generate", parse_labels("yes,no"), n_tokens=6)
    made = []
    for said in SAID.values():
        answers = {prompt(k): " " + (label or "hm") for k, label in enumerate(said, start=1)}
        made.append(evaluate(ScriptedLlm(answers), data_of(), ASK, scoring))
    return made


def test_every_number_of_the_comparison_is_the_one_counted_by_hand() -> None:
    found = compare_reports(reports(), list(SAID))
    right = {name: [a == b for a, b in zip(said, LABELS, strict=True)] for name, said in SAID.items()}
    raw = []
    for pair, (first, second) in zip(found.pairs, combinations(SAID, 2), strict=True):
        only = [
            sum(x and not y for x, y in zip(right[first], right[second], strict=True)),
            sum(y and not x for x, y in zip(right[first], right[second], strict=True)),
        ]
        n = sum(only)
        p = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only) + 1)) / 2**n)
        assert pair.names == (first, second)
        assert [pair.test.only_first, pair.test.only_second] == only
        assert pair.test.p_value == pytest.approx(p)
        assert pair.differing == tuple(k for k in range(1, 7) if SAID[first][k - 1] != SAID[second][k - 1])
        raw.append(p)
    # Holm: the smallest three times, the next twice, the largest once; none below one that was smaller.
    low, middle, high = sorted(raw)
    corrected = {low: min(1.0, 3 * low), high: max(3 * low, 2 * middle, high)} | {middle: max(3 * low, 2 * middle)}
    corrected[low] = min(1.0, 3 * low) if low != middle else corrected[middle]
    assert [pair.p_corrected for pair in found.pairs] == pytest.approx([min(1.0, corrected[p]) for p in raw])
    assert found.differing == tuple(k for k in range(1, 7) if len({said[k - 1] for said in SAID.values()}) > 1) == (1, 3, 4, 6)
    table = {row[0]: row[1:] for row in found.metrics_table().rows}
    for column, said in enumerate(SAID.values()):
        given = [label or "(none)" for label in said]
        assert table["accuracy"][column].startswith(f"{sk.accuracy_score(LABELS, given):.3f} [")
        macro = sk.f1_score(LABELS, given, labels=["yes", "no"], average="macro")
        assert table["macro F1"][column].startswith(f"{macro:.3f} [")
        assert table["no label found"][column] == str(said.count(None))
    assert "ROC AUC" not in table, "generated answers have none"


def test_the_numbers_are_of_the_rows_that_all_answered() -> None:
    data = data_of()
    scoring = Scoring("generate", parse_labels("yes,no"), n_tokens=6)
    answers = {prompt(k): f" {label}" for k, label in enumerate(SAID["b"], start=1)}
    llm = ScriptedLlm(answers)
    some = evaluate(llm, DataSet("made", data.rows[:3]), ASK, scoring)
    found = compare_reports([evaluate(llm, data, ASK, scoring), some], ["all", "some"])
    table = {row[0]: row[1:] for row in found.metrics_table().rows}
    assert table["rows"] == ("3", "3")
    assert table["right"] == ("1", "1")
    assert found.rows == (1, 2, 3)
    assert found.reports[0].n_right == 2
    assert "the 3 rows that all answered" in found.metrics_table().title


def test_outputs_have_the_same_numbers() -> None:
    found = compare_reports(reports(), list(SAID))
    shown, page = found.to_text(), found.to_html()
    cells = [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)]
    for table in (*found.tables(), found.differing_table()):
        for row in table.rows:
            assert re.search(r"^  " + r"\s+".join(re.escape(cell) for cell in row if cell) + r"$", shown, re.MULTILINE), row
            assert any(tuple(cells[p : p + len(row)]) == row for p in range(len(cells)))
    assert not re.search(r"""(src|href)=["']|https?://|@import|url\(""", page)
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [int(line["row"]) for line in lines if line["differ"] == "1"] == list(found.differing)
    assert [line["c: predicted"] for line in lines] == [label or "" for label in SAID["c"]]
    assert sum(int(line["b: right"]) for line in lines) == 2
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["pairs"][0]["mcnemar"]["only_first"] == found.pairs[0].test.only_first
    assert content["figures"]["a"]["right"] == "5"
    assert found.differing_table(2).title == "Rows answered differently (4), the first 2"


def test_two_models_and_two_strategies_are_four_columns() -> None:
    conversation = Template("{question}", chat=True)
    data = read_data(DATA_DIR / "mixed.jsonl", limit=30)
    models = [llm_tt.load_model("demo"), llm_tt.load_model("demo-tuned")]
    few = with_examples(conversation, YES_NO, examples_per_label(data, conversation, YES_NO, 1, seed=3))
    stages: list[tuple[str, float]] = []
    found = compare_strategies(
        models, data, [zero_shot(conversation, YES_NO), few], progress=lambda stage, share: stages.append((stage, share))
    )
    assert found.names == ("demo: zero-shot", "demo: few-shot", "demo-tuned: zero-shot", "demo-tuned: few-shot")
    assert len(found.pairs) == 6
    assert len(found.rows) == 28
    shares = [share for _, share in stages]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert any(stage.startswith("few-shot: row 28 of 28") for stage, _ in stages)
    assert [len(chart.lines) for chart in found.charts()] == [4, 4, 4]
    for name, report in zip(found.names, found.reports, strict=True):
        alone = evaluate(models["tuned" in name], data, report_template(name, conversation, few), YES_NO)
        assert alone.results == report.results


def report_template(name: str, plain: Template, few: Strategy) -> Template:
    return few.template if "few" in name else plain


def test_a_stopped_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    told = " Let's think step by step."
    answers = {prompt(k): " yes" for k in range(1, 201)} | {prompt(k, told): " hm" for k in range(1, 201)}
    data = data_of(["yes", "no"] * 100)
    ways = strategies_named(["zero-shot", "step-by-step"], ASK, YES_NO, reasoning=Reasoning(6))

    def counted(**options: Any) -> tuple[llm_tt.StrategyComparison | None, int]:
        llm = ScriptedLlm(answers)
        try:
            return compare_strategies(llm, data, ways, folder=tmp_path, **options), llm.n_read
        except Cancelled:
            return None, llm.n_read

    def stop(_: str, fraction: float) -> None:
        # After two of four batches of the second way.
        if fraction >= 0.5 + 128 / 200 / 2:
            raise Cancelled

    first, n_first = counted(progress=stop)
    assert first is None
    second, n_second = counted()
    whole = ScriptedLlm(answers)
    expected = compare_strategies(whole, data, ways)
    assert n_first + n_second == whole.n_read, "nothing was computed twice"
    assert second == expected
    assert counted()[1] == 0
    assert len(list(tmp_path.glob("results-*.jsonl"))) == 2


# --- what cannot be


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: strategies_named(["zero"], ASK, YES_NO), f'There is no strategy "zero". There are {", ".join(NAMES)}.'),
        (lambda: strategies_named(["zero-shot", "zero-shot"], ASK, YES_NO), 'The strategy "zero-shot" is there twice.'),
        (lambda: strategies_named([], ASK, YES_NO), "No strategy is named. Name one or more of zero-shot, "),
        (lambda: strategies_named(["few-shot"], ASK, YES_NO), "Few-shot needs examples. Name rows, or say how many of each label."),
        (lambda: with_examples(ASK, YES_NO, [Row(3, {"q": "x", "label": "hm"})]), 'Row 3 has the label "hm", which is none of yes, no'),
        (lambda: with_examples(ASK, YES_NO, [Row(3, {"label": "no"})]), 'Row 3 has no column "q".'),
        (lambda: with_examples(ASK, Scoring("forced"), [Row(3, {"q": "x"})]), 'Row 3 has no "label", so that it cannot be an example.'),
        (lambda: structured(ASK, Scoring("forced")), "The strategy structured needs labels. Give them as yes,no."),
        (lambda: step_by_step(ASK, Scoring("forced")), "The strategy step-by-step needs labels."),
        (lambda: rows_numbered(data_of(), [2, 9]), "made has no row 9 that can be read. Its rows are 1 to 6."),
        (lambda: rows_numbered(data_of(), [2, 2]), "Row 2 is named twice as an example."),
        (lambda: examples_per_label(data_of(), ASK, YES_NO, 0), "0 examples of each label are asked for."),
        (lambda: examples_per_label(data_of(), Template("{x}"), YES_NO, 1), 'No row of made has a column "x".'),
        (lambda: Reasoning(0), "The model is to reason in 0 tokens. Allow 1 or more."),
        (lambda: Reasoning(ask=" "), "What asks for the label after the reasoning is empty."),
        (lambda: Scoring("generate", YES_NO.labels, reasoning=Reasoning()), "After a reasoning the labels are asked for."),
        (lambda: Scoring("labels", YES_NO.labels, calibrated=True, reasoning=Reasoning()), "What a model reasons differs from row to row"),
        (
            lambda: compare_strategies(ScriptedLlm({}), data_of(), [zero_shot(ASK, YES_NO)]),
            "One way to ask one model is nothing to compare.",
        ),
        (lambda: compare_reports(reports()[:1], ["a"]), "1 evaluations cannot be compared."),
        (lambda: compare_reports(reports()[:2], ["a", "a"]), 'Two evaluations are called "a".'),
    ],
)
def test_what_cannot_be_gets_a_sentence(make: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        make()


def test_a_way_that_no_row_can_be_asked_is_named_before_anything_is_computed() -> None:
    llm = ScriptedLlm({}, n_ctx=60)
    with pytest.raises(RequestError, match=re.escape("structured: no row of made can be evaluated. Row 1 is left out: The prompt has")):
        compare_strategies(llm, data_of(), strategies_named(["zero-shot", "structured"], ASK, YES_NO))
    assert llm.n_read == 0


def test_other_rows_or_labels_cannot_be_compared() -> None:
    scoring = Scoring("generate", parse_labels("yes,no"), n_tokens=2)
    first = evaluate(ScriptedLlm({}), data_of(), ASK, scoring)
    turned = evaluate(ScriptedLlm({}), data_of(["no", *LABELS[1:]]), ASK, scoring)
    other = evaluate(ScriptedLlm({}), DataSet("x", (Row(99, {"q": "a", "label": "no"}),)), ASK, scoring)
    with pytest.raises(RequestError, match=r'Row 1 has the label "yes" in "a" and "no" in "b".'):
        compare_reports([first, turned], ["a", "b"])
    with pytest.raises(RequestError, match=r"The evaluations have no row in common. Evaluate all on the same data."):
        compare_reports([first, other], ["a", "b"])


def test_errors_after_a_reasoning_are_not_explained() -> None:
    llm = ScriptedLlm({})
    strategy = step_by_step(ASK, YES_NO, Reasoning(2))
    report = evaluate(llm, data_of(), strategy.template, strategy.scoring)
    with pytest.raises(RequestError, match=r"Errors are explained of answers that follow the prompt itself. Evaluate without reasoning."):
        llm_tt.explain_errors(llm, data_of(), strategy.template, report, "no", "yes")
