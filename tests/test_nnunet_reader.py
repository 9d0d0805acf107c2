import os
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_volumes import affine, write

from medgen.data.geometry import Volume
from medgen.data.nnunet import NnUnet
from medgen.data.volumes import write_volume
from medgen.errors import DataError

REAL = Path(os.environ.get("MEDGEN_DATA", "")) / "mr-hippocampus"


def test_cases_with_geometry_and_labels(tmp_path):
    data = NnUnet(write(tmp_path, channels=2), (8, 8, 8))
    assert data.schema.mask_classes == ("background", "kidney", "cyst")
    assert data.schema.channels == 2
    assert data.schema.spacing == (1.0, 1.0, 2.0)
    assert len(data) == 6
    assert {study.split for study in data.studies} == {"train", "validation", "test"}
    item = data[0]
    assert item.image.shape == (1, 2, 8, 8, 8)
    assert item.image.min() >= -1
    assert item.image.max() <= 1
    assert item.spacing.tolist() == [[1, 1, 2]]
    torch.testing.assert_close(item.affine[0] @ torch.tensor([2.0, 2, 3, 1]),
                               torch.tensor(affine() @ [4, 3, 3, 1]).float())  # fmt: skip
    bright = item.image[0, 0][item.mask[0] == 2].mean()
    assert bright > item.image[0, 0][item.mask[0] == 1].mean() > item.image[0, 0].min()
    assert (item.mask == 2).sum() == 2 * 2 * 2
    assert not item.provenance[0].synthetic


def test_spacing_and_window_are_as_asked(tmp_path):
    data = NnUnet(write(tmp_path), (12, 10, 16), spacing=(1, 1, 1), window=(-100, 700))
    assert data.schema.window == (-100, 700)
    item = data[0]
    assert item.spacing.tolist() == [[1, 1, 1]]
    assert (item.mask[0] == 1).sum() + (item.mask[0] == 2).sum() == 4 * 4 * 8
    inside = item.image[0, 0][item.mask[0] == 2].mean()
    assert inside.item() == pytest.approx((600 + 100) / 400 - 1, abs=0.1)


def test_labels_may_be_left_alone_and_the_old_layout_is_read(tmp_path):
    folder = write(tmp_path, labels={"0": "background", "1": "kidney", "2": "cyst"})
    assert NnUnet(folder, (8, 8, 8)).schema.mask_classes == ("background", "kidney", "cyst")
    for path in (folder / "labelsTr").iterdir():
        path.unlink()
    assert NnUnet(folder, (8, 8, 8), masks=False)[0].mask is None
    with pytest.raises(DataError, match=r"6 file\(s\) of 6 are missing"):
        NnUnet(folder, (8, 8, 8))


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"labels": {"background": 0, "organ": 2}}, "values 0, 1, 2"),
        ({"labels": {"background": 0, "all": [1, 2], "cyst": 2}}, "Regions"),
        ({"labels": 7}, "names of classes"),
        ({"channel_names": {"1": "T1"}}, "number channels from 0"),
        ({"file_ending": ".png"}, "folder reader"),
    ],
)
def test_layouts_that_are_not_read(tmp_path, about, text):
    with pytest.raises(DataError, match=text):
        NnUnet(write(tmp_path, 1, **about), (8, 8, 8))


def test_an_image_and_a_mask_that_lie_apart(tmp_path):
    folder = write(tmp_path)
    mask = np.zeros((12, 10, 8), np.uint8)
    write_volume(folder / "labelsTr/case_00.nii.gz", Volume(mask, affine(origin=(-10, 5, 31))))
    write_volume(folder / "labelsTr/case_01.nii.gz", Volume(mask[:-1], affine()))
    mask[0, 0, 0] = 7
    write_volume(folder / "labelsTr/case_02.nii.gz", Volume(mask, affine()))
    data = NnUnet(folder, (8, 8, 8))
    for case, text in ((0, "1 mm apart"), (1, "(11, 10, 8) voxels"), (2, r"values [7]")):
        with pytest.raises(DataError) as raised:
            data[case]
        assert text in str(raised.value)
        assert f"case_{case:02d}.nii.gz" in str(raised.value)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="MEDGEN_DATA names no mr-hippocampus")
def test_real_hippocampi(monkeypatch):
    data = NnUnet(REAL, (36, 52, 36))
    assert len(data) == 214
    assert data.schema.spacing == (1.0, 1.0, 1.0)
    item = data[0]
    assert item.image.shape == (1, 1, 36, 52, 36)
    assert 1_000 < (item.mask > 0).sum() < 8_000
