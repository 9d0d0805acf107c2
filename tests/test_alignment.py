"""Judges agree with right conditions and not with wrong ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_studies import Studies, discs

from medgen.augmentation.intervals import patient_weights
from medgen.errors import DataError
from medgen.evaluation.alignment import (
    LabelAgreement,
    MaskAgreement,
    ScalarAgreement,
    _calibration,
)
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.suite import evaluate

REAL = discs(300)
STEPS = 60


@pytest.fixture(scope="module")
def right():
    return Comparison(REAL, discs(100, seed=1, synthetic=True))


def test_right_labels_are_found(right):
    found = LabelAgreement(steps=STEPS).measure(right)
    assert found["label_agreement"].value > 0.95
    assert found["label_auroc"].value > 0.97
    assert found["label_agreement"].floor.value > 0.95
    assert found["label_agreement"].floor.n == len(right.test)


def test_wrong_labels_are_not_found():
    wrong = Comparison(REAL, discs(100, seed=1, synthetic=True, wrong=True))
    found = LabelAgreement(steps=STEPS).measure(wrong)
    assert found["label_agreement"].high < 0.1
    assert found["label_auroc"].high < 0.1
    assert found["label_calibration"].low > 0.7
    assert found["label_calibration"].floor.high < 0.3
    assert found["label_agreement"].floor.value > 0.95


def several(studies):
    """The same studies with two findings that may stand together, the second one random."""
    rng = np.random.default_rng(len(studies))
    other = torch.from_numpy(rng.integers(0, 2, len(studies)))
    label = torch.stack([studies.batch.label[:, 1], other], dim=1)
    schema = replace(studies.schema, findings=("upper", "random"), exclusive=False)
    return Studies(schema, studies.studies, replace(studies.batch, label=label))


def test_several_findings_are_judged_one_by_one():
    """One finding is seen, one is a coin: agreement is near (1 + 1/2) / 2, both right near 1/2."""
    comparison = Comparison(several(REAL), several(discs(200, seed=1, synthetic=True)))
    found = LabelAgreement(steps=STEPS).measure(comparison)
    assert found["label_agreement"].value == pytest.approx(0.75, abs=0.08)
    assert found["label_agreement_all"].value == pytest.approx(0.5, abs=0.12)


def test_masks_that_were_followed_reach_the_floor(right):
    found = MaskAgreement(steps=STEPS).measure(right)
    assert found["mask_agreement"].value > 0.8
    assert found["mask_agreement_ratio"].value == pytest.approx(1, abs=0.03)
    apart = found["mask_hausdorff"]
    assert apart.unit == "px"
    assert apart.value < 3
    assert apart.low <= apart.floor.high
    assert apart.floor.low <= apart.high


def test_permuted_masks_are_near_chance():
    synthetic = discs(100, seed=1, synthetic=True)
    moved = replace(synthetic.batch, mask=synthetic.batch.mask.roll(1, dims=0))
    comparison = Comparison(REAL, Studies(synthetic.schema, synthetic.studies, moved))
    found = MaskAgreement(steps=STEPS).measure(comparison)
    assert found["mask_agreement"].value < 0.4
    assert found["mask_agreement_ratio"].high < 0.6
    assert found["mask_hausdorff"].low > 2 * found["mask_hausdorff"].floor.high


def test_distances_are_in_mm_where_both_sides_know_their_spacing(right):
    def sized(studies):
        spacing = torch.full((len(studies), 2), 2.5)
        return Studies(studies.schema, studies.studies, replace(studies.batch, spacing=spacing))

    metric = MaskAgreement(steps=STEPS)
    known = Comparison(sized(REAL), sized(discs(100, seed=1, synthetic=True)))
    millimetres, pixels = (metric.measure(c)["mask_hausdorff"] for c in (known, right))
    assert millimetres.unit == "mm"
    assert millimetres.value == pytest.approx(2.5 * pixels.value)


@pytest.mark.parametrize("gap", [0.0, 0.25])
def test_the_interval_of_the_calibration_error_covers_the_truth(gap):
    """Probabilities that are `gap` too low, 200 times; at 95 % coverage fewer than 180 hits come
    once in a thousand."""
    rng = np.random.default_rng(0)
    hits, patients = 0, [str(i) for i in range(100)]
    for seed in range(200):
        scores = rng.uniform(0.25, 0.75, (100, 1))
        truth = (rng.uniform(size=(100, 1)) < scores + gap).astype(np.int64)
        found = _calibration(scores, truth, patient_weights(patients, 200, seed=seed), 100)
        hits += found.low <= gap <= found.high
    assert hits >= 180


def measured(studies, *, wrong=False):
    """The same studies with the radius of the disc in pixels as scalar, a seventh unknown."""
    radius = (studies.batch.mask.flatten(1).sum(1) / torch.pi).sqrt()
    radius = radius.roll(1) if wrong else radius
    radius[::7] = torch.nan
    schema = replace(studies.schema, scalars=("radius",))
    return Studies(schema, studies.studies, replace(studies.batch, scalar=radius[:, None]))


def test_scalars_that_were_followed_reach_the_floor():
    comparison = Comparison(measured(REAL), measured(discs(100, seed=1, synthetic=True)))
    found = ScalarAgreement(steps=150).measure(comparison)
    error, together = found["scalar_error/radius"], found["scalar_correlation/radius"]
    assert error.n == 85
    assert error.high < 0.65 < 3 / 4
    assert error.low <= error.floor.high
    assert error.floor.low <= error.high
    assert together.low > 0.6
    assert together.floor.low > 0.5


def test_permuted_scalars_are_not_found():
    wrong = measured(discs(100, seed=1, synthetic=True), wrong=True)
    found = ScalarAgreement(steps=150).measure(Comparison(measured(REAL), wrong))
    assert found["scalar_error/radius"].low > found["scalar_error/radius"].floor.high
    together = found["scalar_correlation/radius"]
    assert together.low <= 0 <= together.high


def test_scalars_that_never_vary_are_refused():
    flat = measured(REAL)
    flat.batch.scalar[:] = 3
    comparison = Comparison(flat, measured(discs(40, seed=1, synthetic=True)))
    with pytest.raises(DataError, match="radius does not, or is unknown"):
        ScalarAgreement(steps=1).measure(comparison)


@pytest.mark.parametrize(("findings", "masks"), [(True, False), (False, True)])
def test_an_evaluation_measures_what_the_studies_allow(findings, masks):
    kind = {"findings": findings, "masks": masks}
    real, synthetic = discs(150, **kind), discs(40, seed=1, synthetic=True, **kind)
    metrics = [
        "kid",
        {"type": "label_agreement", "steps": 20},
        {"type": "mask_agreement", "steps": 20},
    ]
    result = evaluate(real, synthetic, metrics, extractor="random")
    assert ("label_agreement" in result["metrics"]) == findings
    assert ("mask_agreement" in result["metrics"]) == masks
    missing = "masks" if findings else "findings"
    assert list(result["skipped"].values()) == [f"the studies carry no {missing}"]
    assert result["counts"]["synthetic"] == 40
    assert result["extractor"]["digest"].startswith("sha256:")
