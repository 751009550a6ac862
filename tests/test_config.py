"""The configuration file: LM-TT's loads as it is, and what is wrong is told in one sentence with its place, its value and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llm_tt.config import AppConfig, ModelSpec, load_config, parse_prompts, read_prompts
from llm_tt.demo import MODEL_DIR
from llm_tt.errors import ConfigError

LMTT_FILE = Path(__file__).parent / "data" / "lmtt_local.json"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """write(content): a configuration file of this text, of these bytes or of this object."""

    def written(content: Any) -> Path:
        file = tmp_path / "local.json"
        data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
        file.write_bytes(data)
        return file

    return written


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    text = str(caught.value)
    assert f'"{file}"' in text, "the message names the file"
    assert "\n" not in text
    assert "pydantic" not in text
    assert text.endswith((".", "?", "}"))
    return text


# --- LM-TT's file


def test_lmtts_file_loads_as_it_is() -> None:
    assert "//" in LMTT_FILE.read_text(), "the file has comments"
    config = load_config(LMTT_FILE)
    assert config.allow_loading_dataset_files
    assert config.debug
    assert not config.demo_mode
    assert config.default_model == ""
    assert "" not in config.models
    assert len(config.models) == 31
    assert config.models["gpt2"] == ModelSpec(name="gpt2")
    assert config.models["/home/ada/.cache/Qwen1.5-14B-Chat/"].name == "/home/ada/.cache/Qwen1.5-14B-Chat/"
    assert config.max_user_string_length is None
    assert config.preloaded_dataset_filename is not None
    assert Path(config.preloaded_dataset_filename).name == "sample_input.txt"


def test_models_map_a_name_to_nothing_to_a_folder_or_to_an_object(write: Callable) -> None:
    models = {"a": None, "b": "/models/b", "c": {"path": "/models/c", "dtype": "bfloat16", "device": "cuda:1", "trust_remote_code": True}}
    loaded = load_config(write({"models": models, "default_model": "b", "max_user_string_length": 100})).models
    assert loaded["a"] == ModelSpec(name="a")
    assert loaded["b"] == ModelSpec(name="b", path="/models/b")
    assert loaded["c"] == ModelSpec(name="c", path="/models/c", dtype="bfloat16", device="cuda:1", trust_remote_code=True)


def test_an_empty_object_offers_the_demo(write: Callable) -> None:
    assert load_config(write({})) == AppConfig()
    assert list(AppConfig().models) == ["demo"]


@pytest.mark.parametrize("entry", [None, {}, {"dtype": "float32"}, "demo", {"path": "demo"}])
def test_the_demo_is_found_wherever_the_configuration_lies(entry: Any, write: Callable) -> None:
    assert load_config(write({"models": {"demo": entry}})).models["demo"].path == str(MODEL_DIR)


# --- comments


def test_comments_end_with_their_line_and_do_not_begin_within_a_text(write: Callable) -> None:
    text = """// first line
    {
        "models": { // "gone": null,
            "http://host//model": "/a//b", // "x": "y"
            "quoted \\" // still the name": null //
        }
    } // end"""
    models = load_config(write(text)).models
    assert list(models) == ["http://host//model", 'quoted " // still the name']
    assert models["http://host//model"].path in ("/a//b", "/a/b")


def test_a_place_in_a_file_with_comments_is_the_real_place(write: Callable) -> None:
    text = '{\n  // a comment\n  "debug": true, // another\n  "demo_mode" false\n}'
    assert "line 4, column 15" in refusal(write(text))


# --- wrong files


def test_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.json")


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize(("text", "place"), [("", "line 1, column 1"), ('{"debug": }', "line 1, column 11"), ('{\n"a": 1,\n}', "line ")])
def test_text_that_is_not_json_with_line_and_column(text: str, place: str, write: Callable) -> None:
    message = refusal(write(text))
    assert "is not valid JSON" in message
    assert place in message
    assert "column" in message


def test_bytes_that_are_not_utf8(write: Callable) -> None:
    message = refusal(write(b'{"debug": "\xe9"}'))
    assert "is not UTF-8 text (byte 11 is 0xe9)" in message
    assert "Save it as UTF-8" in message


def test_a_byte_order_mark_is_no_problem(write: Callable) -> None:
    assert load_config(write(b'\xef\xbb\xbf{"debug": true}')).debug


@pytest.mark.parametrize(
    ("text", "found"), [("[]", "list"), ('"gpt2"', "text"), ("3", "number"), ("true", "truth value"), ("null", "null")]
)
def test_something_other_than_an_object(text: str, found: str, write: Callable) -> None:
    message = refusal(write(text))
    assert f"holds a {found}" in message
    assert 'Expected an object: {"models": ...}' in message


@pytest.mark.parametrize("text", ['{"debug": true, "debug": false}', '{"models": {"debug": null, "debug": "/a"}}'])
def test_a_key_that_stands_twice(text: str, write: Callable) -> None:
    message = refusal(write(text))
    assert 'the key "debug" is there twice' in message
    assert "Remove one" in message


# --- wrong keys and values


@pytest.mark.parametrize(
    ("content", "key", "nearest"),
    [
        ({"default_modle": ""}, "default_modle", "default_model"),
        ({"model": {}}, "model", "models"),
        ({"max_user_string_len": 3}, "max_user_string_len", "max_user_string_length"),
        ({"models": {"a": {"pth": "/a"}}}, "models.a.pth", "path"),
        ({"models": {"a": {"adaptor": "/a"}}}, "models.a.adaptor", "adapter"),
        ({"models": {"a": {"trust_remote": True}}}, "models.a.trust_remote", "trust_remote_code"),
    ],
)
def test_an_unknown_key_with_the_nearest_name(content: Any, key: str, nearest: str, write: Callable) -> None:
    message = refusal(write(content))
    assert f'unknown key "{key}"' in message
    assert f'Did you mean "{nearest}"?' in message


def test_an_unknown_key_like_no_other_with_all_valid_names(write: Callable) -> None:
    message = refusal(write({"xyzzy": 1}))
    assert 'unknown key "xyzzy"' in message
    assert all(name in message for name in AppConfig.model_fields)


def test_the_name_of_a_model_is_its_key_and_nothing_else(write: Callable) -> None:
    assert 'unknown key "models.a.name"' in refusal(write({"models": {"a": {"name": "b"}}}))


@pytest.mark.parametrize(
    ("content", "key", "value", "expected"),
    [
        ({"debug": "yes"}, "debug", '"yes"', "true or false"),
        ({"demo_mode": 1}, "demo_mode", "1", "true or false"),
        ({"allow_loading_dataset_files": None}, "allow_loading_dataset_files", "null", "true or false"),
        ({"default_model": 3}, "default_model", "3", "a text"),
        ({"preloaded_dataset_filename": ["a"]}, "preloaded_dataset_filename", '["a"]', "a text"),
        ({"max_user_string_length": "100"}, "max_user_string_length", '"100"', "a whole number"),
        ({"max_user_string_length": 1.5}, "max_user_string_length", "1.5", "a whole number"),
        ({"max_user_string_length": True}, "max_user_string_length", "true", "a whole number"),
        ({"max_user_string_length": 0}, "max_user_string_length", "0", "a number above 0"),
        ({"max_user_string_length": -5}, "max_user_string_length", "-5", "a number above 0"),
        ({"models": ["gpt2"]}, "models", '["gpt2"]', "an object"),
        ({"models": None}, "models", "null", "an object"),
        ({"models": {"a": 5}}, "models.a", "5", "null, a folder, or an object"),
        ({"models": {"a": ["/a"]}}, "models.a", '["/a"]', "null, a folder, or an object"),
        ({"models": {"a": {"path": 5}}}, "models.a.path", "5", "a text"),
        ({"models": {"a": {"trust_remote_code": "true"}}}, "models.a.trust_remote_code", '"true"', "true or false"),
        ({"models": {"a": {"device": 0}}}, "models.a.device", "0", "a text"),
        ({"models": {"a": {"device": "gpu"}}}, "models.a.device", '"gpu"', '"cuda:0"'),
        ({"models": {"a": {"device": "cuda:first"}}}, "models.a.device", '"cuda:first"', '"cuda:0"'),
        ({"models": {"a": {"dtype": "fp64"}}}, "models.a.dtype", '"fp64"', "'float32'"),
        ({"models": {"a": {"dtype": 16}}}, "models.a.dtype", "16", "'float16'"),
    ],
)
def test_a_wrong_value_with_its_path_what_it_is_and_what_is_expected(
    content: Any, key: str, value: str, expected: str, write: Callable
) -> None:
    message = refusal(write(content))
    assert f"{key} is {value}. Expected " in message
    assert expected in message.split("Expected ")[1]


def test_a_dtype_that_does_not_exist_with_the_nearest(write: Callable) -> None:
    assert 'Did you mean "bfloat16"?' in refusal(write({"models": {"a": {"dtype": "bfloat"}}}))


def test_a_default_model_that_is_not_among_the_models(write: Callable) -> None:
    message = refusal(write({"models": {"gpt2-medium": None, "opt": None}, "default_model": "gpt2-medum"}))
    assert 'default_model is "gpt2-medum", which is not among its models' in message
    assert 'Did you mean "gpt2-medium"?' in message


def test_the_first_of_several_problems_is_enough_for_a_sentence(write: Callable) -> None:
    assert refusal(write({"debug": 3, "demo_mode": 4})).count("Expected") == 1


# --- paths


def test_relative_paths_are_relative_to_the_file(write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("here", "adapter", "org/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "prompts.txt").write_text("one\n")
    elsewhere = tmp_path / "org"
    monkeypatch.chdir(elsewhere)
    models = {
        "a": "./here",
        "b": {"path": "here", "adapter": "adapter", "base": "../base", "chat_template": "./chat.jinja"},
        "c": "org/model",
        "here": None,
        "d": "EleutherAI/gpt-neo-125M",
        "e": "~/model",
    }
    config = load_config(write({"models": models, "preloaded_dataset_filename": "prompts.txt"}))
    found = config.models
    assert found["a"].path == str(tmp_path / "here")
    assert found["b"].path == str(tmp_path / "here")
    assert found["b"].adapter == str(tmp_path / "adapter")
    assert found["b"].base == str(tmp_path.parent / "base")
    assert found["b"].chat_template == str(tmp_path / "chat.jinja")
    assert found["c"].path == str(tmp_path / "org" / "model")
    assert found["here"].path == str(tmp_path / "here")
    assert found["d"].path == "EleutherAI/gpt-neo-125M"
    assert found["e"].path == str(Path.home() / "model")
    assert config.prompts() == ["one"]


@pytest.mark.parametrize("key", ["path", "adapter", "base", "chat_template"])
def test_an_empty_path_does_not_mean_the_folder_of_the_configuration(key: str, write: Callable, tmp_path: Path) -> None:
    file = write({"models": {"a": {key: ""}}})
    try:
        found = getattr(load_config(file).models["a"], key)
    except ConfigError:
        found = None
    assert found in (None, "")


def test_a_bare_name_with_a_tilde_is_a_folder() -> None:
    assert ModelSpec.named("~/model").path == str(Path.home() / "model")
    assert ModelSpec.named("gpt2").path is None
    assert ModelSpec.named("demo").path == str(MODEL_DIR)


def test_specifications_and_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError):
        ModelSpec(name="a").path = "b"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        AppConfig().debug = True  # type: ignore[misc]


# --- prompt files


def test_prompts_are_the_lines_that_are_not_empty(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffOne day\r\n\r\n  indented é\n \t \nlast".encode())
    assert read_prompts(file) == ["One day", "  indented é", "last"]
    assert AppConfig(preloaded_dataset_filename=str(file)).prompts() == read_prompts(file)


def test_without_a_prompt_file_there_are_no_prompts() -> None:
    assert AppConfig().prompts() == []


def test_a_prompt_may_hold_any_character_but_the_end_of_its_line() -> None:
    """str.splitlines() would also cut at U+2028, U+0085, form feeds and others."""
    assert parse_prompts("a\u2028b\nc\x0cd\x85e".encode(), "f") == ["a\u2028b", "c\x0cd\x85e"]


def test_a_missing_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_prompts(tmp_path / "none.txt")
    assert str(caught.value) == f'Prompt file "{tmp_path / "none.txt"}" does not exist.'


def test_a_prompt_file_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r'Prompt file ".*latin\.txt" is not UTF-8 text \(byte 3 is 0xe9\)\. Save it as UTF-8\.'):
        read_prompts(file)


# --- back to JSON


@pytest.mark.parametrize(
    ("spec", "entry"),
    [
        (ModelSpec(name="gpt2"), None),
        (ModelSpec(name="gpt2", path="gpt2"), None),
        (ModelSpec.named("demo"), None),
        (ModelSpec(name="shipped", path=str(MODEL_DIR)), "demo"),
        (ModelSpec(name="/data/run"), None),
        (ModelSpec(name="mine", path="/data/\u00fcber/run"), "/data/\u00fcber/run"),
        (ModelSpec(name="gpt2", dtype="bfloat16"), {"dtype": "bfloat16"}),
        (ModelSpec(name="mine", path="/base", adapter="/lora"), {"path": "/base", "adapter": "/lora"}),
        (ModelSpec(name="mine", path="o/n", revision="v1", device="cuda:1"), {"path": "o/n", "device": "cuda:1", "revision": "v1"}),
        (ModelSpec(name="mine", path="/x", allow_pickle=True), {"path": "/x", "allow_pickle": True}),
    ],
)
@pytest.mark.parametrize("others", ['"models": {\n', '"models": {\n"demo": null, "old": "/old"'], ids=["first", "with others"])
def test_a_specification_is_written_as_the_shortest_entry_that_means_it(
    spec: ModelSpec, entry: Any, others: str, write: Callable[[Any], Path]
) -> None:
    assert spec.as_config_entry() == entry
    file = write("{" + others + "}}")
    lines = load_config(file).lines_with(spec)
    if spec.name in load_config(file).models:
        return
    file = write(file.read_text().replace('"models": {\n', '"models": {\n' + lines + "\n"))
    again = load_config(file).models[spec.name]
    assert (again.path or again.name, again.changed(path=spec.path or spec.name)) == (
        spec.path or spec.name,
        spec.changed(path=spec.path or spec.name),
    )


@pytest.mark.parametrize("before", ["{}", '{\n"debug": true}'])
def test_a_file_without_models_gets_all_of_them(before: str, write: Callable[[Any], Path]) -> None:
    lines = load_config(write(before)).lines_with(ModelSpec(name="mine", path="/data/run"))
    config = load_config(write(before.replace("{", "{" + lines, 1)))
    assert list(config.models) == ["mine", "demo"]
    assert config.models["demo"] == ModelSpec.named("demo")
    assert config.models["mine"].path == "/data/run"


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({}, True), ({"allow_adding_models": False}, False), ({"demo_mode": True, "allow_adding_models": True}, False)],
)
def test_models_may_be_added_unless_the_file_says_no(settings: dict[str, bool], allowed: bool, write: Callable[[Any], Path]) -> None:
    assert load_config(write(settings)).models_may_be_added is allowed
