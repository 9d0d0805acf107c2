"""The steps of a learner, logged, validated, saved and resumed, in an order no kill can break."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medgen.disk import sweep
from medgen.settings import TrainSettings
from medgen.training.common import average_scalar, due, require_finite
from medgen.training.ema import Average
from medgen.training.journal import Journal
from medgen.training.state import State, StateFolder

log = logging.getLogger(__name__)
Data = TypeVar("Data", contravariant=True)
"""Studies as the learner takes them."""


class Learns(Protocol[Data]):
    """What a loop trains: a network with its optimiser and averaged weights."""

    settings: TrainSettings
    accelerator: Accelerator
    average: Average

    @property
    def finished(self) -> bool:
        """Whether the run ends now, before its length."""
        ...

    @property
    def module(self) -> nn.Module:
        """What learns, as a preview is to see it."""
        ...

    def step(self, data: Data, step: int) -> dict[str, float]:
        """One optimiser step; returns the values to log, "loss" among them."""
        ...

    def watched(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values that must be finite."""
        ...

    def update_averages(self, images: int) -> None:
        """Take the weights of the newest step, the one that made it `images` images."""
        ...

    def validate(self, data: Data) -> dict[str, Any]:
        """What held-out studies say of the averaged weights."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and scalars to resume from."""
        ...

    def load(self, state: State) -> None:
        """Continue from what `state` gave."""
        ...


class Loop(Generic[Data]):
    """One run: a learner, its data, and what it leaves on disk.

    Args:
        learner: what learns.
        train: training studies.
        validation: held-out studies; None leaves validation out.
        states: where the run is saved.
        out: run folder; receives log.jsonl.
        title: what the progress bar calls the run.
        preview: shows the learner's module at work under its averaged weights, at every validation.
        after: called on the first process with steps done and images seen, after every step.

    Attributes:
        steps: of the whole run.
        first: whether this process writes.
        last: values of the newest step.
        images: images seen.
    """

    def __init__(
        self,
        learner: Learns[Data],
        train: Data,
        validation: Data | None,
        states: StateFolder,
        out: Path,
        *,
        title: str,
        preview: Callable[[Any, int], None] | None = None,
        after: Callable[[int, int], None] | None = None,
    ) -> None:
        self.learner, self.states, self.out = learner, states, out
        self.train, self.validation = train, validation
        self.title, self.preview, self.after = title, preview, after
        self.settings = learner.settings
        self.steps = math.ceil(self.settings.images / self.settings.batch)
        self.first = learner.accelerator.is_main_process
        self.last: dict[str, Any] = {}
        self.images = 0
        self._finished = False
        self._journal: Journal | None = None

    def run(self, progress: bool) -> int:
        """Take all steps that are left; returns the images that had been seen before."""
        start = self._restore()
        with self._logging(start, progress):
            for step in range(start, self.steps):
                if self._finished:
                    break
                self.advance(step)
        return start * self.settings.batch

    def _restore(self) -> int:
        """Load the newest good state; returns the steps done."""
        if self.first:
            sweep(self.out)
        state = self.states.load()
        if state is None:
            return 0
        self.learner.load(state)
        self.last, self.images = state.scalars["last"], state.images
        self._finished = self.learner.finished
        log.info("resuming at %d images", state.images)
        return state.images // self.settings.batch

    @contextmanager
    def _logging(self, start: int, progress: bool) -> Iterator[None]:
        """Keep the log open; only the first process has one."""
        batch = self.settings.batch
        with (
            nullcontext()
            if not self.first
            else Journal(
                self.out / "log.jsonl",
                step=start,
                images=start * batch,
                total=self.steps * batch,
                title=self.title,
                progress=progress,
            ) as self._journal
        ):
            yield

    def advance(self, step: int) -> None:
        """One step and all that follows it.

        A state is saved last: whatever a killed run did after it is done again, to the same bytes.
        """
        batch, seen = self.settings.batch, (step + 1) * self.settings.batch
        values: dict[str, Any] = self.learner.step(self.train, step)
        watched = self.learner.watched(values)
        require_finite(watched, step=step + 1, images=seen, kept=self.states.latest)
        self.learner.update_averages(seen)
        last = step + 1 == self.steps
        looks = last or due(step, batch, self.settings.validate_every)
        self.last, self.images = values, seen
        if looks and self.first:
            values |= self._look(seen)
        self._finished = looks and self._any_finished()
        saves = last or self._finished or due(step, batch, self.settings.checkpoint_every)
        if self._journal is not None:
            self._journal.write(step + 1, seen, **values)
            if self.after is not None:
                self.after(step + 1, seen)
            if saves:
                self._journal.sync()
                tensors, scalars = self.learner.state()
                self.states.save(seen, tensors, {**scalars, "last": self.last})
        if saves:
            self.learner.accelerator.wait_for_everyone()
            self.states.latest = seen

    def _any_finished(self) -> bool:
        """Whether the first process, which alone validates, ends the run."""
        accelerator = self.learner.accelerator
        here = torch.tensor(float(self.learner.finished), device=accelerator.device)
        return average_scalar(accelerator, here) > 0

    def _look(self, seen: int) -> dict[str, Any]:
        """Validate, and let the preview sample, under the averaged weights."""
        values: dict[str, Any] = {}
        if self.validation is not None:
            values = self.learner.validate(self.validation)
        if self.preview is not None:
            module = self.learner.module.eval()
            with self.learner.average.applied(), torch.no_grad():
                self.preview(module, seen)
        return values
