"""Where heart, great vessels, airways and lobes of a simulated thorax lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medgen.simulate.anatomy import Anatomy
from medgen.simulate.chest import cage_of
from medgen.simulate.shapes import Array, Grid, profile
from medgen.simulate.vessels import Tree, grow

Floats = NDArray[np.float64]
Solid = tuple[Floats, Floats, Floats]
"""An ellipsoid: centre and semi-axes in mm, and the rotation whose columns are their directions."""


@dataclass(frozen=True)
class Tube:
    """A vessel or airway.

    Args:
        name: what it is part of.
        line: knots of its centre line, z, y, x in mm.
        radii: at every knot, mm.
    """

    name: str
    line: Sequence[Sequence[float]]
    radii: Sequence[float]


def heart(anatomy: Anatomy, ratio: float) -> list[Solid]:
    """Ventricles, right atrium, left atrium and outflow, scaled to a cardiothoracic ratio."""
    a = anatomy
    tilt, turn = np.deg2rad(a.heart_tilt), np.deg2rad(35)
    long = np.array([np.sin(tilt), -np.cos(tilt) * np.sin(turn), np.cos(tilt) * np.cos(turn)])
    aside = np.cross(long, [0, 1, 0.0])
    aside /= np.linalg.norm(aside)
    frame = np.stack([long, aside, np.cross(long, aside)], axis=1)
    chambers = [
        ((-48, -20, 27), (66, 48, 57), frame),
        ((-56, -6, -22), (54, 47, 28), np.eye(3)),
        ((-76, 14, 8), (34, 28, 42), np.eye(3)),
        ((-96, -16, 10), (44, 28, 27), np.eye(3)),
    ]
    spans = [np.sqrt((f**2) @ np.square(r))[2] for _, r, f in chambers]
    left = max(c[2] + s for (c, _, _), s in zip(chambers, spans, strict=True))
    right = min(c[2] - s for (c, _, _), s in zip(chambers, spans, strict=True))
    scale = 2 * a.half_width * ratio / (left - right)
    squeeze = (scale / 0.93) ** -0.35
    base = np.array([a.height + a.dome_gap + 24, 0.0, 0.0])
    return [
        (
            base + np.array(center) * scale * np.array([squeeze, squeeze, 1]),
            np.array(radii) * scale,
            turned,
        )
        for center, radii, turned in chambers
    ]


def great_vessels(anatomy: Anatomy, grid: Grid) -> list[Tube]:
    """The aorta with its knob, the upper caval vein, and the pulmonary trunk and arteries.

    Args:
        anatomy: of whom.
        grid: whose heights the spine is sampled at.
    """
    h, r = anatomy.height, anatomy.aorta
    knob = 0.27 * h + 4
    z, _, _ = grid.coordinates()
    back = float(np.interp(knob, z[:, 0, 0], cage_of(anatomy, z).spine_y[:, 0, 0]))
    aorta = [
        (0.55 * h, -18, -8),
        (0.40 * h, -22, -14),
        (knob + 4, -14, -2),
        (knob, -2, 16),
        (knob, 24, 24),
        (knob + 12, back - 18, 24),
        (0.75 * h, back - 8, 18),
        (1.3 * h, back, 12),
    ]
    trunk = [(0.52 * h, -26, 16), (0.41 * h, -18, 28), (0.42 * h, 14, 32)]
    cava = [(0.05 * h, 0, -20), (0.3 * h, -4, -24), (0.5 * h, -4, -26)]
    right = [(0.44 * h, 0, 12), (0.46 * h, 4, -30), (0.50 * h, 6, -40)]
    return [
        Tube("aorta", aorta, [r + 3, r + 3, r + 2, r + 1, r + 1, r, r - 1, r - 2]),
        Tube("superior_vena_cava", cava, [8, 9, 11]),
        Tube("pulmonary_artery", trunk, [15, 14, 12]),
        Tube("pulmonary_artery", right, [11, 10, 9]),
        Tube("pulmonary_artery", [(0.46 * h, 6, -40), (0.64 * h, 16, -54)], [9, 5]),
        Tube("pulmonary_artery", [(0.42 * h, 12, 36), (0.60 * h, 22, 50)], [9, 5]),
    ]


def airways(anatomy: Anatomy) -> list[Tube]:
    """Trachea and main bronchi."""
    h = anatomy.height
    carina = (0.38 * h, 12, -2)
    return [
        Tube("airway", [(-75, 0, 0), (0, 6, 0), carina], [8.5, 8.5, 8]),
        Tube("airway", [carina, (0.47 * h, 10, -32)], [7, 6]),
        Tube("airway", [carina, (0.49 * h, 12, 40)], [6.5, 5]),
    ]


def lung_vessels(anatomy: Anatomy, rng: np.random.Generator) -> Tree:
    """A tree of vessels that branch from both hila."""
    roots, ways = [], []
    for side, high in ((-1, 0.47), (1, 0.44)):
        for angle in np.deg2rad([-75, -45, -15, 15, 40, 62, 82]):
            for depth in (-0.45, 0.1, 0.55):
                way = np.array([np.sin(angle), depth, side * np.cos(angle)])
                ways.append(way / np.linalg.norm(way))
                roots.append(
                    np.array([high * anatomy.height, 8.0, side * 34.0])
                    + 10 * np.array([way[0], way[1], 0])
                )
    return grow(
        rng,
        np.array(roots),
        np.array(ways),
        radius=4.4 * anatomy.vessels,
        length=24.0 * anatomy.height / 210,
    )


def bronchi(anatomy: Anatomy, rng: np.random.Generator) -> Tree:
    """The airways from the lobar bronchi on: lumens."""
    h = anatomy.height
    roots, ways = [], []
    for side, hilum in ((-1, (0.47 * h, 10.0, -32.0)), (1, (0.49 * h, 12.0, 40.0))):
        for way in ((-0.8, -0.2, 0.5), (0.25, -0.6, 0.7), (0.9, 0.35, 0.35), (0.2, 0.7, 0.6)):
            turned = np.array([way[0], way[1], side * way[2]])
            ways.append(turned / np.linalg.norm(turned))
            roots.append(np.array(hilum))
    return grow(
        rng, np.array(roots), np.array(ways), radius=3.9, length=26.0 * h / 210, generations=6
    )


def fissures(anatomy: Anatomy, grid: Grid) -> tuple[Array, Array]:
    """Signed distances (mm) below the oblique and the horizontal fissure.

    The oblique fissure falls from the fourth vertebra behind to the diaphragm in front; the
    horizontal one parts the right upper from the middle lobe.
    """
    z, y, x = grid.coordinates()
    h, depth = anatomy.height, anatomy.half_depth
    t = (y + depth) / (2 * depth)
    line = profile([(0.0, 1.02), (0.25, 0.86), (0.5, 0.66), (0.75, 0.44), (1.0, 0.2)], t) * h
    outward = np.abs(x) / anatomy.half_width
    oblique = (z - line + 0.06 * h * (outward - 0.5)) * np.float32(0.78)
    level = 0.52 * h + 0.05 * h * np.square((y + 20) / depth) - 0.04 * h * outward
    return oblique.astype(np.float32), np.broadcast_to(z - level, grid.shape).astype(np.float32)
