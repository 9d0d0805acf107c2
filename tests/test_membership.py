"""Membership attacks: blind where nothing leaks, sure where samples are copies."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import build
from toy_studies import Studies, discs

from medgen.data.splits import by_split, load
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.membership import Attack, Membership, _auc, _rate, loss_scores
from medgen.rng import Rng

REAL = discs(400, noise=0.3)


def attacks(synthetic, **changes):
    comparison = Comparison(REAL, synthetic, extractor="pixels-pca", **changes)
    return Membership().measure(comparison)


def test_fresh_samples_give_nothing_away():
    found = attacks(discs(200, seed=1, synthetic=True, noise=0.3))
    assert set(found) == {
        f"membership_{what}/distance in {space}"
        for what in ("auc", "rate")
        for space in ("pixels", "features")
    }
    for name, estimate in found.items():
        assert estimate.low <= (0.5 if "auc" in name else 0.01) + 0.02
        assert estimate.warning


def test_copies_give_members_away():
    train = load(by_split(REAL, "train"))
    other = discs(len(train), seed=1, synthetic=True)
    batch = replace(train, provenance=other.batch.provenance)
    for name, estimate in attacks(Studies(other.schema, other.studies, batch)).items():
        assert estimate.low > (0.95 if "auc" in name else 0.9), name


@pytest.mark.parametrize("apart", [0.0, 1.0, 3.0])
def test_scores_of_two_gaussians(apart):
    """AUROC Phi(d / sqrt 2); at 1 % false alarms the rate is Phi(d - 2.326)."""
    from statistics import NormalDist

    rng = np.random.default_rng(0)
    attack = Attack(rng.normal(size=20_000) + apart, rng.normal(size=20_000))
    ones = np.ones((2, 20_000))
    normal = NormalDist()
    assert _auc(attack, ones, ones).value == pytest.approx(normal.cdf(apart / 2**0.5), abs=0.01)
    assert _rate(attack, ones, ones).value == pytest.approx(normal.cdf(apart - 2.326), abs=0.02)


def test_scores_by_loss_use_the_same_noise_for_all():
    model = build()
    seen: list[Rng] = []

    def loss(z, conditions, rng):
        seen.append(rng)
        return z.flatten(1).square().mean(1)

    model.loss = loss
    image = torch.randn(6, model.schema.channels, *model.schema.size).clamp(-1, 1)
    batch = replace(discs(6).batch, image=image)
    side = Side(batch, tuple("abcdef"), tuple("abcdef"))
    near, far = loss_scores(model, [side, replace(side, batch=replace(batch, image=image / 2))], 3)
    assert len(seen) == 6
    assert len({tuple(rng.normal((2,))[0].tolist()) for rng in seen}) == 3
    draws = seen[0].normal((2,))
    assert torch.equal(draws[0], draws[5])
    assert (near < far).all()
