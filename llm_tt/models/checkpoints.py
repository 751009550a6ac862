"""Where weights, adapter and tokenizer come from: a folder, the hub or its cache. Taking the loaded model apart is `llm_tt.models.bridge`.

Every way in which a checkpoint can be unusable ends in a `ModelError` that names the folder or the hub name and what to do.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_tt.chat import check_template
from llm_tt.config import BALANCED, OFFLOAD, ModelSpec
from llm_tt.errors import ModelError, OutOfMemoryError
from llm_tt.models import adapters, hub, quantized, weights
from llm_tt.models.adapters import Adapter
from llm_tt.models.loading import weights_reported
from llm_tt.models.memory import available_bytes, show_bytes
from llm_tt.models.offloading import is_offloaded
from llm_tt.models.sharing import BASES
from llm_tt.progress import Progress, silent

_SPREAD = {
    BALANCED: "spreads a model over CUDA devices",
    OFFLOAD: "keeps in main memory what CUDA devices have no room for",
}
"""Devices for which accelerate decides where a layer is"""
_WEIGHTS_SHARE = 0.7
"""Of a CUDA device's free memory that weights may fill where others are kept in main memory: the rest is for traces, and for a layer that passes"""
_OFFLOADED = "Some layers' weights are kept off the GPU and brought there for each pass, which is slow."
_OTHER_TASKS = {
    "ForSequenceClassification": "classifies whole texts",
    "ForTokenClassification": "classifies tokens",
    "ForQuestionAnswering": "marks answers in a text",
    "ForMultipleChoice": "chooses between texts",
    "ForMaskedLM": "fills in masked tokens and reads in both directions",
}
_BLOCK = re.compile(r"\.\d+\.")
_NOTES = "_llm_tt_notes"
"""Attribute of a loaded model; its copies have it as well"""
_LANGUAGE_MODEL_KEYS = {
    r"^(model\.)?language_model\.model\.": "model.",
    r"^(model\.)?language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}
"""How multimodal checkpoints call the tensors of their language model, and that calls them itself"""
_QUANTIZED_SHARE = {"8bit": 0.55, "4bit": 0.3}
"""Of the memory in half precision, embeddings (which stay as they are) included"""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its tokenizer."""

    hf_model: Any
    tokenizer: Any
    adapter: str | None
    chat_template: str | None = None
    """of the configuration; it goes before the tokenizer's own"""
    notes: tuple[str, ...] = ()
    """sentences on what was done to the checkpoint to load it"""


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    where: str
    """folder or hub name of the weights"""
    revision: str | None
    adapter: Adapter | None

    @property
    def folder(self) -> Path | None:
        """The folder, or the hub model's snapshot in the local cache; None if that is still to be downloaded."""
        return Path(self.where) if os.path.isdir(self.where) else hub.cached_snapshot(self.where, self.revision)


def resolve_device(device: str) -> str:
    """'auto', 'cpu', 'cuda', 'cuda:1', 'mps', 'balanced', 'offload' -> a device that exists.

    Raises:
        ModelError: this machine does not have it.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind in _SPREAD:
        if not count:
            raise ModelError(f'Device "{kind}" {_SPREAD[kind]}, but this machine has none. Use "auto" or "cpu".')
        if importlib.util.find_spec("accelerate") is None:
            raise ModelError(
                f'Device "{kind}" needs the package accelerate, which is not installed. Run "pip install accelerate", or name one device.'
            )
    if kind == "cuda":
        if int(index or 0) >= count:
            found = f"it has {count} CUDA device{'s' if count != 1 else ''}" if count else "it has no CUDA device"
            raise ModelError(f'Device "{device}" is not on this machine: {found}. Use "auto" or "cpu".')
        return f"cuda:{index or 0}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ModelError('Device "mps" is not on this machine. Use "auto" or "cpu".')
    return device


def resolve_dtype(dtype: str, device: str, checkpoint_dtype: torch.dtype | None) -> torch.dtype:
    """'auto' is the checkpoint's own dtype on an accelerator and float32 on a CPU, where half precision is slower and less exact."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device == "cpu" or checkpoint_dtype not in (torch.float16, torch.bfloat16):
        return torch.float32
    return checkpoint_dtype


def placement(device: str) -> dict[str, Any]:
    """What `from_pretrained` needs to put the weights where they belong, without a copy on the CPU first if accelerate is there."""
    if device == BALANCED:
        return {"device_map": "balanced"}
    if device == OFFLOAD:
        room = {index: int(_WEIGHTS_SHARE * available_bytes(f"cuda:{index}")) for index in range(torch.cuda.device_count())}
        return {"device_map": "auto", "max_memory": {**room, "cpu": available_bytes("cpu")}}
    if device != "cpu" and importlib.util.find_spec("accelerate") is not None:
        return {"device_map": {"": device}}
    return {}


def load_checkpoint(spec: ModelSpec, progress: Progress = silent, before_weights: Callable[[], None] = lambda: None) -> Checkpoint:
    """Load what a `ModelSpec` describes. Models of one checkpoint share its weights (`llm_tt.models.sharing`).

    Args:
        before_weights: called once everything else has been read and found in order, before memory is counted; makes room.

    Raises:
        ModelError: a folder, file or hub model is missing, incomplete or not allowed.
        OutOfMemoryError: the weights would not fit.
    """
    import transformers

    device = resolve_device(spec.device)
    if spec.quantization is not None:
        quantized.require_bitsandbytes(f'"quantization": "{spec.quantization}" of {spec.name}')
    progress(f"Reading the configuration of {spec.name}", 0.0)
    source = locate(spec)
    where, adapter = source.where, source.adapter
    if spec.quantization is not None and adapter is not None:
        raise ModelError(
            f'Adapter "{adapter.name}" cannot be merged exactly into weights of {spec.quantization.removesuffix("bit")} bits. '
            'Leave out "quantization" and set "dtype" to "bfloat16", or save the merged model and load that in fewer bits.'
        )
    if device == OFFLOAD and (adapter is not None or spec.quantization is not None):
        what = (
            f'Adapter "{adapter.name}" cannot be merged into' if adapter is not None else f'"quantization" of {spec.name} cannot be had of'
        )
        raise ModelError(
            f'{what} weights that are kept in main memory ("device": "offload"). Set "device" to "balanced" or "cpu", or save the '
            f"{'merged' if adapter is not None else 'quantised'} model and load that."
        )
    own_tokenizer = adapter is not None and weights.has_tokenizer(adapter.folder)
    if os.path.isdir(where):
        weights.require_complete(Path(where), spec.allow_pickle, own_tokenizer)
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    at = {**options, "revision": source.revision} if source.revision is not None else options
    config = hub.translated(where, source.revision, lambda: transformers.AutoConfig.from_pretrained(where, **at))
    _require_causal(where, config)
    config = _language_config(where, config)
    if not os.path.isdir(where):
        weights.require_plain_weights(where, config.to_dict())

    progress(f"Reading the tokenizer of {spec.name}", 0.05)
    from_, tokenizer_options = (str(adapter.folder), options) if adapter is not None and own_tokenizer else (where, at)
    tokenizer = hub.translated(where, source.revision, lambda: transformers.AutoTokenizer.from_pretrained(from_, **tokenizer_options))
    chat_template = _chat_template(spec, tokenizer)
    folder = source.folder
    stored = weights.stored_dtype(folder) if folder else None
    dtype = resolve_dtype(spec.dtype, device, getattr(config, "dtype", None) or stored)

    before_weights()

    def load() -> Any:
        progress(f"Loading the weights of {spec.name}", 0.1)
        with weights_reported(spec.name, progress, 0.1, 0.7):
            return _load(spec, source, config, dtype, device, at)

    # The modules of a quantised or dispatched model are more than their tensors: such a model is loaded for itself.
    alone = spec.quantization is not None or device in _SPREAD
    model = load() if alone else BASES.copy(_key(spec, source, config, dtype, device), load)
    if adapter is not None:
        progress(f"Merging the adapter {adapter.name}", 0.7)
        model = adapters.merge(model, adapter, spec.name)
    # Of the copy, not of what it shares: the same weights may lie in two folders with other settings.
    end_ids, notes = _end_ids(where, config, at)
    model.generation_config = transformers.GenerationConfig(eos_token_id=end_ids)
    return Checkpoint(model, tokenizer, adapter.name if adapter else None, chat_template, getattr(model, _NOTES) + notes)


def locate(spec: ModelSpec) -> Source:
    """Find the weights, and the adapter if the specification names one or is one.

    Raises:
        ModelError: something is not where it should be.
    """
    where, revision = spec.path or spec.name, spec.revision
    if spec.adapter is not None:
        adapter = adapters.find_adapter(spec.adapter, spec.adapter_revision, spec.allow_pickle)
        where, revision = (spec.base, None) if spec.base else (where, revision)
    elif _is_adapter(spec, where):
        adapter = adapters.find_adapter(where, spec.adapter_revision or revision, spec.allow_pickle)
        if spec.base:
            return Source(_existing(spec.base, f'the base of "{spec.name}" in the configuration'), None, adapter)
        where, revision = adapters.base_of(adapter), adapter.config.get("revision")
        try:
            where = _existing(where, "the path")
            if not os.path.isdir(where):
                hub.find_file(where, "config.json", revision)
        except ModelError as error:
            raise ModelError(f'Adapter "{adapter.name}" belongs to a model that cannot be found: {error} Or set "base" to it.') from error
    else:
        adapter = None
    entry = "the path" if where == spec.name else f'the path of "{spec.name}" in the configuration'
    return Source(_existing(where, entry), revision, adapter)


def _is_adapter(spec: ModelSpec, where: str) -> bool:
    """Whether the model's own name is that of an adapter."""
    _existing(where, "the path" if where == spec.name else f'the path of "{spec.name}" in the configuration')
    if os.path.isdir(where):
        return adapters.is_adapter(Path(where))
    return hub.find_file(where, "config.json", spec.revision) is None and hub.find_file(where, adapters.CONFIG, spec.revision) is not None


def _existing(where: str, entry: str) -> str:
    if os.path.isfile(where):
        raise ModelError(f'"{where}" is a file. Name the folder that holds it, with config.json and tokenizer.')
    if hub.is_path(where) and not os.path.isdir(where):
        raise ModelError(f'Model folder "{where}" does not exist. Check {entry}.')
    return where


def _require_causal(where: str, config: Any) -> None:
    architecture = next(iter(getattr(config, "architectures", None) or []), "")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f'"{where}" is an encoder-decoder model ({architecture or config.model_type}); llm-tt explains decoders that predict the next token. '
            "Choose a causal language model."
        )
    for ending, does in _OTHER_TASKS.items():
        if architecture.endswith(ending):
            raise ModelError(
                f'"{where}" ({architecture}) {does} and predicts no next token. '
                "Load the language model that it was tuned from, or tune it with AutoModelForCausalLM."
            )


def _language_config(where: str, config: Any) -> Any:
    """Of a multimodal model the configuration of its language model, which then is all that is loaded; of any other its own."""
    import transformers

    if all(getattr(config, part, None) is None for part in ("vision_config", "audio_config")):
        return config
    text = getattr(config, "text_config", None)
    if type(text) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        architecture = next(iter(getattr(config, "architectures", None) or []), "") or config.model_type
        raise ModelError(
            f'"{where}" is a multimodal model ({architecture}) whose language model transformers cannot load by itself; llm-tt explains text models. '
            "Save its language model with its tokenizer into a folder, and load that."
        )
    # What the whole says of its parts.
    for name in ("tie_word_embeddings", "quantization_config", "dtype"):
        if getattr(config, name, None) is not None:
            setattr(text, name, getattr(config, name))
    return text


def _key(spec: ModelSpec, source: Source, config: Any, dtype: torch.dtype, device: str) -> Hashable:
    """What decides which tensors are loaded."""
    if os.path.isdir(source.where):
        what: Hashable = weights.fingerprint(Path(source.where))
    else:
        what = (source.where, source.revision, getattr(config, "_commit_hash", None))
    return (what, dtype, device, spec.trust_remote_code)


def _load(spec: ModelSpec, source: Source, config: Any, dtype: torch.dtype, device: str, at: Mapping[str, Any]) -> Any:
    """The Hugging Face model, every tensor of it from the checkpoint, in one dtype and on its device."""
    import transformers

    where = source.where
    _require_fit(spec, source.folder, dtype, device)
    options: dict[str, Any] = {**at, "dtype": dtype, "attn_implementation": "eager", "output_loading_info": True, **placement(device)}
    options |= {"config": config, "key_mapping": _LANGUAGE_MODEL_KEYS}
    # A broken generation_config.json is no obstacle; what is needed of it is read apart.
    options["generation_config"] = transformers.GenerationConfig()
    if not spec.allow_pickle:
        options["use_safetensors"] = True
    method = _method(config)
    if spec.quantization is not None:
        options["quantization_config"] = quantized.quantization_config(spec.quantization, dtype)
    elif method in weights.DEQUANTIZED:
        options["quantization_config"] = quantized.dequantizing_config(method)
    elif method == "bitsandbytes":
        quantized.require_bitsandbytes(f'"{where}", whose weights are quantised,')
    from_pretrained: Any = transformers.AutoModelForCausalLM.from_pretrained
    try:
        try:
            model, report = hub.translated(where, source.revision, lambda: from_pretrained(where, **options))
        except ModelError as error:
            if "ignore_mismatched_sizes" in str(error):
                raise ModelError(_mismatch(where, source.folder, config)) from error
            raise
        _require_whole(where, report)
        ignored = _ignored(model, where, report)
        if spec.quantization is None and method is None and device not in _SPREAD:
            model = model.to(device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(
            f"{spec.name} does not fit on {_said(device)}. Unload other models, or set its dtype to bfloat16 in the configuration."
        ) from error
    offloaded = {str(target) for target in getattr(model, "hf_device_map", {}).values()} & {"cpu", "disk"}
    if offloaded and device == BALANCED:
        raise OutOfMemoryError(
            f'{spec.name} does not fit on the CUDA devices together. Unload other models, or set its "dtype" to "bfloat16" or its "device" to '
            '"offload" in the configuration.'
        )
    if not getattr(model.config, "architectures", None):
        # TransformerLens chooses by this name; fine-tuning scripts lose it.
        model.config.architectures = [type(model).__name__]
    setattr(model, _NOTES, _notes(source.folder, dtype, ignored) + ((_OFFLOADED,) if is_offloaded(model) else ()))
    return model


def _end_ids(where: str, config: Any, at: Mapping[str, Any]) -> tuple[list[int], tuple[str, ...]]:
    """What ends a sequence, as `generate` of transformers has it; and a note where that could not be read."""
    import transformers

    notes: tuple[str, ...] = ()
    read: Any = config
    try:
        read = transformers.GenerationConfig.from_pretrained(where, **at)
    except Exception as error:
        # Few models have none; in a broken one anything may be wrong.
        if (Path(where) / "generation_config.json").exists():
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            notes = (
                f"Its generation_config.json cannot be used ({reason.rstrip('.')}): continuations end as config.json and tokenizer say.",
            )
    named = getattr(read, "eos_token_id", None)
    return [token_id for token_id in (named if isinstance(named, list) else [named]) if isinstance(token_id, int)], notes


def _require_whole(where: str, report: Mapping[str, Any]) -> None:
    """transformers only warns about tensors that it had to make up, and about those it did not know."""
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f'"{where}" lacks {len(missing)} of its weights: {_some(missing)}. They would be random numbers. '
            "Save the whole model with save_pretrained, or correct its config.json."
        )


def _mismatch(where: str, folder: Path | None, config: Any) -> str:
    """Which tensors have other shapes than the configuration says; transformers tells that only to its log."""
    import transformers

    with torch.device("meta"):
        expected = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    stored = weights.tensors(folder) if folder is not None else {}
    wrong = [
        f"{name} is {list(stored[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tuple(tensor.shape)
    ]
    return (
        f'"{where}" has tensors of other shapes than its config.json says{": " if wrong else ""}{_some(wrong)}. '
        "Correct its config.json (vocab_size after adding tokens, for example), or save the model again with save_pretrained."
    )


def _ignored(model: Any, where: str, report: Mapping[str, Any]) -> list[str]:
    """Tensors of the checkpoint that the model has no use for.

    Raises:
        ModelError: they are blocks that its config.json does not count.
    """
    unexpected = sorted(report.get("unexpected_keys", ()))
    names = set(model.state_dict())
    if beyond := [name for name in unexpected if _BLOCK.sub(".0.", name, count=1) in names]:
        raise ModelError(
            f'"{where}" has weights of more blocks than its config.json says, which would be left out: {_some(beyond)}. '
            "Correct num_hidden_layers in its config.json."
        )
    return unexpected


def _chat_template(spec: ModelSpec, tokenizer: Any) -> str | None:
    """The text of the template file that the configuration names."""
    if spec.chat_template is None:
        return None
    which = f'Chat template "{spec.chat_template}" of "{spec.name}"'
    try:
        template = Path(spec.chat_template).expanduser().read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ModelError(f'{which} does not exist. Check "chat_template" in the configuration.') from error
    except OSError as error:
        raise ModelError(f'{which} cannot be read: {error.strerror}. Check "chat_template" in the configuration.') from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{which} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    if not template.strip():
        raise ModelError(f'{which} is empty. Put a Jinja template into it, or remove "chat_template" from the configuration.')
    if problem := check_template(tokenizer, template):
        raise ModelError(f"{which} is not valid Jinja: {problem} Mend it there.")
    return template


def _notes(folder: Path | None, dtype: torch.dtype, ignored: list[str]) -> tuple[str, ...]:
    notes = []
    if folder is not None and (dtypes := weights.mixed_dtypes(folder)):
        notes.append(f"The checkpoint stores {' and '.join(dtypes)}; all of it was loaded as {str(dtype).removeprefix('torch.')}.")
    if ignored:
        notes.append(f"Not part of the language model and left out: {_some(ignored)}.")
    return tuple(notes)


def _require_fit(spec: ModelSpec, folder: Path | None, dtype: torch.dtype, device: str) -> None:
    """Refuse, before anything is read, weights that would not fit."""
    if folder is None:
        return
    size = weights.loaded_bytes(folder, dtype)
    if spec.quantization is not None:
        size = int(size * _QUANTIZED_SHARE[spec.quantization] * 2 / dtype.itemsize)
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if device in _SPREAD else [device]
    devices += ["cpu"] if device == OFFLOAD else []
    available = sum(available_bytes(each) for each in devices)
    if size > available:
        raise OutOfMemoryError(
            f"{spec.name} needs about {show_bytes(size)} in {str(dtype).removeprefix('torch.')}, "
            f"but {_said(device)} has {show_bytes(available)} free. "
            'Unload other models, or set its "dtype" to "bfloat16" in the configuration.'
        )


def _said(device: str) -> str:
    return "this machine" if device == OFFLOAD else device


def _method(config: Any) -> str | None:
    found = getattr(config, "quantization_config", None)
    return found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
