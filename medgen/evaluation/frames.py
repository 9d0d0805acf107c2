"""Clips as frames: features from extractors of images, and frames as studies of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.errors import DataError
from medgen.evaluation.features import Extractor, images_of
from medgen.types import Batch, Schema, Study

Array = NDArray[np.float64]
FRAMES = 8
"""Frames of a clip, evenly spread, that stand for it where their order does not matter."""
CLIPS = 16
"""Clips whose frames are looked at together."""


class FrameFeatures:
    """The mean features of frames of a clip, from an extractor of images. Blind to their order.

    Args:
        extractor: of images.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.name = f"{extractor.name}, mean of {FRAMES} frames, blind to their order"
        self.digest = extractor.digest

    def features(self, images: Tensor) -> Array:
        """Clips (b c t h w) in [-1, 1] to features (b d)."""
        return self.sequences(images[:, :, places(images.shape[2])]).mean(axis=1)

    def sequences(self, images: Tensor) -> Array:
        """Features of every frame of clips (b c t h w), in order, (b t d)."""
        found = [
            self.extractor.features(frames_of(part)).reshape(len(part), part.shape[2], -1)
            for part in images.split(CLIPS)
        ]
        return np.concatenate(found)


def is_clip(schema: Schema) -> bool:
    """Whether images are clips: time, height, width."""
    return schema.time and len(schema.size) == 3


def places(count: int, most: int = FRAMES) -> Tensor:
    """Which of `count` frames stand for a clip: each in the middle of an equal part of it."""
    shown = min(most, count)
    return ((torch.arange(shown) + 0.5) / shown * count).long()


def frames_of(clips: Tensor) -> Tensor:
    """Frames of clips (b c t h w), clip after clip, ((b t) c h w)."""
    return clips.transpose(1, 2).flatten(0, 1)


def framed(batch: Batch) -> Batch:
    """`FRAMES` frames of every clip as studies of their own.

    They have the findings of their clip, its masks and provenance, not its scalars: an ejection
    fraction is not a frame's.
    """
    clips = images_of(batch)
    at = places(clips.shape[2])
    mask = None if batch.mask is None else batch.mask[:, at].flatten(0, 1)
    label = None if batch.label is None else batch.label.repeat_interleave(len(at), dim=0)
    spacing = batch.spacing
    origins = tuple(
        replace(each, id=_named(each.id, place)) for each in batch.provenance or () for place in at
    )
    return Batch(
        image=frames_of(clips[:, :, at]),
        mask=mask,
        label=label,
        spacing=None if spacing is None else spacing[:, 1:].repeat_interleave(len(at), dim=0),
        provenance=origins or None,
    )


def of_frames(schema: Schema) -> Schema:
    """The schema of frames.

    Raises:
        DataError: the schema is not of clips.
    """
    if not is_clip(schema):
        raise DataError(f"expected clips (time, height, width), got size {schema.size}")
    return replace(
        schema,
        size=schema.size[1:],
        spacing=schema.spacing[1:],
        scalars=(),
        time=False,
        leads=(),
        ecg_rate=0.0,
    )


@dataclass
class FrameStudies:
    """A dataset of frames of clips, in memory, each a study of the clip's patient and split.

    Args:
        schema: of the frames.
        studies: one a frame.
        batch: the frames.
    """

    schema: Schema
    studies: Sequence[Study]
    batch: Batch

    @classmethod
    def of(cls, schema: Schema, studies: Sequence[Study], clips: Batch) -> FrameStudies:
        """The frames of loaded clips."""
        at = places(schema.size[0]).tolist()
        each = [replace(s, id=_named(s.id, place)) for s in studies for place in at]
        return cls(of_frames(schema), each, framed(clips))

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        return self.batch.select([index])


def _named(clip: str, place: int | Tensor) -> str:
    return f"{clip}#frame{int(place)}"
