"""Gaussian mixtures, whose flow is known exactly on any path: what numerics are held to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.objectives.paths import Path, Prediction
from medgen.types import Net


@dataclass(frozen=True)
class Mixture:
    """Isotropic components with equal weights in d dimensions.

    Args:
        means: (k, d).
        std: of every component.
    """

    means: Tensor
    std: float

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        """Of the linear path: the expected data - noise at z (b d), t (b,)."""
        data, noise = self._expected(z, t[:, None], 1 - t[:, None])
        return data - noise

    def net(self, path: Path, prediction: Prediction) -> Net:
        """The best possible network on a path: the expected target."""

        def best(z: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = path.coefficients(t)
            data, noise = self._expected(z, alpha[:, None], sigma[:, None])
            return path.target(data, noise, t, prediction)

        return best

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples (count, d)."""
        which = torch.randint(len(self.means), (count,), generator=generator)
        spread = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.std * spread

    def cdf(self, z: Tensor) -> Tensor:
        """Of a mixture on the line, at z of any shape."""
        deviates = (z[..., None] - self.means[:, 0].to(z)) / (self.std * math.sqrt(2))
        return (0.5 * (1 + torch.erf(deviates))).mean(-1)

    def _expected(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        means = self.means.to(z)
        variance = (alpha * self.std) ** 2 + sigma**2  # (b 1)
        apart = z[:, None] - alpha[..., None] * means  # (b k d)
        weight = torch.softmax(-apart.square().sum(-1) / (2 * variance), dim=1)[..., None]
        pull = (weight * apart).sum(1) / variance
        data = (weight * means).sum(1) + alpha * self.std**2 * pull
        return data, sigma * pull


def gaussian(mean: float, std: float) -> Mixture:
    """One component on the line: its flow from noise to data is z -> mean + std z."""
    return Mixture(torch.tensor([[mean]], dtype=torch.float64), std)


def eight_modes(dimensions: int = 16) -> Mixture:
    """Eight modes, some apart and some touching: the problem on which solvers are compared."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(8, dimensions, generator=generator, dtype=torch.float64)
    return Mixture(means, 0.5)
