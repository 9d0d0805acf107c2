"""Nearest training studies of some studies, by rows of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medgen.evaluation.distribution import distances
from medgen.evaluation.features import small_rows

Array = NDArray[np.float64]
CHUNK = 256
"""Rows whose distances to all others are worked out at once."""


@dataclass(frozen=True)
class Neighbours:
    """The training studies nearest to each of some studies.

    Args:
        index: the nearest training study, (n,).
        distance: to it, (n,).
        second: distance to the nearest training study of another patient than that one's, (n,).
        flipped: the nearest one was found by mirroring left to right, (n,).
    """

    index: NDArray[np.intp]
    distance: Array
    second: Array
    flipped: NDArray[np.bool_]


def nearest(rows: Array, mirrored: Array, train: Array, patients: NDArray[np.intp]) -> Neighbours:
    """Nearest training studies, whichever way round.

    Args:
        rows: features of the studies (n d).
        mirrored: features of the same studies, mirrored left to right (n d).
        train: features of the training studies (t d).
        patients: number of the patient of each training study (t,).
    """
    parts: list[tuple[NDArray[Any], ...]] = []
    for start in range(0, len(rows), CHUNK):
        straight = distances(rows[start : start + CHUNK], train)
        turned = distances(mirrored[start : start + CHUNK], train)
        both = np.minimum(straight, turned)
        index = both.argmin(axis=1)
        place = np.arange(len(both))
        stranger = np.where(patients[None] == patients[index][:, None], np.inf, both)
        flipped = turned[place, index] < straight[place, index]
        parts.append((index, both[place, index], stranger.min(axis=1), flipped))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Neighbours(*joined)


def nearest_distance(rows: Array, mirrored: Array, others: Array) -> Array:
    """Distance to the nearest of other studies, whichever way round, (n,).

    Args:
        rows: features of the studies (n d).
        mirrored: features of the same studies, mirrored left to right (n d).
        others: features of the other studies (t d).
    """
    chunks = [slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK)]
    return np.concatenate(
        [
            np.minimum(distances(rows[c], others), distances(mirrored[c], others)).min(axis=1)
            for c in chunks
        ]
    )


def pixel_rows(images: Tensor) -> Array:
    """Small studies as rows without brightness and contrast, (b d).

    Distances between such rows are sqrt(2 - 2 correlation): blind to exposure and to fine noise.
    """
    rows = small_rows(images)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True)).clip(min=1e-12)


def own_distances(train: Array, mirrored: Array, patients: NDArray[np.intp]) -> Array:
    """Distance from each training study to the nearest one of another patient, (t,)."""
    parts: list[Array] = []
    for start in range(0, len(train), CHUNK):
        chunk = slice(start, start + CHUNK)
        both = np.minimum(distances(train[chunk], train), distances(mirrored[chunk], train))
        same = patients[chunk][:, None] == patients[None]
        parts.append(np.where(same, np.inf, both).min(axis=1))
    return np.concatenate(parts)
