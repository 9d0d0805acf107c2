"""Simulated chest CT: varied thorax volumes in HU with exact labels and findings of known size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medgen.errors import did_you_mean
from medgen.rng import derive
from medgen.simulate import chest, findings, mediastinum
from medgen.simulate.anatomy import FINDINGS, Anatomy, draw_anatomy
from medgen.simulate.shapes import Array, Box, Grid, capsules, cover, ellipsoid, paint, splat
from medgen.simulate.skeleton import skeleton
from medgen.simulate.vessels import scatter

LABELS = (
    "air",
    "body",
    "bone",
    "lung",
    "heart",
    "effusion",
    "consolidation",
    "nodule",
    "pneumothorax",
)
"""Classes of a label map."""
LUNG = tuple(LABELS.index(name) for name in ("lung", "consolidation", "nodule", "pneumothorax"))
"""Labels that make up the lung fields; a collapsed lung's free air is seen as part of them."""
COLLAPSE = 0.2
"""How much denser a lung gets beside a pneumothorax, as a share of soft tissue."""
FULLEST = 0.9
"""Share of a lung that a finding may fill, where the other lung has more room."""
FIELD = 416.0
"""Extent (mm) of a volume along z and x."""
DEPTH = (-148.0, 148.0)
"""Extent (mm) of a volume along y."""


@dataclass(frozen=True)
class Thorax:
    """A thorax in HU.

    Args:
        volume: HU, (Z Y X): z downwards, y backwards, x to the patient's left.
        labels: class of every voxel, indices of `LABELS`, (Z Y X) uint8.
        spacing: mm between voxels along z, y, x.
        origin: mm of the centre of voxel (0, 0, 0); 0 is the lungs' apex, mid-depth, midline.
        findings: what is planted and how large: `cardiomegaly` as cardiothoracic ratio,
            `nodule` as diameter in mm of each of one to three, the others in ml.
        anatomy: the numbers that it was built from.
    """

    volume: Array
    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    findings: Mapping[str, float]
    anatomy: Anatomy

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel index (z, y, x) to RAS+ mm, (4, 4)."""
        matrix = np.zeros((4, 4))
        for row, axis in ((0, 2), (1, 1), (2, 0)):
            matrix[row, axis], matrix[row, 3] = -self.spacing[axis], -self.origin[axis]
        matrix[3, 3] = 1
        return matrix

    def measure(self, label: str) -> float:
        """Volume of one class of the label map, ml."""
        count = int((self.labels == LABELS.index(label)).sum())
        return count * float(np.prod(self.spacing)) / 1000


@dataclass
class _Work:
    """What the stages of building share."""

    grid: Grid
    anatomy: Anatomy
    wide: float
    volume: Array
    labels: NDArray[np.uint8]
    box: Box = (slice(0), slice(0), slice(0))
    wall: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    floor: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def part(self) -> Grid:
        """The grid of the box around the lungs."""
        return self.grid.within(self.box)


def thorax(seed: int, *, size: int = 128, planted: Mapping[str, float] | None = None) -> Thorax:
    """Build a thorax.

    Args:
        seed: of the anatomy; findings do not change it.
        size: voxels along z and x, over 416 mm; along y they are 1.6 times longer.
        planted: findings and their sizes, see `Thorax.findings`; None plants nothing.

    Raises:
        ValueError: an unknown finding, or a size that does not fit.
    """
    wanted = dict(planted or {})
    for name in wanted:
        if name not in FINDINGS:
            raise ValueError(f"unknown finding '{name}'. {did_you_mean(name, FINDINGS)}")
    anatomy = draw_anatomy(np.random.default_rng(derive(seed, "anatomy")))
    step = FIELD / size
    grid = Grid.covering(
        (-72, DEPTH[0], -FIELD / 2), (FIELD - 72, DEPTH[1], FIELD / 2), (step, 1.6 * step, step)
    )
    wide = step * 1.1
    volume, share = chest.body(grid, anatomy, wide)
    work = _Work(grid, anatomy, wide, volume, (share > 0.5).astype(np.uint8))
    _abdomen(work, np.random.default_rng(derive(seed, "abdomen")))
    _bones(work, np.random.default_rng(derive(seed, "bones")))
    _chest_contents(work, seed, wanted)
    return Thorax(work.volume, work.labels, grid.spacing, grid.origin, wanted, anatomy)


def _bones(work: _Work, rng: np.random.Generator) -> None:
    share, extra = skeleton(work.grid, work.anatomy, rng, work.wide)
    work.volume *= 1 - share
    work.volume += chest.MUSCLE * share
    work.volume += extra
    work.labels[share > 0.5] = LABELS.index("bone")


def _abdomen(work: _Work, rng: np.random.Generator) -> None:
    """Gas in the stomach and the bowel; the rest of the abdomen is soft tissue."""
    a = work.anatomy
    gas: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    if a.bubble:
        top = a.height + a.dome_gap + 10 + 0.5 * a.bubble
        gas.append(((top, -5.0, 0.45 * a.half_width), (0.5 * a.bubble, 0.9 * a.bubble, a.bubble)))
    for _ in range(rng.integers(0, 5)):
        place = (a.height + rng.uniform(55, 110), rng.uniform(-60, 10), rng.uniform(-10, 110))
        gas.append((place, tuple(rng.uniform(6, 17, 3))))
    for center, radii in gas:
        box, distance = ellipsoid(work.grid, center, radii)
        paint(work.volume[box], cover(distance, work.wide), chest.AIR)


def _chest_contents(work: _Work, seed: int, wanted: Mapping[str, float]) -> None:
    a, grid, wide = work.anatomy, work.grid, work.wide
    work.box = grid.box(
        (-8, -a.half_depth - 8, -a.half_width - 8),
        (a.height + 80, a.half_depth + 8, a.half_width + 8),
    )
    part = work.part
    space, work.wall, work.floor = chest.cavity(part, a, wide)
    heart = _heart(work, wanted.get("cardiomegaly", a.heart))
    heart *= space
    central = chest.midline(part, a, wide)
    np.maximum(central, heart, out=central)
    _great_vessels(work, central)
    central *= -1
    central += 1
    lung = space * central
    volume, labels = work.volume[work.box], work.labels[work.box]
    paint(volume, np.maximum(space - lung, 0), chest.BLOOD)
    labels[lung > 0.5] = LABELS.index("lung")
    labels[(heart > 0.5) & (lung <= 0.5)] = LABELS.index("heart")
    _lungs(work, lung, seed, wanted)
    _airways(work)


def _heart(work: _Work, ratio: float) -> Array:
    """Share of voxels inside the heart, its width `ratio` of the chest's."""
    heart = np.zeros(work.part.shape, dtype=np.float32)
    for place, radii, turned in mediastinum.heart(work.anatomy, ratio):
        box, distance = ellipsoid(work.part, place, radii, turned)
        np.maximum(heart[box], cover(distance, work.wide), out=heart[box])
    return heart


def _great_vessels(work: _Work, central: Array) -> None:
    """The aorta with its knob, the caval vein and the pulmonary arteries."""
    for tube in mediastinum.great_vessels(work.anatomy, work.part):
        box, distance = capsules(work.part, tube.line, tube.radii)
        np.maximum(central[box], cover(distance, work.wide), out=central[box])


def _lungs(work: _Work, lung: Array, seed: int, wanted: Mapping[str, float]) -> None:
    """Air, vessels and findings; each finding takes its room from those that come after it."""
    part, wide, wall = work.part, work.wide, work.wall
    rng = np.random.default_rng(derive(seed, "findings"))
    air = np.full(lung.shape, work.anatomy.lung, dtype=np.float32)
    paint(air, _vessel_share(work, seed), chest.BLOOD)
    free = lung.copy()
    inside = np.maximum(lung, 1e-3)
    if "effusion" in wanted:
        room = _side(work, free, wanted["effusion"], rng)
        share = findings.effusion(part, room, wall, wanted["effusion"], wide)
        paint(air, np.minimum(share / inside, 1), 12.0)
        _mark(work, free, share, "effusion")
    if "pneumothorax" in wanted:
        room = _side(work, free, wanted["pneumothorax"], rng)
        share, line = findings.pneumothorax(part, room, wall, wanted["pneumothorax"], wide)
        paint(air, room * COLLAPSE, chest.MUSCLE)
        paint(air, np.minimum(share / inside, 1), chest.AIR)
        paint(air, line, chest.MUSCLE)
        _mark(work, free, share, "pneumothorax")
    if "consolidation" in wanted:
        room = _side(work, free, wanted["consolidation"], rng)
        center = findings.seat(part, room, lung, wall, 12, rng)
        share = findings.consolidation(part, room, center, wanted["consolidation"], rng)
        paint(air, share * rng.uniform(0.75, 0.95), 30.0)
        _mark(work, free, share, "consolidation")
    if "nodule" in wanted:
        for center in findings.seats(part, free, lung, wall, wanted["nodule"], rng):
            share = findings.nodule(part, center, wanted["nodule"], wide)
            paint(air, share, 110.0)
            _mark(work, free, share, "nodule")
    paint(work.volume[work.box], lung, air)


def _side(work: _Work, free: Array, volume: float, rng: np.random.Generator) -> Array:
    """What is free of one lung, chosen at random from those with room for a volume (ml)."""
    x = work.part.coordinates()[2]
    rooms = [free * (x < 0), free * (x >= 0)]
    first = int(rng.integers(2))
    sizes = [float(room.sum()) * work.grid.voxel / 1000 for room in rooms]
    fits = FULLEST * sizes[first] > volume or sizes[first] >= sizes[1 - first]
    return rooms[first if fits else 1 - first]


def _mark(work: _Work, free: Array, share: Array, label: str) -> None:
    """Label the voxels of which more than half is inside, and take them from what is free."""
    work.labels[work.box][share > 0.5] = LABELS.index(label)
    np.clip(free - share, 0, 1, out=free)


def _vessel_share(work: _Work, seed: int) -> Array:
    """Share of voxels inside lung vessels: arteries and veins branching from both hila."""
    rng = np.random.default_rng(derive(seed, "vessels"))
    tree = mediastinum.lung_vessels(work.anatomy, rng)
    points, volumes = scatter(tree, rng, work.grid.spacing[0])
    return splat(work.part, points, volumes)


def _airways(work: _Work) -> None:
    """Trachea and main bronchi."""
    for tube in mediastinum.airways(work.anatomy):
        box, distance = capsules(work.grid, tube.line, tube.radii)
        paint(work.volume[box], cover(distance, work.wide), chest.AIR)
