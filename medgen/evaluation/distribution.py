"""How far synthetic studies are from real ones as a whole: Frechet distance, KID, PRDC.

All of them hold real held-out studies against synthetic ones at equal number, and against real
studies of other patients at that same number: the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medgen.augmentation.intervals import centred_interval, half_samples
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.features import principal_axes
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.types import Estimate

Array = NDArray[np.float64]
AXES = 64
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
    return _prdc(
        distances(real, real), distances(synthetic, synthetic), distances(real, synthetic), k
    )


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


@register("metric", "frechet")
class Frechet:
    """Frechet distance, after projection to at most 64 principal axes of real training features.

    A covariance of d features needs far more than d studies, hence the projection.

    Args:
        count: studies a side, at most; None takes what there is.
        extractor: None is the evaluation's own.
    """

    needs = ""

    def __init__(self, count: int | None = None, extractor: str | None = None) -> None:
        self.count = count
        self.extractor = extractor

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The distance alone, with an extractor of its own."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The distance of held-out real and synthetic studies."""
        mean, axes = principal_axes(comparison.features("train", self.extractor), AXES)

        def estimate(a: Features, b: Features) -> dict[str, Estimate]:
            a, b = a.map(lambda x: (x - mean) @ axes), b.map(lambda x: (x - mean) @ axes)
            draws = [frechet_distance(a.rows[i], b.rows[j]) for i, j in _half_pairs(a, b)]
            value = frechet_distance(a.rows, b.rows)
            low, high = centred_interval(value, np.array(draws))
            note = f"biased upward at {len(a.rows)} studies: compare with the floor only"
            return {"frechet": _estimate(value, max(0.0, low), high, a, False, note)}

        found = with_floor(comparison, self.count, self.extractor, estimate)
        kept = f", {axes.shape[1]} principal axes of real training features"
        return {name: replace(e, extractor=e.extractor + kept) for name, e in found.items()}


@register("metric", "kid")
class Kid:
    """Kernel distance: unbiased, so fit for few studies; about 0 for equal distributions.

    Args:
        count: studies a side, at most; None takes what there is.
        extractor: None is the evaluation's own.
    """

    needs = ""

    def __init__(self, count: int | None = None, extractor: str | None = None) -> None:
        self.count = count
        self.extractor = extractor

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The distance alone, with an extractor of its own."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The distance of held-out real and synthetic studies."""

        def estimate(a: Features, b: Features) -> dict[str, Estimate]:
            kernels = _kernels(a.rows, b.rows)
            pairs = _half_pairs(a, b)
            in_a, in_b = np.zeros((DRAWS, len(a.rows))), np.zeros((DRAWS, len(b.rows)))
            for draw, (first, second) in enumerate(pairs):
                in_a[draw, first], in_b[draw, second] = 1, 1
            value = kid(a.rows, b.rows)
            low, high = centred_interval(value, _discrepancy(kernels, in_a, in_b))
            return {"kid": _estimate(value, low, high, a, False)}

        return with_floor(comparison, self.count, self.extractor, estimate)


@register("metric", "prdc")
class Prdc:
    """Precision, recall, density and coverage.

    Args:
        k: neighbours that set the radius of a ball.
        count: studies a side, at most; None takes what there is.
        extractor: None is the evaluation's own.
    """

    needs = ""

    def __init__(self, k: int = 5, count: int | None = None, extractor: str | None = None) -> None:
        self.k = k
        self.count = count
        self.extractor = extractor

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The four shares alone, with an extractor of their own."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The four shares of held-out real and synthetic studies."""

        def estimate(a: Features, b: Features) -> dict[str, Estimate]:
            near_a, near_b = distances(a.rows, a.rows), distances(b.rows, b.rows)
            between = distances(a.rows, b.rows)
            draws = [
                _prdc(near_a[np.ix_(i, i)], near_b[np.ix_(j, j)], between[np.ix_(i, j)], self.k)
                for i, j in _half_pairs(a, b)
            ]
            found: dict[str, Estimate] = {}
            for name, value in _prdc(near_a, near_b, between, self.k).items():
                low, high = centred_interval(value, np.array([draw[name] for draw in draws]))
                top = np.inf if name == "density" else 1.0
                found[name] = _estimate(value, max(0.0, low), min(top, high), a, True)
            return found

        return with_floor(comparison, self.count, self.extractor, estimate)


@dataclass(frozen=True)
class Features:
    """Features of studies (n d), and whom they are of."""

    rows: Array
    patients: Sequence[str]

    def map(self, change: Callable[[Array], Array]) -> Features:
        """The same studies with changed features."""
        return Features(change(self.rows), self.patients)


def with_floor(
    comparison: Comparison,
    count: int | None,
    extractor: str | None,
    estimate: Callable[[Features, Features], dict[str, Estimate]],
) -> dict[str, Estimate]:
    """Estimates of held-out real against synthetic, and as floor against other real studies."""
    sides: list[Features] = []
    for which in ("heldout", "synthetic", "second"):
        rows, patients = comparison.equal_features(which, extractor)
        sides.append(Features(rows[:count], patients[:count]))
    held, drawn, other = sides
    name = comparison.extractor(extractor).name
    found = {key: replace(e, extractor=name) for key, e in estimate(held, drawn).items()}
    floors = {key: replace(e, extractor=name) for key, e in estimate(held, other).items()}
    return {key: replace(e, floor=floors[key]) for key, e in found.items()}


def _half_pairs(a: Features, b: Features) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs of half-samples of equal number; the studies stand in random order."""
    mine = half_samples(a.patients, DRAWS, seed=1)
    theirs = half_samples(b.patients, DRAWS, seed=2)
    counts = [min(len(i), len(j)) for i, j in zip(mine, theirs, strict=True)]
    return [(i[:c], j[:c]) for i, j, c in zip(mine, theirs, counts, strict=True)]


def _estimate(
    value: float, low: float, high: float, side: Features, higher: bool, note: str = ""
) -> Estimate:
    few = len(side.rows)
    small = f"only {few} studies a side" if few < SMALL else ""
    return Estimate(
        value=value,
        low=low,
        high=high,
        n=few,
        higher_is_better=higher,
        method=HALF_SAMPLING,
        warning="; ".join(part for part in (small, note) if part),
    )
