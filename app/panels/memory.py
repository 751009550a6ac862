"""The dialog that says which models are in memory, what they take and what is free, and unloads them."""

from __future__ import annotations

import streamlit as st

from app import session
from app.markup import escaped
from app.panels.adding import where
from app.session import Service
from llm_tt.engine.messages import ListLoaded, LoadedModel, MemoryReport
from llm_tt.models.sizes import show_bytes


@st.dialog("Models in memory", width="medium", icon=":material/memory:", on_dismiss=session.close_dialog)
def show(service: Service) -> None:
    report = service.engine.answer(ListLoaded())
    _memory(report)
    if not report.models:
        st.caption("No model is loaded. One is when somebody asks about it.")
    for index, loaded in enumerate(report.models):
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            _loaded(loaded)
            st.button(
                "Unload",
                icon=":material/eject:",
                key=f"unload_{index}",
                disabled=service.config.demo_mode,
                help="Free its memory and that of its traces. Questions that are being answered with it are finished first. "
                "It is loaded again when somebody asks about it."
                + (" Off in this demo, where others are using it." if service.config.demo_mode else ""),
                on_click=service.engine.unload,
                args=(loaded.key,),
            )
    st.caption(
        f"At most {report.max_models} stay loaded; the one that was not used for longest goes before another is loaded. "
        "Sizes are of the weights and of what is kept of recent prompts."
    )
    _added(service)


def _memory(report: MemoryReport) -> None:
    for device in report.memory:
        used = 1 - device.free_bytes / device.total_bytes
        name = "Memory of this machine" if device.device == "cpu" else f"{escaped(device.name)} ({device.device})"
        st.progress(used, text=f"{name}: **{show_bytes(device.free_bytes)} free** of {show_bytes(device.total_bytes)}")


def _loaded(loaded: LoadedModel) -> None:
    info = loaded.facts.info
    lines = [
        f"**{escaped(loaded.key.name)}**",
        f"{escaped(info.family)} · {info.n_params:,} parameters · {info.dtype} on {info.device}",
        f"weights **{show_bytes(loaded.weight_bytes)}** · {loaded.n_traces} trace{'s' if loaded.n_traces != 1 else ''}, "
        f"{show_bytes(loaded.trace_bytes)}",
    ]
    if info.adapter:
        lines.insert(2, f"adapter {escaped(info.adapter)}")
    if loaded.n_questions:
        lines.append(f":orange[{loaded.n_questions} question{'s' if loaded.n_questions != 1 else ''} being answered with it now]")
    st.markdown("  \n".join(lines), width="stretch")


def _added(service: Service) -> None:
    added = service.engine.added_models()
    if not added:
        return
    with st.expander(f"Added since the start ({len(added)})", icon=":material/add:"):
        st.caption(f"They are gone when the app is stopped, unless their lines are put {where(service)}.")
        for index, spec in enumerate(added):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.code(service.config.lines_with(spec), language="json", wrap_lines=True)
                st.button(
                    "Remove",
                    icon=":material/delete:",
                    key=f"forget_{index}",
                    help=f"Take {escaped(spec.name)} off the menu of everyone, and unload it.",
                    on_click=_forget,
                    args=(service, spec.name),
                )


def _forget(service: Service, name: str) -> None:
    service.engine.forget(name)
    if st.session_state.get("model") == name:
        session.choose_model(service.config.default_model)
