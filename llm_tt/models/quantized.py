"""Weights in 8 or 4 bits, by bitsandbytes where it is installed; and any linear module's weight as the matrix that it stands for."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from llm_tt.errors import ModelError
from llm_tt.models.offloading import home_of, stored

_INT8_RANGE = 127


def require_bitsandbytes(who: str) -> None:
    """Raises:
    ModelError: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f'{who} needs the package bitsandbytes, which is not installed. Run "pip install bitsandbytes", or leave out "quantization".'
        )


def quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    """What `from_pretrained` needs for "8bit" or "4bit"; activations have `dtype`."""
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def dequantizing_config(method: str) -> Any:
    """What `from_pretrained` needs to turn a checkpoint's "mxfp4" or "fp8" weights into plain matrices."""
    from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

    return Mxfp4Config(dequantize=True) if method == "mxfp4" else FineGrainedFP8Config(dequantize=True)


def dense_weight(module: Any) -> Tensor:
    """The matrix W [in, out], float32, of a module that computes `x @ W + b`: Linear, GPT-2's Conv1D, bitsandbytes' Linear8bitLt and Linear4bit."""
    weight = module.weight
    kind = type(weight).__name__
    if kind == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit  # type: ignore[import-not-found]

        return dequantize_4bit(weight.data, weight.quant_state).detach().float().T
    if kind == "Int8Params":
        # The rows' scales move from the parameter to the module's state with the first forward pass.
        state = getattr(module, "state", None)
        source: Any = state if getattr(state, "CB", None) is not None else weight
        return (source.CB.float() * source.SCB.float()[:, None] / _INT8_RANGE).detach().T
    if weight.is_meta:
        held = stored(module, "weight")
        weight = weight if held is None else held.to(home_of(module))
    weight = weight.detach().float()
    return weight if type(module).__name__ == "Conv1D" else weight.T
