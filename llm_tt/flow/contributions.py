"""A trace becomes contributions: how much each part of a residual stream point has to do with the whole. Routes are `llm_tt.flow.routes`.

For a vector x = sum_i p_i (Ferrando & Voita 2024, eq. 4; Ferrando et al. 2022):

    proximity(p, x)   = max(0, ||x||_1 - ||x - p||_1)
    contribution(p_i) = proximity(p_i, x) / sum_k proximity(p_k, x)

The difference of norms cancels, and clipping noise at zero gives mass to parts that have none. With s = sign(x) and q = s * p the same number is a
sum of small terms, ||x||_1 - ||x - p||_1 = sum_k min(q_k, 2|x_k| - q_k), which is how it is computed here. It follows that

    sum_k q_k  -  2 sum_k max(0, |p_k| - |x_k|)  <=  ||x||_1 - ||x - p||_1  <=  sum_k q_k.

For attention parts p = alpha * v @ W_O the upper bound is alpha * v . (W_O @ s), two small matrix products for all sources, heads and positions:
where it is not positive the proximity is zero, and where the two bounds agree it is the proximity. For the rest vectors of width d are made, once
for all positions; their largest entries tighten the lower bound, and what is open still is summed, over the entries where |p_k| can be larger than
|x_k| if these are few, else element by element. Rows of attention are read for a few positions at a time.
A norm that attention's output passes, its scale frozen, multiplies s; a gate on the heads multiplies W_O @ s. All arithmetic is float32.
On a GPU one kernel sums what the bounds leave open (`llm_tt.flow.kernels`); what follows is how it is done everywhere else.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_tt.errors import RequestError
from llm_tt.flow import kernels
from llm_tt.flow.shares import NeuronShare
from llm_tt.models.patterns import AttentionPattern, rows_until
from llm_tt.models.transparent_llm import Trace, rows_of

_Row = TypeVar("_Row")

_BOUND_AGREEMENT = 1e-6
"""Relative distance of the two bounds at which the upper one is taken for the proximity"""
_NEGLIGIBLE_TOTAL = 1e-7
"""Parts that all together have less than this share of their node may be off by it"""
_UNIT_BYTES = 16 * 2**20
"""Value-output vectors are made for as many heads at a time as fit into this"""
_STRONG = 0.005
"""Contributions above this are kept apart once they were looked for: another threshold reads only them"""
_NUMBERS = 2**21
"""Open parts are summed for so many positions at a time that their rows of attention have about as many numbers as this"""
_CACHED_NUMBERS = 2**19
"""Their bounds are looked at for so many at a time, which stay in a processor's cache"""
_SMALL_ENTRIES, _FEW_ENTRIES = 64, 8
"""A part that can be larger than the whole in this many entries at most is summed over these alone"""
_OVERSHOOT_ROWS = 2**11
_ROWS = 256
"""Parts summed element by element at a time: a few hundred rows of d floats stay in a core's cache"""
_PIECE_BYTES = 64 * 2**20
"""Of one temporary tensor where no cache is to be kept: a GPU would be kept waiting by small pieces"""


@dataclass(frozen=True, eq=False)
class AttentionContributions:
    """Contributions to the residual stream after attention, float32 on the CPU.

    For each position edges and residual sum to 1, or are all 0 where every part points away from the whole.
    """

    layer: int
    positions: tuple[int, ...]
    edges: Tensor
    """[P, T, H]: from the residual stream before the block at each source token, through each head; 0 for future tokens"""
    residual: Tensor
    """[P]: from the token's own residual stream, past the heads"""


@dataclass(frozen=True, eq=False)
class FfnContributions:
    """Contributions to the residual stream after the FFN, float32 on the CPU.

    For each position the two sum to 1, or are both 0 where both point away from the whole.
    """

    layer: int
    positions: tuple[int, ...]
    ffn: Tensor
    """[P]: from the FFN block"""
    residual: Tensor
    """[P]: from the residual stream after attention, past the FFN"""


def attention_contributions(trace: Trace, layer: int, positions: Sequence[int] | None = None) -> AttentionContributions:
    """Contributions of attention edges and of the residual edge (method: attention node A).

    The output bias of attention belongs to no head and is left out of the denominator, as in the paper.

    Raises:
        RequestError: no such layer or position.
    """
    layer, wanted = trace.layer(layer), trace.positions(positions)
    rows = table_of(trace).attention(trace, layer, wanted)
    edges = torch.zeros(len(wanted), trace.n_tokens, trace.model.info.n_heads)
    for index, row in enumerate(rows):
        # Some models have fewer heads in some layers.
        edges[index, : row.edges.shape[0], : row.edges.shape[1]] = row.edges
    return AttentionContributions(layer, tuple(wanted), edges, torch.tensor([row.residual for row in rows]))


def ffn_contributions(trace: Trace, layer: int, positions: Sequence[int] | None = None) -> FfnContributions:
    """Contributions of the FFN block and of the residual edge past it (method: FFN node I).

    Raises:
        RequestError: no such layer or position.
    """
    layer, wanted = trace.layer(layer), trace.positions(positions)
    shares = torch.tensor(table_of(trace).ffn(trace, layer, wanted)).reshape(-1, 2)
    return FfnContributions(layer, tuple(wanted), shares[:, 0], shares[:, 1])


@dataclass(frozen=True, eq=False)
class NeuronRow:
    """The neurons of one FFN at one token, float32 on the CPU; their names: `trace.model.info.ffn[layer].name(n)`."""

    activations: Tensor
    """[N]: what multiplies a neuron's row of W_out; 0 in experts that the token is not sent to"""
    contributions: Tensor
    """[N]: to the residual stream after the FFN, among all neurons and the stream before it"""


def neurons_at(trace: Trace, layer: int, position: int) -> NeuronRow:
    """Activations and contributions of single neurons; kept with the trace.

    Raises:
        RequestError: no such layer or position, or a layer whose neurons cannot be shown.
    """
    layer, position = trace.layer(layer), trace.position(position)
    shapes = trace.model.info.ffn
    if shapes and not shapes[layer].n_neurons:
        raise RequestError(f"The FFN of layer {layer} is shown as one block: its neurons cannot be told apart in {trace.model.info.name}.")
    return table_of(trace).neurons(trace, layer, position)


def neuron_contributions(trace: Trace, layer: int, position: int) -> Tensor:
    """[N] float32 on the CPU: contributions of single neurons to the residual stream after the FFN, among all neurons and the residual
    stream before it, so that together they sum to at most 1. N and the neurons' names: `trace.model.info.ffn[layer]`; in a mixture of experts
    the neurons of experts that the token is not sent to have 0.

    Raises:
        RequestError: no such layer or position, or a layer whose neurons cannot be shown.
    """
    return neurons_at(trace, layer, position).contributions.clone()


def neuron_shares(trace: Trace, layer: int, position: int, k: int = 20) -> list[NeuronShare]:
    """The k neurons that contribute most to the residual stream after the FFN at a token, the largest first.

    Raises:
        RequestError: no such layer or position, or a layer whose neurons cannot be shown.
    """
    layer, row = trace.layer(layer), neurons_at(trace, layer, position)
    top = row.contributions.argsort(descending=True, stable=True)[: max(k, 0)].tolist()
    return [_neuron_share(trace, layer, row, neuron) for neuron in top]


def neuron_share(trace: Trace, layer: int, position: int, neuron: int) -> NeuronShare:
    """Activation and contribution of one neuron at a token.

    Raises:
        RequestError: no such layer, position or neuron, or a layer whose neurons cannot be shown.
    """
    layer, row = trace.layer(layer), neurons_at(trace, layer, position)
    _require_neuron(layer, row, neuron)
    return _neuron_share(trace, layer, row, neuron)


def _neuron_share(trace: Trace, layer: int, row: NeuronRow, neuron: int) -> NeuronShare:
    shapes = trace.model.info.ffn
    name = shapes[layer].name(neuron) if shapes else f"neuron {neuron}"
    return NeuronShare(layer, neuron, name, float(row.activations[neuron]), float(row.contributions[neuron]))


def _require_neuron(layer: int, row: NeuronRow, neuron: int) -> None:
    n_neurons = len(row.activations)
    if not 0 <= neuron < n_neurons:
        raise RequestError(f"Neuron {neuron} does not exist: the FFN of layer {layer} has {n_neurons} neurons, 0 to {n_neurons - 1}.")


def neuron_direction(trace: Trace, layer: int, position: int, neuron: int) -> Tensor:
    """[d] float32: what a neuron adds to the residual stream at a token for each unit of its activation: its row of W_out, times what a norm or
    a factor behind the FFN makes of it there.

    Raises:
        RequestError: no such layer, position or neuron, or a layer whose neurons cannot be shown.
    """
    layer, position = trace.layer(layer), trace.position(position)
    block = trace.blocks[layer]
    _require_neuron(layer, neurons_at(trace, layer, position), neuron)
    with torch.inference_mode():
        row = trace.model.neuron_output(layer, torch.tensor([neuron]))[0]
        return row if block.ffn_norm is None else row * block.ffn_norm.rows([position])[0].to(row.device)


def proximity(parts: Tensor, whole: Tensor) -> Tensor:
    """max(0, ||x||_1 - ||x - p||_1) over the last dimension, without the cancellation; `parts` and `whole` broadcast."""
    aligned = parts * _signs(whole)
    return torch.minimum(aligned, 2 * whole.abs() - aligned).sum(-1).clamp_min(0)


def _signs(whole: Tensor) -> Tensor:
    """+1 or -1; `sign` would lose what a part does to an entry that is exactly 0."""
    return torch.ones((), dtype=whole.dtype, device=whole.device).copysign(whole)


def scaled_proximity(units: Tensor, scales: Tensor, wholes: Tensor, unit: Tensor, whole: Tensor, factors: Tensor | None = None) -> Tensor:
    """proximity(scales[n] * factors[whole[n]] * units[unit[n]], wholes[whole[n]]) for n = 0 .. N-1: in one kernel, or a piece at a time.

    units: [*, d]; wholes: [*, d]; scales: [N]; unit, whole: [N] row numbers; factors: [*, d] as wholes, None for 1. Returns [N].
    """
    if kernels.supported(units.device):
        return kernels.scaled_proximity(units, scales, wholes, unit, whole, factors)
    signs, limits = _signs(wholes), 2 * wholes.abs()
    if factors is not None:
        signs = signs * factors
    result = torch.empty_like(scales)
    n_rows = _rows_at_a_time(_ROWS, units)
    for start in range(0, len(scales), n_rows):
        piece = slice(start, start + n_rows)
        at = whole[piece]
        aligned = units.index_select(0, unit[piece]).mul_(signs.index_select(0, at)).mul_(scales[piece, None])
        result[piece] = torch.minimum(aligned, limits.index_select(0, at).sub_(aligned)).sum(-1)
    return result.clamp_min_(0)


def _rows_at_a_time(n_rows: int, like: Tensor) -> int:
    """How many rows of so many numbers each make a piece: `n_rows` on a CPU, elsewhere as many as memory has room for."""
    return n_rows if like.device.type == "cpu" else max(n_rows, _PIECE_BYTES // (4 * like.shape[-1]))


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """Contributions to one attention node: edges [i + 1, H] and the residual edge."""

    edges: Tensor
    residual: float
    strong: tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]
    """where contributions are above `_STRONG`, and these: at most 1 / `_STRONG` of them, and all that a threshold of use looks at"""

    @property
    def nbytes(self) -> int:
        return self.edges.nbytes + sum(array.nbytes for array in self.strong)

    def above(self, limit: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """Where in the flat `edges` contributions are larger, in ascending order, and those contributions."""
        where, strong = self.strong if limit >= _STRONG else _above(self.edges, limit)
        if limit > _STRONG:
            passed = strong > limit
            where, strong = where[passed], strong[passed]
        return where, strong


def _above(edges: Tensor, limit: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    flat = edges.numpy().ravel()
    where = np.flatnonzero(flat > np.float32(limit))
    return where, flat[where]


def _strong(edges: Tensor) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]]:
    """`_above` of each of the rows [P, J, H], all in one look."""
    flat = edges.reshape(len(edges), -1).numpy()
    row, where = np.divmod(np.flatnonzero(flat > np.float32(_STRONG)), flat.shape[1])
    found = flat[row, where]
    ends = np.searchsorted(row, np.arange(len(flat) + 1)).tolist()
    return [(where[start:end].copy(), found[start:end].copy()) for start, end in itertools.pairwise(ends)]


class ContributionTable:
    """Contributions of one trace, each (layer, position) computed on first use. They depend on neither threshold nor target."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attention: dict[tuple[int, int], AttentionRow] = {}
        self._ffn: dict[tuple[int, int], tuple[float, float]] = {}
        self._neurons: dict[tuple[int, int], NeuronRow] = {}

    @property
    def nbytes(self) -> int:
        with self._lock:
            neurons = sum(row.activations.nbytes + row.contributions.nbytes for row in self._neurons.values())
            return neurons + sum(row.nbytes for row in self._attention.values())

    def attention(self, trace: Trace, layer: int, positions: Sequence[int], keep: bool = True) -> list[AttentionRow]:
        """keep: whether rows that are computed now are for later, too."""
        return self._rows(self._attention if keep else dict(self._attention), _attention_rows, trace, layer, positions)

    def neurons(self, trace: Trace, layer: int, position: int) -> NeuronRow:
        return self._rows(self._neurons, _neuron_rows, trace, layer, [position])[0]

    def ffn(self, trace: Trace, layer: int, positions: Sequence[int]) -> list[tuple[float, float]]:
        """(FFN block, residual) for each position."""
        return self._rows(self._ffn, _ffn_rows, trace, layer, positions)

    def _rows(
        self,
        known: dict[tuple[int, int], _Row],
        compute: Callable[[Trace, int, list[int]], list[_Row]],
        trace: Trace,
        layer: int,
        positions: Sequence[int],
    ) -> list[_Row]:
        with self._lock:
            missing = sorted({position for position in positions if (layer, position) not in known})
            if missing:
                for position, row in zip(missing, compute(trace, layer, missing), strict=True):
                    known[layer, position] = row
            return [known[layer, position] for position in positions]


_tables: WeakKeyDictionary[Trace, ContributionTable] = WeakKeyDictionary()
_tables_lock = threading.Lock()


def table_of(trace: Trace) -> ContributionTable:
    """The contributions kept with a trace; they go when the trace goes."""
    with _tables_lock:
        return _tables.setdefault(trace, ContributionTable())


def _ffn_rows(trace: Trace, layer: int, positions: list[int]) -> list[tuple[float, float]]:
    block = trace.blocks[layer]
    with torch.inference_mode():
        before, whole = (stream.float() for stream in block.around_ffn(positions))
        ffn = proximity(rows_of(block.ffn_out, positions).to(whole.device).float(), whole)
        residual = proximity(before, whole)
        total = ffn + residual
        total = torch.where(total > 0, total, 1.0)
        return list(zip((ffn / total).tolist(), (residual / total).tolist(), strict=True))


def _neuron_rows(trace: Trace, layer: int, positions: list[int]) -> list[NeuronRow]:
    return [_neuron_row(trace, layer, position) for position in positions]


def _neuron_row(trace: Trace, layer: int, position: int) -> NeuronRow:
    block, model = trace.blocks[layer], trace.model
    with torch.inference_mode():
        activations = model.neurons(layer, trace.ffn_input(layer, [position])).activations[0]
        active = activations.nonzero(as_tuple=True)[0]
        weight = model.neuron_output(layer, None if len(active) == len(activations) else active)
        whole = block.post([position])[0].float().to(weight.device)
        factor = None if block.ffn_norm is None else block.ffn_norm.rows([position]).to(weight.device)
        every = torch.arange(len(weight), device=weight.device)
        shares = scaled_proximity(weight, activations[active].to(weight.device), whole[None], every, torch.zeros_like(every), factor)
        total = shares.sum() + proximity(block.mid([position])[0].float().to(weight.device), whole)
        contributions = torch.zeros(len(activations))
        if total > 0:
            contributions[active.cpu()] = (shares / total).cpu()
        return NeuronRow(activations.float().cpu(), contributions)


def _attention_rows(trace: Trace, layer: int, positions: list[int]) -> list[AttentionRow]:
    with torch.inference_mode():
        weight, _ = trace.model.attention_output(layer)
        block = trace.blocks[layer]
        pattern, values = block.pattern_at_hand(), block.values[:, : positions[-1] + 1].to(block.device).float()
        largest = _largest_entries(values, weight)
        in_cache = _CACHED_NUMBERS if weight.device.type == "cpu" else _NUMBERS
        rows: list[AttentionRow] = []
        for group in _pieces(positions, len(weight), _NUMBERS):
            nodes = [_Nodes.of(trace, layer, piece, pattern, values, weight, largest) for piece in _pieces(group, len(weight), in_cache)]
            if nodes[0].gate is None:
                _sum_open_parts(nodes, values, weight)
            else:
                for piece in nodes:
                    _sum_gated(piece, values, weight)
            for piece in nodes:
                rows += piece.rows()
        return rows


def _pieces(positions: list[int], n_heads: int, numbers: int) -> Iterator[list[int]]:
    """So many at a time that their rows of attention have about so many numbers."""
    size = max(1, numbers // (n_heads * (positions[-1] + 1)))
    return (positions[start : start + size] for start in range(0, len(positions), size))


def _largest_entries(values: Tensor, weight: Tensor) -> Tensor:
    """[H, J]: what no entry of values[h, j] @ weight[h] exceeds, by Cauchy and Schwarz."""
    return values.norm(dim=-1).repeat_interleave(len(weight) // len(values), 0) * weight.square().sum(1).amax(-1).sqrt()[:, None]


@dataclass(frozen=True, eq=False)
class _Nodes:
    """The attention nodes of some positions, and what is known of the proximities of the parts
    alpha[h, p, j] * (gate[h, p] * values[h, j]) @ weight[h] * factors[p] to whole[p]."""

    positions: list[int]
    whole: Tensor
    """[P, d]"""
    residual: Tensor
    """[P]: proximity of the residual stream before the block, a lower bound of each node's total"""
    factors: Tensor | None
    """[P, d] of the norm that attention's output passes; None for 1"""
    gate: Tensor | None
    """[H, P, E] or [H, P, 1]; None for 1"""
    proximities: Tensor
    """[H, P, J]: upper bounds, or 0, until the open parts are summed"""
    open_parts: Tensor
    """[N]: which of all parts have bounds that leave their proximity open"""
    scales: Tensor
    """[N]: alpha of these"""
    upper: Tensor
    """[N]: upper bounds of these"""

    @classmethod
    def of(
        cls,
        trace: Trace,
        layer: int,
        positions: list[int],
        pattern: AttentionPattern,
        values: Tensor,
        weight: Tensor,
        largest: Tensor,
    ) -> _Nodes:
        """values: [K, T, E]; weight: [H, E, d]; largest: [H, T] of `_largest_entries`."""
        block, n_sources = trace.blocks[layer], positions[-1] + 1
        before, whole = (stream.float() for stream in trace.around_attention(layer, positions))
        residual = proximity(before, whole)
        alpha = rows_until(pattern, positions, n_sources)
        factors = None if block.attn_norm is None else block.attn_norm.rows(positions)
        gate = None if block.gate is None else block.gate[positions].to(block.device).float().transpose(0, 1)
        signs = _signs(whole) if factors is None else _signs(whole) * factors
        # One product with the output projection as it lies in memory.
        aligned = (signs @ weight.reshape(-1, weight.shape[-1]).T).view(len(signs), len(weight), -1).transpose(0, 1)
        if gate is not None:
            aligned = aligned * gate
        aligned = aligned.reshape(len(values), -1, values.shape[-1])
        upper = (aligned @ values[:, :n_sources].transpose(1, 2)).view_as(alpha).mul_(alpha)
        bound = alpha * largest[:, None, :n_sources]
        if factors is not None:
            bound *= factors.abs().amax(-1)[None, :, None]
        if gate is not None:
            bound *= gate.abs().amax(-1)[..., None]
        # Parts no entry of which is larger than the smallest of the whole are what their upper bound says.
        open_parts = (bound > whole.abs().amin(-1)[:, None]).view(-1).nonzero()[:, 0]
        open_upper = upper.view(-1).index_select(0, open_parts)
        negligible = _NEGLIGIBLE_TOTAL * residual / (len(alpha) * n_sources)
        matters = (open_upper > negligible.index_select(0, open_parts // n_sources % len(positions))).nonzero()[:, 0]
        open_parts, open_upper = open_parts.index_select(0, matters), open_upper.index_select(0, matters)
        upper.clamp_(min=0)
        scales = alpha.view(-1).index_select(0, open_parts)
        return cls(positions, whole, residual, factors, gate, upper, open_parts, scales, open_upper)

    def at(self) -> tuple[Tensor, Tensor, Tensor]:
        """Head, number of the position among these, and source of the open parts."""
        _, n_positions, n_sources = self.proximities.shape
        row = self.open_parts // n_sources
        return row // n_positions, row % n_positions, self.open_parts - row * n_sources

    def rows(self) -> list[AttentionRow]:
        n_heads, n_positions, n_sources = self.proximities.shape
        total = self.proximities.sum((0, 2)) + self.residual
        scale = 1 / torch.where(total > 0, total, 1.0)
        edges = torch.mul(
            self.proximities.permute(1, 2, 0), scale[:, None, None], out=self.proximities.new_empty(n_positions, n_sources, n_heads)
        ).cpu()
        strong, found = _strong(edges), edges.numpy()
        # Copied, since a slice would keep the rows of all positions alive.
        return [
            AttentionRow(torch.from_numpy(found[index, : position + 1].copy()), share, strong[index])
            for index, (position, share) in enumerate(zip(self.positions, (self.residual * scale).tolist(), strict=True))
        ]


def _sum_open_parts(nodes: list[_Nodes], values: Tensor, weight: Tensor) -> None:
    """Fill in the proximities that bounds leave open. Vectors of width d are made only for the heads and sources of these, and once for all nodes."""
    ends = list(itertools.accumulate((len(piece.open_parts) for piece in nodes), initial=0))
    if not ends[-1]:
        return
    n_sources, width = values.shape[1], weight.shape[-1]
    whole = torch.cat([piece.whole for piece in nodes])
    factors = None if nodes[0].factors is None else torch.cat([piece.factors for piece in nodes if piece.factors is not None])
    scales, upper = torch.cat([piece.scales for piece in nodes]), torch.cat([piece.upper for piece in nodes])
    found, n_before = [], 0
    for piece in nodes:
        head, position, source = piece.at()
        found.append(torch.stack([head * n_sources + source, position + n_before]))
        n_before += len(piece.positions)
    pair, position = torch.cat(found, 1)
    pairs, unit = torch.unique(pair, return_inverse=True)
    small = _SmallEntries.of(whole)
    room = max(1, _UNIT_BYTES // (4 * width))
    for first in range(0, len(pairs), room):
        some = pairs[first : first + room]
        units = _units(some // n_sources, some % n_sources, values, weight)
        parts = (
            torch.arange(len(unit), device=unit.device) if len(pairs) <= room else ((unit >= first) & (unit < first + room)).nonzero()[:, 0]
        )
        own, at = unit[parts] - first, position[parts]
        # The norm for this takes thirty times as long.
        largest = scales[parts] * torch.maximum(units.amax(-1), -units.amin(-1))[own]
        if factors is not None:
            largest *= factors.abs().amax(-1)[at]
        # Now that their entries are known, for many parts the bounds agree.
        gap, n_larger = small.overshoot(at, largest)
        undecided = (gap > _BOUND_AGREEMENT * upper[parts]).nonzero()[:, 0]
        parts, own, at, n_larger = (tensor[undecided] for tensor in (parts, own, at, n_larger))
        upper[parts] = _open_proximities(units, scales[parts], upper[parts], whole, own, at, factors, n_larger, small)
    for piece, (start, end) in zip(nodes, itertools.pairwise(ends), strict=True):
        piece.proximities.view(-1)[piece.open_parts] = upper[start:end]


def _units(head: Tensor, source: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """[N, d]: values[h, j] @ weight[h] for heads in ascending order."""
    units = values.new_empty(len(head), weight.shape[-1])
    counts = torch.bincount(head, minlength=len(weight)).tolist()
    for number, (sources, room) in enumerate(zip(source.split(counts), units.split(counts), strict=True)):
        torch.mm(values[number * len(values) // len(weight)].index_select(0, sources), weight[number], out=room)
    return units


@dataclass(frozen=True, eq=False)
class _SmallEntries:
    """The smallest entries of each of the vectors [P, d]."""

    sizes: Tensor
    """[P, m], from the smallest"""
    sums: Tensor
    """[P, m + 1] of the first 0, 1, ... sizes"""
    columns: Tensor
    """[P, m]: where they are"""
    signs: Tensor
    """[P, m] of the entries there"""

    @classmethod
    def of(cls, whole: Tensor) -> _SmallEntries:
        sizes, columns = whole.abs().topk(min(_SMALL_ENTRIES, whole.shape[-1]), largest=False)
        return cls(sizes, torch.nn.functional.pad(sizes.cumsum(-1), (1, 0)), columns, _signs(whole.gather(-1, columns)))

    def overshoot(self, position: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """How far a part's upper bound may be from its proximity, and how many entries of the whole may be smaller than the part's there.

        The distance is 2 sum_k max(0, |p_k| - |x_k|) <= 2 sum_k max(0, t - |x_k|), t = max_k |p_k|; infinite where all the entries known here are
        smaller than t. position: [N] of the part's whole; largest: [N], values of t or above.
        """
        gaps, counts = torch.empty_like(largest), torch.empty_like(position)
        n_rows = _rows_at_a_time(_OVERSHOOT_ROWS, self.sizes)
        for start in range(0, len(position), n_rows):
            piece = slice(start, start + n_rows)
            at, t = position[piece], largest[piece]
            n_larger = (self.sizes.index_select(0, at) < t[:, None]).sum(-1)
            gap = 2 * (n_larger * t - self.sums.index_select(0, at).gather(1, n_larger[:, None])[:, 0])
            gaps[piece] = torch.where(n_larger == self.sizes.shape[-1], torch.inf, gap)
            counts[piece] = n_larger
        return gaps, counts


def _open_proximities(
    units: Tensor,
    scales: Tensor,
    upper: Tensor,
    wholes: Tensor,
    unit: Tensor,
    whole: Tensor,
    factors: Tensor | None,
    n_larger: Tensor,
    small: _SmallEntries,
) -> Tensor:
    """[N]: as `scaled_proximity`, given the upper bounds and how many of the whole's smallest entries may be smaller than the part's.

    Where these are few, what the bound overshoots is summed over them alone: upper - 2 sum_k max(0, s_k p_k - |x_k|).
    """
    if kernels.supported(units.device):
        # It reads a whole row in the time of a gather.
        return scaled_proximity(units, scales, wholes, unit, whole, factors)
    result = torch.empty_like(scales)
    width = units.shape[-1]
    n_most = small.columns.shape[-1] if width > _SMALL_ENTRIES else 0
    few = n_larger < n_most
    for n_columns in (_FEW_ENTRIES, n_most):
        chosen = (few & (n_larger <= n_columns)).nonzero()[:, 0]
        few[chosen] = False
        columns, sizes, signs = (tensor[:, :n_columns].contiguous() for tensor in (small.columns, small.sizes, small.signs))
        if factors is not None:
            signs = signs * factors.gather(-1, columns)
        for rows in chosen.split(max(1, _rows_at_a_time(_ROWS, units) * width // max(n_columns, 1))):
            at = whole.index_select(0, rows)
            parts = units.take(columns.index_select(0, at).add_(unit[rows, None], alpha=width))
            aligned = parts.mul_(signs.index_select(0, at)).mul_(scales[rows, None])
            beyond = aligned.sub_(sizes.index_select(0, at)).clamp_(min=0).sum(-1)
            result[rows] = (upper[rows] - 2 * beyond).clamp_(min=0)
    rest = (n_larger >= n_most).nonzero()[:, 0]
    result[rest] = scaled_proximity(units, scales[rest], wholes, unit[rest], whole[rest], factors)
    return result


def _sum_gated(nodes: _Nodes, values: Tensor, weight: Tensor) -> None:
    """As `_sum_open_parts`, where a gate makes each node's value-output vectors its own."""
    assert nodes.gate is not None
    n_shared, rows = len(weight) // len(values), max(1, _UNIT_BYTES // (weight.shape[-1] * 4))
    head, position, source = nodes.at()
    result, first = torch.empty_like(nodes.scales), 0
    for number, count in enumerate(torch.bincount(head, minlength=len(weight)).tolist()):
        for start in range(first, first + count, rows):
            here = slice(start, min(start + rows, first + count))
            at = position[here]
            units = (values[number // n_shared, source[here]] * nodes.gate[number, at]) @ weight[number]
            every = torch.arange(len(units), device=units.device)
            result[here] = scaled_proximity(units, nodes.scales[here], nodes.whole, every, at, nodes.factors)
        first += count
    nodes.proximities.view(-1)[nodes.open_parts] = result
