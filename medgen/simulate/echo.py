"""Simulated apical echo clips of a heart that beats with its electrocardiogram, with their truth.

What this leaves out: one plane of an idealised ventricle, no papillary muscles, no reverberation,
an ideal beam. Results on it show that a mechanism works, never clinical benefit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from medgen.simulate.ecg import (
    FINDINGS,
    Electrocardiogram,
    Noise,
    Patient,
    Rhythm,
    draw_patient,
    draw_rhythm,
    record,
)
from medgen.simulate.heart import Cycle, Floats, Heart, Ventricle, beats_of, cycle, dense, inside
from medgen.simulate.tissue import Frame, Tissue, View
from medgen.simulate.ultrasound import Complex, Probe, compress

MASK_CLASSES = ("background", "cavity", "myocardium", "atrium")
ECG_RATE = 250.0
"""Samples of the electrocardiogram a second."""
SHORTEST = 0.7
"""A clip (s) must hold a systole."""
DECIBELS = 55.0
"""Between black and white."""
HEADROOM = 2.0
"""White lies so many times above what 99.7 % of the first frame stay below."""
BLOOD = 0.004
"""Amplitude of blood, where muscle has about 1."""
_PLACES = {
    "apical_four_chamber": {"anterior": -0.35, "lateral": 1.1, "inferior": -1.35},
    "apical_two_chamber": {"anterior": 0.7, "inferior": -1.1},
}
"""Where in a view a territory lies, as an angle of the ventricle; a view may not show it."""


@dataclass(frozen=True)
class Degradation:
    """What spoils a picture, each from 0 (not at all) to 1.

    Args:
        haze: a veil of multiply scattered sound, near the probe most, that does not move.
        clutter: bright blobs in the near field that do not move.
        shadow: a band of beams behind a rib.
        dropout: of the side wall, which lies along the beam.
        noise: of the electronics, which grows with depth as attenuation is made up for.
    """

    haze: float = 0.0
    clutter: float = 0.0
    shadow: float = 0.0
    dropout: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Clip:
    """An apical clip, what was going on, and the electrocardiogram over the same time.

    Args:
        image: in [-1, 1], (frames, rows, columns), of 8 bits of grey.
        mask: of `MASK_CLASSES`, of the same shape.
        ecg: spans exactly the time of the clip.
        volumes: of the left ventricle's cavity in every frame, mL.
        end_diastolic_volume: mL.
        end_systolic_volume: mL.
        ejection_fraction: percent.
        end_diastolic_frame: index of the frame of the largest volume.
        end_systolic_frame: index of the frame of the smallest volume.
        view: which plane.
        spacing: s between frames, mm between rows and columns.
        degradation: what spoils it.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    ecg: Electrocardiogram
    volumes: Floats
    end_diastolic_volume: float
    end_systolic_volume: float
    ejection_fraction: float
    end_diastolic_frame: int
    end_systolic_frame: int
    view: View
    spacing: tuple[float, float, float]
    degradation: Degradation


def draw_heart(
    rng: np.random.Generator,
    findings: Sequence[str] = FINDINGS,
    *,
    prevalence: float = 0.25,
    rho: float = 0.0,
) -> tuple[Patient, Heart]:
    """Someone's electrics and mechanics.

    The ejection fraction is independent of the electrocardiogram, but for what `rho` declares: one
    hidden number widens QRS and lowers the ejection fraction.

    Args:
        rng: draws everything.
        findings: what may be present.
        prevalence: probability of each.
        rho: from 0 (the ECG says nothing of the ejection fraction) to 1.
    """
    hidden, own = rng.normal(), rng.normal()
    patient = draw_patient(rng, findings, prevalence=prevalence, delay=hidden)
    weakness = rho * hidden + (1 - rho**2) ** 0.5 * own
    ejected = 20 + 52 / (1 + np.exp(-(0.75 - 1.3 * weakness)))
    volume = rng.uniform(80, 130) + 1.5 * max(55 - ejected, 0) + 12 * patient.sex
    length = float(np.clip(86 * (volume / 120) ** (1 / 3) * rng.uniform(0.94, 1.06), 66, 98))
    thicker, defect = rng.uniform(4, 6), rng.uniform(0.5, 0.8)
    return patient, Heart(
        volume=float(volume),
        ejection_fraction=float(ejected),
        length=length,
        wall=rng.uniform(8.0, 10.5) + ("hypertrophy" in patient.findings) * thicker,
        atrial=0.0 if "atrial_fibrillation" in patient.findings else 0.25,
        defect=defect if "ischaemia" in patient.findings else 0.0,
    )


def draw_degradation(level: float, rng: np.random.Generator) -> Degradation:
    """Each kind between nothing and twice a level from 0 to 1, at most 1; half are absent."""
    kinds = [each.name for each in fields(Degradation)]
    drawn = np.minimum(rng.uniform(0, 2, len(kinds)) * level, 1) * (rng.random(len(kinds)) < 0.5)
    return Degradation(**dict(zip(kinds, drawn.tolist(), strict=True)))


def simulate(
    patient: Patient,
    heart: Heart,
    probe: Probe,
    rng: np.random.Generator,
    *,
    frames: int = 32,
    frames_per_second: float = 16.0,
    view: View = "apical_four_chamber",
    degradation: Degradation | None = None,
    noise: Noise | None = None,
) -> Clip:
    """Scan a heart for a while; the clip begins anywhere in a beat and holds a whole systole.

    Args:
        patient: whose electrics drive it.
        heart: what is scanned.
        probe: the transducer and its picture.
        rng: draws rhythm, position, speckle and noise.
        frames: of the clip.
        frames_per_second: of the clip; frame i shows time i / frames_per_second.
        view: the plane.
        degradation: what spoils it; None for nothing.
        noise: of the electrocardiogram; None for a usual amount.

    Raises:
        ValueError: the clip is too short to hold a systole.
    """
    duration = frames / frames_per_second
    if duration < SHORTEST:
        raise ValueError(f"expected a clip of {SHORTEST} s or more, got {duration:.2f} s")
    degradation = degradation or Degradation()
    place = _PLACES[view].get(patient.territory)
    heart = Heart(
        **{
            **vars(heart),
            "place": 0.0 if place is None else place,
            "defect": 0.0 if place is None else heart.defect,
        }
    )
    rhythm = _started(draw_rhythm(patient, 2 * duration + 3, rng), duration, rng)
    beating = cycle(heart, rhythm, np.arange(frames) / frames_per_second)
    samples = round(duration * ECG_RATE)
    trace = record(patient, rhythm, samples, ECG_RATE, rng, noise=noise or Noise())
    image, mask = _scan(heart, beating, probe, view, degradation, rng)
    return Clip(
        image=image,
        mask=mask,
        ecg=trace,
        volumes=beating.volume,
        end_diastolic_volume=heart.volume,
        end_systolic_volume=heart.volume * (1 - heart.ejection_fraction / 100),
        ejection_fraction=heart.ejection_fraction,
        end_diastolic_frame=int(beating.volume.argmax()),
        end_systolic_frame=int(beating.volume.argmin()),
        view=view,
        spacing=(1 / frames_per_second, probe.pixel, probe.pixel),
        degradation=degradation,
    )


def _started(rhythm: Rhythm, duration: float, rng: np.random.Generator) -> Rhythm:
    """The same beats from a random time on, so that a whole systole lies in `duration`."""
    beats = beats_of(rhythm)
    systole = int(np.searchsorted(beats.eject, duration + 1))
    margin = (SHORTEST - 0.36) / 2
    earliest = beats.close[systole] + margin - duration
    return rhythm.later(float(rng.uniform(earliest, beats.eject[systole] - margin)))


def _scan(
    heart: Heart,
    beating: Cycle,
    probe: Probe,
    view: View,
    degradation: Degradation,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    ventricle = Ventricle(heart)
    tissue = Tissue(ventricle, view, probe.density, rng, dropout=0.9 * degradation.dropout)
    stand = _Stand.drawn(rng, view)
    scene = _Scene(probe, tissue.roof + stand.z, degradation, rng)
    images, masks = [], []
    reference = None
    for i in range(len(beating.volume)):
        moment = tissue.frame(
            ventricle.size(float(beating.volume[i])),
            float(beating.contraction[i]),
            float(beating.mitral[i]),
        )
        echoes = scene.echoes(moment, tissue.amplitude, stand)
        if reference is None:
            reference = HEADROOM * scene.loudest(echoes)
        grey = probe.show(compress(scene.envelope(echoes), reference, DECIBELS)) * probe.sector
        images.append(np.rint(grey * 255) / 127.5 - 1)
        masks.append(_mask(moment, stand, probe))
    return np.stack(images).astype(np.float32), np.stack(masks)


@dataclass(frozen=True)
class _Stand:
    """Where the outer apex lies under the probe (mm), and how far the axis is tilted (rad)."""

    x: float
    z: float
    tilt: float

    @staticmethod
    def drawn(rng: np.random.Generator, view: View) -> _Stand:
        side = 8.0 if view == "apical_four_chamber" else 0.0
        return _Stand(
            x=side + rng.uniform(-4, 4),
            z=rng.uniform(20, 27),
            tilt=float(np.radians(rng.uniform(-5, 5) + (3 if side else 0))),
        )

    def seen(self, x: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Places of the heart as places under the probe."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        return self.x + x * cos + z * sin, self.z - x * sin + z * cos

    def held(self, x: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Places under the probe as places of the heart."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        x, z = x - self.x, z - self.z
        return x * cos - z * sin, x * sin + z * cos


class _Scene:
    """All that is not the heart: tissue around it, blood, haze, clutter, shadow, noise."""

    def __init__(
        self, probe: Probe, roof: float, degradation: Degradation, rng: np.random.Generator
    ) -> None:
        self.probe, self._rng = probe, rng
        x, z = probe.polar
        far = np.hypot(x, z)
        beam = probe.beams / probe.beams[-1]
        aside = np.cos(np.pi / 2 * np.clip(np.abs(beam - 0.08), 0, 1)) ** 1.2
        self._plain = (0.06 + 0.94 * aside)[None, :] * np.exp(-np.square((far - 95) / 130))
        patches = probe.blur(probe.white(rng))
        for _ in range(3):
            patches = probe.blur(np.abs(patches).astype(np.complex64))
        patchy = np.abs(patches) / np.abs(patches).mean()
        near = 0.25 * np.exp(-np.square((far - 9) / 6)) + 0.05 * np.exp(-np.square(far / 45))
        behind = far + rng.uniform(-0.15, 0.1) * x - roof - 5
        posterior = np.exp(-np.square(behind / 8)) + 0.2 * (behind > 0)
        apical = np.exp(-np.square((far - 32) / 26))
        around = 0.012 + 0.13 * apical + 0.6 * posterior * np.exp(-np.square((x - 5) / 50))
        self.around = (probe.white(rng) * (around * patchy**2.5)).astype(np.complex64)
        self.fixed = probe.blur(probe.white(rng)) * (
            near
            + 0.09 * degradation.haze * np.exp(-far / 70)
            + 0.5 * degradation.clutter * _blobs(rng, x, z)
        )
        center, half = rng.uniform(-0.45, 0.55), rng.uniform(0.1, 0.22)
        band = np.exp(-np.square(np.square((beam - center) / half)))
        self.gain = self._plain * (1 - 0.93 * degradation.shadow * band[None, :] * (far > 10))
        self.hiss = 0.0007 + 0.02 * degradation.noise * 10 ** ((far - 120) / 80)

    def echoes(self, frame: Frame, amplitude: Floats, stand: _Stand) -> Complex:
        """What comes back from the heart, its blood and the tissue around it in one frame."""
        probe = self.probe
        hollow = inside(*stand.held(*probe.polar), frame.chambers)
        echoes = probe.deposit(*stand.seen(frame.x, frame.z), amplitude)
        blood = probe.white(self._rng) * np.float32(BLOOD)
        return probe.blur(echoes + np.where(hollow, blood, self.around))

    def loudest(self, echoes: Complex) -> float:
        """The envelope that 99.7 % stay below, were nothing spoilt: no degradation dims it."""
        return float(np.percentile(np.abs(echoes) * self._plain, 99.7))

    def envelope(self, echoes: Complex) -> NDArray[np.float32]:
        """What the probe hears of the echoes."""
        hiss = self.hiss * self.probe.white(self._rng)
        return np.abs((echoes + self.fixed) * self.gain + hiss).astype(np.float32)


def _blobs(rng: np.random.Generator, x: Floats, z: Floats) -> Floats:
    total = np.zeros_like(x)
    for _ in range(3):
        far, turn, wide = rng.uniform(22, 50), rng.uniform(-0.4, 0.4), rng.uniform(5, 10)
        offset = np.square(x - far * np.sin(turn)) + np.square(2 * (z - far * np.cos(turn)))
        total += np.exp(-offset / (2 * wide**2))
    return total


def _mask(frame: Frame, stand: _Stand, probe: Probe) -> NDArray[np.uint8]:
    """Classes of the picture's pixels that lie in the sector."""
    places = stand.held(*probe.picture)
    mask = np.zeros(probe.sector.shape, dtype=np.uint8)
    mask[inside(*places, dense(frame.atrium))] = MASK_CLASSES.index("atrium")
    mask[inside(*places, dense(frame.epicardium))] = MASK_CLASSES.index("myocardium")
    mask[inside(*places, dense(frame.cavity))] = MASK_CLASSES.index("cavity")
    return mask * probe.sector
