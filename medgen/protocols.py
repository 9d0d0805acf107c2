"""The roles that components play, at most three methods each.

Time runs from t = 0 (noise) to t = 1 (data). Samplers always follow the linear path
z_t = (1 - t) noise + t data, whose field is dz/dt = data - noise; an objective that trains on
another path converts (`objectives/paths.py`), so every sampler serves every objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from medgen.rng import Rng
from medgen.types import (
    Batch,
    Conditioning,
    CondSpec,
    Domain,
    Estimate,
    Field,
    LatentSpec,
    Net,
    Reconstruction,
    Schema,
    Study,
)


class Codec(nn.Module, ABC):
    """Images (b c *s) in [-1, 1] to latents and back."""

    domain: Domain
    latent: LatentSpec

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Latents of unit variance (b c *s), or tokens (b *s) int64; deterministic."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Images (b c *s) in [-1, 1]."""

    @abstractmethod
    def fit(self, images: Tensor) -> None:
        """Measure training images (b c *s), so that latents have unit variance."""


class LearnedCodec(Codec):
    """A codec that is trained, one image at a time in its losses: an autoencoder or a tokenizer.

    `schema` is of the images it was built for. `last_layer` holds the weights of the decoder's last
    convolution, where losses are balanced. `averaged` names the tensors that training averages: the
    parameters, and what is learned without gradients, such as a codebook.
    """

    schema: Schema

    @abstractmethod
    def forward(self, image: Tensor, rng: Rng | None = None) -> Reconstruction:
        """Encode and decode images (b c *s) in [-1, 1]; what is random is drawn from `rng`."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """Weights of the decoder's last convolution."""

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The tensors that training averages, by name."""
        return dict(self.named_parameters())


class Conditioner(nn.Module, ABC):
    """Conditions of a batch to what enters the backbone's doors.

    `reads` names the fields of a `Batch` that it encodes: what a generator can be asked for.
    """

    spec: CondSpec
    reads: frozenset[str]

    @abstractmethod
    def encode(self, batch: Batch) -> Conditioning:
        """The conditions of every study of the batch; an unknown one is encoded as null."""

    @abstractmethod
    def null(self, count: int) -> Conditioning:
        """The learned "no condition", `count` times; what dropped conditions become in training."""


class Backbone(nn.Module, ABC):
    """The network: no losses, no schedules."""

    domain: Domain

    @abstractmethod
    def forward(self, z: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Latents (b c *s) and times (b,) in [0, 1] to (b c *s), or logits (b *s v) for tokens."""

    def bind(self, cond: Conditioning) -> Net:
        """The network under conditions, for one run of a sampler; it may keep what it computed."""
        return partial(self, cond=cond)


@runtime_checkable
class Objective(Protocol):
    """What is learned."""

    domain: Domain

    def prior(self, latent: LatentSpec, rng: Rng) -> Tensor:
        """Where sampling starts: noise (b c *s), or all-masked tokens."""
        ...

    def loss(self, net: Net, z: Tensor, rng: Rng) -> Tensor:
        """Loss of every sample, (b,); draws its own times and noise from `rng`."""
        ...

    def field(self, net: Net) -> Field:
        """What a sampler follows: the velocity of the linear path, or logits."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """From the prior to data."""

    domain: Domain

    def sample(self, field: Field, z: Tensor, rng: Rng) -> Tensor:
        """Follow the field from the prior's z at t = 0 to data at t = 1."""
        ...


@runtime_checkable
class Guidance(Protocol):
    """Makes one field of several.

    They are "conditional" and "null" (no condition), and "weak" and "weak_null", those of a worse
    model.
    """

    needs: frozenset[str]

    def combine(self, fields: Mapping[str, Field]) -> Field:
        """The guided field; evaluates only the fields that it needs at each t."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """Studies with a schema. Item i is a `Batch` of one study."""

    schema: Schema
    studies: Sequence[Study]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


class Filter(Protocol):
    """Rejects samples, by what it learned from real studies."""

    def fit(self, real: Dataset) -> str:
        """Learn from real studies of all splits; returns a digest of what was learned."""
        ...

    def reasons(self, samples: Batch) -> list[str]:
        """Why each sample is rejected; empty for those that pass."""
        ...


@runtime_checkable
class Metric(Protocol):
    """Compares real studies with synthetic ones."""

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """Named estimates, each with its interval and the real-vs-real floor."""
        ...
