"""What a radiologist would call exposure and sharpness: intensities and the power spectrum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.evaluation.feature_metric import FeatureMetric, Features, estimate_from, half_pairs
from medgen.registry import register
from medgen.types import Estimate

Array = NDArray[np.float64]


def intensity_distance(a: Array, b: Array) -> float:
    """Wasserstein-1 distance of pooled intensities, as a share of the range, from histograms.

    Args:
        a: share of pixels in equal parts of the range, a study a row (n levels).
        b: the same of other studies (m levels).
    """
    return float(np.abs(np.cumsum(a.mean(axis=0) - b.mean(axis=0))).sum() / a.shape[1])


def spectrum_distance(a: Array, b: Array) -> float:
    """Mean over rings of spatial frequency of |10 log10 (mean power ratio)|, in dB.

    Args:
        a: power in rings, a study a row (n rings).
        b: the same of other studies (m rings).
    """
    ratio = b.mean(axis=0).clip(min=1e-12) / a.mean(axis=0).clip(min=1e-12)
    return float(np.abs(10 * np.log10(ratio)).mean())


@register("metric", "intensity")
class Intensity(FeatureMetric):
    """How far intensities are off, as a share of the range: 0.01 is one grey level in a hundred.

    Args:
        count: studies a side, at most; None takes what there is.
    """

    def __init__(self, count: int | None = None) -> None:
        super().__init__(count, "histogram")

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The distance of two sets."""
        return {"intensity_distance": _estimate(intensity_distance, real, other, "of the range")}


@register("metric", "spectrum")
class Spectrum(FeatureMetric):
    """How far the power spectrum is off: blur lowers its end, left-over noise raises it.

    Args:
        count: studies a side, at most; None takes what there is.
    """

    def __init__(self, count: int | None = None) -> None:
        super().__init__(count, "spectrum")

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The distance of two sets."""
        return {"spectrum_distance": _estimate(spectrum_distance, real, other, "dB")}


def _estimate(
    distance: Callable[[Array, Array], float], real: Features, other: Features, unit: str
) -> Estimate:
    draws = [distance(real.rows[i], other.rows[j]) for i, j in half_pairs(real, other)]
    value = distance(real.rows, other.rows)
    bounds = (0.0, np.inf)
    return estimate_from(value, np.array(draws), real, higher=False, bounds=bounds, unit=unit)
