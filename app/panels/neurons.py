"""The neurons of an FFN block at a token, by contribution or direct effect; of one neuron also the tokens that it promotes and suppresses."""

from __future__ import annotations

from typing import Any, get_args

import pandas as pd
import streamlit as st

from app import kept
from app.markup import escaped, signed
from app.panels import token_tables
from app.session import Service
from llm_tt.engine.messages import Explanation, InspectNeuron, InspectNeurons, NeuronOrder, NeuronsReport
from llm_tt.lens.direct_effects import DirectEffects, LogitQuestion

_FIRST, _MORE = 20, 100
_TABLE_HEIGHT = 300
_HERE, _DIRECTION = "what it adds here", "its output direction"


def show(
    service: Service, explanation: Explanation, layer: int, position: int, normalize: bool, effects: DirectEffects | None = None
) -> None:
    """The table; below it the selected neuron. With effects at this position, those of the neurons too."""
    info = explanation.facts.info
    if info.ffn and not info.ffn[layer].n_neurons:
        st.info(
            f"The FFN of layer {layer} is shown as one block: its neurons cannot be told apart in {escaped(info.name)}. "
            "What the block promotes and suppresses as a whole is under Tokens.",
            icon=":material/info:",
        )
        return
    effects = effects if effects is not None and effects.target == position else None
    logit = None if effects is None else LogitQuestion(effects.target, effects.token_id, effects.contrast_id)
    by = "contribution" if effects is None else _order(effects)
    k = int(st.session_state.get("n_neurons", _FIRST))
    st.session_state.n_neurons = k
    report = service.engine.answer(InspectNeurons(explanation.trace, layer, position, k, logit, by))
    active = f"All {report.n_neurons:,} neurons" if report.n_active == report.n_neurons else f"{report.n_active:,} of {report.n_neurons:,}"
    together = f"together their contribution is {report.total:.3f}"
    if effects is not None and report.total_effect is not None:
        together += f" and their direct effect {signed(report.total_effect)}"
    st.caption(f"{active} take part at this token; {together}. The {len(report.neurons):,} largest:")
    chosen = _table(report, by, effects)
    if k < report.n_neurons:
        st.button(
            f"{min(_MORE, report.n_neurons - k)} more",
            icon=":material/add:",
            key="more_neurons",
            help="Show more neurons of this block.",
            on_click=_show_more,
            args=(k,),
        )
    if chosen is None:
        st.caption("Select a row to see what a neuron promotes and suppresses.")
        return
    _neuron(service, InspectNeuron(explanation.trace, layer, position, chosen, normalize=normalize, logit=logit), effects)


def _order(effects: DirectEffects) -> NeuronOrder:
    """By which number the neurons are chosen and ordered: of all neurons, not only of those that are shown."""
    kept.hold("neuron_order", "contribution")
    chosen = st.segmented_control(
        "Order",
        get_args(NeuronOrder),
        key="neuron_order",
        required=True,
        format_func=lambda order: f"Largest {order}",
        label_visibility="collapsed",
        help=f"Contribution: share of the node. Effect: on {escaped(effects.of)}, whatever its sign. Both look at all neurons of the block.",
    )
    return chosen or "contribution"


def _show_more(shown: int) -> None:
    st.session_state.n_neurons = shown + _MORE


def _table(report: NeuronsReport, by: NeuronOrder, effects: DirectEffects | None) -> int | None:
    """Draw the neurons; the selected one."""
    largest = max((share.contribution for share in report.neurons), default=0.0)
    columns: dict[str, list[Any]] = {"neuron": [share.name for share in report.neurons]}
    if report.effects is not None:
        columns["effect"] = list(report.effects)
    columns["contribution"] = [share.contribution for share in report.neurons]
    columns["activation"] = [share.activation for share in report.neurons]
    asked = "" if effects is None else f"_{effects.token_id}_{effects.contrast_id}"
    state = st.dataframe(
        pd.DataFrame(columns),
        hide_index=True,
        height=_TABLE_HEIGHT,
        # Rows are selected by number: in another order the same number is another neuron.
        key=f"neurons_{report.layer}_{report.position}" + (f"_effect{asked}" if by == "effect" else ""),
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "neuron": st.column_config.TextColumn("neuron", help="Select a row, by the box at its left, to look into a neuron."),
            "effect": st.column_config.NumberColumn(
                "effect", format="%+.3f", help="Direct effect on what is in question, in logits: below 0 the neuron works against it."
            ),
            "activation": st.column_config.NumberColumn(
                "activation",
                format="%.3f",
                help="What multiplies the neuron's output; in a mixture of experts the routing weight is in it.",
            ),
            "contribution": st.column_config.ProgressColumn(
                "contribution",
                min_value=0,
                max_value=largest or 1.0,
                format="%.3f",
                color="green",
                help="Share of the node after the FFN, among all neurons and the stream before it. Bars are relative to the largest.",
            ),
        },
    )
    selected = state.selection.rows if state is not None else []  # type: ignore[union-attr]
    return report.neurons[selected[0]].neuron if selected and selected[0] < len(report.neurons) else None


def _neuron(service: Service, question: InspectNeuron, effects: DirectEffects | None) -> None:
    report = service.engine.answer(question)
    share = report.share
    line = f"**{share.name}** · activation **{share.activation:.3f}** · contribution **{share.contribution:.3f}**"
    if effects is not None and report.effect is not None:
        of = effects.of.replace("`", "\u02cb")
        line += f" · direct effect **{signed(report.effect)}** on `{of}`"
    st.markdown(line)
    if "neuron_words" not in st.session_state:
        st.session_state.neuron_words = _HERE
    words = st.segmented_control(
        "Words of",
        (_HERE, _DIRECTION),
        key="neuron_words",
        required=True,
        help="Activation times output, as added at this token; or the output alone, as for an activation of 1. A negative activation swaps "
        "promoted and suppressed.",
    )
    if words == _DIRECTION:
        token_tables.promoted_and_suppressed(report.direction_promoted, report.direction_suppressed, csv_key="neuron_words_csv")
    else:
        token_tables.promoted_and_suppressed(report.promoted, report.suppressed, csv_key="neuron_words_csv")
