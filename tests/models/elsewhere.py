"""Tensors of a second device, on a machine that has none: they hold numbers on the CPU, and mix with the CPU's own as a GPU's would, not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("meta")
"""What they say that they are on; a tensor that is moved there and not by way of this class loses its numbers, and shows it"""
_MOVING = {Tensor.to, Tensor.cpu}


class MixedDevicesError(RuntimeError):
    """What PyTorch says where tensors of two devices meet."""


class Elsewhere(Tensor):
    @staticmethod
    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.full(shape, torch.nan if dtype.is_floating_point else 0, dtype=dtype).as_subclass(Elsewhere)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return DEVICE
        here = [
            value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor) and not isinstance(value, Elsewhere) and value.ndim
        ]
        # Indices may come from the CPU, and copies go both ways.
        if here and func not in (Tensor.__getitem__, Tensor.copy_):
            raise MixedDevicesError(f"Expected all tensors to be on the same device: {getattr(func, '__name__', func)}")
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert a tensor of another device to numpy")
        leaves = func in _MOVING and (func == Tensor.cpu or any(_is_cpu(value) for value in tree_iter((args[1:], kwargs))))
        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = tree_map(_plain, (args, kwargs))
            if func in _MOVING:
                args, kwargs = tree_map(lambda value: torch.device("cpu") if value == DEVICE else value, (args, kwargs))
            found = func(*args, **kwargs)
            if leaves:
                return found.clone()
            if func == Tensor.copy_ and not any(issubclass(kind, Elsewhere) for kind in types):
                return found
            return tree_map(lambda value: value.as_subclass(Elsewhere) if isinstance(value, Tensor) else value, found)


def _is_cpu(value: Any) -> bool:
    return value == "cpu" or (isinstance(value, torch.device) and value.type == "cpu")


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Elsewhere) else value
