"""ECG files out: WFDB, CSV and DICOM waveforms. What is written reads back equal."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.data.dicom import code, synthetic_elements
from medgen.data.signals import Signal, lead_name
from medgen.disk import write_bytes
from medgen.types import Provenance

STEPS = 1000
"""Steps a mV in which WFDB and DICOM files store a signal: 1 uV each, up to +-32.767 mV."""

MISSING = -32768
"""The number that stands for a missing sample."""

TWELVE_LEAD = "1.2.840.10008.5.1.4.1.1.9.1.1"
GENERAL_ECG = "1.2.840.10008.5.1.4.1.1.9.1.2"

LEAD_CODES = {
    "I": "2:1", "II": "2:2", "III": "2:61", "aVR": "2:62", "aVL": "2:63", "aVF": "2:64",
    "V1": "2:3", "V2": "2:4", "V3": "2:5", "V4": "2:6", "V5": "2:7", "V6": "2:8",
}  # fmt: skip
"""Codes of leads in ISO/IEEE 11073-10101, which DICOM context group 3001 uses (scheme MDC)."""


def write_wfdb(header: Path | str, signal: Signal) -> Path:
    """Write a WFDB record, its samples in steps of 1 uV (format 16); returns the header.

    Each of its two files is whole or absent, the header comes last, and the same signal always
    gives the same bytes.

    Args:
        header: the file NAME.hea; NAME.dat stands beside it. Letters, digits, "-" and "_".
        signal: `about` becomes comments "# NAME: VALUE".

    Raises:
        ValueError: beyond +-32.767 mV, or a name that WFDB does not take.
        OutputError: the files cannot be written.
    """
    import wfdb

    header = Path(header)
    name = header.stem
    if header.suffix != ".hea" or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"expected a file NAME.hea of letters, digits, - and _, got {header.name}")
    count = len(signal.leads)
    with tempfile.TemporaryDirectory() as folder:
        wfdb.wrsamp(
            name,
            fs=signal.rate,
            units=["mV"] * count,
            sig_name=list(signal.leads),
            d_signal=_steps(signal).T.astype(np.int64),
            fmt=["16"] * count,
            adc_gain=[float(STEPS)] * count,
            baseline=[0] * count,
            comments=[f"{key}: {value}" for key, value in signal.about.items()],
            write_dir=folder,
        )
        for ending in (".dat", ".hea"):
            content = (Path(folder) / f"{name}{ending}").read_bytes()
            write_bytes(header.with_suffix(ending), content)
    return header


def write_csv(path: Path | str, signal: Signal) -> Path:
    """Write a column of times in s and one of mV a lead, without loss; returns the file.

    Raises:
        OutputError: the file cannot be written.
    """
    lines = [",".join(["time (s)", *(f"{name} (mV)" for name in signal.leads)])]
    for place, sample in enumerate(signal.values.T):
        numbers = ("" if value != value else f"{value:.9g}" for value in sample)
        lines.append(",".join([f"{place / signal.rate:.9g}", *numbers]))
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return Path(path)


def write_waveform(path: Path | str, signal: Signal, origin: Provenance, number: int = 1) -> Path:
    """Write a synthetic ECG as a DICOM waveform that says it is synthetic; returns the file.

    Twelve leads and fewer at 200 to 1000 Hz are a 12-lead ECG, others a general one.

    Args:
        path: the file.
        signal: stored in steps of 1 uV.
        origin: what drew it.
        number: of the instance in its series.

    Raises:
        ValueError: beyond +-32.767 mV.
        OutputError: the file cannot be written.

    Source: DICOM PS3.3 A.34.3 (12-lead ECG), A.34.4 (general ECG), C.10.9 (waveform).
    """
    from pydicom.dataset import Dataset as Elements

    plain = len(signal.leads) <= 12 and 200 <= signal.rate <= 1000
    made = synthetic_elements(origin, TWELVE_LEAD if plain else GENERAL_ECG, number)
    made.Modality = "ECG"
    made.ContentDate = made.ContentTime = made.AcquisitionDateTime = ""
    made.AcquisitionContextSequence = []
    group = Elements()
    group.MultiplexGroupTimeOffset = 0
    group.WaveformOriginality = "DERIVED"
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = signal.values.shape
    group.SamplingFrequency = f"{signal.rate:.10g}"
    group.MultiplexGroupLabel = "RHYTHM"
    group.ChannelDefinitionSequence = [_channel(name) for name in signal.leads]
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    group.WaveformPaddingValue = np.int16(MISSING).tobytes()
    group["WaveformPaddingValue"].VR = "OW"
    group.WaveformData = _steps(signal).T.astype("<i2").tobytes()
    group["WaveformData"].VR = "OW"
    made.WaveformSequence = [group]
    content = io.BytesIO()
    made.save_as(content, enforce_file_format=True)
    write_bytes(path, content.getvalue())
    return Path(path)


def _channel(name: str) -> Any:
    from pydicom.dataset import Dataset as Elements

    made = Elements()
    known = LEAD_CODES.get(lead_name(name))
    source = (known, "MDC") if known else (name[:16], "99MEDGEN")
    made.ChannelSourceSequence = [code(*source, f"Lead {name}" if known else name)]
    made.ChannelSensitivity = f"{1 / STEPS:g}"
    made.ChannelSensitivityUnitsSequence = [code("mV", "UCUM", "millivolt")]
    made.ChannelSensitivityCorrectionFactor, made.ChannelBaseline = "1", "0"
    made.ChannelSampleSkew = "0"
    made.WaveformBitsStored = 16
    return made


def _steps(signal: Signal) -> NDArray[np.int16]:
    """Samples (leads samples) in steps of 1 uV."""
    steps = np.rint(signal.values.astype(np.float64) * STEPS)
    if np.nanmax(np.abs(steps), initial=0) > 32767:
        raise ValueError(f"expected a signal within +-32.767 mV, got {signal.values.max():g} mV")
    return np.where(np.isnan(steps), MISSING, steps).astype(np.int16)
