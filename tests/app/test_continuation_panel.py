"""The continuation in the page: generated, watched, a target of it chosen; what follows is marked; what drops it and what keeps it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_explore import DEMO, Start, answered, errors, frame
from test_explore import start as start_app  # noqa: F401

import llm_tt
from llm_tt.models.continuation import Continuation
from llm_tt.text import visible

PROMPT = "When Mary and John went to the"


@pytest.fixture
def start(start_app: Start) -> Start:  # noqa: F811
    return lambda config, prompt=PROMPT: start_app(config, prompt)


@pytest.fixture(scope="module")
def llm() -> llm_tt.TransparentLlm:
    return llm_tt.load_model("demo")


def expected(llm: llm_tt.TransparentLlm, n_tokens: int, **options: float) -> Continuation:
    tokens = list(llm_tt.generate(llm, PROMPT, n_tokens, **options))  # type: ignore[arg-type]
    return Continuation.of(llm.prompt(PROMPT).n_tokens, tokens)


def generate(at: AppTest, n_tokens: int) -> AppTest:
    at.number_input(key="n_continued").set_value(n_tokens)
    at.button(key="generate").click()
    return came(at)


def came(at: AppTest) -> AppTest:
    """Run until the continuation has come, as the page's polling does."""
    for _ in range(200):
        answered(at)
        if at.session_state["continuing"].conversation.phase != "working":
            return answered(at)
        time.sleep(0.05)
    raise AssertionError("the continuation never came")


def pills(at: AppTest):
    return at.button_group(key="continued_tokens")


def predictions(at: AppTest):
    return next(table.value for table in at.dataframe if "follows" in table.value.columns)


def follows(at: AppTest) -> list[str]:
    return [markdown.value for markdown in at.markdown if markdown.value.startswith("In the text follows")]


def test_generated_tokens_join_the_graph_and_the_target_stays(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at = generate(start(DEMO), 5)
    made = expected(llm, 5)
    header, _ = frame(at)
    assert header["tokens"] == [*llm.prompt(PROMPT).token_texts, *made.token_texts]
    assert header["target"] == made.start - 1
    assert pills(at).options[0] == f"{visible(made.token_texts[0])} :small[{made.probabilities[0]:.3f}]"
    assert len(pills(at).options) == 5
    assert pills(at).value == 0


def test_a_chosen_token_makes_the_one_before_it_the_target(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at = generate(start(DEMO), 5)
    made = expected(llm, 5)
    trace = llm.trace(PROMPT, continuation=made.token_ids)
    pills(at).set_value(3)
    header, _ = frame(answered(at))
    assert header["target"] == made.start + 2
    row = trace.logits(made.start + 2)
    probability, rank = float(row.softmax(-1)[made.token_ids[3]]), 1 + int((row > row[made.token_ids[3]]).sum())
    (told,) = follows(at)
    assert f"`{visible(made.token_texts[3])}`" in told
    assert told.endswith(f"rank **{rank}**, probability **{probability:.3f}**")
    table = predictions(at)
    assert table["token"][table["follows"] != ""].tolist() == [visible(made.token_texts[3])]
    # Another threshold keeps all of it.
    at.slider(key="threshold").set_value(0.06)
    header, _ = frame(answered(at))
    assert (header["target"], header["threshold"], len(header["tokens"])) == (made.start + 2, 0.06, made.start + 5)


def test_a_token_of_the_prompt_is_marked_though_it_is_unlikely_and_can_be_explained(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at = start(DEMO)
    assert follows(at) == []
    trace = llm.trace(PROMPT)
    ranks = [int((trace.logits(place) > trace.logits(place)[trace.token_ids[place + 1]]).sum()) + 1 for place in range(trace.n_tokens - 1)]
    target = next(place for place in range(1, trace.n_tokens - 1) if ranks[place] > 10)
    at.session_state["target"] = target
    answered(at)
    assert f"rank **{ranks[target]:,}**" in follows(at)[0]
    assert not predictions(at)["follows"].any()
    text = visible(trace.token_texts[target + 1])
    box = at.selectbox(key="why_token")
    assert box.options[-1] == text
    box.set_value(text)
    header, _ = frame(answered(at))
    assert header["effect_of"] == llm_tt.direct_effects(trace, target, token=trace.token_ids[target + 1]).of


def test_sampled_with_the_numbers_of_the_boxes(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at = start(DEMO)
    assert at.number_input(key="temperature").disabled
    at.button_group(key="continue_by").set_value("Sampled")
    answered(at)
    for key, value in {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "seed": 11}.items():
        assert not at.number_input(key=key).disabled
        at.number_input(key=key).set_value(value)
    at = generate(at, 6)
    made = expected(llm, 6, temperature=1.5, top_p=0.9, top_k=40, seed=11)
    assert frame(at)[0]["tokens"][made.start :] == list(made.token_texts)
    assert made.token_ids != expected(llm, 6).token_ids[: len(made)]


def test_another_prompt_drops_it_and_removing_it_goes_back(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at = generate(start(DEMO), 4)
    n_prompt = llm.prompt(PROMPT).n_tokens
    pills(at).set_value(2)
    answered(at)
    at.button(key="remove_continuation").click()
    header, _ = frame(answered(at))
    assert (len(header["tokens"]), header["target"]) == (n_prompt, n_prompt - 1)
    at = generate(at, 4)
    assert len(frame(at)[0]["tokens"]) == n_prompt + 4
    at.text_area(key="prompt").set_value("The capital of France is")
    header, _ = frame(answered(at))
    assert len(header["tokens"]) == llm.prompt("The capital of France is").n_tokens == header["target"] + 1
    assert not [group for group in at.button_group if group.key == "continued_tokens"]
    assert at.number_input(key="n_continued").value == 4


def test_more_continues_the_continuation_and_keeps_what_is_explained(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at = generate(start(DEMO), 4)
    pills(at).set_value(2)
    answered(at)
    at.number_input(key="n_continued").set_value(3)
    answered(at)
    at.button(key="continue_more").click()
    answered(at)
    whole = expected(llm, 7)
    header, _ = frame(at)
    assert header["tokens"] == [*llm.prompt(PROMPT).token_texts, *whole.token_texts]
    assert header["target"] == whole.start + 1
    assert pills(at).value == 2
    assert pills(at).options == [
        f"{visible(text)} :small[{probability:.3f}]" for text, probability in zip(whole.token_texts, whole.probabilities, strict=True)
    ]
    kept = at.session_state["continuing"].conversation.answer
    assert (kept.start, kept.token_ids, kept.ranks, kept.text) == (whole.start, whole.token_ids, whole.ranks, whole.text)
    assert any(caption.value == "7 tokens, as many as were asked for." for caption in at.caption)
    # Generating anew begins after the prompt.
    at = generate(at, 2)
    assert len(pills(at).options) == 2


def test_more_than_the_context_leaves_the_continuation_as_it_is(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at = generate(start(DEMO), 4)
    at.number_input(key="n_continued").set_value(1000)
    answered(at)
    at.button(key="continue_more").click()
    (said,) = errors(answered(at))
    assert "with 1000 more" in said
    assert len(pills(at).options) == 4
    assert len(frame(at)[0]["tokens"]) == llm.prompt(PROMPT).n_tokens + 4


def test_a_shorter_one_takes_a_target_that_it_lacks_back_to_the_prompt(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at = generate(start(DEMO), 8)
    pills(at).set_value(6)
    answered(at)
    at = generate(at, 3)
    assert errors(at) == []
    assert frame(at)[0]["target"] == llm.prompt(PROMPT).n_tokens - 1


def test_more_than_the_context_is_a_sentence_and_the_graph_stays(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at = generate(start(DEMO), 1000)
    (said,) = errors(at)
    n_prompt = llm.prompt(PROMPT).n_tokens
    assert f"The prompt has {n_prompt} tokens; with 1000 more it has {n_prompt + 1000}" in said
    assert len(frame(at)[0]["tokens"]) == n_prompt


def test_no_prompt_no_button(start: Start) -> None:
    assert start(DEMO, prompt=" ").button(key="generate").disabled


def test_the_text_is_seen_as_it_comes_and_cancelling_keeps_it(
    start: Start, llm: llm_tt.TransparentLlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_tt.models.reading import CachedReading

    at, read = generate(start(DEMO), 1), CachedReading.read
    whole = expected(llm, 8)

    def slow(self: CachedReading, token_ids: Sequence[int]) -> Any:
        time.sleep(0.25)
        return read(self, token_ids)

    monkeypatch.setattr(CachedReading, "read", slow)
    at.number_input(key="n_continued").set_value(8)
    at.button(key="generate").click()
    at.run()
    seen = [code.value for code in at.sidebar.code]
    assert at.session_state["continuing"].conversation.phase == "working"
    assert seen
    assert whole.text.startswith(seen[0])
    assert 0 < len(seen[0]) < len(whole.text)
    at.button(key="cancel_continuation").click()
    came(at)
    n_kept = len(pills(at).options)
    assert 0 < n_kept < 8
    assert frame(at)[0]["tokens"][whole.start :] == list(whole.token_texts[:n_kept])
    assert any(caption.value.endswith(", then cancelled.") for caption in at.caption)


def test_what_is_selected_stays_while_it_is_there(start: Start, llm: llm_tt.TransparentLlm) -> None:
    at, n_prompt = start(DEMO), llm.prompt(PROMPT).n_tokens
    at.session_state["selection"] = {"type": "node", "node": f"A2_{n_prompt - 1}"}
    at = generate(at, 4)
    assert frame(at)[0]["selection"] == {"type": "node", "node": f"A2_{n_prompt - 1}"}
    at.session_state["selection"] = {"type": "node", "node": f"A2_{n_prompt + 1}"}
    at = answered(at)
    at.button(key="remove_continuation").click()
    assert frame(answered(at))[0]["selection"] is None
