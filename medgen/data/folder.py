"""The general reader: a folder of images and a table that says what each of them shows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.data.files import read_image, read_mask, to_channels
from medgen.data.geometry import Fit, fit_image, fit_mask
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

CACHE_BYTES = 2 * 2**30
"""Resized images that one dataset keeps in memory; beyond it, files are read each time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """The rarer choices of how a folder is read.

    Args:
        fit: how images of another aspect meet the size: "crop" cuts the centre out, "pad" adds
            black, "squash" stretches.
        seed: of the split by patient, where the table has no column `split`.
        text: the studies carry a report, in column `report`.
        columns: the table's own names for `image`, `mask`, `patient`, `split`, `report` or `id`,
            such as {"image": "filename"}.
    """

    fit: Fit = "crop"
    seed: int = 0
    text: bool = False
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {"image", "mask", "patient", "split", "report", "id"}
        if not set(self.columns) <= known:
            raise DataError(f"`columns` renames {', '.join(sorted(known))}; got {self.columns}.")

    def name(self, role: str) -> str:
        """The table's name of a column."""
        return self.columns.get(role, role)


@register("data", "folder")
class Folder:
    """Images in a folder with a table (CSV or JSON), one row an image.

    Columns of the table: `image` (path relative to the table), and where there are any: `mask`,
    `patient`, `split` (train, validation, test), `report`, `id`, findings and scalars. Without
    `split`, patients are split 70 : 10 : 20 by a hash of their names. Without `patient`, every
    image counts as its own patient, and a warning says so. Images are 8 or 16 bit PNG, JPEG, TIFF
    or DICOM, read when first asked for and kept in memory at their new size, in the bits that they
    were stored in.

    Args:
        root: folder that holds the data of this machine.
        size: height and width of the images, in pixels.
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
        if len(size) != 2 or min(size) < 1 or channels < 1 or len(mask_classes) == 1:
            raise DataError(
                "a folder reads images of a positive height and width and at least 1 channel, and "
                f"masks of at least 2 classes; got size {size}, channels {channels}, mask_classes "
                f"{mask_classes}."
            )
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
        )
        self.labels: Tensor | None = labels
        self.scalars: Tensor | None = torch.tensor(numbers_of(rows, scalars)) if scalars else None
        report = reading.name("report")
        self.reports = rows.column(report, "the report") if reading.text else None
        self.images = self._files(rows, "image")
        self.masks = self._files(rows, "mask") if mask_classes else None
        self.studies = _studies(rows, reading)
        self._cache: dict[int, tuple[NDArray[Any], NDArray[Any] | None]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)}")
        pixels, mask = self._read(index)
        image = torch.from_numpy(pixels.astype(np.float32)) * (2 / np.iinfo(pixels.dtype).max) - 1
        source = self._folder.name
        return Batch(
            image=image[None],
            mask=None if mask is None else torch.from_numpy(mask.astype(np.int64))[None],
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
        missing = [name for name, file in zip(names, files, strict=True) if not file.is_file()]
        if missing:
            more = f", and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            raise DataError(
                f"{rows.path}: {len(missing)} {role} file(s) of {len(files)} are missing: "
                f"{', '.join(missing[:SHOWN])}{more}. Paths are relative to {self._folder}."
            )
        return files

    def _read(self, index: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The resized image (c, h, w) and mask (h, w) as integers, from memory if there."""
        if index in self._cache:
            return self._cache[index]
        size = (self.schema.size[0], self.schema.size[1])
        path = self.images[index]
        image = read_image(path)
        try:
            pixels = to_channels(image.pixels, self.schema.channels)
        except ValueError as error:
            raise DataError(f"{path}: {error}.") from error
        kind = np.uint8 if image.bits <= 8 else np.uint16
        fitted = fit_image(pixels, size, self.reading.fit).clip(0, 1)
        stored = np.rint(fitted * np.iinfo(kind).max).astype(kind)
        mask = None
        if self.masks is not None:
            classes = classes_in(self.masks[index], self.schema.mask_classes, pixels.shape[1:])
            mask = fit_mask(classes, size, self.reading.fit).astype(
                np.min_scalar_type(len(self.schema.mask_classes))
            )
        need = stored.nbytes + (0 if mask is None else mask.nbytes)
        if self._cached_bytes + need <= CACHE_BYTES:
            self._cached_bytes += need
            self._cache[index] = (stored, mask)
        return stored, mask


def classes_in(
    path: Path, names: Sequence[str], size: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """The classes (h, w) of a mask file, checked against their names and the size of its image.

    Raises:
        DataError: unreadable, of another size than its image, or with classes that have no name.
    """
    mask = read_mask(path)
    if size is not None and mask.shape != tuple(size):
        raise DataError(f"{path}: the mask is {mask.shape}, its image {tuple(size)} pixels.")
    values = np.unique(mask).tolist()
    if len(names) == 2 and set(values) <= {0, 255}:
        return mask // 255
    unlisted = [value for value in values if not 0 <= value < len(names)]
    if unlisted:
        raise DataError(
            f"{path}: the mask has values {unlisted[:SHOWN]} beyond its {len(names)} classes "
            f"({', '.join(f'{i} {name}' for i, name in enumerate(names))}). List them in "
            "`mask_classes`, or mend the mask."
        )
    return mask


def _labels(
    rows: Table, findings: str | tuple[str, ...] | None
) -> tuple[tuple[str, ...], Tensor | None]:
    if not findings:
        return (), None
    if isinstance(findings, str):
        names, classes = classes_of(rows, findings)
        return names, one_hot(classes, len(names))
    return tuple(findings), torch.tensor(flags_of(rows, findings))


def _studies(rows: Table, reading: Reading) -> tuple[Study, ...]:
    """Ids, patients and splits of the rows."""
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
        ids = [Path(name).stem for name in images]
        if repeated(ids):
            ids = images
    rows.refuse([f"id '{name}' stands in two rows" for name in repeated(ids)])
    return ids
