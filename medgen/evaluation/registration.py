"""Is one image another one, mirrored, cropped, shifted, of other exposure? Normalised correlation.

A copy that a generator shifts or crops by a few pixels is far from its source pixel by pixel. So a
window of the sample is laid over the training image in every place, at several scales, both ways
round, and the best correlation counts. A few candidates are chosen on coarse images first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Array = NDArray[np.float64]
SIDE = 64
"""Side that images are resampled to, in pixels."""
SPACING = 2
"""Pixels between the points of a window: finer detail is noise."""
WINDOW = 26
"""Points a side of a window: it covers four fifths of an image, so it may move by a tenth."""
SCALES = (1.0, 0.95, 0.9, 0.85)
"""How much of the training image a sample may show, after a crop that was enlarged again."""
FINEST, COARSEST = 1.0, 16.0
"""Standard deviations of the blurs between which detail is kept, in pixels of the resampled image:
below it is noise, above it exposure and the outline that all patients share."""
CELL = 6
"""Side of a pixel of the coarse images, in pixels."""
CELLS = 8
SHIFTS = (-6, -4, -2, 0, 2, 4, 6)
"""Shifts at which coarse images are compared; steps of 3 lose a third of crops in fine texture."""
CANDIDATES = 4
CHUNK = 64


@dataclass(frozen=True)
class Matches:
    """The training image that shows each of some images best.

    Args:
        index: of the training image, (n,).
        distance: sqrt(2 - 2 |correlation|): 0 is a copy, sqrt(2) is unrelated, (n,).
        flipped: the image is mirrored left to right, (n,).
    """

    index: NDArray[np.intp]
    distance: Array
    flipped: NDArray[np.bool_]


class RegisteredSearch:
    """Finds the training image that shows an image best, up to mirroring, crop, shift and exposure.

    Args:
        train: training images (t c h w); of volumes and clips (t c d h w) the mean of the middle
            half along the first axis is looked at.

    Source: Lewis 1995, "Fast normalized cross-correlation", for windows over images.
    """

    def __init__(self, train: Tensor) -> None:
        self.details = _details(train)
        edge = (SIDE - CELL * CELLS) // 2
        places = [(edge + down, edge + right) for down in SHIFTS for right in SHIFTS]
        self.coarse = torch.stack([_coarse(self.details, *place) for place in places])

    @torch.no_grad()
    def nearest(self, images: Tensor) -> Matches:
        """The best match of every study, of the same kind as the training ones."""
        parts = [self._nearest(part) for part in images.split(CHUNK)]
        index, correlation, flipped = (
            torch.cat(column).numpy() for column in zip(*parts, strict=True)
        )
        distance = np.sqrt(2 - 2 * correlation.astype(np.float64).clip(max=1))
        return Matches(index, distance, flipped)

    def _nearest(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        details = _details(images)
        views = _windows(details)
        found = []
        for view, chosen in zip(views, self._candidates(details), strict=True):
            every = functional.unfold(self.details[chosen], WINDOW, dilation=SPACING)
            every = _normalised(every.transpose(1, 2))  # candidates, places, points
            score = (every @ view.T).abs().amax(dim=1)  # candidates, views
            best = int(score.argmax())
            row, column = divmod(best, len(view))
            found.append((chosen[row], score[row, column], column >= len(SCALES)))
        index, correlation, flipped = zip(*found, strict=True)
        return torch.stack(index), torch.stack(correlation), torch.tensor(flipped)

    def _candidates(self, details: Tensor) -> Tensor:
        """The training images whose coarse ones correlate best, (n candidates)."""
        views = []
        for turned in (details, details.flip(-1)):
            for scale in SCALES:
                side = round(SIDE * scale)
                edge = (side - CELL * CELLS) // 2
                views.append(_coarse(_resampled(turned, side), edge, edge))
        rows = torch.cat(views)
        best = torch.zeros(len(details), self.coarse.shape[1])
        for place in self.coarse:
            score = (rows @ place.T).abs().view(len(views), *best.shape)
            best = torch.maximum(best, score.amax(dim=0))
        return best.topk(min(CANDIDATES, best.shape[1]), dim=1).indices


def _details(images: Tensor) -> Tensor:
    """Gray images without the finest and the coarsest detail, (n 1 SIDE SIDE)."""
    gray = _resampled(_projected(images.float()).mean(dim=1, keepdim=True), SIDE)
    fine, coarse = _blur(FINEST), _blur(COARSEST)
    return fine @ gray @ fine.T - coarse @ gray @ coarse.T


def _projected(studies: Tensor) -> Tensor:
    """Images (n c h w) as they are, of volumes and clips the mean of the middle half (n c *h w)."""
    if studies.ndim == 4:
        return studies
    length = studies.shape[2]
    return studies[:, :, length // 4 : length - length // 4].mean(dim=2)


def _resampled(images: Tensor, side: int) -> Tensor:
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def _blur(deviation: float) -> Tensor:
    """A matrix that blurs along an axis of SIDE pixels; near an edge, over what there is."""
    place = torch.arange(SIDE)
    weights = torch.exp(-0.5 * ((place[:, None] - place[None]) / deviation) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def _coarse(details: Tensor, top: int, left: int) -> Tensor:
    """Normalised means over cells of a square at a place, (n CELLS*CELLS)."""
    side = CELL * CELLS
    part = details[..., top : top + side, left : left + side]
    return _normalised(functional.avg_pool2d(part, CELL).flatten(1))


def _windows(details: Tensor) -> Tensor:
    """The middle of every image at every scale, then the same mirrored, (n views points)."""
    # Half a pixel off the middle, so that at scale 1 points fall on pixels.
    line = ((torch.arange(WINDOW) - (WINDOW - 1) / 2) * SPACING + 0.5) * 2 / SIDE
    views = []
    for turned in (details, details.flip(-1)):
        for scale in SCALES:
            rows, columns = torch.meshgrid(line / scale, line / scale, indexing="ij")
            grid = torch.stack([columns, rows], dim=-1).expand(len(details), -1, -1, -1)
            seen = functional.grid_sample(turned, grid, padding_mode="border", align_corners=False)
            views.append(seen.flatten(1))
    return _normalised(torch.stack(views, dim=1))


def _normalised(rows: Tensor) -> Tensor:
    """Rows of mean 0 and norm 1; constant ones become 0."""
    centred = rows - rows.mean(dim=-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-6)
