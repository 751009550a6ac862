"""On a GPU: trace and routes of one target against the plain forward pass, for the shapes of large models with random bfloat16 weights.

    python -m benchmarks.gpu [--shape llama-2-7b qwen3-8b] [--tokens 512 4096 32768] [--parts 4096 65536] [--repeats 3]

Both run on one model, booted for tracing: the plain pass is Hugging Face's own forward with SDPA attention and logits of the last token only, built
and measured first. A length that does not fit is said to be so, and the next one is tried. Peak memory is what PyTorch allocated on the device.
Where the fused kernel is used, routes are also found without it, and sums of so many parts are compared by themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks import models
from llm_tt.errors import OutOfMemoryError
from llm_tt.flow import contributions, kernels
from llm_tt.flow.routes import extract_routes
from llm_tt.models.bridge import BridgeLlm

#: What `transformers` is told beside the defaults of the family: (model type, options)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2-7b": ("llama", {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}),
    "llama-2-13b": ("llama", {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}),
    "llama-3-8b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "qwen3-8b": (
        "qwen3",
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
        },
    ),
    "tiny": ("llama", {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=[shape for shape in SHAPES if shape != "tiny"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--parts", type=int, nargs="*", help="parts that the kernel sums by itself (default 4096 and 65536 on a GPU)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda", help="cpu only with the shape tiny, to try the script")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; run this on a machine with a GPU.")
    print(f"{torch.cuda.get_device_name() if options.device == 'cuda' else options.device}, torch {torch.__version__}")
    for shape in options.shape:
        _report(shape, options.device, options.tokens, options.repeats)
    parts = ([4096, 65536] if options.device == "cuda" else []) if options.parts is None else options.parts
    if parts:
        _report_sums(_current(options.device), parts, [SHAPES[shape][1]["hidden_size"] for shape in options.shape], options.repeats)


def _report(shape: str, device: str, lengths: list[int], repeats: int) -> None:
    print(f"\n{shape}")
    try:
        plain = {n_tokens: _plain(shape, device, n_tokens, repeats) for n_tokens in lengths}
        gc.collect()
        _empty(device)
        model = _build(shape, device, max(lengths), "eager")
        llm = BridgeLlm(shape, model, models.tokenizer(model.config.vocab_size))
    except torch.OutOfMemoryError:
        print("the weights do not fit")
        return
    for n_tokens in lengths:
        ids = models.prompt(n_tokens, llm.info.d_vocab)
        ours = _measured(device, repeats, lambda ids=ids: extract_routes(llm.trace(ids)))
        forward = plain[n_tokens]
        if ours is None or forward is None:
            print(f"T = {n_tokens:<6} does not fit: {'trace and routes' if forward else 'plain forward'}")
            continue
        (seconds, peak), (least, floor) = ours, forward
        print(
            f"T = {n_tokens:<6} plain {1000 * least:9.1f} ms, trace and routes {1000 * seconds:9.1f} ms: {seconds / least:5.2f}   "
            f"peak {floor / 2**30:.2f} -> {peak / 2**30:.2f} GiB"
        )
        if kernels.supported(_current(device)):
            _report_routes(device, llm, ids, repeats)


def _report_routes(device: str, llm: BridgeLlm, ids: list[int], repeats: int) -> None:
    """Routes in traces made beforehand, each used once: contributions are kept with their trace."""
    found = []
    for kernel in (True, False):
        traces = iter([llm.trace(ids) for _ in range(repeats + 1)])
        with contextlib.nullcontext() if kernel else _without_kernel():
            found.append(_measured(device, repeats, lambda traces=traces: extract_routes(next(traces))))
    fused, plain = found
    if fused is not None and plain is not None:
        print(f"{'':10} routes alone: plain sums {1000 * plain[0]:9.1f} ms, kernel {1000 * fused[0]:9.1f} ms: {fused[0] / plain[0]:5.2f}")


def _report_sums(device: torch.device, counts: list[int], widths: list[int], repeats: int) -> None:
    print("\nsums of parts")
    if not kernels.supported(device):
        print(f"no kernel is used: {kernels.why_not(device)}")
        return
    made = torch.Generator().manual_seed(models.SEED)
    for width in dict.fromkeys(widths):
        units, wholes = (torch.randn(rows, width, generator=made).to(device) for rows in (2048, 64))
        for n_parts in counts:
            unit, whole = (torch.randint(len(rows), (n_parts,), generator=made).to(device) for rows in (units, wholes))
            arguments = units, torch.rand(n_parts, generator=made).to(device), wholes, unit.sort().values, whole
            before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            fused = _measured(device.type, repeats, lambda arguments=arguments: contributions.scaled_proximity(*arguments))
            with _without_kernel():
                plain = _measured(device.type, repeats, lambda arguments=arguments: contributions.scaled_proximity(*arguments))
            if fused is None or plain is None:
                print(f"{n_parts:>7} parts of width {width} do not fit")
                continue
            read = n_parts * 2 * width * 4 / fused[0] / 1e9
            print(
                f"{n_parts:>7} parts of width {width}: plain {1000 * plain[0]:9.3f} ms, kernel {1000 * fused[0]:9.3f} ms: "
                f"{fused[0] / plain[0]:5.2f} ({read:.0f} GB/s read)   "
                f"beside them {max(plain[1] - before, 0) / 2**20:.1f} -> {max(fused[1] - before, 0) / 2**20:.1f} MiB"
            )


@contextlib.contextmanager
def _without_kernel() -> Iterator[None]:
    devices, kernels.DEVICES = kernels.DEVICES, ()
    try:
        yield
    finally:
        kernels.DEVICES = devices


def _plain(shape: str, device: str, n_tokens: int, repeats: int) -> tuple[float, float] | None:
    model = _build(shape, device, n_tokens, "sdpa")
    batch = torch.tensor([models.prompt(n_tokens, model.config.vocab_size)], device=device)

    def forward() -> None:
        with torch.inference_mode():
            model(batch, use_cache=False, logits_to_keep=1)

    return _measured(device, repeats, forward)


def _build(shape: str, device: str, n_positions: int, attention: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    family, options = SHAPES[shape]
    torch.manual_seed(models.SEED)
    config = AutoConfig.for_model(family, **options, max_position_embeddings=max(n_positions, 64))
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention).eval().requires_grad_(False)


def _measured(device: str, repeats: int, work: Callable[[], Any]) -> tuple[float, float] | None:
    """Median seconds and peak bytes; None where it does not fit."""
    seconds = []
    try:
        for _ in range(repeats + 1):
            gc.collect()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    except (torch.OutOfMemoryError, OutOfMemoryError):
        _empty(device)
        return None
    # The first round warms up and does not count.
    return statistics.median(seconds[1:]), float(torch.cuda.max_memory_allocated()) if device == "cuda" else 0.0


def _current(device: str) -> torch.device:
    """As tensors made there name it."""
    return torch.empty(0, device=device).device


def _empty(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
