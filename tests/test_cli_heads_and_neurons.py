"""`llm-tt heads` and `llm-tt neurons` as a user sees them: their numbers are the brute force's, a mistake is one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
from direct_effects_by_hand import Head, brute_force
from test_cli import PROMPT, Result, _surroundings, load_once, run, succeeded, the_sentence  # noqa: F401

from llm_tt import cli

# Biases; a mixture of experts; a norm behind the blocks.
families = pytest.mark.parametrize("name", ["gpt2", "mixtral", "gemma2"])
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def layers(plain: Callable, model: Callable) -> Callable[[str], Any]:
    return lambda name: reference.run_plain(plain(name), model(name).encode(PROMPT)).layers


@families
@pytest.mark.parametrize("target", [-1, 2])
def test_heads_are_those_of_the_brute_force(name: str, target: int, run: Run, checkpoint: Callable, layers: Callable) -> None:  # noqa: F811
    folder = str(checkpoint(name))
    data = json.loads(succeeded(run("heads", folder, PROMPT, "--target", target, "--json")))
    every = [reference.attention(layer)[0][target] for layer in layers(name)]
    n_tokens = len(every[0])
    assert (data["model"], data["target"], len(data["tokens"])) == (folder, target % n_tokens, n_tokens)
    assert sorted((head["layer"], head["head"]) for head in data["heads"]) == [(layer, head) for layer in range(3) for head in range(4)]
    shares = [head["contribution"] for head in data["heads"]]
    assert shares == sorted(shares, reverse=True)
    for head in data["heads"]:
        column = every[head["layer"]][:, head["head"]]
        assert head["contribution"] == pytest.approx(float(column.sum()), abs=1e-5)
        assert head["from_source"] == pytest.approx(float(column[head["source"]]), abs=1e-5)
        assert head["source_token"] == data["tokens"][head["source"]]
    table = succeeded(run("heads", folder, PROMPT, "--target", target)).splitlines()
    assert re.match(rf"Contribution of each head .* \(token {target % n_tokens}\):$", table[0])
    rows = [line.split() for line in table[2:]]
    assert [(int(row[0]), int(row[1])) for row in rows] == [(head["layer"], head["head"]) for head in data["heads"]]
    assert [float(row[2]) for row in rows] == pytest.approx(shares, abs=6e-5)


def test_heads_of_one_layer(run: Run, checkpoint: Callable) -> None:  # noqa: F811
    everything = json.loads(succeeded(run("heads", checkpoint("gpt2"), PROMPT, "--json")))["heads"]
    one = json.loads(succeeded(run("heads", checkpoint("gpt2"), PROMPT, "--layer", -2, "--json")))["heads"]
    assert one == [head for head in everything if head["layer"] == 1]


@families
def test_neurons_are_those_of_the_brute_force(name: str, run: Run, checkpoint: Callable, layers: Callable) -> None:  # noqa: F811
    folder = str(checkpoint(name))
    data = json.loads(succeeded(run("neurons", folder, PROMPT, "--layer", -1, "--position", 3, "--top", 6, "--json")))
    layer = layers(name)[-1]
    contributions = reference.neurons(layer)[3]
    assert (data["model"], data["layer"], data["position"]) == (folder, 2, 3)
    assert [neuron["contribution"] for neuron in data["neurons"]] == pytest.approx(contributions.topk(6).values.tolist(), abs=1e-5)
    for neuron in data["neurons"]:
        assert neuron["contribution"] == pytest.approx(float(contributions[neuron["neuron"]]), abs=1e-5)
        assert neuron["activation"] == pytest.approx(float(layer.neurons[3, neuron["neuron"]]), abs=1e-4)
        assert neuron["name"].startswith("expert " if name == "mixtral" else "neuron ")
    table = succeeded(run("neurons", folder, PROMPT, "--layer", -1, "--position", 3)).splitlines()
    assert len(table) == 23
    rows = [line.split(maxsplit=3) for line in table[3:9]]
    assert [row[3] for row in rows] == [neuron["name"] for neuron in data["neurons"]]
    assert [float(row[0]) for row in rows] == pytest.approx([neuron["contribution"] for neuron in data["neurons"]], abs=6e-5)
    assert [float(row[2]) for row in rows] == pytest.approx([neuron["effect"] for neuron in data["neurons"]], abs=6e-4)


@families
@pytest.mark.parametrize("options", [(), ("--token", "id:5"), ("--token", "id:5", "--contrast", "id:23")])
def test_effects_of_neurons_are_those_of_the_plain_model(
    name: str,
    options: tuple[str, ...],
    run: Run,  # noqa: F811
    checkpoint: Callable,
    model: Callable,
    plain: Callable,
) -> None:
    data = json.loads(
        succeeded(run("neurons", str(checkpoint(name)), PROMPT, "--layer", 1, "--position", 4, *options, "--by", "effect", "--json"))
    )
    plain_run = reference.run_plain(plain(name), model(name).encode(PROMPT))
    token = int(plain_run.logits[4].argmax()) if not options else 5
    contrast = 23 if "--contrast" in options else None
    assert data["effect_of"]["token"]["id"] == token
    assert (data["effect_of"]["contrast"] or {}).get("id") == contrast
    exact = brute_force(Head.of(plain(name)), plain_run, 4, token, contrast).neurons[1]
    assert [neuron["effect"] for neuron in data["neurons"]] == pytest.approx(exact[exact.abs().topk(20).indices].tolist(), abs=1e-4)
    for neuron in data["neurons"]:
        assert neuron["effect"] == pytest.approx(float(exact[neuron["neuron"]]), abs=1e-4)


def test_a_turn_of_a_chat_and_standard_input_are_prompts_here_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    chat = json.loads(succeeded(run("heads", "demo", "Is this risky?", "--chat", "--layer", 0, "--json")))
    assert "<user>" in chat["tokens"]
    written = json.loads(succeeded(run("neurons", "demo", "The capital", "--layer", 0, "--top", 1, "--json")))
    assert written["tokens"] == ["<bos>", "The", " capital"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("heads", "--target", 99), "Position 99 does not exist"),
        (("heads", "--layer", 3), "Layer 3 does not exist: the model has 3 layers, 0 to 2."),
        (("neurons", "--layer", 3), "Layer 3 does not exist: the model has 3 layers, 0 to 2."),
        (("neurons", "--layer", 0, "--position", -99), "Position -99 does not exist"),
        (("heads", "--system", "Mary"), "--system is a part of a conversation."),
    ],
)
def test_what_is_not_there_gets_a_sentence(arguments: tuple[Any, ...], sentence: str, run: Run, checkpoint: Callable[[str], Path]) -> None:  # noqa: F811
    command, *options = arguments
    assert sentence in the_sentence(run(command, checkpoint("gpt2"), PROMPT, *options))


@pytest.mark.parametrize("top", ["0", "-3", "many", "1.5", "\u0663"])
def test_a_number_of_neurons_that_is_none_is_refused(top: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["neurons", "demo", PROMPT, "--layer", "0", f"--top={top}"])
    assert f'"{top}" is not a number of 1 or more' in capsys.readouterr().err
