"""A backend that the configuration names: imported, constructed, proven as any other; the example of the docs is one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusing import refusal

import llm_tt
from llm_tt.errors import ConfigError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-backend.md").read_text(encoding="utf-8")


def fence(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """module(code): a module `my_models` that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(code: str) -> None:
        sys.modules.pop("my_models", None)
        (tmp_path / "my_models.py").write_text(code)

    yield write
    sys.modules.pop("my_models", None)


def spec(backend: str = "my_models:Mine", **changes: Any) -> llm_tt.ModelSpec:
    return llm_tt.ModelSpec(name="mine", backend=backend, **changes)


def test_the_example_of_the_docs_loads_by_its_configuration(module: Callable, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    module(fence("python"))
    import my_models  # type: ignore[import-not-found]

    torch.manual_seed(3)
    trained = my_models.CharacterModel()
    weights = tmp_path / "characters.safetensors"
    save_file(trained.state_dict(), weights)
    content = json.loads(fence("json"))
    content["models"]["characters"]["options"]["weights"] = str(weights)
    (tmp_path / "config.json").write_text(json.dumps(content))
    llm = llm_tt.load_model(llm_tt.load_config(tmp_path / "config.json").models["characters"])
    assert llm.info.name == "characters"
    trace = llm.trace("an own model.")
    with torch.inference_mode():
        expected = trained.head(trained.norm(trace.blocks[-1].resid_post[-1]))
    assert torch.allclose(trace.logits(-1), expected, atol=1e-5)
    assert llm_tt.extract_routes(trace, threshold=0.001).n_edges > 10


def test_the_example_of_the_docs_continues_a_text_and_ends_where_it_says(module: Callable) -> None:
    module(fence("python") + "\n\nclass Mine(CharacterLlm):\n    end_ids = frozenset({27})\n")
    import my_models  # type: ignore[import-not-found]

    torch.manual_seed(5)
    llm = my_models.CharacterLlm(spec())
    ids, expected = llm.encode("an own model."), []
    for _ in range(12):
        expected.append(int(llm.last_logits(ids + expected).argmax()))
    tokens = list(llm_tt.generate(llm, "an own model.", 12))
    assert [token.token_id for token in tokens] == expected
    prompt = llm.prompt("an own model.", expected)
    assert prompt.text == "an own model." + "".join(my_models.CHARACTERS[token_id] for token_id in expected)
    assert prompt.offsets[-12:] == tuple((13 + place, 14 + place) for place in range(12))
    assert llm.trace("an own model.", continuation=expected).n_tokens == 25
    drawn = list(llm_tt.generate(my_models.Mine(spec()), "an own model.", 100, temperature=5.0, seed=2))
    assert [token.stop for token in drawn] == [None] * (len(drawn) - 1) + ["end"]
    assert drawn[-1].text == "."


def test_an_own_backend_whose_parts_do_not_add_up_is_refused(module: Callable) -> None:
    wrong = (
        "\n\nclass Mine(CharacterLlm):\n    def attention_output(self, layer):\n        return super().attention_output(layer)[0], None\n"
    )
    module(fence("python") + wrong)
    text = refusal(spec())
    assert "mine (model type 'characters') cannot be decomposed exactly: layer 0: attention parts are off by" in text


@pytest.mark.parametrize(
    ("code", "backend", "reason"),
    [
        (None, "no_such_module:Mine", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'. Install its package"),
        ("1 / 0", "my_models:Mine", "cannot be imported: ZeroDivisionError: division by zero. Install its package"),
        ("x = 1", "my_models:Mine", 'does not exist: my_models has no "Mine". Check the spelling'),
        ("Mine = 3", "my_models:Mine", "is no subclass of llm_tt.TransparentLlm. See docs/own-backend.md"),
        ("class Mine: pass", "my_models:Mine", "is no subclass of llm_tt.TransparentLlm"),
        (
            "import llm_tt\nclass Mine(llm_tt.TransparentLlm): pass",
            "my_models:Mine",
            "does not implement attention_output, encode, final_norm",
        ),
    ],
    ids=["no module", "broken module", "no class", "no class but a number", "another class", "abstract"],
)
def test_a_backend_that_is_none(code: str | None, backend: str, reason: str, module: Callable) -> None:
    if code is not None:
        module(code)
    text = refusal(spec(backend))
    assert f'The backend "{backend}" of mine' in text
    assert reason in text


def test_a_backend_that_cannot_be_constructed(module: Callable) -> None:
    module(fence("python") + '\n\nclass Mine(CharacterLlm):\n    def __init__(self, spec):\n        raise KeyError("weights")\n')
    text = refusal(spec())
    assert "The backend \"my_models:Mine\" of mine cannot be constructed: KeyError: 'weights'. It is called with the ModelSpec" in text


def test_a_sentence_of_the_backend_itself_is_shown_as_it_is(module: Callable) -> None:
    own = 'raise llm_tt.errors.ModelError("The file of characters is gone. Copy it.")'
    module(fence("python") + f"\n\nimport llm_tt.errors\nclass Mine(CharacterLlm):\n    def __init__(self, spec):\n        {own}\n")
    assert refusal(spec()) == "The file of characters is gone. Copy it."


@pytest.mark.parametrize("value", ["my_models", "my_models.Mine", "os:system()", "../x:Mine", ":Mine", "a b:C"])
def test_what_is_no_class_is_refused_by_the_configuration(value: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"models": {"mine": {"backend": value}}}))
    with pytest.raises(ConfigError, match=r'models\.mine\.backend is .* Expected a class, written "package\.module:Class"'):
        llm_tt.load_config(tmp_path / "config.json")


def test_options_without_a_backend_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"models": {"mine": {"options": {"a": 1}}}}))
    with pytest.raises(ConfigError, match=r'models\.mine\.options is \{"a": 1\}\. Expected "backend" beside it'):
        llm_tt.load_config(tmp_path / "config.json")


def test_a_name_that_a_user_types_imports_nothing(module: Callable) -> None:
    module("raise SystemExit('imported')")
    assert '"my_models:Mine"' in refusal("my_models:Mine")
