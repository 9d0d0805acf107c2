"""Scores against closed forms and other implementations."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error as reference_error
from sklearn.metrics import r2_score, roc_auc_score

from medgen.augmentation.scores import (
    accuracy,
    auroc,
    dice,
    macro_auroc,
    mean_absolute_error,
    mean_dice,
    mean_r2,
)


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
