"""Synthetic studies in the pipelines of MONAI and TorchIO: in training alone, by provenance."""

import builtins
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, RandFlipd
from toy_studies import discs

from medgen.data.plugins import Dictionaries, RandSyntheticd, subjects
from medgen.data.splits import by_split
from medgen.errors import DataError, MissingExtraError
from medgen.types import Study

REAL = by_split(discs(20), "train")
DRAWN = discs(7, seed=1, synthetic=True)
KEYS = ("image", "mask", "label")


def items(transform, count=200):
    return [transform(Dictionaries(REAL)[i % len(REAL)]) for i in range(count)]


def test_dictionaries_hold_what_the_studies_do():
    item = Dictionaries(DRAWN)[2]
    assert torch.equal(item["image"], DRAWN.batch.image[2])
    assert torch.equal(item["mask"], DRAWN.batch.mask[2:3])
    assert item["class"] == int(item["label"].argmax())
    assert item["synthetic"] is True
    assert Dictionaries(REAL)[-1]["id"] == REAL.studies[-1].id
    assert [each["id"] for each in Dictionaries(REAL)[:2]] == [s.id for s in REAL.studies[:2]]
    with pytest.raises(IndexError):
        Dictionaries(REAL)[len(REAL)]


def test_items_are_replaced_as_often_as_asked_and_whole():
    transform = RandSyntheticd(KEYS, DRAWN, prob=0.3).set_random_state(seed=0)
    found = items(transform)
    replaced = [item for item in found if item["synthetic"]]
    # A binomial of 200 draws at 0.3: six standard deviations are 39.
    assert abs(len(replaced) - 60) < 39
    by_id = {study.id: i for i, study in enumerate(DRAWN.studies)}
    assert len({item["id"] for item in replaced}) == 7
    for item in replaced:
        index = by_id[item["id"]]
        assert item["patient"] == DRAWN.studies[index].patient
        for key in KEYS:
            assert torch.equal(item[key], Dictionaries(DRAWN)[index][key])
    kept = [item["id"] for item in found if not item["synthetic"]]
    assert set(kept) <= {study.id for study in REAL.studies}


def test_the_random_state_decides():
    def ids(seed):
        steps = Compose([RandSyntheticd(KEYS, DRAWN, prob=0.5), RandFlipd(("image", "mask"), 0.5)])
        return [item["id"] for item in items(steps.set_random_state(seed=seed), 30)]

    assert ids(0) == ids(0) != ids(1)
    assert not any(item["synthetic"] for item in items(RandSyntheticd(KEYS, DRAWN, prob=0), 20))
    assert all(item["synthetic"] for item in items(RandSyntheticd(KEYS, DRAWN, prob=1), 20))


def test_a_monai_loader_takes_it():
    steps = Compose([RandSyntheticd(KEYS, DRAWN, prob=0.5), RandFlipd(("image", "mask"), 0.5)])
    data = Dataset(Dictionaries(REAL), steps.set_random_state(seed=0))
    batches = list(DataLoader(data, batch_size=4))
    assert batches[0]["image"].shape == (4, 1, 32, 32)
    shown = torch.cat([batch["synthetic"] for batch in batches])
    assert 0 < int(shown.sum()) < len(REAL)


def test_other_names_ranges_and_types():
    real = MetaTensor(torch.zeros(1, 32, 32), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    item = {"image": real, "label": np.zeros((1, 32, 32), np.uint8), "class": 0}
    transform = RandSyntheticd(
        ("image", "label", "class"),
        DRAWN,
        prob=1,
        fields=("image", "mask", "class"),
        intensity=(0.0, 1.0),
    )
    drawn = transform(item)
    assert isinstance(drawn["image"], MetaTensor)
    assert not torch.equal(drawn["image"].affine, real.affine)
    assert drawn["label"].dtype == np.uint8
    assert drawn["label"].max() == 1
    image = DRAWN.batch.image[transform.index]
    assert torch.allclose(drawn["image"].as_tensor(), (image + 1) / 2)
    assert drawn["class"] == int(DRAWN.batch.label[transform.index].argmax())
    assert item["class"] == 0
    assert item["image"] is real


def astray(dataset, split):
    studies = [Study(study.id, study.patient, split) for study in dataset.studies]
    return replace(dataset, studies=studies)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_synthetic_studies_never_validate_or_test(split):
    with pytest.raises(DataError, match=f"is synthetic and stands in the split '{split}'"):
        Dictionaries(astray(DRAWN, split))[0]
    with pytest.raises(DataError, match="7 are in another split"):
        RandSyntheticd(KEYS, astray(DRAWN, split))
    with pytest.raises(DataError, match=f"item of the split '{split}' came"):
        RandSyntheticd(KEYS, DRAWN, prob=0)(Dictionaries(astray(discs(3), split))[0])
    pytest.importorskip("torchio")
    with pytest.raises(DataError, match="may only train"):
        subjects(astray(DRAWN, split))


def test_what_is_not_synthetic_or_does_not_fit_replaces_nothing():
    with pytest.raises(DataError, match="real study by its provenance"):
        RandSyntheticd(KEYS, REAL, prob=1)(Dictionaries(REAL)[0])
    with pytest.raises(DataError, match="hold no mask; they hold id"):
        RandSyntheticd(KEYS, discs(3, synthetic=True, masks=False))
    with pytest.raises(ValueError, match="1 fields for 2 keys"):
        RandSyntheticd(("image", "label"), DRAWN, fields=("image",))
    with pytest.raises(DataError, match=r"'image' of an item is \(1, 16, 16\)"):
        RandSyntheticd("image", DRAWN, prob=1)({"image": torch.zeros(1, 16, 16)})
    with pytest.raises(KeyError):
        RandSyntheticd(KEYS, DRAWN, prob=1)({"image": torch.zeros(1, 32, 32)})


def test_torchio_takes_the_studies():
    tio = pytest.importorskip("torchio")
    held = subjects(DRAWN, tio.RandomFlip(axes=(0,), flip_probability=1))
    assert isinstance(held, tio.SubjectsDataset)
    subject = held[3]
    assert subject["image"].shape == (1, 32, 32, 1)
    assert isinstance(subject["mask"], tio.LabelMap)
    assert torch.equal(subject["image"].data[..., 0], DRAWN.batch.image[3].flip(1))
    assert torch.equal(subject["mask"].data[..., 0].long(), DRAWN.batch.mask[3:4].flip(1))
    assert torch.equal(subject["label"], DRAWN.batch.label[3])
    assert subject["synthetic"] is True
    loaded = next(iter(tio.SubjectsLoader(held, batch_size=2)))
    assert loaded["image"]["data"].shape == (2, 1, 32, 32, 1)
    queue = tio.Queue(held, 8, 2, tio.UniformSampler((16, 16, 1)))
    patch = next(iter(tio.SubjectsLoader(queue, batch_size=2)))
    assert patch["image"]["data"].shape == (2, 1, 16, 16, 1)


def test_without_torchio_the_extra_is_named(monkeypatch):
    imported = builtins.__import__

    def without(name, *rest, **named):
        if name == "torchio":
            raise ImportError(name)
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"medgen\[torchio\]"):
        subjects(DRAWN)
