"""What a model folder holds, by its config and the headers of its safetensors alone: complete or not, which format, how large."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_tt.errors import ModelError

INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken", "tokenization_*.py")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "scaler.pt")
_CONVERT = 'AutoModelForCausalLM.from_pretrained(folder, gguf_file="...").save_pretrained(another)'

#: safetensors' names of dtypes -> bytes, and the floating ones as torch has them.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

#: Methods of quantisation whose weights are turned back into plain matrices when they are loaded.
DEQUANTIZED = ("mxfp4", "fp8")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, by its header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


def has_tokenizer(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that transformers would open."""
    if (single := folder / "model.safetensors").is_file():
        return [single]
    if (folder / INDEX).is_file():
        return sorted({folder / shard for shard in _index(folder).values()})
    return sorted(file for file in folder.glob("*.safetensors") if file.name != "adapter_model.safetensors")


def read_json(file: Path, what: str) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        ModelError: it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f'{what} "{file.parent}" cannot be loaded: its {file.name} is damaged: {error}. Save it again.') from error
    if not isinstance(content, dict):
        raise ModelError(f'{what} "{file.parent}" cannot be loaded: its {file.name} holds no JSON object. Save it again.')
    return content


def require_complete(folder: Path, allow_pickle: bool, tokenizer_elsewhere: bool = False) -> None:
    """Refuse a folder that lacks a file, or whose weights have a form that cannot be opened here.

    Raises:
        ModelError: naming what is missing.
    """
    if not (folder / "config.json").is_file():
        if gguf := next(folder.glob("*.gguf"), None):
            raise ModelError(_gguf(folder, gguf))
        raise ModelError(f'Model folder "{folder}" has no config.json. Save the model with save_pretrained, or name another folder.')
    config = read_json(folder / "config.json", "Model folder")
    if not tokenizer_elsewhere and not has_tokenizer(folder):
        raise ModelError(
            f'Model folder "{folder}" has no tokenizer (tokenizer.json or tokenizer.model). '
            "Copy the tokenizer files of the base model into it, or save them with tokenizer.save_pretrained."
        )
    require_plain_weights(str(folder), config)
    require_weights(folder, allow_pickle)


def require_weights(folder: Path, allow_pickle: bool) -> None:
    """Raises:
    ModelError: weights are missing, incomplete, pickles, or an adapter's that was never merged.
    """
    files = weight_files(folder)
    if not files:
        if gguf := next(folder.glob("*.gguf"), None):
            raise ModelError(_gguf(folder, gguf))
        if not _pickles(folder):
            raise ModelError(f'Model folder "{folder}" has no weights (*.safetensors). Save the model with save_pretrained into it.')
        if not allow_pickle:
            raise ModelError(
                f'Model folder "{folder}" has its weights only as pickles, which can run code when they are opened. '
                'Save them with safe_serialization=True, or set "allow_pickle": true for this model if you trust it.'
            )
        return
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f'Model folder "{folder}" lacks {_listed(missing)} of its {len(files)} weight files, which {INDEX} names. '
            "Copy or download the rest of the model."
        )
    names = tensors(folder)
    if unmerged := next((name for name in names if ".lora_" in name or ".base_layer." in name or ".modules_to_save." in name), None):
        raise ModelError(
            f'Model folder "{folder}" was saved unmerged: its weights hold "{unmerged}", a part of an adapter that transformers would ignore. '
            "Save model.merge_and_unload(), or save the adapter by itself with PEFT and name it as the adapter."
        )


def require_plain_weights(where: str, config: Mapping[str, Any]) -> None:
    """Refuse quantised checkpoints whose matrices cannot be read.

    Raises:
        ModelError: with the method and the way out.
    """
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is None and isinstance(config.get("quantization"), dict) and "group_size" in config["quantization"]:
        method = "mlx"
    if method is None or method in ("bitsandbytes", *DEQUANTIZED):
        return
    raise ModelError(
        f'"{where}" has its weights quantised with {method.upper()}, from which heads and neurons cannot be read here. '
        'Use the model it was made from; "quantization": "4bit" loads that one in little memory.'
    )


def tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder's safetensors, by name.

    Raises:
        ModelError: a file is damaged.
    """
    return {name: tensor for file in weight_files(folder) for name, tensor in header(file)}


def header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of one safetensors file.

    Raises:
        ModelError: the file is damaged.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("its header is cut off")
            content = json.loads(stream.read(length))
        content.pop("__metadata__", None)
        entries = [(name, StoredTensor(entry["dtype"], tuple(entry["shape"])), entry["data_offsets"][1]) for name, entry in content.items()]
        if entries and 8 + length + max(end for _, _, end in entries) > size:
            raise ValueError("it is cut off")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) and "cut off" in str(error) else "it is no safetensors file"
        raise ModelError(
            f'"{file.parent}" cannot be loaded: {file.name} is damaged: {reason}. Copy, download or save it again (git-lfs files: git lfs pull).'
        ) from error
    for name, tensor, _ in entries:
        yield name, tensor


def loaded_bytes(folder: Path, dtype: torch.dtype) -> int:
    """What the weights of a folder take in memory once they have `dtype`; 0 where they are pickles."""
    return sum(_loaded_bytes(tensor, dtype) for tensor in tensors(folder).values())


def _loaded_bytes(tensor: StoredTensor, dtype: torch.dtype) -> int:
    if tensor.dtype in _FLOATS or tensor.dtype.startswith("F8"):
        return tensor.n_elements * dtype.itemsize
    return tensor.n_elements * _BYTES.get(tensor.dtype, 1)


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The floating dtype in which most numbers of a folder are stored; None for pickles."""
    dtypes = _dtypes(folder)
    return _FLOATS[dtypes.most_common(1)[0][0]] if dtypes else None


def mixed_dtypes(folder: Path) -> list[str]:
    """The names of a folder's floating dtypes if there are several, else nothing."""
    dtypes = _dtypes(folder)
    return [str(_FLOATS[name]).removeprefix("torch.") for name, _ in dtypes.most_common()] if len(dtypes) > 1 else []


def _dtypes(folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for tensor in tensors(folder).values():
        if tensor.dtype in _FLOATS:
            counts[tensor.dtype] += tensor.n_elements
    return counts


def fingerprint(folder: Path) -> tuple[Any, ...]:
    """Changes when the weights or the configuration of a folder are written anew."""
    files = [*weight_files(folder), *_pickles(folder), folder / "config.json"]
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return (os.path.realpath(folder), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def _index(folder: Path) -> dict[str, str]:
    shards = read_json(folder / INDEX, "Model folder").get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ModelError(f'Model folder "{folder}" cannot be loaded: its {INDEX} has no "weight_map". Save the model again.')
    return shards


def _pickles(folder: Path) -> list[Path]:
    found = [file for pattern in _PICKLES for file in folder.glob(pattern)]
    return sorted(
        file for file in found if not any(file.match(other) for other in _NOT_WEIGHTS) and not file.name.startswith("adapter_model")
    )


def _gguf(folder: Path, file: Path) -> str:
    return (
        f'Model folder "{folder}" has its weights as GGUF ({file.name}), which cannot be taken apart. '
        f"Use the model it was made from, or convert it: {_CONVERT}."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
