"""Images painted from masks: shapes are the mask's, appearances are random."""

import numpy as np
import pytest

from medgen.simulate.randomize import randomize


def halves(shape=(48, 48)):
    mask = np.zeros(shape, np.int64)
    mask[..., shape[-1] // 2 :] = 1
    return mask


@pytest.mark.parametrize("shape", [(48, 40), (12, 16, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_fills_the_range_in_any_dimension(shape, channels):
    image = randomize(halves(shape), 2, np.random.default_rng(0), channels=channels)
    assert image.shape == (channels, *shape)
    assert image.dtype == np.float32
    for channel in image:
        assert (channel.min(), channel.max()) == pytest.approx((-1, 1))


def test_the_same_generator_paints_the_same_image():
    first, again, other = (randomize(halves(), 2, np.random.default_rng(s)) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_classes_differ_and_neither_is_always_the_brighter():
    """The means of two classes are uniform and independent: each is the brighter half the time,
    100 draws, 30 to 70 with probability 0.9999; and they explain most of the image."""
    mask = halves()
    brighter, explained = 0, []
    for seed in range(100):
        image = randomize(mask, 2, np.random.default_rng(seed))[0]
        means = [image[mask == index].mean() for index in (0, 1)]
        brighter += means[1] > means[0]
        within = np.mean([image[mask == index].var() for index in (0, 1)])
        explained.append(1 - within / image.var())
    assert 30 <= brighter <= 70
    assert np.median(explained) > 0.5
