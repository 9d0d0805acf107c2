"""Simulated echo clips with their electrocardiograms as a dataset: no download, known truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.data.simulated import name_problems, owners_of, studies_of
from medgen.errors import RecipeError
from medgen.registry import register
from medgen.rng import derive
from medgen.simulate.ecg import FINDINGS, LEADS
from medgen.simulate.echo import (
    ECG_RATE,
    MASK_CLASSES,
    SHORTEST,
    draw_degradation,
    draw_heart,
    simulate,
)
from medgen.simulate.tissue import VIEWS, View
from medgen.simulate.ultrasound import Probe
from medgen.types import Batch, Provenance, Schema

ALL_FINDINGS = (*VIEWS, *FINDINGS)
"""What can be present: the view, of which there is exactly one, and what ails the patient."""
SCALARS = (
    "ejection_fraction",
    "heart_rate",
    "end_diastolic_volume",
    "end_systolic_volume",
    "end_diastolic_frame",
    "end_systolic_frame",
    "age",
    "sex",
)
"""What can be told: percent, bpm, mL, mL, index, index, years, 0 female and 1 male."""


@dataclass(frozen=True)
class _Made:
    """A clip in bytes, as it is kept."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    ecg: NDArray[np.float32]
    present: frozenset[str]
    scalars: dict[str, float]


@register("data", "simulated_echo")
class SimulatedEcho:
    """Apical echo clips of simulated adults with the 12-lead ECG over the same time.

    Study i depends on the seed, i and the other arguments but the count. Studies of one patient
    share heart, findings and the ECG's shape; they differ in rhythm, view, the place of the probe,
    speckle and what spoils the picture. Clips are made when first read, then kept in memory as
    bytes.

    Args:
        count: number of studies.
        size: frames, rows and columns of a clip.
        frames_per_second: of a clip.
        findings: of `ALL_FINDINGS`, what may be present. Views that are named are taken in turn by
            chance; if none is, all are four-chamber views.
        scalars: what is told of a study, of `SCALARS`, in this order.
        degradation: how much haze, clutter, shadow, dropout and noise there may be, from 0 to 1.
        rho: how far the ECG tells the ejection fraction, from 0 (not at all) to 1.
        seed: of everything.

    Raises:
        RecipeError: a finding or scalar is unknown, or the numbers make no dataset.
    """

    def __init__(
        self,
        count: int = 500,
        size: tuple[int, int, int] = (32, 112, 112),
        frames_per_second: float = 16.0,
        findings: tuple[str, ...] = ALL_FINDINGS,
        scalars: tuple[str, ...] = SCALARS,
        degradation: float = 0.3,
        rho: float = 0.0,
        seed: int = 0,
    ) -> None:
        _check(count, size, frames_per_second, findings, scalars)
        _check_shares(degradation=degradation, rho=rho)
        self.seed, self.frames_per_second = seed, frames_per_second
        self.degradation, self.rho = degradation, rho
        self._probe = Probe(size[1], size[2])
        self._views: tuple[View, ...] = (
            tuple(view for view in VIEWS if view in findings) or VIEWS[:1]
        )
        self.schema = Schema(
            size=tuple(size),
            findings=tuple(findings),
            mask_classes=MASK_CLASSES,
            scalars=tuple(scalars),
            spacing=(1 / frames_per_second, self._probe.pixel, self._probe.pixel),
            time=True,
            leads=LEADS,
            ecg_rate=ECG_RATE,
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
        present = [int(name in made.present) for name in self.schema.findings]
        told = [made.scalars[name] for name in self.schema.scalars]
        image = torch.from_numpy(made.image).float() / 127.5 - 1
        return Batch(
            image=image[None, None],
            mask=torch.from_numpy(made.mask.astype(np.int64))[None],
            ecg=torch.from_numpy(made.ecg.copy())[None],
            label=torch.tensor([present], dtype=torch.int64).reshape(1, -1),
            scalar=torch.tensor([told], dtype=torch.float32),
            spacing=torch.tensor([self.schema.spacing], dtype=torch.float32),
            provenance=(
                Provenance(
                    id=self.studies[index].id, synthetic=False, source=f"simulated_echo:{self.seed}"
                ),
            ),
        )

    def _make(self, index: int) -> _Made:
        owner = np.random.default_rng(derive(self.seed, "heart", self._owners[index]))
        ailments = [name for name in FINDINGS if name in self.schema.findings]
        patient, heart = draw_heart(owner, ailments, rho=self.rho)
        rng = np.random.default_rng(derive(self.seed, "scan", index))
        view = self._views[int(rng.integers(len(self._views)))]
        clip = simulate(
            patient,
            heart,
            self._probe,
            rng,
            frames=self.schema.size[0],
            frames_per_second=self.frames_per_second,
            view=view,
            degradation=draw_degradation(self.degradation, rng),
        )
        return _Made(
            image=np.rint((clip.image + 1) * 127.5).astype(np.uint8),
            mask=clip.mask,
            ecg=clip.ecg.signal,
            present=frozenset((view, *patient.findings)),
            scalars={
                "ejection_fraction": clip.ejection_fraction,
                "heart_rate": clip.ecg.heart_rate,
                "end_diastolic_volume": clip.end_diastolic_volume,
                "end_systolic_volume": clip.end_systolic_volume,
                "end_diastolic_frame": clip.end_diastolic_frame,
                "end_systolic_frame": clip.end_systolic_frame,
                "age": patient.age,
                "sex": patient.sex,
            },
        )


def _check(
    count: int,
    size: tuple[int, int, int],
    frames_per_second: float,
    findings: tuple[str, ...],
    scalars: tuple[str, ...],
) -> None:
    what = "simulated_echo"
    problems = name_problems(what, findings, ALL_FINDINGS)
    problems += name_problems(what, scalars, SCALARS, kind="scalar")
    if count < 1:
        problems.append(f"{what}: count must be at least 1, got {count}")
    if len(size) != 3 or min(size[1:]) < 16 or max(size) > 1024:
        problems.append(
            f"{what}: size must be frames, rows and columns, pictures from 16 to 1024 pixels, got "
            f"{list(size)}"
        )
    elif not 5 <= frames_per_second <= 200:
        problems.append(
            f"{what}: frames_per_second must lie between 5 and 200, got {frames_per_second:g}"
        )
    elif size[0] < SHORTEST * frames_per_second:
        problems.append(
            f"{what}: {size[0]} frames at {frames_per_second:g} a second do not hold a systole; "
            f"set frames_per_second to {size[0] / SHORTEST:.0f} or less, or ask for more frames"
        )
    if problems:
        raise RecipeError(problems)


def _check_shares(**shares: float) -> None:
    problems = [
        f"simulated_echo: {name} must lie between 0 and 1, got {value:g}"
        for name, value in shares.items()
        if not 0 <= value <= 1
    ]
    if problems:
        raise RecipeError(problems)
