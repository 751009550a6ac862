"""Questions about one trace, answered: what nodes, edges, heads and neurons are made of and say. The engine finds the trace; nothing is kept here.

The model libraries are imported by the first answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llm_tt.engine.messages import (
    EdgeReport,
    HeadReport,
    HeadsReport,
    InspectEdge,
    InspectHead,
    InspectHeads,
    InspectNeuron,
    InspectNeurons,
    InspectNode,
    NeuronReport,
    NeuronsReport,
    NodeReport,
)
from llm_tt.errors import RequestError
from llm_tt.flow.graph import Node, entering
from llm_tt.lens.direct_effects import DirectEffects, LogitQuestion
from llm_tt.models.continuation import Continuation
from llm_tt.progress import Progress, silent, within
from llm_tt.text import decoded

if TYPE_CHECKING:
    from llm_tt.models.transparent_llm import Trace

_MAPPED = 0.2
"""Fraction of the progress of a head's maps at which its attention is read"""


def _checked(name: str, trace: Trace) -> Node:
    node = Node.parse(name)
    trace.layer(node.layer)
    trace.position(node.position)
    return node


def explain_logit(trace: Trace, logit: LogitQuestion) -> DirectEffects:
    from llm_tt.lens.effects import direct_effects

    return direct_effects(trace, logit.target, logit.token, logit.contrast)


def inspect_node(question: InspectNode, trace: Trace) -> NodeReport:
    from llm_tt.lens.vocabulary import promoted_and_suppressed, top_tokens

    node = _checked(question.node, trace)
    layer, position, model = node.layer, node.position, trace.model
    text = trace.token_texts[position]
    before = trace.pre(layer, [position])[0]
    effects = None if question.logit is None else explain_logit(trace, question.logit)
    if effects is not None and effects.target != position:
        effects = None
    if node.kind == "X":
        top = top_tokens(model, before, question.n_top, normalize=question.normalize)
        return NodeReport(question.node, text, top, None, None, None, None if effects is None else effects.embedding)
    block = trace.blocks[layer]
    if node.kind == "A":
        kind, part, whole = "attention", block.attn_out[position].to(block.device), block.mid([position])[0]
    else:
        kind, part = "FFN", block.ffn_out[position].to(block.device)
        before, whole = block.mid([position])[0], block.post([position])[0]
    promoted, suppressed = promoted_and_suppressed(model, part, whole, question.n_effects, question.normalize)
    top = None if node.kind == "M" else top_tokens(model, whole, question.n_top, before, question.normalize)
    effect = None if effects is None else float(effects.attention(layer) if kind == "attention" else effects.ffn[layer])
    return NodeReport(question.node, text, top, kind, promoted, suppressed, effect)


def inspect_edge(question: InspectEdge, trace: Trace) -> EdgeReport:
    from llm_tt.flow.contributions import attention_contributions, ffn_contributions

    source, destination = _checked(question.source, trace), _checked(question.destination, trace)
    layer, position = destination.layer, destination.position
    heads: tuple[tuple[int, float], ...] = ()
    effects = None if question.logit is None else explain_logit(trace, question.logit)
    if effects is not None and effects.target != position:
        effects = None
    effect: float | None = None
    head_effects: tuple[float, ...] | None = None
    ends = (source.kind, destination.kind)
    same_place = (source.layer, source.position) == (layer, position)
    if (
        question.key == "attention"
        and destination.kind == "A"
        and source == entering(layer, source.position)
        and source.position <= position
    ):
        by_head = attention_contributions(trace, layer, [position]).edges[0, source.position]
        order = by_head.argsort(descending=True, stable=True).tolist()
        heads = tuple((head, float(by_head[head])) for head in order)
        contribution = float(by_head.sum())
        if effects is not None:
            head_effects = tuple(effects.heads[layer, order, source.position].tolist())
            effect = sum(head_effects)
    elif question.key == "residual" and destination.kind == "A" and source == entering(layer, position):
        contribution = float(attention_contributions(trace, layer, [position]).residual[0])
        effect = None if effects is None else effects.stream_before(layer)
    elif question.key == "residual" and ends == ("A", "I") and same_place:
        contribution = float(ffn_contributions(trace, layer, [position]).residual[0])
        effect = None if effects is None else effects.stream_before(layer) + float(effects.attention(layer))
    elif question.key == "ffn" and ends in (("A", "M"), ("M", "I")) and same_place:
        contribution = float(ffn_contributions(trace, layer, [position]).ffn[0])
        effect = None if effects is None else float(effects.ffn[layer])
    else:
        raise RequestError(f'There is no {question.key} edge from "{question.source}" to "{question.destination}" in a transformer.')
    return EdgeReport(question.source, question.destination, question.key, contribution, heads, effect, head_effects)


def inspect_heads(question: InspectHeads, trace: Trace) -> HeadsReport:
    from llm_tt.flow.heads import head_shares

    layer, position = trace.layer(question.layer), trace.position(question.position)
    return HeadsReport(layer, position, tuple(head_shares(trace, layer, position)))


def inspect_head(question: InspectHead, trace: Trace, progress: Progress = silent) -> HeadReport:
    from llm_tt.flow.contributions import attention_contributions
    from llm_tt.flow.heads import attention_map, contribution_map, head_outputs, map_window
    from llm_tt.lens.vocabulary import promoted_and_suppressed

    head, layer, position = question.head, trace.layer(question.layer), trace.position(question.position)
    source = None if question.source is None else trace.position(question.source)
    rows, columns = map_window(trace, layer, position, source)
    attention = attention_map(trace, layer, head, rows, columns, within(progress, 0.0, _MAPPED))
    contributions = contribution_map(trace, layer, head, rows, columns, within(progress, _MAPPED, 1.0))
    edges = attention_contributions(trace, layer, [position]).edges[0]
    edges = edges if source is None else edges[source]
    outputs = head_outputs(trace, layer, position, source)
    promoted, suppressed = promoted_and_suppressed(
        trace.model,
        outputs.sum(0) if head is None else outputs[head],
        trace.blocks[layer].mid([position])[0],
        question.n_effects,
        question.normalize,
    )
    return HeadReport(
        layer=layer,
        head=head,
        position=position,
        source=source,
        rows=(rows.start, rows.stop),
        columns=(columns.start, columns.stop),
        attention=attention.numpy(),
        contributions=contributions.numpy(),
        contribution=float((edges if head is None else edges[..., head]).sum()),
        promoted=promoted,
        suppressed=suppressed,
    )


def inspect_neurons(question: InspectNeurons, trace: Trace) -> NeuronsReport:
    from llm_tt.flow.contributions import neuron_share, neuron_shares, neurons_at
    from llm_tt.lens.effects import strongest

    layer, position = trace.layer(question.layer), trace.position(question.position)
    row = neurons_at(trace, layer, position)
    effects = _neuron_effects(question.logit, trace, layer, position)
    if question.by == "contribution":
        shares = neuron_shares(trace, layer, position, question.k)
    elif effects is None:
        raise RequestError(
            f"Neurons of token {position} have no direct effect to be ordered by: only those of the target have. Order them by contribution."
        )
    else:
        shares = [neuron_share(trace, layer, position, neuron) for neuron in strongest(effects, question.k)]
    return NeuronsReport(
        layer=layer,
        position=position,
        neurons=tuple(shares),
        n_neurons=len(row.activations),
        n_active=int(row.activations.count_nonzero()),
        total=float(row.contributions.sum()),
        effects=None if effects is None else tuple(float(effects[share.neuron]) for share in shares),
        total_effect=None if effects is None else float(effects.sum(dtype="float64")),
    )


def inspect_neuron(question: InspectNeuron, trace: Trace) -> NeuronReport:
    from llm_tt.flow.contributions import neuron_direction, neuron_share
    from llm_tt.lens.vocabulary import promoted_and_suppressed

    layer, position = trace.layer(question.layer), trace.position(question.position)
    direction = neuron_direction(trace, layer, position, question.neuron)
    share, whole = neuron_share(trace, layer, position, question.neuron), trace.blocks[layer].post([position])[0]
    added, bare = (
        promoted_and_suppressed(trace.model, part, whole, question.n_effects, question.normalize)
        for part in (share.activation * direction, direction)
    )
    effects = _neuron_effects(question.logit, trace, layer, position)
    return NeuronReport(share, position, *added, *bare, None if effects is None else float(effects[question.neuron]))


def _neuron_effects(logit: LogitQuestion | None, trace: Trace, layer: int, position: int) -> npt.NDArray[np.float32] | None:
    """[N] of the neurons at a position; None where none is asked for, or where there are none."""
    from llm_tt.lens.effects import neuron_effects

    if logit is None or trace.position(logit.target) != position:
        return None
    return neuron_effects(trace, layer, logit.target, logit.token, logit.contrast)


def read_continuation(trace: Trace) -> Continuation:
    """The generated tokens of a trace, as they were told when they came."""
    from llm_tt.lens.vocabulary import following_token

    start = trace.n_tokens - trace.prompt.n_generated
    token_ids = trace.token_ids[start:]
    told: list[tuple[float, int]] = []
    for position in range(start - 1, trace.n_tokens - 1):
        table = following_token(trace, position)
        assert table is not None
        assert table.probabilities is not None
        assert table.ranks is not None
        told.append((float(table.probabilities[0]), int(table.ranks[0])))
    return Continuation(
        start,
        tuple(token_ids),
        tuple(trace.token_texts[start:]),
        decoded(trace.model.token_data(token_ids))[0],
        tuple(probability for probability, _ in told),
        tuple(rank for _, rank in told),
        None,
    )
