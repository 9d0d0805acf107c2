"""Classical augmentation of training studies: moved, turned, re-exposed, noisy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augment:
    """Random changes of training studies. The defaults are light, and the same in every arm.

    Args:
        shift: largest shift along an axis, as a share of the side.
        scale: largest change of size, as a share.
        rotation: largest turn in the plane of the last two axes, in degrees.
        intensity: largest change of contrast and of brightness, as a share of the range.
        gamma: largest change of the logarithm of the gamma curve.
        noise: largest standard deviation of white noise; the range is 2.
        flip: mirror left to right with probability one half; wrong where sides mean something.
    """

    shift: float = 0.06
    scale: float = 0.1
    rotation: float = 0.0
    intensity: float = 0.1
    gamma: float = 0.0
    noise: float = 0.0
    flip: bool = False

    def apply(
        self,
        images: Tensor,
        masks: Tensor | None,
        rng: torch.Generator,
        *,
        frames: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Changed images (b c *s), and their masks (b *s) moved alike.

        Args:
            images: signals, images, volumes or clips.
            masks: their classes, or None.
            rng: draws the changes.
            frames: images are clips (b c t h w): all frames of one move alike, time stays.
        """
        grids = images.flatten(1, 2) if frames else images
        if images.ndim == 3:  # grids have two axes at least: a signal is an image of one row
            grids = images[:, :, None]
        axes = grids.ndim - 2
        draw = torch.rand((len(images), 9 + axes - 2), generator=rng) * 2 - 1
        grid = functional.affine_grid(
            self._moves(draw, axes), list(grids.shape), align_corners=False
        )
        moved = functional.grid_sample(
            grids, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        moved = self._exposed(moved, draw, rng).view_as(images)
        if masks is None:
            return moved, None
        channels = masks.reshape(len(masks), -1, *grids.shape[2:]).float()
        moved_masks = functional.grid_sample(
            channels, grid, mode="nearest", padding_mode="border", align_corners=False
        )
        return moved, moved_masks.view_as(masks).long()

    def _moves(self, draw: Tensor, axes: int) -> Tensor:
        """Affine maps (b axes axes+1), the last axis first, from draws in [-1, 1]."""
        zoom = 1 + self.scale * draw[:, 0]
        mirror = torch.where(draw[:, 1] < 0, -1.0, 1.0) if self.flip else torch.ones(len(draw))
        angle = math.radians(self.rotation) * draw[:, 6]
        cosine, sine = zoom * angle.cos(), zoom * angle.sin()
        moves = torch.zeros(len(draw), axes, axes + 1)
        moves[:, 0, 0], moves[:, 0, 1] = cosine * mirror, -sine
        moves[:, 1, 0], moves[:, 1, 1] = sine * mirror, cosine
        for axis in range(2, axes):
            moves[:, axis, axis] = zoom
        shifts = torch.cat([draw[:, 2:4], draw[:, 9:]], dim=1)
        moves[:, :, -1] = 2 * self.shift * shifts
        return moves

    def _exposed(self, images: Tensor, draw: Tensor, rng: torch.Generator) -> Tensor:
        wide = draw.T.reshape(draw.shape[1], -1, *[1] * (images.ndim - 1))
        if self.gamma:
            share = (images.clamp(-1, 1) + 1) / 2
            images = share ** (self.gamma * wide[7]).exp() * 2 - 1
        images = images * (1 + self.intensity * wide[4]) + self.intensity * wide[5]
        if self.noise:
            grain = torch.randn(images.shape, generator=rng)
            images = images + self.noise * wide[8].abs() * grain
        return images


STRONG = Augment(shift=0.1, scale=0.2, rotation=15, intensity=0.2, gamma=0.3, noise=0.1)
"""What a careful engineer would try before synthetic studies; it mirrors nothing."""
