"""Small in-memory studies whose truth is known: a bright disc left or right, of known mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from medgen.types import Batch, Provenance, Schema, Study

SIZE = 32


@dataclass
class Studies:
    """A dataset of studies held in memory."""

    schema: Schema
    studies: Sequence[Study]
    batch: Batch

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        return self.batch.select([index])


def discs(
    count: int,
    *,
    seed: int = 0,
    synthetic: bool = False,
    noise: float = 0.8,
    splits: tuple[int, int, int] = (6, 2, 2),
    wrong: bool = False,
    per_patient: int = 1,
    findings: bool = True,
    masks: bool = True,
    scalars: bool = False,
) -> Studies:
    """Noisy images of a disc in the upper (class 1) or lower half (class 0), radius 4 to 7 px.

    Args:
        count: studies.
        seed: another seed, other studies.
        synthetic: what the provenance says; synthetic studies are all in the training split.
        noise: standard deviation of white noise.
        splits: parts of every ten patients that train, validate and test.
        wrong: swap the two classes.
        per_patient: studies of one patient.
        findings: carry labels.
        masks: carry masks.
        scalars: carry the row of the disc's centre, in px.
    """
    rng = np.random.default_rng(seed)
    upper = rng.integers(0, 2, count)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    row = np.where(upper == 1, rng.uniform(8, 13, count), rng.uniform(19, 24, count))
    column, radius = rng.uniform(8, 24, count), rng.uniform(4, 7, count)
    squared = (rows - row[:, None, None]) ** 2 + (columns - column[:, None, None]) ** 2
    mask = squared < radius[:, None, None] ** 2
    image = np.where(mask, 0.5, -0.5) + noise * rng.normal(size=mask.shape)
    label = torch.from_numpy((1 - upper if wrong else upper).astype(np.int64))
    name = "s" if synthetic else "r"
    ids = [f"{name}{seed}-{i}" for i in range(count)]
    patients = [f"{name}{seed}-p{i // per_patient}" for i in range(count)]
    cuts = np.cumsum(splits)
    studies = [
        Study(study, patient, "train" if synthetic else split_of(i // per_patient, cuts))
        for i, (study, patient) in enumerate(zip(ids, patients, strict=True))
    ]
    schema = Schema(
        size=(SIZE, SIZE),
        findings=("lower", "upper") if findings else (),
        exclusive=findings,
        mask_classes=("background", "disc") if masks else (),
        scalars=("row",) if scalars else (),
    )
    batch = Batch(
        image=torch.from_numpy(image.astype(np.float32))[:, None].clamp(-1, 1),
        mask=torch.from_numpy(mask.astype(np.int64)) if masks else None,
        label=torch.nn.functional.one_hot(label, 2) if findings else None,
        scalar=torch.from_numpy(row.astype(np.float32))[:, None] if scalars else None,
        provenance=tuple(Provenance(id=i, synthetic=synthetic, source="toy") for i in ids),
    )
    return Studies(schema, studies, batch)


def balls(count: int, *, depth: int = 16, **how) -> Studies:
    """Volumes of `discs` that stand in a slab of their own along the first axis."""
    flat = discs(count, noise=0, **how)
    rng = np.random.default_rng(how.get("seed", 0) + 1)
    middle = rng.uniform(0.35 * depth, 0.65 * depth, (count, 1))
    slab = torch.from_numpy(np.abs(np.arange(depth) - middle) < depth / 4)
    inside = (flat.batch.mask[:, None] * slab[:, :, None, None]).long()
    noise = torch.from_numpy(rng.normal(size=inside.shape).astype(np.float32))
    image = (inside - 0.5 + 0.4 * noise)[:, None].clamp(-1, 1)
    schema = replace(flat.schema, size=(depth, SIZE, SIZE))
    return Studies(schema, flat.studies, replace(flat.batch, image=image, mask=inside))


def split_of(patient: int, cuts: np.ndarray) -> str:
    """The split of a patient, by its number modulo ten."""
    place = patient % 10
    return "train" if place < cuts[0] else "validation" if place < cuts[1] else "test"


def radiographs(count: int, *, seed: int = 0, synthetic: bool = False) -> Studies:
    """Images with what makes copies hard to see: one anatomy that all share, natural texture.

    Two lungs in a bright chest, of which place and size differ little, under texture whose power
    falls with the square of frequency and is different in every image.

    Args:
        count: studies, one a patient; 6, 2 and 2 of ten train, validate and test.
        seed: another seed, other studies.
        synthetic: what the provenance says.
    """
    side = 64
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = np.inf
    waves = np.fft.fft2(rng.normal(size=(count, side, side))) / frequency
    texture = np.fft.ifft2(waves).real
    image = 0.3 + 0.1 * texture / texture.std()
    for column in (0.3, 0.7):
        place = rng.normal([0.5, column, 0.3, 0.15], 0.01, (count, 4)).T[..., None, None]
        inside = ((rows - place[0]) / place[2]) ** 2 + ((columns - place[1]) / place[3]) ** 2
        image -= 0.7 / (1 + np.exp(8 * (inside - 1)))
    plain = discs(count, seed=seed, synthetic=synthetic, masks=False)
    schema = replace(plain.schema, size=(side, side), mask_classes=())
    pixels = torch.from_numpy(image.astype(np.float32))[:, None].clamp(-1, 1)
    return Studies(schema, plain.studies, replace(plain.batch, image=pixels))
