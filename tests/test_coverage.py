"""Intervals cover the truth: every kind, over 200 simulated repeats.

Of intervals that cover in 95 % of all repeats, fewer than 180 of 200 cover once in a thousand
times. Features are Gaussian, so truths are closed forms; a measure whose value depends on how many
studies there are (shares of neighbours, a Frechet distance before extrapolation) is held to its
mean over the repeats, which is what its estimate at that number is of.
"""

import math

import numpy as np
import pytest
import torch

from medgen.augmentation.intervals import patient_weights, percentile_interval
from medgen.augmentation.scores import auroc, correlation
from medgen.evaluation.alignment import share_estimate
from medgen.evaluation.appearance import Intensity, Spectrum
from medgen.evaluation.distribution import Frechet, Kid, Mmd
from medgen.evaluation.diversity import Prdc, Vendi
from medgen.evaluation.feature_metric import Features

REPEATS, ENOUGH = 200, 180
COUNT = 60
PEOPLE = [str(i) for i in range(COUNT)]
WIDTH = 1.5


def repeats(metric, fitted, draw, shift, *, count=REPEATS):
    """Estimates of two sets of studies, the second one shifted, by name."""
    rng = np.random.default_rng(0)
    found = {}
    for _ in range(count):
        sets = [Features(draw(rng) + move, PEOPLE) for move in (0, shift)]
        for name, estimate in metric.between(*sets, fitted).items():
            found.setdefault(name, []).append(estimate)
    return found


def hits(estimates, truth=None):
    """How many intervals hold the truth; None is the mean of the values."""
    truth = np.mean([e.value for e in estimates]) if truth is None else truth
    return sum(e.low <= truth <= e.high for e in estimates)


AXES = 4


def normal(rng):
    return rng.normal(size=(COUNT, AXES))


def plane(rng):
    return rng.normal(size=(COUNT, 2)) * [1, 0.5]


def kid_apart(shift):
    """(1 + x.y / d)^3 sees the first three moments; of unit Gaussians apart by s along one axis
    they differ by s^2, s^4 and s^6 + 6 s^4 + (3 d + 6) s^2 in squared norm."""
    s = shift**2
    third = s**3 + 6 * s**2 + (3 * AXES + 6) * s
    return 3 * s / AXES + 3 * s**2 / AXES**2 + third / AXES**3


def mmd_apart(shift):
    """2 (w^2 / (w^2 + 2))^(d / 2) (1 - exp(-s^2 / 2 (w^2 + 2))) under exp(-r^2 / 2 w^2)."""
    total = WIDTH**2 + 2
    share = 1 - math.exp(-(shift**2) / (2 * total))
    return 2 * (WIDTH**2 / total) ** (AXES / 2) * share


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_kernel_distances(shift):
    """Without a shift this is the real-vs-real control, whose truth is 0."""
    move = shift * np.eye(AXES)[0]
    pair = np.array([[0.0], [WIDTH]])
    for metric, truth in ((Kid(), kid_apart(shift)), (Mmd(), mmd_apart(shift))):
        (estimates,) = repeats(metric, metric.fit(lambda: pair), normal, move).values()
        assert hits(estimates, truth) >= ENOUGH


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_frechet_and_vendi(shift):
    axes = np.zeros(2), np.eye(2)
    for metric, fitted in ((Frechet(), axes), (Vendi(), (np.zeros(2), None))):
        for estimates in repeats(metric, fitted, plane, shift).values():
            assert hits(estimates) >= ENOUGH


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_extrapolated_frechet_distance(shift):
    """|m|^2 over two axes; 0 for the real-vs-real control."""
    axes = np.zeros(2), np.eye(2)
    found = repeats(Frechet(infinite=True), axes, plane, shift)
    assert hits(found["frechet_infinite"], 2 * shift**2) >= ENOUGH


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_neighbour_shares(shift):
    """Near 0 and 1 resampling alone shows no spread."""
    for estimates in repeats(Prdc(), None, normal, shift).values():
        assert hits(estimates) >= ENOUGH


@pytest.mark.parametrize("metric", [Intensity(), Spectrum()])
def test_intensities_and_spectra(metric):
    """Histograms of 8 levels and spectra of 8 rings: shares, moved from one to the next."""

    def shares(rng):
        return rng.gamma(4, size=(COUNT, 8)) / 32

    for estimates in repeats(metric, None, shares, 0.03 * np.array([1, -1] * 4)).values():
        assert hits(estimates) >= ENOUGH


def test_bootstrapped_scores():
    """AUROC of scores d apart, Phi(d / sqrt 2); a correlation; a share, with two studies a
    patient that agree."""
    rng = np.random.default_rng(0)
    normal = torch.distributions.Normal(0, 1)
    area = float(normal.cdf(torch.tensor(1 / 2**0.5)))
    found = {"auroc": 0, "correlation": 0, "share": 0}
    for seed in range(REPEATS):
        weights = patient_weights(PEOPLE, 300, seed=seed)
        truth = rng.integers(0, 2, COUNT)
        low, high = percentile_interval(auroc(truth + rng.normal(size=COUNT), truth, weights))
        found["auroc"] += low <= area <= high
        a, b = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=COUNT).T
        low, high = percentile_interval(correlation(a, b, weights))
        found["correlation"] += low <= 0.6 <= high
        right = (rng.uniform(size=(COUNT, 1)) < 0.97).astype(float).repeat(2, axis=0)
        twice = weights.repeat(2, axis=1)
        share = share_estimate(right, np.ones_like(right), twice, 2 * COUNT, 0.5)
        found["share"] += share.low <= 0.97 <= share.high
    assert min(found.values()) >= ENOUGH, found
