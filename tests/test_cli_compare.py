"""`llm-tt compare`: what it prints is what the library computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import llm_tt
import llm_tt.models
from llm_tt import cli

FIRST = "When Mary and John went to the store, John gave a drink to"
SECOND = "When Mary and John went to the store, Mary gave a drink to"


@pytest.fixture(scope="module")
def demo() -> llm_tt.TransparentLlm:
    return llm_tt.load_model("demo")


@pytest.fixture
def loaded() -> list[tuple[str, str | None]]:
    return []


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, demo: llm_tt.TransparentLlm, loaded: list[tuple[str, str | None]]
) -> Callable[..., tuple[int, str, str]]:
    def load(model: str, adapter: str | None = None, **options: Any) -> llm_tt.TransparentLlm:
        loaded.append((model, adapter))
        return demo

    monkeypatch.setattr(llm_tt.models, "load_model", load)

    def run(*arguments: Any) -> tuple[int, str, str]:
        status = cli.main(["compare", "demo", FIRST, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_two_texts_in_one_model(run: Callable, demo: llm_tt.TransparentLlm) -> None:
    status, out, err = run("--with-prompt", SECOND, "--token", " Mary", "--contrast", " John", "--top", 3)
    assert (status, err) == (0, "")
    compared = llm_tt.compare(demo.trace(FIRST), demo.trace(SECOND), token=" Mary", contrast=" John")
    first, second = compared.effects
    assert f"logit of '·Mary − ·John': {first.logit:.3f} -> {second.logit:.3f}" in out
    edges = [line for line in out.splitlines() if " -> " in line and "): " in line]
    assert len(edges) == 3
    strongest = compared.edges.strongest(1)[0]
    source, destination, key = compared.edges.name(strongest)
    assert edges[0].startswith(f"  {compared.edges.change[strongest]:+.3f}  {source} -> {destination} ({key})")
    assert f"{compared.divergence[-1]:9.4f}" in out


def test_json_has_everything(run: Callable, demo: llm_tt.TransparentLlm) -> None:
    status, out, _ = run("--with-prompt", SECOND, "--json")
    assert status == 0
    assert json.loads(out) == json.loads(json.dumps(llm_tt.compare(demo.trace(FIRST), demo.trace(SECOND)).to_dict()))


@pytest.mark.parametrize(
    ("arguments", "second"),
    [
        (["--with", "tuned"], ("tuned", None)),
        (["--with-adapter", "lora"], ("demo", "lora")),
        (["--with", "tuned", "--with-adapter", "lora"], ("tuned", "lora")),
        (["--with-prompt", SECOND], ("demo", None)),
    ],
)
def test_what_the_second_is(
    run: Callable, loaded: list[tuple[str, str | None]], arguments: list[str], second: tuple[str, str | None]
) -> None:
    assert run(*arguments)[0] == 0
    assert loaded == [("demo", None), second]


def test_nothing_to_compare_with(run: Callable) -> None:
    status, out, err = run()
    assert (status, out) == (1, "")
    assert err.startswith("llm-tt: There is nothing to compare with. Name a second model (--with)")


def test_what_both_generate_with_the_differences_marked(run: Callable, demo: llm_tt.TransparentLlm) -> None:
    status, out, _ = run("--with-prompt", SECOND, "--generate", 3)
    assert status == 0
    texts = [[token.text for token in llm_tt.generate(demo, prompt, 3)] for prompt in (FIRST, SECOND)]
    (title,) = [place for place, line in enumerate(out.splitlines()) if line.startswith("What they generate")]
    for line, own, other in zip(out.splitlines()[title + 1 :], texts, texts[::-1], strict=True):
        assert own[0] not in other
        assert f"[{own[0]}]" in line
        assert line.startswith("  demo: ")
    status, out, _ = run("--with-prompt", SECOND, "--generate", 3, "--json")
    content = json.loads(out)
    assert [answer["tokens"] for answer in content["generated"]] == texts
    assert [answer["differs"][0] for answer in content["generated"]] == [True, True]
    # The texts are compared without what was generated.
    assert content["tokens"] == [list(demo.trace(prompt).token_texts) for prompt in (FIRST, SECOND)]


def test_first_choices_and_what_has_no_partner(run: Callable, demo: llm_tt.TransparentLlm) -> None:
    longer = "I think that when Mary and John went to the store, Mary gave a drink to"
    status, out, _ = run("--with-prompt", longer, "--mass", "0.8")
    assert status == 0
    compared = llm_tt.compare(demo.trace(FIRST), demo.trace(longer), mass=0.8)
    first, second = compared.choices.probabilities[0]
    assert f"  {first:6.3f} -> {second:6.3f}  {compared.choices.texts[0]!r}" in out
    n_first, n_second = (len(texts) for texts in compared.token_texts)
    assert f"{len(compared.pairs)} of {n_first} and {n_second} tokens are paired by token; the others have no change." in out
