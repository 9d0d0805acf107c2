"""Simulated chest radiographs as a dataset: no download, known truth, the embedded default."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from medgen.data.splits import assign_splits
from medgen.errors import RecipeError, did_you_mean
from medgen.registry import register
from medgen.rng import derive
from medgen.simulate.anatomy import FINDINGS, draw_findings
from medgen.simulate.ct import Thorax, thorax
from medgen.simulate.radiograph import MASK_CLASSES, Radiograph, radiograph
from medgen.simulate.reports import report
from medgen.types import Batch, Provenance, Schema, Study

BLOCK = 6
"""Studies that are divided into patients together."""
DIVISIONS = ((1, 2, 3), (3, 1, 2), (2, 2, 2), (3, 3), (1, 1, 1, 3), (2, 1, 2, 1), (1, 1, 2, 2))
"""Ways to divide a block into patients of one to three studies."""


@register("data", "simulated")
class Simulated:
    """Frontal chest radiographs of simulated adults: findings, masks, reports, heart size.

    Study i depends on the seed, i, the size and the findings alone, not on the count or on what was
    read before; only its split depends on who else is there. Studies of one patient share anatomy
    and findings, and differ in position and exposure. A patient's studies are made when one of them
    is first read, then kept in memory.

    Args:
        count: number of studies.
        size: rows and columns of an image.
        findings: what may be present, any subset in one patient; others never are.
        seed: of everything.
        text: studies carry a report of their findings.

    Raises:
        RecipeError: a finding is unknown, or count or size make no dataset.
    """

    def __init__(
        self,
        count: int = 1000,
        size: tuple[int, int] = (64, 64),
        findings: tuple[str, ...] = FINDINGS,
        seed: int = 0,
        text: bool = False,
    ) -> None:
        _check(count, size, findings)
        self.seed = seed
        self.schema = Schema(
            size=tuple(size),
            findings=tuple(findings),
            mask_classes=MASK_CLASSES,
            scalars=("cardiothoracic_ratio",),
            text=text,
        )
        self._owners = owners_of(seed, count)
        self.studies = studies_of(self._owners, seed)
        self._made: dict[int, Radiograph] = {}

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        """Study `index` as a batch of one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"study {index} of a dataset of {len(self)}")
        index %= len(self)
        if index not in self._made:
            self._make(self._owners[index])
        shot = self._made[index]
        present = [int(name in shot.findings) for name in self.schema.findings]
        return Batch(
            image=torch.from_numpy(shot.image.copy())[None, None],
            mask=torch.from_numpy(shot.mask.astype(np.int64))[None],
            label=torch.tensor([present], dtype=torch.int64).reshape(1, -1),
            scalar=torch.tensor([[shot.cardiothoracic_ratio]], dtype=torch.float32),
            text=(self._report(index),) if self.schema.text else None,
            spacing=torch.tensor([shot.spacing], dtype=torch.float32),
            provenance=(
                Provenance(
                    id=self.studies[index].id, synthetic=False, source=f"simulated:{self.seed}"
                ),
            ),
        )

    def _report(self, index: int) -> str:
        rng = np.random.default_rng(derive(self.seed, "report", index))
        return report(self._made[index].findings, rng)

    def _make(self, owner: int) -> None:
        """Make all studies of a patient, since most of the work is the patient."""
        patient = self._thorax(owner)
        height, width = self.schema.size
        for index in range(owner, min(owner + BLOCK, len(self))):
            if self._owners[index] == owner:
                rng = np.random.default_rng(derive(self.seed, "exposure", index))
                self._made[index] = radiograph(patient, (height, width), rng)

    def _thorax(self, owner: int) -> Thorax:
        rng = np.random.default_rng(derive(self.seed, "findings", owner))
        planted = draw_findings(rng, self.schema.findings)
        voxels = min(max(96, *self.schema.size), 224)
        return thorax(derive(self.seed, "patient", owner), size=voxels, planted=planted)


def owners_of(seed: int, count: int) -> list[int]:
    """The first study of every study's patient."""
    owners: list[int] = []
    for start in range(0, count, BLOCK):
        sizes = DIVISIONS[derive(seed, "block", start) % len(DIVISIONS)]
        first = start
        for size in sizes:
            owners += [first] * size
            first += size
    return owners[:count]


def studies_of(owners: Sequence[int], seed: int) -> tuple[Study, ...]:
    """A table of studies whose patients are named by their first one, split by patient."""
    patients = [f"p{owner:06d}" for owner in owners]
    splits = assign_splits(patients, seed=seed)
    return tuple(
        Study(id=f"s{i:06d}", patient=patient, split=split)
        for i, (patient, split) in enumerate(zip(patients, splits, strict=True))
    )


def name_problems(
    what: str, names: Sequence[str], known: Sequence[str], *, kind: str = "finding"
) -> list[str]:
    """What is wrong with names that a recipe chose: unknown ones, and repeated ones."""
    problems = [
        f"{what}: unknown {kind} '{name}'. {did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]
    if len(set(names)) != len(names):
        problems.append(f"{what}: a {kind} is named twice in {list(names)}")
    return problems


def _check(count: int, size: tuple[int, int], findings: tuple[str, ...]) -> None:
    problems = name_problems("simulated data", findings, FINDINGS)
    if count < 1:
        problems.append(f"simulated data: count must be at least 1, got {count}")
    if len(size) != 2 or min(size) < 16 or max(size) > 1024:
        problems.append(
            f"simulated data: size must be two numbers from 16 to 1024, got {list(size)}"
        )
    if problems:
        raise RecipeError(problems)
