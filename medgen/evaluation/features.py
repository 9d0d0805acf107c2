"""What turns images into features: an extractor has a name, a digest and a width.

A number is comparable only with numbers from the same extractor, so every estimate names its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medgen.augmentation.tasks import CHUNK, Classification, Consumer, train_consumer
from medgen.errors import DataError, RecipeError, did_you_mean
from medgen.nn.nd import area_resize
from medgen.types import Batch, Schema

Array = NDArray[np.float64]
NAMES = (
    "classifier",
    "ssl",
    "efficientnet-lite0",
    "pixels-pca",
    "random",
    "histogram",
    "spectrum",
    "clip-ssl",
    "clip-supervised",
)
"""Extractors by name; `build_extractor` says which forms take weights from a file."""
SIDES = {1: 256, 2: 32, 3: 16}
"""Pixels a side of a small study, by the number of axes."""
LEVELS = 128
"""Equal parts of the intensity range in which a histogram counts."""


class Extractor(Protocol):
    """Images to features."""

    name: str
    digest: str

    def features(self, images: Tensor) -> Array:
        """Images (b c h w) in [-1, 1] to features (b d)."""
        ...


class ClassifierFeatures:
    """The last hidden layer of a classifier of the findings, trained on real studies.

    Args:
        consumer: the trained classifier.
        images: what it learned from; features are divided by their root mean square there, so that
            a kernel sees numbers near one.
    """

    def __init__(self, consumer: Consumer, images: Tensor) -> None:
        self.name = "classifier"
        self.consumer = consumer
        self.scale = root_mean_square(consumer.features(images))
        self.digest = digest_of(consumer.network.state_dict().values())

    def features(self, images: Tensor) -> Array:
        """Images (b c h w) in [-1, 1] to features (b 128)."""
        return self.consumer.features(images) / self.scale


class PixelFeatures:
    """The leading principal components of real pixels, at most 32 pixels a side.

    Args:
        images: real images (b c h w) that the components are fitted on.
        width: largest number of components.
    """

    def __init__(self, images: Tensor, width: int = 64) -> None:
        pixels = small_rows(images)
        self.name = "pixels-pca"
        self.mean, self.axes = principal_axes(pixels, width)
        self.scale = root_mean_square((pixels - self.mean) @ self.axes)
        self.digest = digest_of([torch.from_numpy(self.mean), torch.from_numpy(self.axes)])

    def features(self, images: Tensor) -> Array:
        """Images (b c h w) in [-1, 1] to features (b d)."""
        return (small_rows(images) - self.mean) @ self.axes / self.scale


class RandomFeatures:
    """Means and deviations of the channels of a convolutional network with fixed random weights.

    They need no data and no download, and see texture and coarse layout; a last resort.

    Args:
        channels: channels of an image.
        images: real images; features are divided by their root mean square there.
    """

    def __init__(self, channels: int, images: Tensor) -> None:
        rng = torch.Generator().manual_seed(20)
        widths = (channels, 32, 64, 128)
        self.weights = [
            torch.randn((after, before, 3, 3), generator=rng) * (2 / (9 * before)) ** 0.5
            for before, after in pairwise(widths)
        ]
        self.name = "random"
        self.digest = digest_of(self.weights)
        self.scale = 1.0
        self.scale = root_mean_square(self.features(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """Images (b c h w) in [-1, 1] to features (b 256)."""
        found: list[Tensor] = []
        for part in images.split(CHUNK):
            maps = part
            for weight in self.weights:
                maps = functional.relu(functional.conv2d(maps, weight, stride=2, padding=1))
            found.append(torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3))], dim=1))
        return torch.cat(found).double().numpy() / self.scale


class HistogramFeatures:
    """The share of pixels in each of `LEVELS` equal parts of the intensity range."""

    def __init__(self) -> None:
        self.name = f"histogram of {LEVELS} levels"
        self.digest = "none"

    def features(self, images: Tensor) -> Array:
        """Images (b c *s) in [-1, 1] to shares (b levels)."""
        level = ((images.flatten(1) + 1) / 2 * LEVELS).long().clamp(0, LEVELS - 1)
        offset = torch.arange(len(images))[:, None] * LEVELS
        counts = torch.bincount((level + offset).flatten(), minlength=len(images) * LEVELS)
        return (counts.view(len(images), LEVELS).double() / level.shape[1]).numpy()


class SpectrumFeatures:
    """The power of an image in rings of spatial frequency; the mean over channels.

    A ring is one cycle an image wide; the last is half a cycle a pixel of the shortest side.
    """

    def __init__(self) -> None:
        self.name = "power in rings of spatial frequency"
        self.digest = "none"

    def features(self, images: Tensor) -> Array:
        """Images (b c *s) in [-1, 1] to powers (b rings)."""
        sides = images.shape[2:]
        axes = tuple(range(-len(sides), 0))
        power = torch.fft.fftn(images.double(), dim=axes).abs().square().mean(dim=1).flatten(1)
        shortest = min(sides)
        grids = torch.meshgrid(*[torch.fft.fftfreq(side) for side in sides], indexing="ij")
        radius = torch.stack(grids).square().sum(0).sqrt().flatten() * shortest
        ring = radius.round().long()
        kept = (ring > 0) & (ring <= shortest // 2)
        rings = torch.zeros(len(images), shortest // 2, dtype=torch.float64)
        rings.index_add_(1, ring[kept] - 1, power[:, kept])
        return (rings / torch.bincount(ring[kept] - 1)).numpy()


def build_extractor(
    name: str, learn: Batch, validation: Batch, schema: Schema, *, seed: int, steps: int = 300
) -> Extractor:
    """The extractor of a name, fitted on real studies where it learns.

    A classifier needs images and findings; "classifier" on others becomes "pixels-pca". Of volumes,
    extractors of images see slices; of clips, frames.

    Args:
        name: one of `NAMES`; "NETWORK@FILE", a torchvision network and the file of its weights;
            "timm:NETWORK@FILE", one of timm; "codec@CHECKPOINT"; or, of clips, "i3d@FILE".
        learn: real training studies.
        validation: real studies that select the classifier's state.
        schema: of the studies.
        seed: of the classifier or encoder.
        steps: optimiser steps of the classifier or encoder.

    Raises:
        RecipeError: there is no such extractor.
        MissingExtraError: it needs a package that is not installed.
        CheckpointError: its weights are absent or do not fit.
    """
    from medgen.evaluation.clip_features import NAMES as OF_CLIPS
    from medgen.evaluation.clip_features import clip_extractor
    from medgen.evaluation.frames import FrameFeatures, framed, is_clip, of_frames
    from medgen.evaluation.pretrained import CodecFeatures
    from medgen.evaluation.slices import SliceFeatures, of_slices, sliced

    kind, _, place = name.partition("@")
    if name == "histogram":
        return HistogramFeatures()
    if name == "spectrum":
        return FrameFeatures(SpectrumFeatures()) if is_clip(schema) else SpectrumFeatures()
    if kind in OF_CLIPS:
        return clip_extractor(name, learn, validation, schema, seed=seed, steps=steps)
    if kind == "codec" and place:
        return CodecFeatures(place)
    if len(schema.size) == 1:
        if name not in ("classifier", "pixels-pca"):
            raise RecipeError(
                f"extractor '{name}' does not take signals; use pixels-pca, spectrum or histogram"
            )
        return PixelFeatures(images_of(learn))
    if len(schema.size) < 3:
        return _of_images(name, learn, validation, schema, seed, steps)
    if is_clip(schema):
        frames = framed(learn), framed(validation), of_frames(schema)
        return FrameFeatures(_of_images(name, *frames, seed, steps))
    inner = _of_images(name, sliced(learn), sliced(validation), of_slices(schema), seed, steps)
    return SliceFeatures(inner)


def _of_images(
    name: str, learn: Batch, validation: Batch, schema: Schema, seed: int, steps: int
) -> Extractor:
    """An extractor of images (b c h w)."""
    from medgen.evaluation.pretrained import EfficientNetFeatures, network_features
    from medgen.evaluation.self_supervised import SelfSupervisedFeatures

    kind, at, file = name.partition("@")
    if at:
        return network_features(kind, Path(file))
    if name not in NAMES:
        raise RecipeError(f"unknown extractor '{name}'. {did_you_mean(name, NAMES)}")
    images = images_of(learn)
    if name == "efficientnet-lite0":
        return EfficientNetFeatures()
    if name == "ssl":
        return SelfSupervisedFeatures(images, seed=seed, steps=steps)
    if name == "random":
        return RandomFeatures(schema.channels, images)
    if name == "pixels-pca" or not schema.findings:
        return PixelFeatures(images)
    task = Classification(schema)
    held = (images_of(validation), task.targets(validation))
    consumer = train_consumer(
        task, images, task.targets(learn), steps=steps, seed=seed, validation=held
    )
    return ClassifierFeatures(consumer, images)


def images_of(batch: Batch) -> Tensor:
    """The images of studies (b c h w).

    Raises:
        DataError: the batch holds conditions only.
    """
    if batch.image is None:
        raise DataError("expected studies with images, got conditions only")
    return batch.image


def principal_axes(rows: Array, width: int) -> tuple[Array, Array]:
    """Mean (d,) and at most `width` leading principal axes (d, width) of rows (n, d)."""
    mean = rows.mean(axis=0)
    _, values, axes = np.linalg.svd(rows - mean, full_matrices=False)
    kept = min(width, int((values > 1e-9 * max(values[0], 1e-300)).sum()))
    return mean, axes[: max(1, kept)].T


def small_rows(images: Tensor) -> Array:
    """Studies (b c *s) as rows of numbers (b d), area-averaged to at most `SIDES` pixels a side."""
    sides = [min(SIDES[images.ndim - 2], side) for side in images.shape[2:]]
    return area_resize(images, sides).flatten(1).double().numpy()


def root_mean_square(features: Array) -> float:
    """The root mean square of all features; above 0."""
    return max(float(np.sqrt(np.mean(features**2))), 1e-12)


def digest_of(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the values of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return "sha256:" + digest.hexdigest()
