"""Singular values of a change of weights: all of them where that is cheap, else the largest by random projection.

The projection is that of Halko, Martinsson & Tropp 2011 (arXiv 0909.4061) with two power iterations: exact for a change whose rank is below the
number of directions, as a merged LoRA's, and otherwise a lower bound within a few per cent for the largest values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KEPT = 16
"""Singular values that a report keeps"""
EXACT_UP_TO = 512
"""The smaller side of a matrix whose singular values are all computed"""
DIRECTIONS = 128
"""Of the random projection"""
_POWER_ITERATIONS = 2


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one matrix, or of several as one block-diagonal matrix."""

    values: np.ndarray
    """falling, float64"""
    energy: float
    """||dW||_F^2, of all values, whether computed or not"""
    n_above: int | None
    """values above the noise floor; None: more than were computed"""
    complete: bool

    @property
    def top(self) -> np.ndarray:
        return self.values[:KEPT].copy()

    def n_for(self, share: float) -> int | None:
        """How many of the largest values carry this share of the energy; None: more than were computed."""
        if self.energy <= 0:
            return 0
        carried = np.cumsum(self.values**2)
        # A share may be missed by the rounding of the sum itself.
        reached = np.flatnonzero(carried >= share * self.energy * (1 - 1e-9))
        return int(reached[0]) + 1 if len(reached) else None


def of_matrix(matrix: Tensor, noise: float = 0.0) -> Spectrum:
    """`noise`: the largest singular value that rounding alone can make."""
    matrix = matrix.reshape(matrix.shape[0], -1) if matrix.ndim > 1 else matrix.reshape(1, -1)
    energy = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    if energy == 0:
        return Spectrum(np.zeros(0), 0.0, 0, True)
    if min(matrix.shape) <= EXACT_UP_TO:
        return _spectrum(torch.linalg.svdvals(matrix.double()), max(matrix.shape), noise)
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().T
    # A projection that is the same every time: two reports on one pair of files are equal.
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(wide @ torch.randn(wide.shape[1], DIRECTIONS, generator=generator).to(wide)).Q
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(wide @ torch.linalg.qr(wide.T @ basis).Q).Q
    projected = (basis.T @ wide).double()
    # By way of the small Gram matrix, whose rounding in float64 is far below that of the projection in float32.
    values = torch.linalg.eigvalsh(projected @ projected.T).clamp_min(0).sqrt().flip(0)
    floor = max(noise, float(values[0]) * max(matrix.shape) ** 0.5 * torch.finfo(torch.float32).eps)
    above = int((values > floor).sum())
    return Spectrum(values.cpu().numpy(), energy, above if above < len(values) else None, False)


def of_product(left: Tensor, right: Tensor) -> Spectrum:
    """Of left [m, r] @ right [r, n], which is not formed: it may be thousands of times larger than its factors."""
    left, right = left.double(), right.double()
    values = torch.linalg.svdvals(torch.linalg.qr(left).R @ torch.linalg.qr(right.T).R.T)
    return _spectrum(values, max(left.shape[0], right.shape[1]), 0.0)


def together(spectra: Sequence[Spectrum]) -> Spectrum:
    """Of the block-diagonal matrix of several, as of a stack of experts."""
    values = np.sort(np.concatenate([spectrum.values for spectrum in spectra]))[::-1]
    above = [spectrum.n_above for spectrum in spectra]
    total = None if None in above else sum(count for count in above if count is not None)
    energy = sum(spectrum.energy for spectrum in spectra)
    return Spectrum(values, energy, total, all(spectrum.complete for spectrum in spectra))


def rounding_noise(weight_norm: float, shape: Sequence[int], dtype: torch.dtype) -> float:
    """A bound on the largest singular value of what rounding a weight of this norm to `dtype` adds: a matrix of independent errors.

    Errors are uniform within half a unit in the last place, of standard deviation eps |w| / sqrt(12) at most; the largest singular value of a
    random m x n matrix of standard deviation s is about s (sqrt m + sqrt n).
    """
    rows, columns = (shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else (1, shape[0])
    deviation = torch.finfo(dtype).eps / 12**0.5 * weight_norm / max(rows * columns, 1) ** 0.5
    return deviation * (rows**0.5 + columns**0.5)


def _spectrum(values: Tensor, longest: int, noise: float) -> Spectrum:
    found = values.cpu().numpy()
    floor = max(noise, float(found[0]) * longest * np.finfo(np.float64).eps)
    return Spectrum(found, float(np.square(found).sum()), int((found > floor).sum()), True)
