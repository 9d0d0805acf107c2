"""Twelve ECG leads from the eight that are independent: the other four follow by arithmetic."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from medgen.codecs.pixels import Pixels
from medgen.codecs.whitening import Whiten, Whitening
from medgen.protocols import Codec
from medgen.registry import register
from medgen.types import Schema

INDEPENDENT = (0, 1, 6, 7, 8, 9, 10, 11)
"""I, II and V1 to V6 among I, II, III, aVR, aVL, aVF, V1 to V6."""


@register("codec", "leads")
class Leads(Codec):
    """Blocks of samples of the leads I, II and V1 to V6; the limb leads between are derived.

    III = II - I, aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2. So what is decoded obeys
    Einthoven's and Goldberger's laws exactly, whatever a generator made; encoding a recording that
    does not obey them forgets how it departs.

    Args:
        schema: of twelve leads in the order I, II, III, aVR, aVL, aVF, V1 to V6, along time.
        patch: samples of a block, which a cosine transform makes channels of.
        whiten: as for the codec "pixels".

    Raises:
        ValueError: the studies are not twelve leads along time, or do not divide into blocks.

    Source: Einthoven et al. 1913; Goldberger 1942, doi 10.1016/S0002-8703(42)90293-X.
    """

    limbs: Tensor

    def __init__(self, schema: Schema, patch: int = 8, *, whiten: Whiten = "half") -> None:
        super().__init__()
        if len(schema.size) != 1 or not schema.time or schema.channels != 12:
            raise ValueError(
                f"leads: expected 12 leads along time, got {schema.channels} channels of "
                f"{len(schema.size)} axes; use the codec 'pixels'"
            )
        independent = Schema(schema.size, channels=len(INDEPENDENT), time=True)
        self.blocks = Pixels(independent, patch, whiten=whiten)
        self.latent = self.blocks.latent
        rows = [[-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]]
        self.register_buffer("limbs", torch.tensor(rows), persistent=False)

    @property
    def whitening(self) -> Whitening:
        """Shift and scale of the latents' channels."""
        return self.blocks.whitening

    def encode(self, image: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """Latents of the independent leads."""
        return self.blocks.encode(image[:, list(INDEPENDENT)])

    def decode(self, z: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """All twelve leads, of which the first two and the chest leads are held to [-1, 1].

        A derived lead may leave the range where its sources stand at opposite ends of it.
        """
        independent = self.blocks.decode(z)
        limbs = torch.einsum("lk,bkt->blt", self.limbs, independent[:, :2])
        return torch.cat([independent[:, :2], limbs, independent[:, 2:]], dim=1)

    def fit(self, images: Float[Tensor, "b c *s"]) -> None:
        """Measure shift and scale on images in [-1, 1], best the whole training split."""
        self.blocks.fit(images[:, list(INDEPENDENT)])
