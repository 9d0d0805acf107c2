"""What every DICOM file of a synthetic study holds: that it is one, and nothing of anyone else."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medgen.errors import DataError
from medgen.types import Provenance

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


def synthetic_origin(provenance: Sequence[Provenance] | None, name: str) -> Provenance:
    """Where a synthetic study came from.

    Raises:
        DataError: it has no synthetic provenance.
    """
    if not provenance or not provenance[0].synthetic:
        raise DataError(f"study '{name}' has no synthetic provenance; only such can be exported")
    return provenance[0]


def grey_levels(image: Tensor) -> NDArray[np.uint8]:
    """An image (c *s) in [-1, 1] as 8-bit grey levels."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.uint8)


def synthetic_elements(
    origin: Provenance, kind: str, number: int, *, part: Sequence[object] = ()
) -> Any:
    """The elements of a file that say what it is, whose it is not, and what drew it.

    Every attribute is made here, none is copied: identifiers are those of the sample, unique
    identifiers follow from the checkpoint and the seed, so the same sample gives the same bytes.

    Args:
        origin: of the sample.
        kind: the SOP class's unique identifier.
        number: of the instance in its series.
        part: names the series, then the instance, where a sample has several of them.

    Source: DICOM PS3.3 C.12.1.1 (Synthetic Data, 0008,001C).
    """
    from pydicom.dataset import Dataset as Elements
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    from medgen import __version__

    def identifier(*parts: object) -> UID:
        name = "/".join(str(part) for part in ("medgen", origin.source, *parts))
        return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}")

    equipment = Elements()
    equipment.Manufacturer, equipment.SoftwareVersions = "medgen", __version__
    equipment.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(kind)
    meta.MediaStorageSOPInstanceUID = identifier("instance", origin.id, origin.seed, *part)
    meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE_ENDIAN)
    meta.ImplementationClassUID = identifier("implementation")

    made = Elements()
    made.file_meta = meta
    made.SOPClassUID = meta.MediaStorageSOPClassUID
    made.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    made.SyntheticData = "YES"
    made.DerivationDescription = f"Drawn by a generative model: {origin.source}, seed {origin.seed}"
    made.ContributingEquipmentSequence = [equipment]
    made.PatientName, made.PatientID = f"SYNTHETIC^{origin.id}", origin.id
    made.StudyInstanceUID = identifier("study", origin.id, origin.seed)
    made.SeriesInstanceUID = identifier("series", origin.id, origin.seed, *part[:1])
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        setattr(made, name, "")
    made.ReferringPhysicianName = made.AccessionNumber = ""
    made.SeriesNumber, made.InstanceNumber = 1, number
    return made


def code(value: str, scheme: str, meaning: str) -> Any:
    """One item of a code sequence."""
    from pydicom.dataset import Dataset as Elements

    made = Elements()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def set_pixels(made: Any, pixels: NDArray[np.uint8]) -> None:
    """Give a file 8-bit grey levels, (height, width) or (frames, height, width)."""
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        made.NumberOfFrames = len(pixels)
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.BurnedInAnnotation = "NO"
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
