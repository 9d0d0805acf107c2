"""Simulated electrocardiograms: what is stated is what can be measured."""

import numpy as np
import pytest

from medgen.simulate.ecg import (
    CLEAN,
    EDGE,
    FINDINGS,
    LARGEST,
    LEADS,
    Noise,
    draw_patient,
    draw_rhythm,
    qt_interval,
    record,
)

RATE = 1000.0
LEVEL = np.exp(-(EDGE**2) / 2)
"""Share of its height at which a wave begins and ends."""


def recording(seed, findings=(), *, prevalence=1.0, seconds=10.0, noise=CLEAN, rate=RATE, **draw):
    rng = np.random.default_rng(seed)
    patient = draw_patient(rng, findings, prevalence=prevalence, **draw)
    rhythm = draw_rhythm(patient, seconds, rng)
    return record(patient, rhythm, round(seconds * rate), rate, rng, noise=noise), rhythm, patient


def lead(made, name):
    return made.signal[LEADS.index(name)].astype(np.float64)


def around(signal, center, before, after):
    """The part of a signal from so many s before a time to so many after."""
    return signal[round((center - before) * RATE) : round((center + after) * RATE)]


@pytest.mark.parametrize("findings", [(), *[(name,) for name in FINDINGS]])
def test_leads_follow_einthoven_and_goldberger(findings):
    made, _, _ = recording(1, findings, noise=Noise())
    one, two, three, avr, avl, avf = made.signal[:6].astype(np.float64)
    for residual in (
        one - two + three,
        avr + (one + two) / 2,
        avl - one + two / 2,
        avf - two + one / 2,
    ):
        assert np.abs(residual).max() < 1e-6
    assert np.abs(one).max() > 0.3


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_deflection_of_lead_two_is_at_the_r_peaks(seed):
    made, _, _ = recording(seed, noise=Noise())
    for r in made.r_times[1:-1]:
        found = np.argmax(around(lead(made, "II"), r, 0.2, 0.2)) / RATE - 0.2
        assert abs(found) <= 0.004


def test_intervals_can_be_read_from_the_signal():
    """P and T of lead II, and the spread of lead V1's S wave, end where they are said to."""
    for seed in range(6):
        made, _, _ = recording(seed)
        r = made.r_times[2]
        start = r - made.qrs_duration / 2000
        wave = around(lead(made, "II"), r, 0, 0.9 * made.rr[2] - made.pr_interval / 1000)
        peak = 120 + np.argmax(wave[120:])
        end = peak + np.flatnonzero(wave[peak:] < LEVEL * wave[peak])[0]
        assert (r - start) * 1000 + end == pytest.approx(made.qt_interval, abs=4)
        wave = around(lead(made, "II"), r, 0.3, -made.qrs_duration / 2000)
        begin = np.flatnonzero(wave > LEVEL * wave[20:-30].max())
        begin = begin[begin > np.argmin(wave[: np.argmax(wave[20:-30]) + 20])][0]
        assert (start - r) * 1000 + 300 - begin == pytest.approx(made.pr_interval, abs=6)


def test_qrs_duration_is_the_spread_of_its_waves():
    widths, truths = [], []
    for seed in range(30):
        made, _, _ = recording(seed, ("bundle_branch_block",), prevalence=0.4, seconds=4)
        wave = around(lead(made, "V2"), made.r_times[1], 0.11, 0.15)
        low = np.argmin(wave)
        deep = np.flatnonzero(wave < 0.5 * wave[low])
        widths.append(deep[-1] - deep[0])
        truths.append(made.qrs_duration)
    assert np.corrcoef(widths, truths)[0, 1] > 0.97
    assert min(truths) < 100
    assert max(truths) > 130


def test_rate_is_beats_a_minute_of_the_recording():
    for seed in range(5):
        made, rhythm, patient = recording(seed, seconds=30)
        counted = 60 * (len(made.r_times) - 1) / np.ptp(made.r_times)
        assert made.heart_rate == pytest.approx(counted, abs=1.0)
        assert made.heart_rate == pytest.approx(rhythm.rate, rel=0.03)
        assert qt_interval(patient, rhythm) == pytest.approx(
            patient.qtc * np.sqrt(60 / rhythm.rate)
        )


def test_fibrillation_is_irregular_and_has_no_p_wave():
    for seed in range(4):
        calm, *_ = recording(seed, seconds=30)
        wild, *_ = recording(seed, ("atrial_fibrillation",), seconds=30)
        assert np.std(calm.rr) / np.mean(calm.rr) < 0.06
        assert np.std(wild.rr) / np.mean(wild.rr) > 0.1
        assert np.isnan(wild.pr_interval)

        def before(made):
            cuts = [around(lead(made, "II"), r, 0.25, -0.07) for r in made.r_times[2:20]]
            return np.ptp(np.mean(cuts, axis=0))

        assert before(wild) < 0.6 * before(calm)


def test_an_ectopic_beat_is_early_and_followed_by_a_pause():
    _, rhythm, _ = recording(3, ("ectopic_beats",), seconds=60)
    early = np.flatnonzero(rhythm.ectopic[1:-2]) + 1
    assert len(early) >= 2
    usual = 60 / rhythm.rate
    rr = np.diff(rhythm.times)
    assert (rr[early - 1] < 0.85 * usual).all()
    assert (rr[early] > 1.2 * usual).all()
    _, rhythm, _ = recording(3, seconds=60)
    assert not rhythm.ectopic.any()


def test_findings_mark_the_leads_that_they_should():
    for seed in range(5):
        plain, *_ = recording(seed)
        large, *_ = recording(seed, ("hypertrophy",))
        assert lead(large, "V5").max() > 1.4 * lead(plain, "V5").max()
        assert lead(large, "V1").min() < 1.3 * lead(plain, "V1").min()
        block, *_ = recording(seed, ("bundle_branch_block",))
        assert block.qrs_duration > plain.qrs_duration + 35
        sick, _, patient = recording(seed, ("ischaemia",))
        most = {"anterior": "V3", "lateral": "V6", "inferior": "II"}[patient.territory]
        r, st = plain.r_times[2], plain.qrs_duration / 2000 + 0.05
        raised = around(lead(sick, most) - lead(plain, most), r + st, 0.01, 0.01).mean()
        assert 0.1 < raised < 0.6


def test_noise_has_the_level_that_is_stated():
    stated = Noise(baseline=0.1, mains=0.05, muscle=0.02)
    clean, *_ = recording(2, seconds=60, rate=250.0)
    noisy, *_ = recording(2, seconds=60, rate=250.0, noise=stated)
    extra = lead(noisy, "V3") - lead(clean, "V3")
    spectrum = np.abs(np.fft.rfft(extra)) ** 2 * 2 / len(extra) ** 2
    frequency = np.fft.rfftfreq(len(extra), 1 / 250)
    mains = abs(frequency - 50) < 0.1
    power = {"baseline": spectrum[frequency < 1].sum(), "mains": spectrum[mains].sum()}
    power["muscle"] = spectrum[(frequency >= 1) & ~mains].sum()
    for name, value in power.items():
        assert np.sqrt(value) == pytest.approx(getattr(stated, name), rel=0.05), name


def test_a_recording_is_a_function_of_its_seed_and_stays_in_range():
    first, *_ = recording(7, FINDINGS, prevalence=0.5, noise=Noise(), rate=250.0)
    again, *_ = recording(7, FINDINGS, prevalence=0.5, noise=Noise(), rate=250.0)
    assert first.signal.tobytes() == again.signal.tobytes()
    assert first.signal.dtype == np.float32
    largest = [
        np.abs(recording(i, FINDINGS, prevalence=0.6, noise=Noise(), rate=100.0)[0].signal).max()
        for i in range(60)
    ]
    assert max(largest) < LARGEST


def test_delay_widens_qrs_and_nothing_else():
    slow, _, a = recording(5, delay=2.0)
    fast, _, b = recording(5, delay=-2.0)
    assert slow.qrs_duration - fast.qrs_duration == pytest.approx(32)
    assert (a.age, a.sex, a.rate, a.qtc) == (b.age, b.sex, b.rate, b.qtc)
    assert np.array_equal(slow.r_times, fast.r_times)
