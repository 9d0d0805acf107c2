"""The reader of pairs: a table of clips, the ECGs recorded with them, and the time between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.data.clips import read_clip
from medgen.data.folder import read_studies
from medgen.data.geometry import Fit
from medgen.data.images import Reading
from medgen.data.signal_files import read_signal
from medgen.data.signals import LEADS, Signal, filled, lead_name, quality, resampled, with_leads
from medgen.data.table import find_table, inside, numbers_of, read_table
from medgen.data.windows import Cut, Kept, Source, check_size, cut, window_batch
from medgen.errors import DataError
from medgen.registry import register
from medgen.types import Batch, Provenance, Schema, Study


@dataclass(frozen=True)
class _Pair:
    window: Cut
    ecg: NDArray[np.float32]


@register("data", "echo_ecg")
class EchoEcg:
    """Clips with the ECG of the same seconds.

    Columns of the table: `clip` and `ecg` (files or folders, relative to the table), `offset` (s of
    the ECG at which the clip begins; blank is 0), and where there are any `patient`, `split`, `id`
    and scalars. Each pair gives one window, the first that both cover. All pairs are looked at when
    the reader is built, so that those that do not overlap are refused together.

    Args:
        root: folder that holds the data of this machine.
        size: frames, height and width of a window.
        path: folder of the table, relative to the root.
        rate: frames a second, Hz; frames are the nearest in time.
        ecg_rate: samples a second, Hz, to which ECGs are resampled.
        leads: which leads, in which order; limb leads are derived where they are missing.
        scalars: columns of numbers; a blank is unknown.
        fit: how frames of another aspect meet the size.

    Raises:
        DataError: the table or its files are not as asked, or a pair does not overlap by a window.
        LeakageError: the table puts a patient in two splits.
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
        ecg_rate: float = 250.0,
        leads: tuple[str, ...] = LEADS,
        scalars: tuple[str, ...] = (),
        fit: Fit = "crop",
    ) -> None:
        check_size(size, rate)
        self.rate = rate
        self.fit: Fit = fit
        self._folder = Path(root) / inside(Path(root), path)
        table = read_table(find_table(self._folder))
        self._clips, self._ecgs = (
            [
                self._folder / inside(self._folder, name)
                for name in table.column(role, f"the {role}s")
            ]
            for role in ("clip", "ecg")
        )
        offsets = [row[0] for row in numbers_of(table, ("offset",))]
        self._offsets = [0.0 if offset != offset else offset for offset in offsets]
        self.schema = Schema(
            size=tuple(size),
            scalars=tuple(scalars),
            spacing=(1 / rate,),
            time=True,
            leads=tuple(lead_name(name) for name in leads),
            ecg_rate=ecg_rate,
        )
        self.studies = read_studies(table, Reading(columns={"image": "clip"}))
        self.scalars = torch.tensor(numbers_of(table, scalars)) if scalars else None
        self.flags: Counter[str] = Counter()
        self._pairs = Kept(self._pair, lambda pair: pair.window.frames.nbytes + pair.ecg.nbytes)
        apart: list[str] = []
        for index in range(len(self.studies)):
            try:
                self._pairs[index]
            except _ApartError as error:
                apart.append(f"row {index + 1}: {error}")
        table.refuse(apart)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)}")
        pair = self._pairs[index]
        origin = Provenance(self.studies[index].id, synthetic=False, source=self._folder.name)
        return replace(
            window_batch(pair.window),
            ecg=torch.from_numpy(pair.ecg)[None],
            scalar=None if self.scalars is None else self.scalars[index : index + 1],
            provenance=(origin,),
        )

    def _pair(self, index: int) -> _Pair:
        clip, signal = read_clip(self._clips[index]), self._signal(self._ecgs[index])
        frames, offset = self.schema.size[0], self._offsets[index]
        start = max(0, int(np.ceil(-offset * self.rate - 1e-6)))
        first = round((offset + start / self.rate) * signal.rate)
        count = round(frames / self.rate * signal.rate)
        held = round(len(clip.frames) * self.rate / clip.rate)
        if start + frames > held or first + count > signal.values.shape[1]:
            begins = f"the clip lasts {clip.seconds:.2f} s from {offset:g} s of the ECG"
            raise _ApartError(
                f"{begins}, the ECG {signal.seconds:.2f} s; a window takes "
                f"{frames / self.rate:.2f} s of both"
            )
        size = (frames, self.schema.size[1], self.schema.size[2])
        source = Source(clip.frames, clip.rate, clip.spacing)
        window = cut(source, size, self.rate, start, self.fit)
        return _Pair(window, signal.values[:, first : first + count])

    def _signal(self, path: Path) -> Signal:
        signal, derived = with_leads(read_signal(path), self.schema.leads, where=str(path))
        self.flags.update(
            quality(signal).flags | ({"lead derived": len(derived)} if derived else {})
        )
        return resampled(filled(signal, where=str(path))[0], self.schema.ecg_rate)


class _ApartError(DataError):
    """A clip and an ECG that do not share a window."""
