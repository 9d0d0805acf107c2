"""Grids of any number of spatial axes: 1 signals, 2 images, 3 volumes or clips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""Convolutions by the number of spatial axes."""

_ADAPTIVE_POOLS = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def area_resize(x: Float[Tensor, "b c *s"], size: Sequence[int]) -> Float[Tensor, "b c *s2"]:
    """Every output voxel is the mean of the input voxels that it covers."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return _ADAPTIVE_POOLS[x.ndim - 2](x, tuple(size))


def space_to_depth(x: Float[Tensor, "b c *s"], factor: Sequence[int]) -> Float[Tensor, "b cf *s2"]:
    """Blocks of `factor` voxels become channels, in the order (channel, *place in the block).

    Raises:
        ValueError: an axis is not divisible by its factor.
    """
    batch, channels, *size = x.shape
    if len(size) != len(factor) or any(s % f for s, f in zip(size, factor, strict=True)):
        raise ValueError(f"size {tuple(size)} is not divisible by blocks of {tuple(factor)}")
    coarse = [s // f for s, f in zip(size, factor, strict=True)]
    axes = len(size)
    split = [n for pair in zip(coarse, factor, strict=True) for n in pair]
    x = x.reshape(batch, channels, *split)  # b c s1 f1 s2 f2 ...
    blocks = [3 + 2 * i for i in range(axes)]
    places = [2 + 2 * i for i in range(axes)]
    x = x.permute(0, 1, *blocks, *places)  # b c f1 f2 ... s1 s2 ...
    return x.reshape(batch, channels * math.prod(factor), *coarse)


def depth_to_space(x: Float[Tensor, "b cf *s2"], factor: Sequence[int]) -> Float[Tensor, "b c *s"]:
    """The inverse of `space_to_depth`.

    Raises:
        ValueError: the channels are not divisible by the voxels of a block.
    """
    batch, depth, *coarse = x.shape
    voxels = math.prod(factor)
    if len(coarse) != len(factor) or depth % voxels:
        raise ValueError(f"{depth} channels cannot be spread over blocks of {tuple(factor)}")
    axes = len(coarse)
    x = x.reshape(batch, depth // voxels, *factor, *coarse)
    pairs = [place for i in range(axes) for place in (2 + axes + i, 2 + i)]
    x = x.permute(0, 1, *pairs)  # b c s1 f1 s2 f2 ...
    return x.reshape(batch, -1, *[s * f for s, f in zip(coarse, factor, strict=True)])


def latent_times(frames: int, latent_frames: int) -> list[float]:
    """The middle of what each latent frame covers, in frames of the clip from its beginning.

    Equal parts, or, where only that divides, the first frame alone and equal parts of the rest, as
    causal video codecs have.
    """
    rest = latent_frames - 1
    if frames % latent_frames and rest and (frames - 1) % rest == 0:
        each = (frames - 1) / rest
        return [0.5, *(1 + (k + 0.5) * each for k in range(rest))]
    return [(k + 0.5) * frames / latent_frames for k in range(latent_frames)]


def positions(size: Sequence[int]) -> Float[Tensor, "n axes"]:
    """Integer coordinates of every voxel of a grid, the last axis fastest."""
    axes = [torch.arange(length, dtype=torch.float32) for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(size))
