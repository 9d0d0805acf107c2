"""Does an image show what its report says? Judged by two encoders trained on real studies alone."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medgen.augmentation.augment import Augment
from medgen.augmentation.intervals import patient_weights
from medgen.augmentation.networks import SmallClassifier
from medgen.augmentation.tasks import CHUNK, batches
from medgen.errors import DataError
from medgen.evaluation.alignment import DRAWS, share_estimate
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.features import images_of
from medgen.nn.words import word_tokens
from medgen.protocols import Dataset
from medgen.registry import register
from medgen.rng import derive
from medgen.types import Estimate

Array = NDArray[np.float64]
WIDTH = 64
WORDS, LENGTH = 4096, 128
BATCH = 64
LR = 1e-3
VIEWS = Augment(shift=0.08, scale=0.1, rotation=5, intensity=0.1)
"""What the image encoder shall not see; left and right stay, since reports tell them apart."""
FIRST, FEW = 1, 5


@register("metric", "text_retrieval")
class TextRetrieval:
    """How often an image finds its own report among those of other studies.

    Gives "text_retrieval", the share of samples whose report comes first of `pool`, and
    "text_retrieval_5", of those where it is among the first five; chance is 1 and 5 in `pool`. The
    floor is the same on real test studies. Reports that say the same in other words count as wrong
    in both. A sample that was asked for with a real study's report is judged by that study's.

    Args:
        steps: optimiser steps of the two encoders.
        pool: reports that differ, its own included, among which one is found.

    Source: retrieval as in ConVIRT, Zhang et al. 2020, arXiv:2010.00747; encoders trained by the
    loss of CLIP, Radford et al. 2021, arXiv:2103.00020, where equal reports of a batch are all
    right.
    """

    needs = "reports"

    def __init__(self, steps: int = 600, pool: int = 50) -> None:
        self.steps, self.pool = steps, pool

    def compute(self, real: Dataset, synthetic: Dataset) -> dict[str, Estimate]:
        """The retrieval alone."""
        return self.measure(Comparison(real, synthetic))

    def measure(self, comparison: Comparison) -> dict[str, Estimate]:
        """The retrieval for synthetic studies, with that for real test studies as floor.

        Raises:
            DataError: no report was asked for of some sample, or there are not enough reports.
        """
        if self.pool < 2:
            raise DataError(f"text retrieval needs a pool of at least 2 reports, got {self.pool}")
        asked = _asked(comparison)
        real = comparison.test.batch.text or ()
        others = sorted({report for report in (*asked, *real) if report})
        if len(others) < self.pool:
            raise DataError(
                f"text retrieval among {self.pool} reports needs as many that differ, got "
                f"{len(others)}; set a smaller `pool`"
            )
        train = comparison.train.batch
        judge = Retriever(
            images_of(train), train.text or (), seed=comparison.seed, steps=self.steps
        )
        found = self._shares(judge, comparison.synthetic, asked, others, comparison.seed)
        floors = self._shares(judge, comparison.test, real, others, comparison.seed + 1)
        return {name: replace(e, floor=floors[name]) for name, e in found.items()}

    def _shares(
        self, judge: Retriever, side: Side, reports: tuple[str, ...], others: list[str], seed: int
    ) -> dict[str, Estimate]:
        """The share of studies whose report is found, first and among the first few."""
        kept = [i for i, report in enumerate(reports) if report]
        if not kept:
            raise DataError("every report is empty; text retrieval is undefined")
        images = judge.see(images_of(side.batch)[kept])
        place = {report: i for i, report in enumerate(others)}
        scores = (images @ judge.read(others).T).numpy()
        rng = np.random.default_rng(derive(seed, "pools"))
        ranks = np.empty(len(kept))
        for row, index in enumerate(kept):
            own = place[reports[index]]
            rest = rng.choice(len(others) - 1, self.pool - 1, replace=False)
            rest += rest >= own
            ranks[row] = 1 + (scores[row, rest] >= scores[row, own]).sum()
        patients = [side.patients[i] for i in kept]
        weights = patient_weights(patients, DRAWS, seed=seed)
        single = len(set(patients)) / len(patients)

        def share(first: int) -> Estimate:
            right = (ranks <= first).astype(np.float64)[:, None]
            return share_estimate(right, np.ones_like(right), weights, len(kept), single)

        return {"text_retrieval": share(FIRST), f"text_retrieval_{FEW}": share(FEW)}


class Retriever:
    """An encoder of images and one of reports that agree on pairs.

    Args:
        images: of real training studies, (b c *s) in [-1, 1].
        reports: theirs; studies with an empty one are left out.
        seed: of weights, order and views.
        steps: optimiser steps.

    Raises:
        DataError: fewer than two studies have a report.
    """

    def __init__(self, images: Tensor, reports: tuple[str, ...], *, seed: int, steps: int) -> None:
        kept = [i for i, report in enumerate(reports) if report]
        if len({reports[i] for i in kept}) < 2:
            raise DataError("text retrieval needs training studies with at least 2 reports")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "weights"))
            self.image = SmallClassifier(images.shape[1], WIDTH, tuple(images.shape[2:]))
            self.text = ReportEncoder()
        self._learn(images[kept], [reports[i] for i in kept], seed, steps)

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        """Images (b c *s) in [-1, 1] to unit vectors (b d)."""
        parts = [functional.normalize(self.image(part), dim=1) for part in images.split(CHUNK)]
        return torch.cat(parts)

    @torch.no_grad()
    def read(self, reports: list[str]) -> Tensor:
        """Reports to unit vectors (b d)."""
        return functional.normalize(self.text(word_tokens(reports, WORDS, LENGTH)[0]), dim=1)

    def _learn(self, images: Tensor, reports: list[str], seed: int, steps: int) -> None:
        numbers, _ = word_tokens(reports, WORDS, LENGTH)
        known = {report: i for i, report in enumerate(dict.fromkeys(reports))}
        which = torch.tensor([known[report] for report in reports])
        warmth = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        parameters = [*self.image.parameters(), *self.text.parameters(), warmth]
        optimiser = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
        views = torch.Generator().manual_seed(derive(seed, "views"))
        for chosen in islice(batches(len(images), BATCH, derive(seed, "order")), steps):
            seen, _ = VIEWS.apply(images[chosen], None, views)
            a = functional.normalize(self.image(seen), dim=1)
            b = functional.normalize(self.text(numbers[chosen]), dim=1)
            same = (which[chosen][:, None] == which[chosen]).float()
            wanted = same / same.sum(dim=1, keepdim=True)
            logits = a @ b.T * warmth.exp().clamp(max=100)
            loss = functional.cross_entropy(logits, wanted)
            loss = loss + functional.cross_entropy(logits.T, wanted)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        self.image.eval()
        self.text.eval()


class ReportEncoder(nn.Module):
    """The mean over a report of its words and their neighbours, seen by a convolution of 3 words.

    A neighbour tells "no effusion" from "effusion".
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS + 1, WIDTH, padding_idx=0)
        self.near = nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=1)
        self.out = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, numbers: Tensor) -> Tensor:
        """Words (b n), 0 where none stands, to vectors (b d)."""
        stands = (numbers > 0)[:, None].float()
        seen = torch.relu(self.near(self.embed(numbers).transpose(1, 2))) * stands
        return self.out(seen.sum(dim=2) / stands.sum(dim=2).clamp(min=1))


def _asked(comparison: Comparison) -> tuple[str, ...]:
    """The report that each sample was asked for with; empty where none was.

    Raises:
        DataError: no sample was asked for with a report, or it is of a study that is not here.
    """
    synthetic = comparison.synthetic.batch
    if synthetic.text is not None:
        return synthetic.text
    held: dict[str, str] = {}
    for side in (comparison.train, comparison.validation, comparison.test):
        held |= dict(zip(side.ids, side.batch.text or (), strict=True))
    asked: list[str] = []
    for item in synthetic.provenance or ():
        report = (item.condition or {}).get("report")
        if not isinstance(report, dict) or report["of"] not in held:
            raise DataError(
                f"{item.id}: was not asked for with a report of these studies; text retrieval "
                "needs samples of a generator with a `text` condition"
            )
        asked.append(held[report["of"]])
    return tuple(asked)
