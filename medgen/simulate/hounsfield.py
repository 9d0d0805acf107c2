"""CT numbers of tissues: what they are without contrast, and what iodine adds in each phase.

Sources: Schneider et al. 1996, doi 10.1088/0031-9155/41/1/009 (tissues of ICRU's compositions);
Piekarski et al. 1980, doi 10.1148/radiology.137.3.6934563 (the liver above the spleen); Pickhardt
et al. 2013, doi 10.7326/0003-4819-158-8-201304160-00003 (spongy bone falls with age); Bae 2010,
doi 10.1148/radiol.10090908 (contrast phases).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NATIVE: Mapping[str, tuple[float, float]] = {
    "air": (-1000, 0),
    "airway": (-985, 6),
    "fat": (-102, 6),
    "muscle": (54, 5),
    "blood": (42, 4),
    "myocardium": (46, 4),
    "wall": (35, 8),
    "liver": (58, 6),
    "spleen": (49, 5),
    "kidney": (33, 4),
    "stomach": (22, 8),
    "bowel": (30, 8),
    "cord": (32, 4),
    "gland": (25, 10),
    "effusion": (9, 6),
    "consolidation": (38, 8),
    "nodule": (40, 18),
    "table": (-350, 60),
}
"""HU without contrast: mean, and standard deviation between patients."""

PHASES = ("native", "pulmonary", "arterial", "portal")
"""None, iodine in the lung's arteries, in the aorta, or in all organs alike."""

VEINS, RIGHT, LEFT = "superior_vena_cava", "right_heart", "left_heart"
"""Blood before the heart, from the right atrium to the lung, and from the lung on."""

IODINE: Mapping[str, Mapping[str, float]] = {
    "native": {},
    "pulmonary": {
        VEINS: 450, RIGHT: 330, LEFT: 210, "aorta": 150, "myocardium": 25, "spleen": 15,
        "kidney": 25, "liver": 3, "muscle": 1,
    },
    "arterial": {
        VEINS: 320, RIGHT: 190, LEFT: 280, "aorta": 290, "myocardium": 60, "spleen": 85,
        "kidney": 120, "liver": 12, "muscle": 4, "nodule": 15, "wall": 15,
    },
    "portal": {
        VEINS: 105, RIGHT: 105, LEFT: 110, "aorta": 112, "inferior_vena_cava": 95,
        "myocardium": 58, "spleen": 70, "kidney": 140, "liver": 52, "muscle": 10, "nodule": 30,
        "wall": 30,
    },
}  # fmt: skip
"""HU that iodine adds by phase; blood is `blood` plus what its place adds."""

VESSELS = (VEINS, RIGHT, LEFT, "aorta", "inferior_vena_cava")
BETWEEN_INJECTIONS = 0.15
"""Standard deviation of the logarithm of what one injection adds."""


def draw_hu(rng: np.random.Generator, phase: str) -> dict[str, float]:
    """HU of every tissue and of the blood in every vessel of one patient in one phase."""
    held = {name: float(rng.normal(mean, spread)) for name, (mean, spread) in NATIVE.items()}
    gain = float(np.exp(rng.normal(0, BETWEEN_INJECTIONS)))
    held |= dict.fromkeys(VESSELS, held["blood"])
    for name, added in IODINE[phase].items():
        held[name] += gain * added
    return held
