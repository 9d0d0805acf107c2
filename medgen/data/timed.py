"""Studies that run in time as files of their own: clips as AVI without loss, ECGs as CSV.

A clip keeps 8-bit grey levels and its rate, its mask the classes of every frame (255: nobody drew
them), an ECG its mV in steps of 1 uV and its rate. What is written reads back equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.data.clip_export import write_clip
from medgen.data.clips import Clip, read_clip
from medgen.data.dicom import grey_levels
from medgen.data.geometry import from_unit, to_unit
from medgen.data.signal_export import write_csv
from medgen.data.signal_files import read_signal
from medgen.data.signals import Signal
from medgen.data.splits import SHOWN
from medgen.data.table import Table, inside, numbers_of
from medgen.data.windows import UNKNOWN, Kept
from medgen.errors import DataError
from medgen.types import Batch, Schema, Study

UNDRAWN = 255
"""The grey level that stands for `UNKNOWN` in the file of a clip's masks."""


def rate_of(schema: Schema) -> float:
    """Frames or samples a second of studies that run in time, Hz.

    Raises:
        DataError: the schema states no step of time.
    """
    if not schema.time or not schema.spacing:
        raise DataError("studies that run in time need a schema that states their step of time")
    return 1 / schema.spacing[0]


def clip_of(image: Tensor, schema: Schema, spacing: Tensor | None = None) -> Clip:
    """An image (1 t h w) in [-1, 1] as a clip of 8-bit grey levels.

    Args:
        image: of one channel.
        schema: says the rate, and the mm between pixels where it knows them.
        spacing: (s, mm, mm) of this study, if it is known.

    Raises:
        DataError: of several channels.
    """
    if image.ndim != 4 or len(image) != 1:
        raise DataError(f"a clip has one channel of frames, height and width, got {image.shape}")
    known = schema.spacing if spacing is None else tuple(spacing.tolist())
    mm = (float(known[1]), float(known[2])) if len(known) == 3 else None
    return Clip(grey_levels(image)[0], rate_of(schema), mm)


def signal_of(image: Tensor, schema: Schema) -> Signal:
    """An image (leads samples) in [-1, 1] as an ECG in mV, in steps of 1 uV.

    Raises:
        DataError: the schema states no window in mV, or no names of the leads.
    """
    if schema.window is None or len(schema.leads) != len(image):
        raise DataError(
            "an ECG needs a schema with a window in mV and a name for each lead; got the window "
            f"{schema.window} and {len(schema.leads)} names for {len(image)} leads"
        )
    values = from_unit(image.clamp(-1, 1).numpy(), schema.window)
    return Signal(np.round(values, 3), schema.leads, rate_of(schema))


def beside(ecg: Tensor, schema: Schema) -> Signal:
    """The ECG (leads samples) in mV beside a clip, in steps of 1 uV."""
    return Signal(np.round(ecg.numpy().astype(np.float32), 3), schema.leads, schema.ecg_rate)


def write_timed(stem: Path, image: Tensor, schema: Schema) -> Path:
    """Write a clip as AVI or an ECG as CSV; returns the file.

    Args:
        stem: the file without its ending.
        image: (1 t h w) or (leads samples) in [-1, 1].
        schema: says rate, leads and window.

    Raises:
        DataError: the schema does not say what the file must.
    """
    if image.ndim == 2:
        return write_csv(stem.with_name(f"{stem.name}.csv"), signal_of(image, schema))
    return write_clip(stem.with_name(f"{stem.name}.avi"), clip_of(image, schema))


def write_timed_mask(stem: Path, mask: Tensor, schema: Schema) -> Path:
    """Write the classes (t h w) of a clip as AVI; returns the file.

    Raises:
        ValueError: a class beyond -1 to 254.
    """
    if not -1 <= int(mask.min()) <= int(mask.max()) < UNDRAWN:
        raise ValueError(f"expected classes from -1 to 254, got {mask.min()} to {mask.max()}")
    levels = torch.where(mask == UNKNOWN, UNDRAWN, mask).numpy().astype(np.uint8)
    return write_clip(stem.with_name(f"{stem.name}.avi"), Clip(levels, rate_of(schema)))


def read_timed_mask(path: Path) -> Tensor:
    """The classes (t h w) that `write_timed_mask` wrote.

    Raises:
        DataError: as for `read_clip`.
    """
    levels = torch.from_numpy(read_clip(path).frames.astype(np.int64))
    return torch.where(levels == UNDRAWN, UNKNOWN, levels)


class Timed(Sequence[Batch]):
    """The clips or ECGs that a table lists, as `write_timed` wrote them.

    Args:
        folder: of the table's paths.
        table: columns `image`, and `mask` and `ecg` where the schema has them, and scalars.
        schema: of the studies.
        studies: one a row.

    Raises:
        DataError: files are missing; from an item: it is not what the schema says.
    """

    def __init__(
        self, folder: Path, table: Table, schema: Schema, studies: Sequence[Study]
    ) -> None:
        self.schema, self.studies = schema, studies
        roles = ["image", *["mask"] * bool(schema.mask_classes)]
        roles += ["ecg"] if "ecg" in table.columns else []
        self._files = {
            role: [folder / inside(folder, name) for name in table.column(role, f"the {role}s")]
            for role in roles
        }
        missing = [file for files in self._files.values() for file in files if not file.is_file()]
        if missing:
            names = ", ".join(str(file) for file in missing[:SHOWN])
            raise DataError(f"{table.path}: {len(missing)} file(s) are missing: {names}.")
        rows = numbers_of(table, schema.scalars)
        self.scalars = torch.tensor(rows) if schema.scalars else None
        self._kept = Kept(self._read, lambda item: item[0].nbytes)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: Any) -> Any:
        held, mask, ecg = self._kept[index]
        if self.schema.window is not None and held.dtype == np.float32:
            image = torch.from_numpy(to_unit(held, self.schema.window))[None]
        else:
            image = torch.from_numpy(held.astype(np.float32))[None, None] / 127.5 - 1
        return Batch(
            image=image,
            mask=None if mask is None else mask[None],
            ecg=None if ecg is None else ecg[None],
            scalar=None if self.scalars is None else self.scalars[index : index + 1],
            spacing=torch.tensor([self.schema.spacing]) if self.schema.spacing else None,
        )

    def _read(self, index: int) -> tuple[Any, Tensor | None, Tensor | None]:
        path, size = self._files["image"][index], tuple(self.schema.size)
        if len(size) == 1:
            held = self._signal(path, size[0], rate_of(self.schema))
        else:
            clip = read_clip(path)
            held = clip.frames
            if held.shape != size or abs(clip.rate - rate_of(self.schema)) > 0.01 * clip.rate:
                raise DataError(
                    f"{path}: {held.shape} at {clip.rate:.4g} Hz; the dataset says {size} at "
                    f"{rate_of(self.schema):.4g} Hz. Do not edit its files."
                )
        mask = ecg = None
        if "mask" in self._files:
            mask = read_timed_mask(self._files["mask"][index])
            if tuple(mask.shape) != size or int(mask.max()) >= len(self.schema.mask_classes):
                raise DataError(f"{self._files['mask'][index]}: not a mask of its clip.")
        if "ecg" in self._files:
            count = round(size[0] * self.schema.spacing[0] * self.schema.ecg_rate)
            beside_it = self._signal(self._files["ecg"][index], count, self.schema.ecg_rate)
            ecg = torch.from_numpy(beside_it)
        return held, mask, ecg

    def _signal(self, path: Path, count: int, rate: float) -> Any:
        signal = read_signal(path)
        same = signal.leads == self.schema.leads and abs(signal.rate - rate) <= 0.01 * rate
        if not same or signal.values.shape[1] != count:
            raise DataError(
                f"{path}: {signal.values.shape[1]} samples of {', '.join(signal.leads)} at "
                f"{signal.rate:g} Hz; the dataset says {count} of {', '.join(self.schema.leads)} "
                f"at {rate:g} Hz. Do not edit its files."
            )
        return signal.values
