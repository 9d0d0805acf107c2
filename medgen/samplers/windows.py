"""Clips longer than the network knows: one noise for all, windows that overlap and are blended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medgen.rng import Rng
from medgen.types import Field

Blend = Literal["first", "average", "random"]


def window_starts(frames: int, window: int, overlap: int) -> list[int]:
    """First frames of the windows that cover a long clip; successive ones share `overlap` frames.

    Args:
        frames: of the long clip.
        window: frames that the network knows.
        overlap: frames that successive windows share.

    Raises:
        ValueError: the clip is not made of whole windows; the text offers lengths that are.
    """
    step = window - overlap
    if not 0 <= overlap < window:
        raise ValueError(f"overlap: expected 0 to {window - 1} frames, got {overlap}")
    if frames < window or (frames - window) % step:
        below = window + max(0, (frames - window) // step) * step
        raise ValueError(
            f"{frames} frames are not covered by windows of {window} that share {overlap}; take "
            f"{below} or {below + step}"
        )
    return list(range(0, frames - window + 1, step))


def windowed(
    fields: Sequence[Field],
    starts: Sequence[int],
    window: int,
    *,
    blend: Blend = "random",
    rng: Rng,
) -> Field:
    """The field of a long clip, from fields of windows of it.

    Every evaluation asks all windows about the same state and joins their answers, so a sampler
    takes one step of the whole clip at a time. Where two windows overlap: "first" keeps the earlier
    one's, "average" their mean, "random" cuts at a place drawn anew at each evaluation, for each
    sample and border, so that no seam stays where it is and nothing is averaged away.

    Args:
        fields: one a window, its own part of time-varying conditions bound.
        starts: first frame of each, from `window_starts`.
        window: frames of each.
        blend: how they are joined.
        rng: of the random cuts; one generator a sample, so no sample depends on its batch.

    Raises:
        ValueError: there are not as many fields as windows.

    Source: Henschel et al. 2025, arXiv:2403.14773, section 4.3 (randomised blending); keeping the
    first as Reynaud et al. 2024, arXiv:2406.00808; averaging as Bar-Tal et al. 2023,
    arXiv:2302.08113.
    """
    if len(fields) != len(starts):
        raise ValueError(f"got {len(fields)} fields for {len(starts)} windows")
    draws = rng.child("windows")

    def field(z: Tensor, t: Tensor) -> Tensor:
        parts = [
            each(z[:, :, start : start + window], t)
            for each, start in zip(fields, starts, strict=True)
        ]
        if blend == "average":
            return _averaged(parts, starts, z)
        joined = torch.zeros_like(z, dtype=parts[0].dtype)
        joined[:, :, :window] = parts[0]
        for part, before, start in zip(parts[1:], starts, starts[1:], strict=False):
            overlap = before + window - start
            cut = torch.full((len(z),), overlap)
            if blend == "random":
                cut = draws.integers(overlap + 1)
            keeps = torch.arange(window) < cut[:, None]  # b window: the earlier window's frames
            keeps = keeps.to(z.device).view(len(z), 1, window, *[1] * (z.ndim - 3))
            held = joined[:, :, start : start + window]
            joined[:, :, start : start + window] = torch.where(keeps, held, part)
        return joined

    return field


def _averaged(parts: Sequence[Tensor], starts: Sequence[int], z: Tensor) -> Tensor:
    total = torch.zeros_like(z, dtype=parts[0].dtype)
    count = torch.zeros(z.shape[2], device=z.device, dtype=parts[0].dtype)
    for part, start in zip(parts, starts, strict=True):
        window = part.shape[2]
        total[:, :, start : start + window] += part
        count[start : start + window] += 1
    return total / count.view(1, 1, -1, *[1] * (z.ndim - 3))
