"""Distances and shares against closed forms and planted faults."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd
from toy_studies import Studies, discs

from medgen.evaluation.comparison import Comparison
from medgen.evaluation.distribution import (
    Frechet,
    Kid,
    Mmd,
    frechet_at_infinity,
    frechet_distance,
    kid,
    median_distance,
    mmd,
)
from medgen.evaluation.diversity import Prdc, Vendi, ball_shares, prdc, vendi
from medgen.evaluation.feature_metric import Features
from medgen.evaluation.suite import evaluate


def test_frechet_of_two_gaussians():
    """|m|^2 + sum (s1 - s2)^2 for commuting covariances, within 3 % at 20,000 samples."""
    rng = np.random.default_rng(0)
    first, second = np.array([1.0, 2.0, 0.5]), np.array([2.0, 2.0, 1.5])
    shift = np.array([1.0, 0.0, -0.5])
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    a = rng.normal(size=(20_000, 3)) * first @ turn
    b = (rng.normal(size=(20_000, 3)) * second + shift) @ turn
    exact = (shift**2).sum() + ((first - second) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(exact, rel=0.03)


def test_distances_equal_torchmetrics():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(90, 7)), 1.2 * rng.normal(size=(80, 7)) + 0.1
    moments = [
        moment for x in (a, b) for moment in (torch.tensor(x.mean(0)), torch.tensor(np.cov(x.T)))
    ]
    assert frechet_distance(a, b) == pytest.approx(float(_compute_fid(*moments)))
    theirs = poly_mmd(torch.tensor(a[:80]), torch.tensor(b), degree=3, gamma=None, coef=1.0)
    assert kid(a[:80], b) == pytest.approx(float(theirs))


def test_frechet_of_a_set_with_itself_is_zero():
    """Fewer studies than features: 31 eigenvalues of 1e-16 for 0 add 1e-8 each."""
    a = np.random.default_rng(0).normal(size=(50, 80))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)


def test_frechet_grows_as_studies_get_fewer():
    """The bias that makes distances at unequal n incomparable."""
    rng = np.random.default_rng(0)
    few, many = (
        np.mean([frechet_distance(*rng.normal(size=(2, n, 16))) for _ in range(10)])
        for n in (100, 1000)
    )
    assert few > 5 * many


def test_kid_is_unbiased_and_may_be_negative():
    rng = np.random.default_rng(0)
    values = np.array([kid(*rng.normal(size=(2, 60, 8))) for _ in range(200)])
    assert abs(values.mean()) < 3.5 * values.std() / np.sqrt(len(values))
    assert values.min() < 0


def test_kid_sees_a_change_of_spread_at_equal_means():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 8)), 1.5 * rng.normal(size=(500, 8))
    assert kid(a, b) > 10 * abs(kid(a, rng.normal(size=(500, 8))))


def test_frechet_at_infinity_is_nearer_to_the_truth_than_frechet():
    """Truth: |m|^2 = 1 for unit Gaussians of 32 axes apart by 1."""
    rng = np.random.default_rng(0)
    biased, extrapolated = [], []
    for seed in range(8):
        a, b = rng.normal(size=(2, 600, 32))
        b[:, 0] += 1
        biased.append(frechet_distance(a, b))
        extrapolated.append(frechet_at_infinity(a, b, seed=seed))
    assert np.mean(biased) > 1.5
    assert np.mean(extrapolated) == pytest.approx(1, abs=0.2)


def test_mmd_of_gaussians_is_the_closed_form_and_unbiased():
    """For N(0, 1) and N(m, 1) under exp(-d^2 / 2 w^2) in one dimension:
    2 w / sqrt(w^2 + 2) (1 - exp(-m^2 / 2 (w^2 + 2)))."""
    rng = np.random.default_rng(0)
    width, shift = 1.5, 1.0
    total = width**2 + 2
    exact = 2 * width / total**0.5 * (1 - np.exp(-(shift**2) / (2 * total)))
    values = [
        mmd(rng.normal(size=(200, 1)), rng.normal(size=(200, 1)) + shift, width) for _ in range(60)
    ]
    assert abs(np.mean(values) - exact) < 3.5 * np.std(values) / 60**0.5


def test_median_distance():
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == 2
    assert median_distance(np.zeros((5, 2))) > 0


def test_vendi_counts_different_studies():
    assert vendi(np.eye(20)) == pytest.approx(20)
    assert vendi(np.ones((20, 3))) == pytest.approx(1)
    assert vendi(np.repeat(np.eye(5, 40), 6, axis=0)) == pytest.approx(5)
    rows = np.random.default_rng(0).normal(size=(30, 8))
    assert vendi(rows) == pytest.approx(vendi(np.pad(rows, ((0, 0), (0, 40)))))


def neighbour_shares(real, synthetic, k, k_coverage):
    """Precision, recall, density and coverage, one pair after another."""

    def radius(rows, i, k):
        return sorted(np.linalg.norm(rows[i] - other) for other in np.delete(rows, i, 0))[k - 1]

    apart = [[np.linalg.norm(a - b) for b in synthetic] for a in real]
    inside = [[d <= radius(real, i, k) for d in row] for i, row in enumerate(apart)]
    mine = [radius(synthetic, j, k) for j in range(len(synthetic))]
    return {
        "precision": np.mean([any(row[j] for row in inside) for j in range(len(synthetic))]),
        "recall": np.mean([any(d <= r for d, r in zip(row, mine, strict=True)) for row in apart]),
        "density": np.sum(inside) / (k * len(synthetic)),
        "coverage": np.mean(
            [min(row) <= radius(real, i, k_coverage) for i, row in enumerate(apart)]
        ),
    }


def test_prdc_equals_a_plain_count_in_the_whole_and_in_half_samples(monkeypatch):
    """In blocks of 17, so that blocks end inside the sets."""
    monkeypatch.setattr("medgen.evaluation.feature_metric.BLOCK", 17)
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(40, 3)), 0.8 * rng.normal(size=(40, 3)) + 0.7
    assert prdc(real, synthetic, 3) == pytest.approx(neighbour_shares(real, synthetic, 3, 3))
    in_a, in_b = np.ones((2, 40), dtype=bool), np.ones((2, 40), dtype=bool)
    in_a[1, ::2], in_b[1, 10:30] = False, False
    half = {name: values[1] for name, values in ball_shares(real, synthetic, 3, in_a, in_b).items()}
    assert half == pytest.approx(neighbour_shares(real[in_a[1]], synthetic[in_b[1]], 2, 3))


def test_kernel_sums_in_blocks_equal_one_matrix(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 3))
    whole = kid(a, b), mmd(a, b, 1.0)
    monkeypatch.setattr("medgen.evaluation.feature_metric.BLOCK", 17)
    assert (kid(a, b), mmd(a, b, 1.0)) == pytest.approx(whole)


def test_wide_features_are_projected_before_a_vendi_score():
    """To 256 axes at most; none are lost where training features span no more."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 60, 8)) @ rng.normal(size=(8, 300))
    metric = Vendi()
    fitted = metric.fit(lambda: rows[0])
    people = [str(i) for i in range(60)]
    found = metric.between(Features(rows[1], people), Features(rows[2], people), fitted)
    plain = vendi(rows[2] - rows[0].mean(0)) / vendi(rows[1] - rows[0].mean(0))
    assert fitted[1].shape == (300, 8)
    assert found["vendi_ratio"].value == pytest.approx(plain)


def test_prdc_of_one_distribution_and_of_identical_sets():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 500, 4))
    found = prdc(a, b)
    assert min(found["precision"], found["recall"]) > 0.9
    assert found["density"] == pytest.approx(1, abs=0.1)
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.04)
    same = prdc(a, a)
    assert same["precision"] == same["recall"] == same["coverage"] == 1


def test_prdc_tells_collapse_from_bad_samples():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 4))
    collapsed = real[:4].repeat(100, axis=0) + 0.01 * rng.normal(size=(400, 4))
    far = rng.normal(size=(400, 4)) + 8
    found = prdc(real, collapsed)
    assert found["precision"] > 0.9
    assert found["recall"] < 0.1
    assert found["coverage"] < 0.2
    assert prdc(real, far)["precision"] < 0.05


@pytest.fixture(scope="module")
def real():
    return discs(400, masks=False, findings=False)


@pytest.fixture(scope="module")
def fresh(real):
    synthetic = discs(300, seed=1, synthetic=True, masks=False, findings=False)
    return Comparison(real, synthetic, extractor="pixels-pca")


@pytest.mark.parametrize("metric", [Frechet(infinite=True), Kid(), Mmd(), Prdc(), Vendi()])
def test_every_estimate_is_complete(fresh, metric):
    for estimate in metric.measure(fresh).values():
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.n == fresh.equal == estimate.floor.n
        assert estimate.extractor.startswith("pixels-pca")
        assert "half-sampling" in estimate.method
        assert "only" in estimate.warning


def test_a_perfect_generator_stands_at_the_floor(fresh):
    found = Kid().measure(fresh)["kid"]
    assert found.low <= found.floor.value <= found.high


def test_a_blurred_generator_stands_above_the_floor(real):
    synthetic = discs(300, seed=1, synthetic=True, masks=False, findings=False, noise=0.3)
    comparison = Comparison(real, synthetic, extractor="random")
    for metric in (Frechet(), Kid(), Mmd()):
        for estimate in metric.measure(comparison).values():
            assert estimate.low > estimate.floor.high
    assert Prdc().measure(comparison)["coverage"].value < 0.5


def test_count_limits_both_sides(fresh):
    assert Kid(count=30).measure(fresh)["kid"].n == 30


def volumes(count, seed, *, synthetic):
    """Studies of small volumes of noise; of a size of their own on every axis."""
    flat = discs(count, seed=seed, synthetic=synthetic, masks=False, findings=False)
    rng = torch.Generator().manual_seed(seed)
    image = torch.rand((count, 1, 11, 12, 14), generator=rng) * 2 - 1
    schema = replace(flat.schema, size=(11, 12, 14))
    return Studies(schema, flat.studies, replace(flat.batch, image=image))


def test_metrics_take_volumes():
    """Noise against noise stands at the floor, by every metric that an evaluation names."""
    real, synthetic = volumes(100, 0, synthetic=False), volumes(30, 1, synthetic=True)
    metrics = ["frechet", "kid", "mmd", "prdc", "vendi", "intensity", "spectrum"]
    result = evaluate(real, synthetic, [*metrics, "ms_ssim_diversity"], extractor="random")
    assert not result["skipped"]
    assert len(result["metrics"]) == 11
    assert "8 slices along each of three axes" in result["extractor"]["name"]
    for estimate in result["metrics"].values():
        floor = estimate["floor"]
        assert estimate["low"] <= floor["high"]
        assert floor["low"] <= estimate["high"]
