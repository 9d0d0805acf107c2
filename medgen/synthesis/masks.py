"""Masks to ask a generator for, from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medgen.data.files import read_mask
from medgen.data.timed import read_timed_mask
from medgen.data.volumes import read_volume
from medgen.errors import DataError
from medgen.synthesis.contract import Geometry, tilt_of
from medgen.types import Schema


def mask_folder(folder: Path, schema: Schema, geometry: Geometry | None = None) -> Tensor:
    """Every mask of a folder, PNG, NIfTI files of volumes or AVI files of clips, in order of names.

    Raises:
        DataError: the model takes no masks, the folder holds none, or one does not fit.
    """
    if not schema.mask_classes:
        raise DataError("this model was trained without masks; leave --masks out")
    pattern = "*.avi" if schema.time else "*.png" if len(schema.size) == 2 else "*.nii*"
    return read_masks(sorted(folder.glob(pattern)), schema, geometry)


def read_masks(files: list[Path], schema: Schema, geometry: Geometry | None = None) -> Tensor:
    """Masks as (m *s) integer classes, resized to the schema's size.

    Args:
        files: PNG files, NIfTI files of volumes, or AVI files of clips.
        schema: names the classes.
        geometry: of the training studies, against which volumes are held at their new size.

    Raises:
        DataError: no files, one with a class that the schema does not have, or a geometry that the
            model was not trained on.
    """
    if not files:
        raise DataError("expected at least one mask file, found none")
    classes = max(len(schema.mask_classes), 1)
    masks = []
    for file in files:
        values = _stored(file, schema, geometry)
        if classes == 2 and set(values.unique().tolist()) <= {0, 255}:
            values = values.clamp(max=1)
        if values.max() >= classes:
            raise DataError(f"{file}: holds class {int(values.max())}; known: 0 to {classes - 1}")
        resized = torch.nn.functional.interpolate(
            values[None, None].double(), size=schema.size, mode="nearest-exact"
        )
        masks.append(resized[0, 0].long())
    return torch.stack(masks)


def _stored(file: Path, schema: Schema, geometry: Geometry | None) -> Tensor:
    """Classes (*s) of a file, as they are stored."""
    if schema.time:
        return read_timed_mask(file)
    held = read_mask(file) if len(schema.size) == 2 else _volume(file, schema, geometry)
    return torch.from_numpy(held.astype(np.int64))


def _volume(file: Path, schema: Schema, geometry: Geometry | None) -> np.ndarray:
    """The classes of a volume whose spacing, once it has the schema's size, is a trained one."""
    volume = read_volume(file)
    if geometry is not None:
        stretched = volume.spacing * np.array(volume.voxels.shape) / np.array(schema.size)
        geometry.require(torch.from_numpy(stretched[None]), f"{file}: ")
        geometry.require_tilt(tilt_of(torch.from_numpy(volume.affine[None])), f"{file}: ")
    return volume.voxels
