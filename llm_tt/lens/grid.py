"""The layers at a glance: every point of the residual stream read as words, and chosen tokens on their way through the layers.

Each point is read as in `llm_tt.lens.vocabulary`. Logits are formed for some positions at a time, never for all of a prompt, so that memory does
not grow with layers x tokens x vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from llm_tt.errors import RequestError
from llm_tt.lens.layer_tables import LensGrid, Points, Trajectories
from llm_tt.lens.named_tokens import find_token
from llm_tt.lens.vocabulary import logits, predictions
from llm_tt.models.transparent_llm import Trace, TransparentLlm
from llm_tt.progress import Progress, silent

_LOGITS_AT_ONCE = 2**23
"""Numbers; 32 MB, and about four times that while they are worked on"""
_N_PREDICTIONS = 5


def lens_grid(
    trace: Trace, points: Points = "post", token: int | str | None = None, normalize: bool = True, progress: Progress = silent
) -> LensGrid:
    """What the residual stream says at every point and token.

    Args:
        points: "post" for the embedding and the stream after each FFN, "both" for the stream after each attention as well.
        token: one whose probability and rank are wanted at every cell, as in `llm_tt.lens.named_tokens`.
        normalize: apply the final norm first, as the model does.
        progress: may raise to cancel.

    Raises:
        RequestError: `token` is not one token of the vocabulary.
    """
    model = trace.model
    chosen, note = (None, None) if token is None else find_token(model, token)
    names = point_names(trace.n_layers, points)
    shape = len(names), trace.n_tokens
    top_ids, ranks = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    top_probabilities, entropies, probabilities = (np.zeros(shape, np.float32) for _ in range(3))
    for row, name in enumerate(names):
        for part in _chunks(model, trace.n_tokens):
            progress(f"Reading {name}", (row + part.start / trace.n_tokens) / len(names))
            scores = logits(model, _stream(trace, name, range(trace.n_tokens)[part]), normalize)
            log_probabilities = scores.log_softmax(-1)
            best = log_probabilities.max(-1)
            top_ids[row, part] = best.indices.cpu().numpy()
            top_probabilities[row, part] = best.values.exp().cpu().numpy()
            entropies[row, part] = _entropy(log_probabilities).cpu().numpy()
            if chosen is not None:
                probabilities[row, part] = log_probabilities[:, chosen].exp().cpu().numpy()
                ranks[row, part] = _ranks(scores, [chosen])[:, 0].cpu().numpy()
    occurring = np.unique(top_ids).tolist()
    return LensGrid(
        points=names,
        token_texts=trace.token_texts,
        normalized=normalize,
        top_ids=top_ids,
        top_probabilities=top_probabilities,
        entropies=entropies,
        texts=dict(zip(occurring, model.texts(occurring), strict=True)),
        chosen=chosen,
        chosen_text=None if chosen is None else model.texts([chosen])[0],
        probabilities=None if chosen is None else probabilities,
        ranks=None if chosen is None else ranks,
        note=note,
    )


def token_trajectories(
    trace: Trace,
    position: int = -1,
    tokens: Sequence[int | str] | None = None,
    points: Points = "both",
    normalize: bool = True,
    progress: Progress = silent,
) -> Trajectories:
    """Logits, probabilities and ranks of some tokens at every point of the residual stream of one position.

    Args:
        tokens: as in `llm_tt.lens.named_tokens`; None for the five that the model predicts after that position.

    Raises:
        RequestError: no such position, or not one token of the vocabulary.
    """
    model, position = trace.model, trace.position(position)
    notes: tuple[str, ...] = ()
    if tokens is None:
        chosen = predictions(trace, position, _N_PREDICTIONS).token_ids.tolist()
    else:
        found = [find_token(model, token) for token in tokens]
        chosen = list(dict.fromkeys(token_id for token_id, _ in found))
        notes = tuple(note for _, note in found if note is not None)
        if not chosen:
            raise RequestError("No token is named, so that there is nothing to follow. Name one, or leave `tokens` out.")
    names = point_names(trace.n_layers, points)
    shape = len(names), len(chosen)
    scores, probabilities, ranks = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    for part in _chunks(model, len(names)):
        progress(f"Reading {names[part.start]}", part.start / len(names))
        # The layers of a large model may lie on several devices.
        vectors = torch.stack([_stream(trace, name, [position])[0].to(trace.embedding.device) for name in names[part]])
        values = logits(model, vectors, normalize)
        scores[part] = values[:, chosen].cpu().numpy()
        probabilities[part] = values.softmax(-1)[:, chosen].cpu().numpy()
        ranks[part] = _ranks(values, chosen).cpu().numpy()
    return Trajectories(position, names, normalize, tuple(chosen), tuple(model.texts(chosen)), scores, probabilities, ranks, notes)


def point_names(n_layers: int, points: Points) -> tuple[str, ...]:
    """Nodes without their position, from the embedding up."""
    kinds = ("A", "I") if points == "both" else ("I",)
    return ("X0", *(f"{kind}{layer}" for layer in range(n_layers) for kind in kinds))


def _stream(trace: Trace, name: str, positions: Sequence[int]) -> Tensor:
    """[P, d] the residual stream at a point, at some tokens."""
    kind, layer = name[0], int(name[1:])
    if kind == "X":
        return trace.embedding[list(positions)]
    block = trace.blocks[layer]
    return block.mid(positions) if kind == "A" else block.post(positions)


def _chunks(model: TransparentLlm, n_vectors: int) -> Iterator[slice]:
    """So many vectors at a time that their logits stay small."""
    size = max(1, _LOGITS_AT_ONCE // model.info.d_vocab)
    return (slice(start, min(start + size, n_vectors)) for start in range(0, n_vectors, size))


def _entropy(log_probabilities: Tensor) -> Tensor:
    """[..., V] -> [...] bits. A token that the model excludes (logit minus infinity) adds nothing."""
    terms = (log_probabilities.exp() * log_probabilities).nan_to_num_(nan=0.0)
    return -terms.sum(-1) / math.log(2)


def _ranks(scores: Tensor, token_ids: Sequence[int]) -> Tensor:
    """[P, V] -> [P, K]; one token at a time, so that no more than the scores' own size is needed."""
    return torch.stack([1 + (scores > scores[:, token_id, None]).sum(-1) for token_id in token_ids], -1)
