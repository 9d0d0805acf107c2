"""How much of a grid of tokens is masked at time t; objectives and samplers agree on it here."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_share(t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Share of the tokens that is masked: all at t = 0, none at t = 1, falling as a cosine.

    In float64, so that counts are exact.

    Source: Chang et al. 2022, arXiv 2202.04200, sec. 3.3.
    """
    return torch.cos(0.5 * math.pi * t.double()).clamp(0, 1)


def lowest(values: Float[Tensor, "b n"], count: Tensor) -> Bool[Tensor, "b n"]:
    """True at the `count` (b,) lowest values of every row; of equal ones the first."""
    order = values.argsort(dim=1, stable=True)
    return order.argsort(dim=1) < count[:, None]
