"""Names and meanings of measures of clips and ECGs, for readers of a report."""

from __future__ import annotations

from collections.abc import Mapping

CLIP_METRICS: Mapping[str, tuple[str, str]] = {
    "stream_t": ("Motion (STREAM-T)", "how alike frames change with time; 1 is alike"),
    "stream_f": ("Fidelity (STREAM-F)", "share of synthetic clips whose content looks real"),
    "stream_d": ("Diversity (STREAM-D)", "share of real clips whose content is also drawn"),
    "frechet_video": ("Fréchet video distance", "distance by features that see motion"),
    "motion_ratio": ("Motion ratio", "motion over that of real clips; below 1 is stagnant"),
    "roughness_ratio": (
        "Roughness ratio",
        "change of motion over that of real clips; above 1: jumps",
    ),
    "lag_distance": ("Lag distance", "how far correlations of frames 1 to 8 apart are off"),
    "still_share": ("Still clips", "share of clips that hardly move"),
    "flicker": ("Codec flicker", "motion that the codec gets wrong, over the motion there is"),
    "ef_error": ("Ejection fraction error", "shown against asked for, in points of percent"),
    "ef_bias": ("Ejection fraction bias", "mean of shown less asked for, in points of percent"),
    "ef_correlation": ("Ejection fraction correlation", "of what is shown with what was asked for"),
    "ed_error": (
        "End-diastole error",
        "frames between the fullest ventricle and the one asked for",
    ),
    "es_error": (
        "End-systole error",
        "frames between the emptiest ventricle and the one asked for",
    ),
    "rhythm_rate_error": ("Rate error", "beats a minute between the clip and its ECG"),
    "rhythm_phase_error": ("Phase error", "frames by which the heart is off its R peak"),
    "rhythm_rate_gain": ("Rate gain", "how much worse the rate fits the ECG of another clip"),
    "rhythm_phase_gain": ("Phase gain", "how much worse the phase fits the ECG of another clip"),
    "ecg_distance": ("ECG interval distance", "how far the distribution of an interval is off"),
    "ecg_error": ("ECG interval error", "between the interval shown and the one asked for"),
    "ecg_correlation": ("ECG interval correlation", "of intervals shown with those asked for"),
    "limb_residual": ("Limb leads", "mV by which limb leads miss the laws that bind them"),
}
"""Name of an estimate, before any "/", to its title and what it says."""
ASKED = ("ef_", "ed_error", "es_error", "rhythm", "ecg_error", "ecg_correlation")
"""Parts of the names of those that judge what was asked for."""
