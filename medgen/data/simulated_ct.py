"""Simulated chest CT as a dataset: volumes in HU with label maps; no download, known truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.data.geometry import to_unit
from medgen.data.simulated import name_problems, owners_of, studies_of
from medgen.errors import RecipeError
from medgen.registry import register
from medgen.rng import derive
from medgen.simulate.hounsfield import PHASES
from medgen.simulate.scan import FINDINGS, Scan, scan
from medgen.simulate.scanner import KERNELS, Protocol
from medgen.simulate.structures import CODE, PARENTS, grouped
from medgen.types import Batch, Provenance, Schema

Voxel = TypeVar("Voxel", np.int16, np.uint8)
CLASSES = ("body", "bone", "lung", "heart", "effusion", "nodule")
SIZES = {
    "consolidation": (60.0, 300.0),
    "effusion": (150.0, 800.0),
    "nodule": (0.6, 16.0),
    "pneumothorax": (200.0, 800.0),
}
"""Range of drawn volumes of findings, ml."""
PREVALENCE = 0.4
LEAST_VOXELS = 4
"""A nodule fills at least so many voxels, or its label map could not show it."""
DOSES = (1.0, 12.0)
"""Range of drawn doses, mGy of CTDIvol."""
FINEST = 1.0
AIR = -1024


@dataclass(frozen=True)
class _Made:
    """A study as it is kept: axes to the right, front and head."""

    volume: NDArray[np.int16]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    sizes: dict[str, float]


@register("data", "simulated_ct")
class SimulatedCt:
    """Chest CT volumes of simulated adults in HU, with label maps, findings and their volumes.

    Study i depends on the seed, i and the other arguments but the count. Studies of one patient
    share anatomy and findings; they differ in spacing, kernel, dose, contrast phase and place.
    Scalars are the volume in ml of every finding (0 where it is absent) and the dose in mGy. What
    lies beyond a scan (416 mm along x and z) is air. Volumes are made when first read, then kept in
    memory.

    Args:
        count: number of studies.
        size: voxels to the right, front and head.
        spacing: mm between voxels along these axes; those in a slice are alike.
        vary: how far spacing in and between slices may deviate, as a share; 0 fixes it.
        findings: of `FINDINGS`, what may be present, any subset in one patient.
        classes: of the label map, structures of `simulate.structures`; the background is added.
            Voxels of others belong to the smallest one named that holds them.
        phases: of the contrast medium, of `hounsfield.PHASES`, one a study by chance.
        window: HU that become -1 and 1.
        seed: of everything.

    Raises:
        RecipeError: a name is unknown, or the numbers make no dataset.
    """

    def __init__(
        self,
        count: int = 200,
        size: tuple[int, int, int] = (48, 48, 48),
        spacing: tuple[float, float, float] = (7.5, 7.5, 7.5),
        vary: float = 0.15,
        findings: tuple[str, ...] = ("effusion", "nodule"),
        classes: tuple[str, ...] = CLASSES,
        phases: tuple[str, ...] = ("native",),
        window: tuple[float, float] = (-1000.0, 400.0),
        seed: int = 0,
    ) -> None:
        _check(count, size, spacing, vary, window)
        _check_names(findings, classes, phases)
        self.spacing, self.vary, self.phases, self.seed = spacing, vary, phases, seed
        named = tuple(name for name in classes if name != "background")
        self._values = grouped(named)
        self.schema = Schema(
            size=tuple(size),
            findings=tuple(findings),
            mask_classes=("background", *named),
            scalars=(*(f"{name}_volume" for name in findings), "dose"),
            spacing=() if vary else tuple(spacing),
            window=window,
        )
        self._owners = owners_of(seed, count)
        self.studies = studies_of(self._owners, seed)
        self._made: dict[int, _Made] = {}

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        """Study `index` as a batch of one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"study {index} of a dataset of {len(self)}")
        index %= len(self)
        if index not in self._made:
            self._made[index] = self._make(index)
        made = self._made[index]
        present = [int(made.sizes[name] > 0) for name in self.schema.findings]
        told = [*(made.sizes[name] for name in self.schema.findings), made.sizes["dose"]]
        image = to_unit(made.volume, self.schema.window or (-1, 1))
        steps = np.linalg.norm(made.affine[:3, :3], axis=0)
        return Batch(
            image=torch.from_numpy(image)[None, None],
            mask=torch.from_numpy(made.mask.astype(np.int64))[None],
            label=torch.tensor([present], dtype=torch.int64).reshape(1, -1),
            scalar=torch.tensor([told], dtype=torch.float32),
            spacing=torch.from_numpy(steps)[None].float(),
            affine=torch.from_numpy(made.affine)[None].float(),
            provenance=(
                Provenance(
                    id=self.studies[index].id, synthetic=False, source=f"simulated_ct:{self.seed}"
                ),
            ),
        )

    def _make(self, index: int) -> _Made:
        owner = self._owners[index]
        rng = np.random.default_rng(derive(self.seed, "scan", index))
        within, between = 1 + self.vary * rng.uniform(-1, 1, 2)
        x, _, z = self.spacing
        spacing = (float(z * between), float(x * within), float(x * within))
        low, high = np.log(DOSES)
        protocol = Protocol(
            kernel=list(KERNELS)[int(rng.integers(len(KERNELS)))],
            dose=float(np.exp(rng.uniform(low, high))),
            phase=self.phases[int(rng.integers(len(self.phases)))],
        )
        made = scan(
            derive(self.seed, "patient", owner),
            spacing=spacing,
            planted=self._planted(owner),
            protocol=protocol,
            take=index,
        )
        volume, codes, affine = framed(made, self.schema.size, rng.uniform(-8, 8, 3))
        sizes = {name: _seen(made, codes, name) for name in self.schema.findings}
        return _Made(volume, self._values[codes], affine, sizes | {"dose": protocol.dose})

    def _planted(self, owner: int) -> dict[str, float]:
        """Volumes of a patient's findings; those left out change no other."""
        rng = np.random.default_rng(derive(self.seed, "findings", owner))
        coarsest = float(np.prod(self.spacing)) * (1 + self.vary) ** 3 / 1000
        planted = {}
        for name in FINDINGS:
            draw, place = rng.random(2)
            low, high = SIZES[name]
            if name == "nodule":
                low = max(low, LEAST_VOXELS * coarsest)
                high = max(high, 2 * low)
            if name in self.schema.findings and draw < PREVALENCE:
                planted[name] = float(np.exp(np.log(low) + place * np.log(high / low)))
        return planted


def framed(
    made: Scan, size: tuple[int, ...], offset: NDArray[np.float64]
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """A part of a scan around the middle of the chest, axes to the right, front and head.

    Args:
        made: the scan.
        size: voxels along these axes; where the scan ends, air follows.
        offset: mm along z, y, x from the middle of the chest.

    Returns:
        HU, structures, and the affine (4 4), voxel index -> RAS+ mm.
    """
    grid = made.grid
    middle = np.array([0.5 * made.anatomy.height + 12, 0.0, 0.0]) + offset
    steps, shape = np.array(grid.spacing), np.array(size)[::-1]
    first = np.rint((middle - np.array(grid.origin)) / steps - (shape - 1) / 2).astype(int)
    low, high = np.maximum(first, 0), np.minimum(first + shape, grid.shape)
    source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
    volume, codes = np.full(shape, AIR, np.int16), np.zeros(shape, np.uint8)
    volume[target], codes[target] = made.volume[source], made.labels[source]
    last = np.array(grid.origin) + (first + shape - 1) * steps
    affine = np.diag([*steps[::-1], 1.0])
    affine[:3, 3] = -last[::-1]
    return _to_right_front_head(volume), _to_right_front_head(codes), affine


def _to_right_front_head(volume: NDArray[Voxel]) -> NDArray[Voxel]:
    return np.ascontiguousarray(volume[::-1, ::-1, ::-1].transpose(2, 1, 0))


def _seen(made: Scan, codes: NDArray[np.uint8], name: str) -> float:
    """Volume (ml) of a finding as far as the field of view holds it."""
    whole = int((made.labels == CODE[name]).sum())
    if not whole:
        return 0.0
    return made.sizes[name] * int((codes == CODE[name]).sum()) / whole


def _check(
    count: int,
    size: tuple[int, ...],
    spacing: tuple[float, ...],
    vary: float,
    window: tuple[float, float],
) -> None:
    problems = []
    if count < 1:
        problems.append(f"simulated_ct: count must be at least 1, got {count}")
    if min(size) < 8 or max(size) > 512:
        problems.append(f"simulated_ct: size must be three numbers from 8 to 512, got {list(size)}")
    if not 0 <= vary < 1:
        problems.append(f"simulated_ct: vary must lie from 0 to below 1, got {vary:g}")
    elif min(spacing) * (1 - vary) < FINEST or max(spacing) > 20:
        problems.append(
            f"simulated_ct: spacing must stay between {FINEST:g} and 20 mm, got {list(spacing)} "
            f"varied by {vary:g}"
        )
    if spacing[0] != spacing[1]:
        problems.append(f"simulated_ct: the first two spacings lie in a slice and must be alike, "
                        f"got {list(spacing)}")  # fmt: skip
    if not window[0] < window[1]:
        problems.append(f"simulated_ct: window must be a lower and a higher HU, got {window}")
    if problems:
        raise RecipeError(problems)


def _check_names(
    findings: tuple[str, ...], classes: tuple[str, ...], phases: tuple[str, ...]
) -> None:
    what = "simulated_ct"
    problems = name_problems(what, findings, FINDINGS)
    problems += name_problems(what, classes, ("background", *PARENTS), kind="structure")
    problems += name_problems(what, phases, PHASES, kind="phase")
    if not phases:
        problems.append(f"{what}: name at least one phase of {', '.join(PHASES)}")
    if problems:
        raise RecipeError(problems)
