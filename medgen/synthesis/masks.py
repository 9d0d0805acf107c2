"""Masks to ask a generator for, from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medgen.data.files import read_mask
from medgen.data.volumes import read_volume
from medgen.errors import DataError
from medgen.synthesis.contract import Geometry, tilt_of
from medgen.types import Schema


def mask_folder(folder: Path, schema: Schema, geometry: Geometry | None = None) -> Tensor:
    """Every mask of a folder, PNG files or NIfTI files of volumes, in the order of names.

    Raises:
        DataError: the model takes no masks, the folder holds none, or one does not fit.
    """
    if not schema.mask_classes:
        raise DataError("this model was trained without masks; leave --masks out")
    pattern = "*.png" if len(schema.size) == 2 else "*.nii*"
    return read_masks(sorted(folder.glob(pattern)), schema, geometry)


def read_masks(files: list[Path], schema: Schema, geometry: Geometry | None = None) -> Tensor:
    """Masks as (m *s) integer classes, resized to the schema's size.

    Args:
        files: PNG files, or NIfTI files of volumes.
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
        stored = read_mask(file) if len(schema.size) == 2 else _volume(file, schema, geometry)
        values = torch.from_numpy(stored.astype(np.int64))
        if classes == 2 and set(values.unique().tolist()) <= {0, 255}:
            values = values.clamp(max=1)
        if values.max() >= classes:
            raise DataError(f"{file}: holds class {int(values.max())}; known: 0 to {classes - 1}")
        resized = torch.nn.functional.interpolate(
            values[None, None].double(), size=schema.size, mode="nearest-exact"
        )
        masks.append(resized[0, 0].long())
    return torch.stack(masks)


def _volume(file: Path, schema: Schema, geometry: Geometry | None) -> np.ndarray:
    """The classes of a volume whose spacing, once it has the schema's size, is a trained one."""
    volume = read_volume(file)
    if geometry is not None:
        stretched = volume.spacing * np.array(volume.voxels.shape) / np.array(schema.size)
        geometry.require(torch.from_numpy(stretched[None]), f"{file}: ")
        geometry.require_tilt(tilt_of(torch.from_numpy(volume.affine[None])), f"{file}: ")
    return volume.voxels
