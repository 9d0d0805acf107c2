"""Images that carry their masks as further channels, so that one generator makes both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from medgen.errors import DataError
from medgen.nn.masks import mask_channels
from medgen.protocols import Dataset
from medgen.types import Batch, Schema, Study


class Joint:
    """A dataset whose images have the masks as further channels. Item i is a `Batch` of one study.

    Args:
        dataset: of images with masks, of which every pixel has a class.

    Raises:
        DataError: it has no masks, or a mask has pixels of unknown class.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, held = dataset, dataset.schema
        if not held.mask_classes:
            raise DataError("data.joint: needs studies with masks; name their `mask_classes`")
        added = len(held.mask_classes) - 1
        self.schema = replace(held, channels=held.channels + added, mask_channels=added)
        self.studies = dataset.studies

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Batch:
        item = self._dataset[index]
        if item.image is None or item.mask is None or int(item.mask.min()) < 0:
            name = self.studies[index].id
            raise DataError(f"data.joint: study '{name}' lacks the class of some or all pixels")
        channels = mask_channels(item.mask, len(self.schema.mask_classes))
        return replace(item, image=torch.cat([item.image, channels], dim=1))
