"""The Explore page without a browser: Streamlit's AppTest runs the real script against the real engine and the demo model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from polling import answered
from streamlit.testing.v1 import AppTest

import llm_tt
from llm_tt.components.graph.frame import unpack
from llm_tt.demo import MODEL_DIR
from llm_tt.lens.vocabulary import predictions, top_tokens
from llm_tt.text import visible

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "When Mary and John went to the store, John gave a drink to"
DEMO = {"models": {"demo": None}, "default_model": "demo"}

Start = Callable[..., AppTest]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start the app on a configuration given as a dict, as text, as a path, or not at all."""

    def start(config: dict[str, Any] | str | Path | None, prompt: str | None = PROMPT) -> AppTest:
        file = config if isinstance(config, Path) else tmp_path / "config.json"
        if isinstance(config, dict | str):
            file.write_text(config if isinstance(config, str) else json.dumps(config))
        monkeypatch.setattr("sys.argv", ["app/main.py"] if config is None else ["app/main.py", str(file)])
        at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
        if prompt is not None:
            at.session_state["prompt"] = prompt
        return answered(at)

    yield start
    st.cache_resource.clear()


def errors(at: AppTest) -> list[str]:
    return [element.value for element in at.error]


def frame(at: AppTest) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the component was sent."""
    (component,) = (sent for sent in at.get("bidi_component") if sent.proto.bytes)
    return unpack(component.proto.bytes)


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


def test_the_graph_sent_is_the_one_the_library_computes(start: Start, trace: llm_tt.Trace) -> None:
    at = start(DEMO)
    header, arrays = frame(at)
    graph = llm_tt.extract_routes(trace)
    assert header["tokens"] == list(trace.token_texts)
    assert (header["target"], header["n_layers"], header["threshold"]) == (trace.n_tokens - 1, trace.n_layers, 0.04)
    for name in ("kind", "layer", "source", "destination", "heads_start", "head"):
        assert arrays[name].tolist() == getattr(graph, name).tolist(), name
    assert arrays["weight"] == pytest.approx(graph.weight, abs=1e-6)
    assert arrays["head_weight"] == pytest.approx(graph.head_weight, abs=1e-6)
    assert header["prediction"] == " Mary"
    assert header["probability"] == pytest.approx(float(trace.logits(-1).softmax(-1).max()), abs=1e-5)


def test_predictions_are_the_models_own(start: Start, trace: llm_tt.Trace) -> None:
    table = start(DEMO).dataframe[0].value
    best = trace.logits(-1).softmax(-1).topk(10)
    assert table["token"].tolist() == [visible(text) for text in trace.model.texts(best.indices.tolist())]
    assert table["probability"].tolist() == pytest.approx(best.values.tolist(), abs=1e-6)


def test_threshold_and_renormalise_are_what_the_sidebar_says(start: Start, trace: llm_tt.Trace) -> None:
    at = start(DEMO)
    at.slider(key="threshold").set_value(0.02)
    at.toggle(key="renormalize").set_value(False)
    header, arrays = frame(answered(at))
    graph = llm_tt.extract_routes(trace, threshold=0.02, renormalize=False)
    assert (header["threshold"], header["renormalized"]) == (0.02, False)
    assert arrays["weight"] == pytest.approx(graph.weight, abs=1e-6)


def test_a_selected_node_is_read_and_survives_another_threshold(start: Start, trace: llm_tt.Trace) -> None:
    at = start(DEMO)
    at.session_state["selection"] = {"type": "node", "node": "I1_4"}
    at.slider(key="threshold").set_value(0.05)
    at = answered(at)
    assert frame(at)[0]["selection"] == {"type": "node", "node": "I1_4"}
    block = trace.blocks[1]
    expected = top_tokens(trace.model, block.resid_post[4], 30, block.resid_mid[4])
    table = at.dataframe[2].value
    assert table["token"].tolist() == [visible(text) for text in expected.texts]
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert expected.rank_changes is not None
    assert table["moved"].tolist() == expected.rank_changes.tolist()
    assert {"promoted", "suppressed"} <= {column["label"] for frame in at.dataframe for column in _columns(frame)}


def _columns(dataframe: Any) -> list[dict[str, Any]]:
    return [column for column in json.loads(dataframe.proto.columns).values() if column.get("label")]


def test_a_selected_edge_shows_its_heads(start: Start, trace: llm_tt.Trace) -> None:
    at = start(DEMO)
    edge = next(edge for edge in llm_tt.extract_routes(trace).edges() if edge.kind.key == "attention")
    source, destination = (node.name for node in edge.ends)
    at.session_state["selection"] = {"type": "edge", "key": "attention", "from": source, "to": destination}
    table = answered(at).dataframe[2].value
    contributions = llm_tt.attention_contributions(trace, edge.layer, [edge.destination]).edges[0, edge.source]
    assert table["head"][0] == "all heads"
    shares = [float(contributions.sum()), *sorted(contributions.tolist(), reverse=True)]
    assert table["contribution"].tolist() == pytest.approx(shares, abs=1e-6)
    assert table["drawn"].dropna().tolist() == pytest.approx([edge.weight, *edge.heads.values()], abs=1e-6)


def test_another_target_and_a_new_prompt_that_forgets_it(start: Start, trace: llm_tt.Trace) -> None:
    at = start(DEMO)
    at.session_state["target"] = 4
    at = answered(at)
    assert frame(at)[0]["target"] == 4
    assert frame(at)[1]["weight"] == pytest.approx(llm_tt.extract_routes(trace, 4).weight, abs=1e-6)
    at.text_area(key="prompt").set_value("The capital of France is")
    header, _ = frame(answered(at))
    assert (header["target"], header["tokens"][-1], header["prediction"]) == (len(header["tokens"]) - 1, " is", " Paris")


def test_the_model_facts_are_shown(start: Start, trace: llm_tt.Trace) -> None:
    at = start(DEMO)
    shown = at.sidebar.table[0].value.to_string()
    info = trace.model.info
    for fact in (info.family, f"{info.n_params:,}", f"{info.n_heads} ({info.n_kv_heads} key-value)", f"{info.dtype} on {info.device}"):
        assert fact in shown


def test_examples_fill_the_prompt(start: Start) -> None:
    at = start(ROOT / "config" / "local.json", prompt=None)
    assert at.text_area(key="prompt").value == PROMPT
    at.selectbox(key="example").set_value("The capital of France is")
    assert answered(at).text_area(key="prompt").value == "The capital of France is"
    assert frame(at)[0]["prediction"] == " Paris"


# --- what can go wrong


def test_a_missing_configuration_is_named(start: Start, tmp_path: Path) -> None:
    (message,) = errors(start(tmp_path / "nowhere.json"))
    assert f'"{tmp_path / "nowhere.json"}" does not exist' in message


def test_a_broken_configuration_is_located(start: Start) -> None:
    (message,) = errors(start('{\n  "models": {"demo" null}\n}'))
    assert "not valid JSON: line 2, column 21" in message


def test_an_unknown_key_gets_the_nearest_name(start: Start) -> None:
    (message,) = errors(start({"modles": {"demo": None}}))
    assert 'unknown key "modles"' in message
    assert 'Did you mean "models"?' in message


def test_a_configuration_that_is_not_utf8(start: Start, tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"models": {"caf\xe9": null}}')
    (message,) = errors(start(tmp_path / "latin.json"))
    assert "is not UTF-8 text" in message


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (None, "does not exist"),
        ("tokenizer*", "has no tokenizer"),
        ("*.safetensors", "has no weights"),
        ("config.json", "has no config.json"),
    ],
)
def test_an_unusable_model_folder_is_explained_and_the_prompt_is_kept(
    start: Start, tmp_path: Path, left_out: str | None, message: str
) -> None:
    folder = tmp_path / "model"
    if left_out is not None:
        shutil.copytree(MODEL_DIR, folder)
        for file in folder.glob(left_out):
            file.unlink()
    at = start({"models": {"mine": str(folder), "demo": None}, "default_model": "mine"})
    (shown,) = errors(at)
    assert message in shown
    assert str(folder) in shown
    assert at.text_area(key="prompt").value == PROMPT
    at.selectbox(key="model").set_value("demo")
    assert not errors(answered(at))
    assert frame(at)[0]["prediction"] == " Mary"


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_an_empty_prompt_says_what_to_do(start: Start, prompt: str) -> None:
    at = start(DEMO, prompt)
    assert "The prompt is empty" in at.info[0].value
    assert not errors(at)


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers_and_kept(start: Start, trace: llm_tt.Trace) -> None:
    n_ctx = trace.model.info.n_ctx
    prompt = "the " * (n_ctx + 10)
    at = start(DEMO, prompt)
    (message,) = errors(at)
    assert f"reads at most {n_ctx}" in message
    assert str(len(trace.model.encode(prompt))) in message
    assert at.text_area(key="prompt").value == prompt


def test_a_prompt_file_that_is_missing_or_not_utf8_is_a_warning_not_a_stop(start: Start, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9\n")
    at = start(DEMO | {"preloaded_dataset_filename": "prompts.txt"})
    assert "is not UTF-8 text" in at.warning[0].value
    assert frame(at)[0]["prediction"] == " Mary"
    at = start(DEMO | {"preloaded_dataset_filename": "none.txt"})
    assert "does not exist" in at.warning[0].value


def test_an_uploaded_prompt_file_that_is_not_utf8_is_refused(start: Start) -> None:
    at = start(DEMO)
    at.file_uploader(key="prompt_file").set_value(("mine.txt", b"caf\xe9", "text/plain"))
    (message,) = errors(answered(at))
    assert '"mine.txt" is not UTF-8 text' in message


def test_an_uploaded_prompt_file_gives_the_examples(start: Start) -> None:
    at = start(DEMO)
    at.file_uploader(key="prompt_file").set_value(("mine.txt", b"The capital of France is\n\nRome is", "text/plain"))
    assert answered(at).selectbox(key="example").options == ["The capital of France is", "Rome is"]


def test_no_model_chosen_says_where_to_choose(start: Start) -> None:
    at = start({"models": {"demo": None}, "default_model": ""})
    assert "Choose a model" in at.info[0].value


def test_demo_mode_offers_its_prompts_only(start: Start) -> None:
    at = start(ROOT / "config" / "demo.json", prompt=None)
    assert at.text_area(key="prompt").disabled
    assert frame(at)[0]["prediction"] == " Mary"
    at.session_state["prompt"] = "something else"
    (message,) = errors(answered(at))
    assert "prepared prompts only" in message


def test_demo_mode_says_that_it_is_one_what_is_off_and_why(start: Start) -> None:
    at = start(ROOT / "config" / "demo.json", prompt=None)
    (note,) = (info.value for info in at.sidebar.info if "**Demo.**" in info.value)
    for part in ("since anybody may use this server", "writing prompts", "opening prompt files", "adding and unloading models"):
        assert part in note
    assert "choose one under Examples" in at.text_area(key="prompt").help
    assert "others cannot be added" in at.selectbox(key="model").help
    assert not at.get("file_uploader")
    at.button(key="memory").click()
    at = answered(at)
    assert at.button(key="unload_0").disabled
    assert "Off in this demo" in at.button(key="unload_0").help
    assert not any("no prompts" in warning.value for warning in at.warning)


def test_elsewhere_nothing_is_said_of_a_demo(start: Start) -> None:
    at = start(DEMO)
    assert not at.sidebar.info
    at.button(key="memory").click()
    at = answered(at)
    assert not at.button(key="unload_0").disabled
    helps = [at.button(key="unload_0").help, at.text_area(key="prompt").help, at.selectbox(key="model").help]
    assert not any("demo" in text for text in helps)


def test_a_demo_without_prompts_says_what_to_do(start: Start) -> None:
    at = start({**DEMO, "demo_mode": True}, prompt=None)
    assert any("preloaded_dataset_filename" in warning.value for warning in at.warning)


def test_a_cancelled_question_can_be_asked_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    at = start(DEMO)
    conversation = at.session_state["conversation"]
    conversation.phase, conversation.message = "cancelled", "Cancelled."
    at.run()
    assert "Cancelled." in at.info[0].value
    at.button[0].click()
    assert not errors(answered(at))
    assert at.session_state["conversation"].phase == "answered"


def test_a_question_to_an_engine_that_has_gone_is_explained_and_can_be_asked_again(start: Start) -> None:
    at = start(DEMO)
    conversation = at.session_state["conversation"]
    conversation.phase, conversation.job = "working", "a job of the engine before"
    at.run()
    (message,) = errors(at)
    assert "the server was restarted" in message
    at.button[0].click()
    assert not errors(answered(at))


def test_shown_predictions_follow_the_target(start: Start, trace: llm_tt.Trace) -> None:
    at = start(DEMO)
    at.session_state["target"] = 1
    table = answered(at).dataframe[0].value
    assert table["token"].tolist() == [visible(text) for text in predictions(trace, 1, 10).texts]
