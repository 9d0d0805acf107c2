"""Solvers that follow a velocity field from noise at t = 0 to data at t = 1.

Every solver is a short pure step; `solve` takes it along an explicit grid of times. A field on the
linear path gives the data and the noise it aims at: data = z + (1 - t) v, noise = z - t v.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from medgen.protocols import Domain
from medgen.registry import register
from medgen.rng import Rng
from medgen.types import Field

Z = Float[Tensor, "b c *s"]


@dataclass(frozen=True)
class Past:
    """What a step leaves to the next one.

    Args:
        t: time of the evaluation.
        value: velocity or data estimate (b c *s) there, as the step prefers.
    """

    t: float
    value: Tensor


Step = Callable[[Field, Tensor, float, float, Past | None], tuple[Tensor, Past | None]]
"""(field, z, t, t_next, past) -> (z at t_next, past for the next step)."""


def grid(steps: int, shift: float = 1.0) -> list[float]:
    """Increasing times from 0 to 1.

    Args:
        steps: number of intervals.
        shift: above 1 puts more steps near the noise, for large latents; 1 is uniform.

    Raises:
        ValueError: no step, or a shift that is not above 0.

    Source: Esser et al. 2024, arXiv 2403.03206, eq. 23, with time from noise to data.
    """
    if steps < 1:
        raise ValueError(f"steps: expected 1 or more, got {steps}")
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift: expected a number above 0, got {shift}")
    uniform = [step / steps for step in range(steps + 1)]
    return [t / (t + shift * (1 - t)) for t in uniform]


def solve(field: Field, z: Z, times: Sequence[float], step: Step) -> Z:
    """Follow a field along a grid of times; the state is kept in float32 or wider.

    Args:
        field: (z, t) -> velocity.
        z: state at the first time.
        times: increasing, in [0, 1].
        step: one of the steps of this module.

    Raises:
        ValueError: fewer than two times, or they do not increase within [0, 1].
    """
    if len(times) < 2 or times[0] < 0 or times[-1] > 1 or any(b <= a for a, b in pairwise(times)):
        raise ValueError(f"times: expected two or more that increase within [0, 1], got {times}")
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    past = None
    for t, t_next in pairwise(times):
        z, past = step(field, z, t, t_next, past)
    return z


def evaluate(field: Field, z: Z, t: float) -> Z:
    """The field at one time for the whole batch, in the precision of the state."""
    return field(z, z.new_full((len(z),), t)).to(z.dtype)


def euler_step(
    field: Field, z: Z, t: float, t_next: float, past: Past | None
) -> tuple[Z, Past | None]:
    """Order 1, one evaluation."""
    return z + (t_next - t) * evaluate(field, z, t), None


def midpoint_step(
    field: Field, z: Z, t: float, t_next: float, past: Past | None
) -> tuple[Z, Past | None]:
    """Order 2, two evaluations."""
    half = (t_next - t) / 2
    middle = z + half * evaluate(field, z, t)
    return z + 2 * half * evaluate(field, middle, t + half), None


def heun_step(
    field: Field, z: Z, t: float, t_next: float, past: Past | None
) -> tuple[Z, Past | None]:
    """Order 2, two evaluations; Euler where it would have to ask for the field of clean data."""
    width, here = t_next - t, evaluate(field, z, t)
    ahead = z + width * here
    if t_next == 1:
        return ahead, None
    return z + width / 2 * (here + evaluate(field, ahead, t_next)), None


def ab2_step(
    field: Field, z: Z, t: float, t_next: float, past: Past | None
) -> tuple[Z, Past | None]:
    """Two-step Adams-Bashforth on any grid: order 2, one evaluation; the first step is Euler's."""
    width, velocity = t_next - t, evaluate(field, z, t)
    direction = velocity
    if past is not None:
        half = width / (t - past.t) / 2
        direction = (1 + half) * velocity - half * past.value
    return z + width * direction, Past(t, velocity)


def dpmpp_2m_step(
    field: Field, z: Z, t: float, t_next: float, past: Past | None
) -> tuple[Z, Past | None]:
    """DPM-Solver++(2M) with log snr = log(t / (1 - t)): order 2, one evaluation.

    The steps from pure noise and to clean data are of first order: the log snr is infinite there.
    """
    data = z + (1 - t) * evaluate(field, z, t)
    aim = data
    if past is not None and past.t > 0 and t_next < 1:
        half = _log_ratio(t, t_next) / _log_ratio(past.t, t) / 2
        aim = (1 + half) * data - half * past.value
    keep = (1 - t_next) / (1 - t)
    # 1 - exp(-(change of the log snr)) = 1 - keep t / t_next
    return keep * z + (t_next - keep * t) * aim, Past(t, data)


def _log_ratio(t: float, t_next: float) -> float:
    """Change of log(t / (1 - t))."""
    return math.log(t_next / t) + math.log((1 - t) / (1 - t_next))


def ancestral_step(
    field: Field,
    z: Z,
    t: float,
    t_next: float,
    past: Past | None,
    *,
    eta: float,
    draw: Callable[[], Tensor],
) -> tuple[Z, Past | None]:
    """Move to the data estimate and replace a part of the noise by fresh noise: order 1.

    With eta 1 the new state is a draw from the posterior of z at t_next given z at t and the data
    estimate (DDPM); with eta 0 it is Euler's step (DDIM).

    Source: Song et al. 2021, arXiv 2010.02502, eq. 12 and 16.
    """
    velocity = evaluate(field, z, t)
    data, noise = z + (1 - t) * velocity, z - t * velocity
    ratio = (1 - t_next) * t / ((1 - t) * t_next)  # noise levels (1 - t) / t, after over before
    renewed = eta**2 * (1 - ratio**2)  # share of the variance of the noise
    mixed = math.sqrt(1 - renewed) * noise + math.sqrt(renewed) * draw().to(z)
    return t_next * data + (1 - t_next) * mixed, None


class Solver:
    """A step taken along a grid of times.

    Args:
        steps: number of steps.
        shift: above 1 puts more steps near the noise; 1 is uniform.

    Raises:
        ValueError: no step, or a shift that is not above 0.
    """

    domain: Domain = "continuous"
    step: ClassVar[Step]

    def __init__(self, steps: int = 16, shift: float = 1.0) -> None:
        self.times = grid(steps, shift)

    @property
    def evaluations(self) -> int:
        """Evaluations of the field a sample."""
        return len(self.times) - 1

    def sample(self, field: Field, z: Z, rng: Rng) -> Z:
        """Follow the field from noise to data; draws nothing."""
        return solve(field, z, self.times, type(self).step)


@register("sampler", "ab2")
class AB2(Solver):
    """Two-step Adams-Bashforth: one evaluation a step, order 2."""

    step = staticmethod(ab2_step)


@register("sampler", "euler")
class Euler(Solver):
    """Straight steps: one evaluation a step, order 1."""

    step = staticmethod(euler_step)

    def __init__(self, steps: int = 64, shift: float = 1.0) -> None:
        super().__init__(steps, shift)


@register("sampler", "midpoint")
class Midpoint(Solver):
    """The velocity in the middle of every step: two evaluations a step, order 2."""

    step = staticmethod(midpoint_step)

    def __init__(self, steps: int = 8, shift: float = 1.0) -> None:
        super().__init__(steps, shift)

    @property
    def evaluations(self) -> int:
        """Evaluations of the field a sample."""
        return 2 * (len(self.times) - 1)


@register("sampler", "heun")
class Heun(Solver):
    """The mean of the velocities at both ends of a step: order 2, the last step Euler's.

    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 1.
    """

    step = staticmethod(heun_step)

    @property
    def evaluations(self) -> int:
        """Evaluations of the field a sample."""
        return 2 * (len(self.times) - 1) - 1


@register("sampler", "dpmpp_2m")
class DPMpp2M(Solver):
    """DPM-Solver++(2M) in the linear path's terms: one evaluation a step, order 2.

    Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.
    """

    step = staticmethod(dpmpp_2m_step)


@register("sampler", "ancestral")
class Ancestral(Solver):
    """Steps that renew the noise, each sample's from its own generator: order 1, many steps.

    Args:
        steps: as many evaluations of the field.
        shift: above 1 puts more steps near the noise; 1 is uniform.
        eta: 1 renews the noise as DDPM does, 0 not at all (Euler's steps).

    Raises:
        ValueError: no step, a shift that is not above 0, or eta outside [0, 1].

    Source: Ho et al. 2020, arXiv 2006.11239; Song et al. 2021, arXiv 2010.02502.
    """

    def __init__(self, steps: int = 128, shift: float = 1.0, *, eta: float = 1.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta: expected a number in [0, 1], got {eta}")
        super().__init__(steps, shift)
        self.eta = eta

    def sample(self, field: Field, z: Z, rng: Rng) -> Z:
        """Follow the field from noise to data; fresh noise comes from a child of `rng`."""
        draw = partial(rng.child("ancestral").normal, z.shape[1:])
        return solve(field, z, self.times, partial(ancestral_step, eta=self.eta, draw=draw))
