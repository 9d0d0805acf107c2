"""Are samples copies of training studies? Nearest neighbours, judged by held-out real studies.

A Frechet distance cannot see copies: a generator that returns half its training set scores best of
all. So distances to training studies are compared with those of real studies that no one trained
on: a threshold that flags one in twenty of them, and the share of samples that it flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medgen.augmentation.intervals import (
    WIDENED,
    no_narrower_than_wilson,
    patient_weights,
    percentile_interval,
)
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.features import images_of
from medgen.evaluation.neighbours import Neighbours, nearest, own_distances, pixel_rows
from medgen.evaluation.registration import Matches, RegisteredSearch
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.rng import derive
from medgen.types import Estimate

Array = NDArray[np.float64]
FALSE_ALARMS = 0.05
DRAWS = 1000
BOOTSTRAP = f"bootstrap over patients of the held-out and the audited studies, {DRAWS} draws"
FEW = 100
"""Below so many held-out studies the threshold is uncertain, and a warning says so."""


@dataclass(frozen=True)
class _Space:
    """Nearest training studies of synthetic and of held-out studies in one space."""

    name: str
    synthetic: Neighbours | Matches
    heldout: Neighbours | Matches

    @property
    def threshold(self) -> float:
        """The distance below which one in twenty held-out studies lie."""
        return max(float(np.quantile(self.heldout.distance, FALSE_ALARMS)), 1e-12)


@dataclass(frozen=True)
class _Neighbourhood(_Space):
    """A space of features; `own` is from each training study to the nearest of another patient."""

    synthetic: Neighbours
    heldout: Neighbours
    own: Array


@dataclass(frozen=True)
class Reidentification:
    """How surely each sample shows a training study, judged by all spaces together.

    Args:
        scores: in [0, 1], (n,): 1 is a copy, above 0.5 is closer than all but one in twenty
            held-out studies. With d the smallest distance, each in units of the threshold of its
            space, and c the d that one in twenty held-out studies fall short of: c / (c + d).
        false_alarms: share of held-out studies that would score as high, (n,); at least
            1 / (held-out studies + 1).
        heldout: scores of the held-out studies.
        samples: one line a sample: ids of it and of the training study, space, distance, the
            distance at which the space raises an alarm, whether mirrored, score, false-alarm rate.
    """

    scores: Array
    false_alarms: Array
    heldout: Array
    samples: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the content of `reidentification.json`."""
        return {
            "threshold": 0.5,
            "false_alarm_rate": FALSE_ALARMS,
            "heldout": len(self.heldout),
            "flagged": int((self.scores > 0.5).sum()),
            "heldout_scores": self.heldout.tolist(),
            "samples": self.samples,
        }


@dataclass(frozen=True)
class Audit:
    """What the audit found.

    Args:
        estimates: by name.
        reidentification: of every sample.
        pairs: the most suspicious samples' lines of the re-identification.
    """

    estimates: dict[str, Estimate]
    reidentification: Reidentification
    pairs: list[dict[str, Any]]


@register("metric", "memorization")
class Memorization:
    """Copies of training studies among the samples.

    Gives "memorization" (share of samples nearer to a training study, in any space, than all but
    one in twenty held-out real studies), the same by space, the nearest-neighbour ratio (median
    distance to the nearest training study over that to the nearest of another patient; near 0 is
    copying) and authenticity (share of samples farther from their nearest training study than that
    is from its own neighbour; near 0 is copying). The spaces: pixels, features of the extractor,
    and "registered", where crops, shifts and exposure do not count (not of signals).
    Mirrored copies count in all.

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
        near = [self._neighbourhood(comparison, name) for name in ("pixels", "features")]
        signals = len(comparison.schema.size) == 1
        spaces = near if signals else [*near, _registered(comparison)]
        synthetic = np.min([s.synthetic.distance / s.threshold for s in spaces], axis=0)
        heldout = np.min([s.heldout.distance / s.threshold for s in spaces], axis=0)
        resample = _Resample.of(comparison)
        found = {"memorization": resample.copies(synthetic, heldout)}
        for space in spaces:
            distances_to = space.synthetic.distance, space.heldout.distance
            found[f"memorization/{space.name}"] = resample.copies(*distances_to)
        for space in near:
            drawn, held = space.synthetic, space.heldout
            found[f"nearest_neighbour_ratio/{space.name}"] = resample.median(
                _ratio(drawn), _ratio(held)
            )
            found[f"nearest_neighbour_authenticity/{space.name}"] = resample.share(
                drawn.distance > space.own[drawn.index], held.distance > space.own[held.index]
            )
        used = {"pixels": "pixels", "features": comparison.extractor(self.extractor).name}
        used["registered"] = "registered pixels"
        named = {
            name: _named(estimate, used.get(name.rpartition("/")[2], ", ".join(used.values())))
            for name, estimate in found.items()
        }
        judged = _reidentify(comparison, spaces, synthetic, heldout)
        order = np.argsort(synthetic, kind="stable")[: self.pairs]
        return Audit(named, judged, [judged.samples[i] for i in order])

    def _neighbourhood(self, comparison: Comparison, name: str) -> _Neighbourhood:
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
        return _Neighbourhood(name, synthetic, heldout, own_distances(train, mirrored, patients))


def _registered(comparison: Comparison) -> _Space:
    """Best matches up to mirroring, crop, shift and exposure."""
    search = RegisteredSearch(images_of(comparison.train.batch))
    sides = comparison.synthetic, comparison.heldout
    drawn, held = (search.nearest(images_of(side.batch)) for side in sides)
    return _Space("registered", drawn, held)


def _reidentify(
    comparison: Comparison, spaces: Sequence[_Space], synthetic: Array, heldout: Array
) -> Reidentification:
    """Score every sample by its smallest distance in thresholds, against the held-out studies'."""
    cut = max(float(np.quantile(heldout, FALSE_ALARMS)), 1e-12)
    scores = cut / (cut + synthetic)
    closer = np.searchsorted(np.sort(heldout), synthetic, side="right")
    false_alarms = (1 + closer) / (1 + len(heldout))
    samples: list[dict[str, Any]] = []
    for i, identifier in enumerate(comparison.synthetic.ids):
        space = min(spaces, key=lambda s: s.synthetic.distance[i] / s.threshold)
        found = space.synthetic
        samples.append(
            {
                "synthetic": identifier,
                "real": comparison.train.ids[found.index[i]],
                "space": space.name,
                "distance": float(found.distance[i]),
                "alarm_below": cut * space.threshold,
                "flipped": bool(found.flipped[i]),
                "score": float(scores[i]),
                "false_alarms": float(false_alarms[i]),
            }
        )
    return Reidentification(scores, false_alarms, cut / (cut + heldout), samples)


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


def _weighted_quantile(values: Array, weights: Array, share: float) -> float:
    return float(np.quantile(np.repeat(values, weights.astype(np.intp)), share))


def _named(estimate: Estimate, extractor: str) -> Estimate:
    floor = estimate.floor
    return replace(
        estimate,
        extractor=extractor,
        floor=None if floor is None else replace(floor, extractor=extractor),
    )
