"""Every figure of a report for programs: one JSON file, and tables as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medgen.disk import write_bytes
from medgen.report import wording
from medgen.report.plots import arm_points
from medgen.report.privacy import flagged
from medgen.report.rejections import rejections
from medgen.report.results import RunResults
from medgen.types import Estimate

Rows = list[dict[str, Any]]


def write_figures(results: RunResults, about: Mapping[str, Any], page: Path) -> None:
    """Write the figures of a report beside its page.

    Args:
        results: of the run.
        about: what else the page tells: title, commands, provenance, limits, missing.
        page: the page; `report.html` is joined by `report.json` and the folder `report-tables`.

    Raises:
        OutputError: a file cannot be written.
    """
    tables = all_tables(results)
    document = {
        **about,
        "verdicts": _verdicts(results),
        "privacy": flagged(results),
        "counts": dict(results.counts),
        **tables,
    }
    text = json.dumps(_finite(document), indent=2, allow_nan=False) + "\n"
    write_bytes(page.with_suffix(".json"), text.encode())
    for name, rows in tables.items():
        if rows:
            write_bytes(page.with_name(f"{page.stem}-tables") / f"{name}.csv", _csv(rows).encode())


def all_tables(results: RunResults) -> dict[str, Rows]:
    """The tables of a report by name; those of what was not measured are empty."""
    proof = results.proof
    return {
        "measures": [_measure(name, found) for name, found in results.metrics.items()],
        "arms": [] if proof is None else [_arm(point) for point in arm_points(proof.rows)],
        "comparisons": [] if proof is None else [_comparison(c) for c in proof.comparisons],
        "runs": [] if proof is None else [_scalars(row) for row in proof.rows],
        "samples": [dict(line) for line in results.reidentification.get("samples", ())],
        "rejections": rejections(results).get("rows", []),
    }


def _verdicts(results: RunResults) -> Rows:
    if results.proof is None:
        return []
    groups = wording.verdicts_by_fraction(results.proof)
    return [
        {"fraction": fraction, "verdict": wording.overall(group)}
        for fraction, group in groups.items()
    ]


def _measure(name: str, found: Estimate) -> dict[str, Any]:
    floor = found.floor or Estimate(math.nan, math.nan, math.nan, 0)
    plain = asdict(found)
    del plain["floor"]
    ends = {f"floor_{key}": getattr(floor, key) for key in ("value", "low", "high", "n")}
    reading, _ = wording.against_floor(name, found)
    return {"measure": name, "family": wording.family(name), **plain, **ends, "reading": reading}


def _arm(point: Any) -> dict[str, Any]:
    plain = asdict(point)
    values = plain.pop("values")
    return {**plain, "repeats": len(values), "label": point.label}


def _comparison(found: Any) -> dict[str, Any]:
    plain = asdict(found)
    estimate = plain.pop("estimate")
    kept = ("value", "low", "high", "n", "unit", "method", "warning")
    return {**plain, **{key: estimate[key] for key in kept}}


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not isinstance(value, (list, dict))}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_finite(row) for row in rows)
    return text.getvalue()


def _finite(value: Any) -> Any:
    """Numbers that are not finite become None, which JSON writes as null and CSV as nothing."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
