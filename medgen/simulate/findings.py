"""Findings planted in simulated lungs, each grown until it has exactly the volume that was asked for."""

from __future__ import annotations

import numpy as np

from medgen.simulate.shapes import Array, Grid, cover, ellipsoid

LINE = 1.8
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
    """Share of voxels filled by free pleural fluid: it pools at the base and climbs along the wall."""
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
    field = wall + 0.16 * z + 0.10 * np.abs(y)
    level = fill(field, room, volume, grid.voxel)
    field -= level
    line = np.maximum(1 - np.abs(field) / wide, 0) * (LINE / wide)
    return room * cover(field, wide), room * line


def consolidation(
    grid: Grid, room: Array, center: np.ndarray, volume: float, rng: np.random.Generator
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


def nodules(grid: Grid, centers: np.ndarray, diameter: float, wide: float) -> Array:
    """Share of voxels inside spheres of one diameter (mm) around the centres (c, 3)."""
    share = np.zeros(grid.shape, dtype=np.float32)
    for center in centers:
        box, distance = ellipsoid(grid, center, (diameter / 2,) * 3)
        share[box] = np.maximum(share[box], cover(distance, wide))
    return share


def seat(
    grid: Grid,
    room: Array,
    shadow: Array,
    rng: np.random.Generator,
    *,
    margin: float = 0.0,
    wall: Array,
) -> np.ndarray:
    """A random place (z, y, x in mm) in a room, seen from the front without anything before it.

    Args:
        grid: of the room.
        room: share of every voxel that can be sat in.
        shadow: (Z 1 X), true where a ray from the front meets the heart or passes below a dome.
        rng: chooses.
        margin: depth (mm) under the chest wall that is wanted.
        wall: depth (mm) under the chest wall.
    """
    free = np.flatnonzero((room > 0.99) & (wall > margin) & ~shadow)
    if not len(free):
        free = np.flatnonzero(room > 0.99)
    chosen = np.unravel_index(int(rng.choice(free)), grid.shape)
    return np.array([grid.axis(a)[i] for a, i in enumerate(chosen)])
