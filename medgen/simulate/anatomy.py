"""What a simulated adult looks like, and what ails them: numbers drawn before any voxel is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FINDINGS = ("cardiomegaly", "consolidation", "effusion", "nodule", "pneumothorax")
"""What can be planted, in the order of labels."""

SIZES: Mapping[str, tuple[float, float]] = {
    "cardiomegaly": (0.55, 0.65),
    "consolidation": (150.0, 450.0),
    "effusion": (300.0, 900.0),
    "nodule": (32.0, 54.0),
    "pneumothorax": (500.0, 950.0),
}
"""Range of drawn sizes: cardiothoracic ratio, ml, ml, mm of diameter, ml."""


@dataclass(frozen=True)
class Anatomy:
    """An adult's thorax in numbers; mm where nothing else is said.

    Args:
        half_width: half the inner width of the chest at its widest.
        half_depth: half its inner depth.
        height: from the lung's apex down to the right dome of the diaphragm.
        dome_gap: how much lower the left dome stands.
        dome_drop: from a dome down to the sulcus beside it.
        fat: thickness of fat under the skin.
        muscle: thickness of muscle over the ribs.
        breast: depth of the breasts; 0 for none.
        heart: cardiothoracic ratio.
        heart_tilt: degrees of the heart's long axis below the horizontal.
        aorta: radius of the aortic arch.
        pitch: between ribs at the spine.
        rib_slope: fall of the seventh rib from the spine to the breastbone.
        rib_height: of a rib's cross-section.
        bone: density of bone, 1 is a healthy young adult's.
        scoliosis: sideways swing of the spine.
        shoulder: height of the shoulders above the apex; negative if above.
        arm: degrees of the upper arms away from the body.
        lung: HU of aerated lung.
        vessels: factor on the radii of lung vessels.
        bubble: radius of the gas bubble in the stomach; 0 for none.
    """

    half_width: float
    half_depth: float
    height: float
    dome_gap: float
    dome_drop: float
    fat: float
    muscle: float
    breast: float
    heart: float
    heart_tilt: float
    aorta: float
    pitch: float
    rib_slope: float
    rib_height: float
    bone: float
    scoliosis: float
    shoulder: float
    arm: float
    lung: float
    vessels: float
    bubble: float


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """An adult of random sex, age, build and depth of breath."""
    female = rng.random() < 0.48
    age = rng.uniform(20, 88)
    habitus = float(np.clip(rng.normal(), -1.8, 2.2))
    breath = float(np.clip(rng.normal(0.2, 0.8), -1.8, 1.6))
    stature = rng.normal(0.97 if female else 1.05, 0.04)
    return Anatomy(
        half_width=stature * rng.uniform(129, 140) + 2 * habitus,
        half_depth=stature * rng.uniform(82, 92) + 3 * habitus,
        height=stature * (200 + 14 * breath - 6 * habitus + rng.uniform(-8, 8)),
        dome_gap=rng.uniform(6, 18),
        dome_drop=rng.uniform(42, 58) + 4 * breath,
        fat=float(np.clip(12 + 8 * habitus, 4, 36)),
        muscle=rng.uniform(11, 15) if female else rng.uniform(14, 20),
        breast=float(np.clip(rng.uniform(10, 34) + 8 * habitus, 6, 50)) if female else 0.0,
        heart=rng.uniform(0.405, 0.46),
        heart_tilt=rng.uniform(30, 48) - 4 * habitus,
        aorta=rng.uniform(11.5, 14) + 0.05 * max(age - 40, 0),
        pitch=stature * rng.uniform(20.5, 23.5),
        rib_slope=stature * rng.uniform(78, 112),
        rib_height=stature * rng.uniform(6.8, 8.2),
        bone=rng.uniform(0.75, 1.1) - 0.004 * max(age - 50, 0),
        scoliosis=rng.normal(0, 4) + (rng.normal(0, 10) if rng.random() < 0.15 else 0),
        shoulder=rng.uniform(-16, 16),
        arm=rng.uniform(4, 26),
        lung=rng.uniform(-885, -825) - 10 * breath,
        vessels=rng.uniform(0.85, 1.2),
        bubble=rng.uniform(14, 34) if rng.random() < 0.6 else 0.0,
    )


def draw_findings(
    rng: np.random.Generator, names: Sequence[str] = FINDINGS, *, prevalence: float = 0.25
) -> dict[str, float]:
    """Findings of a patient with their sizes (see `SIZES`), each present independently.

    The same numbers are drawn whatever `names` holds: a finding left out changes no other.

    Args:
        rng: draws presence and size.
        names: findings that may be present.
        prevalence: probability of each.
    """
    draws = {name: (rng.random(), rng.uniform(*SIZES[name])) for name in FINDINGS}
    return {
        name: draws[name][1] for name in FINDINGS if name in names and draws[name][0] < prevalence
    }
