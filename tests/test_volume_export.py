import json

import numpy as np
import pytest
import torch
from toy_volumes import synthetic_blocks, write

from medgen.data.exchange import write_nnunet
from medgen.data.export import write_folder, write_image, write_mask
from medgen.data.folder import Folder
from medgen.data.geometry import from_unit
from medgen.data.images import Reading
from medgen.data.nnunet import NnUnet
from medgen.data.splits import by_split
from medgen.data.volumes import read_volume
from medgen.types import Schema


def test_a_folder_of_volumes_is_read_back_equal_geometry_included(tmp_path):
    window = (-200.0, 800.0)
    data = NnUnet(write(tmp_path / "in"), (8, 8, 8), window=window)
    write_folder(data, tmp_path / "out")
    reading = Reading(spacing=data.schema.spacing, window=window)
    again = Folder(tmp_path / "out", (8, 8, 8), mask_classes=data.schema.mask_classes,
                   reading=reading)  # fmt: skip
    assert again.schema.window == window
    assert again.schema.spacing == data.schema.spacing
    half_a_unit = 0.5 * 2 / 1000
    for index in (0, 3):
        one, two = data[index], again[index]
        torch.testing.assert_close(one.image, two.image, atol=half_a_unit + 1e-4, rtol=0)
        assert torch.equal(one.mask, two.mask)
        torch.testing.assert_close(one.affine, two.affine)
    assert [s.split for s in again.studies] == [s.split for s in data.studies]


def test_volumes_without_a_unit_are_written_as_they_are(tmp_path):
    image = torch.rand(1, 4, 5, 6) * 2 - 1
    path = write_image(tmp_path / "a", image, Schema(size=(4, 5, 6), spacing=(1.0, 2.0, 3.0)))
    read = read_volume(path)
    np.testing.assert_array_equal(read.voxels, image[0].numpy())
    np.testing.assert_allclose(read.affine @ [1.5, 2, 2.5, 1], [0, 0, 0, 1], atol=1e-6)


def test_nnunet_gets_its_own_layout_back(tmp_path):
    real = NnUnet(write(tmp_path / "in", cases=12), (8, 8, 8))
    train, test = by_split(real, "train"), by_split(real, "test")
    out = write_nnunet(train, test, synthetic_blocks(3), tmp_path / "out")
    about = json.loads((out / "dataset.json").read_text())
    assert about["file_ending"] == ".nii.gz"
    again = NnUnet(out, (8, 8, 8), window=(-1, 1))
    assert len(again) == len(train) + 3
    assert again.schema.mask_classes == real.schema.mask_classes
    splits = json.loads((out / "splits_final.json").read_text())
    assert not any("synthetic" in case for fold in splits for case in fold["val"])
    first = again[[s.id for s in again.studies].index("real_00000")]
    torch.testing.assert_close(first.image, train[0].image, atol=1e-3, rtol=0)
    torch.testing.assert_close(first.affine, train[0].affine)


def test_a_narrow_window_is_not_rounded_and_a_wide_one_does_not_overflow(tmp_path):
    image = torch.rand(1, 4, 5, 6) * 2 - 1
    for window in ((0.0, 1.0), (0.0, 60_000.0)):
        path = write_image(tmp_path / "a", image, Schema(size=(4, 5, 6), window=window))
        expected = from_unit(image[0].numpy(), window)
        np.testing.assert_allclose(read_volume(path).voxels, expected, rtol=1e-6)


def test_classes_that_a_file_cannot_hold_are_refused(tmp_path):
    schema = Schema(size=(4, 4, 4), mask_classes=("background", "organ"))
    for wrong in (-1, 256):
        with pytest.raises(ValueError, match="0 to 255"):
            write_mask(tmp_path / "m", torch.full((4, 4, 4), wrong), schema)
