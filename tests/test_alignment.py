"""Judges agree with right conditions and not with wrong ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_studies import Studies, discs

from medgen.evaluation.alignment import LabelAgreement, MaskAgreement
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


def test_permuted_masks_are_near_chance():
    synthetic = discs(100, seed=1, synthetic=True)
    moved = replace(synthetic.batch, mask=synthetic.batch.mask.roll(1, dims=0))
    comparison = Comparison(REAL, Studies(synthetic.schema, synthetic.studies, moved))
    found = MaskAgreement(steps=STEPS).measure(comparison)
    assert found["mask_agreement"].value < 0.4
    assert found["mask_agreement_ratio"].high < 0.6


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
