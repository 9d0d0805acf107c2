"""Several runs side by side, as one self-contained page and as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgen.report import wording
from medgen.report.compare import Row
from medgen.report.template import fill
from medgen.types import Estimate

SECTIONS = {
    "benefit": ("Does it help?", "Paired differences on test patients; above 0 is a gain."),
    "fidelity": ("How close to real?", "Read against real-vs-real floors of the same run."),
    "condition": ("Do samples show what was asked for?", "Against held-out real studies."),
    "privacy": ("Does it give patients away?", "Against real studies that nobody trained on."),
}
TONES = {"helps": "helps", "hurts": "hurts"}


def sections(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows by what they answer, benefit first, in words; empty sections are left out."""
    grouped: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for row in rows:
        proved = bool(row.verdicts)
        title, meaning = (row.name, "") if proved else wording.metric_words(row.name)
        known = next((e for e in row.estimates if e is not None), None)
        direction = "" if proved or known is None else wording.direction_words(known)
        verdicts = row.verdicts or ("",) * len(row.estimates)
        grouped["benefit" if proved else wording.family(row.name)].append(
            {
                "title": title.removeprefix("prove "),
                "note": "; ".join(words for words in (meaning, direction) if words),
                "caution": row.caution,
                "cells": [
                    _cell(row.name, estimate, said)
                    for estimate, said in zip(row.estimates, verdicts, strict=True)
                ],
            }
        )
    return [
        {"title": title, "note": note, "rows": grouped[name]}
        for name, (title, note) in SECTIONS.items()
        if grouped[name]
    ]


def run_names(folders: Sequence[Path]) -> list[str]:
    """Short names that tell the folders apart: their own, or all of the path where two agree."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]


def compare_page(rows: Sequence[Row], folders: Sequence[Path]) -> str:
    """The comparison as one page that needs nothing beside it."""
    return fill(
        "compare.html",
        runs=run_names(folders),
        sections=sections(rows),
    )


def compare_text(rows: Sequence[Row], folders: Sequence[Path]) -> str:
    """The comparison for a terminal: a line a run under every measure, in aligned columns."""
    names = run_names(folders)
    wide = max(map(len, names))
    lines: list[str] = []
    for section in sections(rows):
        lines += ["", section["title"].upper()]
        for row in section["rows"]:
            caution = f"  (do not compare: {row['caution']})" if row["caution"] else ""
            lines += ["", f"  {row['title']}{caution}"]
            for name, cell in zip(names, row["cells"], strict=True):
                said = "not measured"
                if cell["value"]:
                    said = f"{cell['value']:>12}  {cell['interval']:<22} n {cell['n']:<6} "
                    said += cell["reading"]
                lines.append(f"    {name:<{wide}}  {said}".rstrip())
    return "\n".join(lines).lstrip("\n")


def _cell(name: str, estimate: Estimate | None, verdict: str) -> dict[str, Any]:
    if estimate is None:
        return {"value": "", "interval": "", "n": "", "reading": "", "tone": "unclear"}
    signed = bool(verdict)
    reading, tone = verdict, TONES.get(verdict, "unclear")
    if not verdict and estimate.floor is not None:
        reading, tone = wording.against_floor(name, estimate)
    return {
        "value": wording.value_text(estimate, signed=signed),
        "interval": wording.interval_text(estimate, signed=signed),
        "n": estimate.n,
        "reading": reading,
        "tone": tone,
    }
