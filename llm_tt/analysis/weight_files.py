"""The tensors of a folder of safetensors, read one at a time, and one name for each whatever prefix the file gives it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm_tt.errors import ModelError

FLOATS = ("F64", "F32", "F16", "BF16")
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "decoder.embed_tokens.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")

_WRAPPERS = {"module", "_orig_mod", "base_model", "model", "language_model", "text_model", "transformer", "gpt_neox", "backbone"}
"""What comes before the names of a language model: wrappers of PEFT, torch.compile and data parallelism, and the model's own prefix"""
_LAYER = re.compile(r"^(?:(?:de|en)coder\.)?(?:layers|h|blocks|block)\.(\d+)\.(.+)$")
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def canonical(name: str) -> str:
    """'base_model.model.model.layers.0.mlp.up_proj.base_layer.weight' -> 'layers.0.mlp.up_proj.weight'."""
    parts = name.split(".")
    while len(parts) > 2 and parts[0] in _WRAPPERS:
        parts = parts[1:]
    parts = ["mlp" if part == "block_sparse_moe" else part for part in parts if part != "base_layer"]
    if "experts" in parts[:-2]:
        # Mixtral's files name the three matrices of an expert by number.
        parts = [_MIXTRAL.get(part, part) for part in parts]
    return ".".join(parts)


def layer_and_module(name: str) -> tuple[int | None, str]:
    """'model.layers.3.self_attn.q_proj.weight' -> (3, 'self_attn.q_proj'); a bias keeps its last word."""
    short = canonical(name)
    match = _LAYER.match(short)
    layer, module = (int(match[1]), match[2]) if match else (None, short)
    return layer, module.removesuffix(".weight")


class WeightFiles:
    """The safetensors of a folder: names, shapes and dtypes from their headers, tensors when asked for.

    Args:
        folder: with `model.safetensors` or its index, as `save_pretrained` writes it.
        adapter: read `adapter_model.safetensors` instead.

    Raises:
        ModelError: there are none, a shard is missing, or a file is damaged.
    """

    def __init__(self, folder: str | Path, *, adapter: bool = False) -> None:
        self.folder = Path(folder)
        self._files: dict[Path, Any] = {}
        self._home: dict[str, Path] = {}
        for file in self._listed("adapter_model" if adapter else "model"):
            try:
                opened = self._files[file] = safe_open(os.fspath(file), framework="pt")
                self._home.update(dict.fromkeys(opened.keys(), file))
            except (SafetensorError, OSError) as error:
                raise self._damaged(file, error) from error
        self._by_canonical: dict[str, str] = {}
        for name in self._home:
            self._by_canonical.setdefault(canonical(name), name)
        self.config: dict[str, Any] = read_json(self.folder / ("adapter_config.json" if adapter else "config.json"))

    def _listed(self, stem: str) -> list[Path]:
        if (self.folder / f"{stem}.safetensors").is_file():
            return [self.folder / f"{stem}.safetensors"]
        index = self.folder / f"{stem}.safetensors.index.json"
        if not index.is_file():
            raise ModelError(f'"{self.folder}" has no weights in safetensors ({stem}.safetensors). Save them with safe_serialization=True.')
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        for shard in shards:
            if not (self.folder / shard).is_file():
                raise ModelError(f'"{self.folder}" lacks the file {shard}, which its index lists. Copy it there, or save the model again.')
        return [self.folder / shard for shard in shards]

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def find(self, name: str) -> str | None:
        """The name here of a tensor that may be called otherwise elsewhere; None if it is not here."""
        return name if name in self._home else self._by_canonical.get(canonical(name))

    def any_of(self, names: Iterable[str]) -> str | None:
        return next((self._by_canonical[name] for name in names if name in self._by_canonical), None)

    @property
    def ties_its_head(self) -> bool:
        """The output head is the token embedding: its file has no tensor for it."""
        return self.any_of(HEADS) is None and self.any_of(EMBEDDINGS) is not None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._header(name).get_shape())

    def is_float(self, name: str) -> bool:
        """False for quantised weights and integer buffers."""
        return self._header(name).get_dtype() in FLOATS

    def _header(self, name: str) -> Any:
        return self._files[self._home[name]].get_slice(name)

    def __getitem__(self, name: str) -> Tensor:
        file = self._home[name]
        try:
            return self._files[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self._damaged(file, error) from error

    def _damaged(self, file: Path, error: Exception) -> ModelError:
        return ModelError(f'"{file}" is damaged: {error}. Copy it again, or save the model again.')


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file.

    Raises:
        ModelError: it is not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f'"{file}" is not valid JSON: {error}. Save the model again.') from error
    if not isinstance(content, dict):
        raise ModelError(f'"{file}" holds no JSON object. Save the model again.')
    return content
