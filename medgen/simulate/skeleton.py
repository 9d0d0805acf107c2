"""Bones of a simulated thorax: ribs on the cage, a column of vertebrae, the shoulder girdle."""

from __future__ import annotations

import numpy as np

from medgen.simulate.anatomy import Anatomy
from medgen.simulate.chest import POWER, Cage, cage_of, superellipse
from medgen.simulate.shapes import Array, Grid, capsules, cover, ellipsoid

CORTEX, MARROW, DISC = 1450.0, 320.0, 40.0
"""HU of compact bone, spongy bone and discs."""
_NUMBERS = np.arange(12)
SLIM = np.interp(_NUMBERS, [0, 1, 6, 11], [1.15, 1.0, 1.0, 0.75]).astype(np.float32)
"""Relative height of every rib's cross-section, from the first to the twelfth."""
REACH = np.interp(_NUMBERS, [0, 3, 6, 9, 10, 11], [2.45, 2.5, 2.3, 1.95, 1.5, 1.05]).astype(
    np.float32
)
"""Angle (rad, from the spine) at which every rib turns to cartilage or ends."""


def skeleton(
    grid: Grid,
    anatomy: Anatomy,
    rng: np.random.Generator,
    wide: float,
    *,
    arms: bool = True,
) -> tuple[Array, Array]:
    """Share of voxels that are bone, and their HU above soft tissue times that share.

    Args:
        grid: where.
        anatomy: of whom.
        rng: draws how the bones lie.
        wide: mm over which a surface is blurred.
        arms: draw the upper arms; they are raised out of sight in a CT scan.
    """
    share = np.zeros(grid.shape, dtype=np.float32)
    extra = np.zeros(grid.shape, dtype=np.float32)
    _ribs(grid, anatomy, rng, share, extra)
    _spine(grid, anatomy, share, extra, wide)
    _girdle(grid, anatomy, rng, share, extra, wide, arms)
    extra *= anatomy.bone
    return share, extra


def _ribs(
    grid: Grid, anatomy: Anatomy, rng: np.random.Generator, share: Array, extra: Array
) -> None:
    """Twelve pairs at once: each voxel of a shell around the cage finds its rib's number."""
    reach = (anatomy.half_depth + 18, anatomy.half_width + 18)
    box = grid.box((-28, -reach[0], -reach[1]), (anatomy.height + 105, reach[0], reach[1]))
    part = grid.within(box)
    z, y, x = part.coordinates()
    cage = cage_of(anatomy, z)
    terms = superellipse(x, y - cage.middle, cage.half_width, cage.half_depth)
    total = terms[0] + terms[1]
    near = np.nonzero((total > 0.99) & (total < 1.42))
    level = total[near] ** np.float32(1 / POWER)
    high, back, side = z[near[0], 0, 0], (y - cage.middle)[near[0], near[1], 0], x[0, 0, near[2]]
    outside = np.hypot(back, side) * (1 - 1 / level)
    theta = np.arctan2(
        np.abs(side) / cage.half_width[near[0], 0, 0], back / cage.half_depth[near[0], 0, 0]
    )
    fall = (1 - np.cos(theta)) / 2 + 0.14 * np.sin(theta)
    first, growth = 34.0, (anatomy.rib_slope - 34) / 6.0
    tilt = (rng.normal(1, 0.05, 2).astype(np.float32))[(side > 0).astype(np.intp)]
    number = (high + 20 - first * fall * tilt) / (anatomy.pitch + growth * fall * tilt)
    rib = np.round(np.clip(number, 0, 11)).astype(np.intp)
    drop = (number - rib) * (anatomy.pitch + growth * fall * tilt)
    slim = (anatomy.rib_height * SLIM)[rib]
    radial = np.hypot(drop / slim * np.cos(0.55 * fall), (outside - 5.5) / 5.0)
    end = REACH[rib]
    inside = cover(((radial - 1) * 4.5).astype(np.float32), max(min(grid.spacing) * 1.1, 2.0))
    inside *= np.clip((end - theta) / 0.06 + 0.5, 0, 1) * np.clip((theta - 0.1) / 0.05, 0, 1)
    rim = np.clip((radial - 0.35) / 0.5, 0, 1)
    share[box][near] = inside
    extra[box][near] = inside * (MARROW + (CORTEX - MARROW) * rim)


def _spine(grid: Grid, anatomy: Anatomy, share: Array, extra: Array, wide: float) -> None:
    """Vertebrae repeat along z, so one evaluation in folded coordinates draws them all."""
    box = grid.box((-1e3, 0, -60), (1e3, anatomy.half_depth + 60, 60))
    part = grid.within(box)
    z, y, x = part.coordinates()
    cage = cage_of(anatomy, z)
    pitch = anatomy.pitch * np.where(z > 0, 1 + 0.0006 * z, 1 + 0.002 * z).clip(0.7, 1.3)
    phase = (z + 18) / pitch
    phase = (phase - np.round(phase)).astype(np.float32)
    size = profile_size(z)
    side, back = x - cage.spine_x, y - cage.spine_y
    waist = size * (0.88 + 0.5 * phase**2)
    body = np.hypot(side / 1.18, back) - waist
    plate = np.exp(-np.square((np.abs(phase) - 0.39) / 0.05))
    disc = np.clip((np.abs(phase) - 0.43) / 0.03, 0, 1)
    core = cover(body.astype(np.float32), wide)
    rim = np.exp(-np.square(np.minimum(body + 1.5, 0) / 2.0))
    value = (0.35 * MARROW + 280 * plate + 120 * rim) * (1 - disc) + DISC * disc
    high = phase * pitch
    arch = _arch(side, back, high, size, wide)
    share[box] = np.maximum(share[box], np.maximum(core * (1 - 0.7 * disc), arch))
    extra[box] = np.maximum(extra[box], np.maximum(core * value, arch * 300))


def profile_size(z: Array) -> Array:
    """Half-depth (mm) of vertebral bodies at heights z: they grow downwards."""
    return np.interp(z, [-80, 0, 250, 340], [9.0, 11.5, 15.5, 17.5]).astype(np.float32)


def _arch(side: Array, back: Array, high: Array, size: Array, wide: float) -> Array:
    """Pedicles, transverse and spinous processes in coordinates folded onto one vertebra."""
    pedicle = np.sqrt(
        np.square((np.abs(side) - 0.95 * size) / 4.5)
        + np.square((high + 3) / 6)
        + np.square((back - 16) / 9)
    )
    transverse = np.sqrt(
        np.square((np.abs(side) - 21) / 14)
        + np.square((high + 1 - 0.1 * np.abs(side)) / 5)
        + np.square((back - 26) / 6)
    )
    spinous = np.sqrt(np.square(side / 4) + np.square((high - 6) / 9) + np.square((back - 40) / 18))
    nearest = np.minimum(np.minimum(pedicle, transverse), spinous) - 1
    return cover((nearest * 4.5).astype(np.float32), wide)


def _girdle(
    grid: Grid,
    anatomy: Anatomy,
    rng: np.random.Generator,
    share: Array,
    extra: Array,
    wide: float,
    arms: bool,
) -> None:
    """Clavicles, shoulder blades, upper arms and breastbone."""
    a = anatomy
    swing = np.deg2rad(a.arm)
    for side in (-1, 1):
        joint = (a.shoulder + 34, 14.0, side * (a.half_width + a.muscle + 24))
        inner = (42 + rng.normal(0, 3), -a.half_depth * 0.62, side * 20)
        outer = (a.shoulder + 14, 8.0, side * (a.half_width + a.muscle + 8))
        s_curve = [
            _between(inner, outer, t, bow) for t, bow in ((0.0, 0), (0.3, -14), (0.65, 2), (1.0, 0))
        ]
        _bone(grid, s_curve, [10, 6.5, 5.5, 7.5], share, extra, wide)
        if arms:
            elbow = (joint[0] + 300 * np.cos(swing), 20.0, joint[2] + side * 300 * np.sin(swing))
            neck = tuple(j + 0.12 * (e - j) for j, e in zip(joint, elbow, strict=True))
            _bone(grid, [joint, neck, elbow], [21, 13, 11], share, extra, wide)
        glenoid = (joint[0] + 4, 34.0, joint[2] - side * 30)
        tip = (joint[0] + 118, a.half_depth + 4, side * (a.half_width - 12))
        medial = (joint[0] - 4, a.half_depth + 2, side * (0.62 * a.half_width))
        for line, radii in (
            ([glenoid, tip], [6.5, 4.0]),
            ([medial, tip], [2.6, 3.4]),
            ([medial, glenoid], [3.0, 5.5]),
            ([medial, (outer[0] + 2, 30.0, outer[2])], [3.5, 6.5]),
            ([glenoid, (glenoid[0] - 8, 4.0, glenoid[2] - side * 8)], [6, 5]),
        ):
            _bone(grid, line, radii, share, extra, wide)
        middle = tuple(np.mean([glenoid, tip, medial], axis=0))
        _bone(grid, [middle, tip], [3, 2], share, extra, wide)
    box, distance = ellipsoid(grid, (105, -a.half_depth - 4, 0), (82, 6, 18))
    inside = cover(distance, wide)
    share[box] = np.maximum(share[box], inside)
    extra[box] = np.maximum(extra[box], inside * 160)


def _between(
    start: tuple[float, float, float], end: tuple[float, float, float], t: float, bow: float
) -> tuple[float, float, float]:
    """A point on the way from start to end, pushed forward by `bow` mm."""
    z, y, x = (a + t * (b - a) for a, b in zip(start, end, strict=True))
    return (z, y + bow, x)


def _bone(grid: Grid, line, radii, share: Array, extra: Array, wide: float) -> None:
    """A round bone with a compact rim, added where nothing denser stands."""
    box, distance = capsules(grid, line, radii)
    rim = np.exp(-np.square(np.minimum(distance + 1.5, 0) / 2.2))
    inside = cover(distance, wide)
    share[box] = np.maximum(share[box], inside)
    extra[box] = np.maximum(extra[box], inside * (MARROW + 0.75 * (CORTEX - MARROW) * rim))


__all__ = ["Cage", "skeleton"]
