"""The library's own activations of a trace, half precision or not, for the brute force to sum in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from reference import LayerActivations
from torch import Tensor

import llm_tt


def in_float64(trace: llm_tt.Trace) -> Iterator[LayerActivations]:
    """Activations, weights and factors as the interface `TransparentLlm` hands them out, layer by layer."""
    one, everywhere = torch.ones((), dtype=torch.float64), range(trace.n_tokens)
    for layer, block in enumerate(trace.blocks):
        w_o, b_o = trace.model.attention_output(layer)
        neurons = trace.model.neurons(layer, trace.ffn_input(layer))
        n_heads = len(w_o)
        yield LayerActivations(
            *(tensor.double() for tensor in (trace.resid_pre(layer), block.resid_mid, block.resid_post)),
            alpha=block.pattern.rows(everywhere).double(),
            values=torch.stack([block.values[head * len(block.values) // n_heads] for head in range(n_heads)]).double(),
            w_o=w_o.double(),
            b_o=_or_zeros(b_o, trace),
            attn_out=block.attn_out.double(),
            neurons=neurons.activations.double(),
            w_out=trace.model.neuron_output(layer).double(),
            b_out=_or_zeros(neurons.bias, trace),
            ffn_out=block.ffn_out.double(),
            gate=one if block.gate is None else block.gate.transpose(0, 1).double(),
            attn_factor=one if block.attn_norm is None else block.attn_norm.rows(everywhere).double(),
            ffn_factor=one if block.ffn_norm is None else block.ffn_norm.rows(everywhere).double(),
        )


def _or_zeros(bias: Tensor | None, trace: llm_tt.Trace) -> Tensor:
    return torch.zeros(trace.model.info.d_model, dtype=torch.float64) if bias is None else bias.double()
