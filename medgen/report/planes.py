"""Volumes as pictures that show all of them: maximum projections, and a walk through the slices."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from medgen.disk import write_bytes
from medgen.report.pictures import beside, contact_sheet, upright

FRAMES = 32
"""Most slices of a walk."""
MILLISECONDS = 90
"""How long each is shown."""


def projections(images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Volumes as maximum projections from above, from the front and from the side.

    Args:
        images: (b c x y z) in [-1, 1], axes to the right, front and head.
        masks: (b x y z) integer classes; the highest class along a ray is drawn.

    Returns:
        Pictures (b c h w), and masks (b h w) if there are any.
    """
    pictures = [_beside(image, -1.0) for image in images]
    outlines = None if masks is None else torch.stack([_beside(mask, 0) for mask in masks])
    return torch.stack(pictures), outlines


def cine(
    images: Tensor,
    path: Path | str,
    *,
    masks: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Write a GIF that walks from the feet to the head through the axial slices of volumes.

    Args:
        images: (b c x y z) in [-1, 1].
        path: of the GIF.
        masks: (b x y z) integer classes, outlined.
        captions: one a volume.

    Raises:
        ValueError: the images are no volumes.
        OutputError: the file cannot be written.
    """
    if images.ndim != 5:
        raise ValueError(f"expected volumes (b c x y z), got {tuple(images.shape)}")
    depth = images.shape[-1]
    frames = [
        contact_sheet(
            upright(images[..., k]),
            masks=None if masks is None else upright(masks[..., k]),
            captions=captions,
        )
        for k in torch.linspace(0, depth - 1, min(FRAMES, depth)).round().long().tolist()
    ]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0
    )
    write_bytes(path, buffer.getvalue())


def _beside(volume: Tensor, fill: float) -> Tensor:
    return beside([upright(volume.amax(dim=axis)) for axis in (-1, -2, -3)], fill)
