"""The residual streams that a trace does not keep are, bit by bit, those that the model computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import CORE, token_ids
from torch import Tensor

from llm_tt.models import memory, recording
from llm_tt.models.transparent_llm import SummedStream

#: Post-norms, scaled residuals, parallel blocks, experts, FFNs that add the stream themselves
FAMILIES = [*CORE, "bloom", "gptj", "falcon", "gemma2", "granite", "cohere", "phi", "deepseek_v3"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streams_that_are_added_up_are_the_models_own(name: str, dtype: str, model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, ids = model(name, dtype), token_ids(33)
    added_up = llm.trace(ids)
    monkeypatch.setattr(recording, "_is_sum", lambda *_: False)
    kept = llm.trace(ids)
    assert all(isinstance(block.post_stream, Tensor) for block in kept.blocks)
    for layer, (block, whole) in enumerate(zip(added_up.blocks, kept.blocks, strict=True)):
        assert torch.equal(added_up.resid_pre(layer), kept.resid_pre(layer))
        assert torch.equal(block.resid_mid, whole.resid_mid)
        assert torch.equal(block.resid_post, whole.resid_post)
        assert torch.equal(block.mid([3, 30, -1]), whole.resid_mid[[3, 30, -1]])
        assert torch.equal(block.post([3, 30, -1]), whole.resid_post[[3, 30, -1]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gptj", "mixtral"])
def test_blocks_keep_no_stream_that_can_be_added_up(name: str, model: Callable) -> None:
    for block in model(name).trace(token_ids(20)).blocks[:3]:
        assert isinstance(block.mid_stream, SummedStream)
        assert isinstance(block.post_stream, SummedStream)


def test_every_fourth_layer_keeps_its_stream_so_that_sums_stay_short(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_KEPT_EVERY", 1)
    trace = model("gpt2").trace(token_ids(20))
    assert all(isinstance(block.post_stream, Tensor) for block in trace.blocks)
    assert all(isinstance(block.mid_stream, SummedStream) and len(block.mid_stream.added) == 1 for block in trace.blocks)


def test_a_stream_that_is_no_sum_is_kept() -> None:
    start, part = torch.randn(700, 3), torch.randn(700, 3)
    whole = start + part
    assert recording._is_sum(whole, start, (part,))
    whole[600, 1] = torch.nextafter(whole[600, 1], torch.tensor(9.0))
    assert not recording._is_sum(whole, start, (part,))
    assert not recording._is_sum(whole.bfloat16(), start, (part,))


def test_groups_are_added_to_each_other_first() -> None:
    start, first, second = (torch.randn(200, 8) for _ in range(3))
    assert recording._is_sum(start + (first + second), start, (first, second))
    assert not recording._is_sum(start + (first + second), start, (first,), (second,))
    assert recording._is_sum(start + first + second, start, (first,), (second,))
    stream = SummedStream(start, ()).plus(first, second).plus(first)
    assert torch.equal(stream.rows([4, 7]), ((start + (first + second)) + first)[[4, 7]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "gptj", "bloom", "mixtral"])
def test_an_ffn_read_in_pieces_gives_what_it_gives_at_once(name: str, model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, ids = model(name), token_ids(33)
    at_once = llm.trace(ids)
    lengths: list[int] = []
    watched = [layer.ffn.module for layer in llm._layers if getattr(layer.ffn, "module", None) is not None]
    assert bool(watched) == (name not in ("bloom", "mixtral"))
    outs = [layer.ffn._out for layer in llm._layers if getattr(layer.ffn, "module", None) is not None]
    handles = [out.register_forward_hook(lambda _, args, output: lengths.append(args[0].shape[1])) for out in outs]
    monkeypatch.setattr(memory, "_FFN_ROWS", 10)
    monkeypatch.setattr(memory, "_FFN_NUMBERS", 1)
    in_pieces = llm.trace(ids)
    for handle in handles:
        handle.remove()
    assert lengths == [10, 10, 10, 3] * len(watched)
    for one, other in zip(at_once.blocks, in_pieces.blocks, strict=True):
        assert torch.allclose(one.ffn_out, other.ffn_out, rtol=1e-5, atol=1e-6)
        assert torch.allclose(one.resid_post, other.resid_post, rtol=1e-5, atol=1e-6)
    assert not any("forward" in vars(module) for module in watched)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("eager", [False, True], ids=["fused", "eager"])
def test_what_lies_in_one_piece_for_all_layers_is_what_each_layer_kept(
    name: str, eager: bool, model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, ids, every = model(name, eager=eager), token_ids(60), range(60)
    scattered = llm.trace(ids)
    monkeypatch.setattr(recording, "_SHELVED_BYTES", 0)
    shelved = llm.trace(ids)
    first = shelved.blocks[0].attn_out.untyped_storage().data_ptr()
    assert {block.attn_out.untyped_storage().data_ptr() for block in shelved.blocks} == {first}
    assert shelved.nbytes == scattered.nbytes
    for one, other in zip(scattered.blocks, shelved.blocks, strict=True):
        for field in ("attn_out", "ffn_out", "values", "resid_mid", "resid_post"):
            assert torch.equal(getattr(one, field), getattr(other, field))
        assert torch.equal(one.pattern.rows(every), other.pattern.rows(every))


def test_a_layer_of_another_shape_is_kept_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_SHELVED_BYTES", 0)
    shelf, first, wider = recording.Shelf(2), torch.randn(3, 4), torch.randn(3, 5)
    kept = [shelf.put("keys", 0, first), shelf.put("keys", 1, wider)]
    assert torch.equal(kept[0], first)
    assert torch.equal(kept[1], wider)
    assert kept[1].data_ptr() != wider.data_ptr()
    assert shelf.put("keys", 0, kept[0]).data_ptr() == kept[0].data_ptr()
