"""When does a generator stop learning and begin to learn its studies by heart?

Then the loss on held-out studies rises while that on training studies falls on. Both are measured
under the averaged weights, with the same noise and times at every look, so a rise is a paired
difference, study by study.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medgen.training.ema import Average

LEVEL = 0.01
"""Largest p-value at which a rise counts."""
MARGIN = 0.01
"""A rise must be larger than this share of the lowest loss: losses of weights that have settled
waver by less."""
LEAST_DRAWS = 64
"""So few studies are asked about several noises each that there are so many draws."""


class MemorizationWatch:
    """Keeps the averaged weights of the lowest held-out loss, and says when memorization began.

    It began when the held-out loss exceeds the lowest one so far by more than a hundredth, in a
    one-sided paired t-test over held-out studies at p < 0.01, and the loss on training studies does
    not exceed the one at that time: the model diverged if both rise, it memorizes if one does.

    Args:
        average: the averaged weights.
        losses: gives the loss of every training study and of every held-out one, (t,) and (v,),
            with the same noise and times at every call.

    Attributes:
        began: memorization began.
        images: images seen at the lowest held-out loss.

    Source: Bonnaire et al. 2025, arXiv:2505.17638 (held-out and training loss of diffusion models
        part when they begin to memorize).
    """

    def __init__(self, average: Average, losses: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self.average = average
        self.losses = losses
        self.began = False
        self.images = 0
        self._training = float("inf")
        self._best: dict[str, Tensor] = {}
        self._held_out = torch.empty(0)

    def look(self, images: int) -> dict[str, float]:
        """Measure after `images` images; returns the values to log."""
        training, held_out = self.losses()
        values = {"watched_training_loss": float(training.mean())}
        values["watched_held_out_loss"] = float(held_out.mean())
        if not len(self._held_out) or held_out.mean() < self._held_out.mean():
            self.images, self._training = images, float(training.mean())
            self._held_out = held_out.clone()
            self._best = {name: t.clone() for name, t in self.average.tensors.items()}
            return values
        p = rise_p_value(self._held_out, held_out)
        self.began = p < LEVEL and float(training.mean()) <= self._training
        return {**values, "memorization_p": p, "memorization_began": float(self.began)}

    def restore_best(self) -> None:
        """Give the average the weights of the lowest held-out loss."""
        self.average.load(self._best)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and scalars to resume from."""
        tensors = {"held_out": self._held_out, **{f"best.{k}": t for k, t in self._best.items()}}
        scalars = {"began": self.began, "images": self.images, "training": self._training}
        return (tensors, scalars) if self._best else ({}, {})

    def load(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        if not scalars:
            return
        self.began, self.images = bool(scalars["began"]), int(scalars["images"])
        self._training = float(scalars["training"])
        self._held_out = tensors["held_out"].clone()
        own = self.average.tensors
        self._best = {name: tensors[f"best.{name}"].to(t.device) for name, t in own.items()}


def rise_p_value(before: Tensor, after: Tensor) -> float:
    """One-sided paired t-test that losses rose by more than a hundredth of their mean.

    Args:
        before: of every study (n,).
        after: of the same studies (n,).
    """
    from scipy.stats import t as student

    if len(before) < 2:
        return 1.0
    excess = (after - before - MARGIN * before.mean()).double().numpy()
    if not excess.std():
        return 0.0 if excess.mean() > 0 else 1.0
    error = excess.std(ddof=1) / len(excess) ** 0.5
    return float(student.sf(excess.mean() / error, len(excess) - 1))
