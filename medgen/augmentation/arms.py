"""The arms of the experiment, and which studies each of them trains on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medgen.augmentation.verdict import (
    AUGMENTED,
    DUPLICATES,
    MIXED,
    PRETRAINED,
    RANDOMIZED,
    REAL,
    SYNTHETIC,
    WITHOUT_RATIO,
)
from medgen.data.splits import take_patients
from medgen.protocols import Dataset
from medgen.rng import derive
from medgen.settings import ProveSettings


@dataclass(frozen=True)
class Arm:
    """One training run of the experiment.

    Args:
        fraction: share of the training patients.
        name: which of the arms.
        ratio: synthetic studies for every real one (the count to reach, for duplicates).
        repeat: which of the paired repeats.
    """

    fraction: float
    name: str
    ratio: float
    repeat: int

    @property
    def file(self) -> str:
        """Name of the file that keeps its result."""
        words = self.name.replace(" + ", "-and-").replace(" ", "-")
        return f"{words}_fraction-{self.fraction:g}_ratio-{self.ratio:g}_repeat-{self.repeat}.json"


def plan(settings: ProveSettings) -> list[Arm]:
    """Every training run, repeat by repeat, so that an interrupted experiment is still paired."""
    ratios = sorted({ratio for ratio in settings.ratios if ratio > 0})
    arms: list[Arm] = []
    for fraction in settings.fractions:
        for repeat in range(settings.repeats):
            arms.append(Arm(fraction, REAL, 0.0, repeat))
            for ratio in ratios:
                arms.append(Arm(fraction, DUPLICATES, ratio, repeat))
                arms.append(Arm(fraction, MIXED, ratio, repeat))
                if "randomized" in settings.controls:
                    arms.append(Arm(fraction, RANDOMIZED, ratio, repeat))
            if ratios:
                arms.append(Arm(fraction, SYNTHETIC, ratios[-1], repeat))
            if "augmentation" in settings.controls:
                arms.append(Arm(fraction, AUGMENTED, 0.0, repeat))
            if "pretraining" in settings.controls and ratios:
                arms.append(Arm(fraction, PRETRAINED, ratios[-1], repeat))
    return arms


def training_indices(
    arm: Arm, patients_of: Dataset, synthetic: int, seed: int
) -> tuple[list[int], list[int]]:
    """Which real and which synthetic studies an arm trains on; a repeated index is a duplicate.

    All arms of a repeat hold the same real studies, and the mixed and the synthetic-only arm draw
    the synthetic ones from the same order. The randomized arm names, in place of synthetic studies,
    real ones whose masks it paints anew, as many as the mixed arm has synthetic ones.

    Args:
        arm: which run.
        patients_of: the real training split.
        synthetic: number of synthetic studies at hand.
        seed: of the experiment.
    """
    taken = take_patients(
        patients_of, arm.fraction, seed=derive(seed, "patients", arm.repeat) % 2**32
    )
    chosen = list(taken.indices)
    extra = round(arm.ratio * len(chosen))
    order = np.random.default_rng(derive(seed, "synthetic", arm.fraction, arm.repeat))
    drawn = [int(i) for i in order.permutation(synthetic)]
    if arm.name in WITHOUT_RATIO:
        return chosen, []
    if arm.name in (MIXED, PRETRAINED):
        return chosen, drawn[:extra]
    if arm.name == SYNTHETIC:
        return [], drawn[: len(chosen) + extra]
    if arm.name == RANDOMIZED:
        masks = np.random.default_rng(derive(seed, "masks", arm.fraction, arm.repeat))
        order = [chosen[int(i)] for i in masks.permutation(len(chosen))]
        return chosen, [order[i % len(order)] for i in range(len(drawn[:extra]))]
    spare = np.random.default_rng(derive(seed, "duplicates", arm.fraction, arm.repeat))
    whole, rest = divmod(extra, len(chosen))
    part = [chosen[int(i)] for i in spare.permutation(len(chosen))[:rest]]
    return chosen * (1 + whole) + part, []
