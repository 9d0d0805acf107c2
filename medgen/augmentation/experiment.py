"""Does the synthetic data help? Arms of equal steps, paired repeats, intervals and a verdict.

The arms are real studies, real studies repeated to the count of the mixed arm (without this control
a mere change of count reads as a gain: Pink and Sykes 2026, PMLR 318:954), real plus synthetic
studies, and synthetic studies alone; on request real studies under strong classical augmentation,
and pre-training on synthetic studies. Validation and test studies are real in every arm.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.augmentation.arms import Arm, plan, training_indices
from medgen.augmentation.tasks import Consumer, Task, task_for, train_consumer
from medgen.augmentation.verdict import AUGMENTED, MIXED, PRETRAINED, REAL, compare, verdicts
from medgen.data.splits import by_split, load
from medgen.disk import write_bytes
from medgen.errors import DataError, OutputError
from medgen.protocols import Dataset
from medgen.rng import derive
from medgen.settings import ProveSettings
from medgen.types import Batch, Study

VALIDATION = 200
"""Real validation studies that select a consumer's state, at most."""

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
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return plain({**asdict(self), "higher_is_better": True})


@dataclass(frozen=True)
class _Bench:
    """Everything that the arms share."""

    task: Task
    settings: ProveSettings
    train: Dataset
    real: Batch
    validation: Batch
    test: Batch
    test_studies: Sequence[Study]
    synthetic: Batch
    folder: Path
    digest: str


def prove(
    real: Dataset,
    synthetic: Dataset,
    settings: ProveSettings,
    *,
    out: Path,
    generator_saw: Mapping[str, int],
    progress: Progress | None = None,
) -> ProveResult:
    """Run what is left of the experiment and judge it; finished arms under `out` are not run again.

    Args:
        real: studies of all three splits.
        synthetic: studies with synthetic provenance; they only ever train.
        settings: task, fractions, ratios, repeats, steps.
        out: folder that gets `prove.json` and one file an arm under `prove/`.
        generator_saw: "studies" and "patients" that trained the generator.
        progress: called before every arm.

    Raises:
        DataError: a study is in the wrong place, or lacks what the task needs.
        OutputError: `out` holds arms of another experiment.
    """
    bench = _bench(real, synthetic, settings, out)
    arms = plan(settings)
    results: list[dict[str, Any]] = []
    for done, arm in enumerate(arms):
        if progress is not None:
            progress(done, len(arms), f"{arm.name}, fraction {arm.fraction:g}, repeat {arm.repeat}")
        results.append(_finished(bench, arm) or _run(bench, arm))
    comparisons = compare(
        bench.task,
        bench.task.targets(bench.test),
        bench.test_studies,
        results,
        seed=settings.seed,
        warning=_ahead(bench, generator_saw),
    )
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
        test=_counts(bench.test_studies),
        warnings=_warnings(bench, results),
    )
    _write(out / "prove.json", result.to_dict())
    if progress is not None:
        progress(len(arms), len(arms), "done")
    return result


def _bench(real: Dataset, synthetic: Dataset, settings: ProveSettings, out: Path) -> _Bench:
    for name in ("size", "channels", "findings", "exclusive", "mask_classes", "scalars"):
        ours, theirs = getattr(real.schema, name), getattr(synthetic.schema, name)
        needed = {"findings": "classification", "exclusive": "classification"}
        needed |= {"mask_classes": "segmentation", "scalars": "regression"}
        if ours != theirs and needed.get(name, settings.task) == settings.task:
            raise DataError(
                f"real and synthetic studies differ in '{name}': {ours} and {theirs}. "
                "Prove with the dataset that the generator was trained on, read alike."
            )
    task = task_for(settings.task, real.schema)
    train, test = by_split(real, "train"), by_split(real, "test")
    held = by_split(real, "validation")
    order = np.random.default_rng(derive(settings.seed, "validation")).permutation(len(held))
    batches = [load(train), load(held, sorted(int(i) for i in order[:VALIDATION])), load(test)]
    drawn = load(synthetic)
    check_provenance(batches, drawn)
    content = [settings.task, settings.steps, settings.batch, settings.seed]
    digest = _digest(content, [(b.image, task.targets(b)) for b in [*batches, drawn]])
    folder = out / "prove"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to '{folder}': {error}. Choose another --out.") from error
    return _Bench(
        task,
        settings,
        train,
        *batches,
        test_studies=test.studies,
        synthetic=drawn,
        folder=folder,
        digest=digest,
    )


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


def _finished(bench: _Bench, arm: Arm) -> dict[str, Any] | None:
    """The stored result of an arm, or None."""
    path = bench.folder / arm.file
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise OutputError(f"'{path}' is damaged: {error}. Remove it and run again.") from error
    if result.get("digest") != bench.digest:
        raise OutputError(
            f"'{path}' is of another experiment (other studies, steps, batch or seed). "
            f"Remove the folder '{bench.folder}' or choose another --out."
        )
    return result


def _run(bench: _Bench, arm: Arm) -> dict[str, Any]:
    """Train one consumer, score it on the test split, keep the result."""
    started = time.perf_counter()
    task, settings = bench.task, bench.settings
    chosen, drawn = training_indices(arm, bench.train, len(bench.synthetic), settings.seed)
    consumer = _train(bench, arm, chosen, drawn)
    truth = task.targets(bench.test)
    scores = consumer.scores(_images(bench.test), truth)
    result: dict[str, Any] = {
        "fraction": arm.fraction,
        "arm": arm.name,
        "ratio": arm.ratio,
        "repeat": arm.repeat,
        "value": float(task.value(scores, truth)[0]),
        "further": task.further(scores, truth),
        "steps": settings.steps,
        "seconds": round(time.perf_counter() - started, 2),
        "real": len(set(chosen)),
        "synthetic": len(drawn),
        "count": len(chosen) + len(drawn),
        "selected_step": consumer.selected,
        "validation": consumer.validation,
        "on_synthetic": _on_synthetic(bench, consumer) if arm.name == REAL else None,
        "digest": bench.digest,
        "scores": scores.tolist(),
    }
    _write(bench.folder / arm.file, result)
    return result


def _train(bench: _Bench, arm: Arm, chosen: list[int], drawn: list[int]) -> Consumer:
    """A consumer trained on real and synthetic studies, together or one after the other."""
    task, settings = bench.task, bench.settings
    real = [bench.real.select(chosen)] if chosen else []
    synthetic = [bench.synthetic.select(drawn)] if drawn else []
    apart = arm.name == PRETRAINED and synthetic
    stages = [synthetic, real] if apart else [real + synthetic]
    consumer: Consumer | None = None
    for place, parts in enumerate(stages):
        last = place + 1 == len(stages)
        spent = settings.steps // len(stages) * place
        consumer = train_consumer(
            task,
            torch.cat([_images(part) for part in parts]),
            torch.cat([task.targets(part) for part in parts]),
            steps=settings.steps - spent if last else settings.steps // len(stages),
            batch=settings.batch,
            seed=derive(settings.seed, "consumer", arm.fraction, arm.repeat),
            validation=(_images(bench.validation), task.targets(bench.validation)),
            augment=task.strong if arm.name == AUGMENTED else None,
            start=None if consumer is None else consumer.network,
        )
    assert consumer is not None
    return consumer


def _on_synthetic(bench: _Bench, consumer: Consumer) -> float:
    """The metric on synthetic studies of a consumer that saw real ones only (TRTS)."""
    truth = bench.task.targets(bench.synthetic)
    return float(bench.task.value(consumer.scores(_images(bench.synthetic), truth), truth)[0])


def _images(batch: Batch) -> Tensor:
    if batch.image is None:
        raise DataError("expected studies with images, got conditions only")
    return batch.image


def _counts(studies: Sequence[Study]) -> dict[str, int]:
    return {"studies": len(studies), "patients": len({study.patient for study in studies})}


def _ahead(bench: _Bench, generator_saw: Mapping[str, int]) -> dict[float, str]:
    """By fraction, a warning where the generator learned from more patients than the consumer."""
    patients = _counts(bench.train.studies)["patients"]
    saw = generator_saw.get("patients", 0)
    return {
        fraction: f"the generator learned from {saw} patients, the consumer from {used}; "
        "the gain may come from those patients"
        for fraction in bench.settings.fractions
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


def _warnings(bench: _Bench, results: Sequence[Mapping[str, Any]]) -> list[str]:
    notes: list[str] = []
    for row in results:
        wanted = round(row["ratio"] * row["real"])
        if row["arm"] == MIXED and row["synthetic"] < wanted:
            notes.append(
                f"ratio {row['ratio']:g} at fraction {row['fraction']:g} asks for {wanted} "
                f"synthetic studies; all {row['synthetic']} at hand were used"
            )
    if bench.settings.repeats < 3:
        notes.append(f"{bench.settings.repeats} repeat(s): at least 3 are needed to be sure")
    return list(dict.fromkeys(notes))


def _digest(settings: Sequence[object], content: Sequence[tuple[Tensor | None, Tensor]]) -> str:
    """Digest of settings and pixels, so that arms of other data are never taken for these."""
    digest = hashlib.sha256(json.dumps(list(settings)).encode())
    for tensors in content:
        for tensor in tensors:
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """The same value for strict JSON: a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON so that the file is either whole or absent."""
    write_bytes(path, json.dumps(plain(value), allow_nan=False).encode())
