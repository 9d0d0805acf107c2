"""Attention over the tokens of a clip, within frames or along time."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from medgen.nn.blocks import rotary_angles

Along = Literal["space", "time"]


class FactorisedAttention(nn.Module):
    """Self-attention of a clip's tokens: each to those of its frame, or to those of its place.

    Args:
        attention: of tokens (b n d), with a keyword `rotary`.
        size: of the grid of tokens: frames, rows, columns.
        along: "space" is within a frame, "time" is at one place of all frames.
        head: channels of an attention head, for rotary positions; None is without.

    Source: Bertasius et al. 2021, arXiv:2102.05095 (divided space-time attention); alternating
    blocks as in Ma et al. 2024, arXiv:2401.03048.
    """

    def __init__(
        self, attention: nn.Module, size: tuple[int, ...], along: Along, head: int | None = None
    ) -> None:
        super().__init__()
        self.attention = attention
        self.frames = size[0]
        self.along = along
        angles = None
        if head is not None:
            angles = rotary_angles(size[1:] if along == "space" else size[:1], head)
        self.register_buffer("cos", None if angles is None else angles.cos(), persistent=False)
        self.register_buffer("sin", None if angles is None else angles.sin(), persistent=False)

    def forward(
        self, x: Float[Tensor, "b n d"], *, rotary: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Attend; positions are its own, so `rotary` must be None.

        Raises:
            ValueError: `rotary` is given.
        """
        if rotary is not None:
            raise ValueError("factorised attention has rotary positions of its own")
        own = None if self.cos is None else (self.cos, self.sin)
        grid = x.unflatten(1, (self.frames, -1))  # b t s d
        if self.along == "time":
            grid = grid.transpose(1, 2)  # b s t d
        found: Tensor = self.attention(grid.flatten(0, 1), rotary=own)
        found = found.unflatten(0, (len(x), -1))
        return (found.transpose(1, 2) if self.along == "time" else found).flatten(1, 2)


def interleaved(depth: int) -> list[Along]:
    """Blocks of a clip's transformer in turn: space, time, space, ...

    Raises:
        ValueError: there are fewer than two, so either space or time would be missing.
    """
    if depth < 2:
        raise ValueError(f"factorised attention needs a depth of 2 or more, got {depth}")
    return ["space" if place % 2 == 0 else "time" for place in range(depth)]
