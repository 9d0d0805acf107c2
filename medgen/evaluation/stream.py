"""STREAM: how clips move, how they look and how diverse they are, each apart from the others."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.diversity import as_share, ball_shares
from medgen.evaluation.feature_metric import (
    FeatureMetric,
    Features,
    estimate_from,
    half_pairs,
    memberships,
)
from medgen.evaluation.features import images_of
from medgen.evaluation.frames import FrameFeatures, is_clip
from medgen.registry import register
from medgen.types import Estimate

Array = NDArray[np.float64]
Edges = Literal["integer", "percentile"]
BINS = 50
NEIGHBOURS = 5
LEAST = 4
"""Frames that a power law of a spectrum needs: two frequencies above 0."""


def spectrum(sequences: Array) -> tuple[Array, Array]:
    """What STREAM takes of the spectrum over time of features of frames, one value a feature.

    With S_k the discrete Fourier transform over the t frames, a_k = 2 |S_k| / (1 + t / 2). A power
    law A k^B is fitted to a_k by least squares of logarithms, k = 1 ... t / 2.

    Args:
        sequences: features of frames in order (n t d).

    Returns:
        The mean content a_0 (n d), and the number g (n d) by which the power law is summed up:
        sum_k k^(B + 3) / sqrt(A' sum_k k^(B + 2)), A' = A / sum_k A k^B. The authors call g a
        skewness, whose denominator would be (sum_k k^(B + 2))^(3/2); this is what their code and
        so all published values have.

    Raises:
        DataError: there are fewer than four frames.
    """
    frames = sequences.shape[1]
    if frames < LEAST:
        raise DataError(f"STREAM needs clips of at least {LEAST} frames, got {frames}")
    size = 2 * np.abs(np.fft.rfft(sequences, axis=1)) / (1 + frames / 2)  # n k d
    k = np.arange(1, size.shape[1], dtype=np.float64)
    logs, apart = np.log(size[:, 1:] + 1e-6), np.log(k) - np.log(k).mean()
    slope = np.einsum("k,nkd->nd", apart, logs) / (apart**2).sum()
    # A cancels in A' but for the normalisation: A' = 1 / sum_k k^B.
    powers = [(k[None, :, None] ** (slope[:, None] + more)).sum(axis=1) for more in (0, 2, 3)]
    return size[:, 0], powers[2] * np.sqrt(powers[0] / powers[1])


def stream_t(a: Array, b: Array, edges: Edges = "integer") -> float:
    """Mean over features of the squared correlation of two histograms; 1 is alike.

    Args:
        a: the summary g of real clips (n d), from `spectrum`.
        b: that of other clips (m d).
        edges: "integer" are 50 bins from int(min) - 1 to int(max) + 1, as published: coarse where
            g spans little, since the range is rounded outwards, and set by two clips where one is
            an outlier. "percentile" are 50 bins between the 0.5 and 99.5 % percentiles of both
            sets, those outside in the outermost bins: they see more, and lie lower, also between
            two sets of real clips.
    """
    both = np.concatenate([a, b])
    if edges == "integer":
        low, high = np.trunc(both.min(axis=0)) - 1, np.trunc(both.max(axis=0)) + 1
    else:
        low, high = np.percentile(both, [0.5, 99.5], axis=0)
    first, second = (_histograms(side, low, np.maximum(high, low + 1e-9)) for side in (a, b))
    first, second = (h - h.mean(axis=1, keepdims=True) for h in (first, second))
    spread = (first**2).sum(axis=1) * (second**2).sum(axis=1)
    shared = (first * second).sum(axis=1) ** 2
    return float(np.divide(shared, spread, out=np.zeros_like(spread), where=spread > 0).mean())


def _histograms(rows: Array, low: Array, high: Array) -> Array:
    """How many rows (n d) fall into each of `BINS` bins from low (d,) to high (d,), (d bins)."""
    place = ((rows - low) / (high - low) * BINS).astype(np.intp).clip(0, BINS - 1)
    place += np.arange(rows.shape[1]) * BINS
    counts = np.bincount(place.ravel(), minlength=rows.shape[1] * BINS)
    return counts.reshape(rows.shape[1], BINS).astype(np.float64)


@register("metric", "stream")
class Stream(FeatureMetric):
    """Spatio-temporal precision and recall of clips, from features of frames of an image extractor.

    Gives "stream_t" (motion: agreement of how spectra over time fall off), "stream_f" (fidelity:
    share of samples whose mean content lies among real ones, precision with k = 5) and "stream_d"
    (diversity: the recall). All are in [0, 1], 1 is best. No 3-D network is needed, so a clip may
    be of any length. A lack of diversity lowers "stream_t" too; frozen clips may reach a
    "stream_d" of 1.

    Args:
        count: studies a side, at most; None takes what there is.
        extractor: of images; None is the evaluation's own.
        edges: of the histograms, see `stream_t`.

    Source: Kim et al. 2024, STREAM, arXiv:2403.09669.
    """

    needs = "clips"

    def __init__(
        self, count: int | None = None, extractor: str | None = None, *, edges: Edges = "integer"
    ) -> None:
        super().__init__(count, extractor)
        self.edges: Edges = edges

    def rows(self, comparison: Comparison, which: str) -> tuple[Array, list[str]]:
        """Mean content and the summary of the spectrum, side by side (n 2d).

        Raises:
            DataError: the studies are not clips, or the extractor sees no single frames.
        """
        if not is_clip(comparison.schema):
            raise DataError("STREAM needs clips")
        extractor = comparison.extractor(self.extractor)
        if not isinstance(extractor, FrameFeatures):
            raise DataError(
                f"STREAM needs an extractor of images, '{extractor.name}' sees whole clips"
            )
        side = comparison.equal_side(which)
        sequences = extractor.sequences(images_of(side.batch))
        return np.concatenate(spectrum(sequences), axis=1), list(side.patients)

    def seen_by(self, comparison: Comparison) -> str:
        """The extractor of frames."""
        extractor = comparison.extractor(self.extractor)
        inner = extractor.extractor.name if isinstance(extractor, FrameFeatures) else extractor.name
        edges = "" if self.edges == "integer" else ", bins between percentiles"
        return f"{inner}, every frame{edges}"

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The three measures of two sets."""
        (content, shape), (their_content, their_shape) = (
            np.split(side.rows, 2, axis=1) for side in (real, other)
        )
        moved = stream_t(shape, their_shape, self.edges)
        draws = [stream_t(shape[i], their_shape[j], self.edges) for i, j in half_pairs(real, other)]
        spread = np.array(draws)
        found = {
            "stream_t": estimate_from(moved, spread, real, higher=True, bounds=(0, 1)),
        }
        shares = ball_shares(content, their_content, NEIGHBOURS, *memberships(real, other))
        for name, measure in (("stream_f", "precision"), ("stream_d", "recall")):
            value, *draws = shares[measure]
            estimate = estimate_from(
                float(value), np.array(draws), real, higher=True, bounds=(0, 1), unit="share"
            )
            found[name] = as_share(estimate, real)
        return found
