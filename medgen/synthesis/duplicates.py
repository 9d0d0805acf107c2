"""Near-duplicates among samples, refused when all are drawn.

Whether a sample repeats another depends on that other, so it is judged apart from the drawing, in
one pass in the order of the plan: a sample is refused if it is too near to one accepted before it,
and drawn again from its further seeds as the budget allows. What a seed draws still depends on
checkpoint, condition and seed alone; which of its seeds a sample keeps depends on the samples that
come before it in the plan as well, but not on shards, workers or restarts.

The pass changes nothing until it has written down what it decided, and then only follows that: it
can be interrupted anywhere and run again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medgen.data.files import read_image
from medgen.disk import write_bytes
from medgen.model import GenerativeModel
from medgen.synthesis.filters import Accepted, Filters
from medgen.synthesis.plan import Plan
from medgen.synthesis.unit import draw_unit, one_thread, record_sample, seed_of, units_of
from medgen.types import Batch

Records = list[dict[str, Any]]


def without_duplicates(
    model: GenerativeModel, plan: Plan, out: Path, *, filters: Filters, drawn: Sequence[Any]
) -> tuple[Records, Records]:
    """The manifest lines and rejections of a dataset without near-duplicates; files follow suit.

    Args:
        model: that drew the samples.
        plan: what was drawn.
        out: folder of the dataset.
        filters: with a filter for duplicates.
        drawn: manifest lines of the samples that passed the other filters, in order.
    """
    decision = out / "parts" / "decision.json"
    fresh = out / "parts" / "fresh"
    if not decision.is_file():
        judged = _Pass(model, plan, out, fresh=fresh, filters=filters)
        kept = [line for line in map(judged.settled, drawn) if line is not None]
        made = {"samples": kept, "rejected": judged.rejected}
        write_bytes(decision, json.dumps(made).encode())
    made = json.loads(decision.read_text())
    kept = {line["index"]: line for line in made["samples"]}
    for line in drawn:
        if kept.get(line["index"]) != line:
            for file in line["files"].values():
                _follow(out / file["path"], fresh / file["path"], kept=line["index"] in kept)
    return made["samples"], made["rejected"]


def _follow(place: Path, fresh: Path, *, kept: bool) -> None:
    """Put the fresh file in place, unless that is done already, or remove what was refused."""
    if not kept:
        place.unlink(missing_ok=True)
    elif fresh.is_file():
        fresh.replace(place)


class _Pass:
    """One pass over the samples of a plan, in order."""

    def __init__(
        self, model: GenerativeModel, plan: Plan, out: Path, *, fresh: Path, filters: Filters
    ) -> None:
        self.model, self.plan, self.out, self.fresh = model, plan, out, fresh
        self.filters = filters
        assert filters.duplicates is not None
        self.accepted = Accepted(filters.duplicates, len(plan))
        self.rejected: Records = []

    def settled(self, line: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest line of a sample, or of its first further attempt that passes; else None."""
        index, seeds = line["index"], self._seeds(line["index"])
        if not self._refused(self.out, line):
            return line
        for seed in seeds[seeds.index(line["seed"]) + 1 :]:
            again = self._drawn_again(index, seed)
            if again is not None and not self._refused(self.fresh, again):
                return again
        return None

    def _seeds(self, index: int) -> list[int]:
        return [seed_of(self.plan.seeds[index], i) for i in range(self.filters.budget)]

    def _refused(self, folder: Path, line: dict[str, Any]) -> bool:
        """Whether a written sample repeats an accepted one; otherwise it is accepted itself."""
        pixels = read_image(folder / line["files"]["image"]["path"]).pixels
        with one_thread():
            reason = self.accepted.judge(torch.from_numpy(pixels)[None] * 2 - 1)
        if reason:
            self._reject(line["index"], line["seed"], reason)
        return bool(reason)

    def _drawn_again(self, index: int, seed: int) -> dict[str, Any] | None:
        """The line of another attempt, its files in the folder of fresh ones; None if refused."""
        size = self.model.micro_batch
        places = units_of(self.plan, size)[index // size]
        # A sample depends on its place in its unit, not on what stands beside it.
        drawn = draw_unit(self.model, self.plan.conditions.select(places), [seed] * len(places))
        chosen: Batch = drawn.select([index % size])
        with one_thread():
            reason = self.filters.reasons(chosen)[0]
        if reason:
            self._reject(index, seed, reason)
            return None
        return record_sample(self.model, self.plan, self.fresh, index, drawn=chosen, seed=seed)

    def _reject(self, index: int, seed: int, reason: str) -> None:
        self.rejected.append({"index": index, "seed": seed, "reason": reason})
