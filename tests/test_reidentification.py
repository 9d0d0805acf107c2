"""The audit's power: planted copies of every kind are found at stated rates, others are not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from toy_studies import Studies, radiographs

from medgen.evaluation.comparison import Comparison
from medgen.evaluation.privacy import FALSE_ALARMS, Memorization
from medgen.evaluation.registration import RegisteredSearch
from medgen.evidence import write_evaluation

REAL = radiographs(600)
TRAIN = [i for i, study in enumerate(REAL.studies) if study.split == "train"]
HELD = len(REAL) - len(TRAIN)
FRESH, PLANTED = 200, 20


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """Back to 64 pixels a side, as a crop is shown."""
    return functional.interpolate(images, (64, 64), mode="bilinear", antialias=True)


def noisy(images: torch.Tensor, deviation: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return images + deviation * torch.randn(images.shape, generator=generator)


WAYS = {
    "exact": lambda x: x,
    "flipped": lambda x: x.flip(-1),
    "brighter": lambda x: 0.7 * x + 0.2,
    "gamma": lambda x: 2 * ((x + 1) / 2) ** 1.4 - 1,
    "inverted": lambda x: -x,
    "noisy": noisy,
    "cropped": lambda x: enlarged(x[..., 3:-3, 3:-3]),
    "cropped off centre": lambda x: enlarged(x[..., 5:, 4:-1]),
    "shifted": lambda x: functional.pad(x, (3, 0, 0, 3), mode="replicate")[..., 3:, :-3],
    "all at once": lambda x: noisy(enlarged(0.8 * x[..., 4:, 3:]).flip(-1) + 0.1),
}
"""What a copy may have gone through, on images of 64 pixels a side."""
LEAST = {way: 0.95 if way in ("exact", "flipped") else 0.90 for way in WAYS}


@pytest.fixture(scope="module")
def audit():
    """Independent samples, then as many copies of every kind, of different training studies."""
    synthetic = radiographs(FRESH + PLANTED * len(WAYS), seed=1, synthetic=True)
    image = synthetic.batch.image.clone()
    for place, change in enumerate(WAYS.values()):
        start = FRESH + PLANTED * place
        sources = TRAIN[PLANTED * place : PLANTED * (place + 1)]
        image[start : start + PLANTED] = change(REAL.batch.image[sources]).clamp(-1, 1)
    planted = Studies(synthetic.schema, synthetic.studies, replace(synthetic.batch, image=image))
    return Memorization().audit(Comparison(REAL, planted, extractor="pixels-pca"))


def of(audit, way):
    """The lines of one kind of copy, with their true sources."""
    place = list(WAYS).index(way)
    lines = audit.reidentification.samples[FRESH + PLANTED * place :][:PLANTED]
    return lines, [REAL.studies[i].id for i in TRAIN[PLANTED * place :][:PLANTED]]


@pytest.mark.parametrize("way", WAYS)
def test_planted_copies_are_found_and_their_source_is_named(audit, way):
    lines, sources = of(audit, way)
    found = [line["score"] > 0.5 for line in lines]
    assert np.mean(found) >= LEAST[way]
    named = [line["real"] == source for line, source in zip(lines, sources, strict=True)]
    assert np.mean(named) >= LEAST[way]
    assert np.mean([line["flipped"] for line in lines]) == (way in ("flipped", "all at once"))


def test_independent_samples_are_flagged_as_often_as_stated(audit):
    """Bound: three standard errors of a rate over 200 samples at a cut from 240 held-out ones."""
    scores = audit.reidentification.scores[:FRESH]
    error = (FALSE_ALARMS * (1 - FALSE_ALARMS) * (1 / FRESH + 1 / HELD)) ** 0.5
    assert (scores > 0.5).mean() <= FALSE_ALARMS + 3 * error
    assert (audit.reidentification.heldout > 0.5).mean() == pytest.approx(FALSE_ALARMS, abs=0.005)


def test_false_alarm_rates_of_samples_are_those_of_unseen_studies(audit):
    """Of independent samples a share p has a rate below p; a copy has the least there is."""
    rates = audit.reidentification.false_alarms
    for share in (0.1, 0.25, 0.5):
        error = (share * (1 - share) * (1 / FRESH + 1 / HELD)) ** 0.5
        assert (rates[:FRESH] <= share).mean() == pytest.approx(share, abs=3 * error)
    assert rates[FRESH : FRESH + PLANTED] == pytest.approx(1 / (HELD + 1))


def test_every_sample_has_a_line_and_the_worst_come_first(audit):
    judged = audit.reidentification.to_dict()
    assert judged["flagged"] == sum(line["score"] > 0.5 for line in judged["samples"])
    assert len(judged["samples"]) == FRESH + PLANTED * len(WAYS)
    for line in judged["samples"]:
        assert (line["score"] > judged["threshold"]) == (line["distance"] < line["alarm_below"])
        assert 0 <= line["score"] <= 1
    worst = max(judged["samples"], key=lambda line: line["score"])
    assert audit.pairs[0]["score"] == worst["score"]


def test_the_share_of_copies_is_measured(audit):
    truth = PLANTED * len(WAYS) / (FRESH + PLANTED * len(WAYS))
    share = audit.estimates["memorization"]
    assert share.value == pytest.approx(truth + FALSE_ALARMS * (1 - truth), abs=0.06)
    assert share.low > share.floor.high


def test_crops_are_found_by_registration_alone(audit):
    """Pixel by pixel a crop is no nearer than a stranger: registration is what sees it."""
    lines, _ = of(audit, "cropped off centre")
    assert {line["space"] for line in lines if line["score"] > 0.5} == {"registered"}


@pytest.mark.parametrize("size", [(8, 8), (20, 36), (64, 64), (130, 90)])
def test_images_of_any_size_and_channels(size):
    images = torch.rand(5, 3, *size, generator=torch.Generator().manual_seed(0))
    found = RegisteredSearch(images).nearest(images.flip(-1))
    assert found.index.tolist() == list(range(5))
    assert found.flipped.all()
    assert found.distance == pytest.approx(0, abs=0.05)


def test_a_constant_image_matches_nothing():
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = RegisteredSearch(images).nearest(torch.zeros(2, 1, 32, 32))
    assert found.distance == pytest.approx(2**0.5)


def test_scores_stand_in_a_file_of_their_own(audit, tmp_path):
    found = {"metrics": {}, "pairs": [], "reidentification": audit.reidentification.to_dict()}
    write_evaluation(tmp_path, found)
    assert "reidentification" not in json.loads((tmp_path / "evaluation.json").read_text())
    stored = json.loads((tmp_path / "reidentification.json").read_text())
    assert stored == found["reidentification"]
