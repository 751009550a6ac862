"""What the engine says of a node or an edge, against a plain Hugging Face model and the method by brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch

from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import InspectEdge, InspectNode, ModelKey, TraceKey
from llm_tt.errors import RequestError
from llm_tt.lens import vocabulary
from llm_tt.lens.vocabulary import TokenTable

PROMPT = "Mary the store."

families = pytest.mark.parametrize("name", ["gpt2", "llama"])


def key(name: str) -> TraceKey:
    return TraceKey(ModelKey(name), PROMPT)


@pytest.fixture(scope="module")
def plain_prompt(tiny: Callable, plain: Callable) -> Callable[[str], reference.Run]:
    runs: dict[str, reference.Run] = {}

    def run(name: str) -> reference.Run:
        if name not in runs:
            runs[name] = reference.run_plain(plain(name), tiny(name).encode(PROMPT))
        return runs[name]

    return run


def assert_same(table: TokenTable | None, expected: TokenTable) -> None:
    assert table is not None
    assert table.token_ids.tolist() == expected.token_ids.tolist()
    assert table.texts == expected.texts
    np.testing.assert_allclose(table.scores, expected.scores, rtol=1e-4, atol=1e-4)
    for column in ("probabilities", "ranks", "rank_changes"):
        mine, other = getattr(table, column), getattr(expected, column)
        assert (mine is None) == (other is None), column
        if mine is not None:
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6, err_msg=column)


@families
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "raw"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", ["X", "A", "M", "I"])
def test_a_node_says_what_its_vector_and_its_block_say(
    name: str, normalize: bool, layer: int, kind: str, engine: LocalEngine, tiny: Callable, plain_prompt: Callable
) -> None:
    position = 1 + layer
    llm, acts = tiny(name), plain_prompt(name).layers[layer]
    pre, mid, post, attn_out, ffn_out = (
        tensor[position].float() for tensor in (acts.pre, acts.mid, acts.post, acts.attn_out, acts.ffn_out)
    )
    node = f"X0_{position}" if kind == "X" else f"{kind}{layer}_{position}"
    report = engine.answer(InspectNode(key(name), node, n_top=12, n_effects=6, normalize=normalize))
    assert report.node == node
    assert report.token_text == llm.texts(llm.encode(PROMPT))[position]
    if kind == "X":
        embedding = plain_prompt(name).layers[0].pre[position].float()
        assert_same(report.top, vocabulary.top_tokens(llm, embedding, 12, normalize=normalize))
        assert (report.block, report.promoted, report.suppressed) == (None, None, None)
        return
    block, part, before, whole = ("attention", attn_out, pre, mid) if kind == "A" else ("FFN", ffn_out, mid, post)
    assert report.block == block
    promoted, suppressed = vocabulary.promoted_and_suppressed(llm, part, whole, 6, normalize)
    assert_same(report.promoted, promoted)
    assert_same(report.suppressed, suppressed)
    if kind == "M":
        assert report.top is None
    else:
        assert_same(report.top, vocabulary.top_tokens(llm, whole, 12, before, normalize))


@families
def test_the_last_node_says_the_prediction(name: str, engine: LocalEngine, plain_prompt: Callable) -> None:
    last = len(plain_prompt(name).logits) - 1
    report = engine.answer(InspectNode(key(name), f"I2_{last}", n_top=5))
    assert report.top is not None
    assert report.top.token_ids.tolist() == plain_prompt(name).logits[-1].argsort(descending=True)[:5].tolist()


def edges(n_layers: int, n_tokens: int) -> list[tuple[str, str, Any]]:
    """Every edge that a transformer has, below a handful of positions."""
    result: list[tuple[str, str, Any]] = []
    for layer in range(n_layers):
        for position in (0, 3, n_tokens - 1):
            entering = "X0_{}" if layer == 0 else f"I{layer - 1}_{{}}"
            mid, block, post = f"A{layer}_{position}", f"M{layer}_{position}", f"I{layer}_{position}"
            result += [(entering.format(source), mid, "attention") for source in range(position + 1)]
            result += [(entering.format(position), mid, "residual"), (mid, post, "residual"), (mid, block, "ffn"), (block, post, "ffn")]
    return result


@families
def test_every_edge_has_the_contribution_of_the_method(name: str, engine: LocalEngine, plain_prompt: Callable) -> None:
    run = plain_prompt(name)
    exact = reference.full_graph(reference.Contributions.of(run.layers), threshold=0.0, renormalize=False)
    asked = edges(len(run.layers), len(run.logits))
    assert len(asked) > 60
    for source, destination, edge_key in asked:
        report = engine.answer(InspectEdge(key(name), source, destination, edge_key))
        expected = exact.get((source, destination, edge_key))
        weight, heads = (expected.weight, expected.heads) if expected else (0.0, {})
        assert (report.source, report.destination, report.key) == (source, destination, edge_key)
        assert report.contribution == pytest.approx(weight, abs=1e-5)
        if edge_key != "attention":
            assert report.heads == ()
            continue
        assert sorted(head for head, _ in report.heads) == list(range(4))
        assert dict(report.heads) == pytest.approx({head: heads.get(head, 0.0) for head in range(4)}, abs=1e-5)
        shares = [share for _, share in report.heads]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(report.contribution, abs=1e-6)


@families
@pytest.mark.parametrize("position", [0, 2, 4])
def test_edges_into_a_node_sum_to_one(name: str, position: int, engine: LocalEngine) -> None:
    def total(destination: str, sources: list[tuple[str, Any]]) -> float:
        return sum(engine.answer(InspectEdge(key(name), source, destination, edge_key)).contribution for source, edge_key in sources)

    attention: list[tuple[str, Any]] = [(f"I0_{source}", "attention") for source in range(position + 1)]
    assert total(f"A1_{position}", [*attention, (f"I0_{position}", "residual")]) == pytest.approx(1, abs=1e-5)
    assert total(f"I1_{position}", [(f"M1_{position}", "ffn"), (f"A1_{position}", "residual")]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("source", "destination", "edge_key"),
    [
        ("X0_3", "A0_2", "attention"),  # from the future
        ("X0_2", "A1_2", "attention"),  # past a layer
        ("I0_2", "A0_2", "attention"),
        ("I1_2", "A1_2", "attention"),
        ("A0_1", "A1_2", "attention"),
        ("X0_1", "A0_2", "residual"),  # between tokens
        ("X0_2", "I0_2", "residual"),
        ("A0_1", "I0_2", "residual"),
        ("A0_2", "I1_2", "residual"),
        ("A0_2", "M0_2", "residual"),
        ("M0_2", "A0_2", "ffn"),  # backwards
        ("A0_2", "I0_2", "ffn"),
        ("A0_2", "M0_3", "ffn"),
        ("M0_2", "I1_2", "ffn"),
        ("X0_2", "X0_2", "residual"),
        ("X0_2", "A0_2", "ffn"),
        ("X0_2", "A0_2", "no such kind"),
        ("X0_2", "A0_2", ""),
    ],
)
def test_an_edge_that_no_transformer_has_gets_a_sentence(source: str, destination: str, edge_key: Any, engine: LocalEngine) -> None:
    with pytest.raises(RequestError) as caught:
        engine.answer(InspectEdge(key("gpt2"), source, destination, edge_key))
    assert str(caught.value) == f'There is no {edge_key} edge from "{source}" to "{destination}" in a transformer.'


def test_an_attention_edge_of_a_token_to_itself_and_its_residual_edge_are_two(engine: LocalEngine) -> None:
    attention, residual = (engine.answer(InspectEdge(key("gpt2"), "I0_4", "A1_4", edge_key)) for edge_key in ("attention", "residual"))  # type: ignore[arg-type]
    assert len(attention.heads) == 4
    assert residual.heads == ()
    assert attention.contribution != pytest.approx(residual.contribution)
    assert torch.tensor([share for _, share in attention.heads]).sum() == pytest.approx(attention.contribution, abs=1e-6)
