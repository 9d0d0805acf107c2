"""What clips and ECGs of a heart show: volumes, ejection fraction, rate, when it is full."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.data.signals import Signal, r_peaks
from medgen.nn.nd import area_resize

Array = NDArray[np.float64]
HARMONICS = 3
"""Sines of a beat: a volume falls faster than it rises, and rests between."""
RATES = np.arange(30.0, 211.0, 0.5)
"""Heart rates that are tried, beats a minute."""
CYCLES = 1.2
"""Least number of beats in a clip for its rate to be told."""


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected piece of every frame of a mask (t h w)."""
    from scipy.ndimage import label

    kept = np.zeros_like(mask)
    for frame, out in zip(mask, kept, strict=True):
        pieces, count = label(frame)  # pyright: ignore[reportGeneralTypeIssues]
        if count:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            out[:] = pieces == sizes.argmax()
    return kept


def areas_and_lengths(
    masks: NDArray[np.bool_], spacing: tuple[float, float]
) -> tuple[Array, Array]:
    """Area (t,) in mm^2 and length along the long axis (t,) in mm of a cavity in every frame.

    The long axis is the principal axis of the frame's pixels. NaN where there is no cavity.

    Args:
        masks: (t h w).
        spacing: mm between rows, and between columns.
    """
    areas, lengths = (np.full(len(masks), np.nan) for _ in range(2))
    for k, mask in enumerate(masks):
        places = np.argwhere(mask) * np.asarray(spacing)
        if len(places) < 2:
            continue
        areas[k] = len(places) * spacing[0] * spacing[1]
        apart = places - places.mean(axis=0)
        axis = np.linalg.eigh(apart.T @ apart)[1][:, -1]
        along = apart @ axis
        # A pixel has a size of its own, so centres span one pixel less than the cavity.
        lengths[k] = along.max() - along.min() + np.abs(axis) @ np.asarray(spacing)
    return areas, lengths


def volume_curve(masks: NDArray[np.bool_], spacing: tuple[float, float] = (1.0, 1.0)) -> Array:
    """Volume of a cavity in every frame (t,) in mL, by the area-length method: 8 A^2 / (3 pi L).

    Exact for half an ellipsoid, and for a whole sphere or spheroid. NaN where there is no cavity.

    Args:
        masks: (t h w).
        spacing: mm between rows, and between columns; 1 gives a volume in thousands of pixels.

    Source: Folland et al. 1979, doi 10.1161/01.CIR.60.4.760.
    """
    areas, lengths = areas_and_lengths(largest_piece(masks), spacing)
    return 8 * areas**2 / (3 * np.pi * lengths) / 1000


def ejection_fraction(volumes: Array) -> float:
    """Percent of the largest volume that is ejected; NaN where no frame shows a cavity."""
    seen = volumes[np.isfinite(volumes)]
    return 100 * float(1 - seen.min() / seen.max()) if len(seen) else float("nan")


def curve_rate(curve: Array, rate: float) -> float:
    """Beats a minute of a curve: the period of the best least-squares fit of three harmonics.

    Clips of one or two beats have no spectrum to speak of; a fit has. NaN where the curve is
    constant or shorter than 1.2 beats of every rate.

    Args:
        curve: (t,) such as a volume; NaN where it is unknown.
        rate: frames a second.
    """
    known = np.isfinite(curve)
    times = np.flatnonzero(known) / rate
    tried = RATES[RATES / 60 * (len(curve) / rate) >= CYCLES]
    tried = tried[HARMONICS * tried / 60 <= rate / 2]
    values = curve[known] - curve[known].mean() if known.any() else curve[known]
    if len(values) < 2 * HARMONICS + 2 or not len(tried) or np.ptp(values) < 1e-9:
        return float("nan")
    wrong: list[float] = []
    for each in tried:
        waves = _waves(times, each)
        found = np.linalg.lstsq(waves, values, rcond=None)[0]
        wrong.append(float(np.square(values - waves @ found).sum()))
    return float(tried[int(np.argmin(wrong))])


def fullest(curve: Array, rate: float, beats: float) -> float:
    """When the fundamental of a curve is largest, s, given its beats a minute; in one period.

    The whole curve decides, so it is finer than a frame and needs no whole beat. NaN where the
    curve is constant.
    """
    known = np.isfinite(curve)
    if known.sum() < 2 * HARMONICS + 2 or np.ptp(curve[known]) < 1e-9:
        return float("nan")
    times = np.flatnonzero(known) / rate
    found = np.linalg.lstsq(_waves(times, beats), curve[known], rcond=None)[0]
    return float(np.arctan2(found[2], found[1]) / (2 * np.pi) % 1 * 60 / beats)


def _waves(times: Array, beats: float) -> Array:
    """A constant, and cosine and sine of each of `HARMONICS` of a rate, (t, 1 + 2 harmonics)."""
    angles = 2 * np.pi * beats / 60 * times[:, None] * np.arange(1, HARMONICS + 1)
    pairs = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(times), -1)
    return np.concatenate([np.ones((len(times), 1)), pairs], axis=1)


def ecg_beats(ecg: Tensor, leads: tuple[str, ...], rate: float) -> tuple[float, float]:
    """Beats a minute of an ECG (leads samples), and when its R peaks stand, s within one period.

    The time is the circular mean of all R peaks. NaN where fewer than two are found.
    """
    peaks = r_peaks(Signal(ecg.float().numpy(), leads, rate))
    if len(peaks) < 2:
        return float("nan"), float("nan")
    period = float(np.diff(peaks).mean())
    turn = np.exp(2j * np.pi * peaks / period).mean()
    return 60 / period, float(np.angle(turn) / (2 * np.pi) % 1 * period)


def pulsation(clips: Tensor, learn: Tensor) -> Array:
    """A signal of clips without masks (b t): the main way in which real clips change with time.

    Frames, less the mean frame of their clip, are projected on the leading principal axis of those
    of `learn`, so its sign is the same in all. It follows a beat; it is no volume.

    Args:
        clips: (b c t h w).
        learn: real training clips (m c t h w).
    """
    rows = _moving(learn).flatten(0, 1)
    axis = torch.linalg.svd(rows[:: max(1, len(rows) // 2000)], full_matrices=False)[2][0]
    return (_moving(clips) @ axis).double().numpy()


def _moving(clips: Tensor) -> Tensor:
    """Frames at most 32 pixels a side less the mean frame of their clip, (b t pixels)."""
    frames = clips.shape[2]
    small = area_resize(clips, [frames, *(min(32, side) for side in clips.shape[3:])])
    return (small - small.mean(dim=2, keepdim=True)).transpose(1, 2).flatten(2)
