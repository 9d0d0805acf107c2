"""The consumers' networks for clips: frames on their own, then how they follow each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medgen.augmentation.networks import SmallClassifier, SmallUNet


class SmallVideoNet(nn.Module):
    """A classifier or regressor of clips of 0.4 million parameters, factorised in space and time.

    A small residual network sees every frame beside its difference from the frame before, so motion
    too small for its pooled features is not lost; convolutions over time join the frames; mean and
    deviation over time, which a heart's filling and emptying show in, decide.

    Args:
        channels: channels of a frame.
        outputs: logits.
        size: frames, height and width of a clip.

    Source: factorised in space and time as in Tran et al. 2018, arXiv:1711.11248.
    """

    def __init__(self, channels: int, outputs: int, size: tuple[int, ...]) -> None:
        super().__init__()
        frames = SmallClassifier(2 * channels, outputs, tuple(size[1:]))
        self.stem, self.stages = frames.stem, frames.stages
        inner = frames.width
        self.time = nn.ModuleList(TemporalBlock(inner, dilation) for dilation in (1, 2))
        self.width = 2 * inner
        self.head = nn.Linear(self.width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Clips (b c t h w) in [-1, 1] to what the last layer sees, (b d)."""
        before = torch.cat([x[:, :, :1], x[:, :, :-1]], dim=2)
        moving = torch.cat([x, x - before], dim=1).transpose(1, 2)  # b t 2c h w
        each = self.stages(self.stem(moving.flatten(0, 1))).mean(dim=(2, 3))
        y = each.unflatten(0, (len(x), -1)).transpose(1, 2)  # b d t
        for block in self.time:
            y = block(y)
        return torch.cat([y.mean(dim=2), y.std(dim=2, correction=0)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Clips (b c t h w) in [-1, 1] to logits (b outputs)."""
        return self.head(self.features(x))


class TemporalBlock(nn.Module):
    """A convolution over three frames with a shortcut; the identity when it is new.

    Args:
        width: channels.
        dilation: frames between those that are joined.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv1d(width, width, 1, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(b d t) to (b d t)."""
        return x + self.second(torch.relu(self.first(self.norm(x))))


class Framewise(nn.Module):
    """A segmenter of frames, over clips: every frame on its own.

    Args:
        channels: channels of a frame.
        classes: classes of a mask, background included.
        size: frames, height and width of a clip.
    """

    def __init__(self, channels: int, classes: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.network = SmallUNet(channels, classes, tuple(size[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """Clips (b c t h w) in [-1, 1] to logits (b classes t h w)."""
        logits = self.network(x.transpose(1, 2).flatten(0, 1))
        return logits.unflatten(0, (len(x), -1)).transpose(1, 2)
