"""The identities that make a decomposition trustworthy, checked on a running model. Needs only the `TransparentLlm` interface.

Numbers follow docs/method.md: 1 attention parts, 2 neuron parts, 4 logits; and that attention looks at no future token and that blocks run one
after the other. Identities of contributions and routes (3, 5, 6) do not depend on the model and are proven by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_tt.errors import ModelError, RequestError
from llm_tt.models.info import LayerErrors
from llm_tt.models.transparent_llm import Trace, TransparentLlm
from llm_tt.progress import Progress, silent

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_CAUSES = {
    "attention parts": "an adapter that is not merged, or a norm, gate or scale between the heads and the residual stream",
    "neuron parts": "an adapter that is not merged, or a norm, gate or scale between the neurons and the residual stream",
    "residual stream parts": "a block that scales the stream, or adds something beside attention and FFN",
    "future tokens": "a model that is not causal, or a mask that this backend does not know",
    "logits": "a soft cap or a scale between the final norm and the logits",
}


@dataclass(frozen=True)
class IdentityReport:
    """What the check measured, and what it allows."""

    n_tokens: int
    tolerance: float
    layers: tuple[LayerErrors, ...]
    logits: float
    """relative error of unembed(final_norm(last residual)) against the model's own logits"""

    @property
    def worst(self) -> float:
        return max(self.logits, *(max(layer.attention, layer.neurons, layer.residual, layer.future) for layer in self.layers))

    def failure(self) -> str | None:
        """The first identity that fails, as a sentence; None if all hold."""
        for layer in self.layers:
            for what, error in (
                ("attention parts", layer.attention),
                ("neuron parts", layer.neurons),
                ("residual stream parts", layer.residual),
                ("future tokens", layer.future),
            ):
                if not error <= self.tolerance:  # NaN fails as well
                    return (
                        f"layer {layer.layer}: {what} are off by {error:.1e} (allowed {self.tolerance:.0e}). Likely cause: {_CAUSES[what]}"
                    )
        if not self.logits <= self.tolerance:
            return f"the logits are off by {self.logits:.1e} (allowed {self.tolerance:.0e}). Likely cause: {_CAUSES['logits']}"
        return None


def probe(d_vocab: int) -> list[int]:
    """The prompt of the check: a dozen token ids spread over the vocabulary."""
    # A stride coprime to most vocabulary sizes: reproducible, no token twice, no special-token cluster.
    return [(7 + 101 * index) % d_vocab for index in range(12)]


def check(llm: TransparentLlm) -> IdentityReport:
    """Trace a short prompt and measure every identity at every layer."""
    ids = probe(llm.info.d_vocab)[: llm.info.n_ctx]
    trace = llm.trace(ids)
    with torch.inference_mode():
        layers = tuple(_layer_errors(trace, layer, range(trace.n_tokens)) for layer in range(trace.n_layers))
    logits = relative_error(trace.logits(-1), llm.last_logits(ids))
    return IdentityReport(len(ids), TOLERANCE[llm.info.torch_dtype], layers, logits)


def require(llm: TransparentLlm) -> IdentityReport:
    """As `check`, but refuse the model if an identity fails.

    Raises:
        ModelError: with layer, error and likely cause.
    """
    try:
        report = check(llm)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        # Parts of unexpected shape: nobody has told how this model is built.
        raise ModelError(
            f"{llm.info.name} (model type {llm.info.family!r}) cannot be decomposed: its blocks are built in a way that no recipe covers "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})."
        ) from error
    if failure := report.failure():
        raise ModelError(
            f"{llm.info.name} (model type {llm.info.family!r}) cannot be decomposed exactly: {failure}. Nothing would be shown correctly."
        )
    return report


def reconstruction_errors(trace: Trace, n_positions: int = 64, progress: Progress = silent) -> tuple[LayerErrors, ...]:
    """How well the parts of each layer add up in this very trace: identities 1 and 2, the residual stream, and attention to future tokens.

    Args:
        n_positions: tokens to look at, spread evenly over the prompt from the first to the last (`sampled`); all, if there are no more.
        progress: called once a layer; may raise to cancel.
    """
    positions = sampled(trace.n_tokens, n_positions)
    layers: list[LayerErrors] = []
    with torch.inference_mode():
        for layer in range(trace.n_layers):
            layers.append(_layer_errors(trace, layer, positions))
            progress(f"Adding up the parts of layer {layer}", (layer + 1) / trace.n_layers)
    return tuple(layers)


def sampled(n_tokens: int, n_positions: int) -> list[int]:
    """At most so many of the positions 0 .. T-1, evenly spread; the last is among them, and the first if there are two.

    Raises:
        RequestError: none are wanted.
    """
    if n_positions < 1:
        raise RequestError(f"{n_positions} positions are none. Ask for at least 1.")
    n_positions = min(n_positions, n_tokens)
    if n_positions == 1:
        return [n_tokens - 1]
    return [index * (n_tokens - 1) // (n_positions - 1) for index in range(n_positions)]


def _layer_errors(trace: Trace, layer: int, positions: Sequence[int]) -> LayerErrors:
    block, llm, chosen = trace.blocks[layer], trace.model, list(positions)
    pattern = block.pattern.rows(chosen)
    attention = block.attention_sum(pattern, chosen, *llm.attention_output(layer))
    before = trace.pre(layer, chosen).float()
    mid = before + block.attn_out[chosen].to(before.device).float()
    post = block.mid(chosen).float() + block.ffn_out[chosen].to(before.device).float()
    residual = max(relative_error(mid, block.mid(chosen)), relative_error(post, block.post(chosen)))
    is_future = torch.arange(trace.n_tokens, device=pattern.device) > torch.tensor(chosen, device=pattern.device)[:, None]
    return LayerErrors(
        layer,
        attention=relative_error(attention, block.attn_out[chosen]),
        neurons=_neuron_error(trace, layer, chosen),
        residual=residual,
        future=float((pattern * is_future).abs().max()),
    )


def _neuron_error(trace: Trace, layer: int, positions: list[int]) -> float:
    """0 where a layer's neurons are not shown."""
    block, llm = trace.blocks[layer], trace.model
    if llm.info.ffn and not llm.info.ffn[layer].n_neurons:
        return 0.0
    made = llm.neurons(layer, trace.ffn_input(layer, positions))
    if llm.info.ffn and llm.info.ffn[layer].n_experts:
        total = torch.stack([_active_sum(llm, layer, row) for row in made.activations])
    else:
        total = made.activations @ llm.neuron_output(layer)
    if made.bias is not None:
        total = total + made.bias.to(total.device)
    if block.ffn_norm is not None:
        total = total * block.ffn_norm.rows(positions)
    return relative_error(total, block.ffn_out[positions])


def _active_sum(llm: TransparentLlm, layer: int, activations: Tensor) -> Tensor:
    """[d]: activations [N] times what the neurons write, of which only the experts that the token is sent to are read."""
    active = activations.nonzero(as_tuple=True)[0]
    return activations[active] @ llm.neuron_output(layer, active)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """||value - reference|| / ||reference||, Frobenius."""
    reference = reference.float().to(value.device)
    return float((value - reference).norm() / reference.norm().clamp_min(torch.finfo(torch.float32).tiny))
