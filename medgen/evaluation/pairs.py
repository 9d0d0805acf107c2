"""Diversity within a condition: how unlike each other are two samples of the same request?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.augmentation.intervals import half_samples
from medgen.augmentation.scores import nan_mean
from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.feature_metric import DRAWS, Features, estimate_from
from medgen.evaluation.features import images_of
from medgen.evaluation.frames import is_clip
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.rng import derive
from medgen.types import Estimate

Array = NDArray[np.float64]
Condition = tuple[int, ...]
Distance = Callable[[Tensor, Tensor], Tensor]
"""Images (b c *s) and (b c *s) in [-1, 1] to (b,)."""
PAIRS = 4_000
"""Pairs of a side, at most."""
CONDITIONS = 8
"""Conditions that are looked at, the commonest first."""
LEAST = 4
"""Studies that a condition must have on both sides."""
CHUNK = 64
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales of MS-SSIM, the finest first."""
WINDOW = 11


@dataclass(frozen=True)
class _Pairs:
    """Distances of the pairs of one condition.

    Args:
        first: index of one study, (pairs,).
        second: index of the other, of another patient.
        distance: of the two.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    distance: Array

    def mean(self, inside: NDArray[np.bool_]) -> Array:
        """The mean distance of pairs of members, for memberships (draws, n)."""
        both = (inside[:, self.first] & inside[:, self.second]).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return both @ self.distance / both.sum(axis=1)


class _PairDiversity(ABC):
    """The mean distance of two studies of one condition and of different patients.

    A condition is the findings asked for; without findings any two studies pair. Conditions that
    both sides show, at most the 8 commonest, count alike. Neither end is good: far below the same
    among held-out real studies, the floor, a generator repeats itself; far above, it adds what real
    studies lack. Of clips, frames pair.
    """

    needs = ""
    name = ""

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The estimate alone."""
        return self.measure(Comparison(real, synthetic))

    @abstractmethod
    def distance(self, images: Tensor) -> tuple[Distance, str]:
        """The distance that fits images such as these, and the name of what measures it."""

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The diversity of synthetic studies, with that of held-out real ones as floor.

        Raises:
            DataError: no condition has enough studies on both sides.
        """
        comparison = comparison.frames if is_clip(comparison.schema) else comparison
        sides = comparison.synthetic, comparison.heldout
        same = comparison.schema.findings == comparison.synthetic_schema.findings
        conditions = [
            [tuple(row) for row in side.batch.label.tolist()]
            if same and side.batch.label is not None
            else [()] * len(side)
            for side in sides
        ]
        shared = _shared(*conditions)
        distance, extractor = self.distance(images_of(sides[0].batch)[:1])
        drawn, held = (
            replace(
                _estimate(side, each, shared, distance, derive(comparison.seed, self.name, i)),
                extractor=extractor,
            )
            for i, (side, each) in enumerate(zip(sides, conditions, strict=True))
        )
        return {self.name: replace(drawn, floor=held)}


@register("metric", "ms_ssim_diversity")
class MsSsimDiversity(_PairDiversity):
    """1 - multi-scale structural similarity of two studies of the same condition.

    As many of the five scales are taken as a window of 11 pixels fits in; their weights sum to 1.

    Source: Wang, Simoncelli and Bovik 2003, doi 10.1109/ACSSC.2003.1292216; as a measure of
    diversity Odena, Olah and Shlens 2017, arXiv:1610.09585, section 4.2.
    """

    name = "ms_ssim_diversity"

    def distance(self, images: Tensor) -> tuple[Distance, str]:
        """1 - MS-SSIM.

        Raises:
            DataError: the images are smaller than the window.
        """
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

        side = min(images.shape[2:])
        weights = [w for k, w in enumerate(WEIGHTS) if side > (WINDOW - 1) * 2**k]
        if not weights:
            raise DataError(f"MS-SSIM needs sides of at least {WINDOW} pixels, got {side}")
        betas = tuple(w / sum(weights) for w in weights)

        def unlike(a: Tensor, b: Tensor) -> Tensor:
            found = multiscale_structural_similarity_index_measure(
                a.clamp(-1, 1), b.clamp(-1, 1), betas=betas, data_range=2.0, reduction="none"
            )
            return 1 - torch.as_tensor(found)

        return unlike, f"MS-SSIM of {len(betas)} scales"


@register("metric", "lpips_diversity")
class LpipsDiversity(_PairDiversity):
    """LPIPS distance of two studies of the same condition.

    Args:
        trunk: file of torchvision's AlexNet or VGG-16 weights; None looks in torch's hub cache.

    Source: Zhang et al. 2018, arXiv:1801.03924.
    """

    name = "lpips_diversity"

    def __init__(self, trunk: str | None = None) -> None:
        self.trunk = trunk

    def distance(self, images: Tensor) -> tuple[Distance, str]:
        """LPIPS.

        Raises:
            DataError: there are no weights, or the studies are volumes.
        """
        from medgen.codecs.lpips import Lpips, find_trunk

        if images.ndim != 4:
            raise DataError("lpips_diversity takes images, not volumes; use ms_ssim_diversity")
        trunk = find_trunk(None if self.trunk is None else Path(self.trunk))
        if trunk is None:
            raise DataError(
                "lpips_diversity needs torchvision's AlexNet or VGG-16 weights "
                "(alexnet-owt-7be5be79.pth or vgg16-397923af.pth), named by `trunk` or in torch's "
                "hub cache; ms_ssim_diversity needs none"
            )
        return Lpips(trunk), f"LPIPS of {trunk.name}"


def _shared(drawn: list[Condition], held: list[Condition]) -> list[Condition]:
    """Conditions with enough studies on both sides, the commonest synthetic ones first."""
    ours, theirs = Counter(drawn), Counter(held)
    found = [c for c, count in ours.most_common() if min(count, theirs[c]) >= LEAST]
    if not found:
        raise DataError(
            f"fewer than {LEAST} synthetic or held-out real studies of every condition; "
            "diversity within a condition cannot be measured"
        )
    return found[:CONDITIONS]


@torch.no_grad()
def _estimate(
    side: Side, conditions: list[Condition], shared: list[Condition], distance: Distance, seed: int
) -> Estimate:
    """The mean over conditions of the mean distance of their pairs."""
    order = np.random.default_rng(seed).permutation(len(side)).tolist()
    most = max(LEAST, int((2 * PAIRS / len(shared)) ** 0.5))
    chosen = [[i for i in order if conditions[i] == each][:most] for each in shared]
    some = side.select([i for group in chosen for i in group])
    images, groups, start = images_of(some.batch), [], 0
    for group in chosen:
        places = range(start, start + len(group))
        start += len(group)
        pairs = [(i, j) for i, j in combinations(places, 2) if some.patients[i] != some.patients[j]]
        if pairs:
            first, second = np.array(pairs).T
            found = [
                distance(images[first[k : k + CHUNK]], images[second[k : k + CHUNK]])
                for k in range(0, len(pairs), CHUNK)
            ]
            groups.append(_Pairs(first, second, torch.cat(found).double().numpy()))
    if not groups:
        raise DataError("no two studies of one condition are of different patients")
    inside = np.ones((DRAWS + 1, len(some)), dtype=bool)
    for draw, members in enumerate(half_samples(some.patients, DRAWS, seed=1), start=1):
        inside[draw] = False
        inside[draw, members] = True
    value, *draws = nan_mean(np.stack([group.mean(inside) for group in groups]), axis=0)
    studies = Features(np.empty((len(some), 0)), some.patients)
    return estimate_from(float(value), np.array(draws), studies, higher=None, bounds=(0, np.inf))
