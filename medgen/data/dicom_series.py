"""CT volumes as DICOM: a series of slices and a segmentation, written flagged synthetic, and read.

Axes of a `Volume` run to the right, front and head (RAS+); DICOM's patient axes run to the left,
back and head. Slices are written as they are looked at: columns to the left, rows to the back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.data.dicom import code, synthetic_elements
from medgen.data.files import read_bytes
from medgen.data.geometry import Volume, centred_affine, from_unit
from medgen.errors import DataError
from medgen.types import Batch, Provenance, Schema

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LPS = np.diag([-1.0, -1.0, 1.0])
"""RAS+ to DICOM's patient axes, and back."""
UNEVEN = 0.02
"""Share of the spacing by which the steps between slices may differ."""
MOST_SLICES = 4000
SLICES, LABELS = "slices", "segmentation.dcm"


def write_series(folder: Path, study: Batch, schema: Schema, origin: Provenance) -> None:
    """Write a synthetic CT volume as `slices/NNNN.dcm`, and its mask as `segmentation.dcm`.

    A mask without foreground gives a segmentation of one empty frame.

    Args:
        folder: of the study, new.
        study: a batch of one volume.
        schema: its window tells HU.
        origin: of the sample.

    Raises:
        DataError: the volume has no window, so its intensities are no HU.
    """
    if schema.window is None or study.image is None:
        raise DataError(
            f"study '{origin.id}': a CT series needs HU, its intensities have no window. Export "
            "NIfTI files, or train on data with `window`."
        )
    voxels = np.rint(from_unit(study.image[0, 0].clamp(-1, 1).numpy(), schema.window))
    affine = _affine(study, schema)
    (folder / SLICES).mkdir(parents=True)
    for k in range(voxels.shape[2]):
        made = synthetic_elements(origin, CT_IMAGE, k + 1, part=("ct", k))
        made.ImageType, made.Modality = ["DERIVED", "PRIMARY", "AXIAL"], "CT"
        made.KVP, made.AcquisitionNumber = None, None
        made.RescaleIntercept, made.RescaleSlope, made.RescaleType = 0, 1, "HU"
        made.WindowCenter, made.WindowWidth = 40, 400
        _place(made, affine, voxels.shape, k)
        made.FrameOfReferenceUID = made.StudyInstanceUID + ".1"
        made.PositionReferenceIndicator = ""
        _set_pixels(made, _shown(voxels[..., k]).astype("<i2"), bits=16, signed=True)
        _save(made, folder / SLICES / f"{k + 1:04d}.dcm")
    if study.mask is not None:
        mask = study.mask[0].clamp(min=0).numpy().astype(np.uint8)
        _save(_segmentation(mask, affine, schema, origin), folder / LABELS)


def read_series(folder: Path | str) -> Volume:
    """The volume (HU, RAS+ order) of a folder with the slices of one CT series.

    Raises:
        DataError: no slices, slices of several series or of several sizes or directions, missing
            or doubled slices, a tilted gantry, colour, or a file that is damaged.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not files or len(files) > MOST_SLICES:
        raise DataError(f"{folder}: expected 1 to {MOST_SLICES} slices (DICOM), got {len(files)}")
    headers = [_read(path) for path in files]
    for name in ("SeriesInstanceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        found = {str(header.get(name)) for header in headers}
        if len(found) > 1 or found == {"None"}:
            raise DataError(
                f"{folder}: slices differ in {name}: {', '.join(sorted(found)[:3])}. Keep the "
                "slices of one series in a folder."
            )
    across = np.array(headers[0].ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    normal = np.cross(across[0], across[1])
    places = np.array([h.ImagePositionPatient for h in headers], dtype=np.float64)
    order = np.argsort(places @ normal)
    step = _even_step(folder, places[order], normal)
    spacing = [float(value) for value in headers[0].PixelSpacing]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across[0] * spacing[1], across[1] * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, places[order[0]]
    affine[:3] = LPS @ affine[:3]
    slices = [_hu(headers[i]).T for i in order]
    return _in_order(np.stack(slices, axis=2), affine)


def read_segmentation(path: Path | str, like: Volume) -> NDArray[np.uint8]:
    """Classes of the voxels of a volume, from a DICOM segmentation whose frames lie on its slices.

    Args:
        path: of the segmentation.
        like: the volume that was segmented.

    Raises:
        DataError: a frame lies on no slice, or the file is damaged.
    """
    header = _read(Path(path))
    frames = header.pixel_array.reshape(-1, int(header.Rows), int(header.Columns))
    inverse = np.linalg.inv(like.affine)
    mask = np.zeros(like.voxels.shape, np.uint8)
    depth = like.voxels.shape[-1]
    for frame, about in zip(frames, header.PerFrameFunctionalGroupsSequence, strict=True):
        where = LPS @ np.array(about.PlanePositionSequence[0].ImagePositionPatient, np.float64)
        at = (inverse @ [*where, 1.0])[:3]
        k = round(float(at[2]))
        if frame.T.shape != mask.shape[:2] or abs(at[2] - k) > UNEVEN or not 0 <= k < depth:
            raise DataError(f"{path}: a frame lies on no slice of the volume that it goes with.")
        number = int(about.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        mask[..., k][frame.T[::-1, ::-1] > 0] = number
    return mask


def _affine(study: Batch, schema: Schema) -> NDArray[np.float64]:
    if study.affine is not None:
        return study.affine[0].double().numpy()
    spacing = schema.spacing if study.spacing is None else study.spacing[0].tolist()
    return centred_affine(schema.size, spacing or (1.0,) * 3)


def _shown(plane: NDArray[Any]) -> NDArray[Any]:
    """A slice (x y) as rows to the back and columns to the left, and back again."""
    return plane[::-1, ::-1].T


def _place(made: Any, affine: NDArray[np.float64], shape: tuple[int, ...], k: int) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = LPS @ (affine[:3, :2] / spacing[:2])
    made.ImagePositionPatient = _position(affine, shape, k)
    made.ImageOrientationPatient = [_decimal(v) for v in (-directions.T).ravel()]
    made.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    made.SliceThickness = _decimal(spacing[2])


def _position(affine: NDArray[np.float64], shape: tuple[int, ...], k: int) -> list[str]:
    corner = affine @ [shape[0] - 1, shape[1] - 1, k, 1]
    return [_decimal(value) for value in LPS @ corner[:3]]


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return f"{float(value) + 0.0:.10g}"[:16]


def _set_pixels(made: Any, pixels: NDArray[Any], *, bits: int, signed: bool) -> None:
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = pixels.shape[-2:]
    made.BitsAllocated = made.BitsStored = bits
    made.HighBit, made.PixelRepresentation = bits - 1, int(signed)
    made.BurnedInAnnotation = "NO"
    if bits == 1:
        packed = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    else:
        packed = pixels.tobytes()
    made.PixelData = packed + b"\0" * (len(packed) % 2)


def _save(made: Any, path: Path) -> None:
    with path.open("wb") as file:
        made.save_as(file, enforce_file_format=True)


def _segmentation(
    mask: NDArray[np.uint8], affine: NDArray[np.float64], schema: Schema, origin: Provenance
) -> Any:
    """A binary segmentation: one segment a class, one frame a slice that a segment crosses.

    Source: DICOM PS3.3 A.51, C.8.20.
    """
    made = synthetic_elements(origin, SEGMENTATION, 1, part=("segmentation",))
    made.SeriesNumber, made.Modality = 2, "SEG"
    made.ImageType, made.ContentLabel = ["DERIVED", "PRIMARY"], "SEGMENTATION"
    made.ContentDescription, made.ContentCreatorName = "Synthetic label map", "medgen"
    made.SegmentationType, made.LossyImageCompression = "BINARY", "00"
    made.SegmentsOverlap = "NO"
    made.FrameOfReferenceUID = made.StudyInstanceUID + ".1"
    made.PositionReferenceIndicator = ""
    made.SegmentSequence = [
        _segment(value, name) for value, name in enumerate(schema.mask_classes) if value
    ]
    made.SharedFunctionalGroupsSequence = [_shared(affine, mask.shape)]
    held = [(v, k) for v in range(1, len(schema.mask_classes)) for k in _crossed(mask, v)]
    held = held or [(1, 0)]
    made.PerFrameFunctionalGroupsSequence = [
        _frame(value, k, affine, mask.shape) for value, k in held
    ]
    made.NumberOfFrames = len(held)
    frames = np.stack([_shown(mask[..., k] == value) for value, k in held])
    _set_pixels(made, frames.astype(np.uint8), bits=1, signed=False)
    organization = _item(DimensionOrganizationUID=made.SeriesInstanceUID + ".2")
    made.DimensionOrganizationSequence = [organization]
    made.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organization.DimensionOrganizationUID,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=group,
        )
        for pointer, group in ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))
    ]
    return made


def _crossed(mask: NDArray[np.uint8], value: int) -> Iterator[int]:
    yield from np.flatnonzero((mask == value).any(axis=(0, 1))).tolist()


def _item(**elements: Any) -> Any:
    from pydicom.dataset import Dataset as Elements

    made = Elements()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def _segment(value: int, name: str) -> Any:
    return _item(
        SegmentNumber=value,
        SegmentLabel=name[:64],
        SegmentAlgorithmType="AUTOMATIC",
        SegmentAlgorithmName="medgen",
        SegmentedPropertyCategoryCodeSequence=[code("91723000", "SCT", "Anatomical Structure")],
        SegmentedPropertyTypeCodeSequence=[code(f"C{value}", "99MEDGEN", name[:64])],
    )


def _shared(affine: NDArray[np.float64], shape: tuple[int, ...]) -> Any:
    plane = _item()
    _place(plane, affine, shape, 0)
    return _item(
        PlaneOrientationSequence=[_item(ImageOrientationPatient=plane.ImageOrientationPatient)],
        PixelMeasuresSequence=[
            _item(
                PixelSpacing=plane.PixelSpacing,
                SliceThickness=plane.SliceThickness,
                SpacingBetweenSlices=plane.SliceThickness,
            )
        ],
    )


def _frame(value: int, k: int, affine: NDArray[np.float64], shape: tuple[int, ...]) -> Any:
    return _item(
        FrameContentSequence=[_item(DimensionIndexValues=[value, k + 1])],
        PlanePositionSequence=[_item(ImagePositionPatient=_position(affine, shape, k))],
        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=value)],
    )


def _read(path: Path) -> Any:
    import io

    import pydicom

    data = read_bytes(path)
    try:
        header = pydicom.dcmread(io.BytesIO(data))
        if int(header.SamplesPerPixel) != 1:
            raise DataError(f"{path}: expected one number a pixel, got colour.")
        header.pixel_array  # noqa: B018 - decodes, and raises on truncated pixels
    except DataError:
        raise
    except Exception as error:  # parsers raise almost anything on damaged or hostile bytes
        raise DataError(
            f"{path}: not a readable DICOM slice ({type(error).__name__}: {error}). Copy it again."
        ) from error
    return header


def _hu(header: Any) -> NDArray[np.float32]:
    slope, offset = (
        float(header.get(f"Rescale{n}", d)) for n, d in (("Slope", 1), ("Intercept", 0))
    )
    return header.pixel_array.astype(np.float32) * slope + offset


def _even_step(
    folder: Path, places: NDArray[np.float64], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The step from slice to slice, mm; every one must be the same, along the normal."""
    if len(places) < 2:
        return normal
    steps = np.diff(places, axis=0)
    lengths = steps @ normal
    usual = float(np.median(lengths))
    wrong = np.flatnonzero(np.abs(lengths - usual) > UNEVEN * abs(usual))
    if usual <= 0 or len(wrong):
        at = int(wrong[0]) if len(wrong) else 0
        raise DataError(
            f"{folder}: slices {at + 1} and {at + 2} of {len(places)} lie {lengths[at]:.4g} mm "
            f"apart, others {usual:.4g} mm: slices are missing or doubled. Copy the series again."
        )
    shear = float(np.linalg.norm(steps.mean(0) - usual * normal))
    if shear > UNEVEN * usual:
        angle = np.degrees(np.arctan2(shear, usual))
        raise DataError(
            f"{folder}: slices are sheared by {angle:.1f} degrees (a tilted gantry). Resample the "
            "series to an upright grid first."
        )
    return normal * usual


def _in_order(voxels: NDArray[Any], affine: NDArray[np.float64]) -> Volume:
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    order = io_orientation(affine)
    turned = apply_orientation(voxels, order)
    return Volume(turned, affine @ inv_ornt_aff(order, voxels.shape))
