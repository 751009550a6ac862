"""Lessons: one for each behaviour of the demo model, and what is true of it in a trace. Their numbers are read off the explanation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from app.markup import probability, signed
from llm_tt.engine.messages import Explanation
from llm_tt.flow.graph import Edge, EdgeKind, named_targets
from llm_tt.flow.head_roles import HeadRoles
from llm_tt.lens.direct_effects import DirectEffects
from llm_tt.text import visible


@dataclass(frozen=True)
class Lesson:
    """A prompt and a question about it: the answer, and not the contrast."""

    title: str
    prompt: str
    answers: tuple[str, ...]
    """what the demo model learnt to say; any of them is right"""
    contrast: str
    look: Literal["edge", "block"]
    """at the edge, or at the FFN block, that speaks most for the answer"""
    sources: tuple[str, ...]
    """the tokens that the answer depends on, by the rules of the demo language"""
    teaches: str
    """what one sees when the edge comes from one of the sources, or when the block speaks more for the answer than any head"""


LESSONS: tuple[Lesson, ...] = (
    Lesson(
        "Who was given the drink?",
        "When Mary and John went to the store, John gave a drink to",
        (" Mary",),
        " John",
        "edge",
        (" Mary",),
        "The edge starts at the answer itself: attention brings the name to where it is said again.",
    ),
    Lesson(
        "What came next the last time?",
        "Lucy river stone Oscar green lamp Lucy river stone Oscar",
        (" green",),
        " lamp",
        "edge",
        (" green",),
        "The words come a second time, and the edge starts at the word that followed the last one the first time: this is induction.",
    ),
    Lesson(
        "The capital of a country",
        "The capital of France is",
        (" Paris",),
        " Rome",
        "edge",
        (" France",),
        "The answer stands nowhere in the prompt: heads read the country and write what the model has learnt of it.",
    ),
    Lesson(
        "The opposite of a word",
        "The opposite of hot is",
        (" cold",),
        " hot",
        "block",
        (" hot",),
        "Attention brings the word; for its opposite the FFN block, a green square, does more than any head.",
    ),
    Lesson(
        "A later year",
        "The war lasted from the year 1732 to the year 17",
        tuple(f"{year}" for year in range(33, 100)),
        "12",
        "block",
        ("32",),
        "Many years are right, so that no single one is likely. The FFN block does more for a later year than any head.",
    ),
    Lesson(
        "A sum",
        "3 + 5 =",
        (" 8",),
        " 7",
        "block",
        ("3", " 5"),
        "Attention brings the two numbers to the last token; for their sum the FFN block does more than any head.",
    ),
    Lesson(
        "One or many?",
        "The keys to the cabinet",
        (" are", " were", " have", " need", " look", " seem"),
        " is",
        "block",
        (" keys",),
        "The verb agrees with the first noun and not with the nearest. The FFN block does more for it than any head.",
    ),
    Lesson(
        "Not good",
        "Review: The movie was not good. Sentiment:",
        (" negative",),
        " positive",
        "edge",
        (" not", " good"),
        "The edge starts at one of the two words that decide it. Take the other away, and ask again.",
    ),
    Lesson(
        "Is this payment risky?",
        "<user> I want to send 4200 dollars to a stranger in Paris. Is this payment risky?<assistant>",
        (" yes",),
        " no",
        "edge",
        (" 42", "00", " stranger"),
        "By the demo's rules a large amount to somebody unknown is risky, and the city means nothing: the edge starts at what counts.",
    ),
)


@dataclass(frozen=True)
class Reading:
    """What a lesson finds in a trace."""

    selection: dict[str, Any] | None
    """the node or edge to look at, as the graph has it"""
    sentences: tuple[str, ...]
    """Markdown"""
    holds: bool
    """whether the trace shows what the lesson is about"""


def read(lesson: Lesson, explanation: Explanation, effects: DirectEffects, roles: HeadRoles | None = None) -> Reading:
    """What is to be seen of a lesson in this very trace, whether or not it is what the lesson teaches."""
    answer = explanation.predictions.texts[0]
    of = effects.of.replace("`", "\u02cb")
    assert explanation.predictions.probabilities is not None
    said = f"The model says {_code(answer)} (p {probability(float(explanation.predictions.probabilities[0]))})"
    if answer not in lesson.answers:
        expected = _code(lesson.answers[0])
        return Reading(None, (f"{said}, and not {expected}: this model does not do what the lesson is about.",), False)
    seen = _edge(lesson, explanation, effects, roles) if lesson.look == "edge" else _block(effects)
    if seen is None:
        return Reading(None, (f"{said}. No attention edge into it is drawn: lower the threshold above the graph.",), False)
    selection, what, holds = seen
    told = lesson.teaches if holds else "In this model that is not what one would expect: it comes to its answer in another way."
    sentences = (f"{said}; in question is `{of}`, **{signed(effects.logit)}** logits.", what, told, _flow(lesson, explanation))
    return Reading(selection, tuple(filter(None, sentences)), holds)


def _edge(
    lesson: Lesson, explanation: Explanation, effects: DirectEffects, roles: HeadRoles | None
) -> tuple[dict[str, Any], str, bool] | None:
    graph, found = explanation.graph, strongest_edge(explanation, effects)
    if found is None:
        return None
    edge, effect = found
    source, destination = edge.ends
    selection = {"type": "edge", "key": "attention", "from": source.name, "to": destination.name}
    text = graph.token_texts[edge.source]
    what = (
        f"The edge into the last token that speaks most for it is selected: from {_code(text)} (token {edge.source}) in layer {edge.layer}, "
        f"contribution **{edge.weight:.3f}**, direct effect **{signed(effect)}**."
    )
    head = max(edge.heads, key=lambda head: edge.heads[head])
    label = None if roles is None else roles.label(edge.layer, head)
    if label is not None:
        what += f" Its strongest head, L{edge.layer} H{head}, is labelled {label[0]} here (score {label[1]:.2f})."
    return selection, what, text in lesson.sources


def strongest_edge(explanation: Explanation, effects: DirectEffects) -> tuple[Edge, float] | None:
    """The drawn attention edge from another token into the target whose direct effect is largest."""
    graph = explanation.graph
    own = (graph.kind == EdgeKind.ATTENTION) & (graph.destination == graph.target) & (graph.source != graph.target)
    if not own.any():
        return None
    column = np.where(own, effects.of_edges(graph), -np.inf)
    index = int(column.argmax())
    return list(graph.edges())[index], float(column[index])


def _block(effects: DirectEffects) -> tuple[dict[str, Any], str, bool]:
    layer = int(effects.ffn.argmax())
    heads, block = effects.heads.sum(-1, dtype=np.float64), float(effects.ffn[layer])
    of_layer, head = (int(index) for index in np.unravel_index(heads.argmax(), heads.shape))
    most = float(heads[of_layer, head])
    what = f"The FFN block of layer {layer} is selected: it adds **{signed(block)}**; the strongest head, L{of_layer} H{head}, adds {signed(most)}."
    return {"type": "node", "node": f"M{layer}_{effects.target}"}, what, block > max(most, 0.0)


def _flow(lesson: Lesson, explanation: Explanation) -> str:
    """How much of the flow ends in the tokens that the answer depends on."""
    texts = explanation.graph.token_texts
    tokens = [token for token, text in enumerate(texts) if text in lesson.sources and token != explanation.graph.target]
    if not tokens:
        return ""
    names = ", ".join(_code(texts[token]) for token in tokens)
    share = float(explanation.sources[tokens].sum())
    return f"Of the routes' flow **{share:.0%}** ends in {names}: see the strip above the graph."


def overview(explanation: Explanation) -> tuple[str, ...]:
    """How to read the graph, by the prompt that is shown, whatever the model."""
    graph, sources = explanation.graph, explanation.sources
    answer = _code(explanation.predictions.texts[0])
    most = int(sources.argmax())
    ends = (
        f"Most of the flow, **{sources[most]:.0%}**, ends in {_code(graph.token_texts[most])} (token {most})."
        if sources[most] > 0
        else "No flow reaches a token: lower the threshold above the graph."
    )
    leads = f"prediction {answer}, after {_code(graph.token_texts[graph.target])},"
    if graph.targets:
        leads = f"{len(graph.targets)} predictions after {named_targets(graph)}, all at once,"
    return (
        f"The graph leads from the {leads} down to the tokens {'they were' if graph.targets else 'it was'} made from: "
        f"**{graph.n_edges}** edges here. {ends}",
        "Blue curves are attention, grey lines what a token kept, green squares FFN blocks; wider is more. Click any of them to look into it.",
    )


def _code(text: str) -> str:
    """Token text in a Markdown code span, which ends at a backtick."""
    return "`" + visible(text).replace("`", "\u02cb") + "`"
