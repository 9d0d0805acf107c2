"""Does the synthetic data help? Arms of equal steps, paired repeats, intervals and a verdict.

The arms are real studies, real studies repeated to the count of the mixed arm (without this control
a mere change of count reads as a gain: Pink and Sykes 2026, PMLR 318:954), real plus synthetic
studies, and synthetic studies alone; on request real studies under strong classical augmentation,
pre-training on synthetic studies, and real studies plus images painted from their masks alone.
Validation and test studies are real in every arm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medgen.augmentation.arms import Arm, plan, training_indices
from medgen.augmentation.scores import oracle_threshold
from medgen.augmentation.sweep import sweep
from medgen.augmentation.tasks import task_for
from medgen.augmentation.trial import Bench, Part, Trial, finished, plain, write_json
from medgen.augmentation.verdict import MIXED, REAL, compare, verdicts
from medgen.data.splits import by_split, load
from medgen.errors import DataError, OutputError
from medgen.protocols import Dataset
from medgen.rng import derive
from medgen.settings import ProveSettings
from medgen.types import Batch, Study

VALIDATION = 200
"""Real validation studies that select a consumer's state, at most."""
EASY = 0.95
"""Share of a network's Dice that a mere threshold must not reach."""

Progress = Callable[[int, int, str], None]
"""Called with (arms done, arms in all, what is being done)."""


@dataclass(frozen=True)
class ProveResult:
    """What the experiment found; `to_dict` is the content of `prove.json`.

    Args:
        task: "classification", "segmentation" or "regression".
        metric: "AUROC", "Dice" or "R2", higher is better.
        rows: one a training run: its arm, value on the test split, steps, seconds and counts.
        arms: one an arm, fraction and ratio: its mean value, and its cost in seconds over all
            repeats. What the generator cost is not in it.
        comparisons: paired differences with interval, p-value and verdict; those against
            duplicates are primary.
        verdicts: by fraction, over the primary comparisons.
        settings: those of the experiment.
        generator_saw: studies and patients that the generator was trained on.
        test: studies and patients of the test split.
        threshold: of segmentation, the Dice of the best threshold a class, chosen on the test
            studies themselves; None for other tasks.
        warnings: what a reader must know before trusting it.
    """

    task: str
    metric: str
    rows: list[dict[str, Any]]
    arms: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    verdicts: dict[str, str]
    settings: dict[str, Any]
    generator_saw: dict[str, int]
    test: dict[str, int]
    threshold: float | None
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return plain({**asdict(self), "higher_is_better": True})


def prove(
    real: Dataset,
    synthetic: Dataset,
    settings: ProveSettings,
    *,
    out: Path,
    generator_saw: Mapping[str, int],
    workers: int = 1,
    progress: Progress | None = None,
) -> ProveResult:
    """Run what is left of the experiment and judge it; finished arms under `out` are not run again.

    Args:
        real: studies of all three splits.
        synthetic: studies with synthetic provenance; they only ever train.
        settings: task, fractions, ratios, repeats, steps.
        out: folder that gets `prove.json` and one file an arm under `prove/`.
        generator_saw: "studies" and "patients" that trained the generator.
        workers: processes that train arms side by side; a script that asks for more than one
            must start from `if __name__ == "__main__":`.
        progress: called as arms begin, or end where several run at once.

    Raises:
        DataError: a study is in the wrong place, or lacks what the task needs.
        OutputError: `out` holds arms of another experiment, or a worker was killed.
    """
    _check_alike(real, synthetic, settings.task)
    train, test = by_split(real, "train"), by_split(real, "test")
    bench = _bench(train, by_split(real, "validation"), test, synthetic, settings, out)
    trials = [
        Trial(arm, *training_indices(arm, train, len(bench.synthetic), settings.seed))
        for arm in plan(settings)
    ]

    def report(done: int, arm: Arm) -> None:
        if progress is not None:
            words = f"{arm.name}, fraction {arm.fraction:g}, repeat {arm.repeat}"
            progress(done, len(trials), words)

    sweep(bench, trials, workers, report)
    results = [result for t in trials if (result := finished(bench, t.arm)) is not None]
    patients = _counts(train.studies)["patients"]
    comparisons = compare(
        bench.task,
        bench.test.targets,
        test.studies,
        results,
        seed=settings.seed,
        warning=_ahead(settings.fractions, patients, generator_saw.get("patients", 0)),
    )
    threshold = None
    if settings.task == "segmentation":
        classes = len(real.schema.mask_classes)
        threshold = oracle_threshold(bench.test.images, bench.test.targets, classes)
    rows = [{key: row[key] for key in row if key not in ("scores", "digest")} for row in results]
    result = ProveResult(
        task=bench.task.name,
        metric=bench.task.metric,
        rows=rows,
        arms=_arms(rows),
        comparisons=comparisons,
        verdicts=verdicts(comparisons),
        settings=asdict(settings),
        generator_saw=dict(generator_saw),
        test=_counts(test.studies),
        threshold=threshold,
        warnings=_warnings(settings, results, threshold),
    )
    write_json(out / "prove.json", result.to_dict())
    if progress is not None:
        progress(len(trials), len(trials), "done")
    return result


def _check_alike(real: Dataset, synthetic: Dataset, task: str) -> None:
    """Refuse datasets that differ in what the task needs."""
    needed = {"findings": "classification", "exclusive": "classification"}
    needed |= {"mask_classes": "segmentation", "scalars": "regression"}
    for name in ("size", "channels", *needed):
        ours, theirs = getattr(real.schema, name), getattr(synthetic.schema, name)
        if ours != theirs and needed.get(name, task) == task:
            raise DataError(
                f"real and synthetic studies differ in '{name}': {ours} and {theirs}. "
                "Prove with the dataset that the generator was trained on, read alike."
            )


def _bench(
    train: Dataset,
    held: Dataset,
    test: Dataset,
    synthetic: Dataset,
    settings: ProveSettings,
    out: Path,
) -> Bench:
    """Everything that the arms share, read and checked."""
    task = task_for(settings.task, train.schema, settings.consumer)
    task.network()  # a network that cannot be had is told before anything is read
    order = np.random.default_rng(derive(settings.seed, "validation")).permutation(len(held))
    real = [load(train), load(held, sorted(int(i) for i in order[:VALIDATION])), load(test)]
    drawn = load(synthetic)
    check_provenance(real, drawn)
    parts = [Part.of(batch, task) for batch in [*real, drawn]]
    masks = real[0].mask if "randomized" in settings.controls else None
    if "randomized" in settings.controls and masks is None:
        raise DataError("the control 'randomized' paints masks, and the real studies carry none")
    folder = out / "prove"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to '{folder}': {error}. Choose another --out.") from error
    content = [settings.task, settings.consumer, settings.steps, settings.batch, settings.seed]
    digest = _digest(content, parts)
    return Bench(train.schema, settings, *parts, masks=masks, folder=folder, digest=digest)


def check_provenance(real: Sequence[Batch], synthetic: Batch) -> None:
    """Refuse a synthetic study among the real ones, and a real one among the synthetic ones.

    Raises:
        DataError: names the study.
    """
    for batch in real:
        for origin in batch.provenance or ():
            if origin.synthetic:
                raise DataError(
                    f"study '{origin.id}' of the real dataset is synthetic; synthetic studies may "
                    "only train. Remove it from the real dataset."
                )
    if synthetic.provenance is None:
        raise DataError("the synthetic studies carry no provenance; read them with their manifest")
    for origin in synthetic.provenance:
        if not origin.synthetic:
            raise DataError(f"study '{origin.id}' of the synthetic dataset is not synthetic")


def _counts(studies: Sequence[Study]) -> dict[str, int]:
    return {"studies": len(studies), "patients": len({study.patient for study in studies})}


def _ahead(fractions: Sequence[float], patients: int, saw: int) -> dict[float, str]:
    """By fraction, a warning where the generator learned from more patients than the consumer."""
    return {
        fraction: f"the generator learned from {saw} patients, the consumer from {used}; "
        "the gain may come from those patients"
        for fraction in fractions
        if saw > (used := max(2, round(fraction * patients)))
    }


def _arms(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What every arm reached and cost, over its repeats."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["fraction"], row["arm"], row["ratio"]), []).append(row)
    return [
        {
            "fraction": fraction,
            "arm": arm,
            "ratio": ratio,
            "repeats": len(group),
            "value": float(np.mean([np.nan if r["value"] is None else r["value"] for r in group])),
            "seconds": round(sum(row["seconds"] for row in group), 2),
        }
        for (fraction, arm, ratio), group in groups.items()
    ]


def _warnings(
    settings: ProveSettings, results: Sequence[Mapping[str, Any]], threshold: float | None
) -> list[str]:
    notes: list[str] = []
    learned = [row["value"] for row in results if row["arm"] == REAL and row["value"] is not None]
    if threshold is not None and learned and threshold > EASY * max(learned):
        notes.append(
            f"one threshold a structure reaches a Dice of {threshold:.3f}, a network "
            f"{max(learned):.3f}: the task is nearly solved without learning, and says little "
            "about synthetic studies"
        )
    for row in results:
        wanted = round(row["ratio"] * row["real"])
        if row["arm"] == MIXED and row["synthetic"] < wanted:
            notes.append(
                f"ratio {row['ratio']:g} at fraction {row['fraction']:g} asks for {wanted} "
                f"synthetic studies; all {row['synthetic']} at hand were used"
            )
    if settings.repeats < 3:
        notes.append(f"{settings.repeats} repeat(s): at least 3 are needed to be sure")
    return list(dict.fromkeys(notes))


def _digest(settings: Sequence[object], parts: Sequence[Part]) -> str:
    """Digest of settings and pixels, so that arms of other data are never taken for these."""
    digest = hashlib.sha256(json.dumps(list(settings)).encode())
    for part in parts:
        for tensor in (part.images, part.targets):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
