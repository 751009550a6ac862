"""Random weights for a configuration, such that no term of a block is trivially zero or one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

_SCALES_EMBEDDING = ("gemma", "xglm", "hrm_text", "afmoe")
"""Families that multiply their embeddings by the root of the width, or about as much"""
_TRANSPOSED_EXPERTS = ("gpt_oss", "llama4_text")
"""Families that keep the weights of their experts as [expert, in, out]"""
_STATE = ("A_log", "dt_bias", ".D", "time_decay", "time_first", "recurrent_param")
"""Parameters of state spaces that are stable only near where they begin"""


def random_model(config: PretrainedConfig, seed: int = 0) -> Any:
    """A Hugging Face model; the same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    conv1d = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            _randomise(parameter, noise, name, config.model_type, name in conv1d)
        for module in model.modules():
            _randomise_buffers(module, generator)
    model.tie_weights()
    return model.eval()


def _randomise(parameter: Tensor, noise: Tensor, name: str, family: str, is_conv1d: bool) -> None:
    if any(part in name for part in _STATE):
        parameter.add_(0.1 * noise)
    elif name.endswith("bias"):
        parameter.copy_(0.3 * noise)
    elif name.endswith("sinks"):
        parameter.copy_(noise)
    elif parameter.ndim <= 1 or "norm" in name:
        # Norm weights, for some families one for each head. Gemma's are zero-centred; half a unit around them is a large change there too.
        parameter.add_(0.3 * noise)
    elif any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
        parameter.copy_(noise * 32**-0.5 if any(part in family for part in _SCALES_EMBEDDING) else noise)
    else:
        # GPT-Neo does not divide its scores by the root of the head width.
        sharp = any(part in name for part in ("q_proj", "k_proj", "c_attn", "q_b_proj", "query_key_value", "qkv"))
        sharpness = (0.7 if family == "gpt_neo" else 1.5) if sharp else 1.0
        parameter.copy_(sharpness * noise * _fan_in(parameter, name, family, is_conv1d) ** -0.5)


def _randomise_buffers(module: nn.Module, generator: torch.Generator) -> None:
    """What checkpoints keep in buffers: a router's correction, Gemma 4's scale of a layer."""
    for name, buffer in module.named_buffers(recurse=False):
        noise = torch.randn(buffer.shape, generator=generator)
        if name == "e_score_correction_bias":
            buffer.copy_(0.3 * noise)
        elif name == "layer_scalar":
            buffer.copy_(0.7 + 0.1 * noise)


def _fan_in(parameter: Tensor, name: str, family: str, is_conv1d: bool) -> int:
    """GPT-2's Conv1D keeps its weight as [in, out], a Linear as [out, in], a convolution as [out, in, width]."""
    if is_conv1d:
        return parameter.shape[0]
    if "conv" in name:
        return parameter[0].numel()
    return parameter.shape[1 if parameter.ndim == 3 and family in _TRANSPOSED_EXPERTS else -1]
