"""Questions that the engine's tests ask, and how answers are taken apart and compared."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from llm_tt.engine.messages import (
    ExplainLogit,
    ExplainPrediction,
    InspectEdge,
    InspectHead,
    InspectHeads,
    InspectNeuron,
    InspectNeurons,
    InspectNode,
    LoadModel,
    ModelKey,
    Question,
    TraceKey,
)

PATIENCE = 30.0
PROMPT = "Mary the store."
PROMPTS = ("Mary the store one", "Mary the store two", "Mary the store six")


def key(prompt: str = PROMPT, model: str = "gpt2") -> TraceKey:
    return TraceKey(ModelKey(model), prompt)


def questions(trace: TraceKey) -> list[Question]:
    """One of every kind, and every kind of node."""
    return [
        LoadModel(trace.model),
        ExplainPrediction(trace),
        *(InspectNode(trace, node) for node in ("X0_1", "A1_2", "M2_3", "I0_0")),
        InspectEdge(trace, "X0_0", "A0_2", "attention"),
        InspectEdge(trace, "A1_2", "M1_2", "ffn"),
        InspectHeads(trace, 1, 3),
        InspectHead(trace, 0, 2, 3),
        InspectHead(trace, 2, None, -1, source=1),
        InspectNeurons(trace, 1, 2),
        InspectNeuron(trace, 0, 3, 5),
        ExplainLogit(trace, token=5, contrast=9),
    ]


def values(thing: Any) -> Iterator[Any]:
    """Every leaf of an answer, and every container on the way to it."""
    yield thing
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        for field in dataclasses.fields(thing):
            yield from values(getattr(thing, field.name))
    elif isinstance(thing, dict):
        for item in thing.items():
            yield from values(item)
    elif isinstance(thing, (list, tuple, set, frozenset)):
        for item in thing:
            yield from values(item)


def content(thing: Any) -> Any:
    """An answer as nested plain values that `==` compares, the seconds that it took left out."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {field.name: content(getattr(thing, field.name)) for field in dataclasses.fields(thing)}
        return type(thing).__name__, {name: value for name, value in fields.items() if not name.endswith("seconds")}
    if isinstance(thing, np.ndarray):
        return str(thing.dtype), thing.tolist()
    if isinstance(thing, (list, tuple)):
        return [content(item) for item in thing]
    return thing


def assert_close(one: Any, other: Any) -> None:
    """Contents are equal; numbers but for rounding, which depends on what was computed together."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    else:
        assert one == other


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions at the same time; what each returned or raised."""
    results: list[Any] = [None] * len(functions)
    together = threading.Barrier(len(functions))

    def run(index: int) -> None:
        together.wait(PATIENCE)
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return results
