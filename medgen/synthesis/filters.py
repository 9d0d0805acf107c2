"""Filters that reject samples: each is as strict as it would be with a share of real studies.

A filter gives every sample a score. It learns on real training studies and sets its threshold on
real validation studies, so that it would reject a stated share of them. What it lets through is
a changed distribution: evaluate the filtered dataset, not the generator.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medgen import registry
from medgen.augmentation.tasks import Consumer, task_for, train_consumer
from medgen.data.splits import by_split, load
from medgen.errors import DataError
from medgen.evaluation.features import images_of
from medgen.evaluation.neighbours import nearest_distance, pixel_rows
from medgen.evaluation.registration import RegisteredSearch
from medgen.protocols import Dataset, Filter
from medgen.registry import register
from medgen.types import Batch, Schema

Array = NDArray[np.float64]
DECIMALS = 6
"""Scores are rounded so, lest a last bit of arithmetic decide."""


class CalibratedFilter(ABC):
    """Rejects what scores lower than nearly all real validation studies.

    Args:
        share: of real validation studies that it would reject.

    Raises:
        ValueError: the share is not in [0, 1).
    """

    reason: ClassVar[str]

    def __init__(self, share: float = 0.05) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share: expected a share below 1, got {share}")
        self.share = share
        self.threshold = -np.inf

    def fit(self, real: Dataset) -> str:
        """Learn on training studies, set the threshold on validation studies; returns a digest."""
        train, validation = (load(by_split(real, name)) for name in ("train", "validation"))
        self.learn(train, validation, real.schema)
        scores = self._rounded(validation)
        known = scores[np.isfinite(scores)]
        if not len(known):
            raise DataError(f"no validation study tells the filter '{self.reason}' what is usual")
        self.threshold = float(np.quantile(known, self.share, method="lower"))
        return "sha256:" + hashlib.sha256(scores.tobytes()).hexdigest()

    def reasons(self, samples: Batch) -> list[str]:
        """Why each sample is rejected; empty for those that pass."""
        return ["" if not s < self.threshold else self.reason for s in self._rounded(samples)]

    @abstractmethod
    def learn(self, train: Batch, validation: Batch, schema: Schema) -> None:
        """Take what is needed from real studies."""

    @abstractmethod
    def scores(self, batch: Batch) -> Array:
        """One score a study (b,); NaN passes."""

    def _rounded(self, batch: Batch) -> Array:
        return np.round(self.scores(batch), DECIMALS)


@register("filter", "copies")
class Copies(CalibratedFilter):
    """Rejects samples that show a training study more closely than unseen studies do.

    Mirroring, a crop or shift of up to a tenth, and exposure do not hide a copy.

    Args:
        share: of real validation studies that it would reject.
    """

    reason = "copy of a training study"

    def learn(self, train: Batch, validation: Batch, schema: Schema) -> None:
        """Keep the training studies.

        Raises:
            DataError: they are signals.
        """
        if len(schema.size) == 1:
            raise DataError("the filter 'copies' looks at images; of signals use 'duplicates'")
        self.search = RegisteredSearch(images_of(train))

    def scores(self, batch: Batch) -> Array:
        """Distance to the training study that matches best, (b,)."""
        return self.search.nearest(images_of(batch)).distance


class _Neighbours(CalibratedFilter):
    """Judges by the distance in pixels to the nearest training study.

    Args:
        share: of real validation studies that it would reject.
    """

    def learn(self, train: Batch, validation: Batch, schema: Schema) -> None:
        """Keep the training studies."""
        self.rows = pixel_rows(images_of(train))

    def scores(self, batch: Batch) -> Array:
        """Distance to the nearest training study, also mirrored, (b,)."""
        image = images_of(batch)
        return nearest_distance(pixel_rows(image), pixel_rows(image.flip(-1)), self.rows)


@register("filter", "outliers")
class Outliers(_Neighbours):
    """Rejects samples farther from every training study than unseen studies are.

    Args:
        share: of real validation studies that it would reject.
    """

    reason = "unlike any training study"

    def scores(self, batch: Batch) -> Array:
        """Minus the distance to the nearest training study, also mirrored, (b,)."""
        return -super().scores(batch)


@register("filter", "duplicates")
class Duplicates(_Neighbours):
    """Rejects samples nearer to an earlier one, also mirrored, than real studies are to each other.

    It is as strict as stated once as many samples are accepted as there are training studies, and
    stricter beyond: more samples stand closer. It compares samples with each other, so it judges
    when all are drawn, in their order.

    Args:
        share: of real validation studies that it would reject among the training studies.
    """

    reason = "near-duplicate of another sample"

    def reasons(self, samples: Batch) -> list[str]:
        """Why each sample is rejected, given those before it that passed."""
        accepted = Accepted(self, len(samples))
        return [accepted.judge(images_of(samples)[i : i + 1]) for i in range(len(samples))]


class Accepted:
    """Samples that passed a filter for duplicates, and the verdict on the next one.

    Args:
        judge: a fitted filter.
        capacity: samples at most.
    """

    def __init__(self, judge: Duplicates, capacity: int) -> None:
        self.filter = judge
        self.rows = np.empty((capacity, judge.rows.shape[1]))
        self.count = 0

    def judge(self, image: Tensor) -> str:
        """Why a sample (1 c *s) is rejected; empty if it passes, and then it is accepted."""
        row, mirrored = pixel_rows(image), pixel_rows(image.flip(-1))
        if self.count:
            near = nearest_distance(row, mirrored, self.rows[: self.count])
            if np.round(near[0], DECIMALS) < self.filter.threshold:
                return self.filter.reason
        self.rows[self.count] = row[0]
        self.count += 1
        return ""


@register("filter", "exposure")
class Exposure(CalibratedFilter):
    """Rejects samples whose mean or contrast is unusual among training studies.

    Args:
        share: of real validation studies that it would reject.
    """

    reason = "unusual intensities"

    def learn(self, train: Batch, validation: Batch, schema: Schema) -> None:
        """Keep centre and spread of the training studies' means and deviations."""
        values = _moments(train)
        self.centre = np.median(values, axis=0)
        self.spread = np.abs(values - self.centre).mean(axis=0).clip(min=1e-12)

    def scores(self, batch: Batch) -> Array:
        """Minus the larger of both departures, in mean absolute departures, (b,)."""
        return -np.abs((_moments(batch) - self.centre) / self.spread).max(axis=1)


class _Judged(CalibratedFilter):
    """Rejects where an independent network, trained on real studies, disagrees.

    Args:
        share: of real validation studies that it would reject.
        steps: optimiser steps of the network.
    """

    task_name: ClassVar[str]

    def __init__(self, share: float = 0.05, steps: int = 300) -> None:
        super().__init__(share)
        self.steps = steps

    def learn(self, train: Batch, validation: Batch, schema: Schema) -> None:
        """Train the network."""
        task = task_for(self.task_name, schema)
        held = (images_of(validation), task.targets(validation))
        self.judge: Consumer = train_consumer(
            task, images_of(train), task.targets(train), steps=self.steps, validation=held
        )


@register("filter", "findings")
class Findings(_Judged):
    """Rejects samples in which a classifier does not see the findings that were asked for.

    Args:
        share: of real validation studies that it would reject.
        steps: optimiser steps of the classifier.
    """

    reason = "findings not seen"
    task_name = "classification"

    def scores(self, batch: Batch) -> Array:
        """Probability of the least probable finding asked for, (b,); NaN where none was."""
        truth = self.judge.task.targets(batch)
        probable = self.judge.scores(images_of(batch), truth)
        asked = truth.numpy()
        agrees = np.where(asked == 1, probable, 1 - probable)
        agrees = np.where(asked >= 0, agrees, np.inf).min(axis=1)
        return np.where(np.isfinite(agrees), agrees, np.nan)


@register("filter", "masks")
class Masks(_Judged):
    """Rejects samples in which a segmenter does not find the mask that was asked for.

    Args:
        share: of real validation studies that it would reject.
        steps: optimiser steps of the segmenter.
    """

    reason = "mask not followed"
    task_name = "segmentation"

    def scores(self, batch: Batch) -> Array:
        """Mean Dice over the structures asked for, (b,); NaN where none was."""
        each = self.judge.scores(images_of(batch), self.judge.task.targets(batch))
        known = np.isfinite(each)
        total = np.where(known, each, 0).sum(axis=1)
        return np.where(known.any(axis=1), total / known.sum(axis=1).clip(min=1), np.nan)


@register("filter", "scalars")
class Scalars(_Judged):
    """Rejects samples in which a regressor reads another scalar than was asked for.

    Errors are in standard deviations of the training studies' scalars; the largest one counts.

    Args:
        share: of real validation studies that it would reject.
        steps: optimiser steps of the regressor.
    """

    reason = "scalar not followed"
    task_name = "regression"

    def learn(self, train: Batch, validation: Batch, schema: Schema) -> None:
        """Train the network, and keep how widely the scalars spread."""
        super().learn(train, validation, schema)
        truth = self.judge.task.targets(train).double().numpy()
        self.spread = np.nanstd(truth, axis=0).clip(min=1e-12)

    def scores(self, batch: Batch) -> Array:
        """Minus the largest error, (b,); NaN where no scalar was asked for."""
        truth = self.judge.task.targets(batch)
        asked = truth.double().numpy()
        wrong = np.abs(self.judge.scores(images_of(batch), truth) - asked) / self.spread
        known = np.isfinite(asked).any(axis=1)
        return np.where(known, -np.where(np.isfinite(wrong), wrong, 0).max(axis=1), np.nan)


@dataclass(frozen=True)
class Filters:
    """What rejects samples.

    Args:
        filters: fitted on real studies.
        sections: of the recipe, one a filter.
        digests: of what the filters learned.
        budget: how often a sample may be drawn.

    Raises:
        ValueError: the budget is below 1.
    """

    filters: Sequence[Filter]
    sections: Sequence[Mapping[str, Any]]
    digests: Sequence[str]
    budget: int = 5

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget: expected 1 draw or more, got {self.budget}")

    @classmethod
    def fitted(cls, recipe: Mapping[str, Any], real: Dataset) -> Filters:
        """The filters of a recipe's sections, fitted on real studies of all splits."""
        sections = recipe["filters"]
        filters: list[Filter] = [
            registry.build("filter", each["type"], {k: v for k, v in each.items() if k != "type"})
            for each in sections
        ]
        digests = [each.fit(real) for each in filters]
        return cls(filters, sections, digests, recipe["sample"]["budget"])

    @property
    def duplicates(self) -> Duplicates | None:
        """The filter that compares samples with each other, if there is one."""
        return next((each for each in self.filters if isinstance(each, Duplicates)), None)

    def reasons(self, drawn: Batch) -> list[str]:
        """Why each study is rejected by itself, by the first filter that does; empty if none."""
        alone = [each for each in self.filters if not isinstance(each, Duplicates)]
        if not alone:
            return [""] * len(drawn)
        verdicts = [each.reasons(drawn) for each in alone]
        return [next((text for text in row if text), "") for row in zip(*verdicts, strict=True)]

    def about(self) -> dict[str, Any]:
        """Plain values that tell one set of filters from another."""
        pairs = zip(self.sections, self.digests, strict=True)
        return {
            "budget": self.budget,
            "filters": [{**section, "digest": digest} for section, digest in pairs],
        }


def _moments(batch: Batch) -> Array:
    flat = images_of(batch).flatten(1).double()
    return np.stack([flat.mean(dim=1).numpy(), flat.std(dim=1).numpy()], axis=1)
