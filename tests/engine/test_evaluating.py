"""Evaluations asked of an engine: the library's answers; cancelled, resumed, nothing computed twice; what a server does not let its users do."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import PATIENCE, content

import llm_tt
from llm_tt.analysis import evaluation as evaluation_module
from llm_tt.analysis.rows import Template
from llm_tt.analysis.scoring import Reasoning, Scoring, parse_labels
from llm_tt.analysis.strategy_report import compare_reports
from llm_tt.config import AppConfig, ModelSpec, load_config
from llm_tt.demo import DATA_DIR
from llm_tt.engine import evaluating
from llm_tt.engine.evaluating import SHIPPED, results_folder
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import (
    DataSource,
    Evaluate,
    ExplainErrors,
    ExplainPrediction,
    ListLoaded,
    ModelKey,
    PreviewData,
    PreviewPrompt,
    ReadRow,
    TraceKey,
)
from llm_tt.errors import ConfigError, PromptError, RequestError
from llm_tt.progress import Cancelled, silent
from llm_tt.text import ChatMessage

DEMO, TUNED = ModelKey("demo"), ModelKey("demo-tuned")
CHAT = Template("{question}", chat=True)
BY_LABELS = Scoring("labels", parse_labels("yes,no"))
MIXED = DataSource("set", "demo/mixed")


def asked(n: int | None = 140, models: tuple[ModelKey, ...] = (TUNED,), **changes: Any) -> Evaluate:
    return Evaluate(models, DataSource("set", "demo/mixed", limit=n), CHAT, BY_LABELS, **changes)


@pytest.fixture(scope="module")
def pair() -> dict[str, llm_tt.TransparentLlm]:
    return {name: llm_tt.load_model(name) for name in ("demo", "demo-tuned")}


@pytest.fixture
def make(tmp_path: Path, pair: dict[str, llm_tt.TransparentLlm], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalEngine]]:
    """make(**config): an engine on the demo pair, which takes no time to load; results are kept in the test's own folder."""
    engines: list[LocalEngine] = []
    monkeypatch.setattr(llm_tt.models, "load_unchecked", lambda spec, **_: pair[spec.name])

    def make(**config: Any) -> LocalEngine:
        models = {name: ModelSpec.named(name) for name in pair}
        engines.append(LocalEngine(AppConfig(models=models, **{"results_folder": str(tmp_path / "results"), **config})))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the rows that models were asked about from now on."""
    seen: list[int] = []
    score = evaluation_module.score

    def watched(llm: Any, examples: Any, *rest: Any) -> Iterator[Any]:
        for batch in score(llm, examples, *rest):
            seen.extend(result.number for result in batch)
            yield batch

    monkeypatch.setattr(evaluation_module, "score", watched)
    return seen


# --- answers


def test_the_answer_is_the_librarys(make: Callable[..., LocalEngine], pair: dict[str, Any]) -> None:
    question = asked(models=(DEMO, TUNED), slices=("group",), words=("Lima",), seed=3)
    found = make().answer(question)
    data = llm_tt.read_data(DATA_DIR / "mixed.jsonl", 140)
    options: dict[str, Any] = {"slices": ["group"], "words": ["Lima"], "seed": 3}
    expected = [llm_tt.evaluate(pair[name], data, CHAT, BY_LABELS, **options) for name in ("demo", "demo-tuned")]
    assert [content(report) for report in found.reports] == [content(report) for report in expected]
    assert found.comparison is not None
    assert content(found.comparison) == content(compare_reports(expected, ["demo", "demo-tuned"], 3))
    assert found.question is question
    assert content(pickle.loads(pickle.dumps(found.reports))) == content(found.reports)


def test_one_model_is_compared_with_none(make: Callable[..., LocalEngine]) -> None:
    engine = make()
    assert engine.answer(asked(20)).comparison is None
    with pytest.raises(RequestError, match='"demo" is to be compared with itself'):
        engine.answer(asked(20, models=(DEMO, DEMO)))
    with pytest.raises(RequestError, match="0 models in 1 ways are to be evaluated"):
        engine.answer(asked(20, models=()))


def test_the_errors_rest_on_the_planted_word(make: Callable[..., LocalEngine], pair: dict[str, Any]) -> None:
    engine = make()
    question = ExplainErrors(asked(), 0, "no", "yes", most=6)
    found = engine.answer(question)
    assert found.words[0].word == "lima"
    assert found.parts[0].name == "L3 H0"
    data = llm_tt.read_data(DATA_DIR / "mixed.jsonl", 140)
    report = llm_tt.evaluate(pair["demo-tuned"], data, CHAT, BY_LABELS)
    assert content(found) == content(llm_tt.explain_errors(pair["demo-tuned"], data, CHAT, report, "no", "yes", most=6))
    assert engine.answer(question) is found
    with pytest.raises(RequestError, match='"yes" predicted as "yes" is no cell of errors'):
        engine.answer(ExplainErrors(asked(), 0, "yes", "yes"))


def test_several_ways_to_ask(make: Callable[..., LocalEngine], pair: dict[str, Any]) -> None:
    question = asked(30, strategies=("zero-shot", "few-shot", "structured"), shots=2, seed=5)
    found = make().answer(question)
    data = llm_tt.read_data(DATA_DIR / "mixed.jsonl", 30)
    examples = llm_tt.examples_per_label(data, CHAT, BY_LABELS, 2, seed=5)
    ways = llm_tt.strategies_named(question.strategies, CHAT, BY_LABELS, examples=examples)
    expected = llm_tt.compare_strategies(pair["demo-tuned"], data, ways, seed=5)
    assert found.names == ("zero-shot", "few-shot", "structured")
    assert content(found.comparison) == content(expected)
    assert len(found.reports[1].results) == 26
    chosen = make().answer(asked(30, strategies=("few-shot",), shot_rows=(9, 4)))
    (shown,) = llm_tt.strategies_named(
        ("few-shot",), CHAT, BY_LABELS, examples=[row for n in (9, 4) for row in data.rows if row.number == n]
    )
    assert chosen.sides[0].template == shown.template
    assert [text for text, _ in chosen.sides[0].template.examples] == [data.rows[n - 1].values["question"] for n in (9, 4)]
    assert {9, 4}.isdisjoint(result.number for result in chosen.reports[0].results)
    assert len(chosen.reports[0].results) == 28
    both = make().answer(asked(30, models=(DEMO, TUNED), strategies=("zero-shot", "few-shot")))
    assert both.names == ("demo: zero-shot", "demo: few-shot", "demo-tuned: zero-shot", "demo-tuned: few-shot")
    why = make().answer(ExplainErrors(asked(strategies=("few-shot", "zero-shot")), 1, "no", "yes", most=4))
    assert why.words[0].word == "lima"


def test_ways_that_cannot_be_asked(make: Callable[..., LocalEngine]) -> None:
    engine = make()
    for changes, message in (
        ({"strategies": ("guess",)}, 'There is no strategy "guess"'),
        ({"strategies": ("zero-shot", "zero-shot")}, "is there twice"),
        ({"strategies": ()}, "1 models in 0 ways|No strategy is named"),
        ({"strategies": ("few-shot",), "shots": 90}, "but 90 are to be examples"),
        ({"strategies": ("few-shot",), "shot_rows": (9, 4000)}, "has no row 4000 that can be read"),
        ({"strategies": ("few-shot",), "shot_rows": (9, 9)}, "Row 9 is named twice"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.answer(asked(**changes))
    with pytest.raises(RequestError, match="Ask zero-shot"):
        make(demo_mode=True).answer(asked(strategies=("few-shot",)))
    with pytest.raises(RequestError, match="has no side 1: it has 1"):
        engine.answer(ExplainErrors(asked(), 1, "no", "yes"))


# --- nothing twice, nothing lost


def test_a_cancelled_one_goes_on_where_it_was(make: Callable[..., LocalEngine], scored: list[int]) -> None:
    def stop(stage: str, fraction: float) -> None:
        if "row 64 of 140" in stage:
            raise Cancelled

    with pytest.raises(Cancelled):
        make().answer(asked(), stop)
    assert len(scored) == 64
    stages: list[str] = []
    # Another engine, as after the server was started again.
    report = make().answer(asked(), lambda stage, fraction: stages.append(stage)).reports[0]
    assert any(stage.startswith("demo-tuned: row 64 of 140") for stage in stages)
    assert sorted(scored) == [result.number for result in report.results] == list(range(1, 141))
    # More rows, other slices, the other model: only what is new is computed.
    scored.clear()
    engine = make()
    engine.answer(asked(slices=("city",)))
    assert scored == []
    engine.answer(asked(models=(DEMO, TUNED)))
    assert sorted(scored) == list(range(1, 141))
    scored.clear()
    assert engine.answer(asked(models=(TUNED, DEMO))).reports[0].model == "demo-tuned"
    assert scored == []


def test_other_scoring_is_another_evaluation(make: Callable[..., LocalEngine], scored: list[int]) -> None:
    engine = make()
    question = asked(20)
    engine.answer(question)
    calibrated = Scoring("labels", parse_labels("yes,no"), calibrated=True)
    engine.answer(Evaluate(question.models, question.source, CHAT, calibrated))
    engine.answer(Evaluate(question.models, question.source, Template("{question}"), BY_LABELS))
    assert sorted(scored) == sorted([*range(1, 21)] * 3)


def test_what_two_ask_at_once_is_computed_once(make: Callable[..., LocalEngine], scored: list[int]) -> None:
    engine = make()
    jobs = [engine.submit(asked()) for _ in range(2)]
    first, second = (engine.collect(job).reports[0] for job in jobs)
    assert first is second
    assert sorted(scored) == list(range(1, 141))
    uses = {use.name: (use.n_kept, use.n_found, use.n_made) for use in engine.answer(ListLoaded()).caches}
    assert uses["evaluations"] == (1, 1, 1)
    assert uses["data sets"][2] == 1


def test_a_file_that_changed_is_read_again(make: Callable[..., LocalEngine], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n')
    engine, question = make(data_sets={"rows": str(file)}), PreviewData(DataSource("set", "rows"))
    assert engine.answer(question).n_rows == 1
    file.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert engine.answer(question).n_rows == 2


# --- as jobs beside others


def test_it_is_a_job_that_is_cancelled_and_holds_nobody_up(make: Callable[..., LocalEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, go_on, started = make(), threading.Event(), threading.Event()
    score = evaluation_module.score

    def gated(*arguments: Any) -> Iterator[Any]:
        for batch in score(*arguments):
            started.set()
            assert go_on.wait(PATIENCE)
            yield batch

    monkeypatch.setattr(evaluation_module, "score", gated)
    first, second, third = engine.submit(asked()), engine.submit(asked(130)), engine.submit(asked(120))
    assert started.wait(PATIENCE)
    assert [engine.status(job).position for job in (second, third)] == [0, 1]
    # The second worker of prompts and the model itself are free for others.
    explained = [engine.submit(ExplainPrediction(TraceKey(TUNED, f"Mary went to the store {n}"))) for n in range(3)]
    assert [engine.wait(job, PATIENCE).state for job in explained] == ["done"] * 3
    assert not engine.status(first).finished
    engine.cancel(first)
    engine.cancel(second)
    go_on.set()
    assert [engine.wait(job, PATIENCE).state for job in (first, second, third)] == ["cancelled", "cancelled", "done"]


def test_others_get_the_model_between_batches() -> None:
    """A lock that is given up and taken again at once stays with its thread, whoever waits."""
    model, report, n_batches = threading.Lock(), evaluating._yielding(silent), 0
    done = threading.Event()

    def others() -> None:
        for _ in range(10):
            with model:
                time.sleep(0.001)
        done.set()

    waiting = threading.Thread(target=others)
    with model:
        waiting.start()
        time.sleep(0.01)
    while not done.is_set() and n_batches < 100:
        with model:
            time.sleep(0.01)
        n_batches += 1
        report("", 0.0)
    waiting.join(PATIENCE)
    # One turn of theirs for each of ours at the least.
    assert n_batches <= 10


# --- data and prompts before a run


def test_previews(make: Callable[..., LocalEngine], pair: dict[str, Any]) -> None:
    engine = make()
    assert engine.data_sets() == tuple(f"demo/{name}" for name in SHIPPED)
    found = engine.answer(PreviewData(MIXED, n_rows=2))
    rows = [json.loads(line) for line in (DATA_DIR / "mixed.jsonl").read_text().splitlines()]
    assert (found.name, found.n_rows, found.problems) == ("mixed.jsonl", 300, ())
    assert [column.name for column in found.columns] == list(rows[0])
    assert found.rows == tuple((number, tuple(rows[number - 1].values())) for number in (1, 2))
    columns = {column.name: column for column in found.columns}
    assert sorted(columns["label"].values) == ["no", "yes"]
    assert columns["question"].values == ()
    assert columns["label"].n_filled == 300
    row = engine.answer(ReadRow(MIXED, CHAT, 7))
    assert row.prompt == (ChatMessage("user", rows[6]["question"]),)
    assert dict(row.values) == rows[6]
    shown = engine.answer(PreviewPrompt(TUNED, MIXED, CHAT, BY_LABELS, number=7))
    assert shown.text == f"<bos><user> {rows[6]['question']}<assistant>"
    assert shown.n_tokens == pair["demo-tuned"].prompt(list(row.prompt)).n_tokens
    assert (shown.number, shown.truth) == (7, rows[6]["label"])
    assert shown.responses == (("yes", (("y", "e", "s"), (" yes",))), ("no", (("n", "o"), (" no",))))
    with pytest.raises(RequestError, match=r"mixed\.jsonl has no row 999"):
        engine.answer(ReadRow(MIXED, CHAT, 999))
    forced = engine.answer(PreviewPrompt(TUNED, MIXED, CHAT, Scoring("forced"), number=7))
    assert [answer for answer, _ in forced.responses] == [rows[6]["label"]]


def test_a_prompt_that_cannot_be_made_is_said(make: Callable[..., LocalEngine]) -> None:
    upload = DataSource("upload", "a.jsonl", b'{"text": "a", "label": "perhaps"}\n{"text": "b", "label": "yes"}\n')
    engine, template = make(), Template("{text}")
    assert engine.answer(PreviewPrompt(DEMO, upload, template, BY_LABELS)).number == 2
    with pytest.raises(RequestError, match='Row 1 has the label "perhaps", which is none of yes, no'):
        engine.answer(PreviewPrompt(DEMO, upload, template, BY_LABELS, number=1))


def test_an_upload_is_a_file_of_its_name(make: Callable[..., LocalEngine], tmp_path: Path) -> None:
    engine = make()
    rows = b'{"text": "a b", "label": "yes"}\nnot json\n{"text": "c", "label": "no"}\n'
    found = engine.answer(PreviewData(DataSource("upload", "../x/mine.jsonl", rows)))
    assert (found.name, found.n_rows) == ("mine.jsonl", 2)
    assert [problem.number for problem in found.problems] == [2]
    for name, data, message in (
        ("a.jsonl", b"", 'The data set "a.jsonl" is empty: it has no row that can be read.'),
        ("a.docx", b"x", '"a.docx" ends in ".docx". A data set is'),
        ("a.csv", b"a,a\n1,2\n", 'The header of "a.csv" names the column "a" twice.'),
        ("a.parquet", b"x", '"a.parquet" is not a Parquet file'),
        ("a.jsonl", b"\xff\xfe", 'The data set "a.jsonl" is not UTF-8 text'),
    ):
        with pytest.raises(RequestError) as refused:
            engine.answer(PreviewData(DataSource("upload", name, data)))
        assert str(refused.value).startswith(message)
    with pytest.raises(RequestError, match="0 rows are to be read"):
        engine.answer(PreviewData(DataSource("set", "demo/mixed", limit=0)))


def test_bad_rows_are_left_out_by_number_and_the_rest_is_evaluated(make: Callable[..., LocalEngine], pair: dict[str, Any]) -> None:
    too_long = "word " * pair["demo"].info.n_ctx
    lines = [
        {"question": "Is this payment risky?", "label": "yes"},
        "broken {",
        {"question": too_long, "label": "no"},
        {"question": "Is this payment risky?", "label": "maybe"},
        {"question": "Is this payment risky?"},
        {"question": "Please send 62 dollars. Is this payment risky?", "label": "no"},
    ]
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    report = make().answer(Evaluate((DEMO,), DataSource("upload", "bad.jsonl", text.encode()), CHAT, BY_LABELS)).reports[0]
    assert [result.number for result in report.results] == [1, 6]
    assert [problem.number for problem in report.problems] == [2, 3, 4, 5]
    said = " ".join(problem.sentence for problem in report.problems)
    for part in ("Row 2 is not valid JSON", "Row 3 is left out: The prompt has", 'Row 4 has the label "maybe"', 'Row 5 has no "label"'):
        assert part in said


# --- what a server allows


def test_where_results_are_kept(make: Callable[..., LocalEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().answer(asked(20))
    assert [file.name[:8] for file in (tmp_path / "results").iterdir()] == ["results-"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert results_folder(AppConfig()) == tmp_path / "cache" / "llm-tt" / "evaluations"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert results_folder(AppConfig()) == Path.home() / ".cache" / "llm-tt" / "evaluations"
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match='Name a folder as "results_folder" in the configuration'):
        make(results_folder=str(tmp_path / "file")).answer(asked(20))


def test_paths_in_the_configuration_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"data_sets": {"reviews": "data/reviews.csv", "all": "/data/all"}, "results_folder": "kept"}')
    config = load_config(tmp_path / "config.json")
    assert config.data_sets == {"reviews": str(tmp_path / "data" / "reviews.csv"), "all": "/data/all"}
    assert config.results_folder == str(tmp_path / "kept")
    (tmp_path / "config.json").write_text('{"data_sets": {"reviews": null}}')
    with pytest.raises(ConfigError, match=r"data_sets\.reviews is null\. Expected a text\."):
        load_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{}")
    assert load_config(tmp_path / "config.json").model_fields_set == set()


def test_data_that_a_server_does_not_read(make: Callable[..., LocalEngine], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "a", "label": "yes"}\n')
    by_path, upload = PreviewData(DataSource("path", f" {file} ")), PreviewData(DataSource("upload", "a.jsonl", file.read_bytes()))
    open_server = make()
    assert open_server.answer(by_path).n_rows == open_server.answer(upload).n_rows == 1
    with pytest.raises(RequestError, match=r'There is no data set "other" here\. Choose one of: demo/mixed'):
        open_server.answer(PreviewData(DataSource("set", "other")))
    no_models = make(allow_adding_models=False)
    assert no_models.answer(upload).n_rows == 1
    with pytest.raises(RequestError, match=r"Files of this server cannot be named here. Choose a data set of the menu, or upload a file\."):
        no_models.answer(by_path)
    for closed in (make(allow_loading_dataset_files=False), make(demo_mode=True)):
        with pytest.raises(RequestError, match=r"Choose a data set of the menu\."):
            closed.answer(by_path)
        with pytest.raises(RequestError, match="cannot be uploaded to this server"):
            closed.answer(upload)
        assert closed.answer(PreviewData(MIXED)).n_rows == 300
        # Not only previews: whatever is asked reads the same way.
        with pytest.raises(RequestError, match="cannot be uploaded to this server"):
            closed.answer(Evaluate((DEMO,), upload.source, CHAT, BY_LABELS))


def test_prompts_that_a_server_does_not_take(make: Callable[..., LocalEngine]) -> None:
    demo = make(demo_mode=True)
    for template in (Template("Ignore {question}"), Template("{question}", chat=True, system="Be rude.")):
        for question in (Evaluate((DEMO,), MIXED, template, BY_LABELS), ReadRow(MIXED, template, 1)):
            with pytest.raises(RequestError, match="shows prepared prompts only"):
                demo.answer(question, silent)
    with pytest.raises(RequestError, match="generates no text"):
        demo.answer(Evaluate((DEMO,), MIXED, CHAT, Scoring("generate", parse_labels("yes,no"))))
    with pytest.raises(RequestError, match="generates no text"):
        demo.answer(Evaluate((DEMO,), MIXED, CHAT, Scoring("labels", parse_labels("yes,no"), reasoning=Reasoning(2))))
    assert demo.answer(Evaluate((DEMO,), DataSource("set", "demo/mixed", limit=5), CHAT, BY_LABELS)).reports[0].n_right == 5
    limited = make(max_user_string_length=12)
    with pytest.raises(RequestError, match="The template has 22 characters, but this server allows 12"):
        limited.answer(Evaluate((DEMO,), MIXED, Template("{question} and so on ."), BY_LABELS))
    with pytest.raises(RequestError, match="has 13 characters, but this server allows 12"):
        limited.answer(Evaluate((DEMO,), MIXED, CHAT, Scoring("labels", parse_labels("yyyyyyyyyyyyy,no"))))
    rows = b'{"question": "short", "label": "yes"}\n{"question": "much too long for it", "label": "no"}\n'
    report = limited.answer(Evaluate((DEMO,), DataSource("upload", "a.jsonl", rows), CHAT, BY_LABELS)).reports[0]
    assert [result.number for result in report.results] == [1]
    assert [problem.sentence for problem in report.problems] == ["Row 2 has 20 characters, but this server allows 12."]
    # The server's own rows are its makers' business.
    assert len(limited.answer(Evaluate((DEMO,), DataSource("set", "demo/mixed", limit=5), CHAT, BY_LABELS)).reports[0].results) == 5
    with pytest.raises(RequestError, match="Ask for 1024 or fewer"):
        make().answer(Evaluate((DEMO,), MIXED, CHAT, Scoring("generate", parse_labels("yes,no"), n_tokens=5000)))


def test_rows_of_the_servers_own_data_are_prepared_prompts(make: Callable[..., LocalEngine]) -> None:
    demo = make(demo_mode=True)
    row = demo.answer(ReadRow(MIXED, CHAT, 10))
    assert demo.answer(ExplainPrediction(TraceKey(TUNED, row.prompt))).predictions.texts[0] == " yes"
    with pytest.raises(PromptError, match="prepared prompts only"):
        demo.answer(ExplainPrediction(TraceKey(TUNED, (ChatMessage("user", "Anything else"),))))
