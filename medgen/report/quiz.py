"""Can you tell? Real and synthetic pictures in one row, shuffled, with the answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from medgen.report.gallery import Gallery, data_uri
from medgen.rng import derive

LEAST = 3
"""With fewer pictures of a kind there is nothing to guess."""


def quiz(gallery: Gallery | None) -> dict[str, Any]:
    """As many real as synthetic pictures, in an order that tells nothing; empty without pictures.

    Returns:
        "tiles" (number, picture, whether it is real), "count", and "low" and "high": 95 % of those
        who guess have so many right.
    """
    if gallery is None or gallery.quiz_real is None or gallery.quiz_synthetic is None:
        return {}
    each = min(len(gallery.quiz_real), len(gallery.quiz_synthetic))
    if each < LEAST:
        return {}
    mixed = [(image, True) for image in gallery.quiz_real[:each]]
    mixed += [(image, False) for image in gallery.quiz_synthetic[:each]]
    pixels = [image.tobytes().hex() for image, _ in mixed]
    order = np.random.default_rng(derive("quiz", *pixels)).permutation(len(mixed))
    low, high = _by_chance(len(mixed))
    return {
        "tiles": [
            {"number": place + 1, "uri": data_uri(mixed[i][0]), "real": mixed[i][1]}
            for place, i in enumerate(order)
        ],
        "count": len(mixed),
        "low": low,
        "high": high,
    }


def _by_chance(count: int) -> tuple[int, int]:
    from scipy.stats import binom

    return int(binom.ppf(0.025, count, 0.5)), int(binom.ppf(0.975, count, 0.5))
