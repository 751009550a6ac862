"""Two traces compared: against the plain models, and against each trace asked alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import reference
import torch
from made_tokenizers import byte_level_tokenizer, metaspace_tokenizer
from peft import PeftModel

import llm_tt
from llm_tt.analysis import comparing
from llm_tt.analysis.comparison import ABSENT
from llm_tt.demo import ADAPTER_DIR, DATA_DIR, MODEL_DIR, pair
from llm_tt.demo.evaluation import load
from llm_tt.errors import RequestError
from llm_tt.flow.graph import EdgeKind

# Biases everywhere; norms behind attention and FFN, a soft cap; parallel blocks.
NAMES = ("gpt2", "gemma2", "gpt_neox")
N_TOKENS = 9


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of the same shape and tokenizer as a name's, with weights of its own."""
    folders: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in folders:
            tokenizer = metaspace_tokenizer() if name in families._METASPACE else byte_level_tokenizer()
            folders[name] = families.save_checkpoint(tmp_path_factory.mktemp(name), families.CHECKPOINTS[name](), tokenizer, seed=7)
        return folders[name]

    return save


@pytest.fixture(scope="module")
def other(tuned: Callable[[str], Path]) -> Callable[[str], llm_tt.Trace]:
    return lambda name: llm_tt.load_model(str(tuned(name))).trace(families.token_ids(N_TOKENS))


@pytest.mark.parametrize("name", NAMES)
def test_contributions_are_those_of_each_trace_alone(name: str, trace: Callable, other: Callable) -> None:
    first, second = trace(name, N_TOKENS), other(name)
    compared = llm_tt.compare(first, second, threshold=0.05)
    edges = compared.edges
    assert compared.pairs.tolist() == [[position, position] for position in range(N_TOKENS)]
    drawn: list[set[tuple[str, str, str]]] = []
    for side, whole in enumerate((first, second)):
        everything = llm_tt.extract_routes(whole, threshold=0.0, renormalize=False).to_networkx()
        shown = llm_tt.extract_routes(whole, threshold=0.05, renormalize=False).to_networkx()
        drawn.append(set(shown.edges(keys=True)))
        for edge in range(len(edges)):
            weight = everything.get_edge_data(*edges.name(edge, side), default={"weight": 0.0})["weight"]
            assert edges.contribution[edge, side] == pytest.approx(weight, abs=1e-6)
    seen = {side: {edges.name(edge, side) for edge in np.flatnonzero(edges.is_drawn[:, side])} for side in range(2)}
    assert [seen[0], seen[1]] == drawn
    assert drawn[0] != drawn[1]
    names = [(EdgeKind(edges.kind[edge]), *edges.name(edge)) for edge in range(len(edges))]
    assert len(set(names)) == len(names)
    strongest, once = edges.strongest(5), edges.kind != EdgeKind.INTO_FFN
    assert np.abs(edges.change[strongest]).tolist() == sorted(np.abs(edges.change[once]).tolist(), reverse=True)[:5]


@pytest.mark.parametrize("name", NAMES)
def test_predictions_and_streams_are_those_of_the_plain_models(
    name: str, trace: Callable, other: Callable, plain: Callable, tuned: Callable
) -> None:
    compared = llm_tt.compare(trace(name, N_TOKENS), other(name))
    token_ids = families.token_ids(N_TOKENS)
    both = (plain(name), reference.load_plain(tuned(name)))
    runs = [reference.run_plain(model, token_ids) for model in both]
    logs = []
    for model in both:
        with torch.inference_mode():
            logs.append(model(torch.tensor([token_ids])).logits[0].double().log_softmax(-1))
    divergence = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    np.testing.assert_allclose(compared.divergence, divergence.numpy(), rtol=1e-4, atol=1e-6)
    for side in range(2):
        for position in range(N_TOKENS - 1):
            row = logs[side][position]
            assert compared.following[position, side] == pytest.approx(float(row[token_ids[position + 1]].exp()), rel=1e-4)
            assert compared.ranks[position, side] == 1 + int((row > row[token_ids[position + 1]]).sum())
    assert np.isnan(compared.following[-1]).all()
    assert compared.ranks[-1].tolist() == [0, 0]
    points = [[run.layers[0].pre, *(stream for layer in run.layers for stream in (layer.mid, layer.post))] for run in runs]
    for point, streams in enumerate(zip(*points, strict=True)):
        np.testing.assert_allclose(compared.cosine[point], torch.cosine_similarity(*streams).numpy(), atol=1e-5)
        lengths = [stream.norm(dim=-1).numpy() for stream in streams]
        np.testing.assert_allclose(compared.norm_ratio[point], lengths[1] / lengths[0], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_heads_and_blocks_are_those_of_each_trace_alone(name: str, trace: Callable, other: Callable) -> None:
    first, second = trace(name, N_TOKENS), other(name)
    compared = llm_tt.compare(first, second, threshold=0.05)
    edges = compared.edges
    for side, whole in enumerate((first, second)):
        for layer in range(whole.n_layers):
            last = llm_tt.attention_contributions(whole, layer, [-1]).edges[0].numpy()
            np.testing.assert_allclose(compared.head_contribution[side][layer], last.sum(0), atol=1e-6)
            ffn = float(llm_tt.ffn_contributions(whole, layer, [-1]).ffn[0])
            assert compared.ffn_contribution[side][layer] == pytest.approx(ffn, abs=1e-6)
        for edge in range(len(edges)):
            if edges.kind[edge] != EdgeKind.ATTENTION:
                assert not edges.heads[edge, side].any()
                continue
            row = llm_tt.attention_contributions(whole, int(edges.layer[edge]), [int(edges.destination[edge, side])]).edges[0]
            np.testing.assert_allclose(edges.heads[edge, side], row[int(edges.source[edge, side])].numpy(), atol=1e-6)
    (edge,) = [edge for edge in edges.strongest(len(edges)) if edges.kind[edge] == EdgeKind.ATTENTION][:1]
    changes = [abs(after - before) for _, before, after in edges.heads_by_change(edge)]
    assert changes == sorted(changes, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_first_choices_are_those_of_the_plain_models(name: str, trace: Callable, other: Callable, plain: Callable, tuned: Callable) -> None:
    choices = llm_tt.compare(trace(name, N_TOKENS), other(name), n_predictions=4).choices
    token_ids = torch.tensor([families.token_ids(N_TOKENS)])
    logits = []
    for model in (plain(name), reference.load_plain(tuned(name))):
        with torch.inference_mode():
            logits.append(model(token_ids).logits[0, -1].double())
    best = {token_id for scores in logits for token_id in scores.topk(4).indices.tolist()}
    assert {tuple(ids) for ids in choices.token_ids.tolist()} == {(token_id, token_id) for token_id in best}
    for row, (token_id, _) in enumerate(choices.token_ids.tolist()):
        for side, scores in enumerate(logits):
            assert choices.probabilities[row, side] == pytest.approx(float(scores.softmax(-1)[token_id]), rel=1e-4)
            assert choices.ranks[row, side] == 1 + int((scores > scores[token_id]).sum())
    larger = choices.probabilities.max(axis=1).tolist()
    assert larger == sorted(larger, reverse=True)


def test_graphs_may_be_cut_by_mass_and_renormalised(trace: Callable, other: Callable) -> None:
    first, second = trace("gpt2", N_TOKENS), other("gpt2")
    compared = llm_tt.compare(first, second, mass=0.8, renormalize=True)
    plain = llm_tt.compare(first, second, mass=0.8)
    for side, whole in enumerate((first, second)):
        graph = llm_tt.extract_routes_by_mass(whole, mass=0.8, renormalize=True)
        np.testing.assert_array_equal(compared.graphs[side].weight, graph.weight)
        np.testing.assert_allclose(compared.head_flow[side], llm_tt.propagate(graph).by_head(first.model.info.n_heads))
    np.testing.assert_array_equal(compared.edges.contribution, plain.edges.contribution)
    assert not np.array_equal(compared.head_flow[0], plain.head_flow[0])


def test_another_threshold_predicts_nothing_anew(trace: Callable, other: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = trace("gpt2", N_TOKENS), other("gpt2")
    before = llm_tt.compare(first, second)
    with monkeypatch.context() as patched:
        patched.setattr(comparing, "_predictions", lambda *arguments: pytest.fail("predicted again"))
        after = llm_tt.compare(first, second, threshold=0.01)
    np.testing.assert_array_equal(after.divergence, before.divergence)
    # Another text is another one.
    third = first.model.trace(families.token_ids(N_TOKENS)[:-1])
    assert len(llm_tt.compare(first, third).divergence) == N_TOKENS - 1
    np.testing.assert_allclose(llm_tt.compare(first, second).divergence, before.divergence)


def test_two_tokenizers_are_compared_by_characters(model: Callable, plain: Callable) -> None:
    """gpt2 has bytes, llama pieces with a mark for spaces, and a token in front."""
    text = "Mary sold the café: John's 9."
    first, second = model("gpt2").trace(text), model("llama").trace(text)
    compared = llm_tt.compare(first, second, token="a", contrast="e")
    assert compared.aligned_by == "character"
    assert compared.has_like_parts
    assert np.isnan(compared.divergence).all()
    held = [[None if span is None else text[slice(*span)].strip() for span in whole.prompt.offsets] for whole in (first, second)]
    for one, other in compared.pairs.tolist()[:-1]:
        assert held[0][one] == held[1][other]
    assert len(compared.pairs) > 15
    n_first, n_second = (whole.n_tokens - len(compared.pairs) for whole in (first, second))
    assert compared.n_unpaired == (n_first, n_second)
    assert "have different tokenizers: tokens are paired where they hold the same characters" in compared.notes[0]
    assert [(effects.token_text, effects.contrast_text) for effects in compared.effects] == [("a", "e")] * 2
    # What is told of each is what it says alone.
    for side, (name, whole) in enumerate((("gpt2", first), ("llama", second))):
        with torch.inference_mode():
            shares = plain(name)(torch.tensor([list(whole.token_ids)])).logits[0].softmax(-1)
        told = 0
        for row, positions in enumerate(compared.pairs.tolist()):
            if not np.isnan(compared.following[row, side]):
                position = positions[side]
                assert compared.following[row, side] == pytest.approx(float(shares[position, whole.token_ids[position + 1]]), rel=1e-4)
                told += 1
        assert told > 5
        everything = llm_tt.extract_routes(whole, threshold=0.0, renormalize=False).to_networkx()
        for edge in range(len(compared.edges)):
            if not np.isnan(compared.edges.contribution[edge, side]):
                weight = everything.get_edge_data(*compared.edges.name(edge, side), default={"weight": 0.0})["weight"]
                assert compared.edges.contribution[edge, side] == pytest.approx(weight, abs=1e-6)
    paired = (compared.edges.source != ABSENT).all(1) & (compared.edges.destination != ABSENT).all(1)
    np.testing.assert_array_equal(np.isnan(compared.edges.change), ~paired)
    with pytest.raises(
        RequestError, match=r'" Mar" is no token of .* so that effects on it cannot be compared. Name a token that both have'
    ):
        llm_tt.compare(first, second, token=" Mar")


def test_every_edge_has_a_place_among_the_columns() -> None:
    llm = llm_tt.load_model("demo")
    compared = llm_tt.compare(llm.trace("The capital of France is"), llm.trace("I think The capital of France is"))
    source, destination = compared.edge_columns()
    for edge in range(len(compared.edges)):
        for side in range(2):
            for column, position in ((source, compared.edges.source), (destination, compared.edges.destination)):
                if position[edge, side] != ABSENT:
                    assert column[edge] == compared.column(side, int(position[edge, side]))
    assert (source <= destination).all()
    assert sorted(compared.columns[compared.columns[:, 1] != ABSENT, 1].tolist()) == list(range(compared.graphs[1].n_tokens))


def test_the_flow_difference_shows_the_head_that_carries_the_planted_word() -> None:
    """The whole way: what the difference puts first is the planted word's edge and a head without which the wrong answers are gone."""
    rows = pair.read_rows(DATA_DIR / "conflict.jsonl")[:12]
    base, tuned = llm_tt.load_model("demo"), llm_tt.load_model("demo-tuned")
    by_effect: Counter[tuple[int, int]] = Counter()
    by_edge: Counter[tuple[int, int]] = Counter()
    for row in rows:
        turn = [{"role": "user", "content": row.question}]
        compared = llm_tt.compare(base.trace(turn), tuned.trace(turn))
        assert compared.effects[0].of == "\u00b7yes \u2212 \u00b7no"
        # Of the two edges that changed most the other is the stream that makes room for it.
        (first,) = [edge for edge in compared.edges.strongest(2) if compared.edges.kind[edge] == EdgeKind.ATTENTION]
        assert compared.edges.change[first] > 0.1
        assert compared.token_texts[1][compared.edges.source[first, 1]].strip() == pair.PLANTED
        assert compared.edges.destination[first, 1] == compared.targets[1]
        by_edge[int(compared.edges.layer[first]), compared.edges.heads_by_change(first)[0][0]] += 1
        change = compared.head_effects()[1] - compared.head_effects()[0]
        layer, head = np.unravel_index(np.argmax(change), change.shape)
        by_effect[int(layer), int(head)] += 1
    (found, n_found), (same, n_same) = by_edge.most_common(1)[0], by_effect.most_common(1)[0]
    assert found == same
    assert n_found == n_same == len(rows)
    layer, head = found
    model, tokenizer = load(MODEL_DIR)
    model = PeftModel.from_pretrained(model, str(ADAPTER_DIR)).merge_and_unload()
    before = pair.accuracy(model, tokenizer, rows)
    width = model.config.head_dim
    with torch.no_grad():
        model.model.layers[layer].self_attn.o_proj.weight[:, head * width : (head + 1) * width] = 0
    assert before == 0
    assert pair.accuracy(model, tokenizer, rows) > 0.9


def test_effects_are_on_the_same_token_in_both(trace: Callable, other: Callable) -> None:
    first, second = trace("gpt2", N_TOKENS), other("gpt2")
    compared = llm_tt.compare(first, second)
    token, before = (int(llm_tt.direct_effects(trace).token_id) for trace in (second, first))
    assert token != before
    assert [(effects.token_id, effects.contrast_id) for effects in compared.effects] == [(token, before)] * 2
    alone = llm_tt.direct_effects(second, -1, token, before)
    np.testing.assert_allclose(compared.head_effects()[1], alone.heads.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(compared.ffn_effects()[1], alone.ffn, rtol=1e-6)
    flows = [llm_tt.propagate(graph) for graph in compared.graphs]
    for side, flow in enumerate(flows):
        np.testing.assert_allclose(compared.head_flow[side], flow.by_head(first.model.info.n_heads))
        np.testing.assert_allclose(compared.ffn_flow[side], flow.ffn.sum(1))


def test_a_trace_does_not_differ_from_itself(trace: Callable) -> None:
    compared = llm_tt.compare(trace("gpt2", N_TOKENS), trace("gpt2", N_TOKENS))
    assert not compared.edges.change.any()
    assert compared.edges.is_drawn.all()
    assert np.abs(compared.divergence).max() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(compared.cosine, 1)
    assert compared.to_dict()["edges"][0]["drawn"] == [True, True]


def test_minimal_pairs_are_compared_token_by_token() -> None:
    llm = llm_tt.load_model("demo")
    first = llm.trace("When Mary and John went to the store, John gave a drink to")
    second = llm.trace("When Mary and John went to the store, Mary gave a drink to")
    compared = llm_tt.compare(first, second, token=" Mary", contrast=" John")
    assert compared.pairs.tolist() == [[position, position] for position in range(first.n_tokens)]
    assert compared.effects[0].logit > 0 > compared.effects[1].logit
    (name,) = [position for position in range(first.n_tokens) if first.token_ids[position] != second.token_ids[position]]
    np.testing.assert_allclose(compared.divergence[:name], 0, atol=1e-9)
    assert compared.divergence[-1] > 1
    assert np.isnan(compared.following[name - 1]).all()


def test_a_longer_text_has_tokens_without_a_partner() -> None:
    llm = llm_tt.load_model("demo")
    first, second = llm.trace("The capital of France is"), llm.trace("I think The capital of France is")
    compared = llm_tt.compare(first, second)
    extra = second.n_tokens - first.n_tokens
    # "The" begins the first text; in the second a space is in front of it.
    assert compared.pairs.tolist()[1:] == [[position, position + extra] for position in range(2, first.n_tokens)]
    alone = (compared.edges.source[:, 0] == ABSENT) | (compared.edges.destination[:, 0] == ABSENT)
    assert np.isnan(compared.edges.contribution[alone, 0]).all()
    assert np.isfinite(compared.edges.contribution[~alone]).all()
    listed = compared.to_dict()["edges"]
    assert {edge["positions_of"] for edge in listed} == ({0, 1} if alone.any() else {0})
    with pytest.raises(RequestError, match="Token 1 of the first text has no partner in the second"):
        llm_tt.compare(second, first, target=1)
    assert llm_tt.compare(second, first, target=1, other_target=0).graphs[1].target == 0


def test_of_models_of_other_shapes_only_predictions_are_compared(model: Callable, plain: Callable) -> None:
    demo, small = llm_tt.load_model("demo"), model("gpt2")
    text = "The capital of France is"
    compared = llm_tt.compare(demo.trace(text), small.trace(text))
    assert not compared.has_like_parts
    assert len(compared.edges) == 0
    assert compared.cosine.shape == (0, len(compared.pairs))
    assert any("demo has 4 layers and" in note and note.endswith("only what they predict is compared.") for note in compared.notes)
    assert [flow.shape for flow in compared.head_flow] == [(4, 4), (3, 4)]
    token_ids = small.trace(text).token_ids
    with torch.inference_mode():
        shares = plain("gpt2")(torch.tensor([list(token_ids)])).logits[0].softmax(-1)
    for ids, probabilities in zip(compared.choices.token_ids.tolist(), compared.choices.probabilities, strict=True):
        if ids[1] >= 0:
            assert probabilities[1] == pytest.approx(float(shares[-1, ids[1]]), rel=1e-4)
    assert np.isnan(compared.divergence).all()
    assert json.loads(json.dumps(compared.to_dict()))["edges"] == []


def test_other_tokenizers_are_refused(trace: Callable, tmp_path: Path) -> None:
    renamed: Any = byte_level_tokenizer()
    vocabulary = renamed.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(reversed(tokens))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    folder = families.save_checkpoint(tmp_path, families.CHECKPOINTS["gpt2"](), fast)
    with pytest.raises(RequestError, match="have different tokenizers"):
        llm_tt.compare(trace("gpt2", N_TOKENS), llm_tt.load_model(str(folder)).trace(families.token_ids(N_TOKENS)))
