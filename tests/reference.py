"""The method by brute force, in float64 and with everything materialised, from plain Hugging Face modules with forward hooks.

Written from the definitions alone; shares no code with llm_tt and never touches TransformerLens. Slow, and obviously right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

# --- activations of a plain Hugging Face model


@dataclass(frozen=True)
class Names:
    """Where a family keeps its blocks, and in a block the modules that read and write what the method speaks of."""

    layers: str
    second_norm: str
    attention: str
    value: str
    """A projection to values alone, or GPT-2's joint projection to queries, keys and values"""
    attention_out: str
    ffn_out: str


_ROTARY = Names("model.layers", "post_attention_layernorm", "self_attn", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
NAMES: dict[str, Names] = {
    "gpt2": Names("transformer.h", "ln_2", "attn", "attn.c_attn", "attn.c_proj", "mlp.c_proj"),
    "gpt_neo": Names("transformer.h", "ln_2", "attn.attention", "attn.attention.v_proj", "attn.attention.out_proj", "mlp.c_proj"),
    "opt": Names("model.decoder.layers", "final_layer_norm", "self_attn", "self_attn.v_proj", "self_attn.out_proj", "fc2"),
    "llama": _ROTARY,
    "mistral": _ROTARY,
    "qwen2": _ROTARY,
    "qwen3": _ROTARY,
    "gemma": _ROTARY,
}


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """One block of one run, float64."""

    pre: Tensor
    mid: Tensor
    post: Tensor
    alpha: Tensor
    """[H, T, T]"""
    values: Tensor
    """[H, T, E], repeated for grouped-query attention"""
    w_o: Tensor
    """[H, E, d]"""
    b_o: Tensor
    """[d]"""
    attn_out: Tensor
    neurons: Tensor
    """[T, N]"""
    w_out: Tensor
    """[N, d]"""
    b_out: Tensor
    """[d]"""
    ffn_out: Tensor


@dataclass(frozen=True, eq=False)
class Run:
    layers: tuple[LayerActivations, ...]
    logits: Tensor
    """[T, V]"""


def load_plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()


def run_plain(model: Any, token_ids: Sequence[int]) -> Run:
    """One forward pass of a Hugging Face model, observed by hooks on its own modules."""
    names = NAMES[model.config.model_type]
    blocks = list(model.get_submodule(names.layers))
    seen: list[dict[str, Tensor]] = [{} for _ in blocks]
    handles = []
    for block, store in zip(blocks, seen, strict=True):

        def inputs(key: str, module: nn.Module, store: dict[str, Tensor] = store) -> None:
            handles.append(module.register_forward_pre_hook(lambda m, a, k: store.update({key: _first(a, k)}), with_kwargs=True))

        def outputs(key: str, module: nn.Module, store: dict[str, Tensor] = store) -> None:
            handles.append(module.register_forward_hook(lambda m, a, o: store.update({key: o[0] if isinstance(o, tuple) else o})))

        inputs("pre", block)
        inputs("mid", block.get_submodule(names.second_norm))
        outputs("post", block)
        outputs("value", block.get_submodule(names.value))
        outputs("attn_out", block.get_submodule(names.attention_out))
        inputs("neurons", block.get_submodule(names.ffn_out))
        outputs("ffn_out", block.get_submodule(names.ffn_out))
        handles.append(
            block.get_submodule(names.attention).register_forward_hook(lambda m, a, o, store=store: store.update({"alpha": o[1]}))
        )
    with torch.no_grad():
        output = model(torch.tensor([list(token_ids)]), use_cache=False)
    for handle in handles:
        handle.remove()
    layers = tuple(_layer(model.config, names, block, store) for block, store in zip(blocks, seen, strict=True))
    return Run(layers, output.logits[0].double())


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _layer(config: Any, names: Names, block: nn.Module, seen: dict[str, Tensor]) -> LayerActivations:
    alpha = seen["alpha"][0].double()
    n_heads, n_tokens, _ = alpha.shape
    pre, mid, post, attn_out, neurons, ffn_out = (
        seen[key].reshape(n_tokens, -1).double() for key in ("pre", "mid", "post", "attn_out", "neurons", "ffn_out")
    )
    value = seen["value"][0].double()
    if names.value.endswith("c_attn"):
        value = value[:, 2 * config.n_embd :]
    w_o, b_o = _out_weight(block.get_submodule(names.attention_out))
    w_out, b_out = _out_weight(block.get_submodule(names.ffn_out))
    d_head = w_o.shape[0] // n_heads
    n_kv = value.shape[1] // d_head
    grouped = value.view(n_tokens, n_kv, d_head)
    values = torch.stack([grouped[:, head // (n_heads // n_kv)] for head in range(n_heads)])
    return LayerActivations(pre, mid, post, alpha, values, w_o.view(n_heads, d_head, -1), b_o, attn_out, neurons, w_out, b_out, ffn_out)


def _out_weight(module: nn.Module) -> tuple[Tensor, Tensor]:
    """[in, out] and [out]."""
    weight: Tensor = module.weight.detach().double()  # type: ignore[union-attr, operator]
    weight = weight if isinstance(module, Conv1D) else weight.T
    bias = getattr(module, "bias", None)
    return weight, torch.zeros(weight.shape[1], dtype=torch.float64) if bias is None else bias.detach().double()


# --- contributions


def proximity(parts: Tensor, whole: Tensor) -> Tensor:
    """max(0, ||x||_1 - ||x - p||_1), literally."""
    return (whole.abs().sum(-1) - (whole - parts).abs().sum(-1)).clamp_min(0)


def attention_parts(layer: LayerActivations) -> Tensor:
    """[T, T, H, d]: alpha[h, i, j] * v[h, j] @ W_O[h]."""
    return torch.einsum("hij,hje,hed->ijhd", layer.alpha, layer.values, layer.w_o)


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
    parts = proximity(layer.neurons[:, :, None] * layer.w_out, layer.post[:, None])
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

    def clear_threshold(self, threshold: float) -> float:
        """The next threshold from which every contribution keeps a distance of 2e-6, so that rounding does not decide what is kept."""
        every = torch.cat([tensor.flatten() for group in vars(self).values() for tensor in group])
        while (every - threshold).abs().min() < 2e-6:
            threshold += 5e-6
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
