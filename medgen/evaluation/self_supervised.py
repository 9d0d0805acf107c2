"""An encoder that learns from real training images alone, without labels or downloads."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medgen.augmentation.augment import Augment
from medgen.augmentation.networks import SmallClassifier
from medgen.augmentation.tasks import CHUNK, batches
from medgen.evaluation.features import digest_of, root_mean_square
from medgen.rng import derive

Array = NDArray[np.float64]
VIEWS = Augment(shift=0.15, scale=0.3, rotation=15, intensity=0.3, gamma=0.3, noise=0.2)
"""What two views of an image may differ in: nothing that a diagnosis rests on, and no mirror."""
BATCH = 64
WIDE = 256
"""Width in which the loss is taken."""
INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0
LR = 1e-3


class SelfSupervisedFeatures:
    """What a small residual network sees that was taught to tell images apart, whatever the view.

    Two views of an image shall give the same, every output shall vary over a batch, and no two
    shall vary together (VICReg).

    Args:
        images: real training images (b c h w) in [-1, 1]; features are divided by their root mean
            square there.
        seed: of weights, order and views.
        steps: optimiser steps.

    Source: Bardes, Ponce and LeCun 2022, arXiv:2105.04906, with its weights of the three terms.
    """

    name = "ssl"

    def __init__(self, images: Tensor, *, seed: int = 0, steps: int = 300) -> None:
        self.network = _learned(images, seed, steps)
        self.digest = digest_of(self.network.state_dict().values())
        self.scale = 1.0
        self.scale = root_mean_square(self.features(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """Images (b c h w) in [-1, 1] to features (b 128)."""
        parts = [self.network.features(part).double() for part in images.split(CHUNK)]
        return torch.cat(parts).numpy() / self.scale


def vicreg(a: Tensor, b: Tensor) -> Tensor:
    """The loss of two views (b d): a scalar, since its terms are of a whole batch."""

    def spread(z: Tensor) -> Tensor:
        apart = z - z.mean(0)
        deviation = (apart.square().sum(0) / (len(z) - 1) + 1e-4).sqrt()
        covariance = apart.T @ apart / (len(z) - 1)
        together = covariance.square().sum() - covariance.diagonal().square().sum()
        return VARIANCE * functional.relu(1 - deviation).mean() + COVARIANCE * together / z.shape[1]

    return INVARIANCE * functional.mse_loss(a, b) + spread(a) + spread(b)


def _learned(images: Tensor, seed: int, steps: int) -> SmallClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        network = SmallClassifier(images.shape[1], WIDE, tuple(images.shape[2:]))
        expander = nn.Sequential(
            network.head, nn.BatchNorm1d(WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE)
        )
    parameters = [*network.stem.parameters(), *network.stages.parameters(), *expander.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    views = torch.Generator().manual_seed(derive(seed, "views"))
    for chosen in islice(batches(len(images), BATCH, derive(seed, "order")), steps):
        a, b = (VIEWS.apply(images[chosen], None, views)[0] for _ in range(2))
        both = expander(network.features(torch.cat([a, b])))
        optimiser.zero_grad(set_to_none=True)
        vicreg(*both.chunk(2)).backward()
        optimiser.step()
        schedule.step()
    return network.eval()
