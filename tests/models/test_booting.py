"""A bridge booted with less work is the bridge that TransformerLens makes: the same hooks, the same parts, and nothing of the library changed."""

from __future__ import annotations

import builtins
import copy
import re
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import token_ids
from reference import load_plain
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge, component_setup, transformer_bridge
from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import JointQKVAttentionBridge

import llm_tt
from llm_tt.models import booting, bridge, capture
from llm_tt.models.booting import boot, names_of_hooks
from llm_tt.models.capture import Unsplit
from llm_tt.models.ffn import unwrapped

JOINT = ("gpt2", "gpt_neox", "bloom", "falcon", "mpt", "phi3")
SEVERAL = [*JOINT, "llama", "gpt_neo", "opt", "gemma2", "mixtral", "qwen2_moe", "deepseek_v3", "gptj"]
IDS = torch.tensor([token_ids(9)])
_PART = re.compile(r"\.[qkv]\._original_component$")
SET_ORIGINAL = vars(JointQKVAttentionBridge)["set_original_component"]


def by_the_library(folder: Path) -> Any:
    model = load_plain(folder)
    return TransformerBridge.boot_transformers("whole", hf_model=model, tokenizer=booting._without_words(), dtype=model.dtype)


def hooks(made: Any) -> dict[str, tuple[Any, ...]]:
    """Under which names a bridge's hooks are found, in order, and what they are."""
    return {
        name: (hook.name, type(hook.hook_conversion).__name__, hook.pos_dim, len(hook.fwd_hooks), len(hook.bwd_hooks))
        for name, hook in (*made._hook_registry.items(), *sorted(made.hook_dict.items()))
    }


def parts(made: Any) -> list[Any]:
    return [unwrapped(part) for block in made.blocks for part in capture._split(block.attn)]


def require_untouched() -> None:
    assert "dir" not in vars(transformer_bridge)
    assert vars(component_setup)["copy"] is copy
    assert vars(JointQKVAttentionBridge)["set_original_component"] is SET_ORIGINAL
    assert "__deepcopy__" in vars(JointQKVAttentionBridge)


@pytest.mark.parametrize("name", SEVERAL)
def test_hooks_are_those_of_the_library(name: str, checkpoint: Callable[[str], Path]) -> None:
    whole, lean = by_the_library(checkpoint(name)), boot("lean", load_plain(checkpoint(name)))
    assert list(hooks(lean).items()) == list(hooks(whole).items())
    assert list(lean._hook_registry) == list(whole._hook_registry)
    assert lean._driver.supported_hook_points == whole._driver.supported_hook_points
    kinds = [
        {path: type(module) for path, module in made.named_modules() if not (name in JOINT and _PART.search(path))}
        for made in (lean, whole)
    ]
    assert kinds[0] == kinds[1]
    require_untouched()


@pytest.mark.parametrize("name", SEVERAL)
def test_every_attribute_that_is_a_hook_is_named(name: str, checkpoint: Callable[[str], Path]) -> None:
    made = boot("lean", load_plain(checkpoint(name)))
    for module in made.modules():
        named = names_of_hooks(module)
        assert set(named) <= set(dir(module))
        # Properties are read here, too: the very work that is left out.
        found = [name for name in dir(module) if not name.startswith("_") and isinstance(_read(module, name), HookPoint)]
        assert set(found) <= set(named), type(module)
    assert len(names_of_hooks(made)) < 20 < len(dir(made))


def _read(module: Any, name: str) -> Any:
    try:
        return getattr(module, name)
    except (AttributeError, NameError, RuntimeError, TypeError, ValueError, AssertionError):
        return None


@pytest.mark.parametrize("name", JOINT)
def test_joint_projections_are_split_when_they_are_needed(name: str, checkpoint: Callable[[str], Path]) -> None:
    whole, lean = by_the_library(checkpoint(name)), boot("lean", load_plain(checkpoint(name)))
    assert parts(lean)[3:]
    assert all(isinstance(part, Unsplit) for part in parts(lean)[3:])
    assert not any(isinstance(part, Unsplit) for part in parts(lean)[:3]), "the first is split, so that what cannot be is refused"
    capture.restore_copies(lean)
    for made, expected in zip(parts(lean), parts(whole), strict=True):
        assert type(made) is type(expected)
        assert (made.in_features, made.out_features, made.training) == (expected.in_features, expected.out_features, False)
        state, wanted = made.state_dict(), expected.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    with torch.inference_mode():
        assert torch.equal(lean(IDS, return_type="logits"), whole(IDS, return_type="logits"))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_a_fused_model_never_splits_them(name: str, checkpoint: Callable[[str], Path], plain: Callable[[str], Any]) -> None:
    llm: Any = llm_tt.load_model(str(checkpoint(name)))
    assert llm.info.attention == "fused"
    assert all(isinstance(part, Unsplit) for part in parts(llm._bridge)[3:])
    with torch.inference_mode():
        expected = plain(name)(IDS).logits[0, -1]
    fused, fingerprint = llm.trace(IDS[0].tolist()).logits(-1), llm.fingerprint()
    llm.use_eager_attention()
    assert not any(isinstance(part, Unsplit) for part in parts(llm._bridge))
    for logits in (fused, llm.trace(IDS[0].tolist()).logits(-1)):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert llm.fingerprint() == fingerprint, "it is told by the checkpoint's tensors, not by which of them have been split"


def test_another_thread_boots_as_the_library_does(checkpoint: Callable[[str], Path]) -> None:
    found: dict[str, Any] = {}
    folder = checkpoint("gpt2")

    def elsewhere() -> None:
        found["bridge"] = by_the_library(folder)
        found["names"] = transformer_bridge.dir(found["bridge"].blocks[0])  # type: ignore[attr-defined]

    with booting._leanly():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        block = found["bridge"].blocks[0]
        assert found["names"] == dir(block)
        assert transformer_bridge.dir(block) == names_of_hooks(block) != dir(block)  # type: ignore[attr-defined]
    assert not any(isinstance(part, Unsplit) for part in parts(found["bridge"]))
    require_untouched()


def test_many_boots_at_once_are_all_right(checkpoint: Callable[[str], Path]) -> None:
    names = ["gpt2", "gpt_neox", "llama", "gpt2", "mixtral", "bloom"]
    expected = [hooks(by_the_library(checkpoint(name))) for name in names]
    models = [load_plain(checkpoint(name)) for name in names]
    made: list[Any] = [None] * len(names)
    start = threading.Barrier(len(names))

    def run(number: int) -> None:
        start.wait()
        made[number] = boot(names[number], models[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [hooks(each) for each in made] == expected
    require_untouched()


def test_a_failed_boot_leaves_the_library_as_it_was(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        assert "dir" in vars(transformer_bridge)
        raise RuntimeError("no driver")

    with monkeypatch.context() as patch:
        patch.setattr(transformer_bridge, "validate_driver", fails)
        with pytest.raises(RuntimeError, match="no driver"):
            boot("lean", load_plain(checkpoint("gpt2")))
    require_untouched()
    assert hooks(boot("lean", load_plain(checkpoint("gpt2")))) == hooks(by_the_library(checkpoint("gpt2")))


def test_another_version_does_all_of_it(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that looks for hooks, copies and splits in other ways than the one that is installed."""
    copies = []

    def deepcopy(thing: Any, memo: Any = None) -> Any:
        copies.append(thing)
        return copy.deepcopy(thing, memo)

    # Its base sets the original component, and then it is split outside of any method of that name.
    class Otherwise(JointQKVAttentionBridge):
        def attach(self, original: Any) -> None:
            SET_ORIGINAL(self, original)

    expected = hooks(by_the_library(checkpoint("gpt2")))
    monkeypatch.setattr(component_setup, "copy", types.SimpleNamespace(deepcopy=deepcopy))
    monkeypatch.setattr(transformer_bridge, "dir", builtins.dir, raising=False)
    monkeypatch.setattr(Otherwise, "set_original_component", Otherwise.attach)
    made = boot("lean", load_plain(checkpoint("gpt2")))
    assert len(copies) == len(made.blocks), "its own way of copying is left alone"
    assert transformer_bridge.dir is builtins.dir  # type: ignore[attr-defined]
    assert hooks(made) == expected


def test_what_transformer_lens_cannot_split_is_refused_as_before(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(llm_tt.errors.ModelError, match="TransformerLens cannot take"):
        llm_tt.load_model(str(checkpoint("gpt_bigcode_multi_head")))


def test_weights_that_are_no_plain_numbers_are_not_left_for_later() -> None:
    attention = torch.nn.Linear(4, 12)
    assert booting._can_wait(attention)
    assert not booting._can_wait(torch.nn.Linear(4, 12, device="meta")), "still on disk"
    attention.weight = torch.nn.Parameter(torch.zeros(12, 4, dtype=torch.int8), requires_grad=False)
    assert not booting._can_wait(attention), "quantised"
    assert not booting._can_wait(torch.nn.Identity())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neo", "deepseek_v3"])
@pytest.mark.parametrize("shelved_from", [2**18, 2**12])
def test_a_short_prompt_tells_the_same_of_memory_as_the_one_it_stands_for(
    name: str, shelved_from: int, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_tt.models.recording._SHELVED_BYTES", shelved_from)
    llm: Any = llm_tt.load_model(str(checkpoint(name)))
    short = llm._measured_running()
    assert short == llm.info.running
    monkeypatch.setattr(bridge, "_TELLING_LENGTHS", (37,))
    assert llm._measured_running() == short
