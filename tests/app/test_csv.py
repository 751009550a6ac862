"""What the CSV files of pictures and tables say, against the numbers they are made of; and what files are called."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

import numpy as np
import pytest

import llm_tt
from app.panels import files as save
from app.panels import graph_table, heads, heads_map
from llm_tt.config import AppConfig
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import ExplainPrediction, Explanation, InspectHead, ModelKey, TraceKey
from llm_tt.export import files
from llm_tt.lens.vocabulary import promoted_and_suppressed, top_tokens
from llm_tt.text import ChatMessage

PROMPT = "When Mary and John went to the store, John gave a drink to"
KEY = TraceKey(ModelKey("demo"), PROMPT)


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


@pytest.fixture(scope="module")
def engine() -> Any:
    engine = LocalEngine(AppConfig())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def explanation(engine: LocalEngine) -> Explanation:
    return engine.answer(ExplainPrediction(KEY))


def read(written: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(written, newline="")))


@pytest.mark.parametrize("head", [1, None])
def test_maps_of_a_head_have_every_pair_but_the_future(engine: LocalEngine, trace: llm_tt.Trace, head: int | None) -> None:
    rows = read(heads.map_csv(engine.answer(InspectHead(KEY, 2, head, -1)), trace.token_texts))
    n = trace.n_tokens
    assert len(rows) == n * (n + 1) // 2
    attention, contribution = llm_tt.attention_map(trace, 2, head), llm_tt.contribution_map(trace, 2, head)
    for row in rows:
        source, target = int(row["from"]), int(row["to"])
        assert (row["from_token"], row["to_token"]) == (trace.token_texts[source], trace.token_texts[target])
        assert float(row["attention"]) == pytest.approx(float(attention[target, source]), abs=1e-6)
        assert float(row["contribution"]) == pytest.approx(float(contribution[target, source]), abs=1e-6)


def test_the_map_of_heads_has_every_head(explanation: Explanation, trace: llm_tt.Trace) -> None:
    roles = llm_tt.head_roles(trace)
    rows = read(heads_map.map_csv(explanation.head_flow, roles))
    assert len(rows) == 16
    flow = llm_tt.propagate(llm_tt.extract_routes(trace)).by_head(4)
    for row in rows:
        place = int(row["layer"]), int(row["head"])
        assert float(row["flow"]) == pytest.approx(float(flow[place]), abs=1e-6)
        assert float(row["previous_token"]) == pytest.approx(float(roles.previous_token[place]), abs=1e-6)
        assert row["induction"] == "" or float(row["induction"]) == pytest.approx(float(roles.induction[place]), abs=1e-6)


def test_trajectories_have_every_point_of_every_token(trace: llm_tt.Trace) -> None:
    lines = llm_tt.token_trajectories(trace, tokens=[" Mary", " John"])
    rows = read(lines.to_csv())
    assert len(rows) == 2 * len(lines.points)
    assert {row["token"] for row in rows} == {" Mary", " John"}
    last = [row for row in rows if row["node"] == f"I3_{trace.n_tokens - 1}"]
    probabilities = trace.logits(-1).softmax(-1)
    for row in last:
        assert float(row["probability"]) == pytest.approx(float(probabilities[int(row["token_id"])]), abs=1e-6)
        assert float(row["logit"]) == pytest.approx(float(trace.logits(-1)[int(row["token_id"])]), abs=1e-4)
    assert last[0]["rank"] == "1"


def test_tokens_are_exact_and_numbers_in_full(trace: llm_tt.Trace) -> None:
    block = trace.blocks[1]
    top = top_tokens(trace.model, block.resid_post[3], 30, block.resid_mid[3])
    rows = read(files.tokens_csv(top))
    assert [row["token"] for row in rows] == trace.model.texts([int(row["token_id"]) for row in rows])
    assert [np.float32(row["score"]) for row in rows] == top.scores.tolist()
    assert list(rows[0]) == ["token", "token_id", "score", "probability", "rank", "rank_change"]
    both = promoted_and_suppressed(trace.model, block.attn_out[3], block.resid_mid[3], 5)
    assert [float(row["score"]) for row in read(files.tokens_csv(*both))] == [*both[0].scores.tolist(), *both[1].scores.tolist()]


def test_the_table_names_edges_as_the_graph_does(trace: llm_tt.Trace) -> None:
    graph = llm_tt.extract_routes(trace, threshold=0.001)
    table, edges = graph_table.rows(graph)
    names = {(*(node.name for node in edge.ends), edge.kind.key): edge for edge in graph.edges()}
    assert len(edges) == len(names) == len(table)
    assert set(edges) == set(names)
    assert [names[edge].weight for edge in edges] == sorted(graph.weight.tolist(), reverse=True)
    assert table["weight"].tolist() == [names[edge].weight for edge in edges]
    assert table["layer"].tolist() == [names[edge].layer for edge in edges]


@pytest.mark.parametrize(
    ("model", "prompt", "stem"),
    [
        ("demo", PROMPT, "demo_When-Mary-and-John-went-to-the_token14"),
        ("Qwen/Qwen3-0.6B", "a", "Qwen3-0-6B_a_token14"),
        ("/models/../last night/", "../../etc/passwd", "last-night_etc-passwd_token14"),
        ("C:\\models\\mine", 'CON: <"|?*> \n\x00 \u202e', "mine_CON_token14"),
        ("demo", "\u0645\u0631\u062d\u0628\u0627 \u4e2d\u6587 \U0001f600", "demo_\u0645\u0631\u062d\u0628\u0627-\u4e2d\u6587_token14"),
        ("demo", "x" * 100, f"demo_{'x' * 32}_token14"),
        ("demo", "...", "demo_token14"),
        ("demo", (ChatMessage("system", "secret"), ChatMessage("user", "Hello there")), "demo_Hello-there_token14"),
    ],
)
def test_files_are_named_after_model_prompt_and_target(explanation: Explanation, model: str, prompt: Any, stem: str) -> None:
    info = dataclasses.replace(explanation.facts.info, name=model)
    facts = dataclasses.replace(explanation.facts, info=info)
    other = dataclasses.replace(explanation, trace=TraceKey(ModelKey(model), prompt), facts=facts)
    assert save.file_stem(other) == stem
