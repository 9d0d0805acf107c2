"""Ejection fraction, rhythm and timing of clips whose truth is known, and planted faults."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_hearts import FPS, LEADS, RATE, beating, contraction, twelve_leads
from toy_studies import Studies, discs

from medgen.errors import DataError
from medgen.evaluation.cardiac import EfAgreement, RhythmAgreement, TimingAgreement, usual_delay
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.heart import (
    areas_and_lengths,
    curve_rate,
    ecg_beats,
    ejection_fraction,
    fullest,
    largest_piece,
    pulsation,
    volume_curve,
)
from medgen.evaluation.resampling import mean, median
from medgen.evaluation.suite import evaluate
from medgen.types import digest_of_values

STEPS = 80


@pytest.fixture(scope="module")
def real():
    return beating(40, seed=0, noise=0.1)


@pytest.fixture(scope="module")
def judged(real):
    """A comparison of honest clips; its segmenter serves the others."""
    return Comparison(real, beating(12, seed=1, synthetic=True, noise=0.1))


def against(judged, real, **faults):
    other = Comparison(real, beating(12, seed=1, synthetic=True, noise=0.1, **faults))
    other.frames._consumers |= judged.frames._consumers
    return other


class TestHeart:
    def test_volume_of_an_ellipse_that_lies_askew(self):
        """Half axes 20 and 10: 8 (200 pi)^2 / (3 pi 40), an eighth of it at half the spacing."""
        rows, columns = np.mgrid[:64, :64] - 31.5
        turned = (rows + columns) / 2**0.5, (rows - columns) / 2**0.5
        mask = ((turned[0] / 20) ** 2 + (turned[1] / 10) ** 2 < 1)[None]
        exact = 8 * (200 * np.pi) ** 2 / (3 * np.pi * 40) / 1000
        assert volume_curve(mask)[0] == pytest.approx(exact, rel=0.04)
        assert volume_curve(mask, (0.5, 0.5))[0] == pytest.approx(exact / 8, rel=0.04)

    def test_of_an_empty_frame_nothing_is_known(self):
        assert np.isnan(volume_curve(np.zeros((2, 8, 8), bool))).all()
        assert np.isnan(ejection_fraction(np.full(4, np.nan)))
        areas, _ = areas_and_lengths(np.ones((1, 4, 4), bool), (2.0, 3.0))
        assert areas[0] == 96

    def test_specks_are_left_out(self):
        mask = np.zeros((1, 9, 9), bool)
        mask[0, 2:6, 2:6] = mask[0, 8, 8] = True
        assert largest_piece(mask).sum() == 16

    def test_masks_of_the_toy_give_their_ejection_fraction(self, real):
        masks = real.batch.mask.numpy() == 1
        shown = [ejection_fraction(volume_curve(mask)) for mask in masks]
        asked = real.batch.scalar[:, 0].numpy()
        # A clip may miss the very trough; pixels of a radius of 7 are coarse.
        assert np.corrcoef(shown, asked)[0, 1] > 0.97

    @pytest.mark.parametrize("beats", [62, 75, 100, 130])
    def test_rate_and_fullest_moment_of_a_curve(self, beats):
        """1.5 to 3 beats at 16 frames a second: the rate within 3 a minute."""
        period = 60 / beats
        peaks = -1.3 * period + period * np.arange(12)
        times = np.arange(24) / FPS
        curve = 1 - 0.6 * contraction(times, peaks)
        assert curve_rate(curve, FPS) == pytest.approx(beats, abs=3)
        wave = np.cos(2 * np.pi * (times - 0.1) / period)
        assert fullest(wave, FPS, beats) == pytest.approx(0.1, abs=1e-6)

    def test_what_stands_still_has_no_rate(self):
        assert np.isnan(curve_rate(np.ones(24), FPS))
        assert np.isnan(fullest(np.ones(24), FPS, 70))
        assert np.isnan(curve_rate(np.full(24, np.nan), FPS))

    def test_beats_of_an_ecg(self):
        times = np.arange(375) / RATE
        peaks = 0.2 + 0.7 * np.arange(-3, 6)
        rate, at = ecg_beats(torch.tensor(twelve_leads(times, peaks)), LEADS, RATE)
        assert rate == pytest.approx(60 / 0.7, abs=1)
        assert at == pytest.approx(0.2, abs=0.01)

    def test_pulsation_follows_the_volume_with_one_sign(self, real):
        found = pulsation(real.batch.image[:6], real.batch.image[6:])
        volumes = [volume_curve(mask) for mask in real.batch.mask[:6].numpy() == 1]
        signs = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, volumes, strict=True)]
        assert min(np.abs(signs)) > 0.8
        assert len(set(np.sign(signs))) == 1


class TestEf:
    def test_honest_clips_agree_as_real_ones_do(self, judged):
        found = EfAgreement(steps=STEPS).measure(judged)
        assert found["ef_error"].value < 8
        assert found["ef_correlation"].value > 0.85
        assert found["ef_error"].low <= found["ef_error"].value <= found["ef_error"].high
        assert found["ef_error"].floor.n == 8
        assert "segmenter" in found["ef_error"].extractor

    def test_a_wrong_fraction_is_seen(self, judged, real):
        honest = EfAgreement(steps=STEPS).measure(judged)["ef_bias"].value
        found = EfAgreement(steps=STEPS).measure(against(judged, real, asked=20))
        assert found["ef_bias"].value == pytest.approx(honest - 20, abs=1)
        assert found["ef_correlation"].value > 0.85

    def test_without_masks_it_says_so(self):
        clips = beating(20)
        plain = Studies(
            replace(clips.schema, mask_classes=()), clips.studies, replace(clips.batch, mask=None)
        )
        drawn = beating(6, seed=1, synthetic=True)
        result = evaluate(plain, drawn, ["ef_agreement"], extractor="random")
        assert "a class 'cavity'" in result["skipped"]["ef_agreement"]


class TestRhythm:
    def test_honest_clips_beat_with_their_ecg(self, judged):
        found = RhythmAgreement(steps=STEPS).measure(judged)
        assert found["rhythm_rate_error"].value < 5
        assert found["rhythm_phase_error"].value < 1
        assert found["rhythm_phase_gain"].low > 0
        assert found["rhythm_rate_gain"].value > 5
        assert found["rhythm_phase_error"].floor.unit == "frames"

    def test_a_clip_that_lags_is_seen_by_its_phase_alone(self, judged, real):
        found = RhythmAgreement(steps=STEPS).measure(against(judged, real, late=3))
        assert found["rhythm_phase_error"].value == pytest.approx(3, abs=1)
        assert found["rhythm_rate_error"].value < 5

    def test_ecgs_that_are_ignored_are_seen(self, judged, real):
        found = RhythmAgreement(steps=STEPS).measure(against(judged, real, swapped=True))
        assert found["rhythm_phase_gain"].low < 0.5
        assert found["rhythm_rate_error"].value > 5

    def test_without_masks_a_temporal_signal_serves(self, real):
        bare = replace(real.schema, mask_classes=())
        drawn = beating(12, seed=1, synthetic=True, noise=0.1)
        comparison = Comparison(
            Studies(bare, real.studies, replace(real.batch, mask=None)),
            Studies(bare, drawn.studies, replace(drawn.batch, mask=None)),
        )
        found = RhythmAgreement().measure(comparison)
        assert found["rhythm_phase_error"].value < 2
        assert found["rhythm_phase_gain"].value > 0.5
        assert "real clips change" in found["rhythm_rate_error"].extractor

    def test_usual_delay_is_a_line_over_the_period(self):
        rates = np.linspace(50, 120, 20)
        times = np.arange(32) / FPS
        curves = [np.cos(2 * np.pi * (times - 0.3 - (0.05 + 0.2 * 60 / r)) * r / 60) for r in rates]
        beats = np.stack([rates, np.full(20, 0.3)], axis=1)
        np.testing.assert_allclose(
            usual_delay(np.stack(curves), beats, FPS), [0.05, 0.2], atol=1e-6
        )

    def test_images_and_clips_without_ecg_are_refused(self, real):
        result = evaluate(
            discs(40), discs(9, seed=1, synthetic=True), ["rhythm_agreement"], extractor="random"
        )
        assert result["skipped"]["rhythm_agreement"] == "the studies are no clips"
        drawn = beating(6, seed=1, synthetic=True)
        silent = replace(drawn.schema, leads=()), replace(drawn.batch, ecg=None)
        comparison = Comparison(real, Studies(silent[0], drawn.studies, silent[1]))
        comparison.segmented = lambda which, steps: getattr(comparison, which).batch.mask.byte()
        with pytest.raises(DataError, match="synthetic clips carry no ECG"):
            RhythmAgreement().measure(comparison)

    def test_ecgs_are_found_by_what_the_manifest_tells(self, judged, real):
        """Samples that hold no ECG but say whose they were asked with, and its digest."""
        told = [
            replace(p, condition={"ecg": {"of": f"r0-{i}", "sha256": digest_of_values(ecg)}})
            for i, (p, ecg) in enumerate(
                zip(judged.synthetic.batch.provenance, real.batch.ecg, strict=False)
            )
        ]
        drawn = beating(12, seed=1, synthetic=True, noise=0.1)
        # The clips of the same studies, as a generator that obeys would draw them.
        shown = replace(drawn.batch, image=real.batch.image[:12], ecg=None, provenance=tuple(told))
        comparison = Comparison(real, Studies(drawn.schema, drawn.studies, shown))
        comparison.frames._consumers |= judged.frames._consumers
        found = RhythmAgreement(steps=STEPS).measure(comparison)
        assert found["rhythm_phase_error"].value < 1
        wrong = replace(told[0], condition={"ecg": {"of": "r0-1", "sha256": "0"}})
        lost = replace(shown, provenance=(wrong, *told[1:]))
        comparison = Comparison(real, Studies(drawn.schema, drawn.studies, lost))
        comparison.frames._consumers |= judged.frames._consumers
        with pytest.raises(DataError, match="not among the real clips"):
            RhythmAgreement(steps=STEPS).measure(comparison)


class TestTiming:
    def test_full_and_empty_frames(self, judged):
        found = TimingAgreement(steps=STEPS).measure(judged)
        assert found["ed_error"].value <= 2
        assert found["es_error"].value <= 2
        assert found["es_error"].floor.n == 8


def test_weighted_statistics_equal_those_of_repeated_values():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=9), rng.integers(0, 4, (5, 9)).astype(float)
    for row, middle, centre in zip(
        weights, median(values, weights), mean(values, weights), strict=True
    ):
        repeated = np.repeat(values, row.astype(int))
        assert middle == np.quantile(repeated, 0.5, method="inverted_cdf")
        assert centre == pytest.approx(repeated.mean())
