"""Activations of plain Hugging Face models, observed by forward hooks on their own modules, in float64.

Nothing of llm_tt, nothing of TransformerLens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


def _one() -> Tensor:
    return torch.ones((), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """One block of one run, float64. Where attention and FFN run in parallel `mid` is virtual: `pre + attn_out`."""

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
    """[T, d] as added to the residual stream"""
    neurons: Tensor
    """[T, N], with gate and routing weight; those of expert e from e * N_e on, those of shared experts last"""
    w_out: Tensor
    """[N, d]"""
    b_out: Tensor
    """[d]; in a mixture of experts with biases [T, d], weighted by the routing"""
    ffn_out: Tensor
    """[T, d] as added to the residual stream"""
    gate: Tensor = field(default_factory=_one)
    """[H, T, E] or 1: what the target token multiplies into what its heads collected, before W_O"""
    attn_factor: Tensor = field(default_factory=_one)
    """[T, d] or 1: a norm after attention, a multiplier"""
    ffn_factor: Tensor = field(default_factory=_one)


@dataclass(frozen=True, eq=False)
class Run:
    layers: tuple[LayerActivations, ...]
    logits: Tensor
    """[T, V]"""


# --- where families keep what the method speaks of

Split = Callable[[Any, Tensor], Tensor]
"""Configuration, output of the module that makes values [T, *] -> values [T, K, E]"""


def _alone(config: Any, made: Tensor) -> Tensor:
    return made.view(len(made), _n_kv(config), -1)


def _after_queries_and_keys(config: Any, made: Tensor) -> Tensor:
    """One projection to all queries, then all keys, then all values."""
    n_kv, n_heads = _n_kv(config), config.num_attention_heads
    d_head = made.shape[1] // (n_heads + 2 * n_kv)
    return made[:, -n_kv * d_head :].reshape(len(made), n_kv, d_head)


def _head_by_head(config: Any, made: Tensor) -> Tensor:
    """One projection to query, key and value of the first head, then of the second, ..."""
    return made.view(len(made), config.num_attention_heads, 3, -1)[:, :, 2]


def _bigcode(config: Any, made: Tensor) -> Tensor:
    return (_after_queries_and_keys if config.multi_query else _head_by_head)(config, made)


def _falcon(config: Any, made: Tensor) -> Tensor:
    if config.new_decoder_architecture:
        n_shared = config.num_attention_heads // config.num_kv_heads
        return made.view(len(made), config.num_kv_heads, n_shared + 2, -1)[:, :, -1]
    if config.multi_query:
        return made.view(len(made), config.num_attention_heads + 2, -1)[:, -1:]
    return _head_by_head(config, made)


def _codegen(config: Any, made: Tensor) -> Tensor:
    """Four pieces, as for four accelerators; in each the queries, the values, the keys of its heads."""
    return made.view(len(made), 4, 3, -1)[:, :, 1].reshape(len(made), config.num_attention_heads, -1)


def _latent(config: Any, made: Tensor) -> Tensor:
    return made.view(len(made), config.num_attention_heads, -1)[..., config.qk_nope_head_dim :]


def _n_kv(config: Any) -> int:
    if getattr(config, "multi_query", False):
        return 1
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


@dataclass(frozen=True)
class Names:
    """Where a family keeps its blocks, and in a block the modules that read and write what the method speaks of."""

    layers: str
    second_norm: str | None
    """The module that reads the residual stream between attention and FFN; None where they run in parallel"""
    attention: str
    value: str
    """A projection to values alone, or a joint projection, which `split` takes apart"""
    attention_out: str
    ffn_out: str
    split: Split = _alone
    attention_norm: str | None = None
    """What the output of attention passes before it is added"""
    ffn_norm: str | None = None
    gate: str | None = None
    """A projection of which the sigmoid multiplies what heads collected"""
    inner_norm: str | None = None
    """A norm of what heads collected"""
    experts: str | None = None
    shared: str | None = None
    shared_gate: str | None = None


_ROTARY = Names("model.layers", "post_attention_layernorm", "self_attn", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
_EXPERTS = replace(_ROTARY, experts="mlp.experts")
_LATENT = replace(_EXPERTS, value="self_attn.kv_b_proj", split=_latent, shared="mlp.shared_experts")
_POST_NORM = replace(_ROTARY, second_norm="mlp", attention_norm="post_attention_layernorm", ffn_norm="post_feedforward_layernorm")
_GPT2 = Names("transformer.h", "ln_2", "attn", "attn.c_attn", "attn.c_proj", "mlp.c_proj", _after_queries_and_keys)
_GPTJ = Names("transformer.h", None, "attn", "attn.v_proj", "attn.out_proj", "mlp.fc_out")
_FUSED = Names(
    "gpt_neox.layers",
    "post_attention_layernorm",
    "attention",
    "attention.query_key_value",
    "attention.dense",
    "mlp.dense_4h_to_h",
    _head_by_head,
)
_BLOOM = replace(
    _FUSED,
    layers="transformer.h",
    attention="self_attention",
    value="self_attention.query_key_value",
    attention_out="self_attention.dense",
)

#: Hugging Face `model_type` -> names.
NAMES: dict[str, Names] = {
    "gpt2": _GPT2,
    "gpt_neo": Names("transformer.h", "ln_2", "attn.attention", "attn.attention.v_proj", "attn.attention.out_proj", "mlp.c_proj"),
    "opt": Names("model.decoder.layers", "final_layer_norm", "self_attn", "self_attn.v_proj", "self_attn.out_proj", "fc2"),
    "llama": _ROTARY,
    "mistral": _ROTARY,
    "qwen2": _ROTARY,
    "qwen3": _ROTARY,
    "gemma": _ROTARY,
    "olmo": _ROTARY,
    "stablelm": _ROTARY,
    "granite": _ROTARY,
    "phi3": replace(_ROTARY, value="self_attn.qkv_proj", split=_after_queries_and_keys),
    "gpt_bigcode": replace(_GPT2, split=_bigcode),
    "bloom": _BLOOM,
    "mpt": Names("transformer.blocks", "norm_2", "attn", "attn.Wqkv", "attn.out_proj", "ffn.down_proj", _after_queries_and_keys),
    "gpt_neox": _FUSED,
    "gptj": _GPTJ,
    "codegen": replace(_GPTJ, value="attn.qkv_proj", split=_codegen),
    "falcon": replace(_BLOOM, split=_falcon),
    "phi": Names("model.layers", None, "self_attn", "self_attn.v_proj", "self_attn.dense", "mlp.fc2"),
    "cohere": replace(_ROTARY, second_norm=None),
    "cohere2": replace(_ROTARY, second_norm=None),
    "gemma2": replace(_POST_NORM, second_norm="pre_feedforward_layernorm"),
    "gemma3_text": replace(_POST_NORM, second_norm="pre_feedforward_layernorm"),
    "olmo2": _POST_NORM,
    "olmo3": _POST_NORM,
    "exaone4": _POST_NORM,
    "glm4": replace(_ROTARY, attention_norm="post_self_attn_layernorm", ffn_norm="post_mlp_layernorm"),
    "bitnet": replace(_ROTARY, inner_norm="self_attn.attn_sub_norm"),
    "mixtral": _EXPERTS,
    "qwen2_moe": replace(_EXPERTS, shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate"),
    "qwen3_moe": _EXPERTS,
    "olmoe": _EXPERTS,
    "granitemoe": replace(_EXPERTS, experts="block_sparse_moe.experts"),
    "gpt_oss": _EXPERTS,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "glm4_moe": replace(_EXPERTS, shared="mlp.shared_experts"),
    "afmoe": replace(
        _EXPERTS,
        second_norm="pre_mlp_layernorm",
        attention_norm="post_attention_layernorm",
        ffn_norm="post_mlp_layernorm",
        gate="self_attn.gate_proj",
        shared="mlp.shared_experts",
    ),
}


def _names(config: Any) -> Names:
    names = NAMES[config.model_type]
    parallel = getattr(config, "use_parallel_residual", False)
    if config.model_type == "falcon":
        parallel = config.parallel_attn or config.new_decoder_architecture
    return replace(names, second_norm=None) if parallel else names


# --- one run


def load_plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    # A test may ask for it inside inference mode, and those after it run the same model outside.
    with torch.inference_mode(False):
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()


def run_plain(model: Any, token_ids: Sequence[int]) -> Run:
    """One forward pass of a Hugging Face model, observed by hooks on its own modules."""
    names = _names(model.config)
    blocks = list(model.get_submodule(names.layers))
    observed = [_Observed(names, block) for block in blocks]
    with torch.no_grad():
        output = model(torch.tensor([list(token_ids)]), use_cache=False)
    for one in observed:
        one.stop()
    layers = tuple(_layer(model.config, names, block, one.seen) for block, one in zip(blocks, observed, strict=True))
    return Run(layers, output.logits[0].double())


class _Observed:
    """What the modules of a block read and write while the model runs."""

    def __init__(self, names: Names, block: nn.Module) -> None:
        self.seen: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._inputs("pre", block)
        self._outputs("post", block)
        self._inputs("mid", _find(block, names.second_norm))
        self._outputs("value", _find(block, names.value))
        self._outputs("attn_out", _find(block, names.attention_out))
        self._outputs("attn_normed", _find(block, names.attention_norm))
        self._inputs("heads", _find(block, names.attention_out))
        self._inputs("heads_raw", _find(block, names.inner_norm))
        self._outputs("gate", _find(block, names.gate))
        self._outputs("alpha", _find(block, names.attention), 1)
        self._inputs("neurons", _find(block, names.ffn_out))
        self._outputs("ffn_out", _find(block, names.ffn_out))
        self._outputs("ffn_normed", _find(block, names.ffn_norm))
        if experts := _find(block, names.experts):
            self._outputs("ffn_out", _find(block, names.experts.rsplit(".", 1)[0] if names.experts else None))
            for position, key in enumerate(("routed_from", "expert", "routing")):
                self._inputs(key, experts, position)
            self._inputs("shared_neurons", _find(block, f"{names.shared}.down_proj"))
            self._outputs("shared_gate", _find(block, names.shared_gate))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()

    # Cloned, since some blocks add to what a module put out in place.

    def _inputs(self, key: str, module: nn.Module | None, position: int = 0) -> None:
        def keep(m: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.seen[key] = (args[position] if args else kwargs["hidden_states"]).clone()

        if module is not None:
            self._handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))

    def _outputs(self, key: str, module: nn.Module | None, position: int = 0) -> None:
        def keep(m: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.seen[key] = (output[position] if isinstance(output, tuple) else output).clone()

        if module is not None:
            self._handles.append(module.register_forward_hook(keep))


def _find(block: nn.Module, name: str | None) -> Any:
    """The module of that name; None where this block has none."""
    try:
        return None if name is None else block.get_submodule(name)
    except AttributeError:
        return None


def _layer(config: Any, names: Names, block: nn.Module, seen: dict[str, Tensor]) -> LayerActivations:
    alpha = seen["alpha"][0].double()
    n_heads, n_tokens, _ = alpha.shape
    rows = {key: tensor.reshape(n_tokens, -1).double() for key, tensor in seen.items() if key not in ("alpha", "expert")}
    multiplier = getattr(config, "residual_multiplier", 1.0)
    attn_out = multiplier * rows.get("attn_normed", rows["attn_out"])
    ffn_out = multiplier * rows.get("ffn_normed", rows["ffn_out"])
    mid = rows["pre"] + attn_out if names.second_norm is None else rows["mid"]

    w_o, b_o = _out_weight(block.get_submodule(names.attention_out))
    made = rows["value"]
    if limit := _clip(config):
        made = made.clamp(-limit, limit)
    grouped = names.split(config, made).transpose(0, 1)
    gate = _one()
    if names.gate is not None:
        gate = rows["gate"].sigmoid().view(n_tokens, n_heads, -1).transpose(0, 1)
    if names.inner_norm is not None:
        norm = _norm_factor(block.get_submodule(names.inner_norm), rows["heads_raw"])
        gate = norm.view(n_tokens, n_heads, -1).transpose(0, 1)

    if "expert" in seen:
        neurons, w_out, b_out = _mixture(names, block, rows, seen["expert"])
    else:
        neurons = rows["neurons"]
        w_out, b_out = _out_weight(block.get_submodule(names.ffn_out))
    return LayerActivations(
        pre=rows["pre"],
        mid=mid,
        post=rows["post"],
        alpha=alpha,
        values=grouped.repeat_interleave(n_heads // len(grouped), 0),
        w_o=w_o.view(n_heads, -1, w_o.shape[1]),
        b_o=b_o,
        attn_out=attn_out,
        neurons=neurons,
        w_out=w_out,
        b_out=b_out,
        ffn_out=ffn_out,
        gate=gate,
        attn_factor=multiplier * _norm_factor(_find(block, names.attention_norm), rows["attn_out"]),
        ffn_factor=multiplier * _norm_factor(_find(block, names.ffn_norm), rows["ffn_out"]),
    )


def _clip(config: Any) -> float | None:
    return getattr(getattr(config, "attn_config", config), "clip_qkv", None)


def _norm_factor(norm: nn.Module | None, x: Tensor) -> Tensor:
    """What a root-mean-square norm multiplies each entry of x with; 1 without a norm."""
    if norm is None:
        return _one()
    weight = norm.weight.detach().double()  # type: ignore[union-attr, operator]
    if type(norm).__name__.startswith("Gemma"):
        weight = 1 + weight
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return weight / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _out_weight(module: nn.Module) -> tuple[Tensor, Tensor]:
    """[in, out] and [out]."""
    weight: Tensor = module.weight.detach().double()  # type: ignore[union-attr, operator]
    weight = weight if isinstance(module, Conv1D) else weight.T
    bias = getattr(module, "bias", None)
    return weight, torch.zeros(weight.shape[1], dtype=torch.float64) if bias is None else bias.detach().double()


def _mixture(names: Names, block: nn.Module, rows: dict[str, Tensor], expert: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Neurons [T, N], W_out [N, d] and bias [T, d] of a mixture of experts: every expert computed, then weighted, most by nothing."""
    experts = block.get_submodule(names.experts or "")
    x = rows["routed_from"]
    weights = {name: parameter.detach().double() for name, parameter in experts.named_parameters()}
    n_experts = len(weights["down_proj"])
    routing = torch.zeros(len(x), n_experts, dtype=torch.float64).scatter(1, expert, rows["routing"])
    if type(experts).__name__ == "GptOssExperts":
        made = torch.einsum("td,edn->ten", x, weights["gate_up_proj"]) + weights["gate_up_proj_bias"]
        gate, up = made[..., ::2].clamp(max=experts.limit), made[..., 1::2].clamp(-experts.limit, experts.limit)
        activations = (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
        w_out, bias = weights["down_proj"], routing @ weights["down_proj_bias"]
    else:
        gate, up = torch.einsum("td,end->ten", x, weights["gate_up_proj"]).chunk(2, -1)
        activations = experts.act_fn(gate) * up
        w_out, bias = weights["down_proj"].transpose(1, 2), torch.zeros_like(x)
    neurons, w_out = (routing[..., None] * activations).flatten(1), w_out.flatten(0, 1)
    if names.shared is not None:
        gate = rows["shared_gate"].sigmoid() if names.shared_gate else _one()
        shared_out, shared_bias = _out_weight(block.get_submodule(f"{names.shared}.down_proj"))
        neurons = torch.cat([neurons, gate * rows["shared_neurons"]], 1)
        w_out, bias = torch.cat([w_out, shared_out]), bias + gate * shared_bias
    return neurons, w_out, bias
