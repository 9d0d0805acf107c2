"""A beating left ventricle: its volume follows the R peaks, its wall keeps its own volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medgen.simulate.ecg import Rhythm

Floats = NDArray[np.float64]

WIDEST = 0.3
"""Where along the cavity it is widest, as a share of the length above the mitral plane."""
_OPEN = WIDEST / (1 - WIDEST)
RIM = float(np.arccos(-_OPEN))
"""Angle (rad) of the mitral ring seen from the widest place; the apex has 0, the septum is < 0."""
_FULLNESS = (1 - WIDEST) * (2 / 3 + _OPEN - _OPEN**3 / 3)
"""Volume of the cavity over that of the cylinder around it."""
LENGTHENING = 0.2
"""Length changes as volume to this power; the radius takes the rest."""
_ANGLES = np.linspace(-RIM, RIM, 241)


@dataclass(frozen=True)
class Heart:
    """A left ventricle at the end of diastole, and how it contracts.

    Args:
        volume: of the cavity, mL.
        ejection_fraction: percent.
        length: of the cavity, from the mitral plane to the apex, mm.
        wall: thickness, mm.
        atrial: share of the filling that the atrium's contraction brings; 0 where it fibrillates.
        defect: share of its motion that the sickest place of the wall has lost.
        place: angle (rad) of that place.
    """

    volume: float
    ejection_fraction: float
    length: float
    wall: float
    atrial: float = 0.25
    defect: float = 0.0
    place: float = 0.0


@dataclass(frozen=True)
class Cycle:
    """What a ventricle does at given times.

    Args:
        volume: of its cavity, mL, (t,).
        contraction: 0 at the end of diastole, 1 at the end of systole, (t,).
        mitral: how far the mitral valve stands open, from 0 to 1, (t,).
    """

    volume: Floats
    contraction: Floats
    mitral: Floats


@dataclass(frozen=True)
class Beats:
    """When each beat does what, s.

    Args:
        eject: the ventricle begins to eject: the end of diastole.
        close: it has ejected: the end of systole.
        relax: it has relaxed, filling begins.
        kick: the atrium contracts; where it does not, the next beat ejects.
    """

    eject: Floats
    close: Floats
    relax: Floats
    kick: Floats


def beats_of(rhythm: Rhythm, *, atrial: bool = True) -> Beats:
    """Times of every beat but the last. An ectopic beat has no atrial contraction before it.

    Source: Weissler et al. 1968, doi 10.1161/01.CIR.37.2.149 (pre-ejection period 131 - 0.4 rate
    and ejection time 413 - 1.7 rate, ms).
    """
    r, rr = rhythm.times[:-1], np.diff(rhythm.times)
    following = rhythm.times[1:]
    onset = -0.040 + (131 - 0.4 * rhythm.rate) / 1000
    close = r + onset + (413 - 1.7 * rhythm.rate) / 1000
    kick = np.minimum(following - rr * 70 / 360, following - 0.100)
    without = rhythm.ectopic[1:] | (not atrial)
    return Beats(r + onset, close, close + 0.070, np.where(without, following + onset, kick))


def cycle(heart: Heart, rhythm: Rhythm, at: Floats) -> Cycle:
    """The volume at times `at` (s): ejection, pause, early filling, and the atrium's share."""
    beats = beats_of(rhythm, atrial=heart.atrial > 0)
    ends = rhythm.times[1:] + (beats.eject - rhythm.times[:-1])
    now = np.searchsorted(beats.eject, at, side="right") - 1
    if now.min() < 0 or at.max() >= ends[-1]:
        raise ValueError(f"expected beats from {at.min():.2f} to {at.max():.2f} s")
    eject, close, relax, kick, end = (
        each[now] for each in (beats.eject, beats.close, beats.relax, beats.kick, ends)
    )
    share = np.where(kick < end, heart.atrial, 0.0)
    early, late = np.minimum(0.2, kick - relax), np.minimum(0.12, np.maximum(end - kick, 1e-3))
    filled = (1 - share) * _rise((at - relax) / early) + share * _rise((at - kick) / late)
    contraction = _rise((at - eject) / (close - eject)) * (1 - filled)
    swing = _bump((at - relax) / early), 0.8 * _bump((at - kick) / late) * (share > 0)
    ajar = 0.35 * _rise((at - relax) / 0.08) * (1 - _rise((at - end + 0.09) / 0.05))
    return Cycle(
        volume=heart.volume * (1 - heart.ejection_fraction / 100 * contraction),
        contraction=contraction,
        mitral=np.maximum(np.maximum(*swing), ajar),
    )


def _rise(u: Floats) -> Floats:
    return (1 - np.cos(np.pi * np.clip(u, 0, 1))) / 2


def _bump(u: Floats) -> Floats:
    return np.sin(np.pi * np.clip(u, 0, 1))


class Ventricle:
    """Where the points of a ventricle's wall are at any volume of its cavity.

    A point has a depth in the wall (0 inside, 1 outside) and an angle (0 at the apex, negative on
    the septum, up to `RIM`) that it keeps. Places are mm from the outer apex, which stays: x to
    the side wall, z towards the base. The profile is a truncated ellipse that scales, so the area
    and length of a section give the ejection fraction exactly; the wall does not change its volume.

    Args:
        heart: in numbers.
        reach: width (rad) of the place whose motion is lost.

    Raises:
        ValueError: the ejection fraction cannot be reached with such a defect.
    """

    def __init__(self, heart: Heart, *, reach: float = 0.5) -> None:
        self.heart, self.reach = heart, reach
        self._radius = (1000 * heart.volume / (np.pi * heart.length * _FULLNESS)) ** 0.5
        h, r, length = heart.wall, self._radius, heart.length
        self._tissue = (r + h) ** 2 * (length + h) - r**2 * length
        self._sizes = np.linspace(1.0, 0.06, 95)
        self._volumes = np.array([self._volume_at(size) for size in self._sizes])
        lowest = heart.volume * (1 - heart.ejection_fraction / 100)
        if self._volumes[-1] > lowest:
            raise ValueError(
                f"a defect of {heart.defect:g} leaves {self._volumes[-1]:.0f} mL, and an ejection "
                f"fraction of {heart.ejection_fraction:g} % would leave {lowest:.0f} mL"
            )

    def size(self, volume: float) -> float:
        """The size at which the cavity holds a volume (mL): 1 at the end of diastole."""
        return float(np.interp(volume, self._volumes[::-1], self._sizes[::-1]))

    def dimensions(self, size: float) -> tuple[float, float, float]:
        """Radius and length of the cavity and thickness of the wall, mm, where none is sick."""
        length = self.heart.length * size**LENGTHENING
        radius = self._radius * size ** ((1 - LENGTHENING) / 2)
        wall = self.heart.wall
        for _ in range(20):
            excess = (radius + wall) ** 2 * (length + wall) - radius**2 * length - self._tissue
            slope = (radius + wall) * (2 * (length + wall) + radius + wall)
            wall -= excess / slope
        return radius, length, wall

    def points(self, size: float, depth: Floats, angle: Floats) -> tuple[Floats, Floats]:
        """Places x, z of points of the wall."""
        full_x, full_z = self._plain(1.0, depth, angle)
        x, z = self._plain(size, depth, angle)
        moves = 1 - self.heart.defect * np.exp(
            -0.5 * np.square((angle - self.heart.place) / self.reach)
        )
        return full_x + (x - full_x) * moves, full_z + (z - full_z) * moves

    def outline(self, size: float, depth: float) -> tuple[Floats, Floats]:
        """Places x, z along the wall at a depth, from the septal to the lateral end."""
        return self.points(size, np.full_like(_ANGLES, depth), _ANGLES)

    def _plain(self, size: float, depth: Floats, angle: Floats) -> tuple[Floats, Floats]:
        radius, length, wall = self.dimensions(size)
        height = (length + depth * wall) * (WIDEST + (1 - WIDEST) * np.cos(angle))
        return (radius + depth * wall) * np.sin(angle), length + wall - height

    def _volume_at(self, size: float) -> float:
        """Volume (mL) of the cavity: the mean of what its two sides sweep around the axis."""
        x, z = self.outline(size, 0.0)
        discs = (x[1:] ** 2 + x[1:] * x[:-1] + x[:-1] ** 2) / 3 * np.abs(np.diff(z))
        return float(np.pi * discs.sum() / 2000)


def inside(x: Floats, z: Floats, outline: tuple[Floats, Floats]) -> NDArray[np.bool_]:
    """Whether points lie inside a closed outline that is seen whole from its mean.

    Args:
        x: of the points.
        z: of the points.
        outline: x, z of its corners, in order.
    """
    corner_x, corner_z = outline
    center_x, center_z = float(corner_x.mean()), float(corner_z.mean())
    angles = np.arctan2(corner_z - center_z, corner_x - center_x)
    order = np.argsort(angles)
    radii = np.hypot(corner_x - center_x, corner_z - center_z)[order]
    angles = angles[order]
    found = np.zeros(x.shape, dtype=bool)
    box = (np.abs(x - center_x) <= np.ptp(corner_x)) & (np.abs(z - center_z) <= np.ptp(corner_z))
    offset_x, offset_z = x[box] - center_x, z[box] - center_z
    reach = np.interp(np.arctan2(offset_z, offset_x), angles, radii, period=2 * np.pi)
    found[box] = np.square(offset_x) + np.square(offset_z) <= np.square(reach)
    return found


def dense(outline: tuple[Floats, Floats], count: int = 360) -> tuple[Floats, Floats]:
    """A closed outline with corners evenly spread over its length."""
    x, z = (np.append(each, each[0]) for each in outline)
    along = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    places = np.linspace(0, along[-1], count, endpoint=False)
    return np.interp(places, along, x), np.interp(places, along, z)
