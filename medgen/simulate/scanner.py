"""What a CT scanner makes of a patient: the kernel's sharpness and noise by dose and thickness."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medgen.simulate.shapes import Array

Kernel = Literal["soft", "standard", "lung"]
KERNELS: dict[Kernel, tuple[float, float]] = {
    "soft": (0.38, 0.0),
    "standard": (0.46, 0.3),
    "lung": (0.62, 1.9),
}
"""Cut-off (mm^-1) and edge enhancement of a kernel's transfer function, see `transfer`."""

NOISE = 21.0
"""HU of noise in the middle of a patient of `GIRTH` at `DOSE`, standard kernel, pixels of 0.7 mm,
slices of 2.5 mm: a routine chest scan."""
DOSE, THICKNESS, GIRTH = 7.0, 2.5, 300.0
"""mGy of CTDIvol, mm, and mm of water that a ray crosses."""
MU = 0.0195
"""Attenuation of water, mm^-1, near 70 keV. Source: NIST XCOM."""
PIXEL = 0.7


@dataclass(frozen=True)
class Protocol:
    """How a patient is scanned.

    Args:
        kernel: of the reconstruction.
        dose: mGy of CTDIvol; 1.5 is a screening scan, 7 a routine one.
        phase: of the contrast medium, see `hounsfield.PHASES`.
    """

    kernel: Kernel = "standard"
    dose: float = DOSE
    phase: str = "native"


def transfer(kernel: Kernel, frequency: Array) -> Array:
    """Modulation transfer at frequencies (mm^-1) in a slice: 1 at 0, more where it sharpens."""
    cut, edge = KERNELS[kernel]
    square = np.square(frequency / cut)
    return (1 + edge * square) * np.exp(-square)


def acquire(
    volume: Array,
    spacing: tuple[float, float, float],
    protocol: Protocol,
    rng: np.random.Generator,
) -> NDArray[np.int16]:
    """A scan in whole HU of an ideal volume.

    The kernel's transfer function blurs or sharpens each slice. Noise has the spectrum of filtered
    back-projection, frequency times transfer squared; its variance goes with the inverse of dose
    and slice thickness, and with the attenuation of the rays that cross a voxel, of which half (in
    the exponent) is made up for by tube current modulation.

    Args:
        volume: HU, (z y x).
        spacing: mm between voxels along z, y, x.
        protocol: how.
        rng: draws the noise.

    Source: Riederer, Pelc and Chesler 1978, doi 10.1088/0031-9155/23/3/008 (spectrum); Brooks and
    Di Chiro 1976, doi 10.1118/1.594282 (dose, thickness); Gies et al. 1999, doi 10.1118/1.598779
    (modulation).
    """
    frequency = _frequencies(volume.shape[1:], spacing[1:])
    passed = transfer(protocol.kernel, frequency) * _aperture(volume.shape[1:], spacing[1:])
    seen = _filtered(volume, transfer(protocol.kernel, frequency))
    white = rng.standard_normal(volume.shape, dtype=np.float32)
    shape = np.sqrt(frequency) * passed
    grain = _filtered(white, shape / np.sqrt(np.mean(np.square(shape))))
    level = NOISE * np.sqrt(DOSE / protocol.dose * THICKNESS / spacing[0])
    level *= np.sqrt(_power(protocol.kernel, spacing[1:]) / _power("standard", (PIXEL, PIXEL)))
    seen += level * _loading(volume, spacing) * grain
    return np.clip(np.rint(seen), -1024, 3071).astype(np.int16)


def _frequencies(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Array:
    rows = np.fft.fftfreq(shape[0], spacing[0])[:, None]
    return np.hypot(rows, np.fft.rfftfreq(shape[1], spacing[1])[None]).astype(np.float32)


def _aperture(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Array:
    """Transfer of averaging over a pixel."""
    rows = np.sinc(np.fft.fftfreq(shape[0]))[:, None]
    return (rows * np.sinc(np.fft.rfftfreq(shape[1]))[None]).astype(np.float32)


def _filtered(volume: Array, transfer: Array) -> Array:
    """Every slice through a transfer function; air around the patient meets air where it wraps."""
    spectrum = np.fft.rfft2(volume, axes=(1, 2)) * transfer
    return np.fft.irfft2(spectrum, s=volume.shape[1:], axes=(1, 2)).astype(np.float32)


@cache
def _power(kernel: Kernel, spacing: tuple[float, ...]) -> float:
    """Variance of noise in a pixel, up to a factor: its spectrum summed over frequencies."""
    f = np.linspace(-2, 2, 321)
    rows, columns = f[:, None], f[None]
    passed = transfer(kernel, np.hypot(rows, columns))
    passed = passed * np.sinc(rows * spacing[0]) * np.sinc(columns * spacing[1])
    return float(np.sum(np.hypot(rows, columns) * np.square(passed)) * (f[1] - f[0]) ** 2)


def _loading(volume: Array, spacing: tuple[float, float, float]) -> Array:
    """Noise of every voxel over that in the middle of a patient of `GIRTH`, (z y x).

    Two views stand for all: the rays from front to back, and those from side to side.
    """
    water = np.clip(volume / 1000 + 1, 0, 2)
    along = water.sum(axis=1, keepdims=True) * spacing[1]
    across = water.sum(axis=2, keepdims=True) * spacing[2]
    views = [np.exp(MU / 2 * (np.minimum(path, 600) - GIRTH)) for path in (along, across)]
    return np.sqrt((views[0] + views[1]) / 2).astype(np.float32)
