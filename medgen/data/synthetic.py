"""An exported synthetic dataset as a dataset again, and its mixture with real training studies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.data.folder import Folder
from medgen.data.images import Reading
from medgen.data.splits import SHOWN, labels_of, one_hot
from medgen.data.table import flags_of, read_table
from medgen.errors import DataError
from medgen.protocols import Dataset
from medgen.rng import Rng, derive
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
        self.schema = replace(schema, text=False)
        reading = Reading()
        if len(schema.size) == 3:
            reading = Reading(spacing=schema.spacing or None, window=schema.window or (-1.0, 1.0))
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


class Mixed:
    """Studies of several datasets in their order, each with what all of them hold.

    With a `torch.utils.data.DataLoader`, pass `collate_fn=Batch.concat`.

    Args:
        schema: what all datasets hold; other fields of an item are None.
        parts: datasets and which of their studies.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(self, schema: Schema, parts: Sequence[tuple[Dataset, Sequence[int]]]) -> None:
        self.schema = schema
        self._places = [(dataset, index) for dataset, indices in parts for index in indices]
        self.studies = tuple(dataset.studies[index] for dataset, index in self._places)
        labels = [labels_of(dataset) for dataset, _ in parts]
        chosen = [
            held[list(indices)]
            for held, (_, indices) in zip(labels, parts, strict=True)
            if held is not None
        ]
        self.labels: Tensor | None = torch.cat(chosen) if schema.findings else None

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


def mix(real: Dataset, synthetic: Dataset, *, ratio: float, seed: int) -> Mixed:
    """Real training studies and, for each of them, `ratio` synthetic ones drawn without repeats.

    A smaller ratio draws a part of what a larger one draws with the same seed. Findings, masks,
    scalars or reports that only one of the two holds are left out.

    Args:
        real: training studies only.
        synthetic: studies whose provenance says synthetic.
        ratio: synthetic studies for each real one; 0.5 is one for every two.
        seed: another seed, other synthetic studies.

    Raises:
        DataError: a real study is not in the training split, a study's provenance is not as said,
            the schemas differ, or there are too few synthetic studies.
        ValueError: the ratio is negative.
    """
    if not ratio >= 0:
        raise ValueError(f"expected a ratio of at least 0, got {ratio}")
    schema = common_schema(real.schema, synthetic.schema)
    astray = [study.id for study in real.studies if study.split != "train"]
    if astray:
        raise DataError(
            f"only training studies are mixed; {len(astray)} are in another split: "
            f"{', '.join(astray[:SHOWN])}. Take `by_split(dataset, 'train')` first."
        )
    wanted = round(ratio * len(real))
    if wanted > len(synthetic):
        raise DataError(
            f"a ratio of {ratio:g} for {len(real)} real studies needs {wanted} synthetic ones; "
            f"there are {len(synthetic)}: sample {wanted - len(synthetic)} more, or lower it."
        )
    keys = Rng([derive(seed, "mix")]).uniform((len(synthetic),))[0]
    drawn = keys.argsort(stable=True)[:wanted].tolist()
    for dataset, indices, expected in ((real, range(len(real)), False), (synthetic, drawn, True)):
        _check_provenance(dataset, indices, expected)
    return Mixed(schema, [(real, range(len(real))), (synthetic, drawn)])


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


def _check_provenance(dataset: Dataset, indices: Sequence[int], expected: bool) -> None:
    for index in indices:
        known = dataset[index].provenance
        synthetic = known is not None and known[0].synthetic
        if synthetic != expected:
            kind = "a synthetic" if synthetic else "a real"
            raise DataError(
                f"study '{dataset.studies[index].id}' is {kind} study by its provenance, expected "
                f"{'a synthetic' if expected else 'a real'} one."
            )
