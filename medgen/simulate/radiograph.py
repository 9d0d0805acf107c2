"""Simulated radiographs: a thorax in HU projected from any side, with scatter, noise and a detector's response.

The beam is divergent: depth by depth, a slice of the volume is magnified onto the detector with exact
area weights, so attenuation is neither lost nor made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

from medgen.simulate.ct import LABELS, LUNG, Thorax
from medgen.simulate.shapes import Array

MASK_CLASSES = ("background", "lung", "heart")
"""Classes of a radiograph's mask; the heart lies over the lungs."""
_LUNG = np.isin(np.arange(len(LABELS)), LUNG).astype(np.float32)
_HEART = (np.arange(len(LABELS)) == LABELS.index("heart")).astype(np.float32)
_CHEST = _LUNG + (np.arange(len(LABELS)) == LABELS.index("effusion")).astype(np.float32)
LUNG_PATH, HEART_PATH = 25.0, 12.0
"""mm of lung or heart that a ray must cross for its pixel to be of that class."""
WATER = ((0.0226, 0.5), (0.0188, 0.5))
"""Attenuation of water (mm^-1) at about 50 and 78 keV, and the beam's share there. Source: NIST XCOM."""
BONE_EXCESS = 0.22
"""What the photoelectric effect adds to bone at radiographic energies, as a share of its excess HU."""


@dataclass(frozen=True)
class View:
    """Where the source, the patient and the detector stand.

    Args:
        angle: degrees that the patient is turned about the long axis: 0 frontal, 90 left side lateral.
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
        cardiothoracic_ratio: width of the heart over the inner width of the chest, measured on the image's
            exact regions; NaN where the view shows no heart.
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
        field=float(
            np.clip(rng.normal(1.38, 0.07) * max(height + 45, 2 * a.half_width - 5), 310, 405)
        ),
        center=(0.5 * (height + 32) + float(rng.normal(0, 8)), float(rng.normal(0, 6))),
        distance=1050.0 if front else 1700.0,
        front=front,
    )


def draw_exposure(rng: np.random.Generator) -> Exposure:
    """One room's technique and processing."""
    return Exposure(
        scatter=float(rng.uniform(0.3, 1.1)),
        photons=float(np.exp(rng.uniform(np.log(3e3), np.log(4e4)))),
        blur=float(rng.uniform(0.3, 1.0)),
        middle=float(rng.uniform(0.40, 0.62)),
        contrast=float(np.exp(rng.normal(0, 0.16))),
        flatten=float(rng.uniform(0.0, 0.5)),
        sharpen=float(rng.uniform(0.0, 0.7)),
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
    parts = [part[thorax.labels] for part in (_LUNG, _HEART, _CHEST)]
    paths = [roll(project(part, thorax, taken, size), taken.roll) for part in parts]
    water = roll(project(density(thorax.volume), thorax, taken, size), taken.roll)
    lung, heart = paths[0] > LUNG_PATH, paths[1] > HEART_PATH
    mask = np.where(heart, 2, np.where(lung, 1, 0)).astype(np.int64)
    return Radiograph(
        image=expose(water, pixel, shown, rng),
        mask=mask,
        findings=thorax.findings,
        cardiothoracic_ratio=_ratio(heart, paths[2] > LUNG_PATH),
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

    The sum over the detector times its pixel area is the volume's integral, whatever the angle, for a
    parallel beam and a field that holds all of it; only `View.roll` is left to `roll`.
    """
    pixel = view.field / max(size)
    turns = round(view.angle / 90)
    rest = np.deg2rad(view.angle - 90 * turns)
    axes = [thorax.origin[a] + thorax.spacing[a] * np.arange(n) for a, n in enumerate(volume.shape)]
    z, depth, across = axes
    steps = list(thorax.spacing)
    if turns % 2:
        volume, depth, across, steps = (
            volume.swapaxes(1, 2),
            axes[2],
            axes[1],
            [steps[0], steps[2], steps[1]],
        )
    flip_depth, flip_across = ((1, 1), (-1, 1), (-1, -1), (1, -1))[turns % 4]
    depth, across = flip_depth * depth, flip_across * across
    straight = abs(view.angle - 90 * turns) < 8
    volume, depth = _group(volume, depth, max(int(26 / steps[1]), 1) if straight else 1)
    toward = 1.0 if view.front else -1.0
    zoom = (
        view.distance / (view.distance + toward * depth)
        if np.isfinite(view.distance)
        else 1 + 0 * depth
    )
    rows = _weights(
        (z[None] - view.center[0] + (depth * np.tan(np.deg2rad(view.tilt)))[:, None])
        * zoom[:, None],
        steps[0] * zoom,
        pixel,
        size[0],
    )
    columns = _weights(
        (np.cos(rest) * across[None] - view.center[1] + np.sin(rest) * depth[:, None])
        * zoom[:, None],
        steps[2] * np.cos(rest) * zoom,
        pixel,
        size[1],
    )
    voxel = float(np.prod(thorax.spacing))
    flat = np.matmul(rows, np.ascontiguousarray(volume.transpose(1, 0, 2)))
    total = np.matmul(
        flat.transpose(1, 0, 2).reshape(size[0], -1),
        columns.transpose(0, 2, 1).reshape(-1, size[1]),
    )
    return total * np.float32(voxel / pixel**2)


def _group(
    volume: Array, depth: NDArray[np.float64], width: int
) -> tuple[Array, NDArray[np.float64]]:
    """Sum neighbouring slices along depth: they are magnified alike."""
    starts = np.arange(0, len(depth), width)
    counts = np.diff(np.append(starts, len(depth)))
    return np.add.reduceat(volume, starts, axis=1), np.add.reduceat(depth, starts) / counts


def _weights(
    center: NDArray[np.float64], width: NDArray[np.float64], pixel: float, count: int
) -> Array:
    """Share of every voxel's footprint that falls on every pixel, (D count n); a footprint's shares sum to 1.

    Args:
        center: of the footprints, (D n), mm from the image's centre.
        width: of the footprints, (D,) mm.
        pixel: mm between pixels.
        count: pixels across the image.
    """
    edges = pixel * (np.arange(count + 1) - count / 2)
    low = (center - width[:, None] / 2)[:, None]
    reached = np.clip((edges[None, :, None] - low) / width[:, None, None], 0, 1)
    return np.diff(reached, axis=1).astype(np.float32)


def roll(image: Array, degrees: float) -> Array:
    """Turn an image about its centre; what comes from outside repeats the edge."""
    if not degrees:
        return image
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (np.array(image.shape) - 1) / 2
    return affine_transform(image, turn, middle - turn @ middle, order=1, mode="nearest")


def expose(water: Array, pixel: float, exposure: Exposure, rng: np.random.Generator) -> Array:
    """The image (H W) in [-1, 1] that a detector shows behind water-equivalent paths.

    Args:
        water: water-equivalent path of every ray, mm.
        pixel: mm between pixels.
        exposure: technique and processing.
        rng: draws the quanta.
    """
    e = exposure
    primary = sum(share * np.exp(-mu * water) for mu, share in WATER)
    scattered = e.scatter * gaussian_filter(primary, 34 / pixel, mode="nearest", truncate=2.5)
    quanta = e.photons * pixel**2 * gaussian_filter(primary + scattered, e.blur / pixel)
    noisy = quanta + np.sqrt(quanta) * rng.standard_normal(quanta.shape)
    signal = -np.log(np.maximum(noisy, 1) / (e.photons * pixel**2))
    coarse = gaussian_filter(signal, 30 / pixel, mode="nearest", truncate=2.5)
    fine = gaussian_filter(signal, 3 / pixel, mode="nearest")
    signal = signal - e.flatten * (coarse - coarse.mean()) + e.sharpen * (signal - fine)
    body = signal[water > 25]
    if not body.size:
        body = signal.ravel()
    low, middle, high = np.quantile(body, [0.04, e.middle, 0.97])
    slope = 3.2 * e.contrast / max(high - low, 1e-3)
    shown = 1 / (1 + np.exp(-slope * (signal - middle)))
    shown = e.black + (1 - e.black) * shown
    return np.clip(2 * shown - 1, -1, 1).astype(np.float32)


def _ratio(heart: NDArray[np.bool_], chest: NDArray[np.bool_]) -> float:
    widths = [np.flatnonzero(region.any(axis=0)) for region in (heart, chest)]
    if not all(len(columns) for columns in widths):
        return float("nan")
    return float(np.ptp(widths[0]) + 1) / float(np.ptp(widths[1]) + 1)
