"""What a synthetic dataset will hold: one condition and one seed a sample, fixed before drawing."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.data.splits import load
from medgen.errors import DataError, did_you_mean
from medgen.model import GenerativeModel
from medgen.protocols import Dataset
from medgen.rng import derive
from medgen.synthesis.contract import Geometry, asked_spacing, geometry_of, tilt_of
from medgen.synthesis.masks import read_masks
from medgen.types import Batch, Schema


@dataclass(frozen=True)
class Plan:
    """Conditions and seeds of a dataset's samples.

    Args:
        conditions: what is asked for, one row a sample; no images.
        seeds: one a sample.
        frames: of clips that are longer than those that the generator learned from; None is as
            long as those.
    """

    conditions: Batch
    seeds: tuple[int, ...]
    frames: int | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def digest(self) -> str:
        """SHA-256 of seeds and conditions: two plans draw the same dataset or differ here."""
        digest = hashlib.sha256(repr(self.seeds).encode())
        if self.frames is not None:
            digest.update(f"frames {self.frames}".encode())
        for field in fields(self.conditions):
            value = getattr(self.conditions, field.name)
            if isinstance(value, Tensor):
                digest.update(f"{field.name}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.contiguous().numpy().tobytes())
            elif field.name == "text" and value is not None:
                digest.update(repr(value).encode())
        return f"sha256:{digest.hexdigest()}"


def describe(dataset: Dataset, conditions: Batch) -> dict[str, Any]:
    """Statistics of training studies that later plans draw from or are held against.

    Label rows, quantiles of scalars, and the geometry.

    Args:
        dataset: the training studies.
        conditions: their conditions, in one batch.
    """
    found: dict[str, Any] = {
        "studies": len(dataset),
        "patients": len({study.patient for study in dataset.studies}),
        **geometry_of(dataset.schema, conditions),
    }
    if conditions.label is not None and dataset.schema.findings:
        known = conditions.label[(conditions.label >= 0).all(dim=1)]
        rows, counts = torch.unique(known, dim=0, return_counts=True)
        found["labels"] = {"rows": rows.tolist(), "counts": counts.tolist()}
    if conditions.scalar is not None:
        shares = torch.linspace(0, 1, 101)
        columns = [column[~column.isnan()] for column in conditions.scalar.T]
        found["scalars"] = [
            torch.quantile(column, shares).tolist() if len(column) else [] for column in columns
        ]
    return found


def plan(
    model: GenerativeModel,
    *,
    count: int,
    labels: str | Mapping[str, float] = "balanced",
    masks: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    field_of_view: Sequence[float] | None = None,
    seed: int = 0,
) -> Plan:
    """A plan of `count` samples of a trained model; see `make_plan`.

    Args:
        model: trained.
        count: number of samples.
        labels: see `make_plan`.
        masks: see `make_plan`.
        spacing: mm along each axis to ask for; None takes those of the training studies.
        field_of_view: the same as mm that a whole study covers along each axis.
        seed: see `make_plan`.

    Raises:
        DataError: as `make_plan`; or spacing or field of view lie outside the trained range.
    """
    geometry = Geometry.of(model.schema, model.statistics)
    rows = asked_spacing(geometry, spacing=spacing, field_of_view=field_of_view)
    if "spacing" not in model.conditioner.reads:
        rows = None
    elif rows is None and geometry is not None:
        rows = torch.tensor(geometry.spacings)
    return make_plan(
        model.drawn,
        model.statistics,
        count=count,
        labels=labels,
        masks=masks,
        spacings=rows,
        seed=seed,
    )


def make_plan(
    schema: Schema,
    statistics: Mapping[str, Any],
    *,
    count: int,
    labels: str | Mapping[str, float] = "balanced",
    masks: Tensor | None = None,
    spacings: Tensor | None = None,
    seed: int = 0,
) -> Plan:
    """A plan of `count` samples.

    Args:
        schema: what can be asked for.
        statistics: of the training studies, from `describe`.
        count: number of samples.
        labels: "balanced" (every finding, and none, as often as any other), "prevalence" (as in the
            training studies), or finding -> prevalence.
        masks: (m *s) masks to ask for, drawn evenly; None asks for no mask.
        spacings: (m axes) spacings to ask for, in mm, drawn evenly; None asks for none.
        seed: everything random in the plan, and every sample's seed, derives from it.

    Raises:
        DataError: an unknown finding or rule, or a prevalence outside [0, 1].
    """
    rng = np.random.default_rng(derive(seed, "plan"))
    conditions = Batch(
        label=_labels(schema, statistics, labels, count, rng),
        scalar=_scalars(schema, statistics, count, rng),
        mask=None if masks is None else masks[_even(len(masks), count, rng)],
        spacing=None if spacings is None else spacings[_even(len(spacings), count, rng)],
    )
    return Plan(conditions, tuple(derive(seed, index) for index in range(count)))


def plan_like(model: GenerativeModel, dataset: Dataset, *, count: int, seed: int = 0) -> Plan:
    """A plan that asks a model for the conditions of real studies, each about equally often.

    Label, scalars, mask, ECG and first frame of one study stay together, so what is asked for is
    possible; the plan knows which study they are of. First frames that the model draws are not
    asked for.

    Raises:
        DataError: a study has a geometry that the model was not trained on.
    """
    rng = np.random.default_rng(derive(seed, "plan"))
    chosen = _even(len(dataset), count, rng).tolist()
    kept = sorted(set(chosen))
    source = load(dataset, kept).conditions(dataset.schema)
    geometry = Geometry.of(model.schema, model.statistics)
    if geometry is not None and source.spacing is not None:
        geometry.require(source.spacing, "studies to draw like: ")
    if geometry is not None and source.affine is not None:
        geometry.require_tilt(tilt_of(source.affine), "studies to draw like: ")
    rows = source.select([kept.index(index) for index in chosen])
    drawn = () if model.first_frame is None else ("frame",)
    asked = {name: getattr(rows, name) for name in model.conditioner.reads.difference(drawn)}
    volumes = len(model.schema.size) == 3 and not model.schema.time
    if volumes and "mask" in asked and not model.schema.spacing:
        asked["spacing"] = rows.spacing  # a volume that follows a mask has the mask's voxels
    conditions = Batch(**asked, provenance=rows.provenance)
    return Plan(conditions, tuple(derive(seed, index) for index in range(count)))


def plan_from_table(
    schema: Schema, table: Path, *, geometry: Geometry | None = None, seed: int = 0
) -> Plan:
    """A plan from a CSV file: one sample a row.

    Columns: the findings (0, 1, blank for unknown) or `finding` if they are exclusive, the scalars,
    `report`, `mask` (a file beside the table), `spacing` (mm along each axis, such as "1 1 2.5"),
    `seed`. All may be absent; others are errors.

    Args:
        schema: what can be asked for.
        table: the file.
        geometry: of the training studies, against which spacings and masks are held.
        seed: of the samples without one.

    Raises:
        DataError: an unknown column or value, an unreadable mask, or a geometry that the model was
            not trained on.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read: {error}") from error
    findings = ["finding"] if schema.exclusive else list(schema.findings)
    known = [*findings, *schema.scalars, *["report"] * schema.text, "mask", "spacing", "seed"]
    for column in columns:
        if column not in known:
            raise DataError(f"{table}: unknown column '{column}'. {did_you_mean(column, known)}")
    if not rows:
        raise DataError(f"{table}: holds no rows; write one row a sample")
    label = scalar = mask = spacing = None
    if any(column in findings for column in columns):
        label = torch.tensor([_label_row(schema, row, table, i) for i, row in enumerate(rows)])
    if any(column in schema.scalars for column in columns):
        scalar = torch.tensor([_scalar_row(schema, row, table, i) for i, row in enumerate(rows)])
    if "mask" in columns:
        mask = read_masks([table.parent / row["mask"] for row in rows], schema, geometry)
    if "spacing" in columns:
        asked = [_spacing_row(row, table, i) for i, row in enumerate(rows)]
        each = [asked_spacing(geometry, spacing=row) for row in asked]
        spacing = torch.cat([row for row in each if row is not None])
    seeds = [int(row["seed"]) if row.get("seed") else derive(seed, i) for i, row in enumerate(rows)]
    text = tuple(row["report"] or "" for row in rows) if "report" in columns else None
    conditions = Batch(label=label, scalar=scalar, text=text, mask=mask, spacing=spacing)
    return Plan(conditions, tuple(seeds))


def _even(available: int, count: int, rng: np.random.Generator) -> Tensor:
    """`count` indices below `available`, each equally often but for the remainder, shuffled."""
    rounds = [rng.permutation(available) for _ in range(-(-count // available))]
    return torch.from_numpy(np.concatenate(rounds)[:count])


def _labels(
    schema: Schema,
    statistics: Mapping[str, Any],
    rule: str | Mapping[str, float],
    count: int,
    rng: np.random.Generator,
) -> Tensor | None:
    if not schema.findings:
        return None
    if isinstance(rule, Mapping):
        return _asked(schema, rule, count, rng)
    if rule not in ("balanced", "prevalence"):
        raise DataError(f"unknown rule '{rule}' for labels. Known: balanced, prevalence.")
    rows = np.array(statistics["labels"]["rows"], dtype=np.int64)
    weights = np.array(statistics["labels"]["counts"], dtype=np.float64)
    if rule == "prevalence":
        return torch.from_numpy(rows[rng.choice(len(rows), count, p=weights / weights.sum())])
    groups = [rows[:, k] == 1 for k in range(rows.shape[1])]
    if not schema.exclusive:
        groups.append((rows == 0).all(axis=1))
    groups = [group for group in groups if group.any()]
    chosen = np.empty(count, dtype=np.int64)
    for place, group in enumerate(_even(len(groups), count, rng).tolist()):
        shares = weights * groups[group]
        chosen[place] = rng.choice(len(rows), p=shares / shares.sum())
    return torch.from_numpy(rows[chosen])


def _asked(
    schema: Schema, prevalence: Mapping[str, float], count: int, rng: np.random.Generator
) -> Tensor:
    for name, share in prevalence.items():
        if name not in schema.findings:
            hint = did_you_mean(name, schema.findings)
            raise DataError(f"unknown finding '{name}' in the prevalences. {hint}")
        if not 0 <= share <= 1:
            raise DataError(f"prevalence of '{name}': expected a share in [0, 1], got {share}")
    shares = np.array([prevalence.get(name, 0.0) for name in schema.findings])
    if not schema.exclusive:
        return torch.from_numpy((rng.random((count, len(shares))) < shares).astype(np.int64))
    if abs(shares.sum() - 1) > 1e-6:
        raise DataError(f"prevalences of exclusive findings must sum to 1, got {shares.sum():g}")
    drawn = rng.choice(len(shares), count, p=shares / shares.sum())
    return torch.nn.functional.one_hot(torch.from_numpy(drawn), len(shares))


def _scalars(
    schema: Schema, statistics: Mapping[str, Any], count: int, rng: np.random.Generator
) -> Tensor | None:
    if not schema.scalars:
        return None
    columns = []
    for quantiles in statistics["scalars"]:
        shares = rng.random(count)
        grid = np.linspace(0, 1, len(quantiles)) if quantiles else None
        columns.append(
            np.full(count, np.nan) if grid is None else np.interp(shares, grid, quantiles)
        )
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def _spacing_row(row: Mapping[str, str], table: Path, index: int) -> list[float]:
    text = row.get("spacing") or ""
    try:
        return [float(part) for part in text.split()]
    except ValueError:
        raise DataError(
            f"{table}: row {index + 2}: 'spacing' is '{text}'; expected mm along each axis, such "
            "as 1 1 2.5"
        ) from None


def _label_row(schema: Schema, row: Mapping[str, str], table: Path, index: int) -> list[int]:
    where = f"{table}: row {index + 2}"
    if schema.exclusive:
        name = row["finding"].strip()
        if not name:
            return [-1] * len(schema.findings)
        if name not in schema.findings:
            hint = did_you_mean(name, schema.findings)
            raise DataError(f"{where}: unknown finding '{name}'. {hint}")
        return [int(name == known) for known in schema.findings]
    values = []
    for name in schema.findings:
        text = (row.get(name) or "").strip()
        if text not in ("", "0", "1", "-1"):
            raise DataError(f"{where}: '{name}' is '{text}'; expected 0, 1 or blank for unknown")
        values.append(int(text) if text else -1)
    return values


def _scalar_row(schema: Schema, row: Mapping[str, str], table: Path, index: int) -> list[float]:
    values = []
    for name in schema.scalars:
        text = (row.get(name) or "").strip()
        try:
            values.append(float(text) if text else float("nan"))
        except ValueError:
            where = f"{table}: row {index + 2}"
            raise DataError(f"{where}: '{name}' is '{text}'; expected a number") from None
    return values
