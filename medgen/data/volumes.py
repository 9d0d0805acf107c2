"""Volumes in and out: NIfTI files, with their geometry, and guards for hostile ones.

The axes of a volume run to the patient's right, front and head (RAS+), as in NIfTI, MONAI and
TorchIO, so an affine maps indices to mm without any reordering.
"""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.data.files import damaged
from medgen.data.geometry import Volume, spacing_of
from medgen.disk import replacing
from medgen.errors import DataError

MAX_BYTES = 4 * 2**30
"""The largest volume that is read, in bytes of its voxels; refused from the header alone."""

GZIP_LIMIT = 1100
"""How many times its size a gzip file can hold at most (deflate reaches 1032)."""

MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
"""Millimetres a unit of length; NIfTI files that name none are in mm."""

HEADER = 540
"""Bytes of the longer header, NIfTI-2's."""

DAMAGE = (OSError, EOFError, ValueError, zlib.error)
"""What decoders raise on damaged bytes."""


def read_volume(path: Path | str) -> Volume:
    """The volume of a NIfTI file (.nii, .nii.gz), in RAS+ order and in its own numbers.

    Whole numbers stay in the type that the file stores; others, and those that the file scales,
    become float32. What the header promises is held against the size of the file before memory is
    taken. A fourth axis of one entry is dropped.

    Raises:
        DataError: missing, damaged, truncated, too large, no NIfTI file, without three axes, in
            colour, with values that are not finite, or with an affine that is no geometry; the
            text names the file and says what to do.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    path = Path(path)
    header, shape, affine = _examined(path)
    voxels = _scaled(path, header, _voxels(path, header, shape))
    order = io_orientation(affine)
    return Volume(apply_orientation(voxels, order), affine @ inv_ornt_aff(order, shape))


def read_geometry(path: Path | str) -> NDArray[np.float64]:
    """The affine (4 4), voxel index -> RAS+ mm, of a NIfTI file in RAS+ order; no voxel is read.

    Raises:
        DataError: as for `read_volume`, as far as the header shows.
    """
    from nibabel.orientations import inv_ornt_aff, io_orientation

    _, shape, affine = _examined(Path(path))
    return affine @ inv_ornt_aff(io_orientation(affine), shape)


def read_stored(path: Path | str) -> tuple[NDArray[Any], tuple[float, ...]]:
    """The numbers of a NIfTI file of two or three axes as it stores them, and mm along each.

    For images and sequences that are kept in NIfTI files without lying in a patient: no axis is
    turned or reordered.

    Raises:
        DataError: as for `read_volume`, but for the affine.
    """
    path = Path(path)
    size = _size(path)
    header = _header(path)
    shape = _shape(path, header, size, least=2)
    zooms = tuple(float(value) for value in header.get_zooms()[: len(shape)])
    return _scaled(path, header, _voxels(path, header, shape)), zooms


def write_volume(path: Path | str, volume: Volume) -> None:
    """Write a NIfTI file at once or not at all; the same volume always gives the same bytes.

    The header holds geometry and type alone: no description, name, date or time.

    Args:
        path: ends in .nii or .nii.gz.
        volume: float32, or integers of at most 32 bits.

    Raises:
        ValueError: another ending or type of voxels.
        OutputError: the file cannot be written.
    """
    import nibabel

    path = Path(path)
    voxels = volume.voxels
    if voxels.dtype not in (np.float32, np.uint8, np.int16, np.uint16, np.int32):
        raise ValueError(f"expected float32, uint8, int16, uint16 or int32, got {voxels.dtype}")
    image = nibabel.Nifti1Image(voxels, volume.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    data = image.to_bytes()
    if path.name.endswith(".nii.gz"):
        data = gzip.compress(data, compresslevel=6, mtime=0)
    elif path.suffix != ".nii":
        raise ValueError(f"expected a name that ends in .nii or .nii.gz, got {path.name}")
    with replacing(path) as file:
        file.write(data)


def _examined(path: Path) -> tuple[Any, tuple[int, int, int], NDArray[np.float64]]:
    """The header of a file that can hold what it promises, its shape and its affine as stored."""
    size = _size(path)
    header = _header(path)
    x, y, z = _shape(path, header, size)
    return header, (x, y, z), _affine(path, header)


def _size(path: Path) -> int:
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    if not stat.S_ISREG(about.st_mode):
        raise DataError(f"{path}: expected a file, got a folder or a device.")
    return about.st_size


def _compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open(path: Path) -> Any:
    """The file, decompressed where it is compressed."""
    return gzip.open(path, "rb") if _compressed(path) else path.open("rb")


def _header(path: Path) -> Any:
    import nibabel

    try:
        with _open(path) as file:
            start = file.read(HEADER)
        for kind, magic, place in (
            (nibabel.Nifti1Header, b"n+1\0", 344),
            (nibabel.Nifti2Header, b"n+2\0", 4),
        ):
            if start[place : place + 4] == magic:
                length = kind.template_dtype.itemsize
                return kind.from_fileobj(io.BytesIO(start[:length]), check=False)
    except Exception as error:  # nibabel raises almost anything on hostile bytes
        raise damaged(path, error) from error
    raise DataError(
        f"{path}: not a NIfTI file of one part (.nii, .nii.gz), whatever its name says. Convert "
        "it, or drop its row."
    )


def _shape(path: Path, header: Any, size: int, *, least: int = 3) -> tuple[int, ...]:
    """Three extents (or `least`), whose voxels can stand in a file of so many bytes."""
    shape = [int(extent) for extent in header.get_data_shape()]
    while len(shape) > least and shape[-1] == 1:
        shape.pop()
    if not least <= len(shape) <= 3 or min(shape) < 1:
        raise DataError(
            f"{path}: expected a volume of three axes, got the shape {tuple(shape)}. "
            "Split a series of volumes into files of one volume."
        )
    dtype = _dtype(path, header)
    promised = int(np.prod(np.array(shape, dtype=object))) * dtype.itemsize
    if promised > MAX_BYTES:
        raise DataError(
            f"{path}: its header promises {promised / 2**30:,.1f} GiB of voxels; at most "
            f"{MAX_BYTES / 2**30:.0f} GiB are read. Crop or resample the volume."
        )
    start = float(header["vox_offset"])
    room = size * GZIP_LIMIT if _compressed(path) else size
    if not 0 <= start <= room or start + promised > room:
        raise DataError(
            f"{path}: its header promises {promised:,} bytes of voxels, the file of {size:,} bytes "
            "cannot hold them. Copy it again, or drop its row."
        )
    return tuple(shape)


def _dtype(path: Path, header: Any) -> np.dtype[Any]:
    try:
        dtype = header.get_data_dtype()
    except Exception as error:
        raise damaged(path, error) from error
    if dtype.kind not in "iuf":
        raise DataError(
            f"{path}: expected one number a voxel, got the type {dtype} (colour or complex). "
            "Convert it to grayscale, or drop its row."
        )
    return dtype


def _affine(path: Path, header: Any) -> NDArray[np.float64]:
    """Voxel index -> RAS+ mm, as the file stores its axes."""
    try:
        affine = np.array(header.get_best_affine(), dtype=np.float64)
        unit = header.get_xyzt_units()[0]
    except Exception as error:
        raise damaged(path, error) from error
    affine[:3] *= MM.get(unit, 1.0)
    spacing = spacing_of(affine)
    if not np.isfinite(affine).all() or not (spacing > 0).all():
        raise DataError(
            f"{path}: its affine is not a geometry (spacing {spacing}, NaN or infinite entries). "
            "Mend the header's sform or qform, or drop its row."
        )
    skew = abs(np.linalg.det(affine[:3, :3] / spacing))
    if skew < 0.99:
        raise DataError(
            f"{path}: its axes are not at right angles, as after a gantry tilt. Resample it to a "
            "grid of right angles first."
        )
    return affine


def _voxels(path: Path, header: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """The stored numbers; no more of the file is read, or decompressed, than they take."""
    dtype = _dtype(path, header)
    start = int(header["vox_offset"])
    flat = np.empty(int(np.prod(shape)), dtype)
    try:
        with _open(path) as file:
            file.seek(start)
            view = flat.data.cast("B")
            filled = 0
            while filled < len(view):
                got = file.readinto(view[filled:])
                if not got:
                    raise EOFError(f"{filled:,} of {len(view):,} bytes of voxels are there")
                filled += got
            file.read(1)  # at the end of a compressed file this compares its check sum
    except DAMAGE as error:
        raise damaged(path, error) from error
    return flat.reshape(shape, order="F")


def _scaled(path: Path, header: Any, voxels: NDArray[Any]) -> NDArray[Any]:
    """The numbers that the stored ones stand for; whole numbers that are not scaled stay."""
    slope, offset = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    scaled = np.isfinite(slope) and slope != 0 and (slope != 1 or offset != 0)
    if scaled and not np.isfinite(offset):
        raise DataError(f"{path}: its header's scl_inter is {offset}. Mend it, or drop its row.")
    if voxels.dtype.kind == "f" or scaled:
        voxels = voxels.astype(np.float32)
        if scaled:
            voxels *= np.float32(slope)
            voxels += np.float32(offset)
        if not np.isfinite(voxels).all():
            bad = int((~np.isfinite(voxels)).sum())
            raise DataError(
                f"{path}: {bad:,} voxels are NaN or infinite. Replace them, or drop its row."
            )
    return voxels if voxels.dtype.isnative else voxels.astype(voxels.dtype.newbyteorder("="))
