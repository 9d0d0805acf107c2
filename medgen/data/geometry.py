"""From a file's size to a schema's: crop, pad or squash, for images and masks alike."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Fit = Literal["crop", "pad", "squash"]
"""How an image of another aspect meets its size: "crop" cuts the centre out, "pad" adds black on
both sides, "squash" stretches. "crop" and "pad" keep circles round."""


def fit_image(
    pixels: NDArray[np.float32], size: tuple[int, int], fit: Fit = "crop"
) -> NDArray[np.float32]:
    """Pixels (c, h, w) at another size.

    Every new pixel is the mean over the area that it covers when the image shrinks, and linearly
    interpolated when it grows.
    """
    windows = _windows(pixels.shape[1:], size, fit)
    rows, columns = (
        _weights(old, *window) for old, window in zip(pixels.shape[1:], windows, strict=True)
    )
    resized = rows @ pixels.astype(np.float32) @ columns.T
    return np.ascontiguousarray(resized, np.float32)


def fit_mask(mask: NDArray[Any], size: tuple[int, int], fit: Fit = "crop") -> NDArray[Any]:
    """Classes (h, w) at another size: the nearest class, 0 outside, aligned with `fit_image`."""
    resized = mask
    for axis, (old, window) in enumerate(
        zip(mask.shape, _windows(mask.shape, size, fit), strict=True)
    ):
        start, length, new = window
        centres = np.floor(start + (np.arange(new) + 0.5) * length / new).astype(int)
        inside = (centres >= 0) & (centres < old)
        resized = np.take(resized, np.clip(centres, 0, old - 1), axis)
        resized = resized * (inside[:, None] if axis == 0 else inside)
    return resized


def _windows(
    old: tuple[int, ...], new: tuple[int, int], fit: Fit
) -> list[tuple[float, float, int]]:
    """For each axis: where in the old image the new one starts, its length there, its new size."""
    scales = [have / want for have, want in zip(old, new, strict=True)]
    if fit == "squash":
        lengths = [float(have) for have in old]
    else:
        scale = min(scales) if fit == "crop" else max(scales)
        lengths = [want * scale for want in new]
    return [
        ((have - length) / 2, length, want)
        for have, length, want in zip(old, lengths, new, strict=True)
    ]


def _weights(old: int, start: float, length: float, new: int) -> NDArray[np.float32]:
    """How much of every old pixel goes into every new one, (new, old) along one axis.

    Rows sum to 1 inside the image, to less where padding (black, 0) is covered.
    """
    step = length / new
    edges = start + np.arange(new + 1) * step
    places = np.arange(old)
    if step >= 1:
        lower = np.maximum(edges[:-1, None], places[None])
        upper = np.minimum(edges[1:, None], places[None] + 1)
        return (np.clip(upper - lower, 0, None) / step).astype(np.float32)
    centres = (edges[:-1] + edges[1:]) / 2
    inside = (centres > 0) & (centres < old)
    nearest = np.clip(centres - 0.5, 0, old - 1)
    weights = np.clip(1 - np.abs(nearest[:, None] - places[None]), 0, None)
    return (weights * inside[:, None]).astype(np.float32)
