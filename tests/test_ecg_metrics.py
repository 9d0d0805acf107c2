"""Intervals and limb leads of ECGs whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_hearts import LEADS, RATE, twelve_leads
from toy_studies import Studies, discs, split_of

from medgen.data.signals import Signal
from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.ecg import EcgIntervals, LimbLeads, intervals, signals_of
from medgen.evaluation.suite import evaluate
from medgen.types import Batch, Provenance, Schema, Study

SECONDS = 5


def ecgs(count, *, seed=0, synthetic=False, faster=0.0, broken=0.0):
    """ECGs as images; `faster` beats than asked for, `broken` mV of noise in each lead apart."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(SECONDS * RATE)) / RATE
    images, scalars = [], []
    for _ in range(count):
        asked = rng.uniform(60, 100)
        period = 60 / (asked + faster)
        peaks = -0.3 + period * np.arange(20) + rng.uniform(0, period)
        leads = twelve_leads(times, peaks) + broken * rng.normal(size=(12, len(times)))
        images.append(leads / 2.5)
        scalars.append([asked])
    schema = Schema(
        size=(len(times),),
        channels=12,
        scalars=("heart_rate",),
        spacing=(1 / RATE,),
        window=(-2.5, 2.5),
        time=True,
        leads=LEADS,
        ecg_rate=RATE,
    )
    ids = [f"{'s' if synthetic else 'r'}{seed}-{i}" for i in range(count)]
    splits = ["train" if synthetic else split_of(i, np.cumsum((6, 2, 2))) for i in range(count)]
    return Studies(
        schema,
        [Study(i, i, split) for i, split in zip(ids, splits, strict=True)],
        Batch(
            image=torch.tensor(np.stack(images), dtype=torch.float32).clamp(-1, 1),
            scalar=torch.tensor(scalars, dtype=torch.float32),
            provenance=tuple(Provenance(id=i, synthetic=synthetic, source="toy") for i in ids),
        ),
    )


@pytest.fixture(scope="module")
def real():
    return ecgs(20)


def test_images_become_millivolts_again():
    data = ecgs(1)
    (signal,) = signals_of(data.batch.image, data.schema)
    assert signal.lead("II").max() == pytest.approx(1.0, abs=0.02)
    assert signal.rate == RATE


@pytest.mark.parametrize("changes", [{"window": None}, {"spacing": ()}, {"leads": ("II",)}])
def test_what_a_schema_must_say(changes):
    data = ecgs(1)
    with pytest.raises(DataError, match="need in their schema"):
        signals_of(data.batch.image, replace(data.schema, **changes))


def test_intervals_follow_what_is_drawn():
    pytest.importorskip("neurokit2")
    times = np.arange(round(SECONDS * RATE)) / RATE
    peaks = 0.3 + 0.8 * np.arange(-2, 9)
    narrow, wide = (
        intervals(Signal(twelve_leads(times, peaks, qrs).astype(np.float32), LEADS, RATE))
        for qrs in (0.08, 0.16)
    )
    assert narrow[0] == pytest.approx(75, abs=1)
    # Gaussian waves have no end; the delineator's is where little is left.
    assert narrow[1] == pytest.approx(80, abs=16)
    assert wide[1] == pytest.approx(160, abs=32)
    assert 330 < narrow[2] < 420


def test_nothing_is_found_in_silence():
    pytest.importorskip("neurokit2")
    assert np.isnan(intervals(Signal(np.zeros((1, 1250), np.float32), ("II",), RATE))).all()


def test_a_wrong_rate_is_seen_in_the_distribution_and_in_the_agreement(real):
    pytest.importorskip("neurokit2")
    honest, fast = (
        EcgIntervals().measure(Comparison(real, ecgs(8, seed=1, synthetic=True, faster=beats)))
        for beats in (0, 30)
    )
    assert honest["ecg_error/heart_rate"].value < 2
    assert honest["ecg_correlation/heart_rate"].value > 0.95
    assert fast["ecg_error/heart_rate"].value == pytest.approx(30, abs=3)
    near, far = (found["ecg_distance/heart_rate"] for found in (honest, fast))
    assert far.value > near.value + 15
    assert far.floor.unit == "beats a minute"
    assert {"ecg_distance/qrs_duration", "ecg_distance/qt_interval"} <= set(honest)


def test_limb_leads_that_ignore_each_other_are_seen(real):
    lawful, broken = (
        LimbLeads().measure(Comparison(real, ecgs(8, seed=1, synthetic=True, broken=mv)))
        for mv in (0.0, 0.1)
    )
    assert lawful["limb_residual"].value < 1e-5
    # Six leads of independent noise have four of six degrees of freedom against their laws.
    assert broken["limb_residual"].value == pytest.approx(0.1 * (4 / 6) ** 0.5, rel=0.1)
    assert broken["limb_residual"].floor.value < 1e-5


def test_the_suite_takes_signals_and_tells_what_is_no_signal(real):
    drawn = ecgs(8, seed=1, synthetic=True)
    result = evaluate(real, drawn, ["limb_leads", "frechet", "stream"])
    assert result["metrics"]["frechet"]["extractor"].startswith("pixels-pca")
    assert result["skipped"] == {"stream": "the studies are no clips"}
    images = evaluate(
        discs(40), discs(9, seed=1, synthetic=True), ["limb_leads"], extractor="random"
    )
    assert images["skipped"] == {"limb_leads": "the studies are no ECGs"}
