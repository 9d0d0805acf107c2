"""Clips in: AVI, MP4, GIF, DICOM multi-frame and folders of PNG frames, with guards.

They are written in `clip_export.py`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medgen.data.files import LUMINANCE, damaged, read_bytes, read_image
from medgen.data.geometry import Fit, fit_image, fit_mask
from medgen.errors import DataError

MAX_FRAME = 16_000_000
"""The largest frame that is decoded, in pixels (4000 x 4000); refused from the header alone."""

MAX_PIXELS = 1_000_000_000
"""The longest clip that is read, in pixels of all its frames (1 GB of grey levels)."""

COLOUR = 40
"""Grey levels by which the channels of a pixel differ where it is coloured."""

COLOURED = 0.002
"""Share of coloured pixels above which a frame counts as coloured (Doppler); marks stay below."""

UNEVEN = 0.5
"""Steps between frames by which times may stray from even ones (a GIF counts hundredths of s)."""

VIDEOS = {".avi", ".mp4", ".m4v", ".mov", ".gif", ".mkv", ".webm"}
Uneven = Literal["refuse", "resample"]
Colour = Literal["refuse", "grey"]


@dataclass(frozen=True)
class Clip:
    """A clip of grey levels.

    Args:
        frames: (frames height width) uint8; colour is turned into luminance.
        rate: frames a second, Hz.
        spacing: mm between rows and between columns, where the file says; a header whose ultrasound
            region does not fit its frames says nothing.
        coloured: how many frames are in colour, as of colour Doppler.
        moved: how many frames were repeated or left out to make uneven times even.
    """

    frames: NDArray[np.uint8]
    rate: float
    spacing: tuple[float, float] | None = None
    coloured: int = 0
    moved: int = 0

    @property
    def seconds(self) -> float:
        """How long it is: each frame stands for one step of time."""
        return len(self.frames) / self.rate


def read_clip(
    path: Path | str,
    *,
    rate: float | None = None,
    colour: Colour = "refuse",
    uneven: Uneven = "refuse",
) -> Clip:
    """The clip of a video, a DICOM multi-frame image or a folder of PNG frames.

    Args:
        path: the file, or the folder, whose frames are in the order of the numbers in their names.
        rate: Hz; of a folder, which states none. Contradicting a file is an error.
        colour: "refuse" clips with coloured frames, or turn them "grey" and count them.
        uneven: "refuse" clips whose frames are not evenly spaced in time, or "resample" them to
            their median rate by taking the nearest frame at every step, and count those moved.

    Raises:
        DataError: missing, damaged, truncated, too large, in colour, uneven in time or without a
            rate; the text names the file and says what to do.
    """
    path = Path(path)
    if path.is_dir():
        frames, times, spacing = _read_folder(path, rate)
    else:
        data = read_bytes(path)
        if data[128:132] == b"DICM" or path.suffix.lower() in {".dcm", ".dicom"}:
            frames, times, spacing = _read_dicom(path, data, rate)
        elif path.suffix.lower() in VIDEOS:
            frames, times, spacing = *_read_video(path, data), None
        else:
            raise DataError(
                f"{path}: expected a clip as {', '.join(sorted(VIDEOS))}, DICOM or a folder of PNG "
                "frames. Convert it, or drop its row."
            )
    grey, coloured = _grey(path, frames)
    if coloured and colour == "refuse":
        raise DataError(
            f"{path}: {coloured} of {len(grey)} frames are in colour, as of colour Doppler. "
            "Drop its row, or read colour as grey."
        )
    if len(grey) < 2:
        raise DataError(f"{path}: expected two frames or more, got {len(grey)}.")
    order, found = _even(path, times, uneven)
    if rate is not None and abs(found - rate) > 0.01 * rate:
        raise DataError(f"{path}: states {found:.4g} frames a second, but {rate:g} was asked for.")
    moved = int((np.bincount(order, minlength=len(grey)) != 1).sum())
    return Clip(grey[order], found, spacing, coloured, moved)


def at_rate(clip: Clip, rate: float) -> Clip:
    """The clip at another rate, by the nearest frame in time: no frame is a blend of two.

    A frame is shown at most half a step of the old rate early or late. It keeps
    round(frames * rate / old rate) frames.
    """
    order = nearest_frames(len(clip.frames), clip.rate, rate)
    return Clip(clip.frames[order], rate, clip.spacing, clip.coloured, clip.moved)


def nearest_frames(count: int, old: float, new: float) -> NDArray[np.int64]:
    """For every frame at the new rate, the old frame that is nearest in time."""
    wanted = np.arange(max(1, round(count * new / old)))
    return np.minimum(np.floor(wanted * (old / new) + 0.5), count - 1).astype(np.int64)


def fit_clip(
    frames: NDArray[np.uint8], size: tuple[int, int], fit: Fit = "crop"
) -> NDArray[np.uint8]:
    """Frames (t h w) at another height and width, as `fit_image` does."""
    fitted = fit_image(frames.astype(np.float32) / np.float32(255), size, fit)
    return np.rint(fitted.clip(0, 1) * 255).astype(np.uint8)


def fit_masks(masks: NDArray[Any], size: tuple[int, int], fit: Fit = "crop") -> NDArray[Any]:
    """Classes (t h w) at another height and width, aligned with `fit_clip`."""
    return np.stack([fit_mask(mask, size, fit) for mask in masks])


def fitted_spacing(
    spacing: tuple[float, float], old: tuple[int, int], new: tuple[int, int], fit: Fit
) -> tuple[float, float]:
    """Mm between rows and between columns after `fit_clip`."""
    scales = [have / want for have, want in zip(old, new, strict=True)]
    if fit != "squash":
        scales = [min(scales) if fit == "crop" else max(scales)] * 2
    return spacing[0] * scales[0], spacing[1] * scales[1]


def _check_size(path: Path, height: int, width: int, frames: int = 1) -> None:
    if height < 1 or width < 1 or height * width > MAX_FRAME:
        raise DataError(
            f"{path}: its header promises frames of {height} x {width} pixels; at most "
            f"{MAX_FRAME:,} pixels are read. Shrink the clip, or drop its row."
        )
    if height * width * frames > MAX_PIXELS:
        raise DataError(
            f"{path}: more than {MAX_PIXELS // (height * width):,} frames of {height} x {width} "
            f"pixels; at most {MAX_PIXELS:,} pixels are read. Cut the clip, or drop its row."
        )


def _read_video(path: Path, data: bytes) -> tuple[Iterable[NDArray[Any]], list[float]]:
    """Frames, grey (h w) or in colour (h w 3), and their times in s."""
    import av

    frames: list[NDArray[Any]] = []
    times: list[float] = []
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video. Drop its row.")
            stream = container.streams.video[0]
            _check_size(path, stream.height, stream.width)
            form = "gray" if stream.pix_fmt in {"gray", "gray8"} else "rgb24"
            for frame in container.decode(stream):
                _check_size(path, frame.height, frame.width, len(frames) + 1)
                if frames and frames[0].shape[:2] != (frame.height, frame.width):
                    raise DataError(f"{path}: its frames have several sizes. Drop its row.")
                pixels = frame.to_ndarray(format=form)
                frames.append(pixels if form == "gray" else _plain(pixels))
                times.append(float("nan") if frame.time is None else frame.time)
            promised = stream.frames
    except DataError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged or hostile bytes
        raise damaged(path, error) from error
    if promised and len(frames) < promised:
        raise damaged(path, EOFError(f"{len(frames)} of {promised} frames are there"))
    return frames, times


def _plain(pixels: Any) -> NDArray[np.uint8]:
    """A frame (h w) where all channels are equal, else (h w 3)."""
    return pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels


def _read_folder(
    folder: Path, rate: float | None
) -> tuple[Iterable[NDArray[Any]], list[float], None]:
    files = sorted(folder.glob("*.png"), key=lambda file: _numbered(file.stem))
    if not files:
        raise DataError(f"{folder}: holds no PNG frames.")
    if rate is None:
        raise DataError(f"{folder}: a folder of frames states no rate. Say it with `rate`, in Hz.")

    def frames() -> Iterator[NDArray[Any]]:
        first = None
        for place, file in enumerate(files):
            image = read_image(file)
            height, width = image.pixels.shape[1:]
            first = first or (height, width)
            _check_size(file, height, width, place + 1)
            if (height, width) != first:
                raise DataError(f"{file}: {height} x {width} pixels; frames before have {first}.")
            levels = np.rint(image.pixels * 255.0).astype(np.uint8)
            yield levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)

    return frames(), [place / rate for place in range(len(files))], None


def _numbered(name: str) -> tuple[Any, ...]:
    """A key that sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def _read_dicom(
    path: Path, data: bytes, rate: float | None
) -> tuple[Iterable[NDArray[Any]], list[float], tuple[float, float] | None]:
    import pydicom
    from pydicom.pixels.utils import iter_pixels

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(io.BytesIO(data))
            count = int(header.get("NumberOfFrames") or 1)
            _check_size(path, int(header.Rows), int(header.Columns), count)
            if int(header.BitsStored) != 8:
                raise DataError(f"{path}: expected 8 bits a pixel, got {int(header.BitsStored)}.")
            if str(header.PhotometricInterpretation) == "PALETTE COLOR":
                raise DataError(f"{path}: palette colours are not read. Export it as RGB.")
            frames = [np.asarray(frame, np.uint8) for frame in iter_pixels(header)]
            if str(header.PhotometricInterpretation) == "MONOCHROME1":
                frames = [255 - frame for frame in frames]
            return frames, _times(path, header, count, rate), _spacing(header)
    except DataError:
        raise
    except Exception as error:  # parsers raise almost anything on damaged or hostile bytes
        raise damaged(path, error) from error


def _times(path: Path, header: Any, count: int, rate: float | None) -> list[float]:
    """Seconds of every frame, by DICOM PS3.3 C.7.6.5 (cine)."""
    steps = header.get("FrameTimeVector")
    if steps is not None and len(steps) == count:
        return (np.cumsum([float(step) for step in steps]) / 1000).tolist()
    step = float(header.get("FrameTime") or 0) / 1000
    hertz = header.get("CineRate") or header.get("RecommendedDisplayFrameRate")
    step = step or (1 / float(hertz) if hertz else 0) or (1 / rate if rate else 0)
    if not step > 0:
        raise DataError(f"{path}: states no frame time. Say it with `rate`, in Hz.")
    return [place * step for place in range(count)]


def _spacing(header: Any) -> tuple[float, float] | None:
    """Mm between rows and columns: of the ultrasound region that lies inside the frames, in cm."""
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        inside = int(region.get("RegionLocationMaxX1", 0)) < int(header.Columns)
        inside = inside and int(region.get("RegionLocationMaxY1", 0)) < int(header.Rows)
        units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
        if inside and units == (3, 3):
            found = 10 * float(region.PhysicalDeltaY), 10 * float(region.PhysicalDeltaX)
            if min(found) > 0:
                return found
    spacing = header.get("PixelSpacing")
    return (float(spacing[0]), float(spacing[1])) if spacing and min(spacing) > 0 else None


def _grey(path: Path, frames: Iterable[NDArray[Any]]) -> tuple[NDArray[np.uint8], int]:
    """Frames (t h w) in luminance, and how many were in colour."""
    weights, levels, coloured = np.asarray(LUMINANCE, np.float32), [], 0
    for frame in frames:
        if frame.ndim == 3:
            apart = frame.max(axis=-1).astype(int) - frame.min(axis=-1)
            coloured += int((apart > COLOUR).mean() > COLOURED)
            frame = np.rint(frame.astype(np.float32) @ weights).astype(np.uint8)
        levels.append(frame)
    if not levels:
        raise DataError(f"{path}: holds no frame that can be decoded. Copy it again.")
    return np.stack(levels), coloured


def _even(path: Path, times: list[float], uneven: Uneven) -> tuple[NDArray[np.int64], float]:
    """The frames to take at even steps of time, and their rate."""
    held = np.array(times)
    steps = np.diff(held)
    if not np.isfinite(held).all() or not (steps > 0).all():
        raise DataError(
            f"{path}: the times of its frames do not rise. Convert it, or drop its row."
        )
    step = float(steps.mean())
    straight = held[0] + step * np.arange(len(held))
    if np.abs(held - straight).max() <= UNEVEN * step:
        rate = 1 / step
        return np.arange(len(held)), round(rate) if abs(rate - round(rate)) < 0.002 else rate
    if uneven == "refuse":
        raise DataError(
            f"{path}: its frames are {1000 * steps.min():.3g} to {1000 * steps.max():.3g} ms "
            "apart; expected one frame rate. Convert it to one, or resample `uneven` times."
        )
    step = float(np.median(steps))
    wanted = held[0] + step * np.arange(round((held[-1] - held[0]) / step) + 1)
    nearest = np.abs(wanted[:, None] - held[None]).argmin(axis=1)
    return nearest.astype(np.int64), 1 / step
