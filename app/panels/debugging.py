"""Time and memory, for a configuration with `debug`: where the time of the last question went, what caches saved, what is in memory."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import timing
from app.session import Service
from llm_tt.engine.messages import Explanation, ListLoaded, MemoryReport
from llm_tt.models.sizes import show_bytes


def show(service: Service, explanation: Explanation) -> None:
    """Belongs at the end of the page, when all else is drawn; nothing without `debug`."""
    if not service.config.debug:
        return
    box = st.expander("Time and memory", icon=":material/timer:", key="debug_open", on_change="rerun")
    if not box.open:
        return
    with box:
        report = service.engine.answer(ListLoaded())
        left, middle, right = st.columns(3)
        with left:
            st.dataframe(
                times(explanation, timing.seconds()),
                hide_index=True,
                key="debug_times",
                column_config={"ms": st.column_config.NumberColumn("ms", format="%.1f")},
            )
            st.caption("The model is loaded and the prompt is run once; later questions about it use what is kept.")
        with middle:
            st.dataframe(caches(report), hide_index=True, key="debug_caches")
            st.caption("Since the server was started, of all users.")
        with right:
            st.dataframe(memory(report, explanation), hide_index=True, key="debug_memory")


def times(explanation: Explanation, drawn: dict[str, float]) -> pd.DataFrame:
    """Milliseconds, in the order in which they are spent."""
    engine = {
        "load the model": explanation.facts.load_seconds,
        "forward pass": explanation.trace_seconds,
        "routes": explanation.routes_seconds,
        "propagation of the flow": explanation.propagation_seconds,
        "predictions": explanation.predictions_seconds,
    }
    rows = [*engine.items(), *((f"draw {name}", seconds) for name, seconds in drawn.items())]
    return pd.DataFrame([{"what": name, "ms": 1000 * seconds} for name, seconds in rows])


def caches(report: MemoryReport) -> pd.DataFrame:
    return pd.DataFrame([{"kept": use.name, "now": use.n_kept, "found": use.n_found, "made": use.n_made} for use in report.caches])


def memory(report: MemoryReport, explanation: Explanation) -> pd.DataFrame:
    """Sizes as people read them."""
    rows = [("this prompt's trace", show_bytes(explanation.trace_bytes))]
    for model in report.models:
        rows.append((f"weights of {model.key.name}", show_bytes(model.weight_bytes)))
        rows.append((f"traces of {model.key.name} ({model.n_traces})", show_bytes(model.trace_bytes)))
    rows.append(("this process", show_bytes(report.process_bytes)))
    for device in report.memory:
        name = "host" if device.device == "cpu" else f"{device.name} ({device.device})"
        rows.append((f"{name}, in use", show_bytes(device.total_bytes - device.free_bytes)))
        rows.append((f"{name}, free of {show_bytes(device.total_bytes)}", show_bytes(device.free_bytes)))
    return pd.DataFrame(rows, columns=["memory", "size"])
