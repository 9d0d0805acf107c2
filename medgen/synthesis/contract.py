"""The geometry that a generator was trained on: what lies outside it is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medgen.errors import DataError
from medgen.types import Batch, Schema

TOLERANCE = 0.02
"""Relative; spacings this near to the trained range lie in it, for headers hold rounded numbers."""

TILTED = 5.0
"""Degrees by which a request may be turned further than any training study."""

SHOWN_SPACINGS = 256
"""Spacings of training studies that a checkpoint remembers at most."""

ORIENTATION = "RAS"
"""Volumes are read, drawn and written with axes to the right, front and head of the patient."""


@dataclass(frozen=True)
class Geometry:
    """The geometry of training studies.

    Args:
        size: of every study, in voxels.
        low: smallest spacing along each axis, in mm (s along time).
        high: largest.
        spacings: of the studies, each of which may be asked for.
        tilt: largest angle between an axis of a study and the patient's, in degrees.
    """

    size: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    spacings: tuple[tuple[float, ...], ...]
    tilt: float = 0.0

    @classmethod
    def of(cls, schema: Schema, statistics: Mapping[str, Any]) -> Geometry | None:
        """What a checkpoint says of its training studies; None where they knew no geometry."""
        held = statistics.get("geometry")
        if held is not None:
            rows = tuple(tuple(row) for row in held["spacings"])
            low, high = tuple(held["low"]), tuple(held["high"])
            return cls(schema.size, low, high, rows, held["tilt"])
        if schema.spacing:
            return cls(schema.size, schema.spacing, schema.spacing, (schema.spacing,))
        return None

    def require(self, spacing: Float[Tensor, "b axes"], what: str = "") -> None:
        """Refuse spacings that no training study had nearly.

        Args:
            spacing: mm along each axis, one row a study.
            what: whose they are, for the error.

        Raises:
            DataError: one lies outside, or does not have the axes; the nearest valid one is named.
        """
        axes = len(self.size)
        if spacing.shape[1] != axes:
            raise DataError(f"{what}expected a spacing of {axes} axes, got {spacing.shape[1]}")
        low, high = (torch.tensor(edge, dtype=torch.float64) for edge in (self.low, self.high))
        asked = spacing.double()
        inside = (asked >= low * (1 - TOLERANCE)) & (asked <= high * (1 + TOLERANCE))
        if bool(inside.all()):
            return
        row = asked[int((~inside.all(dim=1)).nonzero()[0, 0])]
        nearest = torch.minimum(torch.maximum(row, low), high)
        raise DataError(
            f"{what}a spacing of {_times(row)} mm, a field of view of {self._view(row)} mm, lies "
            f"outside what the generator was trained on: {_times(low)} to {_times(high)} mm, "
            f"{self._view(low)} to {self._view(high)} mm. The nearest valid spacing is "
            f"{_times(nearest)} mm, of field of view {self._view(nearest)} mm"
        )

    def require_tilt(self, tilt: float, what: str = "") -> None:
        """Refuse a volume that lies more obliquely than any training study.

        Raises:
            DataError: it does.
        """
        if tilt > self.tilt + TILTED:
            raise DataError(
                f"{what}its axes are turned by {tilt:.0f} degrees from the patient's, training "
                f"studies by {self.tilt:.0f} at most. Resample it to a grid along the patient's "
                "axes, which is the nearest valid orientation"
            )

    def require_orientation(self, orientation: str) -> None:
        """Refuse another order or direction of axes than right, front, head.

        Raises:
            DataError: it is another.
        """
        if orientation.upper() != ORIENTATION:
            raise DataError(
                f"orientation '{orientation}': studies are drawn with axes {ORIENTATION} alone, "
                "the nearest valid orientation; reorient the files that were drawn"
            )

    def _view(self, spacing: Tensor) -> str:
        return _times(spacing * torch.tensor(self.size))


def geometry_of(schema: Schema, conditions: Batch) -> dict[str, Any]:
    """What a checkpoint remembers of the geometry of its training studies; empty if unknown.

    Args:
        schema: of the studies.
        conditions: of all of them, with their spacing and affine.
    """
    spacing = conditions.spacing
    if spacing is None and schema.spacing:
        spacing = torch.tensor([schema.spacing])
    if spacing is None or bool(spacing.isnan().any()):
        return {}
    rows = torch.unique(spacing.double().mul(1e4).round() / 1e4, dim=0)
    kept = torch.linspace(0, len(rows) - 1, min(len(rows), SHOWN_SPACINGS)).round().long()
    return {
        "geometry": {
            "low": rows.amin(dim=0).tolist(),
            "high": rows.amax(dim=0).tolist(),
            "spacings": rows[kept].tolist(),
            "tilt": 0.0 if conditions.affine is None else tilt_of(conditions.affine),
        }
    }


def tilt_of(affine: Float[Tensor, "b 4 4"]) -> float:
    """The largest angle, in degrees, between an axis of a volume and the patient's nearest one."""
    directions = affine[:, :3, :3].double()
    directions = directions / directions.norm(dim=1, keepdim=True)
    nearest = directions.abs().amax(dim=1).clamp(max=1)
    return round(float(torch.rad2deg(torch.arccos(nearest)).max()), 2)


def asked_spacing(
    geometry: Geometry | None,
    *,
    spacing: Sequence[float] | None = None,
    field_of_view: Sequence[float] | None = None,
) -> Float[Tensor, "1 axes"] | None:
    """The spacing that a user asks for, directly or by the field of view; None if neither.

    Args:
        geometry: of the training studies.
        spacing: mm along each axis.
        field_of_view: mm that the whole study covers along each axis.

    Raises:
        DataError: the generator knows no geometry, or what is asked for lies outside it.
    """
    asked = field_of_view if spacing is None else spacing
    if asked is None:
        return None
    if spacing is not None and field_of_view is not None:
        raise DataError("spacing and field of view say the same: ask for one of them")
    if geometry is None:
        raise DataError("the generator's training studies knew no spacing: none can be asked for")
    rows = torch.tensor([list(asked)], dtype=torch.float64)
    if field_of_view is not None and rows.shape[1] == len(geometry.size):
        rows = rows / torch.tensor(geometry.size)
    geometry.require(rows)
    return rows.float()


def _times(values: Tensor) -> str:
    return " x ".join(f"{value:.4g}" for value in values.tolist())
