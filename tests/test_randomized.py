import numpy as np
import pytest
import torch
from scipy.ndimage import label as components

from medgen import registry
from medgen.data.randomized import Randomized
from medgen.errors import RecipeError
from medgen.protocols import Dataset
from medgen.simulate.random_shapes import stars, tubes
from medgen.simulate.randomize import randomize, thick_slices


def test_stars_are_in_one_piece_and_round_without_bend():
    """Blobs are in one piece, and without bend they are discs."""
    for seed in range(5):
        held = stars((24, 24, 24), np.random.default_rng(seed))
        assert held.max() >= 1
        for value in range(1, held.max() + 1):
            assert components(held == value)[1] == 1
    round_ = stars((40, 40), np.random.default_rng(2), most=1, bend=0.0) == 1
    places = np.argwhere(round_)
    middle = places.mean(0)
    reach = np.linalg.norm(places - middle, axis=1).max()
    assert round_.sum() == pytest.approx(np.pi * reach**2, rel=0.2)


def test_tubes_are_thin_and_long():
    for seed in range(4):
        held = tubes((32, 32, 32), np.random.default_rng(seed))
        share = held.mean()
        assert 0.0005 < share < 0.3
        assert np.ptp(np.argwhere(held), axis=0).max() >= 6
    assert set(np.unique(tubes((32, 32), np.random.default_rng(0)))) <= {0, 1}


def test_a_slice_of_so_many_voxels_has_that_width():
    for thick in (2, 3, 4):
        impulse = np.zeros((24, 3), np.float32)
        impulse[12] = 1
        blurred = thick_slices(impulse, thick, 0)[:, 0]
        assert blurred.sum() == pytest.approx(1, rel=0.05)
        above = np.flatnonzero(blurred > blurred.max() / 2)
        assert abs(np.ptp(above) + 1 - thick) <= 1
    whole = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    assert np.array_equal(thick_slices(whole, 1, 0), whole)


def test_artefacts_leave_the_label_map_and_the_plain_image_alone():
    mask = stars((16, 16, 16), np.random.default_rng(0))
    plain = randomize(mask, 20, np.random.default_rng(3))
    spoiled = randomize(mask, 20, np.random.default_rng(3), artefacts=True)
    assert np.array_equal(plain, randomize(mask, 20, np.random.default_rng(3)))
    assert not np.array_equal(plain, spoiled)
    assert np.abs(spoiled).max() <= 1


@pytest.mark.parametrize("shapes", ["stars", "tubes"])
@pytest.mark.parametrize("size", [(24, 24), (16, 20, 24)])
def test_dataset_keeps_the_contract(shapes, size):
    data = Randomized(6, size, shapes)
    assert isinstance(data, Dataset)
    assert registry.find("data", "randomized") is Randomized
    item = data[3]
    assert item.image.shape == (1, 1, *size)
    assert item.image.abs().max() <= 1
    assert item.mask.shape == (1, *size)
    assert set(item.mask.unique().tolist()) <= {0, 1}
    assert torch.equal(item.image, Randomized(9, size, shapes)[3].image)
    assert not torch.equal(item.image, data[4].image)
    assert len({study.patient for study in data.studies}) == 6


def test_wrong_numbers_are_named():
    for wrong in ({"count": 0}, {"size": (4, 32)}, {"size": (32,)}):
        with pytest.raises(RecipeError, match="two or three sides"):
            Randomized(**wrong)
