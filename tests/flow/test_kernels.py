"""The fused kernel gives the proximities that their definition gives; it compiles for GPUs, and is not used where it cannot be proven."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_tt.flow import contributions, kernels

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
#: Plain; attention whose output passes a norm, which makes factors; heads behind a gate, whose parts are each target's own
CHECKPOINTS = ("llama", "gemma2", "afmoe")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed (it is where torch is built for CUDA, and on x86-64 Linux in CI)",
)


def sums() -> dict[str, tuple[Any, ...]]:
    """Arguments of `scaled_proximity`, by what is particular about them."""
    made = torch.Generator().manual_seed(5)

    def case(width: int, n_parts: int = 40, n_units: int = 9, n_wholes: int = 4, factors: bool = False) -> list[Any]:
        wholes = torch.randn(n_wholes, width, generator=made)
        wholes[:, 1::3], wholes[0, 1::6] = 0.0, -0.0
        # Every unit points the way of one of the wholes, and half the parts are compared with that one.
        units = wholes[torch.arange(n_units) % n_wholes] + torch.randn(n_units, width, generator=made) / 3
        unit, whole = (torch.randint(rows, (n_parts,), generator=made) for rows in (n_units, n_wholes))
        whole[::2] = unit[::2] % n_wholes
        scales = torch.rand(n_parts, generator=made)
        return [units, scales, wholes, unit, whole, 1 + torch.randn(n_wholes, width, generator=made) / 4 if factors else None]

    found: dict[str, tuple[Any, ...]] = {}
    for width in (1, 2, 5, 64, 333, 1024, 1500):
        for factors in (False, True):
            found[f"width {width}{', factors' if factors else ''}"] = tuple(case(width, factors=factors))
    found["no parts"] = tuple(case(64, n_parts=0))
    found["one part"] = tuple(case(65, n_parts=1, factors=True))
    units, scales, *rest = case(96, factors=True)
    found["half precision"] = (units.bfloat16(), scales.bfloat16(), *(each.half() if each.is_floating_point() else each for each in rest))
    units, *rest = case(96)
    found["columns apart"] = (units.T.contiguous().T, *rest)
    units, scales, wholes, *rest = case(96)
    found["rows apart"] = (units[:, 3:70], scales, wholes[:, 3:70], *rest)
    units, scales, wholes, unit, whole, _ = case(96)
    found["one whole for all"] = (units, scales, wholes[:1].expand(4, -1), unit, whole, torch.ones(1, 96).expand(4, -1))
    found["every other index"] = (units, scales[::2], wholes, unit[::2], whole[::2], None)
    found["32-bit indices"] = (units, scales, wholes, unit.int(), whole.int(), None)
    found["larger parts"] = (3 * units, scales, wholes, unit, whole, None)
    return found


def by_definition(units: Tensor, scales: Tensor, wholes: Tensor, unit: Tensor, whole: Tensor, factors: Tensor | None) -> Tensor:
    """max(0, ||x||_1 - ||x - p||_1) in float64."""
    x, parts = wholes.double()[whole], scales.double()[:, None] * units.double()[unit]
    if factors is not None:
        parts = parts * factors.double()[whole]
    return (x.abs().sum(-1) - (x - parts).abs().sum(-1)).clamp(min=0)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kernel")
    requests, found = folder / "requests.pt", folder / "answers.pt"
    torch.save({"sums": sums(), "checkpoints": [str(checkpoint(name)) for name in CHECKPOINTS], "n_tokens": 9}, requests)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kernel_runs.py")), str(requests), str(found)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    return torch.load(found)


@needs_triton
def test_the_proof_accepts_the_kernel(answers: dict[str, Any]) -> None:
    assert answers["why_not"] is None


@needs_triton
@pytest.mark.parametrize("name", sums())
def test_the_kernel_gives_what_the_definition_gives(name: str, answers: dict[str, Any]) -> None:
    arguments = sums()[name]
    actual, expected = answers["sums"][name], by_definition(*arguments)
    assert (actual.shape, actual.dtype) == (expected.shape, arguments[1].dtype)
    if len(expected):
        assert expected.max() > 0
        rounding = 2 * torch.finfo(actual.dtype).eps if actual.dtype != torch.float32 else 1e-6
        assert float((actual.double() - expected).abs().max()) <= rounding * float(expected.max())


@pytest.mark.parametrize("name", [name for name in sums() if name != "half precision"])
def test_the_plain_version_gives_what_the_definition_gives(name: str) -> None:
    """The reference of the kernel, on what the kernel is tested with."""
    actual, expected = contributions.scaled_proximity(*sums()[name]), by_definition(*sums()[name])
    assert torch.allclose(actual.double(), expected, rtol=0, atol=1e-6 * float(expected.max()) if len(expected) else 0)


@needs_triton
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_routes_and_neurons_are_the_same_with_the_kernel(name: str, answers: dict[str, Any]) -> None:
    found = answers["checkpoints"][CHECKPOINTS.index(name)]
    with_kernel, without = found["with"], found["without"]
    assert found["summed"] > 100
    assert with_kernel["edges"].keys() == without["edges"].keys()
    assert len(without["edges"]) > 20
    for edge, numbers in without["edges"].items():
        assert with_kernel["edges"][edge] == pytest.approx(numbers, abs=1e-5), edge
    assert float(without["neurons"].max()) > 0
    assert torch.allclose(with_kernel["neurons"], without["neurons"], rtol=0, atol=1e-6)


@needs_triton
@pytest.mark.parametrize("capability", [75, 80, 90, 100])
def test_it_compiles_for_gpus(capability: int, tmp_path: Path) -> None:
    """In a process of its own: Triton may have been imported as an interpreter here."""
    script = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llm_tt.flow.triton_kernels import scaled_proximity
types = dict.fromkeys(["units", "scales", "wholes", "factors", "result"], "*fp32") | dict.fromkeys(["unit", "whole"], "*i32")
types |= dict.fromkeys(["unit_stride", "whole_stride", "factor_stride", "width"], "i32") | dict.fromkeys(["HAS_FACTORS", "BLOCK"], "constexpr")
source = ASTSource(scaled_proximity, types, {"HAS_FACTORS": True, "BLOCK": 1024})
made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
assert len(made.asm["cubin"]) > 1000
products = [line.rpartition(": ")[2].split()[0] for line in made.asm["ttir"].splitlines() if "arith.muli" in line]
print(products)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(capability)],
        env={**environment, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
    # Rows times strides, of units, wholes and factors: in 64 bits, although rows and strides come in 32.
    assert ran.stdout.strip() == str(["i64", "i64", "i64"])


# --- where it is not used


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if Triton compiled for CPUs, with a kernel whose module can be imported."""
    kernels._why_not.cache_clear()
    monkeypatch.setattr(kernels, "DEVICES", ("cpu",))
    monkeypatch.setitem(sys.modules, "llm_tt.flow.triton_kernels", sys)
    yield
    kernels._why_not.cache_clear()


def test_a_cpu_has_no_kernel() -> None:
    assert not kernels.supported(CPU)
    assert kernels.why_not(CPU) == "cpu runs no Triton kernels"


def test_without_triton_there_is_no_kernel(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llm_tt.flow.triton_kernels")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not kernels.supported(CPU)
    assert (kernels.why_not(CPU) or "").startswith("triton cannot be imported (import of triton halted")


def test_a_kernel_that_is_right_is_used(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def right(*arguments: Any) -> Tensor:
        asked.append(len(arguments[1]))
        return by_definition(*arguments).float()

    monkeypatch.setattr(kernels, "scaled_proximity", right)
    assert kernels.supported(CPU)
    proven = len(asked)
    assert proven > 1
    case = sums()["width 64, factors"]
    assert torch.equal(contributions.scaled_proximity(*case), by_definition(*case).float())
    assert asked[proven:] == [40]


@pytest.mark.parametrize("factor", [1 + 2e-5, 0.0, torch.nan])
def test_a_kernel_that_is_wrong_is_not_used(factor: float, on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "scaled_proximity", lambda *arguments: factor * by_definition(*arguments).float())
    assert not kernels.supported(CPU)
    assert (kernels.why_not(CPU) or "").startswith("the kernel is off by ")
    case = sums()["width 64"]
    assert torch.allclose(contributions.scaled_proximity(*case).double(), by_definition(*case), atol=1e-4)


def test_a_kernel_that_fails_with_factors_is_not_used(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> Tensor:
        if arguments[-1] is not None:
            raise RuntimeError("\nno C compiler was found.\nmore")
        return by_definition(*arguments).float()

    monkeypatch.setattr(kernels, "scaled_proximity", failing)
    assert kernels.why_not(CPU) == "the kernel does not run there (no C compiler was found)"


def test_a_proof_that_found_no_memory_is_made_again(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as full:
        full.setattr(kernels, "scaled_proximity", exhausted)
        with pytest.raises(torch.OutOfMemoryError):
            kernels.supported(CPU)
    monkeypatch.setattr(kernels, "scaled_proximity", lambda *arguments: by_definition(*arguments).float())
    assert kernels.supported(CPU)


def test_pieces_fill_a_cache_on_a_cpu_and_memory_elsewhere() -> None:
    assert contributions._rows_at_a_time(256, torch.empty(1, 4096)) == 256
    assert contributions._rows_at_a_time(256, torch.empty(1, 4096, device="meta")) == 2**26 // (4 * 4096)
    assert contributions._rows_at_a_time(256, torch.empty(1, 10**6, device="meta")) == 256
