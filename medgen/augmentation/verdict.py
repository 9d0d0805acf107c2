"""From the arms' scores to paired differences, intervals and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medgen.augmentation.intervals import (
    Difference,
    holm,
    holm_levels,
    paired_difference,
    patient_weights,
)
from medgen.augmentation.tasks import Task
from medgen.rng import derive
from medgen.types import Estimate, Study

REAL, DUPLICATES, MIXED, SYNTHETIC = "real", "real x k", "real + synthetic", "synthetic only"
AUGMENTED, PRETRAINED = "real + augmentation", "synthetic then real"
RANDOMIZED = "real + randomized"
WITHOUT_RATIO = (REAL, AUGMENTED)
"""Arms that no synthetic study enters."""
PRIMARY = (MIXED, DUPLICATES)
"""The comparison that verdicts rest on."""
LEVEL = 0.05
DRAWS = 2000
METHOD = "paired: bootstrap over test patients, Student t over repeats, {draws} draws"

Array = NDArray[np.float64]


def compare(
    task: Task,
    truth: Tensor,
    studies: Sequence[Study],
    results: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    warning: Mapping[float, str],
) -> list[dict[str, Any]]:
    """Paired differences of arms, each with interval, p-value, verdict and what it could have seen.

    At every fraction and ratio the mixed arm is held against the duplicates (the primary
    comparison), against real alone, against classical augmentation and against images painted from
    masks alone; these are held against the duplicates, and synthetic alone, pre-training and
    augmentation against real alone. The ratios of a fraction are
    several tries at one question: a verdict other than "no evidence" needs a p-value below 0.05
    after Holm's adjustment over them. "estimate" holds the plain 95 % interval, "holm" the wider
    one that goes with the adjusted p-value, "detectable" the smallest difference that would have
    been found in four of five such experiments.

    Args:
        task: gives the metric.
        truth: targets of the test studies.
        studies: the test studies.
        results: one a training run, with "scores" on the test studies.
        seed: of the experiment.
        warning: by fraction, what a reader must know.
    """
    patients = [study.patient for study in studies]
    weights = patient_weights(patients, DRAWS, seed=derive(seed, "test patients"))
    table = _Table(task, truth, results, weights)
    ran = {result["arm"] for result in results}
    comparisons: list[dict[str, Any]] = []
    for fraction in dict.fromkeys(result["fraction"] for result in results):
        ratios = sorted({r["ratio"] for r in results if r["fraction"] == fraction} - {0.0})
        for arm, versus, tried in [
            (MIXED, DUPLICATES, ratios),
            (MIXED, REAL, ratios),
            (MIXED, AUGMENTED, ratios),
            (MIXED, RANDOMIZED, ratios),
            (RANDOMIZED, DUPLICATES, ratios),
            (SYNTHETIC, REAL, ratios[-1:]),
            (PRETRAINED, REAL, ratios[-1:]),
            (AUGMENTED, REAL, [0.0]),
        ]:
            if not {arm, versus} <= ran:
                continue
            family = [table.difference(fraction, arm, versus, ratio, seed) for ratio in tried]
            for ratio, found in zip(tried, judge(family), strict=True):
                estimate = Estimate(
                    **found.pop("interval"),
                    n=len(set(patients)),
                    higher_is_better=True,
                    unit=task.metric,
                    method=METHOD.format(draws=DRAWS),
                    warning=warning.get(fraction, ""),
                )
                comparisons.append(
                    {
                        "fraction": fraction,
                        "arm": arm,
                        "versus": versus,
                        "ratio": ratio,
                        "primary": (arm, versus) == PRIMARY,
                        "estimate": asdict(estimate),
                        **found,
                        "power": _power(found["detectable"], estimate, table.repeats),
                    }
                )
    return comparisons


def judge(family: Sequence[Difference]) -> list[dict[str, Any]]:
    """What each of several differences says, the others being tries at the same question.

    Returns:
        For each its plain "interval", "p", "p_holm", the "holm" interval, "verdict" ("helps",
        "hurts" or "no evidence") and the "detectable" difference at the level of the first test.
    """
    p = [difference.p for difference in family]
    judged: list[dict[str, Any]] = []
    for difference, adjusted, level in zip(family, holm(p), holm_levels(p, LEVEL), strict=True):
        low, high = difference.interval()
        wide_low, wide_high = difference.interval(level)
        verdict = "no evidence"
        if adjusted < LEVEL and not wide_low <= 0 <= wide_high:
            verdict = "helps" if difference.value > 0 else "hurts"
        judged.append(
            {
                "interval": {"value": difference.value, "low": low, "high": high},
                "p": difference.p,
                "p_holm": adjusted,
                "holm": {"low": wide_low, "high": wide_high, "level": level},
                "detectable": difference.detectable(1 - LEVEL / len(family)),
                "verdict": verdict,
            }
        )
    return judged


def _power(detectable: float, estimate: Estimate, repeats: int) -> str:
    """What an experiment of this size could have seen, in a sentence."""
    size = f"{estimate.n} test patients and {repeats} repeat{'s' * (repeats != 1)}"
    if not isfinite(detectable):
        return f"With {size} it cannot be said which difference would be seen."
    return (
        f"With {size}, a difference in {estimate.unit} under {detectable:.2g} "
        "would be missed more than one time in five."
    )


def verdicts(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """One verdict a fraction: "helps" if any ratio does, else "hurts" if any does."""
    found: dict[str, set[str]] = {}
    for comparison in comparisons:
        if comparison["primary"]:
            found.setdefault(f"{comparison['fraction']:g}", set()).add(comparison["verdict"])
    order = ("helps", "hurts", "no evidence")
    return {key: next(word for word in order if word in words) for key, words in found.items()}


class _Table:
    """Values of every arm, on the test set and under every draw, worked out once."""

    def __init__(
        self, task: Task, truth: Tensor, results: Sequence[Mapping[str, Any]], weights: Array
    ) -> None:
        self.value: dict[tuple[float, str, float, int], float] = {}
        self.draws: dict[tuple[float, str, float, int], Array] = {}
        for result in results:
            key = (result["fraction"], result["arm"], result["ratio"], result["repeat"])
            scores = np.array(result["scores"], dtype=np.float64)
            self.value[key] = float(task.value(scores, truth)[0])
            self.draws[key] = task.value(scores, truth, weights)
        self.repeats = 1 + max(result["repeat"] for result in results)

    def difference(
        self, fraction: float, arm: str, versus: str, ratio: float, seed: int
    ) -> Difference:
        """The paired difference of two arms; an arm without synthetic studies has no ratio."""
        mine = [(fraction, arm, ratio, r) for r in range(self.repeats)]
        other = 0.0 if versus in WITHOUT_RATIO else ratio
        theirs = [(fraction, versus, other, r) for r in range(self.repeats)]
        pairs = list(zip(mine, theirs, strict=True))
        return paired_difference(
            np.array([self.value[a] - self.value[b] for a, b in pairs]),
            np.stack([self.draws[a] - self.draws[b] for a, b in pairs]),
            seed=derive(seed, "repeats", fraction, arm, versus, ratio),
        )
