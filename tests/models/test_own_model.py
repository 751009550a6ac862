"""A model that no backend can load, explained by implementing `TransparentLlm`: a transformer written from scratch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import reference
import torch
from torch import Tensor, nn

import llm_tt
from llm_tt.errors import ModelError, PromptError
from llm_tt.models import identities
from llm_tt.models.patterns import StoredPattern
from llm_tt.models.transparent_llm import BlockActivations, ModelInfo, Neurons, Trace, TransparentLlm
from llm_tt.progress import Progress, silent

LAYERS, HEADS, D, N, VOCABULARY = 2, 3, 24, 40, 50


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.q, self.k, self.v, self.o = (nn.Linear(D, D) for _ in range(4))
        self.up, self.down = nn.Linear(D, N), nn.Linear(N, D)
        for out in (self.o, self.down):
            nn.init.normal_(out.weight, std=0.4)

    def neurons(self, mid: Tensor) -> Tensor:
        return torch.tanh(self.up(self.norm2(mid)))

    def forward(self, x: Tensor) -> BlockActivations:
        normed = self.norm1(x)
        q, k, v = (project(normed).view(len(x), HEADS, -1).transpose(0, 1) for project in (self.q, self.k, self.v))
        scores = q @ k.transpose(1, 2)
        alpha = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf).softmax(-1)
        attn_out = self.o((alpha @ v).transpose(0, 1).reshape(len(x), D))
        mid = x + attn_out
        ffn_out = self.down(self.neurons(mid))
        return BlockActivations(mid, mid + ffn_out, attn_out, ffn_out, v.contiguous(), StoredPattern(alpha))


class OwnLlm(TransparentLlm):
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, D)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, VOCABULARY)
        self.info = ModelInfo(
            "own", "own", LAYERS, HEADS, HEADS, D, D // HEADS, N, VOCABULARY, 64, 0, "float32", "cpu", norm="layer", norm_eps=1e-5
        )

    def encode(self, text: str) -> list[int]:
        return [ord(character) % VOCABULARY for character in text]

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return [f"t{token_id}" for token_id in token_ids]

    @torch.no_grad()
    def run(self, token_ids: Sequence[int], progress: Progress = silent) -> tuple[Tensor, tuple[BlockActivations, ...]]:
        x = embedding = self.embed(torch.tensor(list(token_ids)))
        activations = []
        for layer, block in enumerate(self.blocks):
            activations.append(block(x))
            x = activations[-1].resid_post
            progress(f"layer {layer}", (layer + 1) / LAYERS)
        return embedding, tuple(activations)

    @torch.no_grad()
    def last_logits(self, token_ids: Sequence[int]) -> Tensor:
        return self.head(self.norm(self.run(token_ids)[1][-1].resid_post))[-1]

    def attention_output(self, layer: int) -> tuple[Tensor, Tensor | None]:
        out = self.blocks[layer].o
        return out.weight.detach().T.reshape(HEADS, D // HEADS, D), out.bias.detach()

    @torch.no_grad()
    def neurons(self, layer: int, ffn_input: Tensor) -> Neurons:
        return Neurons(self.blocks[layer].neurons(ffn_input), self.blocks[layer].down.bias)

    def neuron_output(self, layer: int, neurons: Tensor | None = None) -> Tensor:
        weight = self.blocks[layer].down.weight.detach().T
        return weight if neurons is None else weight[neurons]

    @torch.no_grad()
    def final_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)

    @torch.no_grad()
    def unembed(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.fixture(scope="module")
def own() -> OwnLlm:
    return OwnLlm()


def _layers(trace: Trace) -> list[reference.LayerActivations]:
    layers = []
    for layer, block in enumerate(trace.blocks):
        (w_o, b_o), w_out = trace.model.attention_output(layer), trace.model.neuron_output(layer)
        made = trace.model.neurons(layer, trace.ffn_input(layer))
        assert b_o is not None
        assert made.bias is not None
        tensors = {
            "pre": trace.resid_pre(layer),
            "mid": block.resid_mid,
            "post": block.resid_post,
            "alpha": block.pattern.rows(range(trace.n_tokens)),
            "values": block.values,
            "w_o": w_o,
            "b_o": b_o,
            "attn_out": block.attn_out,
            "neurons": made.activations,
            "w_out": w_out,
            "b_out": made.bias,
            "ffn_out": block.ffn_out,
        }
        layers.append(reference.LayerActivations(**{key: tensor.double() for key, tensor in tensors.items()}))
    return layers


def test_an_own_model_passes_the_identities(own: OwnLlm) -> None:
    report = identities.check(own)
    assert report.failure() is None
    assert report.worst <= 1e-5
    assert identities.require(own) == report


def test_an_own_model_has_the_routes_of_the_brute_force(own: OwnLlm) -> None:
    trace = own.trace("an own model, explained")
    contributions = reference.Contributions.of(_layers(trace))
    for renormalize in (True, False):
        threshold = contributions.clear_threshold(0.005)
        graph = llm_tt.extract_routes(trace, -1, threshold, renormalize)
        expected = reference.routes(contributions, trace.n_tokens - 1, threshold, renormalize)
        edges = {(a, b, key): weight for a, b, key, weight in graph.to_networkx().edges(keys=True, data="weight")}
        assert edges == {name: pytest.approx(edge.weight, abs=1e-5) for name, edge in expected.items()}
        assert len(edges) > 20
    neurons = reference.neurons(_layers(trace)[1])
    assert torch.allclose(llm_tt.neuron_contributions(trace, 1, 4).double(), neurons[4], atol=1e-5)


def test_an_own_models_trace_answers_as_any_other(own: OwnLlm) -> None:
    trace = own.trace([3, 1, 4])
    assert trace.token_texts == ("t3", "t1", "t4")
    assert torch.allclose(trace.logits(-1), own.last_logits([3, 1, 4]), atol=1e-6)
    with pytest.raises(PromptError, match=r"The prompt has 65 tokens, but own reads at most 64\. Shorten it by at least 1 token"):
        own.trace("x" * 65)
    with pytest.raises(PromptError, match=r"Token id 50 is outside the vocabulary of own, which has ids 0 to 49"):
        own.trace([1, 50])


def test_an_own_model_with_an_error_in_it_is_refused(own: OwnLlm) -> None:
    class Wrong(OwnLlm):
        def attention_output(self, layer: int) -> tuple[Tensor, Tensor | None]:
            weight, _ = super().attention_output(layer)
            return weight, None

    wrong = Wrong()
    wrong.info = dataclasses.replace(wrong.info, name="my model")
    with pytest.raises(ModelError, match=r"my model .*cannot be decomposed exactly: layer 0: attention parts are off by"):
        identities.require(wrong)


def test_an_incomplete_implementation_cannot_be_made() -> None:
    class Half(TransparentLlm):
        def encode(self, text: str) -> list[int]:
            return []

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
