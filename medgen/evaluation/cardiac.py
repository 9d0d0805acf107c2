"""Does the heart of a clip do what was asked: ejection fraction, rhythm, timing of its phases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.augmentation.scores import correlation
from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.features import images_of
from medgen.evaluation.heart import (
    curve_rate,
    ecg_beats,
    ejection_fraction,
    fullest,
    pulsation,
    volume_curve,
)
from medgen.evaluation.resampling import bootstrapped, mean, median
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.rng import derive
from medgen.types import Estimate, digest_of_values

Array = NDArray[np.float64]
CAVITY = "cavity"
STEPS = 250
FEW = 10
"""Below so many real clips the delay of the heart is one number, not a line over the period."""


@register("metric", "ef_agreement")
class EfAgreement:
    """The ejection fraction that a clip shows, against the one that was asked for.

    A segmenter of frames, trained on real training clips alone, finds the cavity; its volume by
    area and length gives the ejection fraction. Gives "ef_error" (mean absolute, in points of
    percent), "ef_bias" (mean of shown less asked) and "ef_correlation". Read all: strong guidance
    raises the correlation and overdoes the contraction, which the bias and "motion_ratio" show. The
    floors are the same on real test clips: what the segmenter and the method themselves miss.

    Args:
        cavity: name of the mask class.
        steps: optimiser steps of the segmenter.
    """

    needs = "clips"

    def __init__(self, cavity: str = CAVITY, steps: int = STEPS) -> None:
        self.cavity, self.steps = cavity, steps

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The agreement alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The agreement on synthetic clips, with that on real test clips as floor.

        Raises:
            DataError: the real clips carry no such masks, or a side no ejection fraction.
        """
        drawn, held = (self._of(comparison, which) for which in ("synthetic", "test"))
        return {name: replace(e, floor=held[name]) for name, e in drawn.items()}

    def _of(self, comparison: Comparison, which: str) -> dict[str, Estimate]:
        side: Side = getattr(comparison, which)
        asked = _scalar(comparison, which, "ejection_fraction")
        curves = cavity_curves(comparison, which, self.cavity, self.steps)
        shown = np.array([ejection_fraction(curve) for curve in curves])
        about = {"seed": comparison.seed, "extractor": _segmenter(self.cavity)}
        wrong = shown - asked
        pairs = np.stack([shown, asked], axis=1)
        points = {"unit": "points of percent"}
        return {
            "ef_error": bootstrapped(np.abs(wrong), side.patients, higher=False, **points, **about),
            "ef_bias": bootstrapped(wrong, side.patients, higher=None, **points, **about),
            "ef_correlation": bootstrapped(
                pairs, side.patients, _pearson, higher=True, unit="correlation", **about
            ),
        }


@register("metric", "timing_agreement")
class TimingAgreement:
    """Frames in which the ventricle is fullest and emptiest, against those that were asked for.

    Gives "ed_error" and "es_error", the median distance in frames to the nearest local extreme of
    the volume, since a clip of several beats has several. The floors are the same on real test
    clips.

    Args:
        cavity: name of the mask class.
        steps: optimiser steps of the segmenter.
    """

    needs = "clips"

    def __init__(self, cavity: str = CAVITY, steps: int = STEPS) -> None:
        self.cavity, self.steps = cavity, steps

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The agreement alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The agreement on synthetic clips, with that on real test clips as floor.

        Raises:
            DataError: the real clips carry no such masks, or a side no such frames.
        """
        drawn, held = (self._of(comparison, which) for which in ("synthetic", "test"))
        return {name: replace(e, floor=held[name]) for name, e in drawn.items()}

    def _of(self, comparison: Comparison, which: str) -> dict[str, Estimate]:
        side: Side = getattr(comparison, which)
        curves = cavity_curves(comparison, which, self.cavity, self.steps)
        found: dict[str, Estimate] = {}
        for name, scalar, sign in (
            ("ed_error", "end_diastolic_frame", 1),
            ("es_error", "end_systolic_frame", -1),
        ):
            asked = _scalar(comparison, which, scalar)
            wrong = [_to_extreme(sign * c, frame) for c, frame in zip(curves, asked, strict=True)]
            found[name] = bootstrapped(
                np.array(wrong),
                side.patients,
                median,
                seed=comparison.seed,
                higher=False,
                unit="frames",
                extractor=_segmenter(self.cavity),
            )
        return found


@register("metric", "rhythm_agreement")
class RhythmAgreement:
    """Whether the heart in a clip beats with the ECG beside it.

    The clip's rate is told from its volume curve alone, or, where real clips carry no masks, from
    the main way in which they change with time. Its phase is when the fundamental of that curve, at
    the ECG's rate, is largest after the R peak; what is right is learned from real training clips,
    as a line over the period. Gives "rhythm_rate_error" (median, beats a minute),
    "rhythm_phase_error" (median, frames) and, as a control, "rhythm_rate_gain" and
    "rhythm_phase_gain": how much larger the same errors of the same clips are, on average and
    paired, against the ECG of another clip. A gain of 0 says that the ECG is ignored. Clips whose
    ECG shows fewer than two R peaks, in lead II or else the first, are left out, and counted in the
    warning.

    Args:
        cavity: name of the mask class.
        steps: optimiser steps of the segmenter.
    """

    needs = "clips"

    def __init__(self, cavity: str = CAVITY, steps: int = STEPS) -> None:
        self.cavity, self.steps = cavity, steps

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The agreement alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The agreement on synthetic clips, with that on real test clips as floor.

        Raises:
            DataError: a side carries no ECG.
        """
        fps = frame_rate(comparison)
        masked = self.cavity in comparison.schema.mask_classes

        def curves(which: str) -> Array:
            if masked:
                return cavity_curves(comparison, which, self.cavity, self.steps)
            clips = images_of(getattr(comparison, which).batch)
            return pulsation(clips, images_of(comparison.taught.batch))

        usual = usual_delay(curves("taught"), _beats(comparison, "taught"), fps)
        seen = _segmenter(self.cavity) if masked else "the main way in which real clips change"
        drawn, held = (
            self._of(comparison, which, curves(which), usual, fps)
            for which in ("synthetic", "test")
        )
        return {
            name: replace(e, extractor=seen, floor=replace(held[name], extractor=seen))
            for name, e in drawn.items()
        }

    def _of(
        self, comparison: Comparison, which: str, curves: Array, usual: Array, fps: float
    ) -> dict[str, Estimate]:
        side: Side = getattr(comparison, which)
        beats = _beats(comparison, which)
        order = np.random.default_rng(derive(comparison.seed, "swapped", which))
        turn = order.permutation(len(beats))
        other = np.empty_like(beats)
        other[turn] = beats[np.roll(turn, 1)]
        shown = np.array([curve_rate(curve, fps) for curve in curves])
        rate, swapped_rate = (np.abs(shown - b[:, 0]) for b in (beats, other))
        phase, swapped_phase = (_phase_errors(curves, b, usual, fps) for b in (beats, other))
        values = {
            "rhythm_rate_error": (rate, median, False, "beats a minute"),
            "rhythm_phase_error": (phase, median, False, "frames"),
            "rhythm_rate_gain": (swapped_rate - rate, mean, True, "beats a minute"),
            "rhythm_phase_gain": (swapped_phase - phase, mean, True, "frames"),
        }
        return {
            name: bootstrapped(
                each, side.patients, statistic, seed=comparison.seed, higher=higher, unit=unit
            )
            for name, (each, statistic, higher, unit) in values.items()
        }


def cavity_curves(comparison: Comparison, which: str, cavity: str, steps: int) -> Array:
    """Volume of the cavity in every frame of the clips of a side (b t), by the judge of frames.

    In mL where the schema knows the spacing, else in thousands of pixels.

    Raises:
        DataError: the real clips carry no masks of the cavity.
    """
    names = comparison.schema.mask_classes
    if cavity not in names:
        raise DataError(f"needs masks with a class '{cavity}'; real clips have {list(names)}")
    masks = comparison.segmented(which, steps).numpy() == names.index(cavity)
    apart = comparison.schema.spacing[1:] or (1.0, 1.0)
    return np.stack([volume_curve(mask, (apart[0], apart[1])) for mask in masks])


def frame_rate(comparison: Comparison) -> float:
    """Frames a second of the clips.

    Raises:
        DataError: the schema does not say.
    """
    if not comparison.schema.spacing:
        raise DataError("needs the time between frames; the schema of the real clips has none")
    return 1 / comparison.schema.spacing[0]


def usual_delay(curves: Array, beats: Array, fps: float) -> Array:
    """From the R peak to the fullest moment of a curve, s: a line (intercept, slope) over periods.

    A longer period has the same contraction and a longer rest, so its fundamental lags more.

    Args:
        curves: of real clips (b t).
        beats: rate and place of the R peaks of their ECGs (b 2), as `ecg_beats` gives them.
        fps: frames a second.

    Raises:
        DataError: no real clip shows both.
    """
    delay, period = _delays(curves, beats, fps), 60 / beats[:, 0]
    known = np.isfinite(delay)
    if not known.any():
        raise DataError("no real clip has an ECG with two R peaks beside a curve that moves")
    delay, period = delay[known], period[known]
    turn = np.exp(2j * np.pi * delay / period)
    centre = float(np.angle(turn.mean()) / (2 * np.pi))
    # Shares of the period about their centre do not wrap.
    share = centre + np.angle(turn * np.exp(-2j * np.pi * centre)) / (2 * np.pi)
    if known.sum() < FEW or np.ptp(period) < 1e-3:
        return np.array([float(np.median(share * period)), 0.0])
    slope, intercept = np.polyfit(period, share * period, 1)
    return np.array([intercept, slope])


def _delays(curves: Array, beats: Array, fps: float) -> Array:
    """From the R peak to the fullest moment, s, (b,)."""
    pairs = zip(curves, beats, strict=True)
    return np.array(
        [fullest(c, fps, rate) - at if np.isfinite(rate) else np.nan for c, (rate, at) in pairs]
    )


def _phase_errors(curves: Array, beats: Array, usual: Array, fps: float) -> Array:
    period = 60 / beats[:, 0]
    apart = _delays(curves, beats, fps) - usual[0] - usual[1] * period
    return np.abs((apart + period / 2) % period - period / 2) * fps


def _beats(comparison: Comparison, which: str) -> Array:
    """Rate and place of the R peaks of the ECGs of a side (b 2)."""
    schema = comparison.schema
    ecgs = comparison.synthetic.batch.ecg if which == "synthetic" else _real_ecgs(comparison, which)
    if ecgs is None:
        ecgs = _ecgs_asked_for(comparison)
    return np.array([ecg_beats(ecg, schema.leads, schema.ecg_rate) for ecg in ecgs])


def _real_ecgs(comparison: Comparison, which: str) -> Tensor:
    side: Side = getattr(comparison, which)
    if side.batch.ecg is None or not comparison.schema.leads:
        raise DataError("the real clips carry no ECG")
    return side.batch.ecg


def _ecgs_asked_for(comparison: Comparison) -> Tensor:
    """The ECGs that synthetic clips were asked for, found among the real ones.

    A synthetic dataset tells whose ECG was asked for and its digest, and does not hold it.

    Raises:
        DataError: a clip tells of none, or of one that is not among the real clips.
    """
    held = {
        study: ecg
        for which in ("train", "heldout")
        for study, ecg in zip(
            getattr(comparison, which).ids, _real_ecgs(comparison, which), strict=True
        )
    }
    found: list[Tensor] = []
    for origin in comparison.synthetic.batch.provenance or ():
        told = (origin.condition or {}).get("ecg", {})
        ecg = held.get(told.get("of"))
        if not told:
            raise DataError("the synthetic clips carry no ECG, and do not tell whose was asked for")
        if ecg is None or digest_of_values(ecg) != told["sha256"]:
            raise DataError(
                f"{origin.id} was asked for with an ECG of '{told.get('of')}', which is not among "
                "the real clips, or is read otherwise than then"
            )
        found.append(ecg)
    return torch.stack(found)


def _scalar(comparison: Comparison, which: str, name: str) -> Array:
    side: Side = getattr(comparison, which)
    synthetic = which == "synthetic"
    names = comparison.synthetic_schema.scalars if synthetic else comparison.schema.scalars
    if name not in names or side.batch.scalar is None:
        raise DataError(f"the {'synthetic' if synthetic else 'real'} clips carry no '{name}'")
    return side.batch.scalar[:, names.index(name)].double().numpy()


def _to_extreme(curve: Array, frame: float) -> float:
    """Frames from one to the nearest local maximum of a curve; its own maximum is one."""
    from scipy.signal import find_peaks

    known = np.isfinite(curve)
    if not known.any() or not np.isfinite(frame):
        return float("nan")
    full = np.interp(np.arange(len(curve)), np.flatnonzero(known), curve[known])
    peaks = find_peaks(full, prominence=np.ptp(full) / 2)[0]
    return float(np.abs(np.append(peaks, full.argmax()) - frame).min())


def _pearson(pairs: Array, weights: Array) -> Array:
    return correlation(pairs[:, 0], pairs[:, 1], weights)


def _segmenter(cavity: str) -> str:
    return f"volume of the {cavity} by a segmenter of real training frames, area and length"
