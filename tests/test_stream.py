"""STREAM against planted faults of clips, and its closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_hearts import beating
from toy_studies import Studies, discs

from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.distribution import frechet_distance
from medgen.evaluation.diversity import prdc
from medgen.evaluation.features import RandomFeatures
from medgen.evaluation.frames import FrameFeatures
from medgen.evaluation.stream import Stream, spectrum, stream_t
from medgen.evaluation.suite import evaluate

COUNT = 150


@pytest.fixture(scope="module")
def parts():
    """Mean content and g of real clips, of others, and of others with a planted fault."""
    real = beating(COUNT, seed=0, frames=16).batch.image
    other = beating(COUNT, seed=1, frames=16).batch.image
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool3d(other, (1, 5, 5), 1, (0, 2, 2))
    clips = {
        "real": real,
        "other": other,
        "shuffled": other[:, :, order],
        "frozen": other[:, :, :1].expand_as(other),
        "half speed": other[:, :, torch.arange(16) // 2],
        "blur": blurred,
        "duplicated": other[torch.arange(COUNT) % 8],
    }
    extractor = FrameFeatures(RandomFeatures(1, real.transpose(1, 2).flatten(0, 1)))
    return {name: spectrum(extractor.sequences(part)) for name, part in clips.items()}


def measured(parts, name, edges="integer"):
    content, shape = parts["real"]
    other, theirs = parts[name]
    shares = prdc(content, other, 5)
    return stream_t(shape, theirs, edges), shares["precision"], shares["recall"]


@pytest.mark.parametrize("edges", ["integer", "percentile"])
def test_motion_falls_with_its_faults_alone(parts, edges):
    """Orderings that hold whatever the clips: broken order hurts motion, a still clip more."""
    t = {name: measured(parts, name, edges)[0] for name in parts}
    assert t["real"] == pytest.approx(1)
    assert t["other"] > t["shuffled"] > t["frozen"]
    assert t["other"] > t["half speed"]


def test_order_of_frames_touches_neither_fidelity_nor_diversity(parts):
    _, f, d = measured(parts, "other")
    _, shuffled_f, shuffled_d = measured(parts, "shuffled")
    assert abs(shuffled_f - f) < 0.02
    assert abs(shuffled_d - d) < 0.02


def test_diversity_falls_with_copies_and_fidelity_with_blur(parts):
    _, f, d = measured(parts, "other")
    assert measured(parts, "duplicated")[2] < 0.3 * d
    assert measured(parts, "blur")[1] < 0.5 * f


def test_frames_alone_are_blind_to_their_order(parts):
    content = {name: each[0] for name, each in parts.items()}
    honest = frechet_distance(content["real"], content["other"])
    assert frechet_distance(content["real"], content["shuffled"]) == pytest.approx(honest)


def test_summary_of_an_exact_power_law():
    """A cosine comb of amplitudes A k^B: the fit finds B, whatever A."""
    frames, power = 16, -1.5
    k, t = np.arange(1, 9), np.arange(16)
    # The highest frequency has one coefficient, not two halves.
    size = 3.0 * k**power * np.where(k == 8, 0.5, 1.0)
    wave = (size[:, None] * np.cos(2 * np.pi * k[:, None] * t / frames)).sum(axis=0)
    _, g = spectrum(wave[None, :, None])
    exact = (k ** (power + 3.0)).sum() * np.sqrt((k**power).sum() / (k ** (power + 2.0)).sum())
    assert g[0, 0] == pytest.approx(exact, rel=1e-3)


def test_order_of_clips_does_not_matter(parts):
    shape = parts["other"][1]
    turned = np.random.default_rng(0).permutation(COUNT)
    assert stream_t(parts["real"][1], shape[turned]) == stream_t(parts["real"][1], shape)


def test_percentile_edges_see_what_integer_ones_round_away():
    """Two sets two deviations apart, and one outlier in each that sets the integer edges."""
    rng = np.random.default_rng(0)
    outlier = np.full((1, 3), 500.0)
    a, b = (np.concatenate([rng.normal(at, 0.05, (400, 3)), outlier]) for at in (0.0, 0.1))
    assert stream_t(a, b, "integer") > 0.95
    assert stream_t(a, b, "percentile") < 0.3


def test_too_few_frames_are_refused():
    with pytest.raises(DataError, match="at least 4 frames, got 3"):
        spectrum(np.zeros((2, 3, 5)))


def test_the_metric_carries_floor_interval_and_extractor():
    real, synthetic = beating(60, seed=0), beating(30, seed=1, synthetic=True)
    comparison = Comparison(real, synthetic, extractor="random")
    found = Stream().measure(comparison)
    assert set(found) == {"stream_t", "stream_f", "stream_d"}
    for estimate in found.values():
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.floor is not None
        assert estimate.higher_is_better
        assert estimate.extractor == "random, every frame"
        assert "studies a side" in estimate.warning


def test_a_frozen_generator_is_seen():
    real, synthetic = beating(60, seed=0), beating(30, seed=1, synthetic=True)
    still = synthetic.batch.image[:, :, :1].expand_as(synthetic.batch.image)
    frozen = Studies(synthetic.schema, synthetic.studies, replace(synthetic.batch, image=still))
    found = Stream().measure(Comparison(real, frozen, extractor="random"))
    assert found["stream_t"].high < found["stream_t"].floor.low


def test_images_are_refused_in_words():
    result = evaluate(discs(60), discs(20, seed=1, synthetic=True), ["stream"], extractor="random")
    assert result["skipped"] == {"stream": "the studies are no clips"}
