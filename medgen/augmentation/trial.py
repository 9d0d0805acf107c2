"""One arm of the experiment: a consumer is trained, scored on the test split, its result kept."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.augmentation.arms import Arm
from medgen.augmentation.tasks import Consumer, Task, task_for, train_consumer
from medgen.augmentation.verdict import AUGMENTED, PRETRAINED, RANDOMIZED, REAL
from medgen.disk import write_bytes
from medgen.errors import DataError, OutputError
from medgen.rng import derive
from medgen.settings import ProveSettings
from medgen.simulate.randomize import randomize
from medgen.types import Batch, Schema


@dataclass(frozen=True)
class Part:
    """Studies as a consumer sees them.

    Args:
        images: (b c h w) in [-1, 1].
        targets: what is to be predicted.
    """

    images: Tensor
    targets: Tensor

    @classmethod
    def of(cls, batch: Batch, task: Task) -> Part:
        """The studies of a batch.

        Raises:
            DataError: they carry no images or no targets.
        """
        if batch.image is None:
            raise DataError("expected studies with images, got conditions only")
        return cls(batch.image, task.targets(batch))

    @classmethod
    def joined(cls, parts: Sequence[Part]) -> Part:
        """The studies of several parts, one after the other."""
        return cls(
            torch.cat([part.images for part in parts]), torch.cat([part.targets for part in parts])
        )

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int]) -> Part:
        """The studies at `indices`, in that order."""
        return Part(self.images[list(indices)], self.targets[list(indices)])


@dataclass(frozen=True)
class Bench:
    """Everything that the arms share.

    Args:
        schema: of the studies.
        settings: of the experiment.
        real: training studies.
        validation: real studies that select a consumer's state.
        test: real studies that every consumer is scored on.
        synthetic: studies that only ever train.
        masks: of the real training studies, (n h w); None where no arm paints images from them.
        folder: gets one file an arm.
        digest: of settings and studies, kept in every result.
    """

    schema: Schema
    settings: ProveSettings
    real: Part
    validation: Part
    test: Part
    synthetic: Part
    masks: Tensor | None
    folder: Path
    digest: str

    @cached_property
    def task(self) -> Task:
        """What the consumers have to do."""
        return task_for(self.settings.task, self.schema, self.settings.consumer)


@dataclass(frozen=True)
class Trial:
    """An arm and the studies that it trains on.

    Args:
        arm: which run.
        real: indices of real training studies; a repeated one is a duplicate.
        synthetic: indices of synthetic studies; for the randomized arm, of real training studies
            whose masks are painted.
    """

    arm: Arm
    real: list[int]
    synthetic: list[int]


def finished(bench: Bench, arm: Arm) -> dict[str, Any] | None:
    """The stored result of an arm, or None.

    Raises:
        OutputError: it is damaged, or of another experiment.
    """
    path = bench.folder / arm.file
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise OutputError(f"'{path}' is damaged: {error}. Remove it and run again.") from error
    if result.get("digest") != bench.digest:
        raise OutputError(
            f"'{path}' is of another experiment (other studies, consumer, steps, batch or seed). "
            f"Remove the folder '{bench.folder}' or choose another --out."
        )
    return result


def run(bench: Bench, trial: Trial) -> None:
    """Train one consumer, score it on the test split, write the result."""
    started = time.perf_counter()
    task, arm = bench.task, trial.arm
    consumer = _train(bench, trial)
    truth = bench.test.targets
    scores = consumer.scores(bench.test.images, truth)
    result = {
        "fraction": arm.fraction,
        "arm": arm.name,
        "ratio": arm.ratio,
        "repeat": arm.repeat,
        "value": float(task.value(scores, truth)[0]),
        "further": task.further(scores, truth),
        "steps": bench.settings.steps,
        "seconds": round(time.perf_counter() - started, 2),
        "threads": torch.get_num_threads(),
        "real": len(set(trial.real)),
        "synthetic": len(trial.synthetic),
        "count": len(trial.real) + len(trial.synthetic),
        "selected_step": consumer.selected,
        "validation": consumer.validation,
        "on_synthetic": _on_synthetic(bench, consumer) if arm.name == REAL else None,
        "digest": bench.digest,
        "scores": scores.tolist(),
    }
    write_json(bench.folder / arm.file, result)


def _train(bench: Bench, trial: Trial) -> Consumer:
    """A consumer trained on real and synthetic studies, together or one after the other."""
    settings, arm = bench.settings, trial.arm
    real = [bench.real.select(trial.real)] if trial.real else []
    added = (
        _painted(bench, trial)
        if arm.name == RANDOMIZED
        else bench.synthetic.select(trial.synthetic)
    )
    synthetic = [added] if trial.synthetic else []
    apart = arm.name == PRETRAINED and synthetic
    stages = [synthetic, real] if apart else [real + synthetic]
    consumer: Consumer | None = None
    for place, parts in enumerate(stages):
        last = place + 1 == len(stages)
        spent = settings.steps // len(stages) * place
        studies = Part.joined(parts)
        consumer = train_consumer(
            bench.task,
            studies.images,
            studies.targets,
            steps=settings.steps - spent if last else settings.steps // len(stages),
            batch=settings.batch,
            seed=derive(settings.seed, "consumer", arm.fraction, arm.repeat),
            validation=(bench.validation.images, bench.validation.targets),
            augment=bench.task.strong if arm.name == AUGMENTED else None,
            start=None if consumer is None else consumer.network,
        )
    assert consumer is not None
    return consumer


def _painted(bench: Bench, trial: Trial) -> Part:
    """Images of random contrast, made from masks of real training studies."""
    assert bench.masks is not None
    arm, schema = trial.arm, bench.schema
    seed = derive(bench.settings.seed, "randomized", arm.fraction, arm.repeat)
    images = [
        randomize(
            bench.masks[index].numpy(),
            len(schema.mask_classes),
            np.random.default_rng(derive(seed, place)),
            channels=schema.channels,
        )
        for place, index in enumerate(trial.synthetic)
    ]
    return Part(torch.from_numpy(np.stack(images)), bench.real.targets[trial.synthetic])


def _on_synthetic(bench: Bench, consumer: Consumer) -> float:
    """The metric on synthetic studies of a consumer that saw real ones only (TRTS)."""
    images, truth = bench.synthetic.images, bench.synthetic.targets
    return float(bench.task.value(consumer.scores(images, truth), truth)[0])


def plain(value: Any) -> Any:
    """The same value for strict JSON: a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON so that the file is either whole or absent."""
    write_bytes(path, json.dumps(plain(value), allow_nan=False).encode())
