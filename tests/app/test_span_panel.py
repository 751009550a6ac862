"""The whole answer explained at once in the page: switched on and off, kept and given up, in links and in files."""

from __future__ import annotations

import json
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_continuation_panel import PROMPT, came, expected, generate, llm, pills, start  # noqa: F401
from test_evaluate_page import go
from test_explore import DEMO, Start, answered, errors, frame
from test_explore import start as start_app  # noqa: F401
from test_links_and_files import Open, link_of, open_file, visit  # noqa: F401

import llm_tt
from app.link import View, decode, encode
from app.panels.files import file_stem
from llm_tt.export import files
from llm_tt.lens.vocabulary import predictions


def whole(at: AppTest, value: bool = True) -> AppTest:
    at.toggle(key="whole_answer").set_value(value)
    return answered(at)


def targets(at: AppTest) -> list[int]:
    header = frame(at)[0]
    return header["targets"] or [header["target"]]


def said(at: AppTest) -> str:
    return " ".join(element.value for element in (*at.markdown, *at.caption))


def test_the_whole_answer_is_the_union_and_the_way_back_is_the_token_of_before(start: Start, llm: llm_tt.TransparentLlm) -> None:  # noqa: F811
    at = generate(start(DEMO), 5)
    made = expected(llm, 5)
    pills(at).set_value(2)
    answered(at)
    assert not at.toggle(key="whole_answer").value
    assert "all at once" not in said(at)
    whole(at)
    span = range(made.start - 1, made.start + 4)
    graph = llm_tt.extract_routes_to_span(llm.trace(PROMPT, continuation=made.token_ids), span)
    header, arrays = frame(at)
    assert (header["targets"], header["target"]) == (list(span), span[-1])
    assert arrays["source"].tolist() == graph.source.tolist()
    assert arrays["weight"] == pytest.approx(graph.weight, abs=1e-6)
    assert pills(at).value is None, "no single token is explained"
    assert f"what follows tokens {span[0]} to {span[-1]}**, all at once. Below: the last of them." in said(at)
    assert f"(token {span[-1]}) **the model predicts**" in said(at)
    assert file_stem(at.session_state["conversation"].answer) == f"demo_When-Mary-and-John-went-to-the_tokens{span[0]}-{span[-1]}"
    # Other settings keep it.
    at.slider(key="threshold").set_value(0.06)
    assert targets(answered(at)) == list(span)
    whole(at, False)
    assert targets(at) == [made.start + 1]
    assert pills(at).value == 2


def test_a_token_chosen_anywhere_is_explained_alone_though_it_be_the_last(start: Start, llm: llm_tt.TransparentLlm) -> None:  # noqa: F811
    at = whole(generate(start(DEMO), 4))
    last = expected(llm, 4).start + 2
    pills(at).set_value(3)
    answered(at)
    assert targets(at) == [last]
    assert not at.toggle(key="whole_answer").value
    whole(at)
    at.button(key="explain_last").click()
    assert targets(answered(at)) == [last]
    assert "explain_last" not in [button.key for button in at.button]
    whole(at)
    at.session_state["target"] = 3
    assert targets(answered(at)) == [3]
    at.session_state["target"] = last
    assert targets(answered(at)) == [last], "what was given up does not come back"


def test_it_grows_with_the_answer_and_ends_with_it(start: Start, llm: llm_tt.TransparentLlm) -> None:  # noqa: F811
    at = whole(generate(start(DEMO), 4))
    begin = expected(llm, 4).start - 1
    at.number_input(key="n_continued").set_value(3)
    answered(at)
    at.button(key="continue_more").click()
    answered(at)
    assert targets(at) == list(range(begin, begin + 7))
    assert at.toggle(key="whole_answer").value
    generate(at, 2)
    assert targets(at) == [begin, begin + 1]
    assert errors(at) == []
    generate(at, 1)
    assert targets(at) == [begin]
    assert "whole_answer" not in [toggle.key for toggle in at.toggle], "one token is the whole answer in any case"
    whole(generate(at, 3))
    at.button(key="remove_continuation").click()
    assert targets(answered(at)) == [begin]
    assert len(frame(at)[0]["tokens"]) == begin + 1
    whole(generate(at, 3))
    at.text_area(key="prompt").set_value("The capital of France is")
    header, _ = frame(answered(at))
    assert (header["targets"], header["target"]) == (None, len(header["tokens"]) - 1)


def test_the_way_back_ends_at_the_prompt_where_the_token_of_before_is_gone(start: Start, llm: llm_tt.TransparentLlm) -> None:  # noqa: F811
    at = generate(start(DEMO), 8)
    pills(at).set_value(7)
    whole(answered(at))
    generate(at, 3)
    whole(at, False)
    assert errors(at) == []
    assert targets(at) == [expected(llm, 3).start - 1]


def test_effects_and_other_methods_say_that_they_are_about_the_last(start: Start, llm: llm_tt.TransparentLlm) -> None:  # noqa: F811
    at = generate(start(DEMO), 4)
    made = expected(llm, 4)
    trace = llm.trace(PROMPT, continuation=made.token_ids)
    at.session_state["other_methods"] = True
    assert "These methods explain one prediction" not in said(answered(at))
    whole(at)
    header, arrays = frame(at)
    effects = llm_tt.direct_effects(trace, made.start + 2)
    assert header["effect_of"] == effects.of
    graph = llm_tt.extract_routes_to_span(trace, range(made.start - 1, made.start + 3))
    assert arrays["effect"] == pytest.approx(effects.of_edges(graph), abs=1e-5, nan_ok=True)
    has_one = (graph.destination == made.start + 2).tolist()
    assert [value == value for value in arrays["effect"]] == has_one, "NaN for edges into other columns"
    assert 0 < sum(has_one) < graph.n_edges
    assert f"These methods explain one prediction: of tokens {made.start - 1} to {made.start + 2}" in said(at)
    assert "predictions after tokens" in said(at), "the card that explains the graph"


def test_a_link_restores_it(visit: Open, llm: llm_tt.TransparentLlm) -> None:  # noqa: F811
    made = expected(llm, 4)
    view = View(model="demo", prompt=PROMPT, continuation=made.token_ids, first=made.start - 1, target=made.start + 2)
    assert encode(view)["target"] == f"{made.start - 1}-{made.start + 2}"
    at = came(visit(encode(view)))
    assert not at.warning
    assert targets(at) == list(range(made.start - 1, made.start + 3))
    assert at.toggle(key="whole_answer").value
    assert pills(at).value is None
    assert link_of(at) == encode(view)
    whole(at, False)
    assert targets(at) == [made.start + 2], "a link knows of no token before"
    assert link_of(at)["target"] == str(made.start + 2)


def test_it_is_there_again_after_another_page(start: Start, llm: llm_tt.TransparentLlm) -> None:  # noqa: F811
    at = whole(generate(start(DEMO), 4))
    span = targets(at)
    assert len(span) == 4
    came(go(at, "evaluate"))
    assert "whole_answer" not in [toggle.key for toggle in at.toggle]
    came(go(at, ""))
    assert targets(at) == span
    assert at.toggle(key="whole_answer").value
    assert pills(at).value is None


def test_a_link_may_have_any_span_of_a_prompt(visit: Open) -> None:  # noqa: F811
    at = visit({"model": "demo", "prompt": PROMPT, "target": "2-5"})
    assert targets(at) == [2, 3, 4, 5]
    assert "what follows tokens 2 to 5**, all at once" in said(at)
    at.button(key="explain_last").click()
    assert targets(answered(at)) == [5]


@pytest.mark.parametrize("target", ["5-99", "98-99"])
def test_a_link_to_tokens_that_are_not_there(target: str, visit: Open, llm: llm_tt.TransparentLlm) -> None:  # noqa: F811
    at = visit({"model": "demo", "prompt": PROMPT, "target": target})
    n_tokens = llm.prompt(PROMPT).n_tokens
    assert not errors(at)
    assert targets(at) == [n_tokens - 1]
    assert f"The link explains token 99, but the prompt has {n_tokens}; the last one is explained." in at.warning[0].value.replace("\\", "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("9-5", 'The link\'s target "9-5" does not rise, as 14-17 does; the last token is explained.'),
        ("5-5", '"5-5" does not rise'),
        ("5-", '"5-" is not the number of a token'),
        ("1-2-3", '"1-2-3" is not the number of a token'),
        ("1-" + "9" * 12, "is not the number of a token"),
    ],
)
def test_spans_of_links_that_cannot_be_read(text: str, sentence: str) -> None:
    view, problems = decode({"target": text})
    assert (view.first, view.target) == (None, None)
    (problem,) = problems
    assert sentence in problem


def saved(llm: llm_tt.TransparentLlm, of: list[int], **more: Any) -> str:  # noqa: F811
    trace = llm.trace(PROMPT)
    graph = llm_tt.extract_routes_to_span(trace, of, 0.02)
    return files.to_json(graph, "demo", trace.prompt, predictions=predictions(trace, graph.target, 10), **more)


@pytest.mark.parametrize(("of", "run"), [([2, 3, 4], [2, 3, 4]), ([1, 4], [4])])
def test_a_saved_span_is_shown_and_run_again(of: list[int], run: list[int], visit: Open, llm: llm_tt.TransparentLlm) -> None:  # noqa: F811
    written = saved(llm, of)
    at = open_file(visit({"prompt": "The capital of France is"}), written)
    assert targets(at) == of
    assert "all at once. Below: the last of them." in said(at)
    assert "explain_last" not in [button.key for button in at.button], "a file has no other graph"
    button = at.button(key="run_saved")
    assert ("do not follow one another, the last" in button.help) == (run != of)
    button.click()
    assert targets(answered(at)) == run
    assert json.loads(written)["targets"] == of
