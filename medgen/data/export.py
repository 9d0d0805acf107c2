"""Any dataset as a folder of images and a table, which `folder` reads again."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medgen.data.files import write_png
from medgen.data.geometry import Volume, centred_affine, from_unit
from medgen.data.signal_export import write_csv
from medgen.data.timed import beside, write_timed, write_timed_mask
from medgen.data.volumes import write_volume
from medgen.disk import building, write_bytes
from medgen.errors import DataError
from medgen.protocols import Dataset
from medgen.types import Batch, Schema


def write_image(stem: Path, image: Tensor, schema: Schema, affine: Tensor | None = None) -> Path:
    """Write an image as PNG, 8 bit, a volume as NIfTI, or what runs in time; returns the file.

    Clips are AVI without loss, ECGs CSV (`timed.py`).
    A volume is written in the unit of its schema's window (HU for CT), or as it is where there is
    none; in whole numbers where the window holds at least 256 of them, and 16 bits hold it.

    Args:
        stem: the file without its ending.
        image: (c *s) in [-1, 1].
        schema: says spacing and window.
        affine: (4 4) voxel -> RAS+ mm of a volume; None lays its middle at 0 mm.

    Raises:
        DataError: a volume of several channels.
    """
    if schema.time:
        return write_timed(stem, image, schema)
    unit = image.clamp(-1, 1).numpy()
    if image.ndim == 3:
        write_png(path := stem.with_name(f"{stem.name}.png"), (unit + 1) / 2)
        return path
    if len(unit) > 1:
        raise DataError(f"{stem}: a file holds a volume of 1 channel, got {len(unit)}")
    voxels = unit[0]
    if schema.window is not None:
        (low, high), voxels = schema.window, from_unit(voxels, schema.window)
        if high - low >= 256 and low >= -32768 and high <= 32767:
            voxels = np.rint(voxels).astype(np.int16)
    return _write_volume(stem, voxels, schema, affine)


def write_mask(stem: Path, mask: Tensor, schema: Schema, affine: Tensor | None = None) -> Path:
    """Write integer classes (*s) as PNG or NIfTI, of a clip as AVI; returns the file.

    Args:
        stem: the file without its ending.
        mask: classes from 0 to 255.
        schema: says the spacing of a volume.
        affine: (4 4) voxel -> RAS+ mm of a volume; None lays its middle at 0 mm.

    Raises:
        ValueError: a class beyond 0 to 255.
    """
    if schema.time:
        return write_timed_mask(stem, mask, schema)
    if mask.ndim == 2:
        write_png(path := stem.with_name(f"{stem.name}.png"), mask.numpy())
        return path
    if not 0 <= int(mask.min()) <= int(mask.max()) <= 255:
        raise ValueError(f"expected classes from 0 to 255, got {mask.min()} to {mask.max()}")
    return _write_volume(stem, mask.numpy().astype(np.uint8), schema, affine)


def _write_volume(stem: Path, voxels: Any, schema: Schema, affine: Tensor | None) -> Path:
    spacing = schema.spacing or (1.0,) * 3
    where = centred_affine(voxels.shape, spacing) if affine is None else affine.double().numpy()
    write_volume(path := stem.with_name(f"{stem.name}.nii.gz"), Volume(voxels, where))
    return path


def write_ecg(stem: Path, ecg: Tensor, schema: Schema) -> Path:
    """Write the ECG (leads samples) in mV beside a clip as CSV; returns the file."""
    return write_csv(stem.with_name(f"{stem.name}.csv"), beside(ecg, schema))


def write_folder(
    dataset: Dataset, out: Path | str, *, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write images, masks and `table.csv`; the folder appears when it is complete.

    Args:
        dataset: of 2-D images with 1 or 3 channels, of volumes, clips or ECGs.
        out: a new or empty folder.
        progress: called with (studies written, studies in all).

    Raises:
        OutputError: the folder holds something, is unwritable or full.
    """
    out = Path(out)
    with building(out) as unfinished:
        rows = []
        for index in range(len(dataset)):
            rows.append(_write_study(unfinished, dataset, index))
            if progress is not None:
                progress(index + 1, len(dataset))
        write_bytes(unfinished / "table.csv", _table(rows).encode())
    return out


def _write_study(folder: Path, dataset: Dataset, index: int) -> dict[str, Any]:
    """Write the files of one study; its row of the table."""
    study, item, schema = dataset.studies[index], dataset[index], dataset.schema
    if item.image is None:
        raise ValueError(f"expected study '{study.id}' to have an image")
    where = None if item.affine is None else item.affine[0]
    files = {"image": write_image(folder / "images" / study.id, item.image[0], schema, where)}
    if item.mask is not None:
        files["mask"] = write_mask(folder / "masks" / study.id, item.mask[0], schema, where)
    if item.ecg is not None:
        files["ecg"] = write_ecg(folder / "ecgs" / study.id, item.ecg[0], schema)
    row: dict[str, Any] = {kind: str(file.relative_to(folder)) for kind, file in files.items()}
    row |= {"patient": study.patient, "split": study.split}
    return row | _conditions(item, schema)


def _conditions(item: Batch, schema: Schema) -> dict[str, Any]:
    """Findings and scalars of a study by column; what is unknown is blank."""
    row: dict[str, Any] = {}
    if item.label is not None:
        values = dict(zip(schema.findings, item.label[0].tolist(), strict=True))
        if schema.exclusive:
            row["finding"] = next((name for name, value in values.items() if value == 1), "")
        else:
            row |= {name: value if value >= 0 else "" for name, value in values.items()}
    if item.scalar is not None:
        scalars = zip(schema.scalars, item.scalar[0].tolist(), strict=True)
        row |= {name: f"{value:.6g}" if value == value else "" for name, value in scalars}
    if item.text is not None:
        row["report"] = item.text[0]
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(rows[0]) if rows else ["image"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
