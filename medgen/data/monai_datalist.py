"""MONAI's datalist: JSON that names images and label maps, as Auto3DSeg and its bundles read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgen.data.exchange import folds_of, write_case
from medgen.data.images import Images, Reading
from medgen.data.splits import SHOWN, assign_splits
from medgen.data.table import inside
from medgen.disk import building, write_bytes
from medgen.errors import DataError
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.types import Batch, Provenance, Schema, Study

SECTIONS = {"training": "train", "validation": "validation", "testing": "test", "test": "test"}
"""Keys of a datalist, and the splits that they stand for."""


@register("data", "monai")
class MonaiDatalist:
    """Volumes and their label maps that a MONAI datalist names, in NIfTI files or DICOM folders.

    Each item is a patient of its own. Where the list holds neither `validation` nor `testing`, its
    items are split 70 : 10 : 20 by a hash of their names; folds are left alone. An image may be a
    list of channels.

    Args:
        root: folder that holds the data of this machine; the list's paths are relative to its own.
        size: the three sides of the volumes, in voxels; they are cut or padded around their centre.
        datalist: the JSON file, relative to the root.
        mask_classes: names of the label map's values 0, 1, ...; empty reads no label maps.
        spacing: mm between voxels to which volumes are resampled; None leaves every one as it is.
        window: intensities (HU for CT) that become -1 and 1; None takes the 0.5 and 99.5 %
            percentiles of each volume.
        seed: of the split.

    Raises:
        DataError: the list is no datalist, or names files that are not there.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(
        self,
        root: Path,
        size: tuple[int, int, int],
        *,
        datalist: str = "datalist.json",
        mask_classes: tuple[str, ...] = (),
        spacing: tuple[float, float, float] | None = None,
        window: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        self._path = Path(root) / inside(Path(root), datalist)
        items = _items(self._path, labelled=bool(mask_classes))
        base = self._path.parent
        images = [[base / inside(base, name) for name in item["image"]] for _, item in items]
        labels = [base / inside(base, item["label"]) for _, item in items if mask_classes]
        missing = [str(f) for files in [*images, labels] for f in files if not f.exists()]
        if missing:
            more = ", ..." * (len(missing) > SHOWN)
            raise DataError(f"{self._path}: {len(missing)} file(s) that it names are missing: "
                            f"{', '.join(missing[:SHOWN])}{more}.")  # fmt: skip
        widths = sorted({len(files) for files in images})
        if len(widths) > 1:
            raise DataError(f"{self._path}: images have {widths} channels; expected as many each.")
        self.schema = Schema(
            size=tuple(size),
            channels=widths[0],
            mask_classes=mask_classes,
            spacing=spacing or (),
            window=window,
        )
        reading = Reading(spacing=spacing, window=window)
        self._images = Images(images, labels if mask_classes else None, self.schema, reading)
        self.studies = _studies(items, seed)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)}")
        origin = Provenance(self.studies[index].id, synthetic=False, source=self._path.name)
        return replace(self._images[index], provenance=(origin,))


def write_monai(
    train: Dataset,
    test: Dataset,
    synthetic: Dataset,
    out: Path,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write real and synthetic studies with a MONAI datalist, the synthetic ones train-only.

    Real items carry a fold from 0 to 4, by patient; synthetic ones carry none, which MONAI reads as
    always in training. Identifiers are fresh.

    Args:
        train: real studies with masks, those that may be trained on.
        test: real studies with masks, held out: `testing`.
        synthetic: studies with masks and synthetic provenance.
        out: a new or empty folder.
        seed: deals patients to folds.
        progress: called with (cases written, cases in all).

    Raises:
        DataError: studies lack masks, their classes differ, a study is in the wrong place, or there
            are too few patients.
        OutputError: the folder holds something, is unwritable or full.
    """
    if synthetic.schema.mask_classes != train.schema.mask_classes:
        raise DataError(
            f"real and synthetic studies need masks of the same classes; they have "
            f"{train.schema.mask_classes} and {synthetic.schema.mask_classes}"
        )
    about: dict[str, Any] = {"training": [], "testing": []}
    total, done = len(train) + len(test) + len(synthetic), 0
    with building(out) as folder:
        for kind, dataset, section in (
            ("real", train, "training"),
            ("synthetic", synthetic, "training"),
            ("test", test, "testing"),
        ):
            for index in range(len(dataset)):
                case = f"{kind}_{index:05d}"
                files = write_case(folder, dataset, index, case=case, place="")
                about[section].append(files)
                done += 1
                if progress is not None:
                    progress(done, total)
        patients = [study.patient for study in train.studies]
        for fold, (_, held) in enumerate(folds_of(patients, range(len(train)), seed)):
            for index in held:
                about["training"][index]["fold"] = fold
        text = json.dumps({"labels": list(train.schema.mask_classes), **about}, indent=1)
        write_bytes(folder / "datalist.json", (text + "\n").encode())
    return out


def _items(path: Path, *, labelled: bool) -> list[tuple[str, dict[str, Any]]]:
    """Split and item of every study; images as lists."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        found = [
            (split, {**item, "image": _listed(item["image"])})
            for section, split in SECTIONS.items()
            for item in about.get(section, [])
        ]
        if labelled:
            found = [(split, {**item, "label": str(item["label"])}) for split, item in found]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: no datalist ({type(error).__name__}: {error}). Expected an object with "
            '`training`, a list of {"image": file, "label": file}.'
        ) from error
    if not found:
        raise DataError(f"{path}: lists no study under {', '.join(SECTIONS)}.")
    return found


def _listed(image: str | list[str]) -> list[str]:
    return [image] if isinstance(image, str) else [str(name) for name in image]


def _studies(items: Sequence[tuple[str, dict[str, Any]]], seed: int) -> tuple[Study, ...]:
    names = [item["image"][0].removesuffix(".gz").removesuffix(".nii") for _, item in items]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"datalist: images stand in it twice: {', '.join(repeated[:SHOWN])}.")
    splits = [split for split, _ in items]
    if set(splits) == {"train"}:
        splits = list(assign_splits(names, seed=seed))
    return tuple(Study(*each) for each in zip(names, names, splits, strict=True))
