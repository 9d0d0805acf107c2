"""Random label maps in two or three dimensions: star-convex blobs and branching tubes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medgen.simulate.shapes import Grid, splat
from medgen.simulate.vessels import grow, scatter

Shapes = Literal["stars", "tubes"]
RIPPLES = 6
"""Waves on the sphere that bend a star's surface."""
HALF = 0.4
"""Share of a voxel from which on a tube's label holds."""


def stars(
    size: Sequence[int], rng: np.random.Generator, *, most: int = 12, bend: float = 0.35
) -> NDArray[np.int64]:
    """Star-convex blobs that do not touch: each is seen whole from its centre.

    Args:
        size: of the map, two or three sides.
        rng: draws number, places, sizes and surfaces.
        most: blobs at most; at least one is drawn.
        bend: standard deviation of the logarithm of a blob's radius over its surface.

    Returns:
        0 outside, 1, 2, ... inside each blob, (*size).

    Source: Dey et al. 2023, AnyStar, arXiv 2307.07044, section 3.1.
    """
    held = np.zeros(tuple(size), np.int64)
    grid = np.stack(np.meshgrid(*(np.arange(s) for s in size), indexing="ij"), axis=-1)
    made = 0
    for _ in range(int(rng.integers(1, most + 1))):
        radius = rng.uniform(0.08, 0.24) * min(size)
        offset = grid - rng.uniform(0, np.array(size) - 1)
        distance = np.linalg.norm(offset, axis=-1)
        direction = offset / np.maximum(distance, 1e-6)[..., None]
        waves = rng.normal(0, 2.5, (len(size), RIPPLES))
        phases = rng.uniform(0, 2 * np.pi, RIPPLES)
        ripple = np.cos(direction @ waves + phases).sum(-1) * (2 / RIPPLES) ** 0.5
        inside = distance < radius * np.exp(bend * ripple)
        if inside.any() and not (held[inside] > 0).any():
            made += 1
            held[inside] = made
    return held


def tubes(size: Sequence[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Branching tubes like vessels, (*size): 1 inside, 0 outside.

    Two-dimensional maps are the projection of a thin slab.

    Source: Wittmann et al. 2025, vesselFM, arXiv 2411.17386, section 3.1 (its trees are real ones).
    """
    sides = tuple(size) if len(size) == 3 else (8, *size)
    grid = Grid((sides[0], sides[1], sides[2]), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    count = int(rng.integers(1, 4))
    roots = rng.uniform(0, 1, (count, 3)) * (np.array(sides) - 1)
    ways = np.array(sides) / 2 - roots + rng.normal(0, 0.2 * min(size), (count, 3))
    ways /= np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-6)
    tree = grow(
        rng, roots, ways, radius=0.05 * min(size) + 0.6, length=0.35 * min(size), generations=4
    )
    share = splat(grid, *scatter(tree, rng, 0.4))
    inside = share > HALF
    shown = inside if len(size) == 3 else np.any(inside, axis=0, keepdims=True)[0]
    return shown.astype(np.int64)
