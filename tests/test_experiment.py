"""The experiment returns the right verdict where the answer is known."""

import json
from dataclasses import replace
from math import erf

import numpy as np
import pytest
import torch
from toy_studies import Studies, balls, discs

from medgen.augmentation.arms import Arm, plan, training_indices
from medgen.augmentation.augment import STRONG, Augment
from medgen.augmentation.experiment import prove
from medgen.augmentation.intervals import Difference
from medgen.augmentation.tasks import task_for, train_consumer
from medgen.augmentation.verdict import (
    AUGMENTED,
    DUPLICATES,
    MIXED,
    PRETRAINED,
    RANDOMIZED,
    REAL,
    SYNTHETIC,
    compare,
    judge,
    verdicts,
)
from medgen.data.splits import by_split
from medgen.errors import DataError, OutputError
from medgen.settings import ProveSettings

SAW = {"studies": 10, "patients": 10}
QUICK = ProveSettings(task="classification", ratios=(1.0,), repeats=2, steps=4, batch=8)


def run(tmp_path, real, synthetic, **changes):
    settings = {"ratios": (12.0,), "fractions": (0.05,), "repeats": 4, "steps": 30, "batch": 16}
    task = changes.pop("task", "classification")
    settings = ProveSettings(task=task, **{**settings, **changes})
    return prove(real, synthetic, settings, out=tmp_path, generator_saw=SAW)


def primary(result):
    [comparison] = [c for c in result.comparisons if c["primary"]]
    return comparison


def scored(separations, *, repeats=3, count=200):
    """Results of arms whose scores are Gaussian, the classes so many deviations apart."""
    rng = np.random.default_rng(0)
    studies = discs(count)
    upper = studies.batch.label[:, 1].numpy()
    common = rng.normal(size=count)
    results = [
        {"fraction": 1.0, "arm": arm, "ratio": ratio, "repeat": repeat, "scores": both}
        for (arm, ratio), separation in separations.items()
        for repeat in range(repeats)
        for score in [separation * upper + common + 0.2 * rng.normal(size=count)]
        for both in [np.stack([-score, score], axis=1).tolist()]
    ]
    task = task_for("classification", studies.schema)
    return compare(task, task.targets(studies.batch), studies.studies, results, seed=0, warning={})


@pytest.mark.parametrize(
    ("mixed", "verdict"), [(2.0, "helps"), (1.0, "no evidence"), (0.3, "hurts")]
)
def test_verdicts_on_known_scores(mixed, verdict):
    """The AUROC of two unit Gaussians a distance d apart is Phi(d / sqrt 2)."""
    found = scored(
        {(REAL, 0.0): 1.0, (DUPLICATES, 1.0): 1.0, (MIXED, 1.0): mixed, (SYNTHETIC, 1.0): 1.0}
    )
    [comparison] = [c for c in found if c["primary"]]
    assert comparison["verdict"] == verdict
    exact = (erf(mixed / 2) - erf(1 / 2)) / 2
    assert comparison["estimate"]["value"] == pytest.approx(exact, abs=0.05)


def test_a_gain_over_real_that_duplicates_share_is_no_evidence():
    found = scored(
        {(REAL, 0.0): 0.5, (DUPLICATES, 1.0): 2.0, (MIXED, 1.0): 2.0, (SYNTHETIC, 1.0): 1.0}
    )
    said = {(c["arm"], c["versus"]): c["verdict"] for c in found}
    assert said[MIXED, REAL] == "helps"
    assert said[MIXED, DUPLICATES] == "no evidence"
    assert verdicts(found) == {"1": "no evidence"}


def test_several_ratios_are_corrected_for():
    """Four ratios 2.2 standard errors from zero, p 0.028 each: none is left after Holm."""
    draws = 2.2 + np.random.default_rng(0).normal(size=4000)
    for each in judge([Difference(2.2, 1.0, draws)] * 4):
        assert each["p"] < 0.05 < each["p_holm"] == pytest.approx(4 * each["p"])
        assert each["verdict"] == "no evidence"
        assert each["holm"]["low"] <= 0 < each["interval"]["low"]
        assert each["holm"]["level"] == pytest.approx(1 - 0.05 / 4)
    [alone] = judge([Difference(2.2, 1.0, draws)])
    assert alone["verdict"] == "helps"
    assert alone["holm"]["low"] == alone["interval"]["low"]
    assert alone["detectable"] < each["detectable"]


def test_every_comparison_says_what_it_could_have_seen():
    arms = {(REAL, 0.0): 1.0, (DUPLICATES, 1.0): 1.0, (MIXED, 1.0): 1.3, (SYNTHETIC, 1.0): 1.0}
    found = {count: scored(arms, count=count) for count in (100, 400)}
    for count, comparisons in found.items():
        for each in comparisons:
            assert f"With {count} test patients and 3 repeats" in each["power"]
            assert f"under {each['detectable']:.2g} would be missed" in each["power"]
    small, large = (found[count][0]["detectable"] for count in (100, 400))
    assert large < small


def test_wrong_labels_hurt(tmp_path):
    real, wrong = discs(100), discs(100, seed=1, synthetic=True, wrong=True)
    changes = {"ratios": (4.0,), "fractions": (0.3,), "repeats": 3, "steps": 45}
    assert primary(run(tmp_path, real, wrong, **changes))["verdict"] == "hurts"


@pytest.mark.parametrize("unit", [1.0, 1e3])
def test_regression_learns_in_any_unit_and_passes_unknown_scalars_over(unit):
    """The row of a disc, uniform over two bands, has a deviation of 5.7 px."""
    studies = discs(200, scalars=True)
    task = task_for("regression", studies.schema)
    targets = unit * task.targets(studies.batch)
    targets[:50] = torch.nan
    images = studies.batch.image
    consumer = train_consumer(task, images[:150], targets[:150], steps=60, batch=16, lr=3e-3)
    scores = consumer.scores(images[150:], targets[150:])
    assert task.value(scores, targets[150:])[0] > 0.5
    assert task.further(scores, targets[150:])["MAE row"] < 4 * unit
    unknown = task.loss(torch.ones(2, 1, requires_grad=True), torch.full((2, 1), torch.nan))
    assert unknown.tolist() == [0, 0]


def test_arms_and_their_counts(tmp_path):
    real, synthetic = discs(100), discs(40, seed=1, synthetic=True)
    result = prove(real, synthetic, QUICK, out=tmp_path, generator_saw=SAW)
    counts = {row["arm"]: (row["real"], row["synthetic"], row["count"]) for row in result.rows}
    assert counts == {
        REAL: (60, 0, 60),
        DUPLICATES: (60, 0, 120),
        MIXED: (60, 40, 100),
        SYNTHETIC: (0, 40, 40),
    }
    assert {row["steps"] for row in result.rows} == {4}
    cost = {arm["arm"]: (arm["repeats"], arm["seconds"]) for arm in result.arms}
    for name, (repeats, seconds) in cost.items():
        spent = [row["seconds"] for row in result.rows if row["arm"] == name]
        assert (repeats, seconds) == (2, pytest.approx(sum(spent), abs=0.01))
    assert any("asks for 60 synthetic studies; all 40" in text for text in result.warnings)
    stored = json.loads((tmp_path / "prove.json").read_text())
    assert stored["rows"] == result.rows
    assert stored["test"] == {"studies": 20, "patients": 20}


def test_controls_are_further_arms(tmp_path):
    settings = replace(QUICK, controls=("augmentation", "pretraining"))
    result = prove(
        discs(60), discs(60, seed=1, synthetic=True), settings, out=tmp_path, generator_saw=SAW
    )
    rows = {row["arm"]: row for row in result.rows}
    assert rows[AUGMENTED]["synthetic"] == 0
    assert rows[AUGMENTED]["real"] == rows[REAL]["real"]
    assert rows[PRETRAINED]["synthetic"] == rows[MIXED]["synthetic"]
    assert {row["steps"] for row in result.rows} == {QUICK.steps}
    assert 0 <= rows[REAL]["on_synthetic"] <= 1
    assert rows[MIXED]["on_synthetic"] is None
    held = {(c["arm"], c["versus"]) for c in result.comparisons}
    assert {(MIXED, AUGMENTED), (PRETRAINED, REAL), (AUGMENTED, REAL)} <= held
    assert sum(c["primary"] for c in result.comparisons) == 1


def test_images_painted_from_masks_are_a_control(tmp_path):
    """As many as the mixed arm's, from masks of its own real studies; held against both arms."""
    settings = replace(QUICK, task="segmentation", controls=("randomized",), repeats=1)
    real, synthetic = discs(60), discs(30, seed=1, synthetic=True)
    result = prove(real, synthetic, settings, out=tmp_path / "a", generator_saw=SAW)
    rows = {row["arm"]: row for row in result.rows}
    assert rows[RANDOMIZED]["synthetic"] == rows[MIXED]["synthetic"] == 30
    held = {(c["arm"], c["versus"]): c for c in result.comparisons}
    assert {(MIXED, RANDOMIZED), (RANDOMIZED, DUPLICATES)} <= set(held)
    assert [pair for pair, c in held.items() if c["primary"]] == [(MIXED, DUPLICATES)]
    train = by_split(real, "train")
    arm = Arm(0.1, RANDOMIZED, 1.5, 0)
    chosen, painted = training_indices(arm, train, 400, seed=0)
    assert set(painted) == set(chosen)
    assert len(painted) == round(1.5 * len(chosen))
    bare = [discs(40, seed=i, synthetic=bool(i), masks=False) for i in (0, 1)]
    without = replace(settings, task="classification")
    with pytest.raises(DataError, match="carry none"):
        prove(*bare, without, out=tmp_path / "b", generator_saw=SAW)


def test_training_may_start_from_a_network():
    studies = discs(40)
    task = task_for("classification", studies.schema)
    images, targets = studies.batch.image, studies.batch.label
    first = train_consumer(task, images, targets, steps=2, batch=8)
    second = train_consumer(task, images, targets, steps=1, batch=8, lr=1e-9, start=first.network)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_strong_augmentation_keeps_image_and_mask_together():
    image = torch.zeros(1, 1, 32, 32)
    image[..., 8:20, 8:20] = 1
    mask = (image[:, 0] > 0).long()
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        moved, moved_mask = STRONG.apply(image, mask, rng)
        assert not torch.equal(moved_mask, mask)
        bright = moved[0, 0] > (moved[0, 0].max() + moved[0, 0].min()) / 2
        inner = (bright & (moved_mask[0] == 1)).sum() / moved_mask.sum()
        assert inner > 0.85


def test_arms_of_a_repeat_share_their_studies():
    real = by_split(discs(100), "train")
    chosen = {
        name: training_indices(Arm(0.5, name, 1.5, 0), real, 400, seed=0)
        for name in (REAL, DUPLICATES, MIXED, SYNTHETIC)
    }
    mine, none = chosen[REAL]
    assert none == []
    assert chosen[MIXED][0] == mine
    assert set(chosen[DUPLICATES][0]) == set(mine)
    repeats = np.bincount(chosen[DUPLICATES][0])
    assert set(repeats[repeats > 0]) == {2, 3}
    assert len(chosen[DUPLICATES][0]) == len(mine) + len(chosen[MIXED][1])
    assert chosen[SYNTHETIC][1][: len(chosen[MIXED][1])] == chosen[MIXED][1]
    assert chosen[REAL][0] != training_indices(Arm(0.5, REAL, 0, 1), real, 400, seed=0)[0]


def test_the_plan_holds_every_arm_once():
    arms = plan(replace(QUICK, ratios=(0.0, 0.5, 1.0), fractions=(0.1, 1.0), repeats=3))
    assert len(arms) == len(set(arms)) == 2 * 3 * (1 + 2 + 2 + 1)
    assert len({arm.file for arm in arms}) == len(arms)


def test_an_interrupted_experiment_resumes_to_the_same_end(tmp_path):
    real, synthetic = discs(80), discs(40, seed=1, synthetic=True)
    whole = prove(real, synthetic, QUICK, out=tmp_path / "whole", generator_saw=SAW)
    prove(real, synthetic, QUICK, out=tmp_path / "cut", generator_saw=SAW)
    files = sorted((tmp_path / "cut" / "prove").iterdir())
    for path in files[::2]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in files[1::2]}
    again = prove(real, synthetic, QUICK, out=tmp_path / "cut", generator_saw=SAW)
    assert [row["value"] for row in again.rows] == [row["value"] for row in whole.rows]
    assert again.comparisons == whole.comparisons
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_more_repeats_keep_the_finished_ones(tmp_path):
    real, synthetic = discs(80), discs(40, seed=1, synthetic=True)
    first = prove(real, synthetic, QUICK, out=tmp_path, generator_saw=SAW)
    more = prove(real, synthetic, replace(QUICK, repeats=3), out=tmp_path, generator_saw=SAW)
    assert more.rows[: len(first.rows)] == first.rows


def test_arms_of_another_experiment_are_refused(tmp_path):
    real, synthetic = discs(80), discs(40, seed=1, synthetic=True)
    prove(real, synthetic, QUICK, out=tmp_path, generator_saw=SAW)
    with pytest.raises(OutputError, match="another experiment"):
        prove(real, synthetic, replace(QUICK, steps=5), out=tmp_path, generator_saw=SAW)
    other = discs(40, seed=2, synthetic=True)
    with pytest.raises(OutputError, match="another experiment"):
        prove(real, other, QUICK, out=tmp_path, generator_saw=SAW)


def test_synthetic_studies_only_train(tmp_path):
    synthetic = discs(40, seed=1, synthetic=True)
    with pytest.raises(DataError, match="is not synthetic"):
        prove(discs(80), discs(40, seed=1), QUICK, out=tmp_path, generator_saw=SAW)
    real = discs(80)
    origin = list(real.batch.provenance)
    test = next(i for i, study in enumerate(real.studies) if study.split == "test")
    origin[test] = replace(origin[test], synthetic=True)
    leaked = Studies(real.schema, real.studies, replace(real.batch, provenance=tuple(origin)))
    with pytest.raises(DataError, match=f"{real.studies[test].id}.*may only train"):
        prove(leaked, synthetic, QUICK, out=tmp_path, generator_saw=SAW)


def test_what_is_missing_is_said(tmp_path):
    plain = {"findings": False, "masks": True}
    real, synthetic = discs(80, **plain), discs(40, seed=1, synthetic=True, **plain)
    with pytest.raises(DataError, match="needs findings"):
        prove(real, synthetic, QUICK, out=tmp_path, generator_saw=SAW)
    with pytest.raises(DataError, match="differ in 'findings'"):
        prove(discs(80), synthetic, QUICK, out=tmp_path, generator_saw=SAW)


def test_a_generator_that_saw_more_is_named(tmp_path):
    saw = {"studies": 500, "patients": 400}
    real, synthetic = discs(80), discs(40, seed=1, synthetic=True)
    result = prove(real, synthetic, QUICK, out=tmp_path, generator_saw=saw)
    assert (
        "learned from 400 patients, the consumer from 48"
        in (result.comparisons[0]["estimate"]["warning"])
    )


@pytest.mark.parametrize("name", ["classification", "segmentation"])
def test_the_same_seed_trains_the_same_consumer(name):
    studies = discs(60)
    task = task_for(name, studies.schema)
    images, targets = studies.batch.image, task.targets(studies.batch)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = train_consumer(task, images, targets, steps=6, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second = train_consumer(task, images, targets, steps=6, seed=3)
    other = train_consumer(task, images, targets, steps=6, seed=4)
    assert torch.equal(first.logits(images), second.logits(images))
    assert not torch.equal(first.logits(images), other.logits(images))


def test_unknown_labels_teach_nothing():
    studies = discs(40)
    task = task_for("classification", replace(studies.schema, exclusive=False))
    logits = torch.zeros((2, 2), requires_grad=True)
    task.loss(logits, torch.tensor([[-1, -1], [1, -1]])).sum().backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[False, False], [True, False]]


def test_a_mask_moves_with_its_image():
    """An image that equals its mask still equals it after the same shift and scale."""
    mask = discs(20).batch.mask
    rng = torch.Generator().manual_seed(0)
    augment = Augment(intensity=0.0)
    moved, moved_mask = augment.apply(mask[:, None].float(), mask, rng)
    assert ((moved[:, 0] > 0.5).long() == moved_mask).float().mean() > 0.99
    assert not torch.equal(moved_mask, mask)


def test_a_label_map_moves_with_its_volume():
    mask = balls(6).batch.mask
    moved, moved_mask = STRONG.apply(mask[:, None].float(), mask, torch.Generator().manual_seed(0))
    bright = moved[:, 0].flatten(1)
    bright = bright > (bright.amax(1, keepdim=True) + bright.amin(1, keepdim=True)) / 2
    overlap = (bright & (moved_mask.flatten(1) == 1)).sum() / moved_mask.sum()
    assert overlap > 0.85
    assert not torch.equal(moved_mask, mask)
    edges = (moved_mask.amax((2, 3)).float() - mask.amax((2, 3)).float()).abs().sum(1)
    assert (edges > 0).any()  # moved along the first axis too


def test_a_task_that_a_threshold_solves_is_named(tmp_path):
    easy, hard = discs(60, noise=0), discs(60, noise=0.8)
    drawn = discs(20, seed=5, synthetic=True)
    how = {"task": "segmentation", "ratios": (), "fractions": (1.0,), "repeats": 1, "steps": 4}
    results = [
        run(tmp_path / name, real, drawn, **how) for name, real in (("e", easy), ("h", hard))
    ]
    assert results[0].threshold == 1.0
    assert any("one threshold" in note for note in results[0].warnings)
    assert results[1].threshold < 0.8


def test_signals_move_along_time():
    pulse = torch.zeros(8, 2, 100)
    pulse[:, :, 50] = 1
    moved, _ = Augment(intensity=0).apply(pulse, None, torch.Generator().manual_seed(0))
    assert moved.shape == pulse.shape
    peaks = moved[:, 0].argmax(1)
    assert len(set(peaks.tolist())) > 3
    assert (moved[:, 0].argmax(1) == moved[:, 1].argmax(1)).all()


def test_volumes_are_segmented_in_every_arm(tmp_path):
    result = run(
        tmp_path,
        balls(20, depth=8),
        balls(30, depth=8, seed=5, synthetic=True),
        task="segmentation",
        controls=("randomized",),
        ratios=(2.0,),
        fractions=(1.0,),
        repeats=1,
        steps=25,
        batch=4,
    )
    values = {row["arm"]: row["value"] for row in result.rows}
    assert set(values) == {REAL, DUPLICATES, MIXED, RANDOMIZED, SYNTHETIC}
    assert values[SYNTHETIC] > 0.3  # calling everything the disc scores below 0.15


def test_flips_only_where_allowed():
    ramp = torch.linspace(-1, 1, 32).expand(64, 1, 32, 32)
    rng = torch.Generator().manual_seed(0)
    still = Augment(shift=0, scale=0, intensity=0)
    assert torch.allclose(still.apply(ramp, None, rng)[0], ramp, atol=1e-5)
    turned, _ = replace(still, flip=True).apply(ramp, None, rng)
    mirrored = (turned[:, 0, 0, 0] > 0).float().mean()
    assert 0.3 < mirrored < 0.7


@pytest.mark.parametrize(
    "size", [(48, 40), (64, 64), (100, 128), (1000,), (250,), (32, 48, 32), (9, 70, 33)]
)
def test_networks_take_any_size(size):
    schema = replace(discs(2).schema, size=size)
    images = torch.zeros((2, 1, *size))
    assert task_for("classification", schema).network()(images).shape == (2, 2)
    assert task_for("segmentation", schema).network()(images).shape == (2, 2, *size)
