"""The reader of EchoNet-Dynamic: `FileList.csv`, `VolumeTracings.csv`, `Videos/NAME.avi`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.data.clips import nearest_frames, read_clip
from medgen.data.geometry import Fit
from medgen.data.splits import SHOWN, check_leakage
from medgen.data.table import Table, inside, numbers_of, read_table, repeated, splits_of
from medgen.data.windows import (
    Cut,
    Source,
    check_size,
    cut,
    kept_windows,
    place_of,
    starts_of,
    window_batch,
)
from medgen.errors import DataError
from medgen.registry import register
from medgen.types import Batch, Provenance, Schema, Study

logger = logging.getLogger(__name__)

SCALARS = {
    "ejection_fraction": "EF",
    "end_diastolic_volume": "EDV",
    "end_systolic_volume": "ESV",
}
"""Scalars and their columns: percent, mL, mL."""

FRAMES = ("end_diastolic_frame", "end_systolic_frame")
CLASSES = ("background", "cavity")
SHAPE = ("NumberOfFrames", "FrameHeight", "FrameWidth")


@register("data", "echonet")
class EchoNet:
    """Apical four-chamber clips with ejection fraction and volumes, as EchoNet-Dynamic keeps them.

    Every video is a patient of its own; the column `Split` says where it belongs. Clips shorter
    than a window are left out, and counted. With masks, the window is laid so that it holds both
    traced frames where it can; a mask is 1 in the traced cavity of these, -1 on all other frames,
    and scalars name the two frames of the window (NaN where one lies outside).

    Args:
        root: folder that holds the data of this machine.
        size: frames, height and width of a window.
        path: folder of `FileList.csv`, relative to the root.
        rate: frames a second, Hz; frames are the nearest in time.
        stride: frames between the windows of a clip; None takes one window a clip.
        masks: read `VolumeTracings.csv`.
        fit: how frames of another aspect meet the size.

    Raises:
        DataError: the layout is another, files are missing, or videos are not what the list says.
        LeakageError: a video stands in two splits.

    Source: Ouyang et al. 2020, doi 10.1038/s41586-020-2145-8.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(
        self,
        root: Path,
        size: tuple[int, int, int],
        *,
        path: str = ".",
        rate: float = 32.0,
        stride: int | None = None,
        masks: bool = False,
        fit: Fit = "crop",
    ) -> None:
        check_size(size, rate)
        self.rate = rate
        self.fit: Fit = fit
        self._folder = Path(root) / inside(Path(root), path)
        table = read_table(self._folder / "FileList.csv")
        names = [name.removesuffix(".avi") for name in table.column("FileName", "the videos")]
        table.refuse([f"video '{name}' stands twice" for name in repeated(names)])
        self._videos = [self._folder / "Videos" / f"{inside(table.path, n)}.avi" for n in names]
        _exist(self._folder, self._videos)
        self._listed = np.array(numbers_of(table, ("FPS", *SHAPE)))
        table.refuse(_unreadable(self._listed))
        self._traced = _tracings(self._folder / "VolumeTracings.csv", set(names)) if masks else {}
        self._names = names
        self.schema = Schema(
            size=tuple(size),
            mask_classes=CLASSES if masks else (),
            scalars=(*SCALARS, *(FRAMES if masks else ())),
            spacing=(1 / rate,),
            time=True,
        )
        self.left_out: dict[str, int] = {}
        self._windows = self._laid(table, stride)
        splits = splits_of(table, "Split")
        self.studies = tuple(
            Study(names[i] if stride is None else f"{names[i]}-{start:05d}", names[i], splits[i])
            for i, start in self._windows
        )
        check_leakage(self.studies)
        values = torch.tensor(numbers_of(table, tuple(SCALARS.values())))
        self.scalars = torch.cat(
            [values[[i for i, _ in self._windows]], self._traced_frames()], dim=1
        )
        self._cuts = kept_windows(self._cut)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)}")
        origin = Provenance(self.studies[index].id, synthetic=False, source=self._folder.name)
        batch = window_batch(self._cuts[index])
        return replace(batch, scalar=self.scalars[index : index + 1], provenance=(origin,))

    def _laid(self, table: Table, stride: int | None) -> list[tuple[int, int]]:
        """Video and first frame, at the new rate, of every window."""
        windows, short = [], 0
        for place, (fps, count, _, _) in enumerate(self._listed):
            starts = starts_of(int(count), fps, self.rate, self.schema.size[0], stride)
            short += not starts
            traced = self._traced.get(self._names[place])
            if starts and stride is None and traced:
                last = starts_of(int(count), fps, self.rate, self.schema.size[0], 1)[-1]
                middle = (min(traced) + max(traced)) / 2 * self.rate / fps
                starts = [min(max(0, round(middle - self.schema.size[0] / 2)), last)]
            windows += [(place, start) for start in starts]
        if short:
            reason = f"shorter than {self.schema.size[0]} frames at {self.rate:g} Hz"
            self.left_out[reason] = short
            logger.warning(
                "%s: %d of %d clips left out: %s", table.path, short, len(table.rows), reason
            )
        if not windows:
            raise DataError(
                f"{table.path}: every clip is shorter than {self.schema.size[0]} frames at "
                f"{self.rate:g} Hz. Ask for fewer frames, or a higher rate."
            )
        return windows

    def _traced_frames(self) -> torch.Tensor:
        """Place in its window of the frame with the larger and with the smaller cavity, or NaN."""
        if not self.schema.mask_classes:
            return torch.zeros(len(self._windows), 0)
        found = torch.full((len(self._windows), 2), torch.nan)
        for row, (video, start) in enumerate(self._windows):
            fps, count = self._listed[video][:2]
            contours = self._traced.get(self._names[video], {})
            areas = {frame: _area(points) for frame, points in contours.items()}
            order = nearest_frames(int(count), fps, self.rate)[start : start + self.schema.size[0]]
            by_area = sorted(areas, key=areas.__getitem__, reverse=True)
            for column, frame in enumerate(by_area[:1] + by_area[-1:] if len(areas) > 1 else []):
                place = place_of(frame, order, fps / self.rate)
                found[row, column] = torch.nan if place is None else place
        return found

    def _cut(self, index: int) -> Cut:
        video, start = self._windows[index]
        path, (fps, *shape) = self._videos[video], self._listed[video]
        clip = read_clip(path, rate=float(fps))
        listed = tuple(int(value) for value in shape)
        if clip.frames.shape != listed:
            raise DataError(
                f"{path}: {clip.frames.shape} frames, height and width, but FileList.csv says "
                f"{listed}. Mend the list: its columns may be swapped."
            )
        masks = None
        if self.schema.mask_classes:
            traced = self._traced.get(self._names[video], {})
            masks = {frame: filled_contour(p, *listed[1:]) for frame, p in traced.items()}
        source = Source(clip.frames, float(fps), None, masks)
        size = (self.schema.size[0], self.schema.size[1], self.schema.size[2])
        return cut(source, size, self.rate, start, self.fit)


def filled_contour(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
    """Mask (h w) of the pixels whose centre lies inside a contour of (x, y) points."""
    from matplotlib.path import Path as Outline

    rows, columns = np.mgrid[:height, :width]
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    return Outline(points).contains_points(centres).reshape(height, width).astype(np.int64)


def _area(points: NDArray[np.float64]) -> float:
    """Area of a contour of (x, y) points."""
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _exist(folder: Path, files: Sequence[Path]) -> None:
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        more = f", and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"{folder}: {len(missing)} video(s) of {len(files)} are missing: "
            f"{', '.join(missing[:SHOWN])}{more}. Copy them, or drop their rows."
        )


def _unreadable(listed: NDArray[np.float64]) -> list[str]:
    return [
        f"row {row}: expected FPS, {', '.join(SHAPE)} above 0, got {values.tolist()}"
        for row, values in enumerate(listed, 1)
        if not (np.isfinite(values).all() and (values > 0).all())
    ]


def _tracings(path: Path, names: set[str]) -> Mapping[str, dict[int, NDArray[np.float64]]]:
    """Contours (points 2) by video and frame: the ends of chords, down one side and up the other.

    The first chord of a frame is the long axis and is left out of the contour.
    """
    table = read_table(path)
    owners = [name.removesuffix(".avi") for name in table.column("FileName", "the videos")]
    numbers = np.array(numbers_of(table, ("X1", "Y1", "X2", "Y2", "Frame")))
    chords: dict[str, dict[int, list[NDArray[np.float64]]]] = {}
    for owner, row in zip(owners, numbers, strict=True):
        if owner in names and np.isfinite(row).all():
            chords.setdefault(owner, {}).setdefault(int(row[4]), []).append(row[:4])
    table.refuse(
        [
            f"video '{owner}', frame {frame}: {len(rows)} chords, expected 3 or more"
            for owner, frames in chords.items()
            for frame, rows in frames.items()
            if len(rows) < 3
        ]
    )
    return {
        owner: {frame: _contour(np.array(rows[1:])) for frame, rows in frames.items()}
        for owner, frames in chords.items()
    }


def _contour(chords: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([chords[:, :2], chords[::-1, 2:]])
