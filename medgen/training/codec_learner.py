"""A codec that learns: it and its critic, their optimisers, steps, validation and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.codecs.losses import (
    AutoencoderLoss,
    CodecLosses,
    Critic,
    balance,
    hinge_critic,
    hinge_generator,
)
from medgen.codecs.quantizers import codebook_use
from medgen.errors import DataError
from medgen.protocols import Dataset, LearnedCodec
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
from medgen.training.ema import Average, halflife_decay
from medgen.training.state import (
    State,
    load_optimizer,
    optimizer_tensors,
    part,
    with_prefix,
)
from medgen.types import Reconstruction

VALIDATION_STUDIES = 256
CRITIC_BETAS = (0.5, 0.9)
"""The critic faces a moving target, so its moments are short."""


def images_of(dataset: Dataset, chosen: Sequence[int]) -> Tensor:
    """The images of some studies, (b c *s).

    Raises:
        DataError: a study carries none.
    """
    images = []
    for index in chosen:
        image = dataset[index].image
        if image is None:
            raise DataError(f"study '{dataset.studies[index].id}' carries no image")
        images.append(image)
    return torch.cat(images)


def spread(total: int, most: int) -> list[int]:
    """At most `most` indices, evenly over `total`."""
    count = min(total, most)
    return [place * total // count for place in range(count)]


class CodecLearner:
    """An autoencoder or a tokenizer in training, and the critic that it learns against.

    Args:
        codec: moved to the device.
        settings: how to train; `autoencoder_warmup` images pass before the critic starts, and its
            voice then grows over `warmup` images.
        losses: what to train on.
        device: "auto", "cpu", "cuda" or "mps".
        trunk: weights of LPIPS' trunk; None looks in torch's hub cache.

    Raises:
        DeviceError: the device is unknown or absent.
        MissingExtraError: LPIPS is asked for and its trunk is not on disk.
    """

    def __init__(
        self,
        codec: LearnedCodec,
        settings: TrainSettings,
        losses: CodecLosses,
        *,
        device: str,
        trunk: Path | None = None,
    ) -> None:
        self.accelerator = make_accelerator(device, settings.precision)
        self.device = self.accelerator.device
        self.codec = codec.to(self.device).requires_grad_(True)
        self.settings, self.losses = settings, losses
        self.loss = AutoencoderLoss(codec.schema, losses, trunk=trunk).to(self.device)
        broadcast_module(self.accelerator, codec)
        self.optimizer = make_optimizer(codec.parameters(), settings)
        self.gradients = Gradients(codec.parameters())
        self.average = Average(codec.averaged)
        self.critic: Critic | None = None
        if losses.adversarial_weight > 0 and settings.images > settings.autoencoder_warmup:
            self._make_critic()

    @property
    def module(self) -> LearnedCodec:
        """The codec."""
        return self.codec

    def _make_critic(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.settings.seed, "critic"))
            critic = Critic(self.codec.schema, channels=self.losses.critic_channels)
        self.critic = critic.to(self.device)
        self.critic_optimizer = make_optimizer(critic.parameters(), self.settings)
        for group in self.critic_optimizer.param_groups:
            group["betas"] = CRITIC_BETAS
        self.critic_gradients = Gradients(critic.parameters())

    def step(self, data: Dataset, step: int) -> dict[str, float]:
        """One step of the codec, then one of the critic; returns losses and norms."""
        settings, accelerator = self.settings, self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        chosen = share(indices(settings.seed, len(data), step, settings.batch), rank, processes)
        seeds = share(step_seeds(settings.seed, step, settings.batch), rank, processes)
        seed_global(derive(settings.seed, "codebook", step, rank), self.device)
        self.codec.train()
        self.gradients.zero()
        voice = self._voice(step)
        sums: dict[str, Tensor] = {}
        pairs: list[tuple[Tensor, Tensor]] = []
        micro = settings.micro_batch or len(chosen)
        for first in range(0, len(chosen), micro):
            now = slice(first, first + micro)
            image, rng = self._draw(data, list(chosen[now]), list(seeds[now]))
            with accelerator.autocast():
                made: Reconstruction = self.codec(image, rng)
            parts = self.loss(made.image.float(), image, made.penalties)
            if voice is not None:
                parts["adversarial"] = self._adversarial(made, parts, voice)
                pairs.append((image, made.image.detach()))
            weighed = {name: part.sum() / len(chosen) for name, part in parts.items()}
            accelerator.backward(torch.stack(list(weighed.values())).sum())
            for name, part_sum in weighed.items():
                sums[name] = sums.get(name, torch.zeros_like(part_sum)) + part_sum.detach()
        values = {name: average_scalar(accelerator, value) for name, value in sums.items()}
        rate = learning_rate(settings, (step + 0.5) * settings.batch)
        set_learning_rate(self.optimizer, rate)
        norm = optimizer_step(accelerator, self.optimizer, self.gradients, settings.clip)
        values = {"loss": sum(values.values()), **values, "grad_norm": norm, "lr": rate}
        return values | (self._critic_step(pairs, rate, len(chosen)) if pairs else {})

    def _voice(self, step: int) -> float | None:
        """How loud the critic is, from 0 to 1; None before it starts."""
        heard = (step + 0.5) * self.settings.batch - self.settings.autoencoder_warmup
        if self.critic is None or heard < 0:
            return None
        return min(heard / self.settings.warmup, 1.0) if self.settings.warmup else 1.0

    def _draw(self, data: Dataset, chosen: list[int], seeds: list[int]) -> tuple[Tensor, Rng]:
        """Images, and the randomness of their latents."""
        rng = Rng(seeds)
        image = images_of(data, chosen)
        if self.settings.flip:
            flip = rng.child("flip").uniform() < 0.5
            image = torch.where(flip.view(-1, *[1] * (image.ndim - 1)), image.flip(-1), image)
        return image.to(self.device), rng

    def _adversarial(self, made: Reconstruction, parts: dict[str, Tensor], voice: float) -> Tensor:
        """The critic's part of the loss, (b,)."""
        assert self.critic is not None
        self.critic.requires_grad_(False)
        with self.accelerator.autocast():
            judged = self.critic(made.image)
        self.critic.requires_grad_(True)
        verdict = hinge_generator(judged.float())
        weight = torch.as_tensor(self.losses.adversarial_weight * voice, device=self.device)
        if self.losses.adaptive:
            visible = [part.mean() for name, part in parts.items() if name not in made.penalties]
            seen = torch.stack(visible).sum()
            weight = weight * balance(
                seen, verdict.mean(), self.codec.last_layer, average=self._mean_over_processes
            )
        return weight * verdict

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        mean = self.accelerator.reduce(value, reduction="mean")
        assert isinstance(mean, Tensor)
        return mean

    def _critic_step(
        self, pairs: list[tuple[Tensor, Tensor]], rate: float, count: int
    ) -> dict[str, float]:
        assert self.critic is not None
        self.critic_gradients.zero()
        total = torch.zeros((), device=self.device)
        for image, reconstruction in pairs:
            with self.accelerator.autocast():
                real, fake = self.critic(image), self.critic(reconstruction)
            loss = hinge_critic(real.float(), fake.float()).sum() / count
            self.accelerator.backward(loss)
            total += loss.detach()
        peak = self.settings.lr
        set_learning_rate(self.critic_optimizer, self.losses.critic_lr * rate / peak)
        mean = average_scalar(self.accelerator, total)
        norm = optimizer_step(
            self.accelerator, self.critic_optimizer, self.critic_gradients, self.settings.clip
        )
        return {"critic": mean, "critic_grad_norm": norm}

    @property
    def finished(self) -> bool:
        """A codec trains to the end."""
        return False

    def update_averages(self, images: int) -> None:
        """Take the weights of the newest step, the one that made it `images` images."""
        settings = self.settings
        self.average.update(halflife_decay(images, settings.batch, settings.ema_halflife))

    @torch.no_grad()
    def validate(self, data: Dataset) -> dict[str, float]:
        """What held-out images say of the averaged weights.

        The loss without the critic, PSNR in dB and, of a tokenizer, the share of its codebook that
        occurs and the perplexity of its tokens.
        """
        totals: list[Tensor] = []
        errors: list[Tensor] = []
        tokens: list[Tensor] = []
        self.codec.eval()
        chosen = spread(len(data), VALIDATION_STUDIES)
        with self.average.applied():
            for first in range(0, len(chosen), self.settings.batch):
                image = images_of(data, chosen[first : first + self.settings.batch])
                image = image.to(self.device)
                with self.accelerator.autocast():
                    made: Reconstruction = self.codec(image)
                parts = self.loss(made.image.float(), image, made.penalties)
                totals.append(torch.stack(list(parts.values())).sum(dim=0))
                error = (made.image.float().clamp(-1, 1) - image).square()
                errors.append(error.flatten(1).mean(dim=1))
                tokens += [] if made.tokens is None else [made.tokens]
        psnr = 10 * torch.log10(4 / torch.cat(errors).clamp_min(1e-10))
        values = {
            "validation_loss": float(torch.cat(totals).mean()),
            "validation_psnr": float(psnr.mean()),
        }
        if tokens:
            used, perplexity = codebook_use(torch.cat(tokens), self.codec.latent.vocab)
            values |= {"validation_usage": used, "validation_perplexity": perplexity}
        return values

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and scalars to resume from."""
        tensors = {
            **with_prefix(self.codec.state_dict(), "codec"),
            **with_prefix(self.average.tensors, "average"),
            **optimizer_tensors(self.optimizer, "optimizer"),
        }
        if self.critic is not None:
            tensors |= with_prefix(self.critic.state_dict(), "critic")
            tensors |= optimizer_tensors(self.critic_optimizer, "critic_optimizer")
        scaler = self.accelerator.scaler
        return tensors, {} if scaler is None else {"scaler": scaler.state_dict()}

    def load(self, state: State) -> None:
        """Continue from what `state` gave."""
        self.codec.load_state_dict(part(state.tensors, "codec"))
        self.average.load(part(state.tensors, "average"))
        load_optimizer(self.optimizer, state.tensors, "optimizer")
        if self.critic is not None:
            self.critic.load_state_dict(part(state.tensors, "critic"))
            load_optimizer(self.critic_optimizer, state.tensors, "critic_optimizer")
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scalars["scaler"])

    def watched(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values that must be finite; an overflow of float16 gradients only costs its step."""
        names = ["loss", "critic"]
        if self.accelerator.scaler is None:
            names += ["grad_norm", "critic_grad_norm"]
        return {name: values[name] for name in names if name in values}
