"""An exported synthetic dataset as a dataset again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.data.folder import Folder, read_studies
from medgen.data.images import Reading
from medgen.data.splits import SHOWN, one_hot
from medgen.data.table import flags_of, read_table
from medgen.data.timed import Timed
from medgen.errors import DataError
from medgen.types import Batch, Provenance, Schema, Study

Transform = Callable[[Batch], Batch]


class SyntheticDataset:
    """A dataset that `medgen sample` wrote. Item i is a `Batch` of one study, with provenance.

    Args:
        path: folder that holds `dataset.json`, `labels.csv`, `manifest.jsonl` and `images/`.
        transform: applied to every item.

    Raises:
        DataError: the folder is incomplete, does not say that it is synthetic, or puts a study
            outside the training split.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(self, path: Path | str, transform: Transform | None = None) -> None:
        folder = Path(path)
        about = _json(folder / "dataset.json")
        manifest = _manifest(folder / "manifest.jsonl")
        if (
            not isinstance(about, dict)
            or "schema" not in about
            or about.get("synthetic") is not True
        ):
            raise DataError(f"{folder}: dataset.json does not say `synthetic: true` and a schema.")
        schema = Schema.from_dict(about["schema"])
        table = read_table(folder / "labels.csv")
        if "mask" not in table.columns:
            schema = replace(schema, mask_classes=())
        self.transform = transform
        self.schema = replace(schema, text=schema.text and "report" in table.columns)
        reading = Reading(text=self.schema.text)
        if len(schema.size) == 3 and not schema.time:
            spacing = schema.spacing if len(schema.spacing) == 3 else None
            reading = replace(reading, spacing=spacing, window=schema.window or (-1.0, 1.0))
        self._files: Folder | Timed
        if schema.time:
            self._files = Timed(folder, table, schema, read_studies(table, reading))
        else:
            self._files = Folder(
                folder,
                schema.size,
                table="labels.csv",
                mask_classes=schema.mask_classes,
                scalars=schema.scalars,
                channels=schema.channels,
                reading=reading,
            )
        if schema.exclusive:
            values = table.column("finding", "the finding")
            place = {name: i for i, name in enumerate(schema.findings)}
            unknown = sorted(set(values) - {"", *place})
            table.refuse([f"finding '{name}' is none of the schema's" for name in unknown])
            classes = [place.get(value, -1) for value in values]
            self.labels: Tensor | None = one_hot(classes, len(place))
        else:
            flags = flags_of(table, schema.findings) if schema.findings else None
            self.labels = None if flags is None else torch.tensor(flags)
        self.studies = self._files.studies
        self.provenance = _matched(folder, manifest, self.studies)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        item = replace(
            self._files[index],
            label=None if self.labels is None else self.labels[index : index + 1],
            provenance=(self.provenance[index],),
        )
        return item if self.transform is None else self.transform(item)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON ({error}). Expected a complete dataset written by "
            "`medgen sample`; run that command again to complete it."
        ) from error


def _manifest(path: Path) -> dict[str, Provenance]:
    """Provenance by id; every line must say that its study is synthetic."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        named = ("id", "synthetic", "source", "seed", "condition")
        held = [Provenance(**{key: record.get(key) for key in named}) for record in records]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read, one JSON object a line ({error}).") from error
    real = [str(each.id) for each in held if each.synthetic is not True]
    if real:
        raise DataError(f"{path}: does not say `synthetic: true` for {', '.join(real[:SHOWN])}.")
    return {each.id: each for each in held}


def _matched(
    folder: Path, manifest: dict[str, Provenance], studies: Sequence[Study]
) -> tuple[Provenance, ...]:
    ids = [study.id for study in studies]
    if set(ids) != set(manifest):
        raise DataError(
            f"{folder}: labels.csv names {len(ids)} studies, manifest.jsonl {len(manifest)}, and "
            f"{len(set(ids) ^ set(manifest))} stand in one of them only. Do not edit either alone."
        )
    astray = [study.id for study in studies if study.split != "train"]
    if astray:
        raise DataError(
            f"{folder}: synthetic studies belong in the training split alone; not there: "
            f"{', '.join(astray[:SHOWN])}."
        )
    return tuple(manifest[study] for study in ids)
