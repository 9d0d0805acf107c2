"""Measures of clips: Frechet video distance, how they move, and how much a codec flickers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.augmentation.intervals import patient_weights, percentile_interval
from medgen.augmentation.tasks import chunk_of
from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.distribution import Frechet
from medgen.evaluation.feature_metric import FeatureMetric, Features, estimate_from, half_pairs
from medgen.evaluation.features import images_of
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.types import Estimate

Array = NDArray[np.float64]
LAGS = (1, 2, 4, 8)
STILL = 0.05
"""Share of real clips that lie below the motion by which clips count as still, before halving."""
LEAST_MOTION = 0.1
"""Share of the median motion of real clips that no clip's motion counts as less than."""
DRAWS = 1000


@register("metric", "frechet_video")
class FrechetVideo:
    """Frechet distance of features that see motion: the Frechet video distance.

    Comparable with nothing but itself: values depend on extractor, size, number of frames and of
    clips. Distances of networks that were trained to name what a video shows hardly see broken
    motion; read "stream_t" and "temporal_consistency" beside it.

    Args:
        count: studies a side, at most; None takes what there is.
        extractor: "clip-ssl" or "clip-supervised", trained on real training clips, or "i3d@FILE".
        infinite: give the distance extrapolated to infinitely many clips, too.

    Source: Unterthiner et al. 2018, arXiv:1812.01717; protocol of Skorokhodov et al. 2022,
    arXiv:2112.14683, but with covariances of n - 1 and 64 principal axes, as "frechet".
    """

    needs = "clips"

    def __init__(
        self,
        count: int | None = None,
        extractor: str = "clip-ssl",
        *,
        infinite: bool = False,
    ) -> None:
        self.frechet = Frechet(count, extractor, infinite=infinite)

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The distance alone, with an extractor of its own."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The distance of held-out real and synthetic clips, with that of other real ones."""
        found = self.frechet.measure(comparison)
        return {name.replace("frechet", "frechet_video"): e for name, e in found.items()}


def motion(clips: Tensor) -> Array:
    """How clips move, from differences of frames: no optical flow, which is wrong in speckle.

    Args:
        clips: (b c t h w) in [-1, 1].

    Returns:
        (b, 2 + lags): mean absolute difference of successive frames as a share of the range, that
        of successive differences, and the correlation of frames that lie each of `LAGS` apart
        about the mean frame of their clip; 1 where nothing changes, NaN at lags a clip is too short
        for.

    Raises:
        DataError: there are fewer than three frames.
    """
    if clips.shape[2] < 3:
        raise DataError(f"motion needs clips of at least 3 frames, got {clips.shape[2]}")
    rows = []
    for part in clips.double().split(chunk_of(clips)):
        step = part.diff(dim=2)
        columns = [step.abs().flatten(1).mean(1) / 2, step.diff(dim=2).abs().flatten(1).mean(1) / 2]
        apart = part - part.mean(dim=2, keepdim=True)
        energy = apart.square().flatten(1).mean(1)
        for lag in LAGS:
            if lag >= part.shape[2] - 1:
                columns.append(torch.full_like(energy, torch.nan))
                continue
            shared = (apart[:, :, lag:] * apart[:, :, :-lag]).flatten(1).mean(1)
            columns.append(torch.where(energy > 1e-12, shared / energy.clamp(min=1e-12), 1.0))
        rows.append(torch.stack(columns, dim=1))
    return torch.cat(rows).numpy()


@register("metric", "temporal_consistency")
class TemporalConsistency(FeatureMetric):
    """Whether clips move as much, as smoothly and as periodically as real ones.

    Gives "motion_ratio" (median motion over that of real clips: below 1 is stagnant, above 1 is
    overdone, which strong guidance does), "roughness_ratio" (the change of motion over motion,
    likewise over real: above 1 flickers or jumps), "lag_distance" (mean difference of the
    correlations of frames 1, 2, 4 and 8 apart) and "still_share" (clips with less than half the
    motion that 19 in 20 real ones have). Motion is held to at least a tenth of that of real clips
    before anything is divided by it, so no clip is smooth merely by standing still.

    Args:
        count: studies a side, at most; None takes what there is.

    Source: the clamp mends the warp error of Henschel et al. 2025, arXiv:2403.14773, which a still
    clip divides by zero.
    """

    needs = "clips"

    def __init__(self, count: int | None = None) -> None:
        super().__init__(count)

    def rows(self, comparison: Comparison, which: str) -> tuple[Array, list[str]]:
        """Statistics of motion of every clip."""
        side = comparison.equal_side(which)
        return motion(images_of(side.batch)), list(side.patients)

    def seen_by(self, comparison: Comparison) -> str:
        """Differences of frames."""
        return "differences of frames"

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The four measures of two sets.

        Raises:
            DataError: the real clips do not move.
        """
        middle = float(np.median(real.rows[:, 0]))
        if middle <= 0:
            raise DataError("the real clips stand still; there is no motion to compare with")
        still = float(np.quantile(real.rows[:, 0], STILL)) / 2
        a, b = (_derived(side.rows, LEAST_MOTION * middle) for side in (real, other))
        measures = {
            "motion_ratio": (lambda x, y: _ratio(x[:, 0], y[:, 0]), None, "ratio"),
            "roughness_ratio": (lambda x, y: _ratio(x[:, 1], y[:, 1]), None, "ratio"),
            "lag_distance": (_lag_distance, False, "correlation"),
            "still_share": (lambda x, y: float((y[:, 0] < still).mean()), False, "share"),
        }
        found: dict[str, Estimate] = {}
        for name, (measure, higher, unit) in measures.items():
            draws = np.array([measure(a[i], b[j]) for i, j in half_pairs(real, other)])
            top = 1.0 if unit == "share" else np.inf
            found[name] = estimate_from(
                measure(a, b), draws, real, higher=higher, bounds=(0.0, top), unit=unit
            )
        return found


def flicker(source: Tensor, reconstruction: Tensor) -> Array:
    """How much of the motion of clips a codec gets wrong, (b,): 0 is none, 1 is all there is.

    Mean |(y_t+1 - y_t) - (x_t+1 - x_t)| over mean |x_t+1 - x_t| of the reconstruction y and the
    source x. A codec of frames flickers where its errors differ from frame to frame; a steady error
    counts nothing.

    Args:
        source: clips (b c t h w).
        reconstruction: of the same shape.
    """
    wrong = (reconstruction - source).double().diff(dim=2).abs().flatten(1).mean(1)
    moving = source.double().diff(dim=2).abs().flatten(1).mean(1)
    return (wrong / moving.clamp(min=1e-6)).numpy()


def seam_ratio(clips: Tensor, seams: Sequence[int]) -> float:
    """Mean squared jump into the frames of `seams` over that between all other frames.

    1 is no seam to be seen. Of many clips whose seams lie at the same frames, so that what they
    show there differs.

    Args:
        clips: long ones (b c t h w).
        seams: frames that begin a part, such as a window; not 0.

    Raises:
        ValueError: no seam, or one outside the clip.
    """
    frames = clips.shape[2]
    if not seams or not all(0 < seam < frames for seam in seams):
        raise ValueError(f"seams: expected frames from 1 to {frames - 1}, got {list(seams)}")
    energy = clips.double().diff(dim=2).square().movedim(2, 0).flatten(1).mean(1)
    inside = torch.zeros(len(energy), dtype=torch.bool)
    inside[torch.tensor([seam - 1 for seam in seams])] = True
    return float(energy[inside].mean() / energy[~inside].mean().clamp(min=1e-12))


@register("metric", "flicker")
class Flicker:
    """Flicker of the generator's codec on held-out real clips; see `flicker`.

    Args:
        count: clips, at most.
    """

    needs = "clips"

    def __init__(self, count: int = 500) -> None:
        self.count = count

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """Without the generator there is no codec, so this raises."""
        return self.measure(Comparison(real, synthetic))

    @torch.no_grad()
    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The mean over clips.

        Raises:
            DataError: the generator, whose codec is meant, is not at hand.
        """
        if comparison.model is None:
            raise DataError("flicker is of the generator's codec: give the checkpoint")
        held = comparison.heldout
        some = held.select(range(min(len(held), self.count)))
        codec, clips = comparison.model.codec, images_of(some.batch)
        device = next(comparison.model.backbone.parameters()).device
        each = np.concatenate(
            [
                flicker(part, codec.decode(codec.encode(part.to(device))).float().cpu())
                for part in clips.split(chunk_of(clips))
            ]
        )
        weights = patient_weights(some.patients, DRAWS, seed=comparison.seed)
        low, high = percentile_interval(weights @ each / weights.sum(axis=1))
        return {
            "flicker": Estimate(
                float(each.mean()),
                low,
                high,
                len(each),
                higher_is_better=False,
                unit="of the motion",
                method=f"bootstrap over patients, {DRAWS} draws",
                extractor="differences of frames",
                floor=Estimate(0.0, 0.0, 0.0, len(each), method="a codec without loss"),
            )
        }


def _derived(rows: Array, least: float) -> Array:
    """Motion, roughness and correlations from the columns of `motion`."""
    rough = rows[:, 1] / np.maximum(rows[:, 0], least)
    return np.concatenate([rows[:, :1], rough[:, None], rows[:, 2:]], axis=1)


def _ratio(real: Array, other: Array) -> float:
    return float(np.median(other) / max(float(np.median(real)), 1e-12))


def _lag_distance(real: Array, other: Array) -> float:
    known = np.isfinite(real[0, 2:])
    apart = np.abs(real[:, 2:].mean(axis=0) - other[:, 2:].mean(axis=0))
    return float(apart[known].mean())
