"""Several runs side by side: what was measured, and whether the numbers may be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.errors import DataError
from medgen.report.results import RunResults, read_run
from medgen.types import Estimate


@dataclass(frozen=True)
class Row:
    """One measure over all runs.

    Args:
        name: of the measure; a proof's is "prove TASK, share of patients, arm against arm, ratio".
        estimates: one a run; None where it was not measured.
        caution: why the numbers cannot be compared; empty if they can.
        verdicts: of a proof, one a run.
    """

    name: str
    estimates: tuple[Estimate | None, ...]
    caution: str = ""
    verdicts: tuple[str, ...] = ()


def compare_runs(folders: Sequence[Path]) -> list[Row]:
    """The measures of runs, or of folders that `medgen evaluate` and `prove` wrote, side by side.

    Args:
        folders: two or more.

    Raises:
        DataError: a folder is absent, damaged, or holds nothing measured.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if not run.metrics and run.proof is None:
            raise DataError(
                f"{run.path}: holds neither evaluation.json nor prove.json; evaluate it first"
            )
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    rows = [_metric(name, [run.metrics.get(name) for run in runs]) for name in names]
    differences = [_differences(run) for run in runs]
    for name in dict.fromkeys(name for found in differences for name in found):
        pairs = [found.get(name) for found in differences]
        row = _metric(name, [None if pair is None else pair[0] for pair in pairs])
        verdicts = tuple("" if pair is None else pair[1] for pair in pairs)
        rows.append(Row(row.name, row.estimates, row.caution, verdicts))
    return rows


def as_dict(rows: Sequence[Row], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Plain values for JSON, numbers that are not finite as None."""
    return [
        {
            "measure": row.name,
            "caution": row.caution,
            "runs": [
                {"run": str(folder), **_plain(estimate), **_said(row.verdicts, place)}
                for place, (folder, estimate) in enumerate(zip(folders, row.estimates, strict=True))
            ],
        }
        for row in rows
    ]


def _metric(name: str, estimates: Sequence[Estimate | None]) -> Row:
    found = [estimate for estimate in estimates if estimate is not None]
    differing = [
        what
        for what, values in (
            ("numbers of studies", {estimate.n for estimate in found}),
            ("extractors", {estimate.extractor for estimate in found}),
        )
        if len(values) > 1
    ]
    caution = f"different {' and '.join(differing)}" if differing else ""
    return Row(name, tuple(estimates), caution)


def _differences(run: RunResults) -> Mapping[str, tuple[Estimate, str]]:
    """The comparisons of a run's proof by name, with their verdicts."""
    if run.proof is None:
        return {}
    found: dict[str, tuple[Estimate, str]] = {}
    for each in run.proof.comparisons:
        ratio = f", ratio {each.ratio:g}" if math.isfinite(each.ratio) and each.ratio else ""
        name = f"prove {run.proof.task}, {each.fraction:.0%}: {each.arm} against {each.versus}"
        found[name + ratio] = (each.estimate, each.verdict)
    return found


def _plain(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"value": None, "low": None, "high": None, "n": None}
    ends = {name: getattr(estimate, name) for name in ("value", "low", "high")}
    return {k: v if math.isfinite(v) else None for k, v in ends.items()} | {"n": estimate.n}


def _said(verdicts: Sequence[str], place: int) -> dict[str, str]:
    return {"verdict": verdicts[place]} if verdicts else {}
