"""A graph written and opened again is the same graph; a file that holds none is refused in one sentence, and nothing else happens."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from test_files import STRANGE, flow_graph, with_text

import llm_tt
from llm_tt.export import files
from llm_tt.export.saved import GraphFileError, from_json
from llm_tt.flow.graph import EdgeKind, FlowGraph, Node, kind_of_edge
from llm_tt.lens.vocabulary import predictions
from llm_tt.text import ChatMessage, Prompt


def assert_identical(found: FlowGraph, expected: FlowGraph) -> None:
    """Every field, every bit, every dtype."""
    for field in fields(FlowGraph):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype, field.name
            assert one.tobytes() == other.tobytes(), field.name
        else:
            assert (one, type(one)) == (other, type(other)), field.name


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("how", ["threshold", "low", "not renormalised", "mass", "first token", "span", "span by mass"])
def test_a_graph_is_opened_as_it_was(name: str, how: str, trace: Callable[[str, int], llm_tt.Trace]) -> None:
    run = trace(name, 9)
    graph = {
        "threshold": lambda: llm_tt.extract_routes(run),
        "low": lambda: llm_tt.extract_routes(run, threshold=0.0001),
        "not renormalised": lambda: llm_tt.extract_routes(run, 5, 0.03, renormalize=False),
        "mass": lambda: llm_tt.extract_routes_by_mass(run, mass=0.9),
        "first token": lambda: llm_tt.extract_routes(run, 0),
        "span": lambda: llm_tt.extract_routes_to_span(run, [3, 4, 7], 0.02),
        "span by mass": lambda: llm_tt.extract_routes_by_mass(run, range(5, 9), 0.9, renormalize=False),
    }[how]()
    best = predictions(run, graph.target, 7)
    saved = from_json(files.to_json(graph, name, run.prompt, predictions=best, info=run.model.info))
    assert_identical(saved.graph, graph)
    assert saved.model == name
    assert saved.prompt == run.prompt
    assert saved.conversation is None
    assert saved.predictions is not None
    assert (saved.predictions.texts, saved.predictions.token_ids.tolist()) == (best.texts, best.token_ids.tolist())
    assert saved.predictions.scores.tobytes() == best.scores.tobytes()
    assert best.probabilities is not None
    assert saved.predictions.probabilities is not None
    assert saved.predictions.probabilities.tobytes() == best.probabilities.tobytes()
    assert saved.facts is not None
    assert (saved.facts["family"], saved.facts["n_heads"]) == (run.model.info.family, run.model.info.n_heads)


@pytest.mark.parametrize("rows", [None, []], ids=["routes", "no edges"])
def test_a_graph_without_anything_else(rows: Any) -> None:
    graph = flow_graph() if rows is None else flow_graph(rows=rows)
    saved = from_json(files.to_json(graph, "m"))
    assert_identical(saved.graph, graph)
    assert saved.prompt == Prompt.bare(None, graph.token_ids, graph.token_texts)
    assert (saved.question, saved.predictions, saved.facts) == (None, None, None)


@pytest.mark.parametrize("text", STRANGE)
def test_strange_texts_come_back_exactly(text: str) -> None:
    graph = with_text(text)
    prompt = Prompt(text, graph.token_ids, graph.token_texts, ((0, len(text)), None, None), (None, None, None))
    messages = (ChatMessage("user", text), ChatMessage("assistant", text))
    saved = from_json(files.to_json(graph, text, prompt, conversation=messages).encode())
    assert_identical(saved.graph, graph)
    assert (saved.model, saved.prompt, saved.conversation, saved.question) == (text, prompt, messages, messages)


def test_the_text_of_a_conversation_is_no_plain_text_to_run_again() -> None:
    graph = flow_graph()
    prompt = Prompt("<user>hi<assistant>", graph.token_ids, graph.token_texts, (None,) * 3, ("special", "user", "special"))
    assert from_json(files.to_json(graph, "m", prompt)).question is None
    plain = Prompt("hi", graph.token_ids, graph.token_texts, (None,) * 3, ("special", None, None))
    assert from_json(files.to_json(graph, "m", plain)).question == "hi"


def test_files_of_before_the_newer_fields_and_with_fields_of_others_are_opened() -> None:
    content = files.to_dict(flow_graph(), "m")
    content["made_by"] = {"somebody": "else"}
    content["edges"][0]["note"] = "kept by hand"
    assert_identical(from_json(json.dumps(content)).graph, flow_graph())


# --- what is refused


def changed(change: Callable[[dict[str, Any]], Any]) -> str:
    graph = flow_graph()
    prompt = Prompt("The cat sat", graph.token_ids, graph.token_texts, ((0, 3), (3, 7), (7, 11)), (None,) * 3)
    content = copy.deepcopy(files.to_dict(graph, "m", prompt))
    content["messages"] = [{"role": "user", "content": "x"}]
    content["predictions"] = [{"id": 3, "text": "x", "score": 1.5, "probability": 0.5}]
    content["facts"] = {"family": "llama", "n_heads": 4}
    from_json(json.dumps(content))
    change(content)
    return json.dumps(content)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path, the last item of which is the value."""

    def change(content: Any) -> None:
        *places, last, value = path
        for place in places:
            content = content[place]
        content[last] = value

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        *places, last = path
        for place in places:
            content = content[place]
        del content[last]

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("format", "other"), 'is not a graph of llm-tt: it does not say "format": "llm-tt-graph"'),
        (drop("format"), "is not a graph of llm-tt"),
        (put("version", 3), "written by a newer llm-tt (version 3 of the format; this one reads 2). Update llm-tt"),
        (put("version", "1"), '"version" is "1". Expected 1 or 2.'),
        (put("version", True), '"version" is true. Expected 1 or 2.'),
        (put("version", 0), '"version" is 0.'),
        *[(drop(name), f'"{name}" is missing') for name in ("model", "tokens", "n_layers", "target", "threshold", "renormalized", "edges")],
        (put("tokens", []), '"tokens" is empty'),
        (put("tokens", {}), '"tokens" is {}. Expected a list.'),
        (put("tokens", 1, 5), '"tokens[1]" is 5. Expected an object.'),
        (put("tokens", 1, "position", 2), '"tokens[1].position" is 2. Expected 1'),
        (put("tokens", 1, "id", -1), '"tokens[1].id" is -1'),
        (put("tokens", 1, "id", 1.5), '"tokens[1].id" is 1.5'),
        (put("tokens", 1, "text", None), '"tokens[1].text" is null. Expected text.'),
        (put("tokens", 1, "text", "\ud800"), '"tokens[1].text" is "\\ud800". Expected text.'),
        (put("tokens", 1, "role", "owner"), '"tokens[1].role" is "owner"'),
        (put("tokens", 1, "offset", [7, 3]), '"tokens[1].offset" is [7, 3]. Expected two places in the text of 11 characters.'),
        (put("tokens", 1, "offset", [0, 12]), '"tokens[1].offset" is [0, 12]'),
        (put("n_layers", 0), '"n_layers" is 0'),
        (put("n_layers", 10**9), '"n_layers" is 1000000000'),
        (put("n_layers", 1), '"edges[0].from" is M1_2, but the graph has 1 layers and 3 tokens.'),
        (put("target", 3), '"target" is 3. Expected a number from 0 to 2.'),
        (put("target", True), '"target" is true'),
        (put("target", 1), '"edges[0]" leads to I1_2, from where no edge before it leads to I1_1'),
        (put("threshold", -0.1), '"threshold" is -0.1'),
        (put("threshold", "low"), '"threshold" is "low". Expected a number from 0 to 1.'),
        (put("threshold", 10**400), '"threshold" is 1000'),
        (put("renormalized", 1), '"renormalized" is 1. Expected true or false.'),
        (put("mass", 1.5), '"mass" is 1.5'),
        (put("carried", -1), '"carried" is -1'),
        (put("edges", 3, "weight", 1e300), '"edges[3].weight" is 1e+300. Expected a number from 0 to 1.'),
        (put("edges", 3, "weight", "0.5"), '"edges[3].weight" is "0.5"'),
        (drop("edges", 3, "weight"), '"edges[3].weight" is missing'),
        (drop("edges", 3, "heads"), '"edges[3].heads" is missing. Expected a list.'),
        (put("edges", 3, "heads", 0, "weight", -0.5), '"edges[3].heads[0].weight" is -0.5'),
        (put("edges", 3, "heads", 1, "head", 3), '"edges[3].heads[1]": head 3 is there twice.'),
        (put("edges", 3, "heads", 0, "head", 2**16), '"edges[3].heads[0].head" is 65536'),
        (put("edges", 3, "from", "I0_9"), '"edges[3].from" is I0_9, but the graph has 2 layers and 3 tokens.'),
        (put("edges", 3, "from", "<script>"), '"edges[3].from": "<script>" is not a node.'),
        (put("edges", 3, "to", "I1_2"), '"edges[3]": there is no "attention" edge from I0_0 to I1_2 in a transformer.'),
        (put("edges", 3, "key", "magic"), '"edges[3]": there is no "magic" edge from I0_0 to A1_2 in a transformer.'),
        (put("edges", 3, None), '"edges[3]" is null. Expected an object.'),
        (lambda content: content["edges"].append(content["edges"][3]), '"edges[11]" is there twice: attention from I0_0 to A1_2.'),
        (lambda content: content["edges"].reverse(), '"edges[0]" leads to A0_2, from where no edge before it leads to I1_2'),
        (put("messages", 0, "role", "owner"), '"messages[0].role" is "owner"'),
        (put("messages", 0, "content", 3), '"messages[0].content" is 3'),
        (put("predictions", 0, "probability", 2), '"predictions[0].probability" is 2'),
        (put("predictions", 0, "score", None), '"predictions[0].score" is null'),
        (put("targets", [2]), '"targets" is [2]. Expected two or more positions, the last of them the target, 2.'),
        (put("targets", [0, 1]), '"targets" is [0, 1]. Expected two or more positions, the last of them the target, 2.'),
        (put("targets", [-1, 2]), '"targets" is [-1, 2]. Expected two or more'),
        (put("targets", [0, "1", 2]), '"targets" is [0, "1", 2]. Expected two or more'),
        (put("targets", [1, 1, 2]), '"targets" is [1, 1, 2]. Expected rising positions.'),
        (put("targets", 2), '"targets" is 2. Expected a list.'),
        (put("facts", []), '"facts" is []. Expected an object.'),
        (put("facts", "n_heads", 1.5), '"facts.n_heads" is 1.5'),
        (put("facts", "n_heads", 10**30), '"facts.n_heads" is 1000'),
        (put("text", 5), '"text" is 5'),
    ],
)
def test_a_broken_file_is_one_sentence(change: Callable[[dict[str, Any]], Any], sentence: str) -> None:
    text = changed(change)
    with pytest.raises(GraphFileError) as caught:
        from_json(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not JSON: line 1, column 1"),
        ("{", "is not JSON: line 1, column 2"),
        ("[]", "is not a graph of llm-tt"),
        ("null", "is not a graph of llm-tt"),
        ('{"format": "llm-tt-graph", "version": NaN}', "has the number NaN, which no graph has"),
        ('{"weight": -Infinity}', "has the number -Infinity"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0 is 0xff)"),
        ("[" * 100_000, "nested too deeply"),
        ('{"version": ' + "9" * 5000 + "}", "a number that is too long"),
        ("<graphml/>", "is not JSON"),
    ],
    ids=["empty", "cut off", "list", "null", "NaN", "infinity", "bytes", "deep", "long number", "xml"],
)
def test_what_is_no_graph_at_all(text: str | bytes, sentence: str) -> None:
    with pytest.raises(GraphFileError, match=r"^The file ") as caught:
        from_json(text)
    assert sentence in str(caught.value)


def test_an_edge_that_leads_to_none_of_several_targets_is_refused() -> None:
    content = files.to_dict(dataclasses.replace(flow_graph(), targets=(1, 2)), "m")
    from_json(json.dumps(content))
    content["edges"].insert(0, {"from": "A1_0", "to": "I1_0", "key": "residual", "weight": 1.0})
    with pytest.raises(GraphFileError, match="from where no edge before it leads to one of I1_1 to I1_2, the targets' nodes"):
        from_json(json.dumps(content))


def test_a_number_beyond_floats_is_refused() -> None:
    text = files.to_json(flow_graph(), "m").replace('"weight": 0.5', '"weight": 1e999', 1)
    with pytest.raises(GraphFileError, match="Expected a number from 0 to 1"):
        from_json(text)


def test_a_file_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_tt.export.saved.MAX_CHARACTERS", 100)
    with pytest.raises(GraphFileError, match="a graph of at most 100 can be opened"):
        from_json(files.to_json(flow_graph(), "m"))


@pytest.mark.parametrize(
    ("source", "destination", "key", "kind"),
    [
        ("X0_1", "A0_3", "attention", EdgeKind.ATTENTION),
        ("I0_1", "A1_1", "attention", EdgeKind.ATTENTION),
        ("I0_1", "A1_1", "residual", EdgeKind.RESIDUAL_TO_MID),
        ("A1_1", "M1_1", "ffn", EdgeKind.INTO_FFN),
        ("M1_1", "I1_1", "ffn", EdgeKind.OUT_OF_FFN),
        ("A1_1", "I1_1", "residual", EdgeKind.RESIDUAL_TO_POST),
        ("I0_2", "A1_1", "attention", None),
        ("I0_0", "A1_1", "residual", None),
        ("X0_1", "A1_1", "attention", None),
        ("A1_0", "M1_1", "ffn", None),
        ("A0_1", "I1_1", "residual", None),
        ("A1_1", "A1_1", "attention", None),
        ("A1_1", "M1_1", "residual", None),
    ],
)
def test_which_edges_a_transformer_has(source: str, destination: str, key: str, kind: EdgeKind | None) -> None:
    assert kind_of_edge(Node.parse(source), Node.parse(destination), key) == kind
