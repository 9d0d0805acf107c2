"""The audit finds planted copies and leaves fresh samples alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_studies import Studies, balls, discs

from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.neighbours import nearest
from medgen.evaluation.privacy import Memorization

REAL = discs(400, noise=0.6)
TRAIN = [i for i, study in enumerate(REAL.studies) if study.split == "train"]


def fresh(count=120):
    return discs(count, seed=1, synthetic=True, noise=0.6)


def changed(images, how):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    ways = {
        "exact": images,
        "mirrored": images.flip(-1),
        "noisy": images + 0.1 * noise,
        "brighter": 0.8 * images + 0.15,
    }
    return ways[how].clamp(-1, 1)


def planted(how, share=1.0):
    """Fresh samples of which a share are replaced by changed training images."""
    synthetic = fresh()
    count = int(share * len(synthetic))
    image = synthetic.batch.image.clone()
    image[:count] = changed(REAL.batch.image[TRAIN[:count]], how)
    return Studies(synthetic.schema, synthetic.studies, replace(synthetic.batch, image=image))


def audit(synthetic):
    return Memorization().audit(Comparison(REAL, synthetic, extractor="pixels-pca"))


def test_fresh_samples_stand_at_the_floor():
    found = audit(fresh()).estimates
    share = found["memorization"]
    assert share.low <= share.floor.high
    assert share.value < 0.2
    assert share.floor.value == pytest.approx(0.05, abs=0.01)
    assert found["nearest_neighbour_ratio/pixels"].value > 0.85


@pytest.mark.parametrize("how", ["exact", "mirrored", "noisy", "brighter"])
def test_planted_copies_are_found(how):
    result = audit(planted(how))
    share = result.estimates["memorization"]
    assert share.value > 0.95
    assert share.low > share.floor.high
    assert result.estimates["nearest_neighbour_ratio/pixels"].value < 0.6
    assert result.estimates["nearest_neighbour_authenticity/pixels"].value < 0.1


def test_copies_of_volumes_are_found():
    real = balls(100, depth=12)
    fresh_ones = balls(30, depth=12, seed=1, synthetic=True)
    train = [i for i, study in enumerate(real.studies) if study.split == "train"]
    copies = real.batch.image[train[:30]].roll((1, 2), dims=(2, 4))
    copied = Studies(real.schema, fresh_ones.studies, replace(fresh_ones.batch, image=0.9 * copies))
    shares = [
        Memorization()
        .measure(Comparison(real, synthetic, extractor="pixels-pca"))["memorization"]
        .value
        for synthetic in (fresh_ones, copied)
    ]
    assert shares[0] < 0.4
    assert shares[1] > 0.9


def test_the_share_of_copies_is_measured():
    result = audit(planted("exact", share=0.5))
    assert result.estimates["memorization"].value == pytest.approx(0.5, abs=0.1)


def test_suspicious_pairs_name_the_copied_study():
    result = audit(planted("mirrored", share=0.1))
    source = {f"s1-{k}": REAL.studies[TRAIN[k]].id for k in range(12)}
    assert len(result.pairs) == 12
    for pair in result.pairs:
        assert source[pair["synthetic"]] == pair["real"]
        assert pair["flipped"]
        assert pair["score"] > 0.5
        assert pair["distance"] < pair["alarm_below"]
        assert pair["false_alarms"] <= 0.05


def test_second_neighbours_are_of_another_patient():
    train = np.array([[0.0], [0.1], [5.0]])
    found = nearest(np.array([[0.0]]), np.array([[99.0]]), train, np.array([0, 0, 1]))
    assert found.index[0] == 0
    assert found.distance[0] == 0
    assert found.second[0] == 5
    assert not found.flipped[0]


def test_a_real_study_among_the_samples_is_refused():
    with pytest.raises(DataError, match=r"r1-0.*is not synthetic"):
        Comparison(REAL, discs(20, seed=1))


def test_a_sample_among_the_real_studies_is_refused():
    real = discs(100, seed=2)
    origin = discs(100, seed=2, synthetic=True).batch.provenance
    mixed = Studies(real.schema, real.studies, replace(real.batch, provenance=origin))
    with pytest.raises(DataError, match=r"s2-0.*is synthetic"):
        Comparison(mixed, fresh())
