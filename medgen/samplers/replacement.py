"""Sampling when a part of the result is known: channels, a region, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medgen.nn.masks import mask_channels
from medgen.nn.nd import area_resize
from medgen.protocols import Codec
from medgen.types import Batch, Field, Schema

LAST = 1 - 1e-4
"""Closer to the data than this, the direction from z to the data is rounding error in float32."""


def replacing(field: Field, data: Float[Tensor, "b c *s"], known: Bool[Tensor, "b c *s"]) -> Field:
    """A field whose estimate of the data is overwritten where the data is known.

    What is known runs straight from the sample's own noise to its data, so at every t it is as
    noisy as the rest, which the network fits to it. The result is only near a draw from the true
    conditional distribution, for what was drawn does not correct what is known.

    Args:
        field: of the linear path, guided or not.
        data: what is known; anything elsewhere.
        known: where it is.

    Source: Song et al. 2022, arXiv 2111.08005; for joint channels Xu et al. 2024 (MedSyn),
        arXiv 2310.03559.
    """

    def overwritten(z: Tensor, t: Tensor) -> Tensor:
        left = 1 - t.clamp_max(LAST)
        straight = (data.to(z.dtype) - z) / left.view(-1, *[1] * (z.ndim - 1))
        return straight.where(known, field(z, t))

    return overwritten


@dataclass(frozen=True)
class Given:
    """What is known of samples before they are drawn.

    Args:
        image: in [-1, 1], with the channels of the mask where a model draws them; anything where it
            is not known.
        known: where it is.
    """

    image: Float[Tensor, "b c *s"]
    known: Bool[Tensor, "b c *s"]

    @classmethod
    def of(
        cls,
        schema: Schema,
        asked: Batch,
        known: Batch | None = None,
        region: Bool[Tensor, "b *s"] | None = None,
    ) -> Given | None:
        """What is known by what is asked for and by what is given; None if that is nothing.

        Args:
            schema: of the model's images.
            asked: its mask is known everywhere, if images are drawn with masks.
            known: image or mask, or both.
            region: where `known` holds; None is everywhere.

        Raises:
            ValueError: what is known does not fit the model, or a region of nothing is given.
        """
        image = None if known is None else known.image
        mask = None if known is None else known.mask
        if image is None and mask is None and region is not None:
            raise ValueError("a region says where image or mask are known: give `known` too")
        if mask is not None and not schema.mask_channels:
            raise ValueError("a mask is known, but this model draws no masks: ask for it instead")
        held = [
            (image, schema.channels - schema.mask_channels, region),
            (_channels(mask, schema), schema.mask_channels, region),
        ]
        if schema.mask_channels and asked.mask is not None:
            held[1] = (_channels(asked.mask, schema), schema.mask_channels, None)
        count = next((len(value) for value, _, _ in held if value is not None), 0)
        if not count:
            return None
        parts = [_part(value, (count, width, *schema.size), where) for value, width, where in held]
        return cls(*(torch.cat(side, dim=1) for side in zip(*parts, strict=True)))

    def select(self, indices: Sequence[int]) -> Given:
        """What is known of the samples at `indices`."""
        return Given(self.image[list(indices)], self.known[list(indices)])

    def covered(self, codec: Codec) -> Bool[Tensor, "b c *s"]:
        """Which latents are known.

        Raises:
            ValueError: only some channels are known, and the codec mixes channels.
        """
        own: Any = getattr(codec, "covered", None)
        if own is not None:
            return own(self.known)
        if not torch.equal(self.known, self.known[:, :1].expand_as(self.known)):
            raise ValueError(
                "some channels are known and others are not, but the codec mixes channels: use "
                "the codec `pixels`"
            )
        whole = area_resize(self.known[:, :1].float(), codec.latent.size) == 1
        return whole.expand(-1, codec.latent.channels, *codec.latent.size)


def _channels(mask: Tensor | None, schema: Schema) -> Tensor | None:
    return None if mask is None else mask_channels(mask, len(schema.mask_classes))


def _part(
    value: Tensor | None, shape: tuple[int, ...], region: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Some channels and where they are known."""
    if value is None:
        return torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    if tuple(value.shape) != shape:
        raise ValueError(f"expected what is known of shape {shape}, got {tuple(value.shape)}")
    if region is None:
        return value.float(), torch.ones(shape, dtype=torch.bool)
    if tuple(region.shape) != (shape[0], *shape[2:]):
        expected = (shape[0], *shape[2:])
        raise ValueError(f"expected a region of shape {expected}, got {tuple(region.shape)}")
    return value.float(), region[:, None].expand(shape).clone()
