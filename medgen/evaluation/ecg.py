"""Generated ECGs: rate, QRS and QT against real ones and against what was asked; limb leads."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medgen.augmentation.scores import correlation
from medgen.data.signals import LEADS, Signal, limb_residual, r_peaks, resampled
from medgen.errors import DataError, MissingExtraError
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.feature_metric import FeatureMetric, Features, estimate_from, half_pairs
from medgen.evaluation.features import images_of
from medgen.evaluation.resampling import bootstrapped, median
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.types import Estimate, Schema

Array = NDArray[np.float64]
UNITS = {"heart_rate": "beats a minute", "qrs_duration": "ms", "qt_interval": "ms"}
"""What is measured of an ECG, by the name of the scalar that asks for it."""
WHOLE_RATE = 500
"""Hz to which an ECG of a broken rate is brought, for the delineator takes whole ones."""


def signals_of(images: Tensor, schema: Schema) -> list[Signal]:
    """ECGs held as images (b leads samples) in [-1, 1], in mV.

    Leads are named by the schema, or, where there are twelve, standard ones.

    Raises:
        DataError: the images are no signals, or leads, rate or mV are not known.
    """
    leads = schema.leads or (LEADS if schema.channels == len(LEADS) else ())
    if not schema.time or len(schema.size) != 1:
        raise DataError("the studies are no ECGs")
    if len(leads) != schema.channels or not schema.spacing or schema.window is None:
        raise DataError(
            "ECGs need in their schema the names of the leads, the spacing (s between samples) and "
            "the window (mV that -1 and 1 stand for)"
        )
    low, high = schema.window
    volts = (images.float() + 1) / 2 * (high - low) + low
    return [Signal(each.numpy(), leads, 1 / schema.spacing[0]) for each in volts]


def intervals(signal: Signal) -> Array:
    """Heart rate in beats a minute, QRS duration and QT interval in ms; NaN where not found.

    R peaks are of the XQRS detector, waves of lead II (or the first lead) are delineated by a
    discrete wavelet transform; medians over beats.

    Raises:
        MissingExtraError: the extra `delineation` is not installed.

    Source: Martinez et al. 2004, doi 10.1109/TBME.2003.821031; computed by neurokit2.
    """
    try:
        import neurokit2  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            "QRS and QT need the extra 'delineation'. "
            "Install it with: pip install 'medgen[delineation]'"
        ) from error
    found = np.full(len(UNITS), np.nan)
    peaks = r_peaks(signal)
    if len(peaks) < 2:
        return found
    found[0] = 60 / np.median(np.diff(peaks))
    if signal.rate != round(signal.rate):
        signal = resampled(signal, WHOLE_RATE)
    lead = signal.lead("II" if "II" in signal.leads else signal.leads[0]).astype(np.float64)
    places = np.rint(peaks * signal.rate).astype(int)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, waves = neurokit2.ecg_delineate(
                lead, rpeaks=places, sampling_rate=round(signal.rate), method="dwt"
            )
    except (ValueError, IndexError, KeyError, ZeroDivisionError):
        # The delineator raises where no wave can be told: those intervals stay unknown.
        return found
    starts, ends, repolarised = (
        np.asarray(waves[name], dtype=np.float64)
        for name in ("ECG_R_Onsets", "ECG_R_Offsets", "ECG_T_Offsets")
    )
    for place, lengths in ((1, ends - starts), (2, repolarised - starts)):
        known = lengths[np.isfinite(lengths) & (lengths > 0)]
        if len(known):
            found[place] = 1000 * np.median(known) / signal.rate
    return found


@register("metric", "ecg_intervals")
class EcgIntervals(FeatureMetric):
    """Heart rate, QRS duration and QT interval of generated ECGs.

    Gives "ecg_distance/NAME", the Wasserstein-1 distance of their distribution from that of real
    ECGs, in the unit of the name, and where ECGs were asked for with that scalar, "ecg_error/NAME"
    (median absolute) and "ecg_correlation/NAME". The floors are other real ECGs, and real test
    ECGs against their own scalars.

    Args:
        count: ECGs a side, at most; None takes what there is.
    """

    needs = "ecgs"

    def __init__(self, count: int | None = None) -> None:
        super().__init__(count)

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """Distances, and agreement with what was asked.

        Raises:
            DataError: the studies are no ECGs, or no interval is found in them.
            MissingExtraError: the extra `delineation` is not installed.
        """
        found = super().measure(comparison)
        drawn, held = (self._agreement(comparison, which) for which in ("synthetic", "test"))
        for name, estimate in drawn.items():
            found[name] = replace(estimate, floor=held.get(name))
        return found

    def rows(self, comparison: Comparison, which: str) -> tuple[Array, list[str]]:
        """The three intervals of every ECG (n 3)."""
        side = comparison.equal_side(which)
        return self._measured(side, comparison.schema), list(side.patients)

    def seen_by(self, comparison: Comparison) -> str:
        """XQRS and wavelets."""
        return "XQRS and wavelet delineation"

    def between(self, real: Features, other: Features, fitted: Any) -> dict[str, Estimate]:
        """The distance of each interval in two sets."""
        found: dict[str, Estimate] = {}
        for k, (name, unit) in enumerate(UNITS.items()):
            a, b = real.rows[:, k], other.rows[:, k]
            lost = int((~np.isfinite(a)).sum() + (~np.isfinite(b)).sum())
            if min(np.isfinite(a).sum(), np.isfinite(b).sum()) < 2:
                continue
            draws = np.array([_apart(a[i], b[j]) for i, j in half_pairs(real, other)])
            found[f"ecg_distance/{name}"] = estimate_from(
                _apart(a, b),
                draws,
                real,
                higher=False,
                bounds=(0.0, np.inf),
                unit=unit,
                note=f"not found in {lost} of {len(a) + len(b)} ECGs" if lost else "",
            )
        if not found:
            raise DataError("no interval is found in the ECGs of one side")
        return found

    def _measured(self, side: Side, schema: Schema) -> Array:
        return np.stack([intervals(s) for s in signals_of(images_of(side.batch), schema)])

    def _agreement(self, comparison: Comparison, which: str) -> dict[str, Estimate]:
        synthetic = which == "synthetic"
        schema = comparison.synthetic_schema if synthetic else comparison.schema
        side: Side = getattr(comparison, which)
        if side.batch.scalar is None or not set(UNITS) & set(schema.scalars):
            return {}
        shown, found = self._measured(side, comparison.schema), {}
        for k, (name, unit) in enumerate(UNITS.items()):
            if name not in schema.scalars:
                continue
            asked = side.batch.scalar[:, schema.scalars.index(name)].double().numpy()
            pairs = np.stack([shown[:, k], asked], axis=1)
            about = {"seed": comparison.seed, "extractor": self.seen_by(comparison)}
            if np.isfinite(pairs).all(axis=1).sum() < 2:
                continue
            found[f"ecg_error/{name}"] = bootstrapped(
                np.abs(pairs[:, 0] - pairs[:, 1]),
                side.patients,
                median,
                higher=False,
                unit=unit,
                **about,
            )
            found[f"ecg_correlation/{name}"] = bootstrapped(
                pairs, side.patients, _pearson, higher=True, unit="correlation", **about
            )
        return found


@register("metric", "limb_leads")
class LimbLeads:
    """How far generated limb leads miss Einthoven's and Goldberger's laws.

    Gives "limb_residual", the median over ECGs of the root mean square in mV; a generator of the
    eight independent leads has 0 by construction. The floor is real test ECGs, which miss them by
    rounding and filters.
    """

    needs = "ecgs"

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The residual alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The residual of synthetic ECGs, with that of real test ECGs as floor.

        Raises:
            DataError: the studies are no ECGs, or have fewer than three limb leads.
        """
        drawn, held = (self._of(comparison, side) for side in ("synthetic", "test"))
        return {"limb_residual": replace(drawn, floor=held)}

    def _of(self, comparison: Comparison, which: str) -> Estimate:
        side: Side = getattr(comparison, which)
        each = [limb_residual(s) for s in signals_of(images_of(side.batch), comparison.schema)]
        if not np.isfinite(each).any():
            raise DataError("the laws of limb leads need at least three of them")
        return bootstrapped(
            np.array(each), side.patients, median, seed=comparison.seed, higher=False, unit="mV"
        )


def _apart(a: Array, b: Array) -> float:
    """Wasserstein-1 distance of the known values of two sets; NaN where one has none."""
    from scipy.stats import wasserstein_distance

    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    return float(wasserstein_distance(a, b)) if len(a) and len(b) else float("nan")


def _pearson(pairs: Array, weights: Array) -> Array:
    return correlation(pairs[:, 0], pairs[:, 1], weights)
