"""The consumers' networks: small enough for a CPU, good enough to be an honest baseline.

They take signals, images and volumes: all that their layers need is the number of axes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from medgen.nn.nd import CONVOLUTIONS, depth_to_space


class ResidualBlock(nn.Module):
    """Two convolutions of 3 along every axis with group normalisation and a shortcut.

    Source: He et al. 2016, arXiv:1512.03385.

    Args:
        axes: spatial axes.
        before: channels in.
        after: channels out.
        stride: of the first convolution.
    """

    def __init__(self, axes: int, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.first = conv(before, after, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(8, after)
        self.second = conv(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(8, after)
        self.shortcut = (
            conv(before, after, 1, stride=stride)
            if (before, stride) != (after, 1)
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b before *s) to (b after *s/stride)."""
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


def _stem(channels: int, width: int, size: tuple[int, ...]) -> nn.Sequential:
    """Strided convolutions until a side is at most 32, so that cost hardly grows with the image."""
    conv = CONVOLUTIONS[len(size)]
    layers: list[nn.Module] = [conv(channels, width, 5, stride=2, padding=2), nn.ReLU()]
    side = max(size) // 2
    while side > 32:
        layers += [conv(width, width, 3, stride=2, padding=1), nn.ReLU()]
        side //= 2
    return nn.Sequential(*layers)


class SmallClassifier(nn.Module):
    """A residual network of 0.3 million parameters on images, 0.9 million on volumes.

    Args:
        channels: channels of an image.
        outputs: logits.
        size: of an image along every axis; the stem strides until a side is at most 32.
        widths: channels of the stem and of the residual stages, each of which halves the sides.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: tuple[int, ...],
        widths: tuple[int, ...] = (16, 32, 64, 128),
    ) -> None:
        super().__init__()
        self.stem = _stem(channels, widths[0], size)
        axes, stages = len(size), pairwise(widths)
        self.stages = nn.Sequential(*[ResidualBlock(axes, a, b, stride=2) for a, b in stages])
        self.width = widths[-1]
        self.head = nn.Linear(widths[-1], outputs)

    def features(self, x: Tensor) -> Tensor:
        """Images (b c *s) in [-1, 1] to what the last layer sees, (b d)."""
        return self.stages(self.stem(x)).mean(dim=tuple(range(2, x.ndim)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (b c *s) in [-1, 1] to logits (b outputs)."""
        return self.head(self.features(x))


class SmallUNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) of 0.5 million parameters.

    It works where the stem's sides are at most 32; the last layer predicts blocks of pixels.

    Args:
        channels: channels of an image.
        classes: classes of a mask, background included.
        size: of an image along every axis.
        widths: channels of the levels, each of half the sides of the one before.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, ...],
        widths: tuple[int, ...] = (16, 32, 64, 96),
    ) -> None:
        super().__init__()
        axes, pairs = len(size), list(pairwise(widths))
        conv = CONVOLUTIONS[axes]
        self.stem = _stem(channels, widths[0], size)
        stride = 2 ** sum(isinstance(layer, conv) for layer in self.stem)
        self.blocks = (stride,) * axes
        self.top = ResidualBlock(axes, widths[0], widths[0])
        self.down = nn.ModuleList([ResidualBlock(axes, a, b, stride=2) for a, b in pairs])
        self.reduce = nn.ModuleList([conv(b, a, 1) for a, b in reversed(pairs)])
        self.join = nn.ModuleList([ResidualBlock(axes, a, a) for a, _ in reversed(pairs)])
        self.head = conv(widths[0], stride**axes * classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b c *s) in [-1, 1] to logits (b classes *s)."""
        level = self.top(self.stem(x))
        skips: list[Tensor] = []
        for down in self.down:
            skips.append(level)
            level = down(level)
        for reduce, join in zip(self.reduce, self.join, strict=True):
            skip = skips.pop()
            level = nn.functional.interpolate(reduce(level), size=skip.shape[2:], mode="nearest")
            level = join(level + skip)
        whole = depth_to_space(self.head(level), self.blocks)
        return whole[(..., *(slice(side) for side in x.shape[2:]))]
