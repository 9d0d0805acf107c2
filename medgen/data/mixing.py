"""Real and synthetic training studies as one dataset, the share of synthetic ones on a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler

from medgen.data.splits import SHOWN, labels_of
from medgen.errors import DataError, did_you_mean
from medgen.protocols import Dataset
from medgen.rng import Rng, derive
from medgen.types import Batch, Schema, Study

SCHEDULES = ("constant", "curriculum", "anneal")
Schedule = Literal["constant", "curriculum", "anneal"]


class Mixed:
    """Real and synthetic training studies as one dataset, each with what both hold.

    First come the real studies, then the synthetic ones. With a `torch.utils.data.DataLoader`, pass
    `collate_fn=Batch.concat`, and `sampler=mixed.sampler` where the share of synthetic studies
    follows a schedule.

    Args:
        schema: what both datasets hold; other fields of an item are None.
        real: the real studies.
        synthetic: where the synthetic studies come from.
        drawn: which of them.
        seed: of the order of studies in an epoch.
        schedule: of the share of synthetic studies.
        epochs: that the schedule lasts.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(
        self,
        schema: Schema,
        real: Dataset,
        synthetic: Dataset,
        drawn: Sequence[int],
        *,
        seed: int,
        schedule: Schedule = "constant",
        epochs: int = 1,
    ) -> None:
        self.schema = schema
        parts = ((real, range(len(real))), (synthetic, drawn))
        self._places = [(dataset, index) for dataset, indices in parts for index in indices]
        self.studies = tuple(dataset.studies[index] for dataset, index in self._places)
        chosen = [
            held[list(indices)]
            for dataset, indices in parts
            if (held := labels_of(dataset)) is not None
        ]
        self.labels: Tensor | None = torch.cat(chosen) if schema.findings else None
        self.sampler = EpochSampler(
            len(real), len(drawn), seed=seed, schedule=schedule, epochs=epochs
        )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Batch:
        dataset, place = self._places[index]
        item = dataset[place]
        return Batch(
            image=item.image,
            label=item.label if self.schema.findings else None,
            mask=item.mask if self.schema.mask_classes else None,
            scalar=item.scalar if self.schema.scalars else None,
            text=item.text if self.schema.text else None,
            provenance=item.provenance,
        )


class EpochSampler(Sampler[int]):
    """Which studies of a mixture an epoch shows, and in which order: a function of seed and epoch.

    All epochs are equally long: where the schedule leaves synthetic studies out, real ones come
    again, every one once more before any comes twice more. So steps and learning rates stay as
    they are, and no gain is one of more steps. Iterating moves on to the next epoch when all
    studies were shown; `set_epoch` goes to any, such as after a restart.

    Args:
        real: number of real studies; they come first in the mixture.
        synthetic: number of synthetic studies; the most that an epoch shows.
        seed: another seed, another order.
        schedule: "constant" shows all synthetic studies in every epoch, "curriculum" none in the
            first epoch, rising by equal parts to all in the last, "anneal" all, falling to none.
        epochs: that rising or falling takes; later epochs are as the last.

    Raises:
        ValueError: an unknown schedule, or too few epochs for it.
    """

    def __init__(
        self,
        real: int,
        synthetic: int,
        *,
        seed: int,
        schedule: Schedule = "constant",
        epochs: int = 1,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule: '{schedule}'. {did_you_mean(schedule, SCHEDULES)}")
        if schedule != "constant" and epochs < 2:
            raise ValueError(f"epochs: {schedule} takes 2 epochs or more, got {epochs}")
        self.real = real
        self.synthetic = synthetic
        self.seed = seed
        self.schedule = schedule
        self.epochs = epochs
        self.epoch = 0

    def __len__(self) -> int:
        return self.real + self.synthetic

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        yield from self.indices(epoch)
        if self.epoch == epoch:
            self.epoch += 1

    def set_epoch(self, epoch: int) -> None:
        """Show this epoch next; epochs count from 0."""
        self.epoch = epoch

    def indices(self, epoch: int) -> list[int]:
        """The studies of an epoch, in order."""
        rng = torch.Generator().manual_seed(derive(self.seed, "epoch", epoch))
        synthetic = self.real + torch.randperm(self.synthetic, generator=rng)
        shown = synthetic[: round(self.synthetic * self._level(epoch))]
        rounds = -(-(len(self) - len(shown)) // self.real)
        repeated = torch.cat([torch.randperm(self.real, generator=rng) for _ in range(rounds)])
        both = torch.cat([repeated[: len(self) - len(shown)], shown])
        return both[torch.randperm(len(both), generator=rng)].tolist()

    def _level(self, epoch: int) -> float:
        """The share of its synthetic studies that an epoch shows."""
        if self.schedule == "constant":
            return 1.0
        risen = min(epoch / (self.epochs - 1), 1.0)
        return risen if self.schedule == "curriculum" else 1 - risen


def mix(
    real: Dataset,
    synthetic: Dataset,
    *,
    ratio: float,
    seed: int,
    schedule: Schedule = "constant",
    epochs: int = 1,
) -> Mixed:
    """Real training studies and, for each of them, `ratio` synthetic ones drawn without repeats.

    A smaller ratio draws a part of what a larger one draws with the same seed. Findings, masks,
    scalars or reports that only one of the two holds are left out.

    Args:
        real: training studies only.
        synthetic: training studies whose provenance says synthetic.
        ratio: synthetic studies for each real one; 0.5 is one for every two.
        seed: another seed, other synthetic studies.
        schedule: how the share of synthetic studies changes over epochs, with the mixture's
            `sampler`: "constant", "curriculum" (rises from none to the ratio) or "anneal" (falls).
        epochs: that rising or falling takes.

    Raises:
        DataError: a study is not in the training split, its provenance is not as said, the schemas
            differ, or there are too few synthetic studies.
        ValueError: the ratio is negative, the schedule unknown, or its epochs are below 2.
    """
    if not ratio >= 0:
        raise ValueError(f"expected a ratio of at least 0, got {ratio}")
    schema = common_schema(real.schema, synthetic.schema)
    for dataset in (real, synthetic):
        only_training(dataset)
    wanted = round(ratio * len(real))
    if wanted > len(synthetic):
        raise DataError(
            f"a ratio of {ratio:g} for {len(real)} real studies needs {wanted} synthetic ones; "
            f"there are {len(synthetic)}: sample {wanted - len(synthetic)} more, or lower it."
        )
    keys = Rng([derive(seed, "mix")]).uniform((len(synthetic),))[0]
    drawn = keys.argsort(stable=True)[:wanted].tolist()
    check_provenance(real, range(len(real)), synthetic=False)
    check_provenance(synthetic, drawn, synthetic=True)
    return Mixed(schema, real, synthetic, drawn, seed=seed, schedule=schedule, epochs=epochs)


def common_schema(real: Schema, synthetic: Schema) -> Schema:
    """What real and synthetic studies both hold.

    Raises:
        DataError: images differ in size or channels, both hold the same kind of thing under other
            names, or there is nothing but images in common.
    """
    ours, theirs = asdict(real), asdict(synthetic)
    kinds = ("findings", "mask_classes", "scalars")
    both = [name for name in kinds if ours[name] and theirs[name]]
    checked = ["size", "channels", *both, *(["exclusive"] if "findings" in both else [])]
    differ = [f"{k}: {ours[k]} and {theirs[k]}" for k in checked if ours[k] != theirs[k]]
    if differ:
        raise DataError(
            f"real and synthetic studies differ in {'; '.join(differ)}. Read the real ones with "
            "the size, channels and columns of the synthetic ones."
        )
    if not both:
        raise DataError(
            "real and synthetic studies have no findings, masks or scalars in common; read the "
            "real ones with the columns of the synthetic ones."
        )
    left_out: dict[str, Any] = {name: () for name in kinds if name not in both}
    return replace(real, text=real.text and synthetic.text, **left_out)


def only_training(dataset: Dataset) -> None:
    """Refuse a dataset with studies outside the training split.

    Raises:
        DataError: names some of them.
    """
    astray = [study.id for study in dataset.studies if study.split != "train"]
    if astray:
        raise DataError(
            f"only training studies are mixed; {len(astray)} are in another split: "
            f"{', '.join(astray[:SHOWN])}. Take `by_split(dataset, 'train')` first."
        )


def check_provenance(dataset: Dataset, indices: Sequence[int], *, synthetic: bool) -> None:
    """Refuse studies that are not synthetic, or not real, as they should be.

    Raises:
        DataError: names the first such study.
    """
    for index in indices:
        known = dataset[index].provenance
        found = known is not None and known[0].synthetic
        if found != synthetic:
            kinds = {True: "a synthetic", False: "a real"}
            raise DataError(
                f"study '{dataset.studies[index].id}' is {kinds[found]} study by its provenance, "
                f"expected {kinds[synthetic]} one."
            )
