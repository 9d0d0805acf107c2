"""Does a sample show what was asked for? Independent judges, trained on real studies alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medgen.augmentation.intervals import patient_weights, percentile_interval
from medgen.augmentation.scores import mean_dice, nan_mean
from medgen.augmentation.tasks import Consumer
from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.features import images_of
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
    finding right, where several may be present) and "label_auroc". The floor is the same on real
    test studies: an agreement far above it speaks of prototypes, not of better images.

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

    Gives "mask_agreement" (mean Dice), one "mask_agreement/CLASS" each where there are several, and
    "mask_agreement_ratio", over the Dice on real test studies, which is also the floor.

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
        judge = comparison.consumer("segmentation", self.steps)
        drawn = _Overlap.of(judge, comparison.synthetic, seed=comparison.seed)
        held = _Overlap.of(judge, comparison.test, seed=comparison.seed + 1)
        found = {"mask_agreement": replace(drawn.mean(), floor=held.mean())}
        if len(names) > 2:
            for k, name in enumerate(names[1:]):
                if np.isfinite(drawn.value[k]):
                    floor = held.one(k) if np.isfinite(held.value[k]) else None
                    found[f"mask_agreement/{name}"] = replace(drawn.one(k), floor=floor)
        ratios = nan_mean(drawn.draws, axis=1) / nan_mean(held.draws, axis=1)
        low, high = percentile_interval(ratios)
        value = float(np.nanmean(drawn.value) / np.nanmean(held.value))
        found["mask_agreement_ratio"] = Estimate(
            value, low, high, drawn.count, higher_is_better=True, unit="ratio", method=BOOTSTRAP
        )
        return found


@dataclass(frozen=True)
class _Overlap:
    """Dice by class (k,), and under every bootstrap draw (draws, k)."""

    value: Array
    draws: Array
    count: int

    @classmethod
    def of(cls, judge: Consumer, side: Side, *, seed: int) -> _Overlap:
        scores = judge.scores(images_of(side.batch), judge.task.targets(side.batch))
        if not np.isfinite(scores).any():
            raise DataError("no study shows any foreground class; mask agreement is undefined")
        weights = patient_weights(side.patients, DRAWS, seed=seed)
        columns = [scores[:, [k]] for k in range(scores.shape[1])]
        value = np.array([mean_dice(column)[0] for column in columns])
        draws = np.stack([mean_dice(column, weights) for column in columns], axis=1)
        return cls(value, draws, len(side))

    def mean(self) -> Estimate:
        return self._estimate(float(np.nanmean(self.value)), nan_mean(self.draws, axis=1))

    def one(self, k: int) -> Estimate:
        return self._estimate(float(self.value[k]), self.draws[:, k])

    def _estimate(self, value: float, draws: Array) -> Estimate:
        low, high = percentile_interval(draws)
        return Estimate(
            value, low, high, self.count, higher_is_better=True, unit="Dice", method=BOOTSTRAP
        )


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
    found = {"label_agreement": _share(right * known, known, weights, count)}
    if not exclusive and truth.shape[1] > 1:
        complete = ((right == 1) | (known == 0)).all(axis=1, keepdims=True).astype(np.float64)
        asked = known.max(axis=1, keepdims=True)
        found["label_agreement_all"] = _share(complete * asked, asked, weights, count)
    value = float(judge.task.value(scores, judge.task.targets(side.batch))[0])
    if np.isfinite(value):
        draws = judge.task.value(scores, judge.task.targets(side.batch), weights)
        low, high = percentile_interval(draws)
        found["label_auroc"] = Estimate(
            value, low, high, count, higher_is_better=True, unit="AUROC", method=BOOTSTRAP
        )
    return found


def _share(right: Array, asked: Array, weights: Array, count: int) -> Estimate:
    """The share of what was asked (b, k) that is right (b, k), under weights (draws, b)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (weights @ right).sum(axis=1) / (weights @ asked).sum(axis=1)
    low, high = percentile_interval(draws)
    value = float(right.sum() / asked.sum())
    return Estimate(value, low, high, count, higher_is_better=True, unit="share", method=BOOTSTRAP)
