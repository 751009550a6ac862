"""Every lesson of the app is true of the shipped demo model, and says so with the library's own numbers; of another model it says that it is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import llm_tt
from app.lessons import LESSONS, Lesson, overview, read, strongest_edge
from llm_tt.config import AppConfig, load_config
from llm_tt.demo import MODEL_DIR
from llm_tt.demo.language import MEASURED
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import ExplainLogit, ExplainPrediction, Explanation, ModelKey, ReadHeads, TraceKey
from llm_tt.flow.head_roles import HeadRoles
from llm_tt.lens.direct_effects import DirectEffects

every_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.title)


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(AppConfig())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def llm() -> llm_tt.TransparentLlm:
    return llm_tt.load_model("demo")


def asked(engine: LocalEngine, lesson: Lesson, threshold: float = 0.04) -> tuple[Explanation, DirectEffects, HeadRoles]:
    trace = TraceKey(ModelKey("demo"), lesson.prompt)
    return (
        engine.answer(ExplainPrediction(trace, threshold=threshold)),
        engine.answer(ExplainLogit(trace, contrast=lesson.contrast)),
        engine.answer(ReadHeads(trace)),
    )


def numbers(sentence: str) -> list[float]:
    return [float(number.replace("\u2212", "-")) for number in re.findall(r"(?<=\*\*)[+\u2212]?\d+\.\d+(?=\*\*)", sentence)]


@every_lesson
def test_the_demo_model_shows_what_the_lesson_is_about(lesson: Lesson, engine: LocalEngine, llm: llm_tt.TransparentLlm) -> None:
    reading = read(lesson, *asked(engine, lesson))
    assert reading.holds, reading.sentences
    said, what, taught, flow = reading.sentences
    trace = llm.trace(lesson.prompt)
    logits = trace.logits(-1)
    best = int(logits.argmax())
    (contrast,) = (token for token in llm.encode(lesson.contrast) if llm.texts([token]) == [lesson.contrast])
    assert llm.texts([best])[0] in lesson.answers
    assert f"(p {float(logits.softmax(-1)[best]):.3f})" in said
    assert numbers(said) == pytest.approx([float(logits[best] - logits[contrast])], abs=1e-3)
    assert taught == lesson.teaches
    effects = llm_tt.direct_effects(trace, -1, best, contrast)
    if lesson.look == "block":
        layer = int(np.argmax(effects.ffn))
        assert reading.selection == {"type": "node", "node": f"M{layer}_{trace.n_tokens - 1}"}
        assert numbers(what) == pytest.approx([float(effects.ffn[layer])], abs=1e-3)
        assert effects.ffn[layer] > effects.heads.sum(-1).max()
    else:
        assert reading.selection is not None
        source, destination = (llm_tt.flow.graph.Node.parse(reading.selection[end]) for end in ("from", "to"))
        edges = {
            (edge.layer, edge.source): edge.weight
            for edge in llm_tt.extract_routes(trace).edges()
            if edge.kind.key == "attention" and edge.destination == trace.n_tokens - 1 != edge.source
        }
        expected = max(edges, key=lambda edge: effects.heads[edge[0], :, edge[1]].sum())
        assert (destination.layer, source.position) == expected
        weight, effect = numbers(what)
        assert weight == pytest.approx(edges[expected], abs=1e-3)
        assert effect == pytest.approx(float(effects.heads[expected[0], :, expected[1]].sum()), abs=1e-3)
        assert trace.token_texts[source.position] in lesson.sources
        assert f"(token {source.position}) in layer {destination.layer}" in what
        if "is labelled" in what:
            head = re.search(r"L(\d+) H(\d+), is labelled (.+) here \(score (.+)\)", what)
            assert head is not None
            role, score = llm_tt.head_roles(trace).label(int(head[1]), int(head[2])) or ("none", 0.0)
            assert (role, f"{score:.2f}") == (head[3], head[4])
    sources = llm_tt.flow_over_sources(llm_tt.extract_routes(trace))
    share = sum(sources[token] for token, text in enumerate(trace.token_texts) if text in lesson.sources)
    assert f"**{share:.0%}** ends in" in flow


def test_there_is_a_lesson_for_every_task_and_its_prompt_is_offered() -> None:
    """Sums up to 30 + 30 are the same task as sums of digits."""
    assert len(LESSONS) == len({task.name for task in MEASURED} - {"addition up to 30"})
    assert {lesson.prompt for lesson in LESSONS} <= set(load_config("config/demo.json").prompts())


def test_the_answer_of_the_capital_is_no_token_of_its_prompt(llm: llm_tt.TransparentLlm) -> None:
    (lesson,) = (lesson for lesson in LESSONS if "nowhere in the prompt" in lesson.teaches)
    assert not set(lesson.answers) & set(llm.trace(lesson.prompt).token_texts)


def test_induction_is_read_off_the_word_that_followed(engine: LocalEngine, llm: llm_tt.TransparentLlm) -> None:
    (lesson,) = (lesson for lesson in LESSONS if "induction" in lesson.teaches)
    explanation, effects, roles = asked(engine, lesson)
    found = strongest_edge(explanation, effects)
    assert found is not None
    texts = explanation.graph.token_texts
    assert texts[found[0].source - 1] == texts[-1]
    head = max(found[0].heads, key=lambda head: found[0].heads[head])
    assert (roles.label(found[0].layer, head) or ("",))[0] == "induction"


def test_another_answer_is_said_and_nothing_is_selected(engine: LocalEngine) -> None:
    lesson = replace(LESSONS[0], answers=(" Lucy",))
    reading = read(lesson, *asked(engine, LESSONS[0]))
    assert (reading.holds, reading.selection) == (False, None)
    assert reading.sentences == ("The model says `·Mary` (p 1.000), and not `·Lucy`: this model does not do what the lesson is about.",)


@pytest.mark.parametrize(
    "lesson", [replace(LESSONS[0], sources=(" store",)), replace(LESSONS[0], look="block")], ids=["another token", "heads do more"]
)
def test_another_way_to_the_answer_is_said(lesson: Lesson, engine: LocalEngine) -> None:
    reading = read(lesson, *asked(engine, LESSONS[0]))
    assert not reading.holds
    assert reading.selection is not None
    assert "In this model that is not what one would expect: it comes to its answer in another way." in reading.sentences
    assert lesson.teaches not in reading.sentences


def test_without_an_edge_the_threshold_is_to_be_lowered(engine: LocalEngine) -> None:
    reading = read(LESSONS[0], *asked(engine, LESSONS[0], threshold=0.9))
    assert (reading.holds, reading.selection) == (False, None)
    assert reading.sentences[0].endswith("No attention edge into it is drawn: lower the threshold above the graph.")


def test_the_overview_is_of_the_prompt_that_is_shown(engine: LocalEngine, llm: llm_tt.TransparentLlm) -> None:
    explanation, _, _ = asked(engine, LESSONS[2])
    graph = llm_tt.extract_routes(llm.trace(LESSONS[2].prompt))
    sources = llm_tt.flow_over_sources(graph)
    first, _ = overview(explanation)
    assert "from the prediction `·Paris`, after `·is`" in first
    assert f"**{graph.n_edges}** edges" in first
    most = int(sources.argmax())
    assert f"**{sources[most]:.0%}**, ends in `·{graph.token_texts[most].strip()}` (token {most})" in first


def test_the_shipped_model_is_the_one_that_is_loaded(engine: LocalEngine) -> None:
    assert AppConfig().models["demo"].path == str(MODEL_DIR)
