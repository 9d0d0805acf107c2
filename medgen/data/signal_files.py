"""ECG files in: WFDB, CSV, NPZ and DICOM waveforms, to leads in mV, with guards for hostile ones.

They are written in `signal_export.py`.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.data.files import MAX_BYTES, damaged, read_bytes
from medgen.data.signals import (
    LEADS,
    SAME_LEADS,
    Signal,
    check_unit,
    in_millivolts,
    lead_name,
    limb_residual,
)
from medgen.data.wfdb_files import check_promise, read_wfdb
from medgen.errors import DataError

TIME = re.compile(r"^(time|t|seconds?)\b", re.IGNORECASE)
HEADING = re.compile(r"^(.*?)\s*[\[(]\s*([^\])]+)\s*[\])]$")


def read_signal(path: Path | str, *, unit: str | None = None, rate: float | None = None) -> Signal:
    """The ECG of a file, its leads in mV at its own rate and in its own order.

    WFDB records are named by their header (NAME.hea) or by NAME. A CSV has one column a lead,
    headed NAME or NAME (UNIT), and perhaps one of times in s. An NPZ holds `signal` (leads samples)
    and perhaps `leads`, `rate` and `unit`; without names, twelve leads are taken in the standard
    order if the limb leads obey their laws. Of DICOM waveforms the longest group is read.

    Args:
        path: the file.
        unit: of a CSV or NPZ that names none; "mV" where neither does.
        rate: Hz, of a CSV without times, or an NPZ that names none.

    Raises:
        DataError: missing, damaged, truncated, too large, in no known unit, with leads out of order
            or contradicting what is said of it; the text names the file and says what to do.
    """
    path = Path(path)
    header = path if path.suffix == ".hea" else path.with_name(f"{path.name}.hea")
    if path.suffix == ".hea" or (header.is_file() and not path.is_file()):
        return _checked(path, read_wfdb(header), "its header's unit")
    if path.suffix == ".dat":
        return read_signal(path.with_suffix(".hea"))
    data = read_bytes(path)
    if data[128:132] == b"DICM" or path.suffix.lower() in {".dcm", ".dicom"}:
        return _checked(path, _read_dicom(path, data), "its header's unit")
    if path.suffix.lower() == ".npz":
        signal, read_as = _read_npz(path, data, unit, rate)
    elif path.suffix.lower() in {".csv", ".tsv", ".txt"}:
        signal, read_as = _read_csv(path, data, unit, rate)
    else:
        raise DataError(
            f"{path}: expected an ECG as WFDB (.hea), CSV, NPZ or DICOM. Convert it, or drop its "
            "row."
        )
    return _checked(path, signal, read_as)


def _checked(path: Path, signal: Signal, unit: str) -> Signal:
    if not np.isfinite(signal.rate) or signal.rate <= 0:
        raise DataError(f"{path}: its rate is {signal.rate:g} Hz; expected more than 0.")
    if not signal.values.size:
        raise DataError(f"{path}: holds no samples. Copy it again, or drop its row.")
    check_unit(str(path), signal.values, unit)
    return signal


def _read_csv(path: Path, data: bytes, unit: str | None, rate: float | None) -> tuple[Signal, str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}).") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    headings = [name.strip() for name in next(csv.reader([first.strip()], delimiter=delimiter))]
    if all(_is_number(name) for name in headings):
        raise DataError(
            f"{path}: its first line holds numbers; expected the names of the leads, such as "
            f"'{','.join(LEADS[:3])},...'. Add a line of names."
        )
    check_promise(path, text.count("\n") * len(headings))
    try:
        table = np.loadtxt(
            io.StringIO(text), delimiter=delimiter, skiprows=1, ndmin=2, converters=_cell
        )
    except ValueError as error:
        raise DataError(f"{path}: not a table of numbers ({error}).") from error
    if table.shape[1] != len(headings):
        raise DataError(f"{path}: {len(headings)} headings, {table.shape[1]} columns of numbers.")
    times = [place for place, name in enumerate(headings) if TIME.match(name)]
    leads = [place for place in range(len(headings)) if place not in times]
    if not leads or len(table) < 2:
        raise DataError(f"{path}: expected columns of leads and two samples or more.")
    stated = _rate_of(path, table[:, times[0]]) if times else None
    parts = [_heading(headings[place]) for place in leads]
    said = {named for _, named in parts if named}
    read_as = _agreed(path, "unit", unit, said.pop() if len(said) == 1 else None, "mV")
    rows = [
        in_millivolts(str(path), table[:, place], named or read_as)
        for place, (_, named) in zip(leads, parts, strict=True)
    ]
    names = tuple(lead_name(name) for name, _ in parts)
    return Signal(np.stack(rows), names, float(_agreed(path, "rate", rate, stated))), read_as


def _heading(text: str) -> tuple[str, str | None]:
    """Name and unit of a column headed NAME, NAME (UNIT) or NAME [UNIT]."""
    found = HEADING.match(text)
    return (found[1], found[2].strip()) if found else (text, None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cell(text: str) -> float:
    return float(text) if text.strip() else float("nan")


def _rate_of(path: Path, times: NDArray[np.float64]) -> float:
    steps = np.diff(times)
    step = (times[-1] - times[0]) / (len(times) - 1)
    if not np.isfinite(times).all() or step <= 0 or np.abs(steps - step).max() > step / 2:
        raise DataError(
            f"{path}: its times do not rise in equal steps. Resample it to one rate, or drop its "
            "row."
        )
    return round(1 / step, 3)


def _agreed(path: Path, what: str, given: Any, stated: Any, default: Any = None) -> Any:
    """What the file states, or else what was said of it; both must agree."""
    alike = given == stated
    if isinstance(given, (int, float)) and isinstance(stated, (int, float)):
        alike = abs(given - stated) <= 1e-3 * given
    if given is not None and stated is not None and not alike:
        raise DataError(f"{path}: states the {what} {stated}, but {given} was asked for.")
    chosen = given if given is not None else stated if stated is not None else default
    if chosen is None:
        raise DataError(f"{path}: states no {what}. Say it with `{what}`.")
    return chosen


def _read_npz(path: Path, data: bytes, unit: str | None, rate: float | None) -> tuple[Signal, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                _check_npy(path, archive, entry)
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except DataError:
        raise
    except Exception as error:  # zip and npy readers raise almost anything on hostile bytes
        raise damaged(path, error) from error
    values = arrays.get("signal")
    if values is None or values.ndim != 2 or values.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: expected an array `signal` of numbers (leads samples); it holds "
            f"{', '.join(f'{name} {array.shape}' for name, array in arrays.items()) or 'nothing'}."
        )
    stated = {
        name: arrays[name].item() for name in ("rate", "unit") if name in arrays
        and arrays[name].size == 1
    }  # fmt: skip
    read_as = str(_agreed(path, "unit", unit, stated.get("unit"), "mV"))
    hertz = float(_agreed(path, "rate", rate, stated.get("rate")))
    named = "leads" in arrays
    names = [str(name) for name in arrays["leads"].ravel()] if named else list(LEADS)
    if len(names) != len(values):
        raise DataError(
            f"{path}: `signal` is {values.shape}, but there are {len(names)} names of leads. "
            "Expected (leads samples) and one name a lead in `leads`."
        )
    rows = in_millivolts(str(path), values.astype(np.float64), read_as)
    signal = Signal(rows, tuple(lead_name(name) for name in names), hertz)
    if named:
        return signal, read_as
    check_unit(str(path), rows, read_as)
    apart = limb_residual(signal)
    if apart > SAME_LEADS:
        raise DataError(
            f"{path}: names no leads, and its rows are not the standard ones in order: limb leads "
            f"miss Einthoven's law by {apart:.2g} mV. Name the rows in `leads`."
        )
    return signal, read_as


def _check_npy(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Hold an array's header against the size of its entry, before memory is taken."""
    if entry.file_size > MAX_BYTES:
        raise DataError(
            f"{path}: its entry {entry.filename} would take {entry.file_size / 2**20:,.0f} MiB; at "
            f"most {MAX_BYTES // 2**20} MiB are read."
        )
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        read = np.lib.format.read_array_header_2_0 if version == (2, 0) else read
        shape, _, dtype = read(file)
    count = int(np.prod(np.array(shape, dtype=object))) if shape else 1
    if count * dtype.itemsize > entry.file_size:
        raise damaged(path, EOFError(f"{entry.filename} promises {shape} numbers it does not hold"))


def _read_dicom(path: Path, data: bytes) -> Signal:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(io.BytesIO(data))
            groups = list(header.get("WaveformSequence") or ())
            if not groups:
                raise DataError(f"{path}: a DICOM file without a waveform. Drop its row.")
            index = max(range(len(groups)), key=lambda k: int(groups[k].NumberOfWaveformSamples))
            return _waveform(path, header, groups[index], index)
    except DataError:
        raise
    except Exception as error:  # parsers raise almost anything on damaged or hostile bytes
        raise damaged(path, error) from error


def _waveform(path: Path, header: Any, group: Any, index: int) -> Signal:
    """The samples of one group of channels, by their sensitivities."""
    from pydicom.waveforms.numpy_handler import multiplex_array

    channels, samples = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    check_promise(path, channels * samples)
    if channels * samples * int(group.WaveformBitsAllocated) // 8 > len(group.WaveformData):
        raise damaged(
            path, EOFError(f"{channels} leads of {samples} samples promised, fewer are there")
        )
    raw = multiplex_array(header, index, as_raw=True).astype(np.float64)
    padding = group.get("WaveformPaddingValue")
    if padding is not None:
        code = (
            int.from_bytes(padding, "little", signed=True)
            if isinstance(padding, bytes)
            else padding
        )
        raw[raw == code] = np.nan
    rows, names = [], []
    for column, channel in zip(raw.T, group.ChannelDefinitionSequence, strict=True):
        source = channel.ChannelSourceSequence[0]
        name = lead_name(str(source.get("CodeMeaning") or source.get("CodeValue") or ""))
        units = channel.get("ChannelSensitivityUnitsSequence")
        if channel.get("ChannelSensitivity") is None or not units:
            raise DataError(
                f"{path}: states no sensitivity for lead {name}: its numbers are raw numbers of a "
                "converter. Export it again with sensitivities."
            )
        if float(channel.get("ChannelSampleSkew") or 0) or float(
            channel.get("ChannelTimeSkew") or 0
        ):
            raise DataError(f"{path}: lead {name} is shifted in time. Align its leads first.")
        scale = float(channel.ChannelSensitivity)
        scale *= float(channel.get("ChannelSensitivityCorrectionFactor") or 1)
        values = column * scale + float(channel.get("ChannelBaseline") or 0)
        rows.append(in_millivolts(str(path), values, str(units[0].CodeValue)))
        names.append(name)
    return Signal(np.stack(rows), tuple(names), float(group.SamplingFrequency))
