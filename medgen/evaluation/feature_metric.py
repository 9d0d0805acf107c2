"""What metrics of features share: equal numbers, half-sampled intervals, the real-vs-real floor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.augmentation.intervals import centred_interval, half_samples
from medgen.evaluation.comparison import Comparison
from medgen.protocols import Dataset
from medgen.types import Estimate

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
DRAWS = 100
SMALL = 200
"""Below so many studies a side a warning is given."""
BLOCK = 1_000
"""Rows of a matrix of distances or kernels that are held at once: memory grows with n, not n^2."""
HALF_SAMPLING = f"half-sampling of patients without replacement, {DRAWS} draws"


@dataclass(frozen=True)
class Features:
    """Features of studies (n d), and whom they are of."""

    rows: Array
    patients: Sequence[str]

    def map(self, change: Callable[[Array], Array]) -> Features:
        """The same studies with changed features."""
        return Features(change(self.rows), self.patients)


class FeatureMetric(ABC):
    """Holds features of held-out real studies against those of synthetic ones.

    The same is done with real studies of other patients, at equal number: the floor.

    Args:
        count: studies a side, at most; None takes what there is.
        extractor: None is the evaluation's own.
    """

    needs = ""

    def __init__(self, count: int | None = None, extractor: str | None = None) -> None:
        self.count = count
        self.extractor = extractor

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The estimates alone, with an extractor of their own."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The estimates, each with its floor."""
        sides: list[Features] = []
        for which in ("heldout", "synthetic", "second"):
            rows, patients = self.rows(comparison, which)
            sides.append(Features(rows[: self.count], patients[: self.count]))
        held, drawn, other = sides
        name = self.seen_by(comparison)
        fitted = self.fit(lambda: comparison.features("taught", self.extractor))
        found, floors = (
            {key: replace(e, extractor=name) for key, e in self.between(held, b, fitted).items()}
            for b in (drawn, other)
        )
        return {key: replace(e, floor=floors[key]) for key, e in found.items()}

    def rows(self, comparison: Comparison, which: str) -> tuple[Array, list[str]]:
        """What is compared, a study a row, of a side as `equal_features` takes it; their patients.

        Features of the extractor, unless a metric looks at something else.
        """
        return comparison.equal_features(which, self.extractor)

    def seen_by(self, comparison: Comparison) -> str:
        """Name of what made the rows."""
        return comparison.extractor(self.extractor).name

    def fit(self, train: Callable[[], Array]) -> Any:
        """What `between` needs of features (t d) of the training studies that taught the extractor.

        Never of those in the floor: axes fitted on them would show them wider than others.
        """
        return None

    @abstractmethod
    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The estimates of two sets of equal number."""


def half_pairs(a: Features, b: Features) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of half-samples of equal number; the studies stand in random order."""
    mine = half_samples(a.patients, DRAWS, seed=1)
    theirs = half_samples(b.patients, DRAWS, seed=2)
    for i, j in zip(mine, theirs, strict=True):
        count = min(len(i), len(j))
        yield i[:count], j[:count]


def memberships(a: Features, b: Features) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who is in: first everyone, then each pair of half-samples, (1 + draws, n) of both sides."""
    in_a, in_b = (np.zeros((DRAWS + 1, len(side.rows)), dtype=bool) for side in (a, b))
    in_a[0], in_b[0] = True, True
    for draw, (i, j) in enumerate(half_pairs(a, b), start=1):
        in_a[draw, i], in_b[draw, j] = True, True
    return in_a, in_b


def blocks(count: int) -> Iterator[slice]:
    """Slices of at most `BLOCK` that together are `count` rows."""
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def estimate_from(
    value: float,
    draws: Array,
    side: Features,
    *,
    higher: bool | None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    unit: str = "",
    note: str = "",
) -> Estimate:
    """An estimate whose interval is the spread of half-samples.

    Args:
        value: on all studies.
        draws: on half-samples, (draws,).
        side: gives the number of studies.
        higher: whether higher is better; None where neither end is good.
        bounds: of what is possible; the interval is held to them.
        unit: of the value.
        note: a warning.
    """
    low, high = centred_interval(value, draws)
    few = len(side.rows)
    small = f"only {few} studies a side" if few < SMALL else ""
    return Estimate(
        value=value,
        low=max(bounds[0], low),
        high=min(bounds[1], high),
        n=few,
        higher_is_better=higher,
        unit=unit,
        method=HALF_SAMPLING,
        warning="; ".join(part for part in (small, note) if part),
    )
