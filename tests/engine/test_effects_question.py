"""Direct effects asked of the engine: the library's own, kept with their trace, and told with the node or edge they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asking import PROMPT, assert_close, content, key

import llm_tt
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import ExplainLogit, ExplainPrediction, InspectEdge, InspectNode
from llm_tt.errors import RequestError
from llm_tt.lens import effects as lens
from llm_tt.lens.direct_effects import LogitQuestion

TARGET, TOKEN, CONTRAST = 3, 5, 9
QUESTION = LogitQuestion(TARGET, TOKEN, CONTRAST)
families = pytest.mark.parametrize("name", ["gpt2", "llama"])


@families
def test_the_answer_is_the_librarys(name: str, engine: LocalEngine, tiny: Callable) -> None:
    answer = engine.answer(ExplainLogit(key(model=name), TARGET, TOKEN, CONTRAST))
    assert_close(content(answer), content(llm_tt.direct_effects(tiny(name).trace(PROMPT), TARGET, TOKEN, CONTRAST)))


def test_a_token_that_is_none_gets_a_sentence(engine: LocalEngine) -> None:
    with pytest.raises(RequestError, match="Token id 400 does not exist"):
        engine.answer(ExplainLogit(key(), token=400))


def test_another_threshold_computes_no_effects_and_no_trace_again(
    engine: LocalEngine, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    compute = lens._effects
    monkeypatch.setattr(lens, "_effects", lambda *arguments: computed.append(arguments) or compute(*arguments))
    for threshold in (0.01, 0.04, 0.1):
        engine.answer(ExplainPrediction(key(), threshold=threshold))
        engine.answer(ExplainLogit(key(), token=TOKEN))
        engine.answer(InspectNode(key(), "A1_4", logit=LogitQuestion(token=TOKEN)))
    assert len(computed) == len(runs) == 1


def test_kept_answers_count_as_memory_and_are_few(tiny: Callable) -> None:
    trace = tiny("gpt2").trace(PROMPT)
    assert lens.kept_bytes(trace) == 0
    one = llm_tt.direct_effects(trace, token=0).nbytes
    for token in range(1, 30):
        llm_tt.direct_effects(trace, token=token)
    assert lens.kept_bytes(trace) == 8 * one


@families
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_nodes_of_the_targets_column_tell_what_their_block_does(name: str, layer: int, engine: LocalEngine, tiny: Callable) -> None:
    expected = llm_tt.direct_effects(tiny(name).trace(PROMPT), TARGET, TOKEN, CONTRAST)

    def effect(node: str) -> float | None:
        return engine.answer(InspectNode(key(model=name), node, logit=QUESTION)).effect

    attention = expected.heads[layer].sum() + expected.attention_bias[layer]
    assert effect(f"A{layer}_{TARGET}") == pytest.approx(float(attention), abs=1e-4)
    assert effect(f"M{layer}_{TARGET}") == effect(f"I{layer}_{TARGET}") == pytest.approx(float(expected.ffn[layer]), abs=1e-4)
    assert effect(f"X0_{TARGET}") == pytest.approx(expected.embedding, abs=1e-4)
    for node in (f"A{layer}_1", f"M{layer}_1", f"I{layer}_4", "X0_2"):
        assert effect(node) is None
    assert engine.answer(InspectNode(key(model=name), f"A{layer}_{TARGET}")).effect is None


@families
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_edges_of_the_targets_column_tell_theirs(name: str, layer: int, engine: LocalEngine, tiny: Callable) -> None:
    expected = llm_tt.direct_effects(tiny(name).trace(PROMPT), TARGET, TOKEN, CONTRAST)

    def ask(source: str, destination: str, edge: Any, logit: LogitQuestion | None = QUESTION) -> Any:
        return engine.answer(InspectEdge(key(model=name), source, destination, edge, logit))

    below = "X0_{}" if layer == 0 else f"I{layer - 1}_{{}}"
    mid, block, post = (f"{kind}{layer}_{TARGET}" for kind in "AMI")
    for source in range(TARGET + 1):
        report = ask(below.format(source), mid, "attention")
        wanted = expected.heads[layer, :, source]
        assert dict(zip((head for head, _ in report.heads), report.head_effects, strict=True)) == pytest.approx(
            dict(enumerate(wanted.tolist())), abs=1e-4
        )
        assert report.effect == pytest.approx(float(wanted.sum()), abs=1e-4)
    before = expected.embedding + float(expected.heads[:layer].sum() + expected.attention_bias[:layer].sum() + expected.ffn[:layer].sum())
    attention = float(expected.heads[layer].sum() + expected.attention_bias[layer])
    assert ask(below.format(TARGET), mid, "residual").effect == pytest.approx(before, abs=1e-4)
    assert ask(mid, post, "residual").effect == pytest.approx(before + attention, abs=1e-4)
    for ends in ((mid, block), (block, post)):
        assert ask(*ends, "ffn").effect == pytest.approx(float(expected.ffn[layer]), abs=1e-4)
    elsewhere = ask(below.format(1), f"A{layer}_2", "attention")
    assert (elsewhere.effect, elsewhere.head_effects) == (None, None)
    unasked = ask(below.format(1), mid, "attention", None)
    assert (unasked.effect, unasked.head_effects) == (None, None)
