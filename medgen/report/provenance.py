"""Where the numbers of a report come from, and what must not be read into them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from medgen.report import wording
from medgen.report.results import RunResults

ROWS = 20
"""Combinations of findings listed; the page says how many there were."""


def captions(results: RunResults) -> dict[str, str]:
    """What was asked of each synthetic study, by id."""
    return {str(line["id"]): _condition(line) for line in results.manifest if "id" in line}


def _findings(line: Mapping[str, Any]) -> str:
    condition = line.get("condition") or {}
    if condition.get("finding"):
        return str(condition["finding"])
    known = condition.get("findings") or {}
    present = [str(name) for name, value in known.items() if value == 1]
    return ", ".join(present) or ("no finding" if known else "")


def _condition(line: Mapping[str, Any]) -> str:
    scalars = (line.get("condition") or {}).get("scalars") or {}
    words = [_findings(line), *(f"{name} {float(value):.3g}" for name, value in scalars.items())]
    return ", ".join(word for word in words if word)


def asked(results: RunResults) -> dict[str, Any]:
    """How often each combination of findings was asked for, most frequent first."""
    counts = Counter(_findings(line) or "no finding named" for line in results.manifest)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {"rows": ranked[:ROWS], "total": len(ranked)}


def facts(results: RunResults, given: Mapping[str, object]) -> list[tuple[str, str]]:
    """The lines of the provenance table: those given, then those that the run directory tells."""
    sources = sorted({str(line["source"]) for line in results.manifest if "source" in line})
    lines: dict[str, object] = dict(given)
    if sources:
        lines.setdefault("Checkpoint that drew the studies", ", ".join(sources))
    if results.manifest:
        lines.setdefault("Synthetic studies", len(results.manifest))
    if results.recipe:
        lines.setdefault(
            "recipe.yaml (SHA-256)", hashlib.sha256(results.recipe.encode()).hexdigest()
        )
    for name, value in {**results.counts, **results.dataset}.items():
        said = isinstance(value, str) and value in lines.values()
        if isinstance(value, (str, int, float)) and not said:
            words = name.replace("_", " ")
            lines.setdefault(words[:1].upper() + words[1:], value)
    if results.extractor:
        lines.setdefault("Feature extractor", results.extractor)
    return [(str(name), wording.plain(value)) for name, value in lines.items()]


def limits(results: RunResults) -> list[str]:
    """What a reader must not conclude, in plain language."""
    lines = []
    proof = results.proof
    if proof and proof.generator_saw:
        lines.append(
            f"The generator was trained on {studies(proof.generator_saw)}. Where a model was given "
            "fewer than these, a gain may come from real studies that only the generator saw."
        )
    if proof and proof.test:
        lines.append(
            f"The verdicts rest on {studies(proof.test)} kept for testing and on one kind of "
            "model; another hospital, task or model may answer otherwise."
        )
    if results.metrics:
        lines.append(
            "A distance depends on the features it is measured in and on the number of studies: "
            "compare it with its floor in the same row, never with figures of other papers."
        )
    if results.pairs or any(wording.family(name) == "privacy" for name in results.metrics):
        lines.append("The privacy audit can find copies; it cannot prove that there are none.")
    lines.append(
        "An interval of 95 % misses the truth once in twenty times, and it covers chance only, "
        "not a bias of the data."
    )
    lines.append("Synthetic studies are for research and teaching of models, not for diagnosis.")
    return lines


def studies(counts: Mapping[str, Any]) -> str:
    """Counts of studies and patients in words; empty if neither is known."""
    parts = []
    if counts.get("studies") is not None:
        parts.append(wording.count_words(int(counts["studies"]), "study", "studies"))
    if counts.get("patients") is not None:
        parts.append(wording.count_words(int(counts["patients"]), "patient", "patients"))
    return " of ".join(parts)
