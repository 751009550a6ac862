"""The TransformerLens backend: a Hugging Face model, booted as a TransformerBridge, as a `TransparentLlm`.

Where weights and tokenizer come from is `llm_tt.models.checkpoints`; per-family differences are `llm_tt.models.blocks`.
A bridge run by two threads at once mixes their activations without an error, so one lock per model guards every call into it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm_tt.errors import ModelError, OutOfMemoryError
from llm_tt.models import capture, identities
from llm_tt.models.blocks import BlockRecipe, attention_windows, recipe, softmax_scale
from llm_tt.models.capture import Captured
from llm_tt.models.memory import require_memory
from llm_tt.models.patterns import RecomputedPattern, StoredPattern
from llm_tt.models.prompts import PromptMaker
from llm_tt.models.transparent_llm import AttentionPattern, BlockActivations, ModelInfo, TransparentLlm
from llm_tt.progress import Progress, silent
from llm_tt.text import ChatMessage, Prompt

_PATTERN_TOLERANCE = 1e-5


class BridgeLlm(TransparentLlm):
    """A model on TransformerLens hooks.

    Args:
        name: what the user calls it.
        hf_model: loaded, adapters merged, on its device. The bridge changes it in place.
        tokenizer: for ids and display; stays untouched.
        bridge_tokenizer: a second instance, which the bridge changes.
        chat_template: Jinja text that goes before the tokenizer's own.
    """

    def __init__(
        self, name: str, hf_model: Any, tokenizer: Any, bridge_tokenizer: Any, adapter: str | None = None, chat_template: str | None = None
    ) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        hf_model.eval().requires_grad_(False)
        n_params = sum(parameter.numel() for parameter in hf_model.parameters())
        self._config = hf_model.config
        self._recipe: BlockRecipe = recipe(self._config.model_type)
        self._prompts = PromptMaker(name, tokenizer, chat_template)
        self._lock = threading.RLock()
        who = f"{name} (model type {self._config.model_type!r})"
        probe = identities.probe(int(hf_model.get_input_embeddings().weight.shape[0]))
        probe = probe[: getattr(self._config, "max_position_embeddings", None)]
        plain_logits = _last_logits(hf_model, probe)
        try:
            # The label is no model name: with a model given, the bridge only shows it.
            self._bridge: Any = TransformerBridge.boot_transformers(
                f"llm-tt/{self._config.model_type}", hf_model=hf_model, tokenizer=bridge_tokenizer, dtype=hf_model.dtype
            )
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                f"TransformerLens cannot take {who} apart: {str(error).splitlines()[0]} "
                "Implement llm_tt.TransparentLlm for it, or choose another model."
            ) from error
        self._require_sequential_blocks(who)
        cfg = self._bridge.cfg
        d_head = int(self._bridge.blocks[0].attn.W_O.shape[1])
        self.info = ModelInfo(
            name=name,
            family=self._config.model_type,
            n_layers=int(cfg.n_layers),
            n_heads=int(self._bridge.blocks[0].attn.W_O.shape[0]),
            n_kv_heads=int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads),
            d_model=int(cfg.d_model),
            d_head=d_head,
            n_neurons=int(self._bridge.blocks[0].mlp.W_out.shape[0]),
            d_vocab=int(hf_model.get_input_embeddings().weight.shape[0]),
            n_ctx=int(cfg.n_ctx),
            n_params=n_params,
            dtype=str(hf_model.dtype).removeprefix("torch."),
            device=str(hf_model.device),
            norm="rms" if "RMS" in str(cfg.normalization_type) else "layer",
            norm_eps=float(cfg.eps),
            adapter=adapter,
            tokenizer=self._prompts.info(),
        )
        self._windows = attention_windows(self._config, self.info.n_layers)
        error = identities.relative_error(self.last_logits(probe), plain_logits)
        if not error <= identities.TOLERANCE[self.info.torch_dtype]:
            raise ModelError(
                f"TransformerLens computes other logits for {who} than the model itself (relative error {error:.1e}). "
                "Likely cause: an option in its config.json that TransformerLens ignores. Nothing would be shown correctly."
            )
        self._use_fused_attention(probe, plain_logits)

    def _use_fused_attention(self, probe: Sequence[int], plain_logits: Tensor) -> None:
        """Switch to SDPA if every layer can be captured and the logits stay what they are."""
        capture.enable(self._bridge, self._config)
        try:
            with capture.capturing() as captured:
                error = identities.relative_error(self.last_logits(probe), plain_logits)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):
            # A family whose attention does not go through the interface of transformers.
            captured, error = {}, math.inf
        if len(captured) == self.info.n_layers and error <= identities.TOLERANCE[self.info.torch_dtype]:
            self.info = replace(self.info, attention="fused")
        else:
            self.use_eager_attention()

    def use_eager_attention(self) -> None:
        """Let TransformerLens compute attention patterns, from now on; slower, and with memory quadratic in the prompt's length."""
        with self._lock:
            capture.disable(self._bridge, self._config)
            self.info = replace(self.info, attention="eager")

    def _require_sequential_blocks(self, who: str) -> None:
        hooks = self._bridge.hook_dict
        if getattr(self._config, "do_layer_norm_before", True) is False:
            raise ModelError(f"{who} normalises after its blocks; only blocks that normalise what they read are supported.")
        for layer, block in enumerate(self._bridge.blocks):
            if f"blocks.{layer}.attn.hook_pattern" not in hooks:
                raise ModelError(f"{who} has no softmax attention in layer {layer}, so that nothing there can be given to single heads.")
            if f"blocks.{layer}.hook_resid_mid" not in hooks:
                raise ModelError(
                    f"{who} runs attention and FFN in parallel in layer {layer}; only blocks that run one after the other are supported."
                )
            if not hasattr(block.mlp, "W_out") or f"blocks.{layer}.mlp.hook_post" not in hooks:
                raise ModelError(
                    f"{who} has no plain FFN in layer {layer} (a mixture of experts, for example); its neurons cannot be shown."
                )

    # --- text

    def encode(self, text: str) -> list[int]:
        return self._prompts.encode(text)

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return self._prompts.texts(token_ids)

    def prompt_of_text(self, text: str) -> Prompt:
        return self._prompts.of_text(text)

    def prompt_of_chat(self, messages: Sequence[ChatMessage]) -> Prompt:
        return self._prompts.of_chat(messages)

    # --- one forward pass

    def run(self, token_ids: Sequence[int], progress: Progress = silent) -> tuple[Tensor, tuple[BlockActivations, ...]]:
        with self._lock:
            try:
                return self._record(token_ids, progress)
            except _NotAsFusedError:
                self.use_eager_attention()
                return self._record(token_ids, progress)

    def _record(self, token_ids: Sequence[int], progress: Progress) -> tuple[Tensor, tuple[BlockActivations, ...]]:
        require_memory(self.info, len(token_ids))
        ids = torch.tensor([list(token_ids)], device=self.info.device)
        with torch.inference_mode(), capture.capturing() as captured:
            recorder = _Recorder(self, progress, captured)
            try:
                self._bridge.run_with_hooks(ids, fwd_hooks=recorder.hooks(), return_type=None, use_cache=False, logits_to_keep=1)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise OutOfMemoryError(
                    f"{self.info.device} ran out of memory while tracing {len(token_ids)} tokens. Shorten the prompt and run it again."
                ) from error
            finally:
                self._forget_patterns()
        return recorder.embedding, tuple(recorder.blocks)

    def last_logits(self, token_ids: Sequence[int]) -> Tensor:
        with self._lock:
            logits = _last_logits(self._bridge, token_ids, self.info.device)
            self._forget_patterns()
            return logits

    def _forget_patterns(self) -> None:
        # Families with one joint q-k-v projection keep the last pattern in the module.
        for block in self._bridge.blocks:
            if getattr(block.attn, "_pattern", None) is not None:
                block.attn._pattern = None

    # --- weights

    def weight_bytes(self) -> int:
        tensors = [*self._bridge.original_model.parameters(), *self._bridge.original_model.buffers()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    def attention_output(self, layer: int) -> tuple[Tensor, Tensor | None]:
        attention = self._bridge.blocks[layer].attn
        return _float32(attention.W_O), _float32(attention.b_O)

    def neuron_output(self, layer: int) -> tuple[Tensor, Tensor | None]:
        ffn = self._bridge.blocks[layer].mlp
        return _float32(ffn.W_out), _float32(ffn.b_out)

    def neuron_activations(self, layer: int, resid_mid: Tensor) -> Tensor:
        block = self._bridge.blocks[layer]
        with self._lock, torch.inference_mode():
            if not self._recipe.ffn_is_module:
                # The bridge's own wrappers of these layers expect the shape of the last full run.
                normed = block.ln2.original_component(self._own(resid_mid))
                first = getattr(block.mlp, "in").original_component
                return block.original_component.activation_fn(first(normed)).float()
            normed = block.ln2(self._own(resid_mid)[None])
            seen: list[Tensor] = []
            name = f"blocks.{layer}.mlp.hook_post"
            with self._bridge.hooks(fwd_hooks=[(name, lambda tensor, hook: seen.append(tensor))]):
                block.mlp(normed)
            return seen[0].reshape(len(resid_mid), -1).float()

    def final_norm(self, x: Tensor) -> Tensor:
        with self._lock, torch.inference_mode():
            return self._bridge.ln_final(self._own(x))

    def unembed(self, x: Tensor) -> Tensor:
        with self._lock, torch.inference_mode():
            return self._bridge.unembed(self._own(x))

    def _own(self, x: Tensor) -> Tensor:
        return x.to(device=self.info.device, dtype=self.info.torch_dtype)

    # --- attention

    def captured_attention(self, layer: int, captured: Captured, attn_out: Tensor) -> tuple[Tensor, AttentionPattern]:
        """Values [K, T, E] and pattern of a layer that ran fused; the last token's row proves that they are what the layer used.

        Raises:
            _NotAsFusedError: they are not.
        """
        pattern = RecomputedPattern(captured.queries, captured.keys, captured.scale, self._windows[layer])
        weight, bias = self.attention_output(layer)
        last = pattern.rows([len(attn_out) - 1]).view(self.info.n_kv_heads, -1, len(attn_out))
        mixed = (last @ captured.values.float()).view(self.info.n_heads, -1)
        rebuilt = torch.einsum("he,hed->d", mixed, weight)[None]
        error = identities.relative_error(rebuilt if bias is None else rebuilt + bias, attn_out[-1:])
        if not error <= identities.TOLERANCE[self.info.torch_dtype]:
            raise _NotAsFusedError
        return captured.values, pattern

    def eager_attention(
        self, layer: int, probabilities: Tensor, queries: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, AttentionPattern]:
        """Values [K, T, E] and pattern of a layer whose pattern was computed: kept, or rows recomputed where that is smaller and proves equal.

        In half precision the model rounds its scores, so that only the pattern itself is what it used.

        probabilities: [H, T, T]; queries: [T, H, E]; keys, values: [T, K, E].
        """
        # Cloned, since a slice of a joint projection would keep all of it alive.
        values = values.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        is_smaller = queries.numel() + keys.numel() < probabilities.numel()
        if is_smaller and probabilities.dtype == torch.float32:
            recomputed = RecomputedPattern(
                queries.transpose(0, 1).contiguous(),
                keys.transpose(0, 1).contiguous(),
                softmax_scale(self._config, layer, self.info.d_head),
                self._windows[layer],
            )
            probe = [len(queries) // 2, len(queries) - 1]
            error = (recomputed.rows(probe) - probabilities[:, probe]).abs().max()
            if error <= _PATTERN_TOLERANCE:
                return values, recomputed
        return values, StoredPattern(probabilities)


class _NotAsFusedError(Exception):
    """What was captured of fused attention does not add up to what the layer put out."""


class _Recorder:
    """Collects the activations of one run, block by block."""

    def __init__(self, llm: BridgeLlm, progress: Progress, captured: Mapping[int, Captured]) -> None:
        self._llm = llm
        self._progress = progress
        self._captured = captured
        self._current: dict[str, Tensor] = {}
        self.embedding: Tensor = torch.empty(0)
        self.blocks: list[BlockActivations] = []

    def hooks(self) -> list[tuple[str, Callable[..., None]]]:
        names = self._llm._bridge.hook_dict
        hooks: list[tuple[str, Callable[..., None]]] = [("blocks.0.hook_resid_pre", self._keep_embedding)]
        for layer in range(self._llm.info.n_layers):
            block = f"blocks.{layer}"
            wanted = {"attn_out": "hook_attn_out", "resid_mid": "hook_resid_mid", "ffn_out": "hook_mlp_out"}
            if self._llm.info.attention == "eager":
                rotary = f"{block}.attn.hook_rot_q" in names and f"{block}.attn.hook_rot_k" in names
                wanted |= {
                    "queries": "attn.hook_rot_q" if rotary else "attn.hook_q",
                    "keys": "attn.hook_rot_k" if rotary else "attn.hook_k",
                    "values": "attn.hook_v",
                    "probabilities": "attn.hook_pattern",
                }
            for name, hook in wanted.items():
                hooks.append((f"{block}.{hook}", self._keep(name)))
            hooks.append((f"{block}.hook_resid_post", self._finish(layer)))
        return hooks

    def _keep_embedding(self, tensor: Tensor, hook: Any) -> None:
        self.embedding = tensor[0].clone()

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(tensor: Tensor, hook: Any) -> None:
            self._current[name] = tensor[0]

        return keep

    def _finish(self, layer: int) -> Callable[..., None]:
        def finish(tensor: Tensor, hook: Any) -> None:
            now, self._current = self._current, {}
            block = {
                "resid_mid": now.pop("resid_mid"),
                "attn_out": now.pop("attn_out"),
                "ffn_out": now.pop("ffn_out"),
                "resid_post": tensor[0],
            }
            if layer in self._captured:
                values, pattern = self._llm.captured_attention(layer, self._captured[layer], block["attn_out"])
            else:
                values, pattern = self._llm.eager_attention(layer, **now)
            self.blocks.append(BlockActivations(**block, values=values, pattern=pattern))
            self._progress(f"Tracing layer {layer + 1} of {self._llm.info.n_layers}", (layer + 1) / self._llm.info.n_layers)

        return finish


def _last_logits(model: Any, token_ids: Sequence[int], device: Any = None) -> Tensor:
    """[V] float32 on the CPU, from a Hugging Face model or a bridge."""
    ids = torch.tensor([list(token_ids)], device=device or model.device)
    with torch.inference_mode():
        output = model(ids, use_cache=False, logits_to_keep=1)
    return getattr(output, "logits", output)[0, -1].float().cpu()


def _float32(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().float()
