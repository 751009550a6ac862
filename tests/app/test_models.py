"""Adding, listing and unloading models on the page, without a browser."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
from streamlit.testing.v1 import AppTest
from test_explore import DEMO, Start, answered, errors, frame, start  # noqa: F401

import llm_tt
from app import session
from app.markup import escaped
from app.panels import sidebar
from app.session import Service
from llm_tt.config import AppConfig, ModelSpec, load_config
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import ModelFacts, ModelKey
from llm_tt.models.info import FfnShape, ModelInfo, TokenizerInfo

PATIENCE = 60.0


def press(at: AppTest, key: str) -> AppTest:
    at.button(key=key).click()
    return answered(at)


def fill(at: AppTest, **values: str) -> AppTest:
    for name, value in values.items():
        at.text_input(key=f"add_{name}").set_value(value)
    return answered(at)


def check(at: AppTest) -> AppTest:
    """Press "Check and add" and wait for the outcome, as the dialog's polling does."""
    at.button(key="check_and_add").click()
    at.run()
    adding = at.session_state["adding"]
    if adding.conversation.job is not None:
        engine().wait(adding.conversation.job, PATIENCE)
    return answered(at)


def engine() -> LocalEngine:
    """That of the configuration which the test started the app on."""
    return session.service(Path(sys.argv[1])).engine


def texts(elements: Any) -> str:
    return "\n".join(element.value for element in elements)


def copied(at: AppTest) -> str:
    """What the dialog offers to copy; the page itself offers its link."""
    (text,) = [code.value for code in at.code if "v=1" not in code.value]
    return text


def keys(at: AppTest) -> set[str | None]:
    return {button.key for button in at.button}


def test_a_model_is_added_chosen_and_its_line_shown(start: Start, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:  # noqa: F811
    at = press(start(DEMO), "add_model")
    folder = checkpoint("llama")
    at = fill(at, path=f' "{folder}" ')
    assert at.text_input(key="add_name").placeholder == folder.name
    at = check(fill(at, name="last night"))
    assert "**last night** is on the menu" in texts(at.success)
    assert copied(at) == f'"last night": "{folder}",'
    assert at.selectbox(key="model").value == "last night"
    assert at.selectbox(key="model").options == ["demo", "last night"]
    expected = llm_tt.extract_routes(llm_tt.load_model(str(folder)).trace(at.text_area(key="prompt").value))
    assert frame(at)[1]["weight"] == pytest.approx(expected.weight, abs=1e-6)
    at = press(at, "done_adding")
    assert "done_adding" not in keys(at)
    lines = '{"models": {\n"last night": "' + str(folder) + '",\n"demo": null}}'
    (tmp_path / "kept.json").write_text(lines)
    assert load_config(tmp_path / "kept.json").models["last night"].path == str(folder)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"path": ""}, "No model is named"),
        ({"path": "/no/such/folder"}, 'Model folder "/no/such/folder" does not exist'),
        ({"path": "C:\\models\\mine"}, "is a path of a Windows machine"),
        ({"path": "demo", "name": "demo"}, 'The name "demo" is in the configuration already'),
        ({"path": "demo", "name": "x", "chat_template": "/no/such.jinja"}, 'chat template file "/no/such.jinja" does not exist'),
        ({"path": "demo", "name": "x", "adapter": "demo"}, "is a whole model and no adapter"),
    ],
)
def test_what_cannot_be_added_is_said_in_place_and_nothing_typed_is_lost(start: Start, values: dict[str, str], sentence: str) -> None:  # noqa: F811
    at = check(fill(press(start(DEMO), "add_model"), **values))
    (message,) = errors(at)
    assert escaped(sentence) in message
    for name, value in values.items():
        assert at.text_input(key=f"add_{name}").value == value
    at.session_state["dialog"] = None
    at = answered(at)
    assert "check_and_add" not in keys(at)
    at = press(at, "add_model")
    for name, value in values.items():
        assert at.text_input(key=f"add_{name}").value == value
    assert frame(at)[0]["prediction"] == " Mary"


def test_pickles_are_refused_with_the_place_where_they_can_be_allowed(start: Start, tmp_path: Path) -> None:  # noqa: F811
    import torch

    model = families.random_model(families.FAMILIES["llama"]())
    model.config.save_pretrained(tmp_path / "pickled")
    families.metaspace_tokenizer().save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    at = check(fill(press(start(DEMO), "add_model"), path=str(tmp_path / "pickled")))
    assert escaped('"allow_pickle": true') in errors(at)[0]
    assert "This is set in the configuration file only" in texts(at.caption)


def test_a_run_folder_offers_its_checkpoints(start: Start, tmp_path: Path) -> None:  # noqa: F811
    for step in (500, 1000):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{step}" / "config.json").write_text("{}")
    at = fill(press(start(DEMO), "add_model"), path=str(tmp_path / "run"))
    assert "holds 2 of them" in texts(at.caption)
    pills = at.button_group(key="add_path_found")
    assert pills.options == ["checkpoint-1000", "checkpoint-500"]
    pills.set_value(str(tmp_path / "run" / "checkpoint-500"))
    assert answered(at).text_input(key="add_path").value == str(tmp_path / "run" / "checkpoint-500")


def test_a_load_shows_its_progress_and_can_be_cancelled(
    start: Start,  # noqa: F811
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = fill(press(start(DEMO), "add_model"), path=str(checkpoint("llama")), name="slow")
    reached, go_on = threading.Event(), threading.Event()
    import llm_tt.models

    load = llm_tt.models.load_unchecked

    def slowly(spec: Any, progress: Any, **options: Any) -> Any:
        progress("Loading the weights of slow: 3 of 9", 0.3)
        reached.set()
        assert go_on.wait(PATIENCE)
        return load(spec, progress=progress, **options)

    monkeypatch.setattr(llm_tt.models, "load_unchecked", slowly)
    at.button(key="check_and_add").click()
    at.run()
    assert reached.wait(PATIENCE)
    at.run()
    assert not at.exception
    assert "check_and_add" not in keys(at)
    assert at.text_input(key="add_path").disabled
    at.button(key="cancel_adding").click()
    at.run()
    go_on.set()
    engine().wait(at.session_state["adding"].conversation.job, PATIENCE)
    at = answered(at)
    assert "Cancelled. Nothing was added." in texts(at.info)
    assert at.text_input(key="add_name").value == "slow"
    assert at.selectbox(key="model").options == ["demo"]


def test_memory_lists_unloads_and_the_graph_stays(start: Start) -> None:  # noqa: F811
    at = start(DEMO)
    at.session_state["selection"] = {"type": "node", "node": "I1_4"}
    at = press(answered(at), "memory")
    shown = texts(at.markdown)
    assert "**demo**" in shown
    assert "982,528 parameters · float32 on cpu" in shown
    assert "1 trace" in shown
    at = press(at, "unload_0")
    assert "No model is loaded" in texts(at.caption)
    assert not engine().is_loaded(ModelKey("demo"))
    assert frame(at)[0]["prediction"] == " Mary"
    assert "no longer in memory" in texts(at.info)
    at = press(at, "load_again")
    assert engine().is_loaded(ModelKey("demo"))
    assert "no longer in memory" not in texts(at.info)


def test_another_users_choice_stays_when_a_model_is_added_and_he_sees_it(start: Start, checkpoint: Callable[[str], Path]) -> None:  # noqa: F811
    config = {"models": {"demo": None, "other": str(checkpoint("gpt2"))}, "default_model": "demo"}
    other = start(config)
    other.selectbox(key="model").set_value("other")
    other = answered(other)
    at = check(fill(press(answered(AppTest.from_file(other._script_path, default_timeout=60)), "add_model"), path="demo", name="twin"))
    assert at.selectbox(key="model").value == "twin"
    other = answered(other)
    assert other.selectbox(key="model").value == "other"
    assert other.selectbox(key="model").options == ["demo", "other", "twin"]


def test_added_models_outlive_an_edit_of_the_configuration_and_can_be_removed(start: Start, tmp_path: Path) -> None:  # noqa: F811
    at = check(fill(press(start(DEMO), "add_model"), path="demo", name="twin"))
    at = press(at, "done_adding")
    (tmp_path / "config.json").write_text(json.dumps(DEMO | {"debug": True}))
    at = press(answered(at), "memory")
    assert at.selectbox(key="model").options == ["demo", "twin"]
    assert copied(at) == '"twin": "demo",'
    at = press(at, "forget_0")
    at = answered(at)
    assert "forget_0" not in keys(at)
    assert engine().model_names() == ("demo",)


@pytest.mark.parametrize("settings", [{"allow_adding_models": False}, {"demo_mode": True}])
def test_where_models_may_not_be_added_there_is_no_way_to(start: Start, settings: dict[str, bool], tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "prompts.txt").write_text("When Mary and John went to the store, John gave a drink to")
    at = start(DEMO | settings | {"preloaded_dataset_filename": "prompts.txt"}, prompt=None)
    assert "add_model" not in keys(at)
    assert "memory" in keys(at)
    assert not at.selectbox(key="model").proto.accept_new_options


# --- model facts


def info(**changes: Any) -> ModelInfo:
    shape: dict[str, Any] = {"n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_model": 32, "d_head": 8, "n_neurons": 64, "d_vocab": 400}
    return ModelInfo(
        name="mine",
        family="mixtral",
        n_ctx=256,
        n_params=1,
        dtype="float32",
        device="cuda:0",
        norm="rms",
        norm_eps=1e-6,
        **(shape | changes),
    )


@pytest.mark.parametrize(
    ("ffn", "text"),
    [
        ((), "64 neurons"),
        ((FfnShape(64),) * 3, "64 neurons"),
        ((FfnShape(14336, 8),) * 3, "8 experts of 14336 neurons"),
        (
            (FfnShape(64), FfnShape(32, 16, 48), FfnShape(32, 16, 48)),
            "64 neurons in 1 layer; 16 experts of 32 neurons, 48 shared in 2 layers",
        ),
        ((FfnShape(0), FfnShape(64), FfnShape(64)), "no neurons shown in 1 layer; 64 neurons in 2 layers"),
    ],
)
def test_the_facts_say_what_neurons_there_are(ffn: tuple[FfnShape, ...], text: str) -> None:
    assert sidebar._ffn(info(ffn=ffn)) == text


def facts_panel(facts: ModelFacts, name: str) -> AppTest:
    """The facts of a model of that name; "tuned" is configured with its base, "plain" is not."""
    config = AppConfig(models={"plain": ModelSpec(name="plain", path="/m"), "tuned": ModelSpec(name="tuned", path="/t", base="/m")})

    def script(service, name, facts) -> None:  # Its source is run alone, without the imports above.
        from app.panels import sidebar
        from llm_tt.engine.messages import ModelKey

        sidebar.show_facts(service, ModelKey(name), facts)

    service = Service(Path("config.json"), config, LocalEngine(config))
    return AppTest.from_function(script, kwargs={"service": service, "name": name, "facts": facts}).run()


@pytest.mark.parametrize(("name", "offered"), [("plain", False), ("tuned", True)])
def test_what_a_tuning_changed_can_be_asked_of_tuned_models_only(name: str, offered: bool) -> None:
    at = facts_panel(ModelFacts(info(notes=("All of it was loaded as float32.",)), 1e-6, 1e-4, 1.0), name)
    assert not at.exception
    assert [button.label for button in at.button] == (["Did the tuning take?"] if offered else [])
    assert "All of it was loaded as float32." in texts(at.caption)


def test_the_facts_say_what_is_not_shown_and_never_as_markup() -> None:
    tokenizer = TokenizerInfo(400, ("<s>",), (), ("<s>", "</s>"), "checkpoint")
    facts = ModelFacts(
        info(adapter="/runs/my_lora_v3", tokenizer=tokenizer, logits_error=2e-7, not_shown=("Neurons of *expert* layers.",)),
        1e-6,
        1e-4,
        1.0,
    )

    at = facts_panel(facts, "plain")
    assert not at.exception
    shown = at.table[0].value["value"].to_dict()
    assert shown["adapter"] == "/runs/my\\_lora\\_v3"
    assert shown["put in front"] == "\\<s\\>"
    assert shown["chat template"] == "its own"
    assert shown["logits equal to"] == "2e-07 (relative)"
    assert shown["runs in"] == "float32 on cuda\\:0"
    assert "Neurons of \\*expert\\* layers." in texts(at.caption)
