"""Samples to files: one image and mask a sample, then the tables that make a dataset of them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medgen.data.export import write_ecg, write_image, write_mask
from medgen.data.geometry import centred_affine
from medgen.disk import write_bytes
from medgen.synthesis.chain import chained
from medgen.synthesis.kept import keep
from medgen.types import Batch, Schema, digest_of_values


def condition_of(conditions: Batch, index: int, schema: Schema) -> dict[str, Any]:
    """What sample `index` was asked for, in names and values; unknown findings are left out.

    Of an ECG, a first frame or a report of another study it tells whose it is and the SHA-256 of
    its values; `kept.py` keeps what may be kept. A report that was written to be asked for stands
    as it is.
    """
    asked: dict[str, Any] = {}
    if conditions.label is not None:
        row = conditions.label[index].tolist()
        if schema.exclusive:
            present = [name for name, value in zip(schema.findings, row, strict=True) if value == 1]
            asked["finding"] = present[0] if present else None
        else:
            pairs = zip(schema.findings, row, strict=True)
            asked["findings"] = {name: value for name, value in pairs if value >= 0}
    if conditions.scalar is not None:
        values = [float(value) for value in conditions.scalar[index]]
        pairs = zip(schema.scalars, values, strict=True)
        asked["scalars"] = {name: value for name, value in pairs if value == value}
    for name in ("ecg", "frame"):
        values = getattr(conditions, name)
        if values is not None:
            asked[name] = {"sha256": digest_of_values(values[index])}
            if conditions.provenance is not None:
                source = conditions.provenance[index]
                asked[name]["of"] = (source.condition or {}).get(name, source.id)
    if conditions.text is not None:
        asked["report"] = _report(conditions, index)
    if conditions.spacing is not None:
        asked["spacing"] = conditions.spacing[index].tolist()
    return asked


def _report(conditions: Batch, index: int) -> str | dict[str, str]:
    text = conditions.text[index] if conditions.text else ""
    if conditions.provenance is None:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"sha256": digest, "of": conditions.provenance[index].id}


def write_sample(
    folder: Path, name: str, drawn: Batch, schema: Schema
) -> dict[str, dict[str, str]]:
    """Write one sample's files.

    Args:
        folder: of the dataset.
        name: of the sample.
        drawn: the sample, with its mask, and the ECG, first frame and spacing that it was asked
            for, if any; the spacing of others is the schema's.
        schema: of the samples.

    Returns:
        For "image", "mask", "ecg" and "condition" (`kept.py`): path within the dataset and SHA-256
        of the file.
    """
    assert drawn.image is not None
    image, where = drawn.image[0], None
    if drawn.spacing is not None and len(schema.size) == 3 and not schema.time:
        where = torch.from_numpy(centred_affine(schema.size, drawn.spacing[0].tolist()))
    files = {"image": write_image(folder / "images" / name, image, schema, where)}
    if drawn.mask is not None:
        files["mask"] = write_mask(folder / "masks" / name, drawn.mask[0], schema, where)
    if drawn.ecg is not None:
        files["ecg"] = write_ecg(folder / "ecgs" / name, drawn.ecg[0], schema)
    kept = keep(folder / "conditions" / name, drawn)
    if kept is not None:
        files["condition"] = kept
    return {
        kind: {
            "path": str(path.relative_to(folder)),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for kind, path in files.items()
    }


def write_tables(
    folder: Path,
    schema: Schema,
    records: list[dict[str, Any]],
    *,
    rejected: list[dict[str, Any]],
    about: Mapping[str, Any],
    recipe_yaml: str,
) -> None:
    """Write what makes files a dataset; `dataset.json` comes last, so its presence means complete.

    Args:
        folder: of the dataset.
        schema: of its studies.
        records: one manifest line a sample, in order.
        rejected: what filters rejected: plan index, seed, reason; written if filters judged.
        about: provenance of the dataset as a whole.
        recipe_yaml: the resolved recipe of the generator.
    """
    lines = chained(records, about["plan"])
    tables = {
        "labels.csv": _table(schema, records).encode(),
        "recipe.yaml": recipe_yaml.encode(),
        "README.md": _readme(schema, records, about).encode(),
    }
    if "filters" in about:
        tables["rejected.jsonl"] = _lines(rejected)
    write_bytes(folder / "manifest.jsonl", _lines(lines))
    for name, content in tables.items():
        write_bytes(folder / name, content)
    dataset = {
        **about,
        "schema": asdict(schema),
        "count": len(records),
        "tables": {name: hashlib.sha256(content).hexdigest() for name, content in tables.items()},
        "chain": lines[-1]["chain"],
        "synthetic": True,
    }
    write_bytes(folder / "dataset.json", (json.dumps(dataset, indent=2) + "\n").encode())


def _lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode()


def _table(schema: Schema, records: list[dict[str, Any]]) -> str:
    kinds = [k for k in ("mask", "ecg") if any(k in record["files"] for record in records)]
    findings = ("finding",) if schema.exclusive else schema.findings
    columns = ["image", *kinds, "patient", "split", *findings]
    columns += schema.scalars
    written = any(isinstance(record["condition"].get("report"), str) for record in records)
    columns += ["report"] * written
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        asked = record["condition"]
        row: dict[str, Any] = {"image": record["files"]["image"]["path"]}
        row |= {kind: record["files"][kind]["path"] for kind in kinds}
        row |= {"patient": record["id"], "split": "train"}
        if schema.exclusive:
            row["finding"] = asked.get("finding") or ""
        row |= asked.get("findings", {})
        row |= asked.get("scalars", {})
        if written:
            row["report"] = asked["report"]
        writer.writerow(row)
    return text.getvalue()


def _readme(schema: Schema, records: list[dict[str, Any]], about: Mapping[str, Any]) -> str:
    findings = ", ".join(schema.findings) or "none"
    return f"""# Synthetic studies

Every image in this folder is **synthetic**: drawn by a generator, not measured on a person. Use it
for research and to train models; never for diagnosis, and never in a validation or test set.

- samples: {len(records)}{_filtered(about)}
- size: {" x ".join(map(str, schema.size))}, {schema.channels} channel(s){_unit(schema)}
- findings: {findings}
- generator: recipe `{about["recipe"]}`, checkpoint `{about["checkpoint"]}`
- `labels.csv`: one line a sample; medgen's `folder` reader reads it
- `manifest.jsonl`: one line a sample: seed, condition, checkpoint, SHA-256 of its files, and a link
  to the line before it
{_kept(records)}
`medgen verify` re-draws samples of this folder from their seeds and compares them byte for byte.
"""


def _kept(records: list[dict[str, Any]]) -> str:
    """What the files of conditions are, and whose."""
    if not any("condition" in record["files"] for record in records):
        return ""
    return (
        "- `conditions/`: the ECG and the first frame that a sample was asked for, as safetensors; "
        "where\n  the manifest names a real clip as their source they are a **person's**, under "
        "its licence\n"
    )


def _unit(schema: Schema) -> str:
    """How the files store intensities, and mm between voxels where they are known."""
    if schema.time and len(schema.size) == 1:
        return f", {1 / schema.spacing[0]:g} samples a second, mV in steps of 1 uV"
    if schema.time:
        return f", {1 / schema.spacing[0]:g} frames a second, 8 bit"
    if len(schema.size) == 2:
        return ", 8 bit"
    spacing = f", {' x '.join(f'{mm:g}' for mm in schema.spacing)} mm" if schema.spacing else ""
    low, high = schema.window or (-1, 1)
    return f"{spacing}, intensities from {low:g} to {high:g}"


def _filtered(about: Mapping[str, Any]) -> str:
    """What the filters did, in words."""
    if "filters" not in about:
        return ""
    reasons = ", ".join(f"{reason} {count}" for reason, count in about["rejected"].items())
    return (
        f" of {about['asked']} asked for; draws that filters rejected: {reasons or 'none'} "
        "(`rejected.jsonl`)"
    )
