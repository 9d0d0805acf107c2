"""How far synthetic studies are from real ones as a whole: Frechet distance, kernel distances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.evaluation.comparison import Comparison
from medgen.evaluation.feature_metric import (
    FeatureMetric,
    Features,
    blocks,
    estimate_from,
    half_pairs,
    memberships,
)
from medgen.evaluation.features import principal_axes
from medgen.registry import register
from medgen.types import Estimate

Array = NDArray[np.float64]
AXES = 64
SIZES = 15
"""Numbers of studies from which the distance at infinitely many is extrapolated."""
LARGE = 5_000
"""Below so many studies a side an extrapolation is unsteady."""


def frechet_distance(a: Array, b: Array) -> float:
    """Squared Frechet distance of two Gaussians fitted to features (n, d).

    |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). Biased upward by about c / n, so only
    distances at equal n compare.

    Source: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    mean = a.mean(axis=0) - b.mean(axis=0)
    first, second = _covariance(a), _covariance(b)
    values, axes = np.linalg.eigh(first)
    root = (axes * np.sqrt(values.clip(min=0))) @ axes.T
    middle = np.linalg.eigvalsh(root @ second @ root)
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(middle.clip(min=0)).sum()
    return float(mean @ mean + trace)


def _covariance(rows: Array) -> Array:
    apart = rows - rows.mean(axis=0)
    return apart.T @ apart / (len(rows) - 1)


def kid(a: Array, b: Array) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3.

    It may be negative; that is not an error.

    Source: Binkowski et al. 2018, arXiv:1801.01401, section 3.
    """
    return _whole(a, b, _cubic)


def mmd(a: Array, b: Array, width: float) -> float:
    """Unbiased squared maximum mean discrepancy under exp(-|x - y|^2 / (2 width^2)).

    The kernel is bounded, so no single study decides; it sees any difference of distributions.

    Source: Gretton et al. 2012, JMLR 13, lemma 6; with image features Jayasumana et al. 2024,
    arXiv:2401.09603.
    """
    return _whole(a, b, _gaussian(width))


def frechet_at_infinity(a: Array, b: Array, *, seed: int = 0) -> float:
    """The Frechet distance that infinitely many studies would give: without its first bias.

    Distances of random subsets of 15 sizes, from a tenth to all, are fitted by c + d / n; c it is.
    It may be slightly negative.

    Source: Chong and Forsyth 2020, arXiv:1911.07023.
    """
    rng = np.random.default_rng(seed)
    most = min(len(a), len(b))
    sizes = np.unique(np.linspace(max(2, most // 10), most, SIZES).round().astype(int))
    found = [
        frechet_distance(
            a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)]
        )
        for size in sizes
    ]
    return float(np.polyfit(1 / sizes, found, 1)[1]) if len(sizes) > 1 else found[0]


def median_distance(rows: Array, most: int = 1_000) -> float:
    """The median distance between rows, at most `most` of them evenly spread; above 0."""
    some = rows[:: max(1, len(rows) // most)][:most]
    apart = distances(some, some)[np.triu_indices(len(some), 1)]
    return max(float(np.median(apart)), 1e-12) if len(apart) else 1.0


Kernel = Callable[[Array, Array], Array]
"""Features (n d) and (m d) to kernel values (n m)."""


def _cubic(a: Array, b: Array) -> Array:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _gaussian(width: float) -> Kernel:
    return lambda a, b: np.exp(np.square(distances(a, b)) / (-2 * width**2))


def _whole(a: Array, b: Array, kernel: Kernel) -> float:
    everyone = np.ones((1, len(a))), np.ones((1, len(b)))
    return float(_discrepancy(a, b, kernel, *everyone)[0])


def _discrepancy(a: Array, b: Array, kernel: Kernel, in_a: Array, in_b: Array) -> Array:
    """The discrepancy of features (n d) and (m d) under 0/1 memberships (draws, n) and (draws, m).

    One study is not held against itself.
    """
    count_a, count_b = in_a.sum(axis=1), in_b.sum(axis=1)
    first = _kernel_sum(a, a, kernel, in_a, in_a, itself=True) / (count_a * (count_a - 1))
    second = _kernel_sum(b, b, kernel, in_b, in_b, itself=True) / (count_b * (count_b - 1))
    between = _kernel_sum(a, b, kernel, in_a, in_b, itself=False) / (count_a * count_b)
    return first + second - 2 * between


def _kernel_sum(
    a: Array, b: Array, kernel: Kernel, in_a: Array, in_b: Array, *, itself: bool
) -> Array:
    """The sum of kernel values over pairs of members, (draws,)."""
    total = np.zeros(len(in_a))
    for part in blocks(len(a)):
        values = kernel(a[part], b)
        if itself:
            np.fill_diagonal(values[:, part], 0)
        total += ((in_b @ values.T) * in_a[:, part]).sum(axis=1)
    return total


def distances(a: Array, b: Array) -> Array:
    """Euclidean distances between rows, (len(a), len(b))."""
    squared = a @ (-2 * b.T)
    squared += (a**2).sum(1)[:, None]
    squared += (b**2).sum(1)
    return np.sqrt(squared.clip(min=0, out=squared), out=squared)


@register("metric", "frechet")
class Frechet(FeatureMetric):
    """Frechet distance, after projection to at most 64 principal axes of real training features.

    A covariance of d features needs far more than d studies, hence the projection. Gives "frechet"
    and, with `infinite`, "frechet_infinite": the distance extrapolated to infinitely many studies.

    Args:
        count: studies a side, at most; None takes what there is.
        extractor: None is the evaluation's own.
        infinite: extrapolate too.
    """

    def __init__(
        self, count: int | None = None, extractor: str | None = None, *, infinite: bool = False
    ) -> None:
        super().__init__(count, extractor)
        self.infinite = infinite

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The distance of held-out real and synthetic studies."""
        found = super().measure(comparison)
        kept = f", at most {AXES} principal axes of real training features"
        return {name: replace(e, extractor=e.extractor + kept) for name, e in found.items()}

    def fit(self, train: Callable[[], Array]) -> tuple[Array, Array]:
        """Mean and leading principal axes of training features."""
        return principal_axes(train(), AXES)

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The distance of two sets."""
        mean, axes = fitted
        a, b = real.map(lambda x: (x - mean) @ axes), other.map(lambda x: (x - mean) @ axes)
        few = len(a.rows)
        biased = f"biased upward at {few} studies: compare with the floor only"
        found = {"frechet": _distance(frechet_distance, a, b, least=0.0, note=biased)}
        if self.infinite:
            note = f"extrapolated from {few} studies: unsteady" if few < LARGE else ""
            found["frechet_infinite"] = _distance(frechet_at_infinity, a, b, note=note)
        return found


def _distance(
    distance: Callable[[Array, Array], float],
    a: Features,
    b: Features,
    *,
    least: float = -np.inf,
    note: str = "",
) -> Estimate:
    draws = np.array([distance(a.rows[i], b.rows[j]) for i, j in half_pairs(a, b)])
    value = distance(a.rows, b.rows)
    return estimate_from(value, draws, a, higher=False, bounds=(least, np.inf), note=note)


class _KernelMetric(FeatureMetric):
    """A distance under the kernel that `fit` gives; all half-samples share its values."""

    name = ""

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The distance of two sets."""
        in_a, in_b = (inside.astype(np.float64) for inside in memberships(real, other))
        value, *draws = _discrepancy(real.rows, other.rows, fitted, in_a, in_b)
        return {self.name: estimate_from(float(value), np.array(draws), real, higher=False)}


@register("metric", "kid")
class Kid(_KernelMetric):
    """Kernel distance: unbiased, so fit for few studies; about 0 for equal distributions."""

    name = "kid"

    def fit(self, train: Callable[[], Array]) -> Kernel:
        """(x.y / d + 1)^3."""
        return _cubic


@register("metric", "mmd")
class Mmd(_KernelMetric):
    """Kernel distance under a Gaussian kernel as wide as real training studies lie apart."""

    name = "mmd"

    def fit(self, train: Callable[[], Array]) -> Kernel:
        """A Gaussian of the median distance between real training features."""
        return _gaussian(median_distance(train()))
