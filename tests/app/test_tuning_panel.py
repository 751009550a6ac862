"""The panel on tunings without a browser: AppTest runs it against a real engine, an adapter with an effect and one without."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from streamlit.testing.v1 import AppTest
from transformers import AutoModelForCausalLM

from app.panels import tuning
from app.session import Service
from llm_tt.analysis.tuning import tuning_of_adapter
from llm_tt.analysis.tuning_report import TuningReport
from llm_tt.config import load_config
from llm_tt.engine.local import LocalEngine


@pytest.fixture(scope="module")
def adapters(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    base = checkpoint("llama")
    for name, effect in (("tuned", True), ("idle", False)):
        torch.manual_seed(0)
        config = LoraConfig(
            target_modules=["q_proj", "up_proj"], init_lora_weights=not effect, modules_to_save=["lm_head"] if effect else None
        )
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        if effect:
            with torch.no_grad():
                model.get_output_embeddings().weight.add_(0.1)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in ("tuned", "idle")}


@pytest.fixture(scope="module")
def reports(adapters: dict[str, Path]) -> dict[str, TuningReport]:
    return {name: tuning_of_adapter(folder) for name, folder in adapters.items()}


@pytest.fixture
def panel(adapters: dict[str, Path], checkpoint: Callable[[str], Path], tmp_path: Path) -> Any:
    """panel(model): the panel on a model of a configuration, as the page calls it."""
    models: dict[str, Any] = {name: str(folder) for name, folder in adapters.items()} | {"plain": str(checkpoint("llama"))}
    (tmp_path / "config.json").write_text(json.dumps({"models": models}))
    config = load_config(tmp_path / "config.json")
    engine = LocalEngine(config)

    def script(service) -> None:  # Its source is run alone, without the imports above.
        import streamlit as st

        from app.panels import tuning
        from llm_tt.engine.messages import ModelKey

        tuning.show(service, ModelKey(st.session_state["chosen"], dtype=st.session_state.get("precision", "auto")))

    def start(model: str) -> AppTest:
        at = AppTest.from_function(script, default_timeout=60, kwargs={"service": Service(tmp_path / "config.json", config, engine)})
        at.session_state["chosen"] = model
        return at.run()

    yield start
    engine.close()


def measured(at: AppTest) -> AppTest:
    at.button(key="measure_tuning").click().run()
    for _ in range(200):
        assert not at.exception, at.exception[0].value
        if at.session_state["tuning"].job is None:
            return at.run()
        time.sleep(0.1)
        at.run()
    raise AssertionError("the question was never answered")


def test_nothing_is_measured_before_it_is_asked_for(panel: Any) -> None:
    at = panel("tuned")
    assert [button.label for button in at.button] == ["Measure what the tuning changed"]
    assert not at.success
    assert not at.dataframe


def test_the_verdict_the_numbers_and_what_was_left(panel: Any, reports: dict[str, TuningReport], adapters: dict[str, Path]) -> None:
    at, report = measured(panel("tuned")), reports["tuned"]
    assert [element.value.replace("\\", "") for element in at.success] == [report.verdict]
    table = at.dataframe[0].value
    assert table["module"].tolist() == [module.module for module in report.modules]
    assert table["change"].tolist() == pytest.approx([100 * module.relative_change for module in report.modules])
    assert table["rank"].tolist() == [module.rank for module in report.modules]
    assert table["effective_rank"].tolist() == pytest.approx([module.effective_rank for module in report.modules])
    assert [expander.label for expander in at.expander] == [f"{len(report.untouched)} tensors are those of the base"]
    assert at.code[0].value.splitlines() == list(report.untouched)
    assert str(adapters["tuned"]) in at.caption[0].value.replace("\\", "")


def test_a_tuning_without_effect_is_an_error(panel: Any, reports: dict[str, TuningReport]) -> None:
    at = measured(panel("idle"))
    assert [element.value.replace("\\", "") for element in at.error] == [reports["idle"].verdict]
    assert reports["idle"].outcome == "no_effect"
    assert not at.success


def test_a_model_that_names_no_base_gets_the_sentence_and_can_be_asked_again(panel: Any) -> None:
    at = measured(panel("plain"))
    assert "does not say which model it was tuned from" in at.error[0].value
    assert at.button(key="measure_tuning").label == "Measure what the tuning changed"


def test_another_model_starts_anew(panel: Any) -> None:
    at = measured(panel("tuned"))
    at.session_state["chosen"] = "idle"
    at.run()
    assert not at.success
    assert at.button(key="measure_tuning") is not None


def test_the_heat_map_has_the_reports_values(reports: dict[str, TuningReport]) -> None:
    report = reports["tuned"]
    (trace,) = tuning.heatmap(report).data
    assert list(trace.y) == ["0", "1", "2"]
    assert list(trace.x) == ["self_attn.q_proj", "mlp.up_proj"]
    for row, layer in zip(trace.z, range(3), strict=True):
        changes = {module.module: 100 * module.relative_change for module in report.modules if module.layer == layer}
        assert list(row) == pytest.approx([changes[name] for name in trace.x])
    assert (trace.zmin, trace.zmax) == (0, max(max(row) for row in trace.z))


def test_a_module_that_one_layer_lacks_is_empty_there(reports: dict[str, TuningReport]) -> None:
    report = reports["tuned"]
    modules = tuple(module for module in report.modules if (module.layer, module.module) != (1, "mlp.up_proj"))
    (trace,) = tuning.heatmap(TuningReport(report.base, report.tuned, "adapter", modules, (), "tuned", "")).data
    assert [row[1] is None or math.isnan(row[1]) for row in trace.z] == [False, True, False]


def test_a_device_or_a_precision_changes_no_stored_weight(panel: Any) -> None:
    at = measured(panel("tuned"))
    at.session_state["precision"] = "bfloat16"
    assert at.run().success


def test_the_csv_has_every_number_in_full(reports: dict[str, TuningReport]) -> None:
    report = reports["tuned"]
    lines = list(csv.DictReader(io.StringIO(tuning.modules_csv(report), newline="")))
    assert [line["name"] for line in lines] == [module.name for module in report.modules]
    for line, module in zip(lines, report.modules, strict=True):
        assert line["layer"] == ("" if module.layer is None else str(module.layer))
        assert tuple(map(int, line["shape"].split("x"))) == module.shape
        assert float(line["relative_change"]) == module.change_norm / module.weight_norm
        assert line["rank"] == ("" if module.rank is None else str(module.rank))
        assert float(line["effective_rank"]) == pytest.approx((module.change_norm / float(module.singular_values[0])) ** 2)
