"""A segmentation mask as a grid aligned with the latent."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from medgen.nn.nd import area_resize, space_to_depth
from medgen.protocols import Conditioner
from medgen.registry import register
from medgen.types import Batch, Conditioning, CondSpec, LatentSpec, Schema


@register("conditioner", "mask")
class MaskConditioner(Conditioner):
    """One channel a class: +1 where it is, -1 where not, the mean where a latent voxel covers both.

    An unknown mask, and every pixel of class -1, has learned values, one a class.

    Args:
        schema: names the classes of the mask.
        latent: the grid is of its size.
        detail: keep every pixel: each class has one channel a pixel that a latent voxel covers,
            instead of their mean.

    Raises:
        ValueError: the schema has no masks, or `detail` cannot divide the image by the latent.

    Source: concatenation as in Rombach et al. 2022, arXiv 2112.10752, sec. 4.3.2.
    """

    reads = frozenset({"mask"})

    def __init__(self, schema: Schema, latent: LatentSpec, *, detail: bool = False) -> None:
        super().__init__()
        self.classes = len(schema.mask_classes)
        if not self.classes:
            raise ValueError("a mask conditioner needs masks, the studies have none")
        if len(schema.size) != len(latent.size):
            raise ValueError(f"masks of size {schema.size} cannot fit latents of {latent.size}")
        self.size = schema.size
        self.latent_size = latent.size
        self.block: tuple[int, ...] | None = None
        if detail:
            if any(s % g for s, g in zip(schema.size, latent.size, strict=True)):
                raise ValueError(
                    f"detail needs masks whose size is a multiple of the latent's, got "
                    f"{schema.size} and {latent.size}; leave detail off"
                )
            self.block = tuple(s // g for s, g in zip(schema.size, latent.size, strict=True))
        self.spec = CondSpec(grid=self.classes * (math.prod(self.block) if self.block else 1))
        self.unknown = nn.Parameter(torch.zeros(self.classes))

    def encode(self, batch: Batch) -> Conditioning:
        """A grid (b k *s) of each study's mask.

        Raises:
            ValueError: the masks are not of the schema's size.
        """
        if batch.mask is None:
            return self.null(len(batch))
        if tuple(batch.mask.shape[1:]) != tuple(self.size):
            raise ValueError(
                f"expected masks of size {tuple(self.size)}, got {tuple(batch.mask.shape[1:])}"
            )
        classes = functional.one_hot(batch.mask.long().clamp(min=0), self.classes)
        signs = classes.movedim(-1, 1).to(self.unknown.dtype) * 2 - 1  # b k *s
        known = (batch.mask >= 0)[:, None]
        full = torch.where(known, signs, self._constant(signs.ndim))
        if self.block is None:
            return Conditioning(grid=area_resize(full, self.latent_size))
        return Conditioning(grid=space_to_depth(full, self.block))

    def null(self, count: int) -> Conditioning:
        """The learned grid of an unknown mask."""
        channels = self.unknown.repeat_interleave(self.spec.grid // self.classes)
        grid = channels.view(1, -1, *[1] * len(self.latent_size))
        return Conditioning(grid=grid.expand(count, -1, *self.latent_size))

    def _constant(self, axes: int) -> Tensor:
        return self.unknown.view(1, -1, *[1] * (axes - 2))
