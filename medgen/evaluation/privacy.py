"""Are samples copies of training studies? Nearest neighbours, judged by held-out real studies.

A Frechet distance cannot see copies: a generator that returns half its training set scores best of
all. So distances to training studies are compared with those of real studies that no one trained
on: a threshold that flags one in twenty of them, and the share of samples that it flags.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medgen.augmentation.intervals import (
    WIDENED,
    no_narrower_than_wilson,
    patient_weights,
    percentile_interval,
)
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.distribution import distances
from medgen.evaluation.features import images_of
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.rng import derive
from medgen.types import Estimate

Array = NDArray[np.float64]
FALSE_ALARMS = 0.05
DRAWS = 1000
CHUNK = 256
BOOTSTRAP = f"bootstrap over patients of the held-out and the audited studies, {DRAWS} draws"
FEW = 100
"""Below so many held-out studies the threshold is uncertain, and a warning says so."""


@dataclass(frozen=True)
class Neighbours:
    """The training studies nearest to each of some studies.

    Args:
        index: the nearest training study, (n,).
        distance: to it, (n,).
        second: distance to the nearest training study of another patient than that one's, (n,).
        flipped: the nearest one was found by mirroring left to right, (n,).
    """

    index: NDArray[np.intp]
    distance: Array
    second: Array
    flipped: NDArray[np.bool_]


def nearest(rows: Array, mirrored: Array, train: Array, patients: NDArray[np.intp]) -> Neighbours:
    """Nearest training studies, whichever way round.

    Args:
        rows: features of the studies (n d).
        mirrored: features of the same studies, mirrored left to right (n d).
        train: features of the training studies (t d).
        patients: number of the patient of each training study (t,).
    """
    parts: list[tuple[NDArray[Any], ...]] = []
    for start in range(0, len(rows), CHUNK):
        straight = distances(rows[start : start + CHUNK], train)
        turned = distances(mirrored[start : start + CHUNK], train)
        both = np.minimum(straight, turned)
        index = both.argmin(axis=1)
        place = np.arange(len(both))
        stranger = np.where(patients[None] == patients[index][:, None], np.inf, both)
        flipped = turned[place, index] < straight[place, index]
        parts.append((index, both[place, index], stranger.min(axis=1), flipped))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Neighbours(*joined)


def nearest_distance(rows: Array, mirrored: Array, others: Array) -> Array:
    """Distance to the nearest of other studies, whichever way round, (n,).

    Args:
        rows: features of the studies (n d).
        mirrored: features of the same studies, mirrored left to right (n d).
        others: features of the other studies (t d).
    """
    chunks = [slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK)]
    return np.concatenate(
        [
            np.minimum(distances(rows[c], others), distances(mirrored[c], others)).min(axis=1)
            for c in chunks
        ]
    )


def pixel_rows(images: Tensor) -> Array:
    """Images averaged to at most 32 pixels a side, without brightness and contrast, (b d).

    Distances between such rows are sqrt(2 - 2 correlation): blind to exposure and to fine noise.
    """
    sides = (min(32, images.shape[-2]), min(32, images.shape[-1]))
    rows = functional.adaptive_avg_pool2d(images, sides).flatten(1).double().numpy()
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True)).clip(min=1e-12)


@dataclass(frozen=True)
class _Space:
    """Nearest training studies of synthetic and of held-out studies in one space.

    `own` is the distance from each training study to the nearest of another patient.
    """

    name: str
    synthetic: Neighbours
    heldout: Neighbours
    own: Array

    @property
    def threshold(self) -> float:
        """The distance below which one in twenty held-out studies lie."""
        return max(float(np.quantile(self.heldout.distance, FALSE_ALARMS)), 1e-12)


@dataclass(frozen=True)
class Audit:
    """What the audit found.

    Args:
        estimates: by name.
        pairs: the most suspicious pairs: ids, distance, space, whether mirrored, and the distance
            as a share of the space's threshold.
    """

    estimates: dict[str, Estimate]
    pairs: list[dict[str, Any]]


@register("metric", "memorization")
class Memorization:
    """Copies of training studies among the samples.

    Gives "memorization" (share of samples nearer to a training study, in pixels or features, than
    all but one in twenty held-out real studies), the same by space, the nearest-neighbour ratio
    (median distance to the nearest training study over that to the nearest of another patient; near
    0 is copying) and authenticity (share of samples farther from their nearest training study than
    that is from its own neighbour; near 0 is copying). Mirrored copies count.

    Args:
        extractor: None is the evaluation's own.
        pairs: how many suspicious pairs to list.

    Source: Dar et al. 2024, arXiv:2402.01054; Alaa et al. 2022, arXiv:2102.08921, section 3.3.
    """

    needs = ""

    def __init__(self, extractor: str | None = None, pairs: int = 12) -> None:
        self.extractor = extractor
        self.pairs = pairs

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The estimates alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The estimates, each with the held-out studies as floor."""
        return self.audit(comparison).estimates

    def audit(self, comparison: Comparison) -> Audit:
        """The estimates and the most suspicious pairs."""
        spaces = [self._space(comparison, name) for name in ("pixels", "features")]
        synthetic = np.min([s.synthetic.distance / s.threshold for s in spaces], axis=0)
        heldout = np.min([s.heldout.distance / s.threshold for s in spaces], axis=0)
        resample = _Resample.of(comparison)
        found = {"memorization": resample.copies(synthetic, heldout)}
        for space in spaces:
            drawn, held = space.synthetic, space.heldout
            found[f"memorization/{space.name}"] = resample.copies(drawn.distance, held.distance)
            found[f"nearest_neighbour_ratio/{space.name}"] = resample.median(
                _ratio(drawn), _ratio(held)
            )
            found[f"nearest_neighbour_authenticity/{space.name}"] = resample.share(
                drawn.distance > space.own[drawn.index], held.distance > space.own[held.index]
            )
        used = {"pixels": "pixels", "features": comparison.extractor(self.extractor).name}
        named = {
            name: _named(estimate, used.get(name.rpartition("/")[2], " and ".join(used.values())))
            for name, estimate in found.items()
        }
        return Audit(named, self._suspicious(comparison, spaces, synthetic))

    def _space(self, comparison: Comparison, name: str) -> _Space:
        """Neighbours in pixels, or in the features of the extractor."""
        extractor = comparison.extractor(self.extractor)

        def rows(images: Tensor) -> Array:
            return pixel_rows(images) if name == "pixels" else extractor.features(images)

        def both(side: Side) -> tuple[Array, Array]:
            images = images_of(side.batch)
            return rows(images), rows(images.flip(-1))

        train, mirrored = both(comparison.train)
        _, patients = np.unique(np.array(comparison.train.patients), return_inverse=True)
        synthetic = nearest(*both(comparison.synthetic), train, patients)
        heldout = nearest(*both(comparison.heldout), train, patients)
        return _Space(name, synthetic, heldout, _own(train, mirrored, patients))

    def _suspicious(
        self, comparison: Comparison, spaces: list[_Space], scores: Array
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for i in np.argsort(scores, kind="stable")[: self.pairs]:
            space = min(spaces, key=lambda s: s.synthetic.distance[i] / s.threshold)
            near = space.synthetic
            found.append(
                {
                    "synthetic": comparison.synthetic.ids[i],
                    "real": comparison.train.ids[near.index[i]],
                    "distance": float(near.distance[i]),
                    "space": space.name,
                    "flipped": bool(near.flipped[i]),
                    "share_of_threshold": float(near.distance[i] / space.threshold),
                }
            )
        return found


@dataclass(frozen=True)
class _Resample:
    """Bootstrap weights of synthetic and held-out studies, and a second draw of the latter."""

    synthetic: Array
    heldout: Array
    again: Array

    @classmethod
    def of(cls, comparison: Comparison) -> _Resample:
        held, drawn = comparison.heldout.patients, comparison.synthetic.patients
        seeds = [derive(comparison.seed, "audit", i) for i in range(3)]
        return cls(
            patient_weights(drawn, DRAWS, seed=seeds[0]),
            patient_weights(held, DRAWS, seed=seeds[1]),
            patient_weights(held, DRAWS, seed=seeds[2]),
        )

    def copies(self, synthetic: Array, heldout: Array) -> Estimate:
        """Share of synthetic studies under the threshold, which itself is resampled."""
        cuts = np.array([_weighted_quantile(heldout, w, FALSE_ALARMS) for w in self.heldout])
        cut = float(np.quantile(heldout, FALSE_ALARMS))

        def shares(values: Array, weights: Array) -> Array:
            below = values[None] < cuts[:, None]
            return (below * weights).sum(axis=1) / weights.sum(axis=1)

        value, floor = float((synthetic < cut).mean()), float((heldout < cut).mean())
        return self._with_floor(
            (value, shares(synthetic, self.synthetic)),
            (floor, shares(heldout, self.again)),
            higher=False,
            unit="share",
        )

    def median(self, synthetic: Array, heldout: Array) -> Estimate:
        """Medians; a low one is suspicious."""
        return self._with_floor(
            (
                float(np.median(synthetic)),
                np.array([_weighted_quantile(synthetic, w, 0.5) for w in self.synthetic]),
            ),
            (
                float(np.median(heldout)),
                np.array([_weighted_quantile(heldout, w, 0.5) for w in self.heldout]),
            ),
            higher=True,
            unit="ratio",
        )

    def share(self, synthetic: NDArray[np.bool_], heldout: NDArray[np.bool_]) -> Estimate:
        """Shares of studies for which something holds."""
        return self._with_floor(
            (float(synthetic.mean()), self.synthetic @ synthetic / self.synthetic.sum(axis=1)),
            (float(heldout.mean()), self.heldout @ heldout / self.heldout.sum(axis=1)),
            higher=True,
            unit="share",
        )

    def _with_floor(
        self, found: tuple[float, Array], floor: tuple[float, Array], *, higher: bool, unit: str
    ) -> Estimate:
        few = self.heldout.shape[1]
        warning = f"only {few} held-out studies set the threshold" if few < FEW else ""

        def ends(value: float, draws: Array, count: int) -> tuple[float, float]:
            between = percentile_interval(draws)
            return no_narrower_than_wilson(between, value, count) if unit == "share" else between

        method = BOOTSTRAP + WIDENED if unit == "share" else BOOTSTRAP
        beside = Estimate(floor[0], *ends(*floor, few), n=few, unit=unit, method=method)
        drawn = self.synthetic.shape[1]
        return Estimate(
            found[0],
            *ends(*found, drawn),
            n=drawn,
            higher_is_better=higher,
            unit=unit,
            method=method,
            floor=beside,
            warning=warning,
        )


def _ratio(near: Neighbours) -> Array:
    return near.distance / near.second.clip(min=1e-12)


def _own(train: Array, mirrored: Array, patients: NDArray[np.intp]) -> Array:
    """Distance from each training study to the nearest one of another patient, (t,)."""
    parts: list[Array] = []
    for start in range(0, len(train), CHUNK):
        chunk = slice(start, start + CHUNK)
        both = np.minimum(distances(train[chunk], train), distances(mirrored[chunk], train))
        same = patients[chunk][:, None] == patients[None]
        parts.append(np.where(same, np.inf, both).min(axis=1))
    return np.concatenate(parts)


def _weighted_quantile(values: Array, weights: Array, share: float) -> float:
    return float(np.quantile(np.repeat(values, weights.astype(np.intp)), share))


def _named(estimate: Estimate, extractor: str) -> Estimate:
    floor = estimate.floor
    return replace(
        estimate,
        extractor=extractor,
        floor=None if floor is None else replace(floor, extractor=extractor),
    )
