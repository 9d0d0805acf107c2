import itertools

import pytest
import torch

from medgen.data.splits import (
    Subset,
    assign_splits,
    by_split,
    check_leakage,
    load,
    one_hot,
    take_patients,
)
from medgen.errors import DataError, LeakageError
from medgen.types import Batch, Schema, Study


class Rows:
    """Studies of given patients and labels; the image of study i is i / 1000 everywhere."""

    def __init__(self, patients, label=None, findings=("a", "b"), exclusive=False):
        splits = assign_splits(patients)
        self.schema = Schema((2, 2), findings=findings if label is not None else ())
        self.studies = [
            Study(f"s{i}", patient, split)
            for i, (patient, split) in enumerate(zip(patients, splits, strict=True))
        ]
        self.label = label

    def __len__(self):
        return len(self.studies)

    def __getitem__(self, index):
        label = None if self.label is None else self.label[index : index + 1]
        return Batch(image=torch.full((1, 1, 2, 2), index / 1000), label=label)


def people(count, each=2):
    return [f"p{i}" for i in range(count) for _ in range(each)]


def test_shares_are_met_over_patients_and_patients_stay_whole():
    patients = people(100)
    splits = assign_splits(patients, seed=3)
    by_patient = dict(zip(patients, splits, strict=True))
    assert [by_patient[p] for p in patients] == splits
    counts = [list(by_patient.values()).count(s) for s in ("train", "validation", "test")]
    assert counts == [70, 10, 20]


def test_order_and_repeats_do_not_matter_but_the_seed_does():
    patients = people(40)
    one = dict(zip(patients, assign_splits(patients), strict=True))
    backwards = [*patients[::-1], "p3"]
    other = dict(zip(backwards, assign_splits(backwards), strict=True))
    assert one == other
    assert one != dict(zip(patients, assign_splits(patients, seed=1), strict=True))


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_few_patients_still_fill_every_split(count):
    assert set(assign_splits(people(count))) == {"train", "validation", "test"}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_patients_than_splits(count):
    splits = assign_splits(people(count))
    assert len(splits) == 2 * count
    assert count == 0 or "train" in splits


def test_a_share_of_zero_stays_empty():
    assert set(assign_splits(people(50), shares=(0.5, 0, 0.5))) == {"train", "test"}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.5, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_bad_shares(shares):
    with pytest.raises(ValueError, match="sum to 1"):
        assign_splits(people(4), shares=shares)


def test_leakage_names_the_patient():
    check_leakage([Study("1", "ann", "train"), Study("2", "ann", "train")])
    with pytest.raises(LeakageError, match=r"ann \(test, train\)"):
        check_leakage([Study("1", "ann", "train"), Study("2", "ann", "test")])


def test_by_split_parts_the_dataset():
    rows = Rows(people(10))
    parts = [by_split(rows, name) for name in ("train", "validation", "test")]
    assert sorted(i for part in parts for i in part.indices) == list(range(20))
    assert {s.split for s in parts[1].studies} == {"validation"}
    with pytest.raises(DataError, match=r"no study is in split 'valid'.*test 4.*train 14"):
        by_split(rows, "valid")


def test_load_and_subset_give_the_chosen_studies():
    rows = Rows(people(4))
    subset = Subset(Subset(rows, [5, 1, 7]), [2, 0])
    assert [s.id for s in subset.studies] == ["s7", "s5"]
    assert torch.equal(load(subset).image[:, 0, 0, 0], torch.tensor([0.007, 0.005]))
    assert torch.equal(load(rows, [3]).image, rows[3].image)
    with pytest.raises(DataError, match="at least one study"):
        load(rows, [])


def test_fractions_are_nested_and_keep_patients_whole():
    label = torch.randint(0, 2, (200, 2), generator=torch.Generator().manual_seed(0))
    rows = Rows(people(100), label)
    taken = [set(take_patients(rows, f, seed=5).indices) for f in (0.02, 0.1, 0.5, 1.0)]
    for small, large in itertools.pairwise(taken):
        assert small < large
    assert [len(part) for part in taken] == [4, 20, 100, 200]
    assert taken[1] != set(take_patients(rows, 0.1, seed=6).indices)


def test_every_finding_is_present_and_absent_however_rare():
    label = torch.zeros(400, 3, dtype=torch.int64)
    label[100, 0] = label[251, 1] = 1
    label[:390, 2] = 1
    rows = Rows(people(200), label, ("a", "b", "c"))
    part = load(take_patients(rows, 0.02, seed=1)).label
    assert part.amax(0).tolist() == [1, 1, 1]
    assert part.amin(0).tolist() == [0, 0, 0]


def test_prevalence_is_kept_by_larger_fractions():
    label = one_hot([0] * 600 + [1] * 300 + [2] * 100, 3)
    rows = Rows(people(1000, 1), label, ("a", "b", "c"))
    share = load(take_patients(rows, 0.1, seed=2)).label.float().mean(0)
    assert torch.allclose(share, torch.tensor([0.6, 0.3, 0.1]), atol=0.021)


def test_at_least_two_patients_and_a_sane_fraction():
    assert len({s.patient for s in take_patients(Rows(people(50)), 1e-9, seed=0).studies}) == 2
    with pytest.raises(ValueError, match="fraction"):
        take_patients(Rows(people(4)), 0.0, seed=0)


def test_one_hot_keeps_unknown():
    assert one_hot([1, -1, 0], 2).tolist() == [[0, 1], [-1, -1], [1, 0]]
