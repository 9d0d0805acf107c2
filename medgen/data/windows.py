"""Windows of clips: of one size and frame rate, with the masks that stand on their frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.data.clips import fit_clip, fit_masks, fitted_spacing, nearest_frames
from medgen.data.geometry import Fit
from medgen.data.images import CACHE_BYTES
from medgen.errors import DataError
from medgen.types import Batch

T = TypeVar("T")
UNKNOWN = -1
"""The class of a mask's pixels on frames that nobody drew."""


@dataclass(frozen=True)
class Source:
    """A clip before it is cut to a window.

    Args:
        frames: (t h w) uint8.
        rate: frames a second, Hz.
        spacing: mm between rows and between columns, where known.
        masks: classes (h w) of those frames that someone drew, by frame.
    """

    frames: NDArray[np.uint8]
    rate: float
    spacing: tuple[float, float] | None = None
    masks: dict[int, NDArray[np.int64]] | None = None


@dataclass(frozen=True)
class Cut:
    """A window of a clip.

    Args:
        frames: (T H W) uint8.
        order: the frame of the source that each of them is.
        masks: (T H W), -1 on frames that nobody drew.
        spacing: s, mm and mm between them, where known.
    """

    frames: NDArray[np.uint8]
    order: NDArray[np.int64]
    masks: NDArray[np.int8] | None
    spacing: tuple[float, float, float] | None


def starts_of(count: int, old: float, new: float, length: int, stride: int | None) -> list[int]:
    """Where windows of `length` frames at a new rate begin, in its frames.

    Without a stride there is one, the first; none where the clip is shorter than a window.
    """
    held = len(nearest_frames(count, old, new))
    if held < length:
        return []
    return [0] if stride is None else list(range(0, held - length + 1, stride))


def cut(source: Source, size: tuple[int, int, int], rate: float, start: int, fit: Fit) -> Cut:
    """The window of a clip at a size (T, H, W) and rate that begins at one of its new frames.

    Frames are the nearest in time, so none is a blend. A frame that someone drew takes the place
    nearest to it, if within half a step, so that a mask lies on the frame it was drawn on.

    Raises:
        ValueError: the window reaches beyond the clip.
    """
    length, space = size[0], (size[1], size[2])
    order = nearest_frames(len(source.frames), source.rate, rate)[start : start + length]
    if start < 0 or len(order) < length:
        raise ValueError(f"a window of {length} frames from {start} does not fit the clip")
    masks = None
    if source.masks is not None:
        masks = np.full((length, *space), UNKNOWN, np.int8)
        for frame, mask in source.masks.items():
            place = place_of(frame, order, source.rate / rate)
            if place is not None:
                order[place] = frame
                masks[place] = fit_masks(mask[None], space, fit)[0]
    old = (source.frames.shape[1], source.frames.shape[2])
    mm = None if source.spacing is None else fitted_spacing(source.spacing, old, space, fit)
    frames = fit_clip(source.frames[order], space, fit)
    return Cut(frames, order, masks, None if mm is None else (1 / rate, *mm))


def place_of(frame: int, order: NDArray[np.int64], step: float) -> int | None:
    """Where a frame of the source stands in a window, within half a step; None where it does not.

    Args:
        frame: of the source.
        order: the frames of the source that the window shows.
        step: frames of the source a frame of the window.
    """
    place = int(np.abs(order - frame).argmin())
    return place if abs(int(order[place]) - frame) <= max(0.5, step / 2) else None


def window_batch(window: Cut) -> Batch:
    """A window as a batch of one study."""
    image = torch.from_numpy(window.frames.astype(np.float32)) / 127.5 - 1
    return Batch(
        image=image[None, None],
        mask=None if window.masks is None else torch.from_numpy(window.masks).long()[None],
        spacing=None if window.spacing is None else torch.tensor([window.spacing]),
    )


class Kept(Generic[T]):
    """Values by index, kept in memory once they are made, the oldest dropped beyond 2 GiB.

    Args:
        make: makes the value of an index.
        size: bytes that a value takes.
    """

    def __init__(self, make: Callable[[int], T], size: Callable[[T], int]) -> None:
        self._make, self._size = make, size
        self._held: OrderedDict[int, T] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, index: int) -> T:
        if index not in self._held:
            value = self._make(index)
            self._held[index] = value
            self._bytes += self._size(value)
            while self._bytes > CACHE_BYTES and len(self._held) > 1:
                self._bytes -= self._size(self._held.popitem(last=False)[1])
        return self._held[index]


def kept_windows(make: Callable[[int], Cut]) -> Kept[Cut]:
    """Windows by index, kept in memory once they are cut."""
    return Kept(make, lambda window: window.frames.nbytes * (2 if window.masks is not None else 1))


def check_size(size: tuple[int, ...], rate: float) -> None:
    """Refuse a size that is no (T, H, W), or a rate that is none.

    Raises:
        DataError: says what was expected.
    """
    if len(size) != 3 or min(size) < 1 or size[0] < 2 or not rate > 0:
        raise DataError(
            "clips are read at a size of frames, height and width, at least 2 frames, and a rate "
            f"above 0 Hz; got size {size}, rate {rate}."
        )
