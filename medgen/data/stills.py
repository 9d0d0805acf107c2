"""Single frames of clips as images, with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medgen.errors import DataError
from medgen.protocols import Dataset
from medgen.types import Batch, Schema, Study


class Stills:
    """A dataset of images: `count` frames of every clip, evenly spaced from its first one on.

    Patients and splits are those of the clips, so are findings and scalars; an ECG is left out.
    Frames of one clip stand side by side.

    Args:
        clips: a dataset of clips (time, height, width).
        count: frames of each clip; 1 is its first frame.

    Raises:
        DataError: the studies are no clips, or have fewer frames.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(self, clips: Dataset, count: int) -> None:
        held = clips.schema
        if not (held.time and len(held.size) == 3):
            raise DataError(f"data.stills: needs clips (time, height, width), got {held.size}")
        if not 1 <= count <= held.size[0]:
            raise DataError(f"data.stills: expected 1 to {held.size[0]} frames, got {count}")
        self._clips = clips
        self._places = [k * held.size[0] // count for k in range(count)]
        self.schema = replace(
            held,
            size=held.size[1:],
            spacing=held.spacing[1:],
            time=False,
            leads=(),
            ecg_rate=0.0,
        )
        self.studies = tuple(
            replace(study, id=_name(study.id, place))
            for study in clips.studies
            for place in self._places
        )

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        """Still `index` as a batch of one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"still {index} of a dataset of {len(self)}")
        clip, k = divmod(index % len(self), len(self._places))
        item, place = self._clips[clip], self._places[k]
        named = item.provenance and tuple(
            replace(each, id=_name(each.id, place)) for each in item.provenance
        )
        return replace(
            item,
            image=None if item.image is None else item.image[:, :, place],
            mask=None if item.mask is None else item.mask[:, place],
            spacing=None if item.spacing is None else item.spacing[:, 1:],
            ecg=None,
            frame=None,
            affine=None,
            provenance=named,
        )


def _name(clip: str, place: int) -> str:
    return f"{clip}-f{place:03d}"
