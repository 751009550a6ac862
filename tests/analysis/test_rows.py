"""Data sets from files of every format, what is said of rows that cannot be read, and templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_tt import ChatMessage
from llm_tt.analysis.rows import DataSet, Row, Template, few_shot, read_data, summary
from llm_tt.errors import RequestError

ROWS = [{"text": 'good, "very" good\nindeed', "label": "yes"}, {"text": "b\u2028ad", "label": "no"}]


def written(folder: Path, kind: str) -> Path:
    file = folder / f"data.{kind}"
    frame = pd.DataFrame(ROWS)
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    elif kind == "json":
        file.write_text(json.dumps(ROWS))
    elif kind == "parquet":
        frame.to_parquet(file)
    elif kind == "folder":
        import datasets

        datasets.Dataset.from_list(ROWS).save_to_disk(str(file))
    else:
        frame.to_csv(file, sep="\t" if kind == "tsv" else ",", index=False)
    return file


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "folder"])
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    data = read_data(written(tmp_path, kind))
    assert [dict(row.values) for row in data.rows] == ROWS
    assert [row.number for row in data.rows] == [1, 2]
    assert data.columns == ("text", "label")
    assert data.problems == ()


def test_a_folder_with_one_split_is_read_and_several_are_named(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"test": one}).save_to_disk(str(tmp_path / "one"))
    assert len(read_data(tmp_path / "one").rows) == 2
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(RequestError, match=r"holds several splits: train, test. Name one of these folders inside it"):
        read_data(tmp_path / "two")
    assert len(read_data(tmp_path / "two" / "train").rows) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(RequestError, match="is no folder that `datasets` saved"):
        read_data(tmp_path / "none")


def test_broken_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n\n{"text": \n[1, 2]\n{"text": "b"}\n"x"\n' + "[" * 100_000 + "\n")
    data = read_data(file)
    assert [(row.number, row.values["text"]) for row in data.rows] == [(1, "a"), (5, "b")]
    assert [problem.sentence for problem in data.problems] == [
        "Row 3 is not valid JSON (column 10: Expecting value).",
        "Row 4 is not a JSON object: it begins '[1, 2]'. Expected {\"column\": value, ...}.",
        'Row 6 is not a JSON object: it begins \'"x"\'. Expected {"column": value, ...}.',
        "Row 7 is not read: its JSON is nested too deeply.",
    ]
    assert summary(data.problems * 2).endswith("And 3 more.")
    assert [row.number for row in read_data(file, limit=1).rows] == [1]


def test_a_table_row_with_other_fields_than_the_header_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\na,yes\nb\nc,no,too much\nd,no\n")
    data = read_data(file)
    assert [row.values["text"] for row in data.rows] == ["a", "d"]
    assert [problem.sentence for problem in data.problems] == [
        "Row 2 has 1 fields; the header has 2.",
        "Row 3 has 3 fields; the header has 2.",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty: it has no row that can be read."),
        ("a.jsonl", "{", r"is empty: it has no row that can be read. Row 1 is not valid JSON \(column 2:"),
        ("a.csv", "text,label\n", "is empty: it has no row that can be read."),
        ("a.csv", "text,text\n1,2\n", 'names the column "text" twice. Rename one of them.'),
        ("a.json", "{}", "holds no list. Expected a list of objects, one a row; or save one object a line as .jsonl."),
        ("a.json", "[1", "is not valid JSON: line 1, column 3"),
        ("a.parquet", "no", "is not a Parquet file:"),
        ("a.xlsx", "x", 'ends in ".xlsx". A data set is a .jsonl, .json, .csv, .tsv or .parquet file'),
        ("a.jsonl", b'{"a": "\xff"}', r"is not UTF-8 text \(byte 7\). Save it as UTF-8."),
    ],
)
def test_a_file_that_cannot_be_used_gets_a_sentence(name: str, content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=message):
        read_data(tmp_path / name)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(RequestError, match=r'The data set "no/such.jsonl" does not exist. Check the path.'):
        read_data("no/such.jsonl")


def test_alpaca_and_sharegpt_become_prompt_and_response(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows: list[dict[str, Any]] = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Add.", "input": "", "output": "3", "label": "x"},
        {"conversations": turns},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"conversations": turns[:2]},
    ]
    file.write_text(json.dumps(rows))
    found = read_data(file).rows
    assert [(row.values.get("prompt"), row.values.get("response")) for row in found] == [
        ("Add.\n\n1 2", "3"),
        ("Add.", "3"),
        ("Hi", "Hello"),
        ("Hi", "Hello"),
        (None, None),
    ]
    assert found[1].values["label"] == "x"
    whole = Template("{messages}", chat=True)
    assert whole.render(found[2]) == [ChatMessage("system", "Be brief."), ChatMessage("user", "Hi")]
    assert whole.render(found[3]) == [ChatMessage("user", "Hi")]
    with pytest.raises(RequestError, match='Row 5 has no column "messages"'):
        whole.render(found[4])


def test_templates_fill_columns_and_keep_doubled_braces() -> None:
    row = Row(3, {"text": "a {b}", "n": 2.0, "yes": True})
    assert Template("{{x}} {text} {n} {yes}!").render(row) == "{x} a {b} 2 true!"
    assert Template("{text}", chat=True, system="S").render(row) == [ChatMessage("system", "S"), ChatMessage("user", "a {b}")]
    with pytest.raises(RequestError, match='Row 3 has no column "other"'):
        Template("{other}").render(row)
    assert Template("Review: {text} Mood:").content_free() == "Review: N/A Mood:"


def test_few_shot_examples_go_before_every_prompt() -> None:
    rows = [Row(1, {"text": "good", "label": "yes"}), Row(2, {"text": "bad", "label": "no"})]
    plain = few_shot(Template("Q: {text} A:"), rows, "label", " {}")
    assert plain.render(Row(3, {"text": "fine"})) == "Q: good A: yes\n\nQ: bad A: no\n\nQ: fine A:"
    assert plain.fill(Row(3, {"text": "fine"})) == "Q: fine A:"
    chat = few_shot(Template("{text}?", chat=True, system="S"), rows[:1], "label")
    assert [(m.role, m.content) for m in chat.render(rows[1])] == [  # type: ignore[union-attr]
        ("system", "S"),
        ("user", "good?"),
        ("assistant", "yes"),
        ("user", "bad?"),
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("{text", {}, "is not valid: expected '}' before end of string"),
        ("no column", {}, "names no column, so that every prompt would be the same"),
        ("{text}", {"system": "S"}, "A system prompt is a part of a conversation"),
    ],
)
def test_a_template_that_cannot_be_used_gets_a_sentence(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Template(text, **options)


def test_a_column_that_no_row_has_is_named() -> None:
    data = DataSet("x.csv", (Row(1, {"text": "a", "label": "b"}),))
    with pytest.raises(RequestError, match=r'No row of x.csv has a column "txt". Its columns: text, label.'):
        Template("{txt}").require_columns(data)


def test_a_digest_changes_with_any_value() -> None:
    one, other = (DataSet("x", (Row(1, {"text": text}),)) for text in "ab")
    assert one.digest == DataSet("y", one.rows).digest != other.digest
