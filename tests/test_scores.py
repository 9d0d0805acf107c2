"""Scores against closed forms and other implementations."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medgen.augmentation.scores import accuracy, auroc, dice, macro_auroc, mean_dice


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
