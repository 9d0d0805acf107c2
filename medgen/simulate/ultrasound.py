"""Ultrasound from scatterers: carrier, point spread, envelope, log compression, sector image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Complex = NDArray[np.complex64]

WAVELENGTH = 1540 / 2.5e6 * 1000
"""mm, of 2.5 MHz in soft tissue."""
TO_SIGMA = 1 / (2 * (2 * math.log(2)) ** 0.5)
"""Standard deviation of a Gaussian over its full width at half maximum."""
SAMPLES_A_WIDTH = 2.2
"""Samples of the polar grid over the width of the point spread."""
CELL = 12.0
"""Scatterers in a resolution cell at `FOCUS`."""
FOCUS = 60.0
"""mm."""


@dataclass(frozen=True)
class Probe:
    """A phased array and the picture made with it.

    Args:
        rows: of the picture.
        columns: of the picture.
        depth: mm from the transducer to the end of the sector.
        angle: degrees that the sector spans.
    """

    rows: int = 112
    columns: int = 112
    depth: float = 165.0
    angle: float = 80.0

    @property
    def pixel(self) -> float:
        """Distance (mm) of the picture's pixels: the sector fits, and touches two sides or more."""
        width = 2 * self.depth * math.sin(math.radians(self.angle / 2))
        return max(self.depth / self.rows, width / self.columns)

    @property
    def axial(self) -> float:
        """Width (mm) of the point spread along the beam; not much finer than the picture."""
        return min(max(0.7 * self.pixel, 1.0), 3.0)

    @property
    def lateral(self) -> float:
        """Width (rad) of the point spread across the beam."""
        return 0.030 * self.axial**0.5

    @cached_property
    def ranges(self) -> Floats:
        """Distance (mm) from the transducer to the rows of the polar grid."""
        return np.linspace(0.5, self.depth, math.ceil(self.depth / self.axial * SAMPLES_A_WIDTH))

    @cached_property
    def beams(self) -> Floats:
        """Angles (rad) of the polar grid's columns, 0 straight down."""
        half = math.radians(self.angle / 2)
        return np.linspace(-half, half, math.ceil(2 * half / self.lateral * SAMPLES_A_WIDTH))

    @cached_property
    def polar(self) -> tuple[Floats, Floats]:
        """Places x, z (mm) of the polar grid; the transducer is at 0, z points down."""
        return np.outer(self.ranges, np.sin(self.beams)), np.outer(self.ranges, np.cos(self.beams))

    @cached_property
    def picture(self) -> tuple[Floats, Floats]:
        """Places x, z (mm) of the picture's pixels."""
        return self._places(1)

    @property
    def density(self) -> float:
        """Scatterers a mm^2 that make fully developed speckle."""
        return CELL / (self.axial * self.lateral * FOCUS)

    def deposit(self, x: Floats, z: Floats, amplitude: Floats) -> Complex:
        """The echo of scatterers on the polar grid, each with the phase of its distance.

        Scatterers of unit amplitude and `density` give unit variance, as white noise does.

        Args:
            x: mm to the right of the transducer.
            z: mm below it.
            amplitude: of every scatterer.
        """
        far = np.hypot(x, z)
        row = (far - self.ranges[0]) / (self.ranges[1] - self.ranges[0])
        step = self.beams[1] - self.beams[0]
        column = (np.arctan2(x, z) - self.beams[0]) / step
        height, width = len(self.ranges), len(self.beams)
        kept = (row >= 0) & (row < height - 1) & (column >= 0) & (column < width - 1)
        row, column, far = row[kept], column[kept], far[kept]
        cell = self.density * (self.ranges[1] - self.ranges[0]) * step
        strength = amplitude[kept] / np.sqrt(cell * far)
        phase = far * (-4 * np.pi / WAVELENGTH)
        echoes = strength * np.cos(phase), strength * np.sin(phase)
        top, left = row.astype(np.intp), column.astype(np.intp)
        down, right = row - top, column - left
        total = np.zeros((2, height * width))
        for shift, share in (
            (0, (1 - down) * (1 - right)),
            (1, (1 - down) * right),
            (width, down * (1 - right)),
            (width + 1, down * right),
        ):
            place = top * width + left + shift
            for part, echo in zip(total, echoes, strict=True):
                part += np.bincount(place, echo * share, minlength=height * width)
        return (total[0] + 1j * total[1]).reshape(height, width).astype(np.complex64)

    def blur(self, echoes: Complex) -> Complex:
        """Echoes on the polar grid through the point spread; white noise keeps its variance."""
        sigma = SAMPLES_A_WIDTH * TO_SIGMA
        kept = (2 * math.pi**0.5 * sigma) ** 0.5
        for axis in (0, 1):
            blurred = [
                gaussian_filter1d(part, sigma, axis=axis, mode="nearest", truncate=3.0)
                for part in (echoes.real, echoes.imag)
            ]
            echoes = kept * (blurred[0] + 1j * blurred[1])
        return echoes

    def white(self, rng: np.random.Generator) -> Complex:
        """Unresolved scatterers everywhere: complex white noise of unit variance."""
        shape = (2, len(self.ranges), len(self.beams))
        parts = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.5**0.5)
        return parts[0] + 1j * parts[1]

    def show(self, polar: Floats) -> NDArray[np.float32]:
        """A polar image as a sector (rows, columns), 0 outside."""
        flat = self._conversion @ polar.astype(np.float32).ravel()
        return flat.reshape(self.rows, self.columns)

    @cached_property
    def sector(self) -> NDArray[np.bool_]:
        """Pixels of the picture that lie in the sector."""
        x, z = self.picture
        near = np.abs(np.arctan2(x, z)) <= self.beams[-1]
        far = np.hypot(x, z)
        return near & (far >= self.ranges[0]) & (far <= self.depth)

    @cached_property
    def _conversion(self) -> csr_array:
        """Bilinear interpolation, averaged over each pixel, as a sparse matrix."""
        fine = math.ceil(self.pixel / self.axial) + 1
        x, z = self._places(fine)
        row = (np.hypot(x, z) - self.ranges[0]) / (self.ranges[1] - self.ranges[0])
        column = (np.arctan2(x, z) - self.beams[0]) / (self.beams[1] - self.beams[0])
        height, width = len(self.ranges), len(self.beams)
        kept = (row >= 0) & (row < height - 1) & (column >= 0) & (column < width - 1)
        pixels = np.arange(self.rows * self.columns).reshape(self.rows, self.columns)
        owner = pixels.repeat(fine, axis=0).repeat(fine, axis=1)[kept]
        row, column = row[kept], column[kept]
        top, left = row.astype(np.intp), column.astype(np.intp)
        down, right = row - top, column - left
        base = top * width + left
        places = np.concatenate([base, base + 1, base + width, base + width + 1])
        shares = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
        values = np.concatenate(shares).astype(np.float32) / fine**2
        size = (pixels.size, height * width)
        return csr_array((values, (np.tile(owner, 4), places)), shape=size)

    def _places(self, fine: int) -> tuple[Floats, Floats]:
        step = self.pixel / fine
        x = (np.arange(self.columns * fine) - (self.columns * fine - 1) / 2) * step
        top = (self.depth - self.rows * self.pixel) / 2
        z = top + (np.arange(self.rows * fine) + 0.5) * step
        grid = np.broadcast_arrays(x[None, :].astype(np.float64), z[:, None].astype(np.float64))
        return grid[0], grid[1]


def compress(envelope: NDArray[np.float32], reference: float, decibels: float) -> Floats:
    """Grey levels from 0 to 1 of an envelope: 1 at the reference, 0 so many decibels below."""
    loud = np.log10(np.maximum(envelope, 1e-12) / reference)
    return np.clip(1 + 20 / decibels * loud, 0, 1)
