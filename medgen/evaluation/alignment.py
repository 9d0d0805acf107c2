"""Does a sample show what was asked for? Independent judges, trained on real studies alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medgen.augmentation.intervals import (
    WIDENED,
    centred_interval,
    no_narrower_than_wilson,
    patient_weights,
    percentile_interval,
)
from medgen.augmentation.scores import (
    correlation,
    hausdorff95,
    mean_dice,
    nan_mean,
    squared_calibration_error,
)
from medgen.augmentation.tasks import Consumer
from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.features import images_of
from medgen.evaluation.frames import is_clip
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.types import Estimate

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
DRAWS = 1000
BOOTSTRAP = f"bootstrap over patients, {DRAWS} draws"


@register("metric", "label_agreement")
class LabelAgreement:
    """An independent classifier finds the findings that were asked for.

    Gives "label_agreement" (share of asked finding values that the classifier agrees with; of
    classes where findings are exclusive), "label_agreement_all" (share of samples with every
    finding right, where several may be present), "label_auroc" and "label_calibration" (expected
    calibration error: how far the classifier's probabilities are from how often the finding was
    asked for). The floor is the same on real test studies: an agreement far above it speaks of
    prototypes, not of better images.

    Args:
        steps: optimiser steps of the classifier.
    """

    needs = "findings"

    def __init__(self, steps: int = 400) -> None:
        self.steps = steps

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The agreement alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The agreement on synthetic studies, with that on real test studies as floor.

        Raises:
            DataError: the synthetic studies carry no such findings.
        """
        if comparison.synthetic_schema.findings != comparison.schema.findings:
            raise DataError(
                f"real studies have findings {comparison.schema.findings}, synthetic ones "
                f"{comparison.synthetic_schema.findings}; label agreement needs the same"
            )
        judge = comparison.consumer("classification", self.steps)
        cuts = self._cuts(comparison, judge)
        found = _agreement(comparison, judge, cuts, comparison.synthetic)
        floors = _agreement(comparison, judge, cuts, comparison.test)
        return {name: replace(e, floor=floors.get(name)) for name, e in found.items()}

    def _cuts(self, comparison: Comparison, judge: Consumer) -> Array:
        """Above which score each finding counts as present: the most accurate on validation."""
        scores, truth = _scores(judge, comparison.validation)
        cuts = np.full(truth.shape[1], 0.5)
        for k in range(truth.shape[1]):
            known = truth[:, k] >= 0
            present = truth[known, k] == 1
            if present.all() or not present.any():
                continue
            levels = np.unique(np.append(scores[known, k], 0.5))
            above = scores[known, k][:, None] > levels
            share = (above & present[:, None]).sum(0) / present.sum()
            share = share + (~above & ~present[:, None]).sum(0) / (~present).sum()
            cuts[k] = np.median(levels[share >= share.max() - 1e-12])
        return cuts


@register("metric", "mask_agreement")
class MaskAgreement:
    """An independent segmenter finds the mask that was asked for.

    Gives "mask_agreement" (mean Dice) and "mask_hausdorff" (mean 95 % Hausdorff distance; in mm
    where both sides know their spacing, else in pixels), one of each with "/CLASS" where there are
    several, and "mask_agreement_ratio", over the Dice on real test studies. The floors are the same
    on real test studies. Of clips, eight frames each are studies of their own.

    Args:
        steps: optimiser steps of the segmenter.
    """

    needs = "masks"

    def __init__(self, steps: int = 250) -> None:
        self.steps = steps

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The agreement alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The agreement on synthetic studies, with that on real test studies as floor.

        Raises:
            DataError: the synthetic studies carry no such masks.
        """
        names = comparison.schema.mask_classes
        if comparison.synthetic_schema.mask_classes != names:
            raise DataError(
                f"real studies have mask classes {names}, synthetic ones "
                f"{comparison.synthetic_schema.mask_classes}; mask agreement needs the same"
            )
        comparison = comparison.frames if is_clip(comparison.schema) else comparison
        judge = comparison.consumer("segmentation", self.steps)
        sides = (comparison.synthetic, comparison.test)
        metric = all(side.batch.spacing is not None for side in sides)
        drawn, held = (
            _overlap(judge, side, metric=metric, seed=comparison.seed + i)
            for i, side in enumerate(sides)
        )
        found: dict[str, Estimate] = {}
        for measure in drawn:
            a, b = drawn[measure], held[measure]
            found[measure] = replace(a.mean(), floor=b.mean())
            if len(names) > 2:
                for k, name in enumerate(names[1:]):
                    if np.isfinite(a.value[k]):
                        floor = b.one(k) if np.isfinite(b.value[k]) else None
                        found[f"{measure}/{name}"] = replace(a.one(k), floor=floor)
        a, b = drawn["mask_agreement"], held["mask_agreement"]
        low, high = percentile_interval(nan_mean(a.draws, axis=1) / nan_mean(b.draws, axis=1))
        value = float(np.nanmean(a.value) / np.nanmean(b.value))
        found["mask_agreement_ratio"] = Estimate(
            value, low, high, a.count, higher_is_better=True, unit="ratio", method=BOOTSTRAP
        )
        return found


@register("metric", "scalar_agreement")
class ScalarAgreement:
    """An independent regressor finds the scalar that was asked for.

    Gives "scalar_error/NAME", the mean absolute error in the units of the scalar, and
    "scalar_correlation/NAME", Pearson's, of the regressor's values with what was asked. The floors
    are the same on real test studies; an error compares with its floor only where the scalars asked
    for spread as widely as those of the test studies.

    Args:
        steps: optimiser steps of the regressor.
    """

    needs = "scalars"

    def __init__(self, steps: int = 400) -> None:
        self.steps = steps

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The agreement alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The agreement on synthetic studies, with that on real test studies as floor.

        Raises:
            DataError: the synthetic studies carry no such scalars, or one does not vary.
        """
        names = comparison.schema.scalars
        if comparison.synthetic_schema.scalars != names:
            raise DataError(
                f"real studies have scalars {names}, synthetic ones "
                f"{comparison.synthetic_schema.scalars}; scalar agreement needs the same"
            )
        if comparison.train.batch.scalar is not None:
            _refuse_flat(names, comparison.train.batch.scalar)
        judge = comparison.consumer("regression", self.steps)
        found: dict[str, Estimate] = {}
        for k, name in enumerate(names):
            drawn, held = (
                _scalar(judge, side, k, seed=comparison.seed + i)
                for i, side in enumerate((comparison.synthetic, comparison.test))
            )
            for measure, estimate in drawn.items():
                found[f"{measure}/{name}"] = replace(estimate, floor=held.get(measure))
        if not found:
            raise DataError("every scalar of every study is unknown; scalar agreement is undefined")
        return found


def _refuse_flat(names: Sequence[str], values: Tensor) -> None:
    spread = (values - values.nanmean(0)).square().nanmean(0)
    flat = [name for name, s in zip(names, spread.tolist(), strict=True) if not s > 0]
    if flat:
        raise DataError(
            f"scalar agreement needs scalars that vary among the training studies; "
            f"{', '.join(flat)} does not, or is unknown"
        )


@dataclass(frozen=True)
class _Measured:
    """A score by class (k,), and under every bootstrap draw (draws, k)."""

    value: Array
    draws: Array
    count: int
    unit: str
    higher: bool

    def mean(self) -> Estimate:
        return self._estimate(float(np.nanmean(self.value)), nan_mean(self.draws, axis=1))

    def one(self, k: int) -> Estimate:
        return self._estimate(float(self.value[k]), self.draws[:, k])

    def _estimate(self, value: float, draws: Array) -> Estimate:
        low, high = percentile_interval(draws)
        return Estimate(
            value,
            low,
            high,
            self.count,
            higher_is_better=self.higher,
            unit=self.unit,
            method=BOOTSTRAP,
        )


def _overlap(judge: Consumer, side: Side, *, metric: bool, seed: int) -> dict[str, _Measured]:
    """Dice and Hausdorff distance of the judge's masks, by class; `metric` is in mm."""
    logits, truth = judge.logits(images_of(side.batch)), judge.task.targets(side.batch)
    overlap = judge.task.scores(logits, truth)
    if not np.isfinite(overlap).any():
        raise DataError("no study shows any foreground class; mask agreement is undefined")
    spacing = side.batch.spacing if metric else None
    apart = hausdorff95(logits.argmax(1), truth, logits.shape[1], spacing)
    weights = patient_weights(side.patients, DRAWS, seed=seed)

    def measured(scores: Array, unit: str, *, higher: bool) -> _Measured:
        columns = [scores[:, [k]] for k in range(scores.shape[1])]
        value = np.array([mean_dice(column)[0] for column in columns])
        draws = np.stack([mean_dice(column, weights) for column in columns], axis=1)
        return _Measured(value, draws, len(side), unit, higher)

    return {
        "mask_agreement": measured(overlap, "Dice", higher=True),
        "mask_hausdorff": measured(apart, "mm" if metric else "px", higher=False),
    }


def _scalar(judge: Consumer, side: Side, k: int, *, seed: int) -> dict[str, Estimate]:
    """Error and correlation of one scalar; nothing where it is unknown of all studies."""
    targets = judge.task.targets(side.batch)
    known = np.flatnonzero(targets[:, k].isfinite().numpy())
    if len(known) < 2:
        return {}
    truth = targets[known, k].double().numpy()
    scores = judge.scores(images_of(side.batch), targets)[known, k]
    weights = patient_weights([side.patients[i] for i in known], DRAWS, seed=seed)
    wrong = np.abs(scores - truth)
    measures = {
        "scalar_error": ((weights @ wrong) / weights.sum(axis=1), wrong.mean(), False),
        "scalar_correlation": (
            correlation(scores, truth, weights),
            correlation(scores, truth, np.ones((1, len(truth))))[0],
            True,
        ),
    }
    found: dict[str, Estimate] = {}
    for name, (draws, value, higher) in measures.items():
        if np.isfinite(value):
            low, high = percentile_interval(draws)
            found[name] = Estimate(
                float(value), low, high, len(known), higher_is_better=higher, method=BOOTSTRAP
            )
    return found


def _scores(judge: Consumer, side: Side) -> tuple[Array, Labels]:
    truth = judge.task.targets(side.batch)
    return judge.scores(images_of(side.batch), truth), truth.numpy()


def _agreement(
    comparison: Comparison, judge: Consumer, cuts: Array, side: Side
) -> dict[str, Estimate]:
    scores, truth = _scores(judge, side)
    weights = patient_weights(side.patients, DRAWS, seed=comparison.seed)
    exclusive = comparison.schema.exclusive
    known: Array = (truth >= 0).astype(np.float64)
    if exclusive:
        right = (scores.argmax(axis=1) == truth.argmax(axis=1)).astype(np.float64)[:, None]
        known = known.min(axis=1, keepdims=True)
    else:
        right = ((scores > cuts) == (truth == 1)).astype(np.float64)
    if not known.any():
        raise DataError("every finding of every study is unknown; label agreement is undefined")
    count = int(known.any(axis=1).sum())
    single = len(set(side.patients)) / len(side)
    found = {"label_agreement": share_estimate(right * known, known, weights, count, single)}
    if not exclusive and truth.shape[1] > 1:
        complete = ((right == 1) | (known == 0)).all(axis=1, keepdims=True).astype(np.float64)
        asked = known.max(axis=1, keepdims=True)
        found["label_agreement_all"] = share_estimate(
            complete * asked, asked, weights, count, single
        )
    value = float(judge.task.value(scores, judge.task.targets(side.batch))[0])
    if np.isfinite(value):
        draws = judge.task.value(scores, judge.task.targets(side.batch), weights)
        low, high = percentile_interval(draws)
        found["label_auroc"] = Estimate(
            value, low, high, count, higher_is_better=True, unit="AUROC", method=BOOTSTRAP
        )
    found["label_calibration"] = _calibration(scores, truth, weights, count)
    return found


def _calibration(scores: Array, truth: Labels, weights: Array, count: int) -> Estimate:
    """The expected calibration error in the 2-norm, its bias taken off.

    The square of few studies is too large by as much as bootstrap draws, on average, are larger
    still; so errors at unequal numbers compare.
    """
    draws = squared_calibration_error(scores, truth, weights)
    squared = 2 * float(squared_calibration_error(scores, truth)[0]) - float(np.nanmean(draws))
    ends = (squared, *centred_interval(squared, draws))
    value, low, high = (max(0.0, end) ** 0.5 for end in ends)
    return Estimate(value, low, high, count, higher_is_better=False, method=BOOTSTRAP)


def share_estimate(
    right: Array, asked: Array, weights: Array, count: int, single: float
) -> Estimate:
    """The share of what was asked (b, k) that is right (b, k), under weights (draws, b).

    `single` is patients a study: studies of one patient say less than those of several.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (weights @ right).sum(axis=1) / (weights @ asked).sum(axis=1)
    value = float(right.sum() / asked.sum())
    effective = max(1, round(float(asked.sum()) * single))
    low, high = no_narrower_than_wilson(percentile_interval(draws), value, effective)
    method = BOOTSTRAP + WIDENED
    return Estimate(value, low, high, count, higher_is_better=True, unit="share", method=method)
