"""Features of volumes from extractors of images: slices along every axis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medgen.evaluation.features import Extractor, images_of
from medgen.types import Batch, Schema

Array = NDArray[np.float64]
SLICES = 8
"""Slices along an axis, evenly spread."""


class SliceFeatures:
    """The mean features of slices along an axis, for each of the three axes side by side.

    Args:
        extractor: of images.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.name = f"{extractor.name}, mean of {SLICES} slices along each of three axes"
        self.digest = extractor.digest

    def features(self, images: Tensor) -> Array:
        """Volumes (b c d h w) in [-1, 1] to features (b 3d)."""
        found = [
            self.extractor.features(slices(part).flatten(0, 1)).reshape(len(part), 3, SLICES, -1)
            for part in images.split(SLICES)
        ]
        return np.concatenate(found).mean(axis=2).reshape(len(images), -1)


def slices(volumes: Tensor) -> Tensor:
    """Slices of volumes (b c d h w), (b 24 c h w): 8 along each axis, all resized to height, width.

    Each stands in the middle of its eighth of the axis.
    """
    found: list[Tensor] = []
    for axis in (2, 3, 4):
        length = volumes.shape[axis]
        at = ((torch.arange(SLICES) + 0.5) / SLICES * length).long()
        plane = volumes.index_select(axis, at).movedim(axis, 1)  # (b slices c *plane)
        flat = plane.flatten(0, 1)
        if flat.shape[2:] != volumes.shape[3:]:
            flat = functional.interpolate(
                flat, size=list(volumes.shape[3:]), mode="bilinear", antialias=True
            )
        found.append(flat.view(len(volumes), SLICES, volumes.shape[1], *volumes.shape[3:]))
    return torch.cat(found, dim=1)


def sliced(batch: Batch) -> Batch:
    """The slices of studies as studies of their own, with the findings of their volume."""
    cut = slices(images_of(batch))
    label = None if batch.label is None else batch.label.repeat_interleave(cut.shape[1], dim=0)
    return Batch(image=cut.flatten(0, 1), label=label)


def of_slices(schema: Schema) -> Schema:
    """The schema of slices."""
    return replace(schema, size=schema.size[-2:], mask_classes=())
