"""The spacing of a study as a vector: how many mm a voxel measures along each axis."""

from __future__ import annotations

from dataclasses import replace

from medgen.conditioners.scalar import ScalarConditioner
from medgen.protocols import Conditioner
from medgen.registry import register
from medgen.types import Batch, Conditioning, CondSpec, Schema

LEAST_SPREAD = 0.05
"""Standard deviation of the logarithm that an axis of one spacing only is taken to have."""


@register("conditioner", "spacing")
class SpacingConditioner(Conditioner):
    """Embeds the logarithm of the spacing along each axis, as `scalar` embeds a number.

    The range is measured on training studies by `fit`. A study of unknown spacing has the learned
    null.

    Args:
        schema: says how many axes there are.
        width: channels of the vector.

    Source: Guo et al. 2024, arXiv 2409.11169, with Fourier features.
    """

    reads = frozenset({"spacing"})

    def __init__(self, schema: Schema, width: int = 256) -> None:
        super().__init__()
        axes = tuple(f"spacing of axis {axis}" for axis in range(len(schema.size)))
        self.scalars = ScalarConditioner(replace(schema, scalars=axes), width)
        self.spec = CondSpec(vector=width)

    def fit(self, batch: Batch) -> None:
        """Measure the spacings of training studies.

        Raises:
            ValueError: the studies know no spacing, or all have the same.
        """
        if batch.spacing is None:
            raise ValueError("a spacing conditioner needs studies that know their spacing")
        known = batch.spacing[~batch.spacing.isnan().any(dim=1)].double().log()
        if len(known) < 2 or not (spread := known.std(dim=0)).any():
            raise ValueError(
                "all studies have one spacing, which is no condition; leave it out, or read "
                "studies of several spacings"
            )
        self.scalars.mean.copy_(known.mean(dim=0))
        self.scalars.std.copy_(spread.clamp_min(LEAST_SPREAD))

    def encode(self, batch: Batch) -> Conditioning:
        """A vector (b d) of each study's spacing."""
        if batch.spacing is None:
            return self.null(len(batch))
        return self.scalars.encode(Batch(scalar=batch.spacing.log()))

    def null(self, count: int) -> Conditioning:
        """The condition in which the spacing is unknown."""
        return self.scalars.null(count)
