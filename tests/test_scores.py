"""Scores against closed forms and other implementations."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import mean_absolute_error as reference_error
from sklearn.metrics import r2_score, roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error

from medgen.augmentation.scores import (
    BINS,
    accuracy,
    auroc,
    correlation,
    dice,
    hausdorff95,
    macro_auroc,
    mean_absolute_error,
    mean_dice,
    mean_r2,
    oracle_threshold,
    squared_calibration_error,
)


def test_the_best_threshold_equals_a_search():
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (5, 6, 7), generator=rng)
    truth[4] = 1  # the second class is absent: this study says nothing about it
    images = (truth[:, None] * -0.4 + 0.6 + 0.3 * torch.randn(5, 1, 6, 7, generator=rng)).clamp(
        -1, 1
    )
    best = []
    for index in (1, 2):
        found = []
        for cut in np.linspace(-1, 1, 129):
            for marked in (images[:, 0] >= cut, images[:, 0] < cut):
                each = dice(marked.long() * index, truth, 3)[:, index - 1]
                found.append(np.nanmean(each))
        best.append(max(found))
    assert oracle_threshold(images, truth, 3) == pytest.approx(np.mean(best), abs=1e-9)
    assert oracle_threshold(1 - 2.0 * (truth == 1)[:, None], (truth == 1).long(), 2) == 1.0


def test_auroc_equals_scikit_learn_with_ties_and_weights():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, 200) / 12
    truth = rng.integers(0, 2, 200)
    weights = rng.integers(0, 4, (5, 200)).astype(float)
    ours = auroc(scores, truth, weights)
    for row, value in zip(weights, ours, strict=True):
        assert value == pytest.approx(roc_auc_score(truth, scores, sample_weight=row))


def test_unknown_labels_are_left_out():
    scores = np.array([0.1, 0.9, 0.2, 0.8])
    assert auroc(scores, np.array([0, 1, -1, -1]))[0] == 1
    assert np.isnan(auroc(scores, np.array([1, 1, -1, -1]))[0])
    both = macro_auroc(np.stack([scores, scores], 1), np.array([[0, 1], [1, 1], [0, 1], [1, 1]]))
    assert both[0] == 1


def test_dice_by_hand():
    truth = torch.zeros(2, 4, 4, dtype=torch.long)
    truth[0, :2] = 1
    guess = torch.zeros_like(truth)
    guess[0, 1:3] = 1
    found = dice(guess, truth, classes=3)
    assert found[0, 0] == 0.5
    assert np.isnan(found[0, 1])
    assert np.isnan(found[1]).all()
    assert mean_dice(found)[0] == 0.5


def test_accuracy_skips_unknown_classes():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert accuracy(scores, np.array([[1, 0], [1, 0], [-1, -1]])) == 0.5


def test_r2_and_mae_equal_scikit_learn_where_truth_is_known():
    rng = np.random.default_rng(0)
    truth = 1e4 + rng.normal(size=(60, 2))
    scores = truth + 0.5 * rng.normal(size=truth.shape)
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    for row, value in zip(weights, mean_r2(scores, truth, weights), strict=True):
        assert value == pytest.approx(r2_score(truth, scores, sample_weight=row))
    errors = reference_error(truth, scores, multioutput="raw_values")
    assert mean_absolute_error(scores, truth) == pytest.approx(errors)
    holed = truth.copy()
    holed[:20, 0] = np.nan
    known = (r2_score(truth[20:, 0], scores[20:, 0]) + r2_score(truth[:, 1], scores[:, 1])) / 2
    assert mean_r2(scores, holed)[0] == pytest.approx(known)
    assert np.isnan(mean_r2(scores[:1], truth[:1])[0])


def test_calibration_error_equals_torchmetrics():
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=(300, 1))
    truth = (rng.uniform(size=(300, 1)) < scores**2).astype(np.int64)
    whole = squared_calibration_error(scores, truth)[0]
    theirs = binary_calibration_error(
        torch.from_numpy(scores[:, 0]), torch.from_numpy(truth[:, 0]), n_bins=BINS, norm="l2"
    )
    assert whole**0.5 == pytest.approx(float(theirs), rel=1e-4)
    weights = rng.integers(0, 3, (2, 300)).astype(float)
    for row, value in zip(weights, squared_calibration_error(scores, truth, weights), strict=True):
        times = row.astype(int)
        copied = scores.repeat(times, axis=0), truth.repeat(times, axis=0)
        assert value == pytest.approx(squared_calibration_error(*copied)[0])


def test_unknown_findings_have_no_calibration():
    scores, truth = np.array([[0.5, 0.9], [0.5, 0.1]]), np.array([[1, -1], [0, -1]])
    assert squared_calibration_error(scores, truth)[0] == 0
    assert np.isnan(squared_calibration_error(scores, np.full((2, 2), -1))[0])


def squares(*corners, side=12):
    masks = torch.zeros(len(corners), side, side, dtype=torch.long)
    for mask, corner in zip(masks, corners, strict=True):
        if corner is not None:
            mask[corner[0] : corner[0] + 5, corner[1] : corner[1] + 4] = 1
    return masks


def test_hausdorff_of_moved_squares():
    truth, moved = squares((1, 1), (3, 2)), squares((3, 1), (3, 5))
    assert hausdorff95(moved, truth, 2)[:, 0] == pytest.approx([2, 3])
    spacing = torch.tensor([[2.0, 1.0], [2.0, 0.5]])
    assert hausdorff95(moved, truth, 2, spacing)[:, 0] == pytest.approx([4, 1.5])


def test_hausdorff_equals_all_pairs_of_border_pixels():
    rng = torch.Generator().manual_seed(0)
    noise = torch.nn.functional.avg_pool2d(torch.randn(2, 1, 26, 26, generator=rng), 7, stride=1)
    guess, truth = (noise[:, 0] > 0).long()

    def border(mask):
        padded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return (mask & ~inner.bool()).nonzero().numpy()

    apart = cdist(border(guess), border(truth))
    by_hand = max(np.percentile(apart.min(axis), 95) for axis in (0, 1))
    assert hausdorff95(guess[None], truth[None], 2)[0, 0] == pytest.approx(by_hand)


def test_hausdorff_of_a_missed_and_of_an_absent_structure():
    found = hausdorff95(squares(None, (1, 1)), squares((1, 1), None), 3)
    assert found[0, 0] == pytest.approx(11 * 2**0.5)
    assert np.isnan(found[1, 0])
    assert np.isnan(found[:, 1]).all()


def test_correlation_equals_numpy():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=80)
    guess = truth + rng.normal(size=80)
    weights = rng.integers(0, 4, (3, 80)).astype(float)
    for row, together in zip(weights, correlation(guess, truth, weights), strict=True):
        times = row.astype(int)
        repeated = np.corrcoef(guess.repeat(times), truth.repeat(times))
        assert together == pytest.approx(repeated[0, 1])
