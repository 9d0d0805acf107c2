"""Simulated radiographs: a thorax in HU seen from any side, with scatter, noise and a detector.

The beam is divergent: depth by depth, a slice of the volume is magnified onto the detector with
exact area weights, so attenuation is neither lost nor made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, rotate
from scipy.sparse import csr_array

from medgen.simulate.ct import LABELS, LUNG, Thorax
from medgen.simulate.shapes import Array

Value = TypeVar("Value", np.floating, np.int32)
MASK_CLASSES = ("background", "lung", "heart")
"""Classes of a radiograph's mask; the heart lies over the lungs."""
_CODES = np.zeros(len(LABELS), dtype=np.int32)
_CODES[list(LUNG)] = 1
_CODES[LABELS.index("heart")] = 1 << 10
_CODES[LABELS.index("effusion")] = 1 << 20
LUNG_PATH, HEART_PATH = 45.0, 12.0
"""mm of lung or heart that a ray must cross for its pixel to be of that class."""
BODY_PATH = 25.0
"""mm of water that a ray must cross to count as meeting the body."""
SCATTER_SPREAD = 34.0
"""Standard deviation (mm) of the spread of scattered quanta."""
WATER = ((0.0226, 0.5), (0.0188, 0.5))
"""Attenuation of water (mm^-1) at about 50 and 78 keV, and the beam's share there. Source: XCOM."""
BONE_EXCESS = 0.7
"""What the photoelectric effect adds to bone at these energies, as a share of its excess HU."""


@dataclass(frozen=True)
class View:
    """Where the source, the patient and the detector stand.

    Args:
        angle: degrees that the patient is turned about the long axis: 0 frontal, 90 lateral.
        tilt: degrees of the beam towards the head.
        roll: degrees that the image is turned in its plane.
        field: mm along the longer side of the image, measured at the patient's midline.
        center: z and x (mm) of the patient at the image's centre.
        distance: mm from source to the patient's midline; infinite means a parallel beam.
        front: the beam enters from the front (AP) instead of the back (PA).
    """

    angle: float = 0.0
    tilt: float = 0.0
    roll: float = 0.0
    field: float = 370.0
    center: tuple[float, float] = (125.0, 0.0)
    distance: float = 1700.0
    front: bool = False


@dataclass(frozen=True)
class Exposure:
    """How the image is taken and shown.

    Args:
        scatter: scattered over primary intensity.
        photons: mean quanta a square mm that reach the detector behind air.
        blur: standard deviation of the detector's blur, mm at the patient.
        middle: attenuation shown at mid-grey, as a quantile of the body's.
        contrast: slope of the response at mid-grey.
        flatten: share of the large-scale contrast that processing takes out.
        sharpen: gain of fine detail.
        black: grey level, 0 to 1, below which nothing is shown: what air looks like.
    """

    scatter: float = 0.6
    photons: float = 12_000.0
    blur: float = 0.5
    middle: float = 0.5
    contrast: float = 1.0
    flatten: float = 0.25
    sharpen: float = 0.3
    black: float = 0.0


@dataclass(frozen=True)
class Radiograph:
    """An image and what is known about it.

    Args:
        image: (H W) in [-1, 1], bone bright.
        mask: (H W) indices of `MASK_CLASSES`.
        findings: what is planted and how large, see `Thorax.findings`.
        cardiothoracic_ratio: width of the heart over the inner width of the chest, measured on
            the exact regions; NaN where the image shows no heart or no lung.
        spacing: mm between pixels at the patient's midline.
    """

    image: Array
    mask: NDArray[np.int64]
    findings: Mapping[str, float]
    cardiothoracic_ratio: float
    spacing: tuple[float, float]


def draw_view(rng: np.random.Generator, thorax: Thorax) -> View:
    """A frontal view as it is taken: nearly straight, nearly centred."""
    front = bool(rng.random() < 0.3)
    a = thorax.anatomy
    height = a.height + a.dome_gap
    return View(
        angle=float(rng.normal(0, 2.5)),
        tilt=float(rng.normal(0, 2.0)) + (4.0 if front else 0.0),
        roll=float(rng.normal(0, 1.6)),
        field=float(np.clip(rng.normal(1.24, 0.06) * max(height + 45, 2 * a.half_width), 270, 400)),
        center=(0.5 * (height + 45) + float(rng.normal(0, 8)), float(rng.normal(0, 6))),
        distance=1050.0 if front else 1700.0,
        front=front,
    )


def draw_exposure(rng: np.random.Generator) -> Exposure:
    """One room's technique and processing."""
    return Exposure(
        scatter=float(rng.uniform(0.15, 0.6)),
        photons=float(np.exp(rng.uniform(np.log(3e3), np.log(4e4)))),
        blur=float(rng.uniform(0.3, 1.0)),
        middle=float(rng.uniform(0.40, 0.62)),
        contrast=float(np.exp(rng.normal(0, 0.16))),
        flatten=float(rng.uniform(0.0, 0.35)),
        sharpen=float(rng.uniform(0.0, 0.6)),
        black=float(rng.uniform(-0.1, 0.06)),
    )


def radiograph(
    thorax: Thorax,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    view: View | None = None,
    exposure: Exposure | None = None,
) -> Radiograph:
    """Take a radiograph.

    Args:
        thorax: of whom.
        size: rows and columns.
        rng: draws the noise, and the view and exposure where they are not given.
        view: None draws a frontal one.
        exposure: None draws one.
    """
    taken = view or draw_view(rng, thorax)
    shown = exposure or draw_exposure(rng)
    pixel = taken.field / max(size)
    beam = _Beam(thorax, taken, size)
    water = roll(beam.cast(beam.slabs(density(thorax.volume))), taken.roll)
    counts = beam.slabs(_CODES[thorax.labels])
    lung, heart, fluid = (
        roll(beam.cast(((counts >> shift) & 1023).astype(np.float32)), taken.roll)
        for shift in (0, 10, 20)
    )
    chest = lung + fluid > LUNG_PATH
    lung, heart = lung > LUNG_PATH, heart > HEART_PATH
    mask = np.where(heart, 2, np.where(lung, 1, 0)).astype(np.int64)
    return Radiograph(
        image=show(detect(water, pixel, shown, rng), water > BODY_PATH, pixel, shown),
        mask=mask,
        findings=thorax.findings,
        cardiothoracic_ratio=_ratio(heart, chest),
        spacing=(pixel, pixel),
    )


def density(volume: Array) -> Array:
    """Water-equivalent density of HU: 1 is water, 0 is air; bone counts more than its HU say."""
    dense = volume - 120
    np.maximum(dense, 0, out=dense)
    dense *= BONE_EXCESS
    dense += volume
    dense *= 1e-3
    dense += 1
    return dense


def project(volume: Array, thorax: Thorax, view: View, size: tuple[int, int]) -> Array:
    """Line integrals (mm times the volume's unit) of a volume on the grid of a thorax, (H W).

    For a parallel beam and a field that holds all of it, the sum over the detector times its pixel
    area is the volume's integral, whatever the angle. `View.roll` is left to `roll`.
    """
    beam = _Beam(thorax, view, size)
    return beam.cast(beam.slabs(volume))


class _Beam:
    """What a view makes of a grid: slabs along the beam, and where their rows and columns fall."""

    def __init__(self, thorax: Thorax, view: View, size: tuple[int, int]) -> None:
        pixel = view.field / max(size)
        self.size = size
        self.turns = round(view.angle / 90) % 4
        rest = np.deg2rad(view.angle - 90 * round(view.angle / 90))
        z, y, x = (
            start + step * np.arange(count)
            for start, step, count in zip(
                thorax.origin, thorax.spacing, thorax.volume.shape, strict=True
            )
        )
        depth, across = ((y, x), (-x, y), (-y, -x), (x, -y))[self.turns]
        thick, wide = np.array(thorax.spacing)[[1, 2] if self.turns % 2 == 0 else [2, 1]]
        together = max(int(26 / thick), 1) if abs(np.rad2deg(rest)) < 8 else 1
        self.starts = list(range(0, len(depth), together))
        depth = np.array([depth[a : a + together].mean() for a in self.starts])
        toward = depth if view.front else -depth
        zoom = 1 / (1 + toward / view.distance)
        rise = z - view.center[0] + np.tan(np.deg2rad(view.tilt)) * depth[:, None]
        drift = np.cos(rest) * across - view.center[1] + np.sin(rest) * depth[:, None]
        self.rows = _footprints(rise * zoom[:, None], thorax.spacing[0] * zoom, pixel, size[0])
        self.columns = _footprints(
            drift * zoom[:, None], wide * np.cos(rest) * zoom, pixel, size[1]
        )
        self.scale = np.float32(np.prod(thorax.spacing) / pixel**2)

    def slabs(self, volume: NDArray[Value]) -> NDArray[Value]:
        """Sums of neighbouring slices, which are magnified alike, (D Z n)."""
        turned = volume.swapaxes(1, 2) if self.turns % 2 else volume
        ends = [*self.starts[1:], turned.shape[1]]
        pairs = zip(self.starts, ends, strict=True)
        return np.stack([turned[:, a:b].sum(axis=1, dtype=volume.dtype) for a, b in pairs])

    def cast(self, slabs: Array) -> Array:
        """Line integrals (H W) of slabs."""
        total = np.zeros(self.size, dtype=np.float32)
        for rows, columns, slab in zip(self.rows, self.columns, slabs, strict=True):
            total += (columns @ (rows @ slab).T).T
        return total * self.scale


def _footprints(
    center: NDArray[np.float64], width: NDArray[np.float64], pixel: float, count: int
) -> list[csr_array]:
    """Share of every voxel's footprint that falls on every pixel, one (count n) matrix a slab.

    The shares of a footprint that lies on the detector sum to 1.

    Args:
        center: of the footprints, (D n), mm from the image's centre.
        width: of the footprints, (D,) mm.
        pixel: mm between pixels.
        count: pixels across the image.
    """
    low = (center - width[:, None] / 2) / pixel + count / 2
    extent = (width / pixel)[:, None]
    first = np.floor(low).astype(np.int64)
    reach = np.arange(int(np.ceil(extent.max())) + 1)
    pixels = first[..., None] + reach
    shares = np.minimum((low + extent)[..., None], pixels + 1) - np.maximum(low[..., None], pixels)
    shares = np.maximum(shares, 0) / extent[..., None]
    kept = (shares > 0) & (pixels >= 0) & (pixels < count)
    voxels = np.broadcast_to(np.arange(center.shape[1])[:, None], pixels.shape[1:])
    return [
        csr_array((s[k].astype(np.float32), (p[k], voxels[k])), shape=(count, center.shape[1]))
        for s, p, k in zip(shares, pixels, kept, strict=True)
    ]


def roll(image: Array, degrees: float) -> Array:
    """Turn an image about its centre; what comes from outside repeats the edge."""
    if not degrees:
        return image
    return rotate(image, degrees, reshape=False, order=1, mode="nearest")


def detect(water: Array, pixel: float, exposure: Exposure, rng: np.random.Generator) -> Array:
    """Attenuation -ln(quanta / quanta behind air) that a detector measures, (H W).

    Args:
        water: water-equivalent path of every ray, mm.
        pixel: mm between pixels.
        exposure: technique.
        rng: draws the quanta.
    """
    primary = np.zeros(water.shape)
    for mu, share in WATER:
        primary += share * np.exp(-mu * water)
    if exposure.scatter:
        spread = gaussian_filter(primary, SCATTER_SPREAD / pixel, mode="nearest", truncate=2.5)
        primary += exposure.scatter * spread
    behind_air = exposure.photons * pixel**2
    quanta = behind_air * gaussian_filter(primary, exposure.blur / pixel)
    quanta += np.sqrt(quanta) * rng.standard_normal(quanta.shape)
    return -np.log(np.maximum(quanta, 1) / behind_air)


def show(signal: Array, body: NDArray[np.bool_], pixel: float, exposure: Exposure) -> Array:
    """The image (H W) in [-1, 1] that processing makes of measured attenuation, bone bright.

    Args:
        signal: measured attenuation.
        body: pixels whose ray meets the body; they set the grey scale.
        pixel: mm between pixels.
        exposure: processing.
    """
    e = exposure
    coarse = gaussian_filter(signal, 30 / pixel, mode="nearest", truncate=2.5)
    fine = gaussian_filter(signal, 3 / pixel, mode="nearest")
    flat = signal - e.flatten * (coarse - coarse.mean()) + e.sharpen * (signal - fine)
    low, middle, high = np.quantile(flat[body] if body.any() else flat, [0.04, e.middle, 0.97])
    slope = 4.3 * e.contrast / max(high - low, 1e-3)
    shown = 1 / (1 + np.exp(-slope * (flat - middle)))
    shown = e.black + (1 - e.black) * shown
    return np.clip(2 * shown - 1, -1, 1).astype(np.float32)


def _ratio(heart: NDArray[np.bool_], chest: NDArray[np.bool_]) -> float:
    widths = [np.flatnonzero(region.any(axis=0)) for region in (heart, chest)]
    if not all(len(columns) for columns in widths):
        return float("nan")
    return float(np.ptp(widths[0]) + 1) / float(np.ptp(widths[1]) + 1)
