"""The interface between a language model and everything that explains it: `TransparentLlm`, `ModelInfo`, `Trace`.

A backend implements `TransparentLlm`; `llm_tt.models.bridge` does so with TransformerLens. What is computed from a trace lives in `llm_tt.flow`
and `llm_tt.lens`, not here. Letters in shapes: L layers, T tokens, H query heads, K key-value heads, E head width, d residual width,
N neurons, V vocabulary.
"""

from __future__ import annotations

import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llm_tt import chat
from llm_tt.errors import PromptError, RequestError
from llm_tt.models.gradients import Differentiable
from llm_tt.models.info import ModelInfo
from llm_tt.models.patterns import AttentionPattern, RecomputedPattern
from llm_tt.models.reading import BatchReading, Reading, SeparateReadings, WholeReading
from llm_tt.models.scores import Ask, Padding, Scored, scored
from llm_tt.progress import Progress, silent
from llm_tt.text import ChatMessage, Prompt

PromptLike = str | Sequence[int] | Sequence[ChatMessage | Mapping[str, Any]]
"""Text; token ids, used as they are; or a conversation, which goes through the model's chat template"""

_DIRECTIONS = 64
"""Rows that are unembedded at a time, the whole vocabulary wide each"""


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm between a block and the residual stream, linear once its scale is taken as given: entry k of a part of what the block adds to
    token i is multiplied by `scale[i] * weight[k]`. Float32."""

    scale: Tensor
    """[T]"""
    weight: Tensor
    """[d]"""

    def rows(self, positions: Sequence[int]) -> Tensor:
        """[P, d]: the factors of some tokens."""
        return self.scale[list(positions), None] * self.weight

    @property
    def nbytes(self) -> int:
        return self.scale.nbytes


@dataclass(frozen=True, eq=False)
class SummedStream:
    """A residual stream [T, d] that is not kept: the sum that the model itself computed, entry by entry, of tensors that are kept anyway."""

    start: Tensor
    """[T, d] an earlier point of the stream"""
    added: tuple[tuple[Tensor, ...], ...]
    """what was added to it since, in the model's order; those of a group were added to each other first"""

    def rows(
        self,
        positions: Sequence[int],
        device: torch.device | str | None = None,
        earlier: Stream | None = None,
        its_rows: Tensor | None = None,
    ) -> Tensor:
        """[P, d]: some tokens of the stream, added up on a device, or where the last part is.

        earlier, its_rows: a stream that this one may go on from, and its rows, which then are not added up again.
        """
        home = self._last.device if device is None else device
        n_known = None if earlier is None or its_rows is None else self._n_groups_of(earlier)
        total = (rows_of(self.start, positions) if its_rows is None or n_known is None else its_rows).to(home)
        for group in self.added[n_known or 0 :]:
            part = rows_of(group[0], positions).to(home)
            for more in group[1:]:
                part = part + rows_of(more, positions).to(home)
            total = total + part
        return total

    @property
    def _last(self) -> Tensor:
        return self.added[-1][0] if self.added else self.start

    def _n_groups_of(self, earlier: Stream) -> int | None:
        """How many of the groups an earlier stream has, if it is one of the sums on the way to this one."""
        start, added = (earlier.start, earlier.added) if isinstance(earlier, SummedStream) else (earlier, ())
        same = start is self.start and len(added) <= len(self.added)
        same = same and all(len(a) == len(b) and all(map(operator.is_, a, b)) for a, b in zip(added, self.added, strict=False))
        return len(added) if same else None

    def plus(self, *group: Tensor) -> SummedStream:
        return SummedStream(self.start, (*self.added, group))


Stream = Tensor | SummedStream
"""A residual stream [T, d] that is kept, or added up when it is asked for"""


@dataclass(frozen=True, eq=False)
class BlockActivations:
    """What one transformer block did to one prompt, in the model's dtype and on its device, or in the host's memory where the device is short:
    what is read by way of the methods comes on `device`, the tensors themselves are where they are kept."""

    mid_stream: Stream
    """residual stream after attention; where attention and FFN run in parallel, what it would be if attention came first"""
    post_stream: Stream
    """residual stream after the FFN"""
    attn_out: Tensor
    """[T, d] what attention added to the stream, its output bias included"""
    ffn_out: Tensor
    """[T, d] what the FFN added to the stream, its output bias included"""
    values: Tensor
    """[K, T, E] value vectors, value bias included; query head h reads key-value head h // (H / K)"""
    pattern: AttentionPattern
    gate: Tensor | None = None
    """[T, H, E] or [T, H, 1]: multiplies what a head has gathered for a token, before the output projection; None for 1"""
    attn_norm: FrozenNorm | None = None
    """what attention's output passes before it is added"""
    ffn_norm: FrozenNorm | None = None
    """what the FFN's output passes before it is added"""
    parallel: bool = False
    """the FFN reads the stream before attention, not after it"""
    home: torch.device | None = None
    """where the layer's weights are, if the tensors are kept elsewhere"""

    @property
    def device(self) -> torch.device:
        """Where rows are read to, and computed with."""
        return self.attn_out.device if self.home is None else self.home

    def pattern_at_hand(self) -> AttentionPattern:
        """The pattern, for reading many rows: with all they have in common on `device`."""
        return self.pattern.at_hand() if isinstance(self.pattern, RecomputedPattern) else self.pattern

    def mid(self, positions: Sequence[int]) -> Tensor:
        """[P, d]: the residual stream after attention at some tokens."""
        return stream_rows(self.mid_stream, positions, self.device)

    def post(self, positions: Sequence[int]) -> Tensor:
        """[P, d]: the residual stream after the FFN at some tokens."""
        return stream_rows(self.post_stream, positions, self.device)

    def around_ffn(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """[P, d] each: `mid` and `post` at some tokens."""
        before = self.mid(positions)
        return before, stream_rows(self.post_stream, positions, self.device, self.mid_stream, before)

    @property
    def resid_mid(self) -> Tensor:
        """[T, d]: `mid` of all tokens."""
        return self.mid_stream.to(self.device) if isinstance(self.mid_stream, Tensor) else self.mid(range(len(self.attn_out)))

    @property
    def resid_post(self) -> Tensor:
        """[T, d]: `post` of all tokens."""
        return self.post_stream.to(self.device) if isinstance(self.post_stream, Tensor) else self.post(range(len(self.attn_out)))

    def attention_sum(self, rows: Tensor, positions: Sequence[int], weight: Tensor, bias: Tensor | None) -> Tensor:
        """[P, d] float32: the sum of all attention parts and the bias at some tokens, which identity 1 compares with `attn_out`.

        rows: [H, P, T] the tokens' attention; weight: [H, E, d] and bias: [d] of the output projection.
        """
        n_heads, n_groups = len(rows), len(self.values)
        mixed = (rows.reshape(n_groups, -1, rows.shape[-1]) @ self.values.to(self.device).float()).view(n_heads, len(positions), -1)
        if self.gate is not None:
            mixed = mixed * self.gate[list(positions)].to(self.device).float().transpose(0, 1)
        # Head by head: an einsum would copy the projection, and one product would be the model's own, bit by bit, which proves less.
        total = torch.bmm(mixed, weight).sum(0)
        if bias is not None:
            total = total + bias
        return total if self.attn_norm is None else total * self.attn_norm.rows(positions)

    @property
    def nbytes(self) -> int:
        streams = [stream for stream in (self.mid_stream, self.post_stream) if isinstance(stream, Tensor)]
        parts = (
            *streams,
            self.attn_out,
            self.ffn_out,
            self.values,
            self.pattern,
            self.gate,
            self.attn_norm,
            self.ffn_norm,
        )
        return sum(part.nbytes for part in parts if part is not None)


def rows_of(tensor: Tensor, positions: Sequence[int]) -> Tensor:
    """tensor[positions], on a CPU in a sixth of the time. Of [T, ...], for positions as in Python."""
    if tensor.device.type != "cpu":
        return tensor[list(positions)]
    chosen = torch.as_tensor(list(positions), dtype=torch.long)
    return tensor.index_select(0, torch.where(chosen < 0, chosen + len(tensor), chosen))


def stream_rows(
    stream: Stream, positions: Sequence[int], device: torch.device | str, earlier: Stream | None = None, its_rows: Tensor | None = None
) -> Tensor:
    """[P, d] of a residual stream, on a device; the others as for `SummedStream.rows`."""
    return rows_of(stream, positions).to(device) if isinstance(stream, Tensor) else stream.rows(positions, device, earlier, its_rows)


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of one FFN for P tokens, float32."""

    activations: Tensor
    """[P, N]: after the activation function, times whatever multiplies it: gate, routing weight; 0 in experts that a token is not sent to"""
    bias: Tensor | None
    """[d], or [P, d] where it depends on the token: what the FFN puts out beside its neurons"""


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass of one prompt: a value. Nothing of it lives in the model, nothing of it changes."""

    model: TransparentLlm = field(repr=False)
    prompt: Prompt
    embedding: Tensor = field(repr=False)
    """[T, d] what enters block 0: token embedding plus position embedding, if any"""
    blocks: tuple[BlockActivations, ...] = field(repr=False)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.prompt.token_ids

    @property
    def token_texts(self) -> tuple[str, ...]:
        return self.prompt.token_texts

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes held by the activations."""
        return self.embedding.nbytes + sum(block.nbytes for block in self.blocks)

    def resid_pre(self, layer: int) -> Tensor:
        """[T, d] what enters block `layer`, on that block's device."""
        return self.pre(layer, range(self.n_tokens))

    def pre(self, layer: int, positions: Sequence[int]) -> Tensor:
        """[P, d] what enters block `layer` at some tokens, on that block's device."""
        layer = self.layer(layer)
        before = rows_of(self.embedding, positions) if layer == 0 else self.blocks[layer - 1].post(positions)
        return before.to(self.blocks[layer].device)

    def around_attention(self, layer: int, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """[P, d] each: `pre` of a block and its `mid` at some tokens, on that block's device."""
        layer = self.layer(layer)
        before = self.pre(layer, positions)
        earlier = self.embedding if layer == 0 else self.blocks[layer - 1].post_stream
        block = self.blocks[layer]
        return before, stream_rows(block.mid_stream, positions, block.device, earlier, before)

    def ffn_input(self, layer: int, positions: Sequence[int] | None = None) -> Tensor:
        """[P, d] the residual stream that the FFN of block `layer` reads at some tokens, or at all of them."""
        layer, chosen = self.layer(layer), range(self.n_tokens) if positions is None else positions
        return self.pre(layer, chosen) if self.blocks[layer].parallel else self.blocks[layer].mid(chosen)

    def logits(self, position: int) -> Tensor:
        """[V] float32 on the CPU: the model's logits for the token that follows `position`."""
        position = self.position(position)
        final = self.blocks[-1].post([position])
        return self.model.cap_logits(self.model.unembed(self.model.final_norm(final)))[0].float().cpu()

    def position(self, position: int) -> int:
        """A position as Python counts it (-1 is the last token) -> 0 .. T-1.

        Raises:
            RequestError: the trace has no such position.
        """
        if not -self.n_tokens <= position < self.n_tokens:
            raise RequestError(
                f"Position {position} does not exist: the prompt has {self.n_tokens} tokens, positions 0 to {self.n_tokens - 1}."
            )
        return position % self.n_tokens

    def positions(self, positions: Sequence[int] | None) -> list[int]:
        """Several positions, all of them for None; each as in `position`."""
        return list(range(self.n_tokens)) if positions is None else [self.position(position) for position in positions]

    def layer(self, layer: int) -> int:
        """A layer as Python counts it -> 0 .. L-1.

        Raises:
            RequestError: the model has no such layer.
        """
        if not -self.n_layers <= layer < self.n_layers:
            raise RequestError(f"Layer {layer} does not exist: the model has {self.n_layers} layers, 0 to {self.n_layers - 1}.")
        return layer % self.n_layers


class TransparentLlm(ABC):
    """A causal language model whose blocks can be taken apart.

    Implement the abstract methods to explain a model that no backend here can load; `llm_tt.models.identities.check` then tells whether the
    parts add up. Every method must be safe to call from several threads at once, and no method may leave anything of a prompt in the model.
    """

    info: ModelInfo

    # --- text

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Text to token ids, with the special tokens that this tokenizer puts in front by its own rules."""

    @abstractmethod
    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """Display text of each token (`llm_tt.text`)."""

    def token_data(self, token_ids: Sequence[int]) -> list[bytes | None]:
        """The bytes that each token adds to a text, in UTF-8; None for an id that the tokenizer lacks. To be overridden by a model whose tokens
        may hold a part of a character, which no display text can tell."""
        return [text.encode() for text in self.texts(token_ids)]

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens after which a continuation is over. To be overridden by a model that has them."""
        return frozenset()

    def prompt_of_text(self, text: str) -> Prompt:
        """The text's tokens, with their places where the model's tokenizer tells them. To be overridden by a model that knows them."""
        token_ids = self.encode(text)
        return Prompt.bare(text, token_ids, self.texts(token_ids))

    def prompt_of_chat(self, messages: Sequence[ChatMessage]) -> Prompt:
        """The conversation's tokens. To be overridden by a model that has a chat template.

        Raises:
            PromptError: there is no template, or it refuses the conversation.
        """
        raise chat.no_template(self.info.name)

    # --- one forward pass

    @abstractmethod
    def run(self, token_ids: Sequence[int], progress: Progress = silent) -> tuple[Tensor, tuple[BlockActivations, ...]]:
        """One forward pass: the embedding [T, d] and every block's activations. `progress` is called once a layer and may raise."""

    @abstractmethod
    def last_logits(self, token_ids: Sequence[int]) -> Tensor:
        """[V] float32 on the CPU: logits for the token after the last one, by the model's own forward pass, nothing taken apart."""

    def next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """[B, V] float32 on the CPU: `last_logits` of several prompts of one length. To be overridden by a model that runs them at once."""
        return torch.stack([self.last_logits(token_ids) for token_ids in prompts])

    def gradients(self) -> Differentiable | None:
        """The model as a function of its embeddings; None where it has no gradients. To be overridden by a model that has them."""
        return None

    def reading(self) -> Reading:
        """Reads a text token by token, to continue it. To be overridden by a model that can keep what it computed for earlier tokens."""
        return WholeReading(self)

    def batch_reading(self, longest: int) -> BatchReading:
        """Reads several texts token by token. To be overridden by a model that reads them at once, each as if it were alone.

        longest: no text will become longer than this.
        """
        del longest
        return SeparateReadings(self)

    def score(self, asks: Sequence[Ask], padding: Padding = "right") -> list[list[Scored]]:
        """How probable given tokens are after given positions of many texts, by plain forward passes of which nothing is kept.

        To be overridden by a model that reads several texts at once; `padding` is for those.
        """
        del padding
        return [[scored(self.last_logits(ask.token_ids[: asked.position + 1]), asked.token_ids) for asked in ask.asked] for ask in asks]

    def fingerprint(self) -> str:
        """Another one for other weights, as far as this can be told cheaply. To be overridden by a model that knows its weights."""
        return hashlib.sha256(repr(self.info).encode()).hexdigest()[:16]

    # --- weights, and functions of single vectors

    @abstractmethod
    def attention_output(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """W_O [H, E, d] and b_O [d] (None without bias), float32: head h adds `z[h] @ W_O[h]`, before a norm if there is one."""

    @abstractmethod
    def neurons(self, layer: int, ffn_input: Tensor) -> Neurons:
        """The FFN's neurons for rows [P, d] of the residual stream that it reads (`Trace.ffn_input`)."""

    @abstractmethod
    def neuron_output(self, layer: int, neurons: Tensor | None = None) -> Tensor:
        """W_out [N, d], or the rows of some neurons, float32: neuron n adds `activation[n] * W_out[n]`, before a norm if there is one."""

    @abstractmethod
    def final_norm(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]: the norm before the unembedding."""

    @abstractmethod
    def unembed(self, x: Tensor) -> Tensor:
        """[..., d] normalised -> [..., V] logits: a matrix, a bias where there is one, a constant factor where the model has one."""

    def cap_logits(self, logits: Tensor) -> Tensor:
        """[..., V] -> [..., V]: a monotone function that the model applies to its logits last (Gemma's soft cap); most have none."""
        return logits

    # --- built on the above

    def unembedding(self, token_ids: Sequence[int]) -> Tensor:
        """[K, d] float32: the rows u of the unembedding for some tokens, the constant factor included: a logit is `x . u`, plus a bias.

        To be overridden by a model that can read them off its weights: here `unembed` is asked for every direction of the residual stream.
        """
        directions = torch.eye(self.info.d_model)
        with torch.inference_mode():
            nothing = self.unembed(torch.zeros(1, self.info.d_model))
            pieces = [(self.unembed(piece) - nothing)[:, list(token_ids)].float() for piece in directions.split(_DIRECTIONS)]
            return torch.cat(pieces).T

    def weight_bytes(self) -> int:
        """Bytes of the weights in memory; from the number of parameters, where a backend does not know better."""
        return self.info.n_params * self.info.torch_dtype.itemsize

    def trace(self, prompt: PromptLike, progress: Progress = silent, continuation: Sequence[int] = ()) -> Trace:
        """Run one forward pass over a text, over token ids used exactly as given, or over a conversation.

        continuation: ids of tokens that the model put out after the prompt (`llm_tt.generate`), used exactly as given.

        Raises:
            PromptError: the prompt is empty, longer than the model's context, has ids outside the vocabulary, or is a conversation for which
                there is no template or that the template refuses.
        """
        received = self.prompt(prompt, continuation)
        embedding, blocks = self.run(list(received.token_ids), progress)
        return Trace(self, received, embedding, blocks)

    def token_ids(self, prompt: PromptLike) -> list[int]:
        """The ids that the model will receive for this prompt. Raises as `trace` does."""
        return list(self.prompt(prompt).token_ids)

    def prompt(self, prompt: PromptLike, continuation: Sequence[int] = ()) -> Prompt:
        """What the model will receive for this prompt and its continuation. Raises as `trace` does."""
        received = self._received(prompt)
        if not continuation:
            return received
        added = [int(token_id) for token_id in continuation]
        # Before texts are made of them: ids outside the vocabulary have none.
        self._require_readable([*received.token_ids, *added])
        return received.continued(added, self.texts(added), self.token_data(added))

    def _received(self, prompt: PromptLike) -> Prompt:
        if isinstance(prompt, Mapping | ChatMessage):
            raise PromptError("A conversation is a list of messages. Put the message into a list.")
        if isinstance(prompt, str):
            if not prompt.strip():
                raise PromptError("The prompt is empty. Type some text, for example: The capital of France is")
            received = self.prompt_of_text(prompt)
        else:
            items: list[Any] = list(prompt)
            if not items or not isinstance(items[0], Mapping | ChatMessage):
                token_ids = [int(token_id) for token_id in items]
                self._require_readable(token_ids)
                return Prompt.bare(None, token_ids, self.texts(token_ids))
            received = self.prompt_of_chat(chat.messages_of(items))
        self._require_readable(received.token_ids)
        return received

    def _require_readable(self, token_ids: Sequence[int]) -> None:
        if not token_ids:
            raise PromptError("The prompt has no tokens. Type some text, for example: The capital of France is")
        if len(token_ids) > self.info.n_ctx:
            raise PromptError(
                f"The prompt has {len(token_ids)} tokens, but {self.info.name} reads at most {self.info.n_ctx}. "
                f"Shorten it by at least {len(token_ids) - self.info.n_ctx} tokens."
            )
        strange = [token_id for token_id in token_ids if not 0 <= token_id < self.info.d_vocab]
        if strange:
            raise PromptError(
                f"Token id {strange[0]} is outside the vocabulary of {self.info.name}, which has ids 0 to {self.info.d_vocab - 1}. "
                "Was the tokenizer extended without resizing the model's embeddings?"
            )
