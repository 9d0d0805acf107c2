"""Fidelity and diversity apart: neighbours, the Vendi score, likeness of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.augmentation.intervals import WIDENED, no_narrower_than_wilson
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.distribution import distances
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
Members = NDArray[np.bool_]
REACH = 25
"""Times k: how many neighbours of a study are looked at for the k-th within a half-sample."""
AXES = 256
"""Wider features are projected to so many principal axes before a Vendi score is worked out."""


def prdc(real: Array, synthetic: Array, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage by k-nearest-neighbour balls.

    Density may exceed 1. Coverage of one real set by another is below 1 (about 1 - 2^-k at equal
    number), so read it beside its floor.

    Source: Naeem et al. 2020, arXiv:2002.09797; Kynkaanniemi et al. 2019, arXiv:1904.06991.
    """
    everyone = np.ones((1, len(real)), dtype=bool), np.ones((1, len(synthetic)), dtype=bool)
    found = ball_shares(real, synthetic, k, *everyone)
    return {name: float(values[0]) for name, values in found.items()}


def ball_shares(
    real: Array, synthetic: Array, k: int, in_a: Members, in_b: Members
) -> dict[str, Array]:
    """Precision, recall, density and coverage for the members of every draw, (draws,).

    The first draw is of everyone. In a half-sample the ball of k / 2 neighbours is as large as that
    of k in the whole, which precision, recall and density rest on; coverage rests on k itself.
    """
    count_a, count_b = in_a.sum(axis=1), in_b.sum(axis=1)
    whole = np.maximum(np.minimum(k, np.minimum(count_a, count_b) - 1), 1)
    halved = np.where(np.arange(len(whole)) > 0, -(-whole // 2), whole)
    radius, far = _radii(real, in_a, [halved, whole])
    (theirs,) = _radii(synthetic, in_b, [halved])
    caught = np.zeros(in_b.shape, dtype=bool)
    pairs, recalled, covered = (np.zeros(len(in_a)) for _ in range(3))
    for part in blocks(len(real)):
        apart = distances(real[part], synthetic).astype(np.float32)
        for draw, columns in enumerate(map(np.flatnonzero, in_b)):
            rows = np.flatnonzero(in_a[draw, part])
            near = apart[rows].take(columns, axis=1)
            inside = near <= radius[draw, part][rows, None]
            caught[draw, columns] |= inside.any(axis=0)
            pairs[draw] += np.count_nonzero(inside)
            recalled[draw] += (near <= theirs[draw, columns]).any(axis=1).sum()
            covered[draw] += (near.min(axis=1) <= far[draw, part][rows]).sum()
    return {
        "precision": caught.sum(axis=1) / count_b,
        "recall": recalled / count_a,
        "density": pairs / (halved * count_b),
        "coverage": covered / count_a,
    }


def _radii(
    rows: Array, members: Members, ks: Sequence[NDArray[np.intp]]
) -> list[NDArray[np.float32]]:
    """Distances from every study to the k-th nearest other member, (draws, n), for each of `ks`.

    In single precision, as `ball_shares` compares them: half the memory to pass through a draw.

    Only the nearest `REACH` times k others are looked at: should a half-sample hold fewer than k
    of them, the farthest of them sets the radius.
    """
    most = min(len(rows) - 1, REACH * int(max(k.max() for k in ks)))
    found = [np.zeros(members.shape, dtype=np.float32) for _ in ks]
    for part in blocks(len(rows)):
        apart = distances(rows[part], rows)
        np.fill_diagonal(apart[:, part], np.inf)
        nearest = np.argpartition(apart, most - 1, axis=1)[:, :most]
        near = np.take_along_axis(apart, nearest, axis=1)
        order = near.argsort(axis=1)
        near, nearest = (np.take_along_axis(x, order, axis=1) for x in (near, nearest))
        for draw, inside in enumerate(members):
            passed = inside[nearest].cumsum(axis=1)
            for k, radius in zip(ks, found, strict=True):
                reached = passed >= k[draw]
                place = np.where(reached[:, -1], reached.argmax(axis=1), most - 1)
                radius[draw, part] = np.take_along_axis(near, place[:, None], axis=1)[:, 0]
    return found


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
        measures = ball_shares(real.rows, other.rows, self.k, *memberships(real, other))
        found: dict[str, Estimate] = {}
        for name, (value, *draws) in measures.items():
            spread = np.array(draws)
            estimate = estimate_from(float(value), spread, real, higher=True, bounds=(0.0, np.inf))
            found[name] = estimate if name == "density" else as_share(estimate, real)
        return found


def as_share(estimate: Estimate, side: Features) -> Estimate:
    """The estimate of a share, none of whose few studies may have shown the other case."""
    ends = (estimate.low, min(1.0, estimate.high))
    low, high = no_narrower_than_wilson(ends, estimate.value, len(set(side.patients)))
    return replace(estimate, low=low, high=high, method=estimate.method + WIDENED)


@register("metric", "vendi")
class Vendi(FeatureMetric):
    """Effective number of different synthetic studies, over that of as many real ones.

    Features are first centred on the real training studies: raw ones all point the same way. Those
    wider than 256 are projected to the leading 256 principal axes of real training features.
    """

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The ratio of synthetic studies, and of other real ones."""
        found = super().measure(comparison)
        wide = comparison.features("taught", self.extractor).shape[1] > AXES
        kept = f", at most {AXES} principal axes of real training features" if wide else ""
        return {name: replace(e, extractor=e.extractor + kept) for name, e in found.items()}

    def fit(self, train: Callable[[], Array]) -> tuple[Array, Array | None]:
        """The mean of training features, and their leading axes where they are wide."""
        rows = train()
        return principal_axes(rows, AXES) if rows.shape[1] > AXES else (rows.mean(axis=0), None)

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The ratio of the Vendi scores of two sets."""
        mean, axes = fitted
        a, b = (
            side.rows - mean if axes is None else (side.rows - mean) @ axes
            for side in (real, other)
        )
        draws = [vendi(b[j]) / vendi(a[i]) for i, j in half_pairs(real, other)]
        value = vendi(b) / vendi(a)
        bounds = (0.0, np.inf)
        spread = np.array(draws)
        return {
            "vendi_ratio": estimate_from(
                value, spread, real, higher=None, bounds=bounds, unit="ratio"
            )
        }
