"""The reader of nnU-Net's raw layout: `dataset.json`, `imagesTr`, `labelsTr`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medgen.data.geometry import spacing_of
from medgen.data.images import Images, Reading
from medgen.data.splits import SHOWN, assign_splits
from medgen.data.table import inside
from medgen.data.volumes import read_geometry
from medgen.errors import DataError
from medgen.registry import register
from medgen.types import Batch, Provenance, Schema, Study

ENDINGS = (".nii.gz", ".nii")


@register("data", "nnunet")
class NnUnet:
    """Volumes and their label maps as nnU-Net keeps them, in NIfTI files.

    Each case of `imagesTr` is a patient of its own, split 70 : 10 : 20 by a hash of its name; what
    stands in `imagesTs` has no labels and is left alone. A case may have several channels.

    Args:
        root: folder that holds the data of this machine.
        size: the three sides of the volumes, in voxels; they are cut or padded around their centre.
        path: folder of `dataset.json`, relative to the root.
        spacing: mm between voxels to which volumes are resampled; None takes the median of the
            cases along each axis, "own" leaves every case as it is, for a `spacing` condition.
        window: intensities (HU for CT) that become -1 and 1; None takes the 0.5 and 99.5 %
            percentiles of each volume.
        masks: read the label maps.
        seed: of the split.

    Raises:
        DataError: the layout is not nnU-Net's, files are missing, or labels are no simple list.

    Source: Isensee et al. 2021, doi 10.1038/s41592-020-01008-z.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(
        self,
        root: Path,
        size: tuple[int, int, int],
        *,
        path: str = ".",
        spacing: tuple[float, float, float] | Literal["own"] | None = None,
        window: tuple[float, float] | None = None,
        masks: bool = True,
        seed: int = 0,
    ) -> None:
        if min(size) < 1:
            raise DataError(f"size: expected three sides of at least 1 voxel, got {size}.")
        self._folder = Path(root) / inside(Path(root), path)
        about = _about(self._folder / "dataset.json")
        names, classes = _channels(self._folder, about), _classes(self._folder, about)
        ending = about.get("file_ending", ENDINGS[0])
        if ending not in ENDINGS:
            raise DataError(
                f"{self._folder}: its files end in '{ending}'; expected {' or '.join(ENDINGS)}. "
                "Read 2-D images with the folder reader."
            )
        cases = _cases(self._folder / "imagesTr", ending)
        images = [
            [self._folder / "imagesTr" / f"{case}_{k:04d}{ending}" for k in range(len(names))]
            for case in cases
        ]
        labels = [self._folder / "labelsTr" / f"{case}{ending}" for case in cases]
        _exist(self._folder, [file for files in images for file in files])
        if masks:
            _exist(self._folder, labels)
        if spacing is None:
            spacing = _median_spacing([files[0] for files in images])
        self.schema = Schema(
            size=tuple(size),
            channels=len(names),
            mask_classes=classes if masks else (),
            spacing=() if spacing == "own" else spacing,
            window=window,
        )
        reading = Reading(spacing=None if spacing == "own" else spacing, window=window)
        self._images = Images(images, labels if masks else None, self.schema, reading)
        splits = assign_splits(cases, seed=seed)
        self.studies = tuple(Study(*each) for each in zip(cases, cases, splits, strict=True))

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)}")
        origin = Provenance(self.studies[index].id, synthetic=False, source=self._folder.name)
        return replace(self._images[index], provenance=(origin,))


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON ({error}). Expected the folder of an nnU-Net dataset, "
            "with dataset.json, imagesTr and labelsTr."
        ) from error
    if not isinstance(about, dict) or not isinstance(about.get("labels"), dict):
        raise DataError(f"{path}: expected an object with `labels`, names of classes to numbers.")
    return about


def _channels(folder: Path, about: dict[str, Any]) -> list[str]:
    names = about.get("channel_names", about.get("modality", {"0": "image"}))
    if not isinstance(names, dict) or sorted(names) != sorted(str(k) for k in range(len(names))):
        raise DataError(f"{folder / 'dataset.json'}: `channel_names` must number channels from 0.")
    return [str(names[str(k)]) for k in range(len(names))]


def _classes(folder: Path, about: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes in the order of their values 0, 1, ..."""
    labels = about["labels"]
    if all(str(key).isdigit() for key in labels):  # the layout before version 2: values to names
        labels = {str(name): int(value) for value, name in labels.items()}
    values = {value: str(name) for name, value in labels.items() if isinstance(value, int)}
    if len(values) != len(labels) or sorted(values) != list(range(len(values))):
        raise DataError(
            f"{folder / 'dataset.json'}: `labels` must give the classes the values 0, 1, 2, ...; "
            f"got {labels}. Regions and an ignore label are not read."
        )
    return tuple(values[value] for value in range(len(values)))


def _cases(folder: Path, ending: str) -> list[str]:
    tail = f"_0000{ending}"
    cases = sorted(path.name[: -len(tail)] for path in folder.glob(f"*{tail}"))
    if not cases:
        raise DataError(f"{folder}: holds no case, no file that ends in '{tail}'.")
    return cases


def _exist(folder: Path, files: Sequence[Path]) -> None:
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        more = f", and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"{folder}: {len(missing)} file(s) of {len(files)} are missing: "
            f"{', '.join(missing[:SHOWN])}{more}."
        )


def _median_spacing(files: Sequence[Path]) -> tuple[float, float, float]:
    held = np.array([spacing_of(read_geometry(file)) for file in files])
    x, y, z = np.median(held, axis=0).round(4).tolist()
    return x, y, z
