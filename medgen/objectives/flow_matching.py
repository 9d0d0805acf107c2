"""Flow matching: learn the velocity that carries noise to data."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medgen.objectives.paths import PATHS, Prediction, linear_field, noise_prior, one_of
from medgen.protocols import Domain
from medgen.registry import register
from medgen.rng import Rng
from medgen.types import Field, LatentSpec, Net

# A data or noise error is divided by at least this to become a velocity error; see FlowMatching.
_SMALLEST = 0.05


@register("objective", "flow_matching")
class FlowMatching:
    """The mean squared error of a network on a path between noise and data.

    With `loss_in="velocity"` the error is that of the velocity which the output implies: a data
    error divided by sigma, a noise error by alpha, neither by less than 0.05 (Li & He 2025, "Back
    to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720). With
    `loss_in="prediction"` it is the error of the output itself.

    Times are drawn as sigmoid(N(mean, std^2)), a share of them uniformly so that both ends are
    seen; a mean below 0 sees more noise.

    With `coupling="optimal_transport"` the noises of a batch are dealt to its samples so that the
    sum of squared distances is least. Samples of a batch are then coupled, so the loss depends on
    how a step is cut into micro-batches; and where conditions say much about the data, the noise
    comes to depend on the condition in training but not in sampling: use it for unconditional or
    weakly conditional generators.

    Args:
        path: "linear", or "cosine" (variance-preserving).
        prediction: what the network outputs.
        loss_in: where the error is measured.
        time: "logit_normal" or "uniform".
        mean: of the logit of t; logit_normal only.
        std: of the logit of t; logit_normal only.
        uniform_share: share of times drawn uniformly; logit_normal only.
        coupling: "independent" or "optimal_transport".

    Raises:
        ValueError: an argument is out of range, or is set where it has no effect.

    Source: Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003. Times: Esser
        et al. 2024, arXiv 2403.03206. Coupling: Tong et al. 2024, arXiv 2302.00482.
    """

    domain: Domain = "continuous"

    def __init__(
        self,
        path: Literal["linear", "cosine"] = "linear",
        prediction: Prediction = "velocity",
        *,
        loss_in: Literal["velocity", "prediction"] = "velocity",
        time: Literal["logit_normal", "uniform"] = "logit_normal",
        mean: float = 0.0,
        std: float = 1.0,
        uniform_share: float = 0.1,
        coupling: Literal["independent", "optimal_transport"] = "independent",
    ) -> None:
        one_of("path", path, ("linear", "cosine"))
        one_of("prediction", prediction, ("velocity", "data", "noise"))
        one_of("loss_in", loss_in, ("velocity", "prediction"))
        one_of("time", time, ("logit_normal", "uniform"))
        one_of("coupling", coupling, ("independent", "optimal_transport"))
        if not math.isfinite(mean):
            raise ValueError(f"mean: expected a finite number, got {mean}")
        if not (math.isfinite(std) and std > 0):
            raise ValueError(f"std: expected a number above 0, got {std}")
        if not 0 <= uniform_share <= 1:
            raise ValueError(f"uniform_share: expected a share in [0, 1], got {uniform_share}")
        if time == "uniform" and (mean, std, uniform_share) != (0.0, 1.0, 0.1):
            raise ValueError(
                "time: 'uniform' has no mean, std or uniform_share; leave them out, or choose "
                "time: logit_normal"
            )
        self.path = PATHS[path]
        self.prediction: Prediction = prediction
        self.loss_in = loss_in
        self.time = time
        self.mean, self.std, self.uniform_share = mean, std, uniform_share
        self.coupling = coupling

    def prior(self, latent: LatentSpec, rng: Rng) -> Float[Tensor, "b c *s"]:
        """Standard normal noise."""
        return noise_prior(latent, rng)

    def loss(self, net: Net, z: Float[Tensor, "b c *s"], rng: Rng) -> Float[Tensor, "b"]:
        """Mean squared error of every sample, in float32 or wider."""
        data = z.to(torch.promote_types(z.dtype, torch.float32))
        t = self.times(rng).to(data)
        noise = rng.normal(data.shape[1:]).to(data)
        if self.coupling == "optimal_transport":
            noise = noise[nearest(noise, data)]
        error = self.path.error(net, data, noise, t=t, prediction=self.prediction)
        return error * self.weight(t)

    def field(self, net: Net) -> Field:
        """The velocity of the linear path."""
        return linear_field(self.path, net, self.prediction)

    def times(self, rng: Rng) -> Float[Tensor, "b"]:
        """Training times, float32 on the CPU."""
        uniform = rng.uniform()
        if self.time == "uniform":
            return uniform
        peaked = torch.sigmoid(self.mean + self.std * rng.normal())
        return torch.where(rng.uniform() < self.uniform_share, uniform, peaked)

    def weight(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """What an error of the output at t counts."""
        if self.prediction == "velocity" or self.loss_in == "prediction":
            return torch.ones_like(t)
        scale = self.path.sigma(t) if self.prediction == "data" else self.path.alpha(t)
        return scale.clamp_min(_SMALLEST).square().reciprocal()


def nearest(noise: Float[Tensor, "b c *s"], data: Float[Tensor, "b c *s"]) -> Int[Tensor, "b"]:
    """Which noise goes to which sample: the assignment of least total squared distance.

    Source: Tong et al. 2024, arXiv 2302.00482; solved exactly by scipy's linear_sum_assignment.
    """
    from scipy.optimize import linear_sum_assignment

    a, b = data.flatten(1).double(), noise.flatten(1).double()
    # Squared norms add the same to every assignment, so that only the products decide.
    _, columns = linear_sum_assignment(-(a @ b.T).cpu().numpy())
    return torch.as_tensor(columns, device=noise.device)
