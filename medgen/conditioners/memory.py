"""What went before a clip that is one of several: its last frames, and an anchor of the heart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medgen.nn.nd import space_to_depth
from medgen.protocols import Conditioner
from medgen.registry import register
from medgen.types import Batch, Conditioning, CondSpec, LatentSpec, Schema


@register("conditioner", "memory")
class MemoryConditioner(Conditioner):
    """The frames that a clip begins with, as it continues another, and one frame for its anatomy.

    The last frames of what went before are seen where the clip repeats them, at its beginning; the
    anchor, a frame of any time, at every frame of the latent. In training a clip's own first frames
    and one frame of it at any place stand for them. Without memory both have learned values.

    Args:
        schema: of clips.
        latent: the grid is of its size.
        frames: of memory; whole latent frames.
        channels: of the grid for either.

    Raises:
        ValueError: the studies are not clips, or the latent does not divide their frames.

    Source: the short and the long memory of Henschel et al. 2025, StreamingT2V, arXiv:2403.14773,
    sec. 4.1 and 4.2, as grids instead of cross-attention.
    """

    reads = frozenset({"memory"})

    def __init__(
        self, schema: Schema, latent: LatentSpec, frames: int = 4, channels: int = 16
    ) -> None:
        super().__init__()
        if not (schema.time and len(schema.size) == 3 and len(latent.size) == 3):
            raise ValueError(f"a memory conditioner needs clips, got size {schema.size}")
        if any(side % cell for side, cell in zip(schema.size, latent.size, strict=True)):
            raise ValueError(
                f"a memory conditioner needs clips whose size {schema.size} is a multiple of the "
                f"latent's {latent.size}"
            )
        self.block = tuple(a // b for a, b in zip(schema.size, latent.size, strict=True))
        if not 0 < frames < schema.size[0] or frames % self.block[0]:
            raise ValueError(
                f"frames: expected less than the clip's {schema.size[0]} and a multiple of "
                f"{self.block[0]}, a latent frame, got {frames}"
            )
        self.frames = frames
        self.shape = (schema.channels, frames + 1, *schema.size[1:])
        self.latent_size = latent.size
        self.spec = CondSpec(grid=2 * channels)
        pixels = schema.channels * self.block[1] * self.block[2]
        self.last = _network(pixels * self.block[0], channels)
        self.anchor = _network(pixels, channels)
        self.later = nn.Parameter(torch.zeros(channels))
        self.unknown = nn.Parameter(torch.zeros(2 * channels))

    def encode(self, batch: Batch) -> Conditioning:
        """A grid (b k t h w) of each study's memory.

        Raises:
            ValueError: the memory is not of the schema's frames.
        """
        if batch.memory is None:
            return self.null(len(batch))
        if tuple(batch.memory.shape[1:]) != self.shape:
            raise ValueError(
                f"expected a memory of (channels, frames and anchor, height, width) {self.shape}, "
                f"got {tuple(batch.memory.shape[1:])}"
            )
        seen = batch.memory.to(self.unknown.dtype)
        last: Tensor = self.last(space_to_depth(seen[:, :, : self.frames], self.block))
        anchor: Tensor = self.anchor(
            space_to_depth(seen[:, :, self.frames :], (1, *self.block[1:]))
        )
        rest = self.latent_size[0] - last.shape[2]
        later = self.later.view(1, -1, 1, 1, 1)
        later = later.expand(len(seen), -1, rest, *self.latent_size[1:])
        grid = [torch.cat([last, later], dim=2), anchor.expand(-1, -1, *self.latent_size)]
        return Conditioning(grid=torch.cat(grid, dim=1))

    def null(self, count: int) -> Conditioning:
        """The learned grid of a clip that nothing went before."""
        grid = self.unknown.view(1, -1, 1, 1, 1)
        return Conditioning(grid=grid.expand(count, -1, *self.latent_size))


def _network(pixels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(pixels, 4 * channels, 1), nn.SiLU(), nn.Conv3d(4 * channels, channels, 1)
    )
