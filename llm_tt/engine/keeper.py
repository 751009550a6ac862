"""Which models there are, by configuration and added by users, and which are in memory: loaded once, one at a time, dropped and freed.

Importing this module is cheap; the model libraries are imported when the first model is loaded.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
import time
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_tt.config import AppConfig, ModelSpec
from llm_tt.engine.cache import Turn
from llm_tt.engine.messages import DeviceMemory, ModelFacts, ModelKey
from llm_tt.errors import ModelError
from llm_tt.models import places
from llm_tt.progress import Progress

if TYPE_CHECKING:
    from llm_tt.models.transparent_llm import TransparentLlm


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory, and by which key it was asked for."""

    key: ModelKey
    model: TransparentLlm
    facts: ModelFacts
    weight_bytes: int


class ModelKeeper:
    """Models by name, at most `max_models` of them in memory.

    Args:
        added: models that users had added to an engine before this one.
        on_drop: called when models were dropped, so that others let go of them too.
    """

    def __init__(self, config: AppConfig, max_models: int, added: Iterable[ModelSpec], on_drop: Callable[[], None]) -> None:
        self._config = config
        self._max_models = max_models
        self._on_drop = on_drop
        self._lock = threading.Lock()
        # What transformers does while it loads is not safe for threads, and two models read at once take memory that nobody counted.
        self._loading = Turn()
        self._being_loaded: ModelSpec | None = None
        self._added = {spec.name: spec for spec in added if spec.name not in config.models} if config.models_may_be_added else {}
        self._loaded: OrderedDict[ModelSpec, Loaded] = OrderedDict()
        self._users: Counter[ModelSpec] = Counter()
        """How many questions are being answered with each model"""
        self._dropped: set[ModelSpec] = set()
        """Models dropped while questions were being answered with them"""

    # --- which models there are

    def names(self) -> tuple[str, ...]:
        with self._lock:
            return (*self._config.models, *self._added)

    def added(self) -> tuple[ModelSpec, ...]:
        with self._lock:
            return tuple(self._added.values())

    def spec(self, key: ModelKey) -> ModelSpec:
        """
        Raises:
            ModelError: there is no such model and others may not be named, or device or dtype is none.
        """
        with self._lock:
            spec = self._config.models.get(key.name) or self._added.get(key.name)
        if spec is None:
            if not self._config.models_may_be_added:
                raise ModelError(f'Model "{key.name}" is not offered here. Choose one of: {", ".join(self._config.models)}.')
            spec = ModelSpec.named(key.name)
        return spec.changed(device=None if key.device == "auto" else key.device, dtype=None if key.dtype == "auto" else key.dtype)

    def require_adding(self) -> None:
        """
        Raises:
            ModelError: users may not name models that are not configured.
        """
        if not self._config.models_may_be_added:
            raise ModelError("Models cannot be added on this server. Ask who runs it to put yours into the configuration.")

    def add(self, typed: ModelSpec, progress: Progress) -> tuple[ModelSpec, Loaded]:
        """Load a model as a user described it, prove that its parts add up, and put it on the menu of everyone.

        Raises:
            ModelError: it may not be added, its name is taken, or it cannot be used.
        """
        self.require_adding()
        for option in ("trust_remote_code", "allow_pickle", "backend"):
            if getattr(typed, option):
                raise ModelError(f'"{option}" runs code from outside llm-tt, and can be set in the configuration file only.')
        spec = places.resolve(typed)
        with self._lock:
            if not typed.name.strip():
                spec = spec.model_copy(update={"name": self._free(spec)})
            self._require_free(spec)
        key = ModelKey(spec.name)
        with self.using(spec):
            loaded = self.load(key, progress, spec)
        with self._lock:
            # Somebody else may have been quicker.
            self._require_free(spec)
            self._added[spec.name] = spec
        return spec, loaded

    def forget(self, name: str) -> None:
        """Take a model that was added off the menu, and out of memory. Nothing happens to a configured one."""
        with self._lock:
            gone = self._added.pop(name, None)
            drop = [spec for spec in self._loaded if gone is not None and spec.name == name]
        for spec in drop:
            self._drop(spec)

    def _free(self, spec: ModelSpec) -> str:
        """A name that is not taken, by this model itself excepted."""
        taken = {**self._config.models, **self._added}
        names = (spec.name if number == 1 else f"{spec.name} ({number})" for number in range(1, len(taken) + 2))
        return next(name for name in names if name not in taken or self._added.get(name) == spec.model_copy(update={"name": name}))

    def _require_free(self, spec: ModelSpec) -> None:
        if spec.name in self._config.models:
            raise ModelError(f'The name "{spec.name}" is in the configuration already. Choose another name.')
        if self._added.get(spec.name, spec) != spec:
            raise ModelError(f'The name "{spec.name}" is taken by a model that was added before. Choose another name.')

    # --- which are in memory

    def is_loaded(self, key: ModelKey) -> bool:
        return self.facts(key) is not None

    def facts(self, key: ModelKey) -> ModelFacts | None:
        try:
            spec = self.spec(key)
        except ModelError:
            return None
        with self._lock:
            return self._loaded[spec].facts if spec in self._loaded else None

    def holds(self, loaded: Loaded) -> bool:
        with self._lock:
            return any(kept is loaded for kept in self._loaded.values())

    def loaded(self) -> list[tuple[Loaded, int]]:
        """What is in memory, the latest used first, and how many questions are being answered with each."""
        with self._lock:
            return [(loaded, self._users[spec]) for spec, loaded in reversed(self._loaded.items())]

    def load(self, key: ModelKey, progress: Progress, spec: ModelSpec | None = None) -> Loaded:
        """The model, loaded if it is not; `progress` may raise, also while another model is loaded first."""
        wanted = self.spec(key) if spec is None else spec
        if (loaded := self._kept(wanted)) is not None:
            return loaded

        def waiting(stage: str, fraction: float) -> tuple[str, float]:
            return (stage, fraction) if self._being_loaded == wanted else ("Waiting for another model to be loaded", 0.0)

        with self._loading.taken(progress, waiting) as told:
            if (loaded := self._kept(wanted)) is not None:
                return loaded
            self._being_loaded = wanted
            try:
                loaded = self._read(key, wanted, told)
                with self._lock:
                    self._loaded[wanted] = loaded
            finally:
                self._being_loaded = None
        self._make_room(self._max_models)
        return loaded

    @contextmanager
    def using(self, spec: ModelSpec) -> Iterator[None]:
        """While a question is answered with a model: if it is dropped meanwhile, its memory is freed when the last one ends."""
        with self._lock:
            self._users[spec] += 1
        try:
            yield
        except BaseException as error:
            _forget_locals(error)
            raise
        finally:
            with self._lock:
                self._users[spec] -= 1
                free = self._users[spec] <= 0 and spec in self._dropped
                if self._users[spec] <= 0:
                    del self._users[spec]
                    self._dropped.discard(spec)
            if free:
                _free_memory()

    def unload(self, key: ModelKey) -> None:
        """Drop a model. Questions that are being answered with it end as they would, and its memory is freed after them."""
        self._drop(self.spec(key))

    def _kept(self, spec: ModelSpec) -> Loaded | None:
        with self._lock:
            if spec in self._loaded:
                self._loaded.move_to_end(spec)
            return self._loaded.get(spec)

    def _read(self, key: ModelKey, spec: ModelSpec, progress: Progress) -> Loaded:
        _import_libraries(progress)
        from llm_tt.models import identities, load_unchecked

        started = time.monotonic()
        model = load_unchecked(spec, progress=progress, before_weights=lambda: self._make_room(self._max_models - 1))
        progress(f"Checking that the parts of {spec.name} add up", 0.95)
        report = identities.require(model)
        facts = ModelFacts(model.info, report.worst, report.tolerance, time.monotonic() - started)
        return Loaded(key, model, facts, model.weight_bytes())

    def _make_room(self, n_kept: int) -> None:
        """Drop the least recently used models, those first that nobody is using, until `n_kept` are left."""
        while True:
            with self._lock:
                if len(self._loaded) <= max(n_kept, 0):
                    return
                spec = next((spec for spec in self._loaded if not self._users[spec]), next(iter(self._loaded)))
            self._drop(spec)

    def _drop(self, spec: ModelSpec) -> None:
        with self._lock:
            if self._loaded.pop(spec, None) is None:
                return
            in_use = self._users[spec] > 0
            if in_use:
                self._dropped.add(spec)
        self._on_drop()
        if not in_use:
            _free_memory()


def devices() -> list[str]:
    """What a model can be asked to run on; asking does not import torch, so the list grows once a model is loaded."""
    torch = _imported_torch()
    found = ["auto", "cpu"]
    if torch is not None and torch.cuda.is_available():
        found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch is not None and torch.backends.mps.is_available():
        found.append("mps")
    return found


def memory() -> tuple[DeviceMemory, ...]:
    """The host's memory and that of each GPU that torch, once it is imported, knows of."""
    import psutil

    host = psutil.virtual_memory()
    found = [DeviceMemory("cpu", "this machine", host.total, host.available)]
    for device in devices():
        if device.startswith("cuda"):
            import torch

            free, total = torch.cuda.mem_get_info(torch.device(device))
            found.append(DeviceMemory(device, torch.cuda.get_device_name(device), total, free))
    return tuple(found)


def process_bytes() -> int:
    """The memory that this process holds of the host's."""
    import psutil

    return psutil.Process().memory_info().rss


def _imported_torch() -> Any:
    """The module if it is imported, and not just now being imported by another thread."""
    torch = sys.modules.get("torch")
    return None if torch is None or getattr(torch.__spec__, "_initializing", False) else torch


_LIBRARIES = ("torch", "transformers.modeling_utils", "transformer_lens.model_bridge", "llm_tt.models.bridge")
_imported: set[str] = set()


def _import_libraries(progress: Progress) -> None:
    """Import what loading a model needs, once, and tell the garbage collector that it stays.

    Streamlit collects garbage after every run of the script, also of those that show this progress. With these libraries' objects to look through
    that stops the process for a third of a second each time, and on a busy machine starves the very import; so each is set aside at once.
    """
    for library in _LIBRARIES:
        progress(f"Importing the model libraries: {library.partition('.')[0]}", 0.0)
        if library not in _imported:
            importlib.import_module(library)
            gc.freeze()
            _imported.add(library)
            if len(_imported) == len(_LIBRARIES):
                # What became garbage meanwhile was set aside too.
                gc.unfreeze()
                gc.collect()
                gc.freeze()


def _free_memory() -> None:
    """Collect what nobody holds any more (models are full of cycles) and give a GPU's cached memory back."""
    gc.collect()
    torch = _imported_torch()
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _forget_locals(error: BaseException) -> None:
    """Clear the variables of the functions that an exception came through: it is kept with its job, and they hold a model and its trace."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__
