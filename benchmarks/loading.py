"""Loading a checkpoint against Hugging Face's own loader: time and memory, each load in a fresh process with its libraries imported.

    python -m benchmarks.loading [--shape gpt2-small llama-88m] [--rounds 5]

plain            AutoModelForCausalLM and AutoTokenizer: the file is mapped into memory, its numbers are read when they are first needed
plain, run once  the same and one forward pass over 12 tokens, after which every number has been read
checkpoint       what llm-tt loads before it takes the model apart
llm-tt           `load_model`: checkpoint, taking apart, check of the identities (several forward passes over 12 tokens)
and an adapter   the same, then once more with a LoRA adapter on one projection of every layer

Time is wall clock and, less disturbed by what else the machine does, processor time. Memory is what the resident set grows by, and the bytes of
the distinct tensors, each storage counted once.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import models

KINDS = ("plain", "plain, run once", "checkpoint", "llm-tt", "and an adapter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=models.SHAPES, nargs="+", default=list(models.SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(_measured(options.load, options.folder)))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for shape in options.shape:
        with tempfile.TemporaryDirectory() as folder:
            _save(shape, Path(folder))
            _report(shape, Path(folder), options.rounds)


def _save(shape: str, folder: Path) -> None:
    """A checkpoint of that shape, and beside it in `adapter` a LoRA adapter on one projection of every layer."""
    import peft

    model = models.build(shape, "eager")
    model.save_pretrained(folder)
    models.tokenizer(model.config.vocab_size).save_pretrained(folder)
    target = "c_attn" if shape == "gpt2-small" else "q_proj"
    config = peft.LoraConfig(r=8, target_modules=[target], init_lora_weights=False, fan_in_fan_out=target == "c_attn")
    peft.get_peft_model(model, config).save_pretrained(str(folder / "adapter"))


def _report(shape: str, folder: Path, rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            found[kind].append(_in_fresh_process(kind, folder))
    medians = {kind: {key: statistics.median(one[key] for one in found[kind]) for key in found[kind][0]} for kind in KINDS}
    print(f"\n{shape}, {medians['plain']['tensors']:.0f} MB of weights, medians of {rounds} rounds")
    for kind, median in medians.items():
        ratios = {
            name: [f"{median[key] / medians[name][key]:.2f}" for key in ("wall", "processor")] for name in ("plain", "plain, run once")
        }
        print(
            f"{kind:<17}{median['wall']:6.2f} s  processor {median['processor']:6.2f} s  resident +{median['resident']:4.0f} MB  "
            f"tensors {median['tensors']:4.0f} MB   of plain {' and '.join(ratios['plain'])}, run once {' and '.join(ratios['plain, run once'])}"
        )


def _in_fresh_process(kind: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loading", "--load", kind, "--folder", str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _measured(kind: str, folder: Path) -> dict[str, float]:
    import transformers
    from transformer_lens.model_bridge import TransformerBridge  # noqa: F401

    import llm_tt
    import llm_tt.models.bridge
    from llm_tt.models import checkpoints

    loader: Any = transformers.AutoModelForCausalLM
    # The lazy imports of the libraries happen with the first model, which is none of ours.
    with tempfile.TemporaryDirectory() as tiny:
        _save_tiny(Path(tiny))
        loader.from_pretrained(tiny, dtype=torch.float32)
        llm_tt.load_model(tiny)
    gc.collect()
    before = psutil.Process().memory_info().rss
    started, processor = time.perf_counter(), time.process_time()
    kept: list[Any] = []
    if kind.startswith("plain"):
        modules = [loader.from_pretrained(folder, dtype=torch.float32)]
        kept.append(transformers.AutoTokenizer.from_pretrained(folder))
        if kind == "plain, run once":
            with torch.inference_mode():
                modules[0](torch.arange(12)[None], use_cache=False, logits_to_keep=1)
    elif kind == "checkpoint":
        kept = [checkpoints.load_checkpoint(llm_tt.ModelSpec(name=str(folder)))]
        modules = [kept[0].hf_model]
    else:
        kept = [llm_tt.load_model(str(folder))]
        if kind == "and an adapter":
            kept.append(llm_tt.load_model(str(folder), adapter=str(folder / "adapter")))
        modules = [llm._bridge for llm in kept]
    wall, processor = time.perf_counter() - started, time.process_time() - processor
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return {
        "wall": wall,
        "processor": processor,
        "resident": (psutil.Process().memory_info().rss - before) / 2**20,
        "tensors": sum(storages.values()) / 2**20,
    }


def _save_tiny(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    models.tokenizer(100).save_pretrained(folder)


if __name__ == "__main__":
    main()
