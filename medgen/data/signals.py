"""ECG signals: names and order of leads, resampling, what is wrong with them, R peaks.

Signals are in mV. Files are read and written in `signal_files.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import DataError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The standard leads in their standard order."""

LIMB = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}
"""Limb leads as sums of leads I and II: any two of them give the other four.

Source: Einthoven 1913, doi 10.1007/BF01680996; Goldberger 1942, doi 10.1016/S0002-8703(42)90821-4.
"""

VOLTS = {"V": 1e3, "mV": 1.0, "uV": 1e-3, "nV": 1e-6}
"""Millivolts a unit."""

PLAUSIBLE = (0.02, 10.0)
"""Millivolts between which the largest deflections of an ECG lie; 1 in 1000 samples may exceed."""

SAME_LEADS = 0.05
"""Millivolts (root mean square) by which limb leads may miss the laws that bind them."""

STILL = 0.5
"""Seconds for which a living lead never keeps one value."""

CLIP_STEP = 0.05
"""Share of a lead's range that a jump to its plateau takes, where the plateau is a cut-off peak."""

SHORT_GAP = 0.1
"""Seconds of missing samples that are interpolated."""

DETECTION_RATE = 250
"""Rate, Hz, at which beats are looked for."""


@dataclass(frozen=True)
class Signal:
    """An ECG, all leads at one rate.

    Args:
        values: (leads samples) in mV; NaN where a sample is missing.
        leads: their names, standard ones spelled as in `LEADS`.
        rate: samples a second, Hz.
        about: what the file says beside the signal, such as "Age" or "Dx".
    """

    values: NDArray[np.float32]
    leads: tuple[str, ...]
    rate: float
    about: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.values.shape[1] / self.rate

    def lead(self, name: str) -> NDArray[np.float32]:
        """The samples of one lead, in mV."""
        return self.values[self.leads.index(name)]


@dataclass(frozen=True)
class Quality:
    """What is wrong with a signal. An empty mapping is good news.

    Args:
        missing: samples that are NaN, by lead.
        flat: samples in stretches of one value, half a second or longer, by lead.
        clipped: samples on plateaus that cut peaks off, by lead.
        limbs: mV (root mean square) by which the limb leads miss Einthoven's and Goldberger's laws;
            NaN where fewer than three limb leads are there.
    """

    missing: Mapping[str, int]
    flat: Mapping[str, int]
    clipped: Mapping[str, int]
    limbs: float

    @property
    def flags(self) -> dict[str, int]:
        """How many leads (for "limb leads disagree": signals) carry each flag; those above 0."""
        counts = {
            "missing samples": len(self.missing),
            "flat lead": len(self.flat),
            "clipped lead": len(self.clipped),
            "limb leads disagree": int(self.limbs > SAME_LEADS),
        }
        return {name: count for name, count in counts.items() if count}


def lead_name(written: str) -> str:
    """The standard spelling of a lead's name; another name comes back as it is, trimmed.

    "Lead I (Einthoven)", "AVR", "ECG V1" and "MDC_ECG_LEAD_II" are "I", "aVR", "V1" and "II".
    """
    name = re.sub(r"\(.*?\)", "", written).strip()
    short = re.sub(r"^(MDC[_ ]ECG[_ ]LEAD|lead|ECG)[_\s:-]*", "", name, flags=re.IGNORECASE).strip()
    return {lead.lower(): lead for lead in LEADS}.get(short.lower(), name)


def in_millivolts(where: str, values: NDArray[Any], unit: str) -> NDArray[np.float32]:
    """Samples of a named unit in mV.

    Raises:
        DataError: the unit is no voltage, such as "adu" or "NU" of a raw converter.
    """
    name = re.sub(r"^(microvolts?|[µμ]V)$", "uV", unit.strip(), flags=re.IGNORECASE)
    known = {key.lower(): factor for key, factor in VOLTS.items()}
    if name.lower() not in known:
        raise DataError(
            f"{where}: expected a signal in {', '.join(VOLTS)}, got the unit '{unit}'. Convert raw "
            "numbers of a converter to mV: (number - baseline) / gain."
        )
    return (values * known[name.lower()]).astype(np.float32)


def check_unit(where: str, values: NDArray[np.float32], unit: str) -> None:
    """Refuse signals that cannot be in mV, such as raw converter numbers.

    Raises:
        DataError: says how large the deflections are and what to do.
    """
    if not np.isfinite(values).any():
        raise DataError(f"{where}: every sample is NaN. Drop its row.")
    away = np.abs(values - np.nanmedian(values, axis=1, keepdims=True))
    large = float(np.nanpercentile(away, 99.9))
    low, high = PLAUSIBLE
    if large > high or 0 < large < low:
        raise DataError(
            f"{where}: read in {unit}, its deflections reach {large:.3g} mV; expected {low:g} to "
            f"{high:g} mV. Its numbers look like another unit (uV, V, or raw numbers of a "
            "converter). Name the `unit`, or convert them to mV."
        )


def with_leads(
    signal: Signal, leads: Sequence[str] = LEADS, *, where: str = "ECG"
) -> tuple[Signal, tuple[str, ...]]:
    """The leads asked for, in that order, and the names of those that were derived.

    Limb leads that are missing follow from any two that are there (Einthoven, Goldberger).

    Raises:
        DataError: a lead is missing and cannot be derived, or stands twice.
    """
    twice = sorted({name for name in signal.leads if signal.leads.count(name) > 1})
    if twice:
        raise DataError(f"{where}: lead(s) {', '.join(twice)} stand twice. Rename or remove one.")
    derived = tuple(name for name in leads if name not in signal.leads)
    present = [name for name in LIMB if name in signal.leads]
    lost = [name for name in derived if name not in LIMB or len(present) < 2]
    if lost:
        raise DataError(
            f"{where}: lead(s) {', '.join(lost)} are missing; it has {', '.join(signal.leads)}. "
            "Limb leads follow from any two others, chest leads from none: ask for fewer `leads`, "
            "or drop its row."
        )
    rows = {name: signal.lead(name) for name in signal.leads}
    if derived:
        first = _first_two(signal, present)
        rows |= {name: (np.asarray(LIMB[name]) @ first).astype(np.float32) for name in derived}
    values = np.stack([rows[name] for name in leads])
    return replace(signal, values=values, leads=tuple(leads)), derived


def _first_two(signal: Signal, present: Sequence[str]) -> NDArray[np.float64]:
    """Leads I and II (2 samples), by least squares from the limb leads that are there."""
    weights = np.array([LIMB[name] for name in present])
    seen = np.stack([signal.lead(name) for name in present]).astype(np.float64)
    return np.linalg.pinv(weights) @ seen


def limb_residual(signal: Signal) -> float:
    """Mv (root mean square) by which limb leads miss their laws, each freed of its offset.

    NaN where fewer than three are there.
    """
    present = [name for name in LIMB if name in signal.leads]
    if len(present) < 3:
        return float("nan")
    seen = np.stack([signal.lead(name) for name in present]).astype(np.float64)
    seen = seen[:, np.isfinite(seen).all(axis=0)]
    if not seen.size:
        return float("nan")
    seen -= seen.mean(axis=1, keepdims=True)
    weights = np.array([LIMB[name] for name in present])
    return float(np.sqrt(np.mean((seen - weights @ (np.linalg.pinv(weights) @ seen)) ** 2)))


def quality(signal: Signal) -> Quality:
    """What is wrong with a signal, counted by lead."""
    missing, flat, clipped = {}, {}, {}
    for name, values in zip(signal.leads, signal.values, strict=True):
        gone = int((~np.isfinite(values)).sum())
        starts, lengths, held = _runs(values)
        long = np.isfinite(held) & (lengths >= max(2, STILL * signal.rate))
        still = int(lengths[long].sum())
        brief = (lengths >= 3) & ~long
        cut = 0 if still > len(values) / 2 else _clipped(values, starts[brief], lengths[brief])
        for counts, count in ((missing, gone), (flat, still), (clipped, cut)):
            if count:
                counts[name] = count
    return Quality(missing, flat, clipped, limb_residual(signal))


def _runs(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Start, length and value of every stretch of one value."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    return starts, lengths, values[starts]


def _clipped(values: NDArray[Any], starts: NDArray[Any], lengths: NDArray[Any]) -> int:
    """Samples on plateaus at a lead's highest or lowest value that a steep slope runs into."""
    low, high = np.nanmin(values), np.nanmax(values)
    count = 0
    for start, length in zip(starts, lengths, strict=True):
        beside = values[[max(start - 1, 0), min(start + length, len(values) - 1)]]
        step = np.nanmax(np.abs(beside - values[start]))
        if values[start] in (low, high) and step > CLIP_STEP * (high - low):
            count += int(length)
    return count


def filled(signal: Signal, *, where: str = "ECG") -> tuple[Signal, int]:
    """The signal with short gaps interpolated, and how many samples that were.

    Raises:
        DataError: a gap is longer than 0.1 s, or a lead is missing altogether.
    """
    gaps = ~np.isfinite(signal.values)
    if not gaps.any():
        return signal, 0
    values = signal.values.copy()
    for name, row, gap in zip(signal.leads, values, gaps, strict=True):
        _, lengths, missing = _runs(gap)
        longest = int((lengths * missing).max())
        if longest > SHORT_GAP * signal.rate:
            raise DataError(
                f"{where}: lead {name} lacks {longest / signal.rate:.2f} s in a row; at most "
                f"{SHORT_GAP:g} s are interpolated. Cut them off, or drop its row."
            )
        row[gap] = np.interp(np.flatnonzero(gap), np.flatnonzero(~gap), row[~gap])
    return replace(signal, values=values), int(gaps.sum())


def resampled(signal: Signal, rate: float) -> Signal:
    """The signal at another rate: polyphase filtering, so nothing folds over.

    It keeps round(samples * rate / old rate) samples.

    Raises:
        ValueError: samples are missing.
    """
    from scipy.signal import resample_poly

    if signal.rate == rate:
        return signal
    if not np.isfinite(signal.values).all():
        raise ValueError("expected a signal without missing samples; call `filled` first")
    ratio = Fraction(rate / signal.rate).limit_denominator(2000)
    count = round(signal.values.shape[1] * float(ratio))
    moved = resample_poly(
        signal.values.astype(np.float64), ratio.numerator, ratio.denominator, 1, padtype="line"
    )
    short = max(0, count - moved.shape[1])
    moved = np.pad(moved[:, :count], ((0, 0), (0, short)), mode="edge")
    return replace(signal, values=moved.astype(np.float32), rate=rate)


def r_peaks(signal: Signal, lead: str = "II") -> NDArray[np.float64]:
    """Times of the R peaks, in s from the first sample.

    Beats are found by the XQRS detector in one lead, brought to 250 Hz and to an amplitude of about
    1 mV; each is then placed at the largest deflection within 60 ms, at the signal's own rate.
    What is less than a quarter as high as the median beat, as the detector marks at the ends, is
    dropped. Signals of under 1 s give none.

    Args:
        signal: without missing samples.
        lead: where to look; the first lead where this one is not there.

    Source: XQRS of the WFDB toolbox, Xie et al. 2023, doi 10.13026/9njx-6322.
    """
    from wfdb.processing import xqrs_detect

    name = lead if lead in signal.leads else signal.leads[0]
    own = signal.lead(name).astype(np.float64)
    own = own - np.median(own)
    height = float(np.percentile(np.abs(own), 99.5))
    if signal.seconds < 1 or height == 0:
        return np.zeros(0)
    one = Signal((own / height)[None].astype(np.float32), (name,), signal.rate)
    slow = resampled(one, DETECTION_RATE).values[0].astype(np.float64)
    margin = DETECTION_RATE // 2
    wide = np.pad(slow, margin, mode="reflect")
    found = np.asarray(xqrs_detect(wide, DETECTION_RATE, verbose=False), dtype=np.float64) - margin
    found = found[(found >= 0) & (found < len(slow))]
    reach = round(0.06 * signal.rate)
    places = set()
    for place in np.rint(found / DETECTION_RATE * signal.rate).astype(int):
        start = max(place - reach, 0)
        around = np.abs(own[start : place + reach + 1])
        places.add(start + int(around.argmax()))
    peaks = np.array(sorted(places), dtype=int)
    if not peaks.size:
        return np.zeros(0)
    heights = np.abs(own[peaks])
    return peaks[heights > np.median(heights) / 4] / signal.rate


def heart_rate(signal: Signal, lead: str = "II") -> float:
    """Beats a minute from the median interval of R peaks; NaN where there are fewer than two."""
    peaks = r_peaks(signal, lead)
    return float(60 / np.median(np.diff(peaks))) if len(peaks) > 1 else float("nan")
