"""Branching vessel trees: every vessel splits in two, thinner by Murray's law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MURRAY = 0.5 ** (1 / 3)
"""Radius of a child over its parent's where both children are alike: the cubes of radii add up.

Source: Murray 1926, PNAS 12(3), equation 4.
"""

THINNEST = 0.35
"""Radius (mm) of the thinnest vessels that are drawn."""


@dataclass(frozen=True)
class Tree:
    """Segments of a tree.

    Args:
        start: where each segment begins, (s, 3) z, y, x in mm.
        end: where it ends, (s, 3).
        radius: its radius, (s,) in mm.
    """

    start: Floats
    end: Floats
    radius: Floats


def grow(
    rng: np.random.Generator,
    roots: Floats,
    directions: Floats,
    *,
    radius: float = 4.5,
    length: float = 26.0,
    generations: int = 7,
) -> Tree:
    """Grow a tree from each root.

    Args:
        rng: draws angles and lengths.
        roots: where the trunks begin, (r, 3) in mm.
        directions: unit vectors that the trunks follow, (r, 3).
        radius: of the trunks, mm.
        length: mean length of the trunks, mm.
        generations: splits from a trunk to a leaf.
    """
    heads, ways = roots, directions
    radii = radius * rng.uniform(0.75, 1.2, len(roots))
    found: list[tuple[Floats, Floats, Floats]] = []
    for generation in range(generations):
        reach = length * 0.83**generation * rng.uniform(0.7, 1.3, len(heads))
        middle = heads + ways * reach[:, None] / 2
        bent = _unit(ways + 0.18 * rng.standard_normal(ways.shape))
        tips = middle + bent * reach[:, None] / 2
        found += [(heads, middle, radii), (middle, tips, radii * 0.9)]
        aside = np.cross(bent, _unit(rng.standard_normal(bent.shape)))
        aside = _unit(aside) * rng.uniform(0.3, 0.75, len(bent))[:, None]
        share = rng.uniform(0.75, 1.15, (len(bent), 1))
        heads = np.concatenate([tips, tips])
        ways = _unit(np.concatenate([bent + aside * share, bent - aside / share]))
        ratio = np.concatenate([share[:, 0] ** -0.5, share[:, 0] ** 0.5])
        radii = np.concatenate([radii, radii]) * 0.9 * MURRAY * ratio
    starts, ends, sizes = zip(*found, strict=True)
    return Tree(np.concatenate(starts), np.concatenate(ends), np.concatenate(sizes))


def scatter(tree: Tree, rng: np.random.Generator, step: float) -> tuple[Floats, Floats]:
    """Points that fill a tree, and the volume (mm^3) that each stands for.

    Args:
        tree: what to fill.
        rng: scatters points over the cross-sections.
        step: mm between points; thicker segments get more points.
    """
    lengths = np.linalg.norm(tree.end - tree.start, axis=1)
    wide = np.ceil(np.pi * tree.radius**2 / step**2)
    counts = (np.ceil(lengths / step) * wide * (tree.radius > THINNEST)).astype(np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    along = rng.random((len(owner), 1))
    offsets = rng.standard_normal((len(owner), 3))
    offsets *= rng.random((len(owner), 1)) ** (1 / 3) / np.linalg.norm(
        offsets, axis=1, keepdims=True
    )
    points = tree.start[owner] + along * (tree.end - tree.start)[owner]
    points += offsets * tree.radius[owner, None]
    volumes = (np.pi * tree.radius**2 * lengths / np.maximum(counts, 1))[owner]
    return points, volumes


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
