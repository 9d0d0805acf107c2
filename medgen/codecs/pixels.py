"""The lossless codec: the image itself, or an orthonormal block transform of it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medgen.codecs.whitening import Whiten, Whitening
from medgen.nn.nd import space_to_depth
from medgen.protocols import Codec
from medgen.registry import register
from medgen.types import LatentSpec, Schema


@register("codec", "pixels")
class Pixels(Codec):
    """Blocks of `patch` pixels along every axis become channels by a discrete cosine transform.

    The transform is orthonormal: white noise on the latents is white noise on the image, and a
    squared error there is the same squared error here. With one scale for all channels (the
    default) a diffusion or a flow on these latents is therefore exactly the one on the image,
    only on a grid that is `patch` times smaller. Scaling every channel to unit variance would
    weigh the image's faint high frequencies, mostly detector noise, as much as its anatomy.

    Args:
        schema: what the studies hold.
        patch: side of a block, in pixels; 1 keeps the image as it is.
        whiten: "global" divides all channels by one number (their variance is one on average);
            "channel" gives every channel unit variance; "half" lies between them.

    Raises:
        ValueError: the image does not divide into blocks.

    Source: Ahmed, Natarajan, Rao 1974, Discrete Cosine Transform, type II.
    """

    domain = "continuous"
    basis: Tensor

    def __init__(self, schema: Schema, patch: int = 1, *, whiten: Whiten = "global") -> None:
        super().__init__()
        if patch < 1:
            raise ValueError(f"patch: expected 1 or more pixels, got {patch}")
        if any(side % patch for side in schema.size):
            raise ValueError(
                f"patch: images of {schema.size} do not divide into blocks of {patch}; choose a "
                "patch that divides every side, or another data size"
            )
        self.patch = patch
        self.schema = schema
        axes = len(schema.size)
        channels = schema.channels * patch**axes
        size = tuple(side // patch for side in schema.size)
        self.latent = LatentSpec("continuous", size, channels=channels)
        self.whitening = Whitening(channels, whiten)
        self.register_buffer("basis", cosine_basis(patch, axes), persistent=False)

    def encode(self, image: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """Latents whose channels are c-major, then by frequency along every axis."""
        return self.whitening(self._transform(image))

    def decode(self, z: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """Images, held to [-1, 1]; the inverse of `encode`."""
        return self._invert(self.whitening.inverse(z)).clamp(-1, 1)

    def fit(self, images: Float[Tensor, "b c *s"]) -> None:
        """Measure shift and scale on images in [-1, 1], best the whole training split."""
        self.whitening.fit(images, self._transform)

    def covered(self, known: Bool[Tensor, "b c *s"]) -> Bool[Tensor, "b c *s"]:
        """Which latents follow from the pixels that are known: those of blocks known whole."""
        blocks = space_to_depth(known.float(), (self.patch,) * (known.ndim - 2))
        whole = blocks.unflatten(1, (known.shape[1], -1)).amin(dim=2) == 1  # b c *s
        return whole.repeat_interleave(self.patch ** (known.ndim - 2), dim=1)

    def _transform(self, image: Tensor) -> Tensor:
        return block_transform(image, self.basis, self.patch)

    def _invert(self, coefficients: Tensor) -> Tensor:
        return inverse_block_transform(coefficients, self.basis, self.patch)


def cosine_basis(patch: int, axes: int) -> Float[Tensor, "k p"]:
    """The orthonormal DCT-II basis of a block; row k is one separable pattern of its pixels."""
    at = torch.arange(patch, dtype=torch.float64)
    line = torch.cos(math.pi / patch * (at[None, :] + 0.5) * at[:, None]) * math.sqrt(2 / patch)
    line[0] /= math.sqrt(2)
    basis = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(axes):
        basis = torch.kron(basis, line)
    return basis.float()


def block_transform(image: Tensor, basis: Tensor, patch: int) -> Tensor:
    """Images (b c *s) to coefficients of their blocks (b c*patch^axes *s/patch)."""
    if patch == 1:
        return image
    batch, channels, *size = image.shape
    axes = len(size)
    split = [part for side in size for part in (side // patch, patch)]
    places = [2 + 2 * axis for axis in range(axes)]
    within = [3 + 2 * axis for axis in range(axes)]
    blocks = image.reshape(batch, channels, *split).permute(0, 1, *places, *within)
    coefficients = blocks.flatten(2 + axes) @ basis.T  # (b c *s/patch k)
    return coefficients.movedim(-1, 2).flatten(1, 2)


def inverse_block_transform(coefficients: Tensor, basis: Tensor, patch: int) -> Tensor:
    """Coefficients (b c*patch^axes *s) to images (b c *s*patch)."""
    if patch == 1:
        return coefficients
    batch, channels, *size = coefficients.shape
    axes = len(size)
    apart = coefficients.reshape(batch, channels // len(basis), len(basis), *size)
    blocks = apart.movedim(2, -1) @ basis  # (b c *s patch^axes)
    blocks = blocks.reshape(*blocks.shape[:-1], *[patch] * axes)
    woven = [place for axis in range(axes) for place in (2 + axis, 2 + axes + axis)]
    return blocks.permute(0, 1, *woven).reshape(
        batch, channels // len(basis), *[side * patch for side in size]
    )
