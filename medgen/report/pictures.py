"""Contact sheets: many images on one dark page, with captions and outlines of masks."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from medgen.disk import write_bytes
from medgen.report.traces import traces

PAPER = (16, 18, 22)
INK = (206, 211, 219)
PADDING = 6
FONT_SIZE = 13
LINE = FONT_SIZE + 6
CELL = 160
"""Side that small images are enlarged to, about, in pixels of the sheet."""

OUTLINES = (
    (72, 187, 255),
    (255, 120, 90),
    (120, 220, 130),
    (250, 205, 80),
    (200, 140, 255),
    (255, 140, 200),
)
"""Colours of the classes of a mask, from class 1 on; they repeat."""


FRAMES = 6
"""Frames of a clip's filmstrip."""


def flat(
    images: Tensor, masks: Tensor | None = None, *, time: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Studies of any kind as pictures, and their masks, if they can be drawn there.

    Args:
        images: signals (b c t) become traces, volumes (b c x y z) three planes, clips (b c t h w)
            filmstrips; images (b c h w) stay.
        masks: integer classes of the same places; of signals none is drawn.
        time: the first axis is time.
    """
    if images.ndim == 3:
        return traces(images), None
    if images.ndim == 4:
        return images, masks
    return filmstrips(images, masks) if time else planes(images, masks)


def filmstrips(images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Clips (b c t h w) as frames side by side (b c h w), evenly over time, and their masks."""
    length = images.shape[2]
    at = torch.linspace(0, length - 1, min(FRAMES, length)).round().long()
    strips = images[:, :, at].movedim(2, 3).flatten(3)
    return strips, None if masks is None else masks[:, at].movedim(1, 2).flatten(2)


def planes(images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Volumes as pictures: an axial, a coronal and a sagittal slice side by side.

    The patient's right is on the left, front and head are up, as radiologists look at them. Slices
    go through the middle of a mask's foreground, or of the volume where there is none.

    Args:
        images: (b c x y z) in [-1, 1], axes to the right, front and head.
        masks: (b x y z) integer classes.

    Returns:
        Pictures (b c h w), black around smaller slices, and masks (b h w), if there are any.
    """
    pictures, outlines = [], []
    for i, volume in enumerate(images):
        mask = None if masks is None else masks[i]
        at = _middle(volume, mask)
        pictures.append(beside(_slices(volume, at), -1.0))
        if mask is not None:
            outlines.append(beside(_slices(mask, at), 0))
    return torch.stack(pictures), torch.stack(outlines) if outlines else None


def _middle(volume: Tensor, mask: Tensor | None) -> list[int]:
    if mask is not None and (places := (mask > 0).nonzero()).numel():
        return places.double().mean(0).round().long().tolist()
    return [side // 2 for side in volume.shape[-3:]]


def _slices(volume: Tensor, at: Sequence[int]) -> list[Tensor]:
    """Axial, coronal and sagittal slices (... h w) of a volume (... x y z)."""
    x, y, z = at
    cut = (volume[..., :, :, z], volume[..., :, y, :], volume[..., x, :, :])
    return [upright(plane) for plane in cut]


def upright(plane: Tensor) -> Tensor:
    """A slice (... a b), axes to the right, front or head, as it is looked at: (... rows columns).

    The patient's right is on the left, front and head are up.
    """
    return plane.flip((-2, -1)).transpose(-2, -1)


def beside(parts: list[Tensor], fill: float) -> Tensor:
    """Slices (... h w) of several heights side by side."""
    height = max(part.shape[-2] for part in parts)
    padded = [
        torch.nn.functional.pad(part, (0, 0, 0, height - part.shape[-2]), value=fill)
        for part in parts
    ]
    return torch.cat(padded, dim=-1)


def contact_sheet(
    images: Tensor,
    *,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    masks: Tensor | None = None,
    scale: int | None = None,
    path: Path | str | None = None,
    time: bool = False,
) -> Image.Image:
    """A sheet of images, row by row.

    Args:
        images: (b c h w) in [-1, 1]; 3 channels are colour, other channels stand side by side.
            Volumes show three planes, clips some frames, signals their traces.
        captions: one an image, under it; cut to its width.
        columns: images a row; None makes the sheet a little wider than high.
        masks: integer classes of every pixel, outlined in one colour a class.
        scale: pixels of the sheet a pixel of an image; None enlarges small images.
        path: where to write it as PNG, if anywhere.
        time: the first axis is time.

    Raises:
        ValueError: no images, or another shape or number of masks or captions.
        OutputError: the file cannot be written.
    """
    images, masks = flat(images, masks, time=time)
    _check_shapes(images, captions, masks)
    count, _, height, width = images.shape
    scale = scale or max(1, round(CELL / max(height, width)))
    cells = [cell(images[i], None if masks is None else masks[i], scale) for i in range(count)]
    step_x = cells[0].width + PADDING
    step_y = cells[0].height + PADDING + (LINE if captions is not None else 0)
    if columns is None:
        widest = max(1, math.ceil(math.sqrt(1.4 * count * step_y / step_x)))
        columns = math.ceil(count / math.ceil(count / widest))
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * step_x + PADDING, rows * step_y + PADDING), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for i, drawn in enumerate(cells):
        left, top = PADDING + i % columns * step_x, PADDING + i // columns * step_y
        sheet.paste(drawn, (left, top))
        if captions is not None:
            text = _cut(captions[i], font, drawn.width)
            draw.text((left, top + drawn.height + 3), text, INK, font)
    if path is not None:
        save_png(sheet, path)
    return sheet


def _check_shapes(images: Tensor, captions: Sequence[str] | None, masks: Tensor | None) -> None:
    if images.ndim != 4 or not len(images):
        raise ValueError(f"expected images (b c h w), at least one, got {tuple(images.shape)}")
    wanted = (len(images), *images.shape[2:])
    if masks is not None and tuple(masks.shape) != wanted:
        raise ValueError(f"expected masks {wanted}, got {tuple(masks.shape)}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"expected {len(images)} captions, got {len(captions)}")


def save_png(sheet: Image.Image, path: Path | str) -> None:
    """Write a picture at once or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_bytes(path, buffer.getvalue())


def cell(image: Tensor, mask: Tensor | None, scale: int) -> Image.Image:
    """One image (c h w) in [-1, 1], `scale` times enlarged, with the outlines of its mask (h w)."""
    values = image.detach().float().cpu().nan_to_num(-1).clamp(-1, 1).numpy()
    pixels = np.rint((values + 1) * 127.5).astype(np.uint8)
    coloured = len(pixels) == 3
    panels = [pixels.transpose(1, 2, 0)] if coloured else list(pixels)
    outline = None if mask is None else np.repeat(np.repeat(mask.cpu().numpy(), scale, 0), scale, 1)
    drawn = []
    for panel in panels:
        picture = Image.fromarray(np.ascontiguousarray(panel))
        size = (picture.width * scale, picture.height * scale)
        large = np.array(picture.resize(size, Image.Resampling.BICUBIC).convert("RGB"))
        drawn.append(large if outline is None else outlined(large, outline))
    return Image.fromarray(np.concatenate(drawn, axis=1))


def outlined(picture: NDArray[np.uint8], mask: NDArray[Any]) -> NDArray[np.uint8]:
    """A picture (h w 3) with the inner edge of every class but the background in its colour."""
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = np.any([other != mask for other in neighbours], axis=0) & (mask > 0)
    picture = picture.copy()
    for value in np.unique(mask[edge]):
        picture[edge & (mask == value)] = OUTLINES[(int(value) - 1) % len(OUTLINES)]
    return picture


def _cut(text: str, font: Any, width: int) -> str:
    """The text on one line, cut with an ellipsis to fit a width in pixels."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."
