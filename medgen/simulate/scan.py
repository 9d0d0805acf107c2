"""Simulated CT scans: a thorax with lobes, chambers, trees and organs, as a scanner shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medgen.rng import derive
from medgen.simulate import abdomen, chest, findings, mediastinum
from medgen.simulate.anatomy import Anatomy, draw_anatomy
from medgen.simulate.hounsfield import LEFT, RIGHT, draw_hu
from medgen.simulate.scanner import Protocol, acquire
from medgen.simulate.shapes import Array, Box, Grid, capsules, cover, ellipsoid, paint, splat
from medgen.simulate.skeleton import skeleton
from medgen.simulate.structures import CODE
from medgen.simulate.vessels import Tree, scatter

LOW, HIGH = (-72.0, -170.0, -208.0), (344.0, 190.0, 208.0)
"""Corners (z y x, mm) of the field of view that a whole scan has."""
FINDINGS = ("consolidation", "effusion", "nodule", "pneumothorax")
"""What can be planted, each with its volume in ml."""
DENSEST = 650.0
"""HU above soft tissue that the densest bone tends to: voxels are wider than a cortex."""
WALL = 3.5
"""Thickness (mm) of atria and of the right ventricle."""


@dataclass(frozen=True)
class Scan:
    """A CT scan and what is known about it.

    Args:
        volume: HU, whole numbers, (z y x): z downwards, y backwards, x to the patient's left.
        labels: indices of `structures.STRUCTURES`, (z y x).
        grid: where the voxels lie.
        sizes: ml of each finding that was planted.
        hu: what every tissue was painted with.
        anatomy: the numbers that it was built from.
    """

    volume: NDArray[np.int16]
    labels: NDArray[np.uint8]
    grid: Grid
    sizes: Mapping[str, float]
    hu: Mapping[str, float]
    anatomy: Anatomy

    def measure(self, *names: str) -> float:
        """Volume (ml) of structures of the label map."""
        count = np.isin(self.labels, [CODE[name] for name in names]).sum()
        return float(count) * self.grid.voxel / 1000


@dataclass
class _Work:
    """What the stages of building share."""

    grid: Grid
    anatomy: Anatomy
    wide: float
    hu: dict[str, float]
    seed: int
    volume: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    labels: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    bone: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    def rng(self, stage: str) -> np.random.Generator:
        return np.random.default_rng(derive(self.seed, stage))

    def put(self, name: str, box: Box, share: Array, value: float | Array) -> None:
        """Fill `share` of the voxels of a box with HU, and label those more than half full."""
        paint(self.volume[box], share, value)
        self.labels[box][share > 0.5] = CODE[name]

    def texture(self, box: Box, scale: float, stage: str) -> Array:
        """Smooth noise of unit variance and a stated correlation length (mm) in a box."""
        shape = self.grid.within(box).shape
        noise = self.rng(stage).standard_normal(shape, dtype=np.float32)
        noise = gaussian_filter(noise, [scale / s for s in self.grid.spacing], mode="wrap")
        return noise / max(float(noise.std()), 1e-6)


def scan(
    seed: int,
    *,
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
    planted: Mapping[str, float] | None = None,
    protocol: Protocol | None = None,
    take: int = 0,
) -> Scan:
    """Scan a simulated adult, arms raised, from the neck to the kidneys.

    Args:
        seed: of the anatomy and the places of findings.
        spacing: mm between voxels along z, y, x.
        planted: ml of each finding, of `FINDINGS`; None plants nothing.
        protocol: how it is taken; None is a routine scan without contrast.
        take: another one, another draw of noise.

    Raises:
        ValueError: an unknown finding, or a volume that does not fit.
    """
    wanted, taken = dict(planted or {}), protocol or Protocol()
    unknown = sorted(set(wanted) - set(FINDINGS))
    if unknown:
        raise ValueError(f"unknown finding '{unknown[0]}'. Known: {', '.join(FINDINGS)}.")
    anatomy = draw_anatomy(np.random.default_rng(derive(seed, "anatomy")))
    grid = Grid.covering(LOW, HIGH, spacing)
    hu = draw_hu(np.random.default_rng(derive(seed, "hu", taken.phase)), taken.phase)
    work = _Work(grid, anatomy, 1.1 * float(np.mean(spacing)), hu, seed)
    _trunk(work)
    _contents(work, wanted)
    noise = np.random.default_rng(derive(seed, "noise", take))
    volume = acquire(work.volume, grid.spacing, taken, noise)
    return Scan(volume, work.labels, grid, wanted, hu, anatomy)


def _trunk(work: _Work) -> None:
    """Skin, fat and muscle in air, the scanner's table, and the skeleton."""
    a, wide, hu, grid = work.anatomy, work.wide, work.hu, work.grid
    z, y, x = grid.coordinates()
    whole = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    half_width, half_depth, middle = chest.trunk(a, z)
    outer = chest.superellipse(x, y - middle, half_width, half_depth)
    share = cover(-chest.depth_below(*outer, half_width, half_depth), wide)
    work.volume = np.full(grid.shape, hu["air"], np.float32)
    work.labels = np.zeros(grid.shape, np.uint8)
    _table(work, float((middle + half_depth).max()))
    for side in (-1, 1) if a.breast else ():
        box, part = chest.breast(grid, a, side, wide)
        gland = np.clip(work.texture(box, 7.0, f"breast {side}"), 0, 1)
        work.put("body", box, part, hu["fat"] + (hu["gland"] - hu["fat"]) * gland)
    work.put("body", whole, share, hu["fat"])
    inner = chest.superellipse(x, y - middle, half_width - a.fat, half_depth - a.fat)
    flesh = cover(-chest.depth_below(*inner, half_width - a.fat, half_depth - a.fat), wide)
    planes = np.clip(0.5 - 3 * np.abs(work.texture(whole, 7.0, "planes")), 0, 1)
    paint(work.volume, flesh, hu["muscle"] + (hu["fat"] - hu["muscle"]) * planes)
    bone, extra = skeleton(grid, a, work.rng("bones"), wide, arms=False)
    extra *= 1 + 0.15 * work.texture(whole, 2.0, "spongy")
    work.volume *= 1 - bone
    work.volume += hu["muscle"] * bone + DENSEST * (1 - np.exp(-extra / DENSEST))
    work.labels[bone > 0.5] = CODE["bone"]
    work.bone = bone
    cage = chest.cage_of(a, z)
    canal = np.hypot(x - cage.spine_x, y - cage.spine_y - 24) - 8
    paint(work.volume, cover(canal.astype(np.float32), wide), hu["cord"])


def _table(work: _Work, back: float) -> None:
    """A thin curved shell under the patient."""
    _, y, x = work.grid.coordinates()
    below = np.abs(y - (back + 9 - np.square(x) / 2600)) - 3
    share = cover(np.broadcast_to(below, work.grid.shape).astype(np.float32), work.wide)
    paint(work.volume, share, work.hu["table"])


def _contents(work: _Work, wanted: Mapping[str, float]) -> None:
    """All within the rib cage, and the abdomen below the diaphragm."""
    a, grid, wide, hu = work.anatomy, work.grid, work.wide, work.hu
    box = grid.box(
        (-8, -a.half_depth - 8, -a.half_width - 8), (1e3, a.half_depth + 30, a.half_width + 8)
    )
    part = grid.within(box)
    space, wall, floor = chest.cavity(part, a, wide)
    flesh = 1 - work.bone[box]
    room = abdomen.peritoneum(part, a, floor, wide) * flesh
    space *= flesh
    loops = np.clip(2 * work.texture(box, 8.0, "bowel") + 0.6, 0, 1)
    work.put("body", box, room, hu["fat"] + (hu["bowel"] - hu["fat"]) * loops)
    for organ in abdomen.organs(part, a, room, work.rng("organs"), wide):
        place = _shifted(box, organ.box)
        value = hu[organ.tissue] + 4 * work.texture(place, 4.0, organ.name)
        work.put(organ.name, place, organ.share, value)
    work.put("body", box, space, hu["fat"] + 25 * work.texture(box, 3.0, "mediastinum"))
    central = chest.midline(part, a, wide)
    _heart(work, box, space, central)
    lung = space * (1 - central)
    _vessels(work, box, central, lung)
    lung = space * (1 - central)
    _lungs(work, box, lung, wall, wanted)
    for tube in mediastinum.airways(a):
        for name, grown, value in (("body", 1.6, hu["wall"]), ("airway", 0.0, hu["airway"])):
            near, distance = capsules(grid, tube.line, [r + grown - 1 for r in tube.radii])
            work.put(name, near, cover(distance, wide), value)


def _heart(work: _Work, box: Box, space: Array, central: Array) -> None:
    """Walls and chambers; the right ventricle lies before the left, the left atrium behind."""
    grid, hu, wide = work.grid.within(box), work.hu, work.wide
    main, right, left, outflow = mediastinum.heart(work.anatomy, work.anatomy.heart)
    place, radii, turned = main
    scale = radii[0] / 66
    ventricle = place + np.array([0.0, 12.0, 12.0]) * scale
    size = np.array([54.0, 33.0, 34.0]) * scale
    solids = [
        ("heart_myocardium", "myocardium", *main),
        ("heart_myocardium", "myocardium", *right),
        ("heart_myocardium", "myocardium", *left),
        ("heart_ventricle_right", RIGHT, outflow[0], outflow[1] - WALL, outflow[2]),
        ("heart_ventricle_right", RIGHT, place, radii - WALL, turned),
        ("heart_myocardium", "myocardium", ventricle, size, turned),
        ("heart_ventricle_left", LEFT, ventricle, size - 10 * scale, turned),
        ("heart_atrium_right", RIGHT, right[0], right[1] * 0.94 - WALL, right[2]),
        ("heart_atrium_left", LEFT, left[0], left[1] - WALL, left[2]),
    ]
    for name, tissue, center, radius, turn in solids:
        near, distance = ellipsoid(grid, center, radius, turn)
        share = cover(distance, wide)
        share *= space[near]
        work.put(name, _shifted(box, near), share, hu[tissue])
        np.maximum(central[near], share, out=central[near])


def _vessels(work: _Work, box: Box, central: Array, lung: Array) -> None:
    """The great vessels of the chest, and the lower caval vein and aorta of the abdomen."""
    grid, a = work.grid.within(box), work.anatomy
    h = a.height + a.dome_gap
    z = grid.coordinates()[0]
    before = chest.cage_of(a, z).spine_y[:, 0, 0] - 30
    heights = [1.2 * a.height, h + 90, h + 190]
    down = [(at, float(np.interp(at, z[:, 0, 0], before)), 10.0) for at in heights]
    below = [(h - 16, 4, -24), *((at, y - 2, -18) for at, y, _ in down[1:])]
    tubes = [
        mediastinum.Tube("inferior_vena_cava", below, [10, 10, 9]),
        mediastinum.Tube("aorta", down, [a.aorta - 2, a.aorta - 3, a.aorta - 4]),
        *mediastinum.great_vessels(a, grid),
    ]
    blood = {"pulmonary_artery": RIGHT, "inferior_vena_cava": "inferior_vena_cava"}
    for tube in tubes:
        near, distance = capsules(grid, tube.line, tube.radii)
        share = cover(distance, work.wide)
        np.maximum(central[near], share, out=central[near])
        work.put(tube.name, _shifted(box, near), share, work.hu[blood.get(tube.name, tube.name)])


def _lungs(work: _Work, box: Box, lung: Array, wall: Array, wanted: Mapping[str, float]) -> None:
    """Lobes of air with their trees, and findings, which take their room one after the other."""
    a, hu, wide, grid = work.anatomy, work.hu, work.wide, work.grid.within(box)
    _, y, x = grid.coordinates()
    oblique, level = mediastinum.fissures(a, grid)
    lower, right = oblique > 0, np.broadcast_to(x < 0, grid.shape)
    codes = np.where(lower, CODE["lung_lower_lobe_left"], CODE["lung_upper_lobe_left"])
    upper = np.where(level > 0, CODE["lung_middle_lobe_right"], CODE["lung_upper_lobe_right"])
    codes = np.where(right, np.where(lower, CODE["lung_lower_lobe_right"], upper), codes)
    inside = lung > 0.5
    work.labels[box][inside] = codes[inside]
    air = (a.lung - 18 + 26 * (y / a.half_depth)).astype(np.float32)
    air = air + 22 * work.texture(box, 2.5, "parenchyma") + 10 * work.texture(box, 14.0, "patches")
    np.maximum(air, -985, out=air)
    for sheet, where in ((oblique, np.ones((), bool)), (level, right & ~lower)):
        paint(air, np.maximum(1 - np.abs(sheet) / wide, 0) * where / wide, hu["wall"])
    shares = {}
    for name, tissue in (("artery", RIGHT), ("vein", LEFT)):
        tree = mediastinum.lung_vessels(a, work.rng(name))
        shares[name] = _splatted(tree, grid, work.rng(f"{name} points"))
        paint(air, shares[name], hu[tissue])
    vessel = np.maximum(shares["artery"], shares["vein"])
    work.labels[box][(vessel > 0.5) & inside] = CODE["lung_vessel"]
    _bronchi(work, box, air, inside)
    _findings(work, box, _Lung(lung, wall, vessel, air), wanted)
    paint(work.volume[box], lung, air)


def _bronchi(work: _Work, box: Box, air: Array, inside: NDArray[np.bool_]) -> None:
    """Small airways: a wall around a lumen."""
    grid = work.grid.within(box)
    lumen = mediastinum.bronchi(work.anatomy, work.rng("bronchi"))
    outer = Tree(lumen.start, lumen.end, lumen.radius * 1.15 + 0.5)
    paint(air, _splatted(outer, grid, work.rng("bronchus walls")), work.hu["wall"])
    hollow = _splatted(lumen, grid, work.rng("bronchus lumens"))
    paint(air, hollow, work.hu["airway"])
    work.labels[box][(hollow > 0.5) & inside] = CODE["airway"]


@dataclass
class _Lung:
    """What findings are planted in: shares that are lung and vessel, depth under the wall, HU."""

    share: Array
    wall: Array
    vessel: Array
    air: Array


def _findings(work: _Work, box: Box, lung: _Lung, wanted: Mapping[str, float]) -> None:
    grid, wide, rng, hu = work.grid.within(box), work.wide, work.rng("findings"), work.hu
    free, inside = lung.share.copy(), np.maximum(lung.share, 1e-3)
    x = grid.coordinates()[2]
    side = x < 0 if rng.random() < 0.5 else x >= 0

    def mark(name: str, share: Array, value: float) -> None:
        paint(lung.air, np.minimum(share / inside, 1), value)
        work.labels[box][share > 0.5] = CODE[name]
        np.clip(free - share, 0, 1, out=free)

    if "effusion" in wanted:
        volume = wanted["effusion"]
        mark(
            "effusion",
            supine_effusion(grid, free * side, lung.wall, volume, wide),
            hu["effusion"],
        )
    if "pneumothorax" in wanted:
        volume = wanted["pneumothorax"]
        mark("pneumothorax", supine_air(grid, free * ~side, lung.wall, volume, wide), hu["air"])
    if "consolidation" in wanted:
        center = _seat(grid, free * side, lung.wall, 14.0, rng)
        volume = wanted["consolidation"]
        share = findings.consolidation(grid, free * side, center, volume, rng)
        mark("consolidation", share, hu["consolidation"])
    if "nodule" in wanted:
        radius = (wanted["nodule"] * 3000 / (4 * np.pi)) ** (1 / 3)
        center = _seat(grid, free * (lung.vessel < 0.2), lung.wall, radius + 4, rng)
        mark("nodule", lump(grid, free, center, wanted["nodule"], wide, rng), hu["nodule"])


def supine_effusion(grid: Grid, room: Array, wall: Array, volume: float, wide: float) -> Array:
    """Share of voxels filled by free fluid of a stated volume (ml): it layers behind."""
    z, y, _ = grid.coordinates()
    field = -(y + 0.12 * z + 14 * np.exp(-np.maximum(wall, 0) / 9))
    return room * cover(field - findings.fill(field, room, volume, grid.voxel), wide)


def supine_air(grid: Grid, room: Array, wall: Array, volume: float, wide: float) -> Array:
    """Share of voxels filled by free air of a stated volume (ml): it gathers in front."""
    z, y, _ = grid.coordinates()
    field = y + 0.1 * z + 0.5 * wall
    return room * cover(field - findings.fill(field, room, volume, grid.voxel), wide)


def lump(
    grid: Grid,
    room: Array,
    center: NDArray[np.float64],
    volume: float,
    wide: float,
    rng: np.random.Generator,
) -> Array:
    """Share of voxels inside a lobulated nodule of a stated volume (ml).

    Args:
        grid: where.
        room: share of every voxel that it may fill.
        center: z, y, x in mm.
        volume: ml.
        wide: mm over which its surface is blurred.
        rng: draws its shape.
    """
    radius = (volume * 3000 / (4 * np.pi)) ** (1 / 3)
    reach = 1.6 * radius + 2 * max(grid.spacing)
    box = grid.box(center - reach, center + reach)
    offsets = [c - m for c, m in zip(grid.within(box).coordinates(), center, strict=True)]
    stretch = np.exp(rng.normal(0, 0.08, 3))
    field = np.sqrt(sum(np.square(o * s) for o, s in zip(offsets, stretch, strict=True)))
    for _ in range(4):
        wave = rng.normal(0, 1.6 / max(radius, 1.0), 3)
        phase = rng.uniform(0, 2 * np.pi)
        along = sum(o * w for o, w in zip(offsets, wave, strict=True))
        field = field + 0.06 * radius * np.sin(along + phase)
    field = field.astype(np.float32)
    share = np.zeros(grid.shape, np.float32)
    level = findings.fill(field, room[box], volume, grid.voxel)
    share[box] = room[box] * cover(field - level, wide)
    return share


def _seat(
    grid: Grid, room: Array, wall: Array, margin: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A random place (mm) in a room, `margin` mm under the chest wall where that can be."""
    z = grid.coordinates()[0]
    fit = (room > 0.9) & (wall > margin) & (z > 20)
    free = np.flatnonzero(fit if fit.any() else room > 0.5 * float(room.max()))
    chosen = np.unravel_index(int(rng.choice(free)), grid.shape)
    return np.array([grid.axis(axis)[i] for axis, i in enumerate(chosen)])


def _splatted(tree: Tree, grid: Grid, rng: np.random.Generator) -> Array:
    points, volumes = scatter(tree, rng, max(grid.spacing[0], 1.5))
    return splat(grid, points, volumes)


def _shifted(outer: Box, inner: Box) -> Box:
    """A box within a box, as one of the whole grid."""
    moved = [slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True)]
    return (moved[0], moved[1], moved[2])
