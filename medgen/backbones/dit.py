"""A diffusion transformer over patches of 1-D, 2-D or 3-D latents."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medgen.backbones.grids import GridDoor, TransformerControl, check_door, token_grid
from medgen.nn.blocks import (
    AdaLNZeroBlock,
    check_doors,
    initialise,
    mlp,
    modulate,
    rotary_angles,
    sincos_positions,
    standing_context,
    timestep_embedding,
    zero_linear,
)
from medgen.nn.nd import depth_to_space, space_to_depth
from medgen.nn.space_time import factorise
from medgen.protocols import Backbone
from medgen.registry import register
from medgen.types import Conditioning, CondSpec, LatentSpec

TIME_WIDTH = 256


@register("backbone", "dit")
class DiT(Backbone):
    """A transformer whose blocks are modulated by time and conditions (adaLN-Zero).

    Its output is zero when it is new. A vector is added to the time embedding, tokens are attended
    to (with one learned token that always stands, so that all others may be padding), a grid
    enters as `grid` says.

    Args:
        latent: what it produces.
        cond: widths of the conditions.
        patch: latent voxels along each axis of a patch; a patch is one token.
        depth: number of blocks.
        width: channels of the tokens.
        heads: attention heads; divides `width`.
        dropout: share of channels dropped in training.
        variant: "paper" has GELU and fixed positions; "modern" adds SwiGLU, rotary positions and
            query-key norm, which train faster and more stably.
        grid: how a grid enters: "concatenate" to the latent's channels; "spade" modulates every
            token by its own patch of the grid; "controlnet" leaves the network as it is and adds
            the corrections of a copy of its first half, for a base from `train.init_from`.
        factorised: for clips: blocks attend within frames and along time in turn, so cost grows
            with frames times pixels, not with its square; a patch is one frame deep. New blocks are
            the identity, those along time as well.

    Raises:
        ValueError: the latent is made of tokens or not divisible into patches, the width not into
            heads of an even width, there is no grid for `grid`, or `factorised` without three axes
            or with one block.

    Source: Peebles & Xie 2022, arXiv 2212.09748; the modern parts as in Yao et al. 2025,
    arXiv 2501.01423.
    """

    domain = "continuous"

    def __init__(
        self,
        latent: LatentSpec,
        cond: CondSpec,
        *,
        patch: int = 2,
        depth: int = 8,
        width: int = 256,
        heads: int = 4,
        dropout: float = 0.0,
        variant: Literal["paper", "modern"] = "modern",
        grid: GridDoor = "concatenate",
        factorised: bool = False,
    ) -> None:
        super().__init__()
        axes = len(latent.size)
        self.patch = (1, patch, patch) if factorised else (patch,) * axes
        _check(latent, self.patch, width, heads)
        check_door(grid, cond.grid)
        modern = variant == "modern"
        self.cond = cond
        self.size = tuple(side // each for side, each in zip(latent.size, self.patch, strict=True))
        voxels = math.prod(self.patch)
        self.door = grid
        beside = cond.grid if grid == "concatenate" else 0
        self.embed = nn.Linear((latent.channels + beside) * voxels, width)
        self.time = mlp(TIME_WIDTH, width)
        self.vector = mlp(cond.vector, width) if cond.vector else None
        self.always = nn.Parameter(torch.randn(1, 1, cond.tokens) * 0.02) if cond.tokens else None
        self.blocks = nn.ModuleList(
            AdaLNZeroBlock(width, heads, context=cond.tokens, modern=modern, dropout=dropout)
            for _ in range(depth)
        )
        if factorised:
            factorise(self.blocks, self.size, width // heads if modern else None)
        self.apply(initialise)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero_linear(width, 2 * width)
        self.out = zero_linear(width, latent.channels * voxels)
        seen = cond.grid * voxels
        self.spade = token_grid(seen, width) if grid == "spade" else None
        control = grid == "controlnet"
        self.control = TransformerControl(self.blocks, seen, width) if control else None
        angles = rotary_angles(self.size, width // heads) if modern and not factorised else None
        self.register_buffer("places", sincos_positions(self.size, width), persistent=False)
        self.register_buffer("cos", None if angles is None else angles.cos(), persistent=False)
        self.register_buffer("sin", None if angles is None else angles.sin(), persistent=False)

    def forward(self, z: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Latents (b c *s) at times (b,) in [0, 1] to (b c *s).

        Raises:
            ValueError: the conditions do not fit the doors that were built.
        """
        check_doors(self.cond, cond, z.shape[2:])
        if cond.grid is not None and self.door == "concatenate":
            z = torch.cat([z, cond.grid.to(z.dtype)], dim=1)
        x = self.embed(self._patches(z)) + self.places
        vector = self.time(timestep_embedding(t, TIME_WIDTH).to(z.dtype))
        if self.vector is not None and cond.vector is not None:
            vector = vector + self.vector(cond.vector.to(z.dtype))
        vector = vector[:, None]  # b 1 d
        if self.spade is not None and cond.grid is not None:
            vector = vector + self.spade(self._patches(cond.grid.to(z.dtype)))  # b n d
        context, mask = standing_context(self.always, cond)
        rotary = None if self.cos is None else (self.cos, self.sin)
        vector = functional.silu(vector)
        how = {"vector": vector, "context": context, "mask": mask, "rotary": rotary}
        corrections: list[Tensor] = []
        if self.control is not None and cond.grid is not None:
            corrections = self.control(x, self._patches(cond.grid.to(z.dtype)), **how)
        for place, block in enumerate(self.blocks):
            x = block(x, **how)
            if place < len(corrections):
                x = x + corrections[place]
        shift, scale = self.modulation(vector).chunk(2, dim=-1)
        x = self.out(modulate(self.norm(x), shift, scale))  # b n (c p)
        return depth_to_space(x.transpose(1, 2).unflatten(2, self.size), self.patch)

    def _patches(self, x: Tensor) -> Tensor:
        """Voxels (b c *s) as one row a token (b n (c p))."""
        return space_to_depth(x, self.patch).flatten(2).transpose(1, 2)


def _check(latent: LatentSpec, patch: tuple[int, ...], width: int, heads: int) -> None:
    if latent.domain != "continuous":
        raise ValueError("a dit takes continuous latents, the codec makes tokens")
    if len(patch) != len(latent.size):
        raise ValueError(
            f"a factorised dit needs latents of clips (time, height, width), got {latent.size}"
        )
    if any(side % each for side, each in zip(latent.size, patch, strict=True)):
        raise ValueError(
            f"latents of size {latent.size} cannot be cut into patches of {patch[-1]}; "
            "choose a patch that divides every side"
        )
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width {width} cannot be split into {heads} heads of an even width")
