"""Distance of radiomics: first-order statistics and texture, inside the mask where there is one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medgen.errors import DataError, MissingExtraError
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.distribution import frechet_distance
from medgen.evaluation.feature_metric import Features, estimate_from, half_pairs
from medgen.evaluation.features import images_of
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.types import Estimate

Array = NDArray[np.float64]
FAMILIES = ["statistical", "cooccurrence_matrix"]
LEVELS = 32
"""Grey levels of a co-occurrence matrix."""
LARGEST = 5.0
"""Standardised features are held within so many deviations: one odd study shall not decide."""
LEAST = 10
"""Studies a side."""


@register("metric", "radiomics")
class Radiomics:
    """Frechet distance of standardised radiomics features.

    18 first-order statistics and 25 of the grey-level co-occurrence matrix, after the reference
    values of the Image Biomarker Standardisation Initiative; of the foreground where both real and
    synthetic studies carry masks, else of the whole image. Features are standardised by real
    training studies and held within 5 deviations; one that a study does not define counts as
    average. Studies without foreground are left out, and counted in the warning. It takes about
    0.05 s a study.

    Args:
        count: studies a side, at most.

    Source: Konz et al. 2024, arXiv:2412.01496 (a Frechet distance of radiomics); Zwanenburg et al.
    2020, doi 10.1148/radiol.2020191145 (the features); computed by mirp.
    """

    needs = ""

    def __init__(self, count: int = 300) -> None:
        self.count = count

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The distance alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The distance of held-out real and synthetic studies, with its floor.

        Raises:
            DataError: too few studies have a foreground, or they are clips.
            MissingExtraError: the extra `radiomics` is not installed.
        """
        if comparison.schema.time:
            raise DataError("radiomics is of images and volumes; it makes no sense along time")
        masked = bool(comparison.schema.mask_classes and comparison.synthetic_schema.mask_classes)
        taught = comparison.taught
        sides = [taught.select(range(min(len(taught), self.count)))]
        sides += [comparison.equal_side(w) for w in ("heldout", "synthetic", "second")]
        shown = [_with_foreground(side) if masked else side for side in sides]
        most = min(self.count, *(len(side) for side in shown[1:]))
        if most < LEAST:
            raise DataError(f"radiomics needs {LEAST} studies a side with a foreground, got {most}")
        reference = radiomics(shown[0], masked=masked)
        held, drawn, other = (
            Features(_standard(radiomics(part, masked=masked), reference), part.patients)
            for part in (side.select(range(most)) for side in shown[1:])
        )
        left_out = sum(len(a) - len(b) for a, b in zip(sides[1:], shown[1:], strict=True))
        where = "the foreground" if masked else "whole images"
        note = f"{left_out} studies without foreground left out" if masked and left_out else ""
        found, floor = (
            replace(_distance(held, b, note), extractor=f"radiomics of {where}")
            for b in (drawn, other)
        )
        return {"radiomics": replace(found, floor=floor)}


def radiomics(side: Side, *, masked: bool) -> Array:
    """Features of studies (n d): channels side by side; NaN where one is not defined.

    Args:
        side: studies of images (b c h w) or volumes (b c d h w).
        masked: of the foreground alone, which must not be empty.

    Raises:
        MissingExtraError: the extra `radiomics` is not installed.
    """
    try:
        from mirp import extract_features  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            "metric 'radiomics' needs the extra 'radiomics'. "
            "Install it with: pip install 'medgen[radiomics]'"
        ) from error

    def one(image: Tensor, mask: NDArray[np.int64]) -> Array:
        flat = image.ndim == 2
        tables: Any = extract_features(
            image=image.double().numpy()[None] if flat else image.double().numpy(),
            mask=mask[None] if flat else mask,
            by_slice=flat,
            base_feature_families=FAMILIES,
            base_discretisation_method="fixed_bin_number",
            base_discretisation_n_bins=LEVELS,
        )
        table = tables[0]
        named = [name for name in table.columns if name.startswith(("stat_", "cm_"))]
        return table[named].to_numpy(dtype=np.float64)[0]

    images, masks = images_of(side.batch), side.batch.mask
    rows: list[Array] = []
    with _quiet():
        for k, study in enumerate(images):
            inside = np.ones(study.shape[1:], dtype=np.int64)
            if masked and masks is not None:
                inside = (masks[k] > 0).long().numpy()
            rows.append(np.concatenate([one(channel, inside) for channel in study]))
    return np.stack(rows)


def _with_foreground(side: Side) -> Side:
    """The studies whose mask is not empty."""
    if side.batch.mask is None:
        raise DataError("the schema names mask classes, and the studies carry no masks")
    shown = (side.batch.mask > 0).flatten(1).any(1).nonzero()[:, 0].tolist()
    return side.select(shown)


def _standard(rows: Array, reference: Array) -> Array:
    mean, deviation = np.nanmean(reference, axis=0), np.nanstd(reference, axis=0)
    varies = deviation > 1e-9
    standard = (rows[:, varies] - mean[varies]) / deviation[varies]
    return np.nan_to_num(standard).clip(-LARGEST, LARGEST)


def _distance(real: Features, other: Features, note: str) -> Estimate:
    value = frechet_distance(real.rows, other.rows)
    draws = [frechet_distance(real.rows[i], other.rows[j]) for i, j in half_pairs(real, other)]
    few = f"biased upward at {len(real.rows)} studies: compare with the floor only"
    warning = "; ".join(part for part in (few, note) if part)
    bounds = (0.0, np.inf)
    return estimate_from(value, np.array(draws), real, higher=False, bounds=bounds, note=warning)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep mirp from setting up the root logger, which would write to standard output."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    try:
        yield
    finally:
        root.removeHandler(silent)
