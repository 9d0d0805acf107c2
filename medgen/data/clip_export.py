"""Clips out: AVI without loss, MP4, GIF, and DICOM images that say they are synthetic."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.data.clips import Clip, read_clip
from medgen.data.dicom import set_pixels, synthetic_elements
from medgen.disk import write_bytes
from medgen.errors import OutputError
from medgen.types import Provenance

MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.7.2"
ULTRASOUND_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.3.1"

ENCODINGS: dict[str, tuple[str, str, dict[str, str]]] = {
    ".avi": ("ffv1", "gray", {"level": "1", "threads": "1"}),
    ".mp4": ("libx264", "yuv420p", {"crf": "12", "preset": "medium", "threads": "1"}),
    ".gif": ("gif", "gray", {"threads": "1"}),
}
"""Encoder, its pixels and its settings by the ending of a file. One thread: the same bytes."""


def write_clip(path: Path | str, clip: Clip) -> Path:
    """Write a clip by the ending of its name, at once or not at all; returns the file.

    AVI (FFV1) and GIF keep every grey level; MP4 (H.264) does not, and takes even heights and
    widths alone. GIF counts time in hundredths of a second. The same clip always gives the same
    bytes, for one release of FFmpeg.

    Args:
        path: ends in .avi, .mp4 or .gif.
        clip: the frames.

    Raises:
        ValueError: another ending, or an odd height or width for MP4.
        OutputError: the file cannot be written.
    """
    import av
    from av.codec.context import Flags

    path = Path(path)
    if path.suffix not in ENCODINGS:
        raise ValueError(f"expected a name that ends in {', '.join(ENCODINGS)}, got {path.name}")
    encoder, form, options = ENCODINGS[path.suffix]
    height, width = clip.frames.shape[1:]
    if path.suffix == ".mp4" and (height % 2 or width % 2):
        raise ValueError(f"MP4 takes even heights and widths, got {height} x {width}; choose AVI")
    rate = Fraction(clip.rate).limit_denominator(1001)
    target = io.BytesIO()
    with av.open(
        target, mode="w", format=path.suffix[1:], container_options={"fflags": "+bitexact"}
    ) as container:
        stream: Any = container.add_stream(encoder, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, form
        stream.codec_context.flags |= Flags.bitexact
        for place, levels in enumerate(clip.frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(levels), format="gray")
            frame.pts, frame.time_base = place, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_bytes(path, target.getvalue())
    return path


def write_multiframe(path: Path | str, clip: Clip, origin: Provenance, number: int = 1) -> Path:
    """Write a synthetic clip as a DICOM multi-frame image that says so; returns the file.

    It is an ultrasound image where the mm between its pixels are known, else a secondary capture.

    Args:
        path: the file.
        clip: the frames.
        origin: what drew it.
        number: of the instance in its series.

    Raises:
        OutputError: the file cannot be written.

    Source: DICOM PS3.3 A.7 (ultrasound multi-frame), A.8.3 (secondary capture), C.7.6.5 (cine).
    """
    from pydicom.dataset import Dataset as Elements

    made = synthetic_elements(
        origin, MULTI_FRAME if clip.spacing is None else ULTRASOUND_MULTI_FRAME, number
    )
    made.ImageType = ["DERIVED", "PRIMARY" if clip.spacing else "SECONDARY"]
    made.Modality = "US" if clip.spacing else "OT"
    set_pixels(made, clip.frames)
    made.FrameTime = f"{1000 / clip.rate:.10g}"
    made.FrameIncrementPointer = 0x00181063
    made.PatientOrientation = ""
    if clip.spacing is None:
        made.ConversionType = "SYN"
    else:
        region = Elements()
        region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
        region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
        region.RegionLocationMaxX1 = made.Columns - 1
        region.RegionLocationMaxY1 = made.Rows - 1
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = clip.spacing[1] / 10, clip.spacing[0] / 10
        made.SequenceOfUltrasoundRegions = [region]
    content = io.BytesIO()
    made.save_as(content, enforce_file_format=True)
    write_bytes(path, content.getvalue())
    return Path(path)


def check_written(path: Path, clip: Clip, levels: float = 0.0) -> None:
    """Read a clip back and hold frames, height, width, rate and grey levels against what was meant.

    Args:
        path: the file.
        clip: what it should hold.
        levels: mean grey levels by which it may be off, where it is written with loss.

    Raises:
        OutputError: it holds something else.
    """
    back = read_clip(path)
    same_shape = back.frames.shape == clip.frames.shape
    if not same_shape or abs(back.rate - clip.rate) > 0.01 * clip.rate:
        raise OutputError(
            f"{path}: reads back as {_shape(back)}, written were {_shape(clip)}. Report this."
        )
    apart = float(_apart(back.frames, clip.frames))
    if apart > levels:
        raise OutputError(f"{path}: reads back {apart:.3g} grey levels off. Report this.")


def _shape(clip: Clip) -> str:
    frames, height, width = clip.frames.shape
    return f"{frames} frames of {height} x {width} pixels at {clip.rate:.4g} Hz"


def _apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())
