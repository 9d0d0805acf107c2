"""The loop that trains a generator on latents, exactly resumable."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from medgen.checkpoint import WEAK, WEIGHTS, content_digest, write_weights
from medgen.errors import DataError
from medgen.model import GenerativeModel
from medgen.settings import TrainSettings
from medgen.training.common import check_settings, due, kept_random_state
from medgen.training.learner import Learner, TrainingData
from medgen.training.loop import Loop
from medgen.training.state import StateFolder
from medgen.types import Batch

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
        stopped: memorization began, so the run ended early.
        kept: images seen when the averaged weights were as they are kept.
        loss: training loss of the last step.
        validation: validation loss of the averaged weights at the end; None without validation.
        resumed: images that had been seen before this call.
        seconds: time that this call took.
    """

    weights: Path
    digest: str
    images: int
    stopped: bool
    kept: int
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
    early: bool = True,
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
        out: run folder; receives model.safetensors, log.jsonl, state/ and, with `early`,
            weak.safetensors, with `settings.snapshots`, averages/.
        metadata: stored in both checkpoints.
        identity: what else makes this run this run, such as a digest of the recipe; a state saved
            under another identity is refused.
        device: "auto", "cpu", "cuda" or "mps".
        preview: shows the model at work at every validation.
        early: leave the average of an early stage as the weak model of autoguidance.
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

    def export(name: str) -> str:
        """Write the averaged weights of the whole model; returns their digest."""
        weights = learner.averaged_weights()
        if not loop.first:
            return content_digest(weights)
        return write_weights(out / name, weights, metadata)

    def after(steps: int, images: int) -> None:
        if early and steps == math.ceil(loop.steps / WEAK_SHARE):
            export(WEAK)
        if learner.profiles is not None:
            every = math.ceil(loop.steps * settings.batch / settings.snapshots)
            if steps == loop.steps or due(steps - 1, settings.batch, every):
                learner.profiles.snapshot(images)

    held_out = validation if validation is not None and len(validation) else None
    if settings.stop_when_memorizing:
        if held_out is None:
            raise DataError("train.stop_when_memorizing: needs validation studies, there are none")
        learner.watch_for_memorization(train, held_out)
    loop = Loop(
        learner, train, held_out, states, out, title="training", preview=preview, after=after
    )
    with kept_random_state(learner.device):
        resumed = loop.run(progress)
    kept = loop.images
    if learner.watch is not None and learner.watch.began:
        kept = learner.watch.images
        learner.watch.restore_best()
    digest = export(WEIGHTS)
    learner.average.copy_to_parameters()
    model.eval()
    learner.accelerator.wait_for_everyone()
    return TrainResult(
        weights=out / WEIGHTS,
        digest=digest,
        images=loop.images,
        stopped=learner.finished,
        kept=kept,
        loss=loop.last["loss"],
        validation=loop.last.get("validation_loss"),
        resumed=resumed,
        seconds=time.monotonic() - begin,
    )


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
