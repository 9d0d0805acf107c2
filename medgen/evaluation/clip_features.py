"""Features of clips that see motion: networks trained on the spot, and I3D from a file."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medgen.augmentation.augment import Augment
from medgen.augmentation.tasks import Consumer, batches, chunk_of, task_for, train_consumer
from medgen.augmentation.video_networks import SmallVideoNet
from medgen.errors import CheckpointError, RecipeError
from medgen.evaluation.features import Extractor, digest_of, images_of, root_mean_square
from medgen.evaluation.self_supervised import vicreg
from medgen.rng import derive
from medgen.types import Batch, Schema

Array = NDArray[np.float64]
NAMES = ("clip-ssl", "clip-supervised", "i3d")
VIEWS = Augment(shift=0.1, scale=0.2, rotation=10, intensity=0.2, gamma=0.2, noise=0.1)
"""What two views of a clip may differ in; all its frames alike."""
BATCH = 16
LR = 1e-3
PLAYED = ("as it is", "slowed to half", "backwards", "frames in random order")


class SelfSupervisedClips:
    """What a small video network sees that learned from real clips alone, without labels.

    Two views of a clip shall give the same and no two outputs shall vary together (VICReg), and
    the network shall tell how a clip is played (`PLAYED`). Without the second task features may
    ignore motion, the fault of distances that rest on networks trained to name what a video shows.

    Args:
        clips: real training clips (b c t h w) in [-1, 1]; features are divided by their root mean
            square there.
        seed: of weights, order and views.
        steps: optimiser steps.

    Source: Bardes et al. 2022, arXiv:2105.04906; the task of speed as in Benaim et al. 2020,
    arXiv:2004.06130, and of order as in Misra et al. 2016, arXiv:1603.08561; content bias: Ge et
    al. 2024, arXiv:2404.12391.
    """

    name = "clip-ssl"

    def __init__(self, clips: Tensor, *, seed: int = 0, steps: int = 300) -> None:
        self.network = _learned(clips, seed, steps)
        self.digest = digest_of(self.network.state_dict().values())
        self.scale = 1.0
        self.scale = root_mean_square(self.features(clips))

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """Clips (b c t h w) in [-1, 1] to features (b 256)."""
        parts = [self.network.features(part).double() for part in images.split(chunk_of(images))]
        return torch.cat(parts).numpy() / self.scale


class SupervisedClips:
    """The last hidden layer of a video network that learned scalars, or findings, of real clips.

    Args:
        consumer: the trained network.
        clips: what it learned from.
        taught: what it was taught, in words.
    """

    def __init__(self, consumer: Consumer, clips: Tensor, taught: str) -> None:
        self.name = f"clip-supervised by {taught}"
        self.consumer = consumer
        self.digest = digest_of(consumer.network.state_dict().values())
        self.scale = root_mean_square(consumer.features(clips))

    def features(self, images: Tensor) -> Array:
        """Clips (b c t h w) in [-1, 1] to features (b 256)."""
        return self.consumer.features(images) / self.scale


class I3dFeatures:
    """The 400 logits of an I3D network trained on Kinetics, from a TorchScript file.

    The file published with StyleGAN-V (`i3d_torchscript.pt`) is meant: a scripted module that takes
    clips (b 3 t h w) in [0, 255] with the options rescale, resize and return_features. A
    TorchScript file is a program: loading it runs no Python, but what it computes is its author's,
    so name only a file that you trust; its SHA-256 is the digest of the extractor. Grey clips are
    repeated to three channels; I3D needs about 10 frames.

    Args:
        file: the TorchScript.

    Raises:
        CheckpointError: there is no such file, or it is not a TorchScript of that signature.

    Source: Carreira and Zisserman 2017, arXiv:1705.07750; as used for the Frechet video distance in
    Skorokhodov et al. 2022, arXiv:2112.14683.
    """

    def __init__(self, file: Path) -> None:
        wanted = "i3d_torchscript.pt of StyleGAN-V, a TorchScript that takes clips in [0, 255]"
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; expected {wanted}")
        try:
            self.network = torch.jit.load(str(file), map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{file}: is no TorchScript; expected {wanted}") from error
        self.file, self.wanted = file, wanted
        self.name = f"i3d of {file.name}"
        self.digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """Clips (b c t h w) in [-1, 1] to features (b 400)."""
        colour = images.mean(1, keepdim=True).expand(-1, 3, -1, -1, -1)
        colour = images if images.shape[1] == 3 else colour
        try:
            parts = [
                self.network(
                    (part.clamp(-1, 1) + 1) * 127.5, rescale=True, resize=True, return_features=True
                )
                for part in colour.split(4)
            ]
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise CheckpointError(
                f"{self.file}: does not take clips of {tuple(images.shape[1:])}: {last}; expected "
                f"{self.wanted}, and clips of about 10 frames or more"
            ) from error
        return torch.cat(parts).flatten(1).double().numpy()


def clip_extractor(
    name: str, learn: Batch, validation: Batch, schema: Schema, *, seed: int, steps: int
) -> Extractor:
    """The extractor of clips of a name, fitted on real clips where it learns.

    Args:
        name: "clip-ssl", "clip-supervised" or "i3d@FILE".
        learn: real training clips.
        validation: real clips that select the state of a supervised network.
        schema: of the clips.
        seed: of weights and order.
        steps: optimiser steps.

    Raises:
        RecipeError: the studies are not clips, or there is nothing to supervise by.
        CheckpointError: the file of weights is absent or not fit.
    """
    kind, at, file = name.partition("@")
    if not (schema.time and len(schema.size) == 3):
        raise RecipeError(f"extractor '{name}' needs clips, the studies are of size {schema.size}")
    clips = images_of(learn)
    if kind == "i3d":
        if not at:
            raise RecipeError("extractor 'i3d' needs its TorchScript file: write i3d@FILE")
        return I3dFeatures(Path(file))
    if kind == "clip-ssl":
        return SelfSupervisedClips(clips, seed=seed, steps=steps)
    taught = schema.scalars or schema.findings
    if not taught:
        raise RecipeError("extractor 'clip-supervised' needs scalars or findings; use 'clip-ssl'")
    task = task_for("regression" if schema.scalars else "classification", schema)
    held = (images_of(validation), task.targets(validation))
    targets = task.targets(learn)
    consumer = train_consumer(
        task, clips, targets, steps=steps, batch=BATCH, seed=seed, validation=held
    )
    return SupervisedClips(consumer, clips, ", ".join(taught))


def played(clips: Tensor, how: Tensor, rng: torch.Generator) -> Tensor:
    """Clips (b c t h w), each played in the way that `how` (b,) numbers in `PLAYED`."""
    frames = torch.arange(clips.shape[2])
    shuffled = torch.randperm(len(frames), generator=rng)
    first = torch.stack([frames, frames // 2, frames.flip(0), shuffled])
    second = torch.stack([frames, (frames + 1) // 2, frames.flip(0), shuffled])
    a, b = (
        clips.gather(2, order[how][:, None, :, None, None].expand_as(clips))
        for order in (first, second)
    )
    return (a + b) / 2


def _learned(clips: Tensor, seed: int, steps: int) -> SmallVideoNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        network = SmallVideoNet(clips.shape[1], len(PLAYED), tuple(clips.shape[2:]))
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    draws = torch.Generator().manual_seed(derive(seed, "views"))
    for chosen in islice(batches(len(clips), BATCH, derive(seed, "order")), steps):
        now = clips[chosen]
        how = torch.randint(len(PLAYED), (len(now),), generator=draws)
        views = [VIEWS.apply(now, None, draws)[0] for _ in range(2)]
        both = network.features(torch.cat(views))
        changed = VIEWS.apply(played(now, how, draws), None, draws)[0]
        loss = vicreg(*both.chunk(2)) + 10 * functional.cross_entropy(network(changed), how)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimiser.step()
        schedule.step()
    return network.eval()
