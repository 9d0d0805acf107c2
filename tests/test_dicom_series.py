"""CT series and segmentations: flagged synthetic, fresh identifiers, geometry read back equal."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest
import torch
from toy_volumes import synthetic_blocks

from medgen.data.dicom_series import read_segmentation, read_series
from medgen.data.exchange import write_dicom
from medgen.data.geometry import from_unit
from medgen.errors import DataError

WINDOW = (-1000.0, 1000.0)
TURN = np.deg2rad(12)
OBLIQUE = np.array(
    [
        [np.cos(TURN) * 1.5, -np.sin(TURN) * 1.5, 0, -40],
        [np.sin(TURN) * 1.5, np.cos(TURN) * 1.5, 0, 25],
        [0, 0, 3, -70],
        [0, 0, 0, 1],
    ]
)


def drawn(affine=None, window=WINDOW, size=(9, 8, 7), empty=False):
    data = synthetic_blocks(2, size)
    data.schema = replace(data.schema, window=window)
    held = data.batch
    mask = held.mask.clone()
    mask[:, 3, 3, 3] = 2
    data.batch = replace(
        held,
        mask=mask * 0 if empty else mask,
        affine=None if affine is None else torch.tensor(affine).float().expand(2, 4, 4),
        provenance=tuple(replace(p, seed=k) for k, p in enumerate(held.provenance)),
    )
    return data


@pytest.mark.parametrize("affine", [None, OBLIQUE])
def test_a_series_is_read_back_equal(tmp_path, affine):
    data = drawn(affine)
    out = write_dicom(data, tmp_path / "dicom")
    expected = np.diag([1.0, 1, 2, 1]) if affine is None else affine
    for index, study in enumerate(data.studies):
        read = read_series(out / study.id / "slices")
        hu = np.rint(from_unit(data.batch.image[index, 0].numpy(), WINDOW))
        np.testing.assert_array_equal(read.voxels, hu)
        np.testing.assert_allclose(read.affine[:3, :3], expected[:3, :3], atol=1e-5)
        if affine is not None:
            np.testing.assert_allclose(read.affine, affine, atol=1e-4)
        mask = read_segmentation(out / study.id / "segmentation.dcm", read)
        np.testing.assert_array_equal(mask, data.batch.mask[index].numpy())


def test_files_say_that_they_are_synthetic_and_identifiers_are_fresh(tmp_path, digests):
    out = write_dicom(drawn(), tmp_path / "a")
    read = [pydicom.dcmread(path) for path in sorted(out.rglob("*.dcm"))]
    assert len(read) == 2 * (7 + 1)
    assert all(file.SyntheticData == "YES" for file in read)
    assert len({file.SOPInstanceUID for file in read}) == len(read)
    assert len({file.SeriesInstanceUID for file in read}) == 4
    assert len({file.StudyInstanceUID for file in read}) == 2
    assert {file.Modality for file in read} == {"CT", "SEG"}
    segments = next(file for file in read if file.Modality == "SEG").SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == ["kidney", "cyst"]
    assert digests(write_dicom(drawn(), tmp_path / "b")) == digests(out)
    for file in read:
        for name in ("StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
            assert len(file[name].value) <= 64


def test_an_empty_mask_is_written_and_read_as_empty(tmp_path):
    out = write_dicom(drawn(empty=True), tmp_path / "a")
    volume = read_series(out / "s0" / "slices")
    assert not read_segmentation(out / "s0" / "segmentation.dcm", volume).any()


def test_volumes_without_hu_are_refused(tmp_path):
    with pytest.raises(DataError, match="needs HU"):
        write_dicom(drawn(window=None), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def changed(path, **elements):
    header = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(header, name, value)
    header.save_as(path)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (lambda f: (f / "0004.dcm").unlink(), "missing or doubled"),
        (lambda f: changed(f / "0003.dcm", SeriesInstanceUID="1.2.3"), "differ in SeriesInstance"),
        (lambda f: changed(f / "0003.dcm", PixelSpacing=[2, 2]), "differ in PixelSpacing"),
        (lambda f: (f / "0003.dcm").write_bytes((f / "0003.dcm").read_bytes()[:700]), "readable"),
        (lambda f: [p.unlink() for p in f.iterdir()], "got 0"),
        (
            lambda f: [
                changed(p, ImagePositionPatient=[0, 0.4 * k, 2.0 * k])
                for k, p in enumerate(sorted(f.iterdir()))
            ],
            "tilted gantry",
        ),
    ],
)
def test_series_that_are_not_whole_are_named(tmp_path, fault, text):
    folder = write_dicom(drawn(), tmp_path / "a") / "s0" / "slices"
    fault(folder)
    with pytest.raises(DataError, match=text):
        read_series(folder)


def test_a_segmentation_of_another_volume_is_refused(tmp_path):
    out = write_dicom(drawn(), tmp_path / "a")
    volume = read_series(out / "s0" / "slices")
    moved = replace(volume, affine=volume.affine + np.eye(4) * 0.3)
    with pytest.raises(DataError, match="no slice"):
        read_segmentation(out / "s0" / "segmentation.dcm", moved)
