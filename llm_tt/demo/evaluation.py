"""Held-out accuracy per task, of any causal language model and tokenizer. Nothing is trained or saved here.

python -m llm_tt.demo.evaluation [MODEL_DIR] [--examples 1000] [--seed 0]
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llm_tt.demo import MODEL_DIR
from llm_tt.demo.language import MEASURED, Case, Measure, Task, held_out_cases

HOW_MEASURED: dict[Measure, str] = {
    "top-1": "the most probable token is right",
    "contrast": "right forms together outweigh the wrong ones",
    "mass": "mean probability of all right tokens",
}


@dataclass(frozen=True)
class TaskScore:
    """`score` is the mean over the examples, 0 to 1; `confidence` the mean probability of the accepted tokens."""

    task: str
    measure: Measure
    score: float
    confidence: float
    examples: int
    held_out: str


@torch.no_grad()
def next_token_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_size: int = 128
) -> Tensor:
    """[n_prompts, d_vocab] float32: probabilities of the token after each prompt."""
    rows: list[Tensor] = []
    for start in range(0, len(prompts), batch_size):
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts[start : start + batch_size]]
        last = torch.tensor([len(row) - 1 for row in ids])
        padded = torch.zeros(len(ids), int(last.max()) + 1, dtype=torch.long)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        # Padding stands on the right of a causal model, so what is read here does not see it.
        logits = model(padded.to(model.device), use_cache=False).logits
        rows.append(logits[torch.arange(len(ids)), last].float().softmax(-1).cpu())
    return torch.cat(rows)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """The id of each text's first token."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts]


def score_case(case: Case, measure: Measure, probabilities: Tensor, tokenizer: PreTrainedTokenizerBase) -> float:
    right = token_ids(tokenizer, case.accepted)
    if measure == "top-1":
        return float(int(probabilities.argmax()) in right)
    mass = float(probabilities[right].sum())
    if measure == "mass":
        return mass
    return float(mass > float(probabilities[token_ids(tokenizer, case.wrong)].sum()))


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: int = 1000,
    seed: int = 0,
    tasks: Sequence[Task] = MEASURED,
) -> list[TaskScore]:
    """One score per task, over up to `examples` distinct held-out cases."""
    scores: list[TaskScore] = []
    for task in tasks:
        cases = held_out_cases(task, examples, seed)
        probabilities = next_token_probabilities(model, tokenizer, [case.prompt for case in cases])
        judged = [score_case(case, task.measure, row, tokenizer) for case, row in zip(cases, probabilities, strict=True)]
        sure = [float(row[token_ids(tokenizer, case.accepted)].sum()) for case, row in zip(cases, probabilities, strict=True)]
        n = len(cases)
        scores.append(TaskScore(task.name, task.measure, sum(judged) / n, sum(sure) / n, n, task.held_out))
    return scores


def markdown_table(scores: Sequence[TaskScore]) -> str:
    """The scores as the model card shows them."""
    lines = ["| task | score | mean probability | examples | never met in training | counted right when |"]
    lines.append("|---|---|---|---|---|---|")
    for s in scores:
        meaning = HOW_MEASURED[s.measure]
        lines.append(f"| {s.task} | {s.score:.3f} | {s.confidence:.3f} | {s.examples} | {s.held_out} | {meaning} |")
    return "\n".join(lines)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (float32, in evaluation mode) and tokenizer of a local folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Held-out accuracy of the demo model, per task.")
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_DIR, help="model folder (default: the shipped one)")
    parser.add_argument("--examples", type=int, default=1000, help="at most so many per task")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(markdown_table(evaluate(*load(options.folder), examples=options.examples, seed=options.seed)))


if __name__ == "__main__":
    main()
