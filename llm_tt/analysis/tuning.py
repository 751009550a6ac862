"""Did the tuning take? An adapter, or a tuned checkpoint, against its base: a function of files that reads one tensor at a time.

Neither model is built, so that two checkpoints of any size can be compared on a machine that could hold neither of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from llm_tt.analysis import spectrum
from llm_tt.analysis.adapters import Adapter, Edit
from llm_tt.analysis.spectrum import Spectrum
from llm_tt.analysis.tuning_report import ModuleChange, Outcome, TuningReport, in_order, median_change
from llm_tt.analysis.weight_files import EMBEDDINGS, HEADS, WeightFiles, canonical, layer_and_module, read_json
from llm_tt.config import DEMO, DEMO_TUNED, ModelSpec
from llm_tt.demo import ADAPTER_DIR, MODEL_DIR
from llm_tt.errors import ModelError
from llm_tt.progress import Progress, silent

_ROUNDED = 0.999
"""The share of numbers that must be explained by rounding; the rest were rounded twice"""
_SAMPLE = 4096
_NOTHING = 1e-6
"""A relative change below this is rounding in float32"""
_UNRELATED = 1.2
"""Two models trained apart differ by about sqrt 2 of their norm"""
_NAMED = 3


def tuning_report(model: str | ModelSpec, base: str | None = None, progress: Progress = silent) -> TuningReport:
    """What distinguishes a tuned model from its base.

    Args:
        model: folder or hub name of an adapter or of a tuned checkpoint, or a specification from the configuration.
        base: folder or hub name; for an adapter, the model it names if not given.

    Raises:
        ModelError: a folder or hub model is missing or damaged, or the base is not known.
    """
    spec = ModelSpec.named(model) if isinstance(model, str) else model
    where = spec.path or spec.name
    if spec.adapter is not None:
        return tuning_of_adapter(spec.adapter, base or spec.base or where, progress, revision=spec.revision)
    folder = _folder(where, spec.revision)
    if _is_adapter(folder):
        return tuning_of_adapter(folder, base or spec.base, progress)
    base = base or spec.base or read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if base is None:
        raise ModelError(
            f'"{where}" does not say which model it was tuned from. Name it as "base" in the configuration, or with --base on the command line.'
        )
    return tuning_of_checkpoint(folder, base, progress)


def tuning_of_adapter(
    adapter_dir: str | Path, base_dir: str | Path | None = None, progress: Progress = silent, *, revision: str | None = None
) -> TuningReport:
    """What a PEFT adapter changes in its base; `base_dir` is the one the adapter names if not given.

    Raises:
        ModelError: as `tuning_report`.
    """
    folder = _folder(str(adapter_dir))
    adapter = Adapter(folder)
    name = str(base_dir) if base_dir is not None else adapter.base_name
    if name is None:
        raise ModelError(f'Adapter folder "{folder}" does not say which model it belongs to. Set "base" in the configuration.')
    found = _Findings(name, str(adapter_dir), "adapter", adapter.notes())
    if reason := adapter.unsupported():
        return found.report("not_measured", reason)
    if unusable := adapter.unusable():
        return found.report("damaged", _damaged(unusable, "The adapter"))
    base = WeightFiles(_folder(name, revision))
    if base_dir is not None and adapter.base_name and not _same_model(name, adapter.base_name):
        found.warnings.append(f'The adapter says that it was trained on "{adapter.base_name}"; here it is held against "{name}".')

    edits: list[Edit] = []
    touched: set[str] = set()
    unmeasured: list[str] = []
    for edit in adapter.edits(base):
        progress(f"Measuring {edit.target}", len(edits) / max(len(adapter.files), 1))
        if edit.note:
            found.warnings.append(edit.note)
        touched.update(edit.bases)
        fits = bool(edit.bases) and not edit.misfit
        if fits and not edit.products and edit.dense is None:
            unmeasured.append(edit.target)
        elif fits:
            found.add(*_measured_edit(edit, base))
        # The tensors of an edit are not kept: an adapter of a large model is large itself.
        edits.append(Edit(edit.target, edit.bases, misfit=edit.misfit))
    found.untouched = [name for name in base if name not in touched]
    misfits, missing = [edit for edit in edits if edit.misfit], [edit.target for edit in edits if not edit.bases]
    if unmeasured:
        found.warnings.append(f"The base holds quantised weights, against which no change can be measured: {_listed(unmeasured)}.")
    if missing and len(missing) < len(edits):
        found.warnings.append(f"The base has no {_listed(missing)}: there the adapter has no effect.")
    outcome, verdict = _verdict_of_adapter(adapter, name, len(edits), misfits, missing, found, unmeasured)
    return found.report(outcome, verdict)


def tuning_of_checkpoint(tuned_dir: str | Path, base_dir: str | Path, progress: Progress = silent) -> TuningReport:
    """How the weights of a tuned checkpoint differ from its base's.

    Raises:
        ModelError: as `tuning_report`.
    """
    tuned_folder = _folder(str(tuned_dir))
    tuned, base = WeightFiles(tuned_folder), WeightFiles(_folder(str(base_dir)))
    found = _Findings(str(base_dir), str(tuned_dir), "checkpoint", [])
    unmerged = [name for name in tuned if ".lora_A" in name or ".lora_B" in name or ".lora_embedding_" in name]
    names = [name for name in tuned if name not in set(unmerged)]

    pairs: list[tuple[str, str]] = []
    for name in names:
        other = base.find(name)
        if other is None and canonical(name) in HEADS and base.ties_its_head:
            other = base.any_of(EMBEDDINGS)
            found.warnings.append(f"{name} is compared with {other}, to which the base ties it.")
        if other is not None:
            pairs.append((name, other))
    head = base.any_of(HEADS)
    if head is not None and tuned.ties_its_head and (embedding := tuned.any_of(EMBEDDINGS)) is not None:
        pairs.append((embedding, head))
        found.warnings.append(f"{head} of the base is compared with {embedding}, to which the tuned model ties its head.")

    misfits, unmeasured, unusable = [], [], []
    for index, (name, other) in enumerate(pairs):
        progress(f"Comparing {name}", index / len(pairs))
        if not (tuned.is_float(name) and base.is_float(other)):
            before, after = base[other], tuned[name]
            if before.dtype != after.dtype or before.shape != after.shape or not torch.equal(before, after):
                unmeasured.append(other)
            else:
                found.untouched.append(other)
            continue
        before, after = base.shape(other), tuned.shape(name)
        if before != after and not (canonical(other) in (*EMBEDDINGS, *HEADS) and before[1:] == after[1:]):
            misfits.append(f"{other} is {' x '.join(map(str, before))} in the base and {' x '.join(map(str, after))} in the tuned model")
            continue
        if before != after:
            found.warnings.append(
                f"{other} has {before[0]} rows in the base and {after[0]} in the tuned model: the common rows are compared."
            )
        measured = _measured_pair(other, base[other], tuned[name])
        if measured is None:
            found.untouched.append(other)
        elif math.isnan(measured[0].change_norm):
            unusable.append(name)
        else:
            found.add(*measured)
    reached = {other for _, other in pairs}
    missing, extra = [name for name in base if name not in reached], [name for name in names if name not in {name for name, _ in pairs}]
    if missing and not base_head_only(missing, base, tuned):
        found.warnings.append(f"The tuned model has no {_listed(missing)}: not compared.")
    if extra:
        found.warnings.append(f"The base has no {_listed(extra)}: not compared.")
    if unmeasured:
        found.warnings.append(f"Quantised weights differ, by how much cannot be measured: {_listed(unmeasured)}.")
    left = "lora_A and lora_B" if unmerged else "the weights of an adapter" if (tuned_folder / "adapter_config.json").is_file() else None
    outcome, verdict = _verdict_of_checkpoint(found, len(pairs), len(base), misfits, unusable, unmeasured, left)
    return found.report(outcome, verdict)


def base_head_only(missing: Sequence[str], base: WeightFiles, tuned: WeightFiles) -> bool:
    """All that is missing is a head that the tuned model ties to its embedding."""
    return tuned.ties_its_head and all(canonical(name) in HEADS for name in missing) and base.any_of(HEADS) is not None


# --- what was found


@dataclass
class _Findings:
    base: str
    tuned: str
    kind: str
    warnings: list[str]
    modules: list[ModuleChange] = field(default_factory=list)
    rounded: list[bool] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)

    def add(self, module: ModuleChange, rounded: bool) -> None:
        self.modules.append(module)
        self.rounded.append(rounded)

    @property
    def changed(self) -> list[ModuleChange]:
        # The weights of a checkpoint are compared as they are stored; those of an adapter are computed.
        return [module for module in self.modules if module.relative_change > (_NOTHING if self.kind == "adapter" else 0.0)]

    @property
    def only_rounding(self) -> bool:
        return all(rounded for module, rounded in zip(self.modules, self.rounded, strict=True) if module.change_norm > 0)

    def report(self, outcome: Outcome, verdict: str) -> TuningReport:
        return TuningReport(
            self.base,
            self.tuned,
            "adapter" if self.kind == "adapter" else "checkpoint",
            in_order(self.modules),
            tuple(self.untouched),
            outcome,
            verdict,
            tuple(dict.fromkeys(self.warnings)),
        )


def _measured_edit(edit: Edit, base: WeightFiles) -> tuple[ModuleChange, bool]:
    weight = math.hypot(*(_norm(base[name]) for name in edit.bases))
    name = edit.bases[0] if len(edit.bases) == 1 else edit.target
    if edit.products:
        return _module(name, edit.shape, weight, spectrum.together([spectrum.of_product(*product) for product in edit.products])), False
    assert edit.dense is not None
    noise = spectrum.rounding_noise(weight, edit.shape, edit.dtype)
    before = base[edit.bases[0]].float()
    rounded = edit.only_rounds or (edit.dense.shape == edit.shape and _is_rounding(before, before + edit.dense))
    return _module(name, edit.shape, weight, _spectrum(edit.dense, noise)), rounded


def _measured_pair(name: str, before: Tensor, after: Tensor) -> tuple[ModuleChange, bool] | None:
    """The change of one tensor and whether rounding explains it; None if there is none."""
    common = min(len(before), len(after)) if before.ndim else None
    if common is not None:
        before, after = before[:common], after[:common]
    if before.dtype == after.dtype and torch.equal(before, after):
        return None
    weight, shape, dtype = _norm(before), tuple(before.shape), after.dtype
    before, after = before.float(), after.float()
    change = after - before
    moved = _norm(change)
    if not math.isfinite(moved):
        nothing = Spectrum(spectrum.of_matrix(torch.zeros(1, 1)).values, math.nan, 0, True)
        return _module(name, shape, weight, nothing), False
    if moved == 0:
        return None
    rounded = _is_rounding(before, after)
    return _module(name, shape, weight, _spectrum(change, spectrum.rounding_noise(weight, shape or (1,), dtype))), rounded


def _spectrum(change: Tensor, noise: float) -> Spectrum:
    if change.ndim == 3:
        return spectrum.together([spectrum.of_matrix(expert, noise) for expert in change])
    return spectrum.of_matrix(change, noise)


def _module(name: str, shape: tuple[int, ...], weight_norm: float, found: Spectrum) -> ModuleChange:
    layer, module = layer_and_module(name)
    return ModuleChange(
        name, layer, module, shape, found.energy**0.5, weight_norm, found.top, found.n_above, found.n_for(0.9), found.n_for(0.99)
    )


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _is_rounding(before: Tensor, after: Tensor, share: float = _ROUNDED) -> bool:
    """One of two float32 tensors is the other rounded to a half precision."""
    if before.numel() > _SAMPLE:
        # Most tensors are not, and a few thousand numbers show it.
        step = before.numel() // _SAMPLE
        if not _is_rounding(before.flatten()[::step][:_SAMPLE], after.flatten()[::step][:_SAMPLE], share=0.5):
            return False
    for dtype in (torch.bfloat16, torch.float16):
        for fine, coarse in ((before, after), (after, before)):
            if float((fine.to(dtype).float() == coarse).float().mean()) >= share:
                return True
    return False


# --- verdicts


def _verdict_of_adapter(
    adapter: Adapter,
    base: str,
    n_edits: int,
    misfits: list[Edit],
    missing: list[str],
    found: _Findings,
    unmeasured: list[str],
) -> tuple[Outcome, str]:
    if misfits:
        first = misfits[0]
        return "wrong_base", (
            f'The adapter does not fit "{base}": {first.target} {first.misfit}'
            + (f", and {len(misfits) - 1} more do not fit" if len(misfits) > 1 else "")
            + ". Name the model it was trained on."
        )
    if n_edits == 0:
        return "no_effect", "The adapter has no effect: its file holds no weights. Save it again with save_pretrained of the PEFT model."
    if len(missing) == n_edits:
        return "wrong_base", (
            f'The adapter has no effect on "{base}", which has none of the {n_edits} weights that it changes ({_listed(missing)}). '
            "Name the model it was trained on."
        )
    if not found.modules:
        return "not_measured", f'"{base}" holds quantised weights. Compare with the same model in full precision to measure the change.'
    changed = found.changed
    if not changed or found.only_rounding:
        return "no_effect", _why_nothing(adapter, len(found.modules))
    idle = len(found.modules) - len(changed)
    return "tuned", _strength(found) + (f" Without effect: {idle} of the adapter's {len(found.modules)} weights." if idle else "")


def _why_nothing(adapter: Adapter, n_modules: int) -> str:
    lefts = [name for name in adapter.files if ".lora_B" in name or ".lora_embedding_A" in name]
    zero = [name for name in lefts if not bool(adapter.files[name].any())]
    modules = f"its {n_modules} weights" if n_modules > 1 else "its one weight"
    if lefts and len(zero) == len(lefts):
        return (
            f"The adapter has no effect: lora_B is zero in {modules}, as before the first step of a training. "
            "Was it saved before it was trained, or were its weights frozen?"
        )
    if not adapter.config.get("lora_alpha", 1):
        return f"The adapter has no effect: its lora_alpha is {adapter.config['lora_alpha']}, so that every change is multiplied by 0."
    return f"The adapter has no effect: {modules} are those of the base up to rounding. Was it saved before it was trained?"


def _verdict_of_checkpoint(
    found: _Findings,
    n_pairs: int,
    n_base: int,
    misfits: list[str],
    unusable: list[str],
    unmeasured: list[str],
    unmerged: str | None,
) -> tuple[Outcome, str]:
    if unusable:
        return "damaged", _damaged(unusable, "The tuned model")
    if misfits:
        more = f", and {len(misfits) - 1} more differ in shape" if len(misfits) > 1 else ""
        return "wrong_base", f'"{found.base}" is not the base of this model: {misfits[0]}{more}.'
    if n_pairs * 2 < n_base:
        return "wrong_base", f'"{found.base}" is not the base of this model: only {n_pairs} of its {n_base} tensors are in the tuned model.'
    merge = "Load the base with the adapter, or merge it with PEFT's merge_and_unload and save the result."
    changed = found.changed
    if not changed:
        if unmerged:
            return "not_merged", f"The weights are those of the base; {unmerged} beside them are not merged and have no effect. {merge}"
        if unmeasured:
            return (
                "not_measured",
                "What differs is quantised, so that the change cannot be measured; all other tensors are those of the base.",
            )
        return "no_effect", (
            f"The tuning has no effect: all {n_pairs} tensors equal the base's. Was the base saved instead of the tuned model, "
            "or an adapter trained and not merged?"
        )
    if found.only_rounding:
        merged = f" {unmerged[0].upper()}{unmerged[1:]} beside them are not merged. {merge}" if unmerged else ""
        return ("not_merged" if unmerged else "rounding"), (
            f"The weights differ from the base's by rounding alone ({_percent(median_change(changed))} in the median): "
            f"they were saved in another precision and not tuned.{merged}"
        )
    if unmerged:
        found.warnings.append(f"The folder also holds {unmerged} that are not merged into those measured here.")
    if median_change(changed) > _UNRELATED and len(changed) * 2 > n_pairs:
        return "wrong_base", (
            f'The weights differ from those of "{found.base}" by {_percent(median_change(changed))} of their norm in the median, '
            "as those of two models trained apart do: it is not the base of this model."
        )
    if not any(module.layer is not None and len(module.shape) > 1 for module in changed):
        return "peripheral", (
            f"Only {_listed([module.name for module in changed])} changed: no weight matrix of any layer was tuned. "
            "If more was meant to be, were the layers frozen or an adapter not merged?"
        )
    return "tuned", _strength(found)


def _strength(found: _Findings) -> str:
    changed = found.changed
    strongest = max(changed, key=lambda module: (module.layer is not None and len(module.shape) > 1, module.relative_change))
    place = f"layer {strongest.layer}, {strongest.module}" if strongest.layer is not None else strongest.module
    subject = "The adapter" if found.kind == "adapter" else "The tuning"
    total = len(found.modules) + len(found.untouched)
    text = (
        f"{subject} changes {len(changed)} of {total} tensors, its weight matrices by {_percent(median_change(changed))} of their norm in the "
        f"median, most of all {place} ({_percent(strongest.relative_change)})."
    )
    if strongest.relative_change > 1:
        text += " A change larger than the weight itself is rarely wanted: was the learning rate too high?"
    return text


def _damaged(names: Sequence[str], what: str) -> str:
    return (
        f"{what} is damaged: {_listed(names)} has values that are not finite (NaN or infinite). The training diverged; use an earlier save."
    )


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if 100 <= percent < 1e4 else f"{percent:.2g} %"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


# --- where files are


def _folder(where: str, revision: str | None = None) -> Path:
    """A folder as it is; a hub name as its snapshot in the cache, fetched if it is not there."""
    from llm_tt.models import hub

    if where == DEMO and not os.path.isdir(where):
        return MODEL_DIR
    if where == DEMO_TUNED and not os.path.isdir(where):
        return ADAPTER_DIR
    expanded = Path(where).expanduser()
    if expanded.is_dir():
        return expanded
    if hub.is_path(where):
        raise ModelError(f'Model folder "{where}" does not exist. Check the path.')
    return hub.snapshot(where, ["model*.safetensors", "adapter_model*.safetensors", "*.json"], revision)


def _is_adapter(folder: Path) -> bool:
    """An adapter and no full weights beside it."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    return (folder / "adapter_config.json").is_file() and not any((folder / name).is_file() for name in weights)


def _same_model(one: str, other: str) -> bool:
    """Two names of one model, as far as names tell: equal, the same folder, or equal in their last part (a moved folder)."""
    return one == other or Path(one).expanduser().resolve().name == Path(other).expanduser().resolve().name
