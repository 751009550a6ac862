"""Tests of the training script: two steps give a folder like the shipped one, and rows are packed as said."""

from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from llm_tt.demo import train
from llm_tt.demo.evaluation import load, next_token_probabilities


def test_two_steps_write_a_model_that_loads(tmp_path: Path) -> None:
    train.main(["--out", str(tmp_path), "--steps", "2", "--examples", "4", "--threads", "1"])
    model, tokenizer = load(tmp_path)
    (row,) = next_token_probabilities(model, tokenizer, ["The capital of France is"])
    assert float(row.sum()) - 1 < 1e-4
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "seed 0, 2 steps" in card
    assert "Below 95%" in card


def test_batches_repeat_and_keep_documents_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    settings = train.Settings(rows=6, long_rows=0.5)
    once, again = (list(islice(train.batches(settings, tokenizer), 2)) for _ in range(2))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(once, again, strict=True))
    for batch in once:
        assert batch.ids.shape == (6, train.LENGTH)
        for ids, positions, allowed in zip(batch.ids, batch.positions, batch.allowed[:, 0], strict=True):
            for place in range(train.LENGTH):
                # A position of n sees itself and the n before it: back to its own <bos>.
                if ids[place] != tokenizer.pad_token_id:
                    assert int(allowed[place].sum()) == int(positions[place]) + 1
                    assert int(ids[place - int(positions[place])]) == tokenizer.bos_token_id
        assert int(batch.positions.max()) == train.LENGTH - 1
