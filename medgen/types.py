"""What flows between the parts: studies, latents, conditions and where they came from. Read first.

Shape letters, here and everywhere: b batch, c channels, *s spatial axes (height, width; or depth,
height, width; or time, height, width), k findings or classes, m scalars, n tokens, d width,
v vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Domain = Literal["continuous", "tokens"]
Latents = Float[Tensor, "b c *s"] | Int[Tensor, "b *s"]
"""Continuous, of unit variance, or tokens (int64)."""
Net = Callable[[Tensor, Tensor], Tensor]
"""(z_t, t) -> output of a network whose conditions are already bound; t is (b,) in [0, 1]."""
Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""A title -> a context that shows progress and yields a function of (done, in all)."""
Field = Callable[[Tensor, Tensor], Tensor]
"""What a sampler follows: (z_t, t) -> dz/dt on the linear path, or logits for tokens."""


@dataclass(frozen=True)
class Schema:
    """What the studies of a dataset hold; everything else is wired from it.

    Args:
        size: spatial size of an image, such as (64, 64).
        channels: channels of an image.
        findings: names of the findings, in the order of `Batch.label`.
        exclusive: exactly one finding is present in a study (a class), not any subset.
        mask_classes: names of the classes of a mask; the first is the background. Empty: no masks.
        scalars: names of the scalars, in the order of `Batch.scalar`.
        text: studies carry a report.
        spacing: mm (s along time) between the voxels of an image along each axis; empty where it is
            not known.
        window: the intensities, in the source's unit (HU for CT), that -1 and 1 stand for; None
            where images have no common unit.
        time: the first axis is time: clips (time, height, width) and signals (time,), whose first
            spacing is in s; an ECG as an image has its leads as channels and a window in mV.
        leads: names of the leads of `Batch.ecg`, which spans the time of the clip beside it, or of
            the channels of an ECG as an image.
        ecg_rate: samples of `Batch.ecg` a second, Hz.
        mask_channels: the last so many channels of an image are its mask, one a class but the
            background, 1 inside and -1 outside; 0 where masks stand apart.
    """

    size: tuple[int, ...]
    channels: int = 1
    findings: tuple[str, ...] = ()
    exclusive: bool = False
    mask_classes: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    text: bool = False
    spacing: tuple[float, ...] = ()
    window: tuple[float, float] | None = None
    time: bool = False
    leads: tuple[str, ...] = ()
    ecg_rate: float = 0.0
    mask_channels: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema whose `dataclasses.asdict`, perhaps read back from JSON, is `values`."""
        plain: dict[str, Any] = dict(values)
        for key in ("size", "findings", "mask_classes", "scalars", "spacing", "leads"):
            plain[key] = tuple(plain.get(key, ()))
        if plain.get("window") is not None:
            plain["window"] = tuple(plain["window"])
        return cls(**plain)


@dataclass(frozen=True)
class Study:
    """One line of a dataset's table: who and where, without pixels.

    Args:
        id: unique name of the study in its dataset.
        patient: who it is of; splits are made by patient.
        split: "train", "validation" or "test".
    """

    id: str
    patient: str
    split: str


@dataclass(frozen=True)
class LatentSpec:
    """The shape of a codec's latents: what a backbone must produce.

    Args:
        domain: "continuous" (float, unit variance) or "tokens" (int64 indices).
        size: spatial size of a latent.
        channels: channels of a continuous latent; 1 for tokens.
        vocab: number of tokens; 0 for continuous latents.
    """

    domain: Domain
    size: tuple[int, ...]
    channels: int = 1
    vocab: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, *s) for continuous latents, (*s,) for tokens."""
        return (self.channels, *self.size) if self.domain == "continuous" else self.size


@dataclass(frozen=True)
class Reconstruction:
    """What a codec in training makes of images.

    Args:
        image: not held to [-1, 1].
        penalties: what the codec asks of its own latents beside a good image, unweighted, by name;
            `CodecLosses` has a weight NAME_weight for each.
        tokens: of the images; None where latents are continuous.
    """

    image: Float[Tensor, "b c *s"]
    penalties: Mapping[str, Float[Tensor, "b"]]
    tokens: Int[Tensor, "b *z"] | None = None


@dataclass(frozen=True)
class CondSpec:
    """Widths of the three doors a condition can enter by; 0 means that the door is not used.

    Args:
        vector: width of a vector that modulates.
        tokens: width of tokens that are attended to.
        grid: channels of a grid aligned with the latent.
    """

    vector: int = 0
    tokens: int = 0
    grid: int = 0


@dataclass(frozen=True)
class Conditioning:
    """Encoded conditions of a batch, by the door they enter. An absent door is None, never zeros.

    Args:
        vector: modulates the network.
        tokens: attended to.
        mask: True where a token stands, False where it is padding; goes with `tokens`.
        grid: aligned with the latent.
    """

    vector: Float[Tensor, "b d"] | None = None
    tokens: Float[Tensor, "b n d"] | None = None
    mask: Bool[Tensor, "b n"] | None = None
    grid: Float[Tensor, "b k *s"] | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) != (self.mask is None):
            raise ValueError("tokens and their padding mask come together")

    def where(self, keep: Bool[Tensor, "b"], other: Conditioning) -> Conditioning:
        """This conditioning for the samples that keep it, the other for the rest.

        Tokens of unequal length are padded to the longer.
        """
        mine, theirs = _pad_alike(self, other)
        mixed: dict[str, Tensor] = {}
        for field in fields(self):
            a, b = getattr(mine, field.name), getattr(theirs, field.name)
            if a is not None and b is not None:
                mixed[field.name] = torch.where(keep.view(-1, *[1] * (a.ndim - 1)), a, b)
        return Conditioning(**mixed)


def digest_of_values(values: Tensor) -> str:
    """SHA-256 of the bytes of a tensor's values: tells that two are the same, not what they are."""
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _pad_alike(a: Conditioning, b: Conditioning) -> tuple[Conditioning, Conditioning]:
    if a.tokens is None or b.tokens is None:
        return a, b
    length = max(a.tokens.shape[1], b.tokens.shape[1])
    return _pad(a, length), _pad(b, length)


def _pad(cond: Conditioning, length: int) -> Conditioning:
    if cond.tokens is None or cond.mask is None:
        return cond
    extra = length - cond.tokens.shape[1]
    return replace(
        cond,
        tokens=torch.nn.functional.pad(cond.tokens, (0, 0, 0, extra)),
        mask=torch.nn.functional.pad(cond.mask, (0, extra), value=False),
    )


@dataclass(frozen=True)
class Provenance:
    """Where a study came from: one line of a manifest.

    Args:
        id: unique name of the study.
        synthetic: drawn by a generator, not measured on a person.
        source: name of the dataset, or `sha256:...` digest of the checkpoint that drew it.
        seed: the seed it was drawn from; None for a real study.
        condition: what was asked for, in names and values.
    """

    id: str
    synthetic: bool
    source: str
    seed: int | None = None
    condition: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Batch:
    """Studies, or only their conditions (then `image` is None). Absent is None, never zeros.

    Args:
        image: in [-1, 1].
        mask: integer class of every pixel; 0 is the background.
        label: 1 present, 0 absent, -1 unknown, one column a finding of the schema; if findings are
            exclusive, one-hot, or all -1 if unknown.
        scalar: in the units of the schema's names; NaN is unknown.
        text: one report a study.
        ecg: in mV, (b, leads, samples); NaN is unknown.
        frame: first frame of a clip that is asked for, in [-1, 1]; one with a NaN is unknown.
        memory: of a clip that continues another: the frames that it begins with, which are the last
            ones of the other, and behind them an anchor, a frame of the same heart of any time.
        spacing: mm (or s along time) between voxels, one value a spatial axis.
        affine: voxel index -> RAS+ mm.
        provenance: one a study.
    """

    image: Float[Tensor, "b c *s"] | None = None
    mask: Int[Tensor, "b *s"] | None = None
    label: Int[Tensor, "b k"] | None = None
    scalar: Float[Tensor, "b m"] | None = None
    text: tuple[str, ...] | None = None
    ecg: Float[Tensor, "b leads samples"] | None = None
    frame: Float[Tensor, "b c h w"] | None = None
    memory: Float[Tensor, "b c frames h w"] | None = None
    spacing: Float[Tensor, "b axes"] | None = None
    affine: Float[Tensor, "b 4 4"] | None = None
    provenance: tuple[Provenance, ...] | None = None

    def __len__(self) -> int:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                return len(value)
        return 0

    def select(self, indices: Sequence[int]) -> Batch:
        """The studies at `indices`, in that order."""
        chosen: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                chosen[field.name] = value[list(indices)]
            elif value is not None:
                chosen[field.name] = tuple(value[i] for i in indices)
        return Batch(**chosen)

    def to(self, device: torch.device | str) -> Batch:
        """The same studies with every tensor on a device."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def conditions(self, schema: Schema | None = None, *, memory: int = 0) -> Batch:
        """Everything but the image: what a generator can be asked for.

        Args:
            schema: of the studies; of clips the first frame is kept as `frame`.
            memory: so many first frames of a clip are kept as its memory, and an anchor whose place
                a hash of the study's name tells.
        """
        clips = schema is not None and schema.time and len(schema.size) == 3
        if not clips or self.frame is not None or self.image is None:
            return replace(self, image=None)
        first = self.image[:, :, 0].clone()
        return replace(self, image=None, frame=first, memory=self._memory(memory))

    def _memory(self, frames: int) -> Tensor | None:
        if not frames or self.image is None:
            return None
        names = [each.id for each in self.provenance or ()] or list(map(str, range(len(self))))
        digests = [hashlib.sha256(name.encode()).digest() for name in names]
        places = [int.from_bytes(digest[:4]) % self.image.shape[2] for digest in digests]
        anchor = self.image[torch.arange(len(self)), :, places]
        return torch.cat([self.image[:, :, :frames], anchor[:, :, None]], dim=2)

    @staticmethod
    def concat(batches: Sequence[Batch]) -> Batch:
        """One batch of several; a field must stand in all of them or in none.

        Raises:
            ValueError: no batches, or a field stands in some only.
        """
        if not batches:
            raise ValueError("expected at least one batch")
        joined: dict[str, Any] = {}
        for field in fields(Batch):
            values = [getattr(batch, field.name) for batch in batches]
            present = [value for value in values if value is not None]
            if present and len(present) != len(values):
                raise ValueError(f"only {len(present)} of {len(values)} batches hold {field.name}")
            if present and isinstance(present[0], Tensor):
                joined[field.name] = torch.cat(present)
            elif present:
                joined[field.name] = tuple(item for value in present for item in value)
        return Batch(**joined)


@dataclass(frozen=True)
class Estimate:
    """A measured number that says how sure it is.

    Args:
        value: the point estimate.
        low: lower end of the 95 % interval; NaN where none can be had.
        high: upper end of the 95 % interval.
        n: number of studies (per side) it rests on.
        higher_is_better: the direction; None where neither end is good.
        unit: such as "share", "Dice", "ms"; empty for a pure number.
        method: how the interval was made, such as "bootstrap over patients".
        extractor: what turned images into features; empty if none did.
        floor: the same measure between two sets of real studies; None where it makes no sense.
        warning: what a reader must know before trusting it, such as too few studies.
    """

    value: float
    low: float
    high: float
    n: int
    higher_is_better: bool | None = None
    unit: str = ""
    method: str = ""
    extractor: str = ""
    floor: Estimate | None = None
    warning: str = ""
