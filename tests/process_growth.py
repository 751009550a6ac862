"""How much a process of its own grows by when it traces a prompt, and what was estimated: `python tests/process_growth.py llama 512 float32`."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import GPT2Config, LlamaConfig  # noqa: E402

from benchmarks.models import tokenizer  # noqa: E402
from llm_tt.models import memory  # noqa: E402
from llm_tt.models.bridge import BridgeLlm  # noqa: E402

N_LAYERS, WIDTH, N_VOCAB = 8, 512, 1000


def main(name: str, n_tokens: int, dtype: str) -> None:
    torch.set_num_threads(1)
    llm = bridge(name, dtype)
    ids = [(7 + 13 * index) % llm.info.d_vocab for index in range(n_tokens)]
    gc.collect()
    # Linux only: 5 sets the peak resident size back to the current one (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    llm.trace(ids)
    print(json.dumps({"measured": 1024 * (_kilobytes("VmHWM") - before), "estimate": memory.trace_bytes(llm.info, n_tokens)}))


def bridge(name: str, dtype: str) -> BridgeLlm:
    """A random model of some size."""
    torch.manual_seed(0)
    return BridgeLlm(name, _model(name).to(getattr(torch, dtype)), tokenizer(N_VOCAB))


def _model(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    if name == "gpt2":
        return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=N_VOCAB, n_positions=2048, n_embd=WIDTH, n_layer=N_LAYERS, n_head=8))
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=N_VOCAB,
            hidden_size=WIDTH,
            intermediate_size=1376,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=2048,
        )
    )


def _kilobytes(key: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
