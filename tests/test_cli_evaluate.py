"""`llm-tt evaluate`: prints the table, compares, writes what it printed, and says in one sentence what is wrong."""

from __future__ import annotations

import csv
import json
import re
from html import unescape
from pathlib import Path

import pytest

from llm_tt import cli
from llm_tt.analysis.rows import read_data
from llm_tt.demo import DATA_DIR

MIXED = str(DATA_DIR / "mixed.jsonl")
ASK = ["--chat", "--template", "{question}", "--labels", "yes,no"]


def test_compares_two_models_and_writes_what_it_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    arguments = ["evaluate", "demo", MIXED, *ASK, "--compare", "demo-tuned", "--slice", "group", "--word", "Lima", "--out", str(out)]
    assert cli.main(arguments) == 0
    shown, said = capsys.readouterr()
    assert "demo against demo-tuned on mixed.jsonl" in shown
    assert re.search(r"^  accuracy +1\.000 \[0\.987, 1\.000\] +0\.\d{3} \[", shown, re.MULTILINE)
    assert re.search(r"^  lima +78 +0\.5\d\d \[.*\] +1\.000 \[", shown, re.MULTILINE)
    page = (out / "demo-against-demo-tuned.html").read_text(encoding="utf-8")
    assert f"wrote {out / 'demo-against-demo-tuned.html'}" in said
    printed = set(re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)(?: \[\d\.\d{3}, \d\.\d{3}\])?", shown))
    cells = {unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)}
    assert printed <= cells
    assert len(list(out.glob("results-*.jsonl"))) == 2
    with (out / "demo-tuned.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    n_right = sum(row["right"] == "1" for row in rows)
    assert len(rows) == 300
    assert re.search(rf"^  right +300 +{n_right}$", shown, re.MULTILINE)


def test_explains_the_most_frequent_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["evaluate", "demo-tuned", MIXED, *ASK, "--limit", "60", "--explain", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    head = shown[shown.index("demo-tuned: ") :].splitlines()
    assert re.fullmatch(r"demo-tuned: \d+ rows of no predicted as yes, against \d+ that are right", head[0])
    assert head[2].split()[0] == "lima"
    assert re.search(r"^demo-tuned: Effects on the lead of the prediction\n  part .*\n  L3 H0 ", shown, re.MULTILINE)
    page = (tmp_path / "demo-tuned.html").read_text(encoding="utf-8")
    assert all(f"<td>{cell}</td>" in page for cell in head[2].split())
    assert cli.main(["evaluate", "demo", MIXED, *ASK, "--limit", "5", "--explain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["explained"] == []


def test_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "demo", MIXED, *ASK, "--limit", "9", "--score", "forced", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["figures"]["rows"] == "9"
    assert content["scoring"]["kind"] == "forced"
    assert [result["predicted"] for result in content["results"]] == [result["truth"] for result in content["results"]]


def test_generates_and_reads_the_label_by_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "evaluate",
        "demo",
        MIXED,
        *ASK,
        "--limit",
        "5",
        "--score",
        "generate",
        "--tokens",
        "2",
        "--pattern",
        r"^ (\w+)$",
        "--json",
    ]
    assert cli.main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert [result["text"] for result in content["results"]] == [f" {result['truth']}" for result in content["results"]]


def test_an_adapter_on_the_command_line_is_that_of_the_first_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from llm_tt.demo import ADAPTER_DIR

    conflict = str(DATA_DIR / "conflict.jsonl")
    arguments = ["evaluate", "demo", conflict, *ASK, "--limit", "20", "--adapter", str(ADAPTER_DIR), "--compare", "demo", "--json"]
    assert cli.main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert [report["figures"]["right"] for report in content["reports"]] == ["0", "20"]
    assert content["names"] == ["demo (1)", "demo (2)"]
    assert cli.main([*arguments, "--out", str(tmp_path), "--strategies", "zero-shot"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["demo (1)", "demo (2)"]
    right = []
    for name in ("demo-1", "demo-2"):
        with (tmp_path / f"{name}.csv").open(encoding="utf-8-sig", newline="") as file:
            right.append(sum(row["right"] == "1" for row in csv.DictReader(file)))
    assert right == [0, 20], "neither file is overwritten by the other"


def test_compares_strategies_of_two_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ways = "zero-shot,few-shot,step-by-step,structured"
    arguments = ["evaluate", "demo", MIXED, *ASK, "--compare", "demo-tuned", "--limit", "40", "--strategies", ways, "--shots", "1"]
    arguments += ["--reason-tokens", "4", "--tokens", "6", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    shown, said = capsys.readouterr()
    assert shown.startswith("8 ways to ask on mixed.jsonl, the 38 rows that all answered\n  metric ")
    assert re.search(r"^  demo: zero-shot +demo-tuned: zero-shot +\d+ ", shown, re.MULTILINE)
    assert "Row " in shown
    assert shown.count("is one of the examples in the prompt. It is left out.") == 4
    assert "demo: structured: 40 of 40 answers name no label; they count as errors." in shown
    assert f"wrote {tmp_path / 'strategies.html'}" in said
    page = (tmp_path / "strategies.html").read_text(encoding="utf-8")
    printed = set(re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)(?: \[\d\.\d{3}, \d\.\d{3}\])?", shown))
    cells = {unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)}
    assert printed <= cells
    assert "<svg" in page
    with (tmp_path / "strategies.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    right = [sum(row[f"{model}: {way}: right"] == "1" for row in rows) for model in ("demo", "demo-tuned") for way in ways.split(",")]
    assert re.search(r"^  right +" + " +".join(map(str, right)) + "$", shown, re.MULTILINE)
    names = {file.name for file in tmp_path.glob("*.csv")}
    assert {"demo-zero-shot.csv", "demo-tuned-few-shot.csv", "demo-tuned-few-shot-curves.csv"} <= names
    assert "demo-structured-curves.csv" not in names, "generated answers have no curves"
    assert len(list(tmp_path.glob("results-*.jsonl"))) == 8


def test_one_strategy_with_examples_of_another_file(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--strategy", "few-shot", "--shot-rows", "2,1", "--train", str(DATA_DIR / "train.jsonl"), "--limit", "6", "--json"]
    assert cli.main(["evaluate", "demo", MIXED, *ASK, *few]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["figures"]["rows"] == "6"
    assert content["template"] == "{question}"
    assert content["figures"]["right"] == "6"
    train = {row.number: row for row in read_data(DATA_DIR / "train.jsonl").rows}
    assert content["examples"] == [[train[number].text("question"), train[number].text("label")] for number in (2, 1)]
    reason = ["--strategies", "step-by-step", "--reason-tokens", "3", "--reason-ask", " So", "--reason-instruction", "Think."]
    assert cli.main(["evaluate", "demo", MIXED, *ASK, *reason, "--limit", "2", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["template"] == "{question}\nThink."
    assert content["scoring"]["reasoning"] == {"n_tokens": 3, "ask": " So"}
    assert cli.main(["evaluate", "demo", MIXED, *ASK, *reason[:2], "--reason-parse", "--reason-tokens", "9", "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scoring"]["kind"] == "generate"


def test_a_schema_from_a_file_is_that_of_the_structured_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"properties": {"risk": {"enum": ["yes", "no"]}}}')
    asked = ["--json-field", "risk", "--schema", str(file), "--limit", "2", "--json", "--tokens", "2"]
    assert cli.main(["evaluate", "demo", MIXED, *ASK, "--strategies", "structured", *asked]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["scoring"]["json_field"], content["scoring"]["schema"]) == ("risk", file.read_text())
    assert file.read_text() in content["template"].replace("{{", "{").replace("}}", "}")
    assert content["figures"]["no label found"] == "2"
    assert cli.main(["evaluate", "demo", MIXED, *ASK, "--score", "generate", *asked]) == 0
    assert json.loads(capsys.readouterr().out)["scoring"]["schema"] == file.read_text()


def test_curves_are_written_beside_the_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["evaluate", "demo-tuned", MIXED, *ASK, "--limit", "50", "--out", str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    with (tmp_path / "demo-tuned-curves.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    (curves,) = content["metrics"]["curves"]
    assert [(float(r["x"]), float(r["y"])) for r in rows if r["curve"] == "roc"] == [(p["x"], p["y"]) for p in curves["roc"]]
    page = (tmp_path / "demo-tuned.html").read_text(encoding="utf-8")
    assert page.count("<svg ") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([MIXED, *ASK, "--strategies", "few-shot"], "Few-shot needs examples: so many of each label (--shots 2), or the rows"),
        ([MIXED, *ASK, "--strategies", "few-shot", "--shots", "1", "--shot-rows", "2"], "Few-shot needs examples: so many of each label"),
        (
            [MIXED, *ASK, "--strategies", "few-shot", "--shot-rows", "2,x"],
            '"x" in --shot-rows is no number of a row. Write numbers as 3,17.',
        ),
        ([MIXED, *ASK, "--strategies", "few-shot", "--shot-rows", "999"], "mixed.jsonl has no row 999 that can be read."),
        ([MIXED, *ASK, "--shots", "2"], "--shots is for the strategy few-shot. Add --strategies few-shot, or leave it out."),
        ([MIXED, *ASK, "--reason-parse"], "--reason-parse is for the strategy step-by-step. Add --strategies step-by-step"),
        (
            [MIXED, *ASK, "--strategies", "one-shot"],
            'There is no strategy "one-shot". There are zero-shot, few-shot, step-by-step, structured.',
        ),
        (
            [MIXED, *ASK, "--strategies", "structured", "--schema", "no/such.json"],
            'The JSON schema "no/such.json" cannot be read: No such file',
        ),
        ([MIXED, *ASK, "--strategies", "zero-shot", "--explain"], "Errors are explained of one way to ask. Leave out --strategies, or"),
        (
            [MIXED, *ASK, "--strategies", "step-by-step", "--reason-tokens", "120"],
            "step-by-step: no row of mixed.jsonl can be evaluated. Row 1",
        ),
        (["no/such.csv", *ASK], 'The data set "no/such.csv" does not exist. Check the path.'),
        ([MIXED, "--template", "{question}"], "0 labels are given. Give two or more, as yes,no."),
        ([MIXED, "--template", "{text}", "--labels", "yes,no"], 'No row of mixed.jsonl has a column "text". Its columns: question, label,'),
        ([MIXED, *ASK, "--label-column", "lable"], 'No row of mixed.jsonl has a column "lable".'),
        ([MIXED, "--template", "{question}", "--system", "S", "--labels", "yes,no"], "A system prompt is a part of a conversation."),
        (
            [MIXED, *ASK, "--explain", "--score", "forced"],
            "Errors are explained of an evaluation by labels. Leave out --score, or --explain.",
        ),
        ([MIXED, *ASK, "--json-field", "x"], "A pattern or JSON field reads what a model generates."),
        ([MIXED, "--chat", "--template", "{question}", "--labels", "1,2"], 'No row of mixed.jsonl can be evaluated. Row 1 has the label "'),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "demo", *arguments]) == 1
    shown, said = capsys.readouterr()
    assert shown == ""
    assert said.startswith(f"llm-tt: {message}")


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["evaluate", "no-such-model", MIXED, *ASK, "--out", str(tmp_path / "file" / "x")]) == 1
    assert "cannot be made" in capsys.readouterr().err
