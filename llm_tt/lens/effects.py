"""Direct effects: how much each part of the residual stream at the target adds to a logit, or to the difference of two.

With the final norm's scale s frozen at the target's last representation, the logit of a token is linear in what was written to the target's
position: for a norm weight w and the row u of the unembedding, times the model's constant logit scale, a part p adds

    p . r,    r = s * (w * u)                        (RMS norm)
              r = s * (w * u - mean(w * u))          (LayerNorm, which centres p)

and for a contrast u is the difference of two rows. Head h brings alpha[j] * v[j] @ W_O from source j; its effect alpha[j] * v[j] . (W_O @ r) takes
two small products for all sources, and no vector of width d for a pair of tokens is made. A norm that a block's output passes multiplies r, a gate
multiplies W_O @ r. What is written to another position reaches the target's logit only through later attention: it has no direct effect.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_tt.errors import RequestError
from llm_tt.lens.direct_effects import DirectEffects, LogitQuestion, Token
from llm_tt.lens.named_tokens import find_token
from llm_tt.lens.vocabulary import norm_weight, standardized
from llm_tt.models.transparent_llm import Trace, TransparentLlm
from llm_tt.text import quoted

_Key = TypeVar("_Key")
_Value = TypeVar("_Value", DirectEffects, npt.NDArray[np.float32])


def direct_effects(trace: Trace, target: int = -1, token: Token | None = None, contrast: Token | None = None) -> DirectEffects:
    """The direct effects of all parts at the target on the logit of a token, or on how far it is above that of another.

    Args:
        token: as in `llm_tt.lens.named_tokens`; None for the model's first choice.
        contrast: the token that it is compared with; None for the logit alone.

    Raises:
        RequestError: no such position, a text that is not a single token, an id outside the vocabulary, or twice the same token.
    """
    direction = _Direction.of(trace, LogitQuestion(target, token, contrast))
    key = direction.target, direction.token_id, direction.contrast_id, direction.notes
    return _answers.get(trace, key, lambda: _effects(trace, direction))


def neuron_effects(
    trace: Trace, layer: int, target: int = -1, token: Token | None = None, contrast: Token | None = None
) -> npt.NDArray[np.float32]:
    """[N] direct effects of single neurons at the target; with the FFN's output bias they are that of the block. Arguments as in `direct_effects`.

    Raises:
        RequestError: as `direct_effects`; no such layer, or one whose neurons cannot be shown.
    """
    layer, model = trace.layer(layer), trace.model
    if model.info.ffn and not model.info.ffn[layer].n_neurons:
        raise RequestError(f"The FFN of layer {layer} is shown as one block: its neurons cannot be told apart in {model.info.name}.")
    direction = _Direction.of(trace, LogitQuestion(target, token, contrast))
    key = layer, direction.target, direction.token_id, direction.contrast_id
    return _neurons.get(trace, key, lambda: _neuron_effects(trace, layer, direction)).copy()


def strongest(effects: npt.NDArray[np.float32], k: int) -> list[int]:
    """The k neurons that raise or lower it most, the strongest first; of equal ones the first."""
    return np.argsort(-np.abs(effects), kind="stable")[: max(k, 0)].tolist()


# --- which direction


class _Direction:
    """The direction of the vocabulary that a question asks about: a row of the unembedding, or the difference of two."""

    def __init__(self, target: int, token_id: int, contrast_id: int | None, notes: tuple[str, ...]) -> None:
        self.target, self.token_id, self.contrast_id, self.notes = target, token_id, contrast_id, notes

    @classmethod
    def of(cls, trace: Trace, question: LogitQuestion) -> _Direction:
        model, target = trace.model, trace.position(question.target)
        if question.token is None:
            token_id, note = int(trace.logits(target).argmax()), None
        else:
            token_id, note = find_token(model, question.token)
        contrast_id, second = None, None
        if question.contrast is not None:
            contrast_id, second = find_token(model, question.contrast)
            if contrast_id == token_id:
                (text,) = model.texts([token_id])
                raise RequestError(f"Token and contrast are both {quoted(text)}, so that their difference is 0. Choose another contrast.")
        return cls(target, token_id, contrast_id, tuple(sentence for sentence in (note, second) if sentence))

    def difference(self, values: Tensor) -> Tensor:
        """values [V] or rows of [V, ...] -> that of the token, less that of the contrast."""
        return values[self.token_id] if self.contrast_id is None else values[self.token_id] - values[self.contrast_id]

    def row(self, model: TransparentLlm) -> Tensor:
        """[d]: u of the module's text."""
        if self.contrast_id is None:
            return model.unembedding([self.token_id])[0]
        token, contrast = model.unembedding([self.token_id, self.contrast_id])
        return token - contrast

    def vector(self, trace: Trace) -> Tensor:
        """[d] float32: r of the module's text."""
        model = trace.model
        row = self.row(model)
        whole = trace.blocks[-1].post([self.target])[0].float().to(row.device)
        # Scaling and centring are their own transposes.
        return standardized(model, norm_weight(model).to(row.device) * row, whole)


# --- the effects


class _Kept(Generic[_Key, _Value]):
    """The latest answers about each trace; they go when the trace goes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._of: WeakKeyDictionary[Trace, OrderedDict[_Key, _Value]] = WeakKeyDictionary()

    def get(self, trace: Trace, key: _Key, make: Callable[[], _Value]) -> _Value:
        with self._lock:
            answers = self._of.setdefault(trace, OrderedDict())
            if key in answers:
                answers.move_to_end(key)
                return answers[key]
        made = make()
        with self._lock:
            answers[key] = made
            while len(answers) > self._most:
                answers.popitem(last=False)
        return made

    def nbytes(self, trace: Trace) -> int:
        with self._lock:
            return sum(answer.nbytes for answer in self._of.get(trace, {}).values())


_answers: _Kept[tuple[int, int, int | None, tuple[str, ...]], DirectEffects] = _Kept(8)
_neurons: _Kept[tuple[int, int, int, int | None], npt.NDArray[np.float32]] = _Kept(64)


def kept_bytes(trace: Trace) -> int:
    """Bytes of the answers kept with a trace."""
    return _answers.nbytes(trace) + _neurons.nbytes(trace)


@torch.inference_mode()
def _neuron_effects(trace: Trace, layer: int, direction: _Direction) -> npt.NDArray[np.float32]:
    model, vector = trace.model, direction.vector(trace)
    norm = trace.blocks[layer].ffn_norm
    vector = vector if norm is None else vector * norm.rows([direction.target])[0].to(vector.device)
    activations = model.neurons(layer, trace.ffn_input(layer, [direction.target])).activations[0]
    active = activations.nonzero(as_tuple=True)[0]
    weight = model.neuron_output(layer, None if len(active) == len(activations) else active)
    result = torch.zeros(len(activations))
    result[active.cpu()] = (activations[active].to(weight.device) * (weight @ vector.to(weight.device))).cpu()
    return result.numpy()


@torch.inference_mode()
def _effects(trace: Trace, direction: _Direction) -> DirectEffects:
    model, target, info = trace.model, direction.target, trace.model.info
    vector = direction.vector(trace)
    heads = torch.zeros(trace.n_layers, info.n_heads, trace.n_tokens)
    attention_bias, ffn = torch.zeros(trace.n_layers), torch.zeros(trace.n_layers)
    for layer, block in enumerate(trace.blocks):
        here = vector.to(block.device)
        ffn[layer] = block.ffn_out[target].to(block.device).float() @ here
        by_source, bias = _attention(trace, layer, target, here)
        # Some models have fewer heads in some layers.
        heads[layer, : len(by_source), : target + 1] = by_source.cpu()
        attention_bias[layer] = bias
    final = trace.blocks[-1].post([target])
    zero = torch.zeros_like(final)
    norm_bias = model.final_norm(zero)[0].float()
    row = direction.row(model)
    biases = norm_bias.to(row.device) @ row + direction.difference(model.unembed(zero)[0].float()).to(row.device)
    logits = model.unembed(model.final_norm(final))[0].float()
    capped = model.cap_logits(logits)
    shown = [direction.token_id] if direction.contrast_id is None else [direction.token_id, direction.contrast_id]
    texts = model.texts(shown)
    return DirectEffects(
        target=target,
        token_id=direction.token_id,
        token_text=texts[0],
        contrast_id=direction.contrast_id,
        contrast_text=None if direction.contrast_id is None else texts[1],
        notes=direction.notes,
        heads=heads.numpy(),
        attention_bias=attention_bias.numpy(),
        ffn=ffn.numpy(),
        embedding=float(trace.embedding[target].float() @ vector.to(trace.embedding.device)),
        biases=float(biases),
        logit=float(direction.difference(logits)),
        capped_logit=None if capped is logits else float(direction.difference(capped)),
    )


def _attention(trace: Trace, layer: int, target: int, vector: Tensor) -> tuple[Tensor, float]:
    """[H, target + 1] effects of a layer's heads by source, and that of its output bias."""
    block = trace.blocks[layer]
    weight, bias = trace.model.attention_output(layer)
    vector = vector.to(weight.device)
    if block.attn_norm is not None:
        vector = vector * block.attn_norm.rows([target])[0].to(vector.device)
    alpha = block.pattern.rows([target])[:, 0, : target + 1]
    read = weight @ vector
    if block.gate is not None:
        read = read * block.gate[target].to(read.device).float()
    values = block.values[:, : target + 1].to(read.device).float()
    n_groups, n_sources = values.shape[:2]
    written = read.reshape(n_groups, -1, values.shape[-1]) @ values.transpose(1, 2)
    return alpha * written.reshape(-1, n_sources), 0.0 if bias is None else float(bias.to(vector.device) @ vector)
