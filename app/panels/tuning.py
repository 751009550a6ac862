"""Did the tuning take? The verdict on an adapter or a tuned checkpoint, layers x modules as a heat map, and every number in a table."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import session
from app.markup import escaped
from app.panels import csv_file
from app.session import Measuring, Service
from llm_tt.analysis.tuning_report import ModuleChange, TuningReport
from llm_tt.engine.messages import MeasureTuning, ModelKey
from llm_tt.export.files import csv_text

_POLL_SECONDS = 0.4
_NUMBERED_CELLS = 200
"""Up to so many cells a heat map has its numbers written in"""
# Dark to light through blue and yellow, told apart with every kind of colour vision and on both themes.
_COLORS = "Cividis"
_CSV_COLUMNS = (
    "layer",
    "module",
    "name",
    "shape",
    "relative_change",
    "change_norm",
    "weight_norm",
    "rank",
    "effective_rank",
    "n_90",
    "n_99",
)


@st.dialog("Did the tuning take?", width="large", icon=":material/compare:", on_dismiss=session.close_dialog)
def show_dialog(service: Service, model: ModelKey) -> None:
    st.markdown(f"**{escaped(model.name)}**")
    show(service, model)


def show(service: Service, model: ModelKey) -> None:
    """Offer to measure what the tuning of a model changed; show the report once it is there."""
    conversation = session.tuning()
    if conversation.question is not None and conversation.question.model.name != model.name:
        conversation = session.tuning(anew=True, engine=service.engine)
    if conversation.answer is not None:
        draw(conversation.answer)
        return
    if conversation.phase == "working" and conversation.question is not None:
        _watch(service, conversation)
        return
    if conversation.message:
        st.error(escaped(conversation.message), icon=":material/error:")
    st.button(
        "Measure what the tuning changed",
        icon=":material/compare:",
        help="Compares the weights with those of the base model, as they are stored. A large model takes minutes.",
        key="measure_tuning",
        on_click=_ask,
        args=(service, conversation, MeasureTuning(model)),
    )


def draw(report: TuningReport) -> None:
    """The verdict, the heat map, the table, and what was left as it was."""
    box, icon = {"tuned": (st.success, "check_circle"), "peripheral": (st.warning, "warning"), "not_measured": (st.warning, "warning")}.get(
        report.outcome, (st.error, "error")
    )
    box(escaped(report.verdict), icon=f":material/{icon}:")
    st.caption(f"{escaped(report.tuned)} against {escaped(report.base)}")
    for warning in report.warnings:
        st.warning(escaped(warning), icon=":material/warning:")
    if any(module.layer is not None for module in report.modules):
        st.plotly_chart(heatmap(report), width="stretch", key="tuning_heatmap", config={"displayModeBar": False})
    if report.modules:
        _table(report)
        what = "One line a module, with names and shapes as they are stored and numbers in full."
        csv_file.button(lambda: modules_csv(report), "llm-tt-tuning.csv", "tuning_csv", what)
    if report.untouched:
        with st.expander(f"{len(report.untouched)} tensors are those of the base", icon=":material/block:"):
            st.code("\n".join(report.untouched), language=None, height=240)


def heatmap(report: TuningReport) -> go.Figure:
    """Relative change by layer (upwards, as in the graph) and module; what was not changed is left empty."""
    layers = [layer for layer in report.per_layer() if layer.layer is not None]
    modules = sorted(
        {name for layer in layers for name in layer.by_module}, key=lambda name: ("attn" not in name and "attention" not in name, name)
    )
    values = [[_percent(layer.by_module.get(name)) for name in modules] for layer in layers]
    numbered = len(layers) * len(modules) <= _NUMBERED_CELLS
    figure = go.Figure(
        go.Heatmap(
            x=modules,
            y=[str(layer.layer) for layer in layers],
            z=values,
            zmin=0,
            # Plotly takes the lower end of a scale only together with the upper one.
            zmax=max((value for row in values for value in row if value is not None), default=0.0) or 1.0,
            colorscale=_COLORS,
            colorbar={"title": {"text": "% of ||W||"}, "thickness": 12},
            texttemplate="%{z:.2~r}" if numbered else None,
            hovertemplate="layer %{y}, %{x}<br>||dW|| / ||W|| = %{z:.3g} %<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
        )
    )
    figure.update_layout(
        height=min(120 + 26 * len(layers), 900),
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"type": "category", "showgrid": False, "tickangle": -30},
        yaxis={"type": "category", "showgrid": False, "title": {"text": "layer"}},
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def _table(report: TuningReport) -> None:
    rows = [_row(module) for module in report.modules]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        key="tuning_table",
        column_config={
            "layer": st.column_config.NumberColumn(
                "layer", help="Empty outside the layers: embeddings, final norm, output head.", format="%d"
            ),
            "module": st.column_config.TextColumn("module"),
            "change": st.column_config.NumberColumn("change %", help="||dW|| / ||W||, Frobenius norms.", format="%.3g"),
            "rank": st.column_config.NumberColumn(
                "rank", help="Directions above what rounding to the file's dtype can make. Empty: more than were computed (128)."
            ),
            "effective_rank": st.column_config.NumberColumn(
                "effective rank", help="||dW||² / its largest singular value². 1 when one direction carries everything.", format="%.1f"
            ),
            "n_90": st.column_config.NumberColumn(
                "for 90 %", help="Directions that carry 90 % of ||dW||². Empty: more than were computed."
            ),
            "n_99": st.column_config.NumberColumn(
                "for 99 %", help="Directions that carry 99 % of ||dW||². Empty: more than were computed."
            ),
            "shape": st.column_config.TextColumn("shape"),
        },
    )


def _row(module: ModuleChange) -> dict[str, Any]:
    return {
        "layer": module.layer,
        "module": module.module,
        "change": 100 * module.relative_change,
        "rank": module.rank,
        "effective_rank": module.effective_rank,
        "n_90": module.n_90,
        "n_99": module.n_99,
        "shape": " x ".join(map(str, module.shape)),
    }


def modules_csv(report: TuningReport) -> str:
    """The table in full; empty where a number is not finite or was not computed."""
    rows = [module.to_dict() | {"shape": "x".join(map(str, module.shape))} for module in report.modules]
    return csv_text(_CSV_COLUMNS, [[row[name] for name in _CSV_COLUMNS] for row in rows])


def _ask(service: Service, conversation: Measuring, question: MeasureTuning) -> None:
    conversation.again()
    conversation.ask(service.engine, question)


@st.fragment(run_every=_POLL_SECONDS)
def _watch(service: Service, conversation: Measuring) -> None:
    conversation.look(service.engine)
    if conversation.phase != "working" or conversation.job is None:
        st.rerun()
    status = service.engine.status(conversation.job)
    bar, button = st.columns([6, 1], vertical_alignment="center")
    bar.progress(status.fraction, text=escaped(f"{status.stage} · {status.seconds:.0f} s"))
    if button.button("Cancel", icon=":material/close:", help="Stop after the current tensor.", key="cancel_tuning"):
        service.engine.cancel(conversation.job)


def _percent(change: float | None) -> float | None:
    return 100 * change if change is not None and math.isfinite(change) else None
