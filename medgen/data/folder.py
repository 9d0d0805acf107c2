"""The general reader: a folder of images or volumes and a table of what each of them shows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from medgen.data.images import Images, Reading
from medgen.data.splits import SHOWN, assign_splits, check_leakage, one_hot
from medgen.data.table import (
    Table,
    classes_of,
    find_table,
    flags_of,
    inside,
    numbers_of,
    read_table,
    repeated,
    splits_of,
)
from medgen.errors import DataError
from medgen.registry import register
from medgen.types import Batch, Provenance, Schema, Study

logger = logging.getLogger(__name__)


@register("data", "folder")
class Folder:
    """Images in a folder with a table (CSV or JSON), one row an image.

    Columns of the table: `image` (path relative to the table), and where there are any: `mask`,
    `patient`, `split` (train, validation, test), `report`, `id`, findings and scalars. Without
    `split`, patients are split 70 : 10 : 20 by a hash of their names. Without `patient`, every
    image counts as its own patient, and a warning says so. Images are 8 or 16 bit PNG, JPEG, TIFF
    or DICOM, volumes NIfTI, read when first asked for and kept in memory at their new size.

    Args:
        root: folder that holds the data of this machine.
        size: height and width of the images, in pixels; or the three sides of volumes, in voxels.
        path: folder of the table, relative to the root.
        table: name of the table; otherwise `table` or `labels`, `.csv` or `.json`.
        findings: one column of a class a study (exclusive, in sorted order), or a tuple of columns
            of 1, 0 and blank or -1 for unknown (any subset may be present).
        mask_classes: names of the mask's values 0, 1, ...; the first is the background. Masks of
            two classes may store 255 for 1. Studies without a mask are left out, and counted.
        scalars: columns of numbers; a blank is unknown.
        only: values of columns, such as {"view": "PA"}: other rows are left out, and counted.
        channels: 1 turns colour into luminance; 3 repeats gray.
        reading: the rarer choices.

    Raises:
        DataError: the table or its rows are not as asked, or files are missing.
        LeakageError: the table puts a patient in two splits.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(
        self,
        root: Path,
        size: tuple[int, ...],
        *,
        path: str = ".",
        table: str | None = None,
        findings: str | tuple[str, ...] | None = None,
        mask_classes: tuple[str, ...] = (),
        scalars: tuple[str, ...] = (),
        only: dict[str, str] | None = None,
        channels: int = 1,
        reading: Reading = Reading(),
    ) -> None:
        flat = len(size) == 2
        if len(size) not in (2, 3) or min(size) < 1 or channels < 1 or len(mask_classes) == 1:
            raise DataError(
                "a folder reads images of a positive height and width, or volumes of three "
                "positive sides, of at least 1 channel, and masks of at least 2 classes; got size "
                f"{size}, channels {channels}, mask_classes {mask_classes}."
            )
        if channels > 1 and not flat:
            raise DataError(f"a folder reads volumes of 1 channel, got channels {channels}.")
        self.reading = reading
        self.left_out: dict[str, int] = {}
        self._folder = Path(root) / inside(Path(root), path)
        rows = read_table(find_table(self._folder, table))
        rows = self._with_masks(self._chosen(rows, only or {}), mask_classes)
        names, labels = _labels(rows, findings)
        self.schema = Schema(
            size=tuple(size),
            channels=channels,
            findings=names,
            exclusive=isinstance(findings, str),
            mask_classes=tuple(mask_classes),
            scalars=tuple(scalars),
            text=reading.text,
            spacing=() if flat else reading.spacing or (),
            window=None if flat else reading.window,
        )
        self.labels: Tensor | None = labels
        self.scalars: Tensor | None = torch.tensor(numbers_of(rows, scalars)) if scalars else None
        report = reading.name("report")
        self.reports = rows.column(report, "the report") if reading.text else None
        self.images = self._files(rows, "image")
        self.masks = self._files(rows, "mask") if mask_classes else None
        self.studies = read_studies(rows, reading)
        self._images = Images([[path] for path in self.images], self.masks, self.schema, reading)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)}")
        source = self._folder.name
        return replace(
            self._images[index],
            label=None if self.labels is None else self.labels[index : index + 1],
            scalar=None if self.scalars is None else self.scalars[index : index + 1],
            text=None if self.reports is None else (self.reports[index],),
            provenance=(Provenance(self.studies[index].id, synthetic=False, source=source),),
        )

    def _chosen(self, rows: Table, only: dict[str, str]) -> Table:
        """The rows whose columns have the values asked for."""
        kept = rows.rows
        for column, value in only.items():
            held = sorted(set(rows.column(column, "a choice of rows")))
            kept = tuple(row for row in kept if row[column] == value)
            if not kept:
                raise DataError(
                    f"{rows.path}: no row is left with {column} = '{value}'; column '{column}' "
                    f"holds: {', '.join(held[:SHOWN])}{', ...' if len(held) > SHOWN else ''}."
                )
        return self._leave_out(rows, kept, "not chosen by `only`")

    def _with_masks(self, rows: Table, mask_classes: tuple[str, ...]) -> Table:
        if not mask_classes:
            return rows
        column = self.reading.name("mask")
        rows.column(column, "the masks of mask_classes")
        kept = tuple(row for row in rows.rows if row[column])
        if not kept:
            raise DataError(f"{rows.path}: column '{column}' is blank in every row.")
        return self._leave_out(rows, kept, "without a mask")

    def _leave_out(self, rows: Table, kept: tuple[dict[str, str], ...], reason: str) -> Table:
        count = len(rows.rows) - len(kept)
        if count:
            self.left_out[reason] = count
            logger.warning(
                "%s: %d of %d rows left out: %s", rows.path, count, len(rows.rows), reason
            )
        return Table(rows.path, rows.columns, kept)

    def _files(self, rows: Table, role: str) -> list[Path]:
        """The files of a column; all must exist."""
        names = rows.column(self.reading.name(role), f"the {role} files")
        files = [self._folder / inside(self._folder, name) for name in names]
        missing = [name for name, file in zip(names, files, strict=True) if not file.exists()]
        if missing:
            more = f", and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            raise DataError(
                f"{rows.path}: {len(missing)} {role} file(s) of {len(files)} are missing: "
                f"{', '.join(missing[:SHOWN])}{more}. Paths are relative to {self._folder}."
            )
        return files


def _labels(
    rows: Table, findings: str | tuple[str, ...] | None
) -> tuple[tuple[str, ...], Tensor | None]:
    if not findings:
        return (), None
    if isinstance(findings, str):
        names, classes = classes_of(rows, findings)
        return names, one_hot(classes, len(names))
    return tuple(findings), torch.tensor(flags_of(rows, findings))


def read_studies(rows: Table, reading: Reading) -> tuple[Study, ...]:
    """Ids, patients and splits of the rows of a table.

    Raises:
        DataError: ids or images stand twice, or a patient is blank.
        LeakageError: a patient stands in two splits.
    """
    ids = _ids(rows, reading)
    column = reading.name("patient")
    if column in rows.columns or "patient" in reading.columns:
        patients = rows.column(column, "the patient")
        blank = [f"row {i}: blank patient" for i, name in enumerate(patients, 1) if not name]
        rows.refuse(blank)
    else:
        logger.warning("%s: no column 'patient': every image is its own patient", rows.path)
        patients = ids
    if reading.name("split") in rows.columns or "split" in reading.columns:
        splits = splits_of(rows, reading.name("split"))
    else:
        splits = assign_splits(patients, seed=reading.seed)
    studies = tuple(Study(*each) for each in zip(ids, patients, splits, strict=True))
    check_leakage(studies)
    return studies


def _ids(rows: Table, reading: Reading) -> list[str]:
    """Unique ids: column `id`, or the names of the image files, with folders where they repeat."""
    images = [inside(rows.path.parent, n) for n in rows.column(reading.name("image"), "images")]
    same = repeated(images)
    rows.refuse([f"image '{name}' stands in two rows" for name in same])
    if reading.name("id") in rows.columns:
        ids = rows.column(reading.name("id"), "the ids")
    else:
        ids = [Path(name.removesuffix(".gz")).stem for name in images]
        if repeated(ids):
            ids = images
    rows.refuse([f"id '{name}' stands in two rows" for name in repeated(ids)])
    return ids
