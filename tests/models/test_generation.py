"""What a model continues: token for token what transformers generates, what is drawn distributed as its softmax says, and a trace of it exact."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import llm_tt
from llm_tt.errors import PromptError, RequestError
from llm_tt.lens.vocabulary import following_token
from llm_tt.models.continuation import Continuation, Sampling
from llm_tt.models.generation import sampling_probabilities
from llm_tt.models.reading import WholeReading
from llm_tt.text import Prompt

Model = Callable[..., llm_tt.TransparentLlm]

N_NEW = 24
#: Fused and eager attention, ALiBi, parallel blocks, windows, norms after the blocks, soft caps, experts, latent attention, hybrids.
GENERATED = ["gpt2", "llama", "mistral", "gemma2", "gpt_neox", "gpt_neo", "bloom", "falcon", "gptj", "mixtral", "deepseek_v3", "granite"]
GENERATED += ["phi3_long_positions"]


def generated(llm: llm_tt.TransparentLlm, prompt: Any, n_tokens: int = N_NEW, **options: Any) -> list[int]:
    return [token.token_id for token in llm_tt.generate(llm, prompt, n_tokens, **options)]


def by_transformers(folder: Path, token_ids: list[int], dtype: torch.dtype = torch.float32, **options: Any) -> list[int]:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        whole = plain.generate(torch.tensor([token_ids]), do_sample=False, max_new_tokens=N_NEW, pad_token_id=0, **options)
    return whole[0, len(token_ids) :].tolist()


# --- greedy


@pytest.mark.parametrize("name", GENERATED)
def test_greedy_is_what_transformers_generates(name: str, model: Model, checkpoint: Callable[[str], Path]) -> None:
    llm, kinds = model(name), set()
    for seed in range(4):
        ids = families.token_ids(7 + seed, seed)
        expected = by_transformers(checkpoint(name), ids)
        kinds |= set(expected)
        assert generated(llm, ids) == expected
    assert len(kinds) > 2, "texts that only repeat themselves prove little"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral"])
def test_greedy_in_bfloat16_is_what_transformers_generates(name: str, model: Model, checkpoint: Callable[[str], Path]) -> None:
    ids = families.token_ids(9)
    assert generated(model(name, dtype="bfloat16"), ids) == by_transformers(checkpoint(name), ids, torch.bfloat16)


def test_the_demo_model_continues_a_text_and_a_conversation_as_transformers_does() -> None:
    from llm_tt.demo import MODEL_DIR

    llm = llm_tt.load_model("demo")
    for prompt in (
        "When Mary and John went to the store, John gave a drink to",
        [{"role": "user", "content": "What is the capital of Spain?"}],
    ):
        ids = llm.token_ids(prompt)
        expected = by_transformers(Path(MODEL_DIR), ids)
        assert generated(llm, prompt) == expected
        assert generated(llm, ids) == expected


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "mixtral"])
def test_a_token_costs_one_token_of_forward_pass(name: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, lengths = model(name), []
    llm.reading()  # proves once that the cache is exact
    hook = llm._bridge.original_model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))  # type: ignore[attr-defined]
    try:
        generated(llm, families.token_ids(11), 6)
    finally:
        hook.remove()
    assert lengths == [11, 1, 1, 1, 1, 1]


def test_a_model_whose_cache_is_wrong_generates_by_whole_forward_passes(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = llm_tt.load_model(str(checkpoint("gpt2")))
    inner = llm._bridge.original_model  # type: ignore[attr-defined]
    forward = inner.forward

    def forgetful(ids: Any, past_key_values: Any = None, **options: Any) -> Any:
        return forward(ids, **options)

    ids = families.token_ids(9)
    expected = generated(llm, ids)
    llm._keeps_cache = None  # type: ignore[attr-defined]
    monkeypatch.setattr(inner, "forward", forgetful)
    assert isinstance(llm.reading(), WholeReading)
    assert generated(llm, ids) == expected


def test_two_threads_and_a_trace_between_tokens_do_not_disturb_each_other(model: Model) -> None:
    llm = model("gpt_neo")
    prompts = [families.token_ids(8, seed) for seed in range(3)]
    expected = [generated(llm, ids) for ids in prompts]
    got: dict[int, list[int]] = {}

    def work(index: int) -> None:
        got[index] = generated(llm, prompts[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    tokens = []
    for token in llm_tt.generate(llm, prompts[0], N_NEW):
        llm.trace(prompts[1])
        tokens.append(token.token_id)
    for thread in threads:
        thread.join()
    assert [got[index] for index in range(3)] == expected
    assert tokens == expected[0]


# --- what is said of each token


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mistral", "gpt_neo", "bloom", "mixtral", "phi3_long_positions"])
def test_probability_and_rank_are_those_of_the_plain_model(name: str, model: Model, plain: Callable[[str], Any]) -> None:
    ids = families.token_ids(6)
    tokens = list(llm_tt.generate(model(name), ids, N_NEW, temperature=2.0, seed=5))
    whole = ids + [token.token_id for token in tokens]
    assert any(token.rank > 1 for token in tokens)
    for place, token in enumerate(tokens):
        with torch.inference_mode():
            # Not all at once: some models rotate the positions of a long text otherwise.
            row = plain(name)(torch.tensor([whole[: len(ids) + place]])).logits[0, -1].double()
        assert token.probability == pytest.approx(float(row.softmax(-1)[token.token_id]), abs=1e-5)
        assert token.rank == 1 + int((row > row[token.token_id]).sum())
    assert [token.text for token in tokens] == model(name).texts(whole[len(ids) :])


def test_it_ends_with_an_end_of_sequence_token_and_says_so(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    llm = llm_tt.load_model(str(checkpoint("llama")))
    ids = families.token_ids(9)
    free = list(llm_tt.generate(llm, ids, N_NEW))
    assert [token.stop for token in free] == [None] * (N_NEW - 1) + ["length"]
    end = free[5].token_id
    n_until = [token.token_id for token in free].index(end) + 1
    # The generation settings of chat models name several.
    folder = tmp_path / "chat"
    shutil.copytree(checkpoint("llama"), folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [2, end]}))
    tokens = list(llm_tt.generate(llm_tt.load_model(str(folder)), ids, N_NEW))
    assert [token.token_id for token in tokens] == by_transformers(folder, ids)
    assert len(tokens) == n_until
    assert [token.stop for token in tokens] == [None] * (n_until - 1) + ["end"]


def test_the_tokenizers_end_counts_too(model: Model) -> None:
    llm = model("llama")
    assert families.metaspace_tokenizer().eos_token_id in llm.end_ids


# --- sampling


def cut(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """By hand: exp, sort, cut, divide."""
    weights = np.exp((logits - logits.max()) / temperature)
    order = sorted(range(len(logits)), key=lambda token: -weights[token])[:top_k]
    total, kept, reached = sum(weights[order]), [], 0.0
    for token in order:
        if top_p is not None and reached >= top_p:
            break
        kept.append(token)
        reached += weights[token] / total
    result = np.zeros(len(logits))
    result[kept] = weights[kept] / sum(weights[kept])
    return result


SETTINGS = [(1.0, None, None), (0.7, None, None), (1.6, 5, None), (1.0, None, 0.6), (1.3, 12, 0.8), (0.5, 1, None), (1.0, None, 1e-6)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_what_is_drawn_from_is_the_softmax_cut_down(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 2
    found = sampling_probabilities(logits, Sampling(temperature, top_k, top_p)).numpy()
    np.testing.assert_allclose(found, cut(logits.double().numpy(), temperature, top_k, top_p), atol=1e-12)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    theirs = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None]).softmax(-1)[0].numpy()  # type: ignore[arg-type]
    np.testing.assert_allclose(found, theirs, atol=1e-6)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS[:5])
def test_draws_are_distributed_as_the_plain_models_softmax(
    temperature: float, top_k: int | None, top_p: float | None, model: Model, plain: Callable[[str], Any]
) -> None:
    llm, ids = model("gpt_neox"), families.token_ids(5)
    with torch.inference_mode():
        logits = plain("gpt_neox")(torch.tensor([ids])).logits[0, -1].double().numpy()
    expected = cut(logits, temperature, top_k, top_p)
    n_draws = 1500
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    counts = Counter(generated(llm, ids, 1, seed=seed, **options)[0] for seed in range(n_draws))
    assert all(expected[token] > 0 for token in counts)
    found = np.array([counts[token] for token in range(len(expected))]) / n_draws
    # Half the sum of differences; by chance about sqrt(kinds / (2 pi draws)).
    assert np.abs(found - expected).sum() / 2 < 1.5 * np.sqrt((expected > 0).sum() / (2 * np.pi * n_draws)) + 0.01


def test_a_seed_gives_the_same_text_and_another_seed_another(model: Model) -> None:
    llm, ids = model("llama"), families.token_ids(6)
    texts = [generated(llm, ids, temperature=1.5, seed=seed) for seed in (0, 1, 0, 1)]
    assert texts[0] == texts[2] != texts[1] == texts[3]
    assert generated(llm, ids, temperature=0.0, seed=1, top_k=3) == generated(llm, ids)
    assert generated(llm, ids, temperature=2.0, seed=1, top_k=1) == generated(llm, ids)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": -0.5}, "The temperature is -0.5. Expected 0, which is greedy, or a number above it"),
        ({"temperature": float("nan")}, "The temperature is nan"),
        ({"top_k": 0}, "top_k is 0. Expected 1 or more"),
        ({"top_p": 0.0}, "top_p is 0. Expected a share above 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "The seed is -1"),
        ({"n_tokens": 0}, "0 tokens were asked for. Ask for 1 or more."),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_numbers_out_of_range_are_refused_at_once(options: dict[str, Any], reason: str, model: Model) -> None:
    with pytest.raises(RequestError) as refused:
        llm_tt.generate(model("gpt2"), [5, 6], **options)
    assert str(refused.value).startswith(reason)


# --- the context


def test_the_context_is_respected_with_both_numbers(model: Model) -> None:
    llm = model("gpt2")
    n_ctx = llm.info.n_ctx
    ids = families.token_ids(n_ctx - 3)
    with pytest.raises(PromptError) as refused:
        llm_tt.generate(llm, ids, 4)
    assert str(refused.value) == (
        f"The prompt has {n_ctx - 3} tokens; with 4 more it has {n_ctx + 1}, but {llm.info.name} reads at most {n_ctx}. Ask for at most 3 tokens."
    )
    new = generated(llm, ids, 3)
    assert llm.trace(ids, continuation=new).n_tokens == n_ctx
    with pytest.raises(PromptError, match=f"reads at most {n_ctx}. Shorten the prompt."):
        llm_tt.generate(llm, ids, 1, continuation=new)
    with pytest.raises(PromptError, match="The prompt is empty"):
        llm_tt.generate(llm, " ")


# --- a trace of it


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_trace_uses_the_very_ids_that_were_generated(name: str, model: Model, plain: Callable[[str], Any]) -> None:
    llm = model(name)
    prompt = "Mary the store."
    new = generated(llm, prompt, 10, temperature=3.0, seed=2)
    trace = llm.trace(prompt, continuation=new)
    assert list(trace.token_ids) == llm.token_ids(prompt) + new
    assert trace.prompt.text is not None
    assert llm.token_ids(trace.prompt.text) != list(trace.token_ids), "a text that is tokenised back proves nothing"
    assert trace.prompt.n_generated == 10
    assert trace.prompt.roles[-11:] == (None, *["continuation"] * 10)
    with torch.inference_mode():
        logits = plain(name)(torch.tensor([list(trace.token_ids)])).logits[0]
    for position in (-1, -5):
        assert torch.allclose(trace.logits(position), logits[position].float(), atol=1e-4)
    # In two steps it is the same prompt.
    assert llm.prompt(prompt, new) == llm.prompt(prompt, new[:4]).continued(new[4:], llm.texts(new[4:]), llm.token_data(new[4:])) or (
        "\ufffd" in trace.prompt.text
    )


def test_a_continuation_continued_is_one_generated_at_once(model: Model) -> None:
    llm, ids = model("mistral"), families.token_ids(7)
    whole = generated(llm, ids, 12)
    assert generated(llm, ids, 7, continuation=whole[:5]) == whole[5:]


def test_a_continuation_outside_the_vocabulary_or_the_context_is_refused(model: Model) -> None:
    llm = model("gpt2")
    with pytest.raises(PromptError, match=f"Token id {llm.info.d_vocab} is outside the vocabulary"):
        llm.trace([5], continuation=[llm.info.d_vocab])
    with pytest.raises(PromptError, match=f"reads at most {llm.info.n_ctx}"):
        llm.trace([5], continuation=[5] * llm.info.n_ctx)


def test_parts_of_a_character_share_it(model: Model) -> None:
    llm = model("gpt2")
    euro = llm.token_ids("€")[-3:]
    prompt = llm.prompt("Mary", [*euro, *llm.token_ids("a")[-1:], *euro[:2]])
    assert prompt.text == "Mary€a\ufffd"
    assert prompt.offsets[-6:] == ((4, 5), (4, 5), (4, 5), (5, 6), (6, 7), (6, 7))
    assert prompt.token_texts[-6:] == ("<0xE2>", "<0x82>", "<0xAC>", "a", "<0xE2>", "<0x82>")


def test_special_tokens_stand_in_the_text_by_their_names(model: Model) -> None:
    llm = model("llama")
    (end,) = llm.end_ids
    prompt = llm.prompt("the", [end])
    name = llm.texts([end])[0]
    assert prompt.text == f"the{name}"
    assert prompt.offsets[-1] == (3, 3 + len(name))
    assert prompt.roles[-1] == "continuation"


def test_token_ids_as_a_prompt_have_no_text_with_a_continuation_either(model: Model) -> None:
    prompt = model("gpt2").prompt([5, 6], [7])
    assert (prompt.text, prompt.offsets, prompt.roles) == (None, (None,) * 3, (None, None, "continuation"))


def test_a_conversation_keeps_its_roles() -> None:
    llm = llm_tt.load_model("demo")
    messages = [{"role": "user", "content": "What is the capital of Spain?"}]
    tokens = list(llm_tt.generate(llm, messages, 5))
    alone, prompt = llm.prompt(messages), llm.prompt(messages, [token.token_id for token in tokens])
    assert prompt.roles == (*alone.roles, *["continuation"] * len(tokens))
    assert prompt.text == (alone.text or "") + Continuation.of(alone.n_tokens, tokens).text
    assert isinstance(prompt, Prompt)


# --- what was gathered


def test_tokens_gathered_so_far(model: Model) -> None:
    llm, ids = model("gpt2"), families.token_ids(6)
    tokens = list(llm_tt.generate(llm, ids, 5))
    whole = Continuation.of(6, tokens)
    assert whole.token_ids == tuple(generated(llm, ids, 5))
    assert (whole.stop, whole.start, len(whole)) == ("length", 6, 5)
    assert whole.text == b"".join(token.data for token in tokens).decode(errors="replace")
    some = Continuation.of(6, tokens[:3])
    assert (some.stop, Continuation.of(6, tokens[:3], cancelled=True).stop) == (None, "cancelled")
    assert Continuation.of(6, tokens, cancelled=True).stop == "length"
    assert Continuation.of(6, []).text == ""


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_token_that_follows_is_the_texts_own(name: str, model: Model, plain: Callable[[str], Any]) -> None:
    ids = families.token_ids(9)
    trace = model(name).trace(ids[:6], continuation=ids[6:])
    with torch.inference_mode():
        logits = plain(name)(torch.tensor([ids])).logits[0].double()
    for position in (0, 4, 5, -2):
        found, token_id = following_token(trace, position), ids[position + 1]
        assert found is not None
        assert found.token_ids.tolist() == [token_id]
        assert found.texts == tuple(trace.model.texts([token_id]))
        row = logits[position]
        np.testing.assert_allclose(found.scores, [float(row[token_id])], atol=1e-4)
        np.testing.assert_allclose(found.probabilities, [float(row.softmax(-1)[token_id])], atol=1e-5)  # type: ignore[arg-type]
        assert found.ranks is not None
        assert found.ranks.tolist() == [1 + int((row > row[token_id]).sum())]
    assert following_token(trace, -1) is None
