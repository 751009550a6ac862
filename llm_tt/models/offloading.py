"""Weights that accelerate keeps off the device and brings in for each call of their module: where they are, and where they compute.

They are read from where accelerate has them, not by way of the module, which another thread may be running.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def stored(module: Any, name: str) -> Tensor | None:
    """A parameter or buffer of a module, wherever it lies: on the module's device, or in main memory or on disk; None where there is none."""
    tensor = getattr(module, name, None)
    if isinstance(tensor, Tensor) and tensor.is_meta:
        for hook in _hooks(module):
            if getattr(hook, "weights_map", None) is not None:
                return hook.weights_map[name]
    return tensor


def home_of(module: nn.Module) -> torch.device | None:
    """Where a module computes; None where it has no parameters."""
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if not parameter.is_meta:
                return parameter.device
            for hook in _hooks(part):
                if getattr(hook, "offload", False) and hook.execution_device is not None:
                    return _device(hook.execution_device)
    return None


def weights_of(model: nn.Module) -> Iterator[Tensor]:
    """All parameters of a model, each once, wherever they lie; those that are nowhere are left out."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            tensor = stored(module, name)
            if tensor is not None and not tensor.is_meta:
                yield tensor


def is_offloaded(model: nn.Module) -> bool:
    return any(getattr(hook, "offload", False) for module in model.modules() for hook in _hooks(module))


def _hooks(module: Any) -> tuple[Any, ...]:
    """What accelerate put on a module."""
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def _device(named: Any) -> torch.device:
    return torch.device("cuda", named) if isinstance(named, int) else torch.device(named)
