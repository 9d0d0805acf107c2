"""How far synthetic studies are from real ones as a whole: Frechet distance, KID, PRDC.

All of them hold real held-out studies against synthetic ones at equal number, and against real
studies of other patients at that same number: the floor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medgen.augmentation.intervals import centred_interval, half_samples
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.features import principal_axes
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.rng import derive
from medgen.types import Estimate

Array = NDArray[np.float64]
DRAWS = 100
SMALL = 200
"""Below so many studies a side a warning is given."""
HALF_SAMPLING = f"half-sampling of patients without replacement, {DRAWS} draws"


def frechet_distance(a: Array, b: Array) -> float:
    """Squared Frechet distance of two Gaussians fitted to features (n, d).

    |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). Biased upward by about c / n, so only
    distances at equal n compare.

    Source: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    mean = a.mean(axis=0) - b.mean(axis=0)
    first, second = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    values, axes = np.linalg.eigh(first)
    root = (axes * np.sqrt(values.clip(min=0))) @ axes.T
    middle = np.linalg.eigvalsh(root @ second @ root)
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(middle.clip(min=0)).sum()
    return float(mean @ mean + trace)


def kid(a: Array, b: Array) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3.

    It may be negative; that is not an error.

    Source: Binkowski et al. 2018, arXiv:1801.01401, section 3.
    """
    kernels = _kernels(a, b)
    return float(_discrepancy(kernels, np.ones((1, len(a))), np.ones((1, len(b))))[0])


def _kernels(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Kernels within a, within b (diagonals left out) and between them."""
    width = a.shape[1]
    within_a, within_b = (a @ a.T / width + 1) ** 3, (b @ b.T / width + 1) ** 3
    np.fill_diagonal(within_a, 0)
    np.fill_diagonal(within_b, 0)
    return within_a, within_b, (a @ b.T / width + 1) ** 3


def _discrepancy(kernels: tuple[Array, Array, Array], in_a: Array, in_b: Array) -> Array:
    """The discrepancy for rows of 0/1 membership (draws, n)."""
    within_a, within_b, between = kernels
    count_a, count_b = in_a.sum(axis=1), in_b.sum(axis=1)
    first = ((in_a @ within_a) * in_a).sum(axis=1) / (count_a * (count_a - 1))
    second = ((in_b @ within_b) * in_b).sum(axis=1) / (count_b * (count_b - 1))
    return first + second - 2 * ((in_a @ between) * in_b).sum(axis=1) / (count_a * count_b)


def distances(a: Array, b: Array) -> Array:
    """Euclidean distances between rows, (len(a), len(b))."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(squared.clip(min=0))


def prdc(real: Array, synthetic: Array, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage by k-nearest-neighbour balls.

    Density may exceed 1. Coverage of one real set by another is below 1 (about 1 - 2^-k at equal
    number), so read it beside its floor.

    Source: Naeem et al. 2020, arXiv:2002.09797; Kynkaanniemi et al. 2019, arXiv:1904.06991.
    """
    return _prdc(distances(real, real), distances(synthetic, synthetic), distances(real, synthetic), k)


def _prdc(real: Array, synthetic: Array, between: Array, k: int) -> dict[str, float]:
    """The same from distances; between is (real, synthetic)."""
    k = min(k, len(real) - 1, len(synthetic) - 1)
    real_radius = np.partition(real, k, axis=1)[:, k]
    synthetic_radius = np.partition(synthetic, k, axis=1)[:, k]
    inside = between <= real_radius[:, None]
    return {
        "precision": float(inside.any(axis=0).mean()),
        "recall": float((between <= synthetic_radius[None]).any(axis=1).mean()),
        "density": float(inside.sum(axis=0).mean() / k),
        "coverage": float(inside.any(axis=1).mean()),
    }


class _Distribution:
    """What the metrics of this file share.

    Args:
        count: studies a side, at most; None takes what there is.
        extractor: None is the evaluation's own.
        seed: of the half-samples.
    """

    needs = ""

    def __init__(
        self, count: int | None = None, extractor: str | None = None, seed: int = 0
    ) -> None:
        self.count = count
        self.extractor = extractor
        self.seed = seed

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """Estimates of this metric alone, with an extractor of its own."""
        return self.measure(Comparison(real, synthetic, seed=self.seed))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """Estimates, each with the real-vs-real floor at the same number of studies."""
        raise NotImplementedError

    def _sides(self, comparison: Comparison) -> list[tuple[Array, list[str]]]:
        """Features and patients of held-out, synthetic and other real studies."""
        sides = [
            comparison.equal_features(which, self.extractor)
            for which in ("heldout", "synthetic", "second")
        ]
        count = min(self.count or len(sides[0][0]), len(sides[0][0]))
        return [(rows[:count], patients[:count]) for rows, patients in sides]

    def _halves(
        self, first: list[str], second: list[str]
    ) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Pairs of half-samples of equal number."""
        mine = half_samples(first, DRAWS, seed=derive(self.seed, "first"))
        theirs = half_samples(second, DRAWS, seed=derive(self.seed, "second"))
        counts = [min(len(a), len(b)) for a, b in zip(mine, theirs, strict=True)]
        return [(a[:c], b[:c]) for a, b, c in zip(mine, theirs, counts, strict=True)]
