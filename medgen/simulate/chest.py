"""The frame of a simulated thorax: rib cage, diaphragm, mediastinum, body wall and skeleton."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.simulate.anatomy import Anatomy
from medgen.simulate.shapes import Array, Box, Grid, capsules, cover, paint, profile

POWER = 2.3
"""Exponent of the superellipses that a chest's cross-sections are: 2 is an ellipse."""
FAT, MUSCLE, BLOOD, AIR = -95.0, 45.0, 50.0, -1000.0
"""HU of tissues."""


@dataclass(frozen=True)
class Cage:
    """The inner surface of the rib cage, slice by slice; all arrays run along z, (Z 1 1), mm.

    Args:
        half_width: along x.
        half_depth: along y.
        middle: y of its centre.
        spine_y: y of the vertebral bodies' centres.
        spine_x: x of the vertebral bodies' centres.
    """

    half_width: Array
    half_depth: Array
    middle: Array
    spine_y: Array
    spine_x: Array


def cage_of(anatomy: Anatomy, z: Array) -> Cage:
    """The cage at heights z (mm)."""
    t = (z + 25) / (anatomy.height + 25)
    width = profile(
        [(0, 0.3), (0.08, 0.52), (0.18, 0.7), (0.35, 0.86), (0.55, 0.95), (0.8, 1.0), (1.6, 0.94)],
        t,
    )
    depth = profile([(0, 0.3), (0.1, 0.5), (0.25, 0.73), (0.5, 0.93), (0.8, 1.0), (1.6, 1.0)], t)
    middle = profile([(0, 20.0), (0.5, 4.0), (1.0, 0.0)], t)
    half_depth = anatomy.half_depth * depth
    swing = anatomy.scoliosis * np.sin(2.6 * t).astype(np.float32)
    return Cage(
        half_width=anatomy.half_width * width,
        half_depth=half_depth,
        middle=middle,
        spine_y=middle + half_depth - 13,
        spine_x=swing,
    )


def superellipse(x: Array, y: Array, half_width: Array, half_depth: Array) -> tuple[Array, Array]:
    """The two terms, (Z 1 X) and (Z Y 1), whose sum is 1 on the surface and less inside."""
    return (np.abs(x) / half_width) ** POWER, (np.abs(y) / half_depth) ** POWER


def depth_below(across: Array, along: Array, half_width: Array, half_depth: Array) -> Array:
    """Depth (mm, to first order) of points under a superellipse's surface; negative outside."""
    total = across + along
    scale = across * half_width + along * half_depth
    scale /= np.maximum(total, 1e-3)
    total -= 1
    total *= scale
    total *= -1 / POWER
    return total


def diaphragm(anatomy: Anatomy, y: Array, x: Array) -> Array:
    """Height z (mm) of the diaphragm, (1 Y X): two domes, falling to the sulci."""
    heights = []
    for side, top in ((-1, anatomy.height), (1, anatomy.height + anatomy.dome_gap)):
        lateral = (side * x - 0.46 * anatomy.half_width) / (0.53 * anatomy.half_width)
        lateral = np.where(lateral > 0, lateral, 0.45 * lateral)
        front = (y + 12) / np.where(y + 12 > 0, anatomy.half_depth, 1.5 * anatomy.half_depth)
        reach = lateral**2 + front**2
        heights.append(top + anatomy.dome_drop * reach ** np.float32(1.25))
    left = 1 / (1 + np.exp(-x / 10))
    return (heights[0] + (heights[1] - heights[0]) * left).astype(np.float32)


def cavity(grid: Grid, anatomy: Anatomy, wide: float) -> tuple[Array, Array, Array]:
    """The space for lungs, heart and mediastinum.

    Returns:
        Share of every voxel inside it, depth (mm) under the chest wall, and the diaphragm (1 Y X).
    """
    z, y, x = grid.coordinates()
    cage = cage_of(anatomy, z)
    terms = superellipse(x, y - cage.middle, cage.half_width, cage.half_depth)
    wall = depth_below(*terms, cage.half_width, cage.half_depth)
    cap = 15 * (((np.abs(x) - 47) / 33) ** 2 + ((y - 24) / 46) ** 2)
    np.minimum(wall, (z - cap) * 0.8, out=wall)
    floor = diaphragm(anatomy, y, x)
    share = cover(-wall, wide)
    share *= cover((z - floor) * 0.8, wide)
    return share, wall, floor


def midline(grid: Grid, anatomy: Anatomy, wide: float) -> Array:
    """Share of voxels in the mediastinum beside the heart: vessels, trachea, fat and spine."""
    z, y, x = grid.coordinates()
    cage = cage_of(anatomy, z)
    half = profile([(-5, 44), (8, 32), (25, 25), (60, 23), (110, 19), (180, 16)], z)
    half = half * (0.3 + 0.7 * np.exp(-np.square((y - 18) / 52)))
    front = np.clip((cage.spine_y - y) / 24, 0, 1)
    spine = 26 * np.sqrt(1 - front**2)
    return cover(np.abs(x - cage.spine_x) - np.maximum(half, spine), wide)


def trunk(anatomy: Anatomy, z: Array) -> tuple[Array, Array, Array]:
    """Half-width, half-depth and y of the middle of neck and trunk at heights z, mm."""
    a, top = anatomy, anatomy.shoulder
    wall = a.muscle + a.fat
    chest, neck = a.half_width + wall + 4, 56 + 0.5 * a.fat
    half_width = profile(
        [
            (-90, neck),
            (top - 52, neck + 3),
            (top - 30, neck + 25),
            (top - 12, 0.8 * chest),
            (top + 8, chest),
            (top + 35, 1.06 * chest),
            (top + 100, chest - 3),
            (a.height, chest),
            (a.height + 120, chest - 4 + 0.4 * a.fat),
        ],
        z,
    )
    half_depth = profile(
        [
            (-90, 60),
            (top - 20, 66 + 0.5 * a.fat),
            (top + 25, a.half_depth),
            (90, a.half_depth + wall - 4),
            (a.height + 100, a.half_depth + wall + 0.6 * a.fat),
        ],
        z,
    )
    middle = profile([(-90, 22.0), (top + 10, 18.0), (110, 6.0), (a.height + 80, 0.0)], z)
    return half_width, half_depth, middle


def body(grid: Grid, anatomy: Anatomy, wide: float) -> tuple[Array, Array]:
    """The volume (HU) of skin, fat and muscle in air, and the share of voxels inside the body."""
    z, y, x = grid.coordinates()
    a = anatomy
    half_width, half_depth, middle = trunk(anatomy, z)
    outer = superellipse(x, y - middle, half_width, half_depth)
    share = cover(-depth_below(*outer, half_width, half_depth), wide)
    inner = superellipse(x, y - middle, half_width - a.fat, half_depth - a.fat)
    volume = cover(-depth_below(*inner, half_width, half_depth), wide)
    volume *= MUSCLE - FAT
    volume += FAT
    for box, part, value in _limbs(grid, anatomy, wide):
        fresh = part * (1 - share[box])
        paint(volume[box], fresh, value)
        share[box] += fresh
    volume -= AIR
    volume *= share
    volume += AIR
    return volume, share


def _limbs(grid: Grid, anatomy: Anatomy, wide: float) -> list[tuple[Box, Array, float]]:
    """Arms and breasts: box, share and HU of each."""
    parts: list[tuple[Box, Array, float]] = []
    a, swing = anatomy, np.deg2rad(anatomy.arm)
    girth = 38 + 0.5 * a.fat
    for side in (-1, 1):
        joint = (a.shoulder + 34, 14.0, side * (a.half_width + a.muscle + 24))
        elbow = (joint[0] + 300 * np.cos(swing), 20.0, joint[2] + side * 300 * np.sin(swing))
        box, distance = capsules(grid, (joint, elbow), (girth + 6, girth - 4))
        parts.append((box, cover(distance, wide), 20.0))
        if a.breast:
            parts.append((*breast(grid, a, side, wide), -30.0))
    return parts


def breast(grid: Grid, anatomy: Anatomy, side: int, wide: float) -> tuple[Box, Array]:
    """A breast as a heap on the chest wall: steep below, fading upwards."""
    a = anatomy
    center, radius = (
        (0.66 * a.height + 0.25 * a.breast, side * 0.54 * a.half_width),
        0.46 * a.half_width,
    )
    deep = a.half_depth + a.muscle + a.fat
    low = (center[0] - 2.2 * radius, -deep - a.breast - 5, center[1] - radius)
    box = grid.box(low, (center[0] + radius, -0.3 * a.half_depth, center[1] + radius))
    z, y, x = grid.within(box).coordinates()
    half_width, half_depth, middle = trunk(a, z)
    high = np.where(z < center[0], (z - center[0]) / 2.0, z - center[0])
    heap = 1 - np.square(high / radius) - np.square((x - center[1]) / radius)
    inner = np.clip(1 - (np.abs(x) / half_width) ** POWER, 0, 1) ** (1 / POWER)
    skin = middle - half_depth * inner
    front = skin + 4 - (a.breast + 4) * np.clip(heap, 0, 1) ** 0.75
    return box, cover((front - y).astype(np.float32), wide)
