"""Fidelity and diversity apart: neighbours, the Vendi score, likeness of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.evaluation.distribution import distances
from medgen.evaluation.feature_metric import FeatureMetric, Features, estimate_from, half_pairs
from medgen.registry import register
from medgen.types import Estimate

Array = NDArray[np.float64]


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


def vendi(rows: Array) -> float:
    """The effective number of different studies: exp of the entropy of a similarity's eigenvalues.

    n studies at right angles to each other count n, n equal ones count 1. The similarity is the
    cosine of features (n d).

    Source: Friedman and Dieng 2023, arXiv:2210.02410.
    """
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
    gram = unit.T @ unit if rows.shape[1] < len(rows) else unit @ unit.T
    values = np.linalg.eigvalsh(gram / len(rows))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


@register("metric", "prdc")
class Prdc(FeatureMetric):
    """Precision, recall, density and coverage.

    Args:
        k: neighbours that set the radius of a ball.
        count: studies a side, at most; None takes what there is.
        extractor: None is the evaluation's own.
    """

    def __init__(self, k: int = 5, count: int | None = None, extractor: str | None = None) -> None:
        super().__init__(count, extractor)
        self.k = k

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The four shares of two sets."""
        near_a, near_b = distances(real.rows, real.rows), distances(other.rows, other.rows)
        across = distances(real.rows, other.rows)
        draws = [
            _prdc(near_a[np.ix_(i, i)], near_b[np.ix_(j, j)], across[np.ix_(i, j)], self.k)
            for i, j in half_pairs(real, other)
        ]
        found: dict[str, Estimate] = {}
        for name, value in _prdc(near_a, near_b, across, self.k).items():
            spread = np.array([draw[name] for draw in draws])
            bounds = (0.0, np.inf if name == "density" else 1.0)
            found[name] = estimate_from(value, spread, real, higher=True, bounds=bounds)
        return found


@register("metric", "vendi")
class Vendi(FeatureMetric):
    """Effective number of different synthetic studies, over that of as many real ones.

    Features are first centred on the real training studies: raw ones all point the same way.
    """

    def fit(self, train: Callable[[], Array]) -> Array:
        """The mean of training features."""
        return train().mean(axis=0)

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The ratio of the Vendi scores of two sets."""
        a, b = real.rows - fitted, other.rows - fitted
        draws = [vendi(b[j]) / vendi(a[i]) for i, j in half_pairs(real, other)]
        value = vendi(b) / vendi(a)
        bounds = (0.0, np.inf)
        spread = np.array(draws)
        return {
            "vendi_ratio": estimate_from(
                value, spread, real, higher=None, bounds=bounds, unit="ratio"
            )
        }
