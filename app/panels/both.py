"""The inspector of a comparison: what a node, an edge or a head is and says in each of the two, in one table, and the way to each in Explore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import navigation, session
from app.link import Selected, View
from app.markup import escaped, signed
from app.panels import difference, normalize, token_tables, waiting
from app.session import Service
from llm_tt.analysis.comparison import Comparison
from llm_tt.engine.messages import (
    CompareTraces,
    EdgeReport,
    HeadReport,
    InspectEdge,
    InspectHead,
    InspectHeads,
    InspectNeurons,
    InspectNode,
    NodeReport,
    TraceKey,
)
from llm_tt.errors import LlmTtError
from llm_tt.flow.graph import EdgeKey, EdgeKind, Node
from llm_tt.lens.direct_effects import LogitQuestion
from llm_tt.lens.token_table import TokenTable
from llm_tt.text import visible

_SHOWN, _LOOKED_AT, _EFFECTS = 15, 200, 2000
"""Tokens of each side in a table; among how many first ones the other side's number is looked for, and among how many that it raises or lowers"""
_HEIGHT = 300
_N_STRONGEST = 4
_KINDS = {
    "X": "token embedding",
    "A": "layer {layer}, after attention",
    "M": "layer {layer}, FFN block",
    "I": "layer {layer}, after the FFN",
}
_EDGES = {
    EdgeKind.ATTENTION: "attention",
    EdgeKind.RESIDUAL_TO_MID: "residual past attention",
    EdgeKind.INTO_FFN: "into the FFN",
    EdgeKind.OUT_OF_FFN: "FFN",
    EdgeKind.RESIDUAL_TO_POST: "residual past the FFN",
}
_EFFECT_HELP = "In logits. Only what is written to the target's own column has a direct effect on its logits."


def show(service: Service, question: CompareTraces, compared: Comparison, names: tuple[str, str]) -> None:
    missing = [key.model for key in question.trace if not service.engine.is_loaded(key.model)]
    head: Mapping[str, int] | None = st.session_state.get(difference.HEAD)
    selected = difference.selection()
    if not selected and head is None:
        _how_to_read(compared, names)
        return
    if missing:
        # Answering would load it while the page stands still; as a question it has a progress bar.
        st.info(
            f"{escaped(missing[0].name)} is no longer in memory. The difference is still right; to look into it, load the model again.",
            icon=":material/memory:",
        )
        if st.button("Load it again", icon=":material/refresh:", key="compare_load_again", help="Load the model and run the prompt again."):
            session.comparison().again()
            st.rerun()
        return
    try:
        if head is not None:
            _head(service, question, compared, names, head["layer"], head["head"])
        elif selected and selected.get("type") == "edge":
            _edge(service, question, compared, names, selected)
        elif selected:
            _node(service, question, compared, names, selected)
    except LlmTtError as error:
        st.error(escaped(str(error)), icon=":material/error:")
        st.caption("Click a node or an edge of the graph to select something else.")


def _how_to_read(compared: Comparison, names: tuple[str, str]) -> None:
    first, second = (escaped(name) for name in names)
    st.markdown(
        "**How to read the difference**\n\n"
        f"- **Blue** edges contribute more in {second} than in {first}, **orange** ones less, grey ones as much. Wider is more.\n"
        f"- **Dashed** edges are in the graph of one of them alone.\n"
        "- Click a node, an edge, or a head of the map below to see both sides; a triangle to compare what follows another token."
    )
    strongest = compared.edges.strongest(_N_STRONGEST)
    changed = [edge for edge in strongest if abs(compared.edges.change[edge]) > 0]
    if not changed:
        st.caption("No edge contributes more or less: for this prompt the two are the same.")
        return
    st.markdown("**What changed most**")
    strongest_ones = st.container(key="compare_strongest", gap=None)
    for edge, wanted, words in zip(
        changed, difference.edge_selections(compared, changed), difference.edge_words(compared, changed), strict=True
    ):
        before, after = compared.edges.contribution[edge].tolist()
        heads = compared.edges.heads_by_change(edge)
        through = f" by H{heads[0][0]}" if heads else ""
        strongest_ones.button(
            f"L{compared.edges.layer[edge]} {_EDGES[EdgeKind(compared.edges.kind[edge])]}{through}, {escaped(words)}: **{signed(after - before)}**",
            key=f"compare_strongest_{edge}",
            type="tertiary",
            on_click=difference.choose,
            args=(wanted,),
            help=f"{wanted['from']} to {wanted['to']}: contribution {before:.3f} in {names[0]}, {after:.3f} in {names[1]}. Click to select it.",
        )


# --- what is selected


def _node(service: Service, question: CompareTraces, compared: Comparison, names: tuple[str, str], selected: Mapping[str, Any]) -> None:
    shown = Node.parse(str(selected["node"]))
    nodes = [None if own is None else own[0] for own in difference.sides(compared, selected).nodes]
    _title(compared, nodes, _KINDS[shown.kind].format(layer=shown.layer))
    through_norm = normalize.toggle("compare_normalize")
    reports = [
        None
        if node is None
        else service.engine.answer(InspectNode(key, node.name, _LOOKED_AT, _EFFECTS, normalize=through_norm, logit=_logit(compared, side)))
        for side, (key, node) in enumerate(zip(question.trace, nodes, strict=True))
    ]
    if shown.kind != "X":
        _effects("What the block wrote: ", compared, [None if report is None else report.effect for report in reports])
    tabs = [] if shown.kind == "M" else ["Top tokens"]
    tabs += ["Promoted", "Suppressed"] if shown.kind != "X" else []
    tabs += {"A": ["Heads"], "M": ["Neurons"], "I": ["Neurons"]}.get(shown.kind, [])
    for name, tab in zip(tabs, st.tabs(tabs), strict=True):
        with tab:
            if name == "Heads":
                _heads_of_node(service, question, names, nodes)
            elif name == "Neurons":
                _neurons(service, question, compared, names, nodes)
            else:
                _words(reports, names, name)
    _open(question, compared, names, [None if node is None else Selected(node.name) for node in nodes])


def _words(reports: Sequence[NodeReport | None], names: tuple[str, str], tab: str) -> None:
    if tab == "Top tokens":
        tables = [None if report is None else report.top for report in reports]
        tokens(tables, names, probabilities=True, key="compare_top")
    else:
        effects_of([None if report is None else (report.promoted, report.suppressed) for report in reports], names, tab, "compare_node")


def _edge(service: Service, question: CompareTraces, compared: Comparison, names: tuple[str, str], selected: Mapping[str, Any]) -> None:
    key: EdgeKey = selected["key"]
    ends = difference.sides(compared, selected).nodes
    for index in range(2):
        shown = Node.parse(str(selected["to" if index else "from"]))
        _title(compared, [None if own is None else own[index] for own in ends], _KINDS[shown.kind].format(layer=shown.layer))
        if index == 0:
            st.markdown(":material/arrow_downward:")
    reports = [
        None if own is None else service.engine.answer(InspectEdge(trace, own[0].name, own[1].name, key, logit=_logit(compared, side)))
        for side, (trace, own) in enumerate(zip(question.trace, ends, strict=True))
    ]
    st.markdown(f"**{key} edge** · contribution {_from_to([None if report is None else report.contribution for report in reports])}")
    _effects("", compared, [None if report is None else report.effect for report in reports])
    if key == "attention":
        _heads_of_edge(reports, names)
    elif key == "ffn":
        _neurons(service, question, compared, names, [None if own is None else own[1] for own in ends])
    else:
        st.caption("What the token kept of itself: no head and no neuron is on this edge. Click one of its ends to read it in words.")
    selections = [None if own is None else Selected(own[0].name, own[1].name, key) for own in ends]
    _open(question, compared, names, selections)


def _head(service: Service, question: CompareTraces, compared: Comparison, names: tuple[str, str], layer: int, head: int) -> None:
    st.markdown(f"#### L{layer} H{head} :small[:gray[at the target, from all tokens]]")
    st.button(
        "Show all edges alike",
        icon=":material/close:",
        key="compare_forget_head",
        type="tertiary",
        on_click=difference.choose,
        args=(None,),
    )
    for what, values in (
        ("contribution to the target", compared.head_contribution),
        ("flow of the routes", compared.head_flow),
        (f"direct effect on `{_of(compared)}`", compared.head_effects()),
    ):
        st.markdown(f"{what}: {_from_to([float(side[layer, head]) for side in values], signs=what.startswith('direct'))}")
    through_norm = normalize.toggle("compare_normalize")
    reports: list[HeadReport] = []
    for trace, target, conversation in zip(question.trace, compared.targets, session.compared_heads(), strict=True):
        report = waiting.answer(service, conversation, InspectHead(trace, layer, head, target, n_effects=_EFFECTS, normalize=through_norm))
        if report is None:
            # The other is asked when this one is there: two bars at once would only take each other's place.
            return
        reports.append(report)
    for name, tab in zip(("Promoted", "Suppressed"), st.tabs(["Promoted", "Suppressed"]), strict=True):
        with tab:
            effects_of([(report.promoted, report.suppressed) for report in reports], names, name, "compare_head")
    _open(question, compared, names, [Selected(f"A{layer}_{target}") for target in compared.targets])


# --- tables with both sides


def effects_of(sides: Sequence[tuple[TokenTable | None, TokenTable | None] | None], names: tuple[str, str], tab: str, key: str) -> None:
    """What both sides promote most, or suppress most, whatever the other does with it."""
    chosen, others = (0, 1) if tab == "Promoted" else (1, 0)
    tables = [None if side is None else side[chosen] for side in sides]
    rest = [None if side is None else side[others] for side in sides]
    tokens(tables, names, probabilities=False, key=f"{key}_{tab.lower()}", rest=rest)


def merged(
    tables: Sequence[TokenTable | None], probabilities: bool, rest: Sequence[TokenTable | None] = (None, None), shown: int = _SHOWN
) -> pd.DataFrame:
    """The first tokens of both, by the larger number; a side's cell is empty where it has the token neither there nor in `rest`."""
    values: list[dict[str, float]] = []
    firsts: list[str] = []
    for table, more in zip(tables, rest, strict=True):
        side: dict[str, float] = {}
        for known in (more, table):
            numbers = None if known is None else known.probabilities if probabilities else known.scores
            if known is not None and numbers is not None:
                side |= zip(map(visible, known.texts), map(float, numbers), strict=True)
        values.append(side)
        firsts += [] if table is None else map(visible, table.texts[:shown])
    texts = dict.fromkeys(firsts)
    frame = pd.DataFrame({"token": list(texts)})
    for name, side in zip(("first", "second"), values, strict=True):
        frame[name] = [side.get(text, np.nan) for text in texts]
    frame["change"] = frame["second"] - frame["first"]
    order = np.argsort(-np.nan_to_num(frame[["first", "second"]].abs().max(axis=1)), kind="stable")
    return frame.iloc[order].reset_index(drop=True)


def tokens(
    tables: Sequence[TokenTable | None],
    names: tuple[str, str],
    probabilities: bool,
    key: str,
    rest: Sequence[TokenTable | None] = (None, None),
) -> None:
    """Tokens with a number for each side and its change."""
    what = "Probability, if this were the last layer." if probabilities else "How much what is written here changes the token's logit."
    number = "%.3f" if probabilities else "%+.3f"
    st.dataframe(
        merged(tables, probabilities, rest),
        hide_index=True,
        height=_HEIGHT,
        placeholder="",
        key=key,
        column_config={
            "token": st.column_config.TextColumn("token", width=84, help=token_tables.DOT),
            "first": st.column_config.NumberColumn(names[0], width=74, format=number, help=what),
            "second": st.column_config.NumberColumn(names[1], width=74, format=number, help=what),
            "change": st.column_config.NumberColumn("change", width=66, format="%+.3f", help="Second less first."),
        },
    )


def _heads_of_node(service: Service, question: CompareTraces, names: tuple[str, str], nodes: Sequence[Node | None]) -> None:
    shares: list[dict[int, float]] = []
    for trace, node in zip(question.trace, nodes, strict=True):
        report = None if node is None else service.engine.answer(InspectHeads(trace, node.layer, node.position))
        shares.append({} if report is None else {share.head: share.contribution for share in report.heads})
    layer = next(node.layer for node in nodes if node is not None)
    _head_table(layer, names, shares)


def _heads_of_edge(reports: Sequence[EdgeReport | None], names: tuple[str, str]) -> None:
    layer = next(Node.parse(report.destination).layer for report in reports if report is not None)
    shares = [{} if report is None else dict(report.heads) for report in reports]
    effects = [
        {}
        if report is None or report.head_effects is None
        else dict(zip((head for head, _ in report.heads), report.head_effects, strict=True))
        for report in reports
    ]
    _head_table(layer, names, shares, effects if any(effects) else None)


def _head_table(
    layer: int, names: tuple[str, str], shares: Sequence[Mapping[int, float]], effects: Sequence[Mapping[int, float]] | None = None
) -> None:
    """Heads with their contribution on each side, the largest change first."""
    heads = sorted({*shares[0], *shares[1]}, key=lambda head: -abs(shares[1].get(head, 0.0) - shares[0].get(head, 0.0)))
    first, second = ([side.get(head, np.nan) for head in heads] for side in shares)
    columns: dict[str, Any] = {"head": [f"L{layer} H{head}" for head in heads], "first": first, "second": second}
    if effects is None:
        columns["change"] = np.array(second) - np.array(first)
    else:
        columns["first effect"], columns["second effect"] = ([side.get(head, np.nan) for head in heads] for side in effects)
    share = "Contribution to the node after attention, before the threshold."
    effect = "Direct effect on what is in question, in logits."
    st.dataframe(
        pd.DataFrame(columns),
        hide_index=True,
        height=min(_HEIGHT, 38 + 35 * len(heads)),
        placeholder="",
        key="compare_heads_here",
        column_config={
            "head": st.column_config.TextColumn("head", width=62, help="Layer and head."),
            "first": st.column_config.NumberColumn(names[0], format="%.3f", width=70, help=share),
            "second": st.column_config.NumberColumn(names[1], format="%.3f", width=70, help=share),
            "change": st.column_config.NumberColumn("change", format="%+.3f", width=66, help="Second less first."),
            "first effect": st.column_config.NumberColumn("effect 1", format="%+.2f", width=66, help=f"In {names[0]}. {effect}"),
            "second effect": st.column_config.NumberColumn("effect 2", format="%+.2f", width=66, help=f"In {names[1]}. {effect}"),
        },
    )


def _neurons(service: Service, question: CompareTraces, compared: Comparison, names: tuple[str, str], nodes: Sequence[Node | None]) -> None:
    found: list[dict[str, float]] = []
    for side, (trace, node) in enumerate(zip(question.trace, nodes, strict=True)):
        if node is None:
            found.append({})
            continue
        report = service.engine.answer(InspectNeurons(trace, node.layer, node.position, _LOOKED_AT, _logit(compared, side)))
        found.append({share.name: share.contribution for share in report.neurons})
    neurons = list(dict.fromkeys(name for side in found for name in list(side)[:_SHOWN]))
    first, second = ([side.get(name, np.nan) for name in neurons] for side in found)
    table = pd.DataFrame({"neuron": neurons, "first": first, "second": second})
    table["change"] = table["second"].fillna(0) - table["first"].fillna(0)
    table = table.iloc[np.argsort(-table["change"].abs(), kind="stable")]
    st.dataframe(
        table,
        hide_index=True,
        height=_HEIGHT,
        placeholder="",
        key="compare_neurons",
        column_config={
            "neuron": st.column_config.TextColumn("neuron", width=84, help="Layer and neuron."),
            "first": st.column_config.NumberColumn(names[0], format="%.4f", width=70, help="Contribution to the node after the FFN."),
            "second": st.column_config.NumberColumn(names[1], format="%.4f", width=70, help="Contribution to the node after the FFN."),
            "change": st.column_config.NumberColumn(
                "change",
                format="%+.4f",
                width=70,
                help=f"Second less first; a neuron that is not among a side's first {_LOOKED_AT} counts as 0.",
            ),
        },
    )


# --- words


def _title(compared: Comparison, nodes: Sequence[Node | None], place: str) -> None:
    texts = [
        None if node is None else f"`{token_tables.code(compared.token_texts[side][node.position])}`" for side, node in enumerate(nodes)
    ]
    known = list(dict.fromkeys(text for text in texts if text is not None))
    positions = list(dict.fromkeys(node.position for node in nodes if node is not None))
    which = f"token {positions[0]}" if len(positions) == 1 else f"tokens {positions[0]} and {positions[1]}"
    lacking = "" if None not in texts else f" · only in the {'second' if texts[0] is None else 'first'} text"
    texts_shown = " \u2192 ".join(known)
    st.markdown(f"#### {texts_shown} :small[:gray[{which} · {place}{lacking}]]")


def _from_to(values: Sequence[float | None], signs: bool = False) -> str:
    first, second = ("\u2013" if value is None else signed(value) if signs else f"{value:.3f}" for value in values)
    change = "" if None in values else f" ({signed(float(values[1]) - float(values[0]))})"  # type: ignore[arg-type]
    return f"**{first} \u2192 {second}**{change}"


def _of(compared: Comparison) -> str:
    return compared.effects[0].of.replace("`", "\u02cb")


def _effects(what: str, compared: Comparison, effects: Sequence[float | None]) -> None:
    if all(effect is None for effect in effects):
        st.markdown(f"{what}no direct effect on `{_of(compared)}`", help=_EFFECT_HELP)
    else:
        st.markdown(f"{what}direct effect on `{_of(compared)}` {_from_to(effects, signs=True)}", help=_EFFECT_HELP)


def _logit(compared: Comparison, side: int) -> LogitQuestion:
    effects = compared.effects[side]
    return LogitQuestion(effects.target, effects.token_id, effects.contrast_id)


# --- the way to Explore


def _open(question: CompareTraces, compared: Comparison, names: tuple[str, str], selected: Sequence[Selected | None]) -> None:
    with st.container(horizontal=True, gap="small"):
        for side, (key, name) in enumerate(zip(question.trace, names, strict=True)):
            if st.button(
                f"Explore {escaped(name)}",
                icon=":material/open_in_new:",
                key=f"compare_open_{side}",
                disabled=selected[side] is None,
                help="Show this side in Explore, at this selection and with the same question.",
            ):
                navigation.open_explore(view(key, question, compared, side, selected[side]))


def view(key: TraceKey, question: CompareTraces, compared: Comparison, side: int, selected: Selected | None) -> View:
    """One side as Explore shows it."""
    effects = compared.effects[side]
    return View(
        model=key.model.name,
        device=key.model.device,
        dtype=key.model.dtype,
        prompt=key.prompt,
        continuation=key.continuation,
        target=compared.targets[side],
        threshold=question.threshold,
        mass=question.mass,
        selected=selected,
        token=visible(effects.token_text),
        contrast=None if effects.contrast_text is None else visible(effects.contrast_text),
    )
