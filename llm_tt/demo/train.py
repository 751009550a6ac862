"""Trains the demo model from scratch and writes its folder. Tasks, tokenizer and scoring have their own modules.

python -m llm_tt.demo.train [--out DIR] [--steps N] [--minutes M] [--seed 0]
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_tt.demo import MODEL_DIR
from llm_tt.demo.card import model_card
from llm_tt.demo.evaluation import evaluate, load, markdown_table
from llm_tt.demo.language import Case, training_cases
from llm_tt.demo.tokenizer import BOS, EOS, PAD, build_tokenizer

LENGTH = 128  # positions in a row, and the longest prompt the model takes
ANSWER_WEIGHT = 4.0
VOCABULARY_DOCUMENTS = 40_000


@dataclass(frozen=True)
class Settings:
    """`minutes` ends a run early, with the learning rate following the clock; 0 means steps alone decide."""

    steps: int = 3000
    minutes: float = 0.0
    seed: int = 0
    rows: int = 24
    long_rows: float = 0.3  # part of the rows that hold one long text instead of several short ones
    layers: int = 4
    width: int = 128
    hidden: int = 384
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 60
    examples: int = 1000
    threads: int = 2


@dataclass(frozen=True)
class Batch:
    """All [rows, LENGTH], but `allowed` [rows, 1, LENGTH, LENGTH]: which position may attend to which."""

    ids: Tensor
    weights: Tensor
    positions: Tensor
    allowed: Tensor


def demo_tokenizer() -> PreTrainedTokenizerFast:
    """The same for every seed, so that models trained with different seeds can be compared."""
    documents = islice(training_cases(Random(0)), VOCABULARY_DOCUMENTS)
    texts = (case.text for case in documents if not case.invented)
    return build_tokenizer(texts, LENGTH)


def special_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int, int]:
    """Of <bos>, <eos> and <pad>."""
    ids = tokenizer.get_vocab()
    return ids[BOS], ids[EOS], ids[PAD]


def encode(cases: Sequence[Case], separators: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[float]]]:
    """Per case its token ids and their weights in the loss; each text follows its separator."""
    texts = [separator + case.text for case, separator in zip(cases, separators, strict=True)]
    encoded: list[tuple[list[int], list[float]]] = []
    for case, separator, tokens in zip(
        cases,
        separators,
        tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False),
        strict=True,
    ):
        answer_from = len(separator) + len(case.prompt)
        answer_to = answer_from + len(case.answer)
        weights = [case.prompt_weight if end <= answer_from else ANSWER_WEIGHT if end <= answer_to else 1.0 for _, end in tokens.offsets]
        encoded.append((tokens.ids, weights))
    return encoded


def short_row(cases: Iterator[Case], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float], list[int], list[int]]:
    """Several documents, each with its own <bos> and positions from 0: ids, weights, positions, document numbers."""
    ids: list[int] = []
    weights: list[float] = []
    positions: list[int] = []
    documents: list[int] = []
    bos, eos, pad = special_ids(tokenizer)
    for tokens, token_weights in encode(list(islice(cases, 16)), [""] * 16, tokenizer):
        if len(ids) + len(tokens) + 2 > LENGTH:
            continue
        number = documents[-1] + 1 if documents else 0
        ids += [bos, *tokens, eos]
        weights += [0.0, *token_weights, 1.0]
        positions += range(len(tokens) + 2)
        documents += [number] * (len(tokens) + 2)
    missing = LENGTH - len(ids)
    last = documents[-1] + 1
    return ids + [pad] * missing, weights + [0.0] * missing, positions + [0] * missing, documents + [last] * missing


def long_row(cases: Iterator[Case], rng: Random, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float], list[int], list[int]]:
    """One text of several documents after a single <bos>, so that every position up to LENGTH is trained."""
    ids = [special_ids(tokenizer)[0]]
    weights = [0.0]
    while len(ids) < LENGTH:
        separators = ["" if len(ids) == 1 else rng.choice((" ", "\n")), *rng.choices((" ", "\n"), k=7)]
        for tokens, token_weights in encode(list(islice(cases, 8)), separators, tokenizer):
            ids += tokens
            weights += token_weights
    return ids[:LENGTH], weights[:LENGTH], list(range(LENGTH)), [0] * LENGTH


def batches(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    rng = Random(f"rows|{settings.seed}")
    cases = training_cases(Random(f"documents|{settings.seed}"))
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    while True:
        rows = [
            long_row(cases, rng, tokenizer) if rng.random() < settings.long_rows else short_row(cases, tokenizer)
            for _ in range(settings.rows)
        ]
        ids, weights, positions, documents = zip(*rows, strict=True)
        numbers = torch.tensor(documents)
        same = numbers[:, None, :, None] == numbers[:, None, None, :]
        yield Batch(torch.tensor(ids), torch.tensor(weights), torch.tensor(positions), same & causal)


def new_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    bos, eos, pad = special_ids(tokenizer)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
        )
    )


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    mask = torch.zeros(batch.allowed.shape).masked_fill_(~batch.allowed, torch.finfo(torch.float32).min)
    logits = model(batch.ids, attention_mask=mask, position_ids=batch.positions, use_cache=False).logits
    weights = batch.weights[:, 1:].flatten()
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    return (losses * weights).sum() / weights.sum()


def train(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> tuple[LlamaForCausalLM, int, float]:
    """The trained model, the steps made and the minutes taken."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    model = new_model(settings, tokenizer).train()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    optimisers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=settings.muon_rate, weight_decay=settings.weight_decay), settings.muon_rate),
        (torch.optim.AdamW(others, lr=settings.adam_rate, betas=(0.9, 0.95), weight_decay=0.0), settings.adam_rate),
    ]
    started = time.monotonic()
    step = 0
    for step, batch in enumerate(islice(batches(settings, tokenizer), settings.steps), start=1):
        minutes = (time.monotonic() - started) / 60
        done = max(step / settings.steps, minutes / settings.minutes if settings.minutes else 0.0)
        factor = min(step / settings.warmup, 0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))
        for optimiser, rate in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, _ in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == settings.steps:
            print(f"step {step}/{settings.steps}  loss {loss.item():.3f}  {minutes:.1f} min", flush=True)
        if settings.minutes and minutes >= settings.minutes:
            break
    return model.eval(), step, (time.monotonic() - started) / 60


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    bos, eos, pad = special_ids(tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        max_length=LENGTH,
        do_sample=False,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    default = Settings()
    parser = argparse.ArgumentParser(description="Trains the demo model and writes its folder.")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to write (default: the shipped model's)")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--minutes", type=float, default=default.minutes, help="end earlier than --steps; 0: never")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--layers", type=int, default=default.layers)
    parser.add_argument("--examples", type=int, default=default.examples, help="held-out examples per task")
    parser.add_argument("--threads", type=int, default=default.threads)
    options = vars(parser.parse_args(arguments))
    folder: Path = options.pop("out")
    settings = Settings(**options)

    tokenizer = demo_tokenizer()
    model, steps, minutes = train(settings, tokenizer)
    save(model, tokenizer, folder)
    # What is measured is what was saved, as any user would load it.
    saved_model, saved_tokenizer = load(folder)
    scores = evaluate(saved_model, saved_tokenizer, settings.examples, settings.seed)
    print(markdown_table(scores))
    card = model_card(saved_model.config, saved_model.num_parameters(), settings.seed, steps, minutes, scores)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"Wrote {folder}: {steps} steps in {minutes:.1f} minutes.")


if __name__ == "__main__":
    main()
