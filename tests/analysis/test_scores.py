"""Many texts at a time give what each gives by itself, on families with absolute and rotary positions, soft caps, parallel blocks, windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
import torch

from llm_tt import TransparentLlm
from llm_tt.models import scores
from llm_tt.models.scores import Ask, NextTokens
from llm_tt.models.transparent_llm import TransparentLlm as Interface

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2"]
OTHERS = ["mistral", "mixtral", "bloom"]
LENGTHS = (3, 9, 12, 5)


def asks() -> list[Ask]:
    texts = [tuple(families.token_ids(n)) for n in LENGTHS]
    return [Ask(ids, tuple(NextTokens(p, (7, ids[-1], 301)) for p in {len(ids) - 1, len(ids) // 2})) for ids in texts]


def by_plain_transformers(plain: Any, ask: Ask) -> list[tuple[list[float], int]]:
    """One text, no padding, all logits, in the double precision of the plain run."""
    with torch.no_grad():
        logits = plain(torch.tensor([ask.token_ids])).logits[0]
    rows = torch.log_softmax(logits.double(), -1)
    return [(rows[asked.position, list(asked.token_ids)].tolist(), int(rows[asked.position].argmax())) for asked in ask.asked]


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("name", FAMILIES + OTHERS)
def test_a_batch_gives_what_plain_transformers_gives_for_each_text(
    name: str, padding: Any, model: Callable[..., TransparentLlm], plain: Callable[[str], Any]
) -> None:
    found = model(name).score(asks(), padding)
    for ask, answers in zip(asks(), found, strict=True):
        for (logs, best), answer in zip(by_plain_transformers(plain(name), ask), answers, strict=True):
            np.testing.assert_allclose(answer.log_probabilities, logs, atol=2e-5)
            assert answer.best == best


@pytest.mark.parametrize("name", FAMILIES)
def test_left_padding_without_its_mask_would_give_other_numbers(name: str, model: Callable[..., TransparentLlm]) -> None:
    llm: Any = model(name)
    right = [answers[0].log_probabilities for answers in llm.score(asks())]
    width = max(LENGTHS)
    ids = torch.tensor([[0] * (width - len(ask.token_ids)) + list(ask.token_ids) for ask in asks()])
    with torch.no_grad():
        logits = llm._bridge.original_model(ids, use_cache=False).logits
    shift = [width - len(ask.token_ids) for ask in asks()]
    wrong = [
        torch.log_softmax(logits[row, ask.asked[0].position + shift[row]].double(), -1)[list(ask.asked[0].token_ids)].tolist()
        for row, ask in enumerate(asks())
    ]
    assert np.abs(np.array(right[0]) - np.array(wrong[0])).max() > 1e-2


@pytest.mark.parametrize("eager", [False, True])
def test_eager_attention_gives_the_same(eager: bool, model: Callable[..., TransparentLlm], plain: Callable[[str], Any]) -> None:
    found = model("llama", eager=eager).score(asks(), "left")
    for ask, answers in zip(asks(), found, strict=True):
        for (logs, _), answer in zip(by_plain_transformers(plain("llama"), ask), answers, strict=True):
            np.testing.assert_allclose(answer.log_probabilities, logs, atol=2e-5)


def test_a_model_that_reads_one_text_at_a_time_gives_the_same(model: Callable[..., TransparentLlm]) -> None:
    llm = model("gpt2")
    for one, other in zip(Interface.score(llm, asks()), llm.score(asks()), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=2e-5)
            assert a.best == b.best


def test_nothing_is_recorded_and_a_trace_stays_what_it_was(model: Callable[..., TransparentLlm]) -> None:
    llm: Any = model("gpt2")
    trace = llm.trace(families.token_ids(6))
    before = trace.logits(-1)
    llm.score(asks())
    torch.testing.assert_close(trace.logits(-1), before, rtol=0, atol=0)
    torch.testing.assert_close(llm.trace(families.token_ids(6)).logits(-1), before)
    assert all(getattr(block.attn, "_pattern", None) is None for block in llm._bridge.blocks)
    assert not any(parameter.grad is not None for parameter in llm._bridge.original_model.parameters())


def test_logits_of_a_pass_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch, model: Callable[..., TransparentLlm]) -> None:
    llm: Any = model("llama")
    whole = llm.score(asks())
    monkeypatch.setattr(scores, "LOGITS_BYTES", 4 * llm.info.d_vocab * 3)
    shapes: list[tuple[int, ...]] = []
    original = llm._bridge.original_model.forward

    def watched(*args: Any, **options: Any) -> Any:
        output = original(*args, **options)
        shapes.append(tuple(output.logits.shape))
        return output

    monkeypatch.setattr(llm._bridge.original_model, "forward", watched)
    ids = tuple(families.token_ids(12))
    everything = Ask(ids, tuple(NextTokens(p, (5,)) for p in range(12)))
    pieces = llm.score([everything])[0]
    again = llm.score(asks())
    assert len(shapes) > 4
    assert max(rows * kept for rows, kept, _ in shapes) <= 3
    plain_logs = torch.log_softmax(original(torch.tensor([ids])).logits[0].double(), -1)[:, 5]
    np.testing.assert_allclose([answer.log_probabilities[0] for answer in pieces], plain_logs.detach(), atol=2e-5)
    for one, other in zip(whole, again, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=2e-5)


def test_texts_that_change_all_keys_are_never_in_a_pass_with_shorter_ones() -> None:
    some = [Ask(tuple(range(n)), (NextTokens(n - 1, (0,)),)) for n in (4, 9, 8, 5, 12)]
    made = [[len(ask.token_ids) for _, ask in batch] for batch in scores.batches(some, 100, 2, until=8)]
    assert made == [[4, 5, 8], [9, 12]]
    numbers = [number for batch in scores.batches(some, 100, 2, until=8) for number, _ in batch]
    assert sorted(numbers) == [0, 1, 2, 3, 4]


def test_a_fingerprint_tells_weights_apart(model: Callable[..., TransparentLlm]) -> None:
    import llm_tt

    base, tuned = llm_tt.load_model("demo"), llm_tt.load_model("demo-tuned")
    assert base.fingerprint() == llm_tt.load_model("demo").fingerprint() != tuned.fingerprint()
    assert tuned.fingerprint() == llm_tt.load_model("demo-tuned").fingerprint()
    before = base.fingerprint()
    base.trace("the").logits(-1)
    assert base.fingerprint() == before
