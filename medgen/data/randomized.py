"""Random shapes in random images as a dataset: labels without end, and no study behind them."""

from __future__ import annotations

import numpy as np
import torch

from medgen.data.simulated import studies_of
from medgen.errors import RecipeError
from medgen.registry import register
from medgen.rng import derive
from medgen.simulate.random_shapes import Shapes, stars, tubes
from medgen.simulate.randomize import randomize
from medgen.types import Batch, Provenance, Schema

CLASSES = {"stars": "blob", "tubes": "vessel"}
DISTRACTORS = 5
"""Most shapes of other kinds that an image holds and its mask does not."""


@register("data", "randomized")
class Randomized:
    """Images or volumes of random shapes, contrast, bias, noise and resolution, with masks.

    Star-convex blobs or branching tubes are the class to find; blobs among the tubes, each of a
    grey of its own, belong to the background. Study i depends on the seed, i and the other
    arguments but the count. Nothing is kept in memory.

    Args:
        count: number of studies.
        size: two or three sides.
        shapes: "stars" or "tubes".
        seed: of everything.

    Raises:
        RecipeError: the numbers make no dataset.

    Source: Dey et al. 2023, AnyStar, arXiv 2307.07044; Wittmann et al. 2025, vesselFM, arXiv
        2411.17386; images as of Billot et al. 2023, doi 10.1016/j.media.2023.102789.
    """

    def __init__(
        self,
        count: int = 1000,
        size: tuple[int, ...] = (32, 32, 32),
        shapes: Shapes = "stars",
        seed: int = 0,
    ) -> None:
        if count < 1 or len(size) not in (2, 3) or min(size) < 8 or max(size) > 512:
            raise RecipeError(
                f"randomized: expected a count of at least 1 and two or three sides from 8 to 512, "
                f"got {count} and {list(size)}"
            )
        self.shapes, self.seed = shapes, seed
        self.schema = Schema(size=tuple(size), mask_classes=("background", CLASSES[shapes]))
        self.studies = studies_of(range(count), seed)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        """Study `index` as a batch of one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"study {index} of a dataset of {len(self)}")
        index %= len(self)
        rng = np.random.default_rng(derive(self.seed, "randomized", index))
        size = self.schema.size
        others = stars(size, rng, most=DISTRACTORS)
        if self.shapes == "tubes":
            mask = tubes(size, rng)
            painted = np.where(mask > 0, others.max() + 1, others)
        else:
            mask, painted = (others > 0).astype(np.int64), others
        image = randomize(painted, int(painted.max()) + 1, rng, artefacts=True)
        return Batch(
            image=torch.from_numpy(image)[None],
            mask=torch.from_numpy(mask)[None],
            provenance=(
                Provenance(
                    id=self.studies[index].id, synthetic=False, source=f"randomized:{self.seed}"
                ),
            ),
        )
