"""A model continues a prompt, greedily or by sampling, each token as soon as it is chosen; or many prompts at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llm_tt.errors import PromptError, RequestError
from llm_tt.models.continuation import GeneratedToken, Sampling, StopReason
from llm_tt.models.transparent_llm import PromptLike, TransparentLlm
from llm_tt.progress import Progress, silent


def generate(
    model: TransparentLlm,
    prompt: PromptLike,
    n_tokens: int = 20,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    continuation: Sequence[int] = (),
) -> Iterator[GeneratedToken]:
    """Up to `n_tokens` tokens that the model puts out after a prompt; fewer where it ends the sequence itself.

    The prompt is checked at once, each token is computed when it is asked for. `model.trace(prompt, continuation=token_ids)` then explains
    these very tokens. The last token tells in `stop` why nothing follows; an end-of-sequence token is itself the last one.

    Args:
        temperature, top_k, top_p, seed: as in `Sampling`; greedy unless a temperature is given.
        continuation: tokens that were generated before, and are continued.

    Raises:
        PromptError: as `trace` does; or prompt and continuation would be longer than the model's context.
        RequestError: a number is out of its range.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    return _tokens(model, _readable(model, prompt, n_tokens, continuation), n_tokens, sampling)


def generate_batch(
    model: TransparentLlm,
    prompts: Sequence[PromptLike],
    n_tokens: int = 20,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[list[GeneratedToken]]:
    """What `generate` gives for each of the prompts, with as many of them in a forward pass as the model reads at once.

    In half precision sums are rounded in another order, so that a token may differ where two are almost equally probable.

    Args:
        progress: called after every token of all prompts; may raise `Cancelled`.

    Raises:
        PromptError, RequestError: as `generate` does, for any of the prompts and before anything is computed.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    texts = [_readable(model, prompt, n_tokens) for prompt in prompts]
    made: list[list[GeneratedToken]] = [[] for _ in texts]
    for row, token_id, logits in _together(model, texts, n_tokens, sampling, progress):
        stop = "end" if token_id in model.end_ids else "length" if len(made[row]) == n_tokens - 1 else None
        made[row].append(_token(model, token_id, logits, stop))
    return made


def continuations(model: TransparentLlm, prompts: Sequence[Sequence[int]], n_tokens: int, progress: Progress = silent) -> list[list[int]]:
    """The ids that follow each prompt greedily, that of the end of the sequence included: `generate_batch` without what it says of each token."""
    made: list[list[int]] = [[] for _ in prompts]
    texts = [_readable(model, prompt, n_tokens) for prompt in prompts]
    for row, token_id, _ in _together(model, texts, n_tokens, Sampling(), progress):
        made[row].append(token_id)
    return made


def _together(
    model: TransparentLlm, texts: Sequence[Sequence[int]], n_tokens: int, sampling: Sampling, progress: Progress
) -> Iterator[tuple[int, int, Tensor]]:
    """Text, token and the logits it was chosen by, of all texts in turn until each has ended."""
    if not texts:
        return
    reading = model.batch_reading(max(map(len, texts)) + n_tokens)
    # Each draws as if it were alone.
    randoms = [torch.Generator().manual_seed(sampling.seed) for _ in texts]
    rows, pieces = list(range(len(texts))), [list(text) for text in texts]
    for place in range(n_tokens):
        logits = reading.read(pieces)
        chosen = logits.argmax(-1).tolist() if sampling.is_greedy else None
        token_ids = chosen or [_chosen(one, sampling, randoms[row]) for one, row in zip(logits, rows, strict=True)]
        for one, row, token_id in zip(logits, rows, token_ids, strict=True):
            yield row, token_id, one
        progress(f"Token {place + 1} of {n_tokens} for {len(texts)} texts", (place + 1) / n_tokens)
        left = [index for index, token_id in enumerate(token_ids) if token_id not in model.end_ids]
        if not left or place == n_tokens - 1:
            return
        if len(left) < len(rows):
            reading.keep(left)
        rows, pieces = [rows[index] for index in left], [[token_ids[index]] for index in left]


def _readable(model: TransparentLlm, prompt: PromptLike, n_tokens: int, continuation: Sequence[int] = ()) -> tuple[int, ...]:
    """The prompt's tokens, if so many more fit."""
    if n_tokens < 1:
        raise RequestError(f"{n_tokens} tokens were asked for. Ask for 1 or more.")
    token_ids = model.prompt(prompt, continuation).token_ids
    room = model.info.n_ctx - len(token_ids)
    if n_tokens > room:
        way = f"Ask for at most {room} tokens." if room else "Shorten the prompt."
        raise PromptError(
            f"The prompt has {len(token_ids)} tokens; with {n_tokens} more it has {len(token_ids) + n_tokens}, but {model.info.name} reads at "
            f"most {model.info.n_ctx}. {way}"
        )
    return token_ids


def _tokens(model: TransparentLlm, token_ids: Sequence[int], n_tokens: int, sampling: Sampling) -> Iterator[GeneratedToken]:
    reading, random = model.reading(), torch.Generator().manual_seed(sampling.seed)
    for place in range(n_tokens):
        logits = reading.read(token_ids)
        token_id = _chosen(logits, sampling, random)
        ends = token_id in model.end_ids
        yield _token(model, token_id, logits, "end" if ends else "length" if place == n_tokens - 1 else None)
        if ends:
            return
        token_ids = [token_id]


def _token(model: TransparentLlm, token_id: int, logits: Tensor, stop: StopReason | None) -> GeneratedToken:
    data = model.token_data([token_id])[0]
    return GeneratedToken(
        token_id,
        model.texts([token_id])[0],
        b"" if data is None else data,
        probability=float(logits.double().softmax(-1)[token_id]),
        rank=1 + int((logits > logits[token_id]).sum()),
        stop=stop,
    )


def _chosen(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    if sampling.is_greedy:
        return int(logits.argmax())
    cumulated = sampling_probabilities(logits, sampling).cumsum(-1)
    drawn = torch.rand(1, generator=random, dtype=cumulated.dtype) * cumulated[-1]
    # Right of what is equal: a token of probability 0 is never drawn.
    return int(torch.searchsorted(cumulated, drawn, right=True).clamp(max=int((cumulated < cumulated[-1]).sum())))


def sampling_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """[V] -> [V] float64: what is drawn from. Temperature first, then the k first choices, then those of the probability p."""
    if sampling.is_greedy:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    scores = logits.double() / sampling.temperature
    order = scores.argsort(descending=True, stable=True)
    if sampling.top_k is not None:
        order = order[: sampling.top_k]
    kept = scores[order].softmax(-1)
    if sampling.top_p is not None:
        # A token stays if those before it have not yet reached p; so the first always does.
        n_kept = int((kept.cumsum(-1) - kept < sampling.top_p).sum())
        order, kept = order[:n_kept], kept[:n_kept] / kept[:n_kept].sum()
    return torch.zeros_like(scores).scatter(0, order, kept)
