"""`prove` where the truth is known, and the false-alarm rate of its verdicts.

A verdict of "helps" or "hurts" is two-sided at 5 %, so with nothing to find each of the two is said
in at most 2.5 % of experiments; the first test measures that. The others run whole experiments at
fixed seeds.
"""

from dataclasses import replace

import numpy as np
import pytest
from toy_studies import Studies, discs

from medgen.augmentation.experiment import prove
from medgen.augmentation.intervals import paired_difference, patient_weights
from medgen.augmentation.verdict import MIXED, judge
from medgen.data.splits import by_split, load
from medgen.settings import ProveSettings

PATIENTS, REPEATS, RATIOS = 80, 3, 4


def family(rng, gain, draws=500):
    """Differences of four ratios, each a mean over patients and repeats; ratios share patients."""
    weights = patient_weights([str(i) for i in range(PATIENTS)], draws, seed=int(rng.integers(99)))
    shared = rng.normal(size=PATIENTS)
    found = []
    for ratio in range(RATIOS):
        own = gain + shared + rng.normal(size=PATIENTS)
        repeats = own + 0.3 * rng.normal(size=(REPEATS, 1))
        values, spread = repeats.mean(axis=1), repeats @ weights.T / PATIENTS
        found.append(paired_difference(values, spread, seed=int(rng.integers(2**31)) + ratio))
    return judge(found)


def rates(gain, experiments):
    """Share of experiments in which some ratio "helps", "hurts", or is below 0.05 uncorrected."""
    rng = np.random.default_rng(0)
    said = [family(rng, gain) for _ in range(experiments)]
    helps, hurts = (
        np.mean([any(each["verdict"] == word for each in group) for group in said])
        for word in ("helps", "hurts")
    )
    return helps, hurts, np.mean([min(each["p"] for each in group) < 0.05 for group in said])


def test_false_alarms_over_four_ratios_stay_below_five_percent():
    """400 experiments without an effect: at most 5 % may alarm falsely (standard error 1.1 %).

    2 % do, and 9 % without the correction: Student's t of two degrees of freedom is cautious. Of
    60 with an effect of two standard deviations nearly all find it, and none says that it hurts.
    """
    helps, hurts, uncorrected = rates(0.0, 400)
    assert uncorrected > 0.05 > helps + hurts
    helps, hurts, _ = rates(2.0, 60)
    assert helps > 0.9
    assert hurts == 0


def primary(result):
    [comparison] = [c for c in result.comparisons if c["primary"]]
    return comparison


def run(tmp_path, real, synthetic, task, **settings):
    asked = ProveSettings(task=task, **{"batch": 16, **settings})
    saw = {"studies": len(synthetic), "patients": len(synthetic)}
    return prove(real, synthetic, asked, out=tmp_path, generator_saw=saw)


def copies_of(real, count):
    """A generator that returns its training set: copies of the real training studies."""
    train = load(by_split(real, "train"))
    synthetic = discs(count, seed=1, synthetic=True)
    batch = train.select([i % len(train) for i in range(count)])
    batch = replace(batch, provenance=synthetic.batch.provenance)
    return Studies(synthetic.schema, synthetic.studies, batch)


def test_copies_of_the_training_set_are_no_evidence(tmp_path):
    """Duplicates and copies are the same studies as often, in another order: nothing to find, so
    one seed in twenty would alarm falsely; this one is fixed."""
    real = discs(100, noise=2.5)
    once = {"ratios": (1.0,), "repeats": 3, "steps": 15}
    result = run(tmp_path, real, copies_of(real, 60), "classification", **once)
    found = primary(result)
    assert found["verdict"] == "no evidence"
    assert found["estimate"]["low"] < 0 < found["estimate"]["high"]


def test_a_generator_that_learned_from_ten_times_the_data_helps(tmp_path):
    """Its samples are fresh studies, ten for each of the twelve that the consumer has.

    The result says that the generator saw more patients. Two of two other seeds agree.
    """
    real = discs(200, seed=100, noise=1.5, splits=(2, 2, 6), scalars=True)
    fresh = discs(120, seed=200, noise=1.5, synthetic=True, scalars=True)
    few = {"fractions": (0.3,), "ratios": (10.0,), "repeats": 5, "steps": 60}
    result = run(tmp_path, real, fresh, "regression", **few)
    counts = {row["arm"]: (row["real"], row["synthetic"]) for row in result.rows}
    assert counts[MIXED] == (12, 120)
    found = primary(result)
    assert found["verdict"] == "helps"
    assert found["estimate"]["low"] > 0
    assert "learned from 120 patients, the consumer from 12" in found["estimate"]["warning"]
    assert result.verdicts == {"0.3": "helps"}


@pytest.mark.parametrize(
    ("task", "field", "count", "settings"),
    [
        ("regression", "scalar", 100, {"fractions": (0.3,), "steps": 45}),
        ("segmentation", "mask", 150, {"fractions": (0.2,), "steps": 20, "batch": 8}),
    ],
)
def test_shuffled_labels_hurt(task, field, count, settings, tmp_path):
    """Sound images, each with the label of the one before: harmless ones would be called harmful
    by one seed in forty."""
    synthetic = discs(100, seed=1, synthetic=True, scalars=True)
    moved = getattr(synthetic.batch, field).roll(1, dims=0)
    wrong = replace(synthetic, batch=replace(synthetic.batch, **{field: moved}))
    result = run(tmp_path, discs(count, scalars=True), wrong, task, ratios=(4.0,), **settings)
    found = primary(result)
    assert found["verdict"] == "hurts"
    assert found["estimate"]["high"] < 0
    if task == "regression":
        assert all(0 < row["further"]["MAE row"] < 12 for row in result.rows)
