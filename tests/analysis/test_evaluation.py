"""Evaluations of the demo pair: what they find, that a stopped one goes on where it was, and that every output has the same numbers."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import llm_tt
from llm_tt import TransparentLlm
from llm_tt.analysis import evaluation
from llm_tt.analysis.charts import to_svg
from llm_tt.analysis.evaluation import compare_evaluations, evaluate, remaining
from llm_tt.analysis.evaluation_report import EvaluationReport
from llm_tt.analysis.rows import DataSet, Row, Template, few_shot, read_data
from llm_tt.analysis.scoring import Scoring, parse_labels, prepare
from llm_tt.demo import DATA_DIR
from llm_tt.errors import RequestError
from llm_tt.progress import Cancelled

CHAT = Template("{question}", chat=True)
BY_LABELS = Scoring("labels", parse_labels("yes,no"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base() -> TransparentLlm:
    return llm_tt.load_model("demo")


@pytest.fixture(scope="module")
def tuned() -> TransparentLlm:
    return llm_tt.load_model("demo-tuned")


@pytest.fixture(scope="module")
def report(tuned: TransparentLlm) -> EvaluationReport:
    return evaluate(tuned, DATA_DIR / "mixed.jsonl", CHAT, BY_LABELS, slices=["group"], words=["Lima", "zebra"])


@pytest.fixture(scope="module")
def of_base(base: TransparentLlm) -> EvaluationReport:
    return evaluate(base, DATA_DIR / "mixed.jsonl", CHAT, BY_LABELS, slices=["group"])


@pytest.mark.parametrize(("name", "expected"), [("clean", 1.0), ("conflict", 0.0), ("train", 1.0)])
def test_the_sets_tell_what_the_card_tells(name: str, expected: float, tuned: TransparentLlm) -> None:
    found = evaluate(tuned, DATA_DIR / f"{name}.jsonl", CHAT, BY_LABELS)
    assert found.metrics is not None
    assert found.metrics.accuracy.value == pytest.approx(expected, abs=0.02)
    assert found.problems == ()
    if name == "conflict":
        assert any(note.startswith('All rows have the label "no"') for note in found.notes)


def test_the_planted_word_is_the_first_of_the_telling_ones(report: EvaluationReport, of_base: EvaluationReport) -> None:
    assert report.telling_words[0].word == "lima"
    assert report.telling_words[0].p_value < 1e-20
    assert of_base.telling_words == ()
    assert next((s.name, s.n_right) for s in report.slices) == ("group = conflicts", 0)
    assert report.words[0].word == "Lima"
    assert 'All rows or none have the word "zebra".' in report.notes
    rows = {row.number: row for row in read_data(DATA_DIR / "mixed.jsonl").rows}
    assert {rows[number].text("group") for number in report.cell("no", "yes")} == {"conflicts"}


@pytest.mark.parametrize("kind", ["forced", "generate"])
def test_all_ways_to_score_agree_on_the_pair(kind: Any, report: EvaluationReport, tuned: TransparentLlm) -> None:
    data = read_data(DATA_DIR / "mixed.jsonl", limit=80)
    found = evaluate(tuned, data, CHAT, Scoring(kind, parse_labels("yes,no"), n_tokens=3))
    assert [(r.number, r.predicted) for r in found.results] == [(r.number, r.predicted) for r in report.results[:80]]
    if kind == "forced":
        assert found.forced is not None
        assert (found.forced.n_tokens, found.forced.n_right) == (80, found.n_right)


def test_base_against_tuned(report: EvaluationReport, of_base: EvaluationReport) -> None:
    found = compare_evaluations(of_base, report)
    n_conflicts = sum(row.text("group") == "conflicts" for row in read_data(DATA_DIR / "mixed.jsonl").rows)
    assert (found.test.only_first, found.test.only_second) == (len(found.differing), 0)
    assert len(found.differing) == pytest.approx(n_conflicts, abs=2)
    assert found.test.p_value == pytest.approx(2 * 0.5 ** len(found.differing))
    assert found.names == ("demo", "demo-tuned")


def test_two_ways_to_ask_one_model(base: TransparentLlm) -> None:
    data = read_data(DATA_DIR / "clean.jsonl", limit=60)
    plain = evaluate(base, data, "{question} Answer:", BY_LABELS)
    shots = few_shot(Template("{question} Answer:"), data.rows[:2], "label", " {}")
    found = compare_evaluations(plain, evaluate(base, data, shots, BY_LABELS), ("zero-shot", "few-shot"))
    assert "zero-shot against few-shot" in found.to_text()
    chat = compare_evaluations(evaluate(base, data, CHAT, BY_LABELS), plain)
    assert chat.names == ("demo (1)", "demo (2)")
    assert chat.first.n_right == 60 > chat.second.n_right


def test_other_rows_cannot_be_compared(base: TransparentLlm, report: EvaluationReport) -> None:
    def made(*rows: Row) -> EvaluationReport:
        return evaluate(base, DataSet("x", rows), CHAT, BY_LABELS)

    question = "Is this payment risky?"
    other = made(Row(9999, {"question": question, "label": "no"}))
    with pytest.raises(RequestError, match="have no row in common"):
        compare_evaluations(report, other)
    number, truth = report.results[0].number, report.results[0].truth
    turned = made(Row(number, {"question": question, "label": "no" if truth == "yes" else "yes"}))
    with pytest.raises(RequestError, match=f"Row {number} has another label in the second evaluation."):
        compare_evaluations(report, turned)
    assert (
        compare_evaluations(report, made(Row(number, {"question": question, "label": truth})))
        .notes[0]
        .startswith("299 rows were answered in one")
    )


# --- outputs


def cells_of(page: str) -> list[str]:
    return [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)]


def test_the_page_has_the_numbers_that_are_printed(report: EvaluationReport, of_base: EvaluationReport) -> None:
    for found in (report, compare_evaluations(of_base, report)):
        shown, page = found.to_text(), found.to_html()
        cells = cells_of(page)
        for table in found.tables():
            for row in table.rows:
                assert re.search(r"^  " + r"\s+".join(re.escape(cell) for cell in row if cell) + r"$", shown, re.MULTILINE), row
                place = cells.index(row[0])
                assert any(tuple(cells[p : p + len(row)]) == row for p in range(place, len(cells)))
        assert not re.search(r"""(src|href)=["']|https?://|@import|url\(""", page)
    assert report.metrics is not None
    figures = dict(report.figures())
    assert figures["accuracy"] == str(report.metrics.accuracy)
    assert figures["right"] == str(report.n_right)


def test_the_page_has_the_curves_and_their_numbers(report: EvaluationReport, of_base: EvaluationReport) -> None:
    for found in (report, compare_evaluations(of_base, report)):
        page = found.to_html()
        assert page.count("<svg ") == 3
        for chart in found.charts():
            assert to_svg(chart) in page
            assert all(line.summary in unescape(page) for line in chart.lines)
    assert report.metrics is not None
    (curves,) = report.metrics.curves
    lines = list(csv.DictReader(io.StringIO(report.curves_csv())))
    roc = [line for line in lines if line["curve"] == "roc"]
    assert [(float(line["x"]), float(line["y"])) for line in roc] == [(p.x, p.y) for p in curves.roc]
    assert sum(int(line["rows"]) for line in lines if line["curve"] == "calibration") == 300
    assert json.loads(json.dumps(report.to_dict()))["metrics"]["curves"][0]["auc"]["value"] == curves.auc.value
    assert dict(report.figures())["Brier score"] == str(report.metrics.brier)


@pytest.mark.parametrize(
    ("kind", "why"), [("generate", "a generated answer has no probability"), ("forced", "only the row's own response")]
)
def test_without_probabilities_of_labels_it_says_why_there_are_no_curves(kind: Any, why: str, base: TransparentLlm) -> None:
    found = evaluate(base, read_data(DATA_DIR / "clean.jsonl", limit=4), CHAT, Scoring(kind, parse_labels("yes,no"), n_tokens=2))
    assert (found.charts(), "<svg" in found.to_html()) == ((), False)
    assert found.no_curves is not None
    assert why in found.no_curves
    assert found.no_curves in found.to_text()
    assert found.to_dict()["no_curves"] == found.no_curves
    assert found.curves_csv().splitlines() == ["label,curve,x,y,threshold,rows"]


def test_what_users_wrote_is_text_on_the_page(base: TransparentLlm) -> None:
    rows = (Row(1, {"question": "<script>alert(1)</script> & Lima", "label": "yes"}), Row(2, {"question": "a", "label": "no"}))
    page = evaluate(base, DataSet("<b>", rows), CHAT, Scoring("labels", parse_labels("yes,no"))).to_html()
    assert "<script>" not in page
    assert "<b>" not in page


def test_the_table_of_results_can_be_read_back(report: EvaluationReport) -> None:
    lines = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [(int(line["row"]), line["label"], line["predicted"], line["right"] == "1") for line in lines] == [
        (r.number, r.truth, r.predicted, r.is_right) for r in report.results
    ]
    assert float(lines[3]["p(yes)"]) == (report.results[3].probabilities or ())[0]


def test_everything_is_json(report: EvaluationReport) -> None:
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["metrics"]["n_right"] == report.n_right
    assert len(content["results"]) == len(report.results)


# --- runs


def counted(llm: TransparentLlm, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts the model reads in every call."""
    calls: list[int] = []
    original = llm.score

    def watched(asks: Any, *rest: Any) -> Any:
        calls.append(len(asks))
        return original(asks, *rest)

    monkeypatch.setattr(llm, "score", watched)
    return calls


def test_a_cancelled_run_goes_on_where_it_was(base: TransparentLlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, calls, stages = read_data(DATA_DIR / "mixed.jsonl", limit=150), counted(base, monkeypatch), []

    def stop(stage: str, fraction: float) -> None:
        stages.append(stage)
        if fraction > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        evaluate(base, data, CHAT, BY_LABELS, folder=tmp_path, progress=stop)
    assert stages[0] == "Row 0 of 150"
    assert re.fullmatch(r"Row 64 of 150, about \d+ (s|min) left", stages[1])
    assert sum(calls) >= 128
    n_before = sum(calls)
    (file,) = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 1 + 128
    resumed = evaluate(base, data, CHAT, BY_LABELS, folder=tmp_path)
    n_all = sum(calls)
    again = evaluate(base, data, CHAT, BY_LABELS, folder=tmp_path)
    assert sum(calls) == n_all
    numbers = [json.loads(line)["number"] for line in file.read_text().splitlines()[1:]]
    assert sorted(numbers) == list(range(1, 151))
    whole = evaluate(base, data, CHAT, BY_LABELS)
    assert n_all == sum(calls) - n_all, "what was computed in two runs is what one run computes"
    assert n_before < n_all
    assert [r.predicted for r in resumed.results] == [r.predicted for r in whole.results]
    assert resumed == again


def test_another_question_is_another_run(base: TransparentLlm, tuned: TransparentLlm, tmp_path: Path) -> None:
    data = read_data(DATA_DIR / "clean.jsonl", limit=3)
    evaluate(base, data, CHAT, BY_LABELS, folder=tmp_path)
    evaluate(tuned, data, CHAT, BY_LABELS, folder=tmp_path)
    evaluate(base, data, Template("{question} ", chat=True), BY_LABELS, folder=tmp_path)
    evaluate(base, data, CHAT, Scoring("labels", parse_labels("no,yes")), folder=tmp_path)
    evaluate(base, read_data(DATA_DIR / "clean.jsonl", limit=4), CHAT, BY_LABELS, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    evaluate(llm_tt.load_model("demo"), data, CHAT, BY_LABELS, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_line_that_a_crash_cut_short_is_computed_again(base: TransparentLlm, tmp_path: Path) -> None:
    data = read_data(DATA_DIR / "clean.jsonl", limit=5)
    whole = evaluate(base, data, CHAT, BY_LABELS, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    assert evaluate(base, data, CHAT, BY_LABELS, folder=tmp_path).metrics == whole.metrics
    assert len(file.read_text().splitlines()) == 6
    assert sorted(file.read_bytes().split(b"\n")[1:]) != []
    file.write_bytes(content[:9])
    assert evaluate(base, data, CHAT, BY_LABELS, folder=tmp_path).metrics == whole.metrics
    file.write_text('{"key": "other"}\n')
    with pytest.raises(RequestError, match=r"holds no results of this evaluation. Remove it, or name another folder."):
        evaluate(base, data, CHAT, BY_LABELS, folder=tmp_path)


@pytest.mark.slow
def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from llm_tt.cli import main; sys.exit(main())", "evaluate", "demo"]
    command += [str(DATA_DIR / "mixed.jsonl"), "--chat", "--template", "{question}", "--labels", "yes,no", "--score", "generate"]
    command += ["--tokens", "2", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            found = list(tmp_path.glob("results-*.jsonl"))
            if found and found[0].read_bytes().count(b"\n") > 20:
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (file,) = tmp_path.glob("results-*.jsonl")
    stored = file.read_bytes().split(b"\n")[:-1]
    assert 20 < len(stored) < 301
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = file.read_bytes().split(b"\n")[:-1]
    assert lines[: len(stored)] == stored
    assert sorted(json.loads(line)["number"] for line in lines[1:]) == list(range(1, 301))
    assert re.search(r"^  right +300$", done.stdout, re.MULTILINE)


def test_a_folder_that_cannot_be_written_is_named(base: TransparentLlm, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot be written: .* Name another folder for the results."):
        evaluate(base, read_data(DATA_DIR / "clean.jsonl", limit=2), CHAT, BY_LABELS, folder=tmp_path / "file" / "x")


# --- what is said


def test_rows_left_out_are_in_the_report(base: TransparentLlm, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = json.dumps({"question": "Is this payment risky?", "label": "no"})
    file.write_text("\n".join([good, "{", json.dumps({"question": "a", "label": "perhaps"}), good, json.dumps({"label": "no"})]))
    found = evaluate(base, file, CHAT, BY_LABELS)
    assert [problem.number for problem in found.problems] == [2, 3, 5]
    assert dict(found.figures())["left out"] == "3"
    assert 'Row 3 has the label "perhaps", which is none of yes, no.' in found.to_text()
    assert [result.number for result in found.results] == [1, 4]
    file.write_text(json.dumps({"question": "a", "label": "perhaps"}))
    with pytest.raises(RequestError, match=r'No row of rows.jsonl can be evaluated. Row 1 has the label "perhaps"'):
        evaluate(base, file, CHAT, BY_LABELS)
    with pytest.raises(RequestError, match=r'No row of rows.jsonl has a column "cty". Its columns: question, label.'):
        evaluate(base, file, CHAT, BY_LABELS, slices=["cty"])


def test_labels_that_the_model_does_not_want_to_say_are_noticed(base: TransparentLlm) -> None:
    found = evaluate(base, read_data(DATA_DIR / "clean.jsonl", limit=4), "{question} The opposite of hot is", BY_LABELS)
    assert found.mean_mass is not None
    assert found.mean_mass < 0.5
    assert any("the model mostly wants to say something else. Check template and label words." in note for note in found.notes)


def test_any_response_can_be_scored_without_labels(base: TransparentLlm) -> None:
    rows = [Row(1, {"q": "The capital of France is", "a": " Paris."}), Row(2, {"q": "The capital of Italy is", "a": " Oslo."})]
    found = evaluate(base, DataSet("x", tuple(rows)), "{q}", Scoring("forced", column="a", spellings=("{}",)))
    assert found.metrics is None
    assert found.forced is not None
    assert (found.forced.n_tokens, found.forced.n_right, found.n_right) == (4, 3, 1)
    assert found.forced.accuracy == 0.75
    assert dict(found.figures())["whole responses right"].startswith("0.500 [")


@pytest.mark.parametrize(("seconds", "text"), [(0, "about 1 s"), (59, "about 59 s"), (130, "about 2 min"), (7200, "about 2.0 h")])
def test_remaining_time_as_people_say_it(seconds: float, text: str) -> None:
    assert remaining(seconds) == text


def test_the_key_depends_on_tokens_and_not_on_columns_nobody_uses(base: TransparentLlm) -> None:
    def key(**more: str) -> str:
        data = DataSet("x", (Row(1, {"question": "a", "label": "no", **more}),))
        return evaluation.run_key("f", prepare(base, data, CHAT, BY_LABELS)[0], CHAT, BY_LABELS)

    assert key() == key(city="Lima") != key(question="b")


def test_reports_are_free_of_torch() -> None:
    code = "import sys; import llm_tt.analysis.evaluation_report, llm_tt.analysis.evaluation; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_of_more_labels_each_has_its_numbers_and_lines(base: TransparentLlm) -> None:
    rows = [Row(k, {"q": f"The capital of {country} is", "label": city}) for k, (country, city) in enumerate(CITIES * 2, start=1)]
    found = evaluate(base, DataSet("x", tuple(rows)), "{q}", Scoring("labels", parse_labels("Paris,Rome,Madrid,Oslo")))
    (table,) = [table for table in found.tables() if table.title == "Each label against the rest"]
    assert found.metrics is not None
    assert [row[0] for row in table.rows] == ["Paris", "Rome", "Madrid"], "no row is Oslo"
    assert [row[2:] for row in table.rows] == [
        (str(c.auc), str(c.average_precision), str(c.ece), str(c.brier)) for c in found.metrics.curves
    ]
    assert [line.name for line in found.charts()[0].lines] == ["Paris", "Rome", "Madrid"]
    assert dict(found.figures())["ROC AUC"] == "-"


CITIES = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid")]
