"""Numbers and verdicts in plain words: sensible digits, always with their interval and n."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medgen.augmentation.verdict import (
    AUGMENTED,
    DUPLICATES,
    MIXED,
    PRETRAINED,
    RANDOMIZED,
    REAL,
    SYNTHETIC,
)
from medgen.report.clip_words import ASKED, CLIP_METRICS
from medgen.report.results import Comparison, Proof
from medgen.types import Estimate

MISSING = "not available"
PERCENT = "\N{NO-BREAK SPACE}%"
MINUS = "\N{MINUS SIGN}"
ARMS: Mapping[str, str] = {
    REAL: "real only",
    DUPLICATES: "real, repeated",
    MIXED: "real + synthetic",
    SYNTHETIC: "synthetic only",
    AUGMENTED: "real, augmented",
    PRETRAINED: "synthetic, then real",
    RANDOMIZED: "real + random contrast",
}
METRICS: Mapping[str, tuple[str, str]] = {
    "frechet": ("Fréchet distance", "distance between the two sets, as Gaussians of features"),
    "kid": ("Kernel distance (KID)", "unbiased kernel distance between the two sets"),
    "frechet_infinite": (
        "Fréchet distance, unbiased",
        "the same, extrapolated to infinitely many studies",
    ),
    "mmd": ("Kernel distance (MMD)", "unbiased kernel distance that sees any difference"),
    "vendi_ratio": (
        "Diversity (Vendi ratio)",
        "effective number of different synthetic studies over that of as many real ones",
    ),
    "radiomics": (
        "Radiomics distance",
        "Fréchet distance of first-order and texture features, inside the mask where there is one",
    ),
    "ms_ssim_diversity": (
        "Diversity (MS-SSIM)",
        "how unlike in structure two studies of the same findings are",
    ),
    "lpips_diversity": (
        "Diversity (LPIPS)",
        "how unlike to the eye two studies of the same findings are",
    ),
    "intensity_distance": ("Intensity distance", "how far grey levels are off, in parts of 1"),
    "spectrum_distance": (
        "Spectrum distance",
        "how far the power spectrum is off, in dB; blur and left-over noise raise it",
    ),
    "precision": ("Precision", "share of synthetic studies that look like some real study"),
    "recall": ("Recall", "share of real studies that some synthetic study looks like"),
    "density": ("Density", "how deep synthetic studies lie among real ones; 1 is like real"),
    "coverage": ("Coverage", "share of real studies with a synthetic one among their neighbours"),
    "label_agreement": (
        "Findings agreement",
        "an independent classifier, trained on real studies, sees the finding asked for",
    ),
    "mask_agreement": (
        "Mask agreement",
        "an independent segmenter, trained on real studies, finds the mask asked for",
    ),
    "label_auroc": (
        "Findings AUROC",
        "how well an independent classifier's scores tell the findings that were asked for",
    ),
    "label_calibration": (
        "Findings calibration error",
        "how far an independent classifier's probabilities are from what was asked for",
    ),
    "mask_hausdorff": (
        "Mask distance (95 % Hausdorff)",
        "how far the borders of the mask asked for and of the mask found lie apart",
    ),
    "scalar_error": (
        "Scalar error",
        "mean absolute error of an independent regressor against the scalar asked for",
    ),
    "scalar_correlation": (
        "Scalar correlation",
        "correlation of an independent regressor's values with the scalars asked for",
    ),
    "mask_agreement_ratio": (
        "Mask agreement ratio",
        "mask agreement of synthetic studies over that of held-out real ones",
    ),
    "membership_auc": (
        "Membership AUROC",
        "how well a simple attack tells training studies from unseen ones; 0.5 is a coin",
    ),
    "membership_rate": (
        "Membership at 1 % false alarms",
        "share of training studies that the attack recognises; 1 % is chance",
    ),
    "memorization": (
        "Memorization",
        "share of synthetic studies suspiciously close to a training study",
    ),
    **CLIP_METRICS,
}
PARTS: Mapping[str, str] = {
    "registered": "after alignment: crops, shifts, mirroring and exposure do not hide a copy",
}
CHANCE: Mapping[str, tuple[float, str]] = {
    "membership_auc": (0.5, "0.5 by chance"),
    "membership_rate": (0.01, f"1{PERCENT} by chance"),
}
"""What an attack that knows nothing reaches, for measures that have no floor."""
SCORES: Mapping[str, str] = {
    "auroc": "AUROC",
    "dice": "Dice",
    "r2": "R²",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
}
PRIVACY_WORDS = ("memor", "nearest", "copy", "copies", "membership", "privacy", "duplicate")
CONDITION_WORDS = ("agreement", "label", "mask", "condition", "scalar", "dice", "auroc", *ASKED)


def family(name: str) -> str:
    """Which table of the report a metric belongs to: "privacy", "condition" or "fidelity"."""
    lowered = name.lower()
    if any(word in lowered for word in PRIVACY_WORDS):
        return "privacy"
    return "condition" if any(word in lowered for word in CONDITION_WORDS) else "fidelity"


def metric_words(name: str) -> tuple[str, str]:
    """(name, explanation) of a metric; a slash sets off its part, such as one finding."""
    base, _, part = name.partition("/")
    title, meaning = METRICS.get(base, (_sentence(base), ""))
    return (f"{title}: {part}", PARTS.get(part, "")) if part else (title, meaning)


def score_words(metric: str) -> str:
    """The name of a consumer's score as papers write it."""
    return SCORES.get(metric.lower(), metric.replace("_", " "))


def arm_words(arm: str, ratio: float = math.nan) -> str:
    """The name of an arm, with its ratio where it has one."""
    base = ARMS.get(arm, arm.replace("_", " "))
    if arm == DUPLICATES and math.isfinite(ratio):
        return f"{base} {1 + ratio:g} times"
    return f"{base}, 1 : {ratio:g}" if arm in (MIXED, RANDOMIZED) and math.isfinite(ratio) else base


def decimals(estimate: Estimate) -> int:
    """Digits after the point that the interval allows.

    Half the interval keeps two significant digits if it starts with 1 or 2, else one.
    """
    scale = 100.0 if estimate.unit == "share" else 1.0
    half = (estimate.high - estimate.low) / 2 * scale
    if not math.isfinite(half) or half <= 0:
        size = abs(estimate.value) * scale
        return 3 if not math.isfinite(size) or size < 1 else max(0, 2 - int(math.log10(size)))
    power = math.floor(math.log10(half))
    return min(6, max(0, (1 if half / 10**power < 3 else 0) - power))


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A number with a true minus sign; "not available" unless finite."""
    if not math.isfinite(value):
        return MISSING
    text = f"{abs(value):.{digits}f}"
    if not text.strip("0."):
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def value_text(estimate: Estimate, *, signed: bool = False) -> str:
    """The point estimate in its unit."""
    return _scaled(estimate.value, estimate, signed)


def interval_text(estimate: Estimate, *, signed: bool = False) -> str:
    """The 95 % interval in the unit of the estimate, or "not available"."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return MISSING
    low, high = (_scaled(end, estimate, signed) for end in (estimate.low, estimate.high))
    for unit in (PERCENT, " points"):
        low = low.removesuffix(unit)
    return f"{low} to {high}"


def direction_words(estimate: Estimate) -> str:
    """Which end of the scale is good."""
    if estimate.higher_is_better is None:
        return "neither end is good"
    return "higher is better" if estimate.higher_is_better else "lower is better"


def against_floor(name: str, estimate: Estimate) -> tuple[str, str]:
    """How the estimate stands to its floor, read from the two intervals, in words and as a tone.

    The floor of a privacy measure is real studies that the generator never saw.
    """
    floor = estimate.floor
    chance = CHANCE.get(name.partition("/")[0])
    if floor is None and chance is not None and math.isfinite(estimate.low):
        above = estimate.low > chance[0]
        return (
            ("better than chance: leaks", "hurts")
            if above
            else ("no better than chance", "unclear")
        )
    if floor is None:
        return "no floor to compare with", "unclear"
    ends = (estimate.low, estimate.high, floor.low, floor.high)
    if not all(math.isfinite(end) for end in ends):
        return "not decided: an interval is missing", "unclear"
    other = "unseen real" if family(name) == "privacy" else "real"
    if estimate.low <= floor.high and floor.low <= estimate.high:
        return "no difference seen", "unclear"
    if estimate.higher_is_better is None:
        return f"differs from {other}", "unclear"
    better = (estimate.value > floor.value) == estimate.higher_is_better
    return (f"better than {other}", "helps") if better else (f"worse than {other}", "hurts")


def chance_text(name: str) -> str:
    """What chance would give for a measure without a floor; empty for others."""
    return CHANCE.get(name.partition("/")[0], (0.0, ""))[1]


def fraction_words(fraction: float) -> str:
    """A share of the training patients."""
    if fraction >= 1:
        return "all training patients"
    return f"{fraction * 100:.3g}{PERCENT} of the patients"


def count_words(count: int, one: str, many: str) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many}"


def headline(proof: Proof) -> str:
    """The answer of the whole experiment in one sentence."""
    shares: dict[str, list[float]] = {}
    for fraction, group in verdicts_by_fraction(proof).items():
        shares.setdefault(overall(group), []).append(fraction)
    if set(shares) <= {"no evidence"}:
        return "There is no evidence that adding the synthetic studies helps or hurts."
    clauses = [
        f"{verb} {_shares(shares[word])}"
        for word, verb in (("helps", "helped"), ("hurts", "hurt"), ("mixed", "did both"))
        if word in shares
    ]
    if "no evidence" in shares:
        clauses.append(f"gave no evidence either way {_shares(shares['no evidence'])}")
    return f"Adding the synthetic studies {_listed(clauses)}."


def verdicts_by_fraction(proof: Proof) -> dict[float, list[Comparison]]:
    """The comparisons that decide, by fraction: the mixed arm against the duplicates control.

    Where an experiment lacks one of the two, all of its comparisons decide.
    """
    chosen = [c for c in proof.comparisons if c.primary]
    chosen = chosen or [c for c in proof.comparisons if (c.arm, c.versus) == (MIXED, DUPLICATES)]
    groups: dict[float, list[Comparison]] = {}
    for comparison in sorted(chosen or proof.comparisons, key=lambda c: (c.fraction, c.ratio)):
        groups.setdefault(comparison.fraction, []).append(comparison)
    return groups


def overall(group: Sequence[Comparison]) -> str:
    """One verdict for several ratios: "mixed" where one helps and another hurts."""
    words = {comparison.verdict for comparison in group}
    if {"helps", "hurts"} <= words:
        return "mixed"
    return next((word for word in ("helps", "hurts") if word in words), "no evidence")


def verdict_sentence(comparison: Comparison, proof: Proof) -> tuple[str, str, str]:
    """One comparison in plain words, in three parts; the second holds number, interval and n.

    It names what the arm is compared with and, where no effect is shown, how large one may be.
    """
    estimate, score = comparison.estimate, score_words(proof.metric)
    ratio = f" ({comparison.ratio:g} for every real one)" * math.isfinite(comparison.ratio)
    subject = {
        MIXED: f"synthetic studies added{ratio}",
        SYNTHETIC: "synthetic studies alone",
        DUPLICATES: "real studies repeated",
        AUGMENTED: "strong classical augmentation of the real studies",
        PRETRAINED: "pre-training on synthetic studies",
        RANDOMIZED: f"images of random contrast made from masks{ratio}",
    }.get(comparison.arm, f"the arm '{arm_words(comparison.arm)}'")
    control = {
        DUPLICATES: "the same real studies repeated to the same count (the duplicates control)",
        REAL: "the real studies alone",
        AUGMENTED: "strong classical augmentation of the real studies",
        RANDOMIZED: "as many images of random contrast made from masks",
    }.get(comparison.versus, f"the arm '{arm_words(comparison.versus)}'")
    interval = interval_text(estimate, signed=True)
    effect = f"{_change(comparison)} (95{PERCENT} interval {interval}; n = {estimate.n})"
    return (
        f"With {subject}, {score} ",
        effect,
        f" against {control}, at equal training steps.{_reach(comparison)}",
    )


def _change(comparison: Comparison) -> str:
    estimate = comparison.estimate
    if not math.isfinite(estimate.value):
        return "was not measured"
    if comparison.verdict not in ("helps", "hurts"):
        return f"changes by {value_text(estimate, signed=True)}"
    size = value_text(replace(estimate, value=abs(estimate.value)), signed=True).lstrip("+")
    return f"{'rises' if estimate.value > 0 else 'falls'} by {size}"


def _reach(comparison: Comparison) -> str:
    """What an experiment without a verdict leaves open."""
    estimate = comparison.estimate
    if comparison.verdict != "no evidence" or not math.isfinite(estimate.high - estimate.low):
        return ""
    power = f" {comparison.power}" * bool(comparison.power)
    if not estimate.low <= 0 <= estimate.high:
        corrected = corrected_text(comparison)
        wider = f": its interval widens to {corrected}" * (corrected != MISSING)
        return f" This did not pass the correction for several comparisons{wider}.{power}"
    low, high = interval_text(estimate, signed=True).split(" to ")
    return f" The interval holds zero: anything from {low} to {high} may be true.{power}"


def corrected_text(comparison: Comparison) -> str:
    """The interval that goes with the corrected p-value, or "not available"."""
    low, high = comparison.corrected
    return interval_text(replace(comparison.estimate, low=low, high=high), signed=True)


def detectable_text(comparison: Comparison) -> str:
    """The smallest difference that would have been found, or "not available"."""
    return value_text(replace(comparison.estimate, value=comparison.detectable))


def plain(value: Any) -> str:
    """Any value of a settings file as a reader would write it."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    return str(value)


def _scaled(value: float, estimate: Estimate, signed: bool) -> str:
    share = estimate.unit == "share"
    text = number(value * (100 if share else 1), decimals(estimate), signed=signed)
    if text == MISSING or not share:
        return text
    return text + (" points" if signed else PERCENT)


def _shares(fractions: Sequence[float]) -> str:
    parts = [f"{share * 100:.3g}{PERCENT}" for share in fractions if share < 1]
    words = [f"{_listed(parts)} of the patients"] if parts else []
    return f"with {_listed([*words, *(['all training patients'] if max(fractions) >= 1 else [])])}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _sentence(name: str) -> str:
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
