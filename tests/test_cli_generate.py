"""`llm-tt generate`, and `--generate` of the commands that trace."""

from __future__ import annotations

import json
from typing import Any

import pytest

import llm_tt
from llm_tt import cli
from llm_tt.models.continuation import Continuation

PROMPT = "When Mary and John went to the"


@pytest.fixture(scope="module")
def llm() -> llm_tt.TransparentLlm:
    return llm_tt.load_model("demo")


def expected(llm: llm_tt.TransparentLlm, n_tokens: int, **options: Any) -> Continuation:
    return Continuation.of(llm.prompt(PROMPT).n_tokens, list(llm_tt.generate(llm, PROMPT, n_tokens, **options)))


def test_it_prints_the_continuation_and_why_it_ended(llm: llm_tt.TransparentLlm, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "demo", PROMPT, "--tokens", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out == expected(llm, 3).text + "\n"
    assert shown.err == "llm-tt: As many tokens as were asked for (3).\n"


def test_each_token_is_printed_as_it_comes(
    llm: llm_tt.TransparentLlm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import llm_tt.models.generation as generation

    seen: list[str] = []
    texts = expected(llm, 3).token_texts
    generate = generation.generate

    def watched(*args: Any, **options: Any) -> Any:
        for token in generate(*args, **options):
            seen.append(capsys.readouterr().out)
            yield token

    monkeypatch.setattr(generation, "generate", watched)
    assert cli.main(["generate", "demo", PROMPT, "--tokens", "3"]) == 0
    assert seen == ["", *texts[:2]]


def test_as_json_sampled(llm: llm_tt.TransparentLlm, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--temperature", "1.5", "--top-k", "50", "--top-p", "0.9", "--seed", "7"]
    assert cli.main(["generate", "demo", PROMPT, "--tokens", "6", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    made = expected(llm, 6, temperature=1.5, top_k=50, top_p=0.9, seed=7)
    assert tuple(token["id"] for token in found["tokens"]) == made.token_ids
    assert tuple(token["rank"] for token in found["tokens"]) == made.ranks
    assert [token["probability"] for token in found["tokens"]] == pytest.approx(made.probabilities)
    assert (found["text"], found["start"], found["stop"], found["seed"]) == (made.text, made.start, made.stop, 7)
    assert tuple(found["prompt_ids"]) == llm.prompt(PROMPT).token_ids


def test_routes_to_a_generated_token(llm: llm_tt.TransparentLlm, capsys: pytest.CaptureFixture[str]) -> None:
    made = expected(llm, 4)
    assert cli.main(["routes", "demo", PROMPT, "--generate", "4", "--target", str(made.start), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(token["id"] for token in found["tokens"]) == llm.prompt(PROMPT).token_ids + made.token_ids
    assert [token["role"] for token in found["tokens"]][made.start - 1 :] == [None, *["continuation"] * len(made)]
    graph = llm_tt.extract_routes(llm.trace(PROMPT, continuation=made.token_ids), made.start)
    assert (found["target"], len(found["edges"])) == (made.start, graph.n_edges)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--tokens", "5000"], "with 5000 more it has"),
        (["--temperature", "-1"], "The temperature is -1"),
        (["--top-p", "2"], "top_p is 2"),
    ],
)
def test_what_is_refused(options: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "demo", PROMPT, *options]) == 1
    shown = capsys.readouterr()
    assert reason in shown.err
    assert shown.out == ""


def test_the_whole_answer_at_once(llm: llm_tt.TransparentLlm, capsys: pytest.CaptureFixture[str]) -> None:
    made = expected(llm, 4)
    assert cli.main(["routes", "demo", PROMPT, "--generate", "4", "--answer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    targets = list(range(made.start - 1, made.start + len(made) - 1))
    assert (found["targets"], found["target"], found["version"]) == (targets, targets[-1], 2)
    graph = llm_tt.extract_routes_to_span(llm.trace(PROMPT, continuation=made.token_ids), targets)
    assert [(edge["from"], edge["to"]) for edge in found["edges"]] == [tuple(end.name for end in edge.ends) for edge in graph.edges()]
    assert found["predictions"][0]["text"] == made.token_texts[-1], "the last target predicts the answer's last token"
    assert cli.main(["routes", "demo", PROMPT, "--generate", "4", "--span", str(made.start - 1), "--target", "-2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_an_answer_of_one_token_is_one_target(llm: llm_tt.TransparentLlm, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["routes", "demo", PROMPT, "--generate", "1", "--answer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "targets" not in found
    assert (found["target"], found["version"]) == (llm.prompt(PROMPT).n_tokens - 1, 1)


def test_a_span_is_told_in_words_and_by_mass(llm: llm_tt.TransparentLlm, capsys: pytest.CaptureFixture[str]) -> None:
    n_tokens = llm.prompt(PROMPT).n_tokens
    assert cli.main(["routes", "demo", PROMPT, "--span", "-3", "--mass", "0.8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"What follows tokens {n_tokens - 3} to {n_tokens - 1} is explained at once; the flow is the mean over them. Of these the last:"
    )
    assert lines[1] == f"After ' the' (token {n_tokens - 1}), demo predicts:"
    graph = llm_tt.extract_routes_by_mass(llm.trace(PROMPT), range(n_tokens - 3, n_tokens), 0.8)
    assert f"{graph.n_edges} edges that carry 0.8 of the flow, renormalised" in lines


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--span", "4", "--target", "2"],
            "The span would begin at token 4, after its last token, 2. Begin it at one of the tokens 0 to 2",
        ),
        (["--span", "99"], "Position 99 does not exist"),
        (["--span", "1", "--target", "-99"], "Position -99 does not exist"),
        (["--answer"], "--answer is about what the model generates. Add --generate N"),
        (["--answer", "--generate", "2", "--target", "3"], "so that --target 3 cannot be its end"),
    ],
)
def test_spans_that_do_not_exist(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["routes", "demo", PROMPT, *options]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert shown.err.count("\n") == 1


def test_an_answer_and_a_span_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["routes", "demo", PROMPT, "--generate", "2", "--answer", "--span", "1"])
    assert "not allowed with argument" in capsys.readouterr().err
