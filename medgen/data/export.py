"""Any dataset as a folder of images and a table, which `folder` reads again."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medgen.data.files import write_png
from medgen.disk import building, write_bytes
from medgen.protocols import Dataset
from medgen.types import Batch, Schema


def write_folder(
    dataset: Dataset, out: Path | str, *, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write images, masks and `table.csv`; the folder appears when it is complete.

    Args:
        dataset: of 2-D images with 1 or 3 channels.
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
    study, item = dataset.studies[index], dataset[index]
    if item.image is None:
        raise ValueError(f"expected study '{study.id}' to have an image")
    row: dict[str, Any] = {"image": f"images/{study.id}.png"}
    write_png(folder / row["image"], ((item.image[0].clamp(-1, 1) + 1) / 2).numpy())
    if item.mask is not None:
        row["mask"] = f"masks/{study.id}.png"
        write_png(folder / row["mask"], item.mask[0].numpy())
    row |= {"patient": study.patient, "split": study.split}
    return row | _conditions(item, dataset.schema)


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
