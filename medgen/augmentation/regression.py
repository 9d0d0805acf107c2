"""The task of predicting scalars, such as an ejection fraction, from images."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medgen.augmentation.augment import STRONG, Augment
from medgen.augmentation.consumers import OWN, network_for
from medgen.augmentation.scores import mean_absolute_error, mean_r2
from medgen.errors import DataError
from medgen.settings import TaskName
from medgen.types import Batch, Schema

Array = NDArray[np.float64]


class Regression:
    """Predict the scalars; the metric is their mean R2, the share of variance explained.

    Augmentation does not change the size, for a scalar may be a length or a volume.

    Args:
        schema: names the scalars.
        consumer: name of the network.
        center: mean of every scalar over the training studies, by which it is standardised.
        scale: standard deviation of every scalar over them.

    Raises:
        DataError: the schema names no scalars.
    """

    name: TaskName = "regression"
    metric = "R2"
    lr = 1e-3
    light, strong = replace(Augment(), scale=0.0), replace(STRONG, scale=0.0)

    def __init__(
        self,
        schema: Schema,
        consumer: str = OWN,
        center: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        if not schema.scalars:
            raise DataError("regression needs scalars, and the dataset's schema names none")
        self.schema, self.consumer = schema, consumer
        self.center = torch.zeros(len(schema.scalars)) if center is None else center
        self.scale = torch.ones(len(schema.scalars)) if scale is None else scale

    def targets(self, batch: Batch) -> Tensor:
        """Scalars (b m) in the units of their names; NaN is unknown."""
        if batch.scalar is None:
            raise DataError("regression needs scalars, and the studies carry none")
        return batch.scalar.float()

    def fitted(self, targets: Tensor) -> Self:
        """The task that standardises by mean and deviation of these targets."""
        center = targets.nanmean(0).nan_to_num(0.0)
        scale = (targets - center).square().nanmean(0).sqrt()
        return type(self)(self.schema, self.consumer, center, torch.where(scale > 0, scale, 1.0))

    def network(self) -> nn.Module:
        """A network with one standardised output a scalar."""
        return network_for(self.consumer, self.schema, len(self.schema.scalars), dense=False)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared error in standard deviations; unknown scalars count 0."""
        known = targets.isfinite()
        truth = ((targets - self.center) / self.scale).nan_to_num(0.0)
        return ((logits - truth).square() * known).sum(1) / known.sum(1).clamp(min=1)

    def scores(self, logits: Tensor, targets: Tensor) -> Array:
        """Predictions (b m) in the units of the scalars."""
        return (self.center + self.scale * logits).double().numpy()

    def value(self, scores: Array, targets: Tensor, weights: Array | None = None) -> Array:
        """Mean R2 over scalars."""
        return mean_r2(scores, targets.double().numpy(), weights)

    def further(self, scores: Array, targets: Tensor) -> dict[str, float]:
        """Mean absolute error of every scalar, in its unit."""
        errors = mean_absolute_error(scores, targets.double().numpy())
        return {f"MAE {n}": float(e) for n, e in zip(self.schema.scalars, errors, strict=True)}
