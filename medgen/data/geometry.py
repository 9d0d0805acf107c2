"""From a file's size to a schema's, for images, volumes and masks alike; windows of intensity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Fit = Literal["crop", "pad", "squash"]
"""How an image of another aspect meets its size: "crop" cuts the centre out, "pad" adds black on
both sides, "squash" stretches. "crop" and "pad" keep circles round."""


@dataclass(frozen=True)
class Volume:
    """A volume and where it lies.

    Args:
        voxels: (x y z), to the right, front and head of the patient as nearly as the axes allow; an
            oblique volume keeps its rotation in the affine.
        affine: (4 4), voxel index -> RAS+ mm.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Mm between voxels along each axis."""
        return spacing_of(self.affine)

    @property
    def centre(self) -> NDArray[np.float64]:
        """Index of the middle of the volume."""
        return (np.array(self.voxels.shape) - 1) / 2


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mm between voxels along each axis of an affine (4 4)."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def centred_affine(size: Sequence[int], spacing: Sequence[float]) -> NDArray[np.float64]:
    """The affine (4 4) of a grid along the patient's axes whose middle lies at 0 mm."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(size) - 1) / 2 * np.array(spacing)
    return affine


def regrid(
    volume: Volume,
    size: tuple[int, int, int],
    spacing: tuple[float, float, float] | None = None,
    *,
    centre: NDArray[np.float64] | None = None,
    fill: float = 0.0,
    labels: bool = False,
) -> Volume:
    """A volume on another grid along its own axes: resampled, cropped and padded in one step.

    World coordinates are kept: whatever lies at a point of the patient lies there still.

    Args:
        volume: image or classes.
        size: voxels along each axis of the new grid.
        spacing: mm between its voxels; None keeps the volume's own.
        centre: index in the volume where the middle of the new grid lies; None is its middle.
        fill: outside the volume.
        labels: classes keep their values (the nearest voxel's, in their type); else the result is
            float32, linear between voxels, smoothed before where it becomes coarser.
    """
    scale = np.ones(3) if spacing is None else np.array(spacing) / volume.spacing
    middle = volume.centre if centre is None else np.asarray(centre, dtype=np.float64)
    offset: Any = middle - scale * (np.array(size) - 1) / 2
    voxels = volume.voxels if labels else volume.voxels.astype(np.float32, copy=False)
    if not labels and (scale > 1).any():
        voxels = ndimage.gaussian_filter(voxels, np.maximum(0, (scale - 1) / 2), mode="nearest")
    moved = ndimage.affine_transform(
        voxels, scale, offset, size, order=0 if labels else 1, cval=fill, prefilter=False
    )
    step = np.eye(4)
    step[:3, :3], step[:3, 3] = np.diag(scale), offset
    return Volume(moved, volume.affine @ step)


Window = tuple[float, float]
"""The intensities, in the source's unit (HU for CT), that become -1 and 1."""


def to_unit(values: NDArray[Any], window: Window) -> NDArray[np.float32]:
    """Intensities to [-1, 1]; what lies outside the window is held to its ends."""
    low, high = window
    return np.clip((values - low) * (2 / (high - low)) - 1, -1, 1).astype(np.float32)


def from_unit(values: NDArray[Any], window: Window) -> NDArray[np.float32]:
    """[-1, 1] to intensities: the inverse of `to_unit` inside the window."""
    low, high = window
    return ((values + 1) * ((high - low) / 2) + low).astype(np.float32)


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
