"""First frames are drawn, filtered and kept; then clips are asked for by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medgen.data.splits import load
from medgen.data.synthetic import SyntheticDataset
from medgen.disk import locked
from medgen.model import GenerativeModel
from medgen.rng import derive
from medgen.synthesis.draw import LOCK, Progress, synthesize
from medgen.synthesis.filters import Filters
from medgen.synthesis.plan import Plan
from medgen.synthesis.unit import FIRST_FRAMES
from medgen.synthesis.verify import read_dataset
from medgen.types import Batch


def with_first_frames(
    model: GenerativeModel,
    plan: Plan,
    out: Path,
    *,
    filters: Filters | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """A plan of clips by first frames that are drawn for it, as a dataset of their own.

    Frames are asked for what the clips are asked for, as far as their generator knows it. A clip
    whose frame no draw of the budget brought past the filters is left out.

    Args:
        model: of clips, with a generator of first frames.
        plan: of clips, without first frames.
        out: folder of the clips; frames are drawn into a folder within it, or found there.
        filters: fitted on real first frames; None lets all pass.
        workers: see `synthesize`.
        progress: told how many frames are done.

    Raises:
        ValueError: the model has no generator of first frames.
        OutputError: the folder holds other frames.
    """
    painter = model.first_frame
    if painter is None:
        raise ValueError("the model has no generator of first frames")
    asked = {name: getattr(plan.conditions, name) for name in painter.conditioner.reads}
    seeds = tuple(derive(seed, "first frame") for seed in plan.seeds)
    folder = out / FIRST_FRAMES
    with locked(out / LOCK):
        synthesize(
            painter,
            Plan(Batch(**asked), seeds),
            folder,
            filters=filters,
            workers=workers,
            progress=progress,
        )
    _, records = read_dataset(folder)
    places = [record["index"] for record in records]
    frames = load(SyntheticDataset(folder))
    assert frames.provenance is not None
    kept = plan.conditions.select(places)
    sources = kept.provenance or frames.provenance
    provenance = tuple(
        replace(source, condition={"frame": frame.id})
        for source, frame in zip(sources, frames.provenance, strict=True)
    )
    conditions = replace(kept, frame=frames.image, provenance=provenance)
    return replace(plan, conditions=conditions, seeds=tuple(plan.seeds[place] for place in places))
