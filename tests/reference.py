"""The method by brute force, in float64 and with everything materialised, from plain Hugging Face modules (`plain_runs`).

Written from the definitions alone; shares no code with llm_tt and never touches TransformerLens. Slow, and obviously right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from plain_runs import LayerActivations, Run, load_plain, run_plain
from torch import Tensor

__all__ = ["LayerActivations", "Run", "load_plain", "run_plain"]

# --- contributions


def proximity(parts: Tensor, whole: Tensor) -> Tensor:
    """max(0, ||x||_1 - ||x - p||_1), literally."""
    return (whole.abs().sum(-1) - (whole - parts).abs().sum(-1)).clamp_min(0)


def attention_parts(layer: LayerActivations) -> Tensor:
    """[T, T, H, d]: alpha[h, i, j] * (gate[h, i] * v[h, j]) @ W_O[h], times what the sum of all heads passes at token i."""
    gate = layer.gate.expand(*layer.values.shape)
    parts = torch.einsum("hij,hie,hje,hed->ijhd", layer.alpha, gate, layer.values, layer.w_o)
    return parts * layer.attn_factor.expand_as(layer.pre)[:, None, None]


def neuron_parts(layer: LayerActivations) -> Tensor:
    """[T, N, d]: activation * W_out, times what the sum of all neurons passes at the token."""
    return layer.neurons[:, :, None] * layer.w_out * layer.ffn_factor.expand_as(layer.pre)[:, None]


def attention_bias(layer: LayerActivations) -> Tensor:
    """[T, d]: what attention adds to the stream that belongs to no head."""
    return layer.b_o.expand_as(layer.pre) * layer.attn_factor


def ffn_bias(layer: LayerActivations) -> Tensor:
    """[T, d]: what the FFN adds to the stream that belongs to no neuron."""
    return layer.b_out.expand_as(layer.pre) * layer.ffn_factor


def attention(layer: LayerActivations) -> tuple[Tensor, Tensor]:
    """Edges [T, T, H] and residual [T]; all zero for a node of which every part points away."""
    edges = proximity(attention_parts(layer), layer.mid[:, None, None])
    residual = proximity(layer.pre, layer.mid)
    total = edges.sum((1, 2)) + residual
    return _share(edges, total[:, None, None]), _share(residual, total)


def ffn(layer: LayerActivations) -> tuple[Tensor, Tensor]:
    """FFN block [T] and residual [T]."""
    block, residual = proximity(layer.ffn_out, layer.post), proximity(layer.mid, layer.post)
    return _share(block, block + residual), _share(residual, block + residual)


def neurons(layer: LayerActivations) -> Tensor:
    """[T, N]."""
    parts = proximity(neuron_parts(layer), layer.post[:, None])
    total = parts.sum(1) + proximity(layer.mid, layer.post)
    return _share(parts, total[:, None])


def _share(part: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, part / total, torch.zeros_like(part))


# --- graph


@dataclass(frozen=True)
class Contributions:
    """Of every node of a run, whether a route reaches it or not."""

    edges: tuple[Tensor, ...]
    attention_residual: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]
    ffn_residual: tuple[Tensor, ...]

    @classmethod
    def of(cls, layers: Sequence[LayerActivations]) -> Contributions:
        edges, attention_residual = zip(*(attention(layer) for layer in layers), strict=True)
        blocks, residuals = zip(*(ffn(layer) for layer in layers), strict=True)
        return cls(edges, attention_residual, blocks, residuals)

    def clear_threshold(self, threshold: float, distance: float = 2e-6) -> float:
        """The next threshold from which every contribution keeps a distance, so that rounding does not decide what is kept."""
        every = torch.cat([tensor.flatten() for group in vars(self).values() for tensor in group])
        while (every - threshold).abs().min() < distance:
            threshold += 2.5 * distance
        return threshold


EdgeName = tuple[str, str, str]
"""Source, destination, "attention" | "residual" | "ffn" """


@dataclass(frozen=True)
class ReferenceEdge:
    weight: float
    heads: dict[int, float]


def full_graph(contributions: Contributions, threshold: float, renormalize: bool) -> dict[EdgeName, ReferenceEdge]:
    """Every edge of every node that passes, whether the target can be reached from it or not."""
    graph: dict[EdgeName, ReferenceEdge] = {}
    n_layers, n_tokens = len(contributions.ffn), len(contributions.ffn[0])
    for layer in range(n_layers):
        for i in range(n_tokens):
            mid, block, post = f"A{layer}_{i}", f"M{layer}_{i}", f"I{layer}_{i}"

            share, rest = float(contributions.ffn[layer][i]), float(contributions.ffn_residual[layer][i])
            share, rest = (value if value > threshold else 0.0 for value in (share, rest))
            if renormalize and share + rest > 0:
                share, rest = share / (share + rest), rest / (share + rest)
            if share:
                graph[mid, block, "ffn"] = graph[block, post, "ffn"] = ReferenceEdge(share, {})
            if rest:
                graph[mid, post, "residual"] = ReferenceEdge(rest, {})

            kept = {
                (j, head): float(contributions.edges[layer][i, j, head])
                for j, head in (contributions.edges[layer][i] > threshold).nonzero().tolist()
            }
            rest = float(contributions.attention_residual[layer][i])
            rest = rest if rest > threshold else 0.0
            total = sum(kept.values()) + rest
            if renormalize and total > 0:
                kept, rest = {key: value / total for key, value in kept.items()}, rest / total
            if rest:
                graph[_entering(layer, i), mid, "residual"] = ReferenceEdge(rest, {})
            for j in {j for j, _ in kept}:
                heads = {head: value for (source, head), value in kept.items() if source == j}
                graph[_entering(layer, j), mid, "attention"] = ReferenceEdge(sum(heads.values()), heads)
    return graph


def _entering(layer: int, token: int) -> str:
    return f"X0_{token}" if layer == 0 else f"I{layer - 1}_{token}"


def cut(graph: dict[EdgeName, ReferenceEdge], root: str) -> dict[EdgeName, ReferenceEdge]:
    """The edges from which the root can be reached, found by repeating over all edges until nothing is added."""
    reached, kept = {root}, {}
    while True:
        new = {name: edge for name, edge in graph.items() if name[1] in reached and name not in kept}
        if not new:
            return kept
        kept |= new
        reached |= {source for source, _, _ in new}


def routes(contributions: Contributions, target: int, threshold: float, renormalize: bool) -> dict[EdgeName, ReferenceEdge]:
    return cut(full_graph(contributions, threshold, renormalize), f"I{len(contributions.ffn) - 1}_{target}")
