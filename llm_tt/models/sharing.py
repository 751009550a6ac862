"""Weights in memory once: models of one checkpoint, and the adapters merged into copies of it, share every tensor that none of them changes.

TransformerLens changes the modules it is given, never their tensors. So a base is kept as modules that nobody boots, and each model gets modules of
its own around the same tensors. A base lives as long as some model made of it does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from llm_tt.models import copying

_KEPT_BASE = "_llm_tt_base"


class SharedBases:
    """Loaded Hugging Face models by what was loaded; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading: dict[Hashable, threading.Lock] = {}
        self._bases: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()

    def copy(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """A model of one's own with the tensors of the base of that key, which is loaded if no living model has it.

        Tensors must not be changed in place; replace them by `own` ones first.
        """
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            base = self._bases.get(key)
            if base is None:
                base = load()
                base.eval().requires_grad_(False)
                self._bases[key] = base
            made = copy_sharing_tensors(base)
        # Not an attribute: torch would take it for a part of the model.
        made.__dict__[_KEPT_BASE] = base
        return made

    def __contains__(self, key: Hashable) -> bool:
        return key in self._bases

    def __len__(self) -> int:
        return len(self._bases)


BASES = SharedBases()


def copy_sharing_tensors(model: Any) -> Any:
    """The modules and the configuration anew, around the same parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copying.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def own(module: Any, name: str) -> Any:
    """Replace a module's parameter by a copy that may be changed in place."""
    import torch

    shared = getattr(module, name)
    made = torch.nn.Parameter(shared.detach().clone(), requires_grad=False)
    setattr(module, name, made)
    return made
