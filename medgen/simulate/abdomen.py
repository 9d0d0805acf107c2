"""What lies below a simulated diaphragm: liver, spleen, stomach, kidneys, bowel and fat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medgen.simulate.anatomy import Anatomy
from medgen.simulate.chest import cage_of, depth_below, superellipse
from medgen.simulate.shapes import Array, Box, Grid, cover, ellipsoid


@dataclass(frozen=True)
class Organ:
    """A solid in a box.

    Args:
        name: of the structure.
        tissue: what it is made of.
        box: where.
        share: of every voxel of the box that it fills.
    """

    name: str
    tissue: str
    box: Box
    share: Array


def peritoneum(grid: Grid, anatomy: Anatomy, floor: Array, wide: float) -> Array:
    """Share of voxels between the diaphragm (z of it, 1 Y X) and the abdominal wall."""
    z, y, x = grid.coordinates()
    cage = cage_of(anatomy, z)
    terms = superellipse(x, y - cage.middle, cage.half_width - 3, cage.half_depth - 3)
    inside = cover(-depth_below(*terms, cage.half_width, cage.half_depth), wide)
    inside *= cover((floor + 4 - z) * np.float32(0.8), wide)
    spine = np.hypot(x - cage.spine_x, (y - cage.spine_y - 4) * np.float32(0.8)) - 27
    inside *= cover(-spine.astype(np.float32), wide)
    return inside


def organs(
    grid: Grid, anatomy: Anatomy, room: Array, rng: np.random.Generator, wide: float
) -> Iterator[Organ]:
    """The organs in the order in which they are drawn over each other.

    Args:
        grid: where.
        anatomy: of whom.
        room: share of voxels that they may fill, from `peritoneum`.
        rng: draws sizes and places.
        wide: mm over which a surface is blurred.
    """
    a = anatomy
    h, w, d = a.height, a.half_width, a.half_depth

    def solid(name: str, tissue: str, center: tuple[float, ...], radii: tuple[float, ...]) -> Organ:
        spread = rng.uniform(0.92, 1.08, 3)
        box, distance = ellipsoid(grid, center, np.array(radii) * spread)
        return Organ(name, tissue, box, cover(distance, wide) * room[box])

    for side in (-1, 1):
        center = (h + 128 + 12 * (side < 0), 0.42 * d, side * 0.5 * w)
        yield solid("kidney", "kidney", center, (52, 26, 29))
    yield solid("spleen", "spleen", (h + a.dome_gap + 48, 0.5 * d, 0.7 * w), (46, 42, 26))
    right = solid("liver", "liver", (h + 62, 0.02 * d, -0.5 * w), (78, 0.94 * d, 0.62 * w))
    left = solid("liver", "liver", (h + 40, -0.3 * d, -0.02 * w), (40, 0.62 * d, 0.5 * w))
    stomach = solid("stomach", "stomach", (h + a.dome_gap + 46, -0.1 * d, 0.5 * w), (44, 46, 36))
    yield stomach
    if a.bubble:
        y = grid.within(stomach.box).coordinates()[1]
        gas = stomach.share * cover(y - np.float32(-0.1 * d - 40 + a.bubble), wide)
        yield Organ("stomach", "air", stomach.box, gas)
    yield left
    yield right
