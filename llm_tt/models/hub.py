"""The Hugging Face hub and its local cache: single files, whole snapshots, and the libraries' errors as sentences about one model.

HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from llm_tt.errors import LlmTtError, ModelError
from llm_tt.progress import Cancelled

_Value = TypeVar("_Value")

_FIRST_QWEN = ("qwen", "qwen-1_8b", "qwen-7b", "qwen-14b", "qwen-72b")


def is_path(where: str) -> bool:
    """Whether a name can only mean a folder, or means one that exists."""
    return where.startswith(("/", "./", "../", "~")) or where.endswith("/") or where.count("/") > 1 or os.path.exists(where)


def find_file(where: str, name: str, revision: str | None) -> Path | None:
    """A file of a hub model, downloaded unless it is in the cache; None if the model does not have it.

    Raises:
        ModelError: the model itself cannot be reached.
    """
    from huggingface_hub import errors, hf_hub_download

    def find() -> Path | None:
        try:
            return Path(hf_hub_download(where, name, revision=revision))
        except errors.LocalEntryNotFoundError:
            # The hub cannot be asked. With a snapshot in the cache, that is what there is of the model.
            if cached_snapshot(where, revision) is None:
                raise
            return None
        except errors.EntryNotFoundError:
            return None

    return translated(where, revision, find)


def snapshot(where: str, patterns: Sequence[str], revision: str | None) -> Path:
    """The folder of a hub repository with the files of those patterns, downloaded unless they are in the cache.

    Raises:
        ModelError: it cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download

    if constants.is_offline_mode() and (folder := cached_snapshot(where, revision)):
        return folder
    return translated(where, revision, lambda: Path(snapshot_download(where, revision=revision, allow_patterns=list(patterns))))


def cached_snapshot(where: str, revision: str | None) -> Path | None:
    """The folder in the cache that holds a revision (branch, tag or commit) of a hub model, complete or not."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{where.replace('/', '--')}"
    wanted = revision or "main"
    reference = repository / "refs" / wanted
    commit = reference.read_text().strip() if reference.is_file() else wanted
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def translated(where: str, revision: str | None, load: Callable[[], _Value]) -> _Value:
    """Run a Hugging Face loader; its errors become sentences about this model.

    Raises:
        ModelError: the sentence.
    """
    import torch

    try:
        return load()
    except (LlmTtError, Cancelled, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = _reason(where, revision, error)
        raise ModelError(reason + ("" if reason.endswith((".", "?")) else ".")) from error


def _reason(where: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants, errors

    chain = list(_causes(error))
    text = " ".join(str(cause) for cause in chain)
    at = f' with revision "{revision}"' if revision else ""

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if caused_by(errors.GatedRepoError) or "gated repo" in text:
        return f'"{where}" is a gated model. Accept its terms on the hub and log in with `hf auth login`'
    if caused_by(errors.RevisionNotFoundError) or (revision and "is not a valid git identifier" in text):
        return f'The hub has "{where}", but not{at}. Check the branch, tag or commit'
    if caused_by(errors.RepositoryNotFoundError) or "is not a valid model identifier" in text:
        return f'The hub has no model "{where}"{at}. Check the spelling, log in with `hf auth login` if it is private, or give a folder'
    if caused_by(errors.HFValidationError):
        return f'"{where}" is neither a folder nor a name that the hub could have. Check the spelling, or give a folder'
    if caused_by(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) or _mentions_network(text):
        offline = " (HF_HUB_OFFLINE is set)" if constants.is_offline_mode() else ""
        if revision and cached_snapshot(where, None) is not None:
            return (
                f'"{where}" is in the local cache, but not{at}, and the hub cannot be reached{offline}. '
                "Leave out the revision, or connect and try again"
            )
        return (
            f'"{where}"{at} is neither a folder nor in the local cache, and the hub cannot be reached{offline}. '
            "Give the folder of the model, or connect and try again"
        )
    if http := next((cause for cause in chain if isinstance(cause, errors.HfHubHTTPError)), None):
        status = getattr(getattr(http, "response", None), "status_code", None)
        return f'The hub answered with an error for "{where}"{f" (HTTP {status})" if status else ""}: {first_line(http)} Try again later'
    if "trust_remote_code" in text:
        if where.rsplit("/", 1)[-1].lower().removesuffix("-chat") in _FIRST_QWEN or _is_first_qwen(where):
            return (
                f'"{where}" is a Qwen of the first generation, which runs code of its own that transformers does not have. '
                'Use Qwen1.5 or later; or, if you trust that code, set "trust_remote_code": true for it in the configuration'
            )
        return f'"{where}" runs code of its own. If you trust it, set "trust_remote_code": true for it in the configuration'
    if isinstance(error, ImportError):
        return f'"{where}" needs a package that is not installed: {first_line(error)}'
    if isinstance(error, OSError | ValueError | KeyError | RuntimeError | json.JSONDecodeError):
        return f'"{where}" cannot be loaded: {first_line(error)}'
    # Damaged files surface as the private exceptions of safetensors and tokenizers.
    return f'"{where}" cannot be loaded, a file of it may be damaged: {type(error).__name__}: {first_line(error)}'


def _is_first_qwen(where: str) -> bool:
    try:
        return json.loads((Path(where) / "config.json").read_text()).get("model_type") == "qwen"
    except (OSError, ValueError, AttributeError):
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _mentions_network(text: str) -> bool:
    phrases = ("couldn't connect", "offline mode", "Cannot send a request", "Max retries", "Connection", "Name or service not known")
    return any(phrase in text for phrase in phrases)


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
