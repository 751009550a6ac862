"""`llm-tt check` as a value: what a user needs to know before trusting a checkpoint, as text or as JSON.

`check` loads the model and asks; `CheckReport` holds text, numbers and no tensor. Whatever fails, the report says what is known.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_tt.analysis.tuning_report import TuningReport, finite
from llm_tt.config import DEMO, ModelSpec
from llm_tt.demo import MODEL_DIR
from llm_tt.errors import LlmTtError
from llm_tt.models.info import FfnShape, ModelInfo, TokenizerInfo
from llm_tt.models.sizes import show_bytes, show_seconds
from llm_tt.progress import Progress, silent

if TYPE_CHECKING:
    from llm_tt.models.estimates import Pace
    from llm_tt.models.identities import IdentityReport
    from llm_tt.models.transparent_llm import TransparentLlm

LENGTHS = (128, 1024, 4096)
"""Tokens of the prompts for which memory is estimated"""
FAILING = ("no_effect", "rounding", "not_merged", "wrong_base", "damaged")
"""Outcomes of a tuning report with which the check fails"""

_TABLE_ROWS = 12
_MODULES = 9
_SPECIALS = 12
_BAR = 10


@dataclass(frozen=True)
class LayerErrors:
    """Relative errors of one layer's identities, by kind: "attention", "neurons", ..."""

    layer: int
    errors: dict[str, float]


@dataclass(frozen=True)
class Identities:
    """Whether the parts add up."""

    n_tokens: int
    tolerance: float
    layers: tuple[LayerErrors, ...]
    logits: float

    @classmethod
    def of(cls, report: IdentityReport) -> Identities:
        rows = (dataclasses.asdict(layer) for layer in report.layers)
        layers = tuple(LayerErrors(row.pop("layer"), row) for row in rows)
        return cls(report.n_tokens, report.tolerance, layers, report.logits)

    def worst(self) -> dict[str, LayerErrors]:
        """For each kind the layer where it is worst."""
        kinds = self.layers[0].errors if self.layers else {}
        # NaN is worse than any number.
        return {kind: max(self.layers, key=lambda row: math.inf if math.isnan(row.errors[kind]) else row.errors[kind]) for kind in kinds}


@dataclass(frozen=True)
class TraceMemory:
    """What a trace of a prompt needs; None where the model does not read so many tokens."""

    n_tokens: int
    n_bytes: int | None
    seconds: float | None = None
    """None where it was not measured how fast the model is"""


@dataclass(frozen=True)
class Stored:
    """What the files of a model say of it that could not be loaded."""

    family: str | None
    n_params: int | None


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What was found out about a checkpoint."""

    model: str
    adapter: str | None
    failure: str | None
    """the sentence that says why the model cannot be trusted; None if it can"""
    loaded: bool
    info: ModelInfo | None = None
    stored: Stored | None = None
    """where the model could not be loaded"""
    weight_bytes: int | None = None
    memory: tuple[TraceMemory, ...] = ()
    identities: Identities | None = None
    tuning: TuningReport | None = None
    notes: tuple[str, ...] = ()
    kernel: str | None = None
    """on a GPU: whether contributions are added up in one kernel there, or why not"""

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def is_empty(self) -> bool:
        """Nothing is known but the failure."""
        return self.info is None and self.stored is None and self.tuning is None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not finite becomes None."""
        identities = None
        if self.identities is not None:
            identities = {
                "n_tokens": self.identities.n_tokens,
                "tolerance": self.identities.tolerance,
                "layers": [
                    {"layer": row.layer} | {kind: finite(error) for kind, error in row.errors.items()} for row in self.identities.layers
                ],
                "logits": finite(self.identities.logits),
            }
        info = None if self.info is None else _plain(dataclasses.asdict(self.info))
        return {
            "model": self.model,
            "adapter": self.adapter,
            "ok": self.ok,
            "failure": self.failure,
            "loaded": self.loaded,
            "info": info,
            "stored": None if self.stored is None else dataclasses.asdict(self.stored),
            "weight_bytes": self.weight_bytes,
            "memory": [dataclasses.asdict(entry) for entry in self.memory],
            "identities": identities,
            "tuning": None if self.tuning is None else self.tuning.to_dict(),
            "notes": list(self.notes),
            "kernel": self.kernel,
        }

    def to_text(self) -> str:
        """Lines for a terminal, all in ASCII but for names."""
        lines = [_line("model", self.model + (f" with adapter {self.adapter}" if self.adapter else ""))]
        if self.info is not None:
            lines += _facts(self.info)
        elif self.stored is not None:
            lines += [_line("family", self.stored.family)] if self.stored.family else []
            lines += [_line("parameters", f"{self.stored.n_params:,} in its files")] if self.stored.n_params is not None else []
        if self.identities is not None:
            lines += _identity_lines(self.identities, everything=not self.ok)
        if self.info is not None:
            lines += self._memory_lines(self.info)
            lines += [] if self.kernel is None else [_line("kernel", self.kernel)]
            lines += [_line("not shown", sentence) for sentence in self.info.not_shown]
            lines += [_line("note", sentence) for sentence in self.info.notes]
        if self.tuning is not None:
            lines += _tuning_lines(self.tuning)
        lines += [_line("note", note) for note in self.notes]
        lines.append(_line("FAILED", self.failure) if self.failure is not None else _line("ok", "every part adds up"))
        return "\n".join(lines)

    def _memory_lines(self, info: ModelInfo) -> list[str]:
        lines = [] if self.weight_bytes is None else [_line("memory", f"{show_bytes(self.weight_bytes)} for the weights")]
        for entry in self.memory:
            needs = f"{show_bytes(entry.n_bytes or 0)}{f' and {show_seconds(entry.seconds)}' if entry.seconds is not None else ''}"
            if entry.n_bytes is None:
                lines.append(_line("", f"a prompt of {entry.n_tokens} tokens is longer than the {info.n_ctx} that the model reads"))
            elif entry.n_tokens in LENGTHS:
                lines.append(_line("memory", f"about {needs} for a trace of {entry.n_tokens} tokens"))
            else:
                lines.append(_line("", f"longest prompt the model reads: {entry.n_tokens} tokens, about {needs}"))
        return lines


def check(
    model: str | ModelSpec,
    *,
    adapter: str | None = None,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = silent,
) -> CheckReport:
    """Load a model and find out whether it can be trusted here; what fails is in the report.

    Args:
        model: "demo", a folder, a hub name, or a specification from the configuration.
        adapter: folder of a PEFT adapter to merge into it.
        base: the model it was tuned from; for an adapter, the model to merge it into.

    Raises:
        ModelError: a device or a dtype that there is not; nothing is asked of the model then.
    """
    from llm_tt.models.checkpoints import resolve_device

    spec = ModelSpec.named(model) if isinstance(model, str) else model
    # "auto" leaves the choice to the specification.
    resolve_device(spec.changed(device=None if device == "auto" else device, dtype=None if dtype == "auto" else dtype).device)
    base = str(MODEL_DIR) if base == DEMO else base
    asked = spec.changed(adapter=adapter, base=base) if adapter or base else spec
    adapter = asked.adapter or (_where(asked) if _is_adapter(_where(asked)) else None)

    failures: list[str] = []
    notes: list[str] = []
    llm: TransparentLlm | None = None
    identities: Identities | None = None
    try:
        llm = _load(asked if base and adapter else model, asked.adapter if adapter else None, device, dtype, progress)
    except LlmTtError as error:
        failures.append(str(error))
    if llm is not None:
        progress(f"Checking that the parts of {llm.info.name} add up", 0.8)
        try:
            identities, failure = _identities(llm)
            failures += [failure] if failure else []
        except LlmTtError as error:
            failures.append(str(error))
    tuning: TuningReport | None = None
    if base or adapter or asked.base:
        progress("Measuring what the tuning changed", 0.9)
        try:
            tuning = _tuning(asked)
        except LlmTtError as error:
            # A model that was not asked to be compared may lack what the comparison needs.
            (failures if base and llm is not None else notes).append(f"What the tuning changed is not known: {error}")
    if tuning is not None and tuning.outcome in FAILING:
        failures.append(tuning.verdict)
    if llm is None:
        return CheckReport(
            spec.name, adapter, failures[0], False, stored=_stored(asked), tuning=tuning, notes=() if tuning is None else tuple(notes)
        )
    info = llm.info
    progress("Measuring how fast it is", 0.95)
    # A model that cannot be taken apart may not be traced either.
    pace = _pace(llm) if identities is not None else None
    return CheckReport(
        info.name,
        info.adapter,
        failures[0] if failures else None,
        True,
        info,
        weight_bytes=info.n_params * info.torch_dtype.itemsize,
        memory=_memory(info, pace),
        identities=identities,
        tuning=tuning,
        notes=(*notes, *failures[1:]),
        kernel=_kernel(info.device),
    )


def _load(model: str | ModelSpec, adapter: str | None, device: str, dtype: str, progress: Progress) -> TransparentLlm:
    import llm_tt.models

    if isinstance(model, ModelSpec) and model.adapter == adapter:
        adapter = None
    return llm_tt.models.load_unchecked(
        model, adapter=adapter, device=device, dtype=dtype, progress=lambda stage, fraction: progress(stage, 0.8 * fraction)
    )


def _identities(llm: TransparentLlm) -> tuple[Identities, str | None]:
    from llm_tt.models import identities

    report = identities.check(llm)
    return Identities.of(report), report.failure()


def _tuning(spec: ModelSpec) -> TuningReport:
    from llm_tt.analysis.tuning import tuning_report

    return tuning_report(spec)


def _memory(info: ModelInfo, pace: Pace | None) -> tuple[TraceMemory, ...]:
    from llm_tt.models.memory import trace_bytes

    lengths = LENGTHS if info.n_ctx in LENGTHS else (*LENGTHS, info.n_ctx)
    return tuple(
        TraceMemory(length, trace_bytes(info, length), None if pace is None else pace.seconds(length))
        if length <= info.n_ctx
        else TraceMemory(length, None)
        for length in lengths
    )


def _pace(llm: TransparentLlm) -> Pace:
    from llm_tt.models.pace import measured_pace

    return measured_pace(llm)


def _kernel(device: str) -> str | None:
    import torch

    from llm_tt.flow import kernels

    if torch.device(device).type not in kernels.DEVICES:
        return None
    reason = kernels.why_not(torch.device(device))
    if reason is None:
        return "contributions are added up in one Triton kernel, which was proven here"
    return f"contributions are added up in plain PyTorch, which is slower: {reason}"


def _stored(spec: ModelSpec) -> Stored | None:
    """What the files of a folder say; None where there is nothing to read."""
    from llm_tt.analysis.weight_files import WeightFiles, read_json

    folder = Path(_where(spec))
    if not (os.path.isdir(folder) and (folder / "config.json").is_file()):
        return None
    try:
        family = read_json(folder / "config.json").get("model_type")
    except LlmTtError:
        family = None
    try:
        files = WeightFiles(folder)
        n_params = sum(math.prod(files.shape(name)) for name in files)
    except LlmTtError:
        n_params = None
    return Stored(family, n_params) if family or n_params is not None else None


def _where(spec: ModelSpec) -> str:
    return os.path.expanduser(spec.path or spec.name)


def _is_adapter(where: str) -> bool:
    return os.path.isfile(os.path.join(where, "adapter_config.json")) and not os.path.isfile(os.path.join(where, "config.json"))


# --- lines


def _line(label: str, text: str) -> str:
    return f"{label:<11} {text}"


def _facts(info: ModelInfo) -> list[str]:
    lines = [
        _line("family", info.family),
        _line("parameters", f"{info.n_params:,}"),
        _line(
            "shape",
            f"{info.n_layers} layers, {info.n_heads} heads ({info.n_kv_heads} key-value), width {info.d_model}, "
            f"{_neurons(info)}, vocabulary {info.d_vocab}, context {info.n_ctx}",
        ),
        _line("dtype", f"{info.dtype} on {info.device}, attention {info.attention}"),
    ]
    if info.tokenizer is not None:
        lines += _tokenizer_lines(info.tokenizer, info.d_vocab)
    if info.logits_error is not None:
        lines.append(_line("logits", f"relative error {info.logits_error:.1e} against the checkpoint in plain transformers"))
    return lines


def _neurons(info: ModelInfo) -> str:
    kinds = list(dict.fromkeys(info.ffn))
    if len(kinds) <= 1:
        return _ffn(kinds[0]) if kinds else f"{info.n_neurons} neurons"
    counts = [(kind, sum(shape == kind for shape in info.ffn)) for kind in kinds]
    return " or ".join(f"{_ffn(kind)} (in {count} layer{'s' if count != 1 else ''})" for kind, count in counts)


def _ffn(shape: FfnShape) -> str:
    if shape.n_neurons == 0:
        return "no neurons that could be shown"
    if not shape.n_experts:
        return f"{shape.per_expert} neurons"
    shared = f" and {shape.n_shared} shared" if shape.n_shared else ""
    return f"{shape.per_expert} neurons in each of {shape.n_experts} experts{shared}"


def _tokenizer_lines(tokenizer: TokenizerInfo, d_vocab: int) -> list[str]:
    puts = [f"puts {' '.join(tokenizer.prefix)} in front of"] if tokenizer.prefix else []
    puts += [f"{'' if puts else 'puts '}{' '.join(tokenizer.suffix)} after"] if tokenizer.suffix else []
    rule = f"{' and '.join(puts)} a text" if puts else "adds nothing to a text"
    unused = f" ({d_vocab - tokenizer.n_tokens} rows of the embedding unused)" if d_vocab > tokenizer.n_tokens else ""
    lines = [_line("tokenizer", f"{tokenizer.n_tokens} tokens{unused}, {rule}")]
    specials = tokenizer.special_tokens
    more = f" and {len(specials) - _SPECIALS} more" if len(specials) > _SPECIALS else ""
    lines.append(_line("", f"special tokens: {' '.join(specials[:_SPECIALS]) or 'none'}{more}"))
    sources = {
        "checkpoint": "from the checkpoint",
        "config": "from the configuration",
        None: "none: the model takes text, no conversations",
    }
    lines.append(_line("", f"chat template: {sources[tokenizer.chat_template]}"))
    return lines


def _identity_lines(identities: Identities, everything: bool) -> list[str]:
    lines = [_line("identities", f"relative errors on {identities.n_tokens} tokens, allowed {identities.tolerance:.0e}")]
    worst = identities.worst()
    if everything or len(identities.layers) <= _TABLE_ROWS:
        lines.append(_line("", "layer" + "".join(f"  {kind:>9}" for kind in worst)))
        for row in identities.layers:
            lines.append(_line("", f"{row.layer:5}" + "".join(f"  {error:9.1e}" for error in row.errors.values())))
    lines.append(_line("", "worst: " + ", ".join(f"{kind} {row.errors[kind]:.1e} in layer {row.layer}" for kind, row in worst.items())))
    lines.append(_line("", f"logits {identities.logits:9.1e}"))
    return lines


def _tuning_lines(report: TuningReport) -> list[str]:
    lines = [_line("tuning", f"against {report.base}"), _line("", report.verdict)]
    layers = [layer for layer in report.per_layer() if layer.layer is not None]
    if layers:
        names = list(dict.fromkeys(name for layer in layers for name in layer.by_module))
        strongest = sorted(names, key=lambda name: -max(layer.by_module.get(name, 0.0) for layer in layers))[:_MODULES]
        shown = [name for name in names if name in strongest]
        heads = _short(shown)
        widths = [max(len(head), 7) for head in heads]
        largest = max((layer.relative_change for layer in layers if math.isfinite(layer.relative_change)), default=0.0)
        lines.append(_line("", "||dW|| / ||W|| in per cent, of each layer's changed modules together, then of each:"))
        heading = f"layer  {'':{_BAR}}  {'all':>7}"
        lines.append(_line("", heading + "".join(f"  {head:>{width}}" for head, width in zip(heads, widths, strict=True))))
        for layer in layers:
            filled = round(_BAR * layer.relative_change / largest) if largest > 0 and math.isfinite(layer.relative_change) else 0
            cells = [_cell(layer.by_module.get(name)) for name in shown]
            lines.append(
                _line("", f"{layer.layer:5}  {'#' * filled:<{_BAR}}  {_cell(layer.relative_change):>7}")
                + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            )
        if len(shown) < len(names):
            lines.append(_line("", f"{len(names) - len(shown)} more modules of each layer changed less; --json has them all."))
    for module in report.modules:
        if module.layer is None and module.change_norm > 0:
            lines.append(_line("", f"{module.name}: {_cell(module.relative_change)} %"))
    return lines + [_line("", warning) for warning in report.warnings]


def _cell(change: float | None) -> str:
    if change is None:
        return "-"
    percent = 100 * change
    return f"{percent:.3g}" if 0.001 <= percent < 1000 or percent == 0 else f"{percent:.0e}"


def _short(names: Sequence[str]) -> list[str]:
    """'self_attn.q_proj' -> 'q_proj', where that says enough."""
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 and short != "bias" else name for name, short in zip(names, last, strict=True)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return finite(value) if isinstance(value, float) else value
