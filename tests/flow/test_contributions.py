"""Contributions equal the brute force on a plain Hugging Face model, and are shares of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import reference
import torch
from families import CORE, LENGTHS, token_ids
from handmade import handmade_trace
from reference import Contributions, Run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.flow import contributions

every_family = pytest.mark.parametrize("name", CORE)
every_length = pytest.mark.parametrize("n_tokens", LENGTHS)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    assert actual.device.type == "cpu"
    assert float((actual.double() - expected).abs().max()) <= tolerance


@every_family
@every_length
def test_attention_contributions_equal_brute_force(name: str, n_tokens: int, trace: Callable, plain_contributions: Callable) -> None:
    expected: Contributions = plain_contributions(name, n_tokens)
    for layer in range(len(expected.edges)):
        actual = llm_tt.attention_contributions(trace(name, n_tokens), layer)
        assert actual.positions == tuple(range(n_tokens))
        assert_close(actual.edges, expected.edges[layer])
        assert_close(actual.residual, expected.attention_residual[layer])


@every_family
@every_length
def test_ffn_contributions_equal_brute_force(name: str, n_tokens: int, trace: Callable, plain_contributions: Callable) -> None:
    expected: Contributions = plain_contributions(name, n_tokens)
    for layer in range(len(expected.ffn)):
        actual = llm_tt.ffn_contributions(trace(name, n_tokens), layer)
        assert_close(actual.ffn, expected.ffn[layer])
        assert_close(actual.residual, expected.ffn_residual[layer])


@every_family
@every_length
def test_neuron_contributions_equal_brute_force(name: str, n_tokens: int, trace: Callable, plain_run: Callable) -> None:
    run: Run = plain_run(name, n_tokens)
    for layer, activations in enumerate(run.layers):
        expected = reference.neurons(activations)
        for position in {0, n_tokens // 2, n_tokens - 1}:
            actual = llm_tt.neuron_contributions(trace(name, n_tokens), layer, position)
            assert_close(actual, expected[position])
            assert 0 < float(actual.sum()) <= 1 + 1e-5


@every_family
@every_length
def test_contributions_of_a_node_sum_to_one_and_none_comes_from_the_future(name: str, n_tokens: int, trace: Callable) -> None:
    for layer in range(trace(name, n_tokens).n_layers):
        attention = llm_tt.attention_contributions(trace(name, n_tokens), layer)
        ffn = llm_tt.ffn_contributions(trace(name, n_tokens), layer)
        assert torch.allclose(attention.edges.sum((1, 2)) + attention.residual, torch.ones(n_tokens), atol=1e-5)
        assert torch.allclose(ffn.ffn + ffn.residual, torch.ones(n_tokens), atol=1e-5)
        assert float(attention.edges.min()) >= 0
        future = torch.ones(n_tokens, n_tokens).triu(1).bool()
        assert (attention.edges[future] == 0).all(), "mass on a token that comes later"


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_chosen_positions_get_what_they_get_among_all(name: str, model: Callable, trace: Callable) -> None:
    everything = llm_tt.attention_contributions(trace(name, 20), 1)
    everything_ffn = llm_tt.ffn_contributions(trace(name, 20), -1)
    fresh = model(name).trace(token_ids(20))
    some = llm_tt.attention_contributions(fresh, 1, [-1, 3, 3, 0])
    assert some.positions == (19, 3, 3, 0)
    assert torch.allclose(some.edges, everything.edges[[19, 3, 3, 0]], atol=1e-7)
    assert torch.allclose(some.residual, everything.residual[[19, 3, 3, 0]], atol=1e-7)
    assert torch.allclose(llm_tt.ffn_contributions(fresh, -1, [-2, 5]).ffn, everything_ffn.ffn[[18, 5]], atol=1e-7)


def test_no_positions_give_no_rows(trace: Callable) -> None:
    assert llm_tt.attention_contributions(trace("gpt2", 7), 0, []).edges.shape == (0, 7, 4)
    assert llm_tt.ffn_contributions(trace("gpt2", 7), 0, []).ffn.shape == (0,)


@every_family
def test_what_follows_a_token_does_not_change_its_contributions(name: str, model: Callable, trace: Callable) -> None:
    short = model(name).trace(token_ids(60)[:20])
    for layer in range(short.n_layers):
        long = llm_tt.attention_contributions(trace(name, 60), layer, range(20))
        alone = llm_tt.attention_contributions(short, layer)
        assert torch.allclose(long.edges[:, :20], alone.edges, atol=1e-5)
        assert torch.allclose(long.residual, alone.residual, atol=1e-5)


@pytest.mark.parametrize(
    "ask",
    [
        lambda trace: llm_tt.attention_contributions(trace, 3),
        lambda trace: llm_tt.ffn_contributions(trace, -4),
        lambda trace: llm_tt.neuron_contributions(trace, 99, 0),
    ],
)
def test_a_layer_that_does_not_exist_is_refused_with_the_layers_there_are(ask: Callable, trace: Callable) -> None:
    with pytest.raises(RequestError, match=r"Layer (3|-4|99) does not exist: the model has 3 layers, 0 to 2\."):
        ask(trace("gpt2", 7))


@pytest.mark.parametrize(
    "ask",
    [
        lambda trace: llm_tt.attention_contributions(trace, 0, [0, 7]),
        lambda trace: llm_tt.ffn_contributions(trace, 0, [-8]),
        lambda trace: llm_tt.neuron_contributions(trace, 0, 700),
    ],
)
def test_a_position_that_does_not_exist_is_refused_with_the_positions_there_are(ask: Callable, trace: Callable) -> None:
    with pytest.raises(RequestError, match=r"Position (7|-8|700) does not exist: the prompt has 7 tokens, positions 0 to 6\."):
        ask(trace("gpt2", 7))


# --- degenerate nodes: every part points away from the whole, only a bias is left


@pytest.fixture
def degenerate() -> llm_tt.Trace:
    away, whole = -torch.ones(2, 4), torch.ones(2, 4)
    alpha = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    return handmade_trace(pre=away, mid=whole, post=-3 * whole, values=away[None], w_o=torch.eye(4)[None], alpha=alpha, ffn_out=whole)


def test_a_node_of_which_every_part_points_away_has_no_contributions_and_no_nan(degenerate: llm_tt.Trace) -> None:
    attention = llm_tt.attention_contributions(degenerate, 0)
    ffn = llm_tt.ffn_contributions(degenerate, 0)
    assert (attention.edges == 0).all()
    assert (attention.residual == 0).all()
    assert (ffn.ffn == 0).all()
    assert (ffn.residual == 0).all()


@pytest.mark.parametrize("renormalize", [True, False])
def test_a_degenerate_node_has_no_incoming_edges(degenerate: llm_tt.Trace, renormalize: bool) -> None:
    graph = llm_tt.extract_routes(degenerate, renormalize=renormalize)
    assert graph.n_edges == 0
    assert list(graph.to_networkx().nodes) == ["I0_1"]


def test_neurons_of_a_degenerate_node_are_zero() -> None:
    whole = torch.ones(1, 4)
    trace = handmade_trace(pre=whole, mid=-whole, post=whole, values=whole[None], w_o=torch.eye(4)[None], alpha=torch.ones(1, 1, 1))
    assert (llm_tt.neuron_contributions(trace, 0, 0) == 0).all()


# --- half precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every_family
def test_half_precision_activations_are_summed_in_float32(name: str, dtype: str, model: Callable) -> None:
    llm = model(name, dtype)
    trace = llm.trace(token_ids(20))
    assert llm.info.dtype == dtype
    assert trace.blocks[0].resid_mid.dtype == trace.blocks[0].values.dtype == getattr(torch, dtype)
    for layer, activations in enumerate(_in_float64(trace)):
        attention, ffn = llm_tt.attention_contributions(trace, layer), llm_tt.ffn_contributions(trace, layer)
        edges, residual = reference.attention(activations)
        assert_close(attention.edges, edges)
        assert_close(attention.residual, residual)
        assert_close(ffn.ffn, reference.ffn(activations)[0])
        assert_close(ffn.residual, reference.ffn(activations)[1])
        assert_close(llm_tt.neuron_contributions(trace, layer, -1), reference.neurons(activations)[-1])


def _in_float64(trace: llm_tt.Trace) -> Iterator[reference.LayerActivations]:
    """The library's own half-precision activations, for the brute force to sum in float64."""
    for layer, block in enumerate(trace.blocks):
        w_o, b_o = trace.model.attention_output(layer)
        w_out, made = trace.model.neuron_output(layer), trace.model.neurons(layer, trace.ffn_input(layer))
        n_heads, d = trace.model.info.n_heads, trace.model.info.d_model
        values = torch.stack([block.values[head * len(block.values) // n_heads] for head in range(n_heads)])
        none = torch.zeros(d)
        yield reference.LayerActivations(
            *(tensor.double() for tensor in (trace.resid_pre(layer), block.resid_mid, block.resid_post)),
            alpha=block.pattern.rows(range(trace.n_tokens)).double(),
            values=values.double(),
            w_o=w_o.double(),
            b_o=(none if b_o is None else b_o).double(),
            attn_out=block.attn_out.double(),
            neurons=made.activations.double(),
            w_out=w_out.double(),
            b_out=(none if made.bias is None else made.bias).double(),
            ffn_out=block.ffn_out.double(),
        )


# --- cost


class _LargestTensor(TorchDispatchMode):
    numel = 0
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
                self.calls += 1
        return result


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_no_tensor_of_tokens_times_tokens_times_heads_times_width_is_made(name: str, model: Callable) -> None:
    trace = model(name).trace(token_ids(200))
    n_tokens, n_heads, d = 200, model(name).info.n_heads, model(name).info.d_model
    with _LargestTensor() as largest:
        llm_tt.attention_contributions(trace, 1)
    assert largest.calls > 100, "the mode saw no arithmetic"
    assert largest.numel <= n_heads * n_tokens * n_tokens
    assert largest.numel * 8 <= n_tokens * n_tokens * n_heads * d


def test_contributions_are_computed_once(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = model("gpt2").trace(token_ids(20))
    computed = _spy(monkeypatch, "_attention_rows")
    llm_tt.attention_contributions(trace, 1, [3, 5])
    llm_tt.attention_contributions(trace, 1, [5, 3, 7])
    assert computed == [(1, 3), (1, 5), (1, 7)]


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_rows_of_positions_that_no_route_reaches_are_not_computed(
    name: str, model: Callable, plain_contributions: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, computed_ffn = _spy(monkeypatch, "_attention_rows"), _spy(monkeypatch, "_ffn_rows")
    expected: Contributions = plain_contributions(name, 60)
    threshold = expected.clear_threshold(0.04)
    llm_tt.extract_routes(model(name).trace(token_ids(60)), 59, threshold)
    nodes = {"I2_59"} | {end for edge in reference.routes(expected, 59, threshold, True) for end in edge[:2]}
    assert {f"A{layer}_{position}" for layer, position in computed} == {node for node in nodes if node[0] == "A"}
    assert {f"I{layer}_{position}" for layer, position in computed_ffn} == {node for node in nodes if node[0] == "I"}
    assert len(computed) == len(set(computed)) < 3 * 60 / 2


def test_a_higher_or_lower_threshold_computes_only_what_it_newly_reaches(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = model("gpt2").trace(token_ids(60))
    computed = _spy(monkeypatch, "_attention_rows")
    llm_tt.extract_routes(trace, threshold=0.02)
    before = len(computed)
    assert before > 5
    llm_tt.extract_routes(trace, threshold=0.08)
    llm_tt.extract_routes(trace, threshold=0.02, renormalize=False)
    assert len(computed) == before
    llm_tt.extract_routes(trace, threshold=0.005)
    assert len(computed) == len(set(computed)) > before


def _spy(monkeypatch: pytest.MonkeyPatch, function: str) -> list[tuple[int, int]]:
    """(layer, position) of every row that the library computes from now on."""
    computed: list[tuple[int, int]] = []
    original = getattr(contributions, function)

    def observed(trace: llm_tt.Trace, layer: int, positions: list[int]) -> list:
        computed.extend((layer, position) for position in positions)
        return original(trace, layer, positions)

    monkeypatch.setattr(contributions, function, observed)
    return computed
