"""Image files in and out: PNG, JPEG, TIFF and DICOM, 8 and 16 bit, with guards for hostile ones.

What is not known to be read faithfully is refused with the file's name and what to do, never cast.
"""

from __future__ import annotations

import io
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medgen.disk import write_bytes
from medgen.errors import DataError

MAX_PIXELS = 50_000_000
"""The largest image that is read, in pixels (7000 x 7000); refused from the header alone."""

MAX_BYTES = 512 * 2**20
"""The largest file that is opened, in bytes."""

FORMATS = ("PNG", "JPEG", "TIFF")
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grayscale image (ITU-R BT.601)."""

_PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageFile:
    """A decoded image.

    Args:
        pixels: (c, height, width) float32 in [0, 1]; 0 is black.
        bits: bits a pixel that the file stores: up to 8, or up to 16.
        mode: how the file stores it, such as "L", "RGB", "I;16" or "DICOM MONOCHROME2".
        spacing: mm between rows and between columns, where the file says.
    """

    pixels: NDArray[np.float32]
    bits: int
    mode: str
    spacing: tuple[float, float] | None = None


def read_image(path: Path | str) -> ImageFile:
    """The image in a file, scaled to [0, 1].

    PNG, JPEG and TIFF are divided by the largest value of their bit depth. DICOM goes through its
    rescale, then its first VOI window or look-up table where it has one, else from the least to the
    largest pixel that is not padding; MONOCHROME1 is inverted, so that bone is bright.

    Raises:
        DataError: the file is missing, empty, truncated, too large, of an unknown format, or stores
            pixels that cannot be read faithfully; the text names it and says what to do.
    """
    path = Path(path)
    data = read_bytes(path)
    if data[128:132] == b"DICM" or path.suffix.lower() in {".dcm", ".dicom"}:
        return _read_dicom(path, data)
    image = _decode(path, data)
    pixels, bits = _scaled(path, image)
    return ImageFile(pixels, bits, image.mode)


def read_mask(path: Path | str) -> NDArray[np.int64]:
    """The classes (height, width) that a mask file stores, as they are stored.

    Palette images give their indices. Colour images are taken only if all channels are equal.

    Raises:
        DataError: as for `read_image`, or the mask is in colour.
    """
    path = Path(path)
    image = _decode(path, read_bytes(path))
    if image.mode in {"1", "L", "P", "I", "I;16", "I;16B"}:
        return np.asarray(image).astype(np.int64)
    if image.mode in {"RGB", "RGBA", "LA"}:
        values = np.asarray(image.convert("RGB")).astype(np.int64)
        if (values == values[..., :1]).all():
            return values[..., 0]
    raise DataError(
        f"{path}: expected a mask of one integer class a pixel, got an image of mode {image.mode} "
        "in colour. Save it as a grayscale PNG whose values are the classes."
    )


def to_channels(pixels: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Pixels (c, h, w) with the channels asked for: colour to gray by luminance, gray repeated.

    Raises:
        ValueError: there is no faithful conversion.
    """
    have = len(pixels)
    if have == channels:
        return pixels
    if have == 3 and channels == 1:
        return np.tensordot(np.asarray(LUMINANCE, np.float32), pixels, 1)[None].astype(np.float32)
    if have == 1:
        return np.repeat(pixels, channels, axis=0)
    raise ValueError(f"expected an image of {channels} channel(s), got {have}")


def write_png(path: Path | str, pixels: NDArray[Any], *, bits: Literal[8, 16] = 8) -> None:
    """Write a PNG at once or not at all; the same pixels always give the same bytes.

    Args:
        path: where to.
        pixels: (h, w), (1, h, w) or (3, h, w). Floats in [0, 1] are scaled to the bit depth and
            rounded; integers are written as they are.
        bits: 8, or 16 for grayscale.

    Raises:
        ValueError: pixels of another shape, out of range, or 16 bits in colour.
        OutputError: the file cannot be written.
    """
    array = np.asarray(pixels)
    array = array[0] if array.ndim == 3 and len(array) == 1 else array
    if array.ndim not in (2, 3) or (array.ndim == 3 and (len(array) != 3 or bits == 16)):
        raise ValueError(
            f"expected (h, w) or 8-bit (3, h, w) pixels, got {array.shape}, {bits} bit"
        )
    top = 2**bits - 1
    limit = 1 if array.dtype.kind == "f" else top
    if array.size == 0 or not (array.min() >= 0 and array.max() <= limit):
        raise ValueError(f"expected some pixels, all in [0, {limit}]")
    if array.dtype.kind == "f":
        array = np.rint(array * top)
    array = array.astype(np.uint8 if bits == 8 else np.uint16)
    buffer = io.BytesIO()
    array = array if array.ndim == 2 else array.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def read_bytes(path: Path) -> bytes:
    """All bytes of a file of at most 512 MiB.

    Raises:
        DataError: no file, unreadable, empty or larger.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise DataError(f"{path}: expected a file, got a folder or a device.")
        if about.st_size > MAX_BYTES:
            raise DataError(
                f"{path}: {about.st_size / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20} MiB are "
                "read. Shrink it, or drop its row."
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}).") from error
    if not data:
        raise DataError(f"{path}: the file is empty (0 bytes). Copy it again, or drop its row.")
    return data


def damaged(path: Path, error: Exception) -> DataError:
    """What to say of a file that a decoder cannot make sense of."""
    return DataError(
        f"{path}: damaged or truncated ({type(error).__name__}: {error}). Copy it again, or drop "
        "its row."
    )


def _check_pixels(path: Path, count: int) -> None:
    if count > MAX_PIXELS:
        raise DataError(
            f"{path}: its header promises {count:,} pixels; at most {MAX_PIXELS:,} are read. "
            "Shrink the image, or drop its row."
        )


def _decode(path: Path, data: bytes) -> Image.Image:
    if data.startswith(_PNG_START) and data[24:26] in {b"\x10\x02", b"\x10\x06"}:
        raise DataError(
            f"{path}: 16-bit colour PNG is not read faithfully. Save it as 8-bit colour or as "
            "16-bit grayscale."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_pixels(path, image.width * image.height)
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise DataError(f"{path}: expected one image, got {frames} frames. Split the file.")
            image.load()
            return ImageOps.exif_transpose(image)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(
            f"{path}: not a PNG, JPEG, TIFF or DICOM image, whatever its name says. "
            "Convert it, or drop its row."
        ) from error
    except Exception as error:  # decoders raise almost anything on damaged or hostile bytes
        raise damaged(path, error) from error


def _scaled(path: Path, image: Image.Image) -> tuple[NDArray[np.float32], int]:
    """Pixels (c, h, w) in [0, 1] and the bits that the file stores them in."""
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in {"LA", "RGBA"}:
        if image.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{path}: the image is partly transparent. Save it without an alpha.")
        image = image.convert(image.mode[:-1])
    if image.mode in {"1", "L", "RGB"}:
        array = np.asarray(image)
        top, bits = (1, 1) if image.mode == "1" else (255, 8)
    elif image.mode in {"I;16", "I;16B"} or (image.mode == "I" and image.format == "PNG"):
        array, top, bits = np.asarray(image), 65535, 16
    else:
        raise DataError(
            f"{path}: expected 8 or 16 unsigned bits, grayscale or RGB; got mode {image.mode} "
            "(F and I are 32-bit, of unknown range). Scale it to 16-bit grayscale and save again."
        )
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return array.astype(np.float32) / np.float32(top), bits


def _read_dicom(path: Path, data: bytes) -> ImageFile:
    import pydicom
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(io.BytesIO(data))
            samples = int(header.get("SamplesPerPixel", 1))
            frames = int(header.get("NumberOfFrames", None) or 1)
            _check_pixels(path, int(header.Rows) * int(header.Columns) * samples * frames)
            if frames > 1:
                raise DataError(f"{path}: expected one image, got {frames} frames. Split the file.")
            kind = str(header.PhotometricInterpretation)
            array = pixel_array(header)
            if kind == "PALETTE COLOR":
                array = apply_color_lut(array, header)
                array = array.astype(np.float32) / np.iinfo(array.dtype).max
            elif array.ndim == 3:
                array = array.astype(np.float32) / (2 ** int(header.BitsStored) - 1)
            else:
                array = _grayscale(header, array, apply_modality_lut(array, header), kind)
            pixels = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
            bits = 8 if int(header.BitsStored) <= 8 else 16
            found = ImageFile(pixels.astype(np.float32), bits, f"DICOM {kind}", _spacing(header))
    except DataError:
        raise
    except Exception as error:  # parsers raise almost anything on damaged or hostile bytes
        raise DataError(
            f"{path}: not a readable DICOM image ({type(error).__name__}: {error}). Copy it again, "
            "install the decoder named here, or export it as PNG."
        ) from error
    if not np.isfinite(found.pixels).all():
        raise DataError(f"{path}: the DICOM rescale gives values that are not finite.")
    return found


def _grayscale(
    header: Any, stored: NDArray[Any], values: NDArray[Any], kind: str
) -> NDArray[np.float32]:
    """Rescaled values (h, w) through the window, or from least to largest, to [0, 1]."""
    from pydicom.pixels.processing import apply_voi

    values = values.astype(np.float64)
    if header.get("VOILUTSequence"):
        top = 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
        shown = apply_voi(values.astype(np.int64), header) / top
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        centre, width = _first(header.WindowCenter), _first(header.WindowWidth)
        shown = _windowed(values, centre, width, str(header.get("VOILUTFunction") or "LINEAR"))
    else:
        padding = header.get("PixelPaddingValue")
        inside = values[stored != padding] if padding is not None else values
        inside = inside if inside.size else values
        low, high = float(inside.min()), float(inside.max())
        shown = (values - low) / (high - low) if high > low else np.zeros_like(values)
    shown = np.clip(shown, 0, 1)
    return (1 - shown if kind == "MONOCHROME1" else shown).astype(np.float32)


def _windowed(values: NDArray[Any], centre: float, width: float, kind: str) -> NDArray[Any]:
    """A VOI window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3) to [0, 1]."""
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if kind == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__getitem__") else value)


def _spacing(header: Any) -> tuple[float, float] | None:
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        value = header.get(name)
        if value is not None and len(value) == 2 and min(value) > 0:
            return float(value[0]), float(value[1])
    return None
