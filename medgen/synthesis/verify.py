"""Does a dataset hold what its manifest says, and does its checkpoint still draw it?"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgen.errors import DataError
from medgen.model import GenerativeModel
from medgen.rng import derive
from medgen.synthesis.chain import broken_links
from medgen.synthesis.export import write_sample
from medgen.synthesis.kept import KEPT, read_kept
from medgen.synthesis.masks import read_masks
from medgen.synthesis.plan import Plan
from medgen.synthesis.unit import FIRST_FRAMES, draw_unit, drawn_by
from medgen.types import Batch, Schema


@dataclass(frozen=True)
class Verification:
    """What was checked and what was found wrong.

    Args:
        files: number of files whose SHA-256 was checked.
        redrawn: number of samples drawn again and compared.
        problems: one sentence each; empty means that all is as the manifest says.
        chain: the last link of the manifest's chain: kept elsewhere, it tells later whether a line
            was changed.
    """

    files: int
    redrawn: int
    problems: tuple[str, ...]
    chain: str


def verify(
    folder: Path, model: GenerativeModel | None, *, count: int = 8, seed: int = 0
) -> Verification:
    """Check the manifest's chain and every file of a dataset, and re-draw some samples.

    Args:
        folder: of the dataset.
        model: the generator that drew it; None checks files only.
        count: samples to draw again.
        seed: which samples are chosen.

    Raises:
        DataError: the folder holds no complete dataset, one without a hash chain, or one drawn by
            another checkpoint.
    """
    about, records = read_dataset(folder)
    if "chain" not in about:
        raise DataError(
            f"{folder}: its manifest carries no hash chain, as those of older versions; draw the "
            "dataset again to have it verified"
        )
    frames = _first_frames(folder, about, model, count=count, seed=seed)
    problems = [*frames.problems, *broken_links(records, about["plan"], about["chain"])]
    tables = {name: {"path": name, "sha256": digest} for name, digest in about["tables"].items()}
    listed = [{"files": tables}, *records]
    problems += _wrong_files(folder, listed)
    redrawn = frames.redrawn
    if model is not None:
        drew = {"checkpoint": about["checkpoint"], "weak model": about.get("weak")}
        weak = None if model.weak is None else model.weak.source
        for part, got in (("checkpoint", model.source), ("weak model", weak)):
            if got != drew[part]:
                raise DataError(f"{folder}: was drawn by {part} {drew[part]}, got {got}")
        if "memory" in about:  # cut into other slabs, a sample is rounded otherwise
            model.codec.memory = about["memory"]
        chosen = np.random.default_rng(derive(seed, "verify")).permutation(len(records))[:count]
        redrawn += len(chosen)
        problems += _drawn_differently(folder, model, records, about, sorted(chosen.tolist()))
    files = frames.files + sum(len(each["files"]) for each in listed)
    return Verification(files, redrawn, tuple(problems), about["chain"])


def _first_frames(
    folder: Path, about: dict[str, Any], model: GenerativeModel | None, **how: int
) -> Verification:
    """The same of the dataset of first frames that clips were drawn from, if they were."""
    if FIRST_FRAMES not in about:
        return Verification(0, 0, (), "")
    found = verify(folder / FIRST_FRAMES, None if model is None else model.first_frame, **how)
    problems = [f"{FIRST_FRAMES}: {problem}" for problem in found.problems]
    if found.chain != about[FIRST_FRAMES]["chain"]:
        problems.append(f"{FIRST_FRAMES}: is another dataset than the clips were drawn from")
    return replace(found, problems=tuple(problems))


def read_dataset(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`dataset.json` and the lines of `manifest.jsonl` of a complete dataset.

    Raises:
        DataError: the folder holds no complete dataset.
    """
    if not (folder / "dataset.json").is_file():
        raise DataError(
            f"{folder}: holds no complete synthetic dataset (dataset.json is not there)"
        )
    try:
        about = json.loads((folder / "dataset.json").read_text())
        lines = (folder / "manifest.jsonl").read_text().splitlines()
        return about, [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: dataset.json or manifest.jsonl cannot be read: {error}"
        ) from error


def _wrong_files(folder: Path, records: list[dict[str, Any]]) -> Iterable[str]:
    for record in records:
        for file in record["files"].values():
            path = folder / file["path"]
            if not path.is_file():
                yield f"{file['path']}: is missing"
            elif hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
                yield f"{file['path']}: has other bytes than were written"


def _drawn_differently(
    folder: Path,
    model: GenerativeModel,
    records: list[dict[str, Any]],
    about: dict[str, Any],
    chosen: list[int],
) -> Iterable[str]:
    size, frames = about["micro_batch"], about.get("frames")
    schema = drawn_by(model, frames)
    plan = _plan(folder, records, model, schema)
    units: dict[int, list[int]] = {}
    for row, record in enumerate(records):
        units.setdefault(record["index"] // size, []).append(row)
    for rows in units.values():
        if not set(rows) & set(chosen):
            continue
        # A sample depends on its place in its unit; places that filters left empty hold any other.
        places = {records[row]["index"] % size: row for row in rows}
        filled = [places.get(place, rows[0]) for place in range(max(places) + 1)]
        seeds = [plan.seeds[row] for row in filled]
        drawn = draw_unit(model, plan.conditions.select(filled), seeds, frames)
        for place, row in places.items():
            if row not in chosen:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                files = write_sample(Path(scratch), "again", drawn.select([place]), schema)
            if files["image"]["sha256"] != records[row]["files"]["image"]["sha256"]:
                yield f"{records[row]['id']}: drawn again from its seed, it is another image"


def _plan(
    folder: Path, records: list[dict[str, Any]], model: GenerativeModel, schema: Schema
) -> Plan:
    """The plan that a manifest and the conditions kept beside it tell of.

    Raises:
        DataError: it asked for ECGs, first frames or reports that the dataset does not hold.
    """
    asked = [record["condition"] for record in records]
    masks_asked = not model.schema.mask_channels or any("mask" in a for a in asked)
    kept = [record["files"].get("condition") for record in records]
    known: dict[str, Any] = read_kept([folder / file["path"] for file in kept if file is not None])
    lacks = [name for name in KEPT if any(name in a for a in asked) and name not in known]
    if lacks or (None in kept and known) or any(isinstance(a.get("report"), dict) for a in asked):
        raise DataError(
            f"{folder}: its samples were asked for with ECGs, first frames or reports of other "
            "studies, which it does not hold, so none can be drawn again; verify its files alone, "
            "without a model"
        )
    if schema.exclusive and any("finding" in a for a in asked):
        rows = [
            [int(a["finding"] == name) if a["finding"] else -1 for name in schema.findings]
            for a in asked
        ]
        known["label"] = torch.tensor(rows)
    elif any("findings" in a for a in asked):
        known["label"] = torch.tensor(
            [[a["findings"].get(n, -1) for n in schema.findings] for a in asked]
        )
    if any("scalars" in a for a in asked):
        nan = float("nan")
        known["scalar"] = torch.tensor(
            [[a["scalars"].get(n, nan) for n in schema.scalars] for a in asked]
        )
    if any("report" in a for a in asked):
        known["text"] = tuple(a["report"] for a in asked)
    if any("spacing" in a for a in asked):
        known["spacing"] = torch.tensor([a["spacing"] for a in asked])
    if masks_asked and any("mask" in record["files"] for record in records):
        known["mask"] = read_masks([folder / r["files"]["mask"]["path"] for r in records], schema)
    seeds = tuple(record["seed"] for record in records)
    return Plan(Batch(**known), seeds)
