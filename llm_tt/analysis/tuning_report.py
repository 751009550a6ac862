"""What a tuning changed, as a value: `TuningReport`. Free of torch, so that those who only show it need not import it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np

Outcome = Literal["tuned", "peripheral", "rounding", "no_effect", "not_merged", "wrong_base", "damaged", "not_measured"]
"""What the verdict says, as one word: docs/tuning.md has each of them"""

_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")


@dataclass(frozen=True, eq=False)
class ModuleChange:
    """How one tensor of the base model was changed: dW, against W."""

    name: str
    """the tensor's name in the base model's files"""
    layer: int | None
    """None outside the layers: embeddings, the final norm, the output head"""
    module: str
    """the name within its layer, as "self_attn.q_proj" or "self_attn.q_proj.bias" """
    shape: tuple[int, ...]
    change_norm: float
    """||dW||, Frobenius"""
    weight_norm: float
    """||W||, Frobenius"""
    singular_values: np.ndarray
    """the largest of dW, at most 16, falling; of a stack of experts those of all experts together"""
    rank: int | None
    """singular values above what rounding to the dtype of the file can make; None: more than were computed"""
    n_90: int | None
    """singular values that carry 90 % of ||dW||^2; None: more than were computed"""
    n_99: int | None

    @property
    def relative_change(self) -> float:
        """||dW|| / ||W||; infinite where W is zero"""
        if self.weight_norm > 0:
            return self.change_norm / self.weight_norm
        return math.inf if self.change_norm > 0 else self.change_norm

    @property
    def effective_rank(self) -> float:
        """The stable rank ||dW||_F^2 / ||dW||_2^2: 1 when one direction carries everything; NaN where dW is zero or not finite."""
        largest = float(self.singular_values[0]) if len(self.singular_values) else 0.0
        return (self.change_norm / largest) ** 2 if largest > 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "layer": self.layer,
            "module": self.module,
            "shape": list(self.shape),
            "relative_change": finite(self.relative_change),
            "change_norm": finite(self.change_norm),
            "weight_norm": finite(self.weight_norm),
            "singular_values": [finite(float(value)) for value in self.singular_values],
            "rank": self.rank,
            "effective_rank": finite(self.effective_rank),
            "n_90": self.n_90,
            "n_99": self.n_99,
        }


@dataclass(frozen=True)
class LayerChange:
    """The changed modules of one layer; those of all experts of a mixture are taken together, as "mlp.experts.*.up_proj"."""

    layer: int | None
    relative_change: float
    """||dW|| / ||W|| over the changed modules together"""
    by_module: dict[str, float]


@dataclass(frozen=True, eq=False)
class TuningReport:
    """What distinguishes a tuned model from its base."""

    base: str
    tuned: str
    kind: Literal["adapter", "checkpoint"]
    modules: tuple[ModuleChange, ...]
    """by layer, those outside the layers last; an adapter's modules are all here, even where they change nothing"""
    untouched: tuple[str, ...]
    """the base model's tensors that are as they were, by name"""
    outcome: Outcome
    verdict: str
    """one or two plain sentences"""
    warnings: tuple[str, ...] = ()
    """sentences on what was compared otherwise than by name, or not at all"""

    @property
    def median_change(self) -> float:
        """Of the weight matrices that changed; 0 if none did"""
        return median_change(self.modules)

    def strongest(self) -> ModuleChange | None:
        """The module with the largest relative change, weight matrices first."""
        return max(_matrices(self.modules) or _changed(self.modules), key=lambda module: module.relative_change, default=None)

    def per_layer(self) -> tuple[LayerChange, ...]:
        """One entry for each layer with changed modules, in order; what lies outside the layers comes last."""
        layers: dict[int | None, dict[str, list[ModuleChange]]] = {}
        for module in self.modules:
            layers.setdefault(module.layer, {}).setdefault(_EXPERT.sub(r"\1experts.*.", module.module), []).append(module)
        return tuple(
            LayerChange(
                layer,
                _together(module for group in layers[layer].values() for module in group),
                {name: _together(group) for name, group in layers[layer].items()},
            )
            for layer in sorted(layers, key=_layer_order)
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not finite becomes None."""
        return {
            "base": self.base,
            "tuned": self.tuned,
            "kind": self.kind,
            "outcome": self.outcome,
            "verdict": self.verdict,
            "warnings": list(self.warnings),
            "median_change": finite(self.median_change),
            "modules": [module.to_dict() for module in self.modules],
            "untouched": list(self.untouched),
        }


def in_order(modules: Iterable[ModuleChange]) -> tuple[ModuleChange, ...]:
    """By layer, then as given; what lies outside the layers last."""
    return tuple(sorted(modules, key=lambda module: _layer_order(module.layer)))


def median_change(modules: Iterable[ModuleChange]) -> float:
    changes = [module.relative_change for module in _matrices(modules) if math.isfinite(module.relative_change)]
    return median(changes) if changes else 0.0


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _layer_order(layer: int | None) -> float:
    return math.inf if layer is None else layer


def _changed(modules: Iterable[ModuleChange]) -> list[ModuleChange]:
    return [module for module in modules if module.change_norm > 0]


def _matrices(modules: Iterable[ModuleChange]) -> list[ModuleChange]:
    return [module for module in _changed(modules) if module.layer is not None and len(module.shape) > 1]


def _together(modules: Iterable[ModuleChange]) -> float:
    group = list(modules)
    change = math.hypot(*(module.change_norm for module in group))
    weight = math.hypot(*(module.weight_norm for module in group))
    return change / weight if weight > 0 else (math.inf if change > 0 else change)
