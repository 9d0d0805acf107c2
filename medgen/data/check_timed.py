"""What stands in a folder of clips and ECGs, and what is wrong with it, all at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medgen.data.clips import Clip
from medgen.data.layouts import Entry, Layout, entries_of, shared_seconds
from medgen.data.signals import LEADS, Signal, filled, heart_rate, quality, with_leads
from medgen.data.splits import SHOWN, SPLITS, patients_in_two_splits
from medgen.errors import DataError

FRACTIONS = ((40.0, "below 40 %"), (50.0, "40 to 50 %"), (100.01, "50 % and above"))
"""Upper ends of classes of the ejection fraction, percent: reduced, mildly reduced, preserved."""
RHYTHMS = ((60.0, "below 60 bpm"), (100.01, "60 to 100 bpm"), (np.inf, "above 100 bpm"))
"""Upper ends of classes of the heart rate: bradycardia, normal, tachycardia."""


@dataclass
class TimedReport:
    """What a check found.

    Args:
        folder: that was looked at.
        layout: of its files.
        studies: that the layout lists.
        clips: that could be read.
        ecgs: that could be read.
        patients: distinct ones.
        splits: studies in every split.
        counts: by what is counted (such as "frames a second"), how many studies have each value.
        ranges: by what is measured (such as "frames"), smallest, median and largest.
        unreadable: studies that a reader would refuse, and why.
        problems: what must be mended.
        notes: what should be known.
    """

    folder: str
    layout: str
    studies: int = 0
    clips: int = 0
    ecgs: int = 0
    patients: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as text, one fact a line."""
        facts = {
            "folder": self.folder,
            "layout": self.layout,
            "studies": f"{self.studies:,} of {self.patients:,} patients",
            "readable": f"{self.clips:,} clips, {self.ecgs:,} ECGs",
            "splits": _counted(self.splits),
            **{
                name: f"{low:g} to {high:g}, median {middle:g}"
                for name, (low, middle, high) in self.ranges.items()
            },
            **{name: _counted(values) for name, values in self.counts.items()},
        }
        width = max(map(len, facts)) + 2
        text = [f"{name:<{width}}{fact}" for name, fact in facts.items() if fact]
        text += [f"note: {note}" for note in self.notes]
        text += [f"PROBLEM: {problem}" for problem in self.problems]
        return [*text, f"{len(self.problems)} problem(s), {len(self.notes)} note(s)"]


@dataclass
class _Tally:
    """What is counted and measured while files are read."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    held: dict[str, list[Entry]] = field(default_factory=dict)

    def count(self, name: str, value: str) -> None:
        self.counts.setdefault(name, Counter())[value] += 1

    def measure(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def hold(self, content: Any, entry: Entry) -> None:
        digest = hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest()
        self.held.setdefault(digest, []).append(entry)


def check_timed(
    folder: Path, layout: Layout, *, progress: Callable[[int, int], None] | None = None
) -> TimedReport:
    """Read every clip and ECG of a folder; whatever is wrong is collected, not raised.

    Args:
        folder: of the studies.
        layout: of the folder.
        progress: told after every study.
    """
    report = TimedReport(folder=str(folder), layout=layout)
    try:
        entries = entries_of(folder, layout)
    except DataError as error:
        report.problems.append(str(error))
        return report
    studies = [entry.study for entry in entries]
    report.studies, report.patients = len(studies), len({study.patient for study in studies})
    splits = Counter(study.split for study in studies)
    report.splits = {split: splits[split] for split in SPLITS}
    report.problems += [
        f"patient '{patient}' stands in {' and '.join(two)}"
        for patient, two in patients_in_two_splits(studies).items()
    ]
    tally = _Tally()
    for place, entry in enumerate(entries, 1):
        _look(report, tally, entry)
        if progress is not None:
            progress(place, len(entries))
    report.problems += [f"{name}: {why}" for name, why in report.unreadable.items()]
    report.problems += _twice(tally.held.values())
    report.counts = {n: dict(c.most_common(SHOWN)) for n, c in sorted(tally.counts.items())}
    report.ranges = {
        name: (min(values), round(float(np.median(values)), 3), max(values))
        for name, values in tally.values.items()
    }
    report.notes += _notes(report)
    return report


def _look(report: TimedReport, tally: _Tally, entry: Entry) -> None:
    """One study: what is listed of it, then its files."""
    if entry.findings is not None:
        for finding in entry.findings:
            tally.count("findings", finding)
    fraction = entry.scalars.get("ejection_fraction")
    if entry.clip is not None:
        tally.count("ejection fraction", _class(fraction, FRACTIONS))
    if fraction is not None and not 0 <= fraction <= 100:
        report.problems.append(f"{entry.study.id}: an ejection fraction of {fraction:g} %")
    try:
        clip = entry.clip() if entry.clip else None
        if clip is not None:
            _look_at_clip(report, tally, entry, clip)
        ecg = entry.ecg() if entry.ecg else None
        if ecg is not None:
            _look_at_ecg(report, tally, entry, ecg)
        if clip is not None and ecg is not None:
            shared = shared_seconds(clip, ecg, entry.offset)
            if shared <= 0:
                raise DataError(
                    f"clip and ECG do not overlap: the clip lasts {clip.seconds:.2f} s from "
                    f"{entry.offset:g} s of the ECG, the ECG {ecg.seconds:.2f} s"
                )
            tally.measure("seconds of both", round(shared, 3))
    except DataError as error:
        report.unreadable[entry.study.id] = str(error)


def _look_at_clip(report: TimedReport, tally: _Tally, entry: Entry, clip: Clip) -> None:
    frames, height, width = clip.frames.shape
    if entry.shape and entry.shape != clip.frames.shape:
        raise DataError(
            f"has {clip.frames.shape} frames, height and width, but the list says {entry.shape}; "
            "its columns may be swapped"
        )
    report.clips += 1
    tally.count("frame size", f"{height} x {width}")
    tally.count("frames a second", f"{clip.rate:.4g}")
    tally.measure("frames", frames)
    tally.measure("seconds of a clip", round(clip.seconds, 3))
    tally.count("mm between pixels", "known" if clip.spacing else "not known")
    if (clip.frames == clip.frames[:1]).all():
        tally.count("quality", "clip without motion")
    tally.hold(clip.frames, entry)


def _look_at_ecg(report: TimedReport, tally: _Tally, entry: Entry, ecg: Signal) -> None:
    leads = "12 standard" if set(LEADS) <= set(ecg.leads) else ", ".join(ecg.leads)
    tally.count("leads", leads)
    tally.count("samples a second", f"{ecg.rate:g}")
    tally.measure("seconds of an ECG", round(ecg.seconds, 3))
    for flag in quality(ecg).flags:
        tally.count("quality", flag)
    ecg, derived = with_leads(ecg, LEADS)
    if derived:
        tally.count("quality", "lead derived")
    ecg, gaps = filled(ecg)
    if gaps:
        tally.count("quality", "short gap interpolated")
    report.ecgs += 1
    tally.count("rhythm", _class(heart_rate(ecg), RHYTHMS))
    tally.hold(ecg.values, entry)


def _class(value: float | None, classes: Sequence[tuple[float, str]]) -> str:
    if value is None or value != value:
        return "not known"
    return next((name for end, name in classes if value < end), "out of range")


def _twice(groups: Iterable[list[Entry]]) -> list[str]:
    """Equal clips or ECGs under two patients, or in two splits."""
    found = []
    for group in groups:
        studies = [entry.study for entry in group]
        names = ", ".join(study.id for study in studies[:SHOWN])
        if len({study.split for study in studies}) > 1:
            found.append(f"equal files in two splits: {names}")
        elif len({study.patient for study in studies}) > 1:
            found.append(f"equal files under two patients: {names}")
    return found


def _notes(report: TimedReport) -> list[str]:
    notes = []
    for what in ("frames a second", "samples a second", "frame size", "leads"):
        if len(report.counts.get(what, {})) > 1:
            notes.append(f"several values of '{what}': readers bring all to one")
    empty = [split for split, count in report.splits.items() if not count]
    if empty:
        notes.append(f"no study is in {' or '.join(empty)}: training needs all three splits")
    return notes


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())
