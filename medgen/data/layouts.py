"""Layouts of clips and ECGs on disk: which one a folder has, what it lists, and its reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from medgen.data.camus import FINDINGS as VIEWS
from medgen.data.camus import SCALARS as CAMUS_SCALARS
from medgen.data.camus import Camus, info_of, read_sequence, scalars_of, sequences_of
from medgen.data.clips import Clip, read_clip
from medgen.data.ecg_records import SNOMED, EcgRecords, people_of, records_of
from medgen.data.echo_ecg import EchoEcg
from medgen.data.echonet import SCALARS as ECHONET_SCALARS
from medgen.data.echonet import SHAPE, EchoNet
from medgen.data.signal_files import read_signal
from medgen.data.signals import Signal
from medgen.data.splits import assign_splits
from medgen.data.table import TABLES, Table, find_table, inside, numbers_of, read_table, splits_of
from medgen.data.wfdb_files import read_header
from medgen.errors import DataError
from medgen.protocols import Dataset
from medgen.types import Study

Layout = Literal["echonet", "camus", "wfdb", "echo_ecg"]
LONGEST = 64
"""Frames of a clip that are shown at most."""
SECONDS = 10.0
"""Of an ECG that are shown at most."""


@dataclass(frozen=True)
class Entry:
    """What a layout lists of one study, before its files are read.

    Args:
        study: its name, patient and split.
        clip: reads the clip, if it has one.
        ecg: reads the ECG, if it has one.
        shape: frames, height and width that a list promises.
        offset: s of the ECG at which the clip begins.
        scalars: those that are known, by name.
        findings: those that are present; None where nothing is known.
    """

    study: Study
    clip: Callable[[], Clip] | None = None
    ecg: Callable[[], Signal] | None = None
    shape: tuple[int, ...] = ()
    offset: float = 0.0
    scalars: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[str, ...] | None = None


def layout_of(folder: Path) -> Layout | None:
    """The layout of clips or ECGs that a folder has; None if it has none of them."""
    if (folder / "FileList.csv").is_file():
        return "echonet"
    if any(folder.glob("patient*/patient*_half_sequence.nii.gz")):
        return "camus"
    for usual in TABLES:
        if (folder / usual).is_file() and usual.endswith(".csv"):
            first = (folder / usual).open(encoding="utf-8-sig", errors="replace").readline()
            if {"clip", "ecg"} <= {name.strip() for name in first.replace(";", ",").split(",")}:
                return "echo_ecg"
    return "wfdb" if any(folder.rglob("*.hea")) else None


def entries_of(folder: Path, layout: Layout) -> list[Entry]:
    """What a layout lists; no clip and no sample is read.

    Raises:
        DataError: a table cannot be read, or its rows are not what the layout says.
    """
    lists = {"echonet": _echonet, "camus": _camus, "wfdb": _wfdb, "echo_ecg": _pairs}
    return lists[layout](folder)


def open_layout(folder: Path, layout: Layout, side: int) -> Dataset:
    """The reader of a layout, for pictures: the longest window that all studies hold.

    Args:
        folder: of the studies.
        layout: of the folder.
        side: pixels that a clip is brought to, both ways.

    Raises:
        DataError: a file cannot be read, or the studies are not what the reader takes.
    """
    if layout == "echonet":
        listed = numbers_of(read_table(folder / "FileList.csv"), ("FPS", *SHAPE))
        rate = _usual([row[0] for row in listed])
        frames = min(int(row[1] * rate / row[0]) for row in listed)
        traced = (folder / "VolumeTracings.csv").is_file()
        return EchoNet(folder, (min(frames, LONGEST), side, side), rate=rate, masks=traced)
    if layout == "camus":
        stems = {
            view: list(folder.glob(f"patient*/*_{view}_half_sequence.nii.gz")) for view in VIEWS
        }
        views = tuple(view for view, found in stems.items() if found)
        infos = [info_of(stem) for stem in sequences_of(folder, views)]  # pyright: ignore
        rate = _usual([info["FrameRate"] for info in infos])
        frames = min(int(info["NbFrame"] * rate / info["FrameRate"]) for info in infos)
        size = (min(frames, LONGEST), side, side)
        return Camus(folder, size, rate=rate, views=views)  # pyright: ignore
    if layout == "wfdb":
        headers = [read_header(file) for file in records_of(folder)]
        rate = _usual([header.rate for header in headers])
        longest = min(header.samples / header.rate for header in headers)
        samples = int(min(longest, SECONDS) * rate)
        present = {name for entry in _wfdb(folder) for name in entry.findings or ()}
        return EcgRecords(folder, (samples,), rate=rate, findings=tuple(sorted(present)))
    entries = _pairs(folder)
    clips = [entry.clip() for entry in entries if entry.clip is not None]
    ecgs = [entry.ecg() for entry in entries if entry.ecg is not None]
    rate = _usual([clip.rate for clip in clips])
    shared = min(map(shared_seconds, clips, ecgs, [entry.offset for entry in entries]))
    columns = read_table(find_table(folder)).columns
    scalars = tuple(name for name in ECHONET_SCALARS if name in columns)
    size = (max(2, min(int(shared * rate + 1e-6), LONGEST)), side, side)
    return EchoEcg(
        folder, size, rate=rate, ecg_rate=_usual([e.rate for e in ecgs]), scalars=scalars
    )


def shared_seconds(clip: Clip, ecg: Signal, offset: float) -> float:
    """Seconds that a clip and its ECG both cover; below 0, how far they lie apart.

    Args:
        clip: begins `offset` s into the ECG.
        ecg: of about the same time.
        offset: in s.
    """
    return min(offset + clip.seconds, ecg.seconds) - max(offset, 0.0)


def _usual(values: Sequence[float]) -> float:
    return Counter(values).most_common(1)[0][0]


def _echonet(folder: Path) -> list[Entry]:
    table = read_table(folder / "FileList.csv")
    names = [name.removesuffix(".avi") for name in table.column("FileName", "the videos")]
    listed = numbers_of(table, ("FPS", *SHAPE))
    values = numbers_of(table, tuple(ECHONET_SCALARS.values()))
    found = []
    for name, split, row, known in zip(
        names, splits_of(table, "Split"), listed, values, strict=True
    ):
        path = folder / "Videos" / f"{inside(table.path, name)}.avi"
        whole = all(value == value for value in row)
        found.append(
            Entry(
                Study(name, name, split),
                partial(read_clip, path, rate=row[0] if whole and row[0] > 0 else None),
                shape=tuple(map(int, row[1:])) if whole else (),
                scalars=_known(tuple(ECHONET_SCALARS), known),
            )
        )
    return found


def _camus(folder: Path) -> list[Entry]:
    views = tuple(v for v in VIEWS if any(folder.glob(f"patient*/*_{v}_half_sequence.nii.gz")))
    stems = sequences_of(folder, views)  # pyright: ignore[reportArgumentType]
    patients = [stem.name.split("_")[0] for stem in stems]
    found = []
    for stem, patient, split in zip(stems, patients, assign_splits(patients), strict=True):
        try:
            known = _known(tuple(CAMUS_SCALARS), scalars_of(info_of(stem)))
        except DataError:  # told when the clip is read
            known = {}
        view = VIEWS[stem.name.rsplit("_", 1)[1]]  # pyright: ignore[reportArgumentType]
        read = partial(_half_cycle, stem)
        found.append(Entry(Study(stem.name, patient, split), read, scalars=known, findings=(view,)))
    return found


def _half_cycle(stem: Path) -> Clip:
    source = read_sequence(stem, info_of(stem))
    return Clip(source.frames, source.rate, source.spacing)


def _wfdb(folder: Path) -> list[Entry]:
    files = records_of(folder)
    names = [str(file.relative_to(folder).with_suffix("")) for file in files]
    spelled: dict[str, str] = {}
    for name, code in SNOMED.items():
        spelled.setdefault(code, name)
    found = []
    for file, name, *people in zip(files, names, *people_of(folder, names), strict=True):
        try:
            about = read_header(file).about
        except DataError:  # told when the signal is read
            about = {}
        codes = [code.strip() for code in about.get("Dx", "").split(",") if code.strip()]
        present = tuple(spelled.get(code, code) for code in codes)
        findings = tuple(each for each in present if each in SNOMED or each.isdigit())
        found.append(
            Entry(Study(name, *people), ecg=partial(read_signal, file), findings=findings or None)
        )
    return found


def _pairs(folder: Path) -> list[Entry]:
    table = read_table(find_table(folder))
    clips = table.column("clip", "the clips")
    ids = table.column("id", "the ids") if "id" in table.columns else [Path(c).stem for c in clips]
    patients = table.column("patient", "the patient") if "patient" in table.columns else ids
    splits = splits_of(table) if "split" in table.columns else assign_splits(patients)
    offsets = _column(table, "offset")
    scalars = {name: _column(table, name) for name in (*ECHONET_SCALARS, "heart_rate")}
    return [
        Entry(
            Study(ids[row], patients[row], splits[row]),
            partial(read_clip, folder / inside(folder, clip)),
            partial(read_signal, folder / inside(folder, ecg)),
            offset=offsets[row] if offsets[row] == offsets[row] else 0.0,
            scalars=_known(tuple(scalars), [values[row] for values in scalars.values()]),
        )
        for row, (clip, ecg) in enumerate(zip(clips, table.column("ecg", "the ECGs"), strict=True))
    ]


def _column(table: Table, name: str) -> list[float]:
    """A column of numbers, unknown where there is none."""
    if name not in table.columns:
        return [float("nan")] * len(table.rows)
    return [row[0] for row in numbers_of(table, (name,))]


def _known(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {n: v for n, v in zip(names, values, strict=True) if v == v}
