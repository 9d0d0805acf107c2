"""The first frame of a clip as a grid, repeated over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medgen.nn.nd import space_to_depth
from medgen.protocols import Conditioner
from medgen.registry import register
from medgen.types import Batch, Conditioning, CondSpec, LatentSpec, Schema


@register("conditioner", "frame")
class FrameConditioner(Conditioner):
    """What the first frame shows, at every frame of the latent: anatomy comes from it.

    The pixels under each voxel of the latent become `channels` numbers by a small network. An
    absent frame, or one with a NaN, has learned values.

    Args:
        schema: of clips.
        latent: the grid is of its size.
        channels: of the grid.

    Raises:
        ValueError: the studies are not clips, or the latent does not divide their frames.

    Source: concatenation of the reference frame as in Reynaud et al. 2024, arXiv:2406.00808.
    """

    reads = frozenset({"frame"})

    def __init__(self, schema: Schema, latent: LatentSpec, channels: int = 16) -> None:
        super().__init__()
        if not (schema.time and len(schema.size) == 3 and len(latent.size) == 3):
            raise ValueError(f"a frame conditioner needs clips, got size {schema.size}")
        sides, cells = schema.size[1:], latent.size[1:]
        if any(side % cell for side, cell in zip(sides, cells, strict=True)):
            raise ValueError(
                f"a frame conditioner needs frames whose size {sides} is a multiple of the "
                f"latent's {cells}"
            )
        self.shape = (schema.channels, *sides)
        self.latent_size = latent.size
        self.block = tuple(side // cell for side, cell in zip(sides, cells, strict=True))
        pixels = schema.channels * self.block[0] * self.block[1]
        self.spec = CondSpec(grid=channels)
        self.network = nn.Sequential(
            nn.Conv2d(pixels, 4 * channels, 1), nn.SiLU(), nn.Conv2d(4 * channels, channels, 1)
        )
        self.unknown = nn.Parameter(torch.zeros(channels))

    def encode(self, batch: Batch) -> Conditioning:
        """A grid (b k t h w) of each study's first frame.

        Raises:
            ValueError: the frames are not of the schema's size.
        """
        if batch.frame is None:
            return self.null(len(batch))
        if tuple(batch.frame.shape[1:]) != self.shape:
            raise ValueError(
                f"expected frames of (channels, height, width) {self.shape}, got "
                f"{tuple(batch.frame.shape[1:])}"
            )
        known = batch.frame.isfinite().flatten(1).all(dim=1)
        pixels = space_to_depth(batch.frame.nan_to_num(0.0), self.block)
        seen: Tensor = self.network(pixels.to(self.unknown.dtype))[:, :, None]
        grid = seen.expand(-1, -1, *self.latent_size)
        return Conditioning(grid=grid).where(known, self.null(len(batch)))

    def null(self, count: int) -> Conditioning:
        """The learned grid of an unknown frame."""
        grid = self.unknown.view(1, -1, 1, 1, 1)
        return Conditioning(grid=grid.expand(count, -1, *self.latent_size))
