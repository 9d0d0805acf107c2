"""Clips that play: the frames, and under them an M-mode, the ECG and the volume over their time.

One cursor moves through all strips with the frame that is shown.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medgen.data.clip_export import ENCODINGS
from medgen.data.windows import UNKNOWN
from medgen.disk import write_bytes
from medgen.evaluation.heart import ejection_fraction, volume_curve
from medgen.report.pictures import INK, PADDING, PAPER, cell
from medgen.types import Batch, Schema

WIDTH = 176
"""Pixels that a clip is brought to across, about: small ones by a whole factor."""
STRIP = 44
"""Pixels of a strip from top to bottom."""
FINE = 3
"""Strips are drawn so many times larger and averaged down, which smooths their lines."""
FONT = 11
CURSOR, TRACE, CURVE, QUIET = (250, 205, 80), (120, 220, 130), (72, 187, 255), (60, 66, 76)
CAVITY = "cavity"
GREYS = 200
"""Grey levels of a GIF's palette; what is left holds colours."""

Pixels = NDArray[np.uint8]
Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Loop:
    """A picture that plays, again and again.

    Args:
        frames: (t h w 3) in 8 bits.
        rate: frames a second, Hz.
        caption: what it shows, in a line.
        real: it shows a real study.
    """

    frames: Pixels
    rate: float
    caption: str = ""
    real: bool = False


def is_clip(schema: Schema) -> bool:
    """Whether studies are clips (time, height, width) whose rate is known."""
    return schema.time and len(schema.size) == 3 and bool(schema.spacing)


def loop(
    study: Batch, schema: Schema, *, title: str = "", caption: str = "", real: bool = False
) -> Loop:
    """A clip with what is known of it over the same time.

    Under the clip stand an M-mode (its middle scan line over time), lead II of the ECG, and the
    volume of the cavity from the masks, with end diastole (ED), end systole (ES) and the ejection
    fraction (EF); each only where the study has it.

    Args:
        study: one, with an image (1 c t h w) in [-1, 1].
        schema: of the study.
        title: a word or two that is written into the picture.
        caption: of the loop.
        real: the study is real.

    Raises:
        ValueError: the study is no clip, or not one.
    """
    if not is_clip(schema) or study.image is None or len(study.image) != 1:
        raise ValueError(f"expected one clip, got {len(study)} studies of {schema.size}")
    clip, masks = study.image[0], None if study.mask is None else study.mask[0]
    scale = max(1, round(WIDTH / clip.shape[-1]))
    shown = []
    for place in range(clip.shape[1]):
        outlines = None if masks is None else masks[place].clamp(min=0)
        picture = cell(clip[:, place], outlines, scale)
        if picture.width > 2 * WIDTH:
            size = (2 * WIDTH, round(picture.height * 2 * WIDTH / picture.width))
            picture = picture.resize(size, Image.Resampling.BOX)
        shown.append(np.asarray(picture))
    frames = np.stack(shown)
    if title:
        frames = np.stack([_titled(frame, title) for frame in frames])
    strips = [_m_mode(clip.mean(dim=0).numpy(), frames.shape[2])]
    if study.ecg is not None and schema.leads:
        lead = schema.leads.index("II") if "II" in schema.leads else 0
        trace = study.ecg[0, lead].double().numpy()
        strips.append(_strip(trace, frames.shape[2], TRACE, f"ECG {schema.leads[lead]}"))
    if masks is not None and CAVITY in schema.mask_classes:
        strips.append(_volume_strip(masks.numpy(), schema, frames.shape[2]))
    return Loop(_with_cursor(frames, strips), 1 / schema.spacing[0], caption, real)


def beside(loops: Sequence[Loop], columns: int | None = None) -> Loop:
    """Loops of one length and rate as one, in rows from left to right.

    Args:
        loops: at least one; lower pictures are filled up.
        columns: in a row; None lays all in one row.

    Raises:
        ValueError: none, or of several lengths or rates.
    """
    if len({(len(each.frames), each.rate) for each in loops}) != 1:
        raise ValueError("expected loops of one length and one rate, at least one")
    columns = columns or len(loops)
    height, width = (max(each.frames.shape[axis] for each in loops) for axis in (1, 2))
    rows = -(-len(loops) // columns)
    size = (rows * (height + PADDING) - PADDING, columns * (width + PADDING) - PADDING)
    page = np.full((len(loops[0].frames), *size, 3), PAPER, np.uint8)
    for place, each in enumerate(loops):
        top = place // columns * (height + PADDING)
        left = place % columns * (width + PADDING)
        page[:, top : top + each.frames.shape[1], left : left + each.frames.shape[2]] = each.frames
    return replace(loops[0], frames=page, real=any(each.real for each in loops))


def write_loop(path: Path | str, shown: Loop) -> Path:
    """Write a loop as GIF, MP4 or WebP by the ending of its name; returns the file.

    Raises:
        ValueError: another ending.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    encoders = {".gif": gif, ".mp4": _mp4, ".webp": webp}
    if path.suffix.lower() not in encoders:
        raise ValueError(f"expected a name that ends in {', '.join(encoders)}, got {path.name}")
    write_bytes(path, encoders[path.suffix.lower()](shown))
    return path


def webp(shown: Loop, quality: int = 60) -> bytes:
    """A loop as an animated WebP, several times smaller than a GIF."""
    pictures = [Image.fromarray(frame) for frame in shown.frames]
    return _animated(pictures, "WEBP", _durations(shown, 1), quality=quality, method=4)


def gif(shown: Loop) -> bytes:
    """A loop as an animated GIF, whose frames last whole hundredths of a second."""
    palette = Image.new("P", (1, 1))
    greys = [round(255 * k / (GREYS - 1)) for k in range(GREYS)]
    colours = _colours(shown.frames, 256 - GREYS)
    palette.putpalette([level for grey in greys for level in (grey,) * 3] + colours)
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in shown.frames
    ]
    return _animated(pictures, "GIF", _durations(shown, 10), optimize=False)


def _colours(frames: Pixels, count: int) -> list[int]:
    """Red, green and blue of the most frequent pixels that are not grey, one after the other."""
    pixels = frames[:: max(1, len(frames) // 8)].reshape(-1, 3)
    coloured = pixels[np.ptp(pixels.astype(np.int16), axis=1) > 8]
    found, counts = np.unique(coloured & 0xF0, axis=0, return_counts=True)
    chosen = found[np.argsort(-counts, kind="stable")[:count]] + 8
    return np.pad(chosen, ((0, count - len(chosen)), (0, 0))).ravel().tolist()


def _durations(shown: Loop, step: int) -> list[int]:
    """Milliseconds of every frame, in steps that add up to the time of the whole."""
    ends = np.arange(len(shown.frames) + 1) * 1000 / shown.rate
    return (np.diff(np.rint(ends / step)) * step).clip(min=step).astype(int).tolist()


def _animated(
    pictures: list[Image.Image], form: str, durations: list[int], **settings: Any
) -> bytes:
    target = io.BytesIO()
    first, *others = pictures
    first.save(
        target, form, save_all=True, append_images=others, duration=durations, loop=0, **settings
    )
    return target.getvalue()


def _mp4(shown: Loop) -> bytes:
    """A loop as H.264, which takes even heights and widths: one row or column more of the page."""
    import av
    from av.codec.context import Flags

    height, width = (side + side % 2 for side in shown.frames.shape[1:3])
    rate = Fraction(shown.rate).limit_denominator(1001)
    encoder, form, options = ENCODINGS[".mp4"]
    target = io.BytesIO()
    with av.open(
        target, mode="w", format="mp4", container_options={"fflags": "+bitexact"}
    ) as container:
        stream: Any = container.add_stream(encoder, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, form
        stream.codec_context.flags |= Flags.bitexact
        page = np.full((height, width, 3), PAPER, np.uint8)
        for place, pixels in enumerate(shown.frames):
            page[: pixels.shape[0], : pixels.shape[1]] = pixels
            frame = av.VideoFrame.from_ndarray(page, format="rgb24")
            frame.pts, frame.time_base = place, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def _titled(frame: Pixels, title: str) -> Pixels:
    picture = Image.fromarray(frame)
    ImageDraw.Draw(picture).text((4, 2), title, INK, ImageFont.load_default(FONT))
    return np.asarray(picture)


def _m_mode(clip: NDArray[np.float32], width: int) -> Pixels:
    """The middle column of a clip (t h w) in [-1, 1], time from left to right."""
    line = clip[:, :, clip.shape[2] // 2].T  # h t
    grey = Image.fromarray(np.rint((line.clip(-1, 1) + 1) * 127.5).astype(np.uint8))
    picture = grey.resize((width, 2 * STRIP), Image.Resampling.BICUBIC).convert("RGB")
    return _labelled(picture, "M-mode")


def _strip(
    values: Curve, width: int, colour: tuple[int, int, int], label: str, marks: str = ""
) -> Pixels:
    """A curve over time from left to right; NaN breaks it, and a value between two is a dot.

    Args:
        values: evenly over the time of the clip.
        width: pixels.
        colour: of the curve.
        label: written at its upper left.
        marks: "frames" marks the largest (ED) and the smallest value (ES).
    """
    picture = Image.new("RGB", (width * FINE, STRIP * FINE), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.line([(0, 0), (width * FINE, 0)], fill=QUIET, width=FINE)
    known = np.isfinite(values)
    if known.any():
        low, high = float(values[known].min()), float(values[known].max())
        across = (np.arange(len(values)) + 0.5) / len(values) * width * FINE
        top, reach = (FONT + 6) * FINE, (STRIP - FONT - 10) * FINE
        down = top + reach * (1 - (values - low) / max(high - low, 1e-9))
        for run in _runs(known):
            points = list(zip(across[run].tolist(), down[run].tolist(), strict=True))
            draw.line(points, fill=colour, width=FINE, joint="curve")
            if len(points) == 1:
                _dot(draw, points[0], colour)
        for place in _extremes(values) if marks else ():
            _dot(draw, (float(across[place]), float(down[place])), CURSOR)
    small = picture.resize((width, STRIP), Image.Resampling.BOX)
    if marks and known.any():
        _name_extremes(small, values, width)
    return _labelled(small, label)


def _extremes(values: Curve) -> tuple[int, int]:
    """Where a curve is largest and smallest."""
    return int(np.nanargmax(values)), int(np.nanargmin(values))


def _name_extremes(picture: Image.Image, values: Curve, width: int) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT - 2)
    heights = (FONT + 4, STRIP - FONT - 3)
    for place, words, top in zip(_extremes(values), ("ED", "ES"), heights, strict=True):
        left = (place + 0.5) / len(values) * width + 4
        draw.text((min(left, width - 15), top), words, INK, font)


def _runs(known: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Places of every stretch of known values."""
    places = np.flatnonzero(known)
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)


def _dot(draw: ImageDraw.ImageDraw, at: tuple[float, float], colour: tuple[int, int, int]) -> None:
    reach = 2 * FINE
    draw.ellipse([at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach], fill=colour)


def _volume_strip(masks: NDArray[np.int64], schema: Schema, width: int) -> Pixels:
    """The volume of the cavity in every frame that has a mask (t h w), and the EF they show."""
    apart = schema.spacing[1:]
    volumes = volume_curve(
        masks == schema.mask_classes.index(CAVITY), (apart[0], apart[1]) if apart else (1.0, 1.0)
    )
    volumes[(masks == UNKNOWN).all(axis=(1, 2))] = np.nan
    if not np.isfinite(volumes).any():
        return _strip(volumes, width, CURVE, "volume: no mask")
    unit = f"{np.nanmin(volumes):.0f} to {np.nanmax(volumes):.0f} mL, " if apart else ""
    label = f"volume {unit}EF {ejection_fraction(volumes):.0f} %"
    return _strip(volumes, width, CURVE, label, marks="frames")


def _labelled(picture: Image.Image, label: str) -> Pixels:
    ImageDraw.Draw(picture).text((4, 2), label, INK, ImageFont.load_default(FONT))
    return np.array(picture)


def _with_cursor(frames: Pixels, strips: Sequence[Pixels]) -> Pixels:
    """Frames above strips; a line through the strips marks the time of each frame."""
    below = np.concatenate(list(strips))
    shown = []
    for place, frame in enumerate(frames):
        marked = below.copy()
        across = int((place + 0.5) / len(frames) * below.shape[1])
        marked[:, across] = CURSOR
        shown.append(np.concatenate([frame, marked]))
    return np.stack(shown)
