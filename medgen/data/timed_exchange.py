"""Clips and ECGs in the formats of other tools, each file read back and held against its study.

EchoNet-Dynamic's layout, MP4 with a table, pairs of clip and ECG, WFDB records, DICOM.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.data.clip_export import check_written, write_clip, write_multiframe
from medgen.data.dicom import synthetic_origin
from medgen.data.ecg_records import SNOMED
from medgen.data.echonet import SCALARS, filled_contour
from medgen.data.export import write_ecg
from medgen.data.signal_export import write_waveform, write_wfdb
from medgen.data.signal_files import read_signal
from medgen.data.signals import Signal
from medgen.data.timed import clip_of, signal_of, write_timed_mask
from medgen.disk import building, write_bytes
from medgen.errors import DataError, OutputError
from medgen.protocols import Dataset
from medgen.types import Batch, Schema

LOSS = 4.0
"""Mean grey levels by which an MP4 may differ from its clip."""
STEP = 0.00051
"""Millivolts by which a file that counts in steps of 1 uV may differ from its ECG."""
CHORDS = 20
"""Chords of a tracing, beside its long axis, as EchoNet-Dynamic has them."""
OVERLAP = 0.85
"""Least Dice of a traced mask and the mask that its chords enclose."""
SPLITS = {"train": "TRAIN", "validation": "VAL", "test": "TEST"}
Progress = Callable[[int, int], None]


def write_echonet(dataset: Dataset, out: Path, *, progress: Progress | None = None) -> Path:
    """Write clips as EchoNet-Dynamic keeps them; what is not known is blank.

    The largest and the smallest cavity of a clip's masks are traced, where there are masks.

    Args:
        dataset: of clips of one channel.
        out: a new or empty folder.
        progress: called with (studies written, studies in all).

    Raises:
        DataError: the studies are no clips.
        OutputError: the folder holds something, is unwritable or full, or a file reads back wrong.

    Source: Ouyang et al. 2020, doi 10.1038/s41586-020-2145-8 (the layout).
    """
    _require_clips(dataset, "EchoNet's layout")
    rows, traced = [], []
    with building(out) as folder:
        for _, study, item in _each(dataset, progress):
            clip = _clip(item, dataset.schema)
            file = write_clip(folder / "Videos" / f"{study.id}.avi", clip)
            check_written(file, clip)
            known = _scalars(item, dataset.schema)
            frames, height, width = clip.frames.shape
            row = {"FileName": study.id}
            row |= {column: known.get(name, "") for name, column in SCALARS.items()}
            row |= {"FrameHeight": height, "FrameWidth": width, "FPS": f"{clip.rate:.6g}"}
            rows.append(row | {"NumberOfFrames": frames, "Split": SPLITS[study.split]})
            if item.mask is not None and "cavity" in dataset.schema.mask_classes:
                place = dataset.schema.mask_classes.index("cavity")
                traced += _tracings(file.name, (item.mask[0] == place).numpy())
        _write_table(folder / "FileList.csv", rows)
        if traced:
            _write_table(folder / "VolumeTracings.csv", traced)
    return out


def write_mp4(dataset: Dataset, out: Path, *, progress: Progress | None = None) -> Path:
    """Write clips as MP4 with `labels.csv`: file, patient, split, findings and scalars.

    Raises:
        DataError: the studies are no clips, or of an odd height or width.
        OutputError: as for `write_echonet`.
    """
    _require_clips(dataset, "MP4")
    height, width = dataset.schema.size[1:]
    if height % 2 or width % 2:
        raise DataError(f"MP4 takes even heights and widths, got {height} x {width}. Use echonet.")
    rows = []
    with building(out) as folder:
        for _, study, item in _each(dataset, progress):
            clip = _clip(item, dataset.schema)
            file = write_clip(folder / "clips" / f"{study.id}.mp4", clip)
            check_written(file, clip, LOSS)
            rows.append(_row({"clip": file}, study, item, dataset.schema, folder))
        _write_table(folder / "labels.csv", rows)
    return out


def write_pairs(dataset: Dataset, out: Path, *, progress: Progress | None = None) -> Path:
    """Write clips, their ECGs and masks with `table.csv`, which the `echo_ecg` reader reads.

    Raises:
        DataError: the studies are no clips with ECGs.
        OutputError: as for `write_echonet`.
    """
    _require_clips(dataset, "a table of pairs")
    rows = []
    with building(out) as folder:
        for _, study, item in _each(dataset, progress):
            if item.ecg is None:
                raise DataError(f"study '{study.id}': a table of pairs takes clips with an ECG")
            clip = _clip(item, dataset.schema)
            files = {"clip": write_clip(folder / "clips" / f"{study.id}.avi", clip)}
            check_written(files["clip"], clip)
            files["ecg"] = write_ecg(folder / "ecgs" / study.id, item.ecg[0], dataset.schema)
            if item.mask is not None:
                stem = folder / "masks" / study.id
                files["mask"] = write_timed_mask(stem, item.mask[0], dataset.schema)
            row = _row(files, study, item, dataset.schema, folder)
            rows.append({"id": study.id, **row, "offset": 0})
        _write_table(folder / "table.csv", rows)
    return out


def write_records(dataset: Dataset, out: Path, *, progress: Progress | None = None) -> Path:
    """Write ECGs as WFDB records and `table.csv`, which the `wfdb` reader reads.

    A header's comments hold age, sex, other scalars, diagnoses as SNOMED CT codes, and whether the
    record is synthetic.

    Raises:
        DataError: the studies are no ECGs, or a finding has no code.
        OutputError: as for `write_echonet`.
    """
    _require_ecgs(dataset, "WFDB")
    uncoded = [f for f in dataset.schema.findings if f not in SNOMED and not f.isdigit()]
    if uncoded:
        raise DataError(f"WFDB: no SNOMED CT code is known for {', '.join(uncoded)}")
    rows = []
    with building(out) as folder:
        for _, study, item in _each(dataset, progress):
            assert item.image is not None
            signal = signal_of(item.image[0], dataset.schema)
            signal = replace(signal, about=_comments(item, dataset.schema))
            header = write_wfdb(folder / f"{study.id}.hea", signal)
            _check_signal(header, signal)
            rows.append({"record": study.id, "patient": study.patient, "split": study.split})
        _write_table(folder / "table.csv", rows)
        write_bytes(folder / "RECORDS", "".join(f"{r['record']}\n" for r in rows).encode())
    return out


def write_timed_dicom(dataset: Dataset, out: Path, *, progress: Progress | None = None) -> Path:
    """Write synthetic clips as DICOM multi-frame images, or ECGs as waveforms, that say so.

    The ECG beside a clip is what was asked for, perhaps a person's, and is left out.

    Raises:
        DataError: a study is not synthetic, or its kind has no DICOM object here.
        OutputError: as for `write_echonet`.
    """
    ecgs = len(dataset.schema.size) == 1
    (_require_ecgs if ecgs else _require_clips)(dataset, "DICOM")
    with building(out) as folder:
        for index, study, item in _each(dataset, progress):
            assert item.image is not None
            origin = synthetic_origin(item.provenance, study.id)
            path = folder / f"{study.id}.dcm"
            if ecgs:
                signal = signal_of(item.image[0], dataset.schema)
                _check_signal(write_waveform(path, signal, origin, index + 1), signal)
            else:
                clip = _clip(item, dataset.schema)
                check_written(write_multiframe(path, clip, origin, index + 1), clip)
            _check_flag(path)
    return out


def _each(dataset: Dataset, progress: Progress | None) -> Iterable[tuple[int, Any, Batch]]:
    for index, study in enumerate(dataset.studies):
        yield index, study, dataset[index]
        if progress is not None:
            progress(index + 1, len(dataset))


def _require_clips(dataset: Dataset, form: str) -> None:
    schema = dataset.schema
    if not schema.time or len(schema.size) != 3 or schema.channels != 1 or not schema.spacing:
        raise DataError(
            f"{form} takes clips of one channel and a known rate; these are studies of "
            f"{schema.channels} channel(s) of {' x '.join(map(str, schema.size))}"
        )


def _require_ecgs(dataset: Dataset, form: str) -> None:
    schema = dataset.schema
    if not schema.time or len(schema.size) != 1 or len(schema.leads) != schema.channels:
        raise DataError(
            f"{form} takes ECGs whose leads are named; these are studies of {schema.channels} "
            f"channel(s) of {' x '.join(map(str, schema.size))}"
        )


def _clip(item: Batch, schema: Schema) -> Any:
    assert item.image is not None
    return clip_of(item.image[0], schema, None if item.spacing is None else item.spacing[0])


def _scalars(item: Batch, schema: Schema) -> dict[str, str]:
    """Scalars that are known, as text by name."""
    if item.scalar is None:
        return {}
    pairs = zip(schema.scalars, item.scalar[0].tolist(), strict=True)
    return {name: f"{value:.6g}" for name, value in pairs if value == value}


def _present(item: Batch, schema: Schema) -> dict[str, int]:
    """Findings that are known: 1 present, 0 absent."""
    if item.label is None:
        return {}
    pairs = zip(schema.findings, item.label[0].tolist(), strict=True)
    return {name: int(value) for name, value in pairs if value >= 0}


def _row(
    files: dict[str, Path], study: Any, item: Batch, schema: Schema, folder: Path
) -> dict[str, Any]:
    known, found = _scalars(item, schema), _present(item, schema)
    return {
        **{kind: str(file.relative_to(folder)) for kind, file in files.items()},
        "patient": study.patient,
        "split": study.split,
        **{name: found.get(name, "") for name in schema.findings},
        **{name: known.get(name, "") for name in schema.scalars},
    }


def _comments(item: Batch, schema: Schema) -> dict[str, str]:
    """What a WFDB header says beside the signal; no finding at all is a sinus rhythm."""
    known, found = _scalars(item, schema), _present(item, schema)
    said = {name: value for name, value in known.items() if name not in ("age", "sex")}
    if "age" in known:
        said["Age"] = known["age"]
    if "sex" in known:
        said["Sex"] = "Male" if float(known["sex"]) >= 0.5 else "Female"
    if found:
        present = [name for name, value in found.items() if value]
        codes = [SNOMED.get(name, name) for name in present] or [SNOMED["sinus_rhythm"]]
        said["Dx"] = ",".join(codes)
    if item.provenance and item.provenance[0].synthetic:
        origin = item.provenance[0]
        said["Synthetic"] = f"drawn by {origin.source}, seed {origin.seed}"
    return said


def _check_signal(path: Path, signal: Signal) -> None:
    back = read_signal(path)
    same = back.leads == signal.leads and back.values.shape == signal.values.shape
    if not same or abs(back.rate - signal.rate) > 1e-6 * signal.rate:
        raise OutputError(f"{path}: reads back with other leads, length or rate. Report this.")
    apart = float(np.abs(back.values - signal.values).max())
    if apart > STEP:
        raise OutputError(f"{path}: reads back {apart:.3g} mV off. Report this.")


def _check_flag(path: Path) -> None:
    import pydicom

    if pydicom.dcmread(path, stop_before_pixels=True).get("SyntheticData") != "YES":
        raise OutputError(f"{path}: reads back without saying that it is synthetic. Report this.")


def _tracings(name: str, masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Chords of the largest and the smallest cavity of a clip (t h w), in the order of time."""
    areas = masks.sum(axis=(1, 2))
    drawn = np.flatnonzero(areas > CHORDS)
    if not len(drawn):
        return []
    ends = {int(drawn[areas[drawn].argmax()]), int(drawn[areas[drawn].argmin()])}
    rows = []
    for frame in sorted(ends):
        chords = chords_of(masks[frame])
        outline = np.concatenate([chords[1:, :2], chords[:0:-1, 2:]])
        back = filled_contour(outline, *masks.shape[1:]).astype(bool)
        dice = 2 * (back & masks[frame]).sum() / (back.sum() + masks[frame].sum())
        if dice < OVERLAP:
            raise OutputError(
                f"{name}, frame {frame}: chords enclose another cavity than the mask (Dice "
                f"{dice:.2f}). Its mask has holes or several pieces: reject such samples by filter."
            )
        columns = ("X1", "Y1", "X2", "Y2")
        numbers = [{c: f"{v:.3f}" for c, v in zip(columns, row, strict=True)} for row in chords]
        rows += [{"FileName": name, **row, "Frame": frame} for row in numbers]
    return rows


def chords_of(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The long axis of a mask (h w), then chords across it from end to end: x1, y1, x2, y2."""
    places = np.argwhere(mask)[:, ::-1].astype(np.float64)  # x, y
    middle = places.mean(axis=0)
    along = np.linalg.eigh(np.cov((places - middle).T))[1][:, -1]
    across = np.array([-along[1], along[0]])
    far, wide = (places - middle) @ along, (places - middle) @ across
    low, high = far.min() - 0.45, far.max() + 0.45
    step = (high - low) / CHORDS
    rows = [(*(middle + low * along), *(middle + high * along))]
    for at in np.linspace(low + step / 2, high - step / 2, CHORDS):
        near = np.abs(far - at) <= max(max(step, 1.0) / 2 + 0.25, np.abs(far - at).min())
        ends = (wide[near].min() - 0.45, wide[near].max() + 0.45)
        rows.append(tuple(v for end in ends for v in middle + at * along + end * across))
    return np.array(rows)


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
