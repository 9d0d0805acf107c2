"""Simulated 12-lead electrocardiograms: every wave a Gaussian in time, so intervals are known."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The twelve leads in their usual order."""
FINDINGS = (
    "atrial_fibrillation",
    "bundle_branch_block",
    "ectopic_beats",
    "hypertrophy",
    "ischaemia",
)
"""What can be planted, in the order of labels."""
TERRITORIES = ("anterior", "lateral", "inferior")
"""Where ischaemia can lie."""
RATES = (50.0, 105.0)
"""Range (bpm) of drawn heart rates; a study may lie a little beyond."""
LARGEST = 3.0
"""No drawn signal leaves this many mV, up or down."""

WAVES = ("P", "Q", "R", "S", "T", "ST", "R'")
_AMPLITUDES = np.array([0.15, -0.12, 1.0, -0.25, 0.32])
_GAINS = np.array(
    [
        [0.80, 0.60, 0.65, 0.50, 0.90],
        [1.00, 1.00, 1.00, 1.00, 1.00],
        [0.35, 0.00, 0.20, 2.60, -0.40],
        [0.50, 0.00, 0.35, 3.20, 1.60],
        [0.50, 0.20, 0.60, 2.30, 1.80],
        [0.60, 0.60, 1.10, 1.30, 1.50],
        [0.60, 0.90, 1.10, 0.60, 1.20],
        [0.60, 0.90, 0.90, 0.30, 1.00],
    ]
)
"""Shares of the five waves in the independent leads I, II, V1 to V6."""
_ST = {
    "anterior": np.array([0.05, -0.05, 0.14, 0.28, 0.30, 0.25, 0.10, 0.03]),
    "lateral": np.array([0.17, -0.05, -0.10, -0.06, 0.00, 0.10, 0.26, 0.26]),
    "inferior": np.array([-0.12, 0.26, -0.05, -0.10, -0.08, 0.00, 0.04, 0.06]),
}
"""ST segments (mV) in the independent leads."""
_NOTCH = np.array([0.50, 0.25, -0.15, -0.20, -0.10, 0.20, 0.55, 0.60])
_FIBRILLATION = np.array([0.3, 0.6, 1.0, 0.6, 0.4, 0.3, 0.2, 0.2])
EDGE = 2.0
"""A wave begins and ends so many standard deviations from its peak: at exp(-2) of its height."""


@dataclass(frozen=True)
class Patient:
    """Someone as an electrocardiogram sees them.

    Args:
        age: years.
        sex: 0 female, 1 male.
        rate: usual heart rate, bpm.
        variability: swing of the beats' distance with breath and pressure, as a share.
        pr: from the begin of P to that of QRS, ms.
        qrs: from its begin to its end, ms.
        qtc: from the begin of QRS to the end of T at 60 bpm, ms.
        findings: what is present, of `FINDINGS`.
        territory: where ischaemia lies, of `TERRITORIES`; empty without.
        gains: mV of every wave (of `WAVES`) in the independent leads, (8, 7).
    """

    age: float
    sex: int
    rate: float
    variability: float
    pr: float
    qrs: float
    qtc: float
    findings: tuple[str, ...]
    territory: str
    gains: Floats


@dataclass(frozen=True)
class Rhythm:
    """When a heart beats.

    Args:
        times: of the R peaks, s, from well before 0 to well after the end.
        ectopic: which of them come early, from the ventricle.
        rate: bpm that intervals are matched to.
    """

    times: Floats
    ectopic: NDArray[np.bool_]
    rate: float

    def beats(self, at: Floats | float) -> Floats:
        """Beats, and the part of the one under way, since the first R peak."""
        return np.asarray(np.interp(at, self.times, np.arange(len(self.times))))

    def heart_rate(self, start: float, stop: float) -> float:
        """Beats a minute between two times (s), fractions of beats counted."""
        return 60 * float(self.beats(stop) - self.beats(start)) / (stop - start)

    def later(self, seconds: float) -> Rhythm:
        """The same beats on a clock that reads 0 so much later."""
        return Rhythm(self.times - seconds, self.ectopic, self.rate)


@dataclass(frozen=True)
class Noise:
    """What is not the heart, as root mean square in mV.

    Args:
        baseline: wander with breath, below 0.5 Hz.
        mains: hum of 50 Hz; a signal sampled at 100 Hz or less has been filtered of it.
        muscle: white noise of muscles and amplifiers.
    """

    baseline: float = 0.03
    mains: float = 0.006
    muscle: float = 0.012

    def times(self, level: float) -> Noise:
        """So many times as much of each."""
        return Noise(level * self.baseline, level * self.mains, level * self.muscle)


CLEAN = Noise(0, 0, 0)


@dataclass(frozen=True)
class Electrocardiogram:
    """A recording and its truth.

    Args:
        signal: mV, (12, samples) in the order of `LEADS`.
        rate: samples a second.
        r_times: R peaks inside the recording, s.
        rr: from each of them to the next, s.
        heart_rate: bpm, fractions of beats counted.
        pr_interval: ms; NaN where atria fibrillate.
        qrs_duration: ms, of beats that are conducted.
        qt_interval: ms, at this rate.
        findings: what is present.
    """

    signal: NDArray[np.float32]
    rate: float
    r_times: Floats
    rr: Floats
    heart_rate: float
    pr_interval: float
    qrs_duration: float
    qt_interval: float
    findings: tuple[str, ...]


def draw_patient(
    rng: np.random.Generator,
    findings: Sequence[str] = FINDINGS,
    *,
    prevalence: float = 0.25,
    delay: float | None = None,
) -> Patient:
    """Someone of random age and sex, in whom each finding is present independently.

    The same numbers are drawn whatever `findings` holds: a finding left out changes no other.

    Args:
        rng: draws everything.
        findings: what may be present.
        prevalence: probability of each.
        delay: how slowly the ventricles are activated, in standard deviations; drawn if None.
    """
    chances = dict(zip(FINDINGS, rng.random(len(FINDINGS)), strict=True))
    present = tuple(n for n in FINDINGS if n in findings and chances[n] < prevalence)
    age, sex = float(rng.uniform(20, 90)), int(rng.random() < 0.5)
    drawn = float(np.clip(rng.normal(), -2.2, 2.2))
    delay = drawn if delay is None else float(np.clip(delay, -2.2, 2.2))
    wide = rng.uniform(38, 58) if "bundle_branch_block" in present else 0.0
    where = TERRITORIES[int(rng.integers(len(TERRITORIES)))]
    return Patient(
        age=age,
        sex=sex,
        rate=float(rng.uniform(*RATES)),
        variability=float(rng.uniform(0.01, 0.04)) * (1.3 - age / 130),
        pr=float(rng.uniform(125, 185) + 0.25 * (age - 55)),
        qrs=90 + 5 * sex + 8 * delay + wide,
        qtc=float(np.clip(412 - 12 * sex + rng.normal(0, 14), 370, 460)) + 0.5 * wide,
        findings=present,
        territory=where if "ischaemia" in present else "",
        gains=_draw_gains(rng, present, where, 1.12 - age / 450),
    )


def _draw_gains(
    rng: np.random.Generator, present: Collection[str], territory: str, strength: float
) -> Floats:
    """Gains (8, 7) in mV of every wave in the independent leads, with the findings' marks."""
    spread = rng.uniform(0.85, 1.15, (8, 5)) * rng.uniform(0.88, 1.06) * strength
    severity = rng.uniform(0.7, 1.3)
    gains = np.zeros((8, len(WAVES)))
    gains[:, :5] = _GAINS * _AMPLITUDES * spread
    v1, v5 = 2, 6
    if "hypertrophy" in present:
        gains[[v1, v1 + 1], 3] *= 1.6
        gains[[v5, v5 + 1], 2] *= 1.6
    if "bundle_branch_block" in present:
        gains[:, 6] = _NOTCH * severity
        gains[:, 2] *= 0.8
        gains[:, 4] *= np.where(_NOTCH > 0.3, -0.7, 1.2)
        gains[:, 1] *= 0.3
    if "ischaemia" in present:
        gains[:, 5] = _ST[territory] * severity
    if "atrial_fibrillation" in present:
        gains[:, 0] = 0
    return gains


def draw_rhythm(patient: Patient, duration: float, rng: np.random.Generator) -> Rhythm:
    """Beats from two to three seconds before 0 to three after `duration` (s).

    Distances swing with blood pressure (0.1 Hz) and breath (0.25 Hz); where atria fibrillate they
    are independent draws of a gamma distribution; an ectopic beat comes after 65 % of the usual
    time and is followed by a pause. Filling always has its time, which bounds the shortest.

    Source: McSharry et al. 2003, doi 10.1109/TBME.2003.808805 (two spectral peaks).
    """
    rate = float(patient.rate * np.clip(rng.normal(1, 0.04), 0.9, 1.1))
    mean, swing = 60 / rate, patient.variability
    first, second = rng.uniform(0, 2 * np.pi, 2)
    chance = 0.12 if "ectopic_beats" in patient.findings else 0.0
    shortest = 0.413 - 0.0017 * rate + 0.19
    times, ectopic = [-2 - float(rng.uniform(0, 1))], [False]
    stretch = 1.0
    while times[-1] < duration + 3:
        now = times[-1]
        slow, fast = np.sin(0.2 * np.pi * now + first), np.sin(0.5 * np.pi * now + second)
        distance = mean * (1 + swing * (0.7 * slow + fast))
        drawn, early = rng.gamma(25.0, mean / 25), rng.random() < chance
        if "atrial_fibrillation" in patient.findings:
            distance = drawn
        early = bool(early and not ectopic[-1])
        times.append(now + max(distance * (0.65 if early else stretch), shortest))
        ectopic.append(early)
        stretch = 1.35 if early else 1.0
    return Rhythm(np.array(times), np.array(ectopic), rate)


def qt_interval(patient: Patient, rhythm: Rhythm) -> float:
    """The QT interval (ms) at the rate of a rhythm. Source: Bazett 1920."""
    return patient.qtc * (60 / rhythm.rate) ** 0.5


def record(
    patient: Patient,
    rhythm: Rhythm,
    samples: int,
    rate: float,
    rng: np.random.Generator,
    *,
    noise: Noise = CLEAN,
) -> Electrocardiogram:
    """Record a heart from time 0 on.

    Eight leads are independent; the other four follow from them exactly (Einthoven, Goldberger).

    Args:
        patient: whose heart.
        rhythm: when it beats.
        samples: length of the recording.
        rate: samples a second.
        rng: draws noise and the waves of fibrillating atria.
        noise: how much, in the independent leads.
    """
    at = np.arange(samples) / rate
    eight = _waves(patient, rhythm, at)
    if "atrial_fibrillation" in patient.findings:
        turn = rng.uniform(0, 2 * np.pi, 3)
        ripple = sum(
            np.sin(2 * np.pi * f * at + 1.5 * np.sin(2 * np.pi * 0.7 * at + p) + p)
            for f, p in zip((4.9, 5.8, 6.7), turn, strict=True)
        )
        eight = eight + 0.035 * _FIBRILLATION[:, None] * ripple
    twelve = derive_leads(eight + _noise(noise, at, rate, rng))
    inside = np.flatnonzero((rhythm.times >= 0) & (rhythm.times < samples / rate))
    return Electrocardiogram(
        signal=twelve.astype(np.float32),
        rate=rate,
        r_times=rhythm.times[inside],
        rr=np.diff(rhythm.times)[inside],
        heart_rate=rhythm.heart_rate(0, samples / rate),
        pr_interval=float("nan") if "atrial_fibrillation" in patient.findings else patient.pr,
        qrs_duration=patient.qrs,
        qt_interval=qt_interval(patient, rhythm),
        findings=patient.findings,
    )


def derive_leads(eight: Floats) -> Floats:
    """All twelve leads (12, samples) of the independent ones I, II, V1 to V6 (8, samples)."""
    one, two = eight[0], eight[1]
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.concatenate([np.stack(limbs), eight[2:]])


def _waves(patient: Patient, rhythm: Rhythm, at: Floats) -> Floats:
    """The independent leads (8, samples) without noise: a sum of Gaussians around the R peaks.

    Source: McSharry et al. 2003 in closed form, with waves placed in time instead of phase.
    """
    normal, early = _shape(patient, rhythm), _shape(patient, rhythm, ectopic=True)
    eight = np.zeros((8, len(at)))
    for beats, (centers, rise, fall, heights) in (
        (rhythm.times[~rhythm.ectopic], normal),
        (rhythm.times[rhythm.ectopic], early),
    ):
        offset = at[None, None, :] - beats[None, :, None] - centers[:, None, None]
        wide = np.where(offset < 0, rise[:, None, None], fall[:, None, None])
        bumps = np.exp(-0.5 * np.square(offset / wide)).sum(axis=1)
        eight += (patient.gains * heights) @ bumps
    return eight


def _shape(
    patient: Patient, rhythm: Rhythm, *, ectopic: bool = False
) -> tuple[Floats, Floats, Floats, Floats]:
    """Centre, widths before and after it (s), and factor of every wave of a beat."""
    qrs = patient.qrs / 1000 * (1.5 if ectopic else 1.0)
    qt = qt_interval(patient, rhythm) / 1000
    narrow = qrs / (2 * (2.62 + EDGE))
    atrial = 0.024
    p_center = -qrs / 2 - patient.pr / 1000 + EDGE * atrial
    t_wide = 0.12 * qt
    t_center = qt - qrs / 2 - EDGE * t_wide
    st = t_center - qrs / 2
    centers = np.array(
        [p_center, -2.62 * narrow, 0, 2.62 * narrow, t_center, qrs / 2 + 0.4 * st, 2.2 * narrow]
    )
    fall = np.array([atrial, narrow, narrow, narrow, t_wide, 0.33 * st, 0.8 * narrow])
    rise = fall * np.array([1, 1, 1, 1, 1.35, 1, 1])
    heights = np.array([0, 0.2, 1.2, 1.2, -1.2, 0.5, 0]) if ectopic else np.ones(len(WAVES))
    return centers, rise, fall, heights


def _noise(noise: Noise, at: Floats, rate: float, rng: np.random.Generator) -> Floats:
    """Noise of the independent leads, (8, samples) in mV."""
    turns = rng.uniform(0, 2 * np.pi, (8, 3, 1))
    slow = np.sin(2 * np.pi * np.array([0.13, 0.25, 0.41])[:, None] * at + turns).sum(axis=1)
    hum = np.sin(2 * np.pi * 50 * at + rng.uniform(0, 2 * np.pi, (8, 1)))
    white = rng.standard_normal((8, len(at)))
    mains = noise.mains if rate > 100 else 0.0
    return noise.baseline * slow * (2 / 3) ** 0.5 + mains * hum * 2**0.5 + noise.muscle * white
