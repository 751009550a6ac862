"""What people paste where a model is asked for, and what it leads to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_tt.config import ModelSpec
from llm_tt.demo import MODEL_DIR
from llm_tt.errors import ModelError
from llm_tt.models import places
from llm_tt.models.places import look, name_for, resolve


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "my models" / "tuned", "config.json")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = make(tmp_path / "lora-v3", "adapter_config.json")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/data/base"}))
    return folder


def make(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).write_text("{}")
    return folder


@pytest.mark.parametrize(
    "written",
    [
        "{}",
        "  {} \n",
        '"{}"',
        "'{}'",
        " ' {} ' ",
        "\u201c{}\u201d",
        "{}/",
        "file://{}",
        "{}/config.json",
        "{}/model.safetensors",
        "{}/../tuned",
    ],
)
def test_a_folder_is_found_however_it_is_pasted(written: str, model: Path) -> None:
    (model / "model.safetensors").touch()
    place = look(written.format(model))
    assert (place.kind, place.path) == ("model", str(model))


def test_a_path_as_a_shell_or_an_address_writes_it(model: Path) -> None:
    assert look(str(model).replace(" ", "\\ ")).path == str(model)
    assert look("file://" + str(model).replace(" ", "%20")).path == str(model)


def test_a_path_from_the_home_folder_or_the_working_directory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert look("~/tuned").path == str(model)
    assert look('"~/tuned"').path == str(model)
    monkeypatch.chdir(model.parent.parent)
    assert look("my models/tuned").path == str(model)
    assert look("./my models/tuned").path == str(model)


def test_a_file_of_a_model_stands_for_its_folder_and_says_so(model: Path) -> None:
    assert look(str(model / "config.json")).note == f'That is a file of the folder "{model}", which is taken.'


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("weights.gguf", "is a GGUF file, which cannot be taken apart"),
        ("model.tar.gz", "is an archive. Unpack it and name the folder"),
        ("train.py", "is a file. Name the folder that holds config.json"),
    ],
)
def test_a_file_that_is_no_part_of_a_model_is_explained(name: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    place = look(str(tmp_path / name))
    assert place.kind == "nothing"
    assert sentence in place.note
    assert str(tmp_path / name) in place.note


def test_a_run_folder_offers_its_checkpoints_the_latest_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = [make(run / f"checkpoint-{step}", "config.json") for step in (500, 1000, 60)]
    make(made[0] / "global_step500", "config.json")
    make(run / ".cache" / "x", "config.json")
    place = look(str(run))
    assert place.kind == "nothing"
    assert place.found == tuple(str(run / f"checkpoint-{step}") for step in (1000, 500, 60))
    assert place.note == f'"{run}" is no checkpoint itself, but holds 3 of them. Choose one.'


def test_a_folder_with_one_model_inside_is_that_model(tmp_path: Path) -> None:
    inner = make(tmp_path / "models--org--name" / "snapshots" / ("0" * 40), "config.json")
    place = look(str(tmp_path / "models--org--name"))
    assert (place.kind, place.path) == ("model", str(inner))
    assert str(inner) in place.note
    assert name_for(str(inner)) == "org/name"


def test_a_folder_inside_a_checkpoint_is_that_checkpoint(model: Path) -> None:
    inner = make(model / "global_step500", "state.bin")
    assert look(str(inner)).path == str(model)


def test_an_adapter_is_told_from_a_model_with_its_base(adapter: Path) -> None:
    place = look(str(adapter))
    assert (place.kind, place.path, place.base) == ("adapter", str(adapter), "/data/base")
    assert place.note == 'An adapter on "/data/base".'


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ((), "is empty"),
        (("weights.gguf",), "holds GGUF files"),
        (("notes.txt",), "neither a config.json (a model) nor an adapter_config.json"),
    ],
)
def test_a_folder_without_a_model_is_explained(files: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "folder", *files)
    place = look(str(folder))
    assert place.kind == "nothing"
    assert sentence in place.note
    assert f'"{folder}"' in place.note


@pytest.mark.skipif(os.name == "nt", reason="a path of this machine there")
@pytest.mark.parametrize("typed", ["C:\\Users\\ada\\model", "d:/models/x", "\\\\server\\share\\model"])
def test_a_windows_path_is_recognised(typed: str) -> None:
    place = look(typed)
    assert place.kind == "nothing"
    assert place.note.startswith(f'"{typed}" is a path of a Windows machine')


def test_a_missing_folder_gets_the_nearest_name(model: Path) -> None:
    assert look(str(model.parent / "tunned")).note.endswith(f'Did you mean "{model}"?')
    assert look("/no/such/folder").note.startswith('Model folder "/no/such/folder" does not exist.')
    assert f'"{model.parent}" does; check the last part.' in look(str(model.parent / "qqqq")).note


@pytest.mark.parametrize("typed", ["", "  \n", '""', "a\0b", "x y z", "../" * 30 + "nowhere", "/" + "x" * 400])
def test_anything_else_gets_a_sentence(typed: str) -> None:
    place = look(typed)
    assert (place.kind, place.path) == ("nothing", "")
    assert place.note.endswith((".", "?"))


@pytest.mark.parametrize(
    ("typed", "path", "revision"),
    [
        ("gpt2", "gpt2", None),
        ("org/name-1.5_x", "org/name-1.5_x", None),
        ("https://huggingface.co/org/name", "org/name", None),
        ("huggingface.co/org/name/tree/refs%2Fpr%2F1/sub", "org/name", "refs%2Fpr%2F1"),
        ("https://hf.co/org/name/blob/v2/config.json?x=1", "org/name", "v2"),
    ],
)
def test_names_and_addresses_on_the_hub(typed: str, path: str, revision: str | None) -> None:
    place = look(typed)
    assert (place.kind, place.path, place.revision) == ("hub", path, revision)


def test_the_demo_model_has_a_name_of_its_own() -> None:
    assert look("demo").path == str(MODEL_DIR)
    assert resolve(ModelSpec(name="", path="demo")).name == "demo"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/runs/last-night/checkpoint-1200", "last-night/checkpoint-1200"),
        ("/data/runs/last-night/final", "last-night/final"),
        ("/data/runs/last-night/outputs/checkpoint-7", "last-night/outputs/checkpoint-7"),
        ("/data/models/llama-tuned", "llama-tuned"),
        ("org/name", "org/name"),
        ("/model", "model"),
    ],
)
def test_the_name_is_the_part_that_says_something(path: str, name: str) -> None:
    assert name_for(path) == name


def test_a_specification_is_resolved(model: Path, adapter: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.touch()
    typed = ModelSpec(name=" mine ", path=f"'{model}'", adapter=f"{adapter}/", chat_template=f'"{template}"', dtype="bfloat16")
    assert resolve(typed) == ModelSpec(name="mine", path=str(model), adapter=str(adapter), chat_template=str(template), dtype="bfloat16")
    assert resolve(ModelSpec(name="", adapter=str(adapter))) == ModelSpec(name="lora-v3", path=str(adapter))
    assert resolve(ModelSpec(name="", path=str(adapter), base=str(model))) == ModelSpec(name="lora-v3", path=str(adapter), base=str(model))
    assert resolve(ModelSpec(name="", path="https://huggingface.co/o/n/tree/v1")) == ModelSpec(name="o/n", path="o/n", revision="v1")


@pytest.mark.parametrize(
    ("path", "adapter", "base", "sentence"),
    [
        (None, None, None, "No model is named"),
        ("  ", '""', None, "No model is named"),
        ("/no/such", None, None, "does not exist"),
        ("MODEL", "MODEL", None, "is a whole model and no adapter. Name it as the model"),
        ("ADAPTER", "MODEL", None, "the wrong way round"),
        ("ADAPTER", "ADAPTER", None, "is an adapter too"),
        (None, "org/lora", None, "Name the model it belongs to as well"),
        ("ADAPTER", None, "ADAPTER", "is an adapter itself"),
        ("MODEL", "/no/such", None, "does not exist"),
    ],
)
def test_what_does_not_fit_together_is_explained(
    path: str | None, adapter: str | None, base: str | None, sentence: str, model: Path, tmp_path: Path
) -> None:
    folder = make(tmp_path / "lora", "adapter_config.json")
    real = {"MODEL": str(model), "ADAPTER": str(folder)}
    spec = ModelSpec(name="", path=real.get(path or "", path), adapter=real.get(adapter or "", adapter), base=real.get(base or "", base))
    with pytest.raises(ModelError, match=re.escape(sentence)):
        resolve(spec)


def test_a_chat_template_that_is_not_there_is_named(model: Path) -> None:
    with pytest.raises(ModelError, match=r'chat template file "/no/such\.jinja" does not exist'):
        resolve(ModelSpec(name="", path=str(model), chat_template="/no/such.jinja"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_explained(tmp_path: Path) -> None:
    folder = make(tmp_path / "closed")
    folder.chmod(0)
    assert "cannot be read" in look(str(folder)).note
    folder.chmod(0o700)


def test_a_folder_full_of_other_things_is_not_searched_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_LOOKED_AT", 5)
    for index in range(20):
        make(tmp_path / "many" / f"{index:02}", "config.json")
    assert len(look(str(tmp_path / "many")).found) == 5


def test_looking_imports_no_model_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from llm_tt.models import places; places.look('demo'); print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_checkpoint_made_by_the_tests_is_found(checkpoint: Callable[[str], Path]) -> None:
    assert look(str(checkpoint("llama"))).kind == "model"
