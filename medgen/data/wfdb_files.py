"""WFDB records in: the header held against its files, then its leads in mV."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medgen.data.files import damaged, read_bytes
from medgen.data.signals import Signal, in_millivolts, lead_name
from medgen.errors import DataError

MAX_SAMPLES = 100_000_000
"""The longest signal that is read, in samples of all leads; refused from the header alone."""

MAX_CHANNELS = 1000

BITS = {
    "8": 8, "16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10.67,
    "311": 10.67,
}  # fmt: skip
"""Bits a sample in each format of WFDB that does not compress."""

SIGNAL_LINE = re.compile(r"^(\S+)\s+(\d+)(x\d+)?(:\d+)?(\+\d+)?(?:\s+([-+\d.eE]+))?")


def check_promise(path: Path, samples: int) -> None:
    """Refuse a header that promises more samples than are read.

    Raises:
        DataError: says how many.
    """
    if samples > MAX_SAMPLES:
        raise DataError(
            f"{path}: its header promises {samples:,} samples; at most {MAX_SAMPLES:,} are read. "
            "Cut it into shorter records, or drop its row."
        )


@dataclass(frozen=True)
class RecordHeader:
    """What the header of a WFDB record says.

    Args:
        rate: samples a second, Hz.
        samples: of each lead.
        about: its comments "# NAME: VALUE".
    """

    rate: float
    samples: int
    about: Mapping[str, str]


def read_header(header: Path) -> RecordHeader:
    """The header NAME.hea of a WFDB record, held against the sizes of its files.

    Raises:
        DataError: as for `read_signal`.
    """
    import wfdb

    lines = read_bytes(header).decode("utf-8", "replace").splitlines()
    try:
        about: Any = wfdb.rdheader(str(header.with_suffix("").absolute()))
    except Exception as error:  # the parser raises almost anything on hostile text
        raise damaged(header, error) from error
    _check_wfdb(header, about, [line for line in lines if line.strip() and line[0] != "#"])
    notes = (line.split(":", 1) for line in about.comments if ":" in line)
    said = {name.strip(" #"): value.strip() for name, value in notes}
    return RecordHeader(float(about.fs), int(about.sig_len), said)


def read_wfdb(header: Path) -> Signal:
    """The ECG of the record NAME.hea, in mV, its comments in `about`.

    Raises:
        DataError: as for `read_signal`.
    """
    import wfdb

    known = read_header(header)
    try:
        record: Any = wfdb.rdrecord(str(header.with_suffix("").absolute()))
        values = np.asarray(record.p_signal, dtype=np.float64).T
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise damaged(header, error) from error
    rows = [
        in_millivolts(str(header), row, unit)
        for row, unit in zip(values, record.units, strict=True)
    ]
    names = tuple(lead_name(name or "") for name in record.sig_name)
    return Signal(np.stack(rows), names, known.rate, known.about)


def _check_wfdb(header: Path, about: Any, lines: Sequence[str]) -> None:
    """Refuse what the header promises and its files cannot hold, before they are opened."""
    if getattr(about, "n_seg", None) is not None or not about.n_sig or about.sig_len is None:
        raise DataError(
            f"{header}: expected a record of one segment that states its signals and their length. "
            "Convert it with WFDB's tools (`xform`), or drop its row."
        )
    if not 0 < about.n_sig <= MAX_CHANNELS or len(lines) - 1 < about.n_sig or about.sig_len < 1:
        raise damaged(
            header, EOFError(f"{about.n_sig} signals of {about.sig_len} samples promised")
        )
    check_promise(header, about.n_sig * about.sig_len)
    needed: dict[str, float] = {}
    for line in lines[1 : about.n_sig + 1]:
        found = SIGNAL_LINE.match(line)
        if found is None:
            raise damaged(header, EOFError(f"no signal in the line '{line[:60]}'"))
        name, form, frame, skew, offset, gain = found.groups()
        if frame not in (None, "x1") or skew not in (None, ":0"):
            raise DataError(
                f"{header}: its leads have different rates or are shifted in time. Bring them to "
                "one rate with WFDB's tools (`xform`), or drop its row."
            )
        if gain is None or not re.search("[1-9]", gain):
            raise DataError(
                f"{header}: states no gain for '{name}': its numbers are raw numbers of a "
                "converter. Write the gain (numbers a mV) into the header."
            )
        start = int(offset[1:]) if offset else 0
        bits = BITS.get(form, 0)
        needed[name] = max(needed.get(name, 0), start) + about.sig_len * bits / 8
    for name, size in needed.items():
        file = header.parent / name
        held = len(read_bytes(file))
        if held + 3 < size:
            raise DataError(
                f"{header}: promises {size:,.0f} bytes of samples, {file.name} holds {held:,}. "
                "Copy it again, or drop its row."
            )
