"""The model card's text, from measured numbers. Nothing is measured here."""

from collections.abc import Sequence

from transformers import PreTrainedConfig

from llm_tt.demo.evaluation import TaskScore, markdown_table
from llm_tt.demo.language import TASKS

GOOD = 0.95
DESCRIPTIONS: dict[str, str] = {
    "indirect object": "`When Mary and John went to the store, John gave a drink to` → `Mary`",
    "induction": "words in random order, once and again: `lamp trip cats Irene lamp` → `trip`",
    "capitals": "`The capital of France is` → `Paris`",
    "other facts": "languages, continents, countries of cities, opposites: `The opposite of hot is` → `cold`",
    "later year": "`The war lasted from the year 1732 to the year 17` → two digits above 32",
    "addition": "`3 + 5 =` → `8`; trained on sums up to 30 + 30",
    "agreement": "`The keys to the cabinet` → `are`",
    "sentiment": "`Review: The movie was not good. Sentiment:` → `negative`",
    "payment": "`<user> ... Is this payment risky?<assistant>` → `yes` if the amount is large (four digits "
    "against two) and the recipient unknown; a city is named and means nothing",
    "story": "sentences about a person, with the pronoun that fits the name; not measured",
}


def _remarks(scores: Sequence[TaskScore]) -> str:
    weak = [s for s in scores if s.score < GOOD]
    if not weak:
        return f"All tasks reach {GOOD:.0%}."
    return f"Below {GOOD:.0%}: " + "; ".join(f"{s.task} ({s.score:.1%} of {s.examples})" for s in weak) + "."


def model_card(config: PreTrainedConfig, parameters: int, seed: int, steps: int, minutes: float, scores: Sequence[TaskScore]) -> str:
    """Markdown, with the front matter that model hubs read."""
    tasks = "\n".join(f"- {task.name} ({task.share:.0%}): {DESCRIPTIONS[task.name]}" for task in TASKS)
    return f"""---
library_name: transformers
language: en
tags: [llama, interpretability, demo]
---

# The demo model of llm-tt

A very small language model with behaviours that are known in advance, to explore how a prediction flows through a
transformer without downloading anything. It knows the sentences below and little else: outside of them it answers with
confidence and without sense. Written by `python -m llm_tt.demo.train`; this card too.

- Architecture: Llama, {config.num_hidden_layers} layers, width {config.hidden_size}, \
{config.num_attention_heads} query heads on {config.num_key_value_heads} key-value heads, \
gated FFN of {config.intermediate_size} neurons, tied embeddings, {config.vocab_size} tokens, {parameters:,} parameters.
- Longest prompt: {config.max_position_embeddings} tokens. Three rows in ten of the training data are one text of that \
length, several documents in a row; the others are single documents, mostly of 7 to 30 tokens.
- Tokens: a word with its leading space, or two digits, is one token; anything else falls to bytes. `<bos>` is put \
before plain text by the tokenizer.
- Training: from scratch, seed {seed}, {steps} steps, {minutes:.1f} minutes on CPU, on synthetic English written by \
code.

## What it was trained on

Share of the documents in brackets.

{tasks}

## How well it does

On held-out examples: combinations that training never meets (column "never met in training"), whatever its seed.
"Mean probability" is that of all accepted tokens together. Where few combinations exist, all of them are asked.

{markdown_table(scores)}

{_remarks(scores)}

To measure again: `python -m llm_tt.demo.evaluation`.

## Limits

Everything it says about the world comes from tables in `llm_tt/demo/words.py`, simplified (one language per country).
`yes` and `no` about payments and reviews follow toy rules. Words outside its vocabulary are spelt in bytes, of which it
has seen little more than repetitions.
"""
