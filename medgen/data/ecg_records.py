"""The reader of a folder of ECG records in WFDB files, as PhysioNet's challenges keep them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.data.geometry import to_unit
from medgen.data.signal_files import read_signal
from medgen.data.signals import LEADS, filled, heart_rate, lead_name, quality, resampled, with_leads
from medgen.data.splits import SHOWN, assign_splits, check_leakage
from medgen.data.table import TABLES, Table, find_table, inside, read_table, splits_of
from medgen.data.wfdb_files import RecordHeader, read_header
from medgen.data.windows import Kept
from medgen.errors import DataError
from medgen.registry import register
from medgen.types import Batch, Provenance, Schema, Study

logger = logging.getLogger(__name__)

SNOMED = {
    "sinus_rhythm": "426783006",
    "sinus_bradycardia": "426177001",
    "sinus_tachycardia": "427084000",
    "sinus_arrhythmia": "427393009",
    "atrial_fibrillation": "164889003",
    "atrial_flutter": "164890007",
    "first_degree_av_block": "270492004",
    "right_bundle_branch_block": "59118001",
    "left_bundle_branch_block": "164909002",
    "left_axis_deviation": "39732003",
    "premature_atrial_contraction": "284470004",
    "premature_ventricular_contraction": "427172004",
    "t_wave_abnormal": "164934002",
    "t_wave_inversion": "59931005",
    "st_depression": "429622005",
    "prolonged_qt": "111975006",
    "left_ventricular_hypertrophy": "164873001",
    "bundle_branch_block": "6374002",
    "ectopic_beats": "164884008",
    "hypertrophy": "164873001",
    "ischaemia": "164861001",
}
"""Names of diagnoses and their SNOMED CT codes; others are asked for by their code.

The last four are the simulator's.
"""

SCALARS = ("age", "sex", "heart_rate")


@register("data", "wfdb")
class EcgRecords:
    """ECGs as images of one row a lead, with diagnoses as findings, age and sex.

    Every record gives as many windows as fit into it, end to end; records shorter than one are left
    out, and counted. Age, sex and diagnoses come from the comments of a header (`Age`, `Sex`,
    `Dx`: SNOMED CT codes); a record without diagnoses has unknown findings. A table of the folder
    may give, by column `record`, `patient` and `split`; otherwise each record is a patient of its
    own, split 70 : 10 : 20 by a hash of its name. What is wrong with signals is counted in
    `flags` when they are read; short gaps are interpolated, samples beyond the limit held to it.

    Args:
        root: folder that holds the data of this machine.
        size: samples of a window, such as (2500,).
        path: folder of the records, relative to the root.
        rate: samples a second, Hz, to which signals are resampled.
        leads: which leads, in which order; limb leads are derived where they are missing.
        limit: mV that become 1; its negative becomes -1.
        findings: diagnoses, by a name of `SNOMED` or by code.
        scalars: of "age" (years), "sex" (0 female, 1 male) and "heart_rate" (bpm, measured on the
            signal: reads all records at once).

    Raises:
        DataError: no records, or none that is long enough, or unknown findings or scalars.
        LeakageError: the table puts a patient in two splits.

    Source: Reyna et al. 2021, doi 10.23919/CinC53138.2021.9662687 (the layout).
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(
        self,
        root: Path,
        size: tuple[int],
        *,
        path: str = ".",
        rate: float = 250.0,
        leads: tuple[str, ...] = LEADS,
        limit: float = 4.0,
        findings: tuple[str, ...] = (),
        scalars: tuple[str, ...] = ("age", "sex"),
    ) -> None:
        codes = _codes(findings)
        if min(size) < 2 or not rate > 0 or not limit > 0 or not set(scalars) <= set(SCALARS):
            raise DataError(
                "expected at least 2 samples, a rate and a limit above 0, and scalars of "
                f"{', '.join(SCALARS)}; got {size}, {rate}, {limit}, {scalars}."
            )
        self.rate = rate
        self.schema = Schema(
            size=(size[0],),
            channels=len(leads),
            findings=tuple(findings),
            scalars=tuple(scalars),
            spacing=(1 / rate,),
            window=(-limit, limit),
            time=True,
            leads=tuple(lead_name(name) for name in leads),
            ecg_rate=rate,
        )
        self._folder = Path(root) / inside(Path(root), path)
        records = {file: read_header(file) for file in records_of(self._folder)}
        self.flags: Counter[str] = Counter()
        self._seen: set[Path] = set()
        self._windows = self._laid(records)
        self._signals = Kept(self._read, lambda values: values.nbytes)
        self.studies = _studies(self._folder, self._windows)
        about = [records[file].about for file, _ in self._windows]
        self.labels = torch.tensor([_flags(said, codes) for said in about]) if findings else None
        rows = [self._scalars(place, said) for place, said in enumerate(about)]
        self.scalars = torch.tensor(rows) if scalars else None

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)}")
        window = self.schema.window
        assert window is not None
        origin = Provenance(self.studies[index].id, synthetic=False, source=self._folder.name)
        return Batch(
            image=torch.from_numpy(to_unit(self._signals[index], window))[None],
            label=None if self.labels is None else self.labels[index : index + 1],
            scalar=None if self.scalars is None else self.scalars[index : index + 1],
            spacing=torch.tensor([self.schema.spacing]),
            provenance=(origin,),
        )

    def _laid(self, records: Mapping[Path, RecordHeader]) -> list[tuple[Path, int]]:
        """Record and place in it of every window."""
        windows, short, length = [], 0, self.schema.size[0]
        for file, header in records.items():
            count = round(header.samples * self.rate / header.rate) // length
            short += not count
            windows += [(file, place) for place in range(count)]
        reason = f"shorter than {length} samples at {self.rate:g} Hz"
        self.left_out: dict[str, int] = {reason: short} if short else {}
        if short:
            logger.warning("%s: %d records left out: %s", self._folder, short, reason)
        if not windows:
            raise DataError(f"{self._folder}: every record is {reason}. Ask for fewer samples.")
        return windows

    def _read(self, index: int) -> NDArray[np.float32]:
        """The samples of a window (leads samples), in mV."""
        file, place = self._windows[index]
        signal, derived = with_leads(read_signal(file), self.schema.leads, where=str(file))
        found = quality(signal).flags | ({"lead derived": len(derived)} if derived else {})
        signal, gaps = filled(signal, where=str(file))
        moved = resampled(signal, self.rate)
        limit = self.schema.window[1] if self.schema.window else math.inf
        beyond = int((np.abs(moved.values) > limit).sum())
        found |= {"sample interpolated": gaps, f"sample beyond {limit:g} mV": beyond}
        if file not in self._seen:
            self._seen.add(file)
            self.flags.update({name: count for name, count in found.items() if count})
        start = place * self.schema.size[0]
        return moved.values[:, start : start + self.schema.size[0]]

    def _scalars(self, index: int, about: Mapping[str, str]) -> list[float]:
        sex = {"f": 0.0, "m": 1.0}.get(about.get("Sex", "").strip().lower()[:1], math.nan)
        values = {"age": _age(about.get("Age", "")), "sex": sex}
        if "heart_rate" in self.schema.scalars:
            from medgen.data.signals import Signal

            values["heart_rate"] = heart_rate(
                Signal(self._signals[index], self.schema.leads, self.rate)
            )
        return [values[name] for name in self.schema.scalars]


def records_of(folder: Path) -> list[Path]:
    """The headers of all records in a folder and those below, sorted.

    Raises:
        DataError: there is no such folder, or no record.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Check `--data-root` and `path`.")
    files = sorted(folder.rglob("*.hea"))
    if not files:
        raise DataError(f"{folder}: holds no WFDB record (NAME.hea with NAME.dat).")
    return files


def _codes(findings: Sequence[str]) -> list[str]:
    unknown = [name for name in findings if name not in SNOMED and not name.isdigit()]
    if unknown or len(set(findings)) < len(findings):
        raise DataError(
            f"findings: expected names of {', '.join(SNOMED)}, or SNOMED CT codes, each once; got "
            f"{', '.join(findings)}."
        )
    return [SNOMED.get(name, name) for name in findings]


def _flags(about: Mapping[str, str], codes: Sequence[str]) -> list[int]:
    held = {code.strip() for code in about.get("Dx", "").split(",")} - {""}
    return [int(code in held) if held else -1 for code in codes]


def _age(text: str) -> float:
    try:
        age = float(text)
    except ValueError:
        return math.nan
    return age if 0 <= age < 130 else math.nan


def _studies(folder: Path, windows: Sequence[tuple[Path, int]]) -> tuple[Study, ...]:
    """Ids, patients and splits; windows of a record belong to one patient."""
    names = [str(file.relative_to(folder).with_suffix("")) for file, _ in windows]
    counts = Counter(names)
    ids = [
        name if counts[name] == 1 else f"{name}-{place:03d}"
        for name, (_, place) in zip(names, windows, strict=True)
    ]
    patients, splits = people_of(folder, names)
    studies = tuple(Study(*each) for each in zip(ids, patients, splits, strict=True))
    check_leakage(studies)
    return studies


def people_of(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Patient and split of every record, from the table of the folder or else from its name.

    Raises:
        DataError: the table lacks a record or names an unknown split.
    """
    patients, splits = list(names), None
    if any((folder / usual).is_file() for usual in TABLES):
        table = read_table(find_table(folder))
        if "record" in table.columns:
            place = _places(table, names)
            if "patient" in table.columns:
                patients = [table.rows[place[name]]["patient"] or name for name in names]
            if "split" in table.columns:
                held = splits_of(table)
                splits = [held[place[name]] for name in names]
    return patients, splits or assign_splits(patients)


def _places(table: Table, names: Sequence[str]) -> dict[str, int]:
    place = {row["record"]: number for number, row in enumerate(table.rows)}
    missing = sorted(set(names) - set(place))
    if missing:
        raise DataError(
            f"{table.path}: has no row of {len(missing)} record(s): {', '.join(missing[:SHOWN])}."
        )
    return place
