"""From the files of studies to pixels and masks of one size, kept in memory once they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.data.dicom_series import read_series
from medgen.data.files import read_image, read_mask, to_channels
from medgen.data.geometry import Fit, Volume, fit_image, fit_mask, regrid, to_unit
from medgen.data.splits import SHOWN
from medgen.data.volumes import read_volume
from medgen.errors import DataError
from medgen.types import Batch, Schema

CACHE_BYTES = 2 * 2**30
"""Resized images that one dataset keeps in memory; beyond it, files are read each time."""

TAILS = (0.5, 99.5)
"""Percentiles of a volume's voxels that become -1 and 1 where it is read through no window."""

APART = 0.1
"""Mm by which the corners of an image and its mask may lie apart."""


@dataclass(frozen=True)
class Reading:
    """The rarer choices of how studies are read.

    Args:
        fit: how images of another aspect meet the size: "crop" cuts the centre out, "pad" adds
            black, "squash" stretches. Volumes are cut or padded around their centre.
        seed: of the split by patient, where the table has no column `split`.
        text: the studies carry a report, in column `report`.
        columns: the table's own names for `image`, `mask`, `patient`, `split`, `report` or `id`,
            such as {"image": "filename"}.
        spacing: mm between voxels to which volumes are resampled; None keeps each volume's own.
        window: intensities of volumes (HU for CT) that become -1 and 1; None takes the 0.5 and
            99.5 % percentiles of each volume.
    """

    fit: Fit = "crop"
    seed: int = 0
    text: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    spacing: tuple[float, float, float] | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        known = {"image", "mask", "patient", "split", "report", "id"}
        if not set(self.columns) <= known:
            raise DataError(f"`columns` renames {', '.join(sorted(known))}; got {self.columns}.")
        if self.spacing is not None and not min(self.spacing) > 0:
            raise DataError(f"`spacing` is three lengths above 0 mm; got {self.spacing}.")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise DataError(f"`window` is a lower and a higher intensity; got {self.window}.")

    def name(self, role: str) -> str:
        """The table's name of a column."""
        return self.columns.get(role, role)


@dataclass(frozen=True)
class _Kept:
    """What is kept in memory of a study: pixels (c *s) and classes (*s) as integers."""

    pixels: NDArray[Any]
    mask: NDArray[Any] | None
    affine: NDArray[np.float64] | None = None

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + (0 if self.mask is None else self.mask.nbytes)


class Images(Sequence[Batch]):
    """The images and masks of studies at the size of a schema. Item i is a `Batch` of one study.

    Images stay in the bits that they are stored in, volumes are kept in 16 bits.

    Args:
        images: the files of every study: one image, or one volume a channel.
        masks: a file a study; None: no masks.
        schema: size, channels and mask classes.
        reading: how to read them.
    """

    def __init__(
        self,
        images: Sequence[Sequence[Path]],
        masks: Sequence[Path] | None,
        schema: Schema,
        reading: Reading,
    ) -> None:
        self.images, self.masks = images, masks
        self.schema, self.reading = schema, reading
        self._cache: dict[int, _Kept] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        kept = self._cache.get(index)
        if kept is None:
            kept = self._image(index) if len(self.schema.size) == 2 else self._volume(index)
            if self._cached_bytes + kept.nbytes <= CACHE_BYTES:
                self._cached_bytes += kept.nbytes
                self._cache[index] = kept
        pixels, mask, affine = kept.pixels, kept.mask, kept.affine
        image = torch.from_numpy(pixels.astype(np.float32)) * (2 / np.iinfo(pixels.dtype).max) - 1
        where = None if affine is None else Volume(pixels[0], affine)
        return Batch(
            image=image[None],
            mask=None if mask is None else torch.from_numpy(mask.astype(np.int64))[None],
            spacing=None if where is None else torch.from_numpy(where.spacing).float()[None],
            affine=None if where is None else torch.from_numpy(where.affine).float()[None],
        )

    def _image(self, index: int) -> _Kept:
        height, width = self.schema.size
        path = self.images[index][0]
        image = read_image(path)
        try:
            pixels = to_channels(image.pixels, self.schema.channels)
        except ValueError as error:
            raise DataError(f"{path}: {error}.") from error
        kind = np.uint8 if image.bits <= 8 else np.uint16
        fitted = fit_image(pixels, (height, width), self.reading.fit).clip(0, 1)
        stored = np.rint(fitted * np.iinfo(kind).max).astype(kind)
        if self.masks is None:
            return _Kept(stored, None)
        classes = classes_in(self.masks[index], self.schema.mask_classes, pixels.shape[1:])
        mask = fit_mask(classes, (height, width), self.reading.fit)
        return _Kept(stored, self._small(mask))

    def _volume(self, index: int) -> _Kept:
        size = (self.schema.size[0], self.schema.size[1], self.schema.size[2])
        spacing, channels, place, affine = self.reading.spacing, [], None, None
        for path in self.images[index]:
            volume = read_series(path) if path.is_dir() else read_volume(path)
            place = place or volume
            _same_place(self.images[index][0], place, path, volume)
            window = self.reading.window or _tails(path, volume)
            moved = regrid(volume, size, spacing, fill=window[0])
            channels.append(np.rint((to_unit(moved.voxels, window) + 1) * 32767.5))
            affine = moved.affine
        assert place is not None
        stored = np.stack(channels).astype(np.uint16)
        if self.masks is None:
            return _Kept(stored, None, affine)
        mask = read_volume(self.masks[index])
        _same_place(self.images[index][0], place, self.masks[index], mask)
        classes = _named(self.masks[index], mask.voxels, self.schema.mask_classes)
        moved = regrid(Volume(classes, mask.affine), size, spacing, labels=True)
        return _Kept(stored, self._small(moved.voxels), affine)

    def _small(self, mask: NDArray[Any]) -> NDArray[Any]:
        return mask.astype(np.min_scalar_type(len(self.schema.mask_classes)))


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
    return _named(path, mask, names)


def _named(path: Path, mask: NDArray[Any], names: Sequence[str]) -> NDArray[Any]:
    """A mask whose values all have a name; of two classes, 255 is 1."""
    values = np.unique(mask).tolist()
    if len(names) == 2 and set(values) <= {0, 255}:
        return mask // 255
    unlisted = [value for value in values if not 0 <= value < len(names) or value != int(value)]
    if unlisted:
        raise DataError(
            f"{path}: the mask has values {unlisted[:SHOWN]} beyond its {len(names)} classes "
            f"({', '.join(f'{i} {name}' for i, name in enumerate(names))}). List them in "
            "`mask_classes`, or mend the mask."
        )
    return mask


def _same_place(first: Path, one: Volume, second: Path, other: Volume) -> None:
    """Refuse two volumes that do not lie on the same grid.

    Raises:
        DataError: names both files and how far they lie apart.
    """
    if one.voxels.shape == other.voxels.shape:
        corners = np.array([[0, 0, 0, 1], [*one.voxels.shape, 1]], dtype=np.float64).T
        apart = float(np.abs((one.affine - other.affine) @ corners).max())
        if apart <= APART:
            return
        found = f"their corners lie {apart:.2g} mm apart"
    else:
        found = f"they have {one.voxels.shape} and {other.voxels.shape} voxels"
    raise DataError(
        f"{second}: does not lie on the grid of {first}: {found}. Resample one to the other's grid."
    )


def _tails(path: Path, volume: Volume) -> tuple[float, float]:
    low, high = np.percentile(volume.voxels, TAILS).tolist()
    if not low < high:
        low, high = float(volume.voxels.min()), float(volume.voxels.max())
    if not low < high:
        raise DataError(f"{path}: all voxels are {low:g}. Drop its row, or give a `window`.")
    return low, high
