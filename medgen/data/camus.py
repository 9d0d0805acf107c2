"""The reader of CAMUS's layout: `patientXXXX/patientXXXX_2CH_half_sequence.nii.gz` and its kin."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.data.geometry import Fit
from medgen.data.splits import assign_splits, one_hot
from medgen.data.table import inside
from medgen.data.volumes import read_stored
from medgen.data.windows import Cut, Source, check_size, cut, kept_windows, starts_of, window_batch
from medgen.errors import DataError
from medgen.registry import register
from medgen.types import Batch, Provenance, Schema, Study

logger = logging.getLogger(__name__)

View = Literal["2CH", "4CH"]
FINDINGS = {"2CH": "apical_two_chamber", "4CH": "apical_four_chamber"}
CLASSES = ("background", "cavity", "myocardium", "atrium")
SCALARS = {
    "ejection_fraction": ("EF", "LVef"),
    "end_diastolic_volume": ("LVedv",),
    "end_systolic_volume": ("LVesv",),
    "age": ("Age",),
    "sex": ("Sex",),
}
"""Scalars and what `Info_*.cfg` calls them, in its newer and older releases."""


@register("data", "camus")
class Camus:
    """Half cycles, from end diastole to end systole, of apical views, with masks of every frame.

    Patients are split 70 : 10 : 20 by a hash of their names. Half cycles shorter than a window are
    left out, and counted. Where a sequence has no masks, those of its end-diastolic and
    end-systolic frame are taken, and the others are -1.

    Args:
        root: folder that holds the data of this machine.
        size: frames, height and width of a window.
        path: folder of the patients, relative to the root.
        rate: frames a second, Hz; frames are the nearest in time.
        views: which views; each is a finding of its studies.
        source_rate: frames a second of sequences whose `Info_*.cfg` has no `FrameRate`.
        fit: how frames of another aspect meet the size.
        seed: of the split.

    Raises:
        DataError: the layout is another, or files are missing.

    Source: Leclerc et al. 2019, doi 10.1109/TMI.2019.2900516.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(
        self,
        root: Path,
        size: tuple[int, int, int],
        *,
        path: str = ".",
        rate: float = 25.0,
        views: tuple[View, ...] = ("2CH", "4CH"),
        source_rate: float | None = None,
        fit: Fit = "pad",
        seed: int = 0,
    ) -> None:
        check_size(size, rate)
        self.rate = rate
        self.fit: Fit = fit
        self._folder = Path(root) / inside(Path(root), path)
        sequences = sequences_of(self._folder, views)
        infos = [info_of(stem, source_rate) for stem in sequences]
        kept = self._long_enough(infos, size[0])
        self._sequences = [sequences[place] for place in kept]
        self._infos = [infos[place] for place in kept]
        self.schema = Schema(
            size=tuple(size),
            findings=tuple(FINDINGS[view] for view in views),
            exclusive=True,
            mask_classes=CLASSES,
            scalars=tuple(SCALARS),
            spacing=(1 / rate,),
            time=True,
        )
        names = [stem.name for stem in self._sequences]
        patients = [name.split("_")[0] for name in names]
        splits = assign_splits(patients, seed=seed)
        self.studies = tuple(Study(*each) for each in zip(names, patients, splits, strict=True))
        self.labels = one_hot([views.index(_view(name)) for name in names], len(views))
        self.scalars = torch.tensor([scalars_of(info) for info in self._infos])
        self._cuts = kept_windows(self._cut)

    def _long_enough(self, infos: Sequence[Mapping[str, Any]], length: int) -> list[int]:
        """The half cycles that hold a window; the others are counted."""
        kept = [
            place
            for place, info in enumerate(infos)
            if starts_of(int(info["NbFrame"]), info["FrameRate"], self.rate, length, None)
        ]
        reason = f"shorter than {length} frames at {self.rate:g} Hz"
        if not kept:
            raise DataError(
                f"{self._folder}: every half cycle is {reason}. Ask for fewer frames, or a higher "
                "rate."
            )
        short = len(infos) - len(kept)
        self.left_out: dict[str, int] = {reason: short} if short else {}
        if short:
            logger.warning("%s: %d half cycles left out: %s", self._folder, short, reason)
        return kept

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)}")
        origin = Provenance(self.studies[index].id, synthetic=False, source=self._folder.name)
        return replace(
            window_batch(self._cuts[index]),
            label=self.labels[index : index + 1],
            scalar=self.scalars[index : index + 1],
            provenance=(origin,),
        )

    def _cut(self, index: int) -> Cut:
        source = read_sequence(self._sequences[index], self._infos[index])
        size = (self.schema.size[0], self.schema.size[1], self.schema.size[2])
        return cut(source, size, self.rate, 0, self.fit)


def read_sequence(stem: Path, info: Mapping[str, Any]) -> Source:
    """A half cycle with its masks.

    Args:
        stem: PATIENT/PATIENT_VIEW, as `sequences_of` gives it.
        info: of the sequence, as `info_of` gives it.

    Raises:
        DataError: files are missing, damaged, or contradict each other.
    """
    frames, spacing = _stored(_file(stem, "half_sequence"))
    if len(frames) != int(info["NbFrame"]):
        raise DataError(
            f"{stem}: {len(frames)} frames, but {_info_file(stem).name} says NbFrame "
            f"{info['NbFrame']}."
        )
    masks = _masks(stem, info, frames.shape)
    return Source(frames.astype(np.uint8), info["FrameRate"], spacing, masks)


def sequences_of(folder: Path, views: Sequence[View]) -> list[Path]:
    """The stems PATIENT/PATIENT_VIEW of a folder, sorted.

    Raises:
        DataError: there are none, or the views are not one or more, each once.
    """
    if len(set(views)) < len(views) or not views:
        raise DataError(f"expected one view or more, each once, got {views}.")
    stems = [
        file.parent / f"{file.parent.name}_{view}"
        for view in views
        for file in folder.glob(f"patient*/patient*_{view}_half_sequence.nii.gz")
    ]
    if not stems:
        raise DataError(
            f"{folder}: holds no patientXXXX/patientXXXX_{views[0]}_half_sequence.nii.gz. Expected "
            "the folder `database_nifti` of CAMUS."
        )
    return sorted(stems)


def _view(name: str) -> View:
    return "2CH" if name.endswith("2CH") else "4CH"


def _info_file(stem: Path) -> Path:
    return stem.parent / f"Info_{_view(stem.name)}.cfg"


def info_of(stem: Path, source_rate: float | None = None) -> dict[str, Any]:
    """What `Info_*.cfg` says, `NbFrame` and `FrameRate` as numbers above 0.

    Raises:
        DataError: the file cannot be read, or lacks either.
    """
    path = _info_file(stem)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    found: dict[str, Any] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()
    found.setdefault("FrameRate", source_rate)
    if found["FrameRate"] is None:
        raise DataError(f"{path}: has no FrameRate. Say it with `source_rate`, in Hz.")
    for name in ("NbFrame", "FrameRate"):
        found[name] = _number(found.get(name))
        if not found[name] > 0:
            raise DataError(f"{path}: expected {name} above 0. Mend the file, or drop the patient.")
    return found


def _number(text: Any) -> float:
    found = re.match(r"[-+]?\d+(\.\d+)?", str(text))
    return float(found[0]) if found else float("nan")


def scalars_of(info: Mapping[str, Any]) -> list[float]:
    """The values of `SCALARS` in what `Info_*.cfg` says; NaN where it does not."""
    values = []
    for names in SCALARS.values():
        text = next((info[name] for name in names if name in info), None)
        sexes = {"F": 0.0, "M": 1.0}
        values.append(sexes.get(str(text), float("nan")) if names == ("Sex",) else _number(text))
    return values


def _file(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}_{part}.nii.gz")


def _stored(path: Path) -> tuple[NDArray[Any], tuple[float, float]]:
    """Whole numbers from 0 to 255, (t h w), and mm between rows and between columns."""
    voxels, zooms = read_stored(path)
    held = voxels if voxels.ndim == 3 else voxels[..., None]
    if held.min() < 0 or held.max() > 255 or (held != np.rint(held)).any():
        raise DataError(f"{path}: expected whole numbers from 0 to 255. Drop its patient.")
    return held.transpose(2, 1, 0), (zooms[1], zooms[0])


def _masks(
    stem: Path, info: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[int, NDArray[np.int64]]:
    """Classes (h w) by frame: of the whole sequence, or else of its first and last moment."""
    whole = _file(stem, "half_sequence_gt")
    if whole.is_file():
        found = dict(enumerate(_stored(whole)[0]))
    else:
        moments = {part: _number(info.get(part)) - 1 for part in ("ED", "ES")}
        if any(not 0 <= frame < shape[0] for frame in moments.values()):
            raise DataError(f"{_info_file(stem)}: ED and ES must lie from 1 to {shape[0]}.")
        found = {
            int(frame): _stored(_file(stem, f"{part}_gt"))[0][0] for part, frame in moments.items()
        }
    for mask in found.values():
        if mask.shape != shape[1:] or mask.max() >= len(CLASSES) or len(found) > shape[0]:
            raise DataError(
                f"{stem}: its masks are {mask.shape} with classes up to {int(mask.max())}; "
                f"expected {shape[1:]} and the classes {', '.join(CLASSES)} from 0."
            )
    return {frame: mask.astype(np.int64) for frame, mask in found.items()}
