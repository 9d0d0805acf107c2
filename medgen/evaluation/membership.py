"""Could an attacker tell that a study was in the training set? From samples, or from the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.augmentation.intervals import (
    WIDENED,
    no_narrower_than_wilson,
    patient_weights,
    percentile_interval,
)
from medgen.augmentation.scores import auroc
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.features import images_of
from medgen.evaluation.neighbours import nearest_distance, pixel_rows
from medgen.model import GenerativeModel
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.rng import Rng, derive
from medgen.types import Estimate

Array = NDArray[np.float64]
FALSE_ALARMS = 0.01
DRAWS = 1000
CHUNK = 64
BOOTSTRAP = f"bootstrap over patients, {DRAWS} draws"
FEW = 300
"""Below so many unseen studies a rate at 1 % false alarms rests on less than three of them."""


@dataclass(frozen=True)
class Attack:
    """Scores of an attack; a higher one says "was trained on".

    Args:
        members: of training studies (m,).
        strangers: of studies that nobody trained on (s,).
        extractor: what it looked at.
    """

    members: Array
    strangers: Array
    extractor: str = ""


@register("metric", "membership")
class Membership:
    """How well attacks tell training studies from unseen ones; 0.5 is a coin.

    Gives "membership_auc/ATTACK" and "membership_rate/ATTACK", the share of training studies that
    are recognised where one in a hundred unseen ones is accused, by chance 0.01. The attacks look
    at the distance to the nearest sample, in pixels and in features, and, where the generator is at
    hand, at its loss with the same noise and times for every study. They are simple ones: a strong
    attacker does better, so a coin here is necessary, not sufficient.

    Members are of the training patients whom the extractor never saw; both sides are as many.

    Args:
        extractor: None is the evaluation's own.
        count: studies a side, at most.
        noises: draws of noise and time of the attack by loss.

    Source: Carlini et al. 2022, arXiv:2112.03570 (rates at few false alarms); Carlini et al. 2023,
        arXiv:2301.13188 (the loss of diffusion models); Hayes et al. 2019, arXiv:1705.07663.
    """

    needs = ""

    def __init__(self, extractor: str | None = None, count: int = 500, noises: int = 8) -> None:
        self.extractor = extractor
        self.count = count
        self.noises = noises

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The estimates alone, with an extractor of their own."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The estimates of every attack."""
        count = min(len(comparison.unseen_members), len(comparison.heldout), self.count)
        members = _some(comparison.unseen_members, count, derive(comparison.seed, "members"))
        strangers = _some(comparison.heldout, count, derive(comparison.seed, "strangers"))
        attacks = {
            f"distance in {name}": self._by_distance(comparison, members, strangers, name)
            for name in ("pixels", "features")
        }
        if comparison.model is not None:
            scores = loss_scores(
                comparison.model, [members, strangers], self.noises, seed=comparison.seed
            )
            attacks["loss"] = Attack(scores[0], scores[1])
        weights = [
            patient_weights(side.patients, DRAWS, seed=derive(comparison.seed, "attack", place))
            for place, side in enumerate((members, strangers))
        ]
        found: dict[str, Estimate] = {}
        for name, attack in attacks.items():
            found[f"membership_auc/{name}"] = _auc(attack, *weights)
            found[f"membership_rate/{name}"] = _rate(attack, *weights)
        return found

    def _by_distance(
        self, comparison: Comparison, members: Side, strangers: Side, name: str
    ) -> Attack:
        extractor = comparison.extractor(self.extractor)
        rows = pixel_rows if name == "pixels" else extractor.features
        drawn = rows(images_of(comparison.synthetic.batch))
        scores = [
            -nearest_distance(rows(image), rows(image.flip(-1)), drawn)
            for image in (images_of(side.batch) for side in (members, strangers))
        ]
        used = "pixels" if name == "pixels" else extractor.name
        return Attack(scores[0], scores[1], used)


@torch.no_grad()
def loss_scores(
    model: GenerativeModel, sides: list[Side], noises: int, *, seed: int = 0
) -> list[Array]:
    """Minus the loss of a generator on every study, each draw of noise and time standardised.

    Args:
        model: on any device.
        sides: studies with images and conditions.
        noises: draws, each the same for all studies.
        seed: of the draws.
    """
    device = next(model.backbone.parameters()).device
    model.eval()
    found = []
    for side in sides:
        columns = []
        for start in range(0, len(side), CHUNK):
            part = side.batch.select(range(start, min(start + CHUNK, len(side)))).to(device)
            z = model.codec.encode(images_of(part))
            seeds = [derive(seed, "noise", draw) for draw in range(noises)]
            asked = part.conditions(model.schema)
            losses = [model.loss(z, asked, Rng([s] * len(part))) for s in seeds]
            columns.append(torch.stack(losses, dim=1).double().cpu().numpy())
        found.append(np.concatenate(columns))
    everyone = np.concatenate(found)
    mean, deviation = everyone.mean(axis=0), everyone.std(axis=0).clip(min=1e-12)
    return [-((losses - mean) / deviation).mean(axis=1) for losses in found]


def _auc(attack: Attack, members: Array, strangers: Array) -> Estimate:
    scores = np.concatenate([attack.members, attack.strangers])
    truth = np.repeat([1, 0], [len(attack.members), len(attack.strangers)])
    draws = auroc(scores, truth, np.concatenate([members, strangers], axis=1))
    return _estimate(float(auroc(scores, truth)[0]), draws, attack, "AUROC")


def _rate(attack: Attack, members: Array, strangers: Array) -> Estimate:
    """Share of members above the score that one in a hundred strangers exceeds."""
    order = np.argsort(-attack.strangers, kind="stable")
    ranked = attack.strangers[order]

    def share(mine: Array, theirs: Array) -> Array:
        reached = np.cumsum(theirs[:, order], axis=1) / theirs.sum(axis=1, keepdims=True)
        cut = ranked[(reached > FALSE_ALARMS).argmax(axis=1)]
        return (mine * (attack.members[None] > cut[:, None])).sum(axis=1) / mine.sum(axis=1)

    value = share(np.ones((1, len(attack.members))), np.ones((1, len(ranked))))[0]
    return _estimate(float(value), share(members, strangers), attack, "share")


def _estimate(value: float, draws: Array, attack: Attack, unit: str) -> Estimate:
    low, high = percentile_interval(draws)
    if unit == "share":
        low, high = no_narrower_than_wilson((low, high), value, len(attack.members))
    few = len(attack.strangers)
    return Estimate(
        value,
        low,
        high,
        n=few,
        higher_is_better=False,
        unit=unit,
        method=BOOTSTRAP + WIDENED if unit == "share" else BOOTSTRAP,
        extractor=attack.extractor,
        warning=f"only {few} unseen studies" if few < FEW else "",
    )


def _some(side: Side, count: int, seed: int) -> Side:
    order = np.random.default_rng(seed).permutation(len(side))[:count]
    return side.select([int(i) for i in order])
