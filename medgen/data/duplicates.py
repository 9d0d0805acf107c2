"""Finds images that are the same, or nearly the same, in a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medgen.data.geometry import fit_image

THUMBNAIL = 32
"""Side of the thumbnail that images are compared by, in pixels."""

MOST_BITS = 10
"""Most of the 64 bits by which the hashes of near duplicates differ."""

LEAST_CORRELATION = 0.98
"""Least correlation of the thumbnails of near duplicates: the hash proposes, this confirms.

With both, JPEG at quality 50, gamma 1.15, a tenth less contrast, half the size, noise of 3 % and
crops of 2 % are found, and no two different ones of 5,840 chest radiographs are taken for the same.
"""

BLOCK = 1024


def pixel_hash(pixels: NDArray[np.float32]) -> str:
    """A digest of shape and pixels (c, h, w): equal only for equal images."""
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def thumbnail(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """A gray thumbnail (32, 32) of pixels (c, h, w), squashed, of mean 0 and norm 1 (or all 0)."""
    small = fit_image(pixels.mean(0, keepdims=True), (THUMBNAIL, THUMBNAIL), "squash")[0]
    small = small - small.mean()
    norm = float(np.linalg.norm(small))
    return small / norm if norm > 1e-4 else np.zeros_like(small)


def perceptual_bits(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hashes (n, 64) of +1 and -1 of thumbnails (n, 32, 32).

    The signs of the lowest 8 x 8 cosine coefficients about their median, the mean left out.

    Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", 3.2.
    """
    from scipy.fft import dctn

    coefficients = np.asarray(dctn(thumbnails, axes=(1, 2), norm="ortho"))
    low = coefficients[:, :8, :8].reshape(len(thumbnails), 64)
    low[:, 0] = 0
    middle = np.median(low[:, 1:], axis=1, keepdims=True)
    return np.where(low > middle, 1, -1).astype(np.float32)


def exact_groups(hashes: Sequence[str]) -> list[list[int]]:
    """Indices of equal images, in groups of two or more."""
    places: dict[str, list[int]] = {}
    for index, value in enumerate(hashes):
        places.setdefault(value, []).append(index)
    return [group for group in places.values() if len(group) > 1]


def near_pairs(thumbnails: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Pairs of nearly equal images with the correlation of their thumbnails, nearest first.

    Args:
        thumbnails: (n, 32, 32) as `thumbnail` makes them; blank ones (all 0) match nothing.
    """
    if len(thumbnails) < 2:
        return []
    bits, flat = perceptual_bits(thumbnails), thumbnails.reshape(len(thumbnails), -1)
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(bits), BLOCK):
        differing = (64 - bits[start : start + BLOCK] @ bits[start:].T) / 2
        rows, columns = np.nonzero(differing <= MOST_BITS)
        later = columns > rows
        first, second = rows[later] + start, columns[later] + start
        for part in range(0, len(first), BLOCK):
            a, b = first[part : part + BLOCK], second[part : part + BLOCK]
            alike = np.einsum("ij,ij->i", flat[a], flat[b])
            close = alike >= LEAST_CORRELATION
            found += zip(a[close].tolist(), b[close].tolist(), alike[close].tolist(), strict=True)
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))
