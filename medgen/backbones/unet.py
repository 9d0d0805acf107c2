"""A U-Net of residual and attention blocks over 2-D or 3-D latents (MONAI's, adapted)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medgen.backbones.grids import GridDoor, SpadeResidual, UNetControl, add_each, check_door
from medgen.nn.attention import attention as attend
from medgen.nn.blocks import check_doors, mlp, timestep_embedding
from medgen.protocols import Backbone
from medgen.registry import register
from medgen.types import Conditioning, CondSpec, LatentSpec

LARGEST_GROUPS = 32


@register("backbone", "unet")
class UNet(Backbone):
    """A U-Net whose residual blocks are shifted by time and conditions.

    Its output is zero when it is new. A vector is added to the time embedding, a grid enters as
    `grid` says. Tokens are refused: the network's cross-attention knows no padding. Of clips, time
    is an axis like the others: it is convolved and halved with them, so its frames must divide as
    sides must; a factorised dit goes further with many frames.

    Args:
        latent: what it produces.
        cond: widths of the conditions.
        channels: channels of each level; each level halves the size of the one before.
        blocks: residual blocks a level.
        attention: which levels have self-attention; the middle always has.
        head: channels of an attention head.
        dropout: share of activations dropped in training inside the residual blocks.
        grid: how a grid enters: "concatenate" to the latent's channels; "spade" scales and shifts
            after every norm of the residual blocks; "controlnet" leaves the network as it is and
            adds the corrections of a copy of its encoder, for a base from `train.init_from`.

    Raises:
        ValueError: the latent is made of tokens, is 1-D, or cannot be halved as often as there are
            levels, the conditions hold tokens or no grid for `grid`, or the levels' arguments do
            not fit each other.

    Source: Ho et al. 2020, arXiv 2006.11239; Rombach et al. 2022, arXiv 2112.10752; network of
    Pinaya et al. 2023, arXiv 2307.15208.
    """

    domain = "continuous"

    def __init__(
        self,
        latent: LatentSpec,
        cond: CondSpec,
        *,
        channels: tuple[int, ...] = (64, 128, 256),
        blocks: int = 2,
        attention: tuple[bool, ...] = (False, True, True),
        head: int = 32,
        dropout: float = 0.0,
        grid: GridDoor = "concatenate",
    ) -> None:
        super().__init__()
        _check(latent, cond, channels, attention, head)
        check_door(grid, cond.grid)
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        self.cond = cond
        self.door = grid
        self.time_width = channels[0]
        self.network = DiffusionModelUNet(
            spatial_dims=len(latent.size),
            in_channels=latent.channels + (cond.grid if grid == "concatenate" else 0),
            out_channels=latent.channels,
            num_res_blocks=blocks,
            channels=channels,
            attention_levels=attention,
            norm_num_groups=math.gcd(LARGEST_GROUPS, *channels),
            num_head_channels=head,
        )
        self.vector = mlp(cond.vector, 4 * channels[0]) if cond.vector else None
        _adapt(self.network, dropout)
        axes = len(latent.size)
        if grid == "spade":
            _modulate(self.network, cond.grid, axes)
        self.control = UNetControl(self.network, cond.grid, axes) if grid == "controlnet" else None

    def forward(self, z: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Latents (b c *s) at times (b,) in [0, 1] to (b c *s).

        Raises:
            ValueError: the conditions do not fit the doors that were built.
        """
        check_doors(self.cond, cond, z.shape[2:])
        if cond.grid is not None and self.door == "concatenate":
            z = torch.cat([z, cond.grid.to(z.dtype)], dim=1)
        network: Any = self.network
        vector: Any = network.time_embed(timestep_embedding(t, self.time_width).to(z.dtype))
        if self.vector is not None and cond.vector is not None:
            vector = vector + self.vector(cond.vector.to(z.dtype))
        corrections: list[Tensor] = []
        if self.control is not None and cond.grid is not None:
            corrections = self.control(z, vector, cond.grid)
        if self.door == "spade":
            vector = vector, cond.grid
        x = network.conv_in(z)
        skips = [x]
        for block in network.down_blocks:
            x, passed = block(hidden_states=x, temb=vector)
            skips.extend(passed)
        x = network.middle_block(hidden_states=x, temb=vector)
        if self.control is not None:
            *skips, x = add_each([*skips, x], corrections)
        for block in network.up_blocks:
            taken = len(block.resnets)
            skips, passed = skips[:-taken], skips[-taken:]
            x = block(hidden_states=x, res_hidden_states_list=passed, temb=vector)
        return network.out(x)


class SelfAttention(nn.Module):
    """The self-attention of a MONAI block, with its weights and names, through our kernels.

    Args:
        block: a `monai.networks.blocks.selfattention.SABlock`.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.heads = int(block.num_heads)
        self.scale = float(block.scale)
        self.to_q, self.to_k, self.to_v = block.to_q, block.to_k, block.to_v
        self.out_proj = block.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b n c) to tokens (b n c)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # b h n d
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.out_proj(attend(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


def _adapt(network: nn.Module, dropout: float) -> None:
    """Send the attention of the network through our kernels, and drop activations in its blocks."""
    from monai.networks.blocks.spatialattention import SpatialAttentionBlock
    from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock

    for module in list(network.modules()):
        if isinstance(module, SpatialAttentionBlock):
            module.add_module("attn", SelfAttention(module.attn))
        elif isinstance(module, DiffusionUNetResnetBlock) and dropout:
            module.conv2.register_forward_pre_hook(partial(_drop, dropout))


def _modulate(network: nn.Module, grid: int, axes: int) -> None:
    """Put the norms of all residual blocks under SPADEs."""
    from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock

    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DiffusionUNetResnetBlock):
                module.add_module(name, SpadeResidual(child, grid, axes))


def _drop(share: float, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (functional.dropout(inputs[0], share, module.training),)


def _check(
    latent: LatentSpec,
    cond: CondSpec,
    channels: tuple[int, ...],
    attention: tuple[bool, ...],
    head: int,
) -> None:
    if latent.domain != "continuous":
        raise ValueError("a unet takes continuous latents, the codec makes tokens")
    if len(latent.size) not in (2, 3):
        raise ValueError(
            f"a unet takes latents of 2 or 3 spatial axes, got {len(latent.size)}; use a dit"
        )
    if cond.tokens:
        raise ValueError(
            "a unet takes no condition tokens, its cross-attention knows no padding; use a dit, or "
            "a conditioner that makes a vector or a grid"
        )
    if len(channels) != len(attention):
        raise ValueError(
            f"expected one entry of `attention` a level, got {len(attention)} for {len(channels)}"
        )
    factor = 2 ** (len(channels) - 1)
    if any(side % factor for side in latent.size):
        raise ValueError(
            f"latents of size {latent.size} cannot be halved {len(channels) - 1} times; use fewer "
            f"levels in `channels`, or a size divisible by {factor}"
        )
    attending = {width for width, used in zip(channels, attention, strict=True) if used}
    unfit = sorted(width for width in attending | {channels[-1]} if width % head)
    if unfit:
        raise ValueError(f"channels {unfit} with attention are not divisible by heads of {head}")
