"""Reports of simulated radiographs: what could be dictated, from what was planted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medgen.simulate.anatomy import FINDINGS, SIZES

SEEN: Mapping[str, tuple[str, ...]] = {
    "cardiomegaly": ("{size} cardiomegaly.", "The heart is enlarged, {degree}."),
    "consolidation": ("{size} consolidation in one lung.", "A {size} area of airspace opacity."),
    "effusion": ("{size} pleural effusion.", "Pleural fluid on one side, {size} in amount."),
    "nodule": ("Lung nodule of about {mm} mm.", "A {size} pulmonary nodule is present."),
    "pneumothorax": ("{size} pneumothorax.", "Free pleural air on one side, {size}."),
}
"""Ways to say that a finding is there."""
ABSENT: Mapping[str, str] = {
    "cardiomegaly": "Heart size is normal.",
    "consolidation": "No consolidation.",
    "effusion": "No pleural effusion.",
    "nodule": "No nodule.",
    "pneumothorax": "No pneumothorax.",
}
"""How it is said that one is not."""
NORMAL = ("Heart and lungs are normal.", "No acute finding.", "Normal chest radiograph.")
DEGREES = (("small", "mildly"), ("moderate", "moderately"), ("large", "markedly"))
MENTIONED = 0.4
"""Share of the absent findings that a report names."""


def report(findings: Mapping[str, float], rng: np.random.Generator) -> str:
    """Sentences in random order and words, true of the findings; not every absent one is named.

    Args:
        findings: what is planted and how large, see `Thorax.findings`.
        rng: draws words and order.
    """
    if not findings and rng.random() < 0.5:
        return str(rng.choice(NORMAL))
    sentences: list[str] = []
    for name in FINDINGS:
        if name in findings:
            sentences.append(_seen(name, findings[name], rng))
        elif rng.random() < MENTIONED:
            sentences.append(ABSENT[name])
    return " ".join(rng.permutation(sentences or [NORMAL[0]]))


def _seen(name: str, size: float, rng: np.random.Generator) -> str:
    low, high = SIZES[name]
    third = int(np.clip(3 * (size - low) / (high - low), 0, 2))
    adjective, degree = DEGREES[third]
    said = str(rng.choice(SEEN[name])).format(size=adjective, degree=degree, mm=round(size, -1))
    return said[0].upper() + said[1:]
