"""Hub names: found in the cache by name, branch and commit while offline; what the hub refuses becomes one sentence each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import peft
import pytest
import torch
from families import token_ids
from huggingface_hub import constants, errors
from peft import LoraConfig
from reference import load_plain
from refusing import refusal

import llm_tt
from llm_tt.errors import OutOfMemoryError

IDS = token_ids(7)
MAIN, OTHER = "a" * 40, "b" * 40


class Cache:
    """A hub cache on disk, laid out as huggingface_hub does."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, name: str, folder: Path, commit: str = MAIN, *references: str) -> Path:
        """Put the files of a folder into the cache as a commit to which branches or tags point; the snapshot's folder."""
        repository = self.root / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / commit
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        snapshot.mkdir(parents=True)
        for file in folder.iterdir():
            blob = repository / "blobs" / f"{commit[:4]}{file.name}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
        for reference in references:
            (repository / "refs" / reference).write_text(commit)
        return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return Cache(tmp_path / "hub")


def difference(llm: Any, expected: torch.Tensor) -> float:
    return float((llm.trace(IDS).logits(-1) - expected).abs().max())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0, -1]


@pytest.fixture
def two_commits(cache: Cache, checkpoint: Callable, tmp_path: Path) -> dict[str, torch.Tensor]:
    """org/model with two commits: main, and the branch "tuned"; their logits."""
    tuned = tmp_path / "tuned"
    shutil.copytree(checkpoint("llama"), tuned)
    changed = load_plain(tuned)
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.7)
    changed.save_pretrained(tuned)
    cache.add("org/model", checkpoint("llama"), MAIN, "main")
    cache.add("org/model", tuned, OTHER, "tuned")
    return {"main": logits(load_plain(checkpoint("llama"))), "tuned": logits(changed)}


@pytest.mark.parametrize(("revision", "expected"), [(None, "main"), ("main", "main"), ("tuned", "tuned"), (OTHER, "tuned"), (MAIN, "main")])
def test_a_cached_model_is_found_by_its_revision(revision: str | None, expected: str, two_commits: dict[str, torch.Tensor]) -> None:
    llm = llm_tt.load_model(llm_tt.ModelSpec(name="org/model", revision=revision))
    assert difference(llm, two_commits[expected]) <= 1e-4
    assert float((two_commits["main"] - two_commits["tuned"]).abs().max()) > 0.1


def test_revisions_of_one_model_are_not_taken_for_each_other_in_memory(two_commits: dict[str, torch.Tensor]) -> None:
    models = {revision: llm_tt.load_model(llm_tt.ModelSpec(name="org/model", revision=revision)) for revision in ("main", "tuned")}
    for revision, llm in models.items():
        assert difference(llm, two_commits[revision]) <= 1e-4


@pytest.mark.parametrize("revision", ["v2", "c" * 40])
def test_a_revision_that_is_not_in_the_cache(revision: str, two_commits: dict[str, torch.Tensor]) -> None:
    text = refusal(llm_tt.ModelSpec(name="x", path="org/model", revision=revision))
    assert f'"org/model" is in the local cache, but not with revision "{revision}", and the hub cannot be reached' in text
    assert "HF_HUB_OFFLINE is set" in text
    assert "Leave out the revision" in text


def test_hf_home_is_respected(checkpoint: Callable, tmp_path: Path) -> None:
    Cache(tmp_path / "home" / "hub").add("org/model", checkpoint("llama"), MAIN, "main")
    code = "import llm_tt; print(llm_tt.load_model('org/model').info.n_layers)"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=200).stdout
    assert shown.strip() == "3"


def test_a_snapshot_of_which_the_weights_are_missing(cache: Cache, checkpoint: Callable, tmp_path: Path) -> None:
    snapshot = cache.add("org/model", checkpoint("llama"), MAIN, "main")
    (snapshot / "model.safetensors").unlink()
    text = refusal("org/model")
    assert '"org/model"' in text
    assert "HF_HUB_OFFLINE" in text or "model.safetensors" in text


def test_a_cached_model_that_would_not_fit_is_refused_before_it_is_read(
    cache: Cache, checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_tt.models import checkpoints

    cache.add("org/model", checkpoint("llama"), MAIN, "main")
    monkeypatch.setattr(checkpoints, "available_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemoryError, match=r"org/model needs about .* KB in float32, but cpu has 1000 B free"):
        llm_tt.load_model("org/model")


# --- adapters


@pytest.fixture
def adapter(cache: Cache, checkpoint: Callable, tmp_path: Path) -> torch.Tensor:
    """org/lora, an adapter in the cache whose base is revision "v1" of org/model, which is in the cache as well; the tuned model's logits."""
    cache.add("org/model", checkpoint("llama"), OTHER, "v1")
    torch.manual_seed(0)
    tuned = peft.get_peft_model(load_plain(checkpoint("llama")), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).eval()
    tuned.save_pretrained(tmp_path / "lora")
    content = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    content |= {"base_model_name_or_path": "org/model", "revision": "v1"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(content))
    cache.add("org/lora", tmp_path / "lora", MAIN, "main", "v9")
    return logits(tuned)


def test_an_adapter_may_be_a_hub_name(adapter: torch.Tensor, checkpoint: Callable) -> None:
    llm = llm_tt.load_model(str(checkpoint("llama")), adapter="org/lora")
    assert difference(llm, adapter) <= 1e-4
    assert llm.info.adapter == "org/lora"


@pytest.mark.parametrize("revision", [None, "v9"])
def test_an_adapters_hub_name_may_be_given_as_the_model_and_its_base_keeps_its_revision(
    revision: str | None, adapter: torch.Tensor
) -> None:
    """The base is in the cache only as revision "v1", which adapter_config.json names."""
    assert difference(llm_tt.load_model(llm_tt.ModelSpec(name="org/lora", revision=revision)), adapter) <= 1e-4


def test_an_adapter_of_a_revision(adapter: torch.Tensor, checkpoint: Callable) -> None:
    spec = llm_tt.ModelSpec(name="x", path=str(checkpoint("llama")), adapter="org/lora", adapter_revision="v9")
    assert difference(llm_tt.load_model(spec), adapter) <= 1e-4
    text = refusal(spec.changed(adapter_revision="v3"))
    assert '"org/lora" is in the local cache, but not with revision "v3"' in text


def test_an_adapter_that_is_not_in_the_cache(checkpoint: Callable) -> None:
    text = refusal(str(checkpoint("llama")), adapter="org/other-lora")
    assert '"org/other-lora" is neither a folder nor in the local cache' in text


def test_the_base_of_a_cached_adapter_that_is_not_in_the_cache(adapter: torch.Tensor, cache: Cache) -> None:
    shutil.rmtree(cache.root / "models--org--model")
    text = refusal("org/lora")
    assert 'Adapter "org/lora" belongs to a model that cannot be found: "org/model" with revision "v1" is neither' in text
    assert 'set "base"' in text


# --- what the hub answers


def _answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("HEAD", "https://huggingface.co/org/model/resolve/main/config.json"))


REFUSALS: dict[str, tuple[Callable[[], Exception], list[str]]] = {
    "gated": (
        lambda: errors.GatedRepoError("Access to model org/model is restricted.", response=_answer(403)),
        ['"org/model" is a gated model', "Accept its terms", "hf auth login"],
    ),
    "not found": (
        lambda: errors.RepositoryNotFoundError("404 Client Error.", response=_answer(404)),
        ['The hub has no model "org/model"', "Check the spelling"],
    ),
    "no such revision": (
        lambda: errors.RevisionNotFoundError("404 Client Error.", response=_answer(404)),
        ['The hub has "org/model", but not', "Check the branch, tag or commit"],
    ),
    "no network": (
        lambda: errors.LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub and we cannot find it"),
        ['"org/model" is neither a folder nor in the local cache, and the hub cannot be reached', "Give the folder of the model"],
    ),
    "connection refused": (
        lambda: ConnectionError("Connection refused"),
        ['"org/model" is neither a folder nor in the local cache, and the hub cannot be reached'],
    ),
    "server error": (
        lambda: errors.HfHubHTTPError("500 Server Error: Internal Server Error", response=_answer(500)),
        ['The hub answered with an error for "org/model" (HTTP 500)', "Try again later"],
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
@pytest.mark.parametrize("stage", ["find", "config", "tokenizer", "weights"])
def test_what_the_hub_refuses_is_told_in_one_sentence(
    what: str, stage: str, cache: Cache, checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import transformers

    make, parts = REFUSALS[what]

    def refuse(*args: Any, **options: Any) -> None:
        try:
            raise make()
        except Exception as error:
            # As transformers does.
            raise OSError("We could not load it.\nCheck your internet connection or see how to run the library") from error

    def refuse_plainly(*args: Any, **options: Any) -> None:
        raise make()

    if stage == "find":
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse_plainly)
    else:
        cache.add("org/model", checkpoint("llama"), MAIN, "main")
        name = {"config": "AutoConfig", "tokenizer": "AutoTokenizer", "weights": "AutoModelForCausalLM"}[stage]
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", refuse)
    text = refusal("org/model")
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("name", ["two words", "a--b", "model?", "-model"])
def test_a_name_that_the_hub_could_not_have(name: str) -> None:
    text = refusal(name)
    assert f'"{name}"' in text
    assert "Check the spelling, or give a folder" in text
