"""Consumers of studies: classifier, segmenter and regressor, trained alike in every arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medgen.augmentation.augment import STRONG, Augment
from medgen.augmentation.consumers import OWN, network_for
from medgen.augmentation.networks import SmallClassifier
from medgen.augmentation.regression import Regression
from medgen.augmentation.scores import accuracy, dice, macro_auroc, mean_dice
from medgen.augmentation.video_networks import SmallVideoNet
from medgen.errors import DataError
from medgen.nn.precision import computes_bfloat16
from medgen.rng import derive
from medgen.settings import TaskName
from medgen.types import Batch, Schema

Array = NDArray[np.float64]
CHECKS = 4
"""How often in a training run the validation split is looked at, the best state being kept."""
CHUNK = 128
"""Images, frames of clips or slices of volumes a forward pass when nothing is learned."""


class Task(Protocol):
    """What a consumer has to do, and how well it does it."""

    name: TaskName
    metric: str
    schema: Schema
    lr: float
    light: Augment
    strong: Augment

    def targets(self, batch: Batch) -> Tensor:
        """What is to be predicted for every study."""
        ...

    def fitted(self, targets: Tensor) -> Self:
        """The task with what it takes from the targets of the training studies."""
        ...

    def network(self) -> nn.Module:
        """A fresh network for images of the schema."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of every study, (b,)."""
        ...

    def scores(self, logits: Tensor, targets: Tensor) -> Array:
        """What the metric rests on, (b, k): probabilities, Dice by class, or predictions."""
        ...

    def value(self, scores: Array, targets: Tensor, weights: Array | None = None) -> Array:
        """The metric under every row of weights (draws, b), (draws,); higher is better."""
        ...

    def further(self, scores: Array, targets: Tensor) -> dict[str, float]:
        """Other measures of the same scores, for the record."""
        ...


class Classification:
    """Predict the findings; the metric is the macro AUROC.

    Args:
        schema: names the findings and whether exactly one is present.
        consumer: name of the network.

    Raises:
        DataError: the schema names no findings.
    """

    name: TaskName = "classification"
    metric = "AUROC"
    lr = 1e-3
    light, strong = Augment(), STRONG

    def __init__(self, schema: Schema, consumer: str = OWN) -> None:
        if not schema.findings:
            raise DataError("classification needs findings, and the dataset's schema names none")
        self.schema, self.consumer = schema, consumer

    def targets(self, batch: Batch) -> Tensor:
        """Labels (b k): 1 present, 0 absent, -1 unknown."""
        if batch.label is None:
            raise DataError("classification needs labels, and the studies carry none")
        return batch.label

    def fitted(self, targets: Tensor) -> Self:
        """Itself: nothing is taken from training studies."""
        return self

    def network(self) -> nn.Module:
        """A classifier with one logit a finding."""
        return network_for(self.consumer, self.schema, len(self.schema.findings), dense=False)

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

    def further(self, scores: Array, targets: Tensor) -> dict[str, float]:
        """Accuracy, where findings are exclusive."""
        return {"accuracy": accuracy(scores, targets.numpy())} if self.schema.exclusive else {}


class Segmentation:
    """Predict the mask; the metric is the mean Dice over foreground classes.

    Args:
        schema: names the classes of a mask.
        consumer: name of the network.

    Raises:
        DataError: the schema names no masks.
    """

    name: TaskName = "segmentation"
    metric = "Dice"
    lr = 2e-3
    light, strong = Augment(), STRONG

    def __init__(self, schema: Schema, consumer: str = OWN) -> None:
        if not schema.mask_classes:
            raise DataError("segmentation needs masks, and the dataset's schema names none")
        self.schema, self.consumer = schema, consumer
        self.classes = len(schema.mask_classes)

    def targets(self, batch: Batch) -> Tensor:
        """Integer classes, (b h w)."""
        if batch.mask is None:
            raise DataError("segmentation needs masks, and the studies carry none")
        return batch.mask.long()

    def fitted(self, targets: Tensor) -> Self:
        """Itself: nothing is taken from training studies."""
        return self

    def network(self) -> nn.Module:
        """A segmenter with one logit a class and pixel."""
        return network_for(self.consumer, self.schema, self.classes, dense=True)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy plus soft Dice (Isensee et al. 2021, nnU-Net, equation in methods)."""
        entropy = functional.cross_entropy(logits, targets, reduction="none").flatten(1).mean(1)
        share = logits.softmax(1)[:, 1:].flatten(2)
        truth = functional.one_hot(targets, self.classes).movedim(-1, 1)[:, 1:].flatten(2).float()
        overlap = (2 * (share * truth).sum(2) + 1) / (share.sum(2) + truth.sum(2) + 1)
        return entropy + 1 - overlap.mean(1)

    def scores(self, logits: Tensor, targets: Tensor) -> Array:
        """Dice of every study and foreground class, (b, classes - 1); NaN where truth is empty."""
        return dice(logits.argmax(1), targets, self.classes)

    def value(self, scores: Array, targets: Tensor, weights: Array | None = None) -> Array:
        """Mean Dice."""
        return mean_dice(scores, weights)

    def further(self, scores: Array, targets: Tensor) -> dict[str, float]:
        """Nothing more."""
        return {}


TASKS = {"classification": Classification, "segmentation": Segmentation, "regression": Regression}


def task_for(name: str, schema: Schema, consumer: str = OWN) -> Task:
    """The task "classification", "segmentation" or "regression" on studies of a schema.

    Args:
        name: of the task.
        schema: of the studies.
        consumer: name of the network, as `network_for` takes it.
    """
    return TASKS[name](schema, consumer)


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
            parts = [self.network(part).float() for part in images.split(chunk_of(images))]
        return torch.cat(parts)

    def scores(self, images: Tensor, targets: Tensor) -> Array:
        """What the metric rests on, for every study, (b, k)."""
        return self.task.scores(self.logits(images), targets)

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """What the last layer of a classifier sees, (b, d)."""
        if not isinstance(self.network, SmallClassifier | SmallVideoNet):
            raise ValueError("only a classifier has features")
        self.network.eval()
        parts = [self.network.features(part).double() for part in images.split(chunk_of(images))]
        return torch.cat(parts).numpy()


def chunk_of(images: Tensor) -> int:
    """Studies a forward pass when nothing is learned."""
    return CHUNK if images.ndim < 5 else max(1, CHUNK // images.shape[2])


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
        augment: None is the task's light augmentation.
        start: a network of the task whose weights training starts from; None is fresh weights.
        progress: called with (step, steps).
    """
    lr = task.lr if lr is None else lr
    task = task.fitted(targets)
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
        studies = _moved(task, images[chosen], targets[chosen], augment or task.light, moves)
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
    frames = task.schema.time and images.ndim == 5
    moved, moved_masks = augment.apply(images, masks, moves, frames=frames)
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
