"""The generative model: five parts, one loss, one way to sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from medgen.codecs.autoencoder import Autoencoder
from medgen.codecs.memory import Plan
from medgen.conditioners.joint import JointConditioner
from medgen.nn.masks import classes_of_channels
from medgen.protocols import Backbone, Codec, Guidance, Objective, Sampler
from medgen.rng import Rng
from medgen.samplers.replacement import Given, replacing
from medgen.types import Batch, Field, Provenance, Schema

DROPOUT = 0.1
"""Share of training studies whose condition is hidden, where nothing else is asked for."""


class GenerativeModel(nn.Module):
    """Codec + conditioner + backbone + objective + sampler, and the guidance that joins nets.

    Args:
        schema: what the training studies hold, so what can be asked for.
        codec: frozen; images to latents and back.
        conditioner: all conditions by name.
        backbone: the network that learns.
        objective: what it learns.
        sampler: how samples are drawn from it.
        guidance: how the conditional field is sharpened.
        dropout: probability that a condition becomes null in training, independently per condition:
            one for all, or one a condition by name; a condition left out has 0.1.
        micro_batch: samples a forward pass; fixed, so that a sample never depends on its batch.

    Attributes:
        source: digest of the checkpoint that the weights are from.
        recipe: resolved sections of the recipe that trained them.
        statistics: of the training studies' labels and scalars, for plans.
        weak: a worse model of the same shape, for autoguidance.
        first_frame: what draws the first frames that clips are asked for, where nobody gives them.
    """

    def __init__(
        self,
        schema: Schema,
        codec: Codec,
        conditioner: JointConditioner,
        backbone: Backbone,
        *,
        objective: Objective,
        sampler: Sampler,
        guidance: Guidance,
        dropout: float | Mapping[str, float] = DROPOUT,
        micro_batch: int = 16,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.codec = codec.requires_grad_(False)
        self.conditioner = conditioner
        self.backbone = backbone
        self.objective = objective
        self.sampler = sampler
        self.guidance = guidance
        if schema.mask_channels and "mask" in conditioner.reads:
            raise ValueError("masks are drawn with the images, so they cannot be a condition too")
        names = conditioner.names
        shares = dropout if isinstance(dropout, Mapping) else dict.fromkeys(names, dropout)
        self.dropout = torch.tensor([shares.get(name, DROPOUT) for name in names])
        self.micro_batch = micro_batch
        self.weak: GenerativeModel | None = None
        self.first_frame: GenerativeModel | None = None
        self.source = "untrained"
        self.recipe: dict[str, Any] = {}
        self.statistics: dict[str, Any] = {}

    @property
    def drawn(self) -> Schema:
        """What its samples hold: of the training schema, only what it can be asked for."""
        reads, joint = self.conditioner.reads, self.schema.mask_channels
        return replace(
            self.schema,
            findings=self.schema.findings if "label" in reads else (),
            scalars=self.schema.scalars if "scalar" in reads else (),
            mask_classes=self.schema.mask_classes if "mask" in reads or joint else (),
            text=self.schema.text and "text" in reads,
            leads=self.schema.leads if "ecg" in reads or len(self.schema.size) == 1 else (),
            ecg_rate=self.schema.ecg_rate if "ecg" in reads else 0.0,
            channels=self.schema.channels - joint,
            mask_channels=0,
        )

    @property
    def guided_by_weak(self) -> bool:
        """Whether its guidance asks a weak model too."""
        return not self.guidance.needs.isdisjoint({"weak", "weak_null"})

    def decoding(self) -> Plan | None:
        """How a micro-batch is decoded within the codec's memory; None where that takes little."""
        if not isinstance(self.codec, Autoencoder):
            return None
        return self.codec.plan("decode", (self.micro_batch, *self.codec.latent.shape))

    def loss(self, z: Tensor, conditions: Batch, rng: Rng) -> Tensor:
        """Loss of every sample, (b,), from latents and their conditions.

        Args:
            z: latents of the codec, (b c *s), or its tokens (b *s).
            conditions: the studies' conditions, on the device of `z`.
            rng: one generator a sample; times, noise and dropped conditions are drawn from it.
        """
        drop = rng.child("dropout").uniform((len(self.conditioner.names),)) < self.dropout
        cond = self.conditioner.encode(conditions, drop=drop.to(z.device))
        return self.objective.loss(partial(self.backbone, cond=cond), z, rng)

    @torch.no_grad()
    def sample(
        self,
        conditions: Batch,
        seeds: list[int],
        *,
        known: Batch | None = None,
        region: Bool[Tensor, "b *s"] | None = None,
    ) -> Batch:
        """Draw one study for every condition, on the device of the model.

        Sample i depends on the weights, condition i, seed i, what is known of it, and its place i
        modulo `micro_batch` alone: short batches are padded, so no sample depends on what is drawn
        beside it.

        Args:
            conditions: what is asked for; images are ignored. The mask, if images are drawn with
                masks, is taken as known. Without any field nothing is asked for.
            seeds: one a condition.
            known: image or mask, or both, that the samples shall have.
            region: where `known` holds; None is everywhere. Elsewhere it is drawn.

        Raises:
            ValueError: there are not as many seeds as conditions, or what is known does not fit.
        """
        if not len(conditions):
            nothing = Provenance(id="", synthetic=True, source=self.source)
            conditions = Batch(provenance=(nothing,) * len(seeds))
        if len(conditions) != len(seeds):
            raise ValueError(f"got {len(seeds)} seeds for {len(conditions)} conditions")
        given = Given.of(self.schema, conditions, known, region)
        was_training = self.training
        self.eval()
        images = []
        for start in range(0, len(seeds), self.micro_batch):
            places = range(start, min(start + self.micro_batch, len(seeds)))
            padded = list(places) + [places[-1]] * (self.micro_batch - len(places))
            here = None if given is None else given.select(padded)
            drawn = self._draw(conditions.select(padded), [seeds[i] for i in padded], here)
            images.append(drawn[: len(places)].float().cpu())
        self.train(was_training)
        provenance = tuple(
            Provenance(id=f"{seed:016x}", synthetic=True, source=self.source, seed=seed)
            for seed in seeds
        )
        image = torch.cat(images)
        if self.schema.mask_channels:
            mask = classes_of_channels(image[:, self.drawn.channels :])
            conditions = replace(conditions, mask=mask)
            image = image[:, : self.drawn.channels]
        return replace(conditions, image=image, provenance=provenance)

    def guided(self, conditions: Batch) -> Field:
        """What a sampler follows under these conditions, guidance and all.

        Args:
            conditions: on the device of the model.

        Raises:
            ValueError: guidance needs a weak model and there is none.
        """
        fields = {"conditional": self._field(conditions)}
        if "null" in self.guidance.needs:
            fields["null"] = self._field(conditions, null=True)
        if self.guided_by_weak:
            if self.weak is None:
                raise ValueError("guidance needs a weak model; set `model.weak`")
            null = "weak_null" in self.guidance.needs
            fields["weak_null" if null else "weak"] = self.weak._field(conditions, null=null)
        return self.guidance.combine(fields)

    def _draw(self, conditions: Batch, seeds: list[int], given: Given | None) -> Tensor:
        rng = Rng(seeds)
        device = next(self.backbone.parameters()).device
        field = self.guided(conditions.to(device))
        start = self.objective.prior(self.codec.latent, rng).to(device)
        if given is None:
            return self.codec.decode(self.sampler.sample(field, start, rng)).clamp(-1, 1)
        image, known = given.image.to(device), given.known.to(device)
        field = replacing(field, self.codec.encode(image), given.covered(self.codec).to(device))
        z = self.sampler.sample(field, start, rng)
        return image.where(known, self.codec.decode(z).clamp(-1, 1))

    def _field(self, conditions: Batch, *, null: bool = False) -> Field:
        cond = (
            self.conditioner.null(len(conditions)) if null else self.conditioner.encode(conditions)
        )
        return self.objective.field(self.backbone.bind(cond))
