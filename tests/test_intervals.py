"""Intervals cover what they claim to cover."""

import numpy as np
import pytest

from medgen.augmentation.intervals import (
    Difference,
    centred_interval,
    half_samples,
    holm,
    holm_levels,
    paired_difference,
    patient_weights,
    percentile_interval,
)


def test_a_patient_stays_whole():
    patients = ["a", "a", "b", "c", "c", "c"]
    weights = patient_weights(patients, 200, seed=0)
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 3], weights[:, 5])
    assert np.array_equal(weights[:, [0, 2, 3]].sum(axis=1), np.full(200, 3))


def test_the_same_seed_draws_the_same_patients():
    patients = [str(i) for i in range(20)]
    assert np.array_equal(
        patient_weights(patients, 5, seed=3), patient_weights(patients, 5, seed=3)
    )
    assert not np.array_equal(
        patient_weights(patients, 5, seed=3), patient_weights(patients, 5, seed=4)
    )


def test_half_samples_hold_every_study_once_and_whole_patients():
    patients = [f"p{i // 2}" for i in range(40)]
    for chosen in half_samples(patients, 20, seed=0):
        assert len(chosen) == len(set(chosen)) == 20
        assert set(chosen // 2 * 2) | set(chosen // 2 * 2 + 1) == set(chosen)


def test_bootstrap_by_patient_sees_that_copies_add_nothing():
    """Ten copies of every study leave the standard error of the mean at s / sqrt(patients)."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)
    copied = np.repeat(values, 10)
    patients = [str(i // 10) for i in range(1000)]
    weights = patient_weights(patients, 4000, seed=1)
    spread = (weights @ copied / weights.sum(axis=1)).std()
    assert spread == pytest.approx(values.std() / 10, rel=0.06)


def test_half_sample_spread_is_the_standard_error_of_a_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    patients = [str(i) for i in range(400)]
    draws = np.array([values[i].mean() for i in half_samples(patients, 4000, seed=1)])
    low, high = centred_interval(values.mean(), draws)
    assert (high - low) / 3.92 == pytest.approx(values.std() / 20, rel=0.06)


def test_percentiles_leave_undefined_draws_out():
    draws = np.append(np.linspace(0, 1, 1001), np.nan)
    assert percentile_interval(draws) == pytest.approx((0.025, 0.975))


def test_a_null_difference_is_rarely_called_a_gain():
    """Three repeats whose differences are noise about zero: 5 % false alarms, so 200 experiments
    give 10 +- 3; a bootstrap of the three repeats would give more than 40."""
    rng = np.random.default_rng(0)
    alarms = 0
    for experiment in range(200):
        values = rng.normal(size=3)
        draws = values[:, None] + 0.05 * rng.normal(size=(1, 500))
        found = paired_difference(values, draws, seed=experiment)
        low, high = found.interval()
        alarms += not low <= 0 <= high
    assert alarms <= 20


def test_patients_decide_where_repeats_agree():
    """With equal repeats only the patients' spread is left: 1.96 standard deviations."""
    rng = np.random.default_rng(0)
    draws = 1 + 0.1 * rng.normal(size=(1, 20_000)) + np.zeros((4, 1))
    found = paired_difference(np.ones(4), draws, seed=0)
    assert found.interval() == pytest.approx((1 - 0.196, 1 + 0.196), abs=0.005)
    assert found.p < 0.001


def test_holm_on_a_textbook_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_intervals_at_holms_levels_agree_with_the_adjusted_p():
    """Of three shifted Gaussians, an interval leaves zero out exactly where p after Holm < 0.05."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        shifts = rng.uniform(0, 4, size=3)
        family = [Difference(shift, 1.0, shift + rng.normal(size=20_000)) for shift in shifts]
        p = [difference.p for difference in family]
        for difference, adjusted, level in zip(family, holm(p), holm_levels(p), strict=True):
            low, high = difference.interval(level)
            if abs(adjusted - 0.05) > 0.003:
                assert (adjusted < 0.05) == (not low <= 0 <= high)
            seen.add(round(level, 4))
    assert seen == {0.9833, 0.975, 0.95}
    assert holm_levels([]) == []


@pytest.mark.parametrize("repeats", [1, 4, 40])
def test_the_detectable_difference_is_found_four_times_in_five(repeats):
    """The truth set to what the experiment itself calls detectable: power 0.8 +- 0.03 (400 runs)
    where repeats are many or none; with four, whose spread is itself uncertain, at least 0.7."""
    rng = np.random.default_rng(repeats)

    def experiment(truth, seed):
        patients = 0.1 * rng.normal()
        values = truth + patients + 0.2 * rng.normal(size=repeats) * (repeats > 1)
        draws = values[:, None] + 0.1 * rng.normal(size=(1, 800))
        return paired_difference(values, draws, seed=seed)

    truth = np.median([experiment(0, seed).detectable() for seed in range(100)])
    found = np.mean([experiment(truth, seed).interval()[0] > 0 for seed in range(400)])
    assert (0.7 if repeats == 4 else 0.74) <= found <= 0.9
    if repeats == 1:
        assert truth == pytest.approx(0.1 * (1.96 + 0.8416), rel=0.03)
