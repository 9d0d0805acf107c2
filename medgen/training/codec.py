"""The loop that trains a codec against a critic, exactly resumable."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from medgen.checkpoint import WEIGHTS, content_digest, write_weights
from medgen.codecs.health import Health, check_health
from medgen.codecs.losses import CodecLosses
from medgen.disk import replacing
from medgen.errors import DataError, RecipeError
from medgen.protocols import Codec, Dataset, LearnedCodec
from medgen.settings import TrainSettings
from medgen.training.codec_learner import CodecLearner, images_of, spread
from medgen.training.common import check_settings, kept_random_state
from medgen.training.loop import Loop
from medgen.training.state import StateFolder

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
    codec: LearnedCodec,
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
    """Train an autoencoder or a tokenizer; leaves it with its averaged weights, fitted and checked.

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
    loop = Loop(
        learner, train, validation, states, out, title="training the codec", preview=preview
    )
    with kept_random_state(learner.device):
        resumed = loop.run(progress)
    learner.average.copy_to_parameters()
    codec.requires_grad_(False)
    fit_codec(codec, train)
    health = codec_health(codec, validation)
    digest = content_digest(codec.state_dict())
    if loop.first:
        write_weights(out / WEIGHTS, codec.state_dict(), metadata or {})
        write_health(out / "health.json", health)
    learner.accelerator.wait_for_everyone()
    return CodecResult(
        weights=out / WEIGHTS,
        digest=digest,
        health=health,
        images=loop.steps * settings.batch,
        resumed=resumed,
        seconds=time.monotonic() - begin,
    )


def fit_codec(codec: Codec, train: Dataset) -> None:
    """Measure a codec's shift and scale on training studies: all that one without training needs.

    Args:
        codec: left fitted, in evaluation mode.
        train: training studies; 2048 of them, evenly spread, are looked at.
    """
    codec.eval()
    codec.fit(images_of(train, spread(len(train), FIT_STUDIES)))


def codec_health(codec: Codec, validation: Dataset) -> Health:
    """The health of a codec on held-out studies; 256 of them, evenly spread, are looked at."""
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


def _check_data(codec: Codec, train: Dataset, validation: Dataset) -> None:
    if not isinstance(codec, LearnedCodec):
        raise RecipeError(
            f"codec.train: a codec of type {type(codec).__name__} has nothing to train; remove "
            "`train` or choose type: autoencoder or tokenizer"
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
