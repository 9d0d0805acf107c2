"""The loop that trains a generator on latents, exactly resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.checkpoint import WEAK, WEIGHTS, content_digest, write_weights
from medgen.disk import sweep
from medgen.errors import DataError
from medgen.model import GenerativeModel
from medgen.settings import TrainSettings
from medgen.training.common import check_settings, due, require_finite
from medgen.training.journal import Journal
from medgen.training.learner import Learner, TrainingData
from medgen.training.state import StateFolder
from medgen.types import Batch

log = logging.getLogger(__name__)
Preview = Callable[[GenerativeModel, int], None]
"""Called with the model under its averaged weights and the images seen; writes what it likes."""

WEAK_SHARE = 8
"""The weak model of autoguidance is the average after one of so many parts of the run."""

__all__ = ["Preview", "TrainResult", "TrainingData", "train_generator"]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        weights: file of the averaged weights, whole model.
        digest: their content digest.
        images: images seen.
        loss: training loss of the last step.
        validation: validation loss of the averaged weights at the end; None without validation.
        resumed: images that had been seen before this call.
        seconds: time that this call took.
    """

    weights: Path
    digest: str
    images: int
    loss: float
    validation: float | None
    resumed: int
    seconds: float


def train_generator(
    model: GenerativeModel,
    train: TrainingData,
    validation: TrainingData | None,
    settings: TrainSettings,
    out: Path,
    *,
    metadata: Mapping[str, str],
    identity: str = "",
    device: str = "auto",
    preview: Preview | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train backbone and conditioner; leaves `model` with its averaged weights.

    Call it again with the same arguments to resume: on the CPU the final weights and the log equal
    those of an uninterrupted run, bit for bit, wherever it was killed. Processes started by
    `torchrun` share every batch equally.

    Args:
        model: its weights are where a new run starts.
        train: training studies.
        validation: held-out studies; None or empty leaves validation out.
        settings: how to train.
        out: run folder; receives model.safetensors, weak.safetensors, log.jsonl, state/ and, with
            `settings.snapshots`, averages/.
        metadata: stored in both checkpoints.
        identity: what else makes this run this run, such as a digest of the recipe; a state saved
            under another identity is refused.
        device: "auto", "cpu", "cuda" or "mps".
        preview: shows the model at work at every validation.
        progress: show a bar on stderr.

    Raises:
        RecipeError: the settings make no sense together.
        DataError: there are no studies, or latents, conditions and settings do not fit.
        DeviceError: the device is unknown or absent.
        HealthError: a loss or gradient is not finite; the last good state is kept.
        OutputError: the folder is unwritable, full, or holds the state of another run.
        CheckpointError: every saved state is damaged.
    """
    begin = time.monotonic()
    check_settings(settings)
    _check_data(train, validation, settings)
    learner = Learner(model, settings, device=device, snapshots=out / "averages")
    states = StateFolder(out / "state", _identity(learner, train, validation, identity))
    run = _Run(learner, train, validation, states, Path(out), metadata=metadata, preview=preview)
    start = run.restore()
    with run.logging(start, progress), _global_random_state(learner.device):
        for step in range(start, run.steps):
            run.advance(step)
    digest = run.export(WEIGHTS)
    learner.average.copy_to_parameters()
    model.eval()
    learner.accelerator.wait_for_everyone()
    return TrainResult(
        weights=run.out / WEIGHTS,
        digest=digest,
        images=run.steps * settings.batch,
        loss=run.last["loss"],
        validation=run.last.get("validation_loss"),
        resumed=start * settings.batch,
        seconds=time.monotonic() - begin,
    )


class _Run:
    """One run: a learner, its data, and what it leaves on disk."""

    def __init__(
        self,
        learner: Learner,
        train: TrainingData,
        validation: TrainingData | None,
        states: StateFolder,
        out: Path,
        *,
        metadata: Mapping[str, str],
        preview: Preview | None,
    ) -> None:
        self.learner, self.states, self.out = learner, states, out
        self.train, self.validation = train, validation
        self.metadata, self.preview = metadata, preview
        self.settings = learner.settings
        self.steps = math.ceil(self.settings.images / self.settings.batch)
        self.first = learner.accelerator.is_main_process
        self.journal: Journal | None = None
        self.last: dict[str, Any] = {}

    def restore(self) -> int:
        """Load the newest good state; returns the steps done."""
        if self.first:
            sweep(self.out)
        state = self.states.load()
        if state is None:
            return 0
        self.learner.load(state)
        self.last = state.scalars["last"]
        log.info("resuming at %d images", state.images)
        return state.images // self.settings.batch

    @contextmanager
    def logging(self, start: int, progress: bool) -> Iterator[None]:
        """Keep the log open; only the first process has one."""
        with (
            nullcontext()
            if not self.first
            else Journal(
                self.out / "log.jsonl",
                step=start,
                images=start * self.settings.batch,
                total=self.steps * self.settings.batch,
                progress=progress,
            ) as self.journal
        ):
            yield

    def advance(self, step: int) -> None:
        """One step and all that follows it, in an order that no kill can break.

        A state is saved last: whatever a killed run did after it is done again, to the same bytes.
        """
        batch, seen = self.settings.batch, (step + 1) * self.settings.batch
        values: dict[str, Any] = self.learner.step(self.train, step)
        self._require_finite(values, step)
        self.learner.update_averages(seen)
        last = step + 1 == self.steps
        saves = last or due(step, batch, self.settings.checkpoint_every)
        self.last = values
        if self.first:
            if last or due(step, batch, self.settings.validate_every):
                values |= self._look(seen)
            self._write(step, seen, values)
            if saves:
                self._save(seen)
        if saves:
            self.learner.accelerator.wait_for_everyone()
            self.states.latest = seen

    def _require_finite(self, values: Mapping[str, float], step: int) -> None:
        """A float16 gradient may overflow: its step was left out and the loss scale lowered."""
        watched = {"loss": values["loss"]}
        if self.learner.accelerator.scaler is None:
            watched["gradient norm"] = values["grad_norm"]
        seen = (step + 1) * self.settings.batch
        require_finite(watched, step=step + 1, images=seen, kept=self.states.latest)

    def _look(self, seen: int) -> dict[str, Any]:
        """Validate, and let the preview sample, under the averaged weights."""
        values: dict[str, Any] = {}
        if self.validation is not None and len(self.validation):
            values = self.learner.validate(self.validation)
        if self.preview is not None:
            self.learner.model.eval()
            with self.learner.average.applied():
                self.preview(self.learner.model, seen)
        return values

    def _write(self, step: int, seen: int, values: Mapping[str, Any]) -> None:
        assert self.journal is not None
        self.journal.write(step + 1, seen, **values)
        if step + 1 == math.ceil(self.steps / WEAK_SHARE):
            self.export(WEAK)
        if self.learner.profiles is not None:
            every = math.ceil(self.steps * self.settings.batch / self.settings.snapshots)
            if step + 1 == self.steps or due(step, self.settings.batch, every):
                self.learner.profiles.snapshot(seen)

    def _save(self, seen: int) -> None:
        assert self.journal is not None
        self.journal.sync()
        tensors, scalars = self.learner.state()
        self.states.save(seen, tensors, {**scalars, "last": self.last})

    def export(self, name: str) -> str:
        """Write the averaged weights of the whole model; returns their digest."""
        state = self.learner.averaged_weights()
        if not self.first:
            return content_digest(state)
        return write_weights(self.out / name, state, self.metadata)


def _check_data(
    train: TrainingData, validation: TrainingData | None, settings: TrainSettings
) -> None:
    if not len(train):
        raise DataError("there are no training studies")
    for name, data in (("training", train), ("validation", validation)):
        if data is None:
            continue
        counts = {len(value) for value in _columns(data.conditions).values()}
        if counts - {len(data)}:
            raise DataError(
                f"{name}: {len(data)} latents, but conditions of {sorted(counts)} studies"
            )
    if settings.flip and (train.flipped is None or train.flipped.shape != train.latents.shape):
        raise DataError("train.flip: needs the latents of the mirrored images, one a study")


def _identity(
    learner: Learner, train: TrainingData, validation: TrainingData | None, extra: str
) -> str:
    """A digest of all that decides what a run computes."""
    parts = [json.dumps(asdict(learner.settings)), json.dumps(learner.shapes()), extra]
    for data in (train, validation):
        if data is not None:
            columns = _columns(data.conditions)
            tensors = {name: value for name, value in columns.items() if isinstance(value, Tensor)}
            parts.append(content_digest({"latents": data.latents, **tensors}))
            parts.append(json.dumps(columns.get("text")))
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _columns(batch: Batch) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if value is not None}


def _global_random_state(device: torch.device) -> Any:
    """Leaves torch's global generators as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
