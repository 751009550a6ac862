"""Many prompts at a time continue as each does alone: on absolute and rotary positions, ALiBi, windows, soft caps, experts, and the demo model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import pytest
import torch

import llm_tt
from llm_tt.errors import OutOfMemoryError, PromptError, RequestError
from llm_tt.models.generation import continuations, generate_batch
from llm_tt.models.reading import CachedBatch, SeparateReadings
from llm_tt.progress import Cancelled

Model = Callable[..., llm_tt.TransparentLlm]

N_NEW = 16
LENGTHS = (3, 11, 7, 3, 12)
#: Read at once, left-padded.
TOGETHER = ["gpt2", "opt", "llama", "gpt_neox", "gpt_neo", "gptj", "bloom", "mpt", "mistral", "gemma2", "mixtral", "phi3", "granite"]


def prompts() -> list[list[int]]:
    return [families.token_ids(n, seed) for seed, n in enumerate(LENGTHS)]


def alone(llm: llm_tt.TransparentLlm, ids: Any, n: int = N_NEW, **options: Any) -> list[Any]:
    return list(llm_tt.generate(llm, ids, n, **options))


@pytest.mark.parametrize("name", TOGETHER)
def test_a_batch_continues_every_prompt_as_it_continues_alone(name: str, model: Model) -> None:
    llm = model(name)
    assert isinstance(llm.batch_reading(40), CachedBatch)
    found = generate_batch(llm, prompts(), N_NEW)
    for ids, tokens in zip(prompts(), found, strict=True):
        expected = alone(llm, ids)
        assert [token.token_id for token in tokens] == [token.token_id for token in expected]
        assert [(t.text, t.data, t.rank, t.stop) for t in tokens] == [(t.text, t.data, t.rank, t.stop) for t in expected]
        assert [t.probability for t in tokens] == pytest.approx([t.probability for t in expected], abs=1e-5)
    assert continuations(llm, prompts(), N_NEW) == [[token.token_id for token in tokens] for tokens in found]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "gemma2"])
def test_plain_transformers_generates_the_same(name: str, model: Model, plain: Callable[[str], Any]) -> None:
    for ids, found in zip(prompts(), continuations(model(name), prompts(), N_NEW), strict=True):
        text = list(ids)
        for token_id in found:
            with torch.no_grad():
                assert token_id == int(plain(name)(torch.tensor([text])).logits[0, -1].argmax())
            text.append(token_id)


def test_the_demo_model_continues_conversations_together() -> None:
    llm = llm_tt.load_model("demo")
    texts: list[Any] = [
        "When Mary and John went to the store, John gave a drink to",
        [{"role": "user", "content": "What is the capital of Spain?"}],
        "The capital of France is",
    ]
    assert isinstance(llm.batch_reading(60), CachedBatch)
    found = generate_batch(llm, texts, 12)
    for text, tokens in zip(texts, found, strict=True):
        assert [(t.token_id, t.stop) for t in tokens] == [(t.token_id, t.stop) for t in alone(llm, text, 12)]
    assert len({len(tokens) for tokens in found}) > 1, "some end before others, which go on"
    assert "end" in {tokens[-1].stop for tokens in found}


def test_draws_are_those_of_each_prompt_alone(model: Model) -> None:
    llm, options = model("llama"), {"temperature": 1.5, "top_k": 40, "seed": 4}
    found = generate_batch(llm, prompts(), N_NEW, **options)
    assert [[t.token_id for t in tokens] for tokens in found] == [[t.token_id for t in alone(llm, ids, **options)] for ids in prompts()]


def test_padding_without_its_mask_would_give_other_texts(model: Model) -> None:
    llm: Any = model("gpt2")
    wide, n = max(LENGTHS), 4
    ids = torch.tensor([[0] * (wide - len(p)) + p for p in prompts()])
    for _ in range(n):
        with torch.no_grad():
            ids = torch.cat([ids, llm._bridge.original_model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert ids[:, wide:].tolist() != continuations(llm, prompts(), n)


def test_one_forward_pass_a_token_and_none_for_texts_that_have_ended(model: Model) -> None:
    llm: Any = model("llama")
    free = continuations(llm, prompts(), 8)
    end = free[1][2]
    lengths = [next((k + 1 for k, t in enumerate(tokens) if t == end), 8) for tokens in free]
    assert len(set(lengths)) > 1
    shapes: list[tuple[int, ...]] = []
    hook = llm._bridge.original_model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    ends, llm._end_ids = llm._end_ids, frozenset({end})
    try:
        found = continuations(llm, prompts(), 8)
    finally:
        hook.remove()
        llm._end_ids = ends
    assert found == [tokens[:n] for tokens, n in zip(free, lengths, strict=True)]
    assert shapes[0] == (5, max(LENGTHS))
    assert shapes[1:] == [(sum(n > k for n in lengths), 1) for k in range(1, max(lengths))]


def test_a_model_whose_batches_are_wrong_reads_one_text_after_the_other(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm: Any = llm_tt.load_model(str(checkpoint("gpt2")))
    expected = continuations(llm, prompts(), 6)
    inner, forward = llm._bridge.original_model, llm._bridge.original_model.forward

    def heedless(ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        return forward(ids, **options)

    llm._batches = None
    monkeypatch.setattr(inner, "forward", heedless)
    assert isinstance(llm.batch_reading(20), SeparateReadings)
    assert continuations(llm, prompts(), 6) == expected


def test_texts_that_change_all_keys_are_read_alone(model: Model) -> None:
    llm = model("phi3_long_positions")
    found = continuations(llm, prompts(), N_NEW)
    assert found == [[t.token_id for t in alone(llm, ids)] for ids in prompts()]


def test_it_stops_when_nobody_wants_it_any_more(model: Model) -> None:
    llm: Any = model("gpt2")
    llm.batch_reading(30)  # proves once that batches are exact
    seen: list[str] = []

    def stop(stage: str, fraction: float) -> None:
        seen.append(stage)
        if fraction >= 0.25:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate_batch(llm, prompts(), 8, progress=stop)
    assert seen == ["Token 1 of 8 for 5 texts", "Token 2 of 8 for 5 texts"]


def test_every_prompt_is_checked_before_any_is_read(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model("gpt2")
    monkeypatch.setattr(llm, "batch_reading", lambda longest: pytest.fail("read"))
    with pytest.raises(PromptError, match=f"reads at most {llm.info.n_ctx}"):
        generate_batch(llm, [[5], families.token_ids(llm.info.n_ctx)], 4)
    with pytest.raises(RequestError, match="0 tokens were asked for"):
        generate_batch(llm, [[5]], 0)
    assert generate_batch(llm, [], 4) == []


def test_memory_that_runs_out_is_a_sentence(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    llm: Any = model("gpt2")
    reading = llm.batch_reading(30)

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(llm._bridge.original_model, "forward", full)
    with pytest.raises(OutOfMemoryError, match=r"cpu ran out of memory while reading 2 texts of up to 3 tokens. Shorten the texts."):
        reading.read([[5], [5, 6, 7]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_in_half_precision_batches_are_read_together_too(name: str, model: Model) -> None:
    llm = model(name, dtype="bfloat16")
    assert isinstance(llm.batch_reading(40), CachedBatch)
    logits = llm.batch_reading(40).read(prompts())
    for row, ids in zip(logits, prompts(), strict=True):
        alone = llm.last_logits(ids)
        assert float((row - alone).norm() / alone.norm()) < 0.02
