"""Images from masks alone, of random contrast: what can be had without any generator.

A network that learns from them sees shapes that are real and appearances that are anything.

Source: Billot et al. 2023, SynthSeg, doi 10.1016/j.media.2023.102789, section 3.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

BIAS_GRID = 4
"""Points a side of the coarse grid that a bias field is interpolated from."""


def randomize(
    mask: NDArray[np.integer], classes: int, rng: np.random.Generator, *, channels: int = 1
) -> NDArray[np.float32]:
    """An image of a mask: every class has a random mean and grain, then blur, bias and gamma.

    The ranges are wide on purpose: grey levels over the whole range with a grain of up to 0.15 of
    it, blur of up to 1.5 pixels, a bias field of up to exp(+-0.5) or so, gamma of exp(+-0.4).

    Args:
        mask: classes of the pixels or voxels, (*s).
        classes: how many there are.
        rng: all randomness of the image.
        channels: of the image; each has a contrast of its own.

    Returns:
        (channels, *s) float32 in [-1, 1].
    """
    return np.stack([_channel(mask, classes, rng) for _ in range(channels)])


def _channel(
    mask: NDArray[np.integer], classes: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    means, grain = rng.uniform(0, 1, classes), rng.uniform(0, 0.15, classes)
    image = means[mask] + grain[mask] * rng.normal(size=mask.shape)
    image = gaussian_filter(image, sigma=rng.uniform(0, 1.5))
    image = image.clip(0, None) * np.exp(_bias(mask.shape, rng))
    image = (image - image.min()) / max(float(np.ptp(image)), 1e-6)
    image = image ** np.exp(0.4 * rng.normal())
    return (2 * image - 1).astype(np.float32)


def _bias(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth field: random numbers on a coarse grid, interpolated linearly."""
    coarse = rng.uniform(0, 0.3) * rng.normal(size=(BIAS_GRID,) * len(shape))
    return np.asarray(zoom(coarse, [side / BIAS_GRID for side in shape], order=1))
