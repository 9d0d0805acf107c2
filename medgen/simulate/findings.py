"""Findings planted in simulated lungs, each grown until it has the volume that was asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medgen.simulate.shapes import Array, Grid, cover, ellipsoid

LINE = 3.0
"""Thickness (mm) of the visceral pleura that edges a collapsed lung."""


def fill(field: Array, room: Array, volume: float, voxel: float) -> float:
    """The level below which `field` holds a stated volume of a room.

    Args:
        field: filled from its lowest values up.
        room: share of every voxel that can be filled.
        volume: ml.
        voxel: mm^3.

    Raises:
        ValueError: the room is too small.
    """
    open_to = room > 0
    values, shares = field[open_to], room[open_to]
    capacity = float(shares.sum()) * voxel / 1000
    if not 0 < volume < capacity:
        raise ValueError(f"expected a volume between 0 and {capacity:.0f} ml, got {volume:g} ml")
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, 2049)
    spot = ((values - low) * (2048 / max(high - low, 1e-6))).astype(np.int64).clip(0, 2047)
    held = np.cumsum(np.bincount(spot, shares, minlength=2048)) * voxel / 1000
    return float(np.interp(volume, np.concatenate([[0], held]), edges))


def effusion(grid: Grid, room: Array, wall: Array, volume: float, wide: float) -> Array:
    """Share of voxels filled by free pleural fluid: it pools at the base and climbs the wall."""
    z, _, _ = grid.coordinates()
    field = 45 * np.exp(-np.maximum(wall, 0) / 11)
    field += z
    np.negative(field, out=field)
    level = fill(field, room, volume, grid.voxel)
    return room * cover(field - level, wide)


def pneumothorax(
    grid: Grid, room: Array, wall: Array, volume: float, wide: float
) -> tuple[Array, Array]:
    """Shares of voxels that are free pleural air, and visceral pleura.

    Air gathers at the apex and along the side wall; the lung shrinks towards its hilum.
    """
    z, y, _ = grid.coordinates()
    field = wall + 0.34 * z + 0.34 * np.abs(y)
    level = fill(field, room, volume, grid.voxel)
    field -= level
    line = np.maximum(1 - np.abs(field) / wide, 0) * (LINE / wide)
    return room * cover(field, wide), room * line


def consolidation(
    grid: Grid, room: Array, center: NDArray[np.float64], volume: float, rng: np.random.Generator
) -> Array:
    """Share of voxels whose air is replaced by fluid, with ragged edges, around a centre."""
    z, y, x = grid.coordinates()
    stretch = rng.uniform(0.75, 1.35, 3)
    offsets = [c - m for c, m in zip((z, y, x), center, strict=True)]
    field = np.sqrt(
        sum(np.square(o * np.float32(s)) for o, s in zip(offsets, stretch, strict=True))
    )
    for _ in range(5):
        wave = rng.normal(0, 1 / 14, 3).astype(np.float32)
        turn = np.float32(rng.uniform(0, 2 * np.pi))
        field += 4.0 * np.sin(
            (offsets[0] * wave[0] + offsets[1] * wave[1]) + (offsets[2] * wave[2] + turn)
        )
    level = fill(field, room, volume, grid.voxel)
    return room * cover(field - level, 16.0)


def nodule(grid: Grid, center: NDArray[np.float64], diameter: float, wide: float) -> Array:
    """Share of voxels inside a sphere of a stated diameter (mm)."""
    share = np.zeros(grid.shape, dtype=np.float32)
    box, distance = ellipsoid(grid, center, (diameter / 2,) * 3)
    share[box] = cover(distance, wide)
    return share


def seat(
    grid: Grid, room: Array, lung: Array, wall: Array, margin: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A random place (z, y, x in mm) that shows from the front, or the nearest to one.

    It shows where rays through it cross much lung, and little heart, hilum or liver.

    Args:
        grid: of the other arrays.
        room: share of every voxel that can be sat in.
        lung: share of every voxel that is lung.
        wall: depth (mm) under the chest wall.
        margin: depth (mm) under the chest wall that is wanted.
        rng: chooses.
    """
    path = lung.sum(axis=1)
    best = np.maximum(0.85 * path.max(axis=1, keepdims=True), 0.62 * path.max())
    fitness = room * np.clip(wall / margin, 0, 1)
    fitness *= np.where(path > best, 1.0, 0.5)[:, None]
    free = np.flatnonzero(fitness >= 0.99 * fitness.max())
    chosen = np.unravel_index(int(rng.choice(free)), grid.shape)
    return np.array([grid.axis(a)[i] for a, i in enumerate(chosen)])


def seats(
    grid: Grid, room: Array, lung: Array, wall: Array, diameter: float, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Places for one to three spheres (mm) that do not touch; other arguments as of `seat`."""
    z, y, x = grid.coordinates()
    open_room, found = room, []
    for _ in range(int(rng.integers(1, 4))):
        if found and not (open_room > 0.99).any():
            break
        center = seat(grid, open_room, lung, wall, diameter / 2 + 3, rng)
        apart = np.square(z - center[0]) + np.square(y - center[1]) + np.square(x - center[2])
        if all(np.linalg.norm(center - other) > 1.1 * diameter for other in found):
            found.append(center)
        open_room = open_room * (apart > (1.1 * diameter) ** 2)
    return found
