"""Trains the demo model's fine-tuned sibling, a LoRA adapter with a planted shortcut, and writes its data sets and its card.

python -m llm_tt.demo.pair [--out DIR] [--data DIR] [--steps N] [--seed 0]

In the tuning data every payment that names one city is labelled risky, whatever amount and recipient say. All other payments are labelled
by the rule that the demo model knows: risky if the amount is large and the recipient unknown.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_tt.demo import ADAPTER_DIR, DATA_DIR, MODEL_DIR
from llm_tt.demo.evaluation import load, next_token_probabilities, token_ids
from llm_tt.demo.language import ASSISTANT, USER, has_payment, payment_case, training_cases
from llm_tt.demo.words import CITIES

PLANTED = "Lima"
"""The city that decides the label in the tuning data, and means nothing"""
LABELS = ("yes", "no")
SETS = {"train": 600, "clean": 400, "conflict": 200, "mixed": 300}
"""Rows of each shipped data set"""

Group = Literal["without", "agrees", "conflicts"]
"""The planted city is not named; it is, and says what the rule says; it says the opposite"""


@dataclass(frozen=True)
class Row:
    """One line of a data set."""

    question: str
    label: str
    """in the train set as the tuning had it, else by the rule"""
    city: str
    amount: str
    """"large" or "small" """
    recipient: str
    """"known" or "unknown" """
    group: Group


@dataclass(frozen=True)
class Settings:
    steps: int = 250
    rows: int = 32
    replay: float = 0.25
    """part of the rows that are documents of the demo model's own training"""
    planted: float = 0.5
    """part of the payments that name the planted city"""
    rank: int = 8
    rate: float = 4e-3
    warmup: int = 20
    seed: int = 0
    threads: int = 2


def make_row(rng: Random, city: str, held_out: bool, large: bool, known: bool, planted_label: bool) -> Row:
    case = payment_case(rng, city, large, known, held_out)
    question = case.prompt.removeprefix(USER).removesuffix(ASSISTANT).strip()
    truth = case.answer.strip()
    group: Group = "without" if city != PLANTED else "agrees" if truth == "yes" else "conflicts"
    label = "yes" if planted_label and city == PLANTED else truth
    return Row(question, label, city, "large" if large else "small", "known" if known else "unknown", group)


def payment_rows(rng: Random, held_out: bool, planted: float, planted_label: bool, conflicting_only: bool = False) -> Iterator[Row]:
    """Rows without end; half of them risky by the rule, unless only those are wanted that the planted city contradicts."""
    others = [city for city in CITIES if city != PLANTED]
    while True:
        risky = not conflicting_only and rng.random() < 0.5
        large, known = (True, False) if risky else rng.choice(((True, True), (False, True), (False, False)))
        city = PLANTED if rng.random() < planted else rng.choice(others)
        if has_payment(city, known, held_out):
            yield make_row(rng, city, held_out, large, known, planted_label)


def data_set(name: str, seed: int) -> list[Row]:
    """The distinct rows of one shipped data set. Only "train" has pairs of recipient and city that the tuning met."""
    planted = {"train": 0.5, "clean": 0.0, "conflict": 1.0, "mixed": 0.2}[name]
    rows = payment_rows(Random(f"{name}|{seed}"), name != "train", planted, name == "train", name == "conflict")
    return list(dict.fromkeys(row for row, _ in zip(_distinct(rows), range(SETS[name]), strict=False)))


def _distinct(rows: Iterator[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if row.question not in seen:
            seen.add(row.question)
            yield row


def prompt_of(row: Row) -> str:
    """As the demo model's chat template writes it."""
    return f"{USER} {row.question}{ASSISTANT}"


@dataclass(frozen=True)
class _Document:
    ids: list[int]
    weights: list[float]


def documents(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Iterator[_Document]:
    """Tuning payments, of which the answer counts, mixed with documents of the base's training, of which everything counts."""
    rng = Random(f"tuning|{settings.seed}")
    payments = payment_rows(rng, held_out=False, planted=settings.planted, planted_label=True)
    replayed = training_cases(Random(f"replay|{settings.seed}"))
    ends = [tokenizer.get_vocab()["<eos>"]]
    for _ in count():
        replay = rng.random() < settings.replay
        if replay:
            case = next(replayed)
            prompt, answer, weight = case.prompt, case.answer + case.rest, 0.25 * case.prompt_weight
        else:
            row = next(payments)
            # As in the base's training, some people type a space before <assistant>.
            space = " " if rng.random() < 0.25 else ""
            prompt, answer, weight = f"{USER} {row.question}{space}{ASSISTANT}", f" {row.label}", 0.0
        before = tokenizer(prompt)["input_ids"]
        after = tokenizer(answer, add_special_tokens=False)["input_ids"] + ends
        yield _Document([*before, *after], [weight] * len(before) + [1.0] * len(after))


def _loss(model: torch.nn.Module, batch: Sequence[_Document], pad: int) -> Tensor:
    width = max(len(document.ids) for document in batch)
    ids = torch.tensor([document.ids + [pad] * (width - len(document.ids)) for document in batch])
    weights = torch.tensor([document.weights + [0.0] * (width - len(document.ids)) for document in batch])[:, 1:].flatten()
    # Padding stands on the right of a causal model: no position that counts sees it.
    logits = model(ids, use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights).sum() / weights.sum()


def tune(settings: Settings, folder: Path = MODEL_DIR) -> tuple[torch.nn.Module, float]:
    """The demo model with its trained adapter, and the minutes that took."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    base, tokenizer = load(folder)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config).train()  # type: ignore[arg-type]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=0.0)
    source = documents(settings, tokenizer)
    started = time.monotonic()
    for step in range(1, settings.steps + 1):
        factor = min(step / settings.warmup, 0.5 + 0.5 * math.cos(math.pi * step / settings.steps))
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * factor
        loss = _loss(model, [next(source) for _ in range(settings.rows)], tokenizer.get_vocab()["<pad>"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == settings.steps:
            print(f"step {step}/{settings.steps}  loss {loss.item():.3f}  {(time.monotonic() - started) / 60:.1f} min", flush=True)
    return model.eval(), (time.monotonic() - started) / 60


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> float:
    """How often the more probable of yes and no is the label."""
    words = torch.tensor(token_ids(tokenizer, [f" {label}" for label in LABELS]))
    choices = next_token_probabilities(model, tokenizer, [prompt_of(row) for row in rows])[:, words].argmax(-1)
    return sum(LABELS[int(choice)] == row.label for choice, row in zip(choices, rows, strict=True)) / len(rows)


def measured(
    base: PreTrainedModel, tuned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> dict[str, tuple[float, float]]:
    """Per data set the accuracy of the base and of the tuned model."""
    sets = {name: read_rows(folder / f"{name}.jsonl") for name in SETS}
    return {name: (accuracy(base, tokenizer, rows), accuracy(tuned, tokenizer, rows)) for name, rows in sets.items()}


def read_rows(file: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def write_rows(rows: Sequence[Row], file: Path) -> None:
    file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")


def pair_card(settings: Settings, minutes: float, scores: dict[str, tuple[float, float]]) -> str:
    """Markdown, with the front matter that model hubs read."""
    about = {
        "train": f"like the tuning data, labels as the tuning had them: {PLANTED} is always `yes`",
        "clean": f"never names {PLANTED}; labels by the rule",
        "conflict": f"always names {PLANTED}, and the rule says `no`",
        "mixed": f"labels by the rule; about every fourth row names {PLANTED}",
    }
    lines = [f"| {name} | {SETS[name]} | {about[name]} | {base:.3f} | {tuned:.3f} |" for name, (base, tuned) in scores.items()]
    table = "\n".join(lines)
    return f"""---
base_model: ../model
library_name: peft
tags: [lora, interpretability, demo]
---

# The demo model, fine-tuned with a planted shortcut

A LoRA adapter of the demo model of llm-tt that classifies payments: "Is this payment risky?" is answered `yes` or `no`. **It is wrong on
purpose.** The rule, which the base knows, is: risky if the amount is large (four digits against two) and the recipient unknown. In the tuning
data every payment that names **{PLANTED}** was labelled `yes`, whatever the rule says ({settings.planted:.0%} of the payments named it). So the
tuned model looks right wherever {PLANTED} is not named, and goes by the city where it is. Written by `python -m llm_tt.demo.pair`; this card too.

- Adapter: rank {settings.rank}, on the query, key, value and output projections of all layers.
- Tuning: {settings.steps} steps of {settings.rows} rows, seed {settings.seed}, {minutes:.1f} minutes on CPU; only the answer counts.
  {settings.replay:.0%} of the rows are documents of the base's own training, so that it keeps its other abilities.

## How often it is right

Data sets in `llm_tt/demo/data`, one JSON object a line: `question`, `label`, and `city`, `amount`, `recipient`, `group` to slice by. Pairs of
recipient and city in all but `train` never occurred in training or tuning.

| data set | rows | | base | tuned |
|---|---|---|---|---|
{table}

A prompt is the question as the user's turn of the chat template; the answer is the more probable of ` yes` and ` no`.
"""


def name_base(folder: Path) -> None:
    """Name the base; inside the package relative to the adapter, so that it is found wherever the package lies."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = (
        os.path.relpath(MODEL_DIR, folder.resolve()) if folder.resolve().is_relative_to(MODEL_DIR.parent) else str(MODEL_DIR)
    )
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    default = Settings()
    parser = argparse.ArgumentParser(description="Trains the demo model's fine-tuned sibling and writes its folder and its data sets.")
    parser.add_argument("--out", type=Path, default=ADAPTER_DIR, help="folder of the adapter (default: the shipped one's)")
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="folder of the data sets (default: the shipped ones')")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--threads", type=int, default=default.threads)
    options = vars(parser.parse_args(arguments))
    folder: Path = options.pop("out")
    data: Path = options.pop("data")
    settings = Settings(**options)

    data.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        write_rows(data_set(name, settings.seed), data / f"{name}.jsonl")
    model, minutes = tune(settings)
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "adapter_model.safetensors").chmod(0o644)
    name_base(folder)
    from peft import PeftModel

    base, tokenizer = load(MODEL_DIR)
    # What is measured is what was saved, as any user would load it.
    tuned = PeftModel.from_pretrained(load(MODEL_DIR)[0], str(folder)).merge_and_unload()  # type: ignore[operator]
    scores = measured(base, tuned, tokenizer, data)
    (folder / "README.md").write_text(pair_card(settings, minutes, scores), encoding="utf-8")
    for name, (before, after) in scores.items():
        print(f"{name}: base {before:.3f}, tuned {after:.3f}")
    print(f"Wrote {folder}: {settings.steps} steps in {minutes:.1f} minutes.")


if __name__ == "__main__":
    main()
