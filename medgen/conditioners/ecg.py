"""An ECG as tokens, and as a grid whose every frame sees the ECG of its own time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from medgen.errors import CheckpointError
from medgen.nn.blocks import TransformerBlock, rotary_angles, sincos_positions
from medgen.nn.nd import latent_times
from medgen.protocols import Conditioner
from medgen.registry import register
from medgen.types import Batch, Conditioning, CondSpec, LatentSpec, Schema

Door = Literal["tokens", "grid", "vector"]


@register("conditioner", "ecg")
class EcgConditioner(Conditioner):
    """A small transformer over patches of an ECG that keeps their time.

    An ECG says when the heart beats, so its time must reach the clip: the "grid" gives each frame
    of the latent what the transformer saw around that frame's time, "tokens" are attended to, one a
    patch. A "vector", the mean over patches, keeps rate and shape but loses when a beat is. Absent
    ECGs, and those of NaN alone, have learned values; other NaN samples count as 0 mV and are told
    apart by how much of a patch is known.

    Args:
        schema: of clips with an ECG: leads, its rate, time between frames.
        latent: the grid is of its size.
        width: channels of a token and of the vector.
        depth: transformer blocks.
        heads: attention heads; divides `width` into even parts.
        patch: duration of a patch, s.
        channels: of the grid.
        doors: which of "tokens", "grid" and "vector" the ECG enters by.
        encoder: a safetensors file whose transformer is taken and kept as it is: of another
            generator with the same leads, rate, width, depth and patch, or of one that was trained
            alone. It is read when training starts; a trained checkpoint holds the weights itself.

    Raises:
        ValueError: the studies are not clips with an ECG, or the arguments do not fit each other.

    Source: a transformer over patches of an ECG as in Na et al. 2024, arXiv:2402.09450, with all
    leads in one patch; an ECG that conditions an echo as in Li et al. 2024, arXiv:2410.03143, whose
    one mean vector loses the phase.
    """

    reads = frozenset({"ecg"})
    near: Tensor

    def __init__(
        self,
        schema: Schema,
        latent: LatentSpec,
        *,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        patch: float = 0.05,
        channels: int = 16,
        doors: tuple[Door, ...] = ("tokens", "grid"),
        encoder: str | None = None,
    ) -> None:
        super().__init__()
        _check(schema, latent, width, heads, doors)
        self.leads = len(schema.leads)
        self.samples = round(schema.size[0] * schema.spacing[0] * schema.ecg_rate)
        self.patch = max(1, round(patch * schema.ecg_rate))
        self.patches = math.ceil(self.samples / self.patch)
        self.doors, self.latent_size = doors, latent.size
        self.spec = CondSpec(
            vector=width if "vector" in doors else 0,
            tokens=width if "tokens" in doors else 0,
            grid=channels if "grid" in doors else 0,
        )
        self.embed = nn.Linear(self.leads * (self.patch + 1), width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, channels) if "grid" in doors else None
        self.unknown = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.encoder = encoder
        if encoder is not None:
            for part in (self.embed, self.blocks, self.norm):
                part.requires_grad_(False)
        angles = rotary_angles((self.patches,), width // heads)
        self.register_buffer("places", sincos_positions((self.patches,), width), persistent=False)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        near = _nearness(schema.size[0], latent.size[0], self.samples, self.patch, self.patches)
        self.register_buffer("near", near, persistent=False)

    def fit(self, batch: Batch) -> None:
        """Take the frozen transformer from its file, if one is named; nothing is measured.

        Raises:
            CheckpointError: the file is absent, or its transformer is another.
        """
        if self.encoder is not None:
            transformer = nn.ModuleDict(
                {"embed": self.embed, "blocks": self.blocks, "norm": self.norm}
            )
            transformer.load_state_dict(_read(self.encoder, transformer.state_dict()))

    def encode(self, batch: Batch) -> Conditioning:
        """The ECG of every study by the doors asked for; an unknown one as null.

        Raises:
            ValueError: the ECGs are not of the schema's leads and duration.
        """
        if batch.ecg is None:
            return self.null(len(batch))
        expected = (self.leads, self.samples)
        if tuple(batch.ecg.shape[1:]) != expected:
            raise ValueError(
                f"expected ECGs of (leads, samples) {expected}, those of the clip's time, got "
                f"{tuple(batch.ecg.shape[1:])}"
            )
        tokens = self._transformed(batch.ecg)
        known = batch.ecg.isfinite().flatten(1).any(dim=1)
        return self._by_doors(tokens).where(known, self.null(len(batch)))

    def null(self, count: int) -> Conditioning:
        """The learned ECG of which nothing is known."""
        return self._by_doors(self.unknown.expand(count, self.patches, -1))

    def _transformed(self, ecg: Float[Tensor, "b leads samples"]) -> Float[Tensor, "b n d"]:
        known = ecg.isfinite()
        padding = (0, self.patches * self.patch - self.samples)
        volts = functional.pad(ecg.nan_to_num(0.0, 0.0, 0.0), padding)
        volts = volts.unflatten(2, (self.patches, self.patch))  # b leads n p
        share = functional.pad(known.to(volts.dtype), padding)
        share = share.unflatten(2, (self.patches, self.patch)).mean(dim=3, keepdim=True)
        rows = torch.cat([volts, share], dim=3).transpose(1, 2).flatten(2)  # b n (leads p+1)
        x = self.embed(rows.to(self.embed.weight.dtype)) + self.places
        for block in self.blocks:
            x = block(x, rotary=(self.cos, self.sin))
        return self.norm(x)

    def _by_doors(self, tokens: Float[Tensor, "b n d"]) -> Conditioning:
        mask: Bool[Tensor, "b n"] | None = None
        grid = None
        if "tokens" in self.doors:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if self.out is not None:
            each = self.out(self.near.to(tokens.dtype) @ tokens).transpose(1, 2)  # b k t
            each = each.unflatten(2, (-1, *[1] * (len(self.latent_size) - 1)))
            grid = each.expand(-1, -1, *self.latent_size)
        return Conditioning(
            vector=tokens.mean(dim=1) if "vector" in self.doors else None,
            tokens=tokens if mask is not None else None,
            mask=mask,
            grid=grid,
        )


def _read(file: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a transformer in a file, whatever stands before their names."""
    try:
        held = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors: {error}") from error
    first = next(iter(wanted))
    for prefix in [name.removesuffix(first) for name in held if name.endswith(first)]:
        found = {name: held.get(prefix + name) for name in wanted}
        fits = {n: t for n, t in found.items() if t is not None and t.shape == wanted[n].shape}
        if len(fits) == len(wanted):
            return fits
    raise CheckpointError(
        f"{file}: holds no ECG transformer of these leads, rate, width, depth and patch; expected "
        f"tensors such as {first} of shape {tuple(wanted[first].shape)}"
    )


def _nearness(
    frames: int, latent_frames: int, samples: int, patch: int, patches: int
) -> Float[Tensor, "t n"]:
    """How much each patch counts for each latent frame, less the farther its time; rows sum to 1.

    The weight falls linearly to 0 over a latent frame or a patch, whichever is longer.
    """
    per_frame = samples / frames
    centres = torch.tensor(latent_times(frames, latent_frames)) * per_frame
    middles = (torch.arange(patches) + 0.5) * patch
    reach = max(patch, samples / latent_frames)
    weights = (1 - (centres[:, None] - middles).abs() / reach).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def _check(
    schema: Schema, latent: LatentSpec, width: int, heads: int, doors: tuple[Door, ...]
) -> None:
    if not (schema.time and len(schema.size) == 3 and schema.leads and schema.ecg_rate):
        raise ValueError(
            "an ecg conditioner needs clips with an ECG: time, leads and ecg_rate in their schema"
        )
    if not schema.spacing:
        raise ValueError("an ecg conditioner needs the time between frames, spacing in the schema")
    if not doors or len(set(doors)) < len(doors):
        raise ValueError(f"doors: expected one or more of tokens, grid, vector, got {doors}")
    if len(latent.size) != 3:
        raise ValueError(f"an ecg conditioner needs latents of clips, got size {latent.size}")
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width {width} cannot be split into {heads} heads of an even width")
