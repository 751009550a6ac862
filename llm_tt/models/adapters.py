"""Adapters saved by PEFT: where they are, which model they belong to, and merging one into its base without touching tensors that others share."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_tt.errors import ModelError
from llm_tt.models import hub
from llm_tt.models.sharing import own
from llm_tt.models.weights import header, read_json

CONFIG = "adapter_config.json"
_WEIGHTS, _PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_PATTERNS = ("adapter_config.json", "adapter_model.safetensors", "*.jinja", "*token*", "vocab.*", "merges.txt", "spiece.model")

_PREFIX = "base_model.model."
_OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM")
_NOT_WEIGHTS = {
    "PROMPT_TUNING": "it prepends trained vectors to the prompt",
    "MULTITASK_PROMPT_TUNING": "it prepends trained vectors to the prompt",
    "P_TUNING": "it prepends trained vectors to the prompt",
    "CPT": "it prepends trained vectors to the prompt",
    "PREFIX_TUNING": "it adds trained keys and values to every attention layer",
    "CARTRIDGE": "it adds trained keys and values to every attention layer",
    "ADAPTION_PROMPT": "it adds trained keys and values to every attention layer",
    "XLORA": "it mixes several adapters anew for every token",
    "POLY": "it mixes several adapters by the task",
}
_SAVED_TWICE = re.compile(r"\.(modules_to_save|original_module)\.")
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal")
"""Of LoRA's ways to begin; the others (PiSSA, OLoRA, ...) write into the base when the adapter is put on"""


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk."""

    name: str
    """folder or hub name, as the user gave it"""
    folder: Path
    config: dict[str, Any]

    @property
    def base(self) -> str | None:
        """What the adapter says it belongs to; a folder relative to where it was trained may lie beside it."""
        base = self.config.get("base_model_name_or_path")
        if base and not os.path.isdir(base) and (self.folder / base).is_dir():
            return str((self.folder / base).resolve())
        return base or None

    @property
    def shares_base(self) -> bool:
        """Whether it is known which tensors of the base merging changes. If not, the base is copied whole."""
        return self.config.get("peft_type") == "LORA" and self.config.get("init_lora_weights", True) in _PLAIN_INITS


def is_adapter(folder: Path) -> bool:
    """A folder with an adapter and no model of its own."""
    if not (folder / CONFIG).is_file():
        return False
    has_adapter = (folder / _WEIGHTS).is_file() or (folder / _PICKLE).is_file()
    model = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return not (folder / "config.json").is_file() or (has_adapter and not model)


def find_adapter(name: str, revision: str | None, allow_pickle: bool) -> Adapter:
    """The adapter in a folder, or of a hub name.

    Raises:
        ModelError: it is not there, incomplete, or of a kind that is not part of the weights.
    """
    if hub.is_path(name):
        folder = Path(name)
        if not folder.is_dir():
            raise ModelError(f'Adapter folder "{name}" does not exist. Check the path, or set "adapter" to a hub name.')
    else:
        folder = hub.snapshot(name, [*_PATTERNS, *([_PICKLE] if allow_pickle else [])], revision)
    if not (folder / CONFIG).is_file():
        raise ModelError(f'Adapter folder "{name}" has no adapter_config.json. Name the folder that PEFT saved.')
    config = read_json(folder / CONFIG, "Adapter folder")
    _require_mergeable(name, config)
    if not (folder / _WEIGHTS).is_file() and not (allow_pickle and (folder / _PICKLE).is_file()):
        pickled = " It has a pickle, which can run code when it is opened." if (folder / _PICKLE).is_file() else ""
        raise ModelError(
            f'Adapter folder "{name}" has no weights in safetensors ({_WEIGHTS}).{pickled} Save it with safe_serialization=True, '
            'or set "allow_pickle": true for this model if you trust its pickle.'
        )
    return Adapter(name, folder, config)


def _require_mergeable(name: str, config: dict[str, Any]) -> None:
    kind, task = config.get("peft_type"), config.get("task_type")
    if reason := _NOT_WEIGHTS.get(str(kind)):
        raise ModelError(
            f'Adapter "{name}" is of the kind {kind}, which cannot be merged into the weights: {reason}. '
            "Only adapters that change weights, such as LoRA, can be shown."
        )
    if task in _OTHER_TASKS:
        raise ModelError(
            f'Adapter "{name}" was trained for the task {task}, with an output of its own in place of next-token prediction. '
            "Only adapters of causal language models (CAUSAL_LM) can be shown."
        )


def base_of(adapter: Adapter) -> str:
    """Raises:
    ModelError: the adapter does not say.
    """
    if adapter.base is None:
        raise ModelError(f'Adapter folder "{adapter.name}" does not say which model it belongs to. Set "base" in the configuration.')
    return adapter.base


def merge(model: Any, adapter: Adapter, who: str) -> Any:
    """The model with the adapter's changes in its weights.

    The model's modules are changed; of its tensors only copies are, so that other models may share them.

    Raises:
        ModelError: it does not fit the model, or cannot be merged.
    """
    if not adapter.shares_base:
        model = copy.deepcopy(model)
    stored = _stored_rows(adapter)
    tied = model.config.get_text_config().tie_word_embeddings
    try:
        _resize_embeddings(model, stored, adapter)
        made = _with_adapter(model, adapter)
        for module in _tuned_modules(made):
            base = module.get_base_layer()
            changed = [module.parameter_name] if hasattr(module, "parameter_name") else [n for n, _ in base.named_parameters(recurse=False)]
            for name in changed:
                own(base, name)
        merged = made.merge_and_unload()
    except ModelError:
        raise
    except Exception as error:
        if isinstance(error, NotImplementedError) or "merge" in str(error).lower():
            raise ModelError(
                f'Adapter "{adapter.name}" of the kind {adapter.config.get("peft_type")} cannot be merged into the weights: '
                f"{_sentence(error)} Only adapters that can be merged can be shown."
            ) from error
        # Damaged files surface as the private exceptions of safetensors.
        raise ModelError(_misfit(adapter, who, _sentence(error))) from error
    _tie_again(merged, tied)
    return merged.eval().requires_grad_(False)


def _with_adapter(model: Any, adapter: Adapter) -> Any:
    """The adapter put on and its weights loaded, every one of them."""
    from peft import PeftConfig, PeftModel
    from peft.utils.save_and_load import load_peft_weights

    config = PeftConfig.from_pretrained(str(adapter.folder))
    config.inference_mode = True
    made = PeftModel(model, config)
    saved = load_peft_weights(str(adapter.folder), device="cpu")
    _own_saved(made, saved)
    key_mapping = getattr(model, "_checkpoint_conversion_mapping", {})
    result = made.load_adapter(str(adapter.folder), "default", key_mapping=key_mapping)
    # PEFT may save an extended embedding that it trains as a whole under three names.
    saved_for_nothing = [key for key in result.unexpected_keys if (plain := _SAVED_TWICE.sub(".", key)) == key or plain not in saved]
    if result.missing_keys:
        raise ModelError(_misfit(adapter, None, f'it has no weights for "{_module(result.missing_keys[0])}".'))
    if saved_for_nothing:
        raise ModelError(_misfit(adapter, None, f'the base has no "{_module(saved_for_nothing[0])}".'))
    return made


def _own_saved(made: Any, saved: dict[str, torch.Tensor]) -> None:
    """Copy the base's own parameters that the adapter brings (biases, extended embeddings), since loading writes into them.

    Tied ones stay tied, unless the adapter brings different values for them.
    """
    places: dict[int, list[tuple[Any, str, torch.Tensor | None]]] = {}
    for path, module in made.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name, saved.get(f"{path}.{name}")))
    for tied in places.values():
        brought = [tensor for _, _, tensor in tied if tensor is not None]
        if not brought:
            continue
        if all(torch.equal(tensor, brought[0]) for tensor in brought):
            shared = own(*tied[0][:2])
            for module, name, _ in tied[1:]:
                setattr(module, name, shared)
        else:
            for module, name, _ in tied:
                own(module, name)


def _tuned_modules(made: Any) -> Iterable[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in made.modules() if isinstance(module, BaseTunerLayer)]


def _stored_rows(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Shapes of what a safetensors adapter holds, by name in the base."""
    file = adapter.folder / _WEIGHTS
    return {name.removeprefix(_PREFIX): tensor.shape for name, tensor in header(file)} if file.is_file() else {}


def _resize_embeddings(model: Any, stored: dict[str, tuple[int, ...]], adapter: Adapter) -> None:
    """Give the base as many embedding rows as the adapter brings.

    Raises:
        ModelError: it brings new rows for the input only, so that those of the output would be random.
    """
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    shape = stored.get(f"{name}.weight") or stored.get(f"{name}.base_layer.weight")
    if shape is None or shape[0] == embeddings.weight.shape[0]:
        return
    output = model.get_output_embeddings()
    was_tied = output is not None and output.weight is embeddings.weight
    if output is not None and not was_tied and shape[0] > output.weight.shape[0]:
        name = next(name for name, module in model.named_modules() if module is output)
        if (stored.get(f"{name}.weight") or stored.get(f"{name}.base_layer.weight") or (0,))[0] != shape[0]:
            raise ModelError(
                f'Adapter "{adapter.name}" extends the vocabulary to {shape[0]} tokens, but does not hold the new rows of "{name}", '
                "which would be random numbers. Save it again with that module in modules_to_save, or save the merged model."
            )
    # transformers writes the longer tensors into the old parameters.
    own(embeddings, "weight")
    if output is not None:
        if was_tied:
            output.weight = embeddings.weight
        else:
            own(output, "weight")
        if getattr(output, "bias", None) is not None:
            own(output, "bias")
    model.resize_token_embeddings(shape[0], mean_resizing=False)


def _tie_again(model: Any, was_tied: bool) -> None:
    """Input and output embeddings that hold the same numbers share them, as before."""
    output = model.get_output_embeddings()
    if output is None:
        return
    embeddings = model.get_input_embeddings()
    if was_tied and output.weight is not embeddings.weight and torch.equal(output.weight, embeddings.weight):
        output.weight = embeddings.weight
    model.config.get_text_config().tie_word_embeddings = output.weight is embeddings.weight


def _misfit(adapter: Adapter, who: str | None, reason: str) -> str:
    of = f' of "{who}"' if who else ""
    return (
        f'Adapter "{adapter.name}" is damaged or does not fit the base model{of}: {reason} '
        'Set "base" to the model it was trained on, or save the adapter again.'
    )


def _module(key: str) -> str:
    """The base's module in a name such as base_model.model.layers.0.q_proj.lora_A.default.weight."""
    return re.sub(r"\.(lora_\w+|modules_to_save|base_layer|token_adapter|\w*default)\b.*$", "", key.removeprefix(_PREFIX))


def _sentence(error: BaseException) -> str:
    """The first line that says something, closed with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    chosen = next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(error).__name__)
    if len(chosen) > 300:
        chosen = chosen[:300].rsplit(" ", 1)[0] + " ..."
    return chosen if chosen.endswith(".") else f"{chosen}."
