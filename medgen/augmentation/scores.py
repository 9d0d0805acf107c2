"""How good a consumer is: AUROC, accuracy, calibration, Dice, Hausdorff distance, R2, errors.

Weights make a whole bootstrap one call.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Array = NDArray[np.float64]
BINS = 15
"""Equal parts of [0, 1] in which probabilities are held against frequencies."""
LEVELS = 128
"""Thresholds that are tried on images in [-1, 1]."""


def auroc(scores: Array, truth: NDArray[np.int64], weights: Array | None = None) -> Array:
    """Area under the ROC curve of one finding, one value a row of weights, (draws,).

    The weighted share of (present, absent) pairs that the score orders rightly; ties count half.
    NaN where a draw lacks either kind.

    Args:
        scores: (b,), higher is more likely present.
        truth: (b,), 1 present, 0 absent, -1 unknown (left out).
        weights: (draws, b); None is one row of ones.

    Source: Hanley and McNeil, The meaning and use of the area under a ROC curve, 1982.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    known = np.flatnonzero(truth >= 0)
    order = known[np.argsort(scores[known], kind="stable")]
    ranked, present = scores[order], truth[order] == 1
    positive = weights[:, order] * present
    negative = weights[:, order] * ~present
    below = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(negative, axis=1)], axis=1)
    first = np.searchsorted(ranked, ranked, side="left")
    after = np.searchsorted(ranked, ranked, side="right")
    ordered = (positive * (below[:, first] + below[:, after]) / 2).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, ordered / pairs, np.nan)


def macro_auroc(scores: Array, truth: NDArray[np.int64], weights: Array | None = None) -> Array:
    """Mean over findings of the area under the ROC curve, (draws,); undefined findings left out.

    Args:
        scores: (b, k).
        truth: (b, k), 1 present, 0 absent, -1 unknown.
        weights: (draws, b); None is one row of ones.
    """
    columns = [auroc(scores[:, k], truth[:, k], weights) for k in range(truth.shape[1])]
    return nan_mean(np.stack(columns), axis=0)


def accuracy(scores: Array, truth: NDArray[np.int64]) -> float:
    """Share of studies of known class whose highest score is their class (exclusive findings)."""
    known = (truth >= 0).all(axis=1)
    return float(np.mean(scores[known].argmax(axis=1) == truth[known].argmax(axis=1)))


def squared_calibration_error(
    scores: Array, truth: NDArray[np.int64], weights: Array | None = None
) -> Array:
    """Mean squared gap of probability and frequency over 15 equal bins, (draws,).

    The square of the expected calibration error in the 2-norm. It grows as studies get fewer: the
    gap of a bin is never quite 0.

    Args:
        scores: probabilities of being present, (b, k).
        truth: (b, k), 1 present, 0 absent, -1 unknown (left out).
        weights: (draws, b); None is one row of ones.

    Source: Kumar, Liang and Ma 2019, arXiv:1909.10155, definition 2.2, with the bins of Guo et al.
    2017, arXiv:1706.04599.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    known = truth >= 0
    bins = (scores * BINS).astype(np.int64).clip(0, BINS - 1)
    total, gap = np.zeros(len(weights)), np.zeros(len(weights))
    for index in range(BINS):
        inside = known & (bins == index)
        count = weights @ inside.sum(axis=1)
        apart = weights @ np.where(inside, scores - (truth == 1), 0.0).sum(axis=1)
        total += count
        gap += np.divide(apart**2, count, out=np.zeros_like(gap), where=count > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, gap / total, np.nan)


def dice(predicted: Tensor, truth: Tensor, classes: int) -> Array:
    """Dice of every study and foreground class, (b, classes - 1).

    NaN where a class is absent from the truth: an empty mask says nothing about overlap.

    Args:
        predicted: integer classes, (b *s).
        truth: integer classes, (b *s).
        classes: how many, background included.
    """
    columns: list[Tensor] = []
    for index in range(1, classes):
        a = (predicted == index).flatten(1).double()
        b = (truth == index).flatten(1).double()
        overlap = 2 * (a * b).sum(1) / (a.sum(1) + b.sum(1)).clamp(min=1)
        columns.append(torch.where(b.sum(1) > 0, overlap, torch.nan))
    return torch.stack(columns, dim=1).numpy()


def oracle_threshold(images: Tensor, truth: Tensor, classes: int) -> float:
    """Mean Dice of the best single threshold a class, chosen on these studies themselves.

    The class is all that is brighter, or all that is darker, whichever fits better. What it solves
    needs no network: a comparison of networks there proves little.

    Args:
        images: (b c *s) in [-1, 1]; channels are averaged.
        truth: integer classes, (b *s).
        classes: how many, background included.
    """
    level = ((images.mean(dim=1) + 1) / 2 * LEVELS).long().clamp(0, LEVELS - 1).flatten(1)
    blank = torch.zeros(len(level), LEVELS, dtype=torch.float64)
    every = blank.scatter_add(1, level, torch.ones_like(level, dtype=torch.float64))
    best: list[float] = []
    for index in range(1, classes):
        inside = (truth == index).flatten(1)
        hits = blank.scatter_add(1, level, inside.double())
        present = inside.any(1)
        if not present.any():
            continue
        sides = (every.cumsum(1), hits.cumsum(1)), (every.flip(1).cumsum(1), hits.flip(1).cumsum(1))
        found = [
            (2 * caught / (marked + inside.sum(1, keepdim=True)).clamp(min=1))[present].mean(0)
            for marked, caught in sides
        ]
        best.append(float(torch.cat(found).max()))
    return float(np.mean(best)) if best else float("nan")


def hausdorff95(
    predicted: Tensor, truth: Tensor, classes: int, spacing: Tensor | None = None
) -> Array:
    """The 95 % Hausdorff distance of every study and foreground class, (b, classes - 1).

    The larger of the two 95 % quantiles of the distances from one border to the other. NaN where a
    class is absent from the truth. Where it is missed altogether no border exists: the diagonal of
    the image, the largest distance there can be, stands for it.

    Args:
        predicted: integer classes, (b *s).
        truth: integer classes, (b *s).
        classes: how many, background included.
        spacing: mm between pixels, (b axes), for distances in mm; None is in pixels.

    Source: Huttenlocher et al. 1993, doi 10.1109/34.232073; computed by MONAI.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    def split(mask: Tensor) -> Tensor:
        return functional.one_hot(mask.long(), classes).movedim(-1, 1)

    guess, real = split(predicted), split(truth)
    extent = torch.ones(truth.shape[0], truth.ndim - 1) if spacing is None else spacing.cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compute_hausdorff_distance(
            guess, real, percentile=95, spacing=np.asarray(extent, dtype=np.float64).tolist()
        ).double()
    sides = torch.tensor(truth.shape[1:]) - 1
    diagonal = (extent * sides).double().square().sum(1, keepdim=True).sqrt()
    present = real[:, 1:].flatten(2).any(2)
    missed = present & ~guess[:, 1:].flatten(2).any(2)
    found = torch.where(missed, diagonal, found)
    return torch.where(present, found, torch.nan).numpy()


def correlation(a: Array, b: Array, weights: Array) -> Array:
    """Pearson's correlation of (b,) and (b,) under every row of weights (draws, b), (draws,)."""
    share = weights / weights.sum(axis=1, keepdims=True)
    a, b = a - a.mean(), b - b.mean()
    covariance = share @ (a * b) - (share @ a) * (share @ b)
    spread = (share @ a**2 - (share @ a) ** 2) * (share @ b**2 - (share @ b) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-24, covariance / np.sqrt(spread.clip(min=0)), np.nan)


def mean_dice(scores: Array, weights: Array | None = None) -> Array:
    """Mean over classes of the weighted mean Dice, or other score, over studies, (draws,).

    Args:
        scores: the score of every study and class, (b, k); NaN is left out.
        weights: (draws, b); None is one row of ones.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    known = np.isfinite(scores)
    total = weights @ known
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(total > 0, weights @ np.where(known, scores, 0) / total, np.nan)
    return nan_mean(means, axis=1)


def mean_r2(scores: Array, truth: Array, weights: Array | None = None) -> Array:
    """Mean over scalars of the coefficient of determination R2, (draws,).

    1 is perfect, 0 is as good as the mean of the test studies. NaN where a draw holds one value
    only.

    Args:
        scores: predictions, (b, m).
        truth: (b, m); NaN is unknown (left out).
        weights: (draws, b); None is one row of ones.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    known = np.isfinite(truth)
    count = weights @ known
    value = np.where(known, truth - nan_mean(truth, axis=0), 0)
    residual = weights @ np.where(known, (truth - scores) ** 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = weights @ value / count
        spread = weights @ value**2 - count * middle**2
        columns = np.where(spread > 1e-12 * count, 1 - residual / spread, np.nan)
    return nan_mean(columns, axis=1)


def mean_absolute_error(scores: Array, truth: Array) -> Array:
    """Mean absolute error of every scalar, (m,); unknown (NaN) truths are left out.

    Args:
        scores: predictions, (b, m).
        truth: (b, m).
    """
    return nan_mean(np.abs(scores - truth), axis=0)


def nan_mean(values: Array, axis: int) -> Array:
    """Mean without NaN; NaN, and no warning, where nothing else stands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)
