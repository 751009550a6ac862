"""The command line as a user sees it: what it prints, what it returns, and one sentence for whatever is wrong."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import reference
import torch
from chat_templates import CHATML
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.utils import logging as transformers_logging

import llm_tt
import llm_tt.models
from llm_tt import cli
from llm_tt.config import ModelSpec
from llm_tt.export import files
from llm_tt.export.saved import from_json
from llm_tt.flow.graph import FlowGraph
from llm_tt.models import identities
from llm_tt.models.bridge import BridgeLlm
from llm_tt.text import ChatMessage, Prompt

PROMPT = "Mary the store."
LOAD_UNCHECKED = llm_tt.models.load_unchecked


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `main` changes in its process is put back; transformers draws no progress bars, as when the variable is set before its import."""
    level = logging.getLogger().level
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="module")
def load_once() -> Callable[..., llm_tt.TransparentLlm]:
    @cache
    def load(model: str | ModelSpec, adapter: str | None, device: str, dtype: str) -> llm_tt.TransparentLlm:
        return LOAD_UNCHECKED(model, adapter=adapter, device=device, dtype=dtype)

    def load_unchecked(
        model: str | ModelSpec, *, adapter: str | None = None, device: str = "auto", dtype: str = "auto", progress: Any = None
    ) -> llm_tt.TransparentLlm:
        return load(model, adapter, device, dtype)

    return load_unchecked


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, load_once: Callable) -> Callable[..., Result]:
    """run(*arguments): the command in this process. A model that was loaded for an earlier test is not read again."""
    monkeypatch.setattr(llm_tt.models, "load_unchecked", load_once)

    def run(*arguments: Any) -> Result:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def folder(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("gpt2"))


def succeeded(result: Result) -> str:
    assert (result.status, result.err) == (0, "")
    return result.out


def the_sentence(result: Result) -> str:
    """What a failing command says: one line on stderr and nothing else."""
    assert result.status == 1
    assert result.out == ""
    assert result.err.startswith("llm-tt: ")
    assert result.err.endswith("\n")
    assert "\n" not in result.err[:-1]
    return result.err[len("llm-tt: ") : -1]


def the_failure(result: Result) -> str:
    """Why a command failed: the sentence on stderr, or after what `check` knows of the model all the same."""
    if not result.out:
        return the_sentence(result)
    assert (result.status, result.err) == (1, "")
    label, _, sentence = result.out.splitlines()[-1].partition(" ")
    assert label == "FAILED"
    return sentence.strip()


def assert_same_graph(written: str, graph: FlowGraph, name: str, prompt: Prompt) -> None:
    """JSON is that of a graph; contributions but for rounding, which differs from process to process."""
    data, expected = json.loads(written), files.to_dict(graph, name, prompt)
    assert data.pop("facts")["n_heads"] > 0
    assert len(data.pop("predictions")) == 10
    edges, expected_edges = data.pop("edges"), expected.pop("edges")
    assert data.pop("carried") == pytest.approx(expected.pop("carried"), abs=1e-5)
    assert data == expected
    assert [(edge["from"], edge["to"], edge["key"]) for edge in edges] == [
        (edge["from"], edge["to"], edge["key"]) for edge in expected_edges
    ]
    assert [edge["weight"] for edge in edges] == pytest.approx([edge["weight"] for edge in expected_edges], abs=1e-5)
    for edge, other in zip(edges, expected_edges, strict=True):
        shares, others = ({head["head"]: head["weight"] for head in carried.get("heads", [])} for carried in (edge, other))
        assert shares == pytest.approx(others, abs=1e-5)


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


# --- lens


@pytest.mark.parametrize(("position", "normalize"), [(-1, True), (3, True), (-2, False)])
def test_lens_prints_every_point_of_the_stream_and_its_json_is_the_librarys(
    position: int, normalize: bool, run: Callable, folder: str, model: Callable
) -> None:
    llm = model("gpt2")
    trace = llm.trace(PROMPT)
    (text,) = llm.texts([17])
    best = trace.logits(position).topk(5).indices.tolist()
    expected = llm_tt.token_trajectories(trace, position, [*best, 17], normalize=normalize)
    options = ["--position", position, "--token", text, *([] if normalize else ["--no-normalize"])]

    data = json.loads(succeeded(run("lens", folder, PROMPT, *options, "--json")))
    assert (data["model"], data["position"], data["normalized"]) == (folder, trace.position(position), normalize)
    assert data["token"] == trace.token_texts[position]
    assert data["nodes"] == list(expected.nodes)
    assert [token["id"] for token in data["tokens"]] == list(dict.fromkeys([*best, 17]))
    for index, token in enumerate(data["tokens"]):
        assert token["logits"] == pytest.approx(expected.logits[:, index].tolist(), abs=1e-4)
        assert token["probabilities"] == pytest.approx(expected.probabilities[:, index].tolist(), abs=1e-5)
        assert token["ranks"] == expected.ranks[:, index].tolist()

    head, empty, names, *lines = succeeded(run("lens", folder, PROMPT, *options)).splitlines()
    assert head == (
        f"After {trace.token_texts[position]!r} (token {trace.position(position)}), probability (rank) at each point of {folder}:"
    )
    assert empty == ""
    assert re.split(" {2,}", names.strip()) == [repr(text) for text in expected.texts]
    assert [line.split()[0] for line in lines] == list(expected.nodes)[::-1]
    for line, probabilities, ranks in zip(lines, expected.probabilities[::-1], expected.ranks[::-1], strict=True):
        shown = re.findall(r"(\d\.\d{3}) \((\d+)\)", line)
        assert [float(probability) for probability, _ in shown] == pytest.approx(probabilities.tolist(), abs=6e-4)
        assert [int(rank) for _, rank in shown] == ranks.tolist()


def test_lens_explains_what_is_no_token_and_no_position(run: Callable, folder: str) -> None:
    sentence = the_sentence(run("lens", folder, PROMPT, "--token", "no such token"))
    assert sentence.startswith('"no such token" is ')
    assert sentence.endswith("Name a single one, by its text or, as in id:42, by its number.")
    sentence = the_sentence(run("lens", folder, PROMPT, "--position", 12))
    assert sentence == "Position 12 does not exist: the prompt has 12 tokens, positions 0 to 11."
    sentence = the_sentence(run("lens", folder, PROMPT, "--system", "Be brief"))
    assert sentence == "--system is a part of a conversation. Add --chat, or put the text into PROMPT."


# --- routes


def test_routes_prints_the_predictions_and_every_edge(run: Callable, folder: str, plain: Callable, model: Callable) -> None:
    head, *rest = succeeded(run("routes", folder, PROMPT)).splitlines()
    predictions, empty, body = rest[:5], rest[5], rest[rest.index("", 6) + 1 :]
    llm = model("gpt2")
    trace = llm.trace(PROMPT)
    assert head == f"After '.' (token {trace.n_tokens - 1}), {folder} predicts:"
    assert empty == ""

    probabilities = reference.run_plain(plain("gpt2"), trace.token_ids).logits[-1].softmax(-1)
    best = probabilities.topk(5)
    shown = [line.split(maxsplit=1) for line in predictions]
    assert [float(probability) for probability, _ in shown] == pytest.approx(best.values.tolist(), abs=6e-4)
    assert [text for _, text in shown] == [repr(text) for text in llm.texts(best.indices.tolist())]

    graph = llm_tt.extract_routes(trace)
    first, *lines = body
    assert first == f"{graph.n_edges} edges above 0.04, renormalised"
    pattern = re.compile(r" *(\S+) -> (\S+) +(attention|residual|ffn) +(\d\.\d{3})  (.*?)(?:  \((head.*)\))?")
    found = [pattern.fullmatch(line).groups() for line in lines]  # type: ignore[union-attr]
    expected = []
    for edge in graph.edges():
        source, destination = edge.ends
        tokens = [repr(graph.token_texts[position]) for position in dict.fromkeys((edge.source, edge.destination))]
        heads = ", ".join(f"head {head} {weight:.3f}" for head, weight in edge.heads.items())
        expected.append((source.name, destination.name, edge.kind.key, f"{edge.weight:.3f}", " -> ".join(tokens), heads or None))
    assert found == expected
    assert len(found) > 10


def test_routes_of_one_token(run: Callable, folder: str) -> None:
    data = json.loads(succeeded(run("routes", folder, "M", "--json")))
    assert data["target"] == 0
    assert data["edges"]


def test_json_is_the_librarys(run: Callable, folder: str, model: Callable) -> None:
    out = succeeded(run("routes", folder, PROMPT, "--json"))
    assert_same_graph(out, llm_tt.extract_routes(model("gpt2").trace(PROMPT)), folder, model("gpt2").prompt(PROMPT))
    assert json.loads(out)["model"] == folder


@pytest.mark.parametrize(("target", "position"), [(-1, 11), (-2, 10), (-12, 0), (0, 0), (5, 5), (11, 11)])
def test_target_counts_as_in_python(target: int, position: int, run: Callable, folder: str, model: Callable) -> None:
    out = succeeded(run("routes", folder, PROMPT, "--target", target, "--json"))
    assert json.loads(out)["target"] == position
    assert_same_graph(out, llm_tt.extract_routes(model("gpt2").trace(PROMPT), position), folder, model("gpt2").prompt(PROMPT))
    head = succeeded(run("routes", folder, PROMPT, "--target", target)).splitlines()[0]
    assert head.startswith(f"After {model('gpt2').trace(PROMPT).token_texts[position]!r} (token {position})")


@pytest.mark.parametrize("target", [12, -13, 10**9])
def test_a_target_beyond_the_prompt_gets_a_sentence_with_what_there_is(target: int, run: Callable, folder: str) -> None:
    sentence = the_sentence(run("routes", folder, PROMPT, "--target", target))
    assert sentence == f"Position {target} does not exist: the prompt has 12 tokens, positions 0 to 11."


@pytest.mark.parametrize("threshold", ["0", "0.01", "0.3", "0.99"])
def test_threshold_is_the_librarys(threshold: str, run: Callable, folder: str, model: Callable) -> None:
    out = succeeded(run("routes", folder, PROMPT, "--threshold", threshold, "--json"))
    assert json.loads(out)["threshold"] == float(threshold)
    assert_same_graph(
        out, llm_tt.extract_routes(model("gpt2").trace(PROMPT), threshold=float(threshold)), folder, model("gpt2").prompt(PROMPT)
    )


@pytest.mark.parametrize("mass", ["0.5", "0.9"])
def test_mass_is_the_librarys(mass: str, run: Callable, folder: str, model: Callable) -> None:
    out = succeeded(run("routes", folder, PROMPT, "--mass", mass, "--json"))
    graph = llm_tt.extract_routes_by_mass(model("gpt2").trace(PROMPT), mass=float(mass))
    found = json.loads(out)
    assert found["mass"] == float(mass)
    assert found["carried"] == pytest.approx(graph.carried, abs=1e-5)
    assert found["threshold"] == graph.threshold
    assert len(found["edges"]) == graph.n_edges


def test_a_mass_that_is_no_share_gets_a_sentence_and_one_beside_a_threshold_is_refused(run: Callable, folder: str) -> None:
    assert the_sentence(run("routes", folder, PROMPT, "--mass", "1.5")).startswith("Mass 1.5 is not between 0 and 1.")
    with pytest.raises(SystemExit):
        run("routes", folder, PROMPT, "--mass", "0.5", "--threshold", "0.1")


def test_text_says_where_the_flow_ends_and_how_much_was_dropped(run: Callable, folder: str, model: Callable) -> None:
    out = succeeded(run("routes", folder, PROMPT))
    trace = model("gpt2").trace(PROMPT)
    shares = llm_tt.flow_over_sources(llm_tt.extract_routes(trace))
    first = int(shares.argmax())
    assert f"{shares[first]:6.3f}  {trace.token_texts[first]!r} (token {first})" in out
    bare = llm_tt.flow_over_sources(llm_tt.extract_routes(trace, renormalize=False))
    assert f"{1 - bare.sum():.1%} of the flow was dropped with the edges that were not kept." in out


@pytest.mark.parametrize("threshold", ["1.0", "2.5", "-0.1", "nan", "inf"])
def test_a_threshold_that_is_no_share_gets_a_sentence(threshold: str, run: Callable, folder: str) -> None:
    assert the_sentence(run("routes", folder, PROMPT, "--threshold", threshold)).startswith(f"Threshold {threshold} is not in [0, 1).")


def test_no_renormalize_keeps_the_same_edges_with_their_own_contributions(run: Callable, folder: str, model: Callable) -> None:
    with_it, without = (
        {(edge["from"], edge["to"], edge["key"]): edge["weight"] for edge in json.loads(succeeded(run(*arguments)))["edges"]}
        for arguments in (("routes", folder, PROMPT, "--json"), ("routes", folder, PROMPT, "--json", "--no-renormalize"))
    )
    assert with_it.keys() == without.keys()
    assert all(without[edge] <= with_it[edge] + 1e-6 for edge in with_it)
    assert any(without[edge] < with_it[edge] - 1e-3 for edge in with_it)
    edge = llm_tt.ffn_contributions(model("gpt2").trace(PROMPT), 2, [-1])
    assert without["A2_11", "I2_11", "residual"] == pytest.approx(float(edge.residual[0]), abs=1e-6)
    out = succeeded(run("routes", folder, PROMPT, "--no-renormalize"))
    assert f"{len(without)} edges above 0.04\n" in out


def test_graphml_holds_the_librarys_graph(run: Callable, folder: str, model: Callable) -> None:
    out = succeeded(run("routes", folder, PROMPT, "--graphml"))
    read = nx.parse_graphml(out.encode(), force_multigraph=True)
    graph = llm_tt.extract_routes(model("gpt2").trace(PROMPT)).to_networkx()
    assert set(read.nodes) == set(graph.nodes)
    found, expected = (sorted((u, v, round(data["weight"], 4)) for u, v, data in one.edges(data=True)) for one in (read, graph))
    assert [edge[:2] for edge in found] == [edge[:2] for edge in expected]
    assert [edge[2] for edge in found] == pytest.approx([edge[2] for edge in expected], abs=2e-4)


def test_node_link_is_read_by_networkx(run: Callable, folder: str, model: Callable) -> None:
    read = nx.node_link_graph(json.loads(succeeded(run("routes", folder, PROMPT, "--node-link"))))
    graph = llm_tt.extract_routes(model("gpt2").trace(PROMPT)).to_networkx()
    assert set(read.nodes) == set(graph.nodes)
    assert {(u, v, key) for u, v, key in read.edges(keys=True)} == {(u, v, key) for u, v, key in graph.edges(keys=True)}
    assert read.graph["model"] == folder


def test_csv_has_a_line_an_edge(run: Callable, folder: str, model: Callable) -> None:
    rows = list(csv.DictReader(io.StringIO(succeeded(run("routes", folder, PROMPT, "--csv")), newline="")))
    edges = list(llm_tt.extract_routes(model("gpt2").trace(PROMPT)).edges())
    assert [(row["from"], row["to"], row["key"]) for row in rows] == [(*(node.name for node in edge.ends), edge.kind.key) for edge in edges]
    assert [float(row["weight"]) for row in rows] == pytest.approx([edge.weight for edge in edges], abs=1e-5)


def test_the_json_can_be_opened_and_tells_what_was_predicted(run: Callable, folder: str, model: Callable) -> None:
    saved = from_json(succeeded(run("routes", folder, PROMPT, "--json", "--target", 3)))
    trace = model("gpt2").trace(PROMPT)
    assert saved.question == PROMPT
    assert saved.graph.weight == pytest.approx(llm_tt.extract_routes(trace, 3).weight, abs=1e-5)
    assert saved.predictions is not None
    assert saved.predictions.probabilities is not None
    assert saved.predictions.probabilities[0] == pytest.approx(float(trace.logits(3).softmax(-1).max()), abs=1e-5)
    assert saved.facts == {name: value for name in files.FACTS if (value := getattr(trace.model.info, name)) is not None}


def test_the_json_of_a_chat_has_its_messages(run: Callable) -> None:
    saved = from_json(succeeded(run("routes", "demo", "Is this risky?", "--chat", "--json")))
    assert saved.question == saved.conversation == (ChatMessage("user", "Is this risky?"),)


def test_html_is_written_to_the_file(run: Callable, folder: str, model: Callable, tmp_path: Path) -> None:
    file = tmp_path / "routes.html"
    file.write_text("an older file")
    out = succeeded(run("routes", folder, PROMPT, "--html", file))
    graph = llm_tt.extract_routes(model("gpt2").trace(PROMPT))
    assert out == f"Wrote {file}: {graph.n_edges} edges\n"
    page = file.read_text(encoding="utf-8")
    assert f"{folder}: routes to token 11 at threshold 0.04" in page
    assert all(f'"{name}"' in page for name in graph.to_networkx().nodes)
    assert "an older file" not in page


@pytest.mark.parametrize("where", ["no/such/folder/routes.html", "."])
def test_a_file_that_cannot_be_written_gets_a_sentence(where: str, run: Callable, folder: str, tmp_path: Path) -> None:
    file = tmp_path / where
    assert the_sentence(run("routes", folder, PROMPT, "--html", file)).startswith(f'Cannot write "{file}": ')


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"], ids=ascii)
def test_a_dash_reads_the_prompt_from_standard_input(ending: str, run: Callable, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads(succeeded(run("routes", folder, "Mary\nthe \u00e9", "--json")))["tokens"]
    stdin(monkeypatch, f"Mary\nthe \u00e9{ending}".encode())
    assert json.loads(succeeded(run("routes", folder, "-", "--json")))["tokens"] == expected


def test_standard_input_that_is_not_utf_8_gets_a_sentence(run: Callable, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, "Mary caf\u00e9".encode("latin-1"))
    assert the_sentence(run("routes", folder, "-")) == "Standard input is not UTF-8 text (byte 8). Convert it to UTF-8."


def test_empty_standard_input_is_an_empty_prompt(run: Callable, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"\n")
    assert "The prompt is empty" in the_sentence(run("routes", folder, "-"))


# --- conversations


def test_chat_makes_the_prompt_a_turn_of_the_user(run: Callable) -> None:
    written = json.loads(succeeded(run("routes", "demo", "Is this risky?", "--chat", "--json")))
    assert written["text"] == "<bos><user> Is this risky?<assistant>"
    texts = [token["text"] for token in written["tokens"]]
    assert texts[:2] == ["<bos>", "<user>"]
    assert texts[-1] == "<assistant>"
    assert "".join(token["text"] for token in written["tokens"] if token["role"] == "user") == " Is this risky?"
    assert [token["role"] for token in written["tokens"] if token["role"] != "user"] == ["special"] * 3
    assert "".join(written["text"][slice(*token["offset"])] for token in written["tokens"]) == written["text"]


def test_a_system_prompt_is_the_first_message(
    run: Callable, load_once: Callable, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "chat.jinja").write_text(CHATML.jinja)
    model = {"path": str(checkpoint("gpt2")), "chat_template": str(tmp_path / "chat.jinja")}
    (tmp_path / "config.json").write_text(json.dumps({"models": {"mine": model}}))
    written = json.loads(
        succeeded(run("routes", "mine", "the", "--chat", "--system", "Mary", "--config", tmp_path / "config.json", "--json"))
    )
    assert written["text"] == "<|im_start|>system\nMary<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    roles = {role: "".join(t["text"] for t in written["tokens"] if t["role"] == role) for role in ("system", "user")}
    assert roles == {"system": "Mary", "user": "the"}


def test_what_a_conversation_lacks_is_a_sentence(run: Callable, folder: str) -> None:
    assert "has no chat template" in the_sentence(run("routes", folder, "the", "--chat"))
    assert the_sentence(run("routes", folder, "the", "--system", "Mary")) == (
        "--system is a part of a conversation. Add --chat, or put the text into PROMPT."
    )
    assert "The demo model knows the roles user and assistant, not system." in the_sentence(
        run("routes", "demo", "the", "--chat", "--system", "Mary")
    )


# --- adapters


@pytest.fixture(scope="session")
def adapter(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the tiny llama as PEFT saves it, with random weights."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], init_lora_weights=False)
    base = reference.load_plain(checkpoint("llama"))
    result = tmp_path_factory.mktemp("adapter")
    get_peft_model(base, config).save_pretrained(result)
    return result


def shown_probabilities(out: str) -> list[float]:
    return [float(line.split()[0]) for line in out.splitlines()[1:6]]


def test_an_adapter_is_merged_into_the_model(run: Callable, checkpoint: Callable, adapter: Path) -> None:
    base = str(checkpoint("llama"))
    without, merged = succeeded(run("routes", base, PROMPT)), succeeded(run("routes", base, PROMPT, "--adapter", adapter))
    tuned = PeftModel.from_pretrained(reference.load_plain(checkpoint("llama")), str(adapter)).eval()
    token_ids = [token["id"] for token in json.loads(succeeded(run("routes", base, PROMPT, "--json")))["tokens"]]
    with torch.no_grad():
        expected = tuned(torch.tensor([token_ids])).logits[0, -1].softmax(-1).topk(5).values.tolist()
    assert shown_probabilities(merged) == pytest.approx(expected, abs=6e-4)
    assert shown_probabilities(without) != pytest.approx(expected, abs=6e-4)
    assert merged.splitlines()[7:] != without.splitlines()[7:]


def test_the_folder_of_an_adapter_names_its_base(run: Callable, checkpoint: Callable, adapter: Path) -> None:
    alone = json.loads(succeeded(run("routes", adapter, PROMPT, "--json")))
    with_base = json.loads(succeeded(run("routes", checkpoint("llama"), PROMPT, "--adapter", adapter, "--json")))
    assert [edge["weight"] for edge in alone["edges"]] == pytest.approx([edge["weight"] for edge in with_base["edges"]], abs=1e-5)


def test_check_says_which_adapter_it_checked(run: Callable, checkpoint: Callable, adapter: Path) -> None:
    out = succeeded(run("check", checkpoint("llama"), "--adapter", adapter))
    assert f"{checkpoint('llama')} with adapter {adapter}\n" in out
    assert out.endswith("every part adds up\n")


@pytest.mark.parametrize("damage", ["missing", "no configuration", "broken configuration", "no weights", "broken weights"])
def test_an_adapter_that_cannot_be_read_gets_a_sentence(
    damage: str, run: Callable, checkpoint: Callable, adapter: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "adapter"
    if damage != "missing":
        shutil.copytree(adapter, copy)
    if damage == "no configuration":
        (copy / "adapter_config.json").unlink()
    elif damage == "broken configuration":
        (copy / "adapter_config.json").write_text('{"peft_type": "LORA", ')
    elif damage == "no weights":
        (copy / "adapter_model.safetensors").unlink()
    elif damage == "broken weights":
        (copy / "adapter_model.safetensors").write_bytes(b"not safetensors")
    assert str(copy) in the_sentence(run("routes", checkpoint("llama"), PROMPT, "--adapter", copy))
    if damage == "broken configuration":
        assert str(copy) in the_sentence(run("routes", copy, PROMPT))


def test_an_adapter_of_another_model_gets_a_sentence(run: Callable, folder: str, adapter: Path) -> None:
    assert str(adapter) in the_sentence(run("routes", folder, PROMPT, "--adapter", adapter))


# --- configuration


@pytest.fixture
def config(tmp_path: Path, checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """config(text): a configuration file beside a link to a model, called `here`."""

    def write(text: str) -> Path:
        (tmp_path / "here").symlink_to(checkpoint("gpt2"))
        file = tmp_path / "config.json"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("value", ['"./here"', '{"path": "here"}', '{"path": "here", "dtype": "float32", "device": "cpu"}'])
def test_a_name_of_the_configuration_is_its_model(value: str, run: Callable, folder: str, config: Callable) -> None:
    file = config(f'{{"models": {{"small": {value}}}}}  // a comment')
    named = json.loads(succeeded(run("routes", "small", PROMPT, "--config", file, "--json")))
    assert named["model"] == "small"
    bare = json.loads(succeeded(run("routes", folder, PROMPT, "--json")))
    assert named["tokens"] == bare["tokens"]
    assert [edge["weight"] for edge in named["edges"]] == pytest.approx([edge["weight"] for edge in bare["edges"]], abs=1e-5)
    assert succeeded(run("check", "small", "--config", file)).startswith("model       small\n")


def test_a_folder_may_be_given_though_there_is_a_configuration(run: Callable, folder: str, config: Callable) -> None:
    out = succeeded(run("routes", folder, PROMPT, "--config", config('{"models": {"small": "./here"}}')))
    assert f"{folder} predicts:" in out


def test_options_go_before_the_configuration(run: Callable, config: Callable) -> None:
    file = config('{"models": {"small": {"path": "here", "dtype": "float32"}}}')
    assert "dtype       bfloat16 on cpu, attention fused\n" in succeeded(run("check", "small", "--config", file, "--dtype", "bfloat16"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"models": {"small": "./here"}', ["is not valid JSON: line 1"]),
        ("[1, 2]", ["Expected an object"]),
        ('{"modles": {}}', ['unknown key "modles"', 'Did you mean "models"?']),
        ('{"models": {"small": {"pth": "here"}}}', ['unknown key "models.small.pth"', 'Did you mean "path"?']),
        ('{"models": {"small": {"path": 3}}}', ["models.small.path is 3", "Expected a text"]),
        ('{"models": {"small": {"dtype": "float23"}}}', ["models.small.dtype", "float23", 'Did you mean "float32"?']),
        ('{"models": {}, "models": {}}', ['the key "models" is there twice']),
    ],
)
def test_a_configuration_that_is_wrong_gets_a_sentence(text: str, words: list[str], run: Callable, config: Callable) -> None:
    file = config(text)
    sentence = the_sentence(run("routes", "small", PROMPT, "--config", file))
    for word in (str(file), *words):
        assert word in sentence


def test_a_configuration_that_is_missing_gets_a_sentence(run: Callable, tmp_path: Path) -> None:
    for command in (["routes", "small", PROMPT], ["check", "small"]):
        sentence = the_sentence(run(*command, "--config", tmp_path / "nowhere.json"))
        assert sentence == f'Configuration file "{tmp_path / "nowhere.json"}" does not exist.'


# --- models and prompts that cannot be used


@pytest.mark.parametrize("command", [["routes", PROMPT], ["check"]], ids=["routes", "check"])
@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["*"], "has no config.json"),
        (["tokenizer*", "special_tokens_map.json"], "has no tokenizer"),
        (["*.safetensors"], "has no weights"),
    ],
)
def test_a_folder_that_lacks_something_gets_a_sentence(
    command: list[str], missing: list[str], words: str, run: Callable, folder: str, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*missing))
    sentence = the_failure(run(command[0], copy, *command[1:]))
    assert f'Model folder "{copy}" {words}' in sentence


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_with_a_damaged_file_gets_a_sentence(file: str, run: Callable, folder: str, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / file).write_bytes((copy / file).read_bytes()[:100])
    result = run("check", copy)
    assert str(copy) in the_failure(result)
    assert ("family      gpt2\n" in result.out) == (file != "config.json")
    assert ("parameters  59,168 in its files\n" in result.out) == (file == "tokenizer.json")


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-model", "nobody/no-such-model", "x" * 300, " ", ""])
def test_a_model_that_is_not_there_gets_a_sentence(name: str, run: Callable) -> None:
    for command in (["routes", name, PROMPT], ["check", name]):
        assert (name.strip() or "No model is named") in the_sentence(run(*command))


@pytest.mark.parametrize("device", ["cuda:99", "banana", "cuda:x", "cuda:-1", ""])
def test_a_device_that_is_not_there_gets_a_sentence(device: str, run: Callable, folder: str) -> None:
    for command in (["routes", folder, PROMPT], ["check", folder]):
        assert f'"{device}"' in the_sentence(run(*command, "--device", device))


@pytest.mark.parametrize("prompt", ["", "   ", "\n"], ids=ascii)
def test_an_empty_prompt_gets_a_sentence(prompt: str, run: Callable, folder: str) -> None:
    assert the_sentence(run("routes", folder, prompt)).startswith("The prompt is empty.")


def test_a_prompt_longer_than_the_context_gets_a_sentence_with_both_numbers(run: Callable, folder: str) -> None:
    sentence = the_sentence(run("routes", folder, "x" * 300))
    assert f"The prompt has 300 tokens, but {folder} reads at most 256." in sentence
    assert "44" in sentence


def test_a_prompt_that_is_not_text_gets_a_sentence(run: Callable, folder: str) -> None:
    """What the shell passes on when an argument is not UTF-8."""
    assert "UTF-8" in the_sentence(run("routes", folder, b"caf\xe9".decode("utf-8", "surrogateescape")))


# --- check


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_check_prints_the_facts_and_every_layers_errors(name: str, run: Callable, checkpoint: Callable, model: Callable) -> None:
    out = succeeded(run("check", checkpoint(name)))
    info, report = model(name).info, identities.check(model(name))
    for line in (
        f"model       {checkpoint(name)}",
        f"family      {name}",
        f"parameters  {info.n_params:,}",
        "dtype       float32 on cpu, attention fused",
        "ok          every part adds up",
    ):
        assert line in out.splitlines()
    assert f"shape       3 layers, 4 heads ({info.n_kv_heads} key-value), width 32, {info.n_neurons} neurons" in out
    table = [line.split() for line in out.splitlines() if re.match(r" +\d+  ", line)]
    assert [int(row[0]) for row in table] == [0, 1, 2]
    for row, layer in zip(table, report.layers, strict=True):
        shown = [float(error) for error in row[1:]]
        assert shown == pytest.approx([layer.attention, layer.neurons, layer.residual, layer.future], rel=0.06)
        assert max(shown) <= 1e-5
        assert shown[0] > 0
    assert f"logits {report.logits:9.1e}" in out
    assert re.search(r"memory +about [\d.]+ [KM]B and [\d.]+ m?s for a trace of 128 tokens\n", out)
    assert "trace of 1024 tokens" not in out, "the model does not read so many"
    assert re.search(r"longest prompt the model reads: 256 tokens, about [\d.]+ [KM]B and [\d.]+ m?s\n", out)


def test_check_of_a_model_whose_parts_do_not_add_up_fails_with_the_table(
    run: Callable, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention_output = BridgeLlm.attention_output

    def broken(self: BridgeLlm, layer: int) -> Any:
        weight, bias = attention_output(self, layer)
        return (1.01 if layer == 1 else 1) * weight, bias

    monkeypatch.setattr(BridgeLlm, "attention_output", broken)
    result = run("check", folder)
    assert (result.status, result.err) == (1, "")
    table = {int(row[0]): float(row[1]) for row in map(str.split, result.out.splitlines()) if row and row[0].isdecimal()}
    assert table.keys() == {0, 1, 2}
    assert table[1] == pytest.approx(0.01, rel=0.2)
    assert max(table[0], table[2]) <= 1e-5
    last = result.out.splitlines()[-1]
    assert re.match(r"FAILED      layer 1: attention parts are off by (9\.\d|1\.[01])e-0[23] \(allowed 1e-04\)\. Likely cause: ", last)
    assert "adds up" not in result.out
    assert "layer 1: attention parts are off by" in the_sentence(run("routes", folder, PROMPT))


# --- the process around it


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["routes"],
        ["routes", "demo"],
        ["routes", "demo", "x", "--threshold", "abc"],
        ["routes", "demo", "x", "--target", "1.5"],
        ["routes", "demo", "x", "--json", "--graphml"],
        ["routes", "demo", "x", "--csv", "--node-link"],
        ["routes", "demo", "x", "--dtype", "int8"],
        ["check"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("usage: llm-tt")
    assert captured.out == ""


def test_an_interrupt_ends_the_command_quietly(run: Callable, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BridgeLlm, "run", interrupted)
    assert run("routes", folder, PROMPT) == Result(130, "", "")


@pytest.mark.parametrize("output", [[], ["--json"], ["--graphml"], ["--node-link"], ["--csv"]], ids=str)
def test_a_reader_that_goes_away_is_no_error(output: list[str], run: Callable, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    stream = open(write, "w", encoding="utf-8")  # noqa: SIM115
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        assert cli.main(["routes", folder, PROMPT, *output]) == 0
    # As the interpreter does at its end; it would say "Exception ignored in" and exit with 120.
    try:
        stream.close()
    except BrokenPipeError:
        pytest.fail("something was left to be written to the closed pipe")


@pytest.mark.parametrize("output", [[], ["--json"], ["--graphml"], ["--node-link"], ["--csv"]], ids=str)
def test_output_for_a_terminal_that_lacks_a_letter_is_still_given(
    output: list[str], run: Callable, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "mod\u00e8le \U0001f600"
    named.symlink_to(folder)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        assert cli.main(["routes", str(named), PROMPT, *output]) == 0
    stream.flush()
    if output == ["--json"]:
        assert json.loads(raw.getvalue())["model"] == str(named)
    else:
        assert b"A2_11" in raw.getvalue()


@pytest.mark.slow
def test_the_installed_command_prints_routes_and_nothing_else(folder: str, model: Callable) -> None:
    result = _command("routes", folder, "-", "--json", given=PROMPT)
    assert (result.returncode, result.stderr) == (0, "")
    assert_same_graph(result.stdout, llm_tt.extract_routes(model("gpt2").trace(PROMPT)), folder, model("gpt2").prompt(PROMPT))


def test_the_installed_command_refuses_a_wrong_configuration_before_it_imports_anything(tmp_path: Path) -> None:
    result = _command("check", "small", "--config", str(tmp_path / "nowhere.json"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f'llm-tt: Configuration file "{tmp_path / "nowhere.json"}" does not exist.\n'


def _command(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """`llm-tt` as it is installed, in an environment that says nothing about progress bars."""
    unset = ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = Path(sys.executable).with_name("llm-tt")
    assert command.is_file(), "install the package first: pip install -e ."
    return subprocess.run(
        [str(command), *arguments], input=given, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
