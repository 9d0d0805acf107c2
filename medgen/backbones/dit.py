"""A diffusion transformer over patches of 1-D, 2-D or 3-D latents."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

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
from medgen.protocols import Backbone
from medgen.registry import register
from medgen.types import Conditioning, CondSpec, LatentSpec

TIME_WIDTH = 256


@register("backbone", "dit")
class DiT(Backbone):
    """A transformer whose blocks are modulated by time and conditions (adaLN-Zero).

    Its output is zero when it is new. A vector is added to the time embedding, tokens are attended
    to (with one learned token that always stands, so that all others may be padding), a grid is
    concatenated to the latent's channels.

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

    Raises:
        ValueError: the latent is made of tokens or not divisible into patches, or the width not
            into heads of an even width.

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
    ) -> None:
        super().__init__()
        _check(latent, patch, width, heads)
        modern = variant == "modern"
        self.cond = cond
        self.patch = (patch,) * len(latent.size)
        self.size = tuple(side // patch for side in latent.size)
        voxels = math.prod(self.patch)
        self.embed = nn.Linear((latent.channels + cond.grid) * voxels, width)
        self.time = mlp(TIME_WIDTH, width)
        self.vector = mlp(cond.vector, width) if cond.vector else None
        self.always = nn.Parameter(torch.randn(1, 1, cond.tokens) * 0.02) if cond.tokens else None
        self.blocks = nn.ModuleList(
            AdaLNZeroBlock(width, heads, context=cond.tokens, modern=modern, dropout=dropout)
            for _ in range(depth)
        )
        self.apply(initialise)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero_linear(width, 2 * width)
        self.out = zero_linear(width, latent.channels * voxels)
        angles = rotary_angles(self.size, width // heads)
        self.register_buffer("places", sincos_positions(self.size, width), persistent=False)
        self.register_buffer("cos", angles.cos() if modern else None, persistent=False)
        self.register_buffer("sin", angles.sin() if modern else None, persistent=False)

    def forward(self, z: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Latents (b c *s) at times (b,) in [0, 1] to (b c *s).

        Raises:
            ValueError: the conditions do not fit the doors that were built.
        """
        check_doors(self.cond, cond)
        if cond.grid is not None:
            z = torch.cat([z, cond.grid.to(z.dtype)], dim=1)
        patches = space_to_depth(z, self.patch).flatten(2).transpose(1, 2)  # b n (c p)
        x = self.embed(patches) + self.places
        vector = self.time(timestep_embedding(t, TIME_WIDTH).to(z.dtype))
        if self.vector is not None and cond.vector is not None:
            vector = vector + self.vector(cond.vector.to(z.dtype))
        vector = functional.silu(vector)
        context, mask = standing_context(self.always, cond)
        rotary = None if self.cos is None else (self.cos, self.sin)
        for block in self.blocks:
            x = block(x, vector, context=context, mask=mask, rotary=rotary)
        shift, scale = self.modulation(vector)[:, None].chunk(2, dim=-1)
        x = self.out(modulate(self.norm(x), shift, scale))  # b n (c p)
        return depth_to_space(x.transpose(1, 2).unflatten(2, self.size), self.patch)


def _check(latent: LatentSpec, patch: int, width: int, heads: int) -> None:
    if latent.domain != "continuous":
        raise ValueError("a dit takes continuous latents, the codec makes tokens")
    if any(side % patch for side in latent.size):
        raise ValueError(
            f"latents of size {latent.size} cannot be cut into patches of {patch}; "
            "choose a patch that divides every side"
        )
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width {width} cannot be split into {heads} heads of an even width")
