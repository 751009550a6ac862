"""The neurons of an FFN block, dense or a mixture of experts: what they do to some rows of the residual stream, and what each of them writes.

Transformers' modules are called as they are and observed on the way, so that activation functions, gates and routing are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llm_tt.models.info import FfnShape
from llm_tt.models.offloading import home_of, stored
from llm_tt.models.quantized import dense_weight
from llm_tt.models.transparent_llm import Neurons

_SHARED = ("shared_experts", "shared_expert")


class Ffn(Protocol):
    """One layer's FFN."""

    shape: FfnShape

    def neurons(self, ffn_input: Tensor) -> Neurons:
        """For rows [P, d] of the residual stream that the FFN reads, in the model's dtype and on the layer's device."""
        ...

    def output(self, neurons: Tensor | None) -> Tensor:
        """[N, d], or the rows of some neurons, float32."""
        ...


class DenseFfn:
    """Neurons are what the output projection is given.

    Args:
        run: the FFN with its norm, on [1, P, d].
        out: the output projection, a Linear or a Conv1D.
        scale: what the block multiplies the FFN's output with.
        module: the FFN without its norm, where the model calls one with nothing but what it reads.
    """

    def __init__(self, run: Callable[[Tensor], Any], out: nn.Module, scale: float = 1.0, module: nn.Module | None = None) -> None:
        self._run, self._out, self._scale, self.module = run, unwrapped(out), scale, module
        self.shape = FfnShape(n_inputs(self._out))

    @property
    def device(self) -> torch.device:
        home = home_of(self._out)
        assert home is not None
        return home

    def neurons(self, ffn_input: Tensor) -> Neurons:
        bias = stored(self._out, "bias")
        activations = _given(self._out, lambda: self._run(ffn_input[None]))
        return Neurons(_rows(activations), None if bias is None else scaled(bias.detach().to(self.device).float(), self._scale))

    def output(self, neurons: Tensor | None) -> Tensor:
        return scaled(_selected(dense_weight(self._out), neurons), self._scale)


@contextmanager
def in_pieces(module: nn.Module | None, n_rows: int, only_first: bool = False) -> Iterator[None]:
    """Let an FFN that reads each token by itself read so many at a time, so that its inner vectors never exist for all tokens at once.

    only_first: the first of them and no others, which get zeros.
    """
    if module is None:
        yield
        return
    whole, before = module.forward, vars(module).get("forward")

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.ndim != 3 or len(x) != 1 or x.shape[1] <= n_rows or args or kwargs:
            return whole(x, *args, **kwargs)
        out = torch.zeros_like(x) if only_first else torch.empty_like(x)
        for start in range(0, n_rows if only_first else x.shape[1], n_rows):
            # A slice of all of x would be multiplied as a batch, which takes longer.
            piece = x[0, start : start + n_rows]
            out[0, start : start + n_rows] = whole(piece[None])[0]
        return out

    # In the instance's own dictionary, where nothing of the library looks, and gone afterwards.
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


class MixtureFfn:
    """Neurons of the experts that a token is sent to, times the routing weight; neurons of shared experts, times their gate.

    Args:
        run: the FFN with its norm, on [1, P, d].
        moe: the module that holds router, experts and shared experts.
        scale: what the block multiplies the FFN's output with.
        experts_per_token: to how many experts the router sends a token.
        routed_scale: what the routed experts' sum is multiplied with after the experts, where the module does that.
        scales_inputs: the routing weight multiplies what an expert reads, not what it puts out (Llama 4); every expert then sees every token.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Any],
        moe: nn.Module,
        experts_per_token: int,
        scale: float = 1.0,
        routed_scale: float = 1.0,
        scales_inputs: bool = False,
    ) -> None:
        self._run, self._scale, self._routed_scale, self._scales_inputs = run, scale, routed_scale, scales_inputs
        self._experts: Any = unwrapped(moe.experts)
        self._transposed = bool(getattr(self._experts, "is_transposed", scales_inputs))
        down = self._experts.down_proj
        self._per_expert = int(down.shape[1 if self._transposed else 2])
        shared = next((getattr(moe, name) for name in _SHARED if getattr(moe, name, None) is not None), None)
        self._shared_out: Any = None if shared is None else unwrapped(unwrapped(shared).down_proj)
        self._shared_gate: Any = unwrapped(getattr(moe, "shared_expert_gate", None))
        self.shape = FfnShape(self._per_expert, int(down.shape[0]), 0 if shared is None else n_inputs(self._shared_out), experts_per_token)

    def neurons(self, ffn_input: Tensor) -> Neurons:
        n_tokens, n_routed = len(ffn_input), self.shape.n_experts * self._per_expert
        activations = torch.zeros(n_tokens, self.shape.n_neurons, device=ffn_input.device)
        bias = torch.zeros(n_tokens, ffn_input.shape[-1], device=ffn_input.device)
        with (
            seen_by(self._experts, every=True) as calls,
            seen_by(self._shared_out) as shared,
            seen_by(self._shared_gate, output=True) as gates,
        ):
            self._run(ffn_input[None])
        if self._scales_inputs:
            self._add_scaled_inputs(activations[:, :n_routed], calls[0][0])
        else:
            self._add_routed(activations[:, :n_routed], bias, *calls[0])
        if shared:
            # Without a gate the shared expert counts in full.
            gate = _rows(gates[0]).sigmoid() if gates else 1.0
            activations[:, n_routed:] = _rows(shared[0]) * gate
            shared_bias = stored(self._shared_out, "bias")
            if shared_bias is not None:
                bias += shared_bias.to(bias.device).float() * gate
        return Neurons(activations, bias * self._scale if bias.any() else None)

    def _add_routed(self, activations: Tensor, bias: Tensor, inputs: Tensor, index: Tensor, weights: Tensor) -> None:
        inputs, weights = inputs.reshape(len(activations), -1), weights.reshape(len(activations), -1).float() * self._routed_scale
        index = index.reshape(len(activations), -1)
        experts = self._experts
        for expert in index.unique().tolist():
            if expert >= self.shape.n_experts:
                continue
            token, slot = (index == expert).nonzero(as_tuple=True)
            weight = weights[token, slot, None]
            made = self._expert(expert, inputs[token]).float() * weight
            activations[token, expert * self._per_expert : (expert + 1) * self._per_expert] += made
            if getattr(experts, "has_bias", False):
                bias[token] += self._weight("down_proj_bias")[expert].to(bias.device).float() * weight

    def _expert(self, expert: int, inputs: Tensor) -> Tensor:
        experts = self._experts
        has_gate = getattr(experts, "has_gate", True)
        weight = self._weight("gate_up_proj" if has_gate else "up_proj")[expert].to(inputs.device)
        made = inputs @ (weight if self._transposed else weight.T)
        if getattr(experts, "has_bias", False):
            made = made + self._weight("gate_up_proj_bias" if has_gate else "up_proj_bias")[expert].to(made.device)
        return experts._apply_gate(made) if has_gate else experts.act_fn(made)

    def _add_scaled_inputs(self, activations: Tensor, inputs: Tensor) -> None:
        experts = self._experts
        inputs = inputs.view(self.shape.n_experts, len(activations), -1)
        gate, up = torch.bmm(inputs, self._weight("gate_up_proj").to(inputs.device)).chunk(2, dim=-1)
        activations += (up * experts.act_fn(gate)).float().transpose(0, 1).flatten(1) * self._routed_scale

    def output(self, neurons: Tensor | None) -> Tensor:
        n_routed = self.shape.n_experts * self._per_expert
        if neurons is None:
            neurons = torch.arange(self.shape.n_neurons)
        down, home = self._weight("down_proj"), home_of(self._experts)
        routed = neurons[neurons < n_routed].to(down.device)
        expert, index = routed // self._per_expert, routed % self._per_expert
        rows = torch.empty(len(neurons), down.shape[2 if self._transposed else 1], device=home)
        is_routed = (neurons < n_routed).to(home)
        rows[is_routed] = (down[expert, index] if self._transposed else down[expert, :, index]).to(home).float()
        if self._shared_out is not None:
            shared = neurons[neurons >= n_routed] - n_routed
            rows[~is_routed] = _selected(dense_weight(self._shared_out), shared).to(home)
        return scaled(rows, self._scale)

    def _weight(self, name: str) -> Tensor:
        """Of all experts, wherever it lies."""
        weight = stored(self._experts, name)
        assert weight is not None
        return weight


class OpaqueFfn:
    """An FFN whose neurons no recipe covers: it is shown as one block."""

    shape = FfnShape(0)

    def neurons(self, ffn_input: Tensor) -> Neurons:
        return Neurons(torch.zeros(len(ffn_input), 0, device=ffn_input.device), None)

    def output(self, neurons: Tensor | None) -> Tensor:
        return torch.zeros(0, 0)


def has_experts(module: Any) -> bool:
    """Whether a module is a mixture whose experts are kept as transformers keeps them: stacked in one tensor."""
    experts = unwrapped(getattr(module, "experts", None))
    return isinstance(getattr(experts, "down_proj", None), Tensor) and experts.down_proj.ndim == 3


def unwrapped(module: Any) -> Any:
    """The Hugging Face module inside TransformerLens' wrappers."""
    while isinstance(module, nn.Module) and isinstance(module._modules.get("_original_component"), nn.Module):
        module = module._modules["_original_component"]
    return module


def n_inputs(module: Any) -> int:
    from transformers.pytorch_utils import Conv1D

    module = unwrapped(module)
    return int(module.weight.shape[0]) if isinstance(module, Conv1D) else int(module.in_features)


@contextmanager
def seen_by(module: nn.Module | None, every: bool = False, output: bool = False) -> Iterator[list[Any]]:
    """Collect what a module is called with: the first argument, all of them (`every`), or what it returns (`output`)."""
    seen: list[Any] = []
    if module is None:
        yield seen
        return

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        called = (*args, *kwargs.values())
        seen.append(called if every else called[0])

    if output:
        handle = module.register_forward_hook(lambda _, args, made: seen.append(made))
    else:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


class _Given(Exception):
    """Ends a module as soon as one inside it is called."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def _given(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What a module is called with first while `run` runs, which ends there."""

    def end(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Given(next(iter((*args, *kwargs.values()))))

    handle = module.register_forward_pre_hook(end, with_kwargs=True)
    try:
        run()
    except _Given as given:
        return given.tensor
    finally:
        handle.remove()
    raise ValueError("the FFN does not call its output projection")


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).float()


def _selected(rows: Tensor, index: Tensor | None) -> Tensor:
    return rows if index is None else rows[index.to(rows.device)]


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """Itself where the factor is 1: weights are not copied for nothing."""
    return tensor if factor == 1 else tensor * factor
