"""Attention through SDPA, its queries, keys and values captured on the way: what a trace needs, and no T x T pattern is kept.

TransformerLens computes attention anew, eagerly. Here its attention modules hand over to the Hugging Face module they wrap, which calls the
function registered below. Whether that is right for a model is proven by the backend, at load and for every trace. Soft caps and sinks, which
SDPA lacks, go through the module's own eager function: one layer's pattern at a time, none kept.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from llm_tt.models.ffn import unwrapped
from llm_tt.models.patterns import QueriesOnDemand, RecomputedPattern, Visible

# Transformers treats every name that contains "sdpa" as its own function.
_NAME = "llm_tt_captured"


@dataclass(frozen=True, eq=False)
class Captured:
    """What one attention module was called with: its pattern, and values [K, T, E]."""

    pattern: RecomputedPattern
    values: Tensor

    def without_queries(self, queries: QueriesOnDemand) -> Captured:
        """The same with queries that are asked for."""
        return replace(self, pattern=replace(self.pattern, queries=queries))


@dataclass(eq=False)
class Captures:
    """What the attention modules of one run were called with, by layer; `keep` is given name, layer and tensor of what is kept.

    Queries are kept only where they are wanted; else the pattern has none."""

    keep: Callable[[str, int, Tensor], Tensor]
    wants_queries: bool
    layers: dict[int, Captured] = field(default_factory=dict)
    masks: dict[int, tuple[Tensor, Visible]] = field(default_factory=dict)
    """By the mask's identity: layers of one kind are called with the same one, which is kept so that its identity stays its own"""

    def visible(self, mask: Tensor | None) -> Visible:
        if mask is None:
            return Visible()
        if id(mask) not in self.masks:
            self.masks[id(mask)] = mask, Visible.of(mask[0, 0])
        return self.masks[id(mask)][1]


_captures: ContextVar[Captures | None] = ContextVar("captures", default=None)
_OF_ONE_RUN = {"hidden_states", "attention_mask", "past_key_values", "past_key_value", "layer_past"}
_wants_only_queries: ContextVar[bool] = ContextVar("wants_only_queries", default=False)


class _QueriesFound(Exception):
    """Ends an attention module as soon as it has made its queries [H, P, E]."""

    def __init__(self, queries: Tensor) -> None:
        super().__init__()
        self.queries = queries


@dataclass(frozen=True, eq=False)
class CalledWith:
    """What an attention module was given beside what it reads: what depends on positions, and everything else."""

    options: dict[str, Any]
    n_tokens: int

    def at(self, positions: Sequence[int]) -> dict[str, Any]:
        chosen = list(positions)

        def part(value: Any) -> Any:
            if isinstance(value, tuple | list):
                return type(value)(part(entry) for entry in value)
            if not isinstance(value, Tensor) or self.n_tokens not in value.shape[-2:]:
                return value
            return value[..., chosen] if value.shape[-1] == self.n_tokens else value[..., chosen, :]

        return {name: part(value) for name, value in self.options.items()}


@contextmanager
def calls_of(modules: Sequence[torch.nn.Module], calls: dict[int, dict[str, Any]]) -> Iterator[None]:
    """Collect what attention modules are given by name: number -> arguments."""

    def watch(number: int) -> Callable[..., None]:
        def see(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if not _wants_only_queries.get():
                # Not what it reads: that would be kept until the run ends.
                calls[number] = {name: value for name, value in kwargs.items() if name not in _OF_ONE_RUN}

        return see

    handles = [module.register_forward_pre_hook(watch(number), with_kwargs=True) for number, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def queries_of(module: Any, hf_config: Any, normed: Tensor, options: dict[str, Any]) -> Tensor:
    """[H, P, E]: the queries that an attention module makes of rows [P, d] of what it reads. The module may be used by nobody else meanwhile.

    Raises:
        ValueError: it calls no function that captures.
    """
    before, token = hf_config._attn_implementation, _wants_only_queries.set(True)
    hf_config._attn_implementation = _NAME
    try:
        module(hidden_states=normed[None], attention_mask=None, **options)
    except _QueriesFound as found:
        return found.queries
    finally:
        _wants_only_queries.reset(token)
        hf_config._attn_implementation = before
    raise ValueError("attention went past the function that captures")


@contextmanager
def capturing(keep: Callable[[str, int, Tensor], Tensor], wants_queries: bool = True) -> Iterator[dict[int, Captured]]:
    """Collect, in this thread, what the attention modules are called with: layer -> `Captured`. Arguments as in `Captures`."""
    captures = Captures(keep, wants_queries)
    token = _captures.set(captures)
    try:
        yield captures.layers
    finally:
        _captures.reset(token)


def enable(bridge: Any, hf_config: Any) -> None:
    """Let a bridge's attention modules call the Hugging Face modules they wrap, and those the function that captures."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    hf_config._attn_implementation = _NAME
    for block in bridge.blocks:
        # Set past the module's own __setattr__, which forwards to the wrapped module.
        object.__setattr__(block.attn, "forward", types.MethodType(AttentionBridge.forward, block.attn))


def disable(bridge: Any, hf_config: Any) -> None:
    """Back to TransformerLens' own attention."""
    hf_config._attn_implementation = "eager"
    for block in bridge.blocks:
        vars(block.attn).pop("forward", None)


class Unsplit(torch.nn.Module):
    """Stands for a part of a joint projection that has not been split, since the Hugging Face modules run it in one piece."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(like.new_empty(0), requires_grad=False)
        self.bias = None


def drop_copies(bridge: Any, storages: Container[int]) -> None:
    """Let go of what TransformerLens copied out of joint projections: the Hugging Face modules, which run now, have them in one piece.

    storages: addresses of the checkpoint's own tensors; views of these are no copies.
    """
    for part in (part for block in bridge.blocks for part in _split(block.attn)):
        linear = unwrapped(part)
        if any(parameter.untyped_storage().data_ptr() not in storages for parameter in linear.parameters(recurse=False)):
            part.set_original_component(Unsplit(next(linear.parameters())))


def restore_copies(bridge: Any) -> None:
    """Split joint projections, as TransformerLens' own attention needs them."""
    for block in bridge.blocks:
        parts = _split(block.attn)
        if any(isinstance(unwrapped(part), Unsplit) for part in parts):
            for part, made in zip(parts, block.attn.split_qkv_matrix(unwrapped(block.attn)), strict=True):
                part.set_original_component(made.eval().requires_grad_(False))


def split_parameters(bridge: Any) -> set[int]:
    """Identities of the parameters that are parts of others."""
    return {id(parameter) for block in bridge.blocks for part in _split(block.attn) for parameter in unwrapped(part).parameters()}


def is_joint(block: Any) -> bool:
    """Whether a block's queries, keys and values come out of one projection, which TransformerLens splits."""
    return bool(_split(block.attn))


def _split(attention: Any) -> list[Any]:
    """The query, key and value projections that TransformerLens made of a joint one."""
    if not hasattr(attention, "split_qkv_matrix"):
        return []
    return [getattr(attention, name) for name in "qkv"]


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **options: Any
) -> tuple[Tensor, Any]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if options.get("position_bias") is not None:
        raise ValueError("a bias on the scores cannot be captured")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    cap, sinks = options.get("softcap"), options.get("s_aux")
    if _wants_only_queries.get():
        raise _QueriesFound(query[0])
    captures = _captures.get()
    if captures is not None:
        if attention_mask is not None and (attention_mask.dtype != torch.bool or attention_mask.shape[1] != 1):
            raise ValueError("a mask that adds to the scores cannot be captured")
        layer, keep = module.layer_idx, captures.keep
        queries = keep("queries", layer, query[0]) if captures.wants_queries else query.new_empty(query.shape[1], 0, query.shape[-1])
        keys, values = keep("keys", layer, key[0]), keep("values", layer, value[0])
        pattern = RecomputedPattern(queries, keys, scale, captures.visible(attention_mask), cap, sinks, query.device)
        captures.layers[layer] = Captured(pattern, values)
    if cap is None and sinks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return eager(module, query, key, value, _added(attention_mask, query), scaling=scale, **options)


def _added(mask: Tensor | None, query: Tensor) -> Tensor:
    """A mask of True and False, or a causal one, as what is added to scores."""
    n_tokens = query.shape[-2]
    if mask is None:
        mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=query.device).tril()[None, None]
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, torch.finfo(query.dtype).min)
