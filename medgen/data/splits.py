"""Splits by patient: who trains, who validates, who tests; and parts of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from medgen.errors import DataError, LeakageError
from medgen.protocols import Dataset
from medgen.rng import derive
from medgen.types import Batch, Schema, Study

SPLITS = ("train", "validation", "test")
SHOWN = 10
"""Names that an error message lists before it only counts."""


def assign_splits(
    patients: Sequence[str], *, seed: int = 0, shares: Sequence[float] = (0.7, 0.1, 0.2)
) -> list[str]:
    """The split of every study, given the patient of each.

    Patients are put in an order by a hash of name and seed, then cut by the shares, so the order
    and number of a patient's studies do not matter. With as many patients as splits, or more, no
    split of a positive share is empty.

    Args:
        patients: the patient of every study; names repeat.
        seed: another seed, another split.
        shares: shares of the patients that train, validate and test.

    Raises:
        ValueError: the shares are not three numbers of at least 0 that sum to 1.
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"expected three shares of at least 0 that sum to 1, got {tuple(shares)}")
    order = _by_hash(set(patients), seed)
    counts = _cut(len(order), shares)
    names = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    split_of = dict(zip(order, names, strict=True))
    return [split_of[patient] for patient in patients]


def _by_hash(patients: Iterable[str], seed: int) -> list[str]:
    return sorted(patients, key=lambda patient: (derive(seed, "split", patient), patient))


def _cut(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers near the shares of `total` (largest remainders), none 0 where avoidable."""
    counts = [int(total * share + 1e-9) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - total * shares[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    wanted = [i for i, share in enumerate(shares) if share > 0]
    for i in wanted:
        if counts[i] == 0 and total >= len(wanted):
            counts[max(wanted, key=lambda j: counts[j])] -= 1
            counts[i] = 1
    return counts


def patients_in_two_splits(studies: Iterable[Study]) -> dict[str, tuple[str, ...]]:
    """Patients that stand in more than one split, with those splits."""
    splits: dict[str, set[str]] = {}
    for study in studies:
        splits.setdefault(study.patient, set()).add(study.split)
    return {patient: tuple(sorted(held)) for patient, held in splits.items() if len(held) > 1}


def check_leakage(studies: Iterable[Study]) -> None:
    """Refuse studies of one patient in two splits.

    Raises:
        LeakageError: names the patients and their splits.
    """
    leaked = patients_in_two_splits(studies)
    if leaked:
        shown = [f"{name} ({', '.join(held)})" for name, held in sorted(leaked.items())[:SHOWN]]
        more = f" and {len(leaked) - SHOWN} more" if len(leaked) > SHOWN else ""
        raise LeakageError(
            f"{len(leaked)} patient(s) stand in more than one split: {'; '.join(shown)}{more}. "
            "Give all studies of a patient the same split, or remove the split column."
        )


class Subset:
    """Chosen studies of a dataset, itself a dataset.

    Args:
        dataset: where the studies come from.
        indices: which studies, in which order.
    """

    schema: Schema

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = tuple(int(i) for i in indices)
        self.schema = dataset.schema
        self.studies: Sequence[Study] = tuple(dataset.studies[i] for i in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Batch:
        return self.dataset[self.indices[index]]

    @property
    def labels(self) -> Tensor | None:
        """Labels of the studies, (len, k), or None if they carry none."""
        labels = labels_of(self.dataset)
        return None if labels is None else labels[list(self.indices)]


def by_split(dataset: Dataset, split: str) -> Subset:
    """The studies of one split.

    Raises:
        DataError: no study is in that split.
    """
    indices = [i for i, study in enumerate(dataset.studies) if study.split == split]
    if not indices:
        held = Counter(study.split for study in dataset.studies)
        present = ", ".join(f"{name} {count}" for name, count in sorted(held.items())) or "none"
        raise DataError(
            f"no study is in split '{split}'; studies by split: {present}. Add studies of more "
            f"patients, or a 'split' column of {', '.join(SPLITS)}."
        )
    return Subset(dataset, indices)


def labels_of(dataset: Dataset) -> Tensor | None:
    """Labels of all studies, (len, k); read without the images where the dataset offers `labels`.

    None if the dataset's schema names no findings.
    """
    if not dataset.schema.findings or not len(dataset):
        return None
    offered = getattr(dataset, "labels", None)
    if isinstance(offered, Tensor):
        return offered
    return load(dataset).label


def take_patients(dataset: Dataset, fraction: float, *, seed: int) -> Subset:
    """All studies of a share of the patients, at least two patients.

    The patients come in one fixed order for a seed, so a smaller fraction is a part of a larger.
    First in that order stand the fewest patients found that show every finding, each present and
    absent; then the rest, spread so that every group of like patients is used up evenly.

    Args:
        dataset: usually a training split.
        fraction: share of the patients, in (0, 1].
        seed: another seed, other patients.

    Raises:
        ValueError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"expected a fraction in (0, 1], got {fraction}")
    shown = _shown_by_patient(dataset)
    order = _patient_order(shown, seed)
    count = min(len(order), max(2, round(fraction * len(order))))
    taken = set(order[:count])
    return Subset(dataset, [i for i, s in enumerate(dataset.studies) if s.patient in taken])


def _shown_by_patient(dataset: Dataset) -> dict[str, frozenset[tuple[int, int]]]:
    """For every patient, which (finding, 0 or 1) their studies show."""
    labels = labels_of(dataset)
    rows = [[]] * len(dataset) if labels is None else labels.tolist()
    shown: dict[str, set[tuple[int, int]]] = {}
    for study, row in zip(dataset.studies, rows, strict=True):
        known = {(k, int(value)) for k, value in enumerate(row) if value >= 0}
        shown.setdefault(study.patient, set()).update(known)
    return {patient: frozenset(pairs) for patient, pairs in shown.items()}


def _patient_order(shown: dict[str, frozenset[tuple[int, int]]], seed: int) -> list[str]:
    """Patients: a greedy cover of all that is shown, then evenly from every group of like ones."""
    waiting = _by_hash(shown, derive(seed, "take"))
    missing = set().union(*shown.values()) if shown else set()
    cover: list[str] = []
    while missing:
        best = max(waiting, key=lambda patient: len(shown[patient] & missing))
        cover.append(best)
        waiting.remove(best)
        missing -= shown[best]
    groups: dict[frozenset[tuple[int, int]], list[str]] = {}
    for patient in waiting:
        groups.setdefault(shown[patient], []).append(patient)
    place = {
        patient: (rank + 0.5) / len(group)
        for group in groups.values()
        for rank, patient in enumerate(group)
    }
    return cover + sorted(waiting, key=lambda patient: place[patient])


def load(dataset: Dataset, indices: Sequence[int] | None = None) -> Batch:
    """All studies, or those at `indices`, as one batch.

    Raises:
        DataError: there is nothing to load.
    """
    chosen = range(len(dataset)) if indices is None else indices
    if not len(chosen):
        raise DataError("expected at least one study to load, got none")
    return Batch.concat([dataset[i] for i in chosen])


def one_hot(classes: Sequence[int], count: int) -> Tensor:
    """Labels (len, count) int64 of exclusive findings; class -1 becomes a row of -1 (unknown)."""
    index = torch.as_tensor(list(classes), dtype=torch.int64).reshape(-1)
    known = torch.nn.functional.one_hot(index.clamp(min=0), count)
    return torch.where(index[:, None] < 0, torch.full_like(known, -1), known)
