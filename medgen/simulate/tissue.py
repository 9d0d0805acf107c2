"""What reflects sound in an apical view: muscle, atria, valves; points that move with the heart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medgen.simulate.heart import RIM, Floats, Ventricle

View = Literal["apical_four_chamber", "apical_two_chamber"]
VIEWS: tuple[View, ...] = ("apical_four_chamber", "apical_two_chamber")

ROOF = 34.0
"""mm from the mitral plane at the end of diastole to the far wall of the atria."""
INSERTION = -0.45
"""Angle (rad) of the septum at which the right ventricle begins."""
RIGHT_WIDTH = 33.0
"""mm of the right ventricle at its widest, at the end of diastole."""
RIGHT_WALL = 4.5
ATRIAL_WALL = 3.0
LEAFLET = 1.1
"""mm: thickness of a valve's leaflet."""

Outline = tuple[Floats, Floats]


@dataclass(frozen=True)
class Frame:
    """A heart at one moment, in mm from the outer apex.

    Args:
        cavity: outline of the left ventricle's cavity.
        epicardium: outline of the left ventricle with its wall.
        atrium: outline of the left atrium.
        chambers: outline of all that is not tissue around the heart.
        x: of the scatterers.
        z: of the scatterers.
    """

    cavity: Outline
    epicardium: Outline
    atrium: Outline
    chambers: Outline
    x: Floats
    z: Floats


class Tissue:
    """Scatterers of one heart in one view, which keep their places in the tissue.

    Args:
        ventricle: what they move with.
        view: with the right heart, or without.
        density: scatterers a mm^2.
        rng: places them.
        dropout: share of its echo that the side wall has lost.
    """

    def __init__(
        self,
        ventricle: Ventricle,
        view: View,
        density: float,
        rng: np.random.Generator,
        *,
        dropout: float = 0.0,
    ) -> None:
        self.ventricle, self.view = ventricle, view
        radius, length, wall = ventricle.dimensions(1.0)
        self.roof = length + wall + ROOF
        edge = 2 * (radius + length)
        self._wall = _scatter(rng, density * wall * edge * 1.1, (0, 1), (-RIM, RIM))
        self._right = _scatter(rng, density * RIGHT_WALL * 1.4 * length, (0, 1), (0, 1))
        self._atria = [
            _scatter(rng, density * ATRIAL_WALL * 4.5 * ROOF, (0, 1), (0, 1)) for _ in range(2)
        ]
        count = max(60.0, 2.5 * density * LEAFLET * radius)
        self._leaflets = [_scatter(rng, count, (-0.5, 0.5), (0, 1)) for _ in range(4)]
        self.amplitude = self._amplitudes(rng, dropout)

    def frame(self, size: float, contraction: float, mitral: float) -> Frame:
        """The heart at a size of its left ventricle.

        Args:
            size: of `Ventricle.size`.
            contraction: 0 at the end of diastole, 1 at the end of systole.
            mitral: how far the valves stand open, from 0 to 1.
        """
        inner, outer = self.ventricle.outline(size, 0.0), self.ventricle.outline(size, 1.0)
        atrium = self._chamber((inner[0][0], inner[1][0]), (inner[0][-1], inner[1][-1]))
        places = [self.ventricle.points(size, *self._wall)]
        places.append(_outside(atrium, *self._atria[0], thickness=ATRIAL_WALL))
        places += self._valve(inner, (0, -1), mitral, self._leaflets[:2])
        hull = [outer, _grown(atrium, ATRIAL_WALL)]
        if self.view == "apical_four_chamber":
            right = self._right_wall(size, contraction)
            septum = self.ventricle.points(size, np.array([0.55]), np.array([-RIM]))
            ring = (right[0][-1], right[1][-1]), (float(septum[0][0]), float(septum[1][0]))
            second = self._chamber(*ring)
            places.append(_outside(right, *self._right, thickness=-RIGHT_WALL))
            places.append(_outside(second, *self._atria[1], thickness=ATRIAL_WALL))
            ends = np.array([ring[0][0], ring[1][0]]), np.array([ring[0][1], ring[1][1]])
            places += self._valve(ends, (1, 0), mitral, self._leaflets[2:])
            hull += [_grown(right, -RIGHT_WALL), _grown(second, ATRIAL_WALL)]
        x, z = (np.concatenate(each) for each in zip(*places, strict=True))
        return Frame(inner, outer, atrium, _around(hull), x, z)

    def _chamber(self, left: tuple[float, float], right: tuple[float, float]) -> Outline:
        """An atrium from a ring's left end to its right one, down to the roof, which stays."""
        middle_x, middle_z = (left[0] + right[0]) / 2, (left[1] + right[1]) / 2
        turn = np.linspace(np.pi, 0, 90)
        swell = np.cos(turn) * (1 + 0.16 * np.sin(turn))
        fall = np.sin(turn) ** 0.8
        x = middle_x + (right[0] - left[0]) / 2 * swell
        z = middle_z + (right[1] - left[1]) / 2 * swell * (1 - fall)
        return x, z + (self.roof - middle_z) * fall

    def _right_wall(self, size: float, contraction: float) -> Outline:
        """The inner side of the right ventricle's free wall, from its apex to its ring."""
        along = np.linspace(0, 1, 80)
        angles = INSERTION + along * (-RIM - INSERTION)
        x, z = self.ventricle.points(size, np.ones(80), angles)
        width = RIGHT_WIDTH * (1 - 0.3 * contraction) * along**0.7 * (1.25 - 0.4 * along**2)
        return x - width, z + 0.1 * width

    def _valve(
        self, wall: Outline, ends: tuple[int, int], mitral: float, leaflets: list[Outline]
    ) -> list[Outline]:
        """Two leaflets that hang between the ends of a ring and swing into the ventricle."""
        places = []
        ring = [(wall[0][end], wall[1][end]) for end in ends]
        span = abs(ring[1][0] - ring[0][0])
        for (start, other, reach), (across, along) in zip(
            ((ring[0], ring[1], 0.62), (ring[1], ring[0], 0.46)), leaflets, strict=True
        ):
            side = np.sign(other[0] - start[0])
            swing = np.radians(12 + 62 * mitral) + 0.5 * (1 - mitral) * (0.5 - along)
            x = start[0] + side * span * reach * along * np.cos(swing)
            z = start[1] - span * reach * along * np.sin(swing) + across * LEAFLET
            places.append((x, z))
        return places

    def _amplitudes(self, rng: np.random.Generator, dropout: float) -> Floats:
        """Amplitudes of all scatterers, in the order of `Frame.x`."""
        depth, angle = self._wall
        septal = np.exp(-0.5 * np.square((angle + 1.4) / 0.5))
        lateral = np.exp(-0.5 * np.square((angle - 1.7) / 0.4))
        base = np.exp(-0.5 * np.square((np.abs(angle) - RIM) / 0.1))
        wall = (0.15 + 0.6 * septal + 0.25 * lateral + 0.5 * base) * _ripple(rng, angle, 16)
        wall *= _ripple(rng, 1.2 * depth + 1.5 * angle, 9) * (0.25 + np.minimum(3 * depth, 0.75))
        wall *= 1 - dropout * np.exp(-0.5 * np.square((angle - 0.9) / 0.45))
        parts = [wall, 0.2 * _ripple(rng, 3 * self._atria[0][1], 8)]
        parts += [0.7 * _ripple(rng, 2 * each[1], 4) for each in self._leaflets[:2]]
        if self.view == "apical_four_chamber":
            parts.append(0.07 * _ripple(rng, 3 * self._right[1], 8))
            parts.append(0.12 * _ripple(rng, 3 * self._atria[1][1], 8))
            parts += [0.3 * _ripple(rng, 2 * each[1], 4) for each in self._leaflets[2:]]
        every = np.concatenate(parts)
        return every * rng.standard_normal(len(every))


def _scatter(
    rng: np.random.Generator, count: float, first: tuple[float, float], second: tuple[float, float]
) -> Outline:
    number = round(count)
    return rng.uniform(*first, number), rng.uniform(*second, number)


def _ripple(rng: np.random.Generator, along: Floats, waves: int) -> Floats:
    """A smooth random factor around 1 that swings by some 5 dB along a line."""
    total = np.zeros_like(along)
    for wave in range(1, waves + 1):
        total += rng.normal() * np.sin(np.pi * wave * along + rng.uniform(0, 2 * np.pi))
    return np.exp(0.8 * total / waves**0.5)


def _normals(line: Outline) -> Outline:
    """Unit vectors to the left of a line as it is walked, picture's axes."""
    step_x, step_z = np.gradient(line[0]), np.gradient(line[1])
    size = np.maximum(np.hypot(step_x, step_z), 1e-9)
    return -step_z / size, step_x / size


def _grown(line: Outline, thickness: float) -> Outline:
    """The line moved to its left."""
    normal = _normals(line)
    return line[0] + thickness * normal[0], line[1] + thickness * normal[1]


def _outside(line: Outline, across: Floats, along: Floats, *, thickness: float) -> Outline:
    """Points of a band to the left of a line, or to its right where it is negative."""
    normal = _normals(line)
    places = np.linspace(0, 1, len(line[0]))
    return tuple(  # type: ignore[return-value]
        np.interp(along, places, line[i]) + thickness * across * np.interp(along, places, normal[i])
        for i in (0, 1)
    )


def _around(parts: list[Outline]) -> Outline:
    """What all parts together reach, seen from their mean: one corner every 3 degrees."""
    x, z = (np.concatenate(each) for each in zip(*parts, strict=True))
    center_x, center_z = (x.min() + x.max()) / 2, (z.min() + z.max()) / 2
    angles = np.arctan2(z - center_z, x - center_x)
    radii = np.hypot(x - center_x, z - center_z)
    order = np.argsort(angles)
    places = np.linspace(-np.pi, np.pi, 120, endpoint=False)
    bins = np.clip(((angles[order] + np.pi) / (2 * np.pi) * 60).astype(int), 0, 59)
    furthest = np.zeros(60)
    np.maximum.at(furthest, bins, radii[order])
    known = np.flatnonzero(furthest)
    middles = (known + 0.5) / 60 * 2 * np.pi - np.pi
    reach = np.interp(places, middles, furthest[known], period=2 * np.pi)
    return center_x + reach * np.cos(places), center_z + reach * np.sin(places)
