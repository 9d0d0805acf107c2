"""The sample factory: a plan to a dataset on disk, exactly once, whatever happens in between.

The unit of work is a micro-batch of the plan. A unit's files are written, then a record that says
so; near-duplicates are judged and tables written when every unit has its record. A rerun draws only
what has no record.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medgen.disk import locked, sweep, write_bytes
from medgen.errors import DataError, OutputError
from medgen.model import GenerativeModel
from medgen.nn.attention import resolved_backend
from medgen.synthesis.duplicates import without_duplicates
from medgen.synthesis.export import write_tables
from medgen.synthesis.filters import Filters
from medgen.synthesis.plan import Plan
from medgen.synthesis.unit import (
    FIRST_FRAMES,
    draw_unit,
    drawn_by,
    one_thread,
    record_sample,
    seed_of,
    units_of,
)
from medgen.synthesis.verify import read_dataset
from medgen.types import Batch

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""
LOCK = ".lock"
"""Held by the process that assembles a dataset, lest two that finish at once do."""


@dataclass(frozen=True)
class Drawn:
    """What one call of the factory did.

    Args:
        folder: of the dataset.
        count: samples drawn by this call.
        seconds: that took.
    """

    folder: Path
    count: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images a second; 0 if none was drawn."""
        return self.count / self.seconds if self.count else 0.0


def synthesize(
    model: GenerativeModel,
    plan: Plan,
    out: Path,
    *,
    filters: Filters | None = None,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Drawn:
    """Draw the samples of a plan into a folder; run again to resume.

    A sample that a filter rejects is drawn again from a further seed of its own, as often as the
    budget allows; what never passed is left out, and `dataset.json` says how many.

    Args:
        model: a trained model, from `from_pretrained`.
        plan: what to draw.
        out: folder of the dataset.
        filters: what rejects samples; None lets all pass.
        workers: threads that draw units side by side; None means one a core on a CPU, else one.
        shard: (index, count): draw every count-th unit; whoever finishes last writes the tables.
        progress: told how many samples are done.

    Raises:
        OutputError: the folder holds something else or cannot be written.
    """
    about = _about(model, plan, filters) | _first_frames(out)
    if _claim(out, about):
        _tidy(out)
        return Drawn(out, 0, 0.0)
    units = units_of(plan, model.micro_batch)
    mine = [k for k in range(shard[0], len(units), shard[1]) if not _record(out, k).is_file()]
    before = done = sum(len(unit) for k, unit in enumerate(units) if _record(out, k).is_file())
    model.eval()
    workers = workers or (os.cpu_count() or 1 if about["device"] == "cpu" else 1)
    began = time.perf_counter()
    for k in _side_by_side(
        mine, workers, lambda k: _draw(model, plan, units[k], out, unit=k, filters=filters)
    ):
        done += len(units[k])
        if progress is not None:
            progress(done, len(plan))
    _assemble(model, plan, out, about=about, units=units, filters=filters)
    return Drawn(out, done - before, time.perf_counter() - began)


def _about(model: GenerativeModel, plan: Plan, filters: Filters | None) -> dict[str, Any]:
    from medgen import __version__

    device = next(model.backbone.parameters()).device
    parts: dict[str, Any] = {} if filters is None else {"filters": filters.about()}
    if plan.frames is not None:
        parts["frames"] = plan.frames
    if model.weak is not None:
        parts["weak"] = model.weak.source
    decoding = model.decoding()
    if decoding is not None and decoding.cuts:
        parts["memory"] = decoding.budget
    return parts | {
        "checkpoint": model.source,
        "plan": plan.digest,
        "recipe": model.recipe["name"],
        "sampler": model.recipe["sampler"],
        "guidance": model.recipe["guidance"],
        "generator_saw": {key: model.statistics[key] for key in ("studies", "patients")},
        "micro_batch": model.micro_batch,
        "device": device.type,
        "attention": resolved_backend(device),
        "versions": {"medgen": __version__, "torch": torch.__version__},
    }


def _first_frames(out: Path) -> dict[str, Any]:
    """Which dataset of first frames clips are drawn from, if one stands in their folder."""
    if not (out / FIRST_FRAMES / "dataset.json").is_file():
        return {}
    about, _ = read_dataset(out / FIRST_FRAMES)
    return {FIRST_FRAMES: {key: about[key] for key in ("checkpoint", "plan", "count", "chain")}}


def _claim(out: Path, about: dict[str, Any]) -> bool:
    """Make the folder ours; True if the dataset is complete already.

    Raises:
        OutputError: another dataset, or something else, stands there.
    """
    if _holds(out / "dataset.json", about):
        return True
    if not _is_free(out):
        raise OutputError(
            f"{out}: is not empty and holds no dataset of medgen; choose another folder"
        )
    with locked(out / LOCK):
        begun = out / "parts" / "about.json"
        if not _holds(begun, about):
            write_bytes(begun, json.dumps(about).encode())
    return False


def _holds(file: Path, about: dict[str, Any]) -> bool:
    """Whether a dataset was completed or begun, the same one as now.

    Raises:
        OutputError: it is another one.
    """
    if not file.is_file():
        return False
    held = json.loads(file.read_text())
    named = (*about, "filters", "frames")  # absent where nothing was filtered, or is long
    changed = [key for key in dict.fromkeys(named) if held.get(key) != about.get(key)]
    if changed:
        raise OutputError(
            f"{file.parent}: holds a dataset drawn with another {', '.join(changed)}; "
            "choose another folder with --out"
        )
    return True


def _is_free(out: Path) -> bool:
    """Whether nothing stands there but a dataset that was begun, or is about to be."""
    if (out / "parts" / "about.json").is_file():
        return True
    ours = (LOCK, "parts")
    held = [path for path in out.rglob("*") if path.name not in ours]
    held = [path for path in held if path.relative_to(out).parts[0] != FIRST_FRAMES]
    return all(path.parent.name == "parts" and path.name.startswith(".about.") for path in held)


def _record(out: Path, unit: int) -> Path:
    return out / "parts" / f"{unit:06d}.json"


def _side_by_side(units: list[int], workers: int, work: Callable[[int], None]) -> Iterator[int]:
    if workers <= 1:
        for unit in units:
            work(unit)
            yield unit
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(work, unit): unit for unit in units}
        try:
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        finally:
            pool.shutdown(cancel_futures=True)


def _draw(
    model: GenerativeModel,
    plan: Plan,
    places: range,
    out: Path,
    *,
    unit: int,
    filters: Filters | None,
) -> None:
    """Draw one unit until every sample passes or the budget is spent; write files and record."""
    conditions = plan.conditions.select(places)
    records: dict[int, dict[str, Any]] = {}
    rejected: list[dict[str, Any]] = []
    for attempt in range(1 if filters is None else filters.budget):
        seeds = [seed_of(plan.seeds[index], attempt) for index in places]
        drawn = draw_unit(model, conditions, seeds, plan.frames)
        reasons = _reasons(filters, drawn)
        for place, index in enumerate(places):
            if index in records:
                continue
            if reasons[place]:
                rejected.append({"index": index, "seed": seeds[place], "reason": reasons[place]})
            else:
                one = drawn.select([place])
                records[index] = record_sample(
                    model, plan, out, index, drawn=one, seed=seeds[place]
                )
        if len(records) == len(places):
            break
    kept = [records[index] for index in sorted(records)]
    write_bytes(_record(out, unit), json.dumps({"samples": kept, "rejected": rejected}).encode())


def _reasons(filters: Filters | None, drawn: Batch) -> list[str]:
    """Why each study is rejected; empty for those that pass."""
    if filters is None:
        return [""] * len(drawn)
    with one_thread():
        return filters.reasons(drawn)


def _assemble(
    model: GenerativeModel,
    plan: Plan,
    out: Path,
    *,
    about: dict[str, Any],
    units: list[range],
    filters: Filters | None,
) -> None:
    """Write the tables if every unit has its record, then drop the records."""
    from medgen.document import dump_yaml

    with locked(out / LOCK):
        if (out / "dataset.json").is_file():
            return
        if not all(_record(out, k).is_file() for k in range(len(units))):
            return
        parts = [json.loads(_record(out, k).read_text()) for k in range(len(units))]
        records = [record for part in parts for record in part["samples"]]
        rejected = [line for part in parts for line in part["rejected"]]
        if filters is not None and filters.duplicates is not None:
            records, repeats = without_duplicates(model, plan, out, filters=filters, drawn=records)
            rejected += repeats
        if filters is not None:
            about = about | _judged(out, about, len(plan), len(records), rejected)
        schema = drawn_by(model, plan.frames)
        if not any("mask" in record["files"] for record in records):
            schema = replace(schema, mask_classes=())
        yaml = dump_yaml(model.recipe)
        write_tables(out, schema, records, rejected=rejected, about=about, recipe_yaml=yaml)
    _tidy(out)


def _judged(
    out: Path, about: dict[str, Any], asked: int, passed: int, rejected: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the filters did, in numbers."""
    if not passed:
        raise DataError(
            f"{out}: the filters let none of {asked} samples pass, at "
            f"{about['filters']['budget']} draws each. Raise their share, or train longer"
        )
    counts = Counter(line["reason"] for line in rejected)
    return {"asked": asked, "unfilled": asked - passed, "rejected": dict(counts)}


def _tidy(out: Path) -> None:
    """Remove what only drawing needed."""
    shutil.rmtree(out / "parts", ignore_errors=True)
    sweep(out)
    with suppress(OSError):
        (out / LOCK).unlink()
