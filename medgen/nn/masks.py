"""Masks as channels of an image, and back."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def mask_channels(mask: Int[Tensor, "b *s"], classes: int) -> Float[Tensor, "b k *s"]:
    """One channel a class but the background: 1 inside, -1 outside."""
    inside = functional.one_hot(mask.long(), classes).movedim(-1, 1)[:, 1:]
    return inside.float() * 2 - 1


def classes_of_channels(channels: Float[Tensor, "b k *s"]) -> Int[Tensor, "b *s"]:
    """The classes that channels of `mask_channels` say: the largest above 0, else background."""
    background = torch.zeros_like(channels[:, :1])
    return torch.cat([background, channels], dim=1).argmax(dim=1)
