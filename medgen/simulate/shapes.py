"""Solids on a voxel grid: soft coverage of implicit shapes, and splatting of tubes below its size.

Axes are always (z, y, x) in mm: z downwards (inferior), y backwards (posterior), x to the patient's
left, which is the right-hand side of a frontal radiograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Array = NDArray[np.floating]
Coordinates = Sequence[float] | NDArray[np.floating]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels.

    Args:
        shape: voxels along z, y, x.
        spacing: mm between voxel centres along z, y, x.
        origin: mm of the centre of voxel (0, 0, 0).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @classmethod
    def covering(
        cls, low: Sequence[float], high: Sequence[float], spacing: tuple[float, float, float]
    ) -> Grid:
        """The smallest grid whose voxels cover the box from `low` to `high` (mm)."""
        counts = [
            max(int(np.ceil((b - a) / s)), 1) for a, b, s in zip(low, high, spacing, strict=True)
        ]
        starts = [a + s / 2 for a, s in zip(low, spacing, strict=True)]
        return cls((counts[0], counts[1], counts[2]), spacing, (starts[0], starts[1], starts[2]))

    @property
    def voxel(self) -> float:
        """Volume of a voxel, mm^3."""
        return float(np.prod(self.spacing))

    def axis(self, number: int) -> Array:
        """Coordinates of the voxel centres along one axis, mm."""
        steps = np.arange(self.shape[number], dtype=np.float32)
        return self.origin[number] + self.spacing[number] * steps

    def box(self, low: Coordinates, high: Coordinates) -> Box:
        """The voxels between two corners (mm), clipped to the grid; at least one an axis."""
        slices: list[slice] = []
        for a, b, start, step, count in zip(
            low, high, self.origin, self.spacing, self.shape, strict=True
        ):
            first = min(max(int(np.floor((a - start) / step)), 0), count - 1)
            slices.append(
                slice(first, min(max(int(np.ceil((b - start) / step)) + 1, first + 1), count))
            )
        return (slices[0], slices[1], slices[2])

    def within(self, box: Box) -> Grid:
        """The part of the grid inside a box, as a grid of its own."""
        starts = [o + s * b.start for o, s, b in zip(self.origin, self.spacing, box, strict=True)]
        counts = [b.stop - b.start for b in box]
        return Grid(
            (counts[0], counts[1], counts[2]), self.spacing, (starts[0], starts[1], starts[2])
        )

    def coordinates(self) -> tuple[Array, Array, Array]:
        """Z (Z 1 1), y (1 Y 1) and x (1 1 X), mm: they broadcast to the grid."""
        z, y, x = (self.axis(number) for number in range(3))
        return z[:, None, None], y[None, :, None], x[None, None, :]


def cover(distance: Array, width: float) -> Array:
    """Share of a voxel inside a surface, from the signed distance (mm, negative inside).

    Args:
        distance: of the voxel's centre from the surface; overwritten.
        width: mm over which the share falls from 1 to 0, about a voxel's size.
    """
    distance *= -1 / width
    distance += 0.5
    return np.clip(distance, 0, 1, out=distance)


def paint(volume: Array, share: Array, value: float | Array) -> None:
    """Replace `share` of every voxel's content by `value`, in place."""
    volume += share * (value - volume)


def profile(knots: Sequence[tuple[float, float]], at: Array) -> Array:
    """A smooth, overshoot-free curve through (position, value) knots, constant outside them."""
    places, values = zip(*knots, strict=True)
    curve = PchipInterpolator(places, values)
    return curve(np.clip(at, places[0], places[-1])).astype(np.float32)


def ellipsoid(
    grid: Grid,
    center: Coordinates,
    radii: Coordinates,
    turn: NDArray[np.float64] | None = None,
) -> tuple[Box, Array]:
    """Signed distance (mm, to first order) from an ellipsoid, in the box around it.

    Args:
        grid: where it stands.
        center: z, y, x in mm.
        radii: semi-axes in mm.
        turn: (3, 3) rotation whose columns are the semi-axes' directions; None: the grid's.
    """
    turned = np.eye(3) if turn is None else turn
    reach = np.sqrt((turned**2) @ np.square(radii)) + np.array(grid.spacing)
    box = grid.box(np.subtract(center, reach), np.add(center, reach))
    z, y, x = grid.within(box).coordinates()
    offsets = (z - center[0], y - center[1], x - center[2])
    total = np.zeros(grid.within(box).shape, dtype=np.float32)
    for column, radius in zip(turned.T.astype(np.float32), radii, strict=True):
        along = (offsets[0] * column[0] + offsets[1] * column[1]) + offsets[2] * column[2]
        total += np.square(along / np.float32(radius))
    np.sqrt(total, out=total)
    total -= 1
    total *= np.float32(min(radii))
    return box, total


def splat(grid: Grid, points: NDArray[np.floating], volumes: NDArray[np.floating]) -> Array:
    """Spread small volumes (mm^3) over the eight voxels around each point; shares of voxels, <= 1.

    What falls outside the grid is lost.
    """
    place = ((points - np.array(grid.origin)) / np.array(grid.spacing)).astype(np.float32)
    first = np.floor(place)
    inside = np.all((first >= 0) & (first < np.array(grid.shape) - 1), axis=1)
    first, place, mass = first[inside], place[inside], volumes[inside] / grid.voxel
    after = (place - first).T
    sides = (1 - after, after)
    strides = np.array([grid.shape[1] * grid.shape[2], grid.shape[2], 1])
    flat = first.astype(np.int64) @ strides
    total = np.zeros(int(np.prod(grid.shape)))
    for corner in np.ndindex(2, 2, 2):
        share = mass * sides[corner[0]][0] * sides[corner[1]][1] * sides[corner[2]][2]
        total += np.bincount(flat + int(np.dot(corner, strides)), share, minlength=len(total))
    return np.minimum(total, 1).astype(np.float32).reshape(grid.shape)


def capsules(
    grid: Grid, line: Sequence[Sequence[float]], radii: Sequence[float]
) -> tuple[Box, Array]:
    """Signed distance (mm) from a chain of round-ended cones, in the box around it.

    Args:
        grid: where it stands.
        line: knots of the centre line, z, y, x in mm.
        radii: radius at every knot, mm.
    """
    knots, sizes = np.asarray(line, dtype=np.float32), np.asarray(radii, dtype=np.float32)
    margin = sizes[:, None] + np.array(grid.spacing, dtype=np.float32)
    box = grid.box((knots - margin).min(0), (knots + margin).max(0))
    part = grid.within(box)
    nearest = np.full(part.shape, 1e3, dtype=np.float32)
    for start, end, first, last in zip(knots[:-1], knots[1:], sizes[:-1], sizes[1:], strict=True):
        reach = max(first, last) + np.array(grid.spacing, dtype=np.float32)
        near = part.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        offset = [c - s for c, s in zip(part.within(near).coordinates(), start, strict=True)]
        span = end - start
        share = (offset[0] * span[0] + offset[1] * span[1]) + offset[2] * span[2]
        share = np.clip(share / max(float(span @ span), 1e-6), 0, 1)
        squares = [np.square(o - share * s) for o, s in zip(offset, span, strict=True)]
        distance = np.sqrt((squares[0] + squares[1]) + squares[2]) - (
            first + share * (last - first)
        )
        np.minimum(nearest[near], distance, out=nearest[near])
    return box, nearest
