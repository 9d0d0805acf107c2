"""Consumers of studies: a small classifier and a small segmenter, trained alike in every arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medgen.augmentation.augment import Augment
from medgen.augmentation.networks import SmallClassifier, SmallUNet
from medgen.augmentation.scores import dice as dice_scores
from medgen.augmentation.scores import macro_auroc, mean_dice, r_squared
from medgen.errors import DataError
from medgen.nn.precision import computes_bfloat16
from medgen.rng import derive
from medgen.types import Batch, Schema

Array = NDArray[np.float64]
TaskName = Literal["classification", "segmentation", "regression"]
CHECKS = 4
"""How often in a training run the validation split is looked at, the best state being kept."""
CHUNK = 128
"""Studies a forward pass when nothing is learned."""


class Task(Protocol):
    """What a consumer has to do, and how well it does it."""

    name: TaskName
    metric: str
    lr: float

    def targets(self, batch: Batch) -> Tensor:
        """What is to be predicted for every study."""
        ...

    def network(self) -> nn.Module:
        """A fresh network for images of the schema."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of every study, (b,)."""
        ...

    def scores(self, logits: Tensor, targets: Tensor) -> Array:
        """What the metric rests on, (b, k): probabilities, or Dice by class."""
        ...

    def value(self, scores: Array, targets: Tensor, weights: Array | None = None) -> Array:
        """The metric under every row of weights (draws, b), (draws,)."""
        ...


class Classification:
    """Predict the findings; the metric is the macro AUROC.

    Args:
        schema: names the findings and whether exactly one is present.

    Raises:
        DataError: the schema names no findings.
    """

    name: TaskName = "classification"
    metric = "AUROC"
    lr = 1e-3

    def __init__(self, schema: Schema) -> None:
        if not schema.findings:
            raise DataError("classification needs findings, and the dataset's schema names none")
        self.schema = schema

    def targets(self, batch: Batch) -> Tensor:
        """Labels (b k): 1 present, 0 absent, -1 unknown."""
        if batch.label is None:
            raise DataError("classification needs labels, and the studies carry none")
        return batch.label

    def network(self) -> nn.Module:
        """A residual classifier with one logit a finding."""
        return SmallClassifier(self.schema.channels, len(self.schema.findings), self.schema.size)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of exclusive findings, else binary cross-entropy; unknown counts 0."""
        known = (targets >= 0).float()
        truth = targets.clamp(min=0).float()
        if self.schema.exclusive:
            return -(functional.log_softmax(logits, dim=1) * truth * known).sum(1)
        each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return (each * known).sum(1) / known.sum(1).clamp(min=1)

    def scores(self, logits: Tensor, targets: Tensor) -> Array:
        """Probabilities, (b, k)."""
        exclusive = self.schema.exclusive
        return (logits.softmax(1) if exclusive else logits.sigmoid()).double().numpy()

    def value(self, scores: Array, targets: Tensor, weights: Array | None = None) -> Array:
        """Macro AUROC."""
        return macro_auroc(scores, targets.numpy(), weights)


class Segmentation:
    """Predict the mask; the metric is the mean Dice over foreground classes.

    Args:
        schema: names the classes of a mask.

    Raises:
        DataError: the schema names no masks.
    """

    name: TaskName = "segmentation"
    metric = "Dice"
    lr = 2e-3

    def __init__(self, schema: Schema) -> None:
        if not schema.mask_classes:
            raise DataError("segmentation needs masks, and the dataset's schema names none")
        self.schema = schema
        self.classes = len(schema.mask_classes)

    def targets(self, batch: Batch) -> Tensor:
        """Integer classes, (b h w)."""
        if batch.mask is None:
            raise DataError("segmentation needs masks, and the studies carry none")
        return batch.mask.long()

    def network(self) -> nn.Module:
        """A U-Net with one logit a class and pixel."""
        return SmallUNet(self.schema.channels, self.classes, self.schema.size)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy plus soft Dice (Isensee et al. 2021, nnU-Net, equation in methods)."""
        entropy = functional.cross_entropy(logits, targets, reduction="none").flatten(1).mean(1)
        share = logits.softmax(1)[:, 1:].flatten(2)
        truth = functional.one_hot(targets, self.classes).movedim(-1, 1)[:, 1:].flatten(2).float()
        overlap = (2 * (share * truth).sum(2) + 1) / (share.sum(2) + truth.sum(2) + 1)
        return entropy + 1 - overlap.mean(1)

    def scores(self, logits: Tensor, targets: Tensor) -> Array:
        """Dice of every study and foreground class, (b, classes - 1); NaN where truth is empty."""
        return dice_scores(logits.argmax(1), targets, self.classes)

    def value(self, scores: Array, targets: Tensor, weights: Array | None = None) -> Array:
        """Mean Dice."""
        return mean_dice(scores, weights)


class Regression:
    """Predict the scalars; the metric is the mean share of variance explained.

    Args:
        schema: names the scalars.
        mean: of every scalar over the training studies, (m,).
        deviation: of every scalar over the training studies, (m,); above 0.

    Raises:
        DataError: the schema names no scalars.
    """

    name: TaskName = "regression"
    metric = "R2"
    lr = 1e-3

    def __init__(self, schema: Schema, mean: Tensor, deviation: Tensor) -> None:
        if not schema.scalars:
            raise DataError("regression needs scalars, and the dataset's schema names none")
        self.schema, self.mean, self.deviation = schema, mean, deviation

    @classmethod
    def on(cls, schema: Schema, train: Batch) -> Regression:
        """The task whose scalars are standardised as training studies say.

        Raises:
            DataError: a scalar is known of no study, or is the same in all.
        """
        values = _scalars(train).double()
        mean = values.nanmean(0)
        deviation = (values - mean).square().nanmean(0).sqrt()
        flat = [s for s, d in zip(schema.scalars, deviation.tolist(), strict=True) if not d > 0]
        if flat:
            raise DataError(
                f"regression needs scalars that vary among the training studies; {', '.join(flat)} "
                "does not, or is unknown"
            )
        return cls(schema, mean.float(), deviation.float())

    def targets(self, batch: Batch) -> Tensor:
        """Standardised scalars (b m); NaN is unknown."""
        return (_scalars(batch) - self.mean) / self.deviation

    def network(self) -> nn.Module:
        """A residual network with one output a scalar."""
        return SmallClassifier(self.schema.channels, len(self.schema.scalars), self.schema.size)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error; unknown counts 0."""
        known = targets.isfinite()
        each = (logits - targets.nan_to_num()).square() * known
        return each.sum(1) / known.sum(1).clamp(min=1)

    def scores(self, logits: Tensor, targets: Tensor) -> Array:
        """Predicted standardised scalars, (b, m)."""
        return logits.double().numpy()

    def value(self, scores: Array, targets: Tensor, weights: Array | None = None) -> Array:
        """Mean share of variance explained."""
        return r_squared(scores, targets.double().numpy(), weights)


def _scalars(batch: Batch) -> Tensor:
    if batch.scalar is None:
        raise DataError("regression needs scalars, and the studies carry none")
    return batch.scalar


def task_for(name: str, schema: Schema) -> Classification | Segmentation:
    """The task "classification" or "segmentation" on studies of a schema."""
    return Classification(schema) if name == "classification" else Segmentation(schema)


@dataclass(frozen=True)
class Consumer:
    """A trained network and its task.

    Args:
        task: what it does.
        network: the state that was best on the validation split.
        selected: the optimiser step of that state.
        validation: the metric there; NaN where there was no validation split.
    """

    task: Task
    network: nn.Module
    selected: int
    validation: float

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Outputs for images (b c h w) in [-1, 1], float32."""
        self.network.eval()
        with _arithmetic():
            parts = [self.network(part).float() for part in images.split(CHUNK)]
        return torch.cat(parts)

    def scores(self, images: Tensor, targets: Tensor) -> Array:
        """What the metric rests on, for every study, (b, k)."""
        return self.task.scores(self.logits(images), targets)

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """What the last layer of a classifier sees, (b, d)."""
        if not isinstance(self.network, SmallClassifier):
            raise ValueError("only a classifier has features")
        self.network.eval()
        parts = [self.network.features(part).double() for part in images.split(CHUNK)]
        return torch.cat(parts).numpy()


def train_consumer(
    task: Task,
    images: Tensor,
    targets: Tensor,
    *,
    steps: int,
    batch: int = 32,
    lr: float | None = None,
    seed: int = 0,
    validation: tuple[Tensor, Tensor] | None = None,
    augment: Augment | None = None,
    start: nn.Module | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Consumer:
    """Train one consumer for a fixed number of steps; the same seed gives the same weights.

    The state kept is the best on the validation split, looked at `CHECKS` times.

    Args:
        task: what to learn.
        images: (b c h w) in [-1, 1].
        targets: as `task.targets` gives them.
        steps: optimiser steps, whatever the number of studies.
        batch: studies a step.
        lr: peak learning rate, None for the task's own; warm-up over a tenth of the steps, then
            cosine to zero.
        seed: initial weights, order of studies and augmentation derive from it.
        validation: images and targets of real studies; None keeps the last state.
        augment: None is the default light augmentation.
        start: a network of the task whose weights training starts from; None is fresh weights.
        progress: called with (step, steps).
    """
    lr = task.lr if lr is None else lr
    network = _initialised(task, seed)
    if start is not None:
        network.load_state_dict(start.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
    order = batches(len(images), batch, derive(seed, "order"))
    moves = torch.Generator().manual_seed(derive(seed, "augment"))
    checks = {math.ceil(steps * (i + 1) / CHECKS) for i in range(CHECKS)}
    best: tuple[tuple[float, float], int, dict[str, Tensor]] | None = None
    for step in range(1, steps + 1):
        chosen = next(order)
        for group in optimiser.param_groups:
            group["lr"] = lr * _schedule(step, steps)
        studies = _moved(task, images[chosen], targets[chosen], augment or Augment(), moves)
        _descend(task, network, optimiser, *studies)
        if progress is not None:
            progress(step, steps)
        if step in checks and validation is not None:
            standing = _standing(Consumer(task, network, step, math.nan), *validation)
            if best is None or standing > best[0]:
                best = (standing, step, deepcopy(network.state_dict()))
    if best is None:
        return Consumer(task, network.eval(), steps, math.nan)
    network.load_state_dict(best[2])
    return Consumer(task, network.eval(), best[1], best[0][0])


def _moved(
    task: Task, images: Tensor, targets: Tensor, augment: Augment, moves: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augmented images and their targets; a mask moves with its image."""
    masks = targets if task.name == "segmentation" else None
    moved, moved_masks = augment.apply(images, masks, moves)
    return moved, targets if moved_masks is None else moved_masks


def _descend(
    task: Task,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
) -> None:
    """One optimiser step."""
    network.train()
    with _arithmetic():
        logits = network(images)
    loss = task.loss(logits.float(), targets).mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def _initialised(task: Task, seed: int) -> nn.Module:
    """A network whose initial weights depend on the seed alone; no global state moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        return task.network()


def batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Indices of one batch after another; all studies come once before any comes again."""
    rng = torch.Generator().manual_seed(seed)
    waiting = torch.randperm(count, generator=rng)
    while True:
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(count, generator=rng)])
        yield waiting[:batch]
        waiting = waiting[batch:]


def _schedule(step: int, steps: int) -> float:
    """Warm-up over a tenth of the steps, then cosine to zero, as a share of the peak."""
    warmup = max(1, steps // 10)
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _standing(consumer: Consumer, images: Tensor, targets: Tensor) -> tuple[float, float]:
    """Metric on the validation split, then minus the loss, which decides between equals."""
    logits = consumer.logits(images)
    loss = float(consumer.task.loss(logits, targets).mean())
    value = float(consumer.task.value(consumer.task.scores(logits, targets), targets)[0])
    return (value if math.isfinite(value) else -math.inf, -loss)


def _arithmetic() -> torch.autocast:
    """Bfloat16 on processors that are faster in it, float32 elsewhere."""
    return torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16("cpu"))
