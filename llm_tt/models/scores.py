"""How probable given tokens are after given positions, many texts at a time: `Ask` and `Scored`. Nothing is recorded.

Texts are padded on the right: a token of a causal model never sees what comes after it, so that neither attention nor positions, absolute or
relative, change. With `padding="left"` the padding is masked and positions count from each text's first token, which gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Padding = Literal["right", "left"]

BATCH_ROWS = 64
BATCH_TOKENS = 4096
LOGITS_BYTES = 64 * 2**20
"""Logits of one forward pass, in float32; what limits memory where the vocabulary is large"""
SCORES_BYTES = 256 * 2**20
"""Attention scores of one layer in one forward pass, for models that keep them"""


@dataclass(frozen=True)
class NextTokens:
    """Tokens that may follow a position."""

    position: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Ask:
    """A text, and what is asked about it."""

    token_ids: tuple[int, ...]
    asked: tuple[NextTokens, ...]


@dataclass(frozen=True)
class Scored:
    """The answer to one `NextTokens`."""

    log_probabilities: tuple[float, ...]
    """natural logarithms, of a softmax over the whole vocabulary"""
    best: int
    """the model's first choice"""


def scored(logits: Tensor, token_ids: Sequence[int]) -> Scored:
    """logits: [V], of any dtype."""
    return all_scored(logits[None], [token_ids])[0]


def all_scored(logits: Tensor, token_ids: Sequence[Sequence[int]]) -> list[Scored]:
    """logits: [N, V], of any dtype; for each of them its tokens."""
    import torch

    wide = logits.float()
    totals, best = torch.logsumexp(wide.double(), -1), wide.argmax(-1).tolist()
    chosen = ((row[list(ids)].double() - total).tolist() for row, ids, total in zip(wide, token_ids, totals, strict=True))
    return [Scored(tuple(logs), first) for logs, first in zip(chosen, best, strict=True)]


def batches(asks: Sequence[Ask], n_vocab: int, n_heads: int, until: int | None = None) -> Iterator[list[tuple[int, Ask]]]:
    """Asks with their index, those of like length together, as many as fit into one forward pass.

    until: texts longer than this are never in a pass with shorter ones, whose keys would otherwise be other ones.
    """
    batch: list[tuple[int, Ask]] = []
    kept: set[int] = set()
    for number, piece in sorted(_pieces(asks, n_vocab), key=lambda numbered: len(numbered[1].token_ids)):
        length = len(piece.token_ids)
        union = kept | {next_tokens.position for next_tokens in piece.asked}
        n = len(batch) + 1
        full = (
            n > BATCH_ROWS
            or n * length > BATCH_TOKENS
            or n * len(union) * n_vocab * 4 > LOGITS_BYTES
            or n * n_heads * length**2 * 4 > SCORES_BYTES
            or (until is not None and batch and len(batch[0][1].token_ids) <= until < length)
        )
        if full and batch:
            yield batch
            batch, union = [], {next_tokens.position for next_tokens in piece.asked}
        batch.append((number, piece))
        kept = union
    if batch:
        yield batch


def _pieces(asks: Sequence[Ask], n_vocab: int) -> Iterator[tuple[int, Ask]]:
    """Asks whose own logits would be too many, in several."""
    most = max(LOGITS_BYTES // (4 * n_vocab), 1)
    for number, ask in enumerate(asks):
        for start in range(0, len(ask.asked), most):
            yield number, Ask(ask.token_ids, ask.asked[start : start + most])


def run_batch(model: Any, batch: Sequence[Ask], device: str, padding: Padding = "right") -> list[list[Scored]]:
    """One forward pass of a Hugging Face model over several texts."""
    import torch

    width = max(len(ask.token_ids) for ask in batch)
    shifts = [width - len(ask.token_ids) if padding == "left" else 0 for ask in batch]
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (ask, shift) in enumerate(zip(batch, shifts, strict=True)):
        ids[row, shift : shift + len(ask.token_ids)] = torch.tensor(ask.token_ids)
        mask[row, shift : shift + len(ask.token_ids)] = 1
    kept = sorted({n.position + shift for ask, shift in zip(batch, shifts, strict=True) for n in ask.asked})
    options: dict[str, Tensor] = {}
    if padding == "left":
        options = {"attention_mask": mask.to(device), "position_ids": (mask.cumsum(-1) - 1).clamp(min=0).to(device)}
    with torch.inference_mode():
        output = model(ids.to(device), **options, use_cache=False, logits_to_keep=torch.tensor(kept, device=device))
        logits = output.logits
        if logits.shape[1] == width != len(kept):
            # A family that gives all logits whatever is asked for.
            logits = logits[:, kept]
        place = {position: index for index, position in enumerate(kept)}
        asked = [(row, n) for row, ask in enumerate(batch) for n in ask.asked]
        rows, columns = [row for row, _ in asked], [place[n.position + shifts[row]] for row, n in asked]
        answers = iter(all_scored(logits[rows, columns].cpu(), [n.token_ids for _, n in asked]))
        return [[next(answers) for _ in ask.asked] for ask in batch]
