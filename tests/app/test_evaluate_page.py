"""The Evaluate page without a browser: the whole way from data to explained errors, on the demo pair, against the library's own answers."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from polling import answered
from sklearn import metrics as sk
from streamlit.testing.v1 import AppTest
from test_help import controls, silent

import llm_tt
from app import navigation
from app.panels import evaluation_causes, evaluation_examples, evaluation_results
from app.panels.evaluation_examples import Cell
from llm_tt.analysis import evaluation as evaluation_module
from llm_tt.analysis.errors import CellExplanation
from llm_tt.analysis.evaluation_report import EvaluationReport
from llm_tt.analysis.scoring import parse_labels
from llm_tt.demo import DATA_DIR
from llm_tt.engine.messages import Evaluation, ModelKey, TraceKey
from llm_tt.text import ChatMessage

ROOT = Path(__file__).resolve().parents[2]
PAIR = {"models": {"demo": None, "demo-tuned": None}, "default_model": ""}
ROWS = [json.loads(line) for line in (DATA_DIR / "mixed.jsonl").read_text().splitlines()]
N = 60
WHY, DETAILS = "Why these errors", "Labels, slices and words"

Start = Callable[..., AppTest]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """start(config): the page as a browser opens it; results are kept in the test's own folder."""

    def start(config: dict[str, Any] | None = None) -> AppTest:
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"results_folder": str(tmp_path / "results"), **PAIR, **(config or {})}))
        monkeypatch.setattr("sys.argv", ["app/main.py", str(file)])
        at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
        at.run()
        return answered(go(at, "evaluate"))

    yield start
    st.cache_resource.clear()


def go(at: AppTest, page: str) -> AppTest:
    """Switch to a page of the navigation by its address; Explore's is empty."""
    at._page_hash = next(key for key, info in at._registered_pages.items() if info.get("url_pathname") == page)
    return at


def run(at: AppTest, n: int | None = N, **choices: Any) -> AppTest:
    """Make choices, by the ends of their widgets' keys, and run."""
    at.number_input("evaluate_limit").set_value(n)
    for name, value in choices.items():
        at.session_state[f"evaluate_{name}"] = value
    answered(at)
    assert not at.button("evaluate_run").disabled, texts(at)
    at.button("evaluate_run").click()
    return answered(at)


def look(at: AppTest, tab: str) -> AppTest:
    at.session_state["evaluate_tab"] = tab
    return answered(at)


def upload(at: AppTest, name: str, content: str | bytes) -> AppTest:
    at.session_state["evaluate_place"] = "upload"
    at.run()
    data = content.encode() if isinstance(content, str) else content
    at.file_uploader("evaluate_file").set_value((name, data, "application/octet-stream"))
    return answered(at)


def evaluation(at: AppTest) -> Evaluation:
    return at.session_state["evaluating"].answer


def raw(at: AppTest, *kinds: str) -> str:
    return "\n".join(element.value for kind in kinds or ("markdown", "caption", "error", "warning", "info") for element in at.get(kind))


def texts(at: AppTest, *kinds: str) -> str:
    """What is read, without the backslashes that keep it from being markup."""
    return raw(at, *kinds).replace("\\", "")


# Only tables in which one can choose have a key there.
TABLES: dict[str, Callable[[list[str]], bool]] = {
    "metrics": lambda names: names[0] == "metric",
    "data": lambda names: names[0] == "row" and "why" not in names and not TABLES["rows"](names),
    "rows": lambda names: names[:2] == ["row", "label"] and names[-1] == "text",
    "left out": lambda names: names == ["row", "why"],
    "words": lambda names: names[:2] == ["word", "wrong"],
    "parts": lambda names: names[0] == "part",
    "details": lambda names: names[0] in ("confidence", "rows with") or names[:2] in (["label", "precision"], ["word", "rows"]),
    "matrix": lambda names: names[:2] == ["label", "word0"],
    "pairs": lambda names: names[0] == "first",
}


def tables(at: AppTest, name: str) -> list[pd.DataFrame]:
    return [frame.value for frame in at.dataframe if TABLES[name](list(frame.value.columns))]


def table(at: AppTest, name: str) -> pd.DataFrame:
    (found,) = tables(at, name)
    return found


def buttons(at: AppTest) -> dict[str, str]:
    """The cells of the confusion matrix: key -> count."""
    return {button.key: button.label for button in at.button if (button.key or "").startswith("evaluate_cell_")}


@pytest.fixture(scope="module")
def expected() -> list[EvaluationReport]:
    """The demo pair on the first rows, by the library."""
    scoring = llm_tt.Scoring("labels", parse_labels("yes,no"))
    data, template = llm_tt.read_data(DATA_DIR / "mixed.jsonl", N), llm_tt.Template("{question}", chat=True)
    return [llm_tt.evaluate(llm_tt.load_model(name), data, template, scoring) for name in ("demo", "demo-tuned")]


# --- the whole way


def test_base_against_tuned(start: Start, expected: list[EvaluationReport]) -> None:
    at = run(start(), second="demo-tuned")
    base, tuned = expected
    assert [dict(report.figures()) for report in evaluation(at).reports] == [dict(report.figures()) for report in expected]
    shown = table(at, "metrics")
    assert list(shown.columns) == ["metric", "demo", "demo-tuned"]
    for name, one, other in shown.itertuples(index=False):
        assert (one, other) == (dict(base.figures())[name], dict(tuned.figures())[name])
    # By scikit-learn itself, from what stands on the page as rows.
    truth = [row["label"] for row in ROWS[:N]]
    said = [result.predicted for result in evaluation(at).reports[1].results]
    accuracy = dict(zip(shown["metric"], shown["demo-tuned"], strict=True))
    assert accuracy["accuracy"].startswith(f"{sk.accuracy_score(truth, said):.3f} [")
    assert accuracy["macro F1"].startswith(f"{sk.f1_score(truth, said, average='macro'):.3f} [")
    # The tuned model has the errors: its matrix is shown, and its cell of errors is chosen.
    matrix = sk.confusion_matrix(truth, said, labels=["yes", "no"])
    assert buttons(at) == {f"evaluate_cell_{i}_{j}": str(matrix[i, j]) for i in range(2) for j in range(2)}
    n_wrong = int(matrix[1, 0])
    assert f"**{n_wrong} rows of no predicted as yes**" in texts(at, "markdown")
    assert f"On {n_wrong} rows only one is right: on {n_wrong} **demo**, on 0 **demo-tuned**." in texts(at, "caption")
    assert f"p = {2 * 0.5**n_wrong:.3g}, more than chance. Both right: {N - n_wrong}; both wrong: 0." in texts(at, "caption")
    rows = table(at, "rows")
    wrong = [number for number, (a, b) in enumerate(zip(truth, said, strict=True), 1) if a != b]
    assert rows["row"].tolist() == wrong
    assert rows["text"].tolist() == [ROWS[number - 1]["question"] for number in wrong]
    assert set(rows["demo"]) == {"no"}
    assert set(rows["demo-tuned"]) == {"yes"}
    assert rows["p, demo-tuned"].tolist() == [max(tuned.results[number - 1].probabilities or ()) for number in wrong]


def test_cells_are_clicked_and_models_chosen(start: Start) -> None:
    at = run(start(), second="demo-tuned")
    at.button("evaluate_cell_1_1").click()
    answered(at)
    found = table(at, "rows")
    assert set(found["label"]) == set(found["demo-tuned"]) == {"no"}
    assert "rows of no predicted as no**" in texts(at, "markdown")
    assert "Click a cell of errors in the confusion matrix" in texts(look(at, WHY), "caption")
    look(at, "Rows")
    assert at.button("evaluate_cell_0_1").disabled
    at.toggle("evaluate_differing").set_value(True)
    answered(at)
    differing = evaluation(at).comparison
    assert differing is not None
    assert table(at, "rows")["row"].tolist() == list(differing.differing)
    assert all(one != other for one, other in table(at, "rows")[["demo", "demo-tuned"]].itertuples(index=False))
    at.session_state["evaluate_shown_side"] = 0
    answered(at)
    assert sum(int(label) for label in buttons(at).values()) == N
    assert buttons(at)["evaluate_cell_1_0"] == "0"


def test_errors_are_explained_and_the_planted_word_surfaces(start: Start, expected: list[EvaluationReport]) -> None:
    at = run(start(), model="demo-tuned")
    look(at, WHY).button("evaluate_explain").click()
    answered(at)
    model = llm_tt.load_model("demo-tuned")
    data, template = llm_tt.read_data(DATA_DIR / "mixed.jsonl", N), llm_tt.Template("{question}", chat=True)
    found = llm_tt.explain_errors(model, data, template, expected[1], "no", "yes")
    words, parts = table(at, "words"), table(at, "parts")
    assert words["word"].tolist() == [word.word for word in found.words]
    assert words["word"][0] == "lima"
    np.testing.assert_allclose(words["wrong"], [word.wrong for word in found.words], atol=1e-5)
    np.testing.assert_allclose(words["effect_wrong"], [word.effect_wrong for word in found.words], atol=1e-3)
    assert parts["part"][0] == found.parts[0].name == "L3 H0"
    np.testing.assert_allclose(parts["difference"], [part.difference for part in found.parts[:12]], atol=1e-3)
    (drawn,) = [element.proto.body for element in at.get("html") if "why-strips" in element.proto.body]
    told = [html.unescape(title) for title in re.findall(r'title="([^"]*)"', drawn)]
    lima = found.words[0]
    assert f"lima: {lima.wrong:.1%} of the flow in wrong rows, on average" in told
    assert "lima: 0.0% of the flow in right rows, on average" in told
    assert "rest on **lima** more than the right ones" in texts(at, "caption")
    # Asked of another cell, it is asked again; the first answer is there at once when one comes back.
    at.button("evaluate_cell_0_0").click()
    answered(at)
    assert not any(button.key == "evaluate_explain" for button in at.button)


def test_files_have_the_numbers_of_the_page(start: Start) -> None:
    at = run(start(), second="demo-tuned", slices=["group"], words="Lima")
    look(at, WHY).button("evaluate_explain").click()
    answered(at)
    answer = evaluation(at)
    why = at.session_state["explaining_errors"].answer
    assert isinstance(why, CellExplanation)
    page = evaluation_results.report_html(answer, [("demo-tuned", why)])
    assert at.session_state["evaluate_why"].evaluate == answer.question
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)]
    words = table(at, "words")
    look(at, "Rows")
    wrong = table(at, "rows")["row"].tolist()
    look(at, DETAILS)
    shown = [table(at, "metrics"), *tables(at, "details")]
    assert len(shown) == 6
    for one in shown:
        for row in one.itertuples(index=False):
            wanted = tuple(map(str, row))
            assert any(tuple(cells[p : p + len(wanted)]) == wanted for p in range(len(cells))), wanted
    first = tuple(f"{number:{form}}" for number, form in zip(words.iloc[0, 1:5], (".3f", ".3f", "+.3f", "+.3f"), strict=True))
    assert any(tuple(cells[p + 1 : p + 5]) == first for p, cell in enumerate(cells) if cell == "lima")
    lines = list(csv.DictReader(io.StringIO(answer.reports[1].to_csv())))
    assert [int(line["row"]) for line in lines if line["right"] == "0"] == wrong
    assert {"evaluate_csv", "evaluate_csv_0", "evaluate_csv_1", "evaluate_report"} <= {element.key for element in at.get("download_button")}


def test_other_choices_than_those_of_the_results_are_told(start: Start) -> None:
    at = run(start(), 10)
    assert "**Results** · demo · 10 rows of mixed.jsonl · chat: {question} · Label words: yes, no" in texts(at, "caption")
    assert "These results are of the choices before" not in texts(at)
    at.session_state["evaluate_labels"] = "no,yes"
    answered(at)
    assert "These results are of the choices before" in texts(at, "info")
    assert "10 rows of mixed" in texts(at, "caption")


# --- to other pages and back


def test_a_row_opens_in_explore_and_all_is_there_on_return(start: Start) -> None:
    at = run(
        start(), second="demo-tuned", labels="yes, no", method="labels", words="Lima, friend", made_of="Template", template="{question}"
    )
    at.button("evaluate_cell_0_0").click()
    answered(at)
    number = int(table(at, "rows")["row"][0])
    at.button("evaluate_explore_1").click()
    answered(at)
    question = ROWS[number - 1]["question"]
    assert at.session_state["trace"] == TraceKey(ModelKey("demo-tuned"), (ChatMessage("user", question),))
    explanation = at.session_state["conversation"].answer
    assert explanation.graph.target == len(explanation.prompt.token_ids) - 1
    assert (at.session_state["why_token"], at.session_state["why_contrast"]) == ("·yes", "·no")
    answered(go(at, "evaluate"))
    for name, value in {
        "model": "demo",
        "second": "demo-tuned",
        "labels": "yes, no",
        "words": "Lima, friend",
        "template": "{question}",
    }.items():
        assert at.session_state[f"evaluate_{name}"] == value
    assert at.session_state["evaluate_limit"] == N
    assert table(at, "rows")["row"][0] == number
    assert set(table(at, "rows")["label"]) == {"yes"}


def test_a_row_opens_in_compare_with_both_models(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(navigation, "open_compare", lambda *sides: opened.append(sides))
    at = run(start(), 20, second="demo-tuned")
    number = int(table(at, "rows")["row"][0])
    at.button("evaluate_compare").click()
    answered(at)
    prompt = (ChatMessage("user", ROWS[number - 1]["question"]),)
    assert opened == [(TraceKey(ModelKey("demo"), prompt), TraceKey(ModelKey("demo-tuned"), prompt))]


def test_an_upload_outlives_a_visit_of_another_page(start: Start) -> None:
    at = upload(start(), "mine.csv", 'text,label\n"a, b",good\nc,bad\n')
    assert table(at, "data").to_numpy().tolist() == [[1, "a, b", "good"], [2, "c", "bad"]]
    answered(go(at, ""))
    answered(go(at, "evaluate"))
    assert "mine.csv, uploaded before, is used." in texts(at, "caption")
    assert table(at, "data")["text"].tolist() == ["a, b", "c"]


# --- cancelled and resumed


def test_it_goes_on_while_another_page_is_looked_at(start: Start) -> None:
    at = start()
    at.session_state["evaluate_set"] = "demo/train"
    at.run()
    at.button("evaluate_run").click()
    at.run()
    assert at.session_state["evaluating"].phase == "working"
    go(at, "").run()
    assert any(box.key == "prompt" for box in at.text_area)
    answered(go(at, "evaluate"))
    assert len(evaluation(at).reports[0].results) == 600


def test_cancelled_it_goes_on_where_it_was(start: Start, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    score, seen, hold = evaluation_module.score, [], [True]

    def slowly(llm: Any, examples: Any, *rest: Any) -> Iterator[Any]:
        for batch in score(llm, examples, *rest):
            seen.extend(result.number for result in batch)
            yield batch
            while hold[0] and len(seen) >= 64:
                time.sleep(0.05)

    monkeypatch.setattr(evaluation_module, "score", slowly)
    # A test that fails must not leave a thread behind that waits for ever.
    request.addfinalizer(lambda: hold.__setitem__(0, False))
    at = start()
    at.number_input("evaluate_limit").set_value(130)
    at.run()
    at.button("evaluate_run").click()
    at.run()
    for _ in range(300):
        at.run()
        bars = [bar.proto.text.replace("\\", "") for bar in at.get("progress")]
        if any("row 64 of 130" in text for text in bars):
            break
        time.sleep(0.1)
    assert any(re.search(r"demo: row 64 of 130, about \d+ (s|min) left", text) for text in bars)
    assert at.button("evaluate_run").disabled
    at.button("cancel_Evaluate").click()
    at.run()
    hold[0] = False
    answered(at)
    assert "What was answered is kept: it goes on where it was stopped." in texts(at, "caption")
    assert evaluation(at) is None
    at.button("again_Evaluate").click()
    answered(at)
    assert len(evaluation(at).reports[0].results) == 130
    # The batch that was under way when it was cancelled may be lost; no other is computed twice.
    assert len(seen) - len(set(seen)) <= 64
    assert [number for number in seen[:64] if seen.count(number) > 1] == []


# --- the ways to score


def test_teacher_forced_without_labels(start: Start) -> None:
    rows = [{"text": "The capital of France is", "answer": " Paris"}, {"text": "The capital of Italy is", "answer": " Rome"}]
    many = [{**row, "answer": f"{row['answer']}", "id": f"{n}"} for n, row in enumerate(rows)]
    at = upload(start(), "facts.jsonl", "\n".join(map(json.dumps, many)))
    at = run(at, None, method="forced", label_column="answer", form="Text")
    report = evaluation(at).reports[0]
    assert report.scoring.labels == (llm_tt.Scoring("labels", parse_labels("Paris,Rome")).labels)
    assert report.n_right == 2
    longer = "\n".join(json.dumps({"text": f"The capital of France {'is ' * n}", "answer": f" a{n} b"}) for n in range(25))
    at = upload(at, "free.jsonl", longer)
    at = run(at, None, label_column="answer", labels="")
    report = evaluation(at).reports[0]
    assert report.metrics is None
    assert "token accuracy" in set(table(at, "metrics")["metric"])
    assert "Without label words there is no confusion matrix" in texts(at, "caption")
    assert f"**{25 - report.n_right} rows that are wrong**" in texts(at, "markdown")
    assert "Errors are explained of an evaluation by label words" in texts(look(at, WHY), "caption")


def test_generated_text_with_a_pattern(start: Start) -> None:
    at = run(start(), 12, method="generate", pattern="(yes|no)", tokens=2)
    report = evaluation(at).reports[0]
    assert (report.scoring.kind, report.scoring.pattern, report.scoring.n_tokens) == ("generate", "(yes|no)", 2)
    assert report.n_right == 12
    at = run(at, 12, pattern="(never)")
    assert evaluation(at).reports[0].n_right == 0
    assert "12 of 12 answers name no label; they count as errors." in texts(at, "caption")
    assert [label for label in buttons(at).values() if label != "0"]
    assert "predicted as (no label)**" in texts(at, "markdown")
    at.session_state["evaluate_pattern"] = "("
    answered(at)
    assert "The pattern '(' is no regular expression" in texts(at, "error")
    assert at.button("evaluate_run").disabled


def test_calibrated_is_another_question(start: Start) -> None:
    at = run(start(), 10, method="calibrated")
    assert evaluation(at).question.scoring.calibrated
    assert "Label words, calibrated: yes, no" in texts(at, "caption")


def test_the_prompt_is_shown_as_the_model_receives_it(start: Start) -> None:
    at = start()
    at.button("evaluate_load").click()
    answered(at)
    assert at.code[0].value == f"<bos><user> {ROWS[0]['question']}<assistant>"
    assert "Row 1, 23 tokens, right answer yes · scored after it: yes: `y` `e` `s` or `·yes`; no: `n` `o` or `·no`" in texts(at, "caption")
    at.session_state["evaluate_made_of"] = "Template"
    at.session_state["evaluate_form"] = "Text"
    at.session_state["evaluate_template"] = "Q: {question} {{sure}}"
    answered(at)
    assert at.code[0].value.endswith(f"Q: {ROWS[0]['question']} {{sure}}")


def test_ways_to_ask_against_each_other(start: Start) -> None:
    at = run(start(), 30, model="demo-tuned", ways=["zero-shot", "few-shot", "structured"], shots=2)
    answer = evaluation(at)
    assert answer.question.strategies == ("zero-shot", "few-shot", "structured")
    assert answer.comparison is not None
    assert list(table(at, "metrics").columns) == ["metric", "zero-shot", "few-shot", "structured"]
    pairs = table(at, "pairs")
    expected = answer.comparison.pairs_table()
    assert [tuple(map(str, row)) for row in pairs.itertuples(index=False)] == list(expected.rows)
    right = {name: [r.number for r in report.results if r.is_right] for name, report in zip(answer.names, answer.reports, strict=True)}
    shared = set(answer.comparison.rows)
    only = len((set(right["zero-shot"]) - set(right["few-shot"])) & shared)
    assert int(pairs["only first right"][0]) == only
    assert "few-shot" in str(at.session_state["evaluate_ways"])
    # The examples of few-shot are no rows of it, and are said.
    assert len(answer.reports[1].results) == 26
    at.session_state["evaluate_shown_side"] = 1
    answered(at)
    number = int(table(at, "rows")["row"][0])
    at.button("evaluate_explore_1").click()
    answered(at)
    prompt = at.session_state["trace"].prompt
    assert [message.role for message in prompt] == ["user", "assistant"] * 4 + ["user"]
    assert prompt[-1].content == ROWS[number - 1]["question"]
    answered(go(at, "evaluate"))
    at.session_state["evaluate_ways"] = []
    answered(at)
    assert "Choose at least one way to ask." in texts(at, "caption")
    assert at.button("evaluate_run").disabled


def test_examples_are_chosen_by_their_rows(start: Start) -> None:
    at = run(start(), 30, model="demo-tuned", ways=["few-shot"], shot_rows="9, 4")
    answer = evaluation(at)
    assert answer.question.shot_rows == (9, 4)
    assert [text for text, _ in answer.sides[0].template.examples] == [ROWS[8]["question"], ROWS[3]["question"]]
    assert sorted(result.number for result in answer.reports[0].results) == [n for n in range(1, 31) if n not in (4, 9)]
    at.session_state["evaluate_shot_rows"] = "9, four"
    answered(at)
    assert '"four" is no number of a row. Write the numbers of the example rows as 3, 17.' in texts(at, "error", "caption")
    assert at.button("evaluate_run").disabled


def test_a_schema_goes_with_a_json_field(start: Start) -> None:
    schema = '{"type": "object", "properties": {"risk": {"enum": ["yes", "no"]}}, "required": ["risk"]}'
    at = start()
    at.session_state["evaluate_method"] = "generate"
    answered(at)
    assert not [area for area in at.text_area if area.key == "evaluate_schema"]
    at.session_state["evaluate_field"] = "risk"
    answered(at)
    at.session_state["evaluate_schema"] = '{"properties": {"label": {}}}'
    answered(at)
    assert 'The JSON schema has no property "risk"' in texts(at, "error", "caption")
    at = run(at, 4, schema=schema)
    assert evaluation(at).question.scoring.schema == schema
    assert all(result.predicted is None for result in evaluation(at).reports[0].results), (
        "the demo model writes no JSON, and nothing is guessed"
    )


def test_reasoning_is_not_traced(start: Start) -> None:
    at = run(start(), 12, model="demo-tuned", ways=["step-by-step"])
    cells = [key for key, n in buttons(at).items() if key in ("evaluate_cell_0_1", "evaluate_cell_1_0") and n != "0"]
    if cells:
        at.button(cells[0]).click()
        answered(at)
    assert "Errors are explained of answers that follow the prompt itself" in texts(look(at, WHY), "caption")
    look(at, "Rows")
    at.button("evaluate_explore_0").click()
    answered(at)
    assert at.session_state["why_token"] is None


# --- what is wrong with data and choices


def test_rows_that_changed_since_are_not_opened(start: Start, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\ngood film,yes\nbad film,no\n")
    at = start({"data_sets": {"films": "rows.csv"}})
    at = run(at, None, set="films", form="Text")
    assert any(button.key == "evaluate_explore_0" for button in at.button)
    (tmp_path / "rows.csv").write_text("text,label\nother film,yes\nsome film,no\n")
    answered(at)
    assert "The data set has changed since: this row is another one now. Run again." in texts(at, "warning")
    assert not any(button.key == "evaluate_explore_0" for button in at.button)


def test_rows_without_columns_and_columns_that_no_template_can_name(start: Start) -> None:
    at = upload(start(), "none.jsonl", "{}\n{}\n")
    assert "The rows of none.jsonl have no column. Choose other data." in texts(at, "error")
    assert at.button("evaluate_run").disabled
    at = upload(
        at, "odd.jsonl", json.dumps({"text:0": "some longer text", "label": "yes"}) + "\n" + json.dumps({"text:0": "b", "label": "no"})
    )
    assert 'The column "text:0" cannot stand in a template' in texts(at, "error")
    at.session_state["evaluate_column"] = "label"
    answered(at)
    assert not at.button("evaluate_run").disabled


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", "", 'The data set "empty.jsonl" is empty'),
        ("a.csv", "a,a\n1,2\n", 'The header of "a.csv" names the column "a" twice'),
        ("all.jsonl", "x\ny\n", "is empty: it has no row that can be read. Row 1 is not valid JSON"),
    ],
)
def test_data_that_cannot_be_read_is_said(start: Start, name: str, content: str, said: str) -> None:
    at = upload(start(), name, content)
    assert said in texts(at, "error")
    assert at.button("evaluate_run").disabled
    assert "The data cannot be read yet." in texts(at, "caption")


def test_bad_rows_are_told_by_number_and_the_rest_is_evaluated(start: Start) -> None:
    good = [{"text": f"Pay {n} dollars. Is this payment risky?", "label": "yes" if n % 2 else "no"} for n in range(6)]
    lines = [json.dumps(row) for row in good]
    lines[1:1] = [
        "broken {",
        json.dumps({"text": "word " * 200, "label": "no"}),
        json.dumps({"text": "<b>*x*</b>", "label": "maybe"}),
        "[1]",
    ]
    at = upload(start(), "bad.jsonl", "\n".join(lines))
    assert "2 rows cannot be read. Row 2 is not valid JSON" in texts(at, "warning")
    at = run(at, None, labels="yes,no", form="Chat")
    report = evaluation(at).reports[0]
    assert [result.number for result in report.results] == [1, 6, 7, 8, 9, 10]
    left_out = table(at, "left out")
    assert left_out["row"].tolist() == [2, 3, 4, 5]
    assert [problem.sentence for problem in report.problems] == left_out["why"].tolist()
    assert 'Row 4 has the label "maybe", which is none of yes, no.' in left_out["why"].tolist()
    assert "4 rows left out; the rest was evaluated" in [expander.label for expander in at.get("expander")]


def test_one_label_only_and_a_label_never_said(start: Start) -> None:
    at = start()
    at.session_state["evaluate_set"] = "demo/conflict"
    answered(at)
    assert "1 labels are given. Give two or more, as yes,no." in texts(at, "error")
    at = run(at, 20, labels="yes,no", model="demo-tuned")
    assert 'All rows have the label "no"' in texts(at, "caption")
    assert 'The label "no" was never predicted.' in texts(at, "caption")
    assert "No row of no is right, so that there is nothing to compare with." in texts(look(at, WHY), "caption")


def test_a_missing_column_and_unmatched_braces_are_said(start: Start) -> None:
    at = start()
    at.session_state["evaluate_made_of"] = "Template"
    at.session_state["evaluate_template"] = "Review: {txt}"
    answered(at)
    assert 'No row of mixed.jsonl has a column "txt". Its columns: question, label' in texts(at, "error")
    at.session_state["evaluate_template"] = "Review: {text"
    answered(at)
    assert "is not valid" in texts(at, "error")
    at.session_state["evaluate_template"] = "Review"
    answered(at)
    assert "names no column" in texts(at, "error")
    assert at.button("evaluate_run").disabled


def test_a_path_and_a_model_that_fails(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text("text\tlabel\na\tyes\nb\tno\n")
    at = start({"models": {"demo": None, "gone": str(tmp_path / "gone")}})
    at.session_state["evaluate_place"] = "path"
    answered(at)
    assert "Choose the data" in texts(at, "caption")
    at.text_input("evaluate_path").set_value(str(tmp_path / "no.tsv"))
    answered(at)
    assert 'no.tsv" does not exist. Check the path.' in texts(at, "error")
    at.text_input("evaluate_path").set_value(str(file))
    answered(at)
    assert table(at, "data")["text"].tolist() == ["a", "b"]
    at = run(at, None, model="gone")
    assert "gone" in texts(at, "error")
    assert at.session_state["evaluate_path"] == str(file)
    at = run(at, None, model="demo")
    assert len(evaluation(at).reports[0].results) == 2


def test_markup_in_rows_is_text(start: Start) -> None:
    rows = [{"text": "<script>x</script> **b** $a$ :red[x]", "label": "<b>"}, {"text": "y", "label": "`_n_`"}]
    at = upload(start(), "m.jsonl", "\n".join(map(json.dumps, rows)))
    at = run(at, None, form="Text")
    drawn = raw(at, "markdown", "caption")
    assert "<script" not in drawn
    assert "<b>" not in drawn.replace("\\<b\\>", "")
    assert at.get("text")[0].value in {row["text"] for row in rows}
    assert len(buttons(at)) == 4


def test_many_labels_are_a_table(start: Start) -> None:
    rows = [{"text": f"Say {n}", "label": f"word{n % 10}"} for n in range(20)]
    at = run(upload(start(), "many.jsonl", "\n".join(map(json.dumps, rows))), None, form="Text")
    assert buttons(at) == {}
    shown = table(at, "matrix")
    assert shown["label"].tolist() == sorted(f"word{n}" for n in range(10))
    assert shown.drop(columns="label").to_numpy().sum() == 20


# --- servers


def test_what_a_demo_server_offers(start: Start) -> None:
    at = start({"demo_mode": True, "allow_loading_dataset_files": False})
    assert not any(element.key == "evaluate_place" for element in at.button_group)
    assert not at.get("file_uploader")
    assert at.selectbox("evaluate_method").options == ["Label words", "Label words, calibrated", "Teacher-forced"]
    assert not any(element.key in ("evaluate_template", "evaluate_system") for element in (*at.text_area, *at.text_input))
    at = run(at, 12, second="demo-tuned")
    at.button("evaluate_explore_1").click()
    answered(at)
    assert at.session_state["trace"].prompt[0].content in {row["question"] for row in ROWS}
    assert at.session_state["conversation"].phase == "answered"


def test_configured_data_sets_are_on_the_menu(start: Start, tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("review,sentiment\ngood film,positive\nbad film,negative\n")
    at = start({"data_sets": {"film reviews": "reviews.csv"}})
    assert at.selectbox("evaluate_set").options[-1] == "film reviews"
    at.selectbox("evaluate_set").set_value("film reviews")
    answered(at)
    assert at.session_state["evaluate_column"] == "review"
    at = run(at, None, label_column="sentiment", form="Text")
    assert evaluation(at).reports[0].scoring.values == ("positive", "negative")


def test_every_control_has_a_help_text(start: Start) -> None:
    at = run(start(), 20, second="demo-tuned", method="generate", made_of="Template")
    assert silent(at) == []
    at = run(at, 20, method="labels", made_of="Column")
    at.session_state["evaluate_place"] = "path"
    answered(at)
    assert silent(at) == []
    assert len(list(controls(at))) > 15
    assert all(element.proto.help for element in at.multiselect)
    at.session_state["evaluate_place"] = "upload"
    answered(at)
    assert at.file_uploader("evaluate_file").proto.help


# --- pure parts


def test_a_cell_and_the_table_of_a_report(expected: list[EvaluationReport]) -> None:
    cell = evaluation_examples.chosen(expected[1])
    assert cell == Cell("no", "yes")
    assert cell.name == "no predicted as yes"
    assert not cell.is_right
    assert Cell("yes", None).name == "yes predicted as (no label)"
    assert evaluation_causes.impossible(expected[1], Cell("yes", "no")).startswith("No row of yes predicted as no")
    tables = evaluation_results.detail_tables(expected[1])
    assert [one.title for one in tables] == ["Labels", "Calibration", "Slices", "Words whose rows are wrong unusually often"]
    frame = evaluation_results.frame(tables[0])
    assert frame["rows"].dtype.kind == "i"
    assert frame["precision"].tolist() == [row[1] for row in tables[0].rows]
