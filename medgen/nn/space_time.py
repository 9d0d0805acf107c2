"""Attention over the tokens of a clip, within frames or along time."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from medgen.nn.blocks import AdaLNZeroBlock, KeyValues, rotary_angles

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
        self,
        x: Float[Tensor, "b n d"],
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        causal: bool = False,
        cache: KeyValues | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Attend; positions are its own, and every token sees all others along the axis.

        Raises:
            ValueError: `rotary` is given, or it is to be causal.
        """
        if rotary is not None or causal or cache is not None:
            raise ValueError("factorised attention is not causal and has positions of its own")
        own = None if self.cos is None else (self.cos, self.sin)
        grid = x.unflatten(1, (self.frames, -1))  # b t s d
        if self.along == "time":
            grid = grid.transpose(1, 2)  # b s t d
        found: Tensor = self.attention(grid.flatten(0, 1), rotary=own)
        found = found.unflatten(0, (len(x), -1))
        return (found.transpose(1, 2) if self.along == "time" else found).flatten(1, 2)


def factorise(blocks: nn.ModuleList, size: tuple[int, ...], head: int | None) -> None:
    """Let transformer blocks attend in turn: space, time, space, ...

    Args:
        blocks: of a transformer over the tokens of clips.
        size: of the grid of tokens: frames, rows, columns.
        head: channels of an attention head, for rotary positions; None is without.

    Raises:
        ValueError: these are no clips, or there are fewer than two blocks, so either space or time
            would be missing.
    """
    if len(size) != 3:
        raise ValueError(f"factorised: expected clips of three axes, got latents of {size}")
    if len(blocks) < 2:
        raise ValueError(f"factorised attention needs a depth of 2 or more, got {len(blocks)}")
    for place, block in enumerate(blocks):
        assert isinstance(block, AdaLNZeroBlock)
        along: Along = "time" if place % 2 else "space"
        block.attention = FactorisedAttention(block.attention, size, along, head)
