"""How much of the graph is drawn: edges above a threshold, or as few as carry a share of the flow; renormalised or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from app import kept
from app.link import View
from llm_tt.flow.graph import DEFAULT_THRESHOLD

_BY_THRESHOLD, _BY_MASS = "Threshold", "Share of flow"
_MASSES = [0.8, 0.9, 0.95]
_LOWEST, _HIGHEST = 0.01, 0.1
_STEP = 0.005


@dataclass(frozen=True)
class Pruning:
    threshold: float
    mass: float | None
    """the share of the flow that the graph is to carry; None: the threshold decides"""
    renormalize: bool


@dataclass(frozen=True)
class Controls:
    """The controls of one page."""

    prefix: str = ""
    """of their keys"""
    renormalize: bool = True
    """at first"""
    where: str = ""
    """added to what the threshold is said to do"""
    drawn: str = "The same edges are drawn either way."
    """what renormalising does to the graph"""

    def chosen(self) -> Pruning:
        """What they say in this run of the script, whether they have been drawn already or not."""
        by_mass = self._held("keep", _BY_THRESHOLD) == _BY_MASS
        return Pruning(
            self._held("threshold", DEFAULT_THRESHOLD),
            self._held("mass", _MASSES[0]) if by_mass else None,
            self._held("renormalize", self.renormalize),
        )

    def show(self) -> None:
        """Draw them, in one row."""
        with st.container(horizontal=True, vertical_alignment="center", key=f"{self.prefix}pruning"):
            keep = st.segmented_control(
                "Keep",
                [_BY_THRESHOLD, _BY_MASS],
                required=True,
                key=self._hold("keep", _BY_THRESHOLD),
                label_visibility="collapsed",
                help="Edges that contribute more than a threshold to their node; or the smallest graph that carries a share of the whole "
                "flow, from the prediction down to the tokens.",
            )
            if keep == _BY_MASS:
                st.segmented_control(
                    "Share of the flow",
                    _MASSES,
                    required=True,
                    key=self._hold("mass", _MASSES[0]),
                    format_func=lambda mass: f"{mass:.0%}".replace("%", " %"),
                    help="The graph is made of the edges with the largest flow, as few as carry this share to the tokens. More shows more edges.",
                )
            else:
                st.slider(
                    "Threshold",
                    min_value=_LOWEST,
                    max_value=_HIGHEST,
                    step=_STEP,
                    format="%.3f",
                    key=self._hold("threshold", DEFAULT_THRESHOLD),
                    help=f"An edge is drawn when it contributes more than this share to the node it leads to{self.where}. Lower shows more edges.",
                )
            st.toggle(
                "Renormalise",
                key=self._hold("renormalize", self.renormalize),
                help=f"Divide the contributions that were kept at a node by their sum, so that they add up to 1. {self.drawn}",
            )

    def restore(self, view: View) -> list[str]:
        """Choose what a view shows, before the controls are drawn; sentences on what they cannot say."""
        problems: list[str] = []
        kept.put(f"{self.prefix}keep", _BY_THRESHOLD if view.mass is None else _BY_MASS)
        kept.put(f"{self.prefix}renormalize", view.renormalize)
        if view.mass is not None:
            wanted = view.mass
            mass = min(_MASSES, key=lambda mass: abs(mass - wanted))
            kept.put(f"{self.prefix}mass", mass)
            if mass != wanted:
                problems.append(f"The share of flow {wanted:g} is not one of {', '.join(map(str, _MASSES))}; {mass} is used.")
        threshold = min(max(view.threshold, _LOWEST), _HIGHEST)
        kept.put(f"{self.prefix}threshold", threshold)
        if threshold != view.threshold:
            problems.append(f"The threshold {view.threshold:g} is outside {_LOWEST} to {_HIGHEST}; {threshold} is used.")
        return problems

    def _held(self, name: str, default: object) -> Any:
        return kept.held(f"{self.prefix}{name}", default)

    def _hold(self, name: str, default: object) -> str:
        key = f"{self.prefix}{name}"
        kept.hold(key, default)
        return key


EXPLORE = Controls()
COMPARE = Controls(
    prefix="compare_",
    renormalize=False,
    where=", in one of the two at least",
    drawn="This changes the flow through heads and blocks; changes of edges are those of contributions as they are, either way.",
)
