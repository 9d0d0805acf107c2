"""MONAI's datalist: written train-only, read by MONAI and read back equal; nnU-Net's own check."""

import json

import pytest
import torch
from toy_volumes import synthetic_blocks, write

from medgen.data.exchange import write_nnunet
from medgen.data.monai_datalist import MonaiDatalist, write_monai
from medgen.data.nnunet import NnUnet
from medgen.data.splits import by_split
from medgen.errors import DataError

CLASSES = ("background", "kidney", "cyst")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monai")
    real = NnUnet(write(folder / "in", cases=12), (8, 8, 8))
    train, test = by_split(real, "train"), by_split(real, "test")
    return train, test, write_monai(train, test, synthetic_blocks(3), folder / "out")


def test_synthetic_items_are_in_no_validation_part_as_monai_reads_folds(written):
    from monai.auto3dseg.utils import datafold_read

    train, test, out = written
    seen = []
    for fold in range(5):
        learned, held = datafold_read(str(out / "datalist.json"), str(out), fold=fold)
        names = [item["image"] for item in held]
        assert not any("synthetic" in name for name in names)
        assert sum("synthetic" in item["image"] for item in learned) == 3
        seen += names
    assert len(seen) == len(set(seen)) == len(train)
    about = json.loads((out / "datalist.json").read_text())
    assert len(about["testing"]) == len(test)
    assert about["labels"] == list(CLASSES)


def test_a_datalist_is_read_back_equal(written):
    train, test, out = written
    again = MonaiDatalist(
        out, (8, 8, 8), mask_classes=CLASSES, spacing=train.schema.spacing, window=(-1, 1)
    )
    assert [s.split for s in again.studies].count("test") == len(test)
    first = again[[s.id for s in again.studies].index("images/real_00000_0000")]
    torch.testing.assert_close(first.image, train[0].image, atol=1e-3, rtol=0)
    torch.testing.assert_close(first.affine, train[0].affine)
    assert torch.equal(first.mask, train[0].mask)
    assert MonaiDatalist(out, (8, 8, 8))[0].mask is None


def test_a_list_of_training_alone_is_split_by_a_hash(written, tmp_path):
    out = written[2]
    about = json.loads((out / "datalist.json").read_text())
    place = out / "training.json"
    place.write_text(json.dumps({"training": about["training"] + about["testing"]}))
    data = MonaiDatalist(out, (8, 8, 8), datalist="training.json")
    assert {s.split for s in data.studies} >= {"train", "test"}


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"training": []}, "lists no study"),
        ({"training": [{"label": "a.nii"}]}, "no datalist"),
        ([1], "no datalist"),
        ({"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}, "are missing"),
    ],
)
def test_lists_that_are_none(tmp_path, about, text):
    (tmp_path / "datalist.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=text):
        MonaiDatalist(tmp_path, (8, 8, 8), mask_classes=CLASSES)


def test_nnunets_own_integrity_check_passes(tmp_path):
    pytest.importorskip("nnunetv2")
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    real = NnUnet(write(tmp_path / "in", cases=12), (8, 8, 8))
    train, test = by_split(real, "train"), by_split(real, "test")
    out = write_nnunet(train, test, synthetic_blocks(3), tmp_path / "Dataset501_Toy")
    verify_dataset_integrity(str(out), num_processes=1)
    label = out / "labelsTr" / "synthetic_00000.nii.gz"
    label.unlink()
    with pytest.raises((RuntimeError, AssertionError)):
        verify_dataset_integrity(str(out), num_processes=1)
