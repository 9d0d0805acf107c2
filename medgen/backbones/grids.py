"""How a grid enters a backbone: beside the latent, by modulation (SPADE), or by a ControlNet."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medgen.nn.blocks import zero_linear
from medgen.nn.nd import area_resize

GridDoor = Literal["concatenate", "spade", "controlnet"]
"""How a grid enters."""

HIDDEN = 32
"""Channels between a grid and what it modulates."""

_CONVS = {2: nn.Conv2d, 3: nn.Conv3d}


def check_door(door: GridDoor, channels: int) -> None:
    """Refuse a way in for a grid where there is none.

    Args:
        door: how a grid is to enter.
        channels: of the grid; 0 for none.

    Raises:
        ValueError: nothing enters by the door.
    """
    if door != "concatenate" and not channels:
        raise ValueError(
            f"grid: '{door}' needs a condition that is a grid, such as a mask; there is none"
        )


class Spade(nn.Module):
    """Scales and shifts what a norm gave, voxel by voxel, as a grid says; nothing when it is new.

    Args:
        grid: channels of the grid.
        channels: of what is modulated.
        axes: spatial axes, 2 or 3.

    Source: Park et al. 2019, arXiv 1903.07291, eq. 1, with the modulation initialised to zero.
    """

    def __init__(self, grid: int, channels: int, axes: int) -> None:
        super().__init__()
        self.shared = _CONVS[axes](grid, HIDDEN, 3, padding=1)
        self.modulation = _zero_convolution(HIDDEN, 2 * channels, axes, kernel=3)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """Modulate x (b c *s) by a grid (b k *s2), averaged to the size of x."""
        hidden = functional.relu(self.shared(area_resize(grid, x.shape[2:]).to(x.dtype)))
        scale, shift = self.modulation(hidden).chunk(2, dim=1)
        return torch.addcmul(x + shift, x, scale)


class SpadeResidual(nn.Module):
    """A residual block of MONAI's U-Net, with its weights and names, both norms under a SPADE.

    Args:
        block: a `monai.networks.nets.diffusion_model_unet.DiffusionUNetResnetBlock`.
        grid: channels of the grid.
        axes: spatial axes, 2 or 3.
    """

    def __init__(self, block: Any, grid: int, axes: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.time_emb_proj = block.time_emb_proj
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.skip_connection = block.skip_connection
        self.spade1 = Spade(grid, block.channels, axes)
        self.spade2 = Spade(grid, block.out_channels, axes)

    def forward(self, x: Tensor, emb: tuple[Tensor, Tensor]) -> Tensor:
        """One block; `emb` is the vector and the grid, which MONAI's levels pass on unread."""
        vector, grid = emb
        h = self.conv1(functional.silu(self.spade1(self.norm1(x), grid)))
        shift = self.time_emb_proj(functional.silu(vector))
        h = h + shift.view(*shift.shape, *[1] * (x.ndim - 2))
        h = self.conv2(functional.silu(self.spade2(self.norm2(h), grid)))
        return self.skip_connection(x) + h


class UNetControl(nn.Module):
    """A copy of a U-Net's encoder that sees the grid and corrects the U-Net's skips.

    Zero convolutions at both ends make every correction zero when it is new. The embedding of time
    and vector is the U-Net's own.

    Args:
        network: a `monai.networks.nets.DiffusionModelUNet`.
        grid: channels of the grid.
        axes: spatial axes, 2 or 3.

    Source: Zhang, Rao, Agrawala 2023, arXiv 2302.05543, eq. 3.
    """

    COPIED = ("conv_in", "down_blocks", "middle_block")

    def __init__(self, network: Any, grid: int, axes: int) -> None:
        super().__init__()
        for name in self.COPIED:
            self.add_module(name, deepcopy(getattr(network, name)))
        widths = [int(network.block_out_channels[0])]
        for width, block in zip(network.block_out_channels, network.down_blocks, strict=True):
            widths += [int(width)] * (len(block.resnets) + (block.downsampler is not None))
        self.hint = nn.Sequential(
            _CONVS[axes](grid, HIDDEN, 3, padding=1),
            nn.SiLU(),
            _CONVS[axes](HIDDEN, HIDDEN, 3, padding=1),
            nn.SiLU(),
            _zero_convolution(HIDDEN, widths[0], axes),
        )
        self.zeros = nn.ModuleList(_zero_convolution(w, w, axes) for w in [*widths, widths[-1]])

    def copy_from(self, backbone: Any) -> None:
        """Become a copy of the encoder that a U-Net has now."""
        for name in self.COPIED:
            getattr(self, name).load_state_dict(getattr(backbone.network, name).state_dict())

    def forward(self, z: Tensor, vector: Tensor, grid: Tensor) -> list[Tensor]:
        """What is added to each skip, shallow to deep, and to the middle, which comes last."""
        copy: Any = self
        x = copy.conv_in(z) + self.hint(grid.to(z.dtype))
        states = [x]
        for block in copy.down_blocks:
            x, passed = block(hidden_states=x, temb=vector)
            states.extend(passed)
        states.append(copy.middle_block(hidden_states=x, temb=vector))
        return [zero(state) for zero, state in zip(self.zeros, states, strict=True)]


class TransformerControl(nn.Module):
    """A copy of a transformer's first half that sees the grid and corrects the blocks' outputs.

    Zero layers at both ends make every correction zero when it is new.

    Args:
        blocks: of the transformer.
        grid: channels of a patch of the grid.
        width: channels of the tokens.

    Source: Chen et al. 2024, arXiv 2401.05252, sec. 3.2, after Zhang, Rao, Agrawala 2023,
        arXiv 2302.05543.
    """

    def __init__(self, blocks: nn.ModuleList, grid: int, width: int) -> None:
        super().__init__()
        self.blocks = deepcopy(blocks[: -(-len(blocks) // 2)])
        self.hint = token_grid(grid, width)
        self.zeros = nn.ModuleList(zero_linear(width, width) for _ in self.blocks)

    def copy_from(self, backbone: Any) -> None:
        """Become a copy of the first blocks that a transformer has now."""
        for mine, theirs in zip(self.blocks, backbone.blocks, strict=False):
            mine.load_state_dict(theirs.state_dict())

    def forward(self, x: Tensor, patches: Tensor, **how: Any) -> list[Tensor]:
        """What is added to the output of each of the first blocks.

        Args:
            x: tokens that enter the transformer (b n d).
            patches: of the grid (b n k).
            how: what the transformer's blocks are given beside their tokens.
        """
        x = x + self.hint(patches)
        added = []
        for block, zero in zip(self.blocks, self.zeros, strict=True):
            x = block(x, **how)
            added.append(zero(x))
        return added


def token_grid(channels: int, width: int) -> nn.Sequential:
    """Patches of a grid (b n k) to one vector a token (b n d), zero when it is new."""
    return nn.Sequential(nn.Linear(channels, width), nn.SiLU(), zero_linear(width, width))


def add_each(states: Sequence[Tensor], corrections: Sequence[Tensor]) -> list[Tensor]:
    """The states, each with its correction.

    Raises:
        ValueError: there are not as many corrections, or one is of another shape.
    """
    mine, theirs = ([tuple(x.shape) for x in each] for each in (states, corrections))
    if mine != theirs:
        raise ValueError(
            f"the levels of a control do not match its network's: expected {mine}, got {theirs}"
        )
    return [state + correction for state, correction in zip(states, corrections, strict=True)]


def _zero_convolution(width_in: int, width_out: int, axes: int, kernel: int = 1) -> nn.Module:
    """A convolution whose output is zero until it has learned."""
    layer = _CONVS[axes](width_in, width_out, kernel, padding=kernel // 2)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
