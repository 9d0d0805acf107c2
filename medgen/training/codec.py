"""The loop that trains an autoencoder against a critic, exactly resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medgen.checkpoint import WEIGHTS, content_digest, write_weights
from medgen.codecs.autoencoder import Autoencoder
from medgen.codecs.health import Health, check_health
from medgen.codecs.losses import CodecLosses
from medgen.codecs.pixels import Pixels
from medgen.disk import replacing
from medgen.errors import DataError, RecipeError
from medgen.protocols import Codec, Dataset
from medgen.settings import TrainSettings
from medgen.training.codec_learner import CodecLearner, images_of, spread
from medgen.training.common import check_settings, due, require_finite
from medgen.training.journal import Journal
from medgen.training.state import StateFolder

log = logging.getLogger(__name__)
CodecPreview = Callable[[Codec, int], None]
"""Called with the codec under its averaged weights and the images seen; writes what it likes."""

FIT_STUDIES = 2048
"""Training studies on which shift and scale are measured."""
HEALTH_STUDIES = 256
"""Held-out studies on which the health gate looks."""


@dataclass(frozen=True)
class CodecResult:
    """How a run ended.

    Args:
        weights: file of the averaged weights, with shift and scale.
        digest: their content digest.
        health: of the codec on held-out studies; a generator's run requires it.
        images: images seen.
        resumed: images that had been seen before this call.
        seconds: time that this call took.
    """

    weights: Path
    digest: str
    health: Health
    images: int
    resumed: int
    seconds: float


def train_codec(
    codec: Autoencoder,
    train: Dataset,
    validation: Dataset,
    settings: TrainSettings,
    out: Path,
    *,
    losses: CodecLosses | None = None,
    metadata: Mapping[str, str] | None = None,
    identity: str = "",
    device: str = "auto",
    trunk: Path | None = None,
    preview: CodecPreview | None = None,
    progress: bool = True,
) -> CodecResult:
    """Train an autoencoder; leaves `codec` with its averaged weights, fitted and checked.

    Call it again with the same arguments to resume: on the CPU the final weights and the log equal
    those of an uninterrupted run, bit for bit, wherever it was killed. Processes started by
    `torchrun` share every batch equally.

    Args:
        codec: its weights are where a new run starts.
        train: training studies.
        validation: held-out studies, for the losses along the way and the health check at the end.
        settings: how to train.
        out: run folder; receives model.safetensors, health.json, log.jsonl and state/.
        losses: what to train on; None means the defaults.
        metadata: stored in the checkpoint.
        identity: what else makes this run this run, such as a digest of the recipe; a state saved
            under another identity is refused.
        device: "auto", "cpu", "cuda" or "mps".
        trunk: weights of LPIPS' trunk; None looks in torch's hub cache.
        preview: shows the codec at work at every validation.
        progress: show a bar on stderr.

    Raises:
        RecipeError: the settings make no sense together, or the codec has nothing to train.
        DataError: there are no studies, or they carry no images of the codec's size.
        DeviceError: the device is unknown or absent.
        MissingExtraError: LPIPS is asked for and its trunk is not on disk.
        HealthError: a loss or gradient is not finite; the last good state is kept.
        OutputError: the folder is unwritable, full, or holds the state of another run.
        CheckpointError: every saved state is damaged.
    """
    begin = time.monotonic()
    check_settings(settings)
    _check_data(codec, train, validation)
    out = Path(out)
    learner = CodecLearner(codec, settings, losses or CodecLosses(), device=device, trunk=trunk)
    states = StateFolder(out / "state", _identity(learner, train, identity))
    run = _Run(learner, train, validation, states, out, preview=preview)
    start = run.restore()
    with run.logging(start, progress):
        for step in range(start, run.steps):
            run.advance(step)
    learner.average.copy_to_parameters()
    codec.requires_grad_(False)
    health = fit_codec(codec, train, validation)
    digest = content_digest(codec.state_dict())
    if run.first:
        write_weights(out / WEIGHTS, codec.state_dict(), metadata or {})
        write_health(out / "health.json", health)
    learner.accelerator.wait_for_everyone()
    return CodecResult(
        weights=out / WEIGHTS,
        digest=digest,
        health=health,
        images=run.steps * settings.batch,
        resumed=start * settings.batch,
        seconds=time.monotonic() - begin,
    )


def fit_codec(codec: Autoencoder | Pixels, train: Dataset, validation: Dataset) -> Health:
    """Measure a codec's shift and scale on training studies, and its health on held-out ones.

    All that a codec without training needs.

    Args:
        codec: left fitted, in evaluation mode.
        train: training studies; 2048 of them, evenly spread, are looked at.
        validation: held-out studies; 256 of them are looked at.
    """
    codec.eval()
    codec.fit(images_of(train, spread(len(train), FIT_STUDIES)))
    return check_health(codec, images_of(validation, spread(len(validation), HEALTH_STUDIES)))


def write_health(path: Path, health: Health) -> None:
    """Write a health report as JSON; a number that is not finite becomes null.

    Raises:
        OutputError: the folder is unwritable or full.
    """
    values = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(health).items()
    }
    with replacing(path) as handle:
        handle.write((json.dumps(values, indent=1) + "\n").encode())


class _Run:
    """One run: a learner, its data, and what it leaves on disk."""

    def __init__(
        self,
        learner: CodecLearner,
        train: Dataset,
        validation: Dataset,
        states: StateFolder,
        out: Path,
        *,
        preview: CodecPreview | None,
    ) -> None:
        self.learner, self.states, self.out = learner, states, out
        self.train, self.validation = train, validation
        self.preview = preview
        self.settings = learner.settings
        self.steps = math.ceil(self.settings.images / self.settings.batch)
        self.first = learner.accelerator.is_main_process
        self.journal: Journal | None = None

    def restore(self) -> int:
        """Load the newest good state; returns the steps done."""
        state = self.states.load()
        if state is None:
            return 0
        self.learner.load(state)
        log.info("resuming at %d images", state.images)
        return state.images // self.settings.batch

    @contextmanager
    def logging(self, start: int, progress: bool) -> Iterator[None]:
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
                title="training the codec",
                progress=progress,
            ) as self.journal
        ):
            yield

    def advance(self, step: int) -> None:
        """One step and all that follows it; a state is saved last, so no kill can break it."""
        batch, seen = self.settings.batch, (step + 1) * self.settings.batch
        values: dict[str, Any] = self.learner.step(self.train, step)
        watched = self.learner.watched(values)
        require_finite(watched, step=step + 1, images=seen, kept=self.states.latest)
        self.learner.update_average(seen)
        last = step + 1 == self.steps
        saves = last or due(step, batch, self.settings.checkpoint_every)
        if self.journal is not None:
            if last or due(step, batch, self.settings.validate_every):
                values |= self._look(seen)
            self.journal.write(step + 1, seen, **values)
            if saves:
                self.journal.sync()
                self.states.save(seen, *self.learner.state())
        if saves:
            self.learner.accelerator.wait_for_everyone()
            self.states.latest = seen

    def _look(self, seen: int) -> dict[str, float]:
        values = self.learner.validate(self.validation)
        if self.preview is not None:
            self.learner.codec.eval()
            with self.learner.average.applied(), torch.no_grad():
                self.preview(self.learner.codec, seen)
        return values


def _check_data(codec: Codec, train: Dataset, validation: Dataset) -> None:
    if not isinstance(codec, Autoencoder):
        raise RecipeError(
            f"codec.train: a codec of type {type(codec).__name__} has nothing to train; remove "
            "`train` or choose type: autoencoder"
        )
    for name, data in (("training", train), ("validation", validation)):
        if len(data) == 0:
            raise DataError(f"there are no {name} studies to train a codec with")
        expected = (codec.schema.channels, *codec.schema.size)
        found = tuple(images_of(data, [0]).shape[1:])
        if found != expected:
            raise DataError(f"{name}: images are {found}, the codec was built for {expected}")


def _identity(learner: CodecLearner, train: Dataset, extra: str) -> str:
    """A digest of all that decides what a run computes."""
    shapes = {name: list(tensor.shape) for name, tensor in learner.codec.state_dict().items()}
    facts = [
        asdict(learner.settings),
        asdict(learner.losses),
        learner.loss.kind,
        asdict(train.schema),
        [study.id for study in train.studies],
        shapes,
        extra,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
