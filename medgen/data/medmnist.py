"""MedMNIST: standard small datasets, one npz file each, read from disk and never downloaded.

Source: Yang et al. 2023, "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D
biomedical image classification", Scientific Data 10, 41.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.data.files import to_channels
from medgen.data.geometry import fit_image
from medgen.data.splits import SHOWN, one_hot
from medgen.errors import DataError, did_you_mean
from medgen.registry import register
from medgen.types import Batch, Provenance, Schema, Study

PARTS = {"train": "train", "val": "validation", "test": "test"}
"""Parts of a file, and the splits that they are."""

MAX_BYTES = 32 * 2**30
"""The most that a file may unpack to, in bytes."""

logger = logging.getLogger(__name__)


@register("data", "medmnist")
class MedMNIST:
    """A MedMNIST file, 2-D or 3-D, with its own three splits.

    The files name no patients: every image counts as its own, and a warning says so.

    Args:
        root: folder that holds the data of this machine.
        name: such as "pneumoniamnist" or "pneumoniamnist_64", or the path of an npz file relative
            to the root. The folder where the `medmnist` package keeps its files is searched too.
        size: of the images; None keeps the file's. 3-D images keep theirs.
        findings: names of the classes or findings; otherwise those that the `medmnist` package
            tells, where it is installed, else their numbers.
        channels: 1 turns colour into luminance; 3 repeats gray.

    Raises:
        DataError: there is no such file, or it does not hold what MedMNIST files hold.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(
        self,
        root: Path,
        name: str,
        size: tuple[int, ...] | None = None,
        *,
        findings: tuple[str, ...] | None = None,
        channels: int = 1,
    ) -> None:
        path = _find(Path(root), name)
        images, labels = _load(path)
        self._images = [each for part in images for each in part]
        self._source = path.stem
        axes = 3 if images[0].ndim == 5 or (images[0].ndim == 4 and images[0].shape[-1] > 4) else 2
        stored = tuple(images[0].shape[1 : 1 + axes])
        if size is not None and axes == 3 and tuple(size) != stored:
            raise DataError(f"{path}: 3-D images are read at their own size {stored}, got {size}.")
        values = np.concatenate(labels).astype(np.int64)
        exclusive = values.shape[1] == 1
        count = int(values.max()) + 1 if exclusive else values.shape[1]
        names = findings or _names(path.stem, count)
        if len(names) != count:
            raise DataError(f"{path}: has {count} findings, got {len(names)} names for them.")
        self.labels: Tensor | None = (
            one_hot(values[:, 0].tolist(), count) if exclusive else torch.from_numpy(values)
        )
        self.schema = Schema(tuple(size or stored), channels, tuple(names), exclusive)
        self.studies = tuple(
            Study(f"{part}-{i}", f"{part}-{i}", split)
            for (part, split), held in zip(PARTS.items(), images, strict=True)
            for i in range(len(held))
        )
        logger.warning("%s: names no patients; every image is its own patient", path)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        stored = self._images[index]
        axes = len(self.schema.size)
        pixels = stored[None] if stored.ndim == axes else np.moveaxis(stored, -1, 0)
        try:
            pixels = to_channels(pixels.astype(np.float32) / 255, self.schema.channels)
        except ValueError as error:
            raise DataError(f"{self._source}: {error}.") from error
        if axes == 2:
            pixels = fit_image(pixels, (self.schema.size[0], self.schema.size[1]))
        assert self.labels is not None
        return Batch(
            image=torch.from_numpy(pixels)[None].clamp(0, 1) * 2 - 1,
            label=self.labels[index : index + 1],
            provenance=(Provenance(self.studies[index].id, synthetic=False, source=self._source),),
        )


def _find(root: Path, name: str) -> Path:
    file = name if name.endswith(".npz") else f"{name}.npz"
    folders = [root, root / "medmnist", Path.home() / ".medmnist"]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    held = sorted(
        path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.npz")
    )
    raise DataError(
        f"no file {file} in {', '.join(map(str, folders))}. {did_you_mean(Path(file).stem, held)} "
        "Download it from https://medmnist.com, or with the `medmnist` package."
    )


def _load(path: Path) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Images and labels of the three parts, checked."""
    keys = [f"{part}_{kind}" for kind in ("images", "labels") for part in PARTS]
    try:
        with zipfile.ZipFile(path) as packed:
            unpacked = sum(entry.file_size for entry in packed.infolist())
        if unpacked > MAX_BYTES:
            raise DataError(f"{path}: would unpack to {unpacked / 2**30:.0f} GiB; refused.")
        with np.load(path, allow_pickle=False) as held:
            missing = [key for key in keys if key not in held]
            if missing:
                raise DataError(
                    f"{path}: lacks {', '.join(missing)}; it holds {list(held)[:SHOWN]}."
                )
            arrays = [held[key] for key in keys]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise DataError(f"{path}: not a readable npz file ({error}).") from error
    images, labels = arrays[:3], arrays[3:]
    for part, image, label in zip(PARTS, images, labels, strict=True):
        shapes = (image.shape[1:], label.shape[1:]) == (images[0].shape[1:], labels[0].shape[1:])
        integers = image.dtype == np.uint8 and label.dtype.kind in "iu" and label.ndim == 2
        integers = integers and label.size > 0 and label.min() >= 0
        if not shapes or not integers or len(image) != len(label) or image.ndim not in (3, 4, 5):
            raise DataError(
                f"{path}: expected uint8 {part}_images (n, height, width[, depth][, 3]) and labels "
                f"(n, k) from 0 of like shapes, got {image.dtype} {image.shape} and "
                f"{label.dtype} {label.shape}."
            )
    return images, labels


def _names(stem: str, count: int) -> tuple[str, ...]:
    """Names of the classes, as far as the package knows the file."""
    try:
        from medmnist import INFO  # pyright: ignore
    except ImportError:
        INFO = {}  # noqa: N806  (the package's name)
    known = INFO.get(stem.split("_")[0], {}).get("label", {})
    return tuple(known.get(str(i), str(i)) for i in range(count))
