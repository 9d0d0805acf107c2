"""Diffusion: learn to remove noise, on a variance-preserving path with continuous time."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medgen.objectives.paths import PATHS, Prediction, edm_time, linear_field, noise_prior, one_of
from medgen.protocols import Domain
from medgen.registry import register
from medgen.rng import Rng
from medgen.types import Field, LatentSpec, Net

Schedule = Literal["cosine", "scaled_linear", "edm"]
Weighting = Literal["uniform", "min_snr"]

# EDM2's for 64 x 64 pixels, N(-0.8, 1.6^2) at data of standard deviation 0.5; latents here have 1.
_EDM_LOG_SIGMA = (math.log(2) - 0.8, 1.6)


@register("objective", "diffusion")
class Diffusion:
    """The weighted mean squared error of a denoising network.

    Times are uniform on "cosine" and "scaled_linear". "edm" is EDM's preconditioning for latents
    of unit variance: noise levels are log-normal, the network's output is the velocity (which is
    c_skip z + c_out F read the other way round), and the uniform weight is EDM's.

    "min_snr" limits what nearly clean samples count. With snr = alpha^2 / sigma^2, the squared
    error of the output is multiplied by min(snr, gamma) for the data, min(snr, gamma) / snr for the
    noise, min(snr, gamma) / (snr + 1) for the velocity.

    A noise prediction on the cosine schedule needs `clip`, best at the range of the latents. Near
    pure noise alpha is so small that the data estimate, (z - sigma noise) / alpha, magnifies every
    error of the network, and samples come out with too much contrast.

    Args:
        schedule: "cosine", "scaled_linear" (that of Stable Diffusion) or "edm".
        prediction: what the network outputs; only "velocity" with "edm".
        weighting: None means "min_snr", but "uniform" with "edm".
        gamma: of min_snr; None means 5.
        clip: largest absolute value of the data estimate when sampling, in standard deviations of
            the latents; None leaves it free.
        log_sigma: mean and standard deviation of the logarithm of EDM's noise level; None means
            those of EDM2 for 64 x 64 pixels.

    Raises:
        ValueError: an argument is out of range, or is set where it has no effect.

    Source: Ho et al. 2020, arXiv 2006.11239; Nichol & Dhariwal 2021, arXiv 2102.09672; Salimans &
        Ho 2022, arXiv 2202.00512; Karras et al. 2022, arXiv 2206.00364; Hang et al. 2023, arXiv
        2303.09556.
    """

    domain: Domain = "continuous"

    def __init__(
        self,
        schedule: Schedule = "cosine",
        prediction: Prediction = "velocity",
        *,
        weighting: Weighting | None = None,
        gamma: float | None = None,
        clip: float | None = None,
        log_sigma: tuple[float, float] | None = None,
    ) -> None:
        one_of("schedule", schedule, ("cosine", "scaled_linear", "edm"))
        one_of("prediction", prediction, ("velocity", "data", "noise"))
        weighting = weighting or ("uniform" if schedule == "edm" else "min_snr")
        one_of("weighting", weighting, ("uniform", "min_snr"))
        if schedule == "edm" and prediction != "velocity":
            raise ValueError(
                f"prediction: schedule 'edm' fixes it to 'velocity', got '{prediction}'"
            )
        if gamma is not None and weighting != "min_snr":
            raise ValueError("gamma: belongs to weighting 'min_snr'; leave it out")
        if log_sigma is not None and schedule != "edm":
            raise ValueError("log_sigma: belongs to schedule 'edm'; leave it out")
        _positive("gamma", gamma)
        _positive("clip", clip)
        _positive("log_sigma: standard deviation", log_sigma[1] if log_sigma else None)
        self.path = PATHS[schedule]
        self.prediction: Prediction = prediction
        self.gamma = (gamma or 5.0) if weighting == "min_snr" else None
        self.clip = clip
        self.log_sigma = (log_sigma or _EDM_LOG_SIGMA) if schedule == "edm" else None

    def prior(self, latent: LatentSpec, rng: Rng) -> Float[Tensor, "b c *s"]:
        """Standard normal noise."""
        return noise_prior(latent, rng)

    def loss(self, net: Net, z: Float[Tensor, "b c *s"], rng: Rng) -> Float[Tensor, "b"]:
        """Weighted mean squared error of every sample, in float32 or wider."""
        data = z.to(torch.promote_types(z.dtype, torch.float32))
        t = self.times(rng).to(data)
        noise = rng.normal(data.shape[1:]).to(data)
        error = self.path.error(net, data, noise, t=t, prediction=self.prediction)
        return error * self.weight(t)

    def field(self, net: Net) -> Field:
        """The velocity of the linear path."""
        return linear_field(self.path, net, self.prediction, clip=self.clip)

    def times(self, rng: Rng) -> Float[Tensor, "b"]:
        """Training times, float32 on the CPU."""
        if self.log_sigma is None:
            return rng.uniform()
        mean, std = self.log_sigma
        return edm_time(mean + std * rng.normal())

    def weight(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """What an error of the output at t counts. Source: Hang et al. 2023, arXiv 2303.09556."""
        if self.gamma is None:
            return torch.ones_like(t)
        signal, noise = self.path.alpha(t).square(), self.path.sigma(t).square()
        # Written with signal + noise = 1, nothing is NaN where the snr is 0 or infinite.
        if self.prediction == "velocity":
            return torch.minimum(signal, self.gamma * noise)
        if self.prediction == "data":
            return (signal / noise).clamp_max(self.gamma)
        return (self.gamma * noise / signal).clamp_max(1)


def _positive(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a number above 0, got {value}")
