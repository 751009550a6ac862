"""Maps and outputs of single heads, neurons and their directions: against plain Hugging Face modules and the brute force in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import reference
import torch
from families import token_ids
from handmade import handmade_trace
from reference import Run
from torch import Tensor

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.flow import heads
from llm_tt.flow.contributions import table_of
from llm_tt.lens import vocabulary

N_TOKENS = 20
# Biases everywhere; a norm behind the blocks and soft caps, parallel blocks, experts, sinks, a gate, a norm before W_O, a multiplier.
KINDS = ("gpt2", "llama", "gemma2", "gpt_neox", "mixtral", "gpt_oss", "afmoe", "bitnet", "granite")
every_kind = pytest.mark.parametrize("name", KINDS)


def off(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.double() - expected).abs().max())


@every_kind
def test_attention_maps_are_the_models_own_eager_weights(name: str, trace: Callable, plain: Callable) -> None:
    traced = trace(name, N_TOKENS)
    with torch.no_grad():
        weights = plain(name)(torch.tensor([token_ids(N_TOKENS)]), output_attentions=True, use_cache=False).attentions
    assert len(weights) == traced.n_layers
    for layer, expected in enumerate(weights):
        assert heads.n_heads(traced, layer) == expected.shape[1]
        for head in range(expected.shape[1]):
            made = llm_tt.attention_map(traced, layer, head)
            assert made.dtype == torch.float32
            assert off(made, expected[0, head].double()) <= 1e-5
        assert off(llm_tt.attention_map(traced, layer), expected[0].double().mean(0)) <= 1e-5


@every_kind
def test_contribution_maps_equal_brute_force(name: str, trace: Callable, plain_contributions: Callable) -> None:
    traced = trace(name, N_TOKENS)
    for layer, expected in enumerate(plain_contributions(name, N_TOKENS).edges):
        for head in range(expected.shape[2]):
            assert off(llm_tt.contribution_map(traced, layer, head), expected[..., head]) <= 1e-5
        assert off(llm_tt.contribution_map(traced, layer), expected.sum(-1)) <= 1e-5


@every_kind
def test_windows_are_pieces_of_the_whole_map(name: str, trace: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = trace(name, N_TOKENS)
    rows, columns = range(5, 17), range(2, 9)
    for make in (llm_tt.attention_map, llm_tt.contribution_map):
        whole = make(traced, 1, 2)
        monkeypatch.setattr(heads, "_PIECE_BYTES", 4 * N_TOKENS * 4 * 3)
        window = make(traced, -2, 2, rows, columns)
        monkeypatch.undo()
        assert torch.allclose(window, whole[5:17, 2:9], atol=1e-6)
        assert make(traced, 1, 2, range(3, 3)).shape == (0, N_TOKENS)


@every_kind
@pytest.mark.parametrize("position", [0, 7, N_TOKENS - 1])
def test_head_outputs_are_the_plain_models_and_sum_with_the_bias_to_what_attention_added(
    name: str, position: int, trace: Callable, plain_run: Callable
) -> None:
    traced, run = trace(name, N_TOKENS), plain_run(name, N_TOKENS)
    for layer, plain_layer in enumerate(run.layers):
        parts = reference.attention_parts(plain_layer)[position]
        outputs = llm_tt.head_outputs(traced, layer, position)
        assert outputs.dtype == torch.float32
        assert off(outputs, parts.sum(0)) <= 2e-5
        assert off(outputs.sum(0) + reference.attention_bias(plain_layer)[position].float(), plain_layer.attn_out[position]) <= 5e-5
        for source in {0, position // 2, position}:
            assert off(llm_tt.head_outputs(traced, layer, position, source), parts[source]) <= 2e-5
        if position + 1 < N_TOKENS:
            assert not llm_tt.head_outputs(traced, layer, position, position + 1).any()


@every_kind
def test_neurons_equal_brute_force(name: str, trace: Callable, plain_run: Callable) -> None:
    traced = trace(name, N_TOKENS)
    for layer, plain_layer in enumerate(plain_run(name, N_TOKENS).layers):
        contributions, parts = reference.neurons(plain_layer), reference.neuron_parts(plain_layer)
        for position in (0, 7, N_TOKENS - 1):
            row = llm_tt.neurons_at(traced, layer, position)
            assert off(row.activations, plain_layer.neurons[position]) <= 5e-5
            assert off(row.contributions, contributions[position]) <= 1e-5
            total = reference.ffn_bias(plain_layer)[position].clone()
            for neuron in row.activations.nonzero()[:, 0].tolist():
                made = row.activations[neuron] * llm_tt.neuron_direction(traced, layer, position, neuron)
                assert off(made, parts[position, neuron]) <= 5e-5
                total += made.double()
            assert float((total - plain_layer.ffn_out[position]).abs().max()) <= 2e-4


# --- words


def plain_effects(model: torch.nn.Module, name: str, part: Tensor, whole: Tensor) -> Tensor:
    """[V] float64: part under the final norm of the whole, written out, times the rows of the unembedding."""
    norm = model.get_submodule({"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}.get(name, "model.norm"))
    head = model.get_submodule("embed_out" if hasattr(model, "embed_out") else "lm_head")
    weight = norm.weight.detach().double() + (1 if name == "gemma2" else 0)  # type: ignore[operator, union-attr]
    if isinstance(norm, torch.nn.LayerNorm):
        part = (part - part.mean()) / (whole.var(correction=0) + norm.eps).sqrt()
    else:
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        part = part / (whole.square().mean() + eps).sqrt()  # type: ignore[operator]
    return head.weight.detach().double() @ (part * weight)  # type: ignore[operator, union-attr]


def assert_extremes(tables: tuple[vocabulary.TokenTable, vocabulary.TokenTable], expected: Tensor, k: int) -> None:
    for table, largest in zip(tables, (True, False), strict=True):
        best = expected.topk(k, largest=largest).values
        assert table.scores.tolist() == pytest.approx(best.tolist(), rel=1e-4, abs=2e-4)
        assert table.scores.tolist() == pytest.approx(expected[table.token_ids].tolist(), rel=1e-4, abs=2e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral"])
def test_what_heads_and_neurons_promote_is_that_of_the_plain_weights_in_float64(
    name: str, trace: Callable, plain: Callable, plain_run: Callable
) -> None:
    traced: llm_tt.Trace = trace(name, N_TOKENS)
    run: Run = plain_run(name, N_TOKENS)
    for layer, position, head, source in ((0, 7, 1, 3), (2, 19, 3, 19)):
        plain_layer, block = run.layers[layer], traced.blocks[layer]
        parts = reference.attention_parts(plain_layer)[position, :, head]
        for chosen, part in ((None, parts.sum(0)), (source, parts[source])):
            made = llm_tt.head_outputs(traced, layer, position, chosen)[head]
            tables = vocabulary.promoted_and_suppressed(traced.model, made, block.resid_mid[position], 6)
            assert_extremes(tables, plain_effects(plain(name), name, part, plain_layer.mid[position]), 6)
        neuron = int(reference.neurons(plain_layer)[position].argmax())
        made = llm_tt.neurons_at(traced, layer, position).activations[neuron] * llm_tt.neuron_direction(traced, layer, position, neuron)
        tables = vocabulary.promoted_and_suppressed(traced.model, made, block.resid_post[position], 6)
        part = reference.neuron_parts(plain_layer)[position, neuron]
        assert_extremes(tables, plain_effects(plain(name), name, part, plain_layer.post[position]), 6)


# --- what is kept, what is refused


def test_maps_and_neurons_use_what_is_kept_with_the_trace(model: Callable) -> None:
    traced = model("gpt2").trace(token_ids(N_TOKENS))
    llm_tt.contribution_map(traced, 1, 0)
    table, kept = table_of(traced), table_of(traced).nbytes
    assert kept > 0
    llm_tt.contribution_map(traced, 1, 3)
    llm_tt.attention_contributions(traced, 1)
    assert table.nbytes == kept
    neurons = llm_tt.neurons_at(traced, 1, 4)
    assert table.nbytes == kept + 2 * 4 * len(neurons.activations)
    assert llm_tt.neurons_at(traced, 1, 4) is neurons
    llm_tt.neuron_contributions(traced, 1, 4).zero_()
    assert neurons.contributions.any()


def test_a_large_map_leaves_nothing_behind(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = model("gpt2").trace(token_ids(N_TOKENS))
    monkeypatch.setattr(heads, "_KEPT_BYTES", 4 * N_TOKENS * 4 * 5 - 1)
    llm_tt.contribution_map(traced, 1, 0, range(4, 9))
    assert table_of(traced).nbytes == 0
    llm_tt.contribution_map(traced, 1, 0, range(4, 8))
    assert table_of(traced).nbytes > 0


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda trace: llm_tt.attention_map(trace, 0, 4), "Head 4 does not exist: layer 0 has 4 heads, 0 to 3."),
        (lambda trace: llm_tt.contribution_map(trace, 0, -1), "Head -1 does not exist: layer 0 has 4 heads, 0 to 3."),
        (lambda trace: llm_tt.attention_map(trace, 3, 0), "Layer 3 does not exist: the model has 3 layers, 0 to 2."),
        (
            lambda trace: llm_tt.attention_map(trace, 0, 0, range(5, 21)),
            "range(5, 21) is no window of the prompt, which has positions 0 to 19. Give a range of neighbouring positions.",
        ),
        (lambda trace: llm_tt.contribution_map(trace, 0, 0, None, range(0, 8, 2)), "range(0, 8, 2) is no window of the prompt"),
        (lambda trace: llm_tt.contribution_map(trace, 0, 0, range(-2, 3)), "range(-2, 3) is no window of the prompt"),
        (lambda trace: llm_tt.head_outputs(trace, 0, 20), "Position 20 does not exist"),
        (lambda trace: llm_tt.head_outputs(trace, 0, 1, 99), "Position 99 does not exist"),
        (
            lambda trace: llm_tt.neuron_direction(trace, 0, 0, 128),
            "Neuron 128 does not exist: the FFN of layer 0 has 128 neurons, 0 to 127.",
        ),
        (lambda trace: llm_tt.neurons_at(trace, 5, 0), "Layer 5 does not exist"),
    ],
)
def test_what_is_not_there_gets_a_sentence(ask: Callable, message: str, trace: Callable) -> None:
    with pytest.raises(RequestError) as caught:
        ask(trace("gpt2", N_TOKENS))
    assert str(caught.value).startswith(message)


def long_trace(n_tokens: int, n_heads: int = 1) -> llm_tt.Trace:
    """Its pattern is one row that all tokens share; nothing of it is T x T."""
    x = torch.ones(n_tokens, 2)
    alpha = torch.ones(n_heads, 1, 1).expand(n_heads, n_tokens, n_tokens)
    return handmade_trace(pre=x, mid=x, alpha=alpha, values=torch.ones(1, n_tokens, 2), w_o=torch.ones(n_heads, 2, 2))


def test_a_map_of_too_many_cells_is_refused_with_the_numbers() -> None:
    with pytest.raises(RequestError) as caught:
        llm_tt.attention_map(long_trace(8192), 0, 0)
    assert str(caught.value) == (
        "A map of 8192 x 8192 tokens has 67,108,864 cells, more than 4,194,304. "
        "Choose a window: rows=range(start, stop), columns=range(start, stop)."
    )


@pytest.mark.parametrize(
    ("n_tokens", "n_heads", "position", "source", "rows", "columns"),
    [
        (20, 4, 7, None, range(20), range(20)),
        (512, 32, 511, 3, range(384, 512), range(512)),
        (1000, 1, 999, None, range(488, 1000), range(488, 1000)),
        (1000, 1, 600, 550, range(344, 856), range(344, 856)),
        (1000, 1, 999, 2, range(488, 1000), range(512)),
        (1000, 1, 10, None, range(512), range(512)),
        (8192, 32, -1, None, range(8176, 8192), range(7680, 8192)),
        (8192, 32, 100, None, range(92, 108), range(512)),
    ],
)
def test_windows_hold_target_and_source(
    n_tokens: int, n_heads: int, position: int, source: int | None, rows: range, columns: range
) -> None:
    assert heads.map_window(long_trace(n_tokens, n_heads), 0, position, source) == (rows, columns)
    assert position % n_tokens in rows
    assert source is None or source in columns
