"""What one forward pass is observed by: hooks on a bridge's blocks, collected into activations. How blocks are built is the backend's business."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_tt.models.ffn import DenseFfn, Ffn, in_pieces, unwrapped
from llm_tt.models.memory import Host, ffn_rows
from llm_tt.models.offloading import home_of, stored
from llm_tt.models.patterns import QueriesOnDemand, RecomputedPattern, StoredPattern
from llm_tt.models.transparent_llm import BlockActivations, FrozenNorm, Stream, SummedStream
from llm_tt.progress import Progress

_KEPT_EVERY = 4
"""Every so many layers the residual stream is kept, so that no sum is long"""
_ROWS = 256
_SHELVED_BYTES = 2**18
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class NotAsFusedError(Exception):
    """What was captured of fused attention does not add up to what the layer put out."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One block as the bridge has it, and how it writes to the residual stream."""

    block: Any
    n_heads: int
    parallel: bool
    scale: float
    """of what attention and FFN put out, before it is added"""
    gate: nn.Module | None
    """what puts out the gate of the heads' mixes, before `gate_function`"""
    gate_function: Callable[[Tensor], Tensor] | None
    sub_norm: nn.Module | None
    """norm over all heads' mixes together, before the output projection"""
    attn_norm: Tensor | None
    """[d] weight of the norm that attention's output passes"""
    ffn_norm: Tensor | None
    ffn: Ffn


class Shelf:
    """Room for what a trace keeps of large layers in main memory: one piece for all layers, so that nothing kept lies between what comes and goes
    while the model runs, where it would keep freed memory from being used again or given back.

    Args:
        host: where everything goes that layers on other devices keep; None: it stays on its device.
        share: of the size from which on a tensor is worth it.
    """

    def __init__(self, n_layers: int, host: Host | None = None, share: float = 1) -> None:
        self._n_layers, self._host, self._least_bytes = n_layers, host, share * _SHELVED_BYTES
        self._pieces: dict[str, Tensor] = {}

    @property
    def moves(self) -> bool:
        """Whether what is put here leaves its device."""
        return self._host is not None

    def put(self, name: str, layer: int, tensor: Tensor) -> Tensor:
        """The tensor, now on the shelf if it is worth it."""
        if self._host is not None:
            return self._moved(self._host, name, layer, tensor)
        if tensor.device.type != "cpu" or tensor.nbytes < self._least_bytes:
            return tensor
        piece = self._pieces.get(name)
        if piece is None:
            piece = self._pieces[name] = tensor.new_empty(self._n_layers, *tensor.shape)
        if piece.shape[1:] != tensor.shape or piece.dtype != tensor.dtype:
            return tensor.clone(memory_format=torch.contiguous_format)
        room = piece[layer]
        if room.data_ptr() != tensor.data_ptr():
            room.copy_(tensor)
        return room

    def _moved(self, host: Host, name: str, layer: int, tensor: Tensor) -> Tensor:
        if tensor.device == host.device:
            return tensor
        piece = self._pieces.get(name)
        if piece is None:
            piece = self._pieces[name] = host.empty((self._n_layers, *tensor.shape), tensor.dtype)
        # Some models have other shapes in some layers.
        fits = piece.shape[1:] == tensor.shape and piece.dtype == tensor.dtype
        room = piece[layer] if fits else host.empty(tuple(tensor.shape), tensor.dtype)
        # Waits: whoever reads it next may be the host itself.
        room.copy_(tensor)
        return room

    def put_block(self, layer: int, block: BlockActivations) -> BlockActivations:
        """A block with values, queries and keys on the shelf, as `attention` puts them there."""
        pattern = block.pattern
        if isinstance(pattern, RecomputedPattern):
            queries = pattern.queries if isinstance(pattern.queries, QueriesOnDemand) else self.put("queries", layer, pattern.queries)
            pattern = replace(pattern, queries=queries, keys=self.put("keys", layer, pattern.keys))
        elif isinstance(pattern, StoredPattern) and self.moves:
            pattern = replace(pattern, probabilities=self.put("probabilities", layer, pattern.probabilities))
        return replace(block, values=self.put("values", layer, block.values), pattern=pattern)


class Recorder:
    """Collects the activations of one run, block by block.

    Args:
        hook_names: the hooks that the bridge has.
        finish: makes a block of its layer, of the stream that enters it, of what `BlockActivations` needs beside attention, and of what was
            read of attention.
        reads_attention: whether queries, keys, values and pattern are read from hooks.
        shelf: where large tensors go.
        n_ffn_rows: how many tokens an FFN that `reads_in_pieces` reads at all, where only sizes are wanted; None: all, as many at a time as is
            best for its width.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        hook_names: Container[str],
        finish: Callable[[int, Stream, dict[str, Any], dict[str, Tensor]], BlockActivations],
        progress: Progress,
        reads_attention: bool,
        shelf: Shelf,
        n_ffn_rows: int | None = None,
    ) -> None:
        self._layers = layers
        self._names = hook_names
        self._make = finish
        self._progress = progress
        self._reads_attention = reads_attention
        self._shelf = shelf
        self._n_ffn_rows = n_ffn_rows
        self._current: dict[str, Tensor] = {}
        self._before: Tensor = torch.empty(0)
        self._before_stream: Stream = self._before
        self.embedding: Tensor = torch.empty(0)
        self.blocks: list[BlockActivations] = []

    def hooks(self) -> list[tuple[str, Callable[..., None]]]:
        hooks: list[tuple[str, Callable[..., None]]] = [("blocks.0.hook_resid_pre", self._keep_embedding)]
        for index, layer in enumerate(self._layers):
            block = f"blocks.{index}"
            wanted = {"attn_out": "hook_attn_out", "resid_mid": "hook_resid_mid", "ffn_out": "hook_mlp_out"}
            if layer.attn_norm is not None:
                wanted["attn_normed"] = "ln1_post.hook_in"
            if layer.ffn_norm is not None:
                wanted["ffn_normed"] = "ln2_post.hook_in"
            if self._reads_attention:
                rotary = f"{block}.attn.hook_rot_q" in self._names and f"{block}.attn.hook_rot_k" in self._names
                wanted |= {
                    "queries": "attn.hook_rot_q" if rotary else "attn.hook_q",
                    "keys": "attn.hook_rot_k" if rotary else "attn.hook_k",
                    "values": "attn.hook_v",
                    "probabilities": "attn.hook_pattern",
                }
            for name, hook in wanted.items():
                if f"{block}.{hook}" in self._names:
                    hooks.append((f"{block}.{hook}", self._shelve(name, index) if name == "attn_out" else self._keep(name)))
            hooks.append((f"{block}.hook_resid_post", self._finish(index)))
        return hooks

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe what hooks do not show: gates, and norms between the heads' mixes and the output projection. FFNs run in pieces meanwhile."""
        handles = []
        for layer in self._layers:
            if layer.gate is not None:
                handles.append(layer.gate.register_forward_hook(lambda _, args, output: self._current.update(gate=output[0])))
            if layer.sub_norm is not None:
                handles.append(
                    layer.sub_norm.register_forward_hook(lambda _, args, output: self._current.update(sub_in=args[0][0], sub_out=output[0]))
                )
        try:
            with ExitStack() as stack:
                for ffn in (layer.ffn for layer in self._layers):
                    if isinstance(ffn, DenseFfn) and reads_in_pieces(ffn):
                        n_rows = self._n_ffn_rows or ffn_rows(ffn.shape.n_neurons)
                        stack.enter_context(in_pieces(ffn.module, n_rows, only_first=self._n_ffn_rows is not None))
                for block in (layer.block for layer in self._layers):
                    for name in ("ln1", "ln2"):
                        if name in block.submodules:
                            stack.enter_context(_unobserved(getattr(block, name)))
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep_embedding(self, tensor: Tensor, hook: Any) -> None:
        self.embedding = self._before = self._before_stream = tensor[0].clone()

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(tensor: Tensor, hook: Any) -> None:
            self._current[name] = tensor[0]

        return keep

    def _shelve(self, name: str, index: int) -> Callable[..., None]:
        def keep(tensor: Tensor, hook: Any) -> None:
            # What leaves the device does so when its sums have been looked at.
            self._current[name] = tensor[0] if self._shelf.moves else self._shelf.put(name, index, tensor[0])

        return keep

    def _finish(self, index: int) -> Callable[..., None]:
        def finish(tensor: Tensor, hook: Any) -> None:
            layer = self._layers[index]
            now, self._current = self._current, {}
            attn_out, ffn_out = now.pop("attn_out"), now.pop("ffn_out").reshape(tensor.shape[-2:])
            kept = self._shelf.put("attn_out", index, attn_out), self._shelf.put("ffn_out", index, ffn_out)
            if not self._shelf.moves:
                attn_out, ffn_out = kept
            mid, post = self._streams(index, attn_out, now.pop("resid_mid", None), ffn_out, tensor[0], kept)
            if isinstance(post, Tensor) or (index + 1) % _KEPT_EVERY == 0:
                # A stream that is kept for good; the next block's sums start from it.
                post = self._shelf.put("post", index, tensor[0])
            gate = _gate(layer, now)
            block: dict[str, Any] = {
                "attn_out": kept[0],
                "ffn_out": kept[1],
                "mid_stream": mid,
                "post_stream": post,
                "gate": gate if gate is None or not self._shelf.moves else self._shelf.put("gate", index, gate),
                "attn_norm": _frozen(layer.attn_norm, now.pop("attn_normed", None), attn_out),
                "ffn_norm": _frozen(layer.ffn_norm, now.pop("ffn_normed", None), ffn_out),
                "parallel": layer.parallel,
                "home": attn_out.device if self._shelf.moves else None,
            }
            self.blocks.append(self._shelf.put_block(index, self._make(index, self._before_stream, block, now)))
            self._before, self._before_stream = tensor[0], post
            self._progress(f"Tracing layer {index + 1} of {len(self._layers)}", (index + 1) / len(self._layers))

        return finish

    def _streams(
        self, index: int, attn_out: Tensor, mid: Tensor | None, ffn_out: Tensor, post: Tensor, kept: tuple[Tensor, Tensor]
    ) -> tuple[Stream, Stream]:
        """The streams after attention and after the FFN: sums, where the model's own come out bit by bit, else as they are.

        kept: what is kept of `attn_out` and `ffn_out`, of which the sums are made.
        """
        attn_kept, ffn_kept = kept
        before = self._before.to(attn_out.device)
        start = self._before_stream if isinstance(self._before_stream, SummedStream) else SummedStream(self._before_stream, ())
        if self._layers[index].parallel:
            mid_stream: Stream = start.plus(attn_kept)
            in_order = _is_sum(post, before, (attn_out,), (ffn_out,))
            if in_order or _is_sum(post, before, (attn_out, ffn_out)):
                return mid_stream, mid_stream.plus(ffn_kept) if in_order else start.plus(attn_kept, ffn_kept)
            return mid_stream, post
        assert mid is not None
        mid_stream = start.plus(attn_kept) if _is_sum(mid, before, (attn_out,)) else self._shelf.put("mid", index, mid)
        if not _is_sum(post, mid, (ffn_out,)):
            return mid_stream, post
        return mid_stream, (mid_stream if isinstance(mid_stream, SummedStream) else SummedStream(mid_stream, ())).plus(ffn_kept)


@contextmanager
def _unobserved(norm: Any) -> Iterator[None]:
    """Let one of TransformerLens' norms be the one it wraps: it computes scales for hooks that nobody listens to, several passes over the stream."""
    original = unwrapped(norm)
    if original is norm:
        yield
        return
    before = vars(norm).get("forward")
    hook_in: Any = norm.hook_in
    # What goes in is the stream after attention.
    vars(norm)["forward"] = lambda x: original(hook_in(x))
    try:
        yield
    finally:
        del vars(norm)["forward"]
        if before is not None:
            vars(norm)["forward"] = before


def reads_in_pieces(ffn: Ffn) -> bool:
    """Whether a prompt goes through an FFN some tokens at a time."""
    return isinstance(ffn, DenseFfn) and ffn.module is not None and ffn.device.type == "cpu"


def _is_sum(whole: Tensor, start: Tensor, *added: tuple[Tensor, ...]) -> bool:
    """Whether a stream is exactly what adding gives; looked at a few rows at a time, so that nothing of the whole's size is made."""
    if any(part.shape != whole.shape or part.dtype != whole.dtype for group in (*added, (start,)) for part in group):
        return False
    for first in range(0, len(whole), _ROWS):
        piece = slice(first, first + _ROWS)
        total = start[piece]
        for group in added:
            part = group[0][piece]
            for more in group[1:]:
                part = part + more[piece]
            total = total + part
        if not _same_bits(total.to(whole.device), whole[piece]):
            return False
    return True


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.device.type != "cpu":
        return torch.equal(a, b)
    # In a fifth of the time.
    a, b = (tensor.view(_BITS[tensor.element_size()]) for tensor in (a, b))
    return np.array_equal(a.numpy(), b.numpy())


def _gate(layer: Layer, now: dict[str, Tensor]) -> Tensor | None:
    """[T, H, E] or [T, H, 1]: what multiplied the heads' mixes; takes what was observed out of `now`."""
    if layer.gate_function is not None:
        gate = layer.gate_function(now.pop("gate").float())
        return gate.reshape(len(gate), layer.n_heads, -1)
    if layer.sub_norm is not None:
        norm = _frozen(norm_weight(layer.sub_norm), now.pop("sub_in"), now.pop("sub_out"))
        return None if norm is None else norm.rows(range(len(norm.scale))).view(len(norm.scale), layer.n_heads, -1)
    return None


def _frozen(weight: Tensor | None, before: Tensor | None, after: Tensor) -> FrozenNorm | None:
    """The norm that took `before` [T, d] to `after`, its scale per token read off the two."""
    if weight is None or before is None:
        return None
    return FrozenNorm(_factors(weight * before.reshape(after.shape).float(), after.float()), weight)


def _factors(vectors: Tensor, multiples: Tensor) -> Tensor:
    """[...]: by what the vectors [..., d] have been multiplied, fitted over their entries."""
    return (vectors * multiples).sum(-1) / vectors.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)


def norm_weight(norm: Any) -> Tensor:
    """[n] float32: a norm's effective weight. Families keep it as w or as 1 + w; its answer to ones tells which, but in the model's precision."""
    name = next(name for name, _ in norm.named_parameters(recurse=False))
    parameter, home = stored(norm, name), home_of(norm)
    assert parameter is not None
    with torch.inference_mode():
        kept = parameter.detach().to(home)
        answer = norm(torch.ones_like(kept)[None])[0].float()
        kept = kept.float()
        readings = [kept, 1 + kept]
        misses = [float((answer - reading * _factors(reading, answer)).norm()) for reading in readings]
        return readings[misses.index(min(misses))]
