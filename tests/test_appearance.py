"""Intensities and sharpness against closed forms and planted faults."""

import numpy as np
import pytest
import torch
from toy_studies import discs

from medgen.evaluation.appearance import (
    Intensity,
    Spectrum,
    intensity_distance,
    spectrum_distance,
)
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.features import LEVELS, HistogramFeatures, SpectrumFeatures


def images(count=40, shape=(1, 32, 32), seed=0):
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed)) - 0.5


def test_a_shift_of_intensities_is_its_own_distance():
    a = HistogramFeatures().features(images())
    b = HistogramFeatures().features(images() + 0.25)
    assert a.sum(axis=1) == pytest.approx(1)
    assert intensity_distance(a, a) == 0
    assert intensity_distance(a, b) == pytest.approx(0.25 / 2, abs=1 / LEVELS)


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 24, 40), (1, 16, 16, 16)])
def test_twice_the_amplitude_is_six_decibels(shape):
    features = SpectrumFeatures()
    a, b = features.features(images(shape=shape)), features.features(2 * images(shape=shape))
    assert a.shape == (40, min(shape[1:]) // 2)
    assert spectrum_distance(a, b) == pytest.approx(20 * np.log10(2))


def test_a_wave_stands_in_its_ring():
    wave = torch.sin(2 * torch.pi * 5 * torch.arange(32) / 32).expand(1, 1, 32, 32)
    power = SpectrumFeatures().features(wave)[0]
    assert power.argmax() == 5 - 1
    assert power[5 - 1] > 1e6 * np.delete(power, 5 - 1).max()


@pytest.mark.parametrize(
    ("metric", "fault"),
    [(Intensity(), lambda x: x + 0.1), (Spectrum(), lambda x: x + 0.3 * torch.randn_like(x))],
)
def test_faults_stand_above_the_floor_and_perfection_at_it(metric, fault):
    torch.manual_seed(0)
    real = discs(400, masks=False, findings=False, noise=0.1)
    synthetic = discs(300, seed=1, synthetic=True, masks=False, findings=False, noise=0.1)
    (right,) = metric.measure(Comparison(real, synthetic, extractor="pixels-pca")).values()
    assert right.low <= right.floor.high
    synthetic.batch.image[:] = fault(synthetic.batch.image)
    (wrong,) = metric.measure(Comparison(real, synthetic, extractor="pixels-pca")).values()
    assert wrong.low > wrong.floor.high
