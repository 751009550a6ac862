"""Other methods: what gradients, LIME, Kernel SHAP and leave-one-out say beside the flow, how far they agree, and which of them holds good.

Belongs under the source strip or the maps. Asks only when it is drawn; what needs many runs of the model, only when its button is pressed.
"""

from __future__ import annotations

import html
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import session
from app.markup import escaped, probability
from app.panels import csv_file, sources, waiting
from app.panels import question as asking
from app.session import Conversation, Service
from llm_tt.analysis.saliency_report import METHODS, NAMES, QUICK, UNSIGNED, Method, MethodScores, Saliency, Unit
from llm_tt.engine.messages import Explanation, SaliencyOf
from llm_tt.flow.graph import DEFAULT_THRESHOLD, named_targets

_ORANGE = "213, 94, 0"
"""Okabe-Ito vermilion: what speaks against"""
_MOST_TOKENS = 600
"""Of a longer prompt each strip shows the end"""
_UNITS: dict[Unit, str] = {"token": "Tokens", "word": "Words"}
_SHOWN = "saliency_shown"
"""What the answer on the page is about"""
_ASKED_FOR = "saliency_asked_for"
"""The question for which the slow methods were run"""
# Told apart with every kind of colour vision, on white and on black, and by their symbols.
_LINES: dict[Method, tuple[str, str]] = {
    "flow": ("#0072B2", "circle"),
    "gradient": ("#E69F00", "square"),
    "gradient_x_input": ("#009E73", "diamond"),
    "integrated_gradients": ("#D55E00", "triangle-up"),
    "lime": ("#CC79A7", "x"),
    "kernel_shap": ("#56B4E9", "cross"),
    "leave_one_out": ("#999933", "star"),
}
_RANDOM = "#8C8C8C"
_SAME_DROP = 0.005
"""Methods whose drops differ by less are named together"""
_WHAT: dict[Method, str] = {
    "flow": "Share of the routes' flow that ends in the token, as in the strip above. Does not depend on which token is explained.",
    "gradient": "Length of the gradient with respect to the token's embedding: how sensitive the prediction is to it.",
    "gradient_x_input": "The gradient times the embedding itself: what the token adds, if the model were linear.",
    "integrated_gradients": "Gradients summed on the way from an embedding of zeros to the token's. Sums to the change on that way.",
    "lime": "Weight in a linear model that was fitted to prompts with random tokens taken out.",
    "kernel_shap": "Shapley value: what the token adds, the mean over all orders in which tokens can come.",
    "leave_one_out": "How far what is explained falls when this token alone is taken out.",
}


def show(service: Service, explanation: Explanation) -> None:
    """Controls, a strip for each method, deletion curves, correlations, the download."""
    if not service.engine.is_loaded(explanation.trace.model):
        st.info("This model is no longer in memory. Run the prompt again to ask other methods.", icon=":material/memory:")
        return
    if explanation.graph.targets:
        st.caption(
            f"These methods explain one prediction: of {named_targets(explanation.graph)}, which the graph explains at once, that after the "
            "last. The routes among them are those to it alone."
        )
    every = _controls(explanation)
    quick = replace(every, methods=QUICK)
    is_asked_for = st.session_state.get(_ASKED_FOR) == every
    found = _answer(service, session.saliency(), every if is_asked_for else quick)
    if found is not None:
        draw(found)


def draw(found: Saliency) -> None:
    """An answer, without its controls."""
    st.html(strips(found))
    st.caption(_legend(found))
    for note in found.notes:
        st.caption(escaped(note))
    for _, sentence in found.unavailable:
        st.caption(escaped(sentence))
    st.plotly_chart(
        curves(found),
        width="stretch",
        key="saliency_curves",
        config={"displayModeBar": False},
        alt="Probability of the explained token against the number of tokens taken out, a line for each method; the table has the means.",
    )
    st.caption(_verdict(found))
    _tables(found)
    csv_file.button(
        found.to_csv,
        "llm-tt-saliency.csv",
        "saliency_csv",
        "Every score, every point of a deletion curve and every correlation as a line, told apart by the first column.",
    )


# --- what is asked


def _controls(explanation: Explanation) -> SaliencyOf:
    """The question for all methods, as the controls have it."""
    graph = explanation.graph
    token, contrast = asking.tokens(explanation)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.segmented_control(
            "Score",
            list(_UNITS),
            format_func=_UNITS.__getitem__,
            default="token",
            required=True,
            key="saliency_unit",
            help="Take out and score single tokens, or words with the punctuation that follows them.",
        )
        with st.popover("Settings", icon=":material/tune:", help="How many runs, and their seed."):
            removed = st.number_input(
                "Taken out at most", 1, 100, 10, key="saliency_removed", help="How far the deletion curves go, in tokens or words."
            )
            samples = st.number_input(
                "Samples",
                8,
                10_000,
                256,
                step=64,
                key="saliency_samples",
                help="Prompts with tokens taken out, for LIME and Kernel SHAP each. More are slower and steadier.",
            )
            steps = st.number_input(
                "Steps",
                1,
                1000,
                256,
                step=64,
                key="saliency_steps",
                help="Points of integrated gradients, each a run of the model forth and back. Take more if its sum is off.",
            )
            seed = st.number_input(
                "Seed",
                0,
                2**31 - 1,
                0,
                key="saliency_seed",
                help="Of the samples and of the random orders: the same seed, the same numbers.",
            )
        question = SaliencyOf(
            explanation.trace,
            graph.target,
            token,
            contrast,
            METHODS,
            "word" if chosen == "word" else "token",
            n_samples=int(samples),
            n_steps=int(steps),
            n_removed=int(removed),
            seed=int(seed),
            threshold=graph.threshold if graph.mass is None else DEFAULT_THRESHOLD,
            mass=graph.mass,
            renormalize=graph.renormalized,
        )
        st.button(
            "Run the slow ones",
            icon=":material/play_arrow:",
            key="saliency_run",
            disabled=st.session_state.get(_ASKED_FOR) == question,
            on_click=_ask_for,
            args=(question,),
            help=f"Integrated gradients, LIME and Kernel SHAP: up to {int(steps) + 2 * int(samples):,} runs of the model over the prompt.",
        )
    return question


def _ask_for(question: SaliencyOf) -> None:
    st.session_state[_ASKED_FOR] = question
    session.saliency().again()


def _answer(service: Service, conversation: Conversation[SaliencyOf, Saliency], question: SaliencyOf) -> Saliency | None:
    """The answer, or while a longer one is worked on the last one about the same; says how far it is."""
    if st.session_state.get(_SHOWN) != _subject(question):
        conversation.answer = None
        st.session_state[_SHOWN] = _subject(question)
    return waiting.answer(service, conversation, question, meanwhile=True)


def _subject(question: SaliencyOf) -> tuple[Any, ...]:
    return question.trace, question.target, question.token, question.contrast, question.unit


# --- the strips


def strips(found: Saliency) -> str:
    """HTML without scripts, a row for each method; token text is text."""
    rows = "".join(_row(found, method) for method in found.methods)
    style = "display:grid;grid-template-columns:minmax(7.5em,auto) 1fr;gap:0.35em 0.8em;align-items:start;font-size:0.85rem"
    return f'<div data-testid="saliency" style="{style}">{rows}</div>'


def _row(found: Saliency, method: MethodScores) -> str:
    name, what = html.escape(method.name), html.escape(_WHAT[method.method])
    style = "line-height:1.75;font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;max-height:5.25em;overflow-y:auto"
    label = f'<div title="{what}" style="line-height:1.75;cursor:help">{name}</div>'
    tokens = f'<div role="list" aria-label="{name}" data-method="{method.method}" style="{style}">{_strip(found, method)}</div>'
    return label + tokens


def _strip(found: Saliency, method: MethodScores) -> str:
    most = float(np.nanmax(np.abs(method.scores), initial=0.0)) or 1.0
    place = {index: rank for rank, index in enumerate(method.order, 1)}
    first = max(0, len(found.token_texts) - _MOST_TOKENS)
    spans = [f"<span>{first} tokens before … </span>"] if first else []
    for index, (feature, score) in enumerate(zip(found.features, method.scores.tolist(), strict=True)):
        if feature.stop <= first:
            continue
        where = f"token {feature.start}" if feature.stop - feature.start == 1 else f"tokens {feature.start} to {feature.stop - 1}"
        told = "no score" if math.isnan(score) else _score(method.method, score)
        title = f"{where}: {told} · " + ("never taken out" if feature.is_kept else f"{place[index]} of {found.n_removable}")
        opacity = 0.0 if math.isnan(score) else sources.MOST * abs(score) / most
        spans.append(sources.tinted(title, feature.text, None, _ORANGE if score < 0 else sources.BLUE, opacity))
    return "".join(spans)


def _score(method: Method, score: float) -> str:
    if method == "flow":
        return f"{score:.1%} of the flow"
    return f"{score:.3g}" if method in UNSIGNED else f"{score:+.3g}".replace("-", "\u2212")


def _legend(found: Saliency) -> str:
    what = "log probability" if found.contrast_text is None else "lead in log probability"
    return (
        f"Explained: the {what} of {escaped(found.of)} (p = {probability(found.probability)}). **Blue** speaks for it, **orange** against; "
        "each strip has its own scale. Flow and gradient norm have no sign. Special tokens, those of a chat template and the last one are "
        "never taken out."
    )


# --- the test


def curves(found: Saliency) -> go.Figure:
    """A line a method, and the mean of random orders, dotted."""
    unit, counts = found.unit, list(range(found.n_removed + 1))
    figure = go.Figure()
    figure.add_scatter(
        x=counts,
        y=found.random_deletion,
        mode="lines",
        name=f"{found.n_random} random orders, mean",
        line={"color": _RANDOM, "width": 2, "dash": "dot"},
        hovertemplate="random: %{x} taken out, p = %{y:.3f}<extra></extra>",
    )
    for method in found.methods:
        colour, symbol = _LINES[method.method]
        figure.add_scatter(
            x=counts,
            y=method.deletion,
            mode="lines+markers",
            name=method.name,
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 8},
            hovertemplate=f"{method.name}: %{{x}} taken out, p = %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(
        height=300,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        hovermode="closest",
        dragmode=False,
        showlegend=True,
        xaxis={
            "title": {"text": f"{unit}s taken out, the first by each method"},
            "dtick": max(1, found.n_removed // 10),
            "zeroline": False,
        },
        yaxis={"title": {"text": "probability"}, "rangemode": "tozero", "zeroline": False},
        plot_bgcolor="rgba(0,0,0,0)",
        paper_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def _verdict(found: Saliency) -> str:
    """Which method found what the prediction goes by, in words."""
    most = max(method.drop for method in found.methods)
    best = [method.name for method in found.methods if method.drop > most - _SAME_DROP]
    names = best[0] if len(best) == 1 else f"{', '.join(best[:-1])} and {best[-1]}"
    n, unit = found.n_removed, found.unit
    taken = f"the first {n} {unit}s" if n > 1 else f"the first {unit}"
    return (
        f"The faster a line falls, the better its method found what the model goes by. On average over {taken} taken out, the probability falls "
        f"furthest, by {_drop(most)}, with **{names}**; in random order it falls by {_drop(found.random_drop)}."
    )


def _drop(value: float) -> str:
    return f"{value:+.3f}".replace("+", "").replace("-", "\u2212")


def _tables(found: Saliency) -> None:
    methods = pd.DataFrame(
        {
            "method": [method.name for method in found.methods],
            "drop": [method.drop for method in found.methods],
            "runs": [method.n_runs for method in found.methods],
        }
    )
    st.dataframe(
        methods,
        hide_index=True,
        key="saliency_methods",
        column_config={
            "method": st.column_config.TextColumn("method"),
            "drop": st.column_config.NumberColumn(
                "mean drop", format="%.3f", help="Fall of the probability, the mean over 1, 2, ... taken out. Larger is better."
            ),
            "runs": st.column_config.NumberColumn("runs", help="Prompts that went through the model for the scores."),
        },
    )
    for method in found.methods:
        if method.note is not None:
            st.caption(f"{method.name}: {escaped(method.note)}")
    if len(found.methods) > 1:
        st.caption("Rank correlation (Spearman) of the scores: 1 is the same order, 0 none in common, \u22121 the opposite.")
        names = [NAMES[method.method] for method in found.methods]
        table = pd.DataFrame(found.correlations, columns=names)
        table.insert(0, "method", names)
        st.dataframe(
            table,
            hide_index=True,
            key="saliency_correlations",
            column_config={name: st.column_config.NumberColumn(name, format="%.2f", width=90) for name in names},
        )
