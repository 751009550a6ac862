"""Where weights, adapter and tokenizer come from: a folder, the hub or its cache. Taking the loaded model apart is `llm_tt.models.bridge`.

Every way in which a checkpoint can be unusable ends in a `ModelError` that names the folder or the hub name and what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_tt.chat import check_template
from llm_tt.config import ModelSpec
from llm_tt.errors import ModelError, OutOfMemoryError
from llm_tt.models.loading import weights_reported
from llm_tt.models.memory import available_bytes, show_bytes
from llm_tt.progress import Cancelled, Progress, silent

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenization_*.py")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with two tokenizers, since TransformerLens changes the one it gets."""

    hf_model: Any
    tokenizer: Any
    bridge_tokenizer: Any
    adapter: str | None
    chat_template: str | None = None
    """of the configuration; it goes before the tokenizer's own"""


def resolve_device(device: str) -> str:
    """'auto', 'cpu', 'cuda', 'cuda:1', 'mps' -> a device that exists.

    Raises:
        ModelError: this machine does not have it.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
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


def load_checkpoint(spec: ModelSpec, progress: Progress = silent, before_weights: Callable[[], None] = lambda: None) -> Checkpoint:
    """Load what a `ModelSpec` describes.

    Args:
        before_weights: called once everything else has been read and found in order, before memory is counted; makes room.

    Raises:
        ModelError: a folder, file or hub model is missing, incomplete or not allowed.
        OutOfMemoryError: the weights would not fit.
    """
    import transformers

    where, adapter = _locate(spec)
    folder, is_folder = Path(where), os.path.isdir(where)
    if is_folder:
        _require_complete(folder, spec)
    device = resolve_device(spec.device)
    hub: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if spec.revision is not None:
        hub["revision"] = spec.revision

    progress(f"Reading the configuration of {spec.name}", 0.0)
    config = _translated(spec, where, lambda: transformers.AutoConfig.from_pretrained(where, **hub))
    progress(f"Reading the tokenizer of {spec.name}", 0.05)
    tokenizer_source = adapter if adapter and _has_tokenizer(Path(adapter)) else where
    tokenizer = _translated(spec, where, lambda: transformers.AutoTokenizer.from_pretrained(tokenizer_source, **hub))
    bridge_tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_source, **hub)
    chat_template = _chat_template(spec, tokenizer)

    dtype = resolve_dtype(spec.dtype, device, getattr(config, "dtype", None))
    before_weights()
    if is_folder:
        _require_weights_fit(folder, spec.name, dtype, getattr(config, "dtype", None) or torch.float32, device)
    progress(f"Loading the weights of {spec.name}", 0.1)
    options: dict[str, Any] = {**hub, "dtype": dtype, "attn_implementation": "eager"}
    if not spec.allow_pickle:
        options["use_safetensors"] = True
    with weights_reported(spec.name, progress, 0.1, 0.7):
        model = _translated(spec, where, lambda: transformers.AutoModelForCausalLM.from_pretrained(where, **options))
    if adapter:
        progress(f"Merging the adapter {adapter}", 0.7)
        model = _merge(model, adapter, spec)
    progress(f"Moving {spec.name} to {device}", 0.8)
    try:
        model = model.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{spec.name} does not fit on {device}. Unload other models, or set its dtype to bfloat16 in the configuration."
        ) from error
    return Checkpoint(model, tokenizer, bridge_tokenizer, adapter, chat_template)


def _locate(spec: ModelSpec) -> tuple[str, str | None]:
    """The folder or hub name of the weights, and the adapter's folder, if any."""
    where, adapter = spec.path or spec.name, spec.adapter
    if _is_path(where) and not os.path.isdir(where):
        entry = "the path" if where == spec.name else f'the path of "{spec.name}" in the configuration'
        raise ModelError(f'Model folder "{where}" does not exist. Check {entry}.')
    if os.path.isdir(where) and (Path(where) / "adapter_config.json").is_file() and not (Path(where) / "config.json").is_file():
        where, adapter = spec.base or _base_of(Path(where)), where
    if spec.base and spec.adapter:
        where = spec.base
    if adapter is not None:
        _require_adapter(Path(adapter), spec)
    return where, adapter


def _require_adapter(folder: Path, spec: ModelSpec) -> None:
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f'Adapter folder "{folder}" has no adapter_config.json. Name the folder that PEFT saved.')
    if next(folder.glob("*.safetensors"), None) is None and not spec.allow_pickle:
        raise ModelError(
            f'Adapter folder "{folder}" has no weights in safetensors (adapter_model.safetensors). Save it with safe_serialization=True, '
            'or set "allow_pickle": true for this model if you trust its pickle.'
        )


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads((adapter / "adapter_config.json").read_text()).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f'The adapter_config.json in "{adapter}" is not valid: {error}. Save the adapter again.') from error
    if not base:
        raise ModelError(f'Adapter folder "{adapter}" does not say which model it belongs to. Set "base" in the configuration.')
    return base


def _is_path(where: str) -> bool:
    return where.startswith(("/", "./", "../", "~")) or where.endswith("/") or where.count("/") > 1 or os.path.isdir(where)


def _has_tokenizer(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES)


def _require_complete(folder: Path, spec: ModelSpec) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f'Model folder "{folder}" has no config.json. Save the model with save_pretrained, or name another folder.')
    if not _has_tokenizer(folder):
        raise ModelError(
            f'Model folder "{folder}" has no tokenizer (tokenizer.json or tokenizer.model). '
            "Copy the tokenizer files of the base model into it, or save them with tokenizer.save_pretrained."
        )
    if next(folder.glob("*.safetensors"), None) is None and not spec.allow_pickle:
        if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
            raise ModelError(
                f'Model folder "{folder}" has its weights only as pickles, which can run code when they are opened. '
                'Save them with safe_serialization=True, or set "allow_pickle": true for this model if you trust it.'
            )
        raise ModelError(f'Model folder "{folder}" has no weights (*.safetensors). Save the model with save_pretrained into it.')


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


def _require_weights_fit(folder: Path, name: str, dtype: torch.dtype, stored: torch.dtype, device: str) -> None:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) * dtype.itemsize // stored.itemsize
    available = available_bytes(device)
    if size > available:
        raise OutOfMemoryError(
            f"{name} needs about {show_bytes(size)} in {str(dtype).removeprefix('torch.')}, but {device} has {show_bytes(available)} free. "
            'Unload other models, or set its "dtype" to "bfloat16" in the configuration.'
        )


def _merge(model: Any, adapter: str, spec: ModelSpec) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except Exception as error:
        # Damaged files surface as the private exceptions of safetensors.
        raise ModelError(
            f'Adapter "{adapter}" is damaged or does not fit the base model of "{spec.name}": {_first_line(error)} '
            'Set "base" to the model it was trained on, or save the adapter again.'
        ) from error


def _translated(spec: ModelSpec, where: str, load: Any) -> Any:
    """Run a Hugging Face loader; its errors become sentences about this model."""
    from huggingface_hub import errors as hub_errors

    try:
        return load()
    except Cancelled:
        raise
    except Exception as error:
        chain = list(_causes(error))
        text = " ".join(str(cause) for cause in chain)
        if any(isinstance(cause, hub_errors.GatedRepoError) for cause in chain) or "gated repo" in text:
            reason = f'"{where}" is a gated model. Accept its terms on the hub and log in with `hf auth login`'
        elif any(isinstance(cause, hub_errors.LocalEntryNotFoundError | ConnectionError) for cause in chain) or _mentions_network(text):
            offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
            reason = (
                f'"{where}" is neither a folder nor in the local cache, and the hub cannot be reached{offline}. '
                "Give the folder of the model, or connect and try again"
            )
        elif any(isinstance(cause, hub_errors.RepositoryNotFoundError | hub_errors.RevisionNotFoundError) for cause in chain):
            revision = f" with revision {spec.revision!r}" if spec.revision else ""
            reason = f'The hub has no model "{where}"{revision}. Check the spelling, or give a folder'
        elif "trust_remote_code" in text:
            reason = f'"{where}" runs code of its own. If you trust it, set "trust_remote_code": true for it in the configuration'
        elif isinstance(error, ImportError):
            reason = f'"{where}" needs a package that is not installed: {_first_line(error)}'
        elif isinstance(error, OSError | ValueError | KeyError | RuntimeError | json.JSONDecodeError):
            reason = f'"{where}" cannot be loaded: {_first_line(error)}'
        else:
            # Damaged files surface as the private exceptions of safetensors and tokenizers.
            reason = f'"{where}" cannot be loaded, a file of it may be damaged: {type(error).__name__}: {_first_line(error)}'
        raise ModelError(reason + ("" if reason.endswith(".") else ".")) from error


def _causes(error: BaseException) -> Any:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _mentions_network(text: str) -> bool:
    return any(phrase in text for phrase in ("couldn't connect", "offline mode", "Cannot send a request", "Max retries", "Connection"))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
