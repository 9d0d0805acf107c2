"""What stands in a folder of studies, and what is wrong with it, all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.data.duplicates import exact_groups, near_pairs, pixel_hash, thumbnail
from medgen.data.files import ImageFile, read_image
from medgen.data.images import classes_in
from medgen.data.splits import SHOWN, SPLITS, assign_splits, patients_in_two_splits
from medgen.data.table import (
    Table,
    classes_of,
    find_table,
    flags_of,
    inside,
    read_table,
    repeated,
    splits_of,
)
from medgen.errors import DataError
from medgen.types import Study

NOT_FINDINGS = {"image", "mask", "patient", "split", "report", "id"}
MOST_GUESSED = 20
"""Most values of a column that is shown as one of possible findings."""

Progress = Callable[[int, int], None]
"""Called with (images read, images in all)."""


@dataclass
class CheckReport:
    """What a check found.

    Args:
        table: the table that was read.
        images: images that could be read.
        rows: rows of the table.
        patients: distinct patients; 0 if the table does not say.
        splits: studies in every split, and whether the table or a hash made them.
        sizes: images of every size, "height x width".
        modes: images of every way of storing pixels.
        labels: studies with every value of every column of findings.
        mask_values: masks that hold every value.
        exact: groups of equal images.
        near: pairs of nearly equal images, and the correlation of their thumbnails.
        unreadable: files that could not be read, and why.
        problems: what must be mended.
        notes: what should be known.
    """

    table: str
    images: int = 0
    rows: int = 0
    patients: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    mask_values: dict[int, int] = field(default_factory=dict)
    exact: list[list[str]] = field(default_factory=list)
    near: list[tuple[str, str, float]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as text, one fact a line."""
        facts = {
            "table": self.table,
            "images": f"{self.images:,} readable of {self.rows:,} rows",
            "patients": f"{self.patients:,}" if self.patients else "not named",
            "splits": _counted(self.splits),
            "sizes": _counted(self.sizes),
            "stored as": _counted(self.modes),
            **{f"column {name}": _counted(values) for name, values in self.labels.items()},
            "mask values": _counted({str(key): n for key, n in self.mask_values.items()}),
            "duplicates": f"{len(self.exact)} groups of equal images, {len(self.near)} near pairs",
        }
        width = max(map(len, facts)) + 2
        text = [f"{name:<{width}}{fact}" for name, fact in facts.items() if fact]
        text += [f"note: {note}" for note in self.notes]
        text += [f"PROBLEM: {problem}" for problem in self.problems]
        return [*text, f"{len(self.problems)} problem(s), {len(self.notes)} note(s)"]


@dataclass
class _Images:
    """What was seen of the images: rows that could be read, and what they look like."""

    rows: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    thumbnails: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, row: int, image: ImageFile) -> None:
        self.rows.append(row)
        self.hashes.append(pixel_hash(image.pixels))
        self.thumbnails.append(thumbnail(image.pixels))


def check(
    folder: Path | str,
    *,
    table: str | None = None,
    findings: str | Sequence[str] | None = None,
    mask_classes: Sequence[str] = (),
    progress: Progress | None = None,
) -> CheckReport:
    """Look at every row and file of a folder; whatever is wrong is collected, not raised.

    Args:
        folder: holds the table; paths in the table are relative to it.
        table: name of the table; otherwise `table` or `labels`, `.csv` or `.json`.
        findings: one column of classes, or several columns of 0 and 1; without it, the balance of
            every column that could be one is shown.
        mask_classes: names of the values of masks; without it, masks may hold any.
        progress: told after every image.
    """
    folder = Path(folder)
    report = CheckReport(table=str(folder))
    try:
        rows = read_table(find_table(folder, table))
        report.table, report.rows = str(rows.path), len(rows.rows)
        names = rows.column("image", "the image files")
    except DataError as error:
        report.problems.append(str(error))
        return report
    report.problems += [f"image '{name}' stands in two rows" for name in repeated(names)]
    _check_labels(report, rows, findings)
    studies = _check_people(report, rows, names)
    seen = _check_images(report, rows, folder, mask_classes, progress)
    _check_duplicates(report, studies, seen)
    return report


def _check_labels(report: CheckReport, rows: Table, findings: str | Sequence[str] | None) -> None:
    try:
        if findings is None:
            chosen = [name for name in rows.columns if name.lower() not in NOT_FINDINGS]
            values = {name: Counter(row[name] for row in rows.rows) for name in chosen}
            shown = {name: held for name, held in values.items() if len(held) <= MOST_GUESSED}
        elif isinstance(findings, str):
            classes, places = classes_of(rows, findings)
            shown = {findings: Counter(classes[p] if p >= 0 else "" for p in places)}
        else:
            flags = flags_of(rows, tuple(findings))
            shown = {
                name: Counter({1: "1", 0: "0", -1: ""}[row[k]] for row in flags)
                for k, name in enumerate(findings)
            }
    except DataError as error:
        report.problems.append(str(error))
        return
    for name, held in shown.items():
        report.labels[name] = {value or "(blank)": held[value] for value in sorted(held)}
        if findings is not None and len(held) == 1:
            report.notes.append(f"column '{name}' has one value only: nothing to learn from it")


def _check_people(report: CheckReport, rows: Table, names: list[str]) -> list[Study]:
    """The studies, as far as the table tells; patients in two splits are a problem."""
    patients = names
    if "patient" in rows.columns:
        patients = rows.column("patient", "the patient")
        report.patients = len(set(patients) - {""})
        blank = patients.count("")
        if blank:
            report.problems.append(f"{blank} row(s) have a blank patient")
    else:
        report.notes.append("no column 'patient': every image would be its own patient")
    splits = assign_splits(patients)
    if "split" in rows.columns:
        try:
            splits = splits_of(rows)
        except DataError as error:
            report.problems.append(str(error))
    else:
        report.notes.append("no column 'split': patients are split 70 : 10 : 20 by a hash")
    held = Counter(splits)
    report.splits = {split: held[split] for split in SPLITS}
    studies = [Study(*each) for each in zip(names, patients, splits, strict=True)]
    report.problems += [
        f"patient '{patient}' stands in {' and '.join(two)}"
        for patient, two in patients_in_two_splits(studies).items()
    ]
    return studies


def _check_images(
    report: CheckReport,
    rows: Table,
    folder: Path,
    mask_classes: Sequence[str],
    progress: Progress | None,
) -> _Images:
    """Read every image and mask; count sizes, modes and values; name what cannot be read."""
    seen, sizes, modes, values = _Images(), Counter(), Counter(), Counter()
    with_mask = 0
    for index, row in enumerate(rows.rows):
        name, mask = row["image"], row.get("mask", "")
        shape = None
        try:
            image = read_image(folder / inside(folder, name))
            shape = image.pixels.shape[1:]
            sizes[f"{shape[0]} x {shape[1]}"] += 1
            modes[image.mode] += 1
            seen.add(index, image)
            if not seen.thumbnails[-1].any():
                report.notes.append(f"{name}: the image is blank")
        except DataError as error:
            report.unreadable[name] = str(error)
        if mask:
            with_mask += 1
            _check_mask(report, folder, mask, mask_classes, shape, values)
        if progress is not None:
            progress(index + 1, len(rows.rows))
    report.images = len(seen.rows)
    report.sizes, report.modes = dict(sizes.most_common(SHOWN)), dict(modes.most_common())
    report.mask_values = dict(sorted(values.items()))
    report.problems += list(report.unreadable.values())
    if "mask" in rows.columns and with_mask < len(rows.rows):
        report.notes.append(f"{len(rows.rows) - with_mask} row(s) have no mask")
    return seen


def _check_mask(
    report: CheckReport,
    folder: Path,
    name: str,
    mask_classes: Sequence[str],
    shape: Sequence[int] | None,
    values: Counter[int],
) -> None:
    try:
        anything = mask_classes or range(65536)
        mask = classes_in(folder / inside(folder, name), [str(each) for each in anything], shape)
        values.update(np.unique(mask).tolist())
    except DataError as error:
        report.unreadable[name] = str(error)


def _check_duplicates(report: CheckReport, studies: list[Study], seen: _Images) -> None:
    """Equal images of two patients or splits are a problem; other duplicates are noted."""
    for group in exact_groups(seen.hashes):
        held = [studies[seen.rows[i]] for i in group]
        report.exact.append([study.id for study in held])
        named = ", ".join(study.id for study in held[:SHOWN])
        if len({study.split for study in held}) > 1:
            report.problems.append(f"equal images in two splits: {named}")
        elif len({study.patient for study in held}) > 1:
            report.problems.append(f"equal images under two patients: {named}")
    same = sum(len(group) for group in report.exact)
    if same:
        report.notes.append(f"{same} images have an exact copy in the folder")
    pairs = near_pairs(np.stack(seen.thumbnails)) if seen.thumbnails else []
    for i, j, alike in pairs:
        if seen.hashes[i] == seen.hashes[j]:
            continue
        a, b = studies[seen.rows[i]], studies[seen.rows[j]]
        report.near.append((a.id, b.id, round(alike, 4)))
        if a.split != b.split:
            report.notes.append(f"nearly equal images in two splits: {a.id} and {b.id}")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
