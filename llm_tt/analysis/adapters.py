"""What a PEFT adapter does to each weight of its base, computed from the two sets of files; no model is built.

A low-rank change stays two factors. What is measured: LoRA (rank-stabilised, DoRA, per-module ranks and alphas, biases, embeddings, fused experts by
`target_parameters`), AdaLoRA, LoHa, LoKr, IA3, trainable tokens, and modules saved whole. Anything else is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_tt.analysis.weight_files import EMBEDDINGS, HEADS, WeightFiles, canonical
from llm_tt.errors import ModelError

_PREFIX = "base_model.model."
_KEY = re.compile(
    r"^(?P<path>.+?)\.(?P<part>lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|trainable_tokens_delta"
    r"|hada_\w+|lokr_\w+|ia3_l)(?:\.default)?(?P<kind>\.weight|\.bias)?$"
)
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE")
_MEASURED = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "TRAINABLE_TOKENS")
_OTHER_LORAS = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "an activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layer replication",
}
_CHANGES_ITS_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "orthogonal")
"""Initialisations that subtract something from the base, so that B @ A is not the change against the base's files"""
_CONV1D_FAMILIES = ("gpt2", "openai-gpt")


@dataclass(frozen=True)
class Edit:
    """What an adapter does to one tensor of its base."""

    target: str
    """as the adapter calls it"""
    bases: tuple[str, ...] = ()
    """the base's tensors that it changes: one, or several where the base's files keep the experts of a stack apart"""
    shape: tuple[int, ...] = ()
    products: tuple[tuple[Tensor, Tensor], ...] = ()
    """(left, right), scaled: the change is left @ right, or its transpose; one for each expert of a stack"""
    dense: Tensor | None = None
    """the change itself, where it is no product; only the changed rows of an embedding"""
    dtype: torch.dtype = torch.float32
    """of what is written over the base, for its rounding"""
    only_rounds: bool = False
    """nothing was tuned; the change comes from the precision of the adapter's file"""
    misfit: str = ""
    """why it cannot be applied: a sentence's end"""
    note: str = ""
    """a sentence for the reader"""


class Adapter:
    """A folder that PEFT saved.

    Raises:
        ModelError: it has no configuration or no safetensors.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(f'Adapter folder "{folder}" has no adapter_config.json. Name the folder that PEFT saved.')
        self.files = WeightFiles(folder, adapter=True)
        self.config = self.files.config
        self.kind = str(self.config.get("peft_type", "")).upper()
        self._conv1d = False
        self._groups: dict[str, dict[str, str]] = {}
        for key in self.files:
            path, part = _split(key)
            self._groups.setdefault(path, {})[part] = key

    @property
    def base_name(self) -> str | None:
        return self.config.get("base_model_name_or_path") or None

    def unsupported(self) -> str | None:
        """Why nothing can be measured, as a sentence; None if it can."""
        if self.kind in _PROMPTS:
            return (
                f"This is a {self.kind} adapter: it puts trained vectors in front of the prompt and changes no weight. "
                "It cannot be merged, so that there is no change of weights to measure."
            )
        variants = [name for key, name in _OTHER_LORAS.items() if self.config.get(key)]
        what = self.kind if self.kind not in _MEASURED else variants[0] if variants else None
        if what is None:
            return None
        return (
            f"The adapter uses {what}, whose change of weights is not computed here. Merge it with PEFT's merge_and_unload, save the result, "
            "and compare that folder with the base."
        )

    def notes(self) -> list[str]:
        """Sentences on what makes the numbers differ from what was trained."""
        start = self.config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGES_ITS_BASE):
            return [
                f"The adapter was initialised with {start}, which also changes the base: unless it was converted when saved, "
                "the changes below are not those against the base's own files."
            ]
        return []

    def unusable(self) -> list[str]:
        """Tensors with NaN or infinite values."""
        return [name for name in self.files if self.files.is_float(name) and not bool(self.files[name].isfinite().all())]

    def edits(self, base: WeightFiles) -> Iterator[Edit]:
        """One for each tensor of the base that the adapter speaks of, found or not."""
        # PEFT corrects `fan_in_fan_out` by the layers it meets; here the family says what they are.
        self._conv1d = base.config.get("model_type") in _CONV1D_FAMILIES
        stacks: dict[str, list[str]] = {}
        for path, parts in self._groups.items():
            if "lora_A" in parts and self._parameters(path):
                stacks.setdefault(path.replace(".base_layer", ""), []).append(path)
                continue
            if any(part not in ("bias", "lora_B.bias") for part in parts):
                yield self._weight(path, parts, base)
            if parts.keys() & {"bias", "lora_B.bias"} or ("ia3_l" in parts and self._is_output_scale(parts) and base.find(f"{path}.bias")):
                yield self._bias(path, parts, base)
        for module, paths in stacks.items():
            yield from self._stack(module, paths, base)

    def _tensor(self, key: str) -> Tensor:
        return self.files[key]

    def _factor(self, path: str) -> float:
        """What PEFT multiplies B @ A with."""
        rank, alpha = self._rank(path), self._of(path, "alpha_pattern", self.config.get("lora_alpha", self.config.get("alpha", 8)))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _rank(self, path: str) -> int:
        return self._of(path, "rank_pattern", self.config.get("r", 8))

    def _of(self, path: str, pattern: str, default: Any) -> Any:
        for key, value in (self.config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        return default

    # --- a weight

    def _weight(self, path: str, parts: dict[str, str], base: WeightFiles) -> Edit:
        target, note = f"{path}.weight", ""
        name = base.find(target)
        if name is None and canonical(target) in HEADS and base.ties_its_head:
            name = base.any_of(EMBEDDINGS)
            note = f"{target} is compared with {name}, to which the base ties it."
        if name is None:
            return Edit(target)
        shape = base.shape(name)
        if not base.is_float(name):
            return Edit(target, (name,), shape)
        found = Edit(target, (name,), shape, note=note)
        try:
            return self._weight_edit(path, parts, base, found)
        except _MisfitError as misfit:
            return Edit(target, (name,), shape, misfit=str(misfit))

    def _weight_edit(self, path: str, parts: dict[str, str], base: WeightFiles, found: Edit) -> Edit:
        (name,), shape = found.bases, found.shape

        def edit(**changes: Any) -> Edit:
            return Edit(found.target, found.bases, shape, **{"note": found.note, **changes})

        if "trainable_tokens_delta" in parts:
            rows = self._tensor(parts["trainable_tokens_delta"]).float()
            indices = self._token_indices(path)
            weight = base[name]
            if len(parts) > 1 or len(indices) != len(rows) or max(indices, default=0) >= len(weight) or rows.shape[1] != weight.shape[1]:
                raise _MisfitError(f"has {len(rows)} rows for {len(indices)} tokens, the base has {tuple(weight.shape)}")
            return edit(dense=rows - weight[indices].float(), dtype=weight.dtype)
        if "ia3_l" in parts:
            scale = self._tensor(parts["ia3_l"]).float()
            scale = scale.T if self._transposed(shape, None) else scale
            if scale.numel() not in shape:
                raise _MisfitError(f"scales {scale.numel()} values, the base has {shape}")
            return edit(dense=base[name].float() * (scale - 1))
        if any(part.startswith("hada_") for part in parts):
            product = self._hadamard(path, {part: self._tensor(key).float() for part, key in parts.items()})
            return edit(dense=self._fitted(product, shape))
        if any(part.startswith("lokr_") for part in parts):
            return edit(dense=self._fitted(self._kronecker(path, {part: self._tensor(key).float() for part, key in parts.items()}), shape))
        return self._low_rank_edit(path, parts, base[name], edit)

    def _low_rank_edit(self, path: str, parts: dict[str, str], weight: Tensor, edit: Any) -> Edit:
        """LoRA, DoRA, a weight saved whole, or both of them on one embedding."""
        dense: Tensor | None = None
        note: dict[str, str] = {}
        dtype = torch.float32
        if "weight" in parts:
            saved = self._tensor(parts["weight"])
            dtype = saved.dtype
            if saved.shape[1:] != weight.shape[1:] or saved.ndim == 0:
                raise _MisfitError(f"has the shape {tuple(saved.shape)}, the base {tuple(weight.shape)}")
            if len(saved) != len(weight):
                if saved.ndim != 2:
                    raise _MisfitError(f"has the shape {tuple(saved.shape)}, the base {tuple(weight.shape)}")
                note = {"note": f"{path}.weight has {len(saved)} rows, the base {len(weight)}: only the common rows are compared."}
            common = min(len(saved), len(weight))
            dense = saved[:common].float() - weight[:common].float()
        embedding = "lora_embedding_A" in parts
        right_key, left_key = (
            parts.get("lora_embedding_A" if embedding else "lora_A"),
            parts.get("lora_embedding_B" if embedding else "lora_B"),
        )
        if right_key is None and left_key is None:
            if dense is None:
                raise _MisfitError(f"holds {', '.join(parts)}, which is not known here")
            return edit(dense=dense, dtype=dtype, **note)
        if right_key is None or left_key is None:
            raise _MisfitError("holds only one of its two factors")
        right, left = self._tensor(right_key).float().flatten(1), self._tensor(left_key).float().flatten(1)
        if left.shape[1] != right.shape[0]:
            raise _MisfitError(f"has factors of {left.shape[1]} and {right.shape[0]} directions")
        if "lora_E" in parts:
            alpha = self.config.get("lora_alpha", 8)
            left = left * ((alpha if alpha > 0 else len(right)) / (len(right) + 1e-5))
            right = right * self._tensor(parts["lora_E"]).float()
        else:
            if left.shape[1] != self._rank(path):
                raise _MisfitError(f"has {left.shape[1]} directions, its configuration says {self._rank(path)}")
            left = left * self._factor(path)
        flat = weight.flatten(1) if weight.ndim > 1 else weight
        if flat.ndim != 2 or (left.shape[0], right.shape[1]) not in (tuple(flat.shape), tuple(flat.shape[::-1])):
            raise _MisfitError(f"changes a weight of {left.shape[0]} x {right.shape[1]}, the base has {' x '.join(map(str, weight.shape))}")
        if "lora_magnitude_vector" in parts:
            turned = self._transposed(tuple(flat.shape), (left.shape[0], right.shape[1])) or embedding
            before = flat.float().T if turned else flat.float()
            after = torch.addmm(before, left, right)
            magnitude = self._tensor(parts["lora_magnitude_vector"]).float().reshape(-1, 1)
            if len(magnitude) != len(before):
                raise _MisfitError(f"has {len(magnitude)} magnitudes for {len(before)} outputs")
            lengths = after.norm(dim=1, keepdim=True)
            # As before the first step, when the magnitudes are the base's own.
            stored = self._tensor(parts["lora_magnitude_vector"]).dtype
            at_start = not bool(left.any()) and bool(((magnitude - lengths).abs() <= torch.finfo(stored).eps * lengths).all())
            return edit(dense=after.mul_(magnitude / lengths).sub_(before), only_rounds=at_start)
        if dense is not None and bool(dense.any()):
            turned = self._transposed(tuple(flat.shape), (left.shape[0], right.shape[1])) or embedding
            product = left @ right
            return edit(dense=dense + (product.T if turned else product)[: len(dense)], dtype=dtype, **note)
        return edit(products=((left, right),), **note)

    def _hadamard(self, path: str, parts: dict[str, Tensor]) -> Tensor:
        if {"hada_t1", "hada_t2"} & parts.keys():
            raise _MisfitError("is a LoHa of a convolution, which is not computed here")
        return (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"]) * self._factor(path)

    def _kronecker(self, path: str, parts: dict[str, Tensor]) -> Tensor:
        if "lokr_t2" in parts:
            raise _MisfitError("is a LoKr of a convolution, which is not computed here")
        one, two = (parts[f"lokr_{w}"] if f"lokr_{w}" in parts else parts[f"lokr_{w}_a"] @ parts[f"lokr_{w}_b"] for w in ("w1", "w2"))
        return torch.kron(one, two) * self._factor(path)

    def _fitted(self, change: Tensor, shape: tuple[int, ...]) -> Tensor:
        if math.prod(change.shape) != math.prod(shape):
            raise _MisfitError(f"changes a weight of {tuple(change.shape)}, the base has {shape}")
        return change.reshape(shape)

    def _transposed(self, shape: tuple[int, ...], change: tuple[int, int] | None) -> bool:
        """The base keeps this weight as [in, out]; a square one does not say."""
        if change is not None and shape[0] != shape[1]:
            return shape != change
        return bool(self.config.get("fan_in_fan_out")) or self._conv1d

    def _is_output_scale(self, parts: dict[str, str]) -> bool:
        return self.files.shape(parts["ia3_l"])[0] > 1

    def _token_indices(self, path: str) -> list[int]:
        given = self.config.get("token_indices" if self.kind == "TRAINABLE_TOKENS" else "trainable_token_indices")
        if isinstance(given, dict):
            given = next((indices for name, indices in given.items() if path.endswith(name)), [])
        return [int(index) for index in given or []]

    # --- a bias

    def _bias(self, path: str, parts: dict[str, str], base: WeightFiles) -> Edit:
        target = f"{path}.bias"
        name = base.find(target)
        if name is None:
            return Edit(target)
        before = base[name].float()
        change = torch.zeros_like(before)
        dtype = torch.float32
        if "bias" in parts:
            saved = self._tensor(parts["bias"])
            if saved.shape != before.shape:
                return Edit(target, (name,), tuple(before.shape), misfit=f"has {len(saved)} values, the base {len(before)}")
            change, dtype = saved.float() - before, saved.dtype
        if "lora_B.bias" in parts:
            change = change + self._tensor(parts["lora_B.bias"]).float() * self._factor(path)
        if "ia3_l" in parts and self._is_output_scale(parts):
            change = change + before * (self._tensor(parts["ia3_l"]).float().reshape(-1) - 1)
        return Edit(target, (name,), tuple(before.shape), dense=change, dtype=dtype)

    # --- a stack of experts

    def _parameters(self, path: str) -> list[str]:
        """The parameters of a module that `target_parameters` names, by their last word."""
        module = path.replace(".base_layer", "")
        names = sorted(self.config.get("target_parameters") or [], key=lambda name: "gate_up" not in name)
        return [name.rpartition(".")[2] for name in names if f".{module}.{name.rpartition('.')[2]}".endswith(f".{name}")]

    def _stack(self, module: str, paths: list[str], base: WeightFiles) -> Iterator[Edit]:
        # PEFT wraps a module once for each of its parameters: the innermost belongs to the first.
        for path, parameter in zip(sorted(paths, key=len, reverse=True), self._parameters(module), strict=False):
            target = f"{module}.{parameter}"
            names = _experts(base, module, parameter)
            if not names:
                yield Edit(target)
                continue
            right, left = self._tensor(self._groups[path]["lora_A"]).float(), self._tensor(self._groups[path]["lora_B"]).float()
            n_experts = len(right) // self._rank(target)
            size = sum(math.prod(base.shape(name)) for name in names)
            shape = base.shape(names[0]) if len(names) == 1 else (n_experts, left.shape[0], right.shape[1])
            if size != n_experts * left.shape[0] * right.shape[1]:
                yield Edit(
                    target, names, shape, misfit=f"changes {n_experts} x {left.shape[0]} x {right.shape[1]} weights, the base has {size}"
                )
                continue
            rights = right.reshape(n_experts, -1, right.shape[1])
            lefts = left.reshape(left.shape[0], -1, n_experts) * self._factor(target)
            yield Edit(target, names, shape, tuple((lefts[:, :, expert], rights[expert]) for expert in range(n_experts)))


class _MisfitError(Exception):
    """Why an edit cannot be applied."""


def _split(key: str) -> tuple[str, str]:
    """'base_model.model.x.lora_B.weight' -> ('x', 'lora_B'); a weight saved whole is the part 'weight'."""
    name = key.removeprefix(_PREFIX)
    match = _KEY.match(name)
    if match:
        part = match["part"] + (".bias" if match["kind"] == ".bias" else "")
        return match["path"].removesuffix(".token_adapter"), part
    path, _, part = name.rpartition(".")
    path = path.removesuffix(".default").removesuffix(".modules_to_save").removesuffix(".base_layer")
    return path, part


def _experts(base: WeightFiles, module: str, parameter: str) -> tuple[str, ...]:
    """The base's tensors of one stack: the stack itself, or the matrices of each expert."""
    whole = base.find(f"{module}.{parameter}")
    if whole is not None:
        return (whole,)
    single = ("gate_proj", "up_proj") if parameter == "gate_up_proj" else (parameter,)
    pattern = re.compile(re.escape(canonical(f"{module}.x").removesuffix(".x")) + r"\.\d+\.(" + "|".join(single) + r")\.weight")
    return tuple(name for name in base if pattern.fullmatch(canonical(name)))
