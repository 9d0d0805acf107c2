"""Simulated 12-lead electrocardiograms as a dataset: known findings, rate and intervals."""

from __future__ import annotations

import numpy as np
import torch

from medgen.data.simulated import name_problems, owners_of, studies_of
from medgen.errors import RecipeError
from medgen.registry import register
from medgen.rng import derive
from medgen.simulate.ecg import (
    FINDINGS,
    LARGEST,
    LEADS,
    Electrocardiogram,
    Noise,
    Patient,
    draw_patient,
    draw_rhythm,
    record,
)
from medgen.types import Batch, Provenance, Schema

SCALARS = ("heart_rate", "age", "sex", "qrs_duration", "qt_interval")
"""What can be asked for: bpm, years, 0 female and 1 male, ms, ms."""


@register("data", "simulated_ecg")
class SimulatedEcg:
    """Electrocardiograms as images: twelve channels along time, -1 to 1 for -3 to 3 mV.

    Study i depends on the seed, i, the length, the rate and the findings alone. Studies of one
    patient share age, sex, findings and the shape of the waves, and differ in rhythm and noise.

    Args:
        count: number of studies.
        size: samples of a recording.
        rate: samples a second.
        findings: what may be present, any subset in one patient; others never are.
        scalars: what is told of a study, of `SCALARS`, in this order.
        noise: how much of the usual baseline wander, hum and muscle; 0 for none.
        seed: of everything.

    Raises:
        RecipeError: a finding or scalar is unknown, or the numbers make no dataset.
    """

    def __init__(
        self,
        count: int = 1000,
        size: tuple[int] = (1024,),
        rate: float = 100.0,
        findings: tuple[str, ...] = FINDINGS,
        scalars: tuple[str, ...] = SCALARS,
        noise: float = 1.0,
        seed: int = 0,
    ) -> None:
        _check(count, size, rate, findings, scalars, noise)
        self.seed, self.rate, self.noise = seed, rate, Noise().times(noise)
        self.schema = Schema(
            size=tuple(size),
            channels=len(LEADS),
            findings=tuple(findings),
            scalars=tuple(scalars),
            spacing=(1 / rate,),
            window=(-LARGEST, LARGEST),
            time=True,
            leads=LEADS,
        )
        self._owners = owners_of(seed, count)
        self.studies = studies_of(self._owners, seed)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        """Study `index` as a batch of one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"study {index} of a dataset of {len(self)}")
        index %= len(self)
        patient, trace = self._record(index)
        known = {
            "heart_rate": trace.heart_rate,
            "age": patient.age,
            "sex": patient.sex,
            "qrs_duration": trace.qrs_duration,
            "qt_interval": trace.qt_interval,
        }
        present = [int(name in trace.findings) for name in self.schema.findings]
        return Batch(
            image=torch.from_numpy(trace.signal / np.float32(LARGEST))[None],
            label=torch.tensor([present], dtype=torch.int64).reshape(1, -1),
            scalar=torch.tensor(
                [[known[name] for name in self.schema.scalars]], dtype=torch.float32
            ),
            spacing=torch.tensor([self.schema.spacing], dtype=torch.float32),
            provenance=(
                Provenance(
                    id=self.studies[index].id, synthetic=False, source=f"simulated_ecg:{self.seed}"
                ),
            ),
        )

    def _record(self, index: int) -> tuple[Patient, Electrocardiogram]:
        owner = np.random.default_rng(derive(self.seed, "ecg patient", self._owners[index]))
        patient = draw_patient(owner, self.schema.findings)
        rng = np.random.default_rng(derive(self.seed, "recording", index))
        samples = self.schema.size[0]
        rhythm = draw_rhythm(patient, samples / self.rate, rng)
        return patient, record(patient, rhythm, samples, self.rate, rng, noise=self.noise)


def _check(
    count: int,
    size: tuple[int],
    rate: float,
    findings: tuple[str, ...],
    scalars: tuple[str, ...],
    noise: float,
) -> None:
    what = "simulated_ecg"
    problems = name_problems(what, findings, FINDINGS)
    problems += name_problems(what, scalars, SCALARS, kind="scalar")
    if count < 1:
        problems.append(f"{what}: count must be at least 1, got {count}")
    if not 50 <= rate <= 2000:
        problems.append(f"{what}: rate must lie between 50 and 2000 samples a second, got {rate:g}")
    elif len(size) != 1 or not 1 <= size[0] / rate <= 3600:
        problems.append(
            f"{what}: size must be one number of samples that last from 1 s to an hour at "
            f"{rate:g} samples a second, got {list(size)}"
        )
    if not 0 <= noise <= 4:
        problems.append(f"{what}: noise must lie between 0 and 4, got {noise:g}")
    if problems:
        raise RecipeError(problems)
