"""What this shows and what it does not: the limits of the method, what the current graph leaves out, and how well this trace adds up."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import session
from app.panels import waiting
from app.session import Service
from llm_tt.engine.messages import CheckTrace, Explanation, TraceCheck

LIMITS = (
    "**Only what points the same way counts.** A head or block that works against a representation gets 0, however strongly it does.",
    "**Where heads look is taken as given.** The graph shows what attention carried, never why it was paid.",
    "**Routes are hypotheses, not causes.** A wide edge says that a part resembles the whole. Whether the prediction needs it shows only "
    "when it is taken away and the prediction is measured again.",
    "**First tokens collect attention that means little.** Much flow into the first token is often a head with nothing to do.",
    "**What is weak is left out**, and weak parts can matter together. How much was left out stands below and under the strip of tokens.",
    "**Words at a node are a reading aid**: they come from treating an inner representation as if it were the last layer's.",
)


def button() -> None:
    """What opens the dialog."""
    st.button(
        "What this shows and what it does not",
        icon=":material/balance:",
        key="honesty_dialog",
        type="tertiary",
        on_click=session.open_dialog,
        args=("honesty",),
        help="The limits of the method, what this graph leaves out, and how well the parts of this very trace add up.",
    )


@st.dialog("What this shows and what it does not", width="large", icon=":material/balance:", on_dismiss=session.close_dialog)
def show_dialog(service: Service, explanation: Explanation) -> None:
    show(service, explanation)


def show(service: Service, explanation: Explanation) -> None:
    """The limits, what was dropped, and the table of this trace's own errors, computed now."""
    st.markdown("\n".join(f"- {limit}" for limit in LIMITS))
    st.markdown(f"**This graph.** {left_out(explanation)}")
    if not service.engine.is_loaded(explanation.trace.model):
        st.info("This model is no longer in memory. Run the prompt again to check its trace.", icon=":material/memory:")
        return
    check = waiting.answer(service, session.trace_check(), CheckTrace(explanation.trace))
    if check is None:
        return
    st.markdown(f"**This trace.** {verdict(check)}")
    _table(check)


def left_out(explanation: Explanation) -> str:
    """One or two sentences on what the current graph has not."""
    graph = explanation.graph
    kept = f"{graph.n_edges:,} edges that carry {1 - explanation.dropped:.1%} of the flow to the tokens"
    if graph.mass is None:
        dropped = f"{explanation.dropped:.1%} went with the edges that contribute {graph.threshold:g} or less to their node"
    else:
        dropped = f"{explanation.dropped:.1%} went with the edges of the smallest flow, {graph.threshold:.2g} or less"
    weights = "The weights drawn are shares of what was kept" if graph.renormalized else "The weights drawn are shares of everything"
    return f"It has {kept}; {dropped}. {weights}."


def verdict(check: TraceCheck) -> str:
    """Whether the parts of every layer add up, in words."""
    where = "all" if check.n_positions == check.n_tokens else f"{check.n_positions} of"
    worst = max((max(layer.attention, layer.neurons, layer.residual, layer.future) for layer in check.layers), default=0.0)
    if worst <= check.tolerance:
        return (
            f"The parts of every layer add up to what the model computed, at {where} {check.n_tokens} tokens: the largest relative error is "
            f"{worst:.1e}, where {check.tolerance:.0e} is allowed in this precision."
        )
    return (
        f"The parts do **not** add up everywhere, at {where} {check.n_tokens} tokens: the largest relative error is {worst:.1e}, where "
        f"{check.tolerance:.0e} is allowed in this precision. Do not rely on the layers in which it is large."
    )


def _table(check: TraceCheck) -> None:
    st.dataframe(
        pd.DataFrame(
            {
                "layer": [layer.layer for layer in check.layers],
                "attention": [layer.attention for layer in check.layers],
                "neurons": [layer.neurons for layer in check.layers],
                "residual": [layer.residual for layer in check.layers],
                "future": [layer.future for layer in check.layers],
            }
        ),
        hide_index=True,
        key="trace_check",
        height=min(38 + 35 * len(check.layers), 300),
        column_config={
            "layer": st.column_config.NumberColumn("layer", format="%d"),
            "attention": st.column_config.NumberColumn(
                "heads", format="%.1e", help="Sum of all attention parts and the bias against what attention added; relative."
            ),
            "neurons": st.column_config.NumberColumn(
                "neurons",
                format="%.1e",
                help="Sum of all neuron parts and the bias against what the FFN added; 0 where neurons are not shown.",
            ),
            "residual": st.column_config.NumberColumn(
                "residual stream", format="%.1e", help="The stream before a block plus what the block added against the stream after it."
            ),
            "future": st.column_config.NumberColumn(
                "future", format="%.1e", help="The largest attention that a token pays to a later one."
            ),
        },
    )
