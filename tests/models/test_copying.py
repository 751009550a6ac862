"""Modules copied quickly are those that `copy.deepcopy` makes, down to what is shared between them."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import token_ids
from reference import load_plain
from torch import Tensor, nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

from llm_tt.models import copying
from llm_tt.models.sharing import copy_sharing_tensors

SEVERAL = ["gpt2", "llama", "gpt_neox", "bloom", "falcon", "gemma2", "mixtral", "qwen2_moe"]


class Shape:
    """An object and everything in it, as something that compares equal if and only if the two are built alike."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []

    def of(self, value: Any) -> Any:
        if isinstance(value, int | float | str | bytes | type(None)):
            return value
        if isinstance(value, functools.partial):
            return self.of((value.func, value.args, value.keywords))
        if callable(value) and not isinstance(value, nn.Module):
            # Functions are handed on; methods are bound to a copy, and told by their names.
            return getattr(value, "__qualname__", type(value).__qualname__)
        if id(value) in self._seen:
            return "seen", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        kind = type(value).__qualname__
        if isinstance(value, Tensor):
            return kind, value.shape, value.dtype, value.flatten().tolist()
        if isinstance(value, dict):
            return kind, [(self.of(key), self.of(entry)) for key, entry in value.items()]
        if isinstance(value, list | tuple):
            return kind, [self.of(entry) for entry in value]
        if isinstance(value, set | frozenset):
            return kind, sorted(map(repr, value))
        return kind, self.of(vars(value)) if hasattr(value, "__dict__") else repr(value)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_model_is_copied_as_deepcopy_copies_it(name: str, checkpoint: Callable[[str], Path]) -> None:
    model = load_plain(checkpoint(name)).eval()
    before = Shape().of(model)
    made = copying.deepcopy(model)
    assert Shape().of(made) == Shape().of(copy.deepcopy(model)) == before
    assert not {id(module) for module in made.modules()} & {id(module) for module in model.modules()}
    assert not {tensor.data_ptr() for tensor in made.parameters()} & {tensor.data_ptr() for tensor in model.parameters()}


@pytest.mark.parametrize("name", SEVERAL)
def test_modules_are_new_around_the_same_tensors(name: str, checkpoint: Callable[[str], Path]) -> None:
    model = load_plain(checkpoint(name)).eval()
    made = copy_sharing_tensors(model)
    for (path, tensor), (other_path, other) in zip(
        model.state_dict(keep_vars=True).items(), made.state_dict(keep_vars=True).items(), strict=True
    ):
        assert path == other_path
        assert tensor is other
    assert made.config is not model.config
    made.config.architectures = ["changed"]
    assert model.config.architectures != ["changed"]
    assert made.generation_config is not model.generation_config
    ids = torch.tensor([token_ids(9)])
    with torch.inference_mode():
        expected = model(ids).logits
        for module in made.modules():
            module._forward_hooks[0] = lambda *_: None
            module.new = True
        assert torch.equal(model(ids).logits, expected)
    assert not any(module._forward_hooks or hasattr(module, "new") for module in model.modules())


@pytest.mark.parametrize("name", SEVERAL)
def test_the_components_of_transformer_lens_are_copied_as_deepcopy_copies_them(name: str, checkpoint: Callable[[str], Path]) -> None:
    config = load_plain(checkpoint(name)).config
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(
        build_bridge_config_from_hf(config, config.architectures[0], "mine", torch.float32)
    )
    template = adapter.component_mapping["blocks"]
    assert Shape().of(copying.deepcopy(template)) == Shape().of(copy.deepcopy(template))


class Own(nn.Module):
    """Copies in a way of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.times = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        made = Own(copy.deepcopy(self.inner, memo))
        made.times = self.times + 1
        return made


def test_circles_shared_things_and_classes_with_ways_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(2, 3), Own(nn.Linear(3, 3)), nn.Module())
    shared: OrderedDict[str, int] = OrderedDict(one=1)
    model[0].shared = model[2].shared = shared  # type: ignore[union-attr, assignment]
    vars(model[2])["parent"] = model
    vars(model[2])["outside"] = {"inner": model[1].inner, "numbers": [1, 2]}  # type: ignore[union-attr]
    model[0].bound = model[2].named_children  # type: ignore[union-attr, assignment]
    made = copying.deepcopy(model)
    assert made[0].shared is made[2].shared is not shared
    assert made[0].shared == shared
    assert made[2].parent is made
    assert (made[1].times, model[1].times) == (1, 0)
    assert made[2].outside["inner"] is made[1].inner is not model[1].inner
    assert made[2].outside["numbers"] is not model[2].outside["numbers"]  # type: ignore[index, union-attr]
    assert made[0].bound.__self__ is made[2]
    assert Shape().of(made[0]) == Shape().of(copy.deepcopy(model)[0])


def test_what_is_in_the_memo_is_taken_from_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    stand_in, weight = nn.Identity(), model[1].weight
    made = copying.deepcopy(model, {id(model[0]): stand_in, id(weight): weight})
    assert made[0] is stand_in
    assert made[1].weight is weight
    assert made[1].bias is not model[1].bias
    assert copying.deepcopy([1, {"a": model[0]}])[1]["a"] is not model[0]
