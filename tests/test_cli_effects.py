"""`llm-tt effects`: what it prints is what the library computes, and what it cannot explain gets one sentence."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import llm_tt
import llm_tt.models
from llm_tt import cli

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def demo() -> llm_tt.TransparentLlm:
    return llm_tt.load_model("demo")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, demo: llm_tt.TransparentLlm) -> Callable[..., Any]:
    """run(*arguments) -> status, stdout, stderr of `llm-tt effects demo PROMPT ...`, the model loaded once."""
    monkeypatch.setattr(llm_tt.models, "load_model", lambda *arguments, **options: demo)

    def run(*arguments: Any, prompt: str = PROMPT) -> tuple[int, str, str]:
        status = cli.main(["effects", "demo", prompt, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_the_strongest_parts_are_printed_with_the_sum(run: Callable, demo: llm_tt.TransparentLlm) -> None:
    status, out, err = run("--token", " Mary", "--contrast", " John")
    effects = llm_tt.direct_effects(demo.trace(PROMPT), token=" Mary", contrast=" John")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "Why ' Mary' and not ' John' after ' to' (token 14) in demo:"
    assert lines[1] == f"difference of logits {effects.logit:.3f}, sum of all parts {effects.total:.3f}"
    raising, lowering = effects.strongest(8)
    shown = re.findall(r"^ +([+-][\d.]+)  (.+)$", out, re.MULTILINE)
    assert [name for _, name in shown] == [part.name for part in raising + lowering]
    assert [float(effect) for effect, _ in shown] == pytest.approx([part.effect for part in raising + lowering], abs=6e-4)


def test_the_prediction_is_explained_when_no_token_is_named(run: Callable) -> None:
    _, out, _ = run()
    assert out.startswith("Why ' Mary' after ' to' (token 14) in demo:\nlogit ")
    _, out, _ = run("--target", 5)
    assert out.startswith("Why ' to' after ' went' (token 5) in demo:")


def test_how_a_text_was_read_is_said(run: Callable) -> None:
    _, out, _ = run("--token", "Mary")
    assert '"Mary" was taken as it stands; " Mary", with a space in front, is another token.' in out


def test_json_has_every_part(run: Callable, demo: llm_tt.TransparentLlm) -> None:
    status, out, _ = run("--token", "id:17", "--target", "3", "--json")
    told, effects = json.loads(out), llm_tt.direct_effects(demo.trace(PROMPT), 3, 17)
    assert status == 0
    assert (told["target"], told["token"]["id"], told["contrast"]) == (3, 17, None)
    np.testing.assert_allclose(told["heads"], effects.heads, atol=1e-6)
    np.testing.assert_allclose(told["ffn"], effects.ffn, atol=1e-6)
    assert told["logit"] == pytest.approx(effects.logit)


def test_the_prompt_may_come_from_standard_input(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The capital of France is\n")))
    assert run(prompt="-")[1].startswith("Why ' Paris' after ' is' (token 5)")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--token", " Mary John"),
            '" Mary John" is 2 tokens: " Mary", " John". Name a single one, by its text or, as in id:42, by its number.',
        ),
        (("--token", "id:99999"), "Token id 99999 does not exist: the vocabulary of demo has ids 0 to 1522."),
        (("--contrast", " Mary"), 'Token and contrast are both " Mary", so that their difference is 0. Choose another contrast.'),
        (("--target", "99"), "Position 99 does not exist: the prompt has 15 tokens, positions 0 to 14."),
    ],
)
def test_what_cannot_be_explained_is_one_sentence(arguments: tuple[str, ...], sentence: str, run: Callable) -> None:
    assert run(*arguments) == (1, "", f"llm-tt: {sentence}\n")
