"""TransformerLens takes a model apart, without the work whose result is thrown away here.

Three of its steps are asked for less while a model boots, each so that another version of TransformerLens which goes about it differently simply
does all of it: the search for hooks looks at what can be one; the components of a block are copied for each layer by `llm_tt.models.copying`; joint
projections of queries, keys and values stay in one piece until `llm_tt.models.capture` needs them split.
"""

from __future__ import annotations

import builtins
import copy
import inspect
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from typing import Any

from torch import nn

from llm_tt.models import copying
from llm_tt.models.capture import Unsplit

_booting = threading.Lock()
_ABSENT = object()


def boot(label: str, hf_model: Any) -> Any:
    """A TransformerBridge around a model, which is changed. It reads ids only: its tokenizer knows no words.

    One at a time: TransformerLens takes a method off a class of its own while it copies, so that two boots at once could trip each other.

    Raises:
        Exception: whatever TransformerLens stumbles over.
    """
    from transformer_lens.model_bridge import TransformerBridge

    with _booting, _leanly():
        return TransformerBridge.boot_transformers(label, hf_model=hf_model, tokenizer=_without_words(), dtype=hf_model.dtype)


def _without_words() -> Any:
    """What TransformerLens needs to have, and sets up as it likes: reading the model's own once more takes longer than the whole boot."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>")), eos_token="<eos>", unk_token="<eos>"
    )


@contextmanager
def _leanly() -> Iterator[None]:
    """Inside, this thread boots with less work; other threads, should they boot bridges of their own, with all of it."""
    from transformer_lens.model_bridge import component_setup, transformer_bridge
    from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import JointQKVAttentionBridge

    thread = threading.get_ident()

    def here(lean: Callable[..., Any], whole: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(whole)
        def chosen(*args: Any, **kwargs: Any) -> Any:
            return (lean if threading.get_ident() == thread else whole)(*args, **kwargs)

        return chosen

    with ExitStack() as stack:
        stack.enter_context(_replaced(transformer_bridge, "dir", here(names_of_hooks, builtins.dir)))
        if vars(component_setup).get("copy") is copy:
            lean_copy = types.SimpleNamespace(**{**vars(copy), "deepcopy": here(copying.deepcopy, copy.deepcopy)})
            stack.enter_context(_replaced(component_setup, "copy", lean_copy))
        if (whole := vars(JointQKVAttentionBridge).get("set_original_component")) is not None:
            stack.enter_context(_replaced(JointQKVAttentionBridge, "set_original_component", here(_unsplit(whole), whole)))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def names_of_hooks(thing: Any) -> list[str]:
    """As `dir`, but of a module only the attributes that can be hooks.

    The search reads every attribute that it is told of, and so computes every property, among them matrices as large as the vocabulary.
    """
    if not isinstance(thing, nn.Module):
        return dir(thing)
    from transformer_lens.hook_points import HookPoint

    found = {name for kept in (vars(thing), thing._modules) for name, value in kept.items() if isinstance(value, HookPoint)}
    return sorted(name for name in found.union(_names_of_class(type(thing))) if not name[0].isdigit())


@cache
def _names_of_class(kind: type[nn.Module]) -> frozenset[str]:
    """Attributes of a class that are hooks, or by their name may give one when they are read."""
    from transformer_lens.hook_points import HookPoint

    def may_be_hook(name: str) -> bool:
        value = inspect.getattr_static(kind, name)
        is_method = isinstance(value, types.FunctionType | classmethod | staticmethod)
        return isinstance(value, HookPoint) or ("hook" in name and hasattr(type(value), "__get__") and not is_method)

    return frozenset(filter(may_be_hook, dir(kind)))


def _unsplit(whole: Callable[[Any, nn.Module], None]) -> Callable[[Any, nn.Module], None]:
    """An attention module is given what it wraps, and from the second on stand-ins for the parts of its joint projection.

    The first is split, so that what cannot be is refused as it always was.
    """
    tried = False

    def set_original_component(self: Any, original_component: nn.Module) -> None:
        nonlocal tried
        split = vars(self).get("split_qkv_matrix")
        if not tried or split is None or not _can_wait(original_component):
            whole(self, original_component)
            tried = True
            return
        weight = next(original_component.parameters())
        vars(self)["split_qkv_matrix"] = lambda _: tuple(Unsplit(weight) for _ in "qkv")
        try:
            whole(self, original_component)
        finally:
            vars(self)["split_qkv_matrix"] = split

    return set_original_component


def _can_wait(attention: nn.Module) -> bool:
    """Whether splitting this projection later is the same as now: it is in memory, and made of plain numbers, without which splitting is refused."""
    parameters = list(attention.parameters())
    return bool(parameters) and all(parameter.is_floating_point() and not parameter.is_meta for parameter in parameters)
