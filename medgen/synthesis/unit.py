"""A unit of a plan, one micro-batch: how it is drawn, and what its samples are called and seeded.

A unit is drawn on one thread with a fixed micro-batch, so that its bytes do not depend on order,
restarts, workers or processes (on one device type and library version).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from medgen.model import GenerativeModel
from medgen.rng import derive
from medgen.synthesis.export import condition_of, write_sample
from medgen.synthesis.long_clips import sample_long
from medgen.synthesis.plan import Plan
from medgen.types import Batch, Provenance, Schema

FIRST_FRAMES = "first_frames"
"""Where, in the folder of a dataset of clips, the dataset of their first frames stands."""


def units_of(plan: Plan, micro_batch: int) -> list[range]:
    """The units of a plan: indices of their samples, in order."""
    starts = range(0, len(plan), micro_batch)
    return [range(start, min(start + micro_batch, len(plan))) for start in starts]


def drawn_by(model: GenerativeModel, frames: int | None) -> Schema:
    """What the samples of a plan hold, whose clips may have more frames than the model learned."""
    schema = model.drawn
    return schema if frames is None else replace(schema, size=(frames, *schema.size[1:]))


def draw_unit(
    model: GenerativeModel, conditions: Batch, seeds: Sequence[int], frames: int | None = None
) -> Batch:
    """The studies of one unit, in their places, on one thread; images (n c *s) in [-1, 1]."""
    with one_thread():
        if frames is not None:
            if not len(conditions):
                conditions = Batch(provenance=(Provenance("", True, model.source),) * len(seeds))
            return sample_long(model, conditions, list(seeds), frames=frames)
        return model.sample(conditions, list(seeds))


@contextmanager
def one_thread() -> Iterator[None]:
    """Arithmetic on one thread, so that sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seed_of(seed: int, attempt: int) -> int:
    """The seed of a sample's further attempts; the first is the plan's."""
    return derive(seed, "attempt", attempt) if attempt else seed


def sample_name(index: int) -> str:
    """The fresh identifier of sample `index`: it tells nothing about a patient."""
    return f"synthetic-{index:06d}"


def record_sample(
    model: GenerativeModel, plan: Plan, out: Path, index: int, *, drawn: Batch, seed: int
) -> dict[str, Any]:
    """Write one sample's files below a folder; returns its line of the manifest."""
    schema = drawn_by(model, plan.frames)
    condition = condition_of(plan.conditions, index, schema)
    if model.schema.mask_channels and plan.conditions.mask is not None:
        condition["mask"] = "given"  # else the mask beside the image was drawn with it
    provenance = Provenance(
        id=sample_name(index),
        synthetic=True,
        source=model.source,
        seed=seed,
        condition=condition,
    )
    if not _frame_is_synthetic(plan.conditions, index):
        drawn = replace(drawn, frame=None)
    files = write_sample(out, sample_name(index), drawn, schema)
    return {**asdict(provenance), "index": index, "files": files}


def _frame_is_synthetic(conditions: Batch, index: int) -> bool:
    """Whether the first frame asked for was drawn by a cascade: a real one is a patient's image."""
    source = None if conditions.provenance is None else conditions.provenance[index]
    return source is not None and "frame" in (source.condition or {})
