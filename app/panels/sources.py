"""Sources at a glance: the prompt's tokens as text, each tinted by the share of the routes' flow that ends in it."""

from __future__ import annotations

import html
from typing import Protocol

import numpy as np
import numpy.typing as npt
import streamlit as st

from app import colours
from app.markup import escaped
from app.session import Service
from llm_tt.engine.messages import Explanation
from llm_tt.flow.graph import FlowGraph
from llm_tt.text import Prompt, visible

BLUE = "0, 114, 178"
"""Okabe-Ito blue: text is readable over it up to `MOST` opacity, black on white and white on black"""
MOST = 0.55
_N_NAMED = 3
_MOST_TOKENS = 2000
"""Of a longer prompt the strip shows the end: what the browser can lay out without a pause"""


class Routes(Protocol):
    """An explanation, or a graph from a file."""

    @property
    def graph(self) -> FlowGraph: ...
    @property
    def prompt(self) -> Prompt: ...
    @property
    def sources(self) -> npt.NDArray[np.float64]: ...
    @property
    def dropped(self) -> float | None: ...


def show(service: Service, explanation: Explanation) -> None:
    """The strip, in which tokens most of the flow ends, and how much was dropped."""
    st.html(strip(explanation))
    st.caption(summary(explanation))


def strip(explanation: Routes) -> str:
    """HTML without scripts; token text is text."""
    sources = explanation.sources
    most = float(sources.max()) or 1.0
    first = max(0, len(sources) - _MOST_TOKENS)
    tokens = zip(explanation.graph.token_texts, explanation.prompt.roles, sources.tolist(), strict=True)
    spans = [_span(position, *token, most) for position, token in enumerate(tokens) if position >= first]
    if first:
        spans.insert(0, f"<span>{first} tokens before … </span>")
    style = (
        "line-height:1.75;font-family:monospace;font-size:0.85rem;white-space:pre-wrap;overflow-wrap:anywhere;"
        "max-height:min(8.75em,12vh);overflow-y:auto"
    )
    return f'<div data-testid="sources" role="list" aria-label="Share of the flow that ends in each token" style="{style}">{"".join(spans)}</div>'


def _span(position: int, text: str, role: str | None, share: float, most: float) -> str:
    return tinted(f"token {position}: {share:.1%} of the flow" + (f" · {role}" if role else ""), text, role, BLUE, MOST * share / most)


def tinted(title: str, text: str, role: str | None, colour: str, opacity: float) -> str:
    """HTML of a token; `colour` as in BLUE."""
    line = f";border-bottom:2px solid {colours.role(role)}" if role else ""
    style = f"background:rgba({colour},{opacity:.3f});padding:1px 1px;margin-right:1px;border-radius:3px{line}"
    return f'<span role="listitem" title="{html.escape(title)}" style="{style}">{html.escape(visible(text))}</span><wbr>'


def summary(explanation: Routes) -> str:
    """Markdown: the tokens with the largest shares, and what was dropped."""
    graph, sources = explanation.graph, explanation.sources
    order = [int(token) for token in (-sources).argsort(kind="stable")[:_N_NAMED] if sources[token] > 0]
    named = ", ".join(f"{escaped(visible(graph.token_texts[token]))} (token {token}) **{sources[token]:.0%}**" for token in order)
    ends = f"The flow ends in {named}" if named else "No flow reaches a token"
    kept = "below the threshold" if graph.mass is None else "with the weakest edges"
    if explanation.dropped is None:
        return f"{ends} · the file does not say how much was dropped."
    dropped = f"**{explanation.dropped:.0%}** of the flow was dropped {kept}"
    if not graph.renormalized or not named:
        return f"{ends} · {dropped}."
    return f"{ends}, of what was kept · {dropped}, before renormalising."
