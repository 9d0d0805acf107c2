"""A folder in nnU-Net's raw layout: blocks in noise, with their label maps."""

import json

import numpy as np
import torch
from toy_studies import Studies

from medgen.data.geometry import Volume
from medgen.data.volumes import write_volume
from medgen.types import Batch, Provenance, Schema, Study

LABELS = {"background": 0, "kidney": 1, "cyst": 2}


def affine(spacing=(1.0, 1.0, 2.0), origin=(-10, 5, 30)):
    made = np.diag([*spacing, 1.0])
    made[:3, 3] = origin
    return made


def write(folder, cases=6, channels=1, labels=LABELS, **about):
    rng = np.random.default_rng(0)
    for case in range(cases):
        mask = np.zeros((12, 10, 8), np.uint8)
        mask[4:8, 3:7, 2:6] = 1
        mask[5:7, 4:6, 3:5] = 2
        for k in range(channels):
            voxels = (mask * 300.0 + rng.normal(0, 20, mask.shape)).astype(np.int16)
            name = f"imagesTr/case_{case:02d}_{k:04d}.nii.gz"
            write_volume(folder / name, Volume(voxels, affine()))
        write_volume(folder / f"labelsTr/case_{case:02d}.nii.gz", Volume(mask, affine()))
    names = {str(k): f"T{k}" for k in range(channels)}
    made = {"channel_names": names, "labels": labels, "file_ending": ".nii.gz"} | about
    (folder / "dataset.json").write_text(json.dumps(made))
    return folder


def synthetic_blocks(count=3, size=(8, 8, 8)):
    """Synthetic volumes in memory, of the classes that `write` makes."""
    rng = torch.Generator().manual_seed(0)
    mask = torch.zeros(count, *size, dtype=torch.int64)
    mask[:, 2:6, 2:6, 2:6] = 1
    image = (mask[:, None] * 0.8 - 0.4 + 0.1 * torch.randn(count, 1, *size, generator=rng)).clamp(
        -1, 1
    )
    names = [f"s{i}" for i in range(count)]
    return Studies(
        Schema(size=size, mask_classes=tuple(LABELS), spacing=(1.0, 1.0, 2.0)),
        [Study(name, name, "train") for name in names],
        Batch(
            image=image.clamp(-1, 1),
            mask=mask,
            provenance=tuple(Provenance(id=n, synthetic=True, source="toy") for n in names),
        ),
    )
