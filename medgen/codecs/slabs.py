"""A convolutional network in slabs along its first axis: less memory, the same numbers.

Layer by layer, a slab is computed from its own rows and those of its neighbours that the kernel
reaches, so no row is ever missing. Group norms need the mean and variance of the whole volume:
they are summed over the slabs before the layer that uses them runs. What is kept whole are a
layer's input and output; normalised, activated, padded, upsampled and rearranged copies, most of
what a network holds at its finest level, exist for one slab only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Rows = Callable[[Tensor], Tensor]
"""Some rows of a feature map to the same rows, normalised or activated."""


def forward_in_slabs(
    blocks: Iterable[nn.Module], x: Float[Tensor, "b c *s"], slabs: int
) -> Float[Tensor, "b c *s"]:
    """What the blocks of a KL autoencoder's encoder or decoder make of x, one after the other.

    Attention needs all places at once and is computed whole; it stands at low resolutions.

    Args:
        blocks: of MONAI's `Encoder` or `Decoder`.
        x: left as it is.
        slabs: into how many the first axis is cut; they need not divide it.

    Raises:
        TypeError: a block is of a kind that cannot be cut.
    """
    from monai.networks.blocks.convolutions import Convolution
    from monai.networks.blocks.spatialattention import SpatialAttentionBlock
    from monai.networks.blocks.upsample import UpSample
    from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock

    prepare: Rows = _as_it_is
    for block in blocks:
        if isinstance(block, nn.GroupNorm):
            prepare = _normalise(block, x, slabs)
            continue
        if isinstance(block, AEKLResBlock):
            x = _residual(block, x, slabs)
        elif isinstance(block, AEKLDownsample):
            x = _whole(_Strips(block.conv.conv, low=0, high=1), x, slabs)
        elif isinstance(block, UpSample):
            x = _whole(_Strips(block.postconv.conv, grow=block[0].mode), x, slabs)
        elif isinstance(block, Convolution):
            x = _whole(_Strips(block.conv), x, slabs, prepare)
        elif isinstance(block, SpatialAttentionBlock):
            x = block(x)
        else:
            raise TypeError(f"a {type(block).__name__} cannot be computed in slabs")
        prepare = _as_it_is
    return x


class _Strips:
    """Any rows of a convolution's output, from as few rows of its input as they need.

    Args:
        conv: 2-D or 3-D.
        low: zeros before every axis; None means as many as the convolution itself adds.
        high: zeros behind every axis.
        grow: how its input is upsampled to twice its size first; empty is not at all.
    """

    def __init__(
        self, conv: nn.Module, *, low: int | None = None, high: int | None = None, grow: str = ""
    ) -> None:
        assert isinstance(conv, nn.Conv2d | nn.Conv3d)
        self.conv, self.grow = conv, grow
        own = int(conv.padding[0])
        self.low, self.high = own if low is None else low, own if high is None else high
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]

    def size(self, x: Tensor) -> list[int]:
        """Spatial size of the output."""
        scale = 2 if self.grow else 1
        spare = self.low + self.high - self.kernel
        return [(side * scale + spare) // self.stride + 1 for side in x.shape[2:]]

    def rows(self, x: Tensor, first: int, last: int, prepare: Rows) -> Tensor:
        """Rows `first` to `last` of the output, the latter excluded."""
        begin = first * self.stride - self.low
        end = (last - 1) * self.stride - self.low + self.kernel
        length = x.shape[2] * (2 if self.grow else 1)
        taken = self._input(x, max(begin, 0), min(end, length), prepare)
        edges = [self.low, self.high] * (x.ndim - 3)
        edges += [max(-begin, 0), max(end - length, 0)]
        if any(edges):
            taken = F.pad(taken, edges)
        convolve = F.conv2d if x.ndim == 4 else F.conv3d
        return convolve(taken, self.conv.weight, self.conv.bias, self.conv.stride)

    def _input(self, x: Tensor, begin: int, end: int, prepare: Rows) -> Tensor:
        if not self.grow:
            return prepare(x[:, :, begin:end])
        start = max(begin // 2 - 1, 0)  # a linear interpolation reaches one row further
        grown = F.interpolate(x[:, :, start : end // 2 + 1], scale_factor=2.0, mode=self.grow)
        return grown[:, :, begin - 2 * start : end - 2 * start]


def _whole(strips: _Strips, x: Tensor, slabs: int, prepare: Rows | None = None) -> Tensor:
    """All rows of a convolution's output."""
    out = x.new_empty(len(x), strips.conv.out_channels, *strips.size(x))
    for first, last in _spans(out.shape[2], slabs):
        out[:, :, first:last] = strips.rows(x, first, last, prepare or _as_it_is)
    return out


def _residual(block: nn.Module, x: Tensor, slabs: int) -> Tensor:
    """A residual block. The hidden map becomes the output, so that two maps are held, not three."""
    hidden = _whole(_Strips(block.conv1.conv), x, slabs, _normalise(block.norm1, x, slabs, F.silu))
    prepare = _normalise(block.norm2, hidden, slabs, F.silu)
    strips = _Strips(block.conv2.conv)
    before: tuple[int, int, Tensor] | None = None
    for first, last in _spans(hidden.shape[2], slabs):
        made = strips.rows(hidden, first, last, prepare)
        made += block.nin_shortcut(x[:, :, first:last])
        if before is not None:  # only now does nobody need the hidden rows that it replaces
            hidden[:, :, before[0] : before[1]] = before[2]
        before = first, last, made
    if before is not None:
        hidden[:, :, before[0] : before[1]] = before[2]
    return hidden


def _normalise(norm: nn.GroupNorm, x: Tensor, slabs: int, activate: Rows | None = None) -> Rows:
    """The group norm of rows of x, by the mean and variance of all of x.

    Source: of parts to a whole, Chan, Golub, LeVeque 1979, eq. 2.1.
    """
    batch, channels = x.shape[:2]
    shape = batch, norm.num_groups, -1
    count, mean = 0, x.new_zeros(shape[:2], dtype=torch.float64)
    square = torch.zeros_like(mean)
    for first, last in _spans(x.shape[2], slabs):
        part = x[:, :, first:last].reshape(shape)
        variance, average = torch.var_mean(part, dim=2, correction=0)
        size = part.shape[2]
        apart = average.double() - mean
        share = size / (count + size)
        mean = mean + apart * share
        square = square + variance.double() * size + apart.square() * (count * share)
        count += size
    deviation = (square / count + norm.eps).sqrt()
    each = channels // norm.num_groups
    along = (batch, channels, *[1] * (x.ndim - 2))
    scale = (1 / deviation).repeat_interleave(each, dim=1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(each, dim=1) * scale
    scale, shift = (value.to(x.dtype).reshape(along) for value in (scale, shift))

    def rows(part: Tensor) -> Tensor:
        normal = torch.addcmul(shift, part, scale)
        return normal if activate is None else activate(normal)

    return rows


def _spans(rows: int, slabs: int) -> Iterator[tuple[int, int]]:
    """First and last row of every slab, as equal as can be; none is empty."""
    slabs = min(slabs, rows)
    return pairwise(round(cut * rows / slabs) for cut in range(slabs + 1))


def _as_it_is(rows: Tensor) -> Tensor:
    return rows
