"""Scalars such as an age or a ratio as a vector, by Fourier features."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medgen.protocols import Conditioner
from medgen.registry import register
from medgen.types import Batch, Conditioning, CondSpec, Schema

OCTAVES = 6
"""Frequencies of the features: from a period of 16 standard deviations to one of 1/2."""


@register("conditioner", "scalar")
class ScalarConditioner(Conditioner):
    """Embeds scalars, each on its own; NaN is unknown, and all unknown is the learned null.

    A scalar is standardised by a range that is given, or measured on training studies by `fit`.

    Args:
        schema: names the scalars.
        width: channels of the vector.
        low: a low value of each scalar, in its units; goes with `high`.
        high: a high value of each; low and high are taken as two standard deviations from the mean.

    Raises:
        ValueError: the schema has no scalars, or `low` and `high` do not fit them.

    Source: Tancik et al. 2020, arXiv 2006.10739, with fixed frequencies.
    """

    reads = frozenset({"scalar"})
    mean: Tensor
    std: Tensor
    frequencies: Tensor

    def __init__(
        self,
        schema: Schema,
        width: int = 256,
        *,
        low: tuple[float, ...] | None = None,
        high: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.names = schema.scalars
        count = len(self.names)
        if not count:
            raise ValueError(
                "a scalar conditioner needs scalars, the studies have none; name them in `data`"
            )
        self.spec = CondSpec(vector=width)
        features = 1 + 2 * OCTAVES
        self.weight = nn.Parameter(torch.randn(count, features, width) * (features * count) ** -0.5)
        self.unknown = nn.Parameter(torch.randn(count, width) * count**-0.5)
        frequencies = math.pi / 8 * 2.0 ** torch.arange(OCTAVES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("mean", torch.full((count,), math.nan))
        self.register_buffer("std", torch.full((count,), math.nan))
        if low is not None or high is not None:
            self._set_range(low or (), high or ())

    def fit(self, batch: Batch) -> None:
        """Measure mean and standard deviation on training studies, unless a range was given.

        Raises:
            ValueError: the studies hold too few known or only equal values of a scalar.
        """
        if not self.mean.isnan().any():
            return
        if batch.scalar is None:
            raise ValueError(f"the studies hold no scalars, expected {', '.join(self.names)}")
        for place, name in enumerate(self.names):
            known = batch.scalar[:, place]
            known = known[~known.isnan()].double()
            if len(known) < 2 or known.std() == 0:
                raise ValueError(f"scalar '{name}' has no two different known values to learn from")
            self.mean[place], self.std[place] = known.mean(), known.std()

    def encode(self, batch: Batch) -> Conditioning:
        """A vector (b d) of each study's scalars.

        Raises:
            ValueError: the range is unknown, or the scalars are not the schema's.
        """
        if batch.scalar is None:
            return self.null(len(batch))
        if batch.scalar.shape[1] != len(self.names):
            raise ValueError(f"expected {len(self.names)} scalars, got {batch.scalar.shape[1]}")
        if self.mean.isnan().any():
            raise ValueError(
                f"the range of {', '.join(self.names)} is unknown; give `low` and `high`, or call "
                "`fit` with training studies"
            )
        unknown = batch.scalar.isnan()
        standard = (batch.scalar.to(self.mean.dtype) - self.mean) / self.std
        embedded = torch.einsum("bmf,mfd->bmd", self._features(standard.nan_to_num()), self.weight)
        chosen = torch.where(unknown[..., None], self.unknown, embedded.to(self.unknown.dtype))
        return Conditioning(vector=chosen.sum(dim=1))

    def null(self, count: int) -> Conditioning:
        """The condition in which no scalar is known."""
        unknown = self.unknown.expand(count, -1, -1)
        return Conditioning(vector=unknown.sum(dim=1))

    def _features(self, x: Float[Tensor, "b m"]) -> Float[Tensor, "b m f"]:
        angles = x[..., None] * self.frequencies
        return torch.cat([x[..., None], angles.sin(), angles.cos()], dim=-1)

    def _set_range(self, low: tuple[float, ...], high: tuple[float, ...]) -> None:
        if not len(low) == len(high) == len(self.names):
            raise ValueError(
                f"expected a `low` and a `high` for each of {', '.join(self.names)}, "
                f"got {len(low)} and {len(high)}"
            )
        if any(a >= b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"every `low` must lie below its `high`, got {low} and {high}")
        self.mean.copy_((torch.tensor(low) + torch.tensor(high)) / 2)
        self.std.copy_((torch.tensor(high) - torch.tensor(low)) / 4)
