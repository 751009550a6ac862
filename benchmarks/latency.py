"""What a user waits for after the first graph, asked through the engine: another threshold, another target, a click on a head.

    python -m benchmarks.latency [--shape gpt2-small llama-88m] [--tokens 512] [--repeats 30]

The model is saved to a folder and loaded by the engine as any other; the trace is made before anything is timed. Thresholds are all different, and
go up and down, so that some reach nodes that none before has reached; targets and heads are asked for once each. The bar: 20 ms for a threshold
at 512 tokens, in the median.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from llm_tt.config import AppConfig, ModelSpec
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import ExplainPrediction, InspectHead, ModelKey, TraceKey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=models.SHAPES, nargs="+", default=list(models.SHAPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for shape in options.shape:
        with tempfile.TemporaryDirectory() as folder:
            model = models.build(shape, "eager")
            size, n_layers, n_heads = model.config.vocab_size, model.config.num_hidden_layers, model.config.num_attention_heads
            model.save_pretrained(folder)
            models.tokenizer(size).save_pretrained(folder)
            del model
            for n_tokens in options.tokens:
                _report(shape, Path(folder), n_tokens, options.repeats, size, (n_layers, n_heads))


def _report(shape: str, folder: Path, n_tokens: int, repeats: int, vocabulary: int, heads: tuple[int, int]) -> None:
    draw = random.Random(0)
    engine = LocalEngine(AppConfig(models={shape: ModelSpec(name=shape, path=str(folder))}))
    try:
        trace = TraceKey(ModelKey(shape), " ".join(f"w{max(token_id, 2)}" for token_id in models.prompt(n_tokens, vocabulary)))
        read = engine.answer(ExplainPrediction(trace)).graph.n_tokens
        assert read == n_tokens, f"the prompt has {read} tokens"
        thresholds = [draw.uniform(0.02, 0.1) for _ in range(repeats)]
        targets = draw.sample(range(n_tokens // 2, n_tokens - 1), min(repeats, n_tokens // 2 - 1))
        clicks = [(draw.randrange(heads[0]), draw.randrange(heads[1])) for _ in range(repeats)]
        print(f"\n{shape}, T = {n_tokens}")
        for name, questions in (
            ("other threshold", [ExplainPrediction(trace, threshold=threshold) for threshold in thresholds]),
            ("other target", [ExplainPrediction(trace, target=target) for target in targets]),
            ("click on a head", [InspectHead(trace, layer, head, n_tokens - 1) for layer, head in clicks]),
        ):
            times = sorted(_seconds(engine, question) for question in questions)
            print(f"{name:<18}median {1000 * statistics.median(times):7.1f} ms   95th {1000 * times[int(0.95 * (len(times) - 1))]:7.1f} ms")
    finally:
        engine.close()


def _seconds(engine: LocalEngine, question: Any) -> float:
    started = time.perf_counter()
    engine.answer(question)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
