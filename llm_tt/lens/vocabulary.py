"""Vectors of the residual stream, projected to the vocabulary: what a representation says, what a block's output promotes and suppresses.

A representation is read as the last one would be (logit lens): through the final norm, if wanted, and the unembedding. The output of a block is a
part of a representation; with the norm's scale frozen at the representation the norm is linear, so that the effects of all parts of a
representation, and of the biases, add up to its logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_tt.lens.token_table import TokenTable
from llm_tt.models.transparent_llm import Trace, TransparentLlm


def logits(model: TransparentLlm, vectors: Tensor, normalize: bool = True) -> Tensor:
    """[..., d] -> [..., V] float32: what the vectors would predict if they were the last representation.

    Args:
        normalize: apply the final norm first, as the model does.
    """
    return model.cap_logits(model.unembed(model.final_norm(vectors) if normalize else vectors)).float()


def effects(model: TransparentLlm, parts: Tensor, whole: Tensor, normalize: bool = True) -> Tensor:
    """[..., d] -> [..., V] float32: what parts of a representation add to its logits, biases of norm and unembedding left out.

    Where the model caps its logits, these are effects on the logits before the cap, of which alone the parts are summands.

    Args:
        whole: the representation [d] that the parts belong to; its norm's scale is used for the parts.
        normalize: as in `logits`; without it the parts are unembedded as they are.
    """
    parts = parts.float()
    scaled = norm_weight(model).to(parts.device) * standardized(model, parts, whole.float()) if normalize else parts
    nothing = model.unembed(torch.zeros_like(parts[..., :1, :] if parts.ndim > 1 else parts))
    return (model.unembed(scaled) - nothing).float()


def top_tokens(model: TransparentLlm, vector: Tensor, k: int, before: Tensor | None = None, normalize: bool = True) -> TokenTable:
    """The k tokens that a representation [d] scores highest, with probabilities, and with rank changes against `before` [d], if given."""
    scores = logits(model, vector[None], normalize)[0]
    top = scores.topk(min(k, len(scores)))
    changes = None
    if before is not None:
        old = logits(model, before[None], normalize)[0]
        changes = _ranks(old, top.indices) - _ranks(scores, top.indices)
    return _ranked(model, scores, top.indices, changes)


def following_token(trace: Trace, position: int) -> TokenTable | None:
    """The token that follows `position` in the text, as the model predicted it there; None after the last.

    Raises:
        RequestError: no such position.
    """
    position = trace.position(position)
    if position + 1 == trace.n_tokens:
        return None
    scores = logits(trace.model, trace.blocks[-1].post([position]))[0]
    return _ranked(trace.model, scores, torch.tensor([trace.token_ids[position + 1]], device=scores.device))


def _ranked(model: TransparentLlm, scores: Tensor, token_ids: Tensor, rank_changes: Tensor | None = None) -> TokenTable:
    """Some tokens among the logits [V] of all."""
    return TokenTable(
        token_ids=token_ids.cpu().numpy(),
        texts=tuple(model.texts(token_ids.tolist())),
        scores=scores[token_ids].cpu().numpy(),
        probabilities=scores.softmax(-1)[token_ids].cpu().numpy(),
        ranks=_ranks(scores, token_ids).cpu().numpy(),
        rank_changes=None if rank_changes is None else rank_changes.cpu().numpy(),
    )


def promoted_and_suppressed(
    model: TransparentLlm, part: Tensor, whole: Tensor, k: int, normalize: bool = True
) -> tuple[TokenTable, TokenTable]:
    """The k tokens whose logits a part [d] of a representation [d] raises most, and the k that it lowers most."""
    scores = effects(model, part[None], whole, normalize)[0]
    k = min(k, len(scores))
    return _table(model, *scores.topk(k)), _table(model, *scores.topk(k, largest=False))


def predictions(trace: Trace, position: int, k: int) -> TokenTable:
    """The model's own k first choices for the token after `position`.

    Raises:
        RequestError: no such position.
    """
    return top_tokens(trace.model, trace.blocks[-1].post([trace.position(position)])[0], k)


def _table(model: TransparentLlm, scores: Tensor, token_ids: Tensor) -> TokenTable:
    return TokenTable(token_ids.cpu().numpy(), tuple(model.texts(token_ids.tolist())), scores.cpu().numpy())


def _ranks(scores: Tensor, token_ids: Sequence[int] | Tensor) -> Tensor:
    return 1 + (scores > scores[token_ids][:, None]).sum(-1)


def standardized(model: TransparentLlm, parts: Tensor, whole: Tensor) -> Tensor:
    """The final norm's standardisation, linear in the parts since its scale is that of the whole."""
    eps = model.info.norm_eps
    if model.info.norm == "rms":
        return parts * (whole.square().mean(-1, keepdim=True) + eps).rsqrt()
    centred = parts - parts.mean(-1, keepdim=True)
    return centred * (whole.var(-1, correction=0, keepdim=True) + eps).rsqrt()


def norm_weight(model: TransparentLlm) -> Tensor:
    """[d] the final norm's effective weight, read off its answer to a vector of +1 and -1 (families store it as w or as 1 + w)."""
    probe = torch.ones(1, model.info.d_model)
    probe[:, 1::2] = -1
    bias = model.final_norm(torch.zeros_like(probe)).float()
    answer = model.final_norm(probe).float() - bias
    return (answer / standardized(model, probe, probe).to(answer.device))[0]
