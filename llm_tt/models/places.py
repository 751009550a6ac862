"""What a typed folder, file or hub name leads to: cleaned up, looked at, explained in a sentence. Opens no weights and imports no model library.

People paste paths with quotes around them, from another machine, of the file instead of the folder, or of the run instead of its checkpoint.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from llm_tt.config import DEMO, DEMO_TUNED, ModelSpec
from llm_tt.demo import ADAPTER_DIR, MODEL_DIR
from llm_tt.errors import ModelError

PlaceKind = Literal["model", "adapter", "hub", "nothing"]

_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_HUB_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/(?:tree|blob)/([^/?#]+).*)?/?(?:[?#].*)?"
)
_DRIVE = re.compile(r"([A-Za-z]):[\\/](.*)", re.DOTALL)
_PARTS_OF_A_MODEL = (".safetensors", ".json", ".bin", ".model", ".jinja", ".md", ".txt", ".pt")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z")
_UNTOLD = re.compile(
    r"(checkpoint|step|epoch|global_step|ckpt)?[-_]?\d*|model|final|outputs?|best|last|latest|merged|adapter|lora|hf|weights", re.IGNORECASE
)
"""Folder names that say nothing without the folder above"""
_SNAPSHOT = re.compile(r"models--(.+)/snapshots/[^/]+$")
_DEPTH, _LOOKED_AT, _OFFERED = 3, 2000, 40


@dataclass(frozen=True)
class Place:
    """What a typed text leads to. `path` is an absolute folder or a hub name, empty where there is nothing that could be loaded."""

    kind: PlaceKind
    path: str = ""
    note: str = ""
    """a sentence: what was understood if that is not what was typed, or what is wrong"""
    found: tuple[str, ...] = ()
    """folders with a model or an adapter, inside the one that was typed, the latest first"""
    base: str | None = None
    """what an adapter names as its base"""
    revision: str | None = None
    """of a hub address that was pasted with one"""


def look(typed: str) -> Place:
    """Find out what a text names. Whatever is wrong with it is in the note; nothing is raised."""
    text = cleaned(typed)
    if not text:
        return Place("nothing", note='No model is named. Give a folder, a hub name, or "demo".')
    if text == DEMO:
        return Place("model", str(MODEL_DIR))
    if text == DEMO_TUNED:
        return Place("adapter", str(ADAPTER_DIR), 'An adapter on "demo", with a planted shortcut.', base=str(MODEL_DIR))
    if address := _HUB_ADDRESS.fullmatch(text):
        return Place("hub", address[1], f'Read as the hub name "{address[1]}".', revision=address[2])
    if os.name != "nt" and (_DRIVE.fullmatch(text) or text.startswith("\\\\")):
        return _windows(text)
    path = Path(text).expanduser()
    if not os.path.exists(path) and "\\ " in text:
        # As a shell writes a space.
        path = Path(text.replace("\\ ", " ")).expanduser()
    try:
        if os.path.isdir(path):
            return _folder(Path(os.path.abspath(path)))
        if os.path.isfile(path):
            return _file(Path(os.path.abspath(path)))
    except OSError as error:
        return Place("nothing", note=f'"{text}" cannot be read: {error.strerror}. The app needs the right to read it.')
    if _HUB_NAME.fullmatch(text):
        return Place("hub", text)
    return Place("nothing", note=_missing(text, path))


def resolve(spec: ModelSpec) -> ModelSpec:
    """A specification whose paths are as typed -> the same with folders found, and with a name.

    Raises:
        ModelError: a path leads nowhere, or what it leads to is no model or no adapter.
    """
    typed_model, typed_adapter = cleaned(spec.path or ""), cleaned(spec.adapter or "")
    if not typed_model and not typed_adapter:
        raise ModelError('No model is named. Give a folder, a hub name, or "demo".')
    values: dict[str, str | None] = {"revision": cleaned(spec.revision or "") or None}
    adapter = look(typed_adapter) if typed_adapter else None
    model = look(typed_model) if typed_model else None
    if adapter is not None:
        _require_usable(adapter)
        if adapter.kind == "model":
            if model is not None and model.kind == "adapter":
                raise ModelError(f'Model and adapter are the wrong way round: "{model.path}" is the adapter. Exchange the two.')
            raise ModelError(f'"{adapter.path}" is a whole model and no adapter. Name it as the model, and leave the adapter empty.')
        if model is None:
            if adapter.kind == "hub":
                raise ModelError(f'"{adapter.path}" is to be an adapter from the hub. Name the model it belongs to as well.')
            model, adapter = adapter, None
    assert model is not None
    _require_usable(model)
    if adapter is not None and model.kind == "adapter":
        raise ModelError(
            f'"{model.path}" is an adapter too. Name the model that both belong to, merge one of them first, or leave the adapter empty.'
        )
    values |= {"path": model.path, "adapter": adapter.path if adapter else None, "revision": values["revision"] or model.revision}
    base = cleaned(spec.base or "")
    if base:
        place = look(base)
        _require_usable(place)
        if place.kind == "adapter":
            raise ModelError(f'The base "{place.path}" is an adapter itself. Name the model that it belongs to.')
        values["base"] = place.path
    else:
        values["base"] = None
    template = cleaned(spec.chat_template or "")
    if template and not Path(template).expanduser().is_file():
        raise ModelError(f'The chat template file "{template}" does not exist. Check the path, or leave it empty.')
    values["chat_template"] = os.path.abspath(Path(template).expanduser()) if template else None
    return spec.model_copy(update={**values, "name": spec.name.strip() or name_for(adapter.path if adapter else model.path)})


def name_for(path: str) -> str:
    """What to call a model of this folder or hub name: the last part of it that says something."""
    if path == str(MODEL_DIR):
        return DEMO
    if path == str(ADAPTER_DIR):
        return DEMO_TUNED
    if snapshot := _SNAPSHOT.search(path):
        return snapshot[1].replace("--", "/")
    if not os.path.isabs(path):
        return path
    parts = [part for part in Path(path).parts if part != os.sep]
    first = next((index for index in range(len(parts) - 1, -1, -1) if not _UNTOLD.fullmatch(parts[index])), 0)
    return "/".join(parts[first:]) if parts else path


def cleaned(typed: str) -> str:
    """A typed or pasted text without the spaces and quotes around it; a file address becomes a path."""
    text = typed.strip()
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return unquote(text.removeprefix("file://")) if text.startswith("file:///") else text


def _require_usable(place: Place) -> None:
    if place.kind == "nothing":
        raise ModelError(place.note)


def _windows(text: str) -> Place:
    drive = _DRIVE.fullmatch(text)
    mounted = f"/mnt/{drive[1].lower()}/" + drive[2].replace("\\", "/") if drive else ""
    if mounted and os.path.exists(mounted):
        place = look(mounted)
        return replace(place, note=f'Read as "{mounted}". {place.note}'.strip())
    return Place(
        "nothing",
        note=f'"{text}" is a path of a Windows machine, but the app runs on another system. Copy the model to it and name the folder there.',
    )


def _file(file: Path) -> Place:
    name = file.name.lower()
    if name.endswith(".gguf"):
        return Place(
            "nothing", note=f'"{file}" is a GGUF file, which cannot be taken apart. Name the original model, saved as safetensors.'
        )
    if name.endswith(_ARCHIVES):
        return Place("nothing", note=f'"{file}" is an archive. Unpack it and name the folder.')
    inside = _folder(file.parent)
    if name.endswith(_PARTS_OF_A_MODEL) and inside.path == str(file.parent):
        return replace(inside, note=f'That is a file of the folder "{file.parent}", which is taken. {inside.note}'.strip())
    return Place("nothing", note=f'"{file}" is a file. Name the folder that holds config.json, the weights and the tokenizer.')


def _folder(folder: Path) -> Place:
    kind = _kind(folder)
    if kind == "model":
        return Place("model", str(folder))
    if kind == "adapter":
        base = _base(folder)
        return Place("adapter", str(folder), f'An adapter on "{base}".' if base else "An adapter that does not name its base.", base=base)
    found = _inside(folder)
    if len(found) == 1:
        inside = _folder(Path(found[0]))
        return replace(inside, note=f'Found inside: "{found[0]}". {inside.note}'.strip())
    if found:
        return Place("nothing", note=f'"{folder}" is no checkpoint itself, but holds {len(found)} of them. Choose one.', found=tuple(found))
    if _kind(folder.parent):
        return replace(_folder(folder.parent), note=f'The checkpoint is the folder above, "{folder.parent}", which is taken.')
    if any(folder.glob("*.gguf")):
        return Place(
            "nothing", note=f'"{folder}" holds GGUF files, which cannot be taken apart. Name the original model, saved as safetensors.'
        )
    if not any(folder.iterdir()):
        return Place("nothing", note=f'The folder "{folder}" is empty. Name the one that the model was saved into.')
    return Place(
        "nothing",
        note=f'The folder "{folder}" has neither a config.json (a model) nor an adapter_config.json (an adapter). '
        "Save the model with save_pretrained, or name another folder.",
    )


def _kind(folder: Path) -> Literal["model", "adapter"] | None:
    if (folder / "config.json").is_file():
        return "model"
    return "adapter" if (folder / "adapter_config.json").is_file() else None


def _base(adapter: Path) -> str | None:
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError, OSError):
        # What is wrong with the file is said when it is loaded.
        return None
    return base if isinstance(base, str) and base else None


def _inside(folder: Path) -> list[str]:
    """Folders below with a model or an adapter, the latest first as far as their names tell."""
    found = itertools.islice((inner for inner in itertools.islice(_walk(folder, _DEPTH), _LOOKED_AT) if _kind(inner)), _OFFERED)
    return [str(inner) for inner in sorted(found, key=lambda inner: _natural(str(inner)), reverse=True)]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inner = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return
    for path in map(Path, inner):
        yield path
        # What lies inside a checkpoint (the optimiser's state, an adapter beside the model) is not another one to choose.
        if depth > 1 and not _kind(path):
            yield from _walk(path, depth - 1)


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """Sorts checkpoint-1000 after checkpoint-500."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def _missing(text: str, path: Path) -> str:
    if "/" not in text and os.sep not in text and not text.startswith("~"):
        return f'"{text}" is neither a folder nor a name on the hub. Give a path such as /data/runs/last-night, or a name such as gpt2.'
    parent = path.parent
    if not os.path.isdir(parent):
        return f'Model folder "{text}" does not exist. Check the path; it must be one of the machine that the app runs on.'
    names = [entry.name for entry in os.scandir(parent) if entry.is_dir()] if os.access(parent, os.R_OK) else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f'Model folder "{text}" does not exist.' + (
        f' Did you mean "{parent / close[0]}"?' if close else f' "{parent}" does; check the last part.'
    )
