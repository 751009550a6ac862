"""How much of the graph is drawn: edges above a threshold, or as few as carry a share of the flow; renormalised or not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import streamlit as st

from app.link import View
from llm_tt.flow.graph import DEFAULT_THRESHOLD

_BY_THRESHOLD, _BY_MASS = "Threshold", "Share of flow"
_MASSES = [0.8, 0.9, 0.95]
_LOWEST, _HIGHEST = 0.01, 0.1
_STEP = 0.005
_STATE = "pruning"


@dataclass(frozen=True)
class _Kept:
    """What each control holds, drawn or not: Streamlit forgets the value of one that is not drawn for a while."""

    keep: str = _BY_THRESHOLD
    threshold: float = DEFAULT_THRESHOLD
    mass: float = _MASSES[0]
    renormalize: bool = True


@dataclass(frozen=True)
class Pruning:
    threshold: float
    mass: float | None
    """the share of the flow that the graph is to carry; None: the threshold decides"""
    renormalize: bool


def chosen() -> Pruning:
    """What the controls say in this run of the script, whether they have been drawn already or not."""
    held = _held()
    return Pruning(held.threshold, held.mass if held.keep == _BY_MASS else None, held.renormalize)


def show() -> Pruning:
    """The controls, in one row."""
    held = _held()
    with st.container(horizontal=True, vertical_alignment="center", key="pruning"):
        # Set in every run, and not as the widgets' own defaults: a link may have chosen, or another page forgotten.
        st.session_state.keep = held.keep
        keep = st.segmented_control(
            "Keep",
            [_BY_THRESHOLD, _BY_MASS],
            required=True,
            key="keep",
            label_visibility="collapsed",
            help="Edges that contribute more than a threshold to their node; or the smallest graph that carries a share of the whole flow, "
            "from the prediction down to the tokens.",
        )
        if keep == _BY_MASS:
            st.session_state.mass = held.mass
            st.segmented_control(
                "Share of the flow",
                _MASSES,
                required=True,
                key="mass",
                format_func=lambda mass: f"{mass:.0%}".replace("%", " %"),
                help="The graph is made of the edges with the largest flow, as few as carry this share to the tokens. More shows more edges.",
            )
        else:
            st.session_state.threshold = held.threshold
            st.slider(
                "Threshold",
                min_value=_LOWEST,
                max_value=_HIGHEST,
                step=_STEP,
                format="%.3f",
                key="threshold",
                help="An edge is drawn when it contributes more than this share to the node it leads to. Lower shows more edges.",
            )
        st.session_state.renormalize = held.renormalize
        st.toggle(
            "Renormalise",
            key="renormalize",
            help="Divide the contributions that were kept at a node by their sum, so that they add up to 1. The same edges are drawn "
            "either way.",
        )
    st.session_state[_STATE] = _held()
    return chosen()


def restore(view: View) -> list[str]:
    """Choose what a view shows, before the controls are drawn; sentences on what they cannot say."""
    problems: list[str] = []
    held = replace(_held(), keep=_BY_THRESHOLD if view.mass is None else _BY_MASS, renormalize=view.renormalize)
    if view.mass is not None:
        wanted = view.mass
        held = replace(held, mass=min(_MASSES, key=lambda mass: abs(mass - wanted)))
        if held.mass != wanted:
            problems.append(f"The share of flow {wanted:g} is not one of {', '.join(map(str, _MASSES))}; {held.mass} is used.")
    held = replace(held, threshold=min(max(view.threshold, _LOWEST), _HIGHEST))
    if held.threshold != view.threshold:
        problems.append(f"The threshold {view.threshold:g} is outside {_LOWEST} to {_HIGHEST}; {held.threshold} is used.")
    for name in _Kept.__dataclass_fields__:
        st.session_state.pop(name, None)
    st.session_state[_STATE] = held
    return problems


def _held() -> _Kept:
    kept: _Kept = st.session_state.get(_STATE, _Kept())
    return replace(kept, **{name: st.session_state[name] for name in _Kept.__dataclass_fields__ if name in st.session_state})
