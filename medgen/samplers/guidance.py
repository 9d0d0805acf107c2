"""Guidance: one field of several, which samplers follow as if it were a network's.

A scale of 1 is the conditional field itself, everywhere; larger ones exaggerate its difference
from a worse field. Times are those of the linear path, so an interval means the same noise
whatever the grid or the training path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medgen.protocols import Domain
from medgen.registry import register
from medgen.types import Field

_CONDITIONAL = frozenset({"conditional"})


@register("guidance", "none")
class NoGuidance:
    """The conditional field as it is: what the network learned of the distribution."""

    needs: frozenset[str] = _CONDITIONAL

    def combine(self, fields: Mapping[str, Field]) -> Field:
        """The conditional field."""
        return _take(fields, self.needs)["conditional"]


@register("guidance", "classifier_free")
class ClassifierFree:
    """null + scale (conditional - null), inside an interval of times; the conditional outside it.

    Args:
        scale: 1 is off.
        interval: times from the first up to, not including, the second; the null field is
            evaluated only there. (0, 1) is everywhere.

    Raises:
        ValueError: a negative scale, or an interval that does not increase within [0, 1].

    Source: Ho & Salimans 2022, arXiv 2207.12598; interval: Kynkäänniemi et al. 2024, arXiv
        2404.07724.
    """

    def __init__(self, scale: float = 2.0, interval: tuple[float, float] = (0.0, 1.0)) -> None:
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval: expected 0 <= low <= high <= 1, got {low}, {high}")
        self.scale = _scale(scale)
        self.interval = (low, high)
        off = scale == 1 or low == high
        self.needs: frozenset[str] = _CONDITIONAL if off else _CONDITIONAL | {"null"}

    def combine(self, fields: Mapping[str, Field]) -> Field:
        """The guided field; one evaluation of each field inside the interval."""
        needed = _take(fields, self.needs)
        conditional, null = needed["conditional"], needed.get("null")
        if null is None:
            return conditional
        low, high = self.interval

        def field(z: Tensor, t: Tensor) -> Tensor:
            inside = (t >= low) & (t < high)
            towards = conditional(z, t)
            if not inside.any():
                return towards
            guided = _extrapolate(null(z, t), towards, self.scale)
            return torch.where(_over(inside, towards), guided, towards)

        return field


@register("guidance", "classifier_free_zero")
class ClassifierFreeZero:
    """CFG-Zero*: classifier-free guidance from the null field's best multiple, and a still start.

    Every sample's null field is first scaled to lie as near to its conditional field as it can.
    While t is below `zero_share` the field is zero and nothing is evaluated: z stays, t advances.
    The authors' default is one solver step. A multistep sampler remembers the still start, so that
    AB2's first real step is half as long again. If the still start alone helps much, the model is
    under-trained. Tokens cannot stay still, so it guides continuous fields only.

    Args:
        scale: 1 leaves the conditional field, after the still start.
        zero_share: share of time that z stays; the default is one step of 25 or fewer.

    Raises:
        ValueError: a negative scale, or a share outside [0, 1).

    Source: Fan et al. 2025, arXiv 2503.18886.
    """

    domain: Domain = "continuous"

    def __init__(self, scale: float = 2.0, zero_share: float = 0.04) -> None:
        if not 0 <= zero_share < 1:
            raise ValueError(f"zero_share: expected a share in [0, 1), got {zero_share}")
        self.scale = _scale(scale)
        self.zero_share = zero_share
        self.needs: frozenset[str] = _CONDITIONAL if scale == 1 else _CONDITIONAL | {"null"}

    def combine(self, fields: Mapping[str, Field]) -> Field:
        """The guided field; no evaluation during the still start."""
        needed = _take(fields, self.needs)
        conditional, null = needed["conditional"], needed.get("null")

        def field(z: Tensor, t: Tensor) -> Tensor:
            moving = t >= self.zero_share
            if not moving.any():
                return torch.zeros_like(z)
            velocity = conditional(z, t)
            if null is not None:
                base = null(z, t)
                base = base * _over(best_scale(velocity, base), base).to(base.dtype)
                velocity = _extrapolate(base, velocity, self.scale)
            return torch.where(_over(moving, z), velocity, torch.zeros_like(velocity))

        return field


@register("guidance", "autoguidance")
class Autoguidance:
    """weak + scale (conditional - weak): away from a worse version of the same model.

    The weak model has less training or fewer weights, so its errors are the model's own, larger.
    Asked under the same conditions, it sharpens what is drawn and needs no condition dropout;
    asked under none, it also exaggerates the conditions, as classifier-free guidance does. On few
    studies it pulls samples onto the training set: audit memorization.

    Args:
        scale: 1 is off.
        weak_conditions: what the weak model is asked for: the "same", or "none".

    Raises:
        ValueError: a negative scale.

    Source: Karras et al. 2024, arXiv 2406.02507.
    """

    def __init__(
        self, scale: float = 1.5, weak_conditions: Literal["same", "none"] = "same"
    ) -> None:
        self.scale = _scale(scale)
        self.weak = "weak" if weak_conditions == "same" else "weak_null"
        self.needs: frozenset[str] = _CONDITIONAL if scale == 1 else _CONDITIONAL | {self.weak}

    def combine(self, fields: Mapping[str, Field]) -> Field:
        """The guided field; one evaluation of each field."""
        needed = _take(fields, self.needs)
        conditional, weak = needed["conditional"], needed.get(self.weak)
        if weak is None:
            return conditional
        return lambda z, t: _extrapolate(weak(z, t), conditional(z, t), self.scale)


def best_scale(
    conditional: Float[Tensor, "b c *s"], null: Float[Tensor, "b c *s"]
) -> Float[Tensor, "b"]:
    """The multiple of every sample's null field nearest to its conditional one.

    Computed in float32 or wider.

    Source: Fan et al. 2025, arXiv 2503.18886, eq. 9.
    """
    wide = torch.promote_types(null.dtype, torch.float32)
    a, b = conditional.flatten(1).to(wide), null.flatten(1).to(wide)
    return (a * b).sum(1) / (b.square().sum(1) + 1e-8)


def _extrapolate(base: Tensor, towards: Tensor, scale: float) -> Tensor:
    return base + scale * (towards - base)


def _over(values: Tensor, output: Tensor) -> Tensor:
    """One value a sample, (b,), shaped to meet the output of a field: (b c *s) or (b *s v)."""
    return values.view(-1, *[1] * (output.ndim - 1))


def _scale(scale: float) -> float:
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale: expected a number of 0 or more (1 is off), got {scale}")
    return scale


def _take(fields: Mapping[str, Field], needs: frozenset[str]) -> dict[str, Field]:
    missing = sorted(needs - fields.keys())
    if missing:
        raise ValueError(f"guidance needs the fields {', '.join(missing)}; got {sorted(fields)}")
    return {name: fields[name] for name in needs}
