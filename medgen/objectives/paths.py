"""Paths from noise to data: alpha(t), sigma(t), and all conversions of velocity, data and noise.

Every path runs from noise at t = 0 to data at t = 1 on its own clock, and z_t = alpha(t) data +
sigma(t) noise. Divided by alpha + sigma, any path lies on the linear one, z = t data + (1 - t)
noise, at t = alpha / (alpha + sigma); samplers follow that one, through `linear_field`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medgen.rng import Rng
from medgen.types import Field, LatentSpec, Net

Prediction = Literal["velocity", "data", "noise"]
"""What a network outputs."""

Coefficients = tuple[Tensor, Tensor]

# Where data = (z - sigma noise) / alpha is no longer trusted: there a noise prediction is asked at
# this time of the linear path instead (EDM's largest noise, sigma 80, stands at 0.0123).
_NOISE_FLOOR = 0.01
# Closer to the data than this, the direction from z to the data is rounding error in float32.
_LAST = 1 - 1e-4


@dataclass(frozen=True)
class Path:
    """A path z_t = alpha(t) data + sigma(t) noise.

    Its velocity is dz/dt on a clock that makes alpha' sigma - alpha sigma' = 1: data - noise on
    the linear path, sigma data - alpha noise on a variance-preserving one (the v of Salimans & Ho
    2022, arXiv 2202.00512, with the sign that points to data). Hence data and noise follow from z
    and the velocity without a division.

    Args:
        coefficients: t (b,) in [0, 1] to alpha and sigma, (b,) each.
        time: time of the linear path (b,) to this path's t; the inverse of `linear_time`.
        variance_preserving: alpha^2 + sigma^2 = 1; else alpha + sigma = 1, the linear path.
    """

    coefficients: Callable[[Tensor], Coefficients]
    time: Callable[[Tensor], Tensor]
    variance_preserving: bool = True

    def alpha(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Weight of the data at t."""
        return self.coefficients(t)[0]

    def sigma(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Weight of the noise at t."""
        return self.coefficients(t)[1]

    def linear_time(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The time of the linear path at which there is as much noise as here at t."""
        alpha, sigma = self.coefficients(t)
        return alpha / (alpha + sigma)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """Times of the linear path where this one starts and ends; (0, 1) if it covers all."""
        first, last = self.linear_time(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return first, last

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> Float[Tensor, "b c *s"]:
        """z_t of data and noise (b c *s) at t (b,)."""
        alpha, sigma = self._at(t, data)
        return alpha * data + sigma * noise

    def target(
        self, data: Tensor, noise: Tensor, t: Tensor, prediction: Prediction
    ) -> Float[Tensor, "b c *s"]:
        """What a perfect network outputs, if data and noise (b c *s) were known."""
        if prediction == "data":
            return data
        if prediction == "noise":
            return noise
        data_rate, noise_rate = self._rates(*self._at(t, data))
        return data_rate * data - noise_rate * noise

    def split(
        self, output: Tensor, z: Tensor, t: Tensor, prediction: Prediction
    ) -> tuple[Float[Tensor, "b c *s"], Float[Tensor, "b c *s"]]:
        """Data and noise that a network's output implies for z (b c *s) at t (b,).

        Not defined for a data prediction where sigma is 0, nor for a noise prediction where alpha
        is 0.
        """
        alpha, sigma = self._at(t, z)
        if prediction == "data":
            return output, (z - alpha * output) / sigma
        if prediction == "noise":
            return (z - sigma * output) / alpha, output
        data_rate, noise_rate = self._rates(alpha, sigma)
        return noise_rate * z + sigma * output, data_rate * z - alpha * output

    def to_linear(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The same point (b c *s) and time (b,) on the linear path."""
        alpha, sigma = self._at(t, z)
        return z / (alpha + sigma), self.linear_time(t)

    def from_linear(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """A point (b c *s) and time (b,) of the linear path on this one."""
        own = self.time(t)
        alpha, sigma = self._at(own, z)
        return z * (alpha + sigma), own

    def error(
        self, net: Net, data: Tensor, noise: Tensor, *, t: Tensor, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        """Mean squared error of a network's output, (b,), at t (b,) between noise and data."""
        output = net(self.interpolate(data, noise, t), t).to(data.dtype)
        target = self.target(data, noise, t, prediction)
        return (output - target).square().flatten(1).mean(1)

    def _at(self, t: Tensor, z: Tensor) -> Coefficients:
        """Alpha and sigma, shaped to multiply z."""
        alpha, sigma = self.coefficients(t)
        shape = (-1, *[1] * (z.ndim - 1))
        return alpha.view(shape), sigma.view(shape)

    def _rates(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        """The velocity is the first times data minus the second times noise."""
        if self.variance_preserving:
            return sigma, alpha
        return torch.ones_like(alpha), torch.ones_like(sigma)


def linear_field(
    path: Path, net: Net, prediction: Prediction, *, clip: float | None = None
) -> Field:
    """The velocity of the linear path that a network on `path` implies: what samplers follow.

    It points from z to the network's estimate of the data. Where the path has no counterpart (pure
    noise, if its noisiest point still holds some data; or beyond its cleanest point), the network
    is asked at the nearest end.

    Args:
        path: what the network was trained on.
        net: its output is read as `prediction`.
        prediction: "velocity", "data" or "noise".
        clip: largest absolute value of the data estimate; None leaves it free.
    """
    if path is LINEAR and prediction == "velocity" and clip is None:
        return lambda z, t: net(z, t).to(z.dtype)
    first = max(path.ends[0], _NOISE_FLOOR if prediction == "noise" else 0.0)
    last = min(path.ends[1], _LAST)

    def field(z: Tensor, t: Tensor) -> Tensor:
        own_z, own_t = path.from_linear(z, t.clamp(first, last))
        output = net(own_z, own_t).to(z.dtype)
        data, _ = path.split(output, own_z, own_t, prediction)
        if clip is not None:
            data = data.clamp(-clip, clip)
        left = 1 - t.clamp_max(last)
        return (data - z) / left.view(-1, *[1] * (z.ndim - 1))

    return field


def _ratio(t: Tensor) -> Coefficients:
    """Alpha and sigma of the variance-preserving point at time t of the linear path."""
    length = torch.hypot(t, 1 - t)
    return t / length, (1 - t) / length


_OFFSET = 0.008
_QUARTER = math.pi / 2 / (1 + _OFFSET)


def _cosine(t: Tensor) -> Coefficients:
    # cos^2(a) / cos^2(b) and 1 minus that, written so that neither end cancels.
    scale = math.cos(_QUARTER * _OFFSET)
    alpha = torch.sin(_QUARTER * t) / scale
    product = torch.sin(_QUARTER * (1 - t)) * torch.sin(_QUARTER * (1 - t + 2 * _OFFSET))
    return alpha, product.clamp_min(0).sqrt() / scale


def _cosine_time(t: Tensor) -> Tensor:
    alpha, sigma = _ratio(t)
    across = torch.hypot(sigma, alpha * math.sin(_QUARTER * _OFFSET))
    return torch.atan2(alpha * math.cos(_QUARTER * _OFFSET), across) / _QUARTER


_STEPS = 1000


def _log_alpha_squared() -> Tensor:
    """Of the discrete schedule, from 0 steps of noise (exactly 0) to 1000; decreasing."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, _STEPS, dtype=torch.float64).square()
    return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-beta).cumsum(0)])


_TABLE = _log_alpha_squared()


def _scaled_linear(t: Tensor) -> Coefficients:
    table = _TABLE.to(t)
    place = (1 - t) * _STEPS
    low = place.floor().clamp(0, _STEPS - 1).long()
    level = torch.lerp(table[low], table[low + 1], place - low)
    return torch.exp(level / 2), torch.sqrt(-torch.expm1(level))


def _scaled_linear_time(t: Tensor) -> Tensor:
    table = _TABLE.to(t)
    level = (-torch.log1p(((1 - t) / t).square())).clamp(_TABLE[-1].item(), 0)
    low = (torch.searchsorted(-table, -level, right=True) - 1).clamp(0, _STEPS - 1)
    share = (level - table[low]) / (table[low + 1] - table[low])
    return 1 - (low + share) / _STEPS


_LOG_SIGMA_MAX = math.log(80.0)
_LOG_SIGMA_MIN = math.log(0.002)


def edm_time(log_sigma: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """The time of `EDM` of a noise level, held to its range of 0.002 to 80."""
    return ((_LOG_SIGMA_MAX - log_sigma) / (_LOG_SIGMA_MAX - _LOG_SIGMA_MIN)).clamp(0, 1)


def _edm(t: Tensor) -> Coefficients:
    level = torch.exp(_LOG_SIGMA_MAX - t * (_LOG_SIGMA_MAX - _LOG_SIGMA_MIN))
    length = torch.hypot(torch.ones_like(level), level)
    return 1 / length, level / length


LINEAR = Path(lambda t: (t, 1 - t), lambda t: t, variance_preserving=False)
"""Alpha = t, sigma = 1 - t.

Source: Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003.
"""

COSINE = Path(_cosine, _cosine_time)
"""The squared-cosine schedule with offset 0.008.

Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17.
"""

SCALED_LINEAR = Path(_scaled_linear, _scaled_linear_time)
"""1000 steps whose variance rises from 0.00085 to 0.012, linearly in its square root.

Between steps log alpha^2 is linear. The noisiest point still holds data: alpha^2 = 0.0047.

Source: Rombach et al. 2022, arXiv 2112.10752, in their code.
"""

EDM = Path(_edm, lambda t: edm_time(torch.log((1 - t) / t)))
"""(data + s noise) / sqrt(1 + s^2), with log s linear in t from s = 80 to s = 0.002.

For data of unit variance z is EDM's c_in z, t is its c_noise in [0, 1], and the velocity is the
output F of its network: data = c_skip z + c_out F.

Source: Karras et al. 2022, arXiv 2206.00364, table 1.
"""

PATHS = {"linear": LINEAR, "cosine": COSINE, "scaled_linear": SCALED_LINEAR, "edm": EDM}


def noise_prior(latent: LatentSpec, rng: Rng) -> Float[Tensor, "b c *s"]:
    """Standard normal noise of the shape of a latent, one draw a sample.

    Raises:
        ValueError: the latent is made of tokens.
    """
    if latent.domain != "continuous":
        raise ValueError(f"expected a continuous latent, got one of '{latent.domain}'")
    return rng.normal(latent.shape)


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse an argument that is none of the known words.

    Raises:
        ValueError: it is not.
    """
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got '{value}'")
