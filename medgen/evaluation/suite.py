"""All metrics at once: real studies against synthetic ones, as the content of `evaluation.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from medgen.augmentation.trial import plain
from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison, Progress
from medgen.evaluation.frames import is_clip
from medgen.evaluation.privacy import Memorization
from medgen.model import GenerativeModel
from medgen.protocols import Dataset, Metric
from medgen.registry import build

NEEDS = {
    "frechet": "",
    "kid": "",
    "mmd": "",
    "prdc": "",
    "vendi": "",
    "ms_ssim_diversity": "",
    "intensity": "",
    "spectrum": "",
    "label_agreement": "findings",
    "mask_agreement": "masks",
    "scalar_agreement": "scalars",
    "stream": "clips",
    "frechet_video": "clips",
    "temporal_consistency": "clips",
    "flicker": "clips",
    "ef_agreement": "clips",
    "timing_agreement": "clips",
    "rhythm_agreement": "clips",
    "ecg_intervals": "ecgs",
    "limb_leads": "ecgs",
    "memorization": "",
    "membership": "",
}
"""The metrics of an evaluation that names none, and what the studies must carry for each."""


def evaluate(
    real: Dataset,
    synthetic: Dataset,
    metrics: Sequence[str | Mapping[str, Any] | Metric] | None = None,
    *,
    extractor: str = "classifier",
    seed: int = 0,
    count: int | None = None,
    model: GenerativeModel | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure synthetic studies against real ones; classifier and segmenter are trained once.

    Args:
        real: studies of all three splits; the generator saw the training split alone.
        synthetic: studies with synthetic provenance.
        metrics: names, `{type: name, ...}` or built metrics; None takes all that the studies allow.
        extractor: name of the feature extractor that metrics use unless they name another.
        seed: all randomness derives from it.
        count: studies a side of a distribution metric, at most.
        model: the generator that drew the samples; without it no attack asks its loss.
        progress: called with (metrics done, metrics in all, name of the next).

    Returns:
        "metrics" (name to the fields of an `Estimate`), "counts", "extractor", "pairs" (the most
        suspicious ones), "skipped" (name to why it could not be measured) and, from the metric
        "memorization", "reidentification" (a score for every sample).

    Raises:
        DataError: the studies do not fit each other, or a split is empty.
        RecipeError: there is no such metric or extractor.
    """
    comparison = Comparison(
        real, synthetic, extractor=extractor, count=count, seed=seed, model=model
    )
    named = [_built(metric) for metric in (list(NEEDS) if metrics is None else metrics)]
    result: dict[str, Any] = {"metrics": {}, "pairs": [], "skipped": {}}
    for done, (name, metric) in enumerate(named):
        if progress is not None:
            progress(done, len(named), name)
        lacking = _lacking(comparison, metric)
        if lacking:
            result["skipped"][name] = lacking
            continue
        try:
            if isinstance(metric, Memorization):
                audit = metric.audit(comparison)
                estimates, result["pairs"] = audit.estimates, audit.pairs
                result["reidentification"] = audit.reidentification.to_dict()
            elif hasattr(metric, "measure"):
                estimates = metric.measure(comparison)
            else:
                estimates = metric.compute(real, synthetic)
        except DataError as error:
            result["skipped"][name] = str(error)
            continue
        result["metrics"].update({key: plain(asdict(value)) for key, value in estimates.items()})
    if progress is not None:
        progress(len(named), len(named), "done")
    used = comparison.extractor()
    result["extractor"] = {"name": used.name, "digest": used.digest}
    result["counts"] = {
        "real_train": len(comparison.train),
        "real_heldout": len(comparison.heldout),
        "real_test": len(comparison.test),
        "synthetic": len(comparison.synthetic),
        "compared": comparison.equal,
    }
    return result


def _built(metric: str | Mapping[str, Any] | Metric) -> tuple[str, Any]:
    """A metric and its name."""
    if isinstance(metric, str):
        return metric, build("metric", metric, {})
    if isinstance(metric, Mapping):
        settings = {key: value for key, value in metric.items() if key != "type"}
        return str(metric["type"]), build("metric", str(metric["type"]), settings)
    return type(metric).__name__.lower(), metric


def _lacking(comparison: Comparison, metric: object) -> str:
    """What the studies lack for a metric, in words; empty if nothing."""
    needs = getattr(metric, "needs", "")
    if needs == "clips" and not is_clip(comparison.schema):
        return "the studies are no clips"
    if needs == "ecgs" and not (comparison.schema.time and len(comparison.schema.size) == 1):
        return "the studies are no ECGs"
    if needs == "findings" and not comparison.schema.findings:
        return "the studies carry no findings"
    if needs == "masks" and not comparison.schema.mask_classes:
        return "the studies carry no masks"
    if needs == "scalars" and not comparison.schema.scalars:
        return "the studies carry no scalars"
    if needs == "reports" and not comparison.schema.text:
        return "the studies carry no reports"
    return ""
