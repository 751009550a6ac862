"""A link opened, the URL followed, files saved and opened again: the page without a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from streamlit.testing.v1 import AppTest
from test_explore import DEMO, PROMPT, ROOT, answered, errors, frame

import llm_tt
from app.link import Selected, View, encode
from llm_tt.export import files
from llm_tt.export.saved import from_json
from llm_tt.lens.vocabulary import predictions
from llm_tt.text import ChatMessage, visible

Open = Callable[..., AppTest]


@pytest.fixture
def visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """visit(parameters, config=DEMO): the app as the browser opens it at such a URL."""
    import streamlit as st

    def visit(parameters: dict[str, str], config: dict[str, Any] | Path = DEMO) -> AppTest:
        file = config if isinstance(config, Path) else tmp_path / "config.json"
        if isinstance(config, dict):
            file.write_text(json.dumps(config))
        monkeypatch.setattr("sys.argv", ["app/main.py", str(file)])
        at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
        for name, value in parameters.items():
            at.query_params[name] = value
        return answered(at)

    yield visit
    st.cache_resource.clear()


@pytest.fixture(scope="module")
def trace() -> llm_tt.Trace:
    return llm_tt.load_model("demo").trace(PROMPT)


def link_of(at: AppTest) -> dict[str, str]:
    """The parameters of the link that the page offers."""
    code = next(code.value for code in at.code if "v=1" in code.value)
    return {name: value for name, (value,) in parse_qs(urlsplit(code).query, keep_blank_values=True).items()}


def notes(at: AppTest) -> str:
    return " ".join(warning.value.replace("\\", "") for warning in at.warning)


VIEW = View(
    model="demo",
    dtype="float32",
    prompt=PROMPT,
    target=11,
    threshold=0.02,
    renormalize=False,
    selected=Selected("I1_4", "A2_11", "attention"),
    token="\u00b7Mary",
    contrast="\u00b7John",
    normalize=False,
)


def test_a_link_restores_the_view_and_the_page_offers_the_same_link(visit: Open, trace: llm_tt.Trace) -> None:
    at = visit(encode(VIEW))
    assert not errors(at)
    assert not at.warning
    header, arrays = frame(at)
    graph = llm_tt.extract_routes(trace, 11, 0.02, renormalize=False)
    assert (header["target"], header["threshold"], header["renormalized"]) == (11, 0.02, False)
    assert arrays["weight"] == pytest.approx(graph.weight, abs=1e-6)
    assert arrays["source"].tolist() == graph.source.tolist()
    assert header["selection"] == {"type": "edge", "key": "attention", "from": "I1_4", "to": "A2_11"}
    assert header["effect_of"] == "\u00b7Mary \u2212 \u00b7John"
    assert at.toggle(key="normalize").value is False
    assert at.selectbox(key="dtype").value == "float32"
    assert link_of(at) == encode(VIEW)


def test_a_link_by_share_of_flow(visit: Open, trace: llm_tt.Trace) -> None:
    at = visit(encode(View(model="demo", prompt=PROMPT, mass=0.9)))
    assert not at.warning
    assert frame(at)[0]["mass"] == 0.9
    assert frame(at)[1]["weight"] == pytest.approx(llm_tt.extract_routes_by_mass(trace, mass=0.9).weight, abs=1e-6)
    assert link_of(at) == encode(View(model="demo", prompt=PROMPT, mass=0.9))


CHAT = (ChatMessage("user", "Is this payment risky? 900 dollars to Oslo"), ChatMessage("assistant", "no"), ChatMessage("user", "Why?"))


def test_a_link_to_a_conversation(visit: Open) -> None:
    view = View(model="demo", prompt=CHAT, target=3, selected=Selected("A1_2"))
    at = visit(encode(view))
    assert not at.warning
    header, _ = frame(at)
    assert header["tokens"] == list(llm_tt.load_model("demo").trace(list(CHAT)).token_texts)
    assert (header["target"], header["selection"]) == (3, {"type": "node", "node": "A1_2"})
    assert [at.text_area(key=key).value for key in ("prompt", "turn_0", "turn_1")] == [turn.content for turn in CHAT]
    assert link_of(at) == encode(view)


def test_the_link_follows_what_is_shown(visit: Open) -> None:
    at = visit({"utm_source": "elsewhere"})
    at.text_area(key="prompt").set_value("The capital of France is")
    assert link_of(answered(at)) == {"model": "demo", "prompt": "The capital of France is", "v": "1"}
    at.slider(key="threshold").set_value(0.03)
    at.session_state["target"] = 2
    at.session_state["selection"] = {"type": "node", "node": "M1_2"}
    expected = {"model": "demo", "prompt": "The capital of France is", "target": "2", "threshold": "0.03", "select": "M1_2", "v": "1"}
    assert link_of(answered(at)) == expected


def test_a_link_is_read_once(visit: Open) -> None:
    at = visit(encode(VIEW))
    at.text_area(key="prompt").set_value("The capital of France is")
    at.slider(key="threshold").set_value(0.05)
    header, _ = frame(answered(at))
    assert (header["threshold"], header["target"], header["prediction"]) == (0.05, 5, " Paris")


@pytest.mark.parametrize(
    ("change", "sentence", "lost"),
    [
        ({"model": "/no/such"}, 'The model "/no/such" is not on the menu of this server; what you see is of "demo".', "model"),
        ({"dtype": "int3"}, 'dtype "int3" is not one of auto, float32', "dtype"),
        ({"device": "cuda:7"}, 'device "cuda:7" is not one of auto', "device"),
        ({"target": "99"}, "The link explains token 99, but the prompt has 15; the last one is explained.", "target"),
        ({"target": "abc"}, 'target "abc" is not the number of a token', "target"),
        ({"select": "A2_77"}, "The link selects A2_77, but there are 15 tokens and 4 layers; nothing is selected.", "select"),
        ({"select": "A9_7"}, "The link selects A9_7", "select"),
        ({"select": "nonsense"}, 'selects "nonsense"', "select"),
        ({"threshold": "0.5"}, "The threshold 0.5 is outside 0.01 to 0.1; 0.1 is used.", "threshold"),
        ({"threshold": "x"}, 'threshold "x" is not a number', "threshold"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_broken_link_is_explained_and_the_rest_is_restored(visit: Open, change: dict[str, str], sentence: str, lost: str) -> None:
    parameters = encode(VIEW)
    if lost == "target":
        parameters["select"] = "A1_4"
    at = visit({**parameters, **change})
    assert not errors(at)
    assert sentence in notes(at)
    assert len(at.warning) == 1
    kept = {name: value for name, value in {**parameters, **change}.items() if name != lost}
    found = link_of(at)
    assert {name: found.get(name) for name in kept} == kept
    at.button(key="close_link_notes").click()
    assert not answered(at).warning


def test_a_share_of_flow_that_is_not_offered(visit: Open) -> None:
    at = visit({"prompt": PROMPT, "mass": "0.85"})
    assert "The share of flow 0.85 is not one of 0.8, 0.9, 0.95" in notes(at)
    assert frame(at)[0]["mass"] in (0.8, 0.9)


def test_a_prompt_that_cannot_be_unpacked_leaves_the_pages_own(visit: Open) -> None:
    at = visit({"model": "demo", "z": "garbage", "threshold": "0.02"}, ROOT / "config" / "local.json")
    assert "prompt cannot be unpacked" in notes(at)
    assert frame(at)[0]["threshold"] == 0.02
    assert at.text_area(key="prompt").value == PROMPT


def test_a_prompt_beyond_the_limit_of_the_server(visit: Open) -> None:
    at = visit({"prompt": PROMPT, "threshold": "0.02"}, DEMO | {"max_user_string_length": 10})
    assert f"The prompt has {len(PROMPT)} characters, but this server allows 10; it was left out." in notes(at)


def test_a_prompt_the_demo_server_does_not_offer(visit: Open) -> None:
    at = visit({"prompt": "tell me secrets", "threshold": "0.02"}, ROOT / "config" / "demo.json")
    assert "This server shows prepared prompts only" in notes(at)
    assert (frame(at)[0]["prediction"], frame(at)[0]["threshold"]) == (" Mary", 0.02)
    at = visit({"prompt": "The capital of France is"}, ROOT / "config" / "demo.json")
    assert not at.warning
    assert frame(at)[0]["prediction"] == " Paris"


def test_a_conversation_the_boxes_have_no_place_for(visit: Open) -> None:
    at = visit({"prompt": PROMPT, "chat": '[["assistant","hi"]]'})
    assert "does not alternate between user and assistant" in notes(at)


def test_a_conversation_for_a_model_without_a_template(visit: Open, checkpoint: Callable[[str], Path]) -> None:
    config = {"models": {"plain": str(checkpoint("gpt2"))}, "default_model": "plain"}
    at = visit({"model": "plain", "chat": '[["user","Mary the store."]]', "target": "1"}, config)
    assert not errors(at)
    assert "plain has no chat template; the first message is shown as a text." in notes(at)
    assert frame(at)[0]["tokens"] == list(llm_tt.load_model(str(checkpoint("gpt2"))).trace("Mary the store.").token_texts)


def test_a_prompt_too_long_for_a_link_is_said_with_the_way_out() -> None:
    def share() -> None:
        from app.link import View
        from app.panels import files

        files._share(View(model="demo", prompt="".join(chr(0x4E00 + (7919 * index) % 20000) for index in range(4000))))
        files._share(View(model="demo", prompt="short"))

    at = AppTest.from_function(share).run()
    (warning,) = at.warning
    assert "too long for a link (more than 6,000 characters when compressed)" in warning.value
    assert "save the graph as JSON" in warning.value
    assert [code.value for code in at.code] == ["?model=demo&v=1", "?model=demo&prompt=short&v=1"]


# --- a saved graph


def saved(trace: llm_tt.Trace, target: int = 11, threshold: float = 0.02, model: str = "demo", **more: Any) -> str:
    graph = llm_tt.extract_routes(trace, target, threshold, renormalize=False)
    more = {"predictions": predictions(trace, target, 10), "info": trace.model.info} | more
    return files.to_json(graph, model, trace.prompt, **more)


def open_file(at: AppTest, text: str | bytes, name: str = "graph.json") -> AppTest:
    uploader = next(uploader for uploader in at.file_uploader if uploader.label == "A graph, saved as JSON")
    uploader.set_value((name, text if isinstance(text, bytes) else text.encode(), "application/json"))
    at.run()
    assert not at.exception, at.exception[0].value
    return at


def test_a_saved_graph_is_shown_as_it_was_without_its_model(visit: Open, trace: llm_tt.Trace) -> None:
    written = saved(trace, model="somebody/else")
    at = open_file(visit({"prompt": "The capital of France is"}), written)
    header, arrays = frame(at)
    graph = llm_tt.extract_routes(trace, 11, 0.02, renormalize=False)
    assert (header["tokens"], header["target"], header["threshold"]) == (list(graph.token_texts), 11, 0.02)
    for name in ("kind", "layer", "source", "destination", "weight", "heads_start", "head", "head_weight"):
        assert arrays[name].tolist() == getattr(from_json(written).graph, name).tolist(), name
    assert arrays["weight"] == pytest.approx(graph.weight, abs=1e-6)
    assert at.dataframe[0].value["token"].tolist() == [visible(text) for text in predictions(trace, 11, 10).texts]
    said = " ".join(element.value for element in (*at.info, *at.caption))
    assert "**A saved graph**: graph.json, of somebody/else." in said
    assert "somebody/else is not on the menu" in said
    assert f"**{1 - graph.carried:.0%}** of the flow was dropped" in said  # type: ignore[operator]
    at.button(key="close_saved").click()
    assert frame(answered(at))[0]["prediction"] == " Paris"


def test_a_file_with_the_graph_alone_says_what_it_lacks(visit: Open, trace: llm_tt.Trace) -> None:
    content = files.to_dict(llm_tt.extract_routes(trace), "demo")
    del content["carried"]
    at = open_file(visit({"prompt": "The capital of France is"}), json.dumps(content))
    said = " ".join(element.value for element in at.caption)
    for lack in (
        "does not say how much was dropped",
        "does not hold what the model predicted",
        "does not say from which text its tokens came",
    ):
        assert lack in said
    assert frame(at)[0]["prediction"] is None
    assert frame(at)[1]["weight"].tolist() == pytest.approx(llm_tt.extract_routes(trace).weight.tolist(), abs=1e-6)
    assert "run_saved" not in [button.key for button in at.button]


def test_a_saved_graph_is_run_again_on_its_model(visit: Open, trace: llm_tt.Trace) -> None:
    at = open_file(visit({"prompt": "The capital of France is"}), saved(trace))
    at.button(key="run_saved").click()
    header, arrays = frame(answered(at))
    assert (header["target"], header["threshold"], header["renormalized"]) == (11, 0.02, False)
    assert arrays["weight"] == pytest.approx(llm_tt.extract_routes(trace, 11, 0.02, renormalize=False).weight, abs=1e-6)
    assert at.text_area(key="prompt").value == PROMPT


def test_a_saved_conversation_is_run_again(visit: Open) -> None:
    run = llm_tt.load_model("demo").trace(list(CHAT))
    at = open_file(visit({"prompt": PROMPT}), saved(run, 4, conversation=CHAT))
    at.button(key="run_saved").click()
    header, _ = frame(answered(at))
    assert (header["tokens"], header["target"]) == (list(run.token_texts), 4)


def test_what_a_saved_graph_tells_of_a_selection(visit: Open, trace: llm_tt.Trace) -> None:
    at = open_file(visit({"prompt": PROMPT}), saved(trace))
    graph = llm_tt.extract_routes(trace, 11, 0.02, renormalize=False)
    edge = next(edge for edge in graph.edges() if edge.kind.key == "attention")
    source, destination = edge.ends
    at.session_state["saved_graph_selection"] = {"type": "edge", "key": "attention", "from": source.name, "to": destination.name}
    at.run()
    assert f"weight **{edge.weight:.3f}**" in " ".join(element.value for element in at.markdown)
    heads = at.dataframe[1].value
    assert heads["weight"].tolist() == pytest.approx(list(edge.heads.values()), abs=1e-6)
    at.session_state["saved_graph_selection"] = {"type": "node", "node": source.name}
    at.run()
    flow = llm_tt.propagate(graph).node(source.name)
    assert f"**{flow:.1%}** of the flow of these routes passes here." in [element.value for element in at.markdown]


@pytest.mark.parametrize("text", [b"\xff", "{}", '{"format": "llm-tt-graph", "version": 9}', "[1"])
def test_a_file_that_is_no_graph_is_a_sentence_and_the_page_stays(visit: Open, text: str | bytes) -> None:
    at = open_file(visit({"prompt": PROMPT}), text)
    (message,) = errors(at)
    assert message.replace("\\", "").startswith("graph.json: The file ")
    assert frame(at)[0]["prediction"] == " Mary"


def test_a_token_in_a_file_is_never_markup(visit: Open, trace: llm_tt.Trace) -> None:
    content = json.loads(saved(trace, model="<b>*x*</b>"))
    content["tokens"][3]["text"] = "<script>alert(1)</script>"
    at = open_file(visit({"prompt": PROMPT}), json.dumps(content), "<i>graph</i>.json")
    strip = next(element.proto.body for element in at.get("html") if "sources" in element.proto.body)
    assert "<script>" not in strip
    assert "\\<i\\>graph\\</i\\>.json, of \\<b\\>\\*x\\*\\</b\\>" in at.info[0].value


@pytest.mark.parametrize("config", [ROOT / "config" / "demo.json", DEMO | {"allow_loading_dataset_files": False}], ids=["demo", "no files"])
def test_a_server_without_files_opens_no_graph(visit: Open, config: Any) -> None:
    assert not list(visit({}, config).file_uploader)


# --- the table


def test_the_table_has_every_edge_and_follows_the_selection(visit: Open, trace: llm_tt.Trace) -> None:
    at = visit({"prompt": PROMPT})
    at.session_state["edges"] = True
    graph, effects = llm_tt.extract_routes(trace), llm_tt.direct_effects(trace)
    edge = next((found.ends[0].name, found.ends[1].name) for found in graph.edges() if found.kind.key == "attention")
    at.session_state["selection"] = {"type": "edge", "key": "attention", "from": edge[0], "to": edge[1]}
    at = answered(at)
    table = next(table.value for table in at.dataframe if "kind" in table.value.columns)
    expected = sorted(
        (
            (*(node.name for node in found.ends), found.weight, effect, found.heads)
            for found, effect in zip(graph.edges(), effects.of_edges(graph), strict=True)
        ),
        key=lambda row: -row[2],
    )
    assert len(table) == graph.n_edges
    assert table["weight"].tolist() == pytest.approx([row[2] for row in expected], abs=1e-6)
    assert {tuple(row) for row in table[["from", "to"]].itertuples(index=False)} == {row[:2] for row in expected}
    assert table["effect"].tolist() == pytest.approx([row[3] for row in expected], abs=1e-4, nan_ok=True)
    heads = [", ".join(f"{head}: {weight:.3f}" for head, weight in row[4].items()) for row in expected]
    assert table["heads"].tolist() == heads
    (row,) = at.session_state["graph_table"]["selection"]["rows"]
    assert table.iloc[row][["from", "to", "kind"]].tolist() == [*edge, "attention"]
    at.session_state["selection"] = {"type": "node", "node": "A3_14"}
    assert answered(at).session_state["graph_table"]["selection"]["rows"] == []


def test_a_link_continues_its_prompt_with_the_very_tokens(visit: Open) -> None:
    model = llm_tt.load_model("demo")
    came = [token.token_id for token in llm_tt.generate(model, PROMPT, 4, temperature=2.0, seed=5)]
    explained = model.trace(PROMPT, continuation=came)
    target = explained.n_tokens - 3
    shown = View(model="demo", prompt=PROMPT, continuation=tuple(came), target=target)
    at = visit(encode(shown))
    assert not errors(at)
    assert not notes(at)
    header, _ = frame(at)
    assert header["target"] == target
    assert header["tokens"] == list(explained.token_texts)
    assert header["roles"][-len(came) :] == ["continuation"] * len(came)
    assert any(caption.value == "4 tokens, as the link has them." for caption in at.caption)
    assert link_of(at)["continue"] == ".".join(map(str, came))


def test_tokens_that_the_model_lacks_are_left_out_with_a_sentence(visit: Open) -> None:
    at = visit(encode(View(model="demo", prompt=PROMPT, continuation=(5, 99_999))))
    assert any("99999" in error for error in errors(at))
    header, _ = frame(at)
    assert "continuation" not in header["roles"]


def test_a_server_that_restricts_prompts_shows_the_prompt_alone(visit: Open, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPT)
    config = {**DEMO, "demo_mode": True, "preloaded_dataset_filename": "prompts.txt"}
    at = visit(encode(View(model="demo", prompt=PROMPT, continuation=(5, 6))), config)
    assert any("knows no continuation of this prompt" in error for error in errors(at))
    header, _ = frame(at)
    assert "continuation" not in header["roles"]
