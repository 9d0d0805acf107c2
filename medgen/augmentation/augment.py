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
        rotation: largest turn, in degrees.
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
        self, images: Tensor, masks: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Changed images (b c h w), and their masks (b h w) moved alike.

        Of clips (b c t h w) all frames, and of volumes all slices, change alike.
        """
        draw = torch.rand((len(images), 9), generator=rng) * 2 - 1
        planes = images.flatten(1, -3)  # b (c t) h w
        grid = functional.affine_grid(self._moves(draw), list(planes.shape), align_corners=False)
        moved = functional.grid_sample(
            planes, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        moved = self._exposed(moved, draw, rng).view_as(images)
        if masks is None:
            return moved, None
        flat = masks.view(len(masks), -1, *masks.shape[-2:]).float()
        moved_masks = functional.grid_sample(
            flat, grid, mode="nearest", padding_mode="border", align_corners=False
        )
        return moved, moved_masks.view_as(masks).long()

    def _moves(self, draw: Tensor) -> Tensor:
        """Affine maps (b 2 3) from draws in [-1, 1]."""
        zoom = 1 + self.scale * draw[:, 0]
        mirror = torch.where(draw[:, 1] < 0, -1.0, 1.0) if self.flip else torch.ones(len(draw))
        angle = math.radians(self.rotation) * draw[:, 6]
        cosine, sine = zoom * angle.cos(), zoom * angle.sin()
        rows = [
            cosine * mirror,
            -sine,
            2 * self.shift * draw[:, 2],
            sine * mirror,
            cosine,
            2 * self.shift * draw[:, 3],
        ]
        return torch.stack(rows, dim=1).view(-1, 2, 3)

    def _exposed(self, images: Tensor, draw: Tensor, rng: torch.Generator) -> Tensor:
        wide = draw.T[..., None, None, None]
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
