"""Intervals: bootstrap by patient, half-sampling, paired differences over repeats, Holm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from medgen.augmentation.scores import nan_mean

Array = NDArray[np.float64]
WIDENED = "; no narrower than Wilson's interval"
"""What the method of an estimate adds where `no_narrower_than_wilson` made its interval."""


def patient_weights(patients: Sequence[str], draws: int, *, seed: int) -> Array:
    """How often each study stands in each bootstrap draw, (draws, studies).

    Whole patients are drawn with replacement, so studies of one patient come and go together
    (cluster bootstrap). A statistic that takes weights is so computed for all draws at once.

    Args:
        patients: whom each study is of.
        draws: number of bootstrap draws.
        seed: the same seed draws the same patients, which pairs two statistics.
    """
    names, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return counts[:, owner].astype(np.float64)


def half_samples(patients: Sequence[str], draws: int, *, seed: int) -> list[NDArray[np.intp]]:
    """Indices of the studies of a random half of the patients, without replacement, `draws` times.

    A bootstrap repeats studies, and a repeated study is its own nearest neighbour at distance 0:
    that biases neighbour counts and kernel sums. Half-samples hold every study once, and for a
    statistic close to a mean their spread equals that of the whole sample: with m of n drawn the
    variance is (1/m - 1/n) s^2, which is s^2/n at m = n/2.

    Source: Politis, Romano and Wolf, Subsampling, 1999, chapter 2.
    """
    names, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    chosen: list[NDArray[np.intp]] = []
    for _ in range(draws):
        inside = np.zeros(len(names), dtype=bool)
        inside[rng.permutation(len(names))[: max(1, len(names) // 2)]] = True
        chosen.append(np.flatnonzero(inside[owner]))
    return chosen


def percentile_interval(draws: Array, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of the draws; undefined (NaN) draws are left out."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def centred_interval(value: float, draws: Array, level: float = 0.95) -> tuple[float, float]:
    """`value` plus the spread of the draws about their own mean.

    For half-samples, whose statistic may sit elsewhere than the whole sample's (a Frechet distance
    grows as studies get fewer), but spreads as much. The percentiles follow a skew; of a hundred
    draws they are themselves uncertain, so neither end is nearer than the normal one.
    """
    low, high = percentile_interval(draws - np.nanmean(draws), level)
    normal = NormalDist().inv_cdf((1 + level) / 2) * float(np.nanstd(draws))
    return value + min(low, -normal), value + max(high, normal)


def no_narrower_than_wilson(
    interval: tuple[float, float], share: float, count: int
) -> tuple[float, float]:
    """A 95 % interval of a share, widened to Wilson's where it is narrower.

    Where all or none of few studies count, resampling them shows no spread at all, and yet the next
    study may differ.

    Args:
        interval: from resampling.
        share: in [0, 1].
        count: studies, or patients, that it is a share of.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return min(interval[0], low, share), max(interval[1], high, share)


@dataclass(frozen=True)
class Difference:
    """A paired difference.

    Args:
        value: mean difference over repeats.
        error: its standard error, over test patients and repeats.
        draws: what it might have been, one a bootstrap draw; undefined ones are NaN.
    """

    value: float
    error: float
    draws: Array

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The central `level` of the draws."""
        return percentile_interval(self.draws, level)

    @property
    def p(self) -> float:
        """Two-sided share of draws on the other side of zero."""
        known = self.draws[np.isfinite(self.draws)]
        below, above = int((known <= 0).sum()), int((known >= 0).sum())
        return min(1.0, 2 * (min(below, above) + 1) / (len(known) + 1))

    def detectable(self, level: float = 0.95, power: float = 0.8) -> float:
        """The smallest true difference that a test at `level` finds with probability `power`.

        A difference is found where it lies further from zero than half its interval, so the truth
        must lie further still, by the `power` quantile of the estimate's normal error. Without
        noise of repeats this is the textbook's (z + z) standard errors, 2.8 of them at 80 %.

        Source: Cohen, Statistical power analysis for the behavioral sciences, 1988, chapter 2.
        """
        low, high = self.interval(level)
        return (high - low) / 2 + float(norm.ppf(power)) * self.error


def paired_difference(values: Array, draws: Array, *, seed: int) -> Difference:
    """Interval of a difference that is paired over test patients and repeats.

    Patients are bootstrapped. Repeats are few, and bootstrapping three of them gives intervals far
    too narrow (Hesterberg 2015, arXiv:1411.5279, section 4.1), so their share of the uncertainty
    enters each draw as a Student t of repeats - 1 degrees of freedom times the standard error of
    the mean over repeats.

    Args:
        values: difference of every repeat on the whole test set, (repeats,).
        draws: the same under bootstrap draws of test patients, shared by all repeats,
            (repeats, draws).
        seed: seeds the Student t numbers.
    """
    repeats = len(values)
    spread = nan_mean(draws, axis=0)
    patients, training = float(np.nanstd(spread)), 0.0
    if repeats > 1:
        training = float(np.std(values, ddof=1)) / np.sqrt(repeats)
        noise = np.random.default_rng(seed).standard_t(repeats - 1, size=spread.shape)
        spread = spread + training * noise
    return Difference(float(np.mean(values)), float(np.hypot(patients, training)), spread)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for being one of several (Holm 1979), in the order given."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]


def holm_levels(p: Sequence[float], alpha: float = 0.05) -> list[float]:
    """The confidence level at which Holm's procedure tests each of several, in the order given.

    The k-th smallest of m p-values is tested at alpha / (m - k + 1), up to the first that fails;
    those that follow are read at its level. So an interval of this level leaves zero out exactly
    where the adjusted p-value is below alpha.
    """
    levels = np.empty(len(p))
    tests = len(p)
    for index in np.argsort(p):
        levels[index] = 1 - alpha / tests
        if p[index] * tests < alpha:
            tests -= 1
    return [float(level) for level in levels]
