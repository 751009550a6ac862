"""The TransformerLens backend: a Hugging Face model, booted as a TransformerBridge, as a `TransparentLlm`.

Where weights and tokenizer come from is `llm_tt.models.checkpoints`; per-family differences are `llm_tt.models.blocks`.
A bridge run by two threads at once mixes their activations without an error, so one lock per model guards every call into it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llm_tt.errors import ModelError, OutOfMemoryError
from llm_tt.models import capture, identities
from llm_tt.models.allocations import Allocations
from llm_tt.models.blocks import (
    ARCHITECTURE_NAMES,
    BlockRecipe,
    attention_windows,
    cached_positions,
    experts_per_token,
    logit_cap,
    logit_scale,
    recipe,
    softmax_scale,
    value_limit,
)
from llm_tt.models.booting import boot
from llm_tt.models.capture import CalledWith, Captured
from llm_tt.models.ffn import DenseFfn, Ffn, MixtureFfn, OpaqueFfn, has_experts, scaled, unwrapped
from llm_tt.models.gradients import Differentiable, HuggingFaceGradients
from llm_tt.models.info import FfnShape, Running
from llm_tt.models.memory import LONG, require_memory
from llm_tt.models.offloading import home_of, is_offloaded, stored, weights_of
from llm_tt.models.patterns import AttentionPattern, QueriesOnDemand, RecomputedPattern, StoredPattern, Visible
from llm_tt.models.prompts import PromptMaker
from llm_tt.models.quantized import dense_weight
from llm_tt.models.reading import BatchReading, CachedBatch, CachedReading, Reading, SeparateReadings, WholeReading
from llm_tt.models.recording import Layer, NotAsFusedError, Recorder, Shelf, norm_weight, reads_in_pieces
from llm_tt.models.scores import Ask, Padding, Scored, batches, run_batch
from llm_tt.models.transparent_llm import BlockActivations, ModelInfo, Neurons, Stream, TransparentLlm, stream_rows
from llm_tt.progress import Progress, silent
from llm_tt.text import ChatMessage, Prompt

_PATTERN_TOLERANCE = 1e-5
Batches = Literal["positions told", "positions not told", "one by one"]
"""How a model continues several texts: in one pass, with or without their positions, or each in its own"""
_TELLING_LENGTHS = (13, 17, 19, 23, 37, 41, 43, 53)
"""Primes: lengths of the prompt on which memory is measured"""
_MEASURED_AS = 37
"""The length that it stands for: what is shelved of a prompt of so many tokens is. The least, where experts share the tokens"""
_QUERY_TOLERANCE = 1e-5
_SAMPLED = 256
"""Numbers of each weight that a fingerprint is made of"""


class BridgeLlm(TransparentLlm):
    """A model on TransformerLens hooks.

    Args:
        name: what the user calls it.
        hf_model: loaded, adapters merged, on its device. The bridge changes it in place.
        tokenizer: for ids and display; stays untouched.
        chat_template: Jinja text that goes before the tokenizer's own.
        notes: sentences on what was done to the checkpoint to load it.

    Raises:
        ModelError: TransformerLens does not know the architecture, or the model is built in a way that no recipe covers.
    """

    def __init__(
        self,
        name: str,
        hf_model: Any,
        tokenizer: Any,
        *,
        adapter: str | None = None,
        chat_template: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        hf_model.eval().requires_grad_(False)
        n_params = sum(parameter.numel() for parameter in hf_model.parameters())
        self._config = hf_model.config
        self._end_ids = _end_ids(hf_model, tokenizer)
        self._keeps_cache: bool | None = None
        self._batches: Batches | None = None
        self._recipe: BlockRecipe = recipe(self._config.model_type)
        self._prompts = PromptMaker(name, tokenizer, chat_template)
        self._lock = threading.RLock()
        who = f"{name} (model type {self._config.model_type!r})"
        if self._recipe.refused:
            raise ModelError(f"{who} cannot be shown: it {self._recipe.refused}.")
        d_vocab = int(hf_model.get_input_embeddings().weight.shape[0])
        probe = identities.probe(d_vocab)[: getattr(self._config, "max_position_embeddings", None)]
        plain_logits = _last_logits(hf_model, probe)
        storages = {parameter.untyped_storage().data_ptr() for parameter in hf_model.parameters()}
        # TransformerLens looks a model up by this name, which configurations made by hand lack.
        architecture = (getattr(self._config, "architectures", None) or [type(hf_model).__name__])[0]
        self._config.architectures = [ARCHITECTURE_NAMES.get(architecture, architecture)]
        try:
            # The label is no model name: with a model given, the bridge only shows it.
            self._bridge: Any = boot(f"llm-tt/{self._config.model_type}", hf_model)
        except Exception as error:
            # Its adapters raise whatever they stumble over.
            raise _not_taken_apart(who, error) from error
        if not hasattr(self._bridge, "blocks"):
            raise ModelError(f"{who} is not a stack of transformer blocks, so that no routes lead through it.")
        cfg = self._bridge.cfg
        self._layers = [self._layer(index, block, who) for index, block in enumerate(self._bridge.blocks)]
        self._attentions = [unwrapped(layer.block.attn) for layer in self._layers]
        first = self.attention_output(0)[0]
        shapes = tuple(layer.ffn.shape for layer in self._layers)
        self.info = ModelInfo(
            name=name,
            family=self._config.model_type,
            n_layers=len(self._layers),
            n_heads=max(layer.n_heads for layer in self._layers),
            n_kv_heads=int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads),
            d_model=int(cfg.d_model),
            d_head=int(first.shape[1]),
            n_neurons=max(shape.n_neurons for shape in shapes),
            d_vocab=d_vocab,
            n_ctx=int(cfg.n_ctx),
            n_params=n_params,
            dtype=str(hf_model.dtype).removeprefix("torch."),
            device=str(home_of(hf_model)),
            norm="rms" if "RMS" in str(cfg.normalization_type) else "layer",
            norm_eps=float(cfg.eps),
            adapter=adapter,
            tokenizer=self._prompts.info(),
            ffn=shapes,
            not_shown=_not_shown(shapes),
            notes=notes,
        )
        self._logit_scale, self._logit_cap = logit_scale(self._config), logit_cap(self._config)
        self._windows = attention_windows(self._config, self.info.n_layers)
        self._proof = tuple(probe), plain_logits
        self._first_run: tuple[Tensor, tuple[BlockActivations, ...]] | None = None
        self._first_logits: Tensor | None = None
        if self._use_fused_attention():
            capture.drop_copies(self._bridge, storages)
        else:
            self.use_eager_attention()

    def _use_fused_attention(self) -> bool:
        """Switch to SDPA if every layer can be captured and the logits are the model's own; whether that was so."""
        probe, plain_logits = self._proof
        capture.enable(self._bridge, self._config)
        try:
            calls: dict[int, dict[str, Any]] = {}
            embedding, blocks, logits = self._record(probe, silent, fused=True, calls=calls)
        except (NotAsFusedError, RuntimeError, TypeError, ValueError, AttributeError, KeyError):
            # A family whose attention does not go through the interface of transformers.
            return False
        error = identities.relative_error(logits, plain_logits)
        if not error <= identities.TOLERANCE[self.info.torch_dtype]:
            return False
        width = sum(_attention_numbers(block) for block in blocks) / (len(probe) * self.info.n_layers)
        self.info = replace(self.info, attention="fused", logits_error=error, attention_width=width, stream_width=_stream_numbers(blocks))
        try:
            self.info = replace(self.info, running=self._measured_running())
        except NotAsFusedError:
            return False
        self.info = replace(self.info, recomputed_queries=self._recomputed_queries(embedding, blocks, calls))
        self._first_run, self._first_logits = (embedding, blocks), logits
        return True

    def _recomputed_queries(self, embedding: Tensor, blocks: Sequence[BlockActivations], calls: Mapping[int, dict[str, Any]]) -> float:
        """How many numbers of queries of a token a layer need not keep, since they come out the same when they are asked for; 0: they do not.

        In half precision they never do: of fewer rows at a time products are rounded otherwise.

        embedding, blocks, calls: of the proof's prompt, with queries.
        """
        if self.info.torch_dtype != torch.float32:
            return 0
        n_tokens, n_numbers = len(embedding), 0
        rows = [n_tokens // 2, n_tokens - 1]
        streams = [embedding, *(block.post_stream for block in blocks[:-1])]
        try:
            for layer, (before, block) in enumerate(zip(streams, blocks, strict=True)):
                queries = self._queries(layer, before, CalledWith(calls[layer], n_tokens))
                assert isinstance(block.pattern, RecomputedPattern)
                assert isinstance(block.pattern.queries, Tensor)
                if not identities.relative_error(queries.of(rows), block.pattern.queries[:, rows]) <= _QUERY_TOLERANCE:
                    return 0
                n_numbers += block.pattern.queries.numel()
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
            # A family whose attention wants more than is known here.
            return 0
        return n_numbers / (n_tokens * len(blocks))

    def _queries(self, layer: int, before: Stream, called: CalledWith) -> QueriesOnDemand:
        """Of a layer, made of the stream that enters it when they are asked for."""
        made = self._layers[layer]
        norm = unwrapped(made.block.ln1) if "ln1" in made.block.submodules else lambda x: x

        def of(positions: Sequence[int]) -> Tensor:
            with self._lock, torch.inference_mode():
                rows = stream_rows(before, positions, self.info.device)
                normed = norm(self._own(rows, made.block)[None])[0]
                return capture.queries_of(self._attentions[layer], self._config, normed, called.at(positions))

        return QueriesOnDemand(of)

    def _measured_running(self) -> Running | None:
        """What exists beside the trace of a short prompt while it is made; None where the model reads no prompt that would tell.

        Raises:
            NotAsFusedError: attention is said to be fused, and is not.
        """
        sizes = {
            self.info.d_model,
            self.info.d_head,
            self.info.n_heads,
            self.info.n_kv_heads,
            self.info.d_vocab,
            *(shape.per_expert for shape in self.info.ffn),
        } - {0}
        has_experts = any(shape.n_experts for shape in self.info.ffn)
        lengths = sorted(_TELLING_LENGTHS, key=lambda length: length < _MEASURED_AS) if has_experts else _TELLING_LENGTHS
        n_tokens = next((length for length in lengths if all(size % length for size in sizes) and length <= self.info.n_ctx), None)
        if n_tokens is None:
            return None
        ids = [(7 + 101 * index) % self.info.d_vocab for index in range(n_tokens)]
        with Allocations(n_tokens) as seen:
            _, blocks, _ = self._record(ids, silent, fused=self.info.attention == "fused", always_recompute=True, stands_for=_MEASURED_AS)
        size = self.info.torch_dtype.itemsize
        pairs = sum(block.pattern.nbytes for block in blocks if isinstance(block.pattern, StoredPattern))
        kept = sum(block.nbytes for block in blocks) - pairs
        moments = {
            ((per_token - kept) / (size * n_tokens), (per_pair - pairs) / (size * n_tokens**2))
            for per_token, per_pair in (seen.at_most_per_token, seen.at_most_per_pair)
        }
        return Running(tuple(sorted(moments)), in_pieces=all(reads_in_pieces(layer.ffn) for layer in self._layers))

    def use_eager_attention(self) -> None:
        """Let TransformerLens compute attention patterns, from now on; slower, and with memory quadratic in the prompt's length.

        Raises:
            ModelError: it computes them wrongly for this model.
        """
        probe, plain_logits = self._proof
        who = f"{self.info.name} (model type {self.info.family!r})"
        if is_offloaded(self._bridge.original_model) and any(map(capture.is_joint, self._bridge.blocks)):
            raise ModelError(
                f"{who} cannot be shown with weights that are kept off the device: its attention has to be computed from copies of its joint "
                'projection, which must be there. Set "device" to "balanced" or "cpu", or its "dtype" to "bfloat16", in the configuration.'
            )
        with self._lock:
            capture.disable(self._bridge, self._config)
            try:
                capture.restore_copies(self._bridge)
                error = identities.relative_error(_last_logits(self._bridge, probe, self.info.device), plain_logits)
            except Exception as error:
                raise _not_taken_apart(who, error) from error
            self._forget_patterns()
            if not error <= identities.TOLERANCE[self.info.torch_dtype]:
                raise ModelError(
                    f"TransformerLens computes other logits for {who} than the model itself (relative error {error:.1e}). "
                    "Likely cause: an option in its config.json that TransformerLens ignores. Nothing would be shown correctly."
                )
            self._first_run = self._first_logits = None
            self.info = replace(self.info, attention="eager", logits_error=error, keeps_pattern=False)
            _, blocks, _ = self._record(probe, silent, always_recompute=True)
            self.info = replace(self.info, stream_width=_stream_numbers(blocks))
            if self.info.torch_dtype == torch.float32:
                # Whether every layer's pattern can be had from its queries and keys.
                self.info = replace(self.info, keeps_pattern=not all(isinstance(block.pattern, RecomputedPattern) for block in blocks))
            self.info = replace(self.info, running=self._measured_running())

    # --- how a block is built

    def _layer(self, index: int, block: Any, who: str) -> Layer:
        """
        Raises:
            ModelError: no recipe covers this block.
        """
        hooks = self._bridge.hook_dict
        if getattr(self._config, "do_layer_norm_before", True) is False:
            raise ModelError(f"{who} normalises after its blocks; only blocks that normalise what they read are supported.")
        if f"blocks.{index}.attn.hook_pattern" not in hooks or getattr(block.attn, "o", None) is None:
            raise ModelError(f"{who} has no softmax attention in layer {index}, so that nothing there can be given to single heads.")
        for name in ("hook_attn_out", "hook_mlp_out", "hook_resid_post"):
            if f"blocks.{index}.{name}" not in hooks:
                raise ModelError(
                    f"{who} builds layer {index} in a way that TransformerLens does not show ({name} is missing), so that its parts are unknown."
                )
        attention = unwrapped(block.attn)
        heads = getattr(self._config, self._recipe.heads_per_layer or "", None)
        gate, sub_norm = self._recipe.gate, self._recipe.sub_norm
        parallel = f"blocks.{index}.hook_resid_mid" not in hooks
        scale = float(getattr(block, "residual_contribution_scale", 1.0))
        return Layer(
            block,
            n_heads=int(heads[index] if heads else self._bridge.cfg.n_heads),
            parallel=parallel,
            scale=scale,
            gate=None if gate is None else unwrapped(getattr(attention, gate.module)),
            gate_function=None if gate is None else gate.function,
            sub_norm=None if sub_norm is None else unwrapped(getattr(attention, sub_norm)),
            attn_norm=norm_weight(unwrapped(block.ln1_post)) if "ln1_post" in block.submodules else None,
            ffn_norm=norm_weight(unwrapped(block.ln2_post)) if "ln2_post" in block.submodules else None,
            ffn=self._ffn(block, parallel, scale),
        )

    def _ffn(self, block: Any, parallel: bool, scale: float) -> Ffn:
        ffn = block.mlp
        norm = self._ffn_norm(block, parallel)
        if not self._recipe.ffn_is_module:
            # Its two linear layers stand in the block itself.
            first, out = unwrapped(getattr(ffn, "in")), unwrapped(ffn.out)
            activation = unwrapped(block).activation_fn
            return DenseFfn(lambda x: out(activation(first(norm(x)))), out, scale)
        module = unwrapped(ffn)
        if has_experts(module):
            routed_scale = getattr(self._config, self._recipe.routed_scale or "", 1.0)
            return MixtureFfn(
                lambda x: module(norm(x)), module, experts_per_token(self._config), scale, routed_scale, self._recipe.scales_expert_inputs
            )
        out = getattr(ffn, "out", None) or getattr(ffn, "dense_out", None)
        if out is None:
            return OpaqueFfn()
        if self._recipe.ffn_adds_residual:
            return DenseFfn(lambda x: module(norm(x), torch.zeros_like(x)), out, scale)
        return DenseFfn(lambda x: module(norm(x)), out, scale, module)

    def _ffn_norm(self, block: Any, parallel: bool) -> Callable[[Tensor], Tensor]:
        """What stands between the residual stream and the FFN."""
        if "ln2" in block.submodules:
            return unwrapped(block.ln2)
        return unwrapped(block.ln1) if parallel else lambda x: x

    # --- text

    def encode(self, text: str) -> list[int]:
        return self._prompts.encode(text)

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return self._prompts.texts(token_ids)

    def token_data(self, token_ids: Sequence[int]) -> list[bytes | None]:
        return self._prompts.data(token_ids)

    @property
    def end_ids(self) -> frozenset[int]:
        return self._end_ids

    def prompt_of_text(self, text: str) -> Prompt:
        return self._prompts.of_text(text)

    def prompt_of_chat(self, messages: Sequence[ChatMessage]) -> Prompt:
        return self._prompts.of_chat(messages)

    # --- one forward pass

    def run(self, token_ids: Sequence[int], progress: Progress = silent) -> tuple[Tensor, tuple[BlockActivations, ...]]:
        with self._lock:
            first, self._first_run = self._first_run, None
            if first is not None and tuple(token_ids) == self._proof[0]:
                # The check at load asks for the very run that has just proven fused attention.
                return first
            try:
                keeps_queries = len(token_ids) < LONG or not self.info.recomputed_queries
                return self._record(token_ids, progress, fused=self.info.attention == "fused", keeps_queries=keeps_queries)[:2]
            except NotAsFusedError:
                self.use_eager_attention()
                return self._record(token_ids, progress)[:2]

    def _record(
        self,
        token_ids: Sequence[int],
        progress: Progress,
        fused: bool = False,
        always_recompute: bool = False,
        stands_for: int | None = None,
        keeps_queries: bool = True,
        calls: dict[int, dict[str, Any]] | None = None,
    ) -> tuple[Tensor, tuple[BlockActivations, ...], Tensor]:
        """Embedding, blocks and last logits of one forward pass.

        stands_for: only sizes are wanted, as of a prompt of so many tokens.
        calls: filled with what attention modules were given by name.

        Raises:
            NotAsFusedError: fused attention was not captured, or is not what was captured.
        """
        host = require_memory(self.info, len(token_ids))
        ids = torch.tensor([list(token_ids)], device=self.info.device)
        # One row is told from what grows with the prompt; more would take longer.
        n_ffn_rows = None if stands_for is None else 1
        shelf = Shelf(len(self._layers), host, 1 if stands_for is None else len(token_ids) / stands_for)
        calls = {} if calls is None else calls
        with (
            torch.inference_mode(),
            capture.capturing(shelf.put, keeps_queries) as captured,
            capture.calls_of(self._attentions if fused else [], calls),
        ):

            def finish(layer: int, before: Stream, block: dict[str, Any], attention: dict[str, Tensor]) -> BlockActivations:
                if not fused:
                    return self.eager_block(layer, block, always_recompute, **attention)
                if layer not in captured:
                    raise NotAsFusedError
                if keeps_queries:
                    return self.captured_block(layer, captured[layer], block)
                queries = self._queries(layer, before, CalledWith(calls[layer], len(token_ids)))
                return self.captured_block(layer, captured[layer].without_queries(queries), block)

            recorder = Recorder(
                self._layers, self._bridge.hook_dict, finish, progress, reads_attention=not fused, shelf=shelf, n_ffn_rows=n_ffn_rows
            )
            try:
                with recorder.watching():
                    logits = self._bridge.run_with_hooks(
                        ids, fwd_hooks=recorder.hooks(), return_type="logits", use_cache=False, logits_to_keep=1
                    )
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise OutOfMemoryError(
                    f"{self.info.device} ran out of memory while tracing {len(token_ids)} tokens. Shorten the prompt and run it again."
                ) from error
            finally:
                self._forget_patterns()
            return recorder.embedding, tuple(recorder.blocks), logits[0, -1].float().cpu()

    def last_logits(self, token_ids: Sequence[int]) -> Tensor:
        if self._first_logits is not None and tuple(token_ids) == self._proof[0]:
            return self._first_logits
        with self._lock:
            logits = _last_logits(self._bridge, token_ids, self.info.device)
            self._forget_patterns()
            return logits

    def reading(self) -> Reading:
        with self._lock:
            if self._keeps_cache is None:
                self._keeps_cache = self._cache_is_exact()
        return self._cached() if self._keeps_cache else WholeReading(self)

    def batch_reading(self, longest: int) -> BatchReading:
        until = cached_positions(self._config).until
        if until is not None and longest > until:
            # Texts in one pass would take each other's rotation.
            return SeparateReadings(self)
        with self._lock:
            if self._batches is None:
                self._batches = self._exact_batches()
        return SeparateReadings(self) if self._batches == "one by one" else self._together(self._batches)

    def _together(self, batches: Batches) -> CachedBatch:
        return CachedBatch(self._bridge.original_model, self.info.device, self._turn, batches == "positions told")

    def score(self, asks: Sequence[Ask], padding: Padding = "right") -> list[list[Scored]]:
        found: list[list[Scored]] = [[] for _ in asks]
        until = cached_positions(self._config).until
        for batch in batches(asks, self.info.d_vocab, self.info.n_heads, until):
            with self._lock:
                try:
                    answers = run_batch(self._bridge.original_model, [ask for _, ask in batch], self.info.device, padding)
                except (torch.OutOfMemoryError, MemoryError) as error:
                    longest = max(len(ask.token_ids) for _, ask in batch)
                    raise OutOfMemoryError(
                        f"{self.info.device} ran out of memory while reading {len(batch)} texts of up to {longest} tokens. Shorten the texts."
                    ) from error
                finally:
                    self._forget_patterns()
            for (number, _), answer in zip(batch, answers, strict=True):
                found[number] += answer
        return found

    def fingerprint(self) -> str:
        made, parts = hashlib.sha256(), capture.split_parameters(self._bridge)
        for parameter in weights_of(self._bridge.original_model):
            # Parts of a joint projection are there or not, as attention is computed; the whole always is.
            if id(parameter) not in parts and parameter.numel():
                flat = parameter.detach().reshape(-1)
                made.update(repr((tuple(parameter.shape), parameter.dtype)).encode())
                made.update(flat[:: max(flat.numel() // _SAMPLED, 1)].float().cpu().numpy().tobytes())
        return made.hexdigest()[:16]

    def _cached(self) -> CachedReading:
        return CachedReading(self._bridge.original_model, self.info.device, self._turn, cached_positions(self._config).until)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The model for this thread alone, outside of traces."""
        with self._lock:
            try:
                yield
            finally:
                self._forget_patterns()

    def next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        ids = torch.tensor([list(token_ids) for token_ids in prompts], device=self.info.device)
        try:
            with self._turn(), torch.inference_mode():
                return self._bridge.original_model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].float().cpu()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(
                f"{self.info.device} ran out of memory while running {len(ids)} prompts of {ids.shape[1]} tokens. Shorten the prompt."
            ) from error

    def gradients(self) -> Differentiable:
        return HuggingFaceGradients(self._bridge.original_model, self.info.device, self._turn)

    def _cache_is_exact(self) -> bool:
        """Whether the model can keep keys and values, and predicts with them what it predicts without."""
        if not cached_positions(self._config).keeps:
            return False
        probe, reading = self._proof[0], self._cached()
        n_whole = max(len(probe) - 2, 1)
        try:
            read = [reading.read(piece) for piece in (probe[:n_whole], *((token_id,) for token_id in probe[n_whole:]))]
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
            # A family without a cache, or one that TransformerLens hands on wrongly.
            return False
        return identities.relative_error(read[-1], self.last_logits(probe)) <= identities.TOLERANCE[self.info.torch_dtype]

    def _exact_batches(self) -> Batches:
        """How this model reads texts of different lengths at once and predicts what it predicts for each alone; else one by one."""
        probe = list(self._proof[0])
        whole, short = probe[:-1], probe[: len(probe) // 2]
        if cached_positions(self._config).keeps and 0 < len(short) < len(whole):
            ways: tuple[Batches, ...] = ("positions told", "positions not told")
            for way in ways:
                reading = self._together(way)
                try:
                    logits = [*reading.read([whole, short])]
                    reading.keep([1, 0])
                    logits += [*reading.read([probe[:1], probe[-1:]])]
                except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, OutOfMemoryError):
                    # A family without a cache, whose cache cannot be cut, or that takes no positions.
                    continue
                alone = [self.last_logits(ids) for ids in (whole, short, short + probe[:1], probe)]
                if max(map(identities.relative_error, logits, alone)) <= identities.TOLERANCE[self.info.torch_dtype]:
                    return way
        return "one by one"

    def _forget_patterns(self) -> None:
        # Families with one joint q-k-v projection keep the last pattern in the module.
        for block in self._bridge.blocks:
            if getattr(block.attn, "_pattern", None) is not None:
                block.attn._pattern = None

    # --- weights

    def weight_bytes(self) -> int:
        tensors = [*weights_of(self._bridge.original_model), *self._bridge.original_model.buffers()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    def attention_output(self, layer: int) -> tuple[Tensor, Tensor | None]:
        made = self._layers[layer]
        projection = unwrapped(made.block.attn.o)
        weight = dense_weight(projection)
        bias = stored(projection, "bias")
        return scaled(weight.view(made.n_heads, -1, weight.shape[1]), made.scale), None if bias is None else scaled(
            bias.detach().to(weight.device).float(), made.scale
        )

    def neurons(self, layer: int, ffn_input: Tensor) -> Neurons:
        with self._lock, torch.inference_mode():
            return self._layers[layer].ffn.neurons(self._own(ffn_input, self._layers[layer].block))

    def neuron_output(self, layer: int, neurons: Tensor | None = None) -> Tensor:
        return self._layers[layer].ffn.output(neurons)

    def final_norm(self, x: Tensor) -> Tensor:
        with self._lock, torch.inference_mode():
            return self._bridge.ln_final(self._own(x, self._bridge.ln_final))

    def unembed(self, x: Tensor) -> Tensor:
        with self._lock, torch.inference_mode():
            logits = self._bridge.unembed(self._own(x, self._bridge.unembed))
            return logits if self._logit_scale == 1 else logits * self._logit_scale

    def unembedding(self, token_ids: Sequence[int]) -> Tensor:
        module = unwrapped(self._bridge.unembed)
        weight = stored(module, "weight")
        if not isinstance(module, nn.Linear) or weight is None or weight.is_meta or not weight.is_floating_point():
            return super().unembedding(token_ids)
        return self._logit_scale * weight.detach()[list(token_ids)].to(home_of(module)).float()

    def cap_logits(self, logits: Tensor) -> Tensor:
        return logits if self._logit_cap is None else self._logit_cap * torch.tanh(logits / self._logit_cap)

    def _own(self, x: Tensor, module: Any) -> Tensor:
        """A vector from anywhere, as a module of this model reads it. The layers of a large model may lie on several devices."""
        return x.to(device=home_of(unwrapped(module)) or self.info.device, dtype=self.info.torch_dtype)

    # --- attention

    def captured_block(self, layer: int, captured: Captured, block: Mapping[str, Any]) -> BlockActivations:
        """A block whose attention ran fused; the last token's row proves that what was captured is what the layer used.

        Raises:
            NotAsFusedError: it is not.
        """
        made = BlockActivations(**block, values=captured.values, pattern=captured.pattern)
        last = [len(made.attn_out) - 1]
        total = made.attention_sum(made.pattern.rows(last), last, *self.attention_output(layer))
        if not identities.relative_error(total, made.attn_out[last]) <= identities.TOLERANCE[self.info.torch_dtype]:
            raise NotAsFusedError
        return made

    def eager_block(
        self,
        layer: int,
        block: Mapping[str, Any],
        always_recompute: bool,
        probabilities: Tensor,
        values: Tensor,
        queries: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> BlockActivations:
        """A block whose pattern was computed: kept, or rows recomputed where that is smaller (or always) and proves equal.

        In half precision the model rounds its scores, so that only the pattern itself is what it used.

        probabilities: [H, T, T]; queries: [T, H, E]; keys, values: [T, K, E].
        """
        # Cloned, since a slice of a joint projection would keep all of it alive.
        values = values.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        if (limit := value_limit(self._config)) is not None:
            values.clamp_(-limit, limit)
        pattern: AttentionPattern = StoredPattern(probabilities, probabilities.device)
        if queries is not None and keys is not None and probabilities.dtype == torch.float32 and not self.info.keeps_pattern:
            is_smaller = queries.numel() + keys.numel() < probabilities.numel()
            fitting = queries.ndim == keys.ndim == 3 and queries.shape[::2] == keys.shape[::2] and queries.shape[1] == len(probabilities)
            if fitting and (is_smaller or always_recompute):
                recomputed = RecomputedPattern(
                    queries.transpose(0, 1).contiguous(),
                    keys.transpose(0, 1).contiguous(),
                    softmax_scale(self._config, layer, queries.shape[2]),
                    Visible(self._windows[layer]),
                    home=queries.device,
                )
                probe = [len(queries) // 2, len(queries) - 1]
                error = (recomputed.rows(probe) - probabilities[:, probe]).abs().max()
                if error <= _PATTERN_TOLERANCE:
                    pattern = recomputed
        return BlockActivations(**block, values=values, pattern=pattern)


def _attention_numbers(block: BlockActivations) -> int:
    """How many numbers of attention a fused block keeps; a gate is kept in float32."""
    gate = 0 if block.gate is None else block.gate.nbytes // block.values.element_size()
    return (block.pattern.nbytes + block.values.nbytes) // block.values.element_size() + gate


def _stream_numbers(blocks: Sequence[BlockActivations]) -> float:
    """How many numbers of the residual stream a block keeps of one token, on average."""
    kept = [
        tensor
        for block in blocks
        for tensor in (block.mid_stream, block.post_stream, block.attn_out, block.ffn_out)
        if isinstance(tensor, torch.Tensor)
    ]
    return sum(tensor.numel() for tensor in kept) / (len(blocks[0].attn_out) * len(blocks))


def _not_taken_apart(who: str, error: Exception) -> ModelError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ModelError(
        f"TransformerLens cannot take {who} apart: {reason}{'' if reason.endswith('.') else '.'} "
        "Implement llm_tt.TransparentLlm for it, or choose another model."
    )


def _not_shown(shapes: Sequence[FfnShape]) -> tuple[str, ...]:
    opaque = [index for index, shape in enumerate(shapes) if not shape.n_neurons]
    if not opaque:
        return ()
    where = "any layer" if len(opaque) == len(shapes) else f"layer {', '.join(map(str, opaque))}"
    return (f"The neurons of the FFN in {where}: the block is shown as one.",)


def _end_ids(hf_model: Any, tokenizer: Any) -> frozenset[int]:
    """What ends a sequence by the model's generation settings, and by its tokenizer: a tuning for chats may have changed one of them only."""
    named = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    ids = [*(named if isinstance(named, list | tuple) else [named]), tokenizer.eos_token_id]
    return frozenset(int(token_id) for token_id in ids if token_id is not None)


def _last_logits(model: Any, token_ids: Sequence[int], device: Any = None) -> Tensor:
    """[V] float32 on the CPU, from a Hugging Face model or a bridge."""
    ids = torch.tensor([list(token_ids)], device=device or model.device)
    with torch.inference_mode():
        output = model(ids, use_cache=False, logits_to_keep=1)
    return getattr(output, "logits", output)[0, -1].float().cpu()
