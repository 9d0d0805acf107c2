"""A generator that learns: its optimiser, averaged weights, steps, validation and state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from medgen.model import GenerativeModel
from medgen.rng import Rng, derive
from medgen.settings import TrainSettings
from medgen.training.common import (
    Gradients,
    average_scalar,
    broadcast_module,
    indices,
    learning_rate,
    make_accelerator,
    make_optimizer,
    optimizer_step,
    seed_global,
    set_learning_rate,
    share,
    step_seeds,
)
from medgen.training.ema import Average, Profiles, halflife_decay
from medgen.training.memorization import LEAST_DRAWS, MemorizationWatch
from medgen.training.state import (
    State,
    load_optimizer,
    optimizer_tensors,
    part,
    with_prefix,
)
from medgen.types import Batch, Latents

VALIDATION_STUDIES = 512
TIME_BINS = 4
"""Equal parts of t in [0, 1] by which the validation loss is also reported."""
FROZEN = ("codec.", "weak.")
"""Parts of a model that a generator's training leaves alone."""


@dataclass(frozen=True)
class TrainingData:
    """Encoded studies in memory, on the CPU.

    Args:
        latents: of the codec.
        conditions: the studies' conditions, one a latent.
        flipped: latents of the mirrored images, for `train.flip`; masks and first frames are
            mirrored here.
    """

    latents: Latents
    conditions: Batch
    flipped: Latents | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, chosen: list[int]) -> tuple[Tensor, Batch]:
        """Latents and conditions of some studies."""
        return self.latents[chosen], self.conditions.select(chosen)

    def take_flipped(self, chosen: list[int], flip: Bool[Tensor, "b"]) -> tuple[Tensor, Batch]:
        """The same, mirrored where `flip` is True."""
        if self.flipped is None:
            raise ValueError("expected latents of the mirrored images")
        z, conditions = self.take(chosen)
        z = torch.where(_like(flip, z), self.flipped[chosen], z)
        for name in ("mask", "frame", "memory"):
            if (values := getattr(conditions, name)) is not None:
                mirrored = torch.where(_like(flip, values), values.flip(-1), values)
                conditions = replace(conditions, **{name: mirrored})
        return z, conditions


class Learner:
    """Backbone and conditioner of a model in training.

    Args:
        model: moved to the device; its codec stays as it is.
        settings: how to train.
        device: "auto", "cpu", "cuda" or "mps".
        snapshots: folder for snapshots of power-function averages, if the settings ask for any.

    Raises:
        DeviceError: the device is unknown or absent.
    """

    def __init__(
        self, model: GenerativeModel, settings: TrainSettings, *, device: str, snapshots: Path
    ) -> None:
        self.accelerator = make_accelerator(device, settings.precision)
        self.device = self.accelerator.device
        self.model = model.to(self.device)
        self.settings = settings
        broadcast_module(self.accelerator, model)
        parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(FROZEN)
        }
        self.optimizer = make_optimizer(parameters.values(), settings)
        self.gradients = Gradients(parameters.values())
        self.average = Average(parameters)
        self.profiles = Profiles(parameters, snapshots) if settings.snapshots else None
        self.watch: MemorizationWatch | None = None
        self._seen = 0

    @property
    def module(self) -> GenerativeModel:
        """The whole model."""
        return self.model

    def watch_for_memorization(self, train: TrainingData, held_out: TrainingData) -> None:
        """End the run when memorization begins, judged at every validation."""
        self.watch = MemorizationWatch(
            self.average, lambda: (self._study_losses(train), self._study_losses(held_out))
        )

    @property
    def finished(self) -> bool:
        """Whether the run ends before its length, because memorization began."""
        return self.watch is not None and self.watch.began

    def step(self, data: TrainingData, step: int) -> dict[str, float]:
        """One optimiser step; returns the loss, the gradient's norm and the learning rate."""
        settings, accelerator = self.settings, self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        chosen = share(indices(settings.seed, len(data), step, settings.batch), rank, processes)
        seeds = share(step_seeds(settings.seed, step, settings.batch), rank, processes)
        seed_global(derive(settings.seed, "dropout", step, rank), self.device)
        self.model.train()
        self.gradients.zero()
        total = torch.zeros((), device=self.device)
        micro = settings.micro_batch or len(chosen)
        for first in range(0, len(chosen), micro):
            now = slice(first, first + micro)
            loss = self._loss(data, list(chosen[now]), list(seeds[now])).sum() / len(chosen)
            accelerator.backward(loss)
            total += loss.detach()
        rate = learning_rate(settings, (step + 0.5) * settings.batch)
        set_learning_rate(self.optimizer, rate)
        loss = average_scalar(accelerator, total)
        norm = optimizer_step(accelerator, self.optimizer, self.gradients, settings.clip)
        return {"loss": loss, "grad_norm": norm, "lr": rate}

    def _loss(self, data: TrainingData, chosen: list[int], seeds: list[int]) -> Tensor:
        rng = Rng(seeds)
        if self.settings.flip:
            flip = rng.child("flip").uniform() < 0.5
            z, conditions = data.take_flipped(chosen, flip)
        else:
            z, conditions = data.take(chosen)
        with self.accelerator.autocast():
            loss = self.model.loss(z.to(self.device), conditions.to(self.device), rng)
        return loss.float()

    def watched(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values that must be finite; an overflow of float16 gradients only costs its step."""
        watched = {"loss": values["loss"]}
        if self.accelerator.scaler is None:
            watched["gradient norm"] = values["grad_norm"]
        return watched

    def update_averages(self, images: int) -> None:
        """Take the weights of the newest step, the one that made it `images` images."""
        batch, self._seen = self.settings.batch, images
        self.average.update(halflife_decay(images, batch, self.settings.ema_halflife))
        if self.profiles is not None:
            self.profiles.update(images, batch)

    @torch.no_grad()
    def validate(self, data: TrainingData) -> dict[str, Any]:
        """Loss of the averaged weights, in all and by t; the same draws every time."""
        chosen = _spread(len(data))
        losses, times = [], []
        self.model.eval()
        with self.average.applied():
            for first in range(0, len(chosen), self.settings.batch):
                loss, t = self._validation_loss(data, chosen[first : first + self.settings.batch])
                losses.append(loss)
                times.append(t)
        loss, t = torch.cat(losses), torch.cat(times)
        bins = (t * TIME_BINS).long().clamp(0, TIME_BINS - 1)
        by_time = [loss[bins == place] for place in range(TIME_BINS)]
        return {
            "validation_loss": float(loss.mean()),
            "validation_loss_by_t": [float(part.mean()) if len(part) else None for part in by_time],
            **(self.watch.look(self._seen) if self.watch is not None else {}),
        }

    @torch.no_grad()
    def _study_losses(self, data: TrainingData) -> Tensor:
        """The loss of studies under the averaged weights, the mean over their draws, (n,)."""
        chosen = _spread(len(data))
        draws = -(-LEAST_DRAWS // len(chosen))
        self.model.eval()
        with self.average.applied():
            losses = [
                self._validation_loss(data, chosen[first : first + self.settings.batch], draw)[0]
                for draw in range(draws)
                for first in range(0, len(chosen), self.settings.batch)
            ]
        return torch.cat(losses).view(draws, len(chosen)).mean(dim=0)

    def _validation_loss(
        self, data: TrainingData, chosen: list[int], draw: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Loss of every study, and the t at which the objective asked the network about it."""
        names = ("validation",) if draw == 0 else ("validation", draw)
        rng = Rng([derive(self.settings.seed, *names, place) for place in chosen])
        z, conditions = data.take(chosen)
        asked: list[Tensor] = []
        with self.accelerator.autocast():
            cond = self.model.conditioner.encode(conditions.to(self.device))
            net = partial(self.model.backbone, cond=cond)

            def watched(z: Tensor, t: Tensor) -> Tensor:
                asked.append(t)
                return net(z, t)

            loss = self.model.objective.loss(watched, z.to(self.device), rng)
        return loss.float().cpu(), asked[0].float().cpu()

    def weights(self) -> dict[str, Tensor]:
        """The model's own tensors as they are now; no weak model."""
        state = self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith("weak.")}

    def averaged_weights(self) -> dict[str, Tensor]:
        """The same under the averaged weights, on the CPU."""
        with self.average.applied():
            return {name: tensor.cpu().clone() for name, tensor in self.weights().items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and scalars to resume from; the frozen codec is left out."""
        tensors = {
            **with_prefix(_without_codec(self.weights()), "model"),
            **with_prefix(self.average.tensors, "average"),
            **optimizer_tensors(self.optimizer, "optimizer"),
        }
        if self.profiles is not None:
            tensors |= with_prefix(self.profiles.tensors(), "profiles")
        scalars: dict[str, Any] = {}
        if self.watch is not None:
            watched, scalars["watch"] = self.watch.state()
            tensors |= with_prefix(watched, "watch")
        if self.accelerator.scaler is not None:
            scalars["scaler"] = self.accelerator.scaler.state_dict()
        return tensors, scalars

    def load(self, state: State) -> None:
        """Continue from what `state` gave."""
        own = self.model.state_dict()
        for name, tensor in part(state.tensors, "model").items():
            own[name].copy_(tensor)
        self.average.load(part(state.tensors, "average"))
        load_optimizer(self.optimizer, state.tensors, "optimizer")
        if self.profiles is not None:
            self.profiles.load(part(state.tensors, "profiles"))
        if self.watch is not None:
            self.watch.load(part(state.tensors, "watch"), state.scalars["watch"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scalars["scaler"])

    def shapes(self) -> dict[str, list[int]]:
        """Shapes of all tensors of the model by name."""
        return {name: list(tensor.shape) for name, tensor in self.weights().items()}


def _spread(total: int) -> list[int]:
    """The places of studies to validate on, evenly spread."""
    count = min(total, VALIDATION_STUDIES)
    return [place * total // count for place in range(count)]


def _like(flags: Tensor, tensor: Tensor) -> Tensor:
    return flags.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))


def _without_codec(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("codec.")}
