"""Real studies and synthetic ones, laid out so that every metric shares what is costly.

Real training patients are cut in half. One half teaches the extractor; the other, which it never
saw, is compared with the held-out studies just as the synthetic ones are: that is the
real-vs-real floor. Had the extractor seen it, the floor would rise and flatter the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.augmentation.experiment import check_provenance
from medgen.augmentation.tasks import (
    Consumer,
    task_for,
    train_consumer,
)
from medgen.data.splits import by_split, load
from medgen.errors import DataError
from medgen.evaluation.features import Extractor, build_extractor, images_of
from medgen.evaluation.frames import FrameStudies, frames_of
from medgen.model import GenerativeModel
from medgen.protocols import Dataset
from medgen.rng import derive
from medgen.types import Batch, Schema, Study

Array = NDArray[np.float64]
LARGEST = 10_000
"""Studies a side of a distribution metric, at most: time grows with their square."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Side:
    """Loaded studies and whom they are of.

    Args:
        batch: the studies.
        ids: their names.
        patients: their patients.
    """

    batch: Batch
    ids: tuple[str, ...]
    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: Sequence[int]) -> Side:
        """The studies at `indices`."""
        return Side(
            self.batch.select(indices),
            tuple(self.ids[i] for i in indices),
            tuple(self.patients[i] for i in indices),
        )


class Comparison:
    """Everything that metrics ask of real and synthetic studies.

    Args:
        real: studies of all three splits; the generator saw the training split alone.
        synthetic: studies with synthetic provenance.
        extractor: name of the extractor that metrics use unless they name another.
        count: studies a side of a distribution metric, at most; None takes what there is.
        seed: all randomness of the evaluation derives from it.
        model: the generator that drew the samples, for metrics that ask it; None where absent.

    Raises:
        DataError: a study is in the wrong dataset, a split is empty, or the schemas differ.
    """

    def __init__(
        self,
        real: Dataset,
        synthetic: Dataset,
        *,
        extractor: str = "classifier",
        count: int | None = None,
        seed: int = 0,
        model: GenerativeModel | None = None,
    ) -> None:
        self.model = model
        self.schema: Schema = real.schema
        self.extractor_name = extractor
        self.count = min(count or LARGEST, LARGEST)
        self.seed = seed
        for name in ("size", "channels"):
            ours, theirs = getattr(real.schema, name), getattr(synthetic.schema, name)
            if ours != theirs:
                raise DataError(f"real and synthetic images differ in {name}: {ours} and {theirs}")
        self.train, self.validation, self.test = (
            _side(by_split(real, split)) for split in ("train", "validation", "test")
        )
        self.synthetic = _side(synthetic)
        self.synthetic_schema = synthetic.schema
        check_provenance(
            [side.batch for side in (self.train, self.validation, self.test)], self.synthetic.batch
        )
        self._extractors: dict[str, Extractor] = {}
        self._features: dict[tuple[str, str], Array] = {}
        self._consumers: dict[tuple[str, int], Consumer] = {}
        self._segmented: dict[tuple[str, int], Tensor] = {}

    @cached_property
    def heldout(self) -> Side:
        """Real studies that the generator never saw: validation and test."""
        both = Batch.concat([self.validation.batch, self.test.batch])
        return Side(
            both, self.validation.ids + self.test.ids, self.validation.patients + self.test.patients
        )

    @cached_property
    def taught(self) -> Side:
        """Real training studies that extractors, and what metrics fit, are taught on."""
        return self.train.select(self._halves[0])

    @cached_property
    def unseen_members(self) -> Side:
        """Real studies that the generator saw and no extractor did."""
        return self.train.select(self._halves[1])

    @cached_property
    def _halves(self) -> tuple[list[int], list[int]]:
        """Indices of the training studies of one half of the patients, and of the other."""
        names = sorted(set(self.train.patients))
        order = np.random.default_rng(derive(self.seed, "halves")).permutation(len(names))
        first = {names[i] for i in order[: len(names) // 2]}
        if len(names) < 2:
            raise DataError("evaluation needs training studies of at least 2 patients, got 1")
        inside = [i for i, patient in enumerate(self.train.patients) if patient in first]
        outside = [i for i, patient in enumerate(self.train.patients) if patient not in first]
        return inside, outside

    @cached_property
    def equal(self) -> int:
        """How many studies a side distribution metrics compare: the same number everywhere."""
        sides = [len(self.synthetic), len(self.heldout), len(self._halves[1]), self.count]
        return min(sides)

    def extractor(self, name: str | None = None) -> Extractor:
        """The extractor of a name, fitted once on the first half of the training patients."""
        name = name or self.extractor_name
        if name not in self._extractors:
            self._extractors[name] = build_extractor(
                name,
                self.taught.batch,
                self.validation.batch,
                self.schema,
                seed=derive(self.seed, "extractor"),
            )
        return self._extractors[name]

    def features(self, side: str, name: str | None = None) -> Array:
        """Features of a whole side, such as "taught", "heldout" or "synthetic"; worked out once."""
        key = (name or self.extractor_name, side)
        if key not in self._features:
            studies: Side = getattr(self, side)
            self._features[key] = self.extractor(name).features(images_of(studies.batch))
        return self._features[key]

    def equal_side(self, which: str) -> Side:
        """`equal` studies in random order.

        Args:
            which: "heldout", "synthetic", or "second": the training half that the extractor
                never saw.
        """
        side, order = self._equal_order(which)
        return side.select(order)

    def _equal_order(self, which: str) -> tuple[Side, list[int]]:
        side: Side = self.unseen_members if which == "second" else getattr(self, which)
        seed = derive(self.seed, "equal", which)
        return side, np.random.default_rng(seed).permutation(len(side))[: self.equal].tolist()

    def equal_features(self, which: str, name: str | None = None) -> tuple[Array, list[str]]:
        """Features of the studies of `equal_side` and their patients; no others are worked out.

        Args:
            which: as of `equal_side`.
            name: of the extractor.
        """
        side, order = self._equal_order(which)
        patients = [side.patients[i] for i in order]
        extractor, whole = name or self.extractor_name, (name or self.extractor_name, which)
        if whole in self._features:
            return self._features[whole][order], patients
        key = (extractor, f"equal {which}")
        if key not in self._features:
            images = images_of(side.select(order).batch)
            self._features[key] = self.extractor(name).features(images)
        return self._features[key], patients

    @cached_property
    def frames(self) -> Comparison:
        """The same comparison of frames of the clips, each a study of its clip's patient.

        Raises:
            DataError: the studies are not clips.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        real = FrameStudies.of(
            self.schema,
            [
                Study(study, patient, split)
                for split, side in splits.items()
                for study, patient in zip(side.ids, side.patients, strict=True)
            ],
            Batch.concat([side.batch for side in splits.values()]),
        )
        drawn = [
            Study(study, patient, "train")
            for study, patient in zip(self.synthetic.ids, self.synthetic.patients, strict=True)
        ]
        synthetic = FrameStudies.of(self.synthetic_schema, drawn, self.synthetic.batch)
        return Comparison(
            real, synthetic, extractor=self.extractor_name, count=self.count, seed=self.seed
        )

    def segmented(self, which: str, steps: int) -> Tensor:
        """Masks (b t h w), uint8, of every frame of the clips of a side, by the judge of frames.

        Args:
            which: name of a side, such as "taught", "test" or "synthetic"; worked out once each.
            steps: optimiser steps of the segmenter.
        """
        if (which, steps) not in self._segmented:
            judge = self.frames.consumer("segmentation", steps)
            clips: Tensor = images_of(getattr(self, which).batch)
            found = [judge.logits(frames_of(clip[None])).argmax(1).byte() for clip in clips]
            self._segmented[which, steps] = torch.stack(found)
        return self._segmented[which, steps]

    def consumer(self, task_name: str, steps: int) -> Consumer:
        """An independent judge of a task, trained once on all real training studies."""
        key = (task_name, steps)
        if key not in self._consumers:
            task = task_for(task_name, self.schema)
            held = self.validation.batch
            self._consumers[key] = train_consumer(
                task,
                images_of(self.train.batch),
                task.targets(self.train.batch),
                steps=steps,
                seed=derive(self.seed, "judge", task_name),
                validation=(images_of(held), task.targets(held)),
            )
        return self._consumers[key]


def _side(dataset: Dataset) -> Side:
    studies = dataset.studies
    return Side(
        load(dataset),
        tuple(study.id for study in studies),
        tuple(study.patient for study in studies),
    )
