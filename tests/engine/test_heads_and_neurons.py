"""What the engine says of heads and neurons, against a plain Hugging Face model and the method by brute force; and how long it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import reference
from direct_effects_by_hand import Head, brute_force

from llm_tt.config import AppConfig, ModelSpec
from llm_tt.demo import MODEL_DIR
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import (
    InspectEdge,
    InspectHead,
    InspectHeads,
    InspectNeuron,
    InspectNeurons,
    ModelKey,
    Question,
    TraceKey,
)
from llm_tt.errors import RequestError
from llm_tt.flow import heads
from llm_tt.lens import vocabulary
from llm_tt.lens.direct_effects import LogitQuestion
from llm_tt.lens.token_table import TokenTable
from llm_tt.models import load_model
from llm_tt.models.bridge import BridgeLlm
from llm_tt.models.info import FfnShape
from llm_tt.progress import Cancelled

PROMPT = "Mary the store."
DEMO_PROMPT = "When Mary and John went to the store, John gave a drink to"

# A bias everywhere; grouped-query attention; experts; a norm behind attention and FFN.
NAMES = ("gpt2", "llama", "mixtral", "gemma2")
families = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def several(checkpoint: Callable, tmp_path_factory: pytest.TempPathFactory) -> AppConfig:
    return AppConfig(models={name: ModelSpec(name=name, path=str(checkpoint(name))) for name in NAMES})


@pytest.fixture(scope="module")
def answering(several: AppConfig) -> LocalEngine:
    engine = LocalEngine(several, max_models=len(NAMES))
    yield engine  # type: ignore[misc]
    engine.close()


@pytest.fixture(scope="module")
def plain_prompt(several: AppConfig, plain: Callable, model: Callable) -> Callable[[str], reference.Run]:
    runs: dict[str, reference.Run] = {}

    def run(name: str) -> reference.Run:
        if name not in runs:
            runs[name] = reference.run_plain(plain(name), model(name).encode(PROMPT))
        return runs[name]

    return run


def key(name: str) -> TraceKey:
    return TraceKey(ModelKey(name), PROMPT)


def assert_same(table: TokenTable, expected: TokenTable) -> None:
    np.testing.assert_allclose(table.scores, expected.scores, rtol=1e-3, atol=2e-4)
    assert table.texts[0] == expected.texts[0]
    assert len(table) == len(expected)


@families
def test_heads_of_a_node_are_those_of_the_brute_force(name: str, answering: LocalEngine, plain_prompt: Callable) -> None:
    for layer, plain_layer in enumerate(plain_prompt(name).layers):
        edges, _ = reference.attention(plain_layer)
        for position in range(len(edges)):
            report = answering.answer(InspectHeads(key(name), layer, position))
            assert (report.layer, report.position) == (layer, position)
            assert sorted(share.head for share in report.heads) == list(range(edges.shape[2]))
            shares = [share.contribution for share in report.heads]
            assert shares == sorted(shares, reverse=True)
            for share in report.heads:
                column = edges[position, :, share.head]
                assert share.contribution == pytest.approx(float(column.sum()), abs=1e-5)
                assert share.from_source == pytest.approx(float(column.max()), abs=1e-5)
                assert float(column[share.source]) == pytest.approx(float(column.max()), abs=1e-5)


@families
@pytest.mark.parametrize("source", [None, 2])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("head", [None, 1])
def test_a_head_looks_contributes_and_writes_what_the_plain_model_says(
    name: str, source: int | None, normalize: bool, head: int | None, answering: LocalEngine, plain_prompt: Callable, model: Callable
) -> None:
    plain_layer, position = plain_prompt(name).layers[1], 4
    report = answering.answer(InspectHead(key(name), 1, head, position, source, 6, normalize))
    edges, _ = reference.attention(plain_layer)
    attention = plain_layer.alpha.mean(0) if head is None else plain_layer.alpha[head]
    contributions = edges.sum(-1) if head is None else edges[..., head]
    n_tokens = len(contributions)
    assert (report.layer, report.head, report.position, report.source) == (1, head, position, source)
    assert report.rows == report.columns == (0, n_tokens)
    assert report.attention.dtype == report.contributions.dtype == np.float32
    np.testing.assert_allclose(report.attention, attention, atol=1e-5)
    np.testing.assert_allclose(report.contributions, contributions, atol=1e-5)
    whole = contributions[position].sum() if source is None else contributions[position, source]
    assert report.contribution == pytest.approx(float(whole), abs=1e-5)
    parts = reference.attention_parts(plain_layer)[position]
    parts = parts.sum(0) if source is None else parts[source]
    part = (parts.sum(0) if head is None else parts[head]).float()
    promoted, suppressed = vocabulary.promoted_and_suppressed(model(name), part, plain_layer.mid[position].float(), 6, normalize)
    assert_same(report.promoted, promoted)
    assert_same(report.suppressed, suppressed)


@families
def test_the_heads_of_an_edge_are_the_column_of_their_maps(name: str, answering: LocalEngine) -> None:
    edge = answering.answer(InspectEdge(key(name), "I0_1", "A1_4", "attention"))
    for head, contribution in edge.heads:
        assert answering.answer(InspectHead(key(name), 1, head, 4, 1)).contribution == pytest.approx(contribution, abs=1e-6)
    assert answering.answer(InspectHead(key(name), 1, None, 4, 1)).contribution == pytest.approx(edge.contribution, abs=1e-6)


@families
def test_neurons_are_those_of_the_brute_force_by_falling_contribution(name: str, answering: LocalEngine, plain_prompt: Callable) -> None:
    for layer, plain_layer in enumerate(plain_prompt(name).layers):
        contributions = reference.neurons(plain_layer)
        for position in range(len(contributions)):
            report = answering.answer(InspectNeurons(key(name), layer, position, 7))
            assert report.n_neurons == contributions.shape[1]
            assert report.n_active == int(plain_layer.neurons[position].count_nonzero())
            assert report.total == pytest.approx(float(contributions[position].sum()), abs=1e-5)
            best = contributions[position].topk(7).values
            assert [share.contribution for share in report.neurons] == pytest.approx(best.tolist(), abs=1e-5)
            for share in report.neurons:
                assert share.contribution == pytest.approx(float(contributions[position, share.neuron]), abs=1e-5)
                assert share.activation == pytest.approx(float(plain_layer.neurons[position, share.neuron]), rel=1e-4, abs=1e-4)


def test_neurons_of_experts_are_named_by_their_expert(answering: LocalEngine, plain_prompt: Callable, model: Callable) -> None:
    shape: FfnShape = model("mixtral").info.ffn[0]
    report = answering.answer(InspectNeurons(key("mixtral"), 0, 3, 1000))
    assert len(report.neurons) == shape.n_neurons == 5 * shape.per_expert
    assert report.n_active <= 2 * shape.per_expert
    for share in report.neurons[:20]:
        expert, index = divmod(share.neuron, shape.per_expert)
        assert share.name == f"expert {expert}, neuron {index}"
    assert answering.answer(InspectNeurons(key("gpt2"), 0, 3)).neurons[0].name.startswith("neuron ")


@families
@pytest.mark.parametrize("normalize", [True, False])
def test_a_neuron_writes_what_the_plain_model_says(
    name: str, normalize: bool, answering: LocalEngine, plain_prompt: Callable, model: Callable
) -> None:
    plain_layer, position = plain_prompt(name).layers[2], 3
    activations = plain_layer.neurons[position]
    for neuron in (int(activations.argmax()), int(activations.argmin())):
        report = answering.answer(InspectNeuron(key(name), 2, position, neuron, 6, normalize))
        assert (report.share.layer, report.share.neuron, report.position) == (2, neuron, position)
        assert report.share.activation == pytest.approx(float(activations[neuron]), rel=1e-4, abs=1e-4)
        assert report.share.contribution == pytest.approx(float(reference.neurons(plain_layer)[position, neuron]), abs=1e-5)
        part, whole = reference.neuron_parts(plain_layer)[position, neuron], plain_layer.post[position].float()
        promoted, suppressed = vocabulary.promoted_and_suppressed(model(name), part.float(), whole, 6, normalize)
        assert_same(report.promoted, promoted)
        assert_same(report.suppressed, suppressed)
        direction = (plain_layer.w_out[neuron] * plain_layer.ffn_factor.expand_as(plain_layer.pre)[position]).float()
        promoted, suppressed = vocabulary.promoted_and_suppressed(model(name), direction, whole, 6, normalize)
        assert_same(report.direction_promoted, promoted)
        assert_same(report.direction_suppressed, suppressed)
    # A negative activation turns the direction around.
    assert activations[neuron] < 0
    assert report.promoted.texts == report.direction_suppressed.texts


@families
def test_neurons_tell_their_effects_on_what_is_in_question_and_can_be_ordered_by_them(
    name: str, answering: LocalEngine, plain_prompt: Callable, plain: Callable
) -> None:
    position, token, contrast = 3, 5, 23
    question = LogitQuestion(position, token, contrast)
    exact = brute_force(Head.of(plain(name)), plain_prompt(name), position, token, contrast)
    for layer, effects in enumerate(exact.neurons):
        report = answering.answer(InspectNeurons(key(name), layer, position, 7, question))
        assert [share.contribution for share in report.neurons] == sorted((share.contribution for share in report.neurons), reverse=True)
        assert report.effects == pytest.approx([float(effects[share.neuron]) for share in report.neurons], abs=1e-4)
        assert report.total_effect == pytest.approx(float(effects.sum()), abs=1e-4)
        # All neurons are ordered, not only those that would be shown.
        ordered = answering.answer(InspectNeurons(key(name), layer, position, 7, question, "effect"))
        assert ordered.effects == pytest.approx(effects[effects.abs().topk(7).indices].tolist(), abs=1e-4)
        assert ordered.effects == pytest.approx([float(effects[share.neuron]) for share in ordered.neurons], abs=1e-4)
        assert (ordered.total, ordered.n_active) == (report.total, report.n_active)
        for share in ordered.neurons[:2]:
            one = answering.answer(InspectNeuron(key(name), layer, position, share.neuron, logit=question))
            assert (one.effect, one.share) == (pytest.approx(float(effects[share.neuron]), abs=1e-4), share)


def test_neurons_have_no_effects_without_a_question_or_elsewhere(answering: LocalEngine) -> None:
    for position, question in ((3, None), (2, LogitQuestion(3, 5))):
        report = answering.answer(InspectNeurons(key("gpt2"), 1, position, logit=question))
        assert (report.effects, report.total_effect) == (None, None)
        assert answering.answer(InspectNeuron(key("gpt2"), 1, position, 4, logit=question)).effect is None
        with pytest.raises(RequestError) as caught:
            answering.answer(InspectNeurons(key("gpt2"), 1, position, logit=question, by="effect"))
        assert str(caught.value) == (
            f"Neurons of token {position} have no direct effect to be ordered by: only those of the target have. Order them by contribution."
        )


def test_a_layer_without_neurons_says_so(answering: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    answering.answer(InspectHeads(key("gpt2"), 0, 0))
    monkeypatch.setattr(FfnShape, "n_neurons", 0)
    with pytest.raises(RequestError, match=r"^The FFN of layer 1 is shown as one block: its neurons cannot be told apart in "):
        answering.answer(InspectNeurons(key("gpt2"), 1, 0))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (InspectHead(key("gpt2"), 0, 99, 0), "Head 99 does not exist: layer 0 has 4 heads, 0 to 3."),
        (InspectHead(key("gpt2"), 0, 0, 0, source=77), "Position 77 does not exist"),
        (InspectHead(key("gpt2"), 7, 0, 0), "Layer 7 does not exist"),
        (InspectHeads(key("gpt2"), 0, 99), "Position 99 does not exist"),
        (InspectNeurons(key("gpt2"), 3, 0), "Layer 3 does not exist"),
        (InspectNeuron(key("gpt2"), 0, 0, 128), "Neuron 128 does not exist"),
        (InspectNeuron(key("gpt2"), 0, 0, -1), "Neuron -1 does not exist"),
    ],
)
def test_what_is_not_there_gets_a_sentence(question: Question, message: str, answering: LocalEngine) -> None:
    with pytest.raises(RequestError) as caught:
        answering.answer(question)  # type: ignore[call-overload]
    assert str(caught.value).startswith(message)


def test_a_long_prompt_has_a_window_of_its_maps(answering: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answering.answer(InspectHead(key("gpt2"), 1, 0, 4))
    monkeypatch.setattr(heads, "MAX_SIDE", 3)
    monkeypatch.setattr(heads.map_window, "__defaults__", (None, 3))
    report = answering.answer(InspectHead(key("gpt2"), 1, 0, 4, source=0))
    assert report.rows == (3, 6)
    assert report.columns == (0, 3)
    np.testing.assert_allclose(report.attention, whole.attention[3:6, 0:3], atol=1e-6)
    np.testing.assert_allclose(report.contributions, whole.contributions[3:6, 0:3], atol=1e-6)


@pytest.mark.alone
def test_each_question_takes_less_than_300_ms_on_the_demo_model_and_runs_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(AppConfig(models={"demo": ModelSpec(name="demo", path=str(MODEL_DIR))}))
    trace = TraceKey(ModelKey("demo"), DEMO_PROMPT)
    engine.answer(InspectHeads(trace, 0, 0))
    last = len(load_model("demo").encode(DEMO_PROMPT)) - 1
    monkeypatch.setattr(BridgeLlm, "run", lambda *args: pytest.fail("the prompt was run again"))
    for make in (
        lambda layer: InspectHeads(trace, layer, last),
        lambda layer: InspectHead(trace, layer, 1, last),
        lambda layer: InspectHead(trace, layer, None, last, source=2),
        lambda layer: InspectNeurons(trace, layer, last),
        lambda layer: InspectNeuron(trace, layer, last, 3),
        lambda layer: InspectNeurons(trace, layer, last, logit=LogitQuestion(last), by="effect"),
    ):
        seconds: list[float] = []
        for layer in range(4):
            started = time.perf_counter()
            engine.answer(make(layer))
            seconds.append(time.perf_counter() - started)
        print(type(make(0)).__name__, " ".join(f"{1000 * second:.0f} ms" for second in seconds))
        assert statistics.median(seconds) < 0.3
    engine.close()


def test_a_heads_maps_report_and_can_be_given_up(answering: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_PIECE_BYTES", 1)
    question = InspectHead(key("gpt2"), 0, 1, -1)
    told: list[tuple[str, float]] = []
    answering.answer(question, lambda *stage: told.append(stage))
    stages = [stage for stage, _ in told]
    n_tokens = answering.answer(question).attention.shape[0]
    assert (stages.count("Reading attention"), stages.count("Computing contributions")) == (n_tokens, n_tokens)
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1

    def give_up(stage: str, fraction: float) -> None:
        if stage == "Computing contributions":
            raise Cancelled

    with pytest.raises(Cancelled):
        answering.answer(question, give_up)
