"""The benchmark for machines with a GPU runs, on a tiny shape, where there is none."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import gpu
from llm_tt.flow import contributions, kernels


def test_it_measures_trace_and_routes_against_the_plain_forward_pass(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--shape", "tiny", "--tokens", "16", "40", "--repeats", "1", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "tiny"
    for n_tokens, line in zip((16, 40), lines[3:], strict=True):
        found = re.fullmatch(r"T = (\d+) +plain +([\d.]+) ms, trace and routes +([\d.]+) ms: +([\d.]+) +peak .* GiB", line)
        assert found, line
        length, plain, ours, ratio = map(float, found.groups())
        assert length == n_tokens
        assert ratio == pytest.approx(ours / plain, rel=0.1)


def test_a_length_that_does_not_fit_is_said_to_be_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu, "extract_routes", exhausted)
    gpu.main(["--shape", "tiny", "--tokens", "16", "--repeats", "1", "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[3:] == ["T = 16     does not fit: trace and routes"]


def test_where_the_kernel_is_used_it_is_measured_against_plain_sums(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def kernel(units: torch.Tensor, scales: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        calls.append(len(scales))
        with gpu._without_kernel():
            return contributions.scaled_proximity(units, scales, *rest)

    monkeypatch.setattr(kernels, "DEVICES", ("cpu",))
    monkeypatch.setattr(kernels, "why_not", lambda device: None)
    monkeypatch.setattr(kernels, "scaled_proximity", kernel)
    gpu.main(["--shape", "tiny", "--tokens", "16", "--parts", "100", "1000", "--repeats", "1", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()[4:]
    assert re.fullmatch(r" +routes alone: plain sums +[\d.]+ ms, kernel +[\d.]+ ms: +[\d.]+", lines[0])
    assert lines[1:3] == ["", "sums of parts"]
    for n_parts, line in zip((100, 1000), lines[3:], strict=True):
        found = re.fullmatch(
            rf" +{n_parts} parts of width 32: plain +([\d.]+) ms, kernel +([\d.]+) ms: +([\d.]+) \(\d+ GB/s read\)   beside them .* MiB",
            line,
        )
        assert found, line
        # The first round warms up and does not count.
        assert calls.count(n_parts) == 2
    assert kernels.DEVICES == ("cpu",)


def test_where_no_kernel_is_used_it_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--shape", "tiny", "--tokens", "16", "--parts", "100", "--repeats", "1", "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[4:] == ["", "sums of parts", "no kernel is used: cpu runs no Triton kernels"]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^There is no CUDA device here; run this on a machine with a GPU\.$"):
        gpu.main(["--shape", "tiny"])
