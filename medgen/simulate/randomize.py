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
    mask: NDArray[np.integer],
    classes: int,
    rng: np.random.Generator,
    *,
    channels: int = 1,
    artefacts: bool = False,
) -> NDArray[np.float32]:
    """An image of a mask: every class has a random mean and grain, then blur, bias and gamma.

    The ranges are wide on purpose: grey levels over the whole range with a grain of up to 0.15 of
    it, blur of up to 1.5 pixels, a bias field of up to exp(+-0.5) or so, gamma of exp(+-0.4).

    Args:
        mask: classes of the pixels or voxels, (*s).
        classes: how many there are.
        rng: all randomness of the image.
        channels: of the image; each has a contrast of its own.
        artefacts: also thick slices along a random axis, stripes and noise, each by chance.

    Returns:
        (channels, *s) float32 in [-1, 1].
    """
    made = np.stack([_channel(mask, classes, rng) for _ in range(channels)])
    if not artefacts:
        return made
    thick, axis = int(rng.integers(1, 5)), int(rng.integers(mask.ndim))
    spoiled = [thick_slices(channel, thick, axis) for channel in made]
    return np.stack([_striped(channel, rng) for channel in spoiled])


def thick_slices(image: NDArray[np.float32], thick: int, axis: int) -> NDArray[np.float32]:
    """An image (*s) as if taken in slices so many voxels thick along an axis, then interpolated."""
    if thick < 2:
        return image
    length = image.shape[axis]
    starts = np.arange(0, length, thick)
    widths = np.diff([*starts, length])
    means = np.moveaxis(np.add.reduceat(image, starts, axis=axis), axis, -1) / widths
    centres = starts + (widths - 1) / 2
    spread = np.apply_along_axis(
        lambda line: np.interp(np.arange(length), centres, line), -1, means
    )
    return np.moveaxis(spread, -1, axis).astype(np.float32)


def _striped(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """White noise and, every other time, the stripes of one wrong number in k-space."""
    noisy = image + rng.uniform(0, 0.15) * rng.normal(size=image.shape)
    if rng.random() < 0.5:
        waves = rng.uniform(0, 0.5, image.ndim)
        axes = np.meshgrid(*(np.arange(s) for s in image.shape), indexing="ij")
        along = sum(w * a for w, a in zip(waves, axes, strict=True))
        noisy = noisy + rng.uniform(0, 0.15) * np.cos(2 * np.pi * (along + rng.random()))
    return np.clip(noisy, -1, 1).astype(np.float32)


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
